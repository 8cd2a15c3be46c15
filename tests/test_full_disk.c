/*
 * test_full_disk.c: a disk without room: a small tmpfs, a small ext4 on a loop device, a limit on
 * the size of files. Puts fail with FKV_FULL and change nothing, reads and deletes go on, and puts
 * work again once there is room, without reopening. (The simulated disk does the same with a crash
 * at every call: test_crash.c.)
 */
#include "api_support.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "os_posix.h"
#include "store.h"

enum { KEYS = 6000 };

/* A disk, and what the store on it should hold: of each key the seed of its value, 0 if absent. */
struct disk {
    char directory[PATH_MAX];
    char path[PATH_MAX + 16], ballast[PATH_MAX + 16];
    unsigned flags;
    uint64_t log_bytes_max;
    fkv *db;
    uint64_t random;
    uint64_t next_seed;
    uint64_t seed[KEYS];
    uint32_t bytes[KEYS];
    uint64_t full; /* how often it said so */
};

static void disk_open(struct disk *disk)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = disk->flags;
    options.log_bytes_max = disk->log_bytes_max;
    must(fkv_open(disk->path, &options, &disk->db));
}

static void disk_init(struct disk *disk, const char *directory, unsigned flags,
                      uint64_t log_bytes_max)
{
    memset(disk, 0, sizeof *disk);
    snprintf(disk->directory, sizeof disk->directory, "%s", directory);
    snprintf(disk->path, sizeof disk->path, "%s/store.fkv", directory);
    snprintf(disk->ballast, sizeof disk->ballast, "%s/ballast", directory);
    disk->flags = flags;
    disk->log_bytes_max = log_bytes_max;
    disk->random = 1 + flags;
    disk->next_seed = 1;
}

/* ---------------------------------------------------------------- one operation each */

static void check_key(struct disk *disk, uint32_t key)
{
    uint8_t value[70000];
    size_t bytes = 0;
    enum fkv_error error = fkv_get(disk->db, &key, sizeof key, value, sizeof value, &bytes);
    if (!disk->seed[key]) {
        expect(error, FKV_NOT_FOUND);
        return;
    }
    if (error)
        fail_msg("key %u: %s (%s)", key, fkv_error_text(error), fkv_error_detail(disk->db));
    assert_int_equal(bytes, disk->bytes[key]);
    assert_true(value_is(value, bytes, disk->seed[key]));
}

static void check_all(struct disk *disk)
{
    uint64_t count = 0;
    for (uint32_t key = 0; key < KEYS; key++) {
        check_key(disk, key);
        count += disk->seed[key] != 0;
    }
    assert_int_equal(stats_of(disk->db).keys, count);
}

/* True if it could be done; else nothing has changed. */
static bool put(struct disk *disk, uint32_t key, uint32_t bytes)
{
    uint8_t value[70000];
    uint64_t seed = disk->next_seed++;
    value_fill(value, bytes, seed);
    enum fkv_error error = fkv_put(disk->db, &key, sizeof key, value, bytes);
    if (error == FKV_FULL) {
        assert_true(*fkv_error_detail(disk->db));
        disk->full++;
    } else if (error) {
        fail_msg("put: %s (%s)", fkv_error_text(error), fkv_error_detail(disk->db));
    } else {
        disk->seed[key] = seed;
        disk->bytes[key] = bytes;
    }
    check_key(disk, key);
    return !error;
}

static void delete (struct disk *disk, uint32_t key)
{
    enum fkv_error error = fkv_delete(disk->db, &key, sizeof key);
    if (error != (disk->seed[key] ? FKV_OK : FKV_NOT_FOUND))
        fail_msg("delete: %s (%s)", fkv_error_text(error), fkv_error_detail(disk->db));
    disk->seed[key] = 0;
    check_key(disk, key);
}

/* ---------------------------------------------------------------- phases */

static uint32_t random_key(struct disk *disk)
{
    return (uint32_t)random_below(&disk->random, KEYS);
}

