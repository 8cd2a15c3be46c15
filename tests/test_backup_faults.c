/*
 * Backups on the simulated disk: the power fails in every call that a backup makes, the process is
 * killed there, every call fails, every request for memory does, and the disk is full at every
 * size. The name of the backup is absent or has all of it; the store that is backed up is as it
 * was, and goes on.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup.h"
#include "check.h"
#include "crash_support.h"
#include "memory.h"
#include "os_sim.h"
#include "support.h"

enum { KEYS = 400, LARGE_BYTES = 1300000 };

static const char *const store_path = "dir/store", *const backup_path = "dir/backup",
                         *const part_path = "dir/backup-part";

struct disk {
    struct os_sim *sim;
    fkv *db;
    uint8_t *large;
};

static size_t make_value(uint32_t key, uint8_t *to)
{
    struct rng rng = rng_make(key + 17);
    size_t bytes = (size_t)rng_below(&rng, 6000);
    rng_fill(&rng, to, bytes);
    return bytes;
}

static void disk_open(struct disk *disk)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    options.log_bytes_max = 1 << 20;
    assert_ok(store_open(os_sim_os(disk->sim), store_path, &options, &disk->db));
}

static void disk_make(struct disk *disk)
{
    struct os_sim_options options = {.seed = 5};
    random_fix(9);
    disk->sim = os_sim_new(&options);
    disk->large = malloc(LARGE_BYTES);
    struct rng rng = rng_make(9);
    rng_fill(&rng, disk->large, LARGE_BYTES);
    disk_open(disk);
    uint8_t value[6000];
    for (uint32_t round = 0; round < 2; round++) /* the first values are garbage */
        for (uint32_t k = 0; k < KEYS; k++)
            assert_ok(fkv_put(disk->db, &k, sizeof k, value, make_value(k + 1 - round, value)));
    assert_ok(fkv_put(disk->db, "large", 5, disk->large, LARGE_BYTES));
    assert_ok(fkv_checkpoint(disk->db));
    os_sim_settle(disk->sim);
}

static void disk_drop(struct disk *disk)
{
    assert_ok(fkv_close(disk->db));
    os_sim_free(disk->sim);
    free(disk->large);
}

/* All pairs, and no others. */
static void check_pairs(struct disk *disk, fkv *db)
{
    uint8_t value[6000], found[6000];
    size_t bytes;
    for (uint32_t k = 0; k < KEYS; k++) {
        assert_ok(fkv_get(db, &k, sizeof k, found, sizeof found, &bytes));
        assert_int_equal(bytes, make_value(k, value));
        assert_true(memcmp(found, value, bytes) == 0);
    }
    uint8_t *large = malloc(LARGE_BYTES);
    assert_ok(fkv_get(db, "large", 5, large, LARGE_BYTES, &bytes));
    assert_int_equal(bytes, LARGE_BYTES);
    assert_true(memcmp(large, disk->large, LARGE_BYTES) == 0);
    free(large);
    fkv_stats stats;
    assert_ok(fkv_get_stats(db, &stats, sizeof stats));
    assert_int_equal(stats.keys, KEYS + 1);
}

static bool is_there(struct os_sim *sim, const char *path)
{
    struct os_file *file;
    int status = os_sim_os(sim)->ops->open(os_sim_os(sim), path, OS_READ_ONLY, &file);
    assert_true(status == 0 || status == -ENOENT);
    if (!status)
        os_sim_os(sim)->ops->close(file);
    return !status;
}

static void check_whole(struct disk *disk, struct os_sim *sim, const char *path)
{
    fkv *db;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_OPEN_READ_ONLY | FKV_NO_THREAD;
    assert_ok(check_file(os_sim_os(sim), path, NULL, NULL));
    assert_ok(store_open(os_sim_os(sim), path, &options, &db));
    check_pairs(disk, db);
    assert_ok(fkv_close(db));
}

/* After an error there is nothing; the store goes on, and is backed up at the next try. */
static void check_failed(struct disk *disk)
{
    assert_false(is_there(disk->sim, backup_path));
    assert_false(is_there(disk->sim, part_path));
    fkv_stats stats;
    assert_ok(fkv_get_stats(disk->db, &stats, sizeof stats));
    assert_int_equal(stats.snapshots, 0);
    assert_ok(fkv_put(disk->db, "new", 3, "new", 3));
    assert_ok(fkv_delete(disk->db, "new", 3));
}

static void back_up_again(struct disk *disk)
{
    assert_ok(fkv_backup(disk->db, backup_path, NULL));
    check_whole(disk, disk->sim, backup_path);
    os_sim_delete_file(disk->sim, backup_path);
}

/* ---------------------------------------------------------------- power and kills */

static void check_after_crash(struct disk *disk, struct os_sim *copy, bool kill)
{
    for (uint64_t seed = 0; seed < 4; seed++) {
        struct os_sim *after = os_sim_copy(copy);
        if (kill)
            os_sim_kill(after, seed);
        else
            os_sim_crash(after, seed);
        if (is_there(after, backup_path))
            check_whole(disk, after, backup_path);
        check_whole(disk, after, store_path);
        os_sim_free(after);
    }
}

struct crashes {
    struct disk *disk;
    uint64_t calls, whole;
};

static void crash_here(void *context, struct os_sim *sim, enum os_sim_kind kind)
{
    struct crashes *crashes = context;
    (void)kind;
    crashes->calls++;
    check_after_crash(crashes->disk, sim, false);
    check_after_crash(crashes->disk, sim, true);
    crashes->whole += is_there(sim, backup_path);
}

