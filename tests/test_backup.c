/*
 * Backups: against a model while work goes on, in every mode; what they are as stores; how much
 * space they take; damage, errors, and the limit of bytes a second. (Beside threads that write:
 * test_threads_backup.c. Crashes, failing calls and full disks: test_backup_faults.c.)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backup.h"
#include "header.h"
#include "os_posix.h"
#include "record.h"
#include "support.h"
#include "twin.h"

static fkv_stats stats_of(fkv *db)
{
    fkv_stats stats;
    assert_ok(fkv_get_stats(db, &stats, sizeof stats));
    return stats;
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static void remove_store(const char *path)
{
    char log[300];
    snprintf(log, sizeof log, "%s-wal", path);
    unlink(path);
    unlink(log);
}

static void no_trace_of(const char *path)
{
    char part[300];
    snprintf(part, sizeof part, "%s-part", path);
    assert_false(exists(path));
    assert_false(exists(part));
}

static void say(void *context, const fkv_problem *problem)
{
    (void)context;
    print_error("%s\n", problem->text);
}

/* It has so many keys, and nothing is wrong with it. */
static void check_file_keys(const char *path, uint64_t keys)
{
    fkv_check_options options;
    fkv_check_result result;
    fkv_check_options_init(&options);
    options.problem = say;
    assert_ok(fkv_check_file(path, &options, &result, sizeof result));
    assert_int_equal(result.keys, keys);
    assert_true(result.dead_cells < 256); /* of a page, at the end */
}

/* ---------------------------------------------------------------- against a model */

/* The store goes on at every sector that the backup writes. */
static int go_on(void *context, uint64_t done, uint64_t total)
{
    struct twin *twin = context;
    assert_true(done <= total);
    for (int i = 0; i < 20; i++)
        twin_commit(twin);
    return 0;
}

static void back_up(struct twin *twin, const char *path)
{
    fkv_backup_options options;
    fkv_backup_options_init(&options);
    options.progress = go_on;
    options.context = twin;
    if (rng_percent(&twin->rng, 50)) {
        assert_ok(fkv_backup(twin->db, path, &options));
        return;
    }
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0666);
    assert_true(fd >= 0);
    assert_ok(fkv_backup_fd(twin->db, fd, &options));
    assert_int_equal(lseek(fd, 0, SEEK_CUR), 0);
    close(fd);
}

static void check_twin(struct twin *twin)
{
    struct twin_snapshot snapshot;
    twin_check_all(twin, NULL);
    assert_int_equal(stats_of(twin->db).keys, twin->now.keys);
    twin_snapshot_open(twin, &snapshot);
    twin_check_scan(twin, &snapshot, 1);
    twin_snapshot_close(&snapshot);
}

/* A backup is the state at its beginning; and a store like any other from then on. */
static void model(unsigned flags)
{
    for (struct rounds r = rounds_begin(SANITIZED ? 1 : 3); rounds_next(&r);) {
        struct twin *twin = malloc(sizeof *twin), *copy = malloc(sizeof *copy);
        assert_non_null(twin);
        assert_non_null(copy);
        twin_make(twin, r.seed, support_path("model.fkv"), flags);
        const char *path = support_path("model.backup");
        for (int backups = 0; backups < 4; backups++) {
            for (uint64_t i = rng_below(&twin->rng, 6000); i > 0; i--)
                twin_commit(twin);
            remove_store(path);
            *copy = *twin;
            back_up(twin, path);
            check_file_keys(path, copy->now.keys);
            copy->value = twin->value;
            copy->buffer = twin->buffer;
            memset(copy->snapshots, 0, sizeof copy->snapshots);
            snprintf(copy->path, sizeof copy->path, "%s", path);
            twin_open(copy);
            check_twin(copy);
            for (int i = 0; i < 1000; i++)
                twin_commit(copy);
            assert_ok(fkv_compact(copy->db, 5));
            assert_ok(fkv_check(copy->db, NULL, NULL, 0));
            twin_close(copy);
            twin_open(copy);
            check_twin(copy);
            twin_close(copy);
            twin_check_all(twin, NULL);
        }
        remove_store(path);
        twin_drop(twin);
        free(twin);
        free(copy);
    }
}

static void model_plain(void **state)
{
    (void)state;
    model(0);
}

static void model_digest(void **state)
{
    (void)state;
    model(FKV_DIGEST);
}

