/*
 * test_many.c: many keys in one call: each must be answered as it would be alone.
 */
#include "api_support.h"

#include <pthread.h>
#include <sys/mman.h>

#include "os_sim.h"
#include "store.h"
#include "support.h"

enum { KEYS = 3000, MOST = 200, ROOM = 4000, LARGE_BYTES = 300000 };

struct world {
    fkv *db;
    struct os_sim *sim;
    uint64_t random;
    uint32_t bytes[KEYS]; /* of each value; UINT32_MAX: no key */
    uint64_t seed[KEYS];
    uint8_t *value;      /* LARGE_BYTES */
    uint8_t *room, *one; /* of many, and of a single get */
};

static void put(struct world *world, uint32_t key)
{
    uint32_t bytes = (uint32_t)random_below(&world->random, key % 4 ? ROOM : 70);
    if (key % 300 == 7)
        bytes = LARGE_BYTES - key;
    world->bytes[key] = bytes;
    world->seed[key] = next_random(&world->random);
    value_fill(world->value, bytes, world->seed[key]);
    must(fkv_put(world->db, &key, sizeof key, world->value, bytes));
}

/* All keys but some. */
static void world_fill(struct world *world)
{
    for (uint32_t key = 0; key < KEYS; key++) {
        world->bytes[key] = UINT32_MAX;
        if (key % 5)
            put(world, key);
    }
}

static struct world *world_new(fkv *db)
{
    struct world *world = test_calloc(1, sizeof *world);
    world->db = db;
    world->random = test_seed("many");
    world->value = test_malloc(LARGE_BYTES);
    world->room = test_malloc((size_t)MOST * ROOM);
    world->one = test_malloc(LARGE_BYTES);
    world_fill(world);
    return world;
}

static void world_free(struct world *world)
{
    must(fkv_close(world->db));
    test_free(world->value);
    test_free(world->room);
    test_free(world->one);
    test_free(world);
}

/* ---------------------------------------------------------------- a batch */

static uint8_t long_key[FKV_KEY_BYTES_MAX + 1];

/* Keys that are there and that are not, the same twice, and some that cannot be; and buffers, some
 * of them too small. */
static uint32_t batch_make(struct world *world, fkv_read *reads, uint32_t *keys)
{
    uint32_t count = (uint32_t)random_below(&world->random, MOST + 1);
    for (uint32_t i = 0; i < count; i++) {
        keys[i] = i && random_below(&world->random, 10) == 0
                      ? keys[i - 1]
                      : (uint32_t)random_below(&world->random, KEYS + 100);
        size_t room = random_below(&world->random, 8) ? ROOM : random_below(&world->random, ROOM);
        reads[i] = (fkv_read){.key = &keys[i],
                              .key_bytes = sizeof keys[i],
                              .buffer = world->room + (size_t)i * ROOM,
                              .buffer_bytes = room};
        switch (random_below(&world->random, 100)) {
        case 0:
            reads[i].key = NULL;
            break;
        case 1:
            reads[i].key = long_key;
            reads[i].key_bytes = sizeof long_key;
            break;
        case 2:
            reads[i].buffer = NULL;
            reads[i].buffer_bytes = 0;
            break;
        }
    }
    return count;
}

static bool is_right(struct world *world, uint32_t key, const void *value, size_t bytes)
{
    return key < KEYS && bytes == world->bytes[key] && value_is(value, bytes, world->seed[key]);
}

static enum fkv_error first_error(const fkv_read *reads, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (reads[i].error > FKV_NOT_FOUND)
            return reads[i].error;
    return FKV_OK;
}

static void check_get(struct world *world, fkv_read *reads, const uint32_t *keys, uint32_t count)
{
    enum fkv_error error = fkv_get_many(world->db, reads, count);
    assert_int_equal(error, first_error(reads, count));
    for (uint32_t i = 0; i < count; i++) {
        size_t bytes = 0;
        expect(reads[i].error, fkv_get(world->db, reads[i].key, reads[i].key_bytes, world->one,
                                       reads[i].buffer_bytes, &bytes));
        assert_int_equal(reads[i].value_bytes, bytes);
        assert_true(reads[i].error || is_right(world, keys[i], reads[i].buffer, bytes));
        reads[i].value_bytes = 0;
    }
}

static void check_exists(struct world *world, fkv_read *reads, uint32_t count)
{
    enum fkv_error error = fkv_exists_many(world->db, reads, count);
    assert_int_equal(error, first_error(reads, count));
    for (uint32_t i = 0; i < count; i++) {
        expect(reads[i].error, fkv_exists(world->db, reads[i].key, reads[i].key_bytes));
        assert_true(!reads[i].value && !reads[i].value_bytes);
    }
}

