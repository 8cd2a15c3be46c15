/*
 * os_posix.c: the file interface over Linux.
 *
 * Thin: one system call behind each operation, plus what os.h promises on top of it:
 *
 * 1. No operation returns -EINTR or a short count: both are retried or continued here.
 * 2. Opening never blocks and only ever succeeds on regular files. A fifo or a device opened by
 *    mistake is -ENXIO, as a socket is by itself; a directory is -EISDIR.
 * 3. A descriptor is never 0, 1 or 2 (a program that closed its standard error and then prints to
 *    it would write into the store) and is not inherited through exec.
 * 4. A lock excludes every other open of the file, also one by the same process: flock belongs to
 *    the open file description, where fcntl locks belong to the process and are silently lost when
 *    any descriptor of the file is closed.
 * 5. An allocation that fails leaves the size as it was.
 *
 * Every file is used through one descriptor and positioned calls, so threads need no lock here.
 * Only allocate looks at the size and then acts on it: the caller keeps changes of the size apart.
 *
 * The calls go through a table, constant in the library, replaceable in tests (os_posix.h).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define _FILE_OFFSET_BITS 64

#include "os_posix.h"

#include "memory.h"
#include "os.h"
#include "thread.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Linux 5.14; C libraries that are older than their kernel lack the names. */
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#endif

/* Not in linux/magic.h. */
#define BCACHEFS_MAGIC 0xca451a4e

static_assert(sizeof(off_t) == 8, "offsets are 64 bits");

struct os_file {
    int fd;
    pid_t locker;  /* the process that locked it; 0 none */
    bool overlaid; /* the page cache has what it holds as another file's */
    bool copied_on_write;
};

/* ---------------------------------------------------------------- the table of calls */

static int call_open(const char *path, int flags, mode_t mode)
{
    return open(path, flags, mode);
}

/* Not every C library has it. */
static int call_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
    return (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
}

#define SYSTEM_CALLS                                                                            \
    {                                                                                           \
        .open = call_open, .close = close, .fstat = fstat, .flock = flock, .pread = pread,      \
        .pwrite = pwrite, .fdatasync = fdatasync, .fsync = fsync,                               \
        .sync_file_range = sync_file_range, .ftruncate = ftruncate, .fallocate = fallocate,     \
        .posix_fallocate = posix_fallocate, .mmap = mmap, .munmap = munmap, .madvise = madvise, \
        .unlink = unlink, .link = link, .renameat2 = call_renameat2,                            \
    }

#ifdef FKV_TESTING
const struct os_posix_calls os_posix_system_calls = SYSTEM_CALLS;
static struct os_posix_calls calls = SYSTEM_CALLS;

void os_posix_set_calls(const struct os_posix_calls *replacement)
{
    calls = replacement != NULL ? *replacement : os_posix_system_calls;
}
#else
static const struct os_posix_calls calls = SYSTEM_CALLS;
#endif

/* Repeat `call`, an expression that is negative and sets errno on failure, while interrupted. */
#define RETRY(result, call) \
    do {                    \
        (result) = (call);  \
    } while ((result) < 0 && errno == EINTR)

/* The os.h result of a call that gave -1 or something else. */
static int result_of(int64_t result)
{
    return result < 0 ? -errno : 0;
}

/* ---------------------------------------------------------------- open, close, lock */

/* Only regular files can be mapped, grown and locked the way fkv does. */
static int check_regular(int fd)
{
    struct stat stat;
    int result;
    RETRY(result, calls.fstat(fd, &stat));
    if (result < 0)
        return -errno;
    if (S_ISDIR(stat.st_mode))
        return -EISDIR;
    return S_ISREG(stat.st_mode) ? 0 : -ENXIO;
}

/* Move a descriptor out of the range of the standard streams. Takes `fd` over. */
static int lift_descriptor(int fd)
{
    if (fd > STDERR_FILENO)
        return fd;
    int lifted = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    int error = errno;
    calls.close(fd);
    errno = error;
    return lifted;
}

