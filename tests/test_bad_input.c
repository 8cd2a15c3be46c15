/*
 * test_bad_input.c: files and calls that must be refused, each with an error of its own, and with
 * every file left byte for byte as it was. (NULL and sizes: test_api.c.)
 */
#include "api_support.h"

#include <grp.h>
#include <linux/fs.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "format.h"
#include "os_sim.h"
#include "store.h"

/* ---------------------------------------------------------------- refusing */

/* Opening must fail so, say why, and change neither the store nor its log. */
static void assert_refused_with(const struct place *place, unsigned flags, enum fkv_error error)
{
    uint64_t file = file_hash(place->path), log = file_hash(place->log_path);
    bool has_log = file_exists(place->log_path), has_file = file_exists(place->path);
    fkv *db = (fkv *)(uintptr_t)place;
    enum fkv_error got = try_open(place->path, flags, &db);
    if (got != error)
        fail_msg("fkv_open with flags %u: %s (%s), and not %s", flags, fkv_error_text(got),
                 fkv_error_detail(NULL), fkv_error_text(error));
    assert_null(db);
    assert_true(strlen(fkv_error_detail(NULL)) > 0);
    assert_int_equal(file_exists(place->path), has_file);
    assert_int_equal(file_exists(place->log_path), has_log);
    assert_int_equal(file_hash(place->path), file);
    assert_int_equal(file_hash(place->log_path), log);
}

static void assert_refused(const struct place *place, enum fkv_error error)
{
    assert_refused_with(place, 0, error);
    assert_refused_with(place, FKV_NO_THREAD, error);
    assert_refused_with(place, FKV_NO_CREATE, error);
    assert_refused_with(place, FKV_OPEN_READ_ONLY, error);
}

/* A closed store of some keys; more than a sector of them. */
static void make_store(const char *path)
{
    fkv *db = open_with(path, 0);
    for (uint64_t key = 0; key < 300; key++)
        must(put_value(db, key, 5000, key));
    must(put_value(db, 1000, 2500000, 1000));
    must(fkv_close(db));
}

static void verify_store(const char *path)
{
    fkv *db = open_with(path, 0);
    for (uint64_t key = 0; key < 300; key++)
        assert_value(db, key, 5000, key);
    assert_value(db, 1000, 2500000, 1000);
    must(fkv_close(db));
}

/* A store that was not closed: its log has commits that are not in the file. */
static void make_unclosed(void *path)
{
    fkv *db = NULL;
    insist_ok(fkv_open(path, NULL, &db));
    for (uint64_t key = 0; key < 300; key++)
        insist_ok(put_value(db, key, 5000, key));
    insist_ok(put_value(db, 1000, 2500000, 1000));
    insist_ok(fkv_sync(db));
    insist_ok(put_value(db, 2000, 10, 2000));
    kill(getpid(), SIGKILL);
}

static void leave_unclosed(const char *path)
{
    assert_int_equal(run_child(make_unclosed, (void *)(uintptr_t)path), 1000 + SIGKILL);
}

/* ---------------------------------------------------------------- what is no store */

static void test_paths(void **state)
{
    struct place *place = *state;
    fkv *db = NULL;
    expect(fkv_open("", NULL, &db), FKV_INVALID);
    assert_true(strlen(fkv_error_detail(NULL)) > 0);
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/none/store.fkv", place->directory);
    expect(fkv_open(path, NULL, &db), FKV_NOT_EXIST);
    file_write(place->other, "x", 1);
    snprintf(path, sizeof path, "%s/store.fkv", place->other); /* below a file */
    expect(fkv_open(path, NULL, &db), FKV_NOT_EXIST);
    char *longest = malloc(100000);
    memset(longest, 'a', 99999);
    longest[99999] = 0;
    for (int bytes = 99999; bytes > 200; bytes = bytes > 5000 ? 4096 : bytes > 300 ? 256 : 0) {
        longest[bytes] = 0;
        expect(fkv_open(longest, NULL, &db), FKV_NOT_EXIST);
        assert_true(strstr(fkv_error_detail(NULL), "too long") != NULL);
    }
    free(longest);
    assert_null(db);
}

static void test_directory(void **state)
{
    struct place *place = *state;
    fkv *db = NULL;
    const unsigned flags[] = {0, FKV_NO_CREATE, FKV_OPEN_READ_ONLY};
    for (int i = 0; i < 3; i++)
        expect(try_open(place->directory, flags[i], &db), FKV_IS_DIRECTORY);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/", place->directory);
    for (int i = 0; i < 3; i++)
        expect(try_open(path, flags[i], &db), FKV_IS_DIRECTORY);
    snprintf(path, sizeof path, "%s-wal", place->directory);
    assert_false(file_exists(path));
    make_store(place->path); /* and where the log should be */
    assert_int_equal(rename(place->log_path, place->other), 0);
    assert_int_equal(mkdir(place->log_path, 0755), 0);
    uint64_t hash = file_hash(place->path);
    for (int i = 0; i < 3; i++)
        expect(try_open(place->path, flags[i], &db), FKV_IS_DIRECTORY);
    assert_null(db);
    assert_int_equal(file_hash(place->path), hash);
    assert_int_equal(rmdir(place->log_path), 0);
    assert_int_equal(rename(place->other, place->log_path), 0);
    verify_store(place->path);
}

/* Opening these must not wait either. */
static void test_devices(void **state)
{
    struct place *place = *state;
    char named_pipe[PATH_MAX], named_socket[PATH_MAX];
    snprintf(named_pipe, sizeof named_pipe, "%s/pipe", place->directory);
    snprintf(named_socket, sizeof named_socket, "%s/socket", place->directory);
    assert_int_equal(mkfifo(named_pipe, 0644), 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%.100s", named_socket);
    int listening = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(listening, (struct sockaddr *)&address, sizeof address), 0);
    make_store(place->other);
    fkv *other = open_with(place->other, FKV_OPEN_READ_ONLY);
    const char *const paths[] = {named_pipe, named_socket, "/dev/null", "/dev/zero", "/dev/full"};
    alarm(HANG_SECONDS);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        const unsigned flags[] = {0, FKV_NO_CREATE, FKV_OPEN_READ_ONLY, FKV_NO_THREAD};
        for (int f = 0; f < 4; f++) {
            fkv *db = other;
            expect(try_open(paths[i], flags[f], &db), FKV_NOT_A_STORE);
            assert_true(strstr(fkv_error_detail(NULL), "not a file") != NULL);
            assert_null(db);
        }
        fkv *db = NULL;
        expect(try_open(paths[i], FKV_EXCLUSIVE, &db), FKV_EXISTS);
        expect(fkv_check_file(paths[i], NULL, NULL, 0), FKV_NOT_A_STORE);
        expect(fkv_repair(paths[i], place->path, NULL, NULL, 0), FKV_NOT_A_STORE);
        expect(fkv_repair(place->other, paths[i], NULL, NULL, 0), FKV_EXISTS);
        expect(fkv_backup(other, paths[i], NULL), FKV_EXISTS);
        assert_true(file_exists(paths[i]));
        char log[PATH_MAX + 8];
        snprintf(log, sizeof log, "%s-wal", paths[i]);
        assert_false(file_exists(log));
    }
    assert_false(file_exists(place->path));
    must(fkv_close(other));
    assert_int_equal(rename(named_pipe, place->log_path), 0); /* where the log should be */
    fkv *db = NULL;
    expect(try_open(place->path, 0, &db), FKV_NOT_A_STORE);
    assert_false(file_exists(place->path));
    assert_int_equal(rename(place->other, place->path), 0);
    expect(try_open(place->path, 0, &db), FKV_NOT_A_STORE);
    expect(try_open(place->path, FKV_OPEN_READ_ONLY, &db), FKV_NOT_A_STORE);
    assert_true(file_exists(place->log_path));
    alarm(0);
    close(listening);
}

