/*
 * Snapshots against copies of a model, under everything that changes a store; what they pin, and
 * give back; closing, forking, memory that runs out.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "memory.h"
#include "snapshot.h"
#include "twin.h"

static fkv_stats stats_of(fkv *db)
{
    fkv_stats stats;
    assert_ok(fkv_get_stats(db, &stats, sizeof stats));
    return stats;
}

static void check_store(fkv *db)
{
    fkv_check_result result;
    assert_ok(fkv_check(db, NULL, &result, sizeof result));
    assert_int_equal(result.problems, 0);
}

/* ---------------------------------------------------------------- the model */

/* What is pinned, worked out from what snapshots see: sectors with something alive at their
 * moments, and those where that is by now, if it was moved. */
enum { MODEL_SECTORS = 4096 };

/* The sequences of sectors in which something lived when a snapshot was opened; else 0. */
static uint64_t lives[TWIN_SNAPSHOTS][MODEL_SECTORS];

static void note_lives(struct twin *twin, uint64_t *sequence)
{
    const struct sectors *sectors = &twin->db->sectors;
    const struct tail *tail = &twin->db->tail;
    assert_true(sectors->count <= MODEL_SECTORS);
    memset(sequence, 0, sizeof lives[0]);
    for (uint32_t s = 1; s < sectors->count; s++) {
        const struct sector *state = sector_state(sectors, s);
        uint32_t end = tail->open && tail->sector == s ? tail->cell : SECTOR_CELLS;
        bool lives_in = state->type == SECTOR_LARGE ||
                        (state->type == SECTOR_VALUES &&
                         state->dead_cells + state->pad_cells < end - SECTOR_HEADER_CELLS);
        sequence[s] = lives_in ? sector_view(sectors, s)->sequence : 0;
    }
}

static void need(bool *needed, uint64_t entry)
{
    needed[entry_address(entry) / SECTOR_CELLS] = true;
}

static void need_large(struct twin *twin, const fkv_snapshot *snapshot, uint64_t entry,
                       bool *needed)
{
    const uint8_t *record;
    assert_ok(read_lend(twin->db, entry, NULL, 0, &record));
    assert_true(large_head_is_sound(record));
    struct format_large head = large_head(record);
    for (uint32_t i = 0; i < head.sectors; i++)
        needed[large_head_sector(record, i)] = true;
    const struct undo_parts *parts =
        undo_find_parts(snapshot->layer, record_hash(&twin->db->hash_seeds, record));
    for (uint32_t i = head.sectors; i < head.sectors + head.pieces; i++) {
        uint64_t piece;
        if (!parts)
            assert_ok(index_get(&twin->db->index, piece_hash(twin->db, head.id, i), &piece));
        need(needed, parts ? parts->entry[i] : piece);
    }
}

static void need_keys(struct twin *twin, const fkv_snapshot *snapshot, bool *needed)
{
    for (uint32_t number = 0; number < TWIN_KEYS; number++) {
        uint8_t bytes[32];
        struct key key;
        uint64_t entry;
        assert_ok(key_make(twin->db, bytes, twin_key(number, bytes), &key));
        if (snapshot_entry(snapshot, key.hash, &entry))
            continue;
        need(needed, entry);
        if (entry & ENTRY_LARGE)
            need_large(twin, snapshot, entry, needed);
    }
}

static void check_pinned(struct twin *twin)
{
    static bool needed[MODEL_SECTORS];
    const struct sectors *sectors = &twin->db->sectors;
    uint32_t held = 0;
    memset(needed, 0, sizeof needed);
    fkv_read_begin(twin->db);
    for (int i = 0; i < TWIN_SNAPSHOTS; i++) {
        if (!twin->snapshots[i].snapshot)
            continue;
        for (uint32_t s = 1; s < MODEL_SECTORS; s++) {
            if (!lives[i][s])
                continue;
            needed[s] = true;
            assert_int_equal(sector_view(sectors, s)->sequence, lives[i][s]);
        }
        need_keys(twin, twin->snapshots[i].snapshot, needed);
    }
    fkv_read_end(twin->db);
    for (uint32_t s = 1; s < sectors->count; s++) {
        held += sector_state(sectors, s)->held;
        assert_true(needed[s] || !sector_state(sectors, s)->holds);
    }
    assert_int_equal(stats_of(twin->db).snapshot_sectors, held);
}

