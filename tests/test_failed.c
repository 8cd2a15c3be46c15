/*
 * test_failed: calls that fail, and what they leave behind: for the next call, for a checkpoint,
 * and for the opening after a loss of power. On the simulated disk.
 */
#include "support.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

#include "fkv.h"
#include "memory.h"
#include "os_sim.h"
#include "store.h"

#define NAME "store"
enum { VALUE_BYTES = 100000, LARGE_BYTES = 2 * MIB + 5000, KEYS = 20 };

static uint8_t value[LARGE_BYTES];

static struct fkv *open_on(struct os_sim *sim, uint64_t log_bytes_max, uint64_t index_memory_max)
{
    struct fkv *db;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    options.log_bytes_max = log_bytes_max;
    options.index_memory_max = index_memory_max;
    assert_ok(store_open(os_sim_os(sim), NAME, &options, &db));
    return db;
}

static void put(struct fkv *db, uint32_t key, size_t bytes)
{
    assert_ok(fkv_put(db, &key, sizeof key, value, bytes));
}

/* The n-th of these calls on the store's file fails. */
static void fail_nth(struct os_sim *sim, unsigned kinds, uint64_t nth, int error)
{
    os_sim_fail(
        sim, &(struct os_sim_fault){.kinds = kinds, .nth = nth, .error = error, .name_end = NAME});
}

static void must_be_whole(struct fkv *db)
{
    fkv_check_result result;
    assert_ok(fkv_check(db, NULL, &result, sizeof result));
    assert_int_equal(result.problems, 0);
}

static void end_whole(struct os_sim *sim, struct fkv *db)
{
    must_be_whole(db);
    assert_ok(store_close(db));
    os_sim_free(sim);
}

/* A transaction of small and large values. */
static fkv_txn *fill_txn(struct fkv *db)
{
    fkv_txn *txn;
    assert_ok(fkv_txn_begin(db, &txn));
    assert_ok(fkv_txn_put(txn, "L0", 2, value, MIB + 5000));
    for (uint32_t key = 100; key < 110; key++)
        assert_ok(fkv_txn_put(txn, &key, sizeof key, value, VALUE_BYTES));
    assert_ok(fkv_txn_put(txn, "L1", 2, value, LARGE_BYTES));
    return txn;
}

/* A commit opens a sector and fails; a checkpoint begins, and later commits are in that sector. */
static void test_opened_sector(void **state)
{
    (void)state;
    uint32_t recovered = 0;
    for (uint64_t nth = 1; nth <= 8; nth++) {
        struct os_sim *sim = os_sim_new(&(struct os_sim_options){.seed = nth});
        struct fkv *db = open_on(sim, 0, 0);
        for (uint32_t key = 0; key < 8; key++)
            put(db, key, VALUE_BYTES);
        fkv_txn *txn = fill_txn(db);
        fail_nth(sim, OS_SIM_WRITE, nth, -ENOSPC);
        enum fkv_error error = fkv_txn_commit(txn, 0);
        os_sim_fail(sim, NULL);
        fkv_txn_free(txn);
        bool failed = store_has_failed(db);
        if (!failed) {
            pthread_mutex_lock(&db->writer);
            db->checkpoint.wanted = true;
            checkpoint_poll(db);
            pthread_mutex_unlock(&db->writer);
            put(db, 200, 5);
            assert_ok(fkv_sync(db));
        }
        os_sim_crash(sim, nth);
        store_close(db);
        db = open_on(sim, 0, 0);
        if (!failed)
            assert_ok(fkv_exists(db, &(uint32_t){200}, sizeof(uint32_t)));
        recovered += !failed && error;
        end_whole(sim, db);
    }
    assert_true(recovered > 0);
}

/* A commit fails late, the sectors that it wrote to are used again, and it fails early. */
static void test_tried_again(void **state)
{
    (void)state;
    for (int reuse = 0; reuse < 4; reuse++) {
        struct os_sim *sim = os_sim_new(NULL);
        struct fkv *db = open_on(sim, 0, 0);
        for (uint32_t key = 0; key < KEYS; key++)
            put(db, key, VALUE_BYTES);
        assert_ok(fkv_checkpoint(db));
        fkv_txn *txn = fill_txn(db);
        fail_nth(sim, OS_SIM_WRITE, 4, -ENOSPC);
        assert_error(fkv_txn_commit(txn, 0), FKV_FULL);
        os_sim_fail(sim, NULL);
        for (int i = 0; i < reuse; i++) {
            for (uint32_t key = 0; key < KEYS; key++)
                put(db, key, VALUE_BYTES);
            assert_ok(fkv_checkpoint(db));
        }
        fail_nth(sim, OS_SIM_WRITE, 1, -ENOSPC);
        assert_error(fkv_txn_commit(txn, 0), FKV_FULL);
        os_sim_fail(sim, NULL);
        must_be_whole(db);
        assert_ok(fkv_txn_commit(txn, 0));
        fkv_txn_free(txn);
        must_be_whole(db);
        for (uint32_t key = 0; key < KEYS; key++)
            assert_ok(fkv_exists(db, &key, sizeof key));
        assert_ok(store_close(db));
        os_sim_free(sim);
    }
}

/* The system tells of a failed sync once: to a commit, or to the checkpoint that it is beside. The
 * other must not take the next sync's word that all is well. */