static void test_not_a_store(void **state)
{
    struct place *place = *state;
    const char text[] = "Dear diary,\ntoday I opened a file that was not mine.\n";
    file_write(place->path, text, strlen(text));
    assert_refused(place, FKV_NOT_A_STORE);
    file_write(place->path, "x", 1);
    assert_refused(place, FKV_NOT_A_STORE);
    file_write(place->path, "\0\0\0\0\0\0\0\0x", 9);
    assert_refused(place, FKV_NOT_A_STORE);
    const size_t sizes[] = {7,    8,    100,  367,    368,     369,     4096,   5000,
                            8191, 8192, 8193, 100000, 1048576, 1048577, 3000000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *bytes = malloc(sizes[i]);
        value_fill(bytes, sizes[i], sizes[i]);
        file_write(place->path, bytes, sizes[i]);
        assert_refused(place, FKV_NOT_A_STORE);
        memset(bytes, 0, sizes[i]);
        bytes[sizes[i] - 1] = 1; /* zeros, and something at the end */
        file_write(place->path, bytes, sizes[i]);
        assert_refused(place, FKV_NOT_A_STORE);
        free(bytes);
    }
    uint8_t *zeros = calloc(1, 3 * MIB); /* more than the beginning of a store that is created */
    file_write(place->path, zeros, 3 * MIB);
    assert_refused(place, FKV_NOT_A_STORE);
    file_write(place->path, zeros, MIB);
    assert_refused(place, FKV_NOT_A_STORE);
    free(zeros);
    assert_false(file_exists(place->log_path));
}

/* An empty file is no store, but may become one (mkstemp makes such files). */
static void test_empty_file(void **state)
{
    struct place *place = *state;
    file_write(place->path, "", 0);
    assert_refused_with(place, FKV_NO_CREATE, FKV_NOT_A_STORE);
    assert_refused_with(place, FKV_OPEN_READ_ONLY, FKV_NOT_A_STORE);
    assert_refused_with(place, FKV_EXCLUSIVE, FKV_EXISTS);
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "a", "1"));
    must(fkv_close(db));
    db = open_with(place->path, 0);
    assert_text(db, "a", "1");
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- headers */

static void read_headers(const char *path, struct format_header headers[2])
{
    size_t count;
    uint8_t *bytes = file_read(path, &count);
    memcpy(&headers[0], bytes, sizeof headers[0]);
    memcpy(&headers[1], bytes + PAGE_BYTES, sizeof headers[1]);
    free(bytes);
}

/* Put back with checksums that are right. */
static void write_headers(const char *path, struct format_header headers[2])
{
    for (int i = 0; i < 2; i++) {
        headers[i].checksum = checksum64(&headers[i], offsetof(struct format_header, checksum));
        file_patch(path, (uint64_t)i * PAGE_BYTES, &headers[i], sizeof headers[i]);
    }
}

static void test_unknown_format(void **state)
{
    struct place *place = *state;
    make_store(place->path);
    file_copy(place->path, place->other);
    struct format_header headers[2], changed[2];
    read_headers(place->path, headers);
    assert_int_equal(headers[0].version, FORMAT_VERSION);

    memcpy(changed, headers, sizeof headers);
    changed[0].version = changed[1].version = FORMAT_VERSION + 1;
    write_headers(place->path, changed);
    assert_refused(place, FKV_UNKNOWN_FORMAT);

    memcpy(changed, headers, sizeof headers);
    changed[0].version = changed[1].version = FORMAT_VERSION - 1;
    write_headers(place->path, changed);
    assert_refused(place, FKV_UNKNOWN_FORMAT);

    memcpy(changed, headers, sizeof headers); /* upgraded a moment ago: one copy is still old */
    changed[changed[1].sequence > changed[0].sequence].version = FORMAT_VERSION + 7;
    write_headers(place->path, changed);
    assert_refused(place, FKV_UNKNOWN_FORMAT);

    memcpy(changed, headers, sizeof headers); /* and a checksum of another kind */
    changed[0].version = changed[1].version = 1000;
    file_patch(place->path, 0, &changed[0], sizeof changed[0]);
    file_patch(place->path, PAGE_BYTES, &changed[1], sizeof changed[1]);
    assert_refused(place, FKV_UNKNOWN_FORMAT);

    memcpy(changed, headers, sizeof headers); /* a feature that is unknown here */
    changed[0].features = changed[1].features = 1u << 17;
    write_headers(place->path, changed);
    assert_refused(place, FKV_UNKNOWN_FORMAT);

    file_copy(place->other, place->path);
    verify_store(place->path);
}

static void test_damaged_headers(void **state)
{
    struct place *place = *state;
    make_store(place->path);
    struct format_header headers[2];
    read_headers(place->path, headers);
    headers[0].keys ^= 1;
    headers[1].keys ^= 1;
    file_patch(place->path, 0, &headers[0], sizeof headers[0]);
    file_patch(place->path, PAGE_BYTES, &headers[1], sizeof headers[1]);
    assert_refused(place, FKV_DAMAGED);
    headers[0].magic = headers[1].magic = 0;
    file_patch(place->path, 0, &headers[0], sizeof headers[0]);
    file_patch(place->path, PAGE_BYTES, &headers[1], sizeof headers[1]);
    assert_refused(place, FKV_NOT_A_STORE);
}

/* Whole headers, with checksums that are right, that say what cannot be. */
static void test_impossible_headers(void **state)
{
    struct place *place = *state;
    make_store(place->path);
    file_copy(place->path, place->other);
    struct format_header headers[2];
    read_headers(place->path, headers);
    int best = headers[1].sequence > headers[0].sequence;
    const size_t fields[] = {
        offsetof(struct format_header, sector_count), offsetof(struct format_header, tail_sector),
        offsetof(struct format_header, tail_cell),    offsetof(struct format_header, segments),
        offsetof(struct format_header, spaces),       offsetof(struct format_header, spaces) + 8,
        offsetof(struct format_header, spaces) + 16,  offsetof(struct format_header, spaces) + 20,
        offsetof(struct format_header, spaces) + 24,  offsetof(struct format_header, spaces) + 48,
        offsetof(struct format_header, spaces) + 64,  offsetof(struct format_header, spaces) + 72,
        offsetof(struct format_header, spaces) + 88,
    };
    const uint32_t values[] = {1, 3, 1000, 100000, 0x7fffffff, 0xffffffff};
    for (size_t f = 0; f < sizeof fields / sizeof *fields; f++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            struct format_header changed[2] = {headers[0], headers[1]};
            uint32_t before;
            memcpy(&before, (uint8_t *)&changed[best] + fields[f], sizeof before);
            if (before == values[v])
                continue;
            memcpy((uint8_t *)&changed[best] + fields[f], &values[v], sizeof values[v]);
            file_copy(place->other, place->path);
            write_headers(place->path, changed);
            fkv *db = NULL;
            enum fkv_error error = try_open(place->path, FKV_OPEN_READ_ONLY, &db);
            if (error) { /* refused, or else it must be harmless */
                assert_true(error == FKV_DAMAGED || error == FKV_TRUNCATED || error == FKV_FULL ||
                            error == FKV_NO_MEMORY);
                continue;
            }
            for (uint64_t key = 0; key < 300; key++) {
                uint8_t value[5000];
                error = fkv_get(db, &key, sizeof key, value, sizeof value, NULL);
                assert_true(error == FKV_OK || error == FKV_DAMAGED);
                assert_true(error || value_is(value, sizeof value, key));
            }
            must(fkv_close(db));
        }
}