static void touch_snapshot(struct twin *twin)
{
    uint64_t number = rng_below(&twin->rng, TWIN_SNAPSHOTS);
    struct twin_snapshot *snapshot = &twin->snapshots[number];
    if (!snapshot->snapshot) {
        note_lives(twin, lives[number]);
        twin_snapshot_open(twin, snapshot);
    } else if (rng_percent(&twin->rng, 30)) {
        twin_check_all(twin, snapshot);
        twin_check_scan(twin, snapshot, 1 + (uint32_t)rng_below(&twin->rng, 4));
        twin_snapshot_close(snapshot);
        check_pinned(twin);
    } else if (rng_percent(&twin->rng, 20)) {
        twin_check_scan(twin, snapshot, 1);
    } else if (rng_percent(&twin->rng, 20)) {
        twin_check_all(twin, snapshot);
    }
}

static void one_step(struct twin *twin)
{
    twin_commit(twin);
    if (rng_percent(&twin->rng, 20)) {
        const struct twin_snapshot *snapshot =
            &twin->snapshots[rng_below(&twin->rng, TWIN_SNAPSHOTS)];
        uint32_t number = (uint32_t)rng_below(&twin->rng, TWIN_KEYS);
        twin_check_key(twin, snapshot->snapshot ? snapshot : NULL, number);
    }
    if (rng_below(&twin->rng, 100) == 0)
        touch_snapshot(twin);
    if (rng_below(&twin->rng, 1000) == 0)
        check_pinned(twin);
    if (rng_below(&twin->rng, 1500) == 0)
        assert_ok(fkv_checkpoint(twin->db));
    if (rng_below(&twin->rng, 4000) == 0)
        check_store(twin->db);
    if (rng_below(&twin->rng, 8000) == 0) {
        twin_close(twin);
        twin->flags ^= FKV_NO_THREAD;
        twin_open(twin);
        twin_check_all(twin, NULL);
    }
}

static void model_against_store(void **state)
{
    (void)state;
    for (struct rounds rounds = rounds_begin(3); rounds_next(&rounds);) {
        struct twin *twin = malloc(sizeof *twin);
        assert_non_null(twin);
        unsigned flags = (rounds.seed % 2 ? FKV_NO_THREAD : 0) | (rounds.seed % 3 ? 0 : FKV_DIGEST);
        twin_make(twin, rounds.seed, support_path("model.fkv"), flags);
        for (int step = 0; step < 20000; step++)
            one_step(twin);
        for (int i = 0; i < TWIN_SNAPSHOTS; i++)
            if (twin->snapshots[i].snapshot) {
                twin_check_all(twin, &twin->snapshots[i]);
                twin_check_scan(twin, &twin->snapshots[i], 3);
                twin_snapshot_close(&twin->snapshots[i]);
            }
        check_store(twin->db);
        assert_int_equal(stats_of(twin->db).snapshots, 0);
        assert_int_equal(stats_of(twin->db).snapshot_bytes, 0);
        assert_int_equal(stats_of(twin->db).snapshot_sectors, 0);
        twin_drop(twin);
        free(twin);
    }
}

/* ---------------------------------------------------------------- what is pinned */

enum { SOME_KEYS = 20000, SOME_BYTES = 400 };

static void put_all(fkv *db, uint32_t keys, char letter)
{
    char value[SOME_BYTES];
    memset(value, letter, sizeof value);
    for (uint32_t k = 0; k < keys; k++)
        assert_ok(fkv_put(db, &k, sizeof k, value, sizeof value));
}