/* Until even short values find no place any more. (An overwrite makes room for itself, slowly.) */
static void fill(struct disk *disk)
{
    static const uint32_t sizes[] = {60000, 8000, 1000, 100};
    for (int s = 0; s < 4; s++)
        for (int refused = 0, puts = 0; refused < 20 && puts < 20000; puts++) {
            uint32_t key = random_key(disk);
            if (disk->seed[key] && random_below(&disk->random, 20))
                continue;
            refused += !put(disk, key, 1 + (uint32_t)random_below(&disk->random, sizes[s]));
        }
    assert_true(disk->full > 0);
}

static void full_transactions(struct disk *disk)
{
    static uint8_t value[300000];
    fkv_txn *txn;
    must(fkv_txn_begin(disk->db, &txn));
    for (uint32_t key = 0; key < 100; key++)
        must(fkv_txn_put(txn, &key, sizeof key, value, sizeof value));
    expect(fkv_txn_commit(txn, 0), FKV_FULL);
    fkv_txn_free(txn);
    uint32_t key = 1; /* a value with sectors of its own */
    uint8_t *large = calloc(1, 60 * MIB);
    expect(fkv_put(disk->db, &key, sizeof key, large, 60 * MIB), FKV_FULL);
    free(large);
    must(fkv_txn_begin(disk->db, &txn)); /* only deletes: those go on */
    for (key = 0; key < 10; key++)
        must(fkv_txn_delete(txn, &key, sizeof key));
    enum fkv_error error = fkv_txn_commit(txn, 0);
    if (error)
        fail_msg("deletes: %s (%s)", fkv_error_text(error), fkv_error_detail(disk->db));
    fkv_txn_free(txn);
    for (key = 0; key < 10; key++)
        disk->seed[key] = 0;
    for (key = 0; key < 100; key++)
        check_key(disk, key);
}

static void delete_share(struct disk *disk, unsigned of_ten)
{
    for (uint32_t key = 0; key < KEYS; key++)
        if (disk->seed[key] && random_below(&disk->random, 10) < of_ten)
            delete (disk, key);
}

static uint64_t bytes_held(const struct disk *disk)
{
    uint64_t bytes = 0;
    for (uint32_t key = 0; key < KEYS; key++)
        bytes += disk->seed[key] ? disk->bytes[key] : 0;
    return bytes;
}

/* There is room: so much can be put, and nobody is told to reopen, nor to ask for a checkpoint.
 * A put may still be refused while what was deleted is on its way to be free. */
static void put_again(struct disk *disk, uint64_t bytes)
{
    double end = seconds_now() + HANG_SECONDS;
    uint64_t refused = 0;
    while (bytes > 0) {
        uint32_t length = (uint32_t)random_below(&disk->random, 10000);
        if (!put(disk, random_key(disk), length)) {
            refused++;
            if (seconds_now() > end)
                fail_msg("no room although there should be, for %" PRIu64
                         " bytes more, refused %" PRIu64 " times",
                         bytes, refused);
            usleep(1000);
            continue;
        }
        bytes -= length < bytes ? length : bytes;
    }
    if (refused)
        print_message("%" PRIu64 " puts were refused at first\n", refused);
}

static void reopen(struct disk *disk)
{
    must(fkv_close(disk->db));
    disk_open(disk);
    check_all(disk);
}

/* All of it, again and again on the same store. */
static void live_on(struct disk *disk)
{
    disk_open(disk);
    for (int round = 0; round < 3; round++) {
        fill(disk);
        check_all(disk);
        full_transactions(disk);
        check_all(disk);
        uint64_t held = bytes_held(disk);
        delete_share(disk, 5);
        check_all(disk);
        put_again(disk, held / 8);
        check_all(disk);
        if (round == 1)
            reopen(disk);
    }
    fill(disk);
    reopen(disk); /* while it is full */
    delete_share(disk, 10);
    put_again(disk, 1000000);
    reopen(disk);
    must(fkv_close(disk->db));
}

