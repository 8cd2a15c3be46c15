/*
 * test_load: bulk loads (fkv_load_*) against a plain model: all or nothing of a load is there,
 * beside other writers, after being given up, and after a kill at any of its writes.
 */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "os_posix.h"
#include "planted.h"
#include "store.h"

enum { KEYS = 40000, VALUE_MAX = 3000 };

struct world {
    struct rng rng;
    fkv *db;
    uint32_t stamp[KEYS]; /* of the value that each key has; 0: none */
    uint32_t wanted[KEYS];
    uint32_t stamps;
};

/* Writes to the store's file fail from this one on, as after a kill; 0: never. And so does each
 * second one of a sector, for want of room. */
static uint64_t write_fails_at;
static _Atomic uint64_t writes; /* the flusher counts too */
static bool half_full;

static int counted_write(struct os_file *file, const void *bytes, size_t count, uint64_t offset)
{
    uint64_t nth = ++writes;
    if (nth >= write_fails_at && write_fails_at)
        return -EIO;
    if (half_full && count == SECTOR_BYTES && nth % 2)
        return -ENOSPC;
    return os_posix()->ops->write(file, bytes, count, offset);
}

/* The disk has no room for more of the file than this; 0: it has. */
static uint64_t room_bytes;

/* The file system cannot allocate: what the C library does then, slowly, for other threads. */
static bool emulates;

static int emulated_allocate(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    const struct os_ops *ops = os_posix()->ops;
    uint64_t size;
    int status = ops->size(file, &size);
    usleep(30000);
    for (uint64_t at = max_u64(offset, size); !status && at < offset + bytes; at += PAGE_BYTES)
        status = ops->write(file, "", 1, at);
    return status ? status : ops->allocate(file, offset, bytes);
}

static int limited_allocate(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    if (room_bytes && offset + bytes > room_bytes)
        return -ENOSPC;
    if (emulates && getpid() != gettid())
        return emulated_allocate(file, offset, bytes);
    return os_posix()->ops->allocate(file, offset, bytes);
}

static uint64_t log_bytes = 2 * MIB;

static void open_world(struct world *world, uint32_t flags)
{
    static struct os_ops ops;
    static struct os os = {.ops = &ops};
    ops = *os_posix()->ops;
    ops.write = counted_write;
    ops.allocate = limited_allocate;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = log_bytes;
    assert_ok(store_open(&os, support_path("load"), &options, &world->db));
}

static void make_world(struct world *world, uint64_t seed, uint32_t flags)
{
    memset(world, 0, sizeof *world);
    world->rng = rng_make(seed);
    write_fails_at = room_bytes = 0;
    unlink(support_path("load"));
    unlink(support_path("load-wal"));
    open_world(world, flags);
}

/* The value of a stamp; some are large. */
static size_t value_of(uint32_t stamp, uint8_t *value, bool any_size)
{
    struct rng rng = rng_make(stamp);
    size_t bytes = any_size && stamp % 997 == 0 ? 300000 : rng_below(&rng, VALUE_MAX);
    rng_fill(&rng, value, bytes);
    return bytes;
}

static uint8_t value[400000], got[400000];

static void put(struct world *world, uint32_t key)
{
    uint32_t stamp = ++world->stamps;
    size_t bytes = value_of(stamp, value, true);
    assert_ok(fkv_put(world->db, &key, sizeof key, value, bytes));
    world->stamp[key] = stamp;
}

static void load_put(struct world *world, fkv_load *load, uint32_t key)
{
    uint32_t stamp = ++world->stamps;
    if (stamp % 997 == 0)
        stamp = ++world->stamps;
    size_t bytes = value_of(stamp, value, false);
    assert_ok(fkv_load_put(load, &key, sizeof key, value, bytes));
    world->wanted[key] = stamp;
}

static void loaded(struct world *world)
{
    for (uint32_t key = 0; key < KEYS; key++)
        if (world->wanted[key])
            world->stamp[key] = world->wanted[key];
}