static void test_failed_sync(void **state)
{
    (void)state;
    uint32_t failures = 0;
    for (uint64_t nth = 1; nth <= 24; nth++) {
        struct os_sim *sim = os_sim_new(&(struct os_sim_options){.seed = nth});
        struct fkv *db = open_on(sim, MIB, 0);
        fail_nth(sim, OS_SIM_SYNC, nth, -EIO);
        uint64_t before = os_sim_failed(sim);
        int last = -1;
        for (int i = 0; i < 100 && os_sim_failed(sim) == before; i++) {
            uint32_t key = (uint32_t)i % 5;
            memset(value, i, sizeof value);
            if (fkv_put_with(db, &key, sizeof key, value, LARGE_BYTES, FKV_SYNC) == FKV_OK)
                last = i;
        }
        failures += os_sim_failed(sim) > before;
        if (os_sim_failed(sim) > before)
            assert_error(fkv_put_with(db, "x", 1, "", 0, FKV_SYNC), FKV_FAILED);
        os_sim_crash(sim, nth * 7);
        store_close(db);
        db = open_on(sim, MIB, 0);
        if (last >= 0) {
            uint32_t key = (uint32_t)last % 5;
            size_t bytes = 0;
            assert_ok(fkv_get(db, &key, sizeof key, value, sizeof value, &bytes));
            assert_int_equal(bytes, LARGE_BYTES);
            assert_true(value[0] == (uint8_t)last || value[0] == (uint8_t)(last + 5));
        }
        end_whole(sim, db);
    }
    assert_true(failures > 16);
}

/* A compaction waits for a checkpoint that will not come. */
static void test_compaction_ends(void **state)
{
    (void)state;
    struct os_sim *sim = os_sim_new(NULL);
    struct fkv *db = open_on(sim, 0, 0);
    for (uint32_t i = 0; i < 200; i++)
        put(db, i % 40, VALUE_BYTES);
    assert_ok(fkv_compact_start(db, 0));
    while (db->compaction.stage == COMPACTION_COLLECTS) {
        pthread_mutex_lock(&db->writer);
        compaction_poll(db, 64);
        pthread_mutex_unlock(&db->writer);
    }
    os_sim_fail(
        sim,
        &(struct os_sim_fault){
            .kinds = OS_SIM_WRITE, .nth = 1, .error = -EIO, .forever = true, .name_end = NAME});
    enum fkv_error error = FKV_OK;
    for (uint32_t i = 0; i < 40 && !error; i++)
        error = fkv_put(db, &i, sizeof i, value, VALUE_BYTES);
    assert_true(error != FKV_OK);
    int more = 1;
    for (int steps = 0; more && steps < 100; steps++)
        error = fkv_compact_step(db, &more);
    assert_false(more);
    assert_true(error != FKV_OK);
    store_close(db);
    os_sim_free(sim);
}

/* The first pair of a load finds no memory: then no sector stays taken for it. */
static void test_load_of_nothing(void **state)
{
    (void)state;
    struct os_sim *sim = os_sim_new(NULL);
    struct fkv *db = open_on(sim, 0, 0);
    enum fkv_error error = FKV_NO_MEMORY;
    for (uint64_t nth = 1; error; nth++) {
        fkv_load *load;
        assert_ok(fkv_load_begin(db, &load));
        memory_test_fail(nth, false);
        error = fkv_load_put(load, "a", 1, "b", 1);
        memory_test_fail(0, false);
        if (error) {
            assert_error(error, FKV_NO_MEMORY);
            assert_ok(fkv_load_commit(load));
        }
        fkv_load_free(load);
        assert_int_equal(db->sectors.changing, 0);
    }
    end_whole(sim, db);
}

/* On a full disk deletes go on, and then puts do. */
static void test_deletes_on_a_full_disk(void **state)
{
    (void)state;
    for (uint64_t limit = 0; limit <= 32768; limit += 32768) {
        struct os_sim *sim = os_sim_new(&(struct os_sim_options){.capacity_bytes = 16 * MIB});
        struct fkv *db = open_on(sim, 2 * MIB, limit);
        uint32_t keys = 0;
        enum fkv_error error;
        for (int refused = 0; refused < 50; refused += error != FKV_OK) {
            error = fkv_put(db, &keys, sizeof keys, value, keys * 7 % 40);
            assert_true(error == FKV_OK || error == FKV_FULL);
            keys += error == FKV_OK;
        }
        assert_true(keys > 10000);
        for (uint32_t key = 0; key < keys; key++)
            if (key % 5 < 3)
                assert_ok(fkv_delete(db, &key, sizeof key));
        for (uint32_t key = 0; key < keys; key++)
            if (key % 5 == 0)
                put(db, key, key * 7 % 40);
        end_whole(sim, db);
    }
}

/* A full store, filled with puts. Returns how many. */
static uint32_t fill_with(struct fkv *db, size_t bytes)
{
    uint32_t keys = 0;
    for (int refused = 0; refused < 50;) {
        enum fkv_error error = fkv_put(db, &keys, sizeof keys, value, bytes);
        assert_true(error == FKV_OK || error == FKV_FULL);
        keys += error == FKV_OK;
        refused += error != FKV_OK;
    }
    return keys;
}

static void delete_at_random(struct fkv *db, struct rng *rng, uint32_t keys, uint32_t count)
{
    while (count) {
        uint32_t key = (uint32_t)rng_below(rng, keys);
        enum fkv_error error = fkv_delete(db, &key, sizeof key);
        assert_true(error == FKV_OK || error == FKV_NOT_FOUND);
        count -= error == FKV_OK;
    }
}

/* Deletes do not eat the sectors that the collector moves records to: so garbage stays in bounds on
 * a full disk too, and there is room again. */
static void test_garbage_on_a_full_disk(void **state)
{
    (void)state;
    enum { BYTES = 2000 };
    struct rng rng = rng_make(1);
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){.capacity_bytes = 30 * MIB});
    struct fkv *db = open_on(sim, 16 * MIB, 0);
    uint32_t keys = fill_with(db, BYTES);
    delete_at_random(db, &rng, keys, keys / 20 * 19);
    assert_true(db->sectors.dead_cells <= db->sectors.live_cells + 3 * SECTOR_CELLS);
    for (uint32_t key = keys; key < keys + keys / 2; key++)
        put(db, key, BYTES);
    end_whole(sim, db);
}