static void model_without_threads(void **state)
{
    (void)state;
    model(FKV_NO_THREAD);
}

static void model_without_mapping(void **state)
{
    (void)state;
    model(FKV_READ_WITHOUT_MAPPING);
}

/* ---------------------------------------------------------------- sizes */

static void put_numbered(fkv *db, uint32_t begin, uint32_t end, size_t bytes, char letter)
{
    char value[2000];
    memset(value, letter, sizeof value);
    for (uint32_t k = begin; k < end; k++)
        assert_ok(fkv_put(db, &k, sizeof k, value, bytes));
}

/* Segments of all sizes: none, one page, several, several depths. */
static void any_number_of_keys(void **state)
{
    (void)state;
    static const uint32_t counts[] = {0, 1, 213, 214, 215, 2996, 2997, 6100, 50000, 150000};
    fkv *db;
    const char *path = support_path("numbers.fkv"), *backup = support_path("numbers.backup");
    assert_ok(fkv_open(path, NULL, &db));
    uint32_t keys = 0;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        put_numbered(db, keys, counts[i], 8, 'a');
        keys = counts[i];
        remove_store(backup);
        assert_ok(fkv_backup(db, backup, NULL));
        check_file_keys(backup, keys);
        fkv *copy;
        assert_ok(fkv_open(backup, NULL, &copy));
        fkv_stats stats = stats_of(copy);
        assert_int_equal(stats.keys, keys);
        for (uint32_t k = 0; k < keys; k++)
            assert_ok(fkv_exists(copy, &k, sizeof k));
        assert_error(fkv_exists(copy, &keys, sizeof keys), FKV_NOT_FOUND);
        if (keys > 40000)
            assert_true(stats.index_bytes < keys * 22ull);
        put_numbered(copy, keys, keys + 5000, 8, 'b');
        assert_ok(fkv_check(copy, NULL, NULL, 0));
        assert_ok(fkv_close(copy));
    }
    assert_ok(fkv_close(db));
}

/* Half of the store is garbage, none of the backup is; a backup of the backup is as long. */
static void space_is_near_live(void **state)
{
    (void)state;
    enum { KEYS = 100000, BYTES = 600 };
    fkv *db;
    const char *path = support_path("space.fkv"), *backup = support_path("space.backup");
    assert_ok(fkv_open(path, NULL, &db));
    put_numbered(db, 0, KEYS, BYTES, 'a');
    put_numbered(db, 0, KEYS / 2, BYTES, 'b');
    assert_ok(fkv_checkpoint(db));
    assert_ok(fkv_backup(db, backup, NULL));
    struct stat source, copy, again;
    assert_int_equal(stat(path, &source), 0);
    assert_int_equal(stat(backup, &copy), 0);
    uint64_t live = stats_of(db).live_cells * CELL_BYTES;
    uint64_t index = KEYS * 22ull;
    assert_true(copy.st_size > source.st_size / 4 && copy.st_size < source.st_size);
    assert_true((uint64_t)copy.st_size <= live + live / 100 + index + 3 * SECTOR_BYTES);
    assert_ok(fkv_close(db));
    assert_ok(fkv_open(backup, NULL, &db));
    assert_true(stats_of(db).dead_cells < SECTOR_CELLS);
    assert_ok(fkv_backup(db, support_path("space.again"), NULL));
    assert_ok(fkv_close(db));
    assert_int_equal(stat(support_path("space.again"), &again), 0);
    assert_int_equal(again.st_size, copy.st_size);
}

