/*
 * test_api.c: every public function, as fkv.h describes it, on real files: normal use, the edges
 * of sizes, what is left alone on errors. What goes wrong with files is in test_bad_input.c.
 */
#include "api_support.h"

#include "format.h"
#include "memory.h"
#include "record.h"

/* ---------------------------------------------------------------- texts */

static void test_version(void **state)
{
    (void)state;
    char expected[64];
    snprintf(expected, sizeof expected, "%d.%d.%d", FKV_VERSION_MAJOR, FKV_VERSION_MINOR,
             FKV_VERSION_PATCH);
    assert_string_equal(fkv_version(), expected);
}

static void test_error_texts(void **state)
{
    (void)state;
    for (int error = FKV_OK; error <= FKV_EXISTS; error++) {
        const char *text = fkv_error_text((enum fkv_error)error);
        assert_non_null(text);
        assert_true(strlen(text) > 3);
        for (int other = FKV_OK; other < error; other++)
            assert_string_not_equal(text, fkv_error_text((enum fkv_error)other));
    }
    assert_non_null(fkv_error_text((enum fkv_error)(FKV_EXISTS + 1)));
    assert_non_null(fkv_error_text((enum fkv_error) - 1));
}

static void test_options_init(void **state)
{
    (void)state;
    fkv_options options;
    memset(&options, 0xff, sizeof options);
    fkv_options_init(&options);
    assert_int_equal(options.size, sizeof options);
    assert_int_equal(options.flags, 0);
    assert_int_equal(options.garbage_percent_max, 0);
    assert_int_equal(options.log_bytes_max, 0);
}

/* ---------------------------------------------------------------- the simple calls */

static void test_put_get_delete(void **state)
{
    struct place *place = *state;
    fkv *db = NULL;
    must(fkv_open(place->path, NULL, &db));
    assert_absent(db, "alice");
    must(put_text(db, "alice", "100"));
    assert_text(db, "alice", "100");
    must(fkv_exists(db, "alice", 5));
    must(put_text(db, "alice", "")); /* of no bytes, and there all the same */
    assert_text(db, "alice", "");
    must(fkv_exists(db, "alice", 5));
    must(put_text(db, "alice", "a longer one than before"));
    assert_text(db, "alice", "a longer one than before");
    assert_absent(db, "alic");
    assert_absent(db, "alice ");
    must(fkv_delete(db, "alice", 5));
    assert_absent(db, "alice");
    expect(fkv_delete(db, "alice", 5), FKV_NOT_FOUND);
    must(put_text(db, "alice", "again"));
    assert_text(db, "alice", "again");
    must(fkv_close(db));
}

static void test_delete_of_absent_writes_nothing(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "here", "1"));
    fkv_stats before = stats_of(db);
    expect(fkv_delete(db, "gone", 4), FKV_NOT_FOUND);
    expect(fkv_delete_with(db, "gone", 4, FKV_SYNC), FKV_NOT_FOUND);
    fkv_stats after = stats_of(db);
    assert_int_equal(after.commits, before.commits);
    assert_int_equal(after.bytes_written_log, before.bytes_written_log);
    assert_int_equal(after.keys, 1);
    must(fkv_close(db));
}

static void test_null_for_nothing(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    size_t bytes = 99;
    must(fkv_put(db, NULL, 0, NULL, 0));
    must(fkv_exists(db, NULL, 0));
    must(fkv_exists(db, "", 0));
    must(fkv_get(db, NULL, 0, NULL, 0, &bytes));
    assert_int_equal(bytes, 0);
    must(fkv_get(db, NULL, 0, NULL, 0, NULL));
    must(fkv_value_size(db, NULL, 0, &bytes));
    fkv_read_begin(db);
    const void *value = NULL;
    must(fkv_borrow(db, NULL, 0, &value, &bytes));
    assert_int_equal(bytes, 0);
    fkv_read_end(db);
    must(fkv_put(db, "k", 1, NULL, 0));
    assert_text(db, "k", "");
    must(fkv_delete(db, NULL, 0));
    expect(fkv_exists(db, NULL, 0), FKV_NOT_FOUND);
    must(fkv_close(db));
    must(fkv_close(NULL));
    fkv_txn_free(NULL);
}

/* Keys of all bytes, and keys that begin alike. */
static void test_keys_are_bytes(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    uint8_t key[5] = {0};
    for (int b = 0; b < 256; b++)
        for (size_t bytes = 1; bytes <= sizeof key; bytes++) {
            key[bytes - 1] = (uint8_t)b;
            uint32_t value = (uint32_t)b << 8 | (uint32_t)bytes;
            must(fkv_put(db, key, bytes, &value, sizeof value));
            key[bytes - 1] = 0;
        }
    for (int b = 0; b < 256; b++)
        for (size_t bytes = 1; bytes <= sizeof key; bytes++) {
            key[bytes - 1] = (uint8_t)b;
            uint32_t value = 0;
            must(fkv_get(db, key, bytes, &value, sizeof value, NULL));
            assert_int_equal(value, (uint32_t)b << 8 | (uint32_t)bytes);
            key[bytes - 1] = 0;
        }
    assert_int_equal(stats_of(db).keys, 256 * sizeof key);
    must(fkv_close(db));
}

static void check_key_size(fkv *db, size_t bytes, uint64_t seed, bool put)
{
    uint8_t *key = malloc(bytes + 1);
    value_fill(key, bytes, bytes);
    if (put) {
        uint8_t value[100];
        value_fill(value, sizeof value, seed + bytes);
        must(fkv_put(db, key, bytes, value, sizeof value));
    }
    uint8_t value[100];
    size_t have = 0;
    must(fkv_get(db, key, bytes, value, sizeof value, &have));
    assert_int_equal(have, sizeof value);
    assert_true(value_is(value, have, seed + bytes));
    free(key);
}

static const size_t key_sizes[] = {0,
                                   1,
                                   2,
                                   7,
                                   8,
                                   9,
                                   16,
                                   31,
                                   63,
                                   64,
                                   255,
                                   256,
                                   1023,
                                   1024,
                                   4095,
                                   4096,
                                   4097,
                                   32767,
                                   32768,
                                   65519,
                                   65520,
                                   65534,
                                   FKV_KEY_BYTES_MAX};

static void test_key_sizes(void **state)
{
    struct place *place = *state;
    const unsigned flags[] = {0, FKV_NO_THREAD, FKV_DIGEST};
    for (size_t f = 0; f < 3; f++) {
        remove_store(place);
        fkv *db = open_with(place->path, flags[f]);
        for (uint64_t round = 1; round <= 2; round++)
            for (size_t i = 0; i < sizeof key_sizes / sizeof *key_sizes; i++)
                check_key_size(db, key_sizes[i], round, true);
        must(fkv_close(db));
        db = open_with(place->path, flags[f]);
        for (size_t i = 0; i < sizeof key_sizes / sizeof *key_sizes; i++)
            check_key_size(db, key_sizes[i], 2, false);
        assert_int_equal(stats_of(db).keys, sizeof key_sizes / sizeof *key_sizes);
        must(fkv_close(db));
    }
}

/* ---------------------------------------------------------------- sizes of values */

/* Everything that reads, about one value. */
static void check_value(fkv *db, uint64_t key, size_t bytes, uint64_t seed)
{
    uint8_t *buffer = malloc(bytes + 2);
    size_t have = 77;
    must(fkv_exists(db, &key, sizeof key));
    must(fkv_value_size(db, &key, sizeof key, &have));
    assert_int_equal(have, bytes);
    have = 77;
    buffer[bytes] = 0xa5;
    must(fkv_get(db, &key, sizeof key, buffer, bytes, &have));
    assert_int_equal(have, bytes);
    assert_true(value_is(buffer, bytes, seed));
    assert_int_equal(buffer[bytes], 0xa5);
    if (bytes > 0) {
        memset(buffer, 0x5a, bytes);
        have = 77;
        expect(fkv_get(db, &key, sizeof key, buffer, bytes - 1, &have), FKV_BUFFER_TOO_SMALL);
        assert_int_equal(have, bytes);
        assert_int_equal(buffer[0], 0x5a);
        assert_int_equal(buffer[bytes - 1], 0x5a);
        have = 77;
        expect(fkv_get(db, &key, sizeof key, NULL, 0, &have), FKV_BUFFER_TOO_SMALL);
        assert_int_equal(have, bytes);
        expect(fkv_get(db, &key, sizeof key, NULL, 0, NULL), FKV_BUFFER_TOO_SMALL);
    }
    fkv_read_begin(db);
    const void *borrowed = &key;
    have = 77;
    enum fkv_error error = fkv_borrow(db, &key, sizeof key, &borrowed, &have);
    assert_int_equal(have, bytes);
    if (record_bytes(sizeof key, bytes) <= RECORD_BYTES_MAX) {
        assert_int_equal(error, FKV_OK);
        assert_true(value_is(borrowed, bytes, seed));
    } else {
        assert_int_equal(error, FKV_VALUE_TOO_LARGE);
        assert_ptr_equal(borrowed, &key);
    }
    fkv_read_end(db);
    free(buffer);
}

