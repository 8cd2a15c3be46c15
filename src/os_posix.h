/*
 * os_posix.h: the system calls of os_posix.c, replaceable in tests.
 *
 * os.h hides EINTR and short counts from the library, so only here can a test make them happen.
 * Each member has the signature and the errno convention of the call it is named after.
 */
#ifndef FKV_OS_POSIX_H
#define FKV_OS_POSIX_H

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

struct os_posix_calls {
    int (*open)(const char *path, int flags, mode_t mode);
    int (*close)(int fd);
    int (*fstat)(int fd, struct stat *stat);
    int (*flock)(int fd, int operation);
    ssize_t (*pread)(int fd, void *buffer, size_t bytes, off_t offset);
    ssize_t (*pwrite)(int fd, const void *buffer, size_t bytes, off_t offset);
    int (*fdatasync)(int fd);
    int (*fsync)(int fd);
    int (*sync_file_range)(int fd, off_t offset, off_t bytes, unsigned flags);
    int (*ftruncate)(int fd, off_t bytes);
    int (*fallocate)(int fd, int mode, off_t offset, off_t bytes);
    int (*posix_fallocate)(int fd, off_t offset, off_t bytes); /* returns the error */
    void *(*mmap)(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
    int (*munmap)(void *address, size_t bytes);
    int (*madvise)(void *address, size_t bytes, int advice);
    int (*unlink)(const char *path);
    int (*link)(const char *from, const char *to);
    int (*renameat2)(int from_fd, const char *from, int to_fd, const char *to, unsigned flags);
};

struct os;
/* The name that `path` leads to where it is a symbolic link, and itself where not; PATH_MAX bytes.
 * A store's log is beside the store, not beside links to it. */
int os_posix_follow(const char *path, char *followed);
/* os_posix_memory.c: the machine's memory, or less where a control group allows less. */
uint64_t os_posix_memory(struct os *os);

/* os_posix_queue.c: see os.h. */
struct os_file;
struct os_queue;
int os_posix_descriptor(const struct os_file *file);
int os_posix_queue_open(struct os *os, unsigned depth, int event_fd, struct os_queue **queue);
int os_posix_queue_signal(struct os_queue *queue, int event_fd);
void os_posix_queue_close(struct os_queue *queue);
int os_posix_queue_read(struct os_queue *queue, struct os_file *file, void *buffer, size_t bytes,
                        uint64_t offset, void *tag);
int os_posix_queue_submit(struct os_queue *queue);
int os_posix_queue_reap(struct os_queue *queue, bool wait, void **tag);

#ifdef FKV_TESTING
/* The operating system's own calls: a test copies them and changes some. */
extern const struct os_posix_calls os_posix_system_calls;

/* Use these calls from now on; NULL restores the system's. Not while other threads do I/O. */
void os_posix_set_calls(const struct os_posix_calls *replacement);
#endif

#endif
