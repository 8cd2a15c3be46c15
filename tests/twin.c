#include "twin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void twin_make(struct twin *twin, uint64_t seed, const char *path, unsigned flags)
{
    *twin = (struct twin){.rng = rng_make(seed), .flags = flags};
    snprintf(twin->path, sizeof twin->path, "%s", path);
    remove(path);
    char log[300];
    snprintf(log, sizeof log, "%s-wal", path);
    remove(log);
    twin->value = malloc(TWIN_VALUE_MAX);
    twin->buffer = malloc(TWIN_VALUE_MAX);
    assert_non_null(twin->value);
    assert_non_null(twin->buffer);
    twin_open(twin);
}

void twin_drop(struct twin *twin)
{
    twin_close(twin);
    free(twin->value);
    free(twin->buffer);
}

void twin_open(struct twin *twin)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = twin->flags;
    options.log_bytes_max = 4 << 20;
    assert_ok(fkv_open(twin->path, &options, &twin->db));
}

void twin_close(struct twin *twin)
{
    for (int i = 0; i < TWIN_SNAPSHOTS; i++)
        if (twin->snapshots[i].snapshot)
            twin_snapshot_close(&twin->snapshots[i]);
    assert_ok(fkv_close(twin->db));
    twin->db = NULL;
}

/* ---------------------------------------------------------------- keys and values */

size_t twin_key(uint32_t number, uint8_t key[32])
{
    memset(key, 0, 32);
    memcpy(key, &number, sizeof number);
    return sizeof number + number % 20;
}

uint32_t twin_key_number(const void *key, size_t key_bytes)
{
    uint32_t number = UINT32_MAX;
    uint8_t expected[32];
    assert_true(key_bytes >= sizeof number);
    memcpy(&number, key, sizeof number);
    assert_true(number < TWIN_KEYS);
    assert_int_equal(twin_key(number, expected), key_bytes);
    assert_memory_equal(key, expected, key_bytes);
    return number;
}

size_t twin_value_bytes(uint32_t number, uint64_t version)
{
    struct rng rng = rng_make(rng_mix(number, version, 1));
    switch (rng_below(&rng, 400)) {
    case 0:
        return (size_t)rng_below(&rng, TWIN_VALUE_MAX); /* sectors of its own, and pieces */
    case 1:
        return (size_t)rng_below(&rng, 200000);
    case 2:
    case 3:
        return (size_t)rng_below(&rng, 20000);
    default:
        return (size_t)rng_below(&rng, 1000);
    }
}

void twin_value(uint32_t number, uint64_t version, uint8_t *to)
{
    struct rng rng = rng_make(rng_mix(number, version, 2));
    rng_fill(&rng, to, twin_value_bytes(number, version));
}

/* ---------------------------------------------------------------- commits */

static void note(struct twin *twin, uint32_t number, uint64_t version)
{
    twin->now.keys += (version != 0);
    twin->now.keys -= (twin->now.version[number] != 0);
    twin->now.version[number] = version;
}

static void commit_one(struct twin *twin, uint32_t number, uint64_t version)
{
    uint8_t key[32];
    size_t key_bytes = twin_key(number, key);
    if (version) {
        twin_value(number, version, twin->value);
        assert_ok(
            fkv_put(twin->db, key, key_bytes, twin->value, twin_value_bytes(number, version)));
    } else {
        enum fkv_error expected = twin->now.version[number] ? FKV_OK : FKV_NOT_FOUND;
        assert_error(fkv_delete(twin->db, key, key_bytes), expected);
    }
    note(twin, number, version);
}

/* New keys and overwrites, or mostly deletes: by turns. */
static uint64_t next_version(struct twin *twin)
{
    unsigned deletes = twin->versions / 4096 % 3 == 2 ? 70 : 10;
    twin->versions++;
    return rng_percent(&twin->rng, deletes) ? 0 : twin->versions;
}

static uint32_t any_key(struct twin *twin)
{
    uint64_t end = rng_percent(&twin->rng, 50) ? TWIN_KEYS : 100;
    return (uint32_t)rng_below(&twin->rng, end);
}

void twin_commit(struct twin *twin)
{
    if (!rng_percent(&twin->rng, 5)) {
        uint32_t number = any_key(twin);
        commit_one(twin, number, next_version(twin));
        return;
    }
    fkv_txn *txn;
    assert_ok(fkv_txn_begin(twin->db, &txn));
    struct twin_state after = twin->now;
    for (uint64_t count = rng_below(&twin->rng, 50); count > 0; count--) {
        uint32_t number = any_key(twin);
        uint64_t version = next_version(twin);
        uint8_t key[32];
        size_t key_bytes = twin_key(number, key);
        twin_value(number, version, twin->value);
        assert_ok(version ? fkv_txn_put(txn, key, key_bytes, twin->value,
                                        twin_value_bytes(number, version))
                          : fkv_txn_delete(txn, key, key_bytes));
        after.version[number] = version;
    }
    if (rng_percent(&twin->rng, 80)) {
        assert_ok(fkv_txn_commit(txn, 0));
        for (uint32_t k = 0; k < TWIN_KEYS; k++)
            note(twin, k, after.version[k]);
    }
    fkv_txn_free(txn);
}