/* The next frame where none can be: in the log's header, across it, or beyond all there is. */
static void test_impossible_log_offset(void **state)
{
    struct place *place = *state;
    const uint64_t offsets[] = {0, 8, 4097, 4100, (UINT64_C(1) << 40) + 8, UINT64_MAX - 7};
    leave_unclosed(place->path);
    struct format_header headers[2];
    read_headers(place->path, headers);
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        headers[0].log_offset = headers[1].log_offset = offsets[i];
        write_headers(place->path, headers);
        assert_refused(place, FKV_DAMAGED);
    }
}

/* ---------------------------------------------------------------- truncated files */

static void truncated_to(struct place *place, uint64_t bytes)
{
    file_copy(place->other, place->path);
    assert_int_equal(truncate(place->path, (off_t)bytes), 0);
    uint64_t hash = file_hash(place->path);
    fkv *db = NULL;
    enum fkv_error error = try_open(place->path, 0, &db);
    if (error != FKV_TRUNCATED)
        fail_msg("a store cut to %" PRIu64 " bytes: %s (%s)", bytes, fkv_error_text(error),
                 fkv_error_detail(NULL));
    assert_int_equal(file_hash(place->path), hash);
    expect(try_open(place->path, FKV_OPEN_READ_ONLY, &db), FKV_TRUNCATED);
    assert_int_equal(file_hash(place->path), hash);
}

static void test_truncated_file(void **state)
{
    struct place *place = *state;
    make_store(place->path);
    uint64_t log = file_hash(place->log_path);
    file_copy(place->path, place->other);
    struct format_header headers[2];
    read_headers(place->path, headers);
    uint64_t whole = headers[headers[1].sequence > headers[0].sequence].sector_count * SECTOR_BYTES;
    assert_true(whole > 4 * MIB);
    uint64_t random = 7;
    const uint64_t short_ones[] = {0,    1,    7,    8,    9,     100,     300,     367,    368,
                                   369,  1000, 4095, 4096, 4097,  4463,    4464,    4465,   5000,
                                   8191, 8192, 8193, 9000, 65536, 1048575, 1048576, 1048577};
    for (size_t i = 0; i < sizeof short_ones / sizeof *short_ones; i++)
        truncated_to(place, short_ones[i]);
    for (int i = 0; i < 20; i++)
        truncated_to(place, random_below(&random, whole));
    truncated_to(place, whole - 1);
    truncated_to(place, whole - PAGE_BYTES);
    truncated_to(place, whole - SECTOR_BYTES);
    assert_int_equal(file_hash(place->log_path), log);
    file_copy(place->other, place->path);
    verify_store(place->path);
}

/* Of a store that was not closed. What is cut off may all be in the log: then nothing is lost. */
static void test_truncated_unclosed_file(void **state)
{
    struct place *place = *state;
    leave_unclosed(place->path);
    file_copy(place->path, place->other);
    char log_copy[PATH_MAX];
    snprintf(log_copy, sizeof log_copy, "%s/log-copy", place->directory);
    file_copy(place->log_path, log_copy);
    uint64_t whole = file_bytes(place->path);
    uint64_t random = 8;
    for (int i = 0; i < 30; i++) {
        file_copy(place->other, place->path);
        file_copy(log_copy, place->log_path);
        uint64_t to = i < 10 ? (uint64_t)i * 400 : random_below(&random, whole);
        assert_int_equal(truncate(place->path, (off_t)to), 0);
        fkv *db = NULL;
        enum fkv_error error = try_open(place->path, 0, &db);
        if (error) {
            assert_true(error == FKV_TRUNCATED || error == FKV_DAMAGED);
            continue;
        }
        for (uint64_t key = 0; key < 300; key++)
            assert_value(db, key, 5000, key);
        assert_value(db, 1000, 2500000, 1000);
        assert_value(db, 2000, 10, 2000);
        must(fkv_close(db));
    }
}

/* ---------------------------------------------------------------- logs */

static void test_log_of_another_store(void **state)
{
    struct place *place = *state;
    char other_log[PATH_MAX + 8];
    snprintf(other_log, sizeof other_log, "%s-wal", place->other);
    make_store(place->path);
    make_store(place->other);
    assert_int_equal(rename(place->log_path, "/dev/null/x"), -1);
    file_copy(other_log, place->log_path);
    assert_refused(place, FKV_LOG_MISMATCH);
    verify_store(place->other);
    remove_store(place); /* and with commits in both */
    unlink(place->other);
    unlink(other_log);
    leave_unclosed(place->path);
    leave_unclosed(place->other);
    file_copy(other_log, place->log_path);
    assert_refused(place, FKV_LOG_MISMATCH);
    verify_store(place->other);
}

/* A log whose store is gone is somebody's data. No store is made beside it. */
static void test_log_without_store(void **state)
{
    struct place *place = *state;
    leave_unclosed(place->path);
    unlink(place->path);
    uint64_t hash = file_hash(place->log_path);
    fkv *db = NULL;
    expect(try_open(place->path, FKV_NO_CREATE, &db), FKV_NOT_EXIST);
    expect(try_open(place->path, 0, &db), FKV_LOG_MISMATCH);
    assert_null(db);
    assert_int_equal(file_hash(place->log_path), hash);
    assert_int_equal(file_bytes(place->path), 0);
}

/* Where nobody can say whether there is a log, no store is made either. */
static void test_log_that_cannot_be_opened(void **state)
{
    struct place *place = *state;
    fkv *db = NULL;
    assert_int_equal(mkdir(place->log_path, 0700), 0);
    expect(try_open(place->path, 0, &db), FKV_IS_DIRECTORY);
    assert_non_null(strstr(fkv_error_detail(NULL), place->log_path));
    assert_false(file_exists(place->path));
    assert_int_equal(rmdir(place->log_path), 0);
    assert_int_equal(symlink(place->log_path, place->log_path), 0); /* leads in a circle */
    expect(try_open(place->path, 0, &db), FKV_IO);
    assert_false(file_exists(place->path));
    file_write(place->path, "", 0); /* it was cut off, or never finished */
    expect(try_open(place->path, 0, &db), FKV_IO);
    assert_int_equal(file_bytes(place->path), 0);
    assert_int_equal(unlink(place->log_path), 0);
    must(fkv_close(open_with(place->path, 0)));
}