static void assert_letter(fkv_snapshot *snapshot, uint32_t keys, char letter)
{
    char value[SOME_BYTES];
    size_t bytes;
    for (uint32_t k = 0; k < keys; k++) {
        assert_ok(fkv_snapshot_get(snapshot, &k, sizeof k, value, sizeof value, &bytes));
        assert_int_equal(bytes, SOME_BYTES);
        assert_int_equal(value[0], letter);
        assert_int_equal(value[SOME_BYTES - 1], letter);
    }
}

static void pinned_space_is_bounded_and_comes_back(void **state)
{
    (void)state;
    fkv *db;
    fkv_snapshot *old, *young;
    assert_ok(fkv_open(support_path("pinned.fkv"), NULL, &db));
    put_all(db, SOME_KEYS, 'a');
    assert_ok(fkv_snapshot_open(db, &old));
    /* One key is overwritten again and again: only its first version is pinned. */
    for (int i = 0; i < 100; i++)
        put_all(db, 200, 'x');
    assert_ok(fkv_checkpoint(db));
    assert_ok(fkv_checkpoint(db));
    assert_true(stats_of(db).snapshot_sectors <= 1);
    for (int i = 0; i < 4; i++) {
        put_all(db, SOME_KEYS, 'b');
        assert_ok(fkv_checkpoint(db));
    }
    assert_letter(old, SOME_KEYS, 'a');
    fkv_stats stats = stats_of(db);
    uint64_t all = SOME_KEYS * (uint64_t)SOME_BYTES / (1 << 20) + 3;
    assert_true(stats.snapshot_sectors > all / 2 && stats.snapshot_sectors <= all);
    assert_true(stats.snapshot_bytes > SOME_KEYS * 56 && stats.snapshot_bytes < SOME_KEYS * 100);
    /* A younger one adds what is overwritten since it was opened, and takes it along. */
    assert_ok(fkv_snapshot_open(db, &young));
    put_all(db, SOME_KEYS, 'c');
    assert_letter(young, SOME_KEYS, 'b');
    assert_letter(old, SOME_KEYS, 'a');
    assert_true(stats_of(db).snapshot_bytes > 2 * SOME_KEYS * 56);
    fkv_snapshot_close(young);
    assert_true(stats_of(db).snapshot_bytes < SOME_KEYS * 100);
    assert_letter(old, SOME_KEYS, 'a');
    fkv_snapshot_close(old);
    assert_int_equal(stats_of(db).snapshot_bytes, 0);
    assert_int_equal(stats_of(db).snapshot_sectors, 0);
    check_store(db);
    assert_ok(fkv_close(db));
}

/* Snapshots that come and go beside one that stays pin nothing once they are gone. */
static void short_ones_beside_a_long_one(void **state)
{
    (void)state;
    fkv *db;
    fkv_snapshot *old, *young;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    static uint8_t large[3000000];
    uint32_t large_key = SOME_KEYS;
    assert_ok(fkv_open(support_path("short_ones.fkv"), &options, &db));
    put_all(db, SOME_KEYS, 'a');
    assert_ok(fkv_put(db, &large_key, sizeof large_key, large, sizeof large));
    assert_ok(fkv_snapshot_open(db, &old));
    /* The collector has moved some that the snapshot sees, between others: those are to go, too,
     * and beyond them is a sector of keys that stay. */
    put_all(db, SOME_KEYS, 'b');
    for (uint32_t k = 2 * SOME_KEYS; k < 2 * SOME_KEYS + 4000; k++)
        assert_ok(fkv_put(db, &k, sizeof k, large, SOME_BYTES));
    put_all(db, SOME_KEYS, 'b');
    assert_ok(fkv_put(db, &large_key, sizeof large_key, large, sizeof large));
    assert_ok(fkv_checkpoint(db));
    assert_ok(fkv_checkpoint(db));
    fkv_stats stats = stats_of(db);
    assert_true(stats.snapshot_sectors > SOME_KEYS * SOME_BYTES / (1 << 20));
    for (int i = 0; i < 5; i++) {
        assert_ok(fkv_snapshot_open(db, &young));
        put_all(db, SOME_KEYS, (char)('c' + i));
        assert_ok(fkv_put(db, &large_key, sizeof large_key, large, sizeof large));
        assert_ok(fkv_checkpoint(db));
        assert_ok(fkv_checkpoint(db));
        assert_true(stats_of(db).snapshot_sectors > stats.snapshot_sectors + 3);
        assert_letter(young, SOME_KEYS, (char)('b' + i));
        fkv_snapshot_close(young);
        assert_int_equal(stats_of(db).snapshot_sectors, stats.snapshot_sectors);
        assert_int_equal(stats_of(db).snapshot_bytes, stats.snapshot_bytes);
        check_store(db);
    }
    assert_letter(old, SOME_KEYS, 'a');
    assert_ok(fkv_snapshot_open(db, &young));
    fkv_snapshot_close(old);
    assert_int_equal(stats_of(db).snapshot_sectors, 0);
    fkv_snapshot_close(young);
    check_store(db);
    assert_ok(fkv_close(db));
}

