/*
 * test_os.c: the file interface. What os.h promises is tested on both implementations, the
 * operating system's (in a directory under TMPDIR) and the simulated disk; the rest is about
 * os_posix.c and its system calls.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os.h"
#include "os_posix.h"
#include "os_sim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define MIB_BYTES (1u << 20)

/* Where a test runs: an implementation, and a file name that is free at its start. */
struct place {
    struct os *os;
    struct os_sim *sim; /* NULL on the operating system */
    char directory[PATH_MAX / 2];
    char path[PATH_MAX];
};

static struct os_file *open_file(struct place *place, unsigned flags)
{
    struct os_file *file = NULL;
    assert_int_equal(place->os->ops->open(place->os, place->path, flags, &file), 0);
    assert_non_null(file);
    return file;
}

static void assert_open_error(struct place *place, const char *path, unsigned flags, int error)
{
    struct os_file *file = NULL;
    assert_int_equal(place->os->ops->open(place->os, path, flags, &file), error);
    assert_null(file);
}

static void assert_size(struct place *place, struct os_file *file, uint64_t expected)
{
    uint64_t bytes = UINT64_MAX;
    assert_int_equal(place->os->ops->size(file, &bytes), 0);
    assert_int_equal(bytes, expected);
}

static void assert_bytes(struct place *place, struct os_file *file, uint64_t offset,
                         const void *expected, size_t bytes)
{
    char *read = malloc(bytes);
    assert_int_equal(place->os->ops->read(file, read, bytes, offset), 0);
    assert_memory_equal(read, expected, bytes);
    free(read);
}

/* ---------------------------------------------------------------- what os.h promises */

static void test_open(void **state)
{
    struct place *place = *state;
    assert_open_error(place, place->path, 0, -ENOENT);
    assert_open_error(place, place->path, OS_READ_ONLY, -ENOENT);
    struct os_file *file = open_file(place, OS_CREATE | OS_EXCLUSIVE);
    assert_size(place, file, 0);
    assert_open_error(place, place->path, OS_CREATE | OS_EXCLUSIVE, -EEXIST);
    assert_int_equal(place->os->ops->write(file, "hello", 5, 0), 0);
    place->os->ops->close(file);

    file = open_file(place, OS_CREATE);
    assert_bytes(place, file, 0, "hello", 5);
    place->os->ops->close(file);
    file = open_file(place, OS_READ_ONLY);
    assert_bytes(place, file, 0, "hello", 5);
    assert_true(place->os->ops->write(file, "x", 1, 0) < 0);
    assert_true(place->os->ops->truncate(file, 0) < 0);
    assert_true(place->os->ops->allocate(file, 0, 4096) < 0);
    void *address = NULL;
    assert_int_equal(place->os->ops->map(file, 0, 4096, true, &address), -EACCES);
    assert_size(place, file, 5);
    place->os->ops->close(file);
    place->os->ops->close(NULL);
}

static void test_read_write(void **state)
{
    struct place *place = *state;
    struct os_file *file = open_file(place, OS_CREATE);
    assert_int_equal(place->os->ops->write(file, "abc", 3, 10), 0);
    assert_size(place, file, 13);
    assert_bytes(place, file, 0, "\0\0\0\0\0\0\0\0\0\0abc", 13);
    char buffer[16];
    assert_int_equal(place->os->ops->read(file, buffer, 4, 10), -ENODATA);
    assert_int_equal(place->os->ops->read(file, buffer, 1, 13), -ENODATA);
    assert_int_equal(place->os->ops->read(file, buffer, 1, 1000000), -ENODATA);
    assert_int_equal(place->os->ops->read(file, buffer, 0, 13), 0);
    assert_int_equal(place->os->ops->write(file, "XY", 2, 11), 0);
    assert_bytes(place, file, 10, "aXY", 3);
    assert_int_equal(place->os->ops->write(file, buffer, 0, 100), 0);
    assert_size(place, file, 13);
    assert_int_equal(place->os->ops->sync(file), 0);
    place->os->ops->start_writeback(file, 0, 13);
    place->os->ops->close(file);
}

