/*
 * fkv_compact, and the same in the background: garbage below the share that was asked for, a
 * shorter file, nothing lost. (The bound meanwhile is test_bound's.)
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os_sim.h"
#include "store.h"
#include "support.h"

enum { PAIRS = 60000, VALUE_BYTES = 400 };

static void put_some(fkv *db, uint32_t begin, uint32_t step, char letter)
{
    char value[VALUE_BYTES];
    memset(value, letter, sizeof value);
    for (uint32_t k = begin; k < PAIRS; k += step)
        assert_ok(fkv_put(db, &k, sizeof k, value, sizeof value));
}

static fkv_stats stats_of(fkv *db)
{
    fkv_stats stats;
    assert_ok(fkv_get_stats(db, &stats, sizeof stats));
    return stats;
}

static void compact(unsigned flags, const char *name)
{
    enum { CELLS_OF_A_SECTOR = 65536 };
    fkv *db;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = 2 << 20;
    assert_ok(fkv_open(support_path(name), &options, &db));
    put_some(db, 0, 1, 'a');
    for (uint32_t k = 0; k < PAIRS; k += 4)
        assert_ok(fkv_delete(db, &k, sizeof k));
    put_some(db, 1, 40, 'b');
    fkv_stats before = stats_of(db);
    assert_true(before.dead_cells * 100 > before.live_cells * 20);
    assert_ok(fkv_compact(db, 5));
    fkv_stats after = stats_of(db);
    assert_true(after.dead_cells * 100 <= after.live_cells * 5 + CELLS_OF_A_SECTOR * 100);
    assert_true(after.dead_cells < before.dead_cells / 3);
    assert_int_equal(after.keys, before.keys);
    fkv_check_result result;
    assert_ok(fkv_check(db, NULL, &result, sizeof result));
    for (uint32_t k = 0; k < PAIRS; k++) {
        char value[VALUE_BYTES];
        assert_error(fkv_get(db, &k, sizeof k, value, sizeof value, NULL),
                     k % 4 ? FKV_OK : FKV_NOT_FOUND);
        if (k % 4)
            assert_int_equal(value[7], k % 40 == 1 ? 'b' : 'a');
    }
    assert_error(fkv_compact(db, 101), FKV_INVALID);
    assert_ok(fkv_compact(db, 0));
    assert_ok(fkv_close(db));
    options.flags = FKV_OPEN_READ_ONLY;
    assert_ok(fkv_open(support_path(name), &options, &db));
    assert_error(fkv_compact(db, 5), FKV_READ_ONLY);
    assert_error(fkv_compact_start(db, 5), FKV_READ_ONLY);
    assert_ok(fkv_compact_stop(db));
    assert_ok(fkv_close(db));
}

static void with_threads(void **state)
{
    (void)state;
    compact(0, "threads.fkv");
}

static void without_threads(void **state)
{
    (void)state;
    compact(FKV_NO_THREAD, "no_thread.fkv");
}

/* ---------------------------------------------------------------- long records */

/* Records that are longer than what is done at once: of a single key, and pieces of large values.
 */
static void long_records(void **state)
{
    (void)state;
    enum { KEYS = 60, BYTES = 200000 };
    static const size_t sizes[] = {100000, 131000, BYTES};
    fkv *db;
    char *value = calloc(1, BYTES);
    assert_ok(fkv_open(support_path("long.fkv"), NULL, &db));
    for (uint32_t s = 0; s < 3; s++)
        for (uint32_t k = 0; k < KEYS; k++) {
            uint32_t key = s * 1000 + k;
            assert_ok(fkv_put(db, &key, sizeof key, value, sizes[s]));
        }
    for (uint32_t s = 0; s < 3; s++)
        for (uint32_t k = 0; k < KEYS; k += 5) {
            uint32_t key = s * 1000 + k;
            assert_ok(fkv_delete(db, &key, sizeof key));
        }
    fkv_stats before = stats_of(db);
    assert_true(before.dead_cells * 100 > before.live_cells * 20);
    assert_ok(fkv_compact(db, 1));
    fkv_stats after = stats_of(db);
    assert_true(after.dead_cells * 100 <= after.live_cells + 65536 * 100);
    assert_true(after.dead_cells < before.dead_cells / 3);
    assert_ok(fkv_check(db, NULL, NULL, 0));
    assert_ok(fkv_close(db));
    free(value);
}