static const size_t value_sizes[] = {
    0,       1,       2,       3,       4,       15,      16,      17,      63,      500,
    1011,    1012,    1013,    4095,    4096,    8191,    32767,   65535,   65536,   65537,
    100000,  131051,  131052,  131053,  131071,  131072,  131073,  262144,  500000,  999999,
    1000000, 1000001, 1048479, 1048480, 1048481, 1048482, 1048483, 1048484, 1048485, 1048500,
    1048575, 1048576, 1048577, 1114012, 1114100, 2097152, 3000000, 5242880, 9999999,
};
enum { VALUE_SIZES = sizeof value_sizes / sizeof *value_sizes };

static void check_all_values(fkv *db, uint64_t seed, size_t shift)
{
    for (size_t i = 0; i < VALUE_SIZES; i++)
        check_value(db, i, value_sizes[(i + shift) % VALUE_SIZES], seed + i);
}

static void put_all_values(fkv *db, uint64_t seed, size_t shift)
{
    for (size_t i = 0; i < VALUE_SIZES; i++) {
        size_t bytes = value_sizes[(i + shift) % VALUE_SIZES];
        must(put_value(db, i, bytes, seed + i));
        check_value(db, i, bytes, seed + i);
    }
    check_all_values(db, seed, shift);
}

/* Each size once new, and each overwritten by another size. */
static void value_sizes_in(struct place *place, unsigned flags)
{
    fkv *db = open_with(place->path, flags);
    put_all_values(db, 1000, 0);
    put_all_values(db, 2000, 23);
    must(fkv_checkpoint(db));
    check_all_values(db, 2000, 23);
    must(fkv_close(db));
    db = open_with(place->path, flags);
    check_all_values(db, 2000, 23);
    put_all_values(db, 3000, 40);
    must(fkv_close(db));
    db = open_with(place->path, flags & ~(unsigned)FKV_NO_VERIFY);
    check_all_values(db, 3000, 40);
    for (uint64_t i = 0; i < VALUE_SIZES; i++) {
        must(fkv_delete(db, &i, sizeof i));
        expect(fkv_exists(db, &i, sizeof i), FKV_NOT_FOUND);
    }
    fkv_stats stats = stats_of(db);
    assert_int_equal(stats.keys, 0);
    assert_int_equal(stats.live_cells, 0);
    assert_int_equal(stats.sectors_large, 0);
    must(fkv_close(db));
}

static void test_value_sizes(void **state)
{
    value_sizes_in(*state, 0);
}

static void test_value_sizes_without_threads(void **state)
{
    value_sizes_in(*state, FKV_NO_THREAD | FKV_NO_VERIFY);
}

/* The length from which a value is stored in pieces depends on the key. */
static void test_long_keys_with_long_values(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    const size_t sizes[] = {0, 65000, 65524, 65525, 65526, 65600, 131072, 1048576, 2500000};
    uint8_t *key = malloc(FKV_KEY_BYTES_MAX);
    for (int round = 0; round < 2; round++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            value_fill(key, FKV_KEY_BYTES_MAX, i);
            uint8_t *value = malloc(sizes[i] + 1);
            value_fill(value, sizes[i], i + (uint64_t)round * 100);
            must(fkv_put(db, key, FKV_KEY_BYTES_MAX, value, sizes[i]));
            free(value);
        }
    must(fkv_close(db));
    db = open_with(place->path, FKV_OPEN_READ_ONLY);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        value_fill(key, FKV_KEY_BYTES_MAX, i);
        size_t bytes;
        enum fkv_error error;
        uint8_t *value = get_value(db, key, FKV_KEY_BYTES_MAX, &bytes, &error);
        assert_int_equal(error, FKV_OK);
        assert_int_equal(bytes, sizes[i]);
        assert_true(value_is(value, bytes, i + 100));
        free(value);
    }
    free(key);
    must(fkv_close(db));
}

/* The longest value there is. It takes a few GiB of memory and of disk: long mode only. */
static void test_largest_value(void **state)
{
    struct place *place = *state;
    if (!long_mode() || SANITIZED) {
        print_message("a value of 1 GiB is written with FKV_TEST_LONG=1 and without sanitizers\n");
        skip();
    }
    size_t bytes = FKV_VALUE_BYTES_MAX;
    fkv *db = open_with(place->path, 0);
    must(put_value(db, 1, bytes, 11));
    assert_value(db, 1, bytes, 11);
    must(fkv_close(db));
    db = open_with(place->path, 0);
    assert_value(db, 1, bytes, 11);
    must(put_value(db, 1, bytes - 1, 12));
    assert_value(db, 1, bytes - 1, 12);
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    uint8_t *value = malloc(bytes);
    value_fill(value, bytes, 13);
    uint64_t key = 1;
    must(fkv_txn_put(txn, &key, sizeof key, value, bytes));
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    free(value);
    assert_value(db, 1, bytes, 13);
    must(fkv_delete(db, &key, sizeof key));
    must(fkv_checkpoint(db));
    must(fkv_checkpoint(db));
    assert_true(file_bytes(place->path) < 64 * MIB);
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- borrowing */

/* Overwrite and delete so much that sectors are collected, freed and used again. */
static void churn(fkv *db, uint64_t seed, unsigned rounds)
{
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t key = random_below(&seed, 2000);
        uint64_t kind = random_below(&seed, 10);
        if (kind == 0) {
            enum fkv_error error = fkv_delete(db, &key, sizeof key);
            if (error != FKV_NOT_FOUND)
                must(error);
        } else {
            must(put_value(db, key, kind == 1 ? 30000 : random_below(&seed, 3000), i));
        }
    }
}

enum { BORROWED = 300 };

static size_t borrowed_bytes(uint64_t key)
{
    return key % 7 == 0 ? 100000 + key : key * 17;
}

static void borrow_all(fkv *db, const void *values[BORROWED])
{
    for (uint64_t key = 0; key < BORROWED; key++) {
        size_t bytes;
        must(fkv_borrow(db, &key, sizeof key, &values[key], &bytes));
        assert_int_equal(bytes, borrowed_bytes(key));
    }
}

static void assert_borrowed(const void *const values[BORROWED])
{
    for (uint64_t key = 0; key < BORROWED; key++)
        assert_true(value_is(values[key], borrowed_bytes(key), 5000 + key));
}

/* What is borrowed stays as it was through overwrites, deletes, collection and checkpoints. */
static void borrow_in(struct place *place, unsigned flags)
{
    fkv *db = NULL;
    must(try_open_small_log(place->path, flags, &db));
    churn(db, 1, 3000);
    for (uint64_t key = 0; key < BORROWED; key++)
        must(put_value(db, key, borrowed_bytes(key), 5000 + key));
    const void *values[BORROWED];
    fkv_read_begin(db);
    borrow_all(db, values);
    fkv_stats before = stats_of(db);
    churn(db, 2, 15000);
    must(fkv_checkpoint(db));
    for (uint64_t key = 0; key < BORROWED; key++) {
        enum fkv_error error = fkv_delete(db, &key, sizeof key);
        if (error != FKV_NOT_FOUND)
            must(error);
    }
    must(fkv_checkpoint(db));
    churn(db, 3, 15000);
    must(fkv_sync(db));
    must(fkv_checkpoint(db));
    fkv_stats after = stats_of(db);
    assert_true(after.bytes_written_collector > before.bytes_written_collector);
    assert_true(after.checkpoints > before.checkpoints);
    assert_borrowed(values);
    fkv_read_end(db);
    must(fkv_close(db));
}