/* Only the first of a large value's versions is pinned, as of others. */
static void a_large_value_again_and_again(void **state)
{
    (void)state;
    enum { LARGE_BYTES = 2900000, TIMES = 40 };
    static uint8_t value[LARGE_BYTES], read[LARGE_BYTES];
    fkv *db;
    fkv_snapshot *snapshot;
    fkv_stats stats;
    size_t bytes;
    assert_ok(fkv_open(support_path("again.fkv"), NULL, &db));
    memset(value, 'a', sizeof value);
    assert_ok(fkv_put(db, "k", 1, value, sizeof value));
    assert_ok(fkv_snapshot_open(db, &snapshot));
    for (int i = 0; i < TIMES; i++) {
        assert_ok(fkv_put(db, "k", 1, value + i + 1, sizeof value - (size_t)i - 1));
        if (i == 1)
            stats = stats_of(db);
    }
    assert_ok(fkv_checkpoint(db));
    assert_ok(fkv_checkpoint(db));
    assert_in_range(stats_of(db).snapshot_sectors, 3, 4);
    assert_int_equal(stats_of(db).snapshot_bytes, stats.snapshot_bytes);
    assert_ok(fkv_snapshot_get(snapshot, "k", 1, read, sizeof read, &bytes));
    assert_int_equal(bytes, sizeof value);
    assert_memory_equal(read, value, sizeof value);
    fkv_snapshot_close(snapshot);
    assert_int_equal(stats_of(db).snapshot_sectors, 0);
    assert_int_equal(stats_of(db).snapshot_bytes, 0);
    check_store(db);
    assert_ok(fkv_close(db));
}

/* What the younger one kept serves the older one once it is closed. */
static void layers_are_merged(void **state)
{
    (void)state;
    fkv *db;
    fkv_snapshot *snapshots[9];
    assert_ok(fkv_open(support_path("merged.fkv"), NULL, &db));
    put_all(db, 3000, 'a');
    for (int s = 0; s < 9; s++) {
        assert_ok(fkv_snapshot_open(db, &snapshots[s]));
        put_all(db, 3000, (char)('b' + s));
    }
    const int order[9] = {4, 3, 8, 5, 1, 7, 0, 6, 2};
    for (int i = 0; i < 9; i++) {
        for (int j = i; j < 9; j++)
            assert_letter(snapshots[order[j]], 3000, (char)('a' + order[j]));
        fkv_snapshot_close(snapshots[order[i]]);
    }
    assert_int_equal(stats_of(db).snapshot_bytes, 0);
    assert_ok(fkv_close(db));
}

static double processor_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void leave_many(struct undo *undo, uint64_t count, uint64_t low)
{
    const uint64_t apart = UINT64_MAX / count; /* neighbours in memory are so in the trie, too */
    for (uint64_t i = 0; i < count; i++)
        assert_ok(undo_key(undo, (struct hash128){.hi = i * apart, .lo = low}, 0, NULL));
}

