/*
 * api_support.h: what the tests of the public API share: a directory of their own, values that can
 * be recognised, hashes of files, child processes, time limits.
 *
 * Environment: TMPDIR (where the stores go; default /tmp), FKV_TEST_SEED (default: a fixed one, or
 * of the clock in long mode; printed), FKV_TEST_LONG=1 and FKV_TEST_SECONDS=n (long mode).
 */
#ifndef FKV_API_SUPPORT_H
#define FKV_API_SUPPORT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "bytes.h"
#include "checksum.h"
#include "fkv.h"
#include "sanitized.h"

#ifdef __SANITIZE_THREAD__
/* liburcu is not built with ThreadSanitizer: what its functions do to order memory among each other
 * (callbacks queued, run and freed) is out of sight. What they mean for fkv is in src/rcu.h. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "race:liburcu-bp.so\n";
}
#endif

/* ---------------------------------------------------------------- results */

/* Fail unless an fkv call succeeded, and say why it did not. */
#define must(call) expect(call, FKV_OK)
#define expect(call, wanted)                                                                \
    do {                                                                                    \
        enum fkv_error got_ = (call), wanted_ = (wanted);                                   \
        if (got_ != wanted_)                                                                \
            fail_msg("%s: %s (%d; %s), and not %s (%d)", #call, fkv_error_text(got_), got_, \
                     fkv_error_detail(NULL), fkv_error_text(wanted_), wanted_);             \
    } while (0)

/* For child processes and threads, where cmocka's assertions cannot be used. */
#define insist(condition)                                                               \
    do {                                                                                \
        if (!(condition)) {                                                             \
            fprintf(stderr, "%s:%d: %s does not hold (errno %d)\n", __FILE__, __LINE__, \
                    #condition, errno);                                                 \
            fflush(stderr);                                                             \
            _exit(99);                                                                  \
        }                                                                               \
    } while (0)
#define insist_ok(call)                                                        \
    do {                                                                       \
        enum fkv_error got_ = (call);                                          \
        if (got_ != FKV_OK) {                                                  \
            fprintf(stderr, "%s:%d: %s: %s (%d)\n", __FILE__, __LINE__, #call, \
                    fkv_error_text(got_), got_);                               \
            fflush(stderr);                                                    \
            _exit(99);                                                         \
        }                                                                      \
    } while (0)

/* ---------------------------------------------------------------- chance, time, modes */

static inline uint64_t next_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15ull;
    return checksum_mix(*state);
}

static inline uint64_t random_below(uint64_t *state, uint64_t end)
{
    return (uint64_t)((unsigned __int128)next_random(state) * end >> 64);
}

/* What took so long hangs, on any machine: for alarms, and before CTest gives up. */
enum { HANG_SECONDS = 900 };

static inline double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static inline uint64_t environment_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

static inline bool long_mode(void)
{
    return environment_number("FKV_TEST_LONG", 0) != 0;
}

/* How long a test of random operations runs: `normal`, or in long mode what is asked for, or for
 * ever. */
static inline double seconds_to_run(double normal)
{
    return long_mode() ? (double)environment_number("FKV_TEST_SECONDS", UINT32_MAX) : normal;
}

/* Printed, so that a failure can be had again. What passed here is to pass elsewhere: new seeds are
 * for the long run. */