static void test_borrow(void **state)
{
    borrow_in(*state, 0);
}

static void test_borrow_without_threads(void **state)
{
    borrow_in(*state, FKV_NO_THREAD);
}

static void test_nested_read_sections(void **state)
{
    struct place *place = *state;
    fkv *db = NULL;
    must(try_open_small_log(place->path, 0, &db));
    for (uint64_t key = 0; key < BORROWED; key++)
        must(put_value(db, key, borrowed_bytes(key), 5000 + key));
    const void *values[BORROWED];
    fkv_read_begin(db);
    fkv_read_begin(db);
    borrow_all(db, values);
    fkv_read_begin(db);
    fkv_read_end(db);
    fkv_read_end(db);
    churn(db, 4, 20000); /* the outermost section is still open */
    must(fkv_checkpoint(db));
    assert_borrowed(values);
    fkv_read_end(db);
    const void *value;
    size_t bytes;
    uint64_t key = 1;
    expect(fkv_borrow(db, &key, sizeof key, &value, &bytes), FKV_INVALID);
    fkv_read_end(db); /* one too many does no harm */
    fkv_read_begin(db);
    expect(fkv_borrow(db, "none", 4, &value, &bytes), FKV_NOT_FOUND);
    fkv_read_end(db);
    must(fkv_close(db));
}

/* Other stores come and go inside a read section. */
static void other_stores_in(struct place *place, unsigned flags)
{
    fkv *db = open_with(place->path, flags);
    must(put_text(db, "key", "value"));
    fkv_read_begin(db);
    const void *value;
    size_t bytes;
    must(fkv_borrow(db, "key", 3, &value, &bytes));
    for (int round = 0; round < 3; round++) {
        fkv *other = NULL;
        must(try_open_small_log(place->other, flags, &other));
        churn(other, (uint64_t)round, 8000);
        must(fkv_close(other));
    }
    must(put_text(db, "key", "another"));
    must(fkv_checkpoint(db));
    assert_int_equal(bytes, 5);
    assert_memory_equal(value, "value", 5);
    fkv_read_end(db);
    assert_text(db, "key", "another");
    must(fkv_close(db));
}

static void test_other_stores_beside_borrowed_values(void **state)
{
    other_stores_in(*state, 0);
}

static void test_other_stores_without_threads(void **state)
{
    other_stores_in(*state, FKV_NO_THREAD);
}

/* ---------------------------------------------------------------- statistics */

static void check_stats(fkv *db, const struct place *place)
{
    fkv_stats stats = stats_of(db);
    assert_int_equal(stats.cell_bytes, CELL_BYTES);
    assert_int_equal(1 + stats.sectors_free + stats.sectors_quarantined + stats.sectors_values +
                         stats.sectors_large + stats.sectors_pages,
                     stats.file_bytes / SECTOR_BYTES);
    assert_true(file_bytes(place->path) >= stats.file_bytes);
    assert_true(file_bytes(place->log_path) >= stats.log_bytes);
    assert_true(stats.log_bytes_live <= stats.log_bytes);
    assert_true(stats.index_slots >= stats.keys);
    assert_true(stats.memory_bytes >= stats.index_bytes);
    assert_true((stats.live_cells + stats.dead_cells) <=
                (stats.sectors_values + stats.sectors_large) * SECTOR_CELLS);
    assert_true(stats.bytes_written_collector <= stats.bytes_written_values + 128 * MIB);
}

static void test_stats(void **state)
{
    struct place *place = *state;
    fkv *db = NULL;
    must(try_open_small_log(place->path, 0, &db));
    check_stats(db, place);
    fkv_stats zero = stats_of(db);
    assert_int_equal(zero.keys, 0);
    assert_int_equal(zero.live_cells, 0);
    assert_int_equal(zero.dead_cells, 0);
    assert_int_equal(zero.commits, 0);
    assert_int_equal(zero.bytes_put, 0);

    must(fkv_put(db, "0123456789", 10, "01234567890123456789", 20));
    fkv_stats one = stats_of(db);
    assert_int_equal(one.keys, 1);
    assert_int_equal(one.commits, 1);
    assert_int_equal(one.bytes_put, 30);
    assert_int_equal(one.live_cells, divide_up(12 + 30, CELL_BYTES));
    assert_true(one.bytes_written_log > zero.bytes_written_log);
    must(fkv_put(db, "0123456789", 10, "01234567890123456789", 20));
    fkv_stats two = stats_of(db);
    assert_int_equal(two.keys, 1);
    assert_int_equal(two.bytes_put, 60);
    assert_int_equal(two.live_cells, one.live_cells);
    assert_int_equal(two.dead_cells, one.live_cells);

    for (uint64_t round = 0; round < 6; round++) {
        churn(db, round, 5000);
        must(put_value(db, 77777, (round + 1) * 1000000, round));
        check_stats(db, place);
        fkv_stats now = stats_of(db); /* all of the index is in memory */
        assert_true(now.index_bytes >= now.index_slots * 16);
    }
    assert_true(stats_of(db).sectors_large > 0);
    must(fkv_checkpoint(db));
    check_stats(db, place);
    fkv_stats all = stats_of(db);
    assert_true(all.checkpoints > 0);
    assert_true(all.bytes_written_pages > 0);
    assert_true(all.bytes_written_collector > 0);
    assert_true(all.index_splits > 0);
    must(fkv_close(db));

    db = open_with(place->path, 0);
    fkv_stats reopened = stats_of(db);
    assert_int_equal(reopened.keys, all.keys);
    assert_int_equal(reopened.live_cells, all.live_cells);
    assert_int_equal(reopened.commits, 0);
    check_stats(db, place);
    must(fkv_close(db));
}

/* Programs that were built with an older or a newer header. */
static void test_stats_of_other_sizes(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "key", "value"));
    union {
        fkv_stats stats;
        uint8_t bytes[sizeof(fkv_stats) + 64];
    } given;
    memset(&given, 0xee, sizeof given);
    must(fkv_get_stats(db, &given.stats, 2 * sizeof(uint64_t)));
    assert_int_equal(given.stats.keys, 1);
    assert_int_equal(given.stats.cell_bytes, CELL_BYTES);
    assert_int_equal(given.bytes[2 * sizeof(uint64_t)], 0xee);
    must(fkv_get_stats(db, &given.stats, sizeof given));
    assert_int_equal(given.bytes[sizeof given - 1], 0);
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- sync and checkpoint */

static void test_sync(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "a", "1"));
    uint64_t syncs = stats_of(db).syncs;
    must(fkv_sync(db));
    assert_int_equal(stats_of(db).syncs, syncs + 1);
    must(fkv_sync(db)); /* nothing new */
    assert_int_equal(stats_of(db).syncs, syncs + 1);
    must(fkv_put_with(db, "a", 1, "2", 1, FKV_SYNC));
    assert_int_equal(stats_of(db).syncs, syncs + 2);
    must(fkv_put_with(db, "a", 1, "3", 1, 0));
    assert_int_equal(stats_of(db).syncs, syncs + 2);
    must(fkv_delete_with(db, "a", 1, FKV_SYNC));
    assert_int_equal(stats_of(db).syncs, syncs + 3);
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    must(fkv_txn_put(txn, "b", 1, "1", 1));
    must(fkv_txn_commit(txn, FKV_SYNC));
    fkv_txn_free(txn);
    assert_int_equal(stats_of(db).syncs, syncs + 4);
    must(fkv_close(db));

    db = open_with(place->path, FKV_SYNC_EVERY);
    syncs = stats_of(db).syncs;
    must(put_text(db, "a", "4"));
    must(fkv_delete(db, "a", 1));
    must(fkv_txn_begin(db, &txn));
    must(fkv_txn_put(txn, "b", 1, "2", 1));
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    assert_int_equal(stats_of(db).syncs, syncs + 3);
    must(fkv_close(db));
}