/* The medium cannot read the log of a store that is gone: nothing is put in its place. */
static void test_log_that_cannot_be_read(void **state)
{
    static const int errors[][2] = {
        {-EIO, FKV_IO}, {-EACCES, FKV_PERMISSION}, {-ENOMEM, FKV_NO_MEMORY}};
    (void)state;
    struct os_sim *sim = os_sim_new(NULL);
    struct fkv *db = NULL;
    uint64_t bytes;
    assert_int_equal(store_open(os_sim_os(sim), "store", NULL, &db), FKV_OK);
    assert_int_equal(fkv_put_with(db, "key", 3, "value", 5, FKV_SYNC), FKV_OK);
    assert_int_equal(store_close(db), FKV_OK);
    os_sim_settle(sim);
    assert_int_equal(os_sim_delete_file(sim, "store"), 0);
    for (size_t i = 0; i < 2 * sizeof errors / sizeof errors[0]; i++) {
        struct os_sim_fault fault = {.kinds = i % 2 ? OS_SIM_READ : OS_SIM_OPEN,
                                     .nth = 1,
                                     .error = errors[i / 2][0],
                                     .name_end = "-wal"};
        os_sim_fail(sim, &fault);
        assert_int_equal(store_open(os_sim_os(sim), "store", NULL, &db), errors[i / 2][1]);
        assert_int_equal(os_sim_file_size(sim, "store", &bytes), -ENOENT);
    }
    os_sim_fail(sim, NULL);
    assert_int_equal(store_open(os_sim_os(sim), "store", NULL, &db), FKV_LOG_MISMATCH);
    assert_int_equal(os_sim_open_files(sim), 0);
    os_sim_free(sim);
}

static void test_missing_log(void **state)
{
    struct place *place = *state;
    make_store(place->path); /* closed: the log held nothing */
    unlink(place->log_path);
    fkv *db = open_with(place->path, FKV_OPEN_READ_ONLY);
    assert_value(db, 1, 5000, 1);
    must(fkv_close(db));
    assert_false(file_exists(place->log_path));
    verify_store(place->path);
    remove_store(place);
    leave_unclosed(place->path);
    unlink(place->log_path);
    assert_refused(place, FKV_LOG_MISSING);
    file_write(place->log_path, "", 0);
    fkv *none = NULL;
    enum fkv_error error = try_open(place->path, 0, &none);
    assert_true(error == FKV_TRUNCATED || error == FKV_LOG_MISSING);
    assert_refused(place, error);
}

/* Cut and overwritten logs of a store that was not closed. Commits that had been synced, as the
 * log itself says, are all there or the store is refused. */
static void check_damaged_log(const struct place *place)
{
    uint64_t file = file_hash(place->path), log = file_hash(place->log_path);
    fkv *db = NULL;
    enum fkv_error error = try_open(place->path, FKV_OPEN_READ_ONLY, &db);
    if (error) {
        assert_true(error == FKV_TRUNCATED || error == FKV_DAMAGED || error == FKV_NOT_A_STORE ||
                    error == FKV_LOG_MISMATCH || error == FKV_UNKNOWN_FORMAT);
        assert_int_equal(try_open(place->path, 0, &db), error);
        if (file_hash(place->path) != file || file_hash(place->log_path) != log)
            fail_msg("refused, and changed: %s", fkv_error_text(error));
        return;
    }
    /* Without the last frame nothing says what had been synced: a whole prefix, then. */
    uint64_t keys = stats_of(db).keys;
    bool last = fkv_exists(db, &(uint64_t){2000}, 8) == FKV_OK;
    if (last)
        assert_int_equal(keys, 302);
    for (uint64_t key = 0; key < 300 && key < keys; key++)
        assert_value(db, key, 5000, key);
    must(fkv_close(db));
}

static void test_damaged_log(void **state)
{
    struct place *place = *state;
    leave_unclosed(place->path);
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s/log-copy", place->directory);
    file_copy(place->log_path, copy);
    file_copy(place->path, place->other);
    uint64_t whole = file_bytes(copy);
    uint64_t random = 9;
    for (int i = 0; i < 40; i++) {
        file_copy(copy, place->log_path);
        file_copy(place->other, place->path);
        uint64_t at = i < 10 ? (uint64_t)i * 11 : random_below(&random, whole);
        if (i % 2 == 0) {
            assert_int_equal(truncate(place->log_path, (off_t)at), 0);
        } else {
            uint8_t garbage[64];
            value_fill(garbage, sizeof garbage, at);
            file_patch(place->log_path, at, garbage, sizeof garbage);
        }
        check_damaged_log(place);
    }
    uint8_t *garbage = malloc(100000);
    value_fill(garbage, 100000, 1);
    file_copy(place->other, place->path);
    file_write(place->log_path, garbage, 100000);
    assert_refused(place, FKV_NOT_A_STORE);
    free(garbage);
}

static void make_unflushed(void *path)
{
    fkv *db = NULL;
    insist_ok(fkv_open(path, NULL, &db));
    for (uint64_t key = 0; key < 600; key++)
        insist_ok(put_value(db, key, 5000, key));
    insist_ok(fkv_sync(db));
    insist_ok(put_value(db, 2000, 10, 2000)); /* says that they have been synced */
    kill(getpid(), SIGKILL);
}

/* What the log's values were to be flushed to when the process died: a replay writes it, but not
 * one that ends at a damaged frame. */