/* The first death in a sector needs places for its deletion map: puts leave them for all sectors,
 * beside the sectors of the collector. */
static void test_first_deaths_on_a_full_disk(void **state)
{
    (void)state;
    enum { BYTES = 130000, MAP_PAGES = 2 };
    struct rng rng = rng_make(1);
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){.capacity_bytes = 150 * MIB});
    struct fkv *db = open_on(sim, 4 * MIB, 0);
    uint32_t keys = fill_with(db, BYTES);
    assert_ok(fkv_checkpoint(db));
    uint64_t places = pages_places_free(&db->pages) - pages_places_needed(&db->pages, 0);
    places += (db->sectors.free_backed_count - RESERVE_FOR_COLLECTOR) * SECTOR_PAGES;
    assert_in_range(places, MAP_PAGES * db->sectors.values_count, UINT32_MAX);
    delete_at_random(db, &rng, keys, keys - 1);
    end_whole(sim, db);
}

/* A value that had room once has room again after it was deleted, however little there is beside
 * it: what is dead in the open sector makes room, too. */
static void test_again_on_a_small_disk(void **state)
{
    (void)state;
    enum { TURNS = 3, STEP = 370000, DISKS = 3 };
    uint32_t had_room = 0;
    for (int i = 0; i < 2 * DISKS; i++)
        for (size_t bytes = STEP; bytes < LARGE_BYTES + LARGE_BYTES / 2; bytes += STEP) {
            struct os_sim *sim =
                os_sim_new(&(struct os_sim_options){.capacity_bytes = (6 + (uint64_t)i / 2) * MIB});
            struct fkv *db = open_on(sim, MIB, 0);
            uint8_t *large = calloc(1, bytes);
            if (i % 2)
                put(db, 1, VALUE_BYTES);
            enum fkv_error first = fkv_put(db, "a", 1, large, bytes);
            assert_true(first == FKV_OK || first == FKV_FULL);
            for (int turn = 0; turn < TURNS && !first; turn++) {
                assert_ok(fkv_delete(db, "a", 1));
                assert_ok(fkv_put(db, "a", 1, large, bytes));
            }
            had_room += !first;
            free(large);
            end_whole(sim, db);
        }
    assert_true(had_room > DISKS);
}

/* What is given back to the file system, others may take: not what the next checkpoint needs. */
static void test_giving_back(void **state)
{
    (void)state;
    enum { MANY = 200000, SOME = 20 };
    struct os_sim *sim = os_sim_new(NULL);
    struct fkv *db = open_on(sim, 16 * MIB, 0);
    fkv_load *load;
    assert_ok(fkv_load_begin(db, &load));
    for (uint32_t key = 0; key < MANY; key++)
        assert_ok(fkv_load_put(load, &key, sizeof key, value, 1));
    assert_ok(fkv_load_commit(load));
    fkv_load_free(load);
    for (uint32_t key = 0; key < MANY; key += SOME)
        put(db, key, 1);
    pthread_mutex_lock(&db->writer);
    sectors_trim(&db->sectors, 1, false, &db->writer);
    pthread_mutex_unlock(&db->writer);
    os_sim_set_capacity(sim, os_sim_used(sim));
    assert_ok(fkv_checkpoint(db));
    end_whole(sim, db);
}

/* A page of the index cannot be read. Sectors with records of its keys stay; the others are
 * collected. */
static void test_collecting_beside_bad_page(void **state)
{
    (void)state;
    enum { OLD = 4000, NEW = 4000, BYTES = 1000, PUTS = 60000 };
    struct rng rng = rng_make(1);
    struct os_sim *sim = os_sim_new(NULL);
    struct fkv *db = open_on(sim, 4 * MIB, 0);
    for (uint32_t key = 0; key < OLD; key++)
        put(db, key, BYTES);
    assert_ok(fkv_checkpoint(db));
    uint32_t number = 0;
    while (!pages_find(&db->pages, SPACE_INDEX, number)->location)
        number++;
    uint64_t location = pages_find(&db->pages, SPACE_INDEX, number)->location;
    assert_ok(store_close(db));
    assert_int_equal(os_sim_flip_bit(sim, NAME, location * PAGE_BYTES * 8), 0);
    db = open_on(sim, 4 * MIB, 0);
    for (uint32_t i = 0; i < PUTS; i++) {
        uint32_t key = (uint32_t)(i < OLD ? i : OLD + rng_below(&rng, NEW));
        enum fkv_error error = fkv_put(db, &key, sizeof key, value, BYTES);
        assert_true(error == FKV_OK || error == FKV_DAMAGED || error == FKV_IO);
        if (i == OLD) /* all others are in memory */
            os_sim_fail(sim, &(struct os_sim_fault){
                                 .kinds = OS_SIM_READ, .nth = 1, .error = -EIO, .forever = true});
    }
    print_message("%.1f sectors dead, %.1f alive\n", (double)db->sectors.dead_cells / SECTOR_CELLS,
                  (double)db->sectors.live_cells / SECTOR_CELLS);
    assert_true(db->sectors.dead_cells <= db->sectors.live_cells + 3 * SECTOR_CELLS);
    store_close(db);
    os_sim_free(sim);
}

/* After a kill nobody knows which of the free sectors are holes. On a full disk those that are not
 * can be had, though the lowest is one. */