static void check_borrow(struct world *world, fkv_read *reads, const uint32_t *keys, uint32_t count)
{
    fkv_read_begin(world->db);
    enum fkv_error error = fkv_borrow_many(world->db, reads, count);
    assert_int_equal(error, first_error(reads, count));
    for (uint32_t i = 0; i < count; i++) {
        const void *value = NULL;
        size_t bytes = 0;
        expect(reads[i].error,
               fkv_borrow(world->db, reads[i].key, reads[i].key_bytes, &value, &bytes));
        assert_int_equal(reads[i].value_bytes, bytes);
        assert_true(reads[i].error || is_right(world, keys[i], reads[i].value, bytes));
        reads[i].value = NULL;
    }
    fkv_read_end(world->db);
}

static void check_batches(struct world *world, int batches, bool can_borrow)
{
    fkv_read reads[MOST];
    uint32_t keys[MOST];
    for (int i = 0; i < batches; i++) {
        uint32_t count = batch_make(world, reads, keys);
        check_exists(world, reads, count);
        check_get(world, reads, keys, count);
        if (can_borrow)
            check_borrow(world, reads, keys, count);
        for (int p = 0; p < 20; p++) {
            uint32_t key = (uint32_t)random_below(&world->random, KEYS);
            if (p % 4) {
                put(world, key);
                continue;
            }
            (void)fkv_delete(world->db, &key, sizeof key);
            world->bytes[key] = UINT32_MAX;
        }
    }
}

static void test_as_alone(void **state)
{
    struct place *place = *state;
    const unsigned flags[] = {0, FKV_NO_THREAD, FKV_NO_VERIFY, FKV_READ_WITHOUT_MAPPING};
    for (int i = 0; i < 4; i++) {
        struct world *world = world_new(open_with(place->path, flags[i]));
        check_batches(world, 60, flags[i] != FKV_READ_WITHOUT_MAPPING);
        must(fkv_checkpoint(world->db));
        check_batches(world, 60, flags[i] != FKV_READ_WITHOUT_MAPPING);
        world_free(world);
        remove_store(place);
    }
    struct world *world = world_new(open_with(place->path, FKV_DIGEST));
    check_batches(world, 100, true);
    world_free(world);
}

/* With an index whose pages come and go. */
static void test_limited_index(void **state)
{
    struct place *place = *state;
    fkv *db;
    must(try_open_limited(place->path, FKV_NO_THREAD, 32768, &db));
    struct world *world = world_new(db);
    check_batches(world, 100, true);
    assert_true(stats_of(db).index_loads > 100);
    world_free(world);
}

/* ---------------------------------------------------------------- what goes wrong */

static void test_arguments(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    fkv_read read = {.key = "a", .key_bytes = 1};
    expect(fkv_get_many(NULL, &read, 1), FKV_INVALID);
    expect(fkv_exists_many(NULL, &read, 1), FKV_INVALID);
    expect(fkv_borrow_many(NULL, &read, 1), FKV_INVALID);
    expect(fkv_get_many(db, NULL, 1), FKV_INVALID);
    expect(fkv_exists_many(db, NULL, 1), FKV_INVALID);
    must(fkv_get_many(db, NULL, 0));
    must(fkv_get_many(db, &read, 1));
    expect(read.error, FKV_NOT_FOUND);
    expect(fkv_borrow_many(db, &read, 1), FKV_INVALID); /* outside a read section */
    read.buffer_bytes = 1;
    read.error = FKV_OK;
    expect(fkv_get_many(db, &read, 1), FKV_INVALID);
    assert_string_equal(fkv_error_detail(db), "a buffer is NULL");
    expect(read.error, FKV_OK); /* nothing was read */
    must(fkv_close(db));
    db = open_with(place->path, FKV_READ_WITHOUT_MAPPING);
    fkv_read_begin(db);
    expect(fkv_borrow_many(db, &read, 1), FKV_INVALID);
    fkv_read_end(db);
    must(fkv_close(db));
}

static void all_reads(struct world *world, fkv_read *reads, uint32_t *keys)
{
    for (uint32_t i = 0; i < MOST; i++) {
        keys[i] = i;
        reads[i] = (fkv_read){.key = &keys[i],
                              .key_bytes = sizeof keys[i],
                              .buffer = world->room + (size_t)i * ROOM,
                              .buffer_bytes = ROOM};
    }
}

/* Flip a bit of these bytes, wherever they are in the file. */
static void damage_file(const char *path, const uint8_t *bytes, size_t count)
{
    int file = open(path, O_RDWR);
    struct stat status;
    assert_int_equal(fstat(file, &status), 0);
    uint8_t *all = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    assert_true(all != MAP_FAILED);
    uint8_t *at = memmem(all, (size_t)status.st_size, bytes, count);
    assert_non_null(at);
    *at ^= 1;
    munmap(all, (size_t)status.st_size);
    close(file);
}