static void test_damaged_log_of_unflushed_values(void **state)
{
    struct place *place = *state;
    assert_int_equal(run_child(make_unflushed, place->path), 1000 + SIGKILL);
    struct format_header headers[2];
    read_headers(place->path, headers);
    uint64_t bytes = file_bytes(place->path), log_bytes = file_bytes(place->log_path);
    uint64_t known = max_u64(headers[0].sector_count, headers[1].sector_count) * SECTOR_BYTES;
    assert_true(known > 0 && known < bytes);
    assert_int_equal(truncate(place->path, (off_t)known), 0);
    assert_int_equal(truncate(place->path, (off_t)bytes), 0);
    file_copy(place->log_path, place->other);
    uint8_t garbage[64];
    value_fill(garbage, sizeof garbage, 7);
    for (int i = 2; i < 6; i++) { /* of 3 MB */
        file_patch(place->log_path, (uint64_t)i * 500000, garbage, sizeof garbage);
        assert_refused(place, FKV_DAMAGED);
        file_copy(place->other, place->log_path);
    }
    assert_int_equal(file_bytes(place->log_path), log_bytes);
    fkv *db = open_with(place->path, FKV_NO_CREATE);
    for (uint64_t key = 0; key < 600; key++)
        assert_value(db, key, 5000, key);
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- permissions */

/* root may do everything: become nobody. */
static bool become_nobody(void)
{
    const struct passwd *nobody = getpwnam("nobody");
    return nobody && setgroups(0, NULL) == 0 &&
           setresgid(nobody->pw_gid, nobody->pw_gid, nobody->pw_gid) == 0 &&
           setresuid(nobody->pw_uid, nobody->pw_uid, nobody->pw_uid) == 0;
}

/* Nobody may not even be let into the directory that TMPDIR says. */
static bool may_be_refused_in(const struct place *place)
{
    return (geteuid() != 0 || become_nobody()) && access(place->directory, R_OK | X_OK) == 0;
}

static void open_as_nobody(void *context)
{
    const struct place *place = context;
    if (!may_be_refused_in(place))
        _exit(77);
    fkv *db = NULL;
    char fresh[PATH_MAX];
    /* 0444: it may be read only. */
    insist(try_open(place->path, 0, &db) == FKV_PERMISSION);
    insist(strlen(fkv_error_detail(NULL)) > 0);
    insist(try_open(place->path, FKV_NO_CREATE, &db) == FKV_PERMISSION);
    insist_ok(try_open(place->path, FKV_OPEN_READ_ONLY, &db));
    insist(fkv_exists(db, &(uint64_t){1}, 8) == FKV_OK);
    insist(fkv_put(db, "a", 1, "b", 1) == FKV_READ_ONLY);
    insist_ok(fkv_close(db));
    /* 0000 */
    insist(try_open(place->other, 0, &db) == FKV_PERMISSION);
    insist(try_open(place->other, FKV_OPEN_READ_ONLY, &db) == FKV_PERMISSION);
    insist(strlen(fkv_error_detail(NULL)) > 0);
    /* a directory where nothing may be created */
    snprintf(fresh, sizeof fresh, "%s/fresh.fkv", place->directory);
    insist(try_open(fresh, 0, &db) == FKV_PERMISSION);
    insist(try_open(fresh, FKV_NO_CREATE, &db) == FKV_NOT_EXIST);
}

static void test_permissions(void **state)
{
    struct place *place = *state;
    char other_log[PATH_MAX + 8];
    snprintf(other_log, sizeof other_log, "%s-wal", place->other);
    make_store(place->path);
    make_store(place->other);
    chmod(place->directory, 0555);
    chmod(place->path, 0444);
    chmod(place->log_path, 0444);
    chmod(place->other, 0);
    chmod(other_log, 0);
    uint64_t file = file_hash(place->path), log = file_hash(place->log_path);
    int code = run_child(open_as_nobody, place);
    chmod(place->directory, 0755);
    if (code == 77) {
        print_message("permissions are not tested: root, and no user 'nobody' who comes here\n");
        skip();
    }
    assert_int_equal(code, 0);
    assert_int_equal(file_hash(place->path), file);
    assert_int_equal(file_hash(place->log_path), log);
}

/* A log that was lost, or was not copied with a backup: it has all that is put, so nobody is to
 * read it who may not read the store, whatever the umask. */
static void test_log_is_permitted_as_the_store(void **state)
{
    static const mode_t modes[] = {0600, 0640, 0666};
    struct place *place = *state;
    struct stat log;
    mode_t mask = umask(022);
    make_store(place->path);
    bool given = geteuid() == 0 && chown(place->path, 65534, 65534) == 0;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        assert_int_equal(chmod(place->path, modes[i]), 0);
        assert_int_equal(unlink(place->log_path), 0);
        verify_store(place->path);
        assert_int_equal(stat(place->log_path, &log), 0);
        assert_int_equal(log.st_mode & 0777, modes[i]);
        if (given)
            assert_true(log.st_uid == 65534 && log.st_gid == 65534);
    }
    umask(mask);
}

/* However many threads may be started: the store is opened, and used, or that is said. (Liburcu
 * ends the process if it cannot start its own.) */
static void open_with_few_threads(void *context)
{
    const struct place *place = context;
    if (!may_be_refused_in(place))
        _exit(77);
    unsigned opened = 0;
    struct rlimit limit;
    insist(getrlimit(RLIMIT_NPROC, &limit) == 0);
    for (limit.rlim_cur = 0; limit.rlim_cur < min_u64(limit.rlim_max, 64) && opened < 2;
         limit.rlim_cur++) {
        fkv *db = NULL;
        insist(setrlimit(RLIMIT_NPROC, &limit) == 0);
        enum fkv_error error = try_open(place->path, 0, &db);
        insist(!error || error == FKV_NO_MEMORY);
        if (error)
            continue;
        opened++;
        for (uint64_t round = 0; round < 20; round++) {
            for (uint64_t key = 0; key < 300; key++)
                insist_ok(put_value(db, key, 5000, key));
            insist_ok(fkv_checkpoint(db));
        }
        insist_ok(fkv_close(db));
    }
    _exit(opened ? 0 : 77); /* 77: this user has more than 64 already */
}

static void test_few_threads(void **state)
{
    struct place *place = *state;
    make_store(place->path);
    chmod(place->directory, 0777);
    chmod(place->path, 0666);
    chmod(place->log_path, 0666);
    int code = run_child(open_with_few_threads, place);
    if (code == 77)
        skip();
    assert_int_equal(code, 0);
    verify_store(place->path);
}

/* More than is needed: whatever the limit is, what is reserved is to fit. */
static void open_with_address_space(void *context)
{
    const struct place *place = context;
    struct rlimit before;
    fkv *db;
    if (getrlimit(RLIMIT_AS, &before) != 0)
        exit(1);
    for (rlim_t gib = 40; gib <= 200; gib += 5) {
        struct rlimit limit = {min_u64(gib * GIB, before.rlim_max), before.rlim_max};
        if (setrlimit(RLIMIT_AS, &limit) != 0 || fkv_open(place->path, NULL, &db) ||
            fkv_put(db, "a", 1, "1", 1) || fkv_close(db))
            exit((int)gib);
    }
}

static void test_limited_address_space(void **state)
{
    struct place *place = *state;
    if (SANITIZED) /* they need more of it than there is */
        skip();
    assert_int_equal(run_child(open_with_address_space, place), 0);
}

/* The log alone may be forbidden too. */
static void open_forbidden_log(void *context)
{
    const struct place *place = context;
    if (!may_be_refused_in(place))
        _exit(77);
    fkv *db = NULL;
    insist(try_open(place->path, 0, &db) == FKV_PERMISSION);
    insist(try_open(place->path, FKV_OPEN_READ_ONLY, &db) == FKV_PERMISSION);
}

static void test_forbidden_log(void **state)
{
    struct place *place = *state;
    make_store(place->path);
    uint64_t file = file_hash(place->path), log = file_hash(place->log_path);
    chmod(place->directory, 0777);
    chmod(place->path, 0666);
    chmod(place->log_path, 0);
    int code = run_child(open_forbidden_log, place);
    chmod(place->log_path, 0644); /* before it is read again: who is not root may not either */
    if (code == 77)
        skip();
    assert_int_equal(code, 0);
    assert_int_equal(file_hash(place->path), file);
    assert_int_equal(file_hash(place->log_path), log);
    verify_store(place->path);
}