static int posix_open(struct os *os, const char *path, unsigned flags, struct os_file **file)
{
    (void)os;
    /* O_NONBLOCK: opening a fifo or a device must not wait; it means nothing to regular files. */
    int mode = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    mode |= flags & OS_READ_ONLY ? O_RDONLY : O_RDWR;
    if (flags & OS_CREATE)
        mode |= O_CREAT | (flags & OS_EXCLUSIVE ? O_EXCL : 0);
    struct os_file *opened = memory_new(sizeof *opened); /* first: no file is made without it */
    if (opened == NULL)
        return -ENOMEM;
    int fd;
    RETRY(fd, calls.open(path, mode, 0666));
    if (fd >= 0)
        fd = lift_descriptor(fd);
    int error = fd < 0 ? -errno : check_regular(fd);
    if (error != 0) {
        if (fd >= 0)
            calls.close(fd);
        memory_free(opened);
        return error;
    }
    struct statfs of;
    opened->fd = fd;
    if (fstatfs(fd, &of) == 0) {
        opened->overlaid = of.f_type == OVERLAYFS_SUPER_MAGIC;
        opened->copied_on_write = of.f_type == BTRFS_SUPER_MAGIC || of.f_type == BCACHEFS_MAGIC;
    }
    /* Point lookups, by calls too: what lies around a record is not worth reading. */
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    *file = opened;
    return 0;
}

int os_posix_adopt(int fd, struct os_file **file)
{
    int flags;
    RETRY(flags, fcntl(fd, F_GETFL));
    if (flags < 0)
        return -errno;
    int error = check_regular(fd);
    if (error)
        return error;
    if ((flags & O_ACCMODE) == O_RDONLY || flags & (O_APPEND | O_DIRECT))
        return -EBADF;
    int own;
    RETRY(own, fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
    if (own < 0)
        return -errno;
    if (!(*file = memory_new(sizeof **file))) {
        calls.close(own);
        return -ENOMEM;
    }
    (*file)->fd = own;
    return 0;
}

static void posix_shut(struct os_file *file)
{
    if (file == NULL)
        return;
    /* Closing alone would leave the lock with a child that was forked meanwhile and still has the
     * descriptor. A child that closes what it inherited must leave the lock to its parent. */
    if (file->locker == getpid())
        calls.flock(file->fd, LOCK_UN);
    /* Not retried: Linux has released the descriptor even if it reports EINTR. */
    calls.close(file->fd);
    memory_free(file);
}

static int posix_lock(struct os_file *file, bool shared)
{
    int result;
    RETRY(result, calls.flock(file->fd, (shared ? LOCK_SH : LOCK_EX) | LOCK_NB));
    if (result == 0)
        file->locker = getpid();
    return result_of(result);
}

/* ---------------------------------------------------------------- read, write, sync */

static int posix_read(struct os_file *file, void *buffer, size_t bytes, uint64_t offset)
{
    char *to = buffer;
    while (bytes > 0) {
        ssize_t done;
        RETRY(done, calls.pread(file->fd, to, bytes, (off_t)offset));
        if (done < 0)
            return -errno;
        if (done == 0)
            return -ENODATA;
        to += done;
        bytes -= (size_t)done;
        offset += (uint64_t)done;
    }
    return 0;
}

static int posix_write(struct os_file *file, const void *buffer, size_t bytes, uint64_t offset)
{
    const char *from = buffer;
    while (bytes > 0) {
        ssize_t done;
        RETRY(done, calls.pwrite(file->fd, from, bytes, (off_t)offset));
        if (done < 0)
            return -errno;
        if (done == 0)
            return -EIO; /* no file system should; do not spin on one that does */
        from += done;
        bytes -= (size_t)done;
        offset += (uint64_t)done;
    }
    return 0;
}

static void posix_read_ahead(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    posix_fadvise(file->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}

int os_posix_descriptor(const struct os_file *file)
{
    return file->fd;
}

/* cachestat, of Linux 6.5; C libraries have no function for it yet. */
static int posix_cached(struct os_file *file, uint64_t offset, uint64_t bytes)
{
#ifndef SYS_cachestat
#define SYS_cachestat 451 /* on every architecture */
#endif
    struct {
        uint64_t offset, bytes;
    } range = {offset, bytes};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } pages;
    if (file->overlaid) /* it would say that nothing is */
        return -EOPNOTSUPP;
    if (syscall(SYS_cachestat, file->fd, &range, &pages, 0) != 0)
        return -errno;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return pages.cached >= (offset + bytes - 1) / page - offset / page + 1;
}

/* The block that direct reads want, as the file system says; 0: it has none, or does not say. */
static uint32_t direct_block_bytes(int fd)
{
#ifdef STATX_DIOALIGN
    struct statx status;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
        (status.stx_mask & STATX_DIOALIGN))
        return status.stx_dio_offset_align > status.stx_dio_mem_align ? status.stx_dio_offset_align
                                                                      : status.stx_dio_mem_align;
#else
    (void)fd;
#endif
    return 0;
}