static void test_truncate(void **state)
{
    struct place *place = *state;
    struct os_file *file = open_file(place, OS_CREATE);
    assert_int_equal(place->os->ops->write(file, "0123456789", 10, 0), 0);
    assert_int_equal(place->os->ops->truncate(file, 4), 0);
    assert_size(place, file, 4);
    assert_int_equal(place->os->ops->truncate(file, 3 * MIB_BYTES), 0);
    assert_size(place, file, 3 * MIB_BYTES);
    assert_bytes(place, file, 0, "0123\0\0\0\0\0\0", 10);
    assert_bytes(place, file, 3 * MIB_BYTES - 4, "\0\0\0\0", 4);
    assert_int_equal(place->os->ops->truncate(file, 0), 0);
    assert_size(place, file, 0);
    place->os->ops->close(file);
}

static void test_allocate_and_punch(void **state)
{
    struct place *place = *state;
    struct os_file *file = open_file(place, OS_CREATE);
    assert_int_equal(place->os->ops->write(file, "0123456789", 10, 0), 0);
    assert_int_equal(place->os->ops->allocate(file, 0, MIB_BYTES), 0);
    assert_size(place, file, MIB_BYTES);
    assert_bytes(place, file, 0, "0123456789\0\0", 12);
    assert_int_equal(place->os->ops->allocate(file, 8192, 4096), 0);
    assert_int_equal(place->os->ops->allocate(file, 0, 0), 0);
    assert_size(place, file, MIB_BYTES);
    assert_int_equal(place->os->ops->allocate(file, 2 * MIB_BYTES, MIB_BYTES), 0);
    assert_size(place, file, 3 * MIB_BYTES);
    assert_int_equal(place->os->ops->write(file, "end", 3, 3 * MIB_BYTES - 3), 0);

    int error = place->os->ops->punch(file, 0, MIB_BYTES);
    if (error != -EOPNOTSUPP) {
        assert_int_equal(error, 0);
        assert_bytes(place, file, 0, "\0\0\0\0\0\0\0\0\0\0", 10);
        assert_size(place, file, 3 * MIB_BYTES);
        assert_int_equal(place->os->ops->punch(file, 2 * MIB_BYTES, 2 * MIB_BYTES), 0);
        assert_size(place, file, 3 * MIB_BYTES);
        assert_bytes(place, file, 3 * MIB_BYTES - 3, "\0\0\0", 3);
        assert_int_equal(place->os->ops->punch(file, 0, 0), 0);
    }
    place->os->ops->close(file);
}

static void test_lock(void **state)
{
    struct place *place = *state;
    struct os_file *first = open_file(place, OS_CREATE);
    struct os_file *second = open_file(place, 0);
    assert_int_equal(place->os->ops->lock(first, false), 0);
    assert_int_equal(place->os->ops->lock(second, false), -EWOULDBLOCK);
    assert_int_equal(place->os->ops->lock(second, true), -EWOULDBLOCK);
    place->os->ops->close(first);
    assert_int_equal(place->os->ops->lock(second, true), 0);
    first = open_file(place, OS_READ_ONLY);
    assert_int_equal(place->os->ops->lock(first, true), 0);
    struct os_file *third = open_file(place, 0);
    assert_int_equal(place->os->ops->lock(third, false), -EWOULDBLOCK);
    place->os->ops->close(first);
    assert_int_equal(place->os->ops->lock(third, false), -EWOULDBLOCK);
    place->os->ops->close(second);
    assert_int_equal(place->os->ops->lock(third, false), 0);
    place->os->ops->close(third);
}