/* The room is taken by somebody else, who then leaves. */
static void take_room(struct disk *disk)
{
    int fd = open(disk->ballast, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    static uint8_t zeros[65536];
    while (write(fd, zeros, sizeof zeros) > 0)
        ;
    while (write(fd, zeros, 512) > 0)
        ;
    close(fd);
}

static void room_from_outside(struct disk *disk)
{
    disk_open(disk);
    put_again(disk, 2000000);
    for (int round = 0; round < 2; round++) {
        take_room(disk);
        fill(disk);
        check_all(disk);
        unlink(disk->ballast);
        put_again(disk, 1000000);
        check_all(disk);
    }
    take_room(disk);
    reopen(disk);
    delete_share(disk, 9);
    unlink(disk->ballast);
    put_again(disk, 1000000);
    reopen(disk);
    must(fkv_close(disk->db));
}

/* ---------------------------------------------------------------- killed while it is full */

static void fill_and_die(void *context)
{
    struct disk *disk = context;
    insist_ok(try_open_small_log(disk->path, disk->flags, &disk->db));
    uint8_t value[60000];
    for (uint32_t key = 0, refused = 0; refused < 50; key++) {
        uint32_t bytes = 1 + key * 7919 % 60000;
        value_fill(value, bytes, key);
        enum fkv_error error = fkv_put(disk->db, &key, sizeof key, value, bytes);
        insist(error == FKV_OK || error == FKV_FULL);
        refused += error != FKV_OK;
    }
    for (uint32_t key = 0; key < 100; key += 2)
        insist_ok(fkv_delete(disk->db, &key, sizeof key));
    kill(getpid(), SIGKILL);
}

static void killed_while_full(struct disk *disk)
{
    assert_int_equal(run_child(fill_and_die, disk), 1000 + SIGKILL);
    fkv *db = NULL;
    must(try_open(disk->path, FKV_OPEN_READ_ONLY, &db));
    uint64_t keys = stats_of(db).keys;
    must(fkv_close(db));
    must(try_open_small_log(disk->path, disk->flags, &db));
    assert_int_equal(stats_of(db).keys, keys);
    uint8_t value[60000];
    for (uint32_t key = 0; key < 100; key++) {
        size_t bytes = 0;
        enum fkv_error error = fkv_get(db, &key, sizeof key, value, sizeof value, &bytes);
        expect(error, key % 2 ? FKV_OK : FKV_NOT_FOUND);
        if (!error)
            assert_true(bytes == 1 + key * 7919 % 60000 && value_is(value, bytes, key));
    }
    for (uint32_t key = 1; key < 200; key += 2) /* and it can be worked with */
        must(fkv_delete(db, &key, sizeof key));
    must(put_text(db, "a", "1"));
    assert_text(db, "a", "1");
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- disks */

struct mounted {
    struct place *place;
    char directory[PATH_MAX];
};

/* False, and a message, if it is not to be had. */
static bool mount_tmpfs(struct mounted *mounted, const char *size)
{
    char options[64];
    snprintf(options, sizeof options, "size=%s", size);
    snprintf(mounted->directory, sizeof mounted->directory, "%s/disk", mounted->place->directory);
    assert_int_equal(mkdir(mounted->directory, 0755), 0);
    if (mount("fkv", mounted->directory, "tmpfs", 0, options) == 0)
        return true;
    print_message("no small tmpfs to be had: mount: %s\n", strerror(errno));
    rmdir(mounted->directory);
    return false;
}

static bool mount_ext4(struct mounted *mounted, unsigned mib)
{
    char command[3 * PATH_MAX];
    snprintf(mounted->directory, sizeof mounted->directory, "%s/disk", mounted->place->directory);
    assert_int_equal(mkdir(mounted->directory, 0755), 0);
    snprintf(command, sizeof command,
             "exec 2>/dev/null; cd %s && truncate -s %uM image && mkfs.ext4 -q -F image && "
             "mount -o loop image disk",
             mounted->place->directory, mib);
    if (geteuid() == 0 && system(command) == 0)
        return true;
    print_message("no small ext4 to be had: root, mkfs.ext4 and loop devices are needed\n");
    rmdir(mounted->directory);
    return false;
}

static void unmount(struct mounted *mounted)
{
    umount2(mounted->directory, MNT_DETACH);
    rmdir(mounted->directory);
}

static int mounted_make(void **state)
{
    struct mounted *mounted = calloc(1, sizeof *mounted);
    if (place_make((void **)&mounted->place) != 0) {
        free(mounted);
        return -1;
    }
    *state = mounted;
    return 0;
}

static int mounted_drop(void **state)
{
    struct mounted *mounted = *state;
    unmount(mounted);
    place_drop((void **)&mounted->place);
    free(mounted);
    return 0;
}

static struct disk disk;

static void test_tmpfs(void **state)
{
    struct mounted *mounted = *state;
    if (!mount_tmpfs(mounted, "40m"))
        skip();
    disk_init(&disk, mounted->directory, 0, MIB);
    live_on(&disk);
}

static void test_tmpfs_without_threads(void **state)
{
    struct mounted *mounted = *state;
    if (!mount_tmpfs(mounted, "40m"))
        skip();
    disk_init(&disk, mounted->directory, FKV_NO_THREAD, MIB);
    live_on(&disk);
}

/* The log may grow to more than the disk has. */
static void test_tmpfs_with_a_large_log(void **state)
{
    struct mounted *mounted = *state;
    if (!mount_tmpfs(mounted, "60m"))
        skip();
    disk_init(&disk, mounted->directory, 0, 256 * MIB);
    live_on(&disk);
}

static void test_room_from_outside(void **state)
{
    struct mounted *mounted = *state;
    if (!mount_tmpfs(mounted, "60m"))
        skip();
    disk_init(&disk, mounted->directory, 0, 4 * MIB);
    room_from_outside(&disk);
}

static void test_killed_while_full(void **state)
{
    struct mounted *mounted = *state;
    if (!mount_tmpfs(mounted, "40m"))
        skip();
    disk_init(&disk, mounted->directory, 0, MIB);
    killed_while_full(&disk);
}

static void test_ext4(void **state)
{
    struct mounted *mounted = *state;
    if (!mount_ext4(mounted, 64))
        skip();
    disk_init(&disk, mounted->directory, 0, MIB);
    live_on(&disk);
}

static void test_ext4_without_threads(void **state)
{
    struct mounted *mounted = *state;
    if (!mount_ext4(mounted, 64))
        skip();
    disk_init(&disk, mounted->directory, FKV_NO_THREAD, 4 * MIB);
    live_on(&disk);
}

/* A limit on the size of files, as `ulimit -f` sets it. */
static void test_file_size_limit(void **state)
{
    struct mounted *mounted = *state;
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit limit = {.rlim_cur = 30 * MIB, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    disk_init(&disk, mounted->place->directory, 0, MIB);
    live_on(&disk);
    setrlimit(RLIMIT_FSIZE, &before);
}

/* ---------------------------------------------------------------- the collector's room */

static uint64_t room_bytes; /* of the file; 0: as much as it likes */
static long refusal_ns;     /* so long it takes to say that there is no more */
static _Atomic uint64_t refusals;

static int limited_allocate(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    if (room_bytes && offset + bytes > room_bytes) {
        refusals++;
        nanosleep(&(struct timespec){.tv_nsec = refusal_ns}, NULL);
        return -ENOSPC;
    }
    return os_posix()->ops->allocate(file, offset, bytes);
}

/* What is left for the collector is not for puts, not even the rest of a sector that it has opened:
 * else there would come a moment from which on nothing is collected any more, whatever is deleted.
 */
static void test_collector_keeps_its_room(void **state)
{
    enum { PAIRS = 60000, TURNS = 160000, SECTORS = 1000, FEW = 8 };
    static const uint8_t value[2000];
    static uint32_t taken[SECTORS];
    struct place *place = *state;
    struct os_ops ops = *os_posix()->ops;
    struct os os = {&ops};
    fkv_options options;
    fkv_stats stats;
    fkv *db;
    uint32_t count = 0;
    uint64_t random = 1, put = 0;
    ops.allocate = limited_allocate;
    room_bytes = 0;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    options.log_bytes_max = 2 * MIB;
    must(store_open(&os, place->path, &options, &db));
    for (uint32_t key = 0; key < PAIRS; key++)
        must(fkv_put(db, &key, sizeof key, value, random_below(&random, sizeof value)));
    must(fkv_checkpoint(db));
    must(fkv_get_stats(db, &stats, sizeof stats));
    room_bytes = stats.file_bytes;
    while (sectors_free_count(&db->sectors) > 1 && count < SECTORS)
        must(sectors_take(&db->sectors, &taken[count++]));
    for (int i = 0; i < TURNS; i++) {
        uint32_t key = (uint32_t)random_below(&random, PAIRS);
        enum fkv_error error =
            i % 2 ? fkv_delete(db, &key, sizeof key)
                  : fkv_put(db, &key, sizeof key, value, random_below(&random, sizeof value));
        assert_true(!error || error == (i % 2 ? FKV_NOT_FOUND : FKV_FULL));
        put += i % 2 == 0 && !error;
    }
    must(fkv_get_stats(db, &stats, sizeof stats));
    print_message("%" PRIu64 " puts, %" PRIu64 " cells live, %" PRIu64 " dead\n", put,
                  stats.live_cells, stats.dead_cells);
    assert_true(stats.dead_cells <= stats.live_cells + FEW * SECTOR_CELLS);
    assert_true(put > TURNS / 4);
    while (count)
        sectors_give(&db->sectors, taken[--count]);
    must(store_close(db));
}

/* Where it takes long to hear that the disk is full, not every put that is refused asks; and when
 * there is room, the next ones do soon. */
static void test_refusals_are_cheap(void **state)
{
    enum { FILE_MIB = 8, PUTS = 200, BYTES = 60000 };
    static const uint8_t value[BYTES];
    struct place *place = *state;
    struct os_ops ops = *os_posix()->ops;
    struct os os = {&ops};
    fkv_options options;
    fkv *db;
    uint32_t key = 0;
    enum fkv_error error;
    ops.allocate = limited_allocate;
    room_bytes = FILE_MIB * MIB;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    must(store_open(&os, place->path, &options, &db));
    while ((error = fkv_put(db, &key, sizeof key, value, BYTES)) == FKV_OK)
        key++;
    expect(error, FKV_FULL);
    sectors_patience = 8;
    refusal_ns = 1000000;
    refusals = 0;
    for (int i = 0; i < PUTS; i++)
        expect(fkv_put(db, &key, sizeof key, value, BYTES), FKV_FULL);
    print_message("%" PRIu64 " refusals for %d puts\n", (uint64_t)refusals, PUTS);
    assert_in_range(refusals, 1, PUTS / 2);
    room_bytes = 0;
    for (int i = 0; (error = fkv_put(db, &key, sizeof key, value, BYTES)) != FKV_OK; i++) {
        expect(error, FKV_FULL);
        assert_true(i < HANG_SECONDS * 1000);
        usleep(1000);
    }
    sectors_patience = 0;
    refusal_ns = 0;
    must(store_close(db));
}

#define on_disk(function) cmocka_unit_test_setup_teardown(function, mounted_make, mounted_drop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        on_disk(test_tmpfs),
        on_disk(test_tmpfs_without_threads),
        on_disk(test_tmpfs_with_a_large_log),
        on_disk(test_room_from_outside),
        on_disk(test_killed_while_full),
        on_disk(test_ext4),
        on_disk(test_ext4_without_threads),
        on_disk(test_file_size_limit),
        in_place(test_collector_keeps_its_room),
        in_place(test_refusals_are_cheap),
    };
    return run_all(tests);
}