static void checkpoint_in(struct place *place, unsigned flags)
{
    fkv *db = open_with(place->path, flags);
    for (uint64_t key = 0; key < 5000; key++)
        must(put_value(db, key, 200, key));
    assert_true(stats_of(db).log_bytes_live > 5000 * 200);
    uint64_t done = stats_of(db).checkpoints;
    must(fkv_checkpoint(db));
    assert_int_equal(stats_of(db).log_bytes_live, 0);
    assert_int_equal(stats_of(db).checkpoints, done + 1);
    for (uint64_t key = 0; key < 5000; key++)
        assert_value(db, key, 200, key);
    must(fkv_checkpoint(db));
    must(fkv_close(db));
    db = open_with(place->path, flags | FKV_NO_CREATE);
    for (uint64_t key = 0; key < 5000; key++)
        assert_value(db, key, 200, key);
    must(fkv_close(db));
}

static void test_checkpoint(void **state)
{
    checkpoint_in(*state, 0);
}

static void test_checkpoint_without_threads(void **state)
{
    checkpoint_in(*state, FKV_NO_THREAD);
}

/* ---------------------------------------------------------------- transactions */

static void assert_txn_text(fkv_txn *txn, const char *key, const char *value)
{
    char buffer[64];
    size_t bytes = 0;
    must(fkv_txn_get(txn, key, strlen(key), buffer, sizeof buffer, &bytes));
    must(fkv_txn_exists(txn, key, strlen(key)));
    assert_int_equal(bytes, strlen(value));
    assert_memory_equal(buffer, value, bytes);
}

static void assert_txn_absent(fkv_txn *txn, const char *key)
{
    size_t bytes = 12345;
    expect(fkv_txn_get(txn, key, strlen(key), NULL, 0, &bytes), FKV_NOT_FOUND);
    expect(fkv_txn_exists(txn, key, strlen(key)), FKV_NOT_FOUND);
    assert_int_equal(bytes, 12345);
}

static enum fkv_error txn_put_text(fkv_txn *txn, const char *key, const char *value)
{
    return fkv_txn_put(txn, key, strlen(key), value, strlen(value));
}

/* Every call on a transaction that has ended. */
static void assert_ended(fkv_txn *txn)
{
    char buffer[8] = "?";
    size_t bytes = 12345;
    expect(fkv_txn_put(txn, "k", 1, "v", 1), FKV_TXN_ENDED);
    expect(fkv_txn_delete(txn, "k", 1), FKV_TXN_ENDED);
    expect(fkv_txn_get(txn, "k", 1, buffer, sizeof buffer, &bytes), FKV_TXN_ENDED);
    expect(fkv_txn_exists(txn, "k", 1), FKV_TXN_ENDED);
    expect(fkv_txn_commit(txn, 0), FKV_TXN_ENDED);
    expect(fkv_txn_commit(txn, FKV_SYNC), FKV_TXN_ENDED);
    expect(fkv_txn_abort(txn), FKV_TXN_ENDED);
    assert_int_equal(bytes, 12345);
    assert_string_equal(buffer, "?");
}

static void test_txn_sees_its_own_writes(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "old", "1"));
    must(put_text(db, "goes", "1"));
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    assert_txn_text(txn, "old", "1");
    assert_txn_absent(txn, "new");
    must(txn_put_text(txn, "old", "22"));
    must(txn_put_text(txn, "new", "333"));
    must(fkv_txn_delete(txn, "goes", 4));
    must(fkv_txn_delete(txn, "never was", 9));
    assert_txn_text(txn, "old", "22");
    assert_txn_text(txn, "new", "333");
    assert_txn_absent(txn, "goes");
    assert_txn_absent(txn, "never was");
    char small[2] = "?";
    size_t bytes = 0;
    expect(fkv_txn_get(txn, "new", 3, small, 1, &bytes), FKV_BUFFER_TOO_SMALL);
    assert_int_equal(bytes, 3);
    assert_string_equal(small, "?");
    assert_text(db, "old", "1"); /* nobody else sees them */
    assert_absent(db, "new");
    assert_text(db, "goes", "1");
    must(fkv_txn_commit(txn, 0));
    assert_text(db, "old", "22");
    assert_text(db, "new", "333");
    assert_absent(db, "goes");
    assert_absent(db, "never was");
    assert_ended(txn);
    fkv_txn_free(txn);
    assert_int_equal(stats_of(db).keys, 2);
    assert_int_equal(stats_of(db).commits, 3);
    must(fkv_close(db));
}

/* What only calls change: threads make buffers and lengthen the file ahead of need, some time. */
static void leave_out_what_threads_change(fkv_stats *stats)
{
    stats->sectors_free = stats->file_bytes = stats->memory_bytes = 0;
    stats->bytes_written_values = 0;
}

static void txn_abort_leaves_no_trace(struct place *place, unsigned flags)
{
    fkv *db = open_with(place->path, flags);
    must(put_text(db, "key", "1"));
    fkv_txn *first; /* memory for conflicts stays */
    must(fkv_txn_begin(db, &first));
    fkv_txn_free(first);
    fkv_stats before = stats_of(db);
    for (int way = 0; way < 2; way++) {
        fkv_txn *txn;
        must(fkv_txn_begin(db, &txn));
        must(txn_put_text(txn, "key", "2"));
        must(txn_put_text(txn, "other", "2"));
        must(fkv_txn_delete(txn, "key", 3));
        if (way == 0) {
            must(fkv_txn_abort(txn));
            assert_ended(txn);
        }
        fkv_txn_free(txn); /* an open one is aborted */
        assert_text(db, "key", "1");
        assert_absent(db, "other");
    }
    fkv_stats after = stats_of(db);
    if (!(flags & FKV_NO_THREAD)) {
        leave_out_what_threads_change(&before);
        leave_out_what_threads_change(&after);
    }
    assert_memory_equal(&before, &after, sizeof before);
    must(fkv_close(db));
    db = open_with(place->path, flags);
    assert_text(db, "key", "1");
    assert_absent(db, "other");
    must(fkv_close(db));
}

static void test_txn_abort_leaves_no_trace(void **state)
{
    txn_abort_leaves_no_trace(*state, 0);
}

static void test_txn_abort_leaves_no_trace_without_threads(void **state)
{
    txn_abort_leaves_no_trace(*state, FKV_NO_THREAD);
}

/* The caller's buffers are free again on return. */
static void test_txn_copies_what_it_is_given(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    char key[2] = "a", value[2] = "1";
    must(fkv_txn_put(txn, key, 1, value, 1));
    key[0] = 'b';
    value[0] = '2';
    must(fkv_txn_put(txn, key, 1, value, 1));
    key[0] = value[0] = 'x';
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    assert_text(db, "a", "1");
    assert_text(db, "b", "2");
    assert_absent(db, "x");
    must(fkv_close(db));
}

static void test_txn_same_key_many_times(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "there", "0"));
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    char value[32];
    for (int i = 1; i <= 1000; i++) {
        snprintf(value, sizeof value, "%d", i);
        must(txn_put_text(txn, "many", value));
        assert_txn_text(txn, "many", value);
    }
    must(fkv_txn_delete(txn, "there", 5)); /* delete, then put */
    assert_txn_absent(txn, "there");
    must(txn_put_text(txn, "there", "again"));
    assert_txn_text(txn, "there", "again");
    must(txn_put_text(txn, "brief", "1")); /* put, then delete */
    must(fkv_txn_delete(txn, "brief", 5));
    must(txn_put_text(txn, "thrice", "1"));
    must(fkv_txn_delete(txn, "thrice", 6));
    must(txn_put_text(txn, "thrice", "3"));
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    assert_text(db, "many", "1000");
    assert_text(db, "there", "again");
    assert_absent(db, "brief");
    assert_text(db, "thrice", "3");
    fkv_stats stats = stats_of(db);
    assert_int_equal(stats.keys, 3);
    assert_int_equal(stats.live_cells + stats.dead_cells,
                     4 * 2); /* one record a key, and the one before */
    must(fkv_close(db));
    db = open_with(place->path, 0);
    assert_text(db, "there", "again");
    assert_absent(db, "brief");
    must(fkv_close(db));
}

static void test_txn_of_nothing(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "a", "1"));
    uint64_t commits = stats_of(db).commits;
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    must(fkv_txn_commit(txn, FKV_SYNC));
    assert_ended(txn);
    fkv_txn_free(txn);
    must(fkv_txn_begin(db, &txn));
    must(fkv_txn_delete(txn, "b", 1));
    must(fkv_txn_delete(txn, "c", 1));
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    must(fkv_txn_begin(db, &txn));
    assert_txn_text(txn, "a", "1");
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    assert_int_equal(stats_of(db).commits, commits);
    must(fkv_close(db));
}