static void test_map(void **state)
{
    struct place *place = *state;
    struct os_file *file = open_file(place, OS_CREATE);
    assert_int_equal(place->os->ops->truncate(file, 2 * MIB_BYTES), 0);
    void *address = NULL;
    assert_int_equal(place->os->ops->map(file, MIB_BYTES, MIB_BYTES, true, &address), 0);
    char *mapping = address;
    assert_int_equal(place->os->ops->map(file, 0, 8 * MIB_BYTES, false, &address), 0);
    const char *whole = address;

    /* Calls and mappings see each other. */
    assert_int_equal(place->os->ops->write(file, "written", 7, MIB_BYTES + 5), 0);
    assert_memory_equal(mapping + 5, "written", 7);
    assert_memory_equal(whole + MIB_BYTES + 5, "written", 7);
    memcpy(mapping + 100, "stored", 6);
    assert_bytes(place, file, MIB_BYTES + 100, "stored", 6);
    assert_memory_equal(whole + MIB_BYTES + 100, "stored", 6);
    assert_int_equal(place->os->ops->sync(file), 0);

    /* The file grows under a mapping. */
    assert_int_equal(place->os->ops->allocate(file, 2 * MIB_BYTES, MIB_BYTES), 0);
    assert_int_equal(whole[3 * MIB_BYTES - 1], 0);
    assert_int_equal(place->os->ops->write(file, "grown", 5, 5 * MIB_BYTES), 0);
    assert_memory_equal(whole + 5 * MIB_BYTES, "grown", 5);
    assert_int_equal(whole[4 * MIB_BYTES], 0);

    place->os->ops->populate(file, mapping, MIB_BYTES, true);
    place->os->ops->populate(file, (char *)whole + 3, 5 * MIB_BYTES, false);
    place->os->ops->unmap(file, mapping, MIB_BYTES);
    place->os->ops->unmap(file, (void *)whole, 8 * MIB_BYTES);
    place->os->ops->unmap(file, NULL, 0);
    assert_bytes(place, file, MIB_BYTES + 100, "stored", 6);
    place->os->ops->close(file);
}

static void test_truncate_under_mapping(void **state)
{
    struct place *place = *state;
    struct os_file *file = open_file(place, OS_CREATE);
    assert_int_equal(place->os->ops->truncate(file, MIB_BYTES), 0);
    void *address = NULL;
    assert_int_equal(place->os->ops->map(file, 0, 2 * MIB_BYTES, true, &address), 0);
    char *mapping = address;
    memset(mapping, 'x', MIB_BYTES);
    assert_int_equal(place->os->ops->truncate(file, 8192), 0);
    assert_int_equal(mapping[8191], 'x');
    assert_int_equal(place->os->ops->truncate(file, MIB_BYTES), 0);
    assert_int_equal(mapping[8192], 0);
    assert_int_equal(mapping[MIB_BYTES - 1], 0);
    mapping[8192] = 'y';
    assert_bytes(place, file, 8191, "xy", 2);
    place->os->ops->unmap(file, mapping, 2 * MIB_BYTES);
    place->os->ops->close(file);
}

static void test_remove(void **state)
{
    struct place *place = *state;
    assert_int_equal(place->os->ops->remove(place->os, place->path), -ENOENT);
    struct os_file *file = open_file(place, OS_CREATE);
    assert_int_equal(place->os->ops->sync_directory(place->os, place->path), 0);
    assert_int_equal(place->os->ops->write(file, "still", 5, 0), 0);
    assert_int_equal(place->os->ops->remove(place->os, place->path), 0);
    assert_int_equal(place->os->ops->sync_directory(place->os, place->path), 0);
    assert_open_error(place, place->path, 0, -ENOENT);
    assert_bytes(place, file, 0, "still", 5);
    struct os_file *other = open_file(place, OS_CREATE | OS_EXCLUSIVE);
    assert_size(place, other, 0);
    place->os->ops->close(other);
    place->os->ops->close(file);
}

static void test_rename(void **state)
{
    struct place *place = *state;
    struct os *os = place->os;
    char other[PATH_MAX + 8];
    snprintf(other, sizeof other, "%s-2", place->path);
    assert_int_equal(os->ops->rename(os, place->path, other), -ENOENT);
    struct os_file *file = open_file(place, OS_CREATE);
    assert_int_equal(os->ops->write(file, "still", 5, 0), 0);
    assert_int_equal(os->ops->rename(os, place->path, other), 0);
    assert_int_equal(os->ops->sync_directory(os, other), 0);
    assert_open_error(place, place->path, 0, -ENOENT);
    assert_bytes(place, file, 0, "still", 5);
    os->ops->close(file);
    /* A name that is taken keeps its file. */
    file = open_file(place, OS_CREATE);
    assert_int_equal(os->ops->rename(os, other, place->path), -EEXIST);
    assert_size(place, file, 0);
    assert_int_equal(os->ops->remove(os, place->path), 0);
    os->ops->close(file);
    assert_int_equal(os->ops->rename(os, other, place->path), 0);
    file = open_file(place, 0);
    assert_bytes(place, file, 0, "still", 5);
    os->ops->close(file);
}

