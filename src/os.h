/*
 * os: everything fkv asks of the operating system for its files.
 *
 * Two implementations: os_posix.c, and os_sim.c, a simulated disk for tests. Nothing else in the
 * library opens, reads, writes, maps or syncs a file. Functions return 0 or a negative errno value
 * (never -EINTR: implementations retry), and never a short count: a read beyond the end of the
 * file is -ENODATA.
 *
 * A mapping shows the file: bytes written with os_write are visible in it at once, and bytes
 * stored into a writable mapping are the file's, unsynced until a sync. A mapping may reach beyond
 * the end of the file (so that the file can grow under it); only bytes below the end are touched.
 */
#ifndef FKV_OS_H
#define FKV_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct os_file;
struct os_queue;

enum os_open_flags {
    OS_READ_ONLY = 1 << 0,
    OS_CREATE = 1 << 1,    /* create if absent */
    OS_EXCLUSIVE = 1 << 2, /* with OS_CREATE: -EEXIST if present */
};

struct os {
    const struct os_ops *ops;
};

struct os_ops {
    /* -ENOENT, -EEXIST, -EACCES, -EISDIR, -ENXIO (neither a file nor a directory) and others. */
    int (*open)(struct os *os, const char *path, unsigned flags, struct os_file **file);
    void (*close)(struct os_file *file);
    /* Lock against every other opener, in this process too: -EWOULDBLOCK if taken. The lock goes
     * with close or with the process. `shared` for readers that tolerate each other. */
    int (*lock)(struct os_file *file, bool shared);
    int (*read)(struct os_file *file, void *buffer, size_t bytes, uint64_t offset);
    int (*write)(struct os_file *file, const void *buffer, size_t bytes, uint64_t offset);
    /* Everything written so far, through write or a mapping, and the size, is durable: fdatasync.
     */
    int (*sync)(struct os_file *file);
    /* A hint to start writing this range to the medium; promises nothing. */
    void (*start_writeback)(struct os_file *file, uint64_t offset, uint64_t bytes);
    /* A hint to start reading this range into memory; promises nothing. */
    void (*start_read)(struct os_file *file, uint64_t offset, uint64_t bytes);
    int (*size)(struct os_file *file, uint64_t *bytes);
    /* Set the size: new bytes are zeros, bytes beyond are given back. */
    int (*truncate)(struct os_file *file, uint64_t bytes);
    /* Make [offset, offset + bytes) have space on the medium, growing the file if needed; bytes
     * there keep their values, new ones are zeros. -ENOSPC if there is no room; the file may have
     * grown then, by a part of it. */
    int (*allocate)(struct os_file *file, uint64_t offset, uint64_t bytes);
    /* Is what has space written where it lies, so that a write there finds room, and a store into a
     * mapping? Else the one may be -ENOSPC, and the other end the process. */
    bool (*in_place)(struct os_file *file);
    /* Give the space of the range back; it reads as zeros. May do nothing: -EOPNOTSUPP. */
    int (*punch)(struct os_file *file, uint64_t offset, uint64_t bytes);
    /* Map [offset, offset + bytes), offset a multiple of 1 MiB. Readahead is off. */
    int (*map)(struct os_file *file, uint64_t offset, size_t bytes, bool writable, void **address);
    void (*unmap)(struct os_file *file, void *address, size_t bytes);
    /* Make entries of the page table for this part of a mapping now; a hint. */
    void (*populate)(struct os_file *file, void *address, size_t bytes, bool writable);
    /* How much memory this process may use, files in the page cache included. */
    uint64_t (*memory)(struct os *os);
    /* A hint that this range will be read soon. */
    void (*read_ahead)(struct os_file *file, uint64_t offset, uint64_t bytes);
    /* Is all of this range in the page cache? 1 or 0; NULL, or negative: nobody knows. */
    int (*cached)(struct os_file *file, uint64_t offset, uint64_t bytes);
    /* The same file once more, to be read past the page cache, in whole blocks into memory that is
     * aligned to one. NULL, or negative: there is no such thing. */
    int (*open_direct)(struct os_file *file, struct os_file **direct, uint32_t *block_bytes);
    /*
     * Reads that are under way at the same time, up to `depth`; NULL, or -ENOSYS from queue_open:
     * there is no such thing. queue_read adds one, which queue_submit begins; queue_reap takes the
     * result of one that is over (bytes read, or negative), and its tag: NULL if there is none yet
     * and `wait` is false, or if waiting failed. With `wait` it begins those that were added, too:
     * one system call for both; it fails only if none is under way. event_fd, unless negative, is
     * written to when one is over; queue_signal says so later.
     */
    int (*queue_open)(struct os *os, unsigned depth, int event_fd, struct os_queue **queue);
    int (*queue_signal)(struct os_queue *queue, int event_fd);
    void (*queue_close)(struct os_queue *queue);
    int (*queue_read)(struct os_queue *queue, struct os_file *file, void *buffer, size_t bytes,
                      uint64_t offset, void *tag);
    int (*queue_submit)(struct os_queue *queue);
    int (*queue_reap)(struct os_queue *queue, bool wait, void **tag);
    /* Let `file` be used by its owner and those who may use `like`, and by nobody else, as far as
     * this process may say so; NULL: there are no permissions. */
    void (*permit)(struct os_file *file, struct os_file *like);
    /* Does this path lead to this file still? True too where nobody knows. */
    bool (*is_named)(struct os_file *file, const char *path);
    int (*remove)(struct os *os, const char *path);
    /* Give a file another name in its directory, at once: -EEXIST if there is one of that name. */
    int (*rename)(struct os *os, const char *from, const char *to);
    /* Make the creation, removal or renaming of `path` itself durable (fsync of its directory). */
    int (*sync_directory)(struct os *os, const char *path);
};

/* The operating system's own files. */
struct os *os_posix(void);
/* A file of it that the caller has opened: regular, empty, for writing, and not for appending
 * or O_DIRECT (-EBADF). Its descriptor remains the caller's. */
int os_posix_adopt(int fd, struct os_file **file);

#endif