/* Through the descriptor, since the path may have come to be another file's. */
static int posix_open_direct(struct os_file *file, struct os_file **direct, uint32_t *block_bytes)
{
    char path[40];
    *block_bytes = direct_block_bytes(file->fd);
    if (!*block_bytes)
        return -EOPNOTSUPP;
    snprintf(path, sizeof path, "/proc/self/fd/%d", file->fd);
    int fd;
    RETRY(fd, calls.open(path, O_RDONLY | O_DIRECT | O_CLOEXEC, 0));
    if (fd < 0 || (fd = lift_descriptor(fd)) < 0)
        return -errno;
    struct os_file *opened = memory_new(sizeof *opened);
    if (!opened) {
        calls.close(fd);
        return -ENOMEM;
    }
    opened->fd = fd;
    *direct = opened;
    return 0;
}

static int posix_sync(struct os_file *file)
{
    int result;
    RETRY(result, calls.fdatasync(file->fd));
    return result_of(result);
}

static void posix_start_writeback(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    /* To sync_file_range, 0 bytes means up to the end of the file. */
    if (bytes > 0)
        calls.sync_file_range(file->fd, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
}

static void posix_start_read(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    (void)posix_fadvise(file->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}

/* ---------------------------------------------------------------- size and space */

static int posix_size(struct os_file *file, uint64_t *bytes)
{
    struct stat stat;
    int result;
    RETRY(result, calls.fstat(file->fd, &stat));
    if (result < 0)
        return -errno;
    *bytes = (uint64_t)stat.st_size;
    return 0;
}

static int posix_truncate(struct os_file *file, uint64_t bytes)
{
    int result;
    RETRY(result, calls.ftruncate(file->fd, (off_t)bytes));
    return result_of(result);
}

/* Linux's own call, or the C library's emulation on file systems that have none. */
static int allocate_range(int fd, off_t offset, off_t bytes)
{
    int result;
    RETRY(result, calls.fallocate(fd, 0, offset, bytes));
    if (result == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return -errno;
    do {
        result = calls.posix_fallocate(fd, offset, bytes);
    } while (result == EINTR);
    return -result;
}

/* The tmpfs of kernels before 6.10 gives up all that it has done when a signal comes: in a program
 * that a timer interrupts often it would never be done. */
static int posix_allocate(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    sigset_t before;
    if (bytes == 0)
        return 0;
    thread_block_signals(&before);
    int status = allocate_range(file->fd, (off_t)offset, (off_t)bytes);
    thread_restore_signals(&before);
    return status;
}

static int posix_punch(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    if (bytes == 0)
        return 0;
    int result;
    RETRY(result, calls.fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                  (off_t)offset, (off_t)bytes));
    return result_of(result);
}

/* ---------------------------------------------------------------- mappings */

static int posix_map(struct os_file *file, uint64_t offset, size_t bytes, bool writable,
                     void **address)
{
    assert(offset % (1u << 20) == 0);
    int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    void *mapping = calls.mmap(NULL, bytes, protection, MAP_SHARED, file->fd, (off_t)offset);
    if (mapping == MAP_FAILED)
        return -errno;
    /* Point lookups: what lies around a record is not worth reading. */
    calls.madvise(mapping, bytes, MADV_RANDOM);
    *address = mapping;
    return 0;
}

static void posix_unmap(struct os_file *file, void *address, size_t bytes)
{
    (void)file;
    if (address != NULL)
        calls.munmap(address, bytes);
}

static void posix_populate(struct os_file *file, void *address, size_t bytes, bool writable)
{
    (void)file;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)address & ~(page - 1);
    uintptr_t end = ((uintptr_t)address + bytes + page - 1) & ~(page - 1);
    int result;
    /* Older kernels say EINVAL: then the pages fault in one by one, as without the hint. */
    RETRY(result, calls.madvise((void *)begin, end - begin,
                                writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ));
}

/* ---------------------------------------------------------------- names */

static void posix_permit(struct os_file *file, struct os_file *like)
{
    struct stat own, other;
    if (calls.fstat(file->fd, &own) < 0 || calls.fstat(like->fd, &other) < 0)
        return;
    if ((own.st_uid != other.st_uid || own.st_gid != other.st_gid) &&
        fchown(file->fd, other.st_uid, other.st_gid) < 0 &&
        fchown(file->fd, (uid_t)-1, other.st_gid) < 0)
        errno = 0;                               /* a process that is not root's may do no more */
    mode_t mode = (other.st_mode & 0777) | 0600; /* which its owner may do anyway */
    if ((own.st_mode & 0777) != mode)
        fchmod(file->fd, mode);
}

static bool posix_in_place(struct os_file *file)
{
    return !file->copied_on_write;
}

static bool posix_is_named(struct os_file *file, const char *path)
{
    struct stat own, named;
    if (stat(path, &named) < 0)
        return errno != ENOENT && errno != ENOTDIR;
    return calls.fstat(file->fd, &own) < 0 ||
           (own.st_dev == named.st_dev && own.st_ino == named.st_ino);
}

static int posix_remove(struct os *os, const char *path)
{
    (void)os;
    int result;
    RETRY(result, calls.unlink(path));
    return result_of(result);
}

/* File systems that cannot rename without replacing can nearly all link. */
static int posix_rename(struct os *os, const char *from, const char *to)
{
    (void)os;
    int result;
    RETRY(result, calls.renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE));
    if (result == 0 || (errno != EINVAL && errno != ENOSYS))
        return result_of(result);
    RETRY(result, calls.link(from, to));
    return result < 0 ? -errno : posix_remove(os, from);
}