static void test_free_sectors_on_a_full_disk(void **state)
{
    (void)state;
    struct os_file *file;
    struct os_sim *sim = os_sim_new(NULL);
    struct os *os = os_sim_os(sim);
    struct fkv *db = open_on(sim, 4 * MIB, 0);
    for (uint32_t key = 0; key < 8 * KEYS; key++)
        put(db, key, VALUE_BYTES);
    assert_ok(fkv_checkpoint(db));
    for (uint32_t key = 1; key < 8 * KEYS - 1; key++) /* the last keeps the file so long */
        assert_ok(fkv_delete(db, &key, sizeof key));
    for (int i = 0; i < 3; i++)
        assert_ok(fkv_checkpoint(db));
    uint32_t free = db->sectors.free_backed_count, lowest = db->sectors.free_hint;
    assert_true(free > 4);
    os_sim_kill(sim, 1);
    fkv_close(db);
    assert_int_equal(os->ops->open(os, NAME, 0, &file), 0);
    assert_int_equal(os->ops->punch(file, lowest * SECTOR_BYTES, 2 * SECTOR_BYTES), 0);
    os->ops->close(file);
    os_sim_set_capacity(sim, os_sim_used(sim));
    db = open_on(sim, 4 * MIB, 0);
    uint32_t puts = 0;
    enum fkv_error error;
    while (!(error = fkv_put(db, &puts, sizeof puts, value, VALUE_BYTES)))
        puts++;
    assert_error(error, FKV_FULL);
    assert_in_range(puts, (free - 4) * (SECTOR_BYTES / VALUE_BYTES), UINT32_MAX);
    os_sim_set_capacity(sim, 0);
    put(db, puts, VALUE_BYTES);
    end_whole(sim, db);
}

/* What a copy without zeros is: each page of them is a hole, but for those of one sector. */
static void make_sparse(struct os_sim *sim, uint32_t but)
{
    static const uint8_t zeros[PAGE_BYTES];
    struct os *os = os_sim_os(sim);
    struct os_file *file;
    uint64_t bytes;
    uint8_t page[PAGE_BYTES];
    assert_int_equal(os->ops->open(os, NAME, 0, &file), 0);
    assert_int_equal(os->ops->size(file, &bytes), 0);
    for (uint64_t at = 0; at < bytes; at += PAGE_BYTES) {
        assert_int_equal(os->ops->read(file, page, PAGE_BYTES, at), 0);
        if (memcmp(page, zeros, PAGE_BYTES) == 0 && at / SECTOR_BYTES != but)
            assert_int_equal(os->ops->punch(file, at, PAGE_BYTES), 0);
    }
    os->ops->close(file);
}

/* The open sector (unless `pages`) and those of pages have holes, for which a full disk has no
 * space: puts are refused, deletes are not, and all goes on when there is some. */
static void sparse_copy_on_a_full_disk(uint32_t flags, bool pages)
{
    enum { BYTES = 3000, PUT = 100 };
    struct os_sim *sim = os_sim_new(NULL);
    struct fkv *db = open_on(sim, MIB, 0);
    for (uint32_t key = 0; key < PUT; key++)
        put(db, key, BYTES);
    uint32_t open_sector = db->tail.sector;
    assert_ok(store_close(db));
    make_sparse(sim, pages ? open_sector : 0);
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = MIB;
    assert_ok(store_open(os_sim_os(sim), NAME, &options, &db));
    uint32_t key = PUT;
    put(db, key++, BYTES); /* has sectors for the collector */
    os_sim_set_capacity(sim, os_sim_used(sim));
    enum fkv_error error = pages ? fkv_checkpoint(db) : FKV_FULL;
    assert_error(error, FKV_FULL);
    while (!(error = fkv_put(db, &key, sizeof key, value, BYTES)))
        key++;
    assert_error(error, FKV_FULL);
    assert_ok(fkv_delete(db, &(uint32_t){1}, sizeof(uint32_t)));
    os_sim_set_capacity(sim, 0);
    assert_ok(fkv_checkpoint(db));
    put(db, key, BYTES);
    for (uint32_t i = 2; i <= key; i++)
        assert_ok(fkv_exists(db, &i, sizeof i));
    end_whole(sim, db);
}

static void test_sparse_copy_on_a_full_disk(void **state)
{
    (void)state;
    for (int pages = 0; pages < 2; pages++) {
        sparse_copy_on_a_full_disk(0, pages);
        sparse_copy_on_a_full_disk(FKV_NO_THREAD, pages);
    }
}

/* A full store of short values: returns how many. */
static uint32_t fill_disk(struct fkv *db)
{
    uint32_t keys = 0;
    for (int round = 0; round < 2; round++) {
        enum fkv_error error;
        while (!(error = fkv_put(db, &keys, sizeof keys, value, 40)))
            keys++;
        assert_error(error, FKV_FULL);
        assert_ok(fkv_checkpoint(db));
    }
    return keys;
}

static enum fkv_error delete_many(struct fkv *db, uint32_t keys)
{
    fkv_txn *txn;
    assert_ok(fkv_txn_begin(db, &txn));
    for (uint32_t key = 0; key < keys; key += 20)
        assert_ok(fkv_txn_delete(txn, &key, sizeof key));
    enum fkv_error error = fkv_txn_commit(txn, 0);
    fkv_txn_free(txn);
    return error;
}

static enum fkv_error load_many(struct fkv *db, uint32_t keys)
{
    fkv_load *load;
    assert_ok(fkv_load_begin(db, &load));
    for (uint32_t key = 0; key < keys; key += 20)
        assert_ok(fkv_load_put(load, &key, sizeof key, value, 1));
    enum fkv_error error = fkv_load_commit(load);
    fkv_load_free(load);
    return error;
}

