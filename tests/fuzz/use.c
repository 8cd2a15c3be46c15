#include "use.h"

#include "check.h"
#include "fuzz.h"
#include "memory.h"
#include "repair.h"

#include <stdlib.h>

struct using
{
    struct os_sim *sim;
    const struct base *base;
    const struct use *use;
    struct fkv *db;
    uint8_t *buffer, *value;
    uint32_t version;
    bool any_value;
    bool written; /* something has been written since: the base does not say what the keys have */
};

static void must_say(const struct using *using, enum fkv_error error, const char *call)
{
    if (error && error != FKV_NO_MEMORY && !*fkv_error_detail(using->db))
        fuzz_fail("%s: %s, and no word about it", call, fkv_error_text(error));
}

static uint64_t problems;

static void count_problem(void *context, const fkv_problem *problem)
{
    (void)context;
    if (!*problem->text)
        fuzz_fail("a problem without a word");
    problems++;
}

/* What a check returns, and what it has reported. */
static void must_report(enum fkv_error error)
{
    if ((error == FKV_DAMAGED) != (problems > 0) && error != FKV_NO_MEMORY)
        fuzz_fail("a check with %llu problems: %s", (unsigned long long)problems,
                  fkv_error_text(error));
    problems = 0;
}

/* ---------------------------------------------------------------- reading */

static bool must_be_latest(const struct using *using)
{
    return using->use->strict && !using->written && using->db->commit == using->base->commit;
}

static void must_be_right(const struct using *using, uint32_t number, const uint8_t *bytes,
                          size_t count)
{
    uint32_t version;
    if (using->any_value)
        return;
    if (!base_value_is(number, bytes, count, &version))
        fuzz_fail("key %u has a value that it never had, of %zu bytes", number, count);
    if (must_be_latest(using) && version != using->base->latest[number])
        fuzz_fail("key %u has version %u, not %u", number, version, using->base->latest[number]);
}

static void read_key(struct using *using, uint32_t number)
{
    uint8_t key[16];
    size_t key_bytes = base_key(number, key), bytes = 0;
    enum fkv_error error =
        fkv_get(using->db, key, key_bytes, using->buffer, BASE_VALUE_BYTES_MAX, &bytes);
    if (!error)
        must_be_right(using, number, using->buffer, bytes);
    else if (error != FKV_NOT_FOUND)
        must_say(using, error, "get");
    else if (must_be_latest(using) && using->base->latest[number])
        fuzz_fail("key %u is gone", number);
    const void *lent;
    fkv_read_begin(using->db);
    if (!fkv_borrow(using->db, key, key_bytes, &lent, &bytes))
        must_be_right(using, number, lent, bytes);
    fkv_read_end(using->db);
}

/* The number of a key, if it is one of the base's. */
static bool number_of(const void *key, size_t bytes, uint32_t *number)
{
    uint8_t expected[16];
    char text[16] = {0};
    if (bytes < 5 || bytes >= sizeof text)
        return false;
    memcpy(text, key, bytes);
    *number = (uint32_t)strtoul(text + 4, NULL, 10);
    return base_key(*number, expected) == bytes && memcmp(expected, key, bytes) == 0;
}

static void scan_all(struct using *using)
{
    fkv_snapshot *snapshot;
    fkv_scan *scan = NULL;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    uint32_t number = 0;
    enum fkv_error error = fkv_snapshot_open(using->db, &snapshot);
    if (error) {
        must_say(using, error, "snapshot_open");
        return;
    }
    if (fkv_scan_open(snapshot, NULL, &scan) == FKV_OK) {
        while ((error = fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes)) == FKV_OK) {
            bool ours = !(using->base->flags & FKV_DIGEST) && number_of(key, key_bytes, &number);
            if (!value && value_bytes <= BASE_VALUE_BYTES_MAX &&
                !fkv_scan_value(scan, using->buffer, BASE_VALUE_BYTES_MAX))
                value = using->buffer;
            if (value && ours && number < using->base->keys)
                must_be_right(using, number, value, value_bytes);
        }
        if (error != FKV_NOT_FOUND)
            must_say(using, error, "scan_next");
    }
    fkv_scan_close(scan);
    fkv_snapshot_close(snapshot);
}

static void read_all(struct using *using)
{
    enum { READ_MOST = 64 };
    uint32_t step = using->base->keys / READ_MOST + 1;
    for (uint32_t number = 0; number < using->base->keys; number += step)
        read_key(using, number);
    scan_all(using);
    must_report(store_check(using->db, &(struct check_options){.problem = count_problem}, NULL));
}