/* How much longer it takes to merge so many undos than to find each of them. `upwards`: into the
 * layer that is closed, which has more. */
static double merging_to_finding(uint64_t count, bool upwards)
{
    struct undo undo = {0};
    struct undo_layer *old = undo_open(&undo), *gone = NULL;
    const uint64_t apart = UINT64_MAX / count;
    assert_non_null(old);
    leave_many(&undo, count, 0);
    struct undo_layer *young = undo_open(&undo);
    assert_non_null(young);
    leave_many(&undo, upwards ? count + 1 : count - 1, 1);
    undo_close(&undo, young);
    double begun = processor_seconds();
    while (!gone)
        assert_true(undo_settle(&undo, &gone));
    double merged = processor_seconds();
    for (uint64_t i = 0; i < count; i++) {
        uint64_t before;
        assert_true(undo_find_key(old, (struct hash128){.hi = i * apart}, &before));
    }
    double found = processor_seconds();
    undo_free(gone);
    undo_drop(&undo);
    return (merged - begun) / (found - merged);
}

/* Closing a snapshot takes as long as there is to be merged, not that times what is merged. */
static void merging_is_linear(void **state)
{
    (void)state;
    enum { UNDOS = 2000000, TIMES_MOST = 16, TRIES = 5 };
    for (int upwards = 0; upwards < 2; upwards++) {
        double times = TIMES_MOST;
        for (int i = 0; i < TRIES && times >= TIMES_MOST; i++)
            times = merging_to_finding(UNDOS, upwards);
        printf("merging takes %.1f times as long as finding\n", times);
        assert_true(times < TIMES_MOST);
    }
}

/* How much longer it takes to close so many snapshots, the newest first, than to leave what they
 * see: keys of their own each, that gather in the older ones; with `parts`, of values in pieces. */
static double closing_to_leaving(uint32_t snapshots, bool parts)
{
    enum { KEYS_EACH = 40, PARTS = 3 };
    struct undo undo = {0};
    struct undo_layer *gone, **layers = malloc(snapshots * sizeof(struct undo_layer *));
    assert_non_null(layers);
    double begun = processor_seconds();
    for (uint32_t i = 0; i < snapshots; i++) {
        layers[i] = undo_open(&undo);
        assert_non_null(layers[i]);
        for (uint64_t k = 0; k < KEYS_EACH; k++)
            assert_ok(undo_key(&undo, (struct hash128){rng_mix(i, k, 1), k}, 0,
                               parts ? undo_parts_new(PARTS) : NULL));
    }
    double left = processor_seconds();
    while (snapshots--) {
        undo_close(&undo, layers[snapshots]);
        while (undo_settle(&undo, &gone))
            if (gone)
                undo_free(gone);
    }
    double closed = processor_seconds();
    assert_int_equal(undo.bytes, 0);
    free(layers);
    return (closed - left) / (left - begun);
}

static void closing_the_newest_first(void **state)
{
    (void)state;
    enum { SNAPSHOTS = 5000, TIMES_MOST = 16, TRIES = 5 };
    for (int parts = 0; parts < 2; parts++) {
        double times = TIMES_MOST;
        for (int i = 0; i < TRIES && times >= TIMES_MOST; i++)
            times = closing_to_leaving(SNAPSHOTS, parts);
        printf("closing takes %.1f times as long as leaving\n", times);
        assert_true(times < TIMES_MOST);
    }
}

/* ---------------------------------------------------------------- lives */