/* Of new keys: the index is to grow for them. */
static enum fkv_error put_many(struct fkv *db, uint32_t keys)
{
    fkv_txn *txn;
    assert_ok(fkv_txn_begin(db, &txn));
    for (uint32_t key = keys; key < keys + keys / 4; key++)
        assert_ok(fkv_txn_put(txn, &key, sizeof key, value, 40));
    enum fkv_error error = fkv_txn_commit(txn, 0);
    fkv_txn_free(txn);
    return error;
}

/* What changes more pages of the index than a full disk has places for is refused, before it has:
 * else no checkpoint would succeed any more, and nothing else either. New keys are; where puts have
 * filled the disk, they have left places for all of the pages that there are. */
static void test_many_changes_on_a_full_disk(void **state)
{
    (void)state;
    enum fkv_error (*const many[])(struct fkv *, uint32_t) = {delete_many, load_many, put_many};
    for (size_t i = 0; i < sizeof many / sizeof *many; i++) {
        const uint64_t capacity = 48 * MIB;
        struct os_sim *sim = os_sim_new(&(struct os_sim_options){.capacity_bytes = capacity});
        struct fkv *db = open_on(sim, 8 * MIB, 0);
        uint32_t keys = fill_disk(db);
        os_sim_set_capacity(sim, capacity + (many[i] == load_many ? 4 * MIB : 0));
        assert_error(many[i](db, keys), many[i] == put_many ? FKV_FULL : FKV_OK);
        os_sim_set_capacity(sim, capacity);
        assert_ok(fkv_checkpoint(db));
        for (uint32_t key = 1; key < keys; key += 3)
            if (many[i] != delete_many || key % 20)
                assert_ok(fkv_delete(db, &key, sizeof key));
        assert_ok(fkv_checkpoint(db));
        os_sim_set_capacity(sim, capacity + (many[i] == put_many ? 24 : 12) * MIB);
        if (many[i] != delete_many)
            assert_ok(many[i](db, keys));
        end_whole(sim, db);
    }
}

/* A store with garbage, less than is collected as a rule, is opened on a full disk: what can be put
 * does not hang on whether anything has died since. */
static void test_opened_on_a_full_disk(void **state)
{
    (void)state;
    enum { BYTES = 20000, PUT = 2000 };
    uint32_t puts[2];
    for (int dies = 0; dies < 2; dies++) {
        struct os_sim *sim = os_sim_new(NULL);
        struct fkv *db = open_on(sim, 4 * MIB, 0);
        for (uint32_t key = 0; key < PUT; key++)
            put(db, key, BYTES);
        for (uint32_t key = 0; key < PUT; key += 5)
            assert_ok(fkv_delete(db, &key, sizeof key));
        assert_ok(store_close(db));
        os_sim_set_capacity(sim, os_sim_used(sim) + 2 * MIB);
        db = open_on(sim, 4 * MIB, 0);
        if (dies)
            assert_ok(fkv_delete(db, &(uint32_t){1}, sizeof(uint32_t)));
        uint32_t key = PUT;
        enum fkv_error error;
        while (!(error = fkv_put(db, &key, sizeof key, value, BYTES)))
            key++;
        assert_error(error, FKV_FULL);
        puts[dies] = key - PUT;
        end_whole(sim, db);
    }
    assert_true(puts[0] + 1 >= puts[1] && puts[0] > 0);
}

/* A load that fills one sector, and one block of its list of pairs, so that the next pair needs
 * another of both. */
static fkv_load *fill_load(struct fkv *db, uint32_t *key)
{
    enum { PAIRS = 1 << 14, ODD_ONES = 2 };
    fkv_load *load;
    assert_ok(fkv_load_begin(db, &load));
    for (*key = 0; *key < PAIRS; ++*key)
        assert_ok(fkv_load_put(load, key, sizeof *key, value, *key < ODD_ONES ? 16 : 48));
    return load;
}

/* There is no memory for a pair of a load, nor for its commit; it is tried again, with more pairs,
 * and the power fails before the checkpoint that follows is over. */
static void test_load_tried_again(void **state)
{
    (void)state;
    struct os_sim *sim = os_sim_new(NULL);
    struct fkv *db = open_on(sim, 0, 0);
    uint32_t key;
    fkv_load *load = fill_load(db, &key);
    memory_test_fail(1, false);
    assert_error(fkv_load_put(load, &key, sizeof key, value, 5), FKV_NO_MEMORY);
    memory_test_fail(1, true);
    assert_error(fkv_load_commit(load), FKV_NO_MEMORY);
    memory_test_fail(0, false);
    for (uint32_t i = 0; i < KEYS; i++, key++)
        assert_ok(fkv_load_put(load, &key, sizeof key, value, 5));
    fail_nth(sim, OS_SIM_SYNC, 2, -EIO);
    assert_ok(fkv_load_commit(load));
    fkv_load_free(load);
    os_sim_crash(sim, 1);
    store_close(db);
    db = open_on(sim, 0, 0);
    for (uint32_t i = 0; i < key; i++)
        assert_ok(fkv_exists(db, &i, sizeof i));
    end_whole(sim, db);
}

/* A put for which so many frames can be had, and no more. Those that are free already are kept from
 * it: they are linked into *kept. */
static enum fkv_error put_with_frames(struct fkv *db, uint32_t key, uint32_t frames, uint32_t *kept)
{
    struct frame_arena *arena = &db->pages.frames;
    while (arena->free_count) {
        uint32_t frame = frame_new(&db->pages);
        *frame_link(&db->pages, frame) = *kept;
        *kept = frame;
    }
    size_t count = (size_t)arena->count + frames;
    assert_int_equal(reservation_back(&arena->bytes, count * PAGE_BYTES), 0);
    struct reservation bytes = arena->bytes;
    arena->bytes.backed_bytes = arena->bytes.reserved_bytes = count * PAGE_BYTES;
    enum fkv_error error = fkv_put(db, &key, sizeof key, value, 1);
    arena->bytes = bytes;
    return error;
}