static inline uint64_t test_seed(const char *test)
{
    enum { SEED_OF_NORMAL_RUNS = 20240229 };
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t of_clock = checksum_mix((uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec);
    uint64_t seed =
        environment_number("FKV_TEST_SEED", long_mode() ? of_clock >> 32 : SEED_OF_NORMAL_RUNS);
    print_message("%s: FKV_TEST_SEED=%" PRIu64 "\n", test, seed);
    return seed;
}

/* ---------------------------------------------------------------- places */

struct place {
    char directory[PATH_MAX / 2];
    char path[PATH_MAX];     /* of a store that is not there yet */
    char log_path[PATH_MAX]; /* of its log */
    char other[PATH_MAX];    /* of a second store */
};

static inline void place_name(struct place *place)
{
    snprintf(place->path, sizeof place->path, "%s/store.fkv", place->directory);
    snprintf(place->log_path, sizeof place->log_path, "%s/store.fkv-wal", place->directory);
    snprintf(place->other, sizeof place->other, "%s/other.fkv", place->directory);
}

static inline int place_make_below(void **state, const char *below)
{
    struct place *place = calloc(1, sizeof *place);
    snprintf(place->directory, sizeof place->directory, "%s/fkv-test-XXXXXX", below);
    if (!mkdtemp(place->directory))
        return -1;
    place_name(place);
    *state = place;
    return 0;
}

static inline int place_make(void **state)
{
    const char *tmp = getenv("TMPDIR");
    return place_make_below(state, tmp ? tmp : "/tmp");
}

/* On a file system in memory, if there is one: where a sync costs nothing. */
static inline int place_make_in_memory(void **state)
{
    struct statvfs space;
    if (access("/dev/shm", W_OK) == 0 && statvfs("/dev/shm", &space) == 0 &&
        (uint64_t)space.f_bavail * space.f_frsize > GIB)
        return place_make_below(state, "/dev/shm");
    return place_make(state);
}

/* Removes the files in a directory, and it. Directories in it must be empty. */
static inline void remove_directory(const char *path)
{
    DIR *directory = opendir(path);
    if (!directory)
        return;
    for (struct dirent *entry; (entry = readdir(directory));) {
        char name[PATH_MAX + NAME_MAX];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            remove(name);
    }
    closedir(directory);
    rmdir(path);
}

static inline int place_drop(void **state)
{
    struct place *place = *state;
    remove_directory(place->directory);
    free(place);
    return 0;
}

static inline void remove_store(const struct place *place)
{
    unlink(place->path);
    unlink(place->log_path);
}

/* FKV_TEST_FILTER=test_some*: only those. */
#define run_all(tests) \
    (cmocka_set_test_filter(getenv("FKV_TEST_FILTER")), cmocka_run_group_tests(tests, NULL, NULL))

/* A test that runs in a place of its own. */
#define in_place(function) cmocka_unit_test_setup_teardown(function, place_make, place_drop)

/* ---------------------------------------------------------------- stores */

static inline enum fkv_error try_open(const char *path, unsigned flags, fkv **db)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    return fkv_open(path, &options, db);
}

static inline fkv *open_with(const char *path, unsigned flags)
{
    fkv *db = NULL;
    must(try_open(path, flags, &db));
    assert_non_null(db);
    return db;
}

/* A store whose log is so small that checkpoints and rounds of the log come often. */
static inline enum fkv_error try_open_small_log(const char *path, unsigned flags, fkv **db)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = 1u << 20;
    return fkv_open(path, &options, db);
}

/* The same, with so little memory for the index that its pages come and go. */
static inline enum fkv_error try_open_limited(const char *path, unsigned flags,
                                              uint64_t index_memory_max, fkv **db)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = 1u << 20;
    options.index_memory_max = index_memory_max;
    return fkv_open(path, &options, db);
}

static inline enum fkv_error put_text(fkv *db, const char *key, const char *value)
{
    return fkv_put(db, key, strlen(key), value, strlen(value));
}

static inline void assert_text(fkv *db, const char *key, const char *value)
{
    char buffer[256];
    size_t bytes = 0;
    must(fkv_get(db, key, strlen(key), buffer, sizeof buffer, &bytes));
    assert_int_equal(bytes, strlen(value));
    assert_memory_equal(buffer, value, bytes);
}

static inline void assert_absent(fkv *db, const char *key)
{
    char buffer[8];
    size_t bytes = 12345;
    expect(fkv_get(db, key, strlen(key), buffer, sizeof buffer, &bytes), FKV_NOT_FOUND);
    expect(fkv_exists(db, key, strlen(key)), FKV_NOT_FOUND);
    assert_int_equal(bytes, 12345);
}

static inline fkv_stats stats_of(fkv *db)
{
    fkv_stats stats;
    must(fkv_get_stats(db, &stats, sizeof stats));
    return stats;
}

/* ---------------------------------------------------------------- values */