/* ---------------------------------------------------------------- os_posix.c alone */

static int no_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
    (void)from_fd, (void)from, (void)to_fd, (void)to, (void)flags;
    errno = EINVAL;
    return -1;
}

/* File systems that have no such call. */
static void test_rename_by_link(void **state)
{
    struct os_posix_calls calls = os_posix_system_calls;
    calls.renameat2 = no_renameat2;
    os_posix_set_calls(&calls);
    test_rename(state);
    os_posix_set_calls(NULL);
}

static void test_adopt(void **state)
{
    struct place *place = *state;
    struct os_file *file = NULL;
    int fd = open(place->path, O_RDWR | O_CREAT, 0666);
    assert_true(fd >= 0);
    assert_int_equal(os_posix_adopt(fd, &file), 0);
    assert_int_equal(place->os->ops->write(file, "adopted", 7, 0), 0);
    place->os->ops->close(file);
    char read[7];
    assert_int_equal(pread(fd, read, sizeof read, 0), 7); /* it is open still */
    assert_memory_equal(read, "adopted", 7);
    assert_int_equal(fcntl(fd, F_SETFL, O_APPEND), 0);
    assert_int_equal(os_posix_adopt(fd, &file), -EBADF);
    close(fd);
    assert_int_equal(os_posix_adopt(fd, &file), -EBADF);
    fd = open(place->path, O_RDONLY);
    assert_int_equal(os_posix_adopt(fd, &file), -EBADF);
    close(fd);
    fd = open(place->path, O_RDWR | O_DIRECT); /* where there is such a thing */
    if (fd >= 0)
        assert_int_equal(os_posix_adopt(fd, &file), -EBADF);
    close(fd);
    fd = open("/dev/null", O_RDWR);
    assert_int_equal(os_posix_adopt(fd, &file), -ENXIO);
    close(fd);
}

/* What is in the page cache is not said to be absent: overlayfs keeps it as another file's. */
static void test_cached_on_overlay(void **state)
{
    struct place *place = *state;
    char command[2 * PATH_MAX], path[PATH_MAX];
    snprintf(command, sizeof command,
             "exec >/dev/null 2>&1; cd %s && mkdir low up work over && "
             "mount -t overlay fkv -o lowerdir=low,upperdir=up,workdir=work over",
             place->directory);
    bool mounted = geteuid() == 0 && system(command) == 0;
    bool absent = mounted; /* the system may take any page back at any time */
    if (mounted) {
        struct os_file *file;
        char page[4096] = "here";
        snprintf(path, sizeof path, "%s/over/file", place->directory);
        assert_int_equal(place->os->ops->open(place->os, path, OS_CREATE, &file), 0);
        assert_int_equal(place->os->ops->write(file, page, sizeof page, 0), 0);
        for (int i = 0; absent && i < 1000; i++) {
            assert_int_equal(place->os->ops->read(file, page, sizeof page, 0), 0);
            absent = place->os->ops->cached(file, 0, sizeof page) == 0;
        }
        place->os->ops->close(file);
    }
    snprintf(command, sizeof command, "cd %s && { umount over; rm -rf low up work over; } 2>&-",
             place->directory);
    assert_int_equal(system(command), 0);
    assert_false(absent);
    if (!mounted) {
        print_message("no overlayfs to be had: root is needed, and no overlayfs below\n");
        skip();
    }
}