static void closing_the_store_ends_them(void **state)
{
    (void)state;
    fkv *db;
    fkv_snapshot *snapshot, *unused;
    assert_ok(fkv_open(support_path("ended.fkv"), NULL, &db));
    put_all(db, 100, 'a');
    assert_ok(fkv_snapshot_open(db, &snapshot));
    assert_ok(fkv_snapshot_open(db, &unused));
    put_all(db, 100, 'b');
    assert_ok(fkv_close(db));
    uint32_t key = 1;
    assert_error(fkv_snapshot_exists(snapshot, &key, sizeof key), FKV_SNAPSHOT_ENDED);
    assert_error(fkv_snapshot_get(snapshot, &key, sizeof key, NULL, 0, NULL), FKV_SNAPSHOT_ENDED);
    fkv_snapshot_close(snapshot);
    fkv_snapshot_close(unused);
    fkv_snapshot_close(NULL);
}

static void bad_arguments(void **state)
{
    (void)state;
    fkv *db;
    fkv_snapshot *snapshot;
    size_t bytes;
    const void *value;
    assert_ok(fkv_open(support_path("bad.fkv"), NULL, &db));
    put_all(db, 2, 'a');
    assert_error(fkv_snapshot_open(NULL, &snapshot), FKV_INVALID);
    assert_error(fkv_snapshot_open(db, NULL), FKV_INVALID);
    assert_ok(fkv_snapshot_open(db, &snapshot));
    assert_int_equal(fkv_snapshot_keys(snapshot), 2);
    assert_int_equal(fkv_snapshot_keys(NULL), 0);
    uint32_t key = 0;
    assert_error(fkv_snapshot_exists(NULL, &key, sizeof key), FKV_INVALID);
    assert_error(fkv_snapshot_exists(snapshot, NULL, 4), FKV_INVALID);
    assert_error(fkv_snapshot_exists(snapshot, &key, FKV_KEY_BYTES_MAX + 1), FKV_KEY_TOO_LARGE);
    assert_error(fkv_snapshot_get(snapshot, &key, sizeof key, NULL, 1, &bytes), FKV_INVALID);
    assert_error(fkv_snapshot_get(snapshot, &key, sizeof key, NULL, 0, &bytes),
                 FKV_BUFFER_TOO_SMALL);
    assert_int_equal(bytes, SOME_BYTES);
    assert_error(fkv_snapshot_value_size(snapshot, &key, sizeof key, NULL), FKV_INVALID);
    assert_error(fkv_snapshot_value_size(snapshot, NULL, 4, &bytes), FKV_INVALID);
    assert_error(fkv_snapshot_borrow(snapshot, &key, sizeof key, &value, &bytes), FKV_INVALID);
    assert_error(fkv_snapshot_borrow(snapshot, &key, sizeof key, NULL, &bytes), FKV_INVALID);
    assert_true(strlen(fkv_error_detail(db)) > 0);
    fkv_snapshot_close(snapshot);
    assert_ok(fkv_close(db));
}

static void of_a_store_opened_read_only(void **state)
{
    (void)state;
    fkv *db;
    fkv_snapshot *snapshot;
    const char *path = support_path("read_only.fkv");
    assert_ok(fkv_open(path, NULL, &db));
    put_all(db, 1000, 'a');
    assert_ok(fkv_close(db));
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_OPEN_READ_ONLY;
    assert_ok(fkv_open(path, &options, &db));
    assert_ok(fkv_snapshot_open(db, &snapshot));
    assert_letter(snapshot, 1000, 'a');
    fkv_snapshot_close(snapshot);
    assert_ok(fkv_close(db));
}