/* The longest key; values at the edges of pieces and sectors, and a long one. */
static void long_keys_and_values(void **state)
{
    (void)state;
    static const size_t sizes[] = {0,       65500,       131060,      131061,          1048483,
                                   1048484, 1048484 * 2, 1048484 + 1, 1048484 + 65536, 40000000};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    fkv *db;
    uint8_t *key = calloc(1, FKV_KEY_BYTES_MAX);
    uint8_t *value = malloc(40000000), *found = malloc(40000000);
    struct rng rng = rng_make(5);
    rng_fill(&rng, value, 40000000);
    assert_ok(fkv_open(support_path("long.fkv"), NULL, &db));
    for (int i = 0; i < COUNT; i++) {
        key[0] = (uint8_t)i;
        assert_ok(fkv_put(db, key, i % 2 ? FKV_KEY_BYTES_MAX : 1, value + i,
                          sizes[i] ? sizes[i] - (size_t)i : 0));
    }
    assert_ok(fkv_put(db, NULL, 0, NULL, 0));
    assert_ok(fkv_backup(db, support_path("long.backup"), NULL));
    assert_ok(fkv_close(db));
    check_file_keys(support_path("long.backup"), COUNT + 1);
    assert_ok(fkv_open(support_path("long.backup"), NULL, &db));
    for (int i = 0; i < COUNT; i++) {
        size_t bytes;
        key[0] = (uint8_t)i;
        assert_ok(fkv_get(db, key, i % 2 ? FKV_KEY_BYTES_MAX : 1, found, sizes[COUNT - 1], &bytes));
        assert_int_equal(bytes, sizes[i] ? sizes[i] - (size_t)i : 0);
        assert_true(memcmp(found, value + i, bytes) == 0);
    }
    assert_ok(fkv_exists(db, NULL, 0));
    for (int i = 0; i < COUNT; i++) {
        key[0] = (uint8_t)i;
        assert_ok(fkv_delete(db, key, i % 2 ? FKV_KEY_BYTES_MAX : 1));
    }
    assert_ok(fkv_check(db, NULL, NULL, 0));
    assert_int_equal(stats_of(db).sectors_large, 0);
    assert_ok(fkv_close(db));
    free(key);
    free(value);
    free(found);
}

/* ---------------------------------------------------------------- arguments and errors */

static fkv *small_store(const char *path, unsigned flags)
{
    fkv *db;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    assert_ok(fkv_open(path, &options, &db));
    put_numbered(db, 0, 3000, 1000, 'a');
    return db;
}

static void arguments(void **state)
{
    (void)state;
    const char *path = support_path("arguments.fkv"), *backup = support_path("arguments.backup");
    fkv *db = small_store(path, 0);
    fkv_backup_options options;
    fkv_backup_options_init(&options);
    fkv_backup_options_init(NULL);
    assert_error(fkv_backup(NULL, backup, NULL), FKV_INVALID);
    assert_error(fkv_backup_fd(NULL, 1, NULL), FKV_INVALID);
    assert_error(fkv_backup(db, NULL, NULL), FKV_INVALID);
    assert_error(fkv_backup(db, "", NULL), FKV_INVALID);
    options.flags = 1;
    assert_error(fkv_backup(db, backup, &options), FKV_INVALID);
    options.flags = 0;
    options.size = 8;
    assert_error(fkv_backup(db, backup, &options), FKV_INVALID);
    fkv_read_begin(db);
    assert_error(fkv_backup(db, backup, NULL), FKV_INVALID);
    fkv_read_end(db);
    assert_error(fkv_backup(db, path, NULL), FKV_EXISTS);
    assert_error(fkv_backup(db, "/nowhere/at/all", NULL), FKV_NOT_EXIST);
    assert_error(fkv_backup(db, "/", NULL), FKV_IS_DIRECTORY);
    no_trace_of(backup);
    fkv_backup_options_init(&options);
    options.size = offsetof(fkv_backup_options, bytes_per_second); /* an older program's */
    assert_ok(fkv_backup(db, backup, &options));
    assert_error(fkv_backup(db, backup, NULL), FKV_EXISTS);
    assert_true(strstr(fkv_error_detail(db), "exists") != NULL);
    check_file_keys(backup, 3000);
    unlink(backup);
    char log[300];
    snprintf(log, sizeof log, "%s-wal", backup);
    close(open(log, O_CREAT | O_WRONLY, 0666));
    assert_error(fkv_backup(db, backup, NULL), FKV_EXISTS);
    assert_true(strstr(fkv_error_detail(db), "log") != NULL);
    no_trace_of(backup);
    assert_ok(fkv_close(db));
}

static enum fkv_error to_fd(fkv *db, int fd)
{
    assert_true(fd >= 0);
    enum fkv_error error = fkv_backup_fd(db, fd, NULL);
    close(fd);
    return error;
}