static void test_not_regular(void **state)
{
    struct place *place = *state;
    alarm(600); /* ends the test if an open blocks */
    assert_open_error(place, place->directory, 0, -EISDIR);
    assert_open_error(place, place->directory, OS_CREATE, -EISDIR);
    assert_open_error(place, place->directory, OS_READ_ONLY, -EISDIR);
    assert_int_equal(mkfifo(place->path, 0600), 0);
    assert_open_error(place, place->path, 0, -ENXIO);
    assert_open_error(place, place->path, OS_READ_ONLY, -ENXIO);
    assert_open_error(place, "/dev/null", 0, -ENXIO);
    assert_open_error(place, "/dev/null", OS_READ_ONLY, -ENXIO);
    char below[PATH_MAX + 8];
    snprintf(below, sizeof below, "%s/below", place->path);
    assert_open_error(place, below, OS_CREATE, -ENOTDIR);
    alarm(0);
}

static void test_names(void **state)
{
    struct place *place = *state;
    struct os *os = place->os;
    char *before = get_current_dir_name();
    assert_int_equal(chdir(place->directory), 0);
    struct os_file *file = NULL;
    assert_int_equal(os->ops->open(os, "plain", OS_CREATE, &file), 0);
    os->ops->close(file);
    assert_int_equal(os->ops->sync_directory(os, "plain"), 0);
    assert_int_equal(os->ops->sync_directory(os, "./plain"), 0);
    assert_int_equal(os->ops->sync_directory(os, "/plain"), 0);
    assert_int_equal(os->ops->sync_directory(os, "absent/plain"), -ENOENT);
    assert_int_equal(os->ops->sync_directory(os, "plain/below"), -ENOTDIR);
    assert_int_equal(os->ops->remove(os, "plain"), 0);
    char *name = malloc(2 * PATH_MAX);
    memset(name, 'n', 2 * PATH_MAX);
    name[2 * PATH_MAX - 2] = '/';
    name[2 * PATH_MAX - 1] = '\0';
    assert_int_equal(os->ops->sync_directory(os, name), -ENAMETOOLONG);
    free(name);
    assert_int_equal(chdir(before), 0);
    free(before);
}

/* With standard input closed, its number must not become the store's. */
static void test_descriptor_numbers(void **state)
{
    struct place *place = *state;
    int input = dup(STDIN_FILENO);
    close(STDIN_FILENO);
    struct os_file *file = open_file(place, OS_CREATE);
    int taken = fcntl(STDIN_FILENO, F_GETFD);
    if (input >= 0) {
        dup2(input, STDIN_FILENO);
        close(input);
    }
    assert_int_equal(taken, -1);
    assert_int_equal(place->os->ops->write(file, "x", 1, 0), 0);
    place->os->ops->close(file);
}

static void test_space_comes_back(void **state)
{
    struct place *place = *state;
    struct os_file *file = open_file(place, OS_CREATE);
    struct stat before, after;
    assert_int_equal(place->os->ops->allocate(file, 0, 4 * MIB_BYTES), 0);
    assert_int_equal(stat(place->path, &before), 0);
    assert_true(before.st_blocks * 512 >= 4 * MIB_BYTES);
    int error = place->os->ops->punch(file, MIB_BYTES, 2 * MIB_BYTES);
    if (error == 0) {
        assert_int_equal(stat(place->path, &after), 0);
        assert_true(after.st_blocks < before.st_blocks);
        assert_int_equal(after.st_size, 4 * MIB_BYTES);
    }
    place->os->ops->close(file);
}

/* ---------------------------------------------------------------- replaced system calls */

static unsigned interrupts; /* calls yet to be interrupted, before each that goes through */
static unsigned interrupted;
static int open_flags;

static bool interrupt(void)
{
    if (interrupts == 0 || interrupted == interrupts) {
        interrupted = 0;
        return false;
    }
    interrupted++;
    errno = EINTR;
    return true;
}

static int eintr_open(const char *path, int flags, mode_t mode)
{
    open_flags = flags;
    return interrupt() ? -1 : os_posix_system_calls.open(path, flags, mode);
}

static int eintr_fstat(int fd, struct stat *stat_)
{
    return interrupt() ? -1 : os_posix_system_calls.fstat(fd, stat_);
}

static int eintr_flock(int fd, int operation)
{
    return interrupt() ? -1 : os_posix_system_calls.flock(fd, operation);
}

/* Interrupted, then short: seven bytes at most. */
static ssize_t eintr_pread(int fd, void *buffer, size_t bytes, off_t offset)
{
    return interrupt() ? -1
                       : os_posix_system_calls.pread(fd, buffer, bytes < 7 ? bytes : 7, offset);
}