/* One record is damaged: its key says so, and the others are as they were. */
static void test_damage(void **state)
{
    struct place *place = *state;
    struct world *world = world_new(open_with(place->path, 0));
    fkv_read reads[MOST];
    uint32_t keys[MOST];
    uint32_t bad = 3;
    must(fkv_checkpoint(world->db));
    value_fill(world->value, world->bytes[bad], world->seed[bad]);
    damage_file(place->path, world->value, world->bytes[bad]);
    all_reads(world, reads, keys);
    expect(fkv_get_many(world->db, reads, bad + 1), FKV_DAMAGED);
    assert_non_null(strstr(fkv_error_detail(world->db), "fails its checksum"));
    expect(fkv_get_many(world->db, reads, MOST), FKV_DAMAGED);
    for (uint32_t i = 0; i < MOST; i++) {
        expect(reads[i].error, i == bad ? FKV_DAMAGED
                               : i == 7 ? FKV_BUFFER_TOO_SMALL
                               : i % 5  ? FKV_OK
                                        : FKV_NOT_FOUND);
        assert_true(reads[i].error || is_right(world, i, reads[i].buffer, reads[i].value_bytes));
    }
    world_free(world);
}

/* Reads that fail, and memory that cannot be had: each key has its own error, or its value. */
static void test_failures(void **state)
{
    (void)state;
    struct os_sim *sim = os_sim_new(NULL);
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_READ_WITHOUT_MAPPING | FKV_NO_THREAD;
    fkv *db;
    must(store_open(os_sim_os(sim), "store", &options, &db));
    struct world *world = world_new(db);
    must(fkv_checkpoint(db));
    fkv_read reads[MOST];
    uint32_t keys[MOST];
    uint32_t failed = 0, without_memory = 0;
    for (uint32_t nth = 1; nth < 400; nth++) {
        const struct os_sim_fault fault = {.kinds = OS_SIM_READ, .nth = nth, .error = -EIO};
        all_reads(world, reads, keys);
        if (nth % 2)
            os_sim_fail(sim, &fault);
        else
            memory_test_fail(1 + nth / 40, nth % 4 == 0);
        enum fkv_error error = fkv_get_many(db, reads, MOST);
        os_sim_fail(sim, NULL);
        memory_test_fail(0, false);
        assert_int_equal(error, first_error(reads, MOST));
        for (uint32_t i = 0; i < MOST; i++) {
            failed += reads[i].error == FKV_IO;
            without_memory += reads[i].error == FKV_NO_MEMORY;
            if (reads[i].error == FKV_NOT_FOUND)
                assert_true(i % 5 == 0);
            else if (reads[i].error == FKV_OK)
                assert_true(is_right(world, i, reads[i].buffer, reads[i].value_bytes));
            else
                assert_true(reads[i].error == FKV_IO || reads[i].error == FKV_NO_MEMORY ||
                            (i == 7 && reads[i].error == FKV_BUFFER_TOO_SMALL));
        }
    }
    print_message("%u reads failed, %u had no memory\n", failed, without_memory);
    assert_true(failed > 50);
    world_free(world);
    os_sim_free(sim);
}

/* Of a queue that could not be had, which it did without, nothing is said. */
static void test_detail_stays(void **state)
{
    struct place *place = *state;
    struct world *world = world_new(open_with(place->path, FKV_READ_WITHOUT_MAPPING));
    fkv_read reads[MOST];
    uint32_t keys[MOST], others = 8;
    must(fkv_checkpoint(world->db));
    all_reads(world, reads, keys);
    expect(fkv_get(world->db, "key", 3, NULL, 1, NULL), FKV_INVALID);
    for (uint64_t nth = 1; nth <= 2; nth++) {
        memory_test_fail(nth, false);
        must(fkv_get_many(world->db, reads + others, MOST - others));
        memory_test_fail(0, false);
        assert_string_equal(fkv_error_detail(world->db), "the buffer is NULL");
    }
    /* Nor in place of what is to be said of a read that has failed. */
    reads[MOST - 1].key = long_key;
    reads[MOST - 1].key_bytes = sizeof long_key;
    memory_test_fail(1, false);
    expect(fkv_get_many(world->db, reads + others, MOST - others), FKV_KEY_TOO_LARGE);
    memory_test_fail(0, false);
    assert_string_equal(fkv_error_detail(world->db), "a key of 65536 bytes; at most 65535");
    world_free(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_place(test_as_alone), in_place(test_limited_index),    in_place(test_arguments),
        in_place(test_damage),   cmocka_unit_test(test_failures), in_place(test_detail_stays),
    };
    return run_all(tests);
}