static void test_txn_conflicts(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "a", "1"));
    fkv_txn *one, *two;

    must(fkv_txn_begin(db, &one)); /* a put between read and commit */
    assert_txn_text(one, "a", "1");
    must(put_text(db, "a", "2"));
    must(txn_put_text(one, "b", "from one"));
    expect(fkv_txn_commit(one, 0), FKV_CONFLICT);
    assert_true(strlen(fkv_error_detail(db)) > 0);
    assert_ended(one);
    fkv_txn_free(one);
    assert_absent(db, "b");

    must(fkv_txn_begin(db, &one)); /* the same put as before counts too, and one of an absent key */
    expect(fkv_txn_exists(one, "c", 1), FKV_NOT_FOUND);
    must(put_text(db, "c", "3"));
    must(txn_put_text(one, "b", "from one"));
    expect(fkv_txn_commit(one, 0), FKV_CONFLICT);
    fkv_txn_free(one);

    must(fkv_txn_begin(db, &one)); /* a delete */
    assert_txn_text(one, "c", "3");
    must(fkv_delete(db, "c", 1));
    expect(fkv_txn_commit(one, 0), FKV_CONFLICT); /* even if it writes nothing */
    fkv_txn_free(one);

    must(fkv_txn_begin(db, &one)); /* read after the other's write: no old state, no new one */
    must(put_text(db, "a", "3"));
    char buffer[8];
    expect(fkv_txn_get(one, "a", 1, buffer, sizeof buffer, NULL), FKV_CONFLICT);
    fkv_txn_free(one);

    must(fkv_txn_begin(db, &one)); /* two transactions that read and write the same key */
    must(fkv_txn_begin(db, &two));
    assert_txn_text(one, "a", "3");
    assert_txn_text(two, "a", "3");
    must(txn_put_text(one, "a", "4"));
    must(txn_put_text(two, "a", "5"));
    must(fkv_txn_commit(one, 0));
    expect(fkv_txn_commit(two, 0), FKV_CONFLICT);
    fkv_txn_free(one);
    fkv_txn_free(two);
    assert_text(db, "a", "4");
    must(fkv_close(db));
}

static void test_txn_without_conflict(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "a", "1"));
    must(put_text(db, "b", "1"));
    fkv_txn *one, *two;
    must(fkv_txn_begin(db, &one)); /* keys that are only written: the later commit wins */
    must(fkv_txn_begin(db, &two));
    must(txn_put_text(one, "a", "one"));
    must(txn_put_text(two, "a", "two"));
    must(put_text(db, "a", "put"));
    must(fkv_txn_commit(two, 0));
    must(fkv_txn_commit(one, 0));
    assert_text(db, "a", "one");
    fkv_txn_free(one);
    fkv_txn_free(two);

    must(fkv_txn_begin(db, &one)); /* a key of its own, read back after another wrote it */
    must(txn_put_text(one, "a", "mine"));
    must(put_text(db, "a", "theirs"));
    assert_txn_text(one, "a", "mine");
    must(fkv_txn_commit(one, 0));
    fkv_txn_free(one);
    assert_text(db, "a", "mine");

    must(fkv_txn_begin(db, &one)); /* what was written before it began */
    assert_txn_text(one, "a", "mine");
    assert_txn_text(one, "b", "1");
    must(txn_put_text(one, "c", "x"));
    must(fkv_txn_commit(one, 0));
    fkv_txn_free(one);
    must(fkv_close(db));
}

/* A conflict is found however many commits lie between, checkpoints and collection included. */
static void test_txn_conflict_after_long(void **state)
{
    struct place *place = *state;
    fkv *db = NULL;
    must(try_open_small_log(place->path, 0, &db));
    must(put_text(db, "a", "1"));
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    assert_txn_text(txn, "a", "1");
    must(put_text(db, "a", "2"));
    churn(db, 9, 10000);
    must(fkv_checkpoint(db));
    must(txn_put_text(txn, "a", "3"));
    expect(fkv_txn_commit(txn, 0), FKV_CONFLICT);
    fkv_txn_free(txn);
    assert_text(db, "a", "2");
    must(fkv_close(db));
}

static void test_txn_open_at_close(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    fkv_txn *txns[3];
    for (int i = 0; i < 3; i++) {
        must(fkv_txn_begin(db, &txns[i]));
        must(txn_put_text(txns[i], "a", "never"));
    }
    must(fkv_txn_abort(txns[1]));
    must(fkv_close(db));
    for (int i = 0; i < 3; i++) {
        assert_ended(txns[i]);
        fkv_txn_free(txns[i]);
    }
    db = open_with(place->path, 0);
    assert_absent(db, "a");
    must(fkv_close(db));
}

/* Values of all sizes in one transaction, all or nothing, kept through reopening. */
static void test_txn_large_values(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    for (uint64_t round = 0; round < 3; round++) {
        fkv_txn *txn;
        must(fkv_txn_begin(db, &txn));
        for (uint64_t i = 0; i < VALUE_SIZES; i++) {
            size_t bytes = value_sizes[(i + round * 11) % VALUE_SIZES];
            uint8_t *value = malloc(bytes + 1);
            value_fill(value, bytes, round * 100 + i);
            must(fkv_txn_put(txn, &i, sizeof i, value, bytes));
            memset(value, 0, bytes);
            size_t have = 0;
            must(fkv_txn_get(txn, &i, sizeof i, value, bytes, &have));
            assert_int_equal(have, bytes);
            assert_true(value_is(value, bytes, round * 100 + i));
            free(value);
        }
        if (round == 2)
            must(fkv_txn_abort(txn));
        else
            must(fkv_txn_commit(txn, 0));
        fkv_txn_free(txn);
        uint64_t last = round == 2 ? 1 : round;
        for (uint64_t i = 0; i < VALUE_SIZES; i++)
            check_value(db, i, value_sizes[(i + last * 11) % VALUE_SIZES], last * 100 + i);
    }
    must(fkv_close(db));
    db = open_with(place->path, 0);
    for (uint64_t i = 0; i < VALUE_SIZES; i++)
        check_value(db, i, value_sizes[(i + 11) % VALUE_SIZES], 100 + i);
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    for (uint64_t i = 0; i < VALUE_SIZES; i++)
        must(fkv_txn_delete(txn, &i, sizeof i));
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    assert_int_equal(stats_of(db).keys, 0);
    assert_int_equal(stats_of(db).sectors_large, 0);
    must(fkv_close(db));
}

static void test_txn_of_a_million(void **state)
{
    struct place *place = *state;
    uint64_t count = SANITIZED ? 100000 : 1000000;
    fkv *db = open_with(place->path, 0);
    for (uint64_t key = 0; key < count; key += 10)
        must(fkv_put(db, &key, sizeof key, "before", 6));
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    for (uint64_t key = 0; key < count; key++) {
        uint64_t value = key * 3;
        if (key % 10 == 0)
            must(fkv_txn_delete(txn, &key, sizeof key));
        else
            must(fkv_txn_put(txn, &key, sizeof key, &value, sizeof value));
    }
    for (uint64_t key = 0; key < count; key += 997) {
        uint64_t value = 0;
        enum fkv_error error = fkv_txn_get(txn, &key, sizeof key, &value, sizeof value, NULL);
        assert_int_equal(error, key % 10 == 0 ? FKV_NOT_FOUND : FKV_OK);
    }
    assert_int_equal(stats_of(db).keys, count / 10);
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    assert_int_equal(stats_of(db).keys, count / 10 * 9);
    must(fkv_close(db));
    db = open_with(place->path, 0);
    assert_int_equal(stats_of(db).keys, count / 10 * 9);
    for (uint64_t key = 0; key < count; key++) {
        uint64_t value = 0;
        enum fkv_error error = fkv_get(db, &key, sizeof key, &value, sizeof value, NULL);
        assert_int_equal(error, key % 10 == 0 ? FKV_NOT_FOUND : FKV_OK);
        if (!error)
            assert_int_equal(value, key * 3);
    }
    must(fkv_close(db));
}