/* ---------------------------------------------------------------- in the background */

/* What a commit overwrites, deletes and puts anew, so that there always is some garbage. */
static void churn(fkv *db, struct rng *rng)
{
    char value[VALUE_BYTES];
    uint32_t k = (uint32_t)rng_below(rng, PAIRS);
    memset(value, (int)(k & 255), sizeof value);
    assert_ok(fkv_put(db, &k, sizeof k, value, sizeof value));
}

static void check_churned(fkv *db)
{
    char value[VALUE_BYTES];
    for (uint32_t k = 0; k < PAIRS; k++) {
        assert_ok(fkv_get(db, &k, sizeof k, value, sizeof value, NULL));
        assert_int_equal((uint8_t)value[VALUE_BYTES - 1], k & 255);
    }
}

static fkv *open_with_garbage(const char *name, unsigned flags, struct rng *rng)
{
    fkv *db;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = 2 << 20;
    assert_ok(fkv_open(support_path(name), &options, &db));
    for (uint32_t k = 0; k < PAIRS; k++) {
        char value[VALUE_BYTES];
        memset(value, (int)(k & 255), sizeof value);
        assert_ok(fkv_put(db, &k, sizeof k, value, sizeof value));
    }
    for (uint32_t i = 0; i < PAIRS; i++)
        churn(db, rng);
    return db;
}

/* Until it is over: with threads it is waited for, without it is stepped. */
static void wait_for_compaction(fkv *db, bool steps)
{
    int more = 1;
    while (stats_of(db).compacting) {
        if (steps)
            assert_ok(fkv_compact_step(db, &more));
        else
            usleep(1000);
    }
    assert_ok(fkv_compact_step(db, &more));
    assert_int_equal(more, 0);
}

static uint64_t allocated_bytes(const char *name)
{
    struct stat status;
    assert_int_equal(stat(support_path(name), &status), 0);
    return (uint64_t)status.st_blocks * 512;
}

/* Space has gone back to the file system: from the end of the file, or as holes. */
static void assert_compact(fkv *db, const char *name, fkv_stats before, uint64_t percent)
{
    enum { SECTORS_AT_MOST = 20 }; /* kept free, half full, or of the index */
    fkv_stats after = stats_of(db);
    assert_int_equal(after.compaction_error, FKV_OK);
    assert_int_equal(after.keys, before.keys);
    assert_true(after.dead_cells * 100 <= after.live_cells * percent + 65536 * 100);
    assert_true(after.dead_cells < before.dead_cells / 2);
    uint64_t live_bytes = after.live_cells * after.cell_bytes;
    assert_true(allocated_bytes(name) < live_bytes + (SECTORS_AT_MOST << 20));
    assert_ok(fkv_check(db, NULL, NULL, 0));
}

/* Nobody else does anything. */
static void background(unsigned flags, const char *name)
{
    struct rng rng = rng_make(4);
    fkv *db = open_with_garbage(name, flags, &rng);
    fkv_stats before = stats_of(db);
    assert_true(before.dead_cells * 100 > before.live_cells * 20);
    assert_int_equal(before.compacting, 0);
    assert_ok(fkv_compact_start(db, 2));
    wait_for_compaction(db, flags & FKV_NO_THREAD);
    assert_compact(db, name, before, 2);
    assert_int_equal(stats_of(db).compactions, 1);
    check_churned(db);
    /* Where there is nothing to do it is over at once. */
    uint64_t moved = stats_of(db).bytes_written_collector;
    assert_ok(fkv_compact_start(db, 100));
    wait_for_compaction(db, flags & FKV_NO_THREAD);
    assert_int_equal(stats_of(db).compactions, 2);
    assert_int_equal(stats_of(db).bytes_written_collector, moved);
    assert_ok(fkv_close(db));
}

static void background_with_threads(void **state)
{
    (void)state;
    background(0, "background.fkv");
}

static void background_without_threads(void **state)
{
    (void)state;
    background(FKV_NO_THREAD, "background_alone.fkv");
}