/* Files that not even root may write: immutable, or on a file system mounted read-only. */
static void test_immutable_file(void **state)
{
    struct place *place = *state;
    make_store(place->path);
    int fd = open(place->path, O_RDONLY);
    int flags = 0;
    bool immutable = ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0;
    int with = flags | FS_IMMUTABLE_FL;
    immutable = immutable && ioctl(fd, FS_IOC_SETFLAGS, &with) == 0;
    if (!immutable) {
        close(fd);
        print_message("an immutable file is not tested: root and ext4 or the like are needed\n");
        skip();
    }
    fkv *db = NULL;
    enum fkv_error error = try_open(place->path, 0, &db);
    enum fkv_error read_only = try_open(place->path, FKV_OPEN_READ_ONLY, &db);
    ioctl(fd, FS_IOC_SETFLAGS, &flags);
    close(fd);
    assert_int_equal(error, FKV_PERMISSION);
    assert_int_equal(read_only, FKV_OK);
    assert_value(db, 1, 5000, 1);
    must(fkv_close(db));
    verify_store(place->path);
}

static void test_read_only_file_system(void **state)
{
    struct place *place = *state;
    char mounted[PATH_MAX], path[PATH_MAX + 16];
    snprintf(mounted, sizeof mounted, "%s/mounted", place->directory);
    assert_int_equal(mkdir(mounted, 0755), 0);
    if (mount("fkv", mounted, "tmpfs", 0, "size=32m") != 0) {
        print_message("a read-only file system is not tested: mount: %s\n", strerror(errno));
        rmdir(mounted);
        skip();
    }
    snprintf(path, sizeof path, "%s/store.fkv", mounted);
    make_store(path);
    bool read_only = mount("fkv", mounted, "tmpfs", MS_REMOUNT | MS_RDONLY, "size=32m") == 0;
    fkv *db = NULL;
    enum fkv_error writing = try_open(path, 0, &db);
    bool detail = *fkv_error_detail(NULL);
    enum fkv_error reading = try_open(path, FKV_OPEN_READ_ONLY, &db);
    uint8_t value[5000];
    enum fkv_error got = db ? fkv_get(db, &(uint64_t){1}, 8, value, sizeof value, NULL) : FKV_IO;
    enum fkv_error closed = fkv_close(db);
    umount2(mounted, MNT_DETACH);
    rmdir(mounted);
    assert_true(read_only);
    assert_int_equal(writing, FKV_PERMISSION);
    assert_true(detail);
    assert_int_equal(reading, FKV_OK);
    assert_int_equal(got, FKV_OK);
    assert_true(value_is(value, sizeof value, 1));
    assert_int_equal(closed, FKV_OK);
}

/* ---------------------------------------------------------------- limits of the process */

/* With whatever limit an opening fails, it leaves nothing, and says why. */
static void open_limited(void *context)
{
    const struct place *place = context;
    fkv *db = NULL;
    bool few = false;
    struct rlimit before;
    signal(SIGXFSZ, SIG_IGN);
    insist(getrlimit(RLIMIT_NOFILE, &before) == 0);
    for (rlim_t files = 3; db == NULL; files++) {
        insist(setrlimit(RLIMIT_NOFILE, &(struct rlimit){files, before.rlim_max}) == 0);
        enum fkv_error error = try_open(place->path, FKV_EXCLUSIVE, &db);
        insist(error == FKV_OK || error == FKV_IO);
        insist(!error || strstr(fkv_error_detail(NULL), "Too many open files"));
        insist(!error || (!file_exists(place->path) && !file_exists(place->log_path)));
        few |= error != FKV_OK;
    }
    insist(few);
    insist_ok(fkv_close(db));
    insist(setrlimit(RLIMIT_NOFILE, &before) == 0);
    remove_store(place);
    db = NULL;
    insist(getrlimit(RLIMIT_FSIZE, &before) == 0);
    for (rlim_t bytes = 100; db == NULL; bytes += bytes / 2) {
        insist(setrlimit(RLIMIT_FSIZE, &(struct rlimit){bytes, before.rlim_max}) == 0);
        enum fkv_error error = try_open(place->path, FKV_EXCLUSIVE, &db);
        insist(error == FKV_OK || error == FKV_FULL);
        insist(!error || (!file_exists(place->path) && !file_exists(place->log_path)));
    }
    insist(setrlimit(RLIMIT_FSIZE, &(struct rlimit){8 * MIB, before.rlim_max}) == 0);
    uint64_t keys = 0; /* and it goes on below the limit */
    enum fkv_error error;
    while (!(error = put_value(db, keys, 1000, keys)))
        keys++;
    insist(error == FKV_FULL);
    insist_ok(fkv_delete(db, &(uint64_t){0}, sizeof keys));
    insist_ok(fkv_close(db));
    insist_ok(fkv_check_file(place->path, NULL, NULL, 0));
}

static void test_limits_of_the_process(void **state)
{
    assert_int_equal(run_child(open_limited, *state), 0);
}

/* ---------------------------------------------------------------- options */

static enum fkv_error open_options(const struct place *place, const fkv_options *options)
{
    fkv *db = (fkv *)(uintptr_t)place;
    enum fkv_error error = fkv_open(place->path, options, &db);
    if (error) {
        assert_null(db);
        assert_true(strlen(fkv_error_detail(NULL)) > 0);
        assert_false(file_exists(place->path));
        assert_false(file_exists(place->log_path));
    } else {
        must(put_text(db, "a", "1"));
        must(fkv_close(db));
        remove_store(place);
    }
    return error;
}

static void test_options(void **state)
{
    struct place *place = *state;
    fkv_options options;
    fkv_options_init(&options);
    must(open_options(place, &options));
    for (unsigned bit = 8; bit < 32; bit++) {
        options.flags = 1u << bit;
        expect(open_options(place, &options), FKV_INVALID);
    }
    options.flags = 0;
    const uint32_t good_percents[] = {10, 11, 99, 100}, bad_percents[] = {1, 9, 101, UINT32_MAX};
    for (int i = 0; i < 4; i++) {
        options.garbage_percent_max = good_percents[i];
        must(open_options(place, &options));
        options.garbage_percent_max = bad_percents[i];
        expect(open_options(place, &options), FKV_INVALID);
    }
    options.garbage_percent_max = 0;
    const uint64_t good_logs[] = {1u << 20, (1u << 20) + 1, 5000000, 1u << 30};
    const uint64_t bad_logs[] = {1, 4096, (1u << 20) - 1, UINT64_MAX};
    for (int i = 0; i < 4; i++) {
        options.log_bytes_max = good_logs[i];
        must(open_options(place, &options));
        options.log_bytes_max = bad_logs[i];
        expect(open_options(place, &options), FKV_INVALID);
    }
    fkv_options_init(&options);
    options.size = 0; /* not initialised */
    expect(open_options(place, &options), FKV_INVALID);
    options.size = sizeof(size_t);
    expect(open_options(place, &options), FKV_INVALID);
    options.size = offsetof(fkv_options, garbage_percent_max); /* of an older header */
    options.garbage_percent_max = 7;
    must(open_options(place, &options));
    struct {
        fkv_options options;
        uint64_t more[4];
    } newer = {.more = {1, 2, 3, 4}}; /* of a newer one */
    fkv_options_init(&newer.options);
    newer.options.size = sizeof newer;
    must(open_options(place, &newer.options));
}

static void test_modes(void **state)
{
    struct place *place = *state;
    make_store(place->path);
    assert_refused_with(place, FKV_DIGEST, FKV_MODE_MISMATCH);
    assert_refused_with(place, FKV_DIGEST | FKV_OPEN_READ_ONLY, FKV_MODE_MISMATCH);
    verify_store(place->path);
}