static ssize_t eintr_pwrite(int fd, const void *buffer, size_t bytes, off_t offset)
{
    return interrupt() ? -1
                       : os_posix_system_calls.pwrite(fd, buffer, bytes < 7 ? bytes : 7, offset);
}

static int eintr_fdatasync(int fd)
{
    return interrupt() ? -1 : os_posix_system_calls.fdatasync(fd);
}

static int eintr_fsync(int fd)
{
    return interrupt() ? -1 : os_posix_system_calls.fsync(fd);
}

static int eintr_ftruncate(int fd, off_t bytes)
{
    return interrupt() ? -1 : os_posix_system_calls.ftruncate(fd, bytes);
}

static int eintr_fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    return interrupt() ? -1 : os_posix_system_calls.fallocate(fd, mode, offset, bytes);
}

static int eintr_unlink(const char *path)
{
    return interrupt() ? -1 : os_posix_system_calls.unlink(path);
}

static void test_interrupted_and_short(void **state)
{
    struct place *place = *state;
    struct os_posix_calls calls = os_posix_system_calls;
    calls.open = eintr_open;
    calls.fstat = eintr_fstat;
    calls.flock = eintr_flock;
    calls.pread = eintr_pread;
    calls.pwrite = eintr_pwrite;
    calls.fdatasync = eintr_fdatasync;
    calls.fsync = eintr_fsync;
    calls.ftruncate = eintr_ftruncate;
    calls.fallocate = eintr_fallocate;
    calls.unlink = eintr_unlink;
    interrupts = 3;
    interrupted = 0;
    os_posix_set_calls(&calls);

    struct os_file *file = open_file(place, OS_CREATE);
    assert_true(open_flags & O_CLOEXEC);
    char data[1000], read[1000];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)(i * 7);
    assert_int_equal(place->os->ops->lock(file, false), 0);
    assert_int_equal(place->os->ops->write(file, data, sizeof data, 3), 0);
    assert_int_equal(place->os->ops->read(file, read, sizeof read, 3), 0);
    assert_memory_equal(data, read, sizeof data);
    assert_int_equal(place->os->ops->read(file, read, sizeof read, 10), -ENODATA);
    assert_int_equal(place->os->ops->sync(file), 0);
    assert_int_equal(place->os->ops->allocate(file, 0, 8192), 0);
    assert_size(place, file, 8192);
    assert_int_equal(place->os->ops->truncate(file, 4096), 0);
    assert_size(place, file, 4096);
    int error = place->os->ops->punch(file, 0, 4096);
    assert_true(error == 0 || error == -EOPNOTSUPP);
    assert_int_equal(place->os->ops->sync_directory(place->os, place->path), 0);
    assert_int_equal(place->os->ops->remove(place->os, place->path), 0);
    place->os->ops->close(file);
    interrupts = 0;
    os_posix_set_calls(NULL);
}

static ssize_t zero_pwrite(int fd, const void *buffer, size_t bytes, off_t offset)
{
    (void)fd, (void)buffer, (void)bytes, (void)offset;
    return 0;
}

/* A disk that is full after 10 more bytes. */
static size_t disk_left;

static ssize_t full_pwrite(int fd, const void *buffer, size_t bytes, off_t offset)
{
    if (disk_left == 0) {
        errno = ENOSPC;
        return -1;
    }
    size_t part = bytes < disk_left ? bytes : disk_left;
    disk_left -= part;
    return os_posix_system_calls.pwrite(fd, buffer, part, offset);
}

static void test_write_errors(void **state)
{
    struct place *place = *state;
    struct os_file *file = open_file(place, OS_CREATE);
    struct os_posix_calls calls = os_posix_system_calls;
    calls.pwrite = zero_pwrite;
    os_posix_set_calls(&calls);
    assert_int_equal(place->os->ops->write(file, "0123456789ab", 12, 0), -EIO);
    calls.pwrite = full_pwrite;
    disk_left = 10;
    os_posix_set_calls(&calls);
    assert_int_equal(place->os->ops->write(file, "0123456789ab", 12, 0), -ENOSPC);
    os_posix_set_calls(NULL);
    assert_size(place, file, 10);
    place->os->ops->close(file);
}