static void descriptors(void **state)
{
    (void)state;
    const char *path = support_path("descriptors.fkv"), *backup = support_path("some.file");
    fkv *db = small_store(path, 0);
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_error(to_fd(db, ends[1]), FKV_INVALID);
    assert_true(strstr(fkv_error_detail(db), "fkv dump") != NULL);
    close(ends[0]);
    assert_error(fkv_backup_fd(db, -1, NULL), FKV_INVALID);
    assert_error(to_fd(db, open("/dev/null", O_RDWR)), FKV_INVALID);
    assert_error(to_fd(db, open(".", O_RDONLY)), FKV_INVALID);
    assert_error(to_fd(db, open(backup, O_CREAT | O_RDONLY, 0666)), FKV_INVALID);
    assert_error(to_fd(db, open(backup, O_WRONLY | O_APPEND)), FKV_INVALID);
    int fd = open(backup, O_WRONLY);
    assert_int_equal(write(fd, "x", 1), 1);
    assert_error(to_fd(db, fd), FKV_INVALID);
    assert_true(strstr(fkv_error_detail(db), "empty") != NULL);
    assert_ok(to_fd(db, open(backup, O_WRONLY | O_TRUNC)));
    check_file_keys(backup, 3000);
    assert_ok(fkv_close(db));
}

static void after_fork(void **state)
{
    (void)state;
    fkv *db = small_store(support_path("fork.fkv"), 0);
    const char *backup = support_path("fork.backup");
    pid_t child = fork();
    if (child == 0)
        _exit(fkv_backup(db, backup, NULL) == FKV_FORKED && fkv_backup_fd(db, 1, NULL) == FKV_FORKED
                  ? 0
                  : 1);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    no_trace_of(backup);
    assert_ok(fkv_close(db));
}

struct calls {
    uint64_t made, last; /* the one that cancels; 0: none does */
    uint64_t done, total;
    bool at_end; /* cancel the one at the end */
};

static int count_calls(void *context, uint64_t done, uint64_t total)
{
    struct calls *calls = context;
    assert_true(done >= calls->done && done <= total);
    assert_true(calls->total == 0 || calls->total == total);
    assert_true(calls->done < total || total == 0); /* it is `total` once */
    calls->done = done;
    calls->total = total;
    return ++calls->made == calls->last || (calls->at_end && done == total);
}

static void progress_and_cancelling(void **state)
{
    (void)state;
    fkv *db = small_store(support_path("cancel.fkv"), 0);
    const char *backup = support_path("cancel.backup");
    struct calls all = {0}, end = {.at_end = true};
    fkv_backup_options options;
    fkv_backup_options_init(&options);
    options.progress = count_calls;
    options.context = &all;
    assert_ok(fkv_backup(db, backup, &options));
    assert_true(all.made >= 4 && all.done == all.total);
    unlink(backup);
    for (uint64_t n = 1; n <= all.made; n++) {
        struct calls calls = {.last = n};
        options.context = &calls;
        assert_error(fkv_backup(db, backup, &options), FKV_CANCELLED);
        assert_int_equal(calls.made, n);
        no_trace_of(backup);
    }
    options.context = &end;
    assert_error(fkv_backup(db, backup, &options), FKV_CANCELLED);
    no_trace_of(backup);
    int fd = open(backup, O_CREAT | O_RDWR, 0666);
    struct calls third = {.last = 3};
    options.context = &third;
    assert_error(fkv_backup_fd(db, fd, &options), FKV_CANCELLED);
    assert_int_equal(lseek(fd, 0, SEEK_END), 0);
    close(fd);
    assert_int_equal(stats_of(db).snapshots, 0);
    assert_ok(fkv_close(db));
}

/* What a crash has left is replaced; what is being written is not. */
static void left_files(void **state)
{
    (void)state;
    fkv *db = small_store(support_path("left.fkv"), 0);
    const char *backup = support_path("left.backup"), *part = support_path("left.backup-part");
    int fd = open(part, O_CREAT | O_RDWR, 0666);
    assert_int_equal(write(fd, "rubbish", 7), 7);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    assert_error(fkv_backup(db, backup, NULL), FKV_IN_USE);
    assert_true(strstr(fkv_error_detail(db), "another backup") != NULL);
    assert_true(exists(part));
    close(fd);
    assert_ok(fkv_backup(db, backup, NULL));
    assert_false(exists(part));
    check_file_keys(backup, 3000);
    assert_ok(fkv_close(db));
}

/* Another backup to the same path, which comes in between: when one that was left is about to be
 * locked, it has removed that and made its own. */
static const char *raced_part;
static int raced_fd;