/* Every request for memory inside a commit fails once; then it is tried again, and is whole. */
static void test_txn_without_memory(void **state)
{
    struct place *place = *state;
    bool done = false;
    uint64_t nth = 1;
    for (; !done && nth < 200; nth++) {
        remove_store(place);
        fkv *db = open_with(place->path, FKV_NO_THREAD);
        must(put_text(db, "a", "old"));
        fkv_txn *txn;
        must(fkv_txn_begin(db, &txn));
        uint8_t *value = malloc(1500000);
        value_fill(value, 1500000, 1);
        must(txn_put_text(txn, "a", "new"));
        must(txn_put_text(txn, "b", "new"));
        must(fkv_txn_put(txn, "large", 5, value, 1500000));
        uint64_t requests = memory_test_requests();
        memory_test_fail(nth, false);
        enum fkv_error error = fkv_txn_commit(txn, 0);
        memory_test_fail(0, false);
        done = memory_test_requests() - requests < nth;
        if (error) {
            assert_int_equal(error, FKV_NO_MEMORY);
            assert_text(db, "a", "old");
            assert_absent(db, "b");
            assert_absent(db, "large");
            must(fkv_txn_commit(txn, 0));
        }
        fkv_txn_free(txn);
        assert_text(db, "a", "new");
        assert_text(db, "b", "new");
        uint8_t *read = malloc(1500000);
        must(fkv_get(db, "large", 5, read, 1500000, NULL));
        assert_true(value_is(read, 1500000, 1));
        free(read);
        free(value);
        must(fkv_close(db));
    }
    assert_true(done);
    assert_true(nth > 3);
}

/* ---------------------------------------------------------------- digest mode */

static void test_digest_mode(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, FKV_DIGEST);
    char key[200];
    for (uint64_t i = 0; i < 2000; i++) {
        int bytes = snprintf(key, sizeof key, "a rather secret key with number %" PRIu64, i);
        must(fkv_put(db, key, (size_t)bytes, &i, sizeof i));
    }
    must(fkv_close(db));
    size_t count;
    uint8_t *bytes = file_read(place->path, &count); /* the keys are not in the files */
    assert_null(memmem(bytes, count, "secret", 6));
    free(bytes);
    bytes = file_read(place->log_path, &count);
    assert_null(memmem(bytes, count, "secret", 6));
    free(bytes);
    db = open_with(place->path, FKV_DIGEST);
    assert_int_equal(stats_of(db).keys, 2000);
    for (uint64_t i = 0; i < 2000; i++) {
        uint64_t value = 0;
        int length = snprintf(key, sizeof key, "a rather secret key with number %" PRIu64, i);
        must(fkv_get(db, key, (size_t)length, &value, sizeof value, NULL));
        assert_int_equal(value, i);
        fkv_read_begin(db);
        const void *borrowed;
        size_t have;
        must(fkv_borrow(db, key, (size_t)length, &borrowed, &have));
        assert_memory_equal(borrowed, &i, sizeof i);
        fkv_read_end(db);
    }
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    must(txn_put_text(txn, "in a transaction", "1"));
    assert_txn_text(txn, "in a transaction", "1");
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    assert_text(db, "in a transaction", "1");
    must(fkv_delete(db, "in a transaction", 16));
    assert_absent(db, "in a transaction");
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- reopening */

/* Each generation writes all keys (the first) or a third of them; some writes are deletes. */
static bool is_written_in(uint64_t key, uint64_t generation)
{
    return generation == 0 || (key + generation) % 3 == 0;
}

static bool is_deleted_by(uint64_t key, uint64_t generation)
{
    return (key + generation) % 11 == 0;
}

static size_t reopen_bytes(uint64_t key, uint64_t generation)
{
    return (key * 37 + generation * 1001) % 5000;
}

static void reopen_write(fkv *db, uint64_t generation)
{
    for (uint64_t key = 0; key < 500; key++) {
        if (!is_written_in(key, generation))
            continue;
        if (!is_deleted_by(key, generation)) {
            must(put_value(db, key, reopen_bytes(key, generation), key + generation));
        } else if (fkv_exists(db, &key, sizeof key) == FKV_OK) {
            must(fkv_delete(db, &key, sizeof key));
        }
    }
    must(put_value(db, 1000000, 1500000 + (size_t)generation, generation));
}

static void reopen_verify(fkv *db, uint64_t generation)
{
    for (uint64_t key = 0; key < 500; key++) {
        uint64_t last = generation;
        while (!is_written_in(key, last))
            last--;
        if (is_deleted_by(key, last))
            expect(fkv_exists(db, &key, sizeof key), FKV_NOT_FOUND);
        else
            assert_value(db, key, reopen_bytes(key, last), key + last);
    }
    assert_value(db, 1000000, 1500000 + (size_t)generation, generation);
}

static void reopen_in_mode(struct place *place, unsigned digest)
{
    enum { GENERATIONS = 16 };
    for (uint64_t generation = 0; generation < GENERATIONS; generation++) {
        fkv_options options;
        fkv_options_init(&options);
        options.flags = digest | (generation & 1 ? FKV_NO_THREAD : 0) |
                        (generation & 2 ? FKV_NO_VERIFY : 0) |
                        (generation == 5 ? FKV_SYNC_EVERY : 0); /* slow */
        options.garbage_percent_max = (uint32_t)(10 + generation * 6);
        options.log_bytes_max = MIB << generation % 5;
        fkv *db = NULL;
        must(fkv_open(place->path, &options, &db));
        if (generation)
            reopen_verify(db, generation - 1);
        reopen_write(db, generation);
        if (generation & 4)
            must(fkv_checkpoint(db));
        reopen_verify(db, generation);
        must(fkv_close(db));
    }
    for (unsigned flags = 0; flags < 4; flags++) {
        fkv *db =
            open_with(place->path, digest | FKV_OPEN_READ_ONLY | (flags & 1 ? FKV_NO_THREAD : 0) |
                                       (flags & 2 ? FKV_NO_VERIFY : 0));
        reopen_verify(db, GENERATIONS - 1);
        must(fkv_close(db));
    }
}

static void test_reopen_with_all_flags(void **state)
{
    reopen_in_mode(*state, 0);
}

static void test_reopen_in_digest_mode(void **state)
{
    reopen_in_mode(*state, FKV_DIGEST);
}

static void test_open_flags(void **state)
{
    struct place *place = *state;
    fkv *db = (fkv *)place;
    expect(try_open(place->path, FKV_NO_CREATE, &db), FKV_NOT_EXIST);
    assert_null(db);
    expect(try_open(place->path, FKV_OPEN_READ_ONLY, &db), FKV_NOT_EXIST);
    expect(try_open(place->path, FKV_EXCLUSIVE | FKV_NO_CREATE, &db), FKV_INVALID);
    expect(try_open(place->path, FKV_EXCLUSIVE | FKV_OPEN_READ_ONLY, &db), FKV_INVALID);
    assert_false(file_exists(place->path));
    assert_false(file_exists(place->log_path));
    db = open_with(place->path, FKV_EXCLUSIVE);
    must(put_text(db, "a", "1"));
    must(fkv_close(db));
    expect(try_open(place->path, FKV_EXCLUSIVE, &db), FKV_EXISTS);
    assert_null(db);
    expect(try_open(place->path, FKV_EXCLUSIVE | FKV_NO_CREATE, &db), FKV_INVALID);
    expect(try_open(place->path, FKV_EXCLUSIVE | FKV_OPEN_READ_ONLY, &db), FKV_INVALID);
    db = open_with(place->path, FKV_NO_CREATE);
    assert_text(db, "a", "1");
    must(fkv_close(db));
}