static void compare(struct world *world, const uint32_t *stamps)
{
    for (uint32_t key = 0; key < KEYS; key++) {
        size_t bytes = 0;
        enum fkv_error error = fkv_get(world->db, &key, sizeof key, got, sizeof got, &bytes);
        assert_error(error, stamps[key] ? FKV_OK : FKV_NOT_FOUND);
        if (!stamps[key])
            continue;
        assert_int_equal(bytes, value_of(stamps[key], value, stamps[key] % 997 == 0));
        assert_memory_equal(got, value, bytes);
    }
}

static void compare_snapshot(fkv_snapshot *snapshot, const uint32_t *stamps)
{
    for (uint32_t key = 0; key < KEYS; key++) {
        size_t bytes = 0;
        assert_error(fkv_snapshot_get(snapshot, &key, sizeof key, got, sizeof got, &bytes),
                     stamps[key] ? FKV_OK : FKV_NOT_FOUND);
        if (!stamps[key])
            continue;
        assert_int_equal(bytes, value_of(stamps[key], value, stamps[key] % 997 == 0));
        assert_memory_equal(got, value, bytes);
    }
}

static void print_problem(void *context, const fkv_problem *problem)
{
    (void)context;
    print_message("%s\n", problem->text);
}

static void check(struct world *world)
{
    struct check_options options = {.problem = print_problem};
    pthread_mutex_lock(&world->db->writer);
    check_wait(world->db);
    assert_ok(store_check(world->db, &options, NULL));
    pthread_mutex_unlock(&world->db->writer);
}

static void reopen(struct world *world, uint32_t flags)
{
    assert_ok(fkv_close(world->db));
    open_world(world, flags);
}

static fkv_load *fill_load(struct world *world, uint32_t pairs, bool others)
{
    fkv_load *load;
    memset(world->wanted, 0, sizeof world->wanted);
    assert_ok(fkv_load_begin(world->db, &load));
    for (uint32_t i = 0; i < pairs; i++) {
        load_put(world, load, (uint32_t)rng_below(&world->rng, KEYS));
        if (others && i % 3 == 0)
            put(world, (uint32_t)rng_below(&world->rng, KEYS));
    }
    return load;
}

static void run_beside_others(uint32_t flags)
{
    for (struct rounds r = rounds_begin(2); rounds_next(&r);) {
        static struct world world;
        make_world(&world, r.seed, flags);
        for (int i = 0; i < 4; i++) {
            fkv_load *load = fill_load(&world, 3000u << i, i % 2);
            fkv_load *second;
            assert_error(fkv_load_begin(world.db, &second), FKV_CONFLICT);
            compare(&world, world.stamp);
            check(&world);
            if (i == 2) { /* given up */
                fkv_load_free(load);
                check(&world);
                compare(&world, world.stamp);
                continue;
            }
            fkv_snapshot *snapshot;
            static uint32_t before[KEYS];
            memcpy(before, world.stamp, sizeof before);
            assert_ok(fkv_snapshot_open(world.db, &snapshot));
            assert_ok(fkv_load_commit(load));
            loaded(&world);
            compare_snapshot(snapshot, before);
            fkv_snapshot_close(snapshot);
            assert_error(fkv_load_put(load, "a", 1, "b", 1), FKV_TXN_ENDED);
            assert_error(fkv_load_commit(load), FKV_TXN_ENDED);
            fkv_load_free(load);
            check(&world);
            compare(&world, world.stamp);
            for (int p = 0; p < 3000; p++)
                put(&world, (uint32_t)rng_below(&world.rng, KEYS));
            check(&world);
            reopen(&world, flags);
            check(&world);
            compare(&world, world.stamp);
        }
        fkv_load *open = fill_load(&world, 5000, false);
        reopen(&world, flags); /* closing gives it up */
        fkv_load_free(open);
        compare(&world, world.stamp);
        check(&world);
        assert_ok(fkv_close(world.db));
    }
}

static void test_with_threads(void **state)
{
    (void)state;
    run_beside_others(0);
}

