/*
 * test_held: the statistic memory_bytes against what memory.c has given out and not had back. One
 * store at a time is open, so all of that is the store's.
 */
#include "api_support.h"

#include "memory.h"
#include "store.h"

enum { KEYS = 30000, VALUE_MOST = 600, KEY_BYTES_MOST = 200 };

/* Allocations are rounded up, those of 128 KiB and more to pages; names of files and the like are
 * in no sum. */
enum { SLACK = 16 * KIB };

/*
 * What threads and readers have in hand for a moment (blocks whose grace period is not over, a
 * buffer between two looks) comes back: so look until both agree. Nothing else is changed
 * meanwhile, so what the statistic lacks it lacks for ever.
 */
static void compare(fkv *db, const char *what)
{
    enum { LOOKS = 1000 };
    int64_t held = 0, said = 0;
    fkv_stats stats;
    for (int look = 0; look < LOOKS; look++) {
        held = (int64_t)memory_test_bytes();
        must(fkv_get_stats(db, &stats, sizeof stats));
        said = (int64_t)stats.memory_bytes;
        if (said - held <= SLACK && held - said <= SLACK)
            break;
        must(fkv_checkpoint(db));
        usleep(10000);
    }
    print_message("%-28s %8" PRId64 " KiB said, %+6" PRId64 " bytes held\n", what, said / 1024,
                  held - said);
    assert_in_range(said - held + SLACK, 0, 2 * SLACK);
}

static size_t make_key(uint64_t number, uint8_t *key)
{
    memset(key, (int)number, KEY_BYTES_MOST);
    memcpy(key, &number, sizeof number);
    return number % 50 == 0 ? KEY_BYTES_MOST : sizeof number;
}

static void put(fkv *db, uint64_t number, size_t bytes)
{
    static uint8_t value[3 << 20];
    uint8_t key[KEY_BYTES_MOST];
    must(fkv_put(db, key, make_key(number, key), value, bytes));
}

static void fill(fkv *db)
{
    for (uint64_t i = 0; i < KEYS; i++)
        put(db, i, i * 7 % VALUE_MOST);
    put(db, 1, 3 << 20);
}

static void overwrite(fkv *db, uint64_t *random, int count)
{
    for (int i = 0; i < count; i++)
        put(db, random_below(random, KEYS), random_below(random, VALUE_MOST));
}

static void with_snapshots(fkv *db, uint64_t *random)
{
    enum { OPEN = 3 };
    fkv_snapshot *snapshots[OPEN];
    for (int i = 0; i < OPEN; i++) {
        must(fkv_snapshot_open(db, &snapshots[i]));
        overwrite(db, random, 3000);
    }
    compare(db, "snapshots");
    fkv_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    must(fkv_scan_open(snapshots[1], NULL, &scan));
    for (int i = 0; i < 1000; i++)
        must(fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes));
    compare(db, "a scan");
    fkv_scan_close(scan);
    for (int i = 0; i < OPEN; i++)
        fkv_snapshot_close(snapshots[i]);
}

static void with_transactions(fkv *db)
{
    static const uint8_t value[VALUE_MOST];
    fkv_txn *some, *other;
    must(fkv_txn_begin(db, &some));
    must(fkv_txn_begin(db, &other));
    for (uint64_t i = 0; i < 5000; i++) {
        must(fkv_txn_put(some, &i, sizeof i, value, sizeof value));
        uint64_t key = KEYS / 2 + i;
        (void)fkv_txn_exists(other, &key, sizeof key);
    }
    compare(db, "transactions");
    must(fkv_txn_commit(some, 0));
    fkv_txn_free(some);
    fkv_txn_free(other);
}

static void with_load(fkv *db)
{
    static const uint8_t value[VALUE_MOST];
    fkv_load *load;
    must(fkv_load_begin(db, &load));
    for (uint64_t i = 2 * KEYS; i < 3 * KEYS; i++)
        must(fkv_load_put(load, &i, sizeof i, value, sizeof value));
    compare(db, "a load");
    must(fkv_load_commit(load));
    fkv_load_free(load);
}