static int flock_too_late(int fd, int operation)
{
    if (raced_fd < 0) {
        assert_int_equal(unlink(raced_part), 0);
        raced_fd = open(raced_part, O_CREAT | O_EXCL | O_RDWR, 0666);
        assert_int_equal(flock(raced_fd, LOCK_EX | LOCK_NB), 0);
    }
    return flock(fd, operation);
}

static void left_files_raced_for(void **state)
{
    (void)state;
    fkv *db = small_store(support_path("raced.fkv"), FKV_NO_THREAD);
    const char *backup = support_path("raced.backup");
    raced_part = support_path("raced.backup-part");
    for (int left = 0; left < 2; left++) {
        if (left)
            close(open(raced_part, O_CREAT | O_RDWR, 0666));
        struct os_posix_calls calls = os_posix_system_calls;
        calls.flock = flock_too_late;
        raced_fd = -1;
        os_posix_set_calls(&calls);
        assert_error(fkv_backup(db, backup, NULL), FKV_IN_USE);
        os_posix_set_calls(NULL);
        struct stat other, named;
        assert_int_equal(fstat(raced_fd, &other), 0);
        assert_int_equal(stat(raced_part, &named), 0);
        assert_int_equal(other.st_ino, named.st_ino);
        close(raced_fd);
        assert_int_equal(unlink(raced_part), 0);
    }
    assert_ok(fkv_backup(db, backup, NULL));
    check_file_keys(backup, 3000);
    assert_ok(fkv_close(db));
}