/* Commits go on, and do it themselves where there is no thread. */
static void background_beside_commits(unsigned flags, const char *name)
{
    struct rng rng = rng_make(5);
    fkv *db = open_with_garbage(name, flags, &rng);
    fkv_stats before = stats_of(db);
    assert_ok(fkv_compact_start(db, 5));
    while (stats_of(db).compacting)
        churn(db, &rng);
    fkv_stats after = stats_of(db);
    assert_int_equal(after.compaction_error, FKV_OK);
    assert_true(after.bytes_written_collector > before.bytes_written_collector);
    assert_ok(fkv_check(db, NULL, NULL, 0));
    check_churned(db);
    /* It has gone through all there was, whatever died meanwhile; so alone it ends at once or so.
     */
    assert_ok(fkv_compact_start(db, 5));
    wait_for_compaction(db, flags & FKV_NO_THREAD);
    assert_true(stats_of(db).dead_cells * 100 <= stats_of(db).live_cells * 5 + 65536 * 100);
    check_churned(db);
    assert_ok(fkv_close(db));
}

static void beside_commits_with_threads(void **state)
{
    (void)state;
    background_beside_commits(0, "beside.fkv");
}

static void beside_commits_without_threads(void **state)
{
    (void)state;
    background_beside_commits(FKV_NO_THREAD, "beside_alone.fkv");
}

/* A second one ends the first. Again, with new garbage, where this thread had to wait so long that
 * one of them was over by then. Returns what was before. */
static fkv_stats begin_twice(fkv *db, unsigned flags, struct rng *rng)
{
    for (int tries = flags ? 1 : 20; tries > 0; tries--) {
        fkv_stats before = stats_of(db);
        assert_ok(fkv_compact_start(db, 5));
        assert_ok(fkv_compact_start(db, 3));
        fkv_stats after = stats_of(db);
        if (after.compacting && after.compaction_error == FKV_CANCELLED) {
            assert_int_equal(after.compactions, before.compactions + 1);
            return before;
        }
        assert_int_equal(after.compaction_error, FKV_OK);
        wait_for_compaction(db, flags);
        for (uint32_t i = 0; i < PAIRS; i++)
            churn(db, rng);
    }
    fail_msg("the second ends no first one");
    return stats_of(db);
}

static void stopped_and_begun_again(void **state)
{
    (void)state;
    for (unsigned flags = 0; flags <= FKV_NO_THREAD; flags += FKV_NO_THREAD) {
        struct rng rng = rng_make(6);
        const char *name = flags ? "stopped_alone.fkv" : "stopped.fkv";
        fkv *db = open_with_garbage(name, flags, &rng);
        assert_ok(fkv_compact_stop(db)); /* there is none */
        assert_int_equal(stats_of(db).compactions, 0);
        fkv_stats before = begin_twice(db, flags, &rng);
        wait_for_compaction(db, flags);
        assert_compact(db, name, before, 3);
        assert_int_equal(stats_of(db).compactions, before.compactions + 2);
        for (uint32_t i = 0; i < PAIRS; i++)
            churn(db, &rng);
        assert_ok(fkv_compact_start(db, 0));
        assert_ok(fkv_compact_stop(db));
        assert_int_equal(stats_of(db).compacting, 0);
        assert_ok(fkv_check(db, NULL, NULL, 0));
        check_churned(db);
        /* To close is to stop. */
        assert_ok(fkv_compact_start(db, 0));
        assert_ok(fkv_close(db));
        assert_ok(fkv_check_file(support_path(name), NULL, NULL, 0));
    }
}

/* A reader that stays in its section keeps what was freed, and nobody waits for it. */
static void beside_a_reader_that_stays(void **state)
{
    (void)state;
    struct rng rng = rng_make(7);
    fkv *db = open_with_garbage("reader.fkv", 0, &rng);
    fkv_read_begin(db);
    assert_ok(fkv_compact_start(db, 2));
    while (stats_of(db).compacting)
        usleep(1000);
    assert_int_equal(stats_of(db).compaction_error, FKV_OK);
    fkv_read_end(db);
    check_churned(db);
    assert_ok(fkv_close(db));
}

static void arguments(void **state)
{
    (void)state;
    fkv *db;
    int more;
    assert_ok(fkv_open(support_path("arguments.fkv"), NULL, &db));
    assert_error(fkv_compact_start(NULL, 5), FKV_INVALID);
    assert_error(fkv_compact_start(db, 101), FKV_INVALID);
    assert_error(fkv_compact_stop(NULL), FKV_INVALID);
    assert_error(fkv_compact_step(NULL, &more), FKV_INVALID);
    assert_error(fkv_compact_step(db, NULL), FKV_INVALID);
    assert_ok(fkv_compact_step(db, &more));
    assert_int_equal(more, 0);
    assert_ok(fkv_compact_start(db, 0)); /* of an empty store */
    wait_for_compaction(db, false);
    assert_ok(fkv_close(db));
}