static void with_queue(fkv *db, uint64_t *random)
{
    enum { DEPTH = 64 };
    static uint8_t values[DEPTH][VALUE_MOST];
    uint8_t key[KEY_BYTES_MOST];
    fkv_completion completions[DEPTH];
    fkv_async *async;
    must(fkv_async_open(db, DEPTH, &async));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < DEPTH; i++) {
            size_t bytes = make_key(random_below(random, KEYS - 2) + 2, key);
            must(fkv_async_get(async, key, bytes, values[i], sizeof values[i], NULL));
        }
        if (round == 1)
            compare(db, "a queue, at work");
        size_t taken = 0;
        for (size_t some; taken < DEPTH; taken += some)
            must(fkv_async_wait(async, 1, completions, DEPTH, &some));
    }
    compare(db, "a queue");
    fkv_async_close(async);
}

/* What the log needs for commits that are synced: of less than the slack. */
static void with_syncs(fkv *db)
{
    int64_t missing[2];
    for (int i = 0; i < 2; i++) {
        fkv_stats stats = stats_of(db);
        missing[i] = (int64_t)(memory_test_bytes() - stats.memory_bytes);
        if (i == 0)
            must(fkv_put_with(db, "synced", 6, "1", 1, FKV_SYNC));
    }
    assert_in_range(missing[1] - missing[0] + KIB, 0, 2 * KIB);
}

static void test_syncs(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, FKV_NO_THREAD);
    must(put_text(db, "synced", "0")); /* what the first commit needs */
    with_syncs(db);
    must(fkv_close(db));
}

static void all_modes(struct place *place, unsigned flags, uint64_t index_memory_max)
{
    uint64_t random = test_seed("held");
    uint64_t before = memory_test_bytes();
    fkv *db;
    must(try_open_limited(place->path, flags, index_memory_max, &db));
    compare(db, "new");
    fill(db);
    compare(db, "filled");
    overwrite(db, &random, KEYS);
    compare(db, "overwritten");
    with_snapshots(db, &random);
    with_transactions(db);
    with_load(db);
    with_queue(db, &random);
    compare(db, "all closed");
    must(fkv_close(db));
    assert_int_equal(memory_test_bytes(), before);
    must(try_open_limited(place->path, flags, index_memory_max, &db));
    compare(db, "opened again");
    for (uint64_t i = 0; i < KEYS; i++) {
        uint8_t key[KEY_BYTES_MOST];
        must(fkv_exists(db, key, make_key(i, key)));
    }
    compare(db, "read");
    must(fkv_close(db));
    assert_int_equal(memory_test_bytes(), before);
}

static void test_threads(void **state)
{
    all_modes(*state, 0, 0);
}

static void test_no_threads(void **state)
{
    all_modes(*state, FKV_NO_THREAD, 0);
}

static void test_digest(void **state)
{
    all_modes(*state, FKV_DIGEST, 0);
}

static void test_index_limit(void **state)
{
    all_modes(*state, FKV_NO_THREAD, 128 * KIB);
}

static void test_without_mapping(void **state)
{
    all_modes(*state, FKV_READ_WITHOUT_MAPPING, 0);
}

/* What lies in sectors of its own has no deletion maps in memory, written, deleted or recovered. */
static void test_large_values(void **state)
{
    enum { BYTES = 32 << 20, FRAMES_MAX = 16 };
    struct place *place = *state;
    uint8_t *value = calloc(1, BYTES);
    fkv *db = open_with(place->path, FKV_NO_THREAD);
    const _Atomic uint32_t *frames = &db->pages.space[SPACE_MAPS].frame_count;
    must(fkv_put(db, "key", 3, value, BYTES));
    must(fkv_put(db, "key", 3, value, BYTES));
    assert_in_range(*frames, 0, FRAMES_MAX);
    must(fkv_close(db));
    db = open_with(place->path, FKV_NO_THREAD);
    frames = &db->pages.space[SPACE_MAPS].frame_count;
    must(fkv_delete(db, "key", 3));
    assert_in_range(*frames, 0, FRAMES_MAX);
    must(fkv_close(db));
    free(value);
}

#define in_memory(function) \
    cmocka_unit_test_setup_teardown(function, place_make_in_memory, place_drop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_memory(test_threads),      in_memory(test_no_threads),      in_memory(test_digest),
        in_memory(test_index_limit),  in_memory(test_without_mapping), in_memory(test_syncs),
        in_memory(test_large_values),
    };
    return run_all(tests);
}