/* A store that is opened read-only, and its log has commits. */
static void read_only(void **state)
{
    (void)state;
    const char *path = support_path("read_only.fkv"), *backup = support_path("read_only.backup");
    pid_t child = fork();
    if (child == 0) {
        small_store(path, 0);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    fkv *db;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_OPEN_READ_ONLY;
    assert_ok(fkv_open(path, &options, &db));
    assert_ok(fkv_backup(db, backup, NULL));
    assert_ok(fkv_close(db));
    check_file_keys(backup, 3000);
}

/* Nobody is to read a copy who may not read the store, whatever the umask. */
static void permitted_as_the_store(void **state)
{
    (void)state;
    static const mode_t modes[] = {0600, 0640, 0444}, copies[] = {0600, 0640, 0644};
    const char *path = support_path("permitted.fkv"), *backup = support_path("permitted.backup");
    const char *repaired = support_path("repaired.fkv");
    const char *const made[] = {backup, repaired, support_path("repaired.fkv-wal")};
    mode_t mask = umask(022);
    assert_ok(fkv_close(small_store(path, 0)));
    bool given = geteuid() == 0 && chown(path, 65534, 65534) == 0;
    for (int i = 0; i < 3; i++) {
        fkv *db;
        fkv_options options;
        fkv_options_init(&options);
        options.flags = FKV_OPEN_READ_ONLY;
        assert_int_equal(chmod(path, modes[i]), 0);
        assert_ok(fkv_open(path, &options, &db));
        assert_ok(fkv_backup(db, backup, NULL));
        assert_ok(fkv_close(db));
        assert_ok(fkv_repair(path, repaired, NULL, NULL, 0));
        for (int m = 0; m < 3; m++) {
            struct stat stat_of;
            assert_int_equal(stat(made[m], &stat_of), 0);
            assert_int_equal(stat_of.st_mode & 0777, copies[i]);
            assert_true(!given || (stat_of.st_uid == 65534 && stat_of.st_gid == 65534));
            unlink(made[m]);
        }
    }
    umask(mask);
}

/* ---------------------------------------------------------------- damage */

/* The first place of these bytes in a file, from an offset on. */
static off_t find_bytes(int fd, off_t from, const void *bytes, size_t count)
{
    uint8_t *all = malloc(SECTOR_BYTES + count);
    off_t found = -1;
    for (; found < 0; from += (off_t)SECTOR_BYTES) {
        ssize_t have = pread(fd, all, SECTOR_BYTES + count, from);
        if (have < (ssize_t)count)
            break;
        const uint8_t *at = memmem(all, (size_t)have, bytes, count);
        if (at)
            found = from + (at - all);
    }
    free(all);
    return found;
}

/* And says so in these words. */
static void backup_is_damaged(const char *path, unsigned flags, const char *words)
{
    fkv *db;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    const char *backup = support_path("damage.backup");
    assert_ok(fkv_open(path, &options, &db));
    assert_error(fkv_backup(db, backup, NULL), FKV_DAMAGED);
    assert_true(strstr(fkv_error_detail(db), words) != NULL);
    no_trace_of(backup);
    assert_ok(fkv_close(db));
}

static void damaged_record(void **state)
{
    (void)state;
    const char *path = support_path("damage.fkv");
    fkv *db = small_store(path, 0);
    uint32_t key = 1234;
    assert_ok(fkv_put(db, &key, sizeof key, "needle in a haystack", 20));
    assert_ok(fkv_close(db));
    int fd = open(path, O_RDWR);
    off_t at = find_bytes(fd, SECTOR_BYTES, "needle in a haystack", 20);
    assert_true(at > 0);
    assert_int_equal(pwrite(fd, "N", 1, at), 1);
    close(fd);
    backup_is_damaged(path, 0, "no whole record");
    backup_is_damaged(path, FKV_NO_VERIFY, "no whole record");
    backup_is_damaged(path, FKV_OPEN_READ_ONLY, "no whole record");
    backup_is_damaged(path, FKV_READ_WITHOUT_MAPPING, "no whole record");
}

/* A dead record whose length is damaged, so that exactly the live one after it is walked over. */
static void damaged_length(void **state)
{
    (void)state;
    const char *path = support_path("length.fkv");
    fkv *db;
    assert_ok(fkv_open(path, NULL, &db));
    char value[100] = "the dead one";
    assert_ok(fkv_put(db, "a", 1, value, sizeof value));
    assert_ok(fkv_put(db, "b", 1, value, sizeof value));
    assert_ok(fkv_put(db, "c", 1, value, sizeof value));
    assert_ok(fkv_delete(db, "a", 1));
    assert_ok(fkv_close(db));
    int fd = open(path, O_RDWR);
    struct format_record header = {.value_bytes = sizeof value, .key_bytes = 1, .kind = 1};
    size_t skip = sizeof header.checksum;
    uint8_t wanted[RECORD_HEADER_BYTES + 2];
    memcpy(wanted, &header, sizeof header);
    memcpy(wanted + sizeof header, "at", 2);
    off_t at = find_bytes(fd, SECTOR_BYTES, wanted + skip, sizeof wanted - skip);
    assert_true(at > 0);
    uint32_t bytes = 2 * record_cells(record_bytes(1, sizeof value)) * (uint32_t)CELL_BYTES -
                     (uint32_t)RECORD_HEADER_BYTES - 1;
    assert_int_equal(pwrite(fd, &bytes, sizeof bytes, at), sizeof bytes);
    close(fd);
    backup_is_damaged(path, 0, "1 keys and 0 pieces of values found, of 2");
}

/* A number of keys behind right checksums that as many keys have no room for in memory, nor in 64
 * bits their bytes. */
static void damaged_count(void **state)
{
    (void)state;
    const char *path = support_path("count.fkv");
    fkv_close(small_store(path, 0));
    for (unsigned bit = 40; bit < 64; bit++) {
        int fd = open(path, O_RDWR);
        for (off_t at = 0; at < 2 * (off_t)PAGE_BYTES; at += (off_t)PAGE_BYTES) {
            struct format_header header;
            assert_int_equal(pread(fd, &header, sizeof header, at), sizeof header);
            header.keys = 1ull << bit;
            header.checksum = header_checksum(&header);
            assert_int_equal(pwrite(fd, &header, sizeof header, at), sizeof header);
        }
        close(fd);
        backup_is_damaged(path, FKV_OPEN_READ_ONLY, "keys and 0 pieces of values found, of");
    }
}

/* A sector of a large value; a piece; the head. */
static void damaged_large_value(void **state)
{
    (void)state;
    const char *path = support_path("large.fkv");
    static uint8_t value[3 * 1048484 + 100000];
    struct rng rng = rng_make(8);
    rng_fill(&rng, value, sizeof value);
    static const size_t places[] = {5, 1048484 + 77777, 3 * 1048484 + 50, 3 * 1048484 + 90000};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        fkv *db;
        remove_store(path);
        assert_ok(fkv_open(path, NULL, &db));
        assert_ok(fkv_put(db, "key", 3, value, sizeof value));
        assert_ok(fkv_close(db));
        int fd = open(path, O_RDWR);
        off_t at = find_bytes(fd, SECTOR_BYTES, value + places[i], 16);
        assert_true(at > 0);
        uint8_t flipped = value[places[i]] ^ 1;
        assert_int_equal(pwrite(fd, &flipped, 1, at), 1);
        close(fd);
        backup_is_damaged(path, 0, i < 2 ? "piece" : "no whole record");
        backup_is_damaged(path, FKV_NO_VERIFY, i < 2 ? "piece" : "no whole record");
    }
}