static void test_read_only(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "a", "1"));
    must(fkv_close(db));
    uint64_t file = file_hash(place->path), log = file_hash(place->log_path);
    fkv *one = open_with(place->path, FKV_OPEN_READ_ONLY);
    fkv *two = open_with(place->path, FKV_OPEN_READ_ONLY); /* readers tolerate each other */
    assert_text(one, "a", "1");
    assert_text(two, "a", "1");
    expect(put_text(one, "a", "2"), FKV_READ_ONLY);
    expect(fkv_delete(one, "a", 1), FKV_READ_ONLY);
    fkv_txn *txn = NULL;
    expect(fkv_txn_begin(one, &txn), FKV_READ_ONLY);
    fkv_load *load;
    expect(fkv_load_begin(one, &load), FKV_READ_ONLY);
    assert_null(txn);
    assert_true(strlen(fkv_error_detail(one)) > 0);
    expect(fkv_checkpoint(one), FKV_READ_ONLY);
    assert_int_equal(stats_of(one).keys, 1);
    fkv_read_begin(one);
    const void *value;
    size_t bytes;
    must(fkv_borrow(one, "a", 1, &value, &bytes));
    assert_memory_equal(value, "1", 1);
    fkv_read_end(one);
    must(fkv_close(one));
    must(fkv_close(two));
    assert_int_equal(file_hash(place->path), file);
    assert_int_equal(file_hash(place->log_path), log);
}

/* ---------------------------------------------------------------- details, and outputs */