static void test_without_threads(void **state)
{
    (void)state;
    run_beside_others(FKV_NO_THREAD);
}

/* Every write to the store's file fails in turn, and so do those after it: what is there when the
 * store is opened again is all of the load, or nothing. Once it was acknowledged, all. */
static void test_kill_at_each_write(void **state)
{
    (void)state;
    bool some = false, all = false, acknowledged = false;
    for (uint64_t at = 1; !acknowledged; at++) {
        static struct world world;
        static uint32_t before[KEYS];
        log_bytes = 256 * MIB;
        commit_refer_bytes =
            64 * KIB; /* the large values are not in the log: no checkpoint comes */
        make_world(&world, 7, FKV_NO_THREAD);
        for (uint32_t key = 0; key < 2000; key++)
            put(&world, key * 7);
        assert_ok(fkv_checkpoint(world.db));
        memcpy(before, world.stamp, sizeof before);
        fkv_load *load;
        memset(world.wanted, 0, sizeof world.wanted);
        assert_ok(fkv_load_begin(world.db, &load));
        writes = 0;
        write_fails_at = at;
        enum fkv_error error = FKV_OK;
        for (uint32_t i = 0; i < 4000 && !error; i++) {
            uint32_t key = i * 3 % KEYS, stamp = (1000 + i) * 997 + 1;
            world.wanted[key] = stamp;
            error = fkv_load_put(load, &key, sizeof key, value, value_of(stamp, value, false));
        }
        if (!error) {
            error = fkv_load_commit(load);
        } else {
            assert_error(fkv_load_put(load, "a", 1, "b", 1), FKV_FAILED);
            assert_error(fkv_load_commit(load), FKV_FAILED);
        }
        bool over = !error;
        acknowledged = over && !atomic_load(&world.db->failed);
        store_fail(world.db, FKV_IO); /* closing writes nothing */
        assert_error(fkv_close(world.db), FKV_FAILED);
        fkv_load_free(load);
        write_fails_at = 0;
        open_world(&world, FKV_NO_THREAD);
        uint32_t key = 3;
        bool there = fkv_exists(world.db, &key, sizeof key) == FKV_OK;
        assert_true(there || !over);
        if (there)
            loaded(&world);
        compare(&world, there ? world.stamp : before);
        check(&world);
        some |= !there;
        all |= there;
        assert_ok(fkv_close(world.db));
    }
    assert_true(some && all);
}

static void test_arguments(void **state)
{
    (void)state;
    static struct world world;
    fkv_load *load;
    make_world(&world, 1, 0);
    assert_error(fkv_load_begin(NULL, &load), FKV_INVALID);
    assert_error(fkv_load_begin(world.db, NULL), FKV_INVALID);
    assert_error(fkv_load_put(NULL, "a", 1, "b", 1), FKV_INVALID);
    assert_error(fkv_load_commit(NULL), FKV_INVALID);
    fkv_load_free(NULL);
    assert_ok(fkv_load_begin(world.db, &load));
    assert_error(fkv_load_put(load, NULL, 1, "b", 1), FKV_INVALID);
    assert_error(fkv_load_put(load, "a", 1, value, 131060), FKV_VALUE_TOO_LARGE);
    assert_ok(fkv_load_put(load, "a", 1, value, 131059));
    assert_ok(fkv_load_put(load, "", 0, NULL, 0));
    fkv_read_begin(world.db);
    assert_error(fkv_load_commit(load), FKV_INVALID);
    fkv_read_end(world.db);
    assert_ok(fkv_load_commit(load));
    fkv_load_free(load);
    assert_ok(fkv_load_begin(world.db, &load)); /* of nothing */
    assert_ok(fkv_load_commit(load));
    fkv_load_free(load);
    assert_ok(fkv_exists(world.db, "a", 1));
    assert_ok(fkv_exists(world.db, "", 0));
    assert_ok(fkv_close(world.db));
}

