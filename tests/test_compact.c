/*
 * fkv_compact: garbage below the share that was asked for, a shorter file, nothing lost.
 */
#include <string.h>

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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_threads),
        cmocka_unit_test(without_threads),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
