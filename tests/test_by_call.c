/*
 * test_by_call.c: records that are read by calls: in stores opened without a mapping, and in those
 * whose file is larger than memory. Over the simulated disk, whose calls are counted and fail.
 */
#include "support.h"

#include <errno.h>

#include "fetch.h"
#include "fkv.h"
#include "os_sim.h"

enum { KEYS = 3000, VALUE_MAX = 3 << 20 };

struct world {
    struct os_sim *sim;
    struct fkv *db;
    uint32_t bytes[KEYS]; /* of each value; UINT32_MAX: no key */
    uint64_t seed[KEYS];
    uint64_t next_seed;
    uint8_t *value, *found;
};

static void must(enum fkv_error error)
{
    if (error)
        fail_msg("%s: %s", fkv_error_text(error), error_last());
}

static void fill(uint8_t *to, size_t bytes, uint64_t seed)
{
    struct rng rng = rng_make(seed);
    rng_fill(&rng, to, bytes);
}

static void world_open_with(struct world *world, uint32_t flags, uint64_t log_bytes_max)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = log_bytes_max;
    must(store_open(os_sim_os(world->sim), "store", &options, &world->db));
}

static void world_open(struct world *world, uint32_t flags)
{
    world_open_with(world, flags, 16 << 20);
}

static struct world *world_new(uint64_t memory_bytes, uint32_t flags)
{
    struct world *world = test_calloc(1, sizeof *world);
    struct os_sim_options options = {.memory_bytes = memory_bytes};
    world->sim = os_sim_new(&options);
    world->value = test_malloc(VALUE_MAX);
    world->found = test_malloc(VALUE_MAX);
    memset(world->bytes, 0xff, sizeof world->bytes);
    world_open(world, flags);
    return world;
}

static void world_end(struct world *world)
{
    must(store_close(world->db));
    os_sim_free(world->sim);
    test_free(world->value);
    test_free(world->found);
    test_free(world);
}

static void put(struct world *world, uint32_t key, uint32_t bytes)
{
    world->seed[key] = ++world->next_seed;
    world->bytes[key] = bytes;
    fill(world->value, bytes, world->seed[key]);
    must(fkv_put(world->db, &key, sizeof key, world->value, bytes));
}

static void put_all(struct world *world, struct rng *rng)
{
    for (uint32_t key = 0; key < KEYS; key++)
        put(world, key, (uint32_t)rng_below(rng, key % 100 == 0 ? 200000 : 2000));
    put(world, 0, 3 << 20);
    put(world, 1, 1 << 20);
}

static void check_key(struct world *world, uint32_t key)
{
    size_t bytes = 0;
    enum fkv_error error = fkv_get(world->db, &key, sizeof key, world->found, VALUE_MAX, &bytes);
    if (world->bytes[key] == UINT32_MAX) {
        assert_int_equal(error, FKV_NOT_FOUND);
        assert_int_equal(fkv_exists(world->db, &key, sizeof key), FKV_NOT_FOUND);
        return;
    }
    must(error);
    assert_int_equal(bytes, world->bytes[key]);
    fill(world->value, bytes, world->seed[key]);
    assert_memory_equal(world->found, world->value, bytes);
    bytes = 0;
    must(fkv_value_size(world->db, &key, sizeof key, &bytes));
    assert_int_equal(bytes, world->bytes[key]);
    must(fkv_exists(world->db, &key, sizeof key));
}

static void say(void *context, const fkv_problem *problem)
{
    (void)context;
    print_message("%s: %s\n", fkv_part_name(problem->part), problem->text);
}

static void check_all(struct world *world)
{
    for (uint32_t key = 0; key < KEYS; key++)
        check_key(world, key);
    fkv_check_result result;
    fkv_check_options options;
    fkv_check_options_init(&options);
    options.problem = say;
    enum fkv_error error = fkv_check(world->db, &options, &result, sizeof result);
    if (error)
        fail_msg("%llu problems", (unsigned long long)result.problems);
}

/* Overwrite and delete so much that the collector goes through the file more than once. */
static void churn(struct world *world, struct rng *rng)
{
    for (int i = 0; i < 6 * KEYS; i++) {
        uint32_t key = (uint32_t)rng_below(rng, KEYS);
        if (rng_percent(rng, 20) && world->bytes[key] != UINT32_MAX) {
            must(fkv_delete(world->db, &key, sizeof key));
            world->bytes[key] = UINT32_MAX;
        } else {
            put(world, key, (uint32_t)rng_below(rng, rng_percent(rng, 1) ? 300000 : 2000));
        }
    }
}