/* What others free beside it, all the time, may wait for readers: what it has freed is waited for.
 */
static void beside_what_others_free(void **state)
{
    (void)state;
    enum { COMMITS_MOST = 100 };
    struct rng rng = rng_make(11);
    fkv *db = open_with_garbage("others.fkv", FKV_NO_THREAD, &rng);
    assert_ok(fkv_compact_start(db, 5));
    while (db->compaction.stage == COMPACTION_COLLECTS)
        churn(db, &rng);
    db->sectors.awaiting_readers++;
    int commits = 0;
    while (stats_of(db).compacting && commits++ < COMMITS_MOST) {
        struct retired_block *block = memory_new(sizeof *block);
        assert_true(block);
        pthread_mutex_lock(&db->writer);
        reclaim_block(&db->reclaim, block);
        pthread_mutex_unlock(&db->writer);
        churn(db, &rng);
    }
    db->sectors.awaiting_readers--;
    assert_true(commits < COMMITS_MOST);
    assert_ok(fkv_close(db));
}

/* While a commit waits for a checkpoint to make room for it, nothing of that is taken: a commit
 * that needs all of the log would wait for the end of the compaction otherwise, through one
 * checkpoint after another. */
static void gives_way(void **state)
{
    (void)state;
    for (unsigned flags = 0; flags <= FKV_NO_THREAD; flags += FKV_NO_THREAD) {
        fkv *db;
        fkv_options options;
        fkv_options_init(&options);
        options.flags = flags;
        assert_ok(fkv_open(support_path(flags ? "way-no-thread" : "way"), &options, &db));
        put_some(db, 0, 1, 'a');
        put_some(db, 0, 3, 'b');
        pthread_mutex_lock(&db->writer);
        db->making_room = true;
        pthread_mutex_unlock(&db->writer);
        assert_ok(fkv_compact_start(db, 0));
        int more = 1;
        for (int i = 0; i < 20; i++) {
            usleep(1000);
            assert_ok(fkv_compact_step(db, &more));
        }
        pthread_mutex_lock(&db->writer);
        assert_int_equal(db->collector.further_bytes, 0);
        commit_end_making_room(db);
        pthread_mutex_unlock(&db->writer);
        while (more)
            assert_ok(fkv_compact_step(db, &more));
        assert_int_not_equal(db->collector.further_bytes, 0);
        assert_ok(fkv_close(db));
    }
}

/* A step that ends it says why, whatever another call has said before. */
static void steps_say_why_it_ends(void **state)
{
    (void)state;
    struct os_sim *sim = os_sim_new(NULL);
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    fkv *db;
    int more;
    assert_ok(store_open(os_sim_os(sim), "store", &options, &db));
    assert_ok(fkv_put(db, "a", 1, "1", 1));
    assert_ok(fkv_compact_start(db, 0));
    os_sim_fail(sim, &(struct os_sim_fault){.kinds = OS_SIM_SYNC, .nth = 1, .error = -EIO});
    assert_error(fkv_sync(db), FKV_IO);
    assert_error(fkv_put(db, NULL, 1, "1", 1), FKV_INVALID);
    assert_error(fkv_compact_step(db, &more), FKV_FAILED);
    assert_int_equal(more, 0);
    assert_non_null(strstr(fkv_error_detail(db), "compaction"));
    assert_error(fkv_close(db), FKV_FAILED);
    os_sim_free(sim);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_threads),
        cmocka_unit_test(without_threads),
        cmocka_unit_test(long_records),
        cmocka_unit_test(background_with_threads),
        cmocka_unit_test(background_without_threads),
        cmocka_unit_test(beside_commits_with_threads),
        cmocka_unit_test(beside_commits_without_threads),
        cmocka_unit_test(stopped_and_begun_again),
        cmocka_unit_test(beside_a_reader_that_stays),
        cmocka_unit_test(arguments),
        cmocka_unit_test(beside_what_others_free),
        cmocka_unit_test(gives_way),
        cmocka_unit_test(steps_say_why_it_ends),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