/* ---------------------------------------------------------------- the limit */

static void pace_is_kept(void **state)
{
    (void)state;
    const uint64_t second = 1000000000, mib = 1 << 20;
    struct pace none = {0}, pace = {.bytes_per_second = 10 * mib};
    assert_int_equal(pace_wait_ns(&none, 5, mib), 0);
    /* Nothing was done for long: 100 ms of that are to spare, which is 1 MiB. */
    uint64_t now = 1000 * second;
    assert_int_equal(pace_wait_ns(&pace, now, mib), 0);
    assert_int_equal(pace_wait_ns(&pace, now, mib), second / 10);
    assert_int_equal(pace_wait_ns(&pace, now, 2 * mib), 3 * (second / 10));
    /* To ask again costs nothing, and time that passes is not asked for. */
    assert_int_equal(pace_wait_ns(&pace, now + second / 10, 0), 2 * (second / 10));
    assert_int_equal(pace_wait_ns(&pace, now + second, 0), 0);
    /* Whoever does as he is told, and wakes late now and then, is never above it over a second. */
    struct rng rng = rng_make(3);
    uint64_t began = now += 10 * second, bytes = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t some = rng_below(&rng, 2 * mib);
        now += rng_below(&rng, second / 100);
        now += pace_wait_ns(&pace, now, some);
        now += rng_below(&rng, 20) == 0 ? rng_below(&rng, second / 5) : 0;
        bytes += some;
        assert_true(bytes <=
                    (now - began) / 1000 * pace.bytes_per_second / (second / 1000) + 2 * mib);
    }
    /* The slowest, over days. */
    struct pace slow = {.bytes_per_second = 1};
    now = 7;
    for (int i = 0; i < 100; i++) {
        uint64_t wait = pace_wait_ns(&slow, now, mib);
        assert_true(wait >= (mib - 1) * second);
        now += wait;
    }
    struct pace fast = {.bytes_per_second = UINT64_MAX};
    assert_int_equal(pace_wait_ns(&fast, second, mib), 0);
}

/* With a limit that allows a byte a second, the first wait is left by cancelling. */
static int cancel_second(void *context, uint64_t done, uint64_t total)
{
    (void)done;
    (void)total;
    return ++*(int *)context == 2;
}

static void a_wait_can_be_cancelled(void **state)
{
    (void)state;
    fkv *db = small_store(support_path("slow.fkv"), 0);
    int calls = 0;
    fkv_backup_options options;
    fkv_backup_options_init(&options);
    options.bytes_per_second = 1;
    options.progress = cancel_second;
    options.context = &calls;
    assert_error(fkv_backup(db, support_path("slow.backup"), &options), FKV_CANCELLED);
    no_trace_of(support_path("slow.backup"));
    calls = 2;
    options.bytes_per_second = 1ull << 40;
    assert_ok(fkv_backup(db, support_path("slow.backup"), &options));
    assert_ok(fkv_close(db));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_number_of_keys),
        cmocka_unit_test(space_is_near_live),
        cmocka_unit_test(long_keys_and_values),
        cmocka_unit_test(arguments),
        cmocka_unit_test(descriptors),
        cmocka_unit_test(after_fork),
        cmocka_unit_test(progress_and_cancelling),
        cmocka_unit_test(left_files),
        cmocka_unit_test(left_files_raced_for),
        cmocka_unit_test(read_only),
        cmocka_unit_test(permitted_as_the_store),
        cmocka_unit_test(damaged_record),
        cmocka_unit_test(damaged_length),
        cmocka_unit_test(damaged_count),
        cmocka_unit_test(damaged_large_value),
        cmocka_unit_test(pace_is_kept),
        cmocka_unit_test(a_wait_can_be_cancelled),
        cmocka_unit_test(model_plain),
        cmocka_unit_test(model_digest),
        cmocka_unit_test(model_without_threads),
        cmocka_unit_test(model_without_mapping),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