/* The directory that holds `path`, into `directory` of PATH_MAX bytes. */
static int parent_of(const char *path, char *directory)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL) {
        memcpy(directory, ".", 2);
        return 0;
    }
    size_t bytes = slash == path ? 1 : (size_t)(slash - path); /* "/name" is in "/" */
    if (bytes >= PATH_MAX)
        return -ENAMETOOLONG;
    memcpy(directory, path, bytes);
    directory[bytes] = '\0';
    return 0;
}

int os_posix_follow(const char *path, char *followed)
{
    enum { LINKS_MAX = 40 }; /* as many as the system follows */
    const size_t path_bytes = strlen(path) + 1;
    if (path_bytes > PATH_MAX)
        return -ENAMETOOLONG;
    memcpy(followed, path, path_bytes);
    for (int links = 0; links < LINKS_MAX; links++) {
        char target[PATH_MAX], directory[PATH_MAX] = "";
        ssize_t bytes = readlink(followed, target, sizeof target - 1);
        if (bytes < 0) /* no link, or nothing that can be seen: who opens it says what is wrong */
            return 0;
        target[bytes] = '\0';
        if (target[0] != '/' && strchr(followed, '/') != NULL)
            parent_of(followed, directory);
        int length =
            snprintf(followed, PATH_MAX, "%s%s%s", directory, directory[0] ? "/" : "", target);
        if (length >= PATH_MAX)
            return -ENAMETOOLONG;
    }
    return -ELOOP;
}

static int posix_sync_directory(struct os *os, const char *path)
{
    (void)os;
    char directory[PATH_MAX];
    int error = parent_of(path, directory);
    if (error != 0)
        return error;
    int fd;
    RETRY(fd, calls.open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0));
    if (fd < 0)
        return -errno;
    int result;
    RETRY(result, calls.fsync(fd));
    error = result_of(result);
    calls.close(fd);
    /* EINVAL: a file system whose directories cannot be synced, and need not be. */
    return error == -EINVAL ? 0 : error;
}

static const struct os_ops posix_ops = {
    .open = posix_open,
    .close = posix_shut,
    .lock = posix_lock,
    .read = posix_read,
    .write = posix_write,
    .sync = posix_sync,
    .start_writeback = posix_start_writeback,
    .start_read = posix_start_read,
    .size = posix_size,
    .truncate = posix_truncate,
    .allocate = posix_allocate,
    .punch = posix_punch,
    .map = posix_map,
    .unmap = posix_unmap,
    .populate = posix_populate,
    .memory = os_posix_memory,
    .read_ahead = posix_read_ahead,
    .cached = posix_cached,
    .open_direct = posix_open_direct,
    .queue_open = os_posix_queue_open,
    .queue_signal = os_posix_queue_signal,
    .queue_close = os_posix_queue_close,
    .queue_read = os_posix_queue_read,
    .queue_submit = os_posix_queue_submit,
    .queue_reap = os_posix_queue_reap,
    .remove = posix_remove,
    .permit = posix_permit,
    .is_named = posix_is_named,
    .in_place = posix_in_place,
    .rename = posix_rename,
    .sync_directory = posix_sync_directory,
};

struct os *os_posix(void)
{
    static struct os posix = {.ops = &posix_ops};
    return &posix;
}