/* What can never have room in the log is refused, and no checkpoint is made to make some. */
static void test_too_large_for_the_log(void **state)
{
    (void)state;
    enum { BEFORE = 50, RECORDS = 15, PAIRS = 50000 };
    struct os_sim *sim = os_sim_new(NULL);
    struct fkv *db = open_on(sim, 4 * MIB, 0);
    for (uint32_t key = 0; key < BEFORE; key++)
        put(db, key, 100);
    fkv_txn *txn;
    assert_ok(fkv_txn_begin(db, &txn));
    for (uint32_t key = 0; key < RECORDS; key++)
        assert_ok(fkv_txn_put(txn, &key, sizeof key, value, VALUE_BYTES));
    fkv_load *load;
    assert_ok(fkv_load_begin(db, &load));
    for (uint32_t key = 0; key < PAIRS; key++)
        assert_ok(fkv_load_put(load, &key, sizeof key, value, 1));
    uint64_t checkpoints = db->checkpoint.done;
    size_t map_bytes = db->log.map_bytes;
    db->log.map_bytes = MIB;
    assert_error(fkv_txn_commit(txn, 0), FKV_FULL);
    assert_error(fkv_load_commit(load), FKV_FULL);
    assert_int_equal(db->checkpoint.done, checkpoints);
    db->log.map_bytes = map_bytes;
    assert_ok(fkv_txn_commit(txn, 0));
    assert_ok(fkv_load_commit(load));
    fkv_txn_free(txn);
    fkv_load_free(load);
    end_whole(sim, db);
}

/* A segment of the index that would be the first of a page of the directory finds no memory for
 * that page, after it had an id. */
static void test_segment_without_memory(void **state)
{
    (void)state;
    enum { FRAMES_MAX = 48, MORE_KEYS = 5000 };
    struct os_sim *sim = os_sim_new(NULL);
    struct fkv *db = open_on(sim, 0, 0);
    uint32_t keys = 0, kept = 0, refused = 0;
    while (db->index.segment_count < SEGMENTS_PER_PAGE - 2)
        put(db, keys++, 1);
    while (db->index.segment_count <= SEGMENTS_PER_PAGE) {
        for (uint32_t frames = 4; put_with_frames(db, keys, frames, &kept); frames++, refused++)
            assert_true(frames < FRAMES_MAX);
        keys++;
    }
    frames_free(&db->pages, kept);
    assert_true(refused > 0);
    for (uint32_t end = keys + MORE_KEYS; keys < end;)
        put(db, keys++, 1);
    for (uint32_t key = 0; key < keys; key++)
        assert_ok(fkv_exists(db, &key, sizeof key));
    must_be_whole(db);
    assert_ok(store_close(db));
    db = open_on(sim, 0, 0);
    end_whole(sim, db);
}

/* What another thread finds out, the one that waits for it says. */
static void test_details(void **state)
{
    (void)state;
    const struct {
        unsigned kinds;
        int error;
        const char *text;
        enum fkv_error again;
    } faults[] = {{OS_SIM_SYNC, -EIO, "sync store: ", FKV_FAILED},
                  {OS_SIM_WRITE, -EIO, "write values to store: ", FKV_FAILED},
                  {OS_SIM_WRITE, -ENOSPC, "write values to store: ", FKV_FULL}};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        struct os_sim *sim = os_sim_new(NULL);
        struct fkv *db;
        assert_ok(store_open(os_sim_os(sim), NAME, NULL, &db));
        put(db, 1, 100);
        assert_error(fkv_get(db, &(uint32_t){1}, sizeof(uint32_t), value, 1, NULL),
                     FKV_BUFFER_TOO_SMALL);
        os_sim_fail(sim, &(struct os_sim_fault){.kinds = faults[i].kinds,
                                                .nth = 1,
                                                .error = faults[i].error,
                                                .forever = true,
                                                .name_end = NAME});
        assert_true(fkv_checkpoint(db) != FKV_OK);
        assert_memory_equal(fkv_error_detail(db), faults[i].text, strlen(faults[i].text));
        assert_error(fkv_checkpoint(db), faults[i].again);
        store_close(db);
        os_sim_free(sim);
    }
}

/* Puts, of which the store collects and its log wraps, and a load. Each value begins with its
 * number; *acknowledged: how many there were. */
static enum fkv_error put_and_load(struct fkv *db, uint32_t *acknowledged)
{
    enum { PUTS = 60 };
    enum fkv_error error = FKV_OK;
    for (uint32_t i = 0; i < PUTS && !error; i++) {
        store_u64(value, i);
        error = fkv_put(db, &(uint32_t){i % KEYS}, sizeof(uint32_t), value, VALUE_BYTES);
        *acknowledged += !error;
    }
    fkv_load *load = NULL;
    if (error || (error = fkv_load_begin(db, &load)))
        return error;
    store_u64(value, PUTS);
    if (!(error = fkv_load_put(load, &(uint32_t){PUTS % KEYS}, sizeof(uint32_t), value, 100)))
        error = fkv_load_commit(load);
    *acknowledged += !error;
    fkv_load_free(load);
    return error;
}

/* The last put of each key, of so many; or, if that may be, the one after all of them. */
static void must_have_puts(struct fkv *db, uint32_t puts, bool maybe_next)
{
    for (uint32_t i = puts > KEYS ? puts - KEYS : 0; i < puts; i++) {
        size_t bytes;
        assert_ok(
            fkv_get(db, &(uint32_t){i % KEYS}, sizeof(uint32_t), value, sizeof value, &bytes));
        if (!maybe_next || i + KEYS != puts || load_u64(value) != puts)
            assert_int_equal(load_u64(value), i);
    }
}