/* ---------------------------------------------------------------- symbolic links */

static void put_through_link(void *context)
{
    const struct place *place = context;
    fkv *db = NULL;
    insist_ok(fkv_open(place->other, NULL, &db));
    insist_ok(fkv_put_with(db, "a", 1, "1", 1, FKV_SYNC));
    _exit(0);
}

static const char *last_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* The log is beside the store, whatever link the store is opened through. */
static void test_symbolic_links(void **state)
{
    struct place *place = *state;
    assert_int_equal(symlink(last_of(place->path), place->other), 0); /* to what is not there yet */
    assert_int_equal(run_child(put_through_link, place), 0);
    assert_true(file_exists(place->log_path));
    fkv *db = open_with(place->path, 0);
    assert_text(db, "a", "1");
    fkv *second = NULL;
    expect(try_open(place->other, 0, &second), FKV_IN_USE);
    expect(fkv_check_file(place->other, NULL, NULL, 0), FKV_IN_USE);
    expect(fkv_repair(place->other, "new", NULL, NULL, 0), FKV_IN_USE);
    assert_true(strstr(fkv_error_detail(NULL), "another handle or process") != NULL);
    must(fkv_close(db));
    assert_int_equal(run_child(put_through_link, place), 0);
    must(fkv_check_file(place->other, NULL, NULL, 0));
    db = open_with(place->other, 0);
    assert_text(db, "a", "1");
    must(fkv_close(db));
    assert_int_equal(unlink(place->other), 0);
    assert_int_equal(symlink(last_of(place->other), place->other), 0); /* in a circle */
    expect(try_open(place->other, 0, &db), FKV_IO);
    assert_true(strstr(fkv_error_detail(NULL), "symbolic links") != NULL);
    assert_int_equal(unlink(place->other), 0);
}

/* ---------------------------------------------------------------- one process at a time */

static void open_second(void *context)
{
    const struct place *place = context;
    fkv *db = NULL;
    const unsigned flags[] = {0, FKV_NO_CREATE, FKV_OPEN_READ_ONLY, FKV_NO_THREAD};
    for (int i = 0; i < 4; i++) {
        insist(try_open(place->path, flags[i], &db) == FKV_IN_USE);
        insist(db == NULL);
        insist(strlen(fkv_error_detail(NULL)) > 0);
    }
}

static void hold_open(void *context)
{
    const struct place *place = context;
    fkv *db = NULL;
    insist_ok(fkv_open(place->path, NULL, &db));
    insist_ok(fkv_put(db, "a", 1, "1", 1));
    file_write(place->other, "ready", 5);
    for (;;)
        pause();
}