static void crashes_leave_all_or_nothing(void **state)
{
    (void)state;
    struct disk disk;
    disk_make(&disk);
    struct crashes crashes = {.disk = &disk};
    os_sim_set_hook(disk.sim, OS_SIM_CHANGES, crash_here, &crashes);
    assert_ok(fkv_backup(disk.db, backup_path, NULL));
    os_sim_set_hook(disk.sim, 0, NULL, NULL);
    assert_true(crashes.calls > 12 && crashes.whole >= 1);
    /* Once it has returned it survives everything. */
    for (uint64_t seed = 0; seed < 8; seed++) {
        struct os_sim *copy = os_sim_copy(disk.sim);
        os_sim_crash(copy, seed);
        check_whole(&disk, copy, backup_path);
        os_sim_free(copy);
    }
    disk_drop(&disk);
}

/* What a crash leaves beside it is no obstacle to the next. */
static void a_backup_after_a_crash(void **state)
{
    (void)state;
    for (uint64_t n = 0; n < 100; n++) {
        struct disk disk;
        disk_make(&disk);
        os_sim_crash_after(disk.sim, OS_SIM_CHANGES, n);
        enum fkv_error error = fkv_backup(disk.db, backup_path, NULL);
        bool crashed = os_sim_crashed(disk.sim);
        if (crashed)
            assert_error(error, FKV_IO);
        fkv_close(disk.db);
        os_sim_crash(disk.sim, n);
        disk_open(&disk);
        if (is_there(disk.sim, backup_path))
            os_sim_delete_file(disk.sim, backup_path);
        back_up_again(&disk);
        assert_false(is_there(disk.sim, part_path));
        disk_drop(&disk);
        if (!crashed)
            return;
    }
    fail_msg("a backup makes more calls than that");
}

/* ---------------------------------------------------------------- failing calls */

/* Removal is not made to fail: what cannot be removed stays. */
static void failing_calls(int error_number, bool forever)
{
    struct disk disk;
    disk_make(&disk);
    unsigned kinds = OS_SIM_ALL & ~(unsigned)OS_SIM_REMOVE;
    bool over = false;
    for (uint64_t n = 1; !over; n++) {
        struct os_sim_fault fault = {
            .kinds = kinds, .nth = n, .error = error_number, .forever = forever};
        uint64_t failed = os_sim_failed(disk.sim);
        size_t files = os_sim_open_files(disk.sim);
        os_sim_fail(disk.sim, &fault);
        enum fkv_error error = fkv_backup(disk.db, backup_path, NULL);
        over = os_sim_failed(disk.sim) == failed;
        os_sim_fail(disk.sim, NULL);
        assert_int_equal(os_sim_open_files(disk.sim), files);
        if (error) {
            assert_false(over);
            assert_true(strlen(fkv_error_detail(disk.db)) > 0);
            check_failed(&disk);
        } else {
            check_whole(&disk, disk.sim, backup_path);
            os_sim_delete_file(disk.sim, backup_path);
        }
    }
    back_up_again(&disk);
    disk_drop(&disk);
}

static void calls_fail_once(void **state)
{
    (void)state;
    failing_calls(-EIO, false);
    failing_calls(-ENOSPC, false);
}

static void calls_fail_for_ever(void **state)
{
    (void)state;
    failing_calls(-EIO, true);
}

static void memory_is_out(void **state)
{
    (void)state;
    struct disk disk;
    disk_make(&disk);
    uint64_t blocks = memory_test_blocks();
    for (uint64_t n = 1;; n++) {
        memory_test_fail(n, false);
        enum fkv_error error = fkv_backup(disk.db, backup_path, NULL);
        memory_test_fail(0, false);
        if (!error) {
            assert_true(n > 5);
            break;
        }
        assert_error(error, FKV_NO_MEMORY);
        assert_int_equal(memory_test_blocks(), blocks);
        check_failed(&disk);
    }
    assert_int_equal(memory_test_blocks(), blocks);
    check_whole(&disk, disk.sim, backup_path);
    disk_drop(&disk);
}

static void the_disk_is_full(void **state)
{
    (void)state;
    struct disk disk;
    disk_make(&disk);
    uint64_t used = os_sim_used(disk.sim);
    assert_ok(fkv_backup(disk.db, backup_path, NULL));
    uint64_t needed = os_sim_used(disk.sim) - used;
    os_sim_delete_file(disk.sim, backup_path);
    assert_true(needed > 3 << 20);
    for (uint64_t room = 0; room < needed; room += 128 << 10) {
        os_sim_set_capacity(disk.sim, used + room);
        assert_error(fkv_backup(disk.db, backup_path, NULL), FKV_FULL);
        os_sim_set_capacity(disk.sim, 0);
        assert_int_equal(os_sim_used(disk.sim), used);
        check_failed(&disk);
    }
    os_sim_set_capacity(disk.sim, used + needed);
    back_up_again(&disk);
    os_sim_set_capacity(disk.sim, 0);
    disk_drop(&disk);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crashes_leave_all_or_nothing),
        cmocka_unit_test(a_backup_after_a_crash),
        cmocka_unit_test(calls_fail_once),
        cmocka_unit_test(calls_fail_for_ever),
        cmocka_unit_test(memory_is_out),
        cmocka_unit_test(the_disk_is_full),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