/* The format numbers commits, and a load is one. */
static void test_last_commit(void **state)
{
    (void)state;
    static struct world world;
    fkv_load *load;
    make_world(&world, 1, FKV_NO_THREAD);
    assert_ok(fkv_load_begin(world.db, &load));
    assert_ok(fkv_load_put(load, "a", 1, "b", 1));
    uint64_t commit = world.db->commit;
    world.db->commit = COMMITS_MAX - 1;
    assert_error(fkv_load_commit(load), FKV_FULL);
    assert_error(fkv_put(world.db, "b", 1, "b", 1), FKV_FULL);
    assert_error(fkv_exists(world.db, "a", 1), FKV_NOT_FOUND);
    world.db->commit = commit;
    assert_ok(fkv_load_commit(load));
    fkv_load_free(load);
    assert_ok(fkv_exists(world.db, "a", 1));
    assert_ok(fkv_close(world.db));
}

/* A transaction conflicts with a load as with any commit. */
static void test_beside_transactions(void **state)
{
    (void)state;
    static struct world world;
    fkv_load *load;
    fkv_txn *read, *other;
    make_world(&world, 2, 0);
    assert_ok(fkv_txn_begin(world.db, &read));
    assert_ok(fkv_txn_begin(world.db, &other));
    assert_error(fkv_txn_exists(read, "a", 1), FKV_NOT_FOUND);
    assert_error(fkv_txn_exists(other, "b", 1), FKV_NOT_FOUND);
    assert_ok(fkv_txn_put(read, "c", 1, "1", 1));
    assert_ok(fkv_txn_put(other, "d", 1, "1", 1));
    assert_ok(fkv_load_begin(world.db, &load));
    assert_ok(fkv_load_put(load, "a", 1, "2", 1));
    assert_ok(fkv_load_commit(load));
    fkv_load_free(load);
    assert_error(fkv_txn_commit(read, 0), FKV_CONFLICT);
    assert_ok(fkv_txn_commit(other, 0));
    fkv_txn_free(read);
    fkv_txn_free(other);
    assert_error(fkv_exists(world.db, "c", 1), FKV_NOT_FOUND);
    assert_ok(fkv_exists(world.db, "d", 1));
    assert_ok(fkv_close(world.db));
}

/* Every request for memory fails in turn. */
static void test_no_memory(void **state)
{
    (void)state;
    static struct world world;
    make_world(&world, 3, FKV_NO_THREAD);
    for (uint32_t key = 0; key < 3000; key++)
        put(&world, key);
    bool done = false;
    for (uint64_t nth = 1; !done; nth++) {
        fkv_load *load = fill_load(&world, 500, false);
        memory_test_fail(nth, false);
        enum fkv_error error = fkv_load_commit(load);
        memory_test_fail(0, false);
        done = !error;
        if (error) {
            assert_error(error, FKV_NO_MEMORY);
            compare(&world, world.stamp);
            assert_ok(fkv_load_commit(load));
        }
        loaded(&world);
        fkv_load_free(load);
    }
    compare(&world, world.stamp);
    check(&world);
    assert_ok(fkv_close(world.db));
}

/* A write that the disk has no room for is made again when the call is tried again. */
static void test_full_disk(void **state)
{
    (void)state;
    static struct world world;
    make_world(&world, 4, FKV_NO_THREAD);
    fkv_load *load = fill_load(&world, 10, false);
    uint32_t refused = 0;
    half_full = true;
    for (uint32_t i = 0; i < 5000; i++) {
        uint32_t key = (uint32_t)rng_below(&world.rng, KEYS), stamp = i * 997 + 1;
        size_t bytes = value_of(stamp, value, false);
        enum fkv_error error = fkv_load_put(load, &key, sizeof key, value, bytes);
        if (error) {
            assert_error(error, FKV_FULL);
            assert_ok(fkv_load_put(load, &key, sizeof key, value, bytes));
            refused++;
        }
        world.wanted[key] = stamp;
    }
    assert_true(refused > 2);
    writes = 0;
    assert_error(fkv_load_commit(load), FKV_FULL);
    compare(&world, world.stamp);
    half_full = false;
    assert_ok(fkv_load_commit(load));
    fkv_load_free(load);
    loaded(&world);
    reopen(&world, FKV_NO_THREAD);
    compare(&world, world.stamp);
    check(&world);
    assert_ok(fkv_close(world.db));
}