/* ---------------------------------------------------------------- writing */

static void put(struct using *using, uint32_t number, size_t bytes)
{
    uint8_t key[16];
    size_t key_bytes = base_key(number, key);
    base_value(number, ++using->version, bytes, using->value);
    must_say(using, fkv_put(using->db, key, key_bytes, using->value, bytes), "put");
}

static void put_together(struct using *using)
{
    fkv_txn *txn;
    if (fkv_txn_begin(using->db, &txn))
        return;
    for (uint32_t number = 0; number < min_u64(using->base->keys, 6); number++) {
        uint8_t key[16];
        size_t key_bytes = base_key(number, key);
        base_value(number, ++using->version, 100, using->value);
        fkv_txn_put(txn, key, key_bytes, using->value, 100);
    }
    must_say(using, fkv_txn_commit(txn, FKV_SYNC), "txn_commit");
    fkv_txn_free(txn);
}

static void work(struct using *using)
{
    uint8_t key[16];
    const uint32_t keys = using->base->keys;
    using->written = true;
    put(using, 1 % keys, 50);
    put(using, keys - 1, 500);
    put(using, 2 % keys, 140000);
    fkv_delete(using->db, key, base_key(0, key));
    fkv_delete(using->db, key, base_key(2 % keys, key));
    put_together(using);
    must_say(using, fkv_checkpoint(using->db), "checkpoint");
    must_say(using, fkv_compact(using->db, 5), "compact");
    put(using, 3 % keys, 70);
    must_say(using, fkv_sync(using->db), "sync");
}

/* ---------------------------------------------------------------- openings */

static enum fkv_error open_it(struct using *using)
{
    fkv_options options;
    base_options(using->base, &options);
    options.flags |= using->use->flags;
    enum fkv_error error = store_open(os_sim_os(using->sim), BASE_PATH, &options, &using->db);
    error_claim(0);
    if (error)
        using->db = NULL;
    must_say(using, error, "open");
    return error;
}

/* Closing says what it did before the handle is gone. */
static void close_it(struct using *using)
{
    store_close(using->db);
    using->db = NULL;
}

static void look_from_outside(struct using *using)
{
    fkv_repair_result repaired = {0};
    struct os *os = os_sim_os(using->sim);
    check_file(os, BASE_PATH, &(struct check_options){.problem = count_problem}, NULL);
    problems = 0; /* a file that does not open is one that a check cannot be begun on, too */
    enum fkv_error error = repair(os, BASE_PATH, "d/new", NULL, &repaired);
    error_claim(0);
    must_say(using, error, "repair");
    if (!repaired.complete)
        return;
    fkv_options options;
    base_options(using->base, &options);
    options.flags &= ~(uint32_t)FKV_DIGEST;
    if (store_open(os, "d/new", &options, &using->db))
        fuzz_fail("what a repair has made cannot be opened: %s", error_last());
    using->any_value |= using->use->frames;
    using->written = true; /* deleted keys may be back, and older values */
    read_all(using);
    if (store_check(using->db, NULL, NULL))
        fuzz_fail("what a repair has made is not whole");
    using->any_value = using->use->any_value;
    using->written = false;
    close_it(using);
}

void use_store(struct os_sim *sim, const struct base *base, const struct use *use)
{
    static uint8_t *buffers;
    if (!buffers)
        buffers = malloc(2 * (size_t)BASE_VALUE_BYTES_MAX);
    struct using using = {.sim = sim,
                          .base = base,
                          .use = use,
                          .buffer = buffers,
                          .value = buffers + BASE_VALUE_BYTES_MAX,
                          .any_value = use->any_value,
                          .version = base->last_version};
    const uint64_t blocks = memory_test_blocks();
    fuzz_random(99);
    if (use->image)
        look_from_outside(&using);
    for (int opening = 0; opening < 2; opening++) {
        if (open_it(&using))
            break;
        read_all(&using);
        if (!opening) {
            work(&using);
            read_all(&using);
        }
        close_it(&using);
    }
    if (os_sim_open_files(sim) || os_sim_open_mappings(sim) || memory_test_blocks() != blocks)
        fuzz_fail("left behind: %zu files, %zu mappings, %llu blocks", os_sim_open_files(sim),
                  os_sim_open_mappings(sim), (unsigned long long)(memory_test_blocks() - blocks));
}