/* Bytes that only this seed and length have. */
static inline void value_fill(uint8_t *to, size_t bytes, uint64_t seed)
{
    uint64_t state = checksum_mix(seed + 1) ^ bytes;
    while (bytes > 0) {
        uint64_t word = next_random(&state);
        size_t step = bytes < sizeof word ? bytes : sizeof word;
        memcpy(to, &word, step);
        to += step;
        bytes -= step;
    }
}

static inline bool value_is(const uint8_t *value, size_t bytes, uint64_t seed)
{
    uint64_t state = checksum_mix(seed + 1) ^ bytes;
    while (bytes > 0) {
        uint64_t word = next_random(&state);
        size_t step = bytes < sizeof word ? bytes : sizeof word;
        if (memcmp(value, &word, step) != 0)
            return false;
        value += step;
        bytes -= step;
    }
    return true;
}

static inline enum fkv_error put_value(fkv *db, uint64_t key, size_t bytes, uint64_t seed)
{
    uint8_t *value = malloc(bytes + 1);
    value_fill(value, bytes, seed);
    enum fkv_error error = fkv_put(db, &key, sizeof key, value, bytes);
    free(value);
    return error;
}

/* Read a value into memory of its own length; NULL if that fails. */
static inline uint8_t *get_value(fkv *db, const void *key, size_t key_bytes, size_t *bytes,
                                 enum fkv_error *error)
{
    *error = fkv_value_size(db, key, key_bytes, bytes);
    if (*error)
        return NULL;
    uint8_t *value = malloc(*bytes + 1);
    *error = fkv_get(db, key, key_bytes, value, *bytes, bytes);
    if (!*error)
        return value;
    free(value);
    return NULL;
}

static inline void assert_value(fkv *db, uint64_t key, size_t bytes, uint64_t seed)
{
    size_t have = 0;
    enum fkv_error error;
    uint8_t *value = get_value(db, &key, sizeof key, &have, &error);
    if (error)
        fail_msg("key %" PRIu64 ": %s; %s", key, fkv_error_text(error), fkv_error_detail(db));
    assert_int_equal(have, bytes);
    if (!value_is(value, bytes, seed))
        fail_msg("key %" PRIu64 " of %zu bytes has another value", key, bytes);
    free(value);
}

/* ---------------------------------------------------------------- files */

static inline uint64_t file_bytes(const char *path)
{
    struct stat stat_;
    return stat(path, &stat_) == 0 ? (uint64_t)stat_.st_size : 0;
}

static inline bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static inline void file_write(const char *path, const void *bytes, size_t count)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    insist(fd >= 0 && write(fd, bytes, count) == (ssize_t)count);
    close(fd);
}

static inline uint8_t *file_read(const char *path, size_t *count)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    insist(fd >= 0);
    *count = (size_t)file_bytes(path);
    uint8_t *bytes = malloc(*count + 1);
    for (size_t done = 0; done < *count;) {
        ssize_t step = read(fd, bytes + done, *count - done);
        insist(step > 0);
        done += (size_t)step;
    }
    close(fd);
    return bytes;
}

static inline void file_copy(const char *from, const char *to)
{
    size_t count;
    uint8_t *bytes = file_read(from, &count);
    unlink(to);
    file_write(to, bytes, count);
    free(bytes);
}

/* Change bytes in the middle of a file. */
static inline void file_patch(const char *path, uint64_t offset, const void *bytes, size_t count)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    insist(fd >= 0 && pwrite(fd, bytes, count, (off_t)offset) == (ssize_t)count);
    close(fd);
}

/* A hash of a file's length and contents; 0 if it is not there. */
static inline uint64_t file_hash(const char *path)
{
    if (!file_exists(path))
        return 0;
    size_t count;
    uint8_t *bytes = file_read(path, &count);
    uint64_t hash = checksum64(bytes, count) ^ checksum_mix(count + 1);
    free(bytes);
    return hash;
}

/* ---------------------------------------------------------------- processes */

/* Run `work` in a child process and wait; returns its exit code, or 1000 and the signal. The child
 * begins without threads: call this while no store is open. */
static inline int run_child(void (*work)(void *context), void *context)
{
    fflush(stdout);
    fflush(stderr);
    pid_t child = fork();
    insist(child >= 0);
    if (child == 0) {
        work(context);
        _exit(0);
    }
    int status = 0;
    insist(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

#endif