/* Grows the file, as ext4 may, and then finds no more room. */
static int half_fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    if (mode == 0)
        assert_int_equal(ftruncate(fd, offset + bytes / 2), 0);
    errno = ENOSPC;
    return -1;
}

static int no_fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    (void)fd, (void)mode, (void)offset, (void)bytes;
    errno = EOPNOTSUPP;
    return -1;
}

static int half_posix_fallocate(int fd, off_t offset, off_t bytes)
{
    assert_int_equal(ftruncate(fd, offset + bytes / 2), 0);
    return ENOSPC;
}

/* What failed may have grown the file; cut it may not, for others may have written behind its end.
 */
static void assert_not_cut(struct place *place, struct os_file *file, uint64_t bytes)
{
    uint64_t size = 0;
    assert_int_equal(place->os->ops->size(file, &size), 0);
    assert_in_range(size, bytes, UINT64_MAX);
}

static void test_allocate_errors(void **state)
{
    struct place *place = *state;
    struct os_file *file = open_file(place, OS_CREATE);
    assert_int_equal(place->os->ops->truncate(file, 5000), 0);
    struct os_posix_calls calls = os_posix_system_calls;
    calls.fallocate = half_fallocate;
    os_posix_set_calls(&calls);
    assert_int_equal(place->os->ops->allocate(file, 4096, MIB_BYTES), -ENOSPC);
    assert_not_cut(place, file, 5000);
    assert_int_equal(place->os->ops->truncate(file, 5000), 0);

    calls.fallocate = no_fallocate;
    os_posix_set_calls(&calls);
    assert_int_equal(place->os->ops->punch(file, 0, 4096), -EOPNOTSUPP);
    assert_int_equal(place->os->ops->write(file, "data", 4, 4096), 0);
    assert_int_equal(place->os->ops->allocate(file, 4096, MIB_BYTES), 0);
    assert_size(place, file, 4096 + MIB_BYTES);
    assert_bytes(place, file, 4096, "data\0", 5);

    calls.posix_fallocate = half_posix_fallocate;
    os_posix_set_calls(&calls);
    assert_int_equal(place->os->ops->allocate(file, 0, 4 * MIB_BYTES), -ENOSPC);
    assert_not_cut(place, file, 4096 + MIB_BYTES);
    os_posix_set_calls(NULL);
    place->os->ops->close(file);
}

/* As it is on tmpfs before Linux 6.10; it gives up where the C library would go on for ever. */
static int interruptible_fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    enum { TRIES_MAX = 20 };
    static int tries;
    if (nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL) == 0)
        return os_posix_system_calls.fallocate(fd, mode, offset, bytes);
    errno = ++tries < TRIES_MAX ? EINTR : EIO;
    return -1;
}

static void handle(int signal)
{
    (void)signal;
}

/* While a timer interrupts the program more often than the call can bear. */
static void test_allocate_interrupted(void **state)
{
    struct place *place = *state;
    struct os_file *file = open_file(place, OS_CREATE);
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART}, before;
    struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    struct os_posix_calls calls = os_posix_system_calls;
    calls.fallocate = interruptible_fallocate;
    sigaction(SIGALRM, &action, &before);
    setitimer(ITIMER_REAL, &often, NULL);
    os_posix_set_calls(&calls);
    int status = place->os->ops->allocate(file, 0, MIB_BYTES);
    os_posix_set_calls(NULL);
    setitimer(ITIMER_REAL, &never, NULL);
    sigaction(SIGALRM, &before, NULL);
    assert_int_equal(status, 0);
    assert_size(place, file, MIB_BYTES);
    place->os->ops->close(file);
}

static int failing_fdatasync(int fd)
{
    (void)fd;
    errno = EIO;
    return -1;
}

static int failing_fsync(int fd)
{
    (void)fd;
    errno = EINVAL;
    return -1;
}