/* Where nothing is written in place, a full disk is met by the frames of the log: each of them in
 * turn. What was acknowledged is read, and is there when the store is opened again. */
static void test_log_not_in_place(void **state)
{
    (void)state;
    uint32_t refused = 0;
    bool filled = true;
    for (uint64_t nth = 1; filled; nth += 2) {
        struct os_sim *sim = os_sim_new(&(struct os_sim_options){.seed = nth, .emulates = true});
        struct fkv *db = open_on(sim, MIB, 0);
        uint32_t acknowledged = 0;
        os_sim_fail(sim, &(struct os_sim_fault){.kinds = OS_SIM_WRITE,
                                                .nth = nth,
                                                .error = -ENOSPC,
                                                .forever = true,
                                                .name_end = "-wal"});
        enum fkv_error error = put_and_load(db, &acknowledged);
        filled = os_sim_failed(sim) > 0;
        must_have_puts(db, acknowledged, false);
        refused += error != FKV_OK;
        assert_true(filled || !error);
        os_sim_fail(sim, NULL);
        store_close(db);
        db = open_on(sim, MIB, 0);
        must_have_puts(db, acknowledged, true); /* of a call that failed all may be there */
        end_whole(sim, db);
    }
    assert_true(refused > 30);
}

/* Another caller's checkpoint, that fails. */
static void checkpoint_fails(void *context, struct os_sim *sim, enum os_sim_kind kind)
{
    struct fkv *db = context;
    (void)kind;
    os_sim_set_hook(sim, 0, NULL, NULL);
    assert_ok(fkv_delete(db, &(uint32_t){0}, sizeof(uint32_t)));
    os_sim_fail(sim, &(struct os_sim_fault){
                         .kinds = OS_SIM_WRITE, .nth = 1, .error = -ENOSPC, .forever = true});
    assert_error(fkv_checkpoint(db), FKV_FULL);
    os_sim_fail(sim, NULL);
}

/* One that goes well gives back space, without the lock of writers: what others do meanwhile is not
 * its own. */
static void test_checkpoint_beside_another(void **state)
{
    (void)state;
    struct os_sim *sim = os_sim_new(NULL);
    struct fkv *db = open_on(sim, 0, 0);
    for (uint32_t key = 0; key < KEYS; key++)
        put(db, key, LARGE_BYTES);
    for (uint32_t key = 1; key < KEYS - 1; key++) /* the last keeps the file so long */
        assert_ok(fkv_delete(db, &key, sizeof key));
    pthread_mutex_lock(&db->writer);
    assert_ok(checkpoint_run(db));
    pthread_mutex_unlock(&db->writer);
    reclaim_wait(&db->reclaim);
    uint64_t calls = os_sim_calls(sim, OS_SIM_PUNCH);
    os_sim_set_hook(sim, OS_SIM_PUNCH, checkpoint_fails, db);
    assert_ok(fkv_checkpoint(db));
    assert_true(os_sim_calls(sim, OS_SIM_PUNCH) > calls);
    end_whole(sim, db);
}

struct reading {
    struct fkv *db;
    _Atomic bool began, written;
};

static void *read_until_written(void *context)
{
    struct reading *reading = context;
    fkv_read_begin(reading->db);
    reading->began = true;
    while (!reading->written)
        sched_yield();
    fkv_read_end(reading->db);
    return NULL;
}

/* Writers whose log is full wait for a checkpoint, and not for who is in a read section: that one
 * may be waiting for them. */
static void test_reader_beside_a_full_log(void **state)
{
    (void)state;
    enum { PUTS = 300 };
    pthread_t thread;
    struct os_sim *sim = os_sim_new(NULL);
    struct reading reading = {.db = NULL};
    fkv_options options;
    fkv_options_init(&options);
    options.log_bytes_max = MIB;
    assert_ok(store_open(os_sim_os(sim), NAME, &options, &reading.db));
    assert_int_equal(pthread_create(&thread, NULL, read_until_written, &reading), 0);
    while (!reading.began)
        sched_yield();
    for (uint32_t i = 0; i < PUTS; i++)
        put(reading.db, i % KEYS, VALUE_BYTES);
    reading.written = true;
    pthread_join(thread, NULL);
    end_whole(sim, reading.db);
}

/* ---------------------------------------------------------------- stores that are not created */

static enum fkv_error create(struct os_sim *sim, uint32_t flags, struct fkv **db)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD | flags;
    options.log_bytes_max = MIB;
    return store_open(os_sim_os(sim), NAME, &options, db);
}

static bool is_there(struct os_sim *sim, const char *name)
{
    uint64_t bytes;
    os_sim_settle(sim);
    return os_sim_file_size(sim, name, &bytes) == 0;
}

static void create_again(struct os_sim *sim, uint32_t flags)
{
    struct fkv *db;
    enum fkv_error error = create(sim, flags, &db);
    if (error)
        fail_msg("creating again: %s", error_last());
    put(db, 1, 100);
    end_whole(sim, db);
}

static struct os_sim *new_disk(uint64_t seed, const struct os_sim_fault *fault, uint64_t memory,
                               uint64_t pages)
{
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){
        .seed = seed, .capacity_bytes = pages ? pages * PAGE_BYTES : UINT64_MAX});
    os_sim_fail(sim, fault);
    memory_test_fail(memory, true);
    return sim;
}

/* An opening that fails like this leaves nothing, unless `may_stay`: then it leaves what the next
 * one goes on with. So does one that the power is cut under, whenever. False: it did not fail. */