static void test_second_opener(void **state)
{
    struct place *place = *state;
    pid_t holder = fork();
    if (holder == 0)
        hold_open(place);
    while (file_bytes(place->other) != 5)
        usleep(1000);
    uint64_t log = file_hash(place->log_path);
    assert_int_equal(run_child(open_second, place), 0);
    open_second(place);
    assert_int_equal(file_hash(place->log_path), log);
    kill(holder, SIGKILL); /* the lock goes with the process */
    waitpid(holder, NULL, 0);
    fkv *db = open_with(place->path, 0);
    assert_text(db, "a", "1");
    open_second(place); /* of this very process */
    assert_int_equal(run_child(open_second, place), 0);
    must(put_text(db, "a", "2"));
    assert_text(db, "a", "2");
    must(fkv_close(db));

    db = open_with(place->path, FKV_OPEN_READ_ONLY); /* a reader keeps writers out */
    fkv *second = NULL;
    expect(try_open(place->path, 0, &second), FKV_IN_USE);
    assert_null(second);
    must(fkv_close(db));
    db = open_with(place->path, 0);
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- fork */

struct forked {
    const struct place *place;
    fkv *db;
    fkv_txn *txn;
    fkv_txn *ended;
};

static void use_after_fork(void *context)
{
    const struct forked *forked = context;
    fkv *db = forked->db;
    char buffer[8] = "?";
    size_t bytes = 12345;
    const void *value;
    fkv_stats stats;
    fkv_txn *txn = NULL;
    alarm(HANG_SECONDS);
    insist(fkv_put(db, "a", 1, "2", 1) == FKV_FORKED);
    insist(strlen(fkv_error_detail(db)) > 0);
    insist(fkv_put_with(db, "a", 1, "2", 1, FKV_SYNC) == FKV_FORKED);
    insist(fkv_delete(db, "a", 1) == FKV_FORKED);
    insist(fkv_delete_with(db, "a", 1, 0) == FKV_FORKED);
    insist(fkv_get(db, "a", 1, buffer, sizeof buffer, &bytes) == FKV_FORKED);
    insist(fkv_exists(db, "a", 1) == FKV_FORKED);
    insist(fkv_value_size(db, "a", 1, &bytes) == FKV_FORKED);
    fkv_read_begin(db);
    insist(fkv_borrow(db, "a", 1, &value, &bytes) == FKV_FORKED);
    fkv_read_end(db);
    insist(fkv_sync(db) == FKV_FORKED);
    insist(fkv_checkpoint(db) == FKV_FORKED);
    insist(fkv_get_stats(db, &stats, sizeof stats) == FKV_FORKED);
    insist(fkv_txn_begin(db, &txn) == FKV_FORKED);
    insist(fkv_txn_put(forked->txn, "a", 1, "2", 1) == FKV_FORKED);
    insist(fkv_txn_delete(forked->txn, "a", 1) == FKV_FORKED);
    insist(fkv_txn_get(forked->txn, "a", 1, buffer, sizeof buffer, &bytes) == FKV_FORKED);
    insist(fkv_txn_exists(forked->txn, "a", 1) == FKV_FORKED);
    insist(fkv_txn_commit(forked->txn, 0) == FKV_FORKED);
    insist(fkv_txn_abort(forked->txn) == FKV_FORKED);
    insist(fkv_txn_abort(forked->ended) == FKV_TXN_ENDED);
    insist(bytes == 12345 && strcmp(buffer, "?") == 0 && !txn);
    insist(try_open(forked->place->path, 0, &db) == FKV_IN_USE); /* it is the parent's */
    fkv_txn_free(forked->txn);
    fkv_txn_free(forked->ended);
    insist_ok(fkv_close(forked->db));
    insist(try_open(forked->place->path, 0, &db) == FKV_IN_USE); /* still */
    /* Another one can be opened, written, and closed. */
    insist_ok(try_open_small_log(forked->place->other, 0, &db));
    for (uint64_t key = 0; key < 20000; key++)
        insist_ok(fkv_put(db, &(uint64_t){key % 500}, sizeof key, &stats, key % 200));
    insist_ok(fkv_checkpoint(db));
    insist_ok(fkv_close(db));
}

static void fork_in(struct place *place, unsigned flags)
{
    fkv *db = NULL;
    must(try_open_small_log(place->path, flags, &db));
    for (uint64_t key = 0; key < 20000; key++) /* so that there is something to reclaim */
        must(put_value(db, key % 500, key % 300, key));
    must(put_text(db, "a", "1"));
    struct forked forked = {.place = place, .db = db};
    must(fkv_txn_begin(db, &forked.txn));
    must(fkv_txn_begin(db, &forked.ended));
    must(fkv_txn_abort(forked.ended));
    must(fkv_txn_put(forked.txn, "b", 1, "1", 1));
    assert_int_equal(run_child(use_after_fork, &forked), 0);
    assert_text(db, "a", "1"); /* the parent goes on */
    must(fkv_txn_commit(forked.txn, 0));
    fkv_txn_free(forked.txn);
    fkv_txn_free(forked.ended);
    assert_text(db, "b", "1");
    must(put_text(db, "a", "3"));
    must(fkv_checkpoint(db));
    must(fkv_close(db));
    db = open_with(place->path, 0);
    assert_text(db, "a", "3");
    assert_text(db, "b", "1");
    must(fkv_close(db));
    fkv *other = open_with(place->other, 0);
    assert_int_equal(stats_of(other).keys, 500);
    must(fkv_close(other));
}

static void test_fork(void **state)
{
    fork_in(*state, 0);
}

static void test_fork_without_threads(void **state)
{
    fork_in(*state, FKV_NO_THREAD);
}

/* What is open on a store goes in the child too, before the store or after it. */
struct all_open {
    fkv *db;
    fkv_async *queue;
    fkv_load *load;
    fkv_txn *txn;
    bool store_first;
};

static void close_in_child(void *context)
{
    const struct all_open *open = context;
    fkv_async *more = NULL;
    size_t count;
    fkv_completion done;
    alarm(HANG_SECONDS);
    for (int i = 0; i < 4; i++) {
        insist(fkv_get(NULL, "a", 1, NULL, 0, NULL) == FKV_INVALID);
        insist((i == 0   ? fkv_async_open(open->db, 4, &more)
                : i == 1 ? fkv_async_get(open->queue, "a", 1, NULL, 0, NULL)
                : i == 2 ? fkv_async_submit(open->queue)
                         : fkv_async_wait(open->queue, 1, &done, 1, &count)) == FKV_FORKED);
        insist(strstr(fkv_error_detail(open->db), "fork") != NULL);
    }
    if (open->store_first) {
        insist_ok(fkv_close(open->db));
        insist(fkv_load_put(open->load, "b", 1, "1", 1) == FKV_TXN_ENDED);
        insist(fkv_txn_put(open->txn, "b", 1, "1", 1) == FKV_TXN_ENDED);
        insist(fkv_async_get(open->queue, "a", 1, NULL, 0, NULL) == FKV_CANCELLED);
    } else {
        insist(fkv_async_fd(open->queue) == -1);
    }
    fkv_async_close(open->queue);
    fkv_load_free(open->load);
    fkv_txn_free(open->txn);
    if (!open->store_first)
        insist_ok(fkv_close(open->db));
}

static void test_fork_with_all_open(void **state)
{
    struct place *place = *state;
    struct all_open open = {.db = open_with(place->path, 0)};
    char value[2];
    size_t count;
    fkv_completion done;
    must(put_text(open.db, "a", "1"));
    must(fkv_async_open(open.db, 4, &open.queue));
    must(fkv_load_begin(open.db, &open.load));
    must(fkv_load_put(open.load, "c", 1, "1", 1));
    must(fkv_txn_begin(open.db, &open.txn));
    must(fkv_txn_put(open.txn, "d", 1, "1", 1));
    /* Whether there is something to take or not, the queue's descriptor stays as it was. */
    struct pollfd descriptor = {.fd = fkv_async_fd(open.queue), .events = POLLIN};
    for (int taken = 0; taken < 2; taken++) {
        if (!taken)
            must(fkv_async_get(open.queue, "a", 1, value, sizeof value, NULL));
        for (int first = 0; first < 2; first++) {
            assert_int_equal(poll(&descriptor, 1, 0), !taken);
            open.store_first = first;
            assert_int_equal(run_child(close_in_child, &open), 0);
            assert_int_equal(poll(&descriptor, 1, 0), !taken);
        }
        must(fkv_async_wait(open.queue, 1, &done, 1, &count));
        assert_int_equal(count, !taken);
    }
    must(done.error);
    must(fkv_load_commit(open.load));
    must(fkv_txn_commit(open.txn, 0));
    fkv_async_close(open.queue);
    fkv_load_free(open.load);
    fkv_txn_free(open.txn);
    assert_text(open.db, "c", "1");
    assert_text(open.db, "d", "1");
    must(fkv_close(open.db));
}

/* A child that lives on, with descriptors that it inherited, does not keep the store locked. */
static void test_child_outlives_handle(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "a", "1"));
    pid_t child = fork();
    if (child == 0)
        for (;;)
            pause();
    enum fkv_error closed = fkv_close(db);
    fkv *again = NULL;
    enum fkv_error error = try_open(place->path, 0, &again);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_int_equal(closed, FKV_OK);
    assert_int_equal(error, FKV_OK);
    assert_text(again, "a", "1");
    must(fkv_close(again));
}

/* A fork inside a read section does not hang, and its child can see that it may not use fkv. */
static void open_in_section(void *context)
{
    const struct place *place = context;
    fkv *db = NULL;
    alarm(HANG_SECONDS);
    insist(try_open(place->other, 0, &db) == FKV_FORKED);
    insist(!file_exists(place->other) || file_bytes(place->other) == 0);
}

static void test_fork_in_read_section(void **state)
{
    struct place *place = *state;
    fkv *db = NULL;
    must(try_open_small_log(place->path, 0, &db));
    alarm(HANG_SECONDS);
    fkv_read_begin(db);
    for (uint64_t key = 0; key < 20000; key++)
        must(put_value(db, key % 500, key % 300, key));
    assert_int_equal(run_child(open_in_section, place), 0);
    fkv_read_end(db);
    alarm(0);
    must(fkv_close(db));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_place(test_paths),
        in_place(test_directory),
        in_place(test_devices),
        in_place(test_not_a_store),
        in_place(test_empty_file),
        in_place(test_unknown_format),
        in_place(test_damaged_headers),
        in_place(test_impossible_headers),
        in_place(test_impossible_log_offset),
        in_place(test_truncated_file),
        in_place(test_truncated_unclosed_file),
        in_place(test_log_of_another_store),
        in_place(test_log_without_store),
        in_place(test_log_that_cannot_be_opened),
        cmocka_unit_test(test_log_that_cannot_be_read),
        in_place(test_missing_log),
        in_place(test_damaged_log),
        in_place(test_damaged_log_of_unflushed_values),
        in_place(test_permissions),
        in_place(test_log_is_permitted_as_the_store),
        in_place(test_few_threads),
        in_place(test_limited_address_space),
        in_place(test_forbidden_log),
        in_place(test_immutable_file),
        in_place(test_read_only_file_system),
        in_place(test_limits_of_the_process),
        in_place(test_options),
        in_place(test_modes),
        in_place(test_symbolic_links),
        in_place(test_second_opener),
        in_place(test_fork),
        in_place(test_fork_without_threads),
        in_place(test_fork_with_all_open),
        in_place(test_child_outlives_handle),
        in_place(test_fork_in_read_section),
    };
    return run_all(tests);
}