static void everything(uint64_t memory_bytes, uint32_t flags)
{
    struct rounds rounds = rounds_begin(1);
    rounds_next(&rounds);
    struct rng rng = rng_make(rounds.seed);
    struct world *world = world_new(memory_bytes, flags);
    put_all(world, &rng);
    check_all(world);
    churn(world, &rng);
    check_all(world);
    fkv_stats stats;
    must(fkv_get_stats(world->db, &stats, sizeof stats));
    assert_true(stats.bytes_written_collector > 0);
    must(store_close(world->db));
    world_open(world, flags);
    check_all(world);
    churn(world, &rng);
    world_end(world);
}

static void test_without_mapping(void **state)
{
    (void)state;
    everything(0, FKV_READ_WITHOUT_MAPPING);
    everything(0, FKV_READ_WITHOUT_MAPPING | FKV_NO_THREAD);
}

static void test_larger_than_memory(void **state)
{
    (void)state;
    everything(1 << 20, 0);
    everything(10 << 20, FKV_NO_THREAD); /* becomes so on the way */
}

/* Recovery, of moves too, without a mapping: the disk is copied while the store is open. */
static void test_recovery(void **state)
{
    (void)state;
    struct rng rng = rng_make(4);
    struct world *world = world_new(0, FKV_READ_WITHOUT_MAPPING | FKV_NO_THREAD);
    put_all(world, &rng);
    churn(world, &rng);
    struct os_sim *after = os_sim_copy(world->sim);
    must(store_close(world->db));
    os_sim_free(world->sim);
    world->sim = after;
    world_open(world, FKV_READ_WITHOUT_MAPPING);
    check_all(world);
    world_end(world);
}

static uint64_t reads(struct world *world)
{
    return os_sim_calls(world->sim, OS_SIM_READ);
}

/* One read a hit; none for a miss, an exists, a put or a delete. */
static void count_reads(uint64_t memory_bytes, uint32_t flags)
{
    struct world *world = world_new(memory_bytes, flags | FKV_NO_THREAD);
    for (uint32_t key = 0; key < KEYS; key++)
        put(world, key, 3000);
    must(store_close(world->db));
    world_open(world, flags | FKV_NO_THREAD);
    for (uint32_t key = 0; key < KEYS; key++) /* pages of the index, and of maps */
        must(fkv_exists(world->db, &key, sizeof key));
    for (uint32_t key = 2000; key < KEYS; key++)
        put(world, key, 3000);
    uint64_t before = reads(world);
    for (uint32_t key = 0; key < 1000; key++)
        check_key(world, key); /* and the length of its value */
    assert_int_equal(reads(world) - before, 2000);
    before = reads(world);
    for (uint32_t key = 0; key < 1000; key++) {
        uint32_t none = KEYS + key;
        size_t bytes;
        assert_int_equal(fkv_get(world->db, &none, sizeof none, NULL, 0, &bytes), FKV_NOT_FOUND);
        must(fkv_exists(world->db, &key, sizeof key));
    }
    for (uint32_t key = 2000; key < 2100; key++)
        put(world, key, 100);
    for (uint32_t key = 2100; key < 2110; key++) {
        must(fkv_delete(world->db, &key, sizeof key));
        world->bytes[key] = UINT32_MAX;
    }
    assert_int_equal(reads(world) - before, 0);
    world_end(world);
}

static void test_one_read_a_get(void **state)
{
    (void)state;
    count_reads(0, FKV_READ_WITHOUT_MAPPING);
    count_reads(1 << 20, 0);
}

/* Sectors wait in memory for a flusher that does not come: in fewer buffers where memory is little.
 */
static void test_buffers(void **state)
{
    (void)state;
    enum { MEMORY = 80 << 20, SHARE = MEMORY / 8 / SECTOR_BYTES, WAIT_FOR_READERS = 4 };
    for (int i = 0; i < 2; i++) {
        struct world *world = world_new(i ? MEMORY : 0, FKV_NO_THREAD);
        must(store_close(world->db));
        world_open_with(world, FKV_NO_THREAD, 256 << 20); /* no checkpoint writes them */
        struct tail *tail = &world->db->tail;
        tail->threads = true;
        for (uint32_t key = 0; key < 600; key++)
            put(world, key, 100000);
        print_message("%u buffers of %u\n", tail->buffer_count, tail->buffers_usual);
        assert_int_equal(tail->buffers_usual, i ? SHARE : BUFFERS_USUAL);
        assert_in_range(tail->buffer_count, SHARE, i ? SHARE + WAIT_FOR_READERS : BUFFERS_MAX);
        assert_true(i || tail->buffer_count > 2 * SHARE);
        tail->threads = false;
        check_all(world);
        world_end(world);
    }
}