static bool must_leave_nothing(const struct os_sim_fault *fault, uint64_t memory, uint64_t pages,
                               bool may_stay)
{
    struct fkv *db = NULL;
    struct os_sim *sim = new_disk(1, fault, memory, pages);
    enum fkv_error error = create(sim, FKV_EXCLUSIVE, &db);
    memory_test_fail(0, false);
    if (!error) {
        store_close(db);
        os_sim_free(sim);
        return false;
    }
    const uint64_t calls = os_sim_calls(sim, OS_SIM_CHANGES);
    os_sim_fail(sim, NULL);
    os_sim_set_capacity(sim, 0);
    const bool stays = is_there(sim, NAME);
    if (stays ? !may_stay : is_there(sim, NAME "-wal"))
        fail_msg("%s has left %s", fkv_error_text(error), stays ? "the file" : "the log");
    create_again(sim, stays ? 0 : FKV_EXCLUSIVE);
    for (uint64_t n = calls % 5; n < calls; n += 3) {
        sim = new_disk(n, fault, memory, pages);
        os_sim_crash_after(sim, OS_SIM_CHANGES, n);
        enum fkv_error cut = create(sim, 0, &db);
        memory_test_fail(0, false);
        assert_true(cut != FKV_OK);
        os_sim_crash(sim, n);
        os_sim_set_capacity(sim, 0);
        create_again(sim, 0);
    }
    return true;
}

static void test_not_created(void **state)
{
    (void)state;
    const unsigned all = OS_SIM_ALL & ~(unsigned)OS_SIM_START_WRITEBACK;
    const unsigned writing = OS_SIM_WRITE | OS_SIM_ALLOCATE;
    uint64_t cases = 0;
    for (uint64_t n = 1; must_leave_nothing(NULL, n, 0, false); n++)
        cases++;
    for (uint64_t pages = 1; must_leave_nothing(NULL, 0, pages, false); pages += 1 + pages / 4)
        cases++;
    struct os_sim_fault fault = {.nth = 1, .error = -ENOSPC, .kinds = writing};
    for (; must_leave_nothing(&fault, 0, 0, true); fault.nth++)
        cases++;
    for (int forever = 0; forever < 2; forever++) {
        fault = (struct os_sim_fault){.nth = 1, .error = -EIO, .kinds = all, .forever = forever};
        for (; must_leave_nothing(&fault, 0, 0, true); fault.nth++)
            cases++;
    }
    fault = (struct os_sim_fault){.error = -EACCES, .kinds = OS_SIM_OPEN, .name_end = "-wal"};
    for (fault.nth = 3; fault.nth <= 4; fault.nth++) /* before, it is looked whether there is one */
        assert_true(must_leave_nothing(&fault, 0, 0, false));
    assert_true(cases > 50);
}

/* What was there before is nobody's to remove. */
static void test_not_created_beside_a_log(void **state)
{
    (void)state;
    struct fkv *db = NULL;
    struct os_sim *sim = os_sim_new(NULL);
    assert_int_equal(os_sim_put_file(sim, NAME "-wal", "my notes", 8), 0);
    assert_error(create(sim, 0, &db), FKV_TRUNCATED);
    assert_false(is_there(sim, NAME));
    assert_true(is_there(sim, NAME "-wal"));
    assert_int_equal(os_sim_put_file(sim, NAME, "", 0), 0);
    os_sim_delete_file(sim, NAME "-wal");
    os_sim_set_capacity(sim, PAGE_BYTES);
    assert_error(create(sim, 0, &db), FKV_FULL);
    assert_true(is_there(sim, NAME));
    os_sim_set_capacity(sim, 0);
    create_again(sim, 0);
}

/* What is dead is less than a sector, but much of what there is: it makes room, too. */
static void test_part_of_a_sector_on_a_full_disk(void **state)
{
    (void)state;
    enum { BYTES = 20000, DIE = 40 }; /* a sector has 52 */
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){.capacity_bytes = 10 * MIB});
    struct fkv *db = open_on(sim, MIB, 0);
    uint32_t keys = 0, more = 0;
    while (!fkv_put(db, &keys, sizeof keys, value, BYTES))
        keys++;
    for (uint32_t key = 0; key < DIE; key++)
        assert_ok(fkv_delete(db, &key, sizeof key));
    assert_true(db->sectors.dead_cells < SECTOR_CELLS);
    for (uint32_t key = keys; !fkv_put(db, &key, sizeof key, value, BYTES); key++)
        more++;
    assert_true(more > DIE / 2);
    end_whole(sim, db);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opened_on_a_full_disk),
        cmocka_unit_test(test_many_changes_on_a_full_disk),
        cmocka_unit_test(test_free_sectors_on_a_full_disk),
        cmocka_unit_test(test_sparse_copy_on_a_full_disk),
        cmocka_unit_test(test_load_tried_again),
        cmocka_unit_test(test_too_large_for_the_log),
        cmocka_unit_test(test_segment_without_memory),
        cmocka_unit_test(test_details),
        cmocka_unit_test(test_checkpoint_beside_another),
        cmocka_unit_test(test_reader_beside_a_full_log),
        cmocka_unit_test(test_log_not_in_place),
        cmocka_unit_test(test_opened_sector),
        cmocka_unit_test(test_tried_again),
        cmocka_unit_test(test_failed_sync),
        cmocka_unit_test(test_compaction_ends),
        cmocka_unit_test(test_load_of_nothing),
        cmocka_unit_test(test_not_created),
        cmocka_unit_test(test_not_created_beside_a_log),
        cmocka_unit_test(test_deletes_on_a_full_disk),
        cmocka_unit_test(test_garbage_on_a_full_disk),
        cmocka_unit_test(test_first_deaths_on_a_full_disk),
        cmocka_unit_test(test_collecting_beside_bad_page),
        cmocka_unit_test(test_again_on_a_small_disk),
        cmocka_unit_test(test_part_of_a_sector_on_a_full_disk),
        cmocka_unit_test(test_giving_back),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