/* On a full disk the space of what was deleted is there for a load as it is for a put, also before
 * a checkpoint has come. */
static void make_room(uint32_t flags)
{
    static struct world world;
    fkv_stats stats;
    make_world(&world, 5, flags);
    for (uint32_t key = 0; key < 20000; key++)
        put(&world, key);
    assert_ok(fkv_checkpoint(world.db));
    assert_ok(fkv_get_stats(world.db, &stats, sizeof stats));
    room_bytes = stats.file_bytes;
    for (uint32_t key = 0; key < 20000; key++) {
        assert_ok(fkv_delete(world.db, &key, sizeof key));
        world.stamp[key] = 0;
    }
    fkv_load *load = fill_load(&world, 10000, false);
    assert_ok(fkv_load_commit(load));
    fkv_load_free(load);
    loaded(&world);
    compare(&world, world.stamp);
    check(&world);
    assert_ok(fkv_close(world.db));
}

/* The same when all that the load needs is places for the pages that it changes. */
static void make_room_for_pages(void)
{
    static struct world world;
    fkv_stats stats;
    make_world(&world, 6, FKV_NO_THREAD);
    for (uint32_t key = 0; key < KEYS; key++)
        put(&world, key);
    assert_ok(fkv_checkpoint(world.db));
    fkv_load *load = fill_load(&world, 20000, false);
    assert_ok(fkv_get_stats(world.db, &stats, sizeof stats));
    room_bytes = stats.file_bytes;
    /* Until there is too little, and some is to come. */
    struct sectors *sectors = &world.db->sectors;
    for (int i = 0; sectors->freed.count < 2 ||
                    sectors_reserve(sectors, 0, sectors_for_deletes(sectors),
                                    commit_changes(world.db, 20000, 0)) != FKV_FULL;
         i++) {
        assert_true(i < 100000);
        uint32_t key = (uint32_t)rng_below(&world.rng, KEYS);
        size_t bytes = value_of(world.stamps + 1, value, true);
        if (i % 2 && fkv_put(world.db, &key, sizeof key, value, bytes) == FKV_OK)
            world.stamp[key] = ++world.stamps;
        if (i % 2 == 0 && fkv_delete(world.db, &key, sizeof key) == FKV_OK)
            world.stamp[key] = 0;
    }
    assert_ok(fkv_load_commit(load));
    fkv_load_free(load);
    loaded(&world);
    compare(&world, world.stamp);
    check(&world);
    assert_ok(fkv_close(world.db));
}

/* With a large value that a load replaces go its pieces, each somewhere else in the index: on a
 * full disk the checkpoint after it has to have places for all of those pages, or none would ever
 * come.
 */
