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
#include "store.h"
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

static void touch_snapshot(struct twin *twin)
{
    struct twin_snapshot *snapshot = &twin->snapshots[rng_below(&twin->rng, TWIN_SNAPSHOTS)];
    if (!snapshot->snapshot) {
        twin_snapshot_open(twin, snapshot);
    } else if (rng_percent(&twin->rng, 30)) {
        twin_check_all(twin, snapshot);
        twin_check_scan(twin, snapshot, 1 + (uint32_t)rng_below(&twin->rng, 4));
        twin_snapshot_close(snapshot);
    } else if (rng_percent(&twin->rng, 20)) {
        twin_check_scan(twin, snapshot, 1);
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
    if (rng_below(&twin->rng, 300) == 0)
        touch_snapshot(twin);
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

/* A snapshot that is closed beside an older one frees no sectors; so those that are held are not
 * gone through, with the writer lock, each time. (That would turn their list around.) */
static void held_sectors_are_left_alone(void **state)
{
    (void)state;
    fkv *db;
    fkv_snapshot *old, *young;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    assert_ok(fkv_open(support_path("left_alone.fkv"), &options, &db));
    put_all(db, SOME_KEYS, 'a');
    assert_ok(fkv_snapshot_open(db, &old));
    put_all(db, SOME_KEYS, 'b');
    assert_ok(fkv_checkpoint(db));
    assert_ok(fkv_checkpoint(db));
    fkv_stats stats = stats_of(db);
    assert_true(stats.snapshot_sectors > 1);
    assert_ok(fkv_snapshot_open(db, &young));
    fkv_snapshot_close(young); /* the first one since goes through them */
    uint32_t head = db->sectors.held.head;
    assert_ok(fkv_snapshot_open(db, &young));
    fkv_snapshot_close(young);
    assert_int_equal(db->sectors.held.head, head);
    assert_int_equal(stats_of(db).snapshot_sectors, stats.snapshot_sectors);
    assert_ok(fkv_snapshot_open(db, &young));
    fkv_snapshot_close(old);
    assert_int_equal(stats_of(db).snapshot_sectors, 0);
    fkv_snapshot_close(young);
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

/* How much longer it takes to merge so many undos than to find each of them. */
static double merging_to_finding(uint64_t count)
{
    struct undo undo = {0};
    struct undo_layer *old = undo_open(&undo), *young = undo_open(&undo), *gone = NULL;
    const uint64_t apart = UINT64_MAX / count; /* neighbours in memory are so in the trie, too */
    assert_non_null(old);
    assert_non_null(young);
    for (uint64_t i = 0; i < count; i++) {
        bool left;
        assert_ok(undo_key(&undo, (struct hash128){.hi = i * apart}, i, &left));
    }
    undo_close(&undo, young);
    double begun = processor_seconds();
    while (!gone)
        assert_true(undo_settle(&undo, &gone));
    double merged = processor_seconds();
    for (uint64_t i = 0; i < count; i++) {
        uint64_t before = 0;
        assert_true(undo_find_key(old, (struct hash128){.hi = i * apart}, &before) && before == i);
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
    double times = TIMES_MOST;
    for (int i = 0; i < TRIES && times >= TIMES_MOST; i++)
        times = merging_to_finding(UNDOS);
    printf("merging takes %.1f times as long as finding\n", times);
    assert_true(times < TIMES_MOST);
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
        cmocka_unit_test(held_sectors_are_left_alone),
        cmocka_unit_test(layers_are_merged),
        cmocka_unit_test(merging_is_linear),
        cmocka_unit_test(closing_the_store_ends_them),
        cmocka_unit_test(bad_arguments),
        cmocka_unit_test(of_a_store_opened_read_only),
        cmocka_unit_test(in_a_child_of_fork),
        cmocka_unit_test(memory_that_runs_out),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