/* ---------------------------------------------------------------- checking */

void twin_check_key(struct twin *twin, const struct twin_snapshot *snapshot, uint32_t number)
{
    fkv_snapshot *at = snapshot ? snapshot->snapshot : NULL;
    uint64_t version = (snapshot ? &snapshot->state : &twin->now)->version[number];
    uint8_t key[32];
    size_t key_bytes = twin_key(number, key);
    enum fkv_error expected = version ? FKV_OK : FKV_NOT_FOUND;
    size_t bytes = 0, size = 0;
    assert_error(at ? fkv_snapshot_exists(at, key, key_bytes)
                    : fkv_exists(twin->db, key, key_bytes),
                 expected);
    assert_error(at ? fkv_snapshot_get(at, key, key_bytes, twin->buffer, TWIN_VALUE_MAX, &bytes)
                    : fkv_get(twin->db, key, key_bytes, twin->buffer, TWIN_VALUE_MAX, &bytes),
                 expected);
    if (!version)
        return;
    twin_value(number, version, twin->value);
    assert_int_equal(bytes, twin_value_bytes(number, version));
    assert_true(memcmp(twin->buffer, twin->value, bytes) == 0);
    if (!at)
        return;
    assert_ok(fkv_snapshot_value_size(at, key, key_bytes, &size));
    assert_int_equal(size, bytes);
    fkv_read_begin(twin->db);
    const void *borrowed = NULL;
    enum fkv_error error = fkv_snapshot_borrow(at, key, key_bytes, &borrowed, &size);
    bool same = error || memcmp(borrowed, twin->value, bytes) == 0;
    fkv_read_end(twin->db);
    assert_true(error == FKV_OK || (error == FKV_VALUE_TOO_LARGE && bytes > 65536));
    assert_int_equal(size, bytes);
    assert_true(same);
}

void twin_check_all(struct twin *twin, const struct twin_snapshot *snapshot)
{
    for (uint32_t number = 0; number < TWIN_KEYS; number++)
        twin_check_key(twin, snapshot, number);
    if (snapshot)
        assert_int_equal(fkv_snapshot_keys(snapshot->snapshot), snapshot->state.keys);
}

static void check_pair(struct twin *twin, const struct twin_snapshot *snapshot, fkv_scan *scan,
                       uint32_t number, const void *value, size_t value_bytes)
{
    uint64_t version = snapshot->state.version[number];
    assert_true(version != 0);
    assert_int_equal(value_bytes, twin_value_bytes(number, version));
    twin_value(number, version, twin->value);
    if (value)
        assert_true(memcmp(value, twin->value, value_bytes) == 0);
    if (!value || rng_percent(&twin->rng, 1)) {
        assert_ok(fkv_scan_value(scan, twin->buffer, TWIN_VALUE_MAX));
        assert_true(memcmp(twin->buffer, twin->value, value_bytes) == 0);
    }
}

void twin_check_scan(struct twin *twin, const struct twin_snapshot *snapshot, uint32_t parts)
{
    static uint8_t seen[TWIN_KEYS];
    uint64_t count = 0;
    memset(seen, 0, sizeof seen);
    for (uint32_t part = 0; part < parts; part++) {
        fkv_scan_options options;
        fkv_scan_options_init(&options);
        options.part = part;
        options.parts = parts;
        fkv_scan *scan;
        const void *key, *value;
        size_t key_bytes, value_bytes;
        enum fkv_error error;
        assert_ok(fkv_scan_open(snapshot->snapshot, &options, &scan));
        while (!(error = fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes))) {
            count++;
            if (!(twin->flags & FKV_DIGEST)) {
                uint32_t number = twin_key_number(key, key_bytes);
                assert_false(seen[number]++);
                check_pair(twin, snapshot, scan, number, value, value_bytes);
            }
            if (rng_below(&twin->rng, 500) == 0) {
                options.position = fkv_scan_position(scan);
                fkv_scan_close(scan);
                assert_ok(fkv_scan_open(snapshot->snapshot, &options, &scan));
            }
        }
        assert_error(error, FKV_NOT_FOUND);
        fkv_scan_close(scan);
    }
    assert_int_equal(count, snapshot->state.keys);
}

void twin_snapshot_open(struct twin *twin, struct twin_snapshot *snapshot)
{
    assert_ok(fkv_snapshot_open(twin->db, &snapshot->snapshot));
    snapshot->state = twin->now;
}

void twin_snapshot_close(struct twin_snapshot *snapshot)
{
    fkv_snapshot_close(snapshot->snapshot);
    snapshot->snapshot = NULL;
}