static void test_room_for_what_goes(void **state)
{
    (void)state;
    enum { SMALL = 400000, LARGE = 200, LARGE_BYTES = 1040000 };
    static struct world world;
    static uint32_t taken[1000];
    fkv_stats stats;
    fkv_load *load;
    uint32_t count = 0;
    uint8_t *large = calloc(1, LARGE_BYTES);
    log_bytes = 256 * MIB;
    commit_refer_bytes = 64 * KIB; /* the large values are not in the log: no checkpoint comes */
    make_world(&world, 7, FKV_NO_THREAD);
    for (uint32_t key = 0; key < SMALL + LARGE; key++)
        assert_ok(fkv_put(world.db, &key, sizeof key, large, key < SMALL ? 5 : LARGE_BYTES));
    assert_ok(fkv_checkpoint(world.db)); /* the first one: the pages lie as close as they can */
    assert_ok(fkv_load_begin(world.db, &load));
    for (uint32_t key = SMALL; key < SMALL + LARGE; key++)
        assert_ok(fkv_load_put(load, &key, sizeof key, "new", 3));
    assert_ok(fkv_get_stats(world.db, &stats, sizeof stats));
    room_bytes = stats.file_bytes;
    struct sectors *sectors = &world.db->sectors;
    while (!sectors_reserve(sectors, 1, sectors_for_deletes(sectors),
                            commit_changes(world.db, LARGE, 1)))
        assert_ok(sectors_take(sectors, &taken[count++]));
    enum fkv_error error = fkv_load_commit(load);
    assert_true(error == FKV_OK || error == FKV_FULL);
    assert_ok(fkv_checkpoint(world.db));
    for (uint32_t key = SMALL; key < SMALL + LARGE; key++)
        assert_ok(fkv_delete(world.db, &key, sizeof key));
    assert_ok(fkv_checkpoint(world.db));
    while (count)
        sectors_give(sectors, taken[--count]);
    fkv_load_free(load);
    assert_ok(fkv_close(world.db));
    log_bytes = 2 * MIB;
    commit_refer_bytes = 4 * MIB;
    free(large);
}

static void test_room_is_made(void **state)
{
    (void)state;
    make_room(0);
    make_room(FKV_NO_THREAD);
    make_room_for_pages();
}

/* The flusher asks for space where the load's sectors come to be, and what it asks writes zeros. */
static void test_emulated_allocation(void **state)
{
    (void)state;
    static struct world world;
    make_world(&world, 7, 0);
    emulates = true;
    for (int i = 0; i < 3; i++) {
        fkv_load *load = fill_load(&world, 20000, true);
        assert_ok(fkv_load_commit(load));
        fkv_load_free(load);
        loaded(&world);
    }
    compare(&world, world.stamp);
    check(&world);
    assert_ok(fkv_close(world.db));
    emulates = false;
}

/* What a transaction reads while a load is put into effect is the state at its beginning, or a
 * conflict. */
static struct watched {
    fkv_txn *txn;
    uint32_t looks, conflicts;
} watched;

static void look(void)
{
    static bool looking;
    if (looking) /* the read has such points too */
        return;
    looking = true;
    for (uint32_t key = 0; key < 20; key++) {
        uint32_t found = 0;
        enum fkv_error error =
            fkv_txn_get(watched.txn, &key, sizeof key, &found, sizeof found, NULL);
        if (error == FKV_OK)
            assert_int_equal(found, 1);
        else
            assert_error(error, FKV_CONFLICT);
        watched.conflicts += error == FKV_CONFLICT;
    }
    watched.looks++;
    looking = false;
}

static void test_seen_by_transaction(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 1, FKV_NO_THREAD);
    fkv_load *load;
    for (uint32_t stamp = 1; stamp <= 2; stamp++) {
        assert_ok(fkv_load_begin(world.db, &load));
        for (uint32_t key = 0; key < 20; key++)
            assert_ok(fkv_load_put(load, &key, sizeof key, &stamp, sizeof stamp));
        if (stamp == 1) {
            assert_ok(fkv_load_commit(load));
            fkv_load_free(load);
        }
    }
    assert_ok(fkv_txn_begin(world.db, &watched.txn));
    schedule_point = look;
    assert_ok(fkv_load_commit(load));
    schedule_point = NULL;
    assert_true(watched.looks > 0 && watched.conflicts > 0);
    fkv_txn_free(watched.txn);
    fkv_load_free(load);
    assert_ok(store_close(world.db));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_with_threads),       cmocka_unit_test(test_without_threads),
        cmocka_unit_test(test_kill_at_each_write), cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_arguments),          cmocka_unit_test(test_beside_transactions),
        cmocka_unit_test(test_last_commit),        cmocka_unit_test(test_seen_by_transaction),
        cmocka_unit_test(test_full_disk),          cmocka_unit_test(test_emulated_allocation),
        cmocka_unit_test(test_room_is_made),       cmocka_unit_test(test_room_for_what_goes),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