#define fails(call, error)                                                      \
    do {                                                                        \
        expect(call, error);                                                    \
        if (!*fkv_error_detail(db))                                             \
            fail_msg("%s: no detail for %s", #call, fkv_error_text(error));     \
        if (strcmp(fkv_error_detail(db), before) == 0)                          \
            fail_msg("%s: the detail of an earlier error (%s)", #call, before); \
        snprintf(before, sizeof before, "%s", fkv_error_detail(db));            \
    } while (0)

static void test_details(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    fkv *other = open_with(place->other, 0);
    assert_string_equal(fkv_error_detail(db), "");
    must(put_text(db, "a", "value"));
    char before[512] = "";
    char buffer[2];
    const void *value;
    size_t bytes;
    fkv_stats stats;
    fkv_txn *txn;
    uint8_t *key = calloc(1, FKV_KEY_BYTES_MAX + 1);
    fails(fkv_put(db, key, FKV_KEY_BYTES_MAX + 1, "", 0), FKV_KEY_TOO_LARGE);
    assert_string_equal(fkv_error_detail(other), ""); /* it is this handle's */
    fails(fkv_get(db, "a", 1, buffer, sizeof buffer, &bytes), FKV_BUFFER_TOO_SMALL);
    fails(fkv_put(db, "a", 1, "", (size_t)FKV_VALUE_BYTES_MAX + 1), FKV_VALUE_TOO_LARGE);
    fails(fkv_put(db, NULL, 1, "", 0), FKV_INVALID);
    fails(fkv_put(db, "a", 1, NULL, 1), FKV_INVALID);
    fails(fkv_put_with(db, "a", 1, "", 0, 0x80), FKV_INVALID);
    fails(fkv_get(db, "a", 1, NULL, 1, NULL), FKV_INVALID);
    fails(fkv_value_size(db, "a", 1, NULL), FKV_INVALID);
    fails(fkv_borrow(db, "a", 1, &value, &bytes), FKV_INVALID);
    fails(fkv_borrow(db, "a", 1, NULL, &bytes), FKV_INVALID);
    fails(fkv_get_stats(db, NULL, sizeof stats), FKV_INVALID);
    fails(fkv_txn_begin(db, NULL), FKV_INVALID);
    must(put_value(db, 5, 2000000, 1));
    uint64_t large = 5;
    fkv_read_begin(db);
    fails(fkv_borrow(db, &large, sizeof large, &value, &bytes), FKV_VALUE_TOO_LARGE);
    fails(fkv_borrow(db, "a", 1, NULL, &bytes), FKV_INVALID);
    fkv_read read = {.key = &large, .key_bytes = sizeof large};
    fails(fkv_borrow_many(db, &read, 1), FKV_VALUE_TOO_LARGE);
    fkv_read_end(db);
    must(fkv_txn_begin(db, &txn));
    fails(fkv_txn_put(txn, key, FKV_KEY_BYTES_MAX + 1, "", 0), FKV_KEY_TOO_LARGE);
    fails(fkv_txn_get(txn, "a", 1, buffer, sizeof buffer, &bytes), FKV_BUFFER_TOO_SMALL);
    fails(fkv_txn_commit(txn, 0x80), FKV_INVALID);
    must(txn_put_text(txn, "b", "long"));
    fails(fkv_txn_get(txn, "b", 1, buffer, sizeof buffer, &bytes), FKV_BUFFER_TOO_SMALL);
    must(fkv_txn_abort(txn));
    fails(fkv_txn_commit(txn, 0), FKV_TXN_ENDED);
    fkv_txn_free(txn);
    free(key);
    expect(fkv_get(db, "none", 4, buffer, sizeof buffer, &bytes), FKV_NOT_FOUND);
    expect(fkv_exists(db, "none", 4), FKV_NOT_FOUND);
    expect(fkv_delete(db, "none", 4), FKV_NOT_FOUND);
    must(fkv_exists(db, "a", 1));
    assert_string_equal(fkv_error_detail(db), before); /* none of these has failed */
    expect(fkv_put(other, NULL, 1, "", 0), FKV_INVALID);
    assert_string_equal(fkv_error_detail(db), "");
    must(fkv_close(other));
    must(fkv_close(db));
}

/* What fails on the way, in calls that come out well, is no failure: commits that find the log
 * full, and wait. */
static void test_details_last(void **state)
{
    enum { KEYS = 3000, PUTS = 20000, BYTES_MAX = 8000 };
    struct place *place = *state;
    fkv *db = NULL, *other = open_with(place->other, 0);
    must(try_open_small_log(place->path, 0, &db));
    expect(fkv_put(other, NULL, 1, "", 0), FKV_INVALID);
    for (int own = 0; own < 2; own++) {
        for (uint64_t i = 0; i < PUTS; i++)
            must(put_value(db, i % KEYS, i * 7919 % BYTES_MAX, i));
        assert_string_equal(fkv_error_detail(own ? db : other), "the key is NULL");
        assert_string_equal(fkv_error_detail(own ? other : db), "");
        expect(fkv_put(db, NULL, 1, "", 0), FKV_INVALID);
    }
    must(fkv_close(other));
    must(fkv_close(db));
}

/* NULL where it must not be, everywhere, and outputs left as they were. */
static void test_nulls(void **state)
{
    struct place *place = *state;
    fkv *db = NULL;
    expect(fkv_open(place->path, NULL, NULL), FKV_INVALID);
    expect(fkv_open(NULL, NULL, &db), FKV_INVALID);
    assert_true(strlen(fkv_error_detail(NULL)) > 0);
    assert_false(file_exists(place->path));
    char buffer[4] = "abc";
    size_t bytes = 12345;
    const void *value = buffer;
    fkv_stats stats;
    fkv_txn *txn = (fkv_txn *)buffer;
    memset(&stats, 0xee, sizeof stats);
    fkv_options_init(NULL);
    expect(fkv_put(NULL, "a", 1, "b", 1), FKV_INVALID);
    expect(fkv_put_with(NULL, "a", 1, "b", 1, 0), FKV_INVALID);
    expect(fkv_delete(NULL, "a", 1), FKV_INVALID);
    expect(fkv_delete_with(NULL, "a", 1, FKV_SYNC), FKV_INVALID);
    expect(fkv_get(NULL, "a", 1, buffer, sizeof buffer, &bytes), FKV_INVALID);
    expect(fkv_exists(NULL, "a", 1), FKV_INVALID);
    expect(fkv_value_size(NULL, "a", 1, &bytes), FKV_INVALID);
    fkv_read_begin(NULL);
    expect(fkv_borrow(NULL, "a", 1, &value, &bytes), FKV_INVALID);
    fkv_read_end(NULL);
    expect(fkv_sync(NULL), FKV_INVALID);
    expect(fkv_checkpoint(NULL), FKV_INVALID);
    expect(fkv_txn_begin(NULL, &txn), FKV_INVALID);
    expect(fkv_txn_put(NULL, "a", 1, "b", 1), FKV_INVALID);
    expect(fkv_txn_delete(NULL, "a", 1), FKV_INVALID);
    expect(fkv_txn_get(NULL, "a", 1, buffer, sizeof buffer, &bytes), FKV_INVALID);
    expect(fkv_txn_exists(NULL, "a", 1), FKV_INVALID);
    expect(fkv_txn_commit(NULL, 0), FKV_INVALID);
    expect(fkv_txn_abort(NULL), FKV_INVALID);
    expect(fkv_get_stats(NULL, &stats, sizeof stats), FKV_INVALID);

    db = open_with(place->path, 0);
    must(put_text(db, "a", "1"));
    fkv_txn *open_txn;
    must(fkv_txn_begin(db, &open_txn));
    expect(fkv_put(db, NULL, 1, "b", 1), FKV_INVALID);
    expect(fkv_put(db, "a", 1, NULL, 1), FKV_INVALID);
    expect(fkv_delete(db, NULL, 1), FKV_INVALID);
    expect(fkv_get(db, NULL, 1, buffer, sizeof buffer, &bytes), FKV_INVALID);
    expect(fkv_get(db, "a", 1, NULL, 1, &bytes), FKV_INVALID);
    expect(fkv_exists(db, NULL, 1), FKV_INVALID);
    expect(fkv_value_size(db, NULL, 1, &bytes), FKV_INVALID);
    expect(fkv_value_size(db, "a", 1, NULL), FKV_INVALID);
    fkv_read_begin(db);
    expect(fkv_borrow(db, NULL, 1, &value, &bytes), FKV_INVALID);
    expect(fkv_borrow(db, "a", 1, NULL, &bytes), FKV_INVALID);
    expect(fkv_borrow(db, "a", 1, &value, NULL), FKV_INVALID);
    expect(fkv_borrow(db, "none", 4, &value, &bytes), FKV_NOT_FOUND);
    fkv_read_end(db);
    expect(fkv_txn_begin(db, NULL), FKV_INVALID);
    expect(fkv_txn_put(open_txn, NULL, 1, "b", 1), FKV_INVALID);
    expect(fkv_txn_put(open_txn, "a", 1, NULL, 1), FKV_INVALID);
    expect(fkv_txn_delete(open_txn, NULL, 1), FKV_INVALID);
    expect(fkv_txn_get(open_txn, NULL, 1, buffer, sizeof buffer, &bytes), FKV_INVALID);
    expect(fkv_txn_get(open_txn, "a", 1, NULL, 1, &bytes), FKV_INVALID);
    expect(fkv_txn_exists(open_txn, NULL, 1), FKV_INVALID);
    expect(fkv_txn_commit(open_txn, 2), FKV_INVALID);
    expect(fkv_get_stats(db, NULL, sizeof stats), FKV_INVALID);
    expect(fkv_get_stats(db, &stats, 0), FKV_INVALID);
    assert_txn_text(open_txn, "a", "1"); /* still open */
    must(fkv_txn_commit(open_txn, 0));
    fkv_txn_free(open_txn);

    assert_string_equal(buffer, "abc");
    assert_int_equal(bytes, 12345);
    assert_ptr_equal(value, buffer);
    assert_ptr_equal(txn, buffer);
    for (size_t i = 0; i < sizeof stats; i++)
        assert_int_equal(((uint8_t *)&stats)[i], 0xee);
    assert_text(db, "a", "1");
    assert_int_equal(stats_of(db).keys, 1);
    must(fkv_close(db));
}

/* Too long a key or value, for every call that takes one. */
static void test_too_large(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    uint8_t *key = calloc(1, FKV_KEY_BYTES_MAX + 1);
    size_t key_bytes = FKV_KEY_BYTES_MAX + 1, bytes = 12345;
    const size_t value_bytes[] = {(size_t)FKV_VALUE_BYTES_MAX + 1, (size_t)1 << 32, SIZE_MAX};
    const void *value = key;
    fkv_txn *txn;
    must(fkv_txn_begin(db, &txn));
    expect(fkv_put(db, key, key_bytes, "v", 1), FKV_KEY_TOO_LARGE);
    expect(fkv_put(db, key, SIZE_MAX, "v", 1), FKV_KEY_TOO_LARGE);
    expect(fkv_put(db, key, (size_t)1 << 32, "v", 1), FKV_KEY_TOO_LARGE);
    expect(fkv_delete(db, key, key_bytes), FKV_KEY_TOO_LARGE);
    expect(fkv_get(db, key, key_bytes, NULL, 0, &bytes), FKV_KEY_TOO_LARGE);
    expect(fkv_exists(db, key, key_bytes), FKV_KEY_TOO_LARGE);
    expect(fkv_value_size(db, key, key_bytes, &bytes), FKV_KEY_TOO_LARGE);
    fkv_read_begin(db);
    expect(fkv_borrow(db, key, key_bytes, &value, &bytes), FKV_KEY_TOO_LARGE);
    fkv_read_end(db);
    expect(fkv_txn_put(txn, key, key_bytes, "v", 1), FKV_KEY_TOO_LARGE);
    expect(fkv_txn_delete(txn, key, key_bytes), FKV_KEY_TOO_LARGE);
    expect(fkv_txn_get(txn, key, key_bytes, NULL, 0, &bytes), FKV_KEY_TOO_LARGE);
    expect(fkv_txn_exists(txn, key, key_bytes), FKV_KEY_TOO_LARGE);
    for (size_t i = 0; i < sizeof value_bytes / sizeof *value_bytes; i++) {
        expect(fkv_put(db, "k", 1, key, value_bytes[i]), FKV_VALUE_TOO_LARGE);
        expect(fkv_txn_put(txn, "k", 1, key, value_bytes[i]), FKV_VALUE_TOO_LARGE);
    }
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    assert_int_equal(bytes, 12345);
    assert_ptr_equal(value, key);
    assert_int_equal(stats_of(db).keys, 0);
    assert_int_equal(stats_of(db).commits, 0);
    free(key);
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- leaks */

/* After a close nothing is left: no memory, no descriptors. */
static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void test_close_releases_everything(void **state)
{
    struct place *place = *state;
    uint64_t blocks = memory_test_blocks();
    unsigned descriptors = open_descriptors();
    for (unsigned flags = 0; flags <= FKV_NO_THREAD; flags += FKV_NO_THREAD) {
        fkv *db = NULL;
        must(try_open_small_log(place->path, flags, &db));
        churn(db, flags, 5000);
        must(put_value(db, 1, 3000000, 1));
        fkv_txn *txn;
        must(fkv_txn_begin(db, &txn));
        must(txn_put_text(txn, "a", "1"));
        must(fkv_txn_commit(txn, 0));
        fkv_txn_free(txn);
        must(fkv_close(db));
        assert_int_equal(memory_test_blocks(), blocks);
        assert_int_equal(open_descriptors(), descriptors);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_version),
        cmocka_unit_test(test_error_texts),
        cmocka_unit_test(test_options_init),
        in_place(test_put_get_delete),
        in_place(test_delete_of_absent_writes_nothing),
        in_place(test_null_for_nothing),
        in_place(test_keys_are_bytes),
        in_place(test_key_sizes),
        in_place(test_value_sizes),
        in_place(test_value_sizes_without_threads),
        in_place(test_long_keys_with_long_values),
        in_place(test_largest_value),
        in_place(test_borrow),
        in_place(test_borrow_without_threads),
        in_place(test_nested_read_sections),
        in_place(test_other_stores_beside_borrowed_values),
        in_place(test_other_stores_without_threads),
        in_place(test_stats),
        in_place(test_stats_of_other_sizes),
        in_place(test_sync),
        in_place(test_checkpoint),
        in_place(test_checkpoint_without_threads),
        in_place(test_txn_sees_its_own_writes),
        in_place(test_txn_abort_leaves_no_trace),
        in_place(test_txn_abort_leaves_no_trace_without_threads),
        in_place(test_txn_copies_what_it_is_given),
        in_place(test_txn_same_key_many_times),
        in_place(test_txn_of_nothing),
        in_place(test_txn_conflicts),
        in_place(test_txn_without_conflict),
        in_place(test_txn_conflict_after_long),
        in_place(test_txn_open_at_close),
        in_place(test_txn_large_values),
        in_place(test_txn_of_a_million),
        in_place(test_txn_without_memory),
        in_place(test_digest_mode),
        in_place(test_reopen_with_all_flags),
        in_place(test_reopen_in_digest_mode),
        in_place(test_open_flags),
        in_place(test_read_only),
        in_place(test_details),
        in_place(test_details_last),
        in_place(test_nulls),
        in_place(test_too_large),
        in_place(test_close_releases_everything),
    };
    return run_all(tests);
}