/* An error of the medium comes back as FKV_IO, and hurts nothing else. */
static void test_media_error(void **state)
{
    (void)state;
    struct rng rng = rng_make(4);
    struct world *world = world_new(0, FKV_READ_WITHOUT_MAPPING | FKV_NO_THREAD);
    put_all(world, &rng);
    for (uint32_t key = 2000; key < KEYS; key++) /* the others are in the file then */
        put(world, key, 1500);
    must(store_close(world->db));
    world_open(world, FKV_READ_WITHOUT_MAPPING | FKV_NO_THREAD);
    for (uint32_t key = 0; key < KEYS; key++)
        check_key(world, key);
    struct os_sim_fault fault = {.kinds = OS_SIM_READ, .nth = 1, .error = -EIO};
    for (uint32_t key = 100; key < 400; key++) {
        size_t bytes = 4711;
        os_sim_fail(world->sim, &fault);
        assert_int_equal(fkv_get(world->db, &key, sizeof key, world->found, VALUE_MAX, &bytes),
                         FKV_IO);
        assert_int_equal(bytes, 4711);
        os_sim_fail(world->sim, &fault);
        assert_int_equal(fkv_value_size(world->db, &key, sizeof key, &bytes), FKV_IO);
        os_sim_fail(world->sim, NULL);
        check_key(world, key);
    }
    os_sim_fail(world->sim, &fault);
    uint32_t large = 0;
    fkv_txn *txn;
    size_t bytes;
    must(fkv_txn_begin(world->db, &txn));
    assert_int_equal(fkv_txn_get(txn, &large, sizeof large, world->found, VALUE_MAX, &bytes),
                     FKV_IO);
    fkv_txn_free(txn);
    /* The head of a large value that dies is read: nothing has changed if that fails. */
    os_sim_fail(world->sim, &fault);
    assert_int_equal(fkv_put(world->db, &large, sizeof large, "x", 1), FKV_IO);
    check_key(world, large);
    world_end(world);
}

/* Reads that fail now and then hold up the collector here and there, and nothing else. */
static void test_collector_beside_errors(void **state)
{
    (void)state;
    struct rng rng = rng_make(4);
    struct world *world = world_new(0, FKV_READ_WITHOUT_MAPPING | FKV_NO_THREAD);
    for (uint32_t key = 0; key < KEYS; key++)
        put(world, key, 1500);
    must(fkv_checkpoint(world->db));
    uint64_t failed = 0;
    for (int i = 0; i < 8 * KEYS; i++) {
        struct os_sim_fault fault = {.kinds = OS_SIM_READ, .nth = 1, .error = -EIO};
        if (i % 2 == 0)
            os_sim_fail(world->sim, &fault);
        put(world, (uint32_t)rng_below(&rng, KEYS), 1500);
        failed = os_sim_failed(world->sim);
        os_sim_fail(world->sim, NULL);
    }
    assert_true(failed > 3);
    check_all(world);
    world_end(world);
}

static void test_borrow(void **state)
{
    (void)state;
    const void *value;
    size_t bytes;
    uint32_t key = 7;
    struct world *world = world_new(0, FKV_READ_WITHOUT_MAPPING);
    put(world, key, 100);
    fkv_read_begin(world->db);
    assert_int_equal(fkv_borrow(world->db, &key, sizeof key, &value, &bytes), FKV_INVALID);
    fkv_read_end(world->db);
    fkv_snapshot *snapshot;
    must(fkv_snapshot_open(world->db, &snapshot));
    fkv_read_begin(world->db);
    assert_int_equal(fkv_snapshot_borrow(snapshot, &key, sizeof key, &value, &bytes), FKV_INVALID);
    fkv_read_end(world->db);
    fkv_snapshot_close(snapshot);
    must(store_close(world->db));
    assert_int_equal(os_sim_open_mappings(world->sim), 0);
    world_open(world, FKV_READ_WITHOUT_MAPPING);
    assert_int_equal(os_sim_open_mappings(world->sim), 1); /* the log's */
    world_end(world);

    /* Larger than memory: lent in the mapping all the same. */
    world = world_new(1 << 20, FKV_NO_THREAD);
    for (key = 0; key < KEYS; key++)
        put(world, key, 1000);
    must(fkv_checkpoint(world->db));
    fkv_read_begin(world->db);
    for (key = 0; key < KEYS; key++) {
        must(fkv_borrow(world->db, &key, sizeof key, &value, &bytes));
        assert_int_equal(bytes, 1000);
        fill(world->value, bytes, world->seed[key]);
        assert_memory_equal(value, world->value, bytes);
    }
    fkv_read_end(world->db);
    world_end(world);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_mapping), cmocka_unit_test(test_larger_than_memory),
        cmocka_unit_test(test_recovery),        cmocka_unit_test(test_one_read_a_get),
        cmocka_unit_test(test_media_error),     cmocka_unit_test(test_collector_beside_errors),
        cmocka_unit_test(test_borrow),          cmocka_unit_test(test_buffers),
    };
    return support_run(argc, argv, "by_call", tests, sizeof tests / sizeof tests[0]);
}