static void in_a_child_of_fork(void **state)
{
    (void)state;
    for (unsigned flags = 0; flags <= FKV_NO_THREAD; flags += FKV_NO_THREAD) {
        fkv *db;
        fkv_snapshot *snapshot, *other;
        fkv_options options;
        fkv_options_init(&options);
        options.flags = flags;
        assert_ok(fkv_open(support_path("forked.fkv"), &options, &db));
        put_all(db, 100, 'a');
        assert_ok(fkv_snapshot_open(db, &snapshot));
        put_all(db, 100, 'b');
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            uint32_t key = 3;
            bool right = fkv_snapshot_exists(snapshot, &key, sizeof key) == FKV_FORKED &&
                         fkv_snapshot_open(db, &other) == FKV_FORKED;
            fkv_snapshot_close(snapshot);
            right = right && fkv_close(db) == FKV_OK;
            _exit(right ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        assert_letter(snapshot, 100, 'a');
        fkv_snapshot_close(snapshot);
        assert_ok(fkv_close(db));
    }
}

/* ---------------------------------------------------------------- memory runs out */

/* Every request for memory fails once, in opening, commits and closing; after each failure, and at
 * the end, the snapshot is what it was and the store what the successful calls made it. */
static void memory_that_runs_out(void **state)
{
    (void)state;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    static uint8_t large[300000];
    memset(large, 'L', sizeof large);
    uint64_t failures = 0;
    for (uint64_t nth = 1; nth < 400; nth++) {
        fkv *db;
        fkv_snapshot *old = NULL, *young = NULL;
        char name[32];
        snprintf(name, sizeof name, "memory%u.fkv", (unsigned)(nth % 2));
        const char *path = support_path(name);
        remove(path);
        snprintf(name, sizeof name, "memory%u.fkv-wal", (unsigned)(nth % 2));
        remove(support_path(name));
        assert_ok(fkv_open(path, &options, &db));
        put_all(db, 600, 'a');
        uint32_t key = 600;
        assert_ok(fkv_put(db, &key, sizeof key, large, sizeof large));
        memory_test_fail(nth, false);
        uint64_t before = memory_test_requests();
        enum fkv_error error = fkv_snapshot_open(db, &old);
        assert_true(error == FKV_OK || error == FKV_NO_MEMORY);
        failures += error != FKV_OK;
        char letter[601];
        memset(letter, 'a', sizeof letter);
        char value[SOME_BYTES];
        memset(value, 'b', sizeof value);
        for (uint32_t k = 0; k < 600; k++) {
            if (k == 300) {
                error = fkv_snapshot_open(db, &young);
                assert_true(error == FKV_OK || error == FKV_NO_MEMORY);
                failures += error != FKV_OK;
            }
            error = fkv_put(db, &k, sizeof k, value, sizeof value);
            assert_true(error == FKV_OK || error == FKV_NO_MEMORY);
            failures += error != FKV_OK;
            letter[k] = error ? 'a' : 'b';
        }
        error = fkv_delete(db, &key, sizeof key);
        assert_true(error == FKV_OK || error == FKV_NO_MEMORY);
        failures += error != FKV_OK;
        fkv_snapshot_close(young);
        uint64_t requests = memory_test_requests() - before;
        memory_test_fail(0, false);
        if (old) {
            static uint8_t read[sizeof large];
            size_t bytes;
            assert_letter(old, 600, 'a');
            assert_ok(fkv_snapshot_get(old, &key, sizeof key, read, sizeof read, &bytes));
            assert_int_equal(bytes, sizeof large);
            assert_memory_equal(read, large, sizeof large);
        }
        for (uint32_t k = 0; k < 600; k++) {
            assert_ok(fkv_get(db, &k, sizeof k, value, sizeof value, NULL));
            assert_int_equal(value[0], letter[k]);
        }
        check_store(db);
        fkv_snapshot_close(old);
        assert_int_equal(stats_of(db).snapshot_bytes, 0);
        assert_ok(fkv_close(db));
        if (nth > requests)
            break;
    }
    assert_true(failures > 5);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_against_store),
        cmocka_unit_test(pinned_space_is_bounded_and_comes_back),
        cmocka_unit_test(short_ones_beside_a_long_one),
        cmocka_unit_test(a_large_value_again_and_again),
        cmocka_unit_test(layers_are_merged),
        cmocka_unit_test(merging_is_linear),
        cmocka_unit_test(closing_the_newest_first),
        cmocka_unit_test(closing_the_store_ends_them),
        cmocka_unit_test(bad_arguments),
        cmocka_unit_test(of_a_store_opened_read_only),
        cmocka_unit_test(in_a_child_of_fork),
        cmocka_unit_test(memory_that_runs_out),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