static void *failing_mmap(void *address, size_t bytes, int protection, int flags, int fd,
                          off_t offset)
{
    (void)address, (void)bytes, (void)protection, (void)flags, (void)fd, (void)offset;
    errno = ENOMEM;
    return MAP_FAILED;
}

/* An old kernel knows no populating. */
static int failing_madvise(void *address, size_t bytes, int advice)
{
    (void)address, (void)bytes, (void)advice;
    errno = EINVAL;
    return -1;
}

static void test_other_errors(void **state)
{
    struct place *place = *state;
    struct os_file *file = open_file(place, OS_CREATE);
    assert_int_equal(place->os->ops->truncate(file, MIB_BYTES), 0);
    struct os_posix_calls calls = os_posix_system_calls;
    calls.fdatasync = failing_fdatasync;
    calls.fsync = failing_fsync;
    calls.mmap = failing_mmap;
    calls.madvise = failing_madvise;
    os_posix_set_calls(&calls);
    assert_int_equal(place->os->ops->sync(file), -EIO);
    assert_int_equal(place->os->ops->sync_directory(place->os, place->path), 0);
    void *address = NULL;
    assert_int_equal(place->os->ops->map(file, 0, MIB_BYTES, false, &address), -ENOMEM);
    assert_null(address);
    calls.mmap = os_posix_system_calls.mmap;
    os_posix_set_calls(&calls);
    assert_int_equal(place->os->ops->map(file, 0, MIB_BYTES, false, &address), 0);
    place->os->ops->populate(file, address, MIB_BYTES, false);
    place->os->ops->unmap(file, address, MIB_BYTES);
    os_posix_set_calls(NULL);
    place->os->ops->close(file);
}

/* ---------------------------------------------------------------- set up */

static int make_posix_place(void **state)
{
    struct place *place = calloc(1, sizeof *place);
    const char *temporary = getenv("TMPDIR");
    snprintf(place->directory, sizeof place->directory, "%s/test_os.XXXXXX",
             temporary != NULL ? temporary : "/tmp");
    if (mkdtemp(place->directory) == NULL)
        return -1;
    snprintf(place->path, sizeof place->path, "%s/file", place->directory);
    place->os = os_posix();
    *state = place;
    return 0;
}

static int drop_posix_place(void **state)
{
    struct place *place = *state;
    os_posix_set_calls(NULL);
    unlink(place->path);
    int error = rmdir(place->directory);
    free(place);
    return error;
}

static int make_sim_place(void **state)
{
    struct place *place = calloc(1, sizeof *place);
    place->sim = os_sim_new(NULL);
    place->os = os_sim_os(place->sim);
    strcpy(place->path, "directory/file");
    *state = place;
    return 0;
}

static int drop_sim_place(void **state)
{
    struct place *place = *state;
    bool leaked = os_sim_open_files(place->sim) != 0 || os_sim_open_mappings(place->sim) != 0;
    os_sim_free(place->sim);
    free(place);
    return leaked ? -1 : 0;
}

#define ON_POSIX(test) cmocka_unit_test_setup_teardown(test, make_posix_place, drop_posix_place)
#define ON_SIM(test)                                                     \
    {                                                                    \
#test " (simulated)", test, make_sim_place, drop_sim_place, NULL \
    }
#define ON_BOTH(test) ON_POSIX(test), ON_SIM(test)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_BOTH(test_open),
        ON_BOTH(test_read_write),
        ON_BOTH(test_truncate),
        ON_BOTH(test_allocate_and_punch),
        ON_BOTH(test_lock),
        ON_BOTH(test_map),
        ON_BOTH(test_truncate_under_mapping),
        ON_BOTH(test_remove),
        ON_BOTH(test_rename),
        ON_POSIX(test_rename_by_link),
        ON_POSIX(test_adopt),
        ON_POSIX(test_cached_on_overlay),
        ON_POSIX(test_not_regular),
        ON_POSIX(test_names),
        ON_POSIX(test_descriptor_numbers),
        ON_POSIX(test_space_comes_back),
        ON_POSIX(test_interrupted_and_short),
        ON_POSIX(test_write_errors),
        ON_POSIX(test_allocate_errors),
        ON_POSIX(test_allocate_interrupted),
        ON_POSIX(test_other_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
