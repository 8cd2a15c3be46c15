/*
 * fkv: an embedded key-value store for point lookups.
 *
 *     #include <fkv.h>
 *
 *     fkv *db;
 *     if (fkv_open("accounts.fkv", NULL, &db) != FKV_OK) {
 *         fprintf(stderr, "%s\n", fkv_error_detail(NULL));
 *         return 1;
 *     }
 *     fkv_put(db, "alice", 5, "100", 3);
 *
 *     char value[64];
 *     size_t value_bytes = 0;
 *     if (fkv_get(db, "alice", 5, value, sizeof value, &value_bytes) == FKV_OK)
 *         printf("%.*s\n", (int)value_bytes, value);
 *     fkv_close(db);
 *
 * CONCEPTS
 *
 * A store is one file, NAME, and its write-ahead log, NAME-wal, which belongs to it and is never
 * to be deleted, moved, renamed or copied alone. A new store has the permissions that the umask
 * leaves; its log, a backup and a repaired store have those of the store that they are of, and its
 * owner if this process may give files away; who changes them later has to change both. A symbolic
 * link to a store leads to both; a second hard link to one does not, and must not be opened. One
 * process opens a store at a time, unless all open it read-only; any number of its threads may call
 * every function here at the same time, on the same handle.
 *
 * A child of fork() can open stores of its own. The parent's handles answer FKV_FORKED there;
 * fkv_close gives back what the child has of one. If the parent is killed, its store is in use
 * until such children have closed it too, or called exec, or ended.
 *
 * Keys are 0 to FKV_KEY_BYTES_MAX bytes, values 0 to FKV_VALUE_BYTES_MAX; both are plain bytes.
 * There is no order over keys: fkv answers "what is the value of this key".
 *
 * DURABILITY. A commit (one fkv_put or fkv_delete, or one fkv_txn_commit) is atomic. When it
 * returns it is written to the log: it survives the death of the process, kill -9 included. It
 * survives the loss of power too if it was synced: commit with FKV_SYNC, or call fkv_sync
 * afterwards. After a loss of power the store opens at a state that some commit left, with every
 * synced commit and all commits before it in it; never at a part of a commit.
 *
 * ERRORS. Every function that can fail returns an enum fkv_error, FKV_OK (0) on success; outputs
 * are untouched on failure unless said otherwise. fkv_error_detail says more. The library never
 * prints, exits or aborts on bad input or I/O errors. It leaves signals alone: under a limit of the
 * size of files (RLIMIT_FSIZE) the system ends the program with SIGXFSZ, unless it ignores that,
 * and then it is FKV_FULL. Interruptions by handlers, with or without SA_RESTART, are no errors.
 * But a thread must not be cancelled (pthread_cancel) inside a call, nor leave one by longjmp: it
 * may hold what all others wait for. A process may end without closing its stores, but exit may
 * wait for read sections of other threads. libfkv.so stays in memory after dlclose; what has
 * libfkv.a in it and may be unloaded is to be linked with -z nodelete.
 *
 * MEMORY. The library copies what it is given; the caller's buffers are free again on return.
 * Memory that it lends is read-only and valid for as long as the lending function says.
 */
#ifndef FKV_H
#define FKV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FKV_VERSION_MAJOR 0
#define FKV_VERSION_MINOR 1
#define FKV_VERSION_PATCH 0

/* The longest key, in bytes. */
#define FKV_KEY_BYTES_MAX 65535u
/* The longest value, in bytes: 1 GiB. */
#define FKV_VALUE_BYTES_MAX 1073741824u

#if defined(__GNUC__)
#define FKV_API __attribute__((visibility("default")))
#else
#define FKV_API
#endif

/* Every result a function may have. Numbers are never reused for another meaning. */
enum fkv_error {
    FKV_OK = 0,
    FKV_NOT_FOUND = 1,        /* no such key */
    FKV_INVALID = 2,          /* an argument that no call may have: NULL, an unknown flag, ... */
    FKV_KEY_TOO_LARGE = 3,    /* over FKV_KEY_BYTES_MAX */
    FKV_VALUE_TOO_LARGE = 4,  /* over FKV_VALUE_BYTES_MAX */
    FKV_BUFFER_TOO_SMALL = 5, /* the value is longer than the caller's buffer */
    FKV_NO_MEMORY = 6,        /* memory could not be had; nothing changed */
    FKV_FULL = 7,             /* no room on the disk, or a commit that can never have room in the
                               * log; nothing changed, reads and deletes go on */
    FKV_IO = 8,               /* the operating system reported an error */
    FKV_FAILED = 9,           /* a write or sync failed earlier: read-only until reopened */
    FKV_READ_ONLY = 10,       /* a write on a store opened read-only */
    FKV_NOT_EXIST = 11,       /* no such file, and FKV_NO_CREATE or FKV_OPEN_READ_ONLY was given; or
                               * no such directory; or the name is too long for a file */
    FKV_PERMISSION = 12,      /* the file may not be opened, or not be opened for writing; or its
                               * directory may not be read, which it takes to sync it */
    FKV_IS_DIRECTORY = 13,    /* the path names a directory */
    FKV_IN_USE = 14,          /* another handle, of this or another process, has the store open */
    FKV_NOT_A_STORE = 15,     /* the file is not one of fkv's; or a pipe, a socket, a device */
    FKV_UNKNOWN_FORMAT = 16,  /* written by a version of fkv with another format */
    FKV_TRUNCATED = 17,       /* the file is shorter than what it should hold */
    FKV_DAMAGED = 18,         /* bytes that fail their checksum or contradict others */
    FKV_LOG_MISMATCH = 19,    /* the log belongs to another store */
    FKV_LOG_MISSING = 20,     /* the log holds commits that are not in the file, and is gone */
    FKV_TXN_ENDED = 21,       /* the transaction is committed or aborted already */
    FKV_CONFLICT = 22,        /* another commit changed what this transaction had read */
    FKV_FORKED = 23,          /* the handle was opened before fork(); open it again in the child */
    FKV_MODE_MISMATCH = 24,   /* digest mode asked for, and the store is not of it */
    FKV_SNAPSHOT_ENDED = 25,  /* the store that the snapshot is of was closed */
    FKV_CANCELLED = 26,       /* a backup, a check, a repair: its progress function said so; an
                               * asynchronous get: the store was closed before it was read */
    FKV_BUSY = 27,            /* as many asynchronous gets are open as the queue has room for */
    FKV_EXISTS = 28,          /* there is a file already where a new one was to be made */
};

/* A handle on an open store, a transaction and a snapshot on it, and a scan of a snapshot. */
typedef struct fkv fkv;
typedef struct fkv_txn fkv_txn;
typedef struct fkv_snapshot fkv_snapshot;
typedef struct fkv_load fkv_load;
typedef struct fkv_scan fkv_scan;

/* ---------------------------------------------------------------- opening and closing */

/* Flags of fkv_options.flags. */
enum {
    FKV_OPEN_READ_ONLY = 1u << 0, /* open for reading; nothing is written, not even recovery */
    FKV_NO_CREATE = 1u << 1,      /* an error rather than a new store where there is none */
    FKV_EXCLUSIVE = 1u << 2,      /* an error (FKV_EXISTS) where there is a file already; not
                                   * together with one of the two above (FKV_INVALID) */
    FKV_DIGEST = 1u << 3,         /* new store: keep a salted 26-byte BLAKE3 digest, not the key */
    FKV_NO_THREAD = 1u << 4,      /* start no thread; all work is done inside the calls */
    FKV_NO_VERIFY = 1u << 5,      /* do not verify the checksum of every record that is read */
    FKV_SYNC_EVERY = 1u << 6,     /* every commit is synced, as if FKV_SYNC were given each time */
    /*
     * Read records by system calls, never in a mapping of the file. An error of the medium under a
     * mapping ends the process (SIGBUS); this way it comes back as FKV_IO. A get of what is in the
     * system's cache takes about four times as long, and fkv_borrow is refused (FKV_INVALID).
     * The log, whose beginning is recycled and stays in the cache, is written in a mapping all
     * the same.
     *
     * Without the flag a store reads in the mapping as long as its file fits the memory that the
     * process may use (that of the machine or, if less, of its control group), and by calls once it
     * does not: a cold record is then one read of the device, also where it crosses pages.
     */
    FKV_READ_WITHOUT_MAPPING = 1u << 7,
};

/*
 * Options of fkv_open. Always initialise with fkv_options_init and change what you need: fields
 * are only ever added, at the end, and zero means the default. Fields that a newer header has than
 * the library is of are not looked at, whatever is in them.
 */
typedef struct fkv_options {
    size_t size;    /* set by fkv_options_init; the library's guard for its own growth */
    uint32_t flags; /* FKV_OPEN_READ_ONLY and others, or-ed; default 0 */

    /*
     * The bound on space: at every commit, dead record space is at most this percentage of live
     * record space, plus a few sectors of 1 MiB (docs/space-bound.md has the theorem). 10 to 100;
     * default 100, which settles at about 37 under uniform overwrites. Lower means a smaller file
     * and more copying per overwrite.
     */
    uint32_t garbage_percent_max;

    /*
     * The log grows to this many bytes before a checkpoint must have freed its beginning. More
     * means fewer checkpoints and a longer recovery: a second for a million commits or so. 1 MiB
     * to 64 GiB; default 256 MiB. A store that is written little has a small log. With a hundred
     * million keys and more, written in random order, each checkpoint writes most of the index:
     * docs/scaling.md says what a larger log saves. Who writes faster than a checkpoint can follow
     * is slowed down while the log is short of room: some commits, at last each, sleep for up to
     * 4 ms.
     */
    uint64_t log_bytes_max;

    /*
     * The most memory, in bytes, for the pages of the index (20 bytes a key): at least 32 KiB;
     * default 0, all of it stays in memory once it was used. With less than it needs, pages leave
     * memory, and come back by a read of 4 KiB each: a get then reads the device once for its
     * record and, for as great a share of keys as the index exceeds its memory, once more; so does
     * a put. What little has changed of a page stays in memory when the page leaves, up to a
     * quarter of the limit, and is written together with more. The limit is exceeded for a while:
     * by the pages that one large commit changes, by those that change while a checkpoint is
     * written (up to as many again: then commits sleep), by those that leave until no reader can
     * see them (at most 8 MiB or a quarter of the limit, whichever is more; and half as much by
     * those that come meanwhile: then gets sleep, for 1 ms each), and while fkv_check runs or a
     * read section stays open, until something else is read or written. What leads to pages takes
     * another 2 bytes in a hundred, always.
     *
     * Not limited by it are the buffers in which values wait for the disk, of 1 MiB each: a few,
     * or, of who writes faster than the disk, up to 128, or an eighth of the memory that the
     * process may use, if that is less. They are kept until the store is closed.
     */
    uint64_t index_memory_max;
} fkv_options;

/* Set every option to its default. `options` must not be NULL. */
FKV_API void fkv_options_init(fkv_options *options);

/*
 * Open the store at `path`, creating it where there is none, and recover it if it was not closed.
 *
 * path      a file name; the log is this name with "-wal" appended. Not NULL, not empty.
 * options   NULL for the defaults.
 * db        receives the handle, to be given to fkv_close. Not NULL; NULL is stored on error.
 *
 * Errors: FKV_INVALID, FKV_NO_MEMORY, FKV_IO, FKV_FULL, FKV_NOT_EXIST, FKV_PERMISSION,
 * FKV_IS_DIRECTORY, FKV_IN_USE, FKV_NOT_A_STORE, FKV_UNKNOWN_FORMAT, FKV_TRUNCATED, FKV_DAMAGED,
 * FKV_LOG_MISMATCH, FKV_LOG_MISSING, FKV_MODE_MISMATCH, FKV_EXISTS, and FKV_FORKED in a process
 * that was forked inside a read section, which cannot use fkv. fkv_error_detail(NULL) says more.
 * FKV_NO_MEMORY may also be a limit of address space (RLIMIT_AS): about 100 GB are reserved, or
 * less where that is limited, a quarter of it for the index; 40 GB suffice. A file that is refused
 * is left as it was (unless the values that a whole log names turn out to be damaged when it is
 * replayed: then others of the log may have been written where they belong), and one that this
 * call has made is removed when it fails; but if it fails as the disk does (FKV_IO), or its
 * directory may not be read, it may leave the beginning of a store, which FKV_EXCLUSIVE refuses,
 * and which is completed without it.
 */
FKV_API enum fkv_error fkv_open(const char *path, const fkv_options *options, fkv **db);

/*
 * Close: ends all open transactions and snapshots, writes a last checkpoint, syncs, and releases
 * everything. If that checkpoint would have to write more than 256 MiB of the index, it is left
 * out, and the log is synced: the next fkv_open replays it, and until then the log is a part of the
 * store. After a call of fkv_checkpoint (and no writes that follow it) the file alone is whole.
 *
 * No other call may be running or come after, and no borrowed value may be in use. NULL is
 * allowed and does nothing.
 *
 * The handle is gone whatever is returned. FKV_IO or FKV_FAILED say that the last checkpoint
 * could not be written; commits are then in the log, and the next fkv_open recovers them.
 */
FKV_API enum fkv_error fkv_close(fkv *db);

/* ---------------------------------------------------------------- reading and writing */

/* Flags of commits. */
enum {
    FKV_SYNC = 1u << 0, /* return once the commit is durable on the medium */
};

/*
 * Set the value of a key; a commit of its own, written to the log and not synced (but see
 * FKV_SYNC_EVERY). fkv_put_with takes commit flags.
 *
 * key, key_bytes       at most FKV_KEY_BYTES_MAX; key may be NULL if key_bytes is 0.
 * value, value_bytes   at most FKV_VALUE_BYTES_MAX; value may be NULL if value_bytes is 0.
 *
 * Errors: FKV_INVALID, FKV_KEY_TOO_LARGE, FKV_VALUE_TOO_LARGE, FKV_NO_MEMORY, FKV_FULL, FKV_IO,
 * FKV_FAILED, FKV_READ_ONLY, FKV_FORKED; FKV_DAMAGED, and nothing has changed, where what leads to
 * the key, or says which pieces the value has that it had before, is damaged. After FKV_NO_MEMORY
 * and FKV_FULL nothing has changed and the call may be tried again. After FKV_IO or FKV_FAILED from
 * a commit that asked for sync, the commit is visible but may not be durable, and the store is
 * read-only until it is reopened. So it is where nothing is written in place (btrfs) and the log
 * found no room: FKV_IO, and the commit is not visible, but may be once the store is reopened.
 */
FKV_API enum fkv_error fkv_put(fkv *db, const void *key, size_t key_bytes, const void *value,
                               size_t value_bytes);
FKV_API enum fkv_error fkv_put_with(fkv *db, const void *key, size_t key_bytes, const void *value,
                                    size_t value_bytes, unsigned flags);

/*
 * Delete a key; a commit of its own. FKV_NOT_FOUND if there is none (nothing is written then).
 * Otherwise as fkv_put.
 */
FKV_API enum fkv_error fkv_delete(fkv *db, const void *key, size_t key_bytes);
FKV_API enum fkv_error fkv_delete_with(fkv *db, const void *key, size_t key_bytes, unsigned flags);

/*
 * Copy the value of a key into the caller's buffer.
 *
 * buffer, buffer_bytes   where to copy to; buffer may be NULL if buffer_bytes is 0.
 * value_bytes            receives the length of the value, on FKV_OK and FKV_BUFFER_TOO_SMALL
 *                        (nothing is copied then). NULL where it is not wanted.
 *
 * Takes no lock and waits for nobody (but see index_memory_max). Errors: FKV_NOT_FOUND,
 * FKV_BUFFER_TOO_SMALL, FKV_INVALID, FKV_KEY_TOO_LARGE, FKV_DAMAGED, FKV_IO, FKV_NO_MEMORY,
 * FKV_FORKED. On FKV_DAMAGED the contents of the buffer are undefined; of a value in several pieces
 * (see fkv_borrow) that cannot be read to its end, or is replaced during the call, a part may be in
 * the buffer whatever is returned.
 */
FKV_API enum fkv_error fkv_get(fkv *db, const void *key, size_t key_bytes, void *buffer,
                               size_t buffer_bytes, size_t *value_bytes);

/* FKV_OK if the key has a value, FKV_NOT_FOUND if not. Reads the index only, never the record.
 * Otherwise errors as fkv_get. */
FKV_API enum fkv_error fkv_exists(fkv *db, const void *key, size_t key_bytes);

/* The length of the value of a key, in bytes. Errors as fkv_get. */
FKV_API enum fkv_error fkv_value_size(fkv *db, const void *key, size_t key_bytes,
                                      size_t *value_bytes);

/*
 * Borrow values without copying them. Between fkv_read_begin and fkv_read_end, on one thread,
 * fkv_borrow returns pointers into the store, valid until that fkv_read_end whatever is written
 * meanwhile, by this thread or by others. Read sections nest. They are cheap, take no lock, and
 * should be short: while one is open, space that was freed after its beginning is not reused.
 * With FKV_NO_THREAD a writer in another thread may wait, at the end of its call, for read
 * sections. So may, in all stores, who closes one or gives a snapshot back (fkv_close,
 * fkv_snapshot_close, fkv_scan_close, fkv_backup), and who calls fork or exit; whichever store the
 * section is of. Nobody may wait for them inside one.
 *
 * Values of up to 65,525 bytes can always be borrowed. Where key and value are together longer than
 * 131,060 bytes (in digest mode a key counts as 26), the value is stored in several pieces:
 * fkv_borrow then returns FKV_VALUE_TOO_LARGE, and the length in *value_bytes; use fkv_get.
 * Otherwise errors as fkv_get; FKV_INVALID outside of a read section.
 */
FKV_API void fkv_read_begin(fkv *db);
FKV_API void fkv_read_end(fkv *db);
FKV_API enum fkv_error fkv_borrow(fkv *db, const void *key, size_t key_bytes, const void **value,
                                  size_t *value_bytes);

/*
 * Many keys at once. Each call answers `count` reads, each with a status of its own, in the order
 * in which they are given. Where the data is in memory, a key takes about a third of the time of
 * one asked for alone, from 32 keys on: all their buckets of the index are fetched at the same
 * time, then their records. Where it is not, fkv_get_many has up to 64 reads of the device under
 * way (io_uring; without it, one after the other behind a hint to the system).
 *
 *     fkv_read reads[16];
 *     for (int i = 0; i < 16; i++)
 *         reads[i] = (fkv_read){.key = key[i], .key_bytes = 32,
 *                               .buffer = value[i], .buffer_bytes = sizeof value[i]};
 *     fkv_get_many(db, reads, 16);
 *     for (int i = 0; i < 16; i++)
 *         if (reads[i].error == FKV_OK)
 *             use(reads[i].buffer, reads[i].value_bytes);
 *
 * Each key is read as by fkv_get, fkv_exists or fkv_borrow: not all of them at one moment (for that
 * use a snapshot or a transaction). The same key may occur more than once; buffers must not
 * overlap.
 *
 * fkv_get_many      copies values into the buffers.
 * fkv_exists_many   looks at keys only; sets nothing but `error`.
 * fkv_borrow_many   lends values as fkv_borrow does, inside a read section.
 *
 * FKV_OK: each read is FKV_OK or FKV_NOT_FOUND. Otherwise the first error that is neither, and
 * all reads were answered all the same; fkv_error_detail is about the one that failed last. But
 * FKV_INVALID for a NULL handle, `reads` or buffer (which has buffer_bytes), and FKV_FORKED, come
 * before anything is read.
 */
typedef struct fkv_read {
    const void *key;
    size_t key_bytes;
    void *buffer;         /* of fkv_get_many; may be NULL if buffer_bytes is 0 */
    size_t buffer_bytes;  /* likewise */
    const void *value;    /* received, from fkv_borrow_many */
    size_t value_bytes;   /* received; see fkv_get and fkv_borrow */
    enum fkv_error error; /* received: what the single call would have returned */
} fkv_read;

FKV_API enum fkv_error fkv_get_many(fkv *db, fkv_read *reads, size_t count);
FKV_API enum fkv_error fkv_exists_many(fkv *db, fkv_read *reads, size_t count);
FKV_API enum fkv_error fkv_borrow_many(fkv *db, fkv_read *reads, size_t count);

/*
 * Make every commit that has returned durable. One call covers the commits of all threads.
 * Errors: FKV_IO, FKV_FAILED (the store is then read-only until reopened), FKV_READ_ONLY,
 * FKV_INVALID, FKV_FORKED.
 */
FKV_API enum fkv_error fkv_sync(fkv *db);

/* ---------------------------------------------------------------- transactions */

/*
 * A write transaction: any number of puts and deletes that become visible, and durable, all at
 * once at fkv_txn_commit or not at all. Reads inside see the transaction's own writes over the
 * state of the store.
 *
 * Several may be open at the same time, each used by one thread at a time. They are optimistic: a
 * commit fails with FKV_CONFLICT, and changes nothing, if a key that the transaction has read
 * through it was written by another commit since the transaction began (now and then also if only
 * a key of the same hash class was: treat it as a call to try again). Keys that are only written
 * never conflict; the later commit wins.
 *
 * fkv_txn_get and fkv_txn_exists return FKV_CONFLICT too, as soon as they see that the commit
 * would; the buffer and *value_bytes may have been written to then, and the transaction is of no
 * more use.
 *
 * The writes are held in memory until commit, and its records or, where they are more than 4 MiB,
 * references to them (32 bytes an operation are counted) must fit into twice log_bytes_max and 64
 * MiB: some 18 million operations by default, else it is FKV_FULL. At most 65,536 of the values may
 * be stored in pieces (see fkv_borrow), else it is FKV_INVALID. After FKV_FULL and FKV_NO_MEMORY,
 * and FKV_INVALID for unknown flags, the transaction is open still, and can be tried again.
 * Otherwise fkv_txn_commit and fkv_txn_abort end the transaction; the handle stays valid, answering
 * FKV_TXN_ENDED, until fkv_txn_free, which aborts a transaction that is still open.
 * fkv_txn_free(NULL) does nothing.
 *
 * Errors of fkv_txn_begin: FKV_READ_ONLY, FKV_FAILED, FKV_NO_MEMORY, FKV_INVALID, FKV_FORKED. Of
 * fkv_txn_put and fkv_txn_delete: FKV_INVALID, FKV_KEY_TOO_LARGE, FKV_VALUE_TOO_LARGE,
 * FKV_NO_MEMORY, FKV_FORKED; of fkv_txn_get and fkv_txn_exists, beside FKV_CONFLICT: as fkv_get; of
 * fkv_txn_abort: FKV_INVALID, FKV_FORKED. Of all of them FKV_TXN_ENDED, also once the store is
 * closed.
 */
FKV_API enum fkv_error fkv_txn_begin(fkv *db, fkv_txn **txn);
FKV_API enum fkv_error fkv_txn_put(fkv_txn *txn, const void *key, size_t key_bytes,
                                   const void *value, size_t value_bytes);
/* FKV_OK also if the key is absent, and so is the commit. */
FKV_API enum fkv_error fkv_txn_delete(fkv_txn *txn, const void *key, size_t key_bytes);
FKV_API enum fkv_error fkv_txn_get(fkv_txn *txn, const void *key, size_t key_bytes, void *buffer,
                                   size_t buffer_bytes, size_t *value_bytes);
FKV_API enum fkv_error fkv_txn_exists(fkv_txn *txn, const void *key, size_t key_bytes);
/* flags: 0 or FKV_SYNC. FKV_CONFLICT, FKV_TXN_ENDED, and the errors of fkv_put. */
FKV_API enum fkv_error fkv_txn_commit(fkv_txn *txn, unsigned flags);
FKV_API enum fkv_error fkv_txn_abort(fkv_txn *txn);
FKV_API void fkv_txn_free(fkv_txn *txn);

/* ---------------------------------------------------------------- snapshots */

/*
 * A snapshot is the store as one commit left it: reads on it see exactly that, whatever is written
 * meanwhile, for as long as it is open. Any number may be open, each used by any number of threads.
 * They are of this process and handle: closing the store ends them, and so does a crash.
 *
 * Opening one takes no time to speak of, and nobody pays for those that are not open. One takes 4.4
 * KB of memory. While one is open, a commit that changes a key for the first time since the newest
 * was opened keeps 64 bytes about it, and 8 KiB for each sector of 1 MiB in which a record dies for
 * the first time; of a value in pieces 8 bytes more for each. (Memory for that is taken in blocks
 * of 0.5 KB that grow to 16 KB.) And sectors with records that an open snapshot sees are not used
 * again. So space and memory that are pinned are bounded by what was overwritten or deleted since,
 * once for each key, and are shown by fkv_get_stats. What only a snapshot sees that is closed is
 * given up with it, whichever others stay open. Reads on a snapshot look at what was so kept for
 * it, and for each snapshot opened after it.
 *
 * fkv_snapshot_open waits for a commit that is under way. A store that is opened read-only has
 * snapshots too. Errors: FKV_INVALID, FKV_NO_MEMORY, FKV_FORKED.
 */
FKV_API enum fkv_error fkv_snapshot_open(fkv *db, fkv_snapshot **snapshot);

/*
 * Give a snapshot back. No call on it may be running or come after, and no value borrowed from it
 * may be in use. Merges what was kept for it with what an older snapshot needs, in small steps
 * beside writers, or forgets it: in any order of closing, a time that is proportional to what is
 * kept, or a little more; but what is kept for a sector is handed on once for each snapshot that is
 * closed before an older one that sees it. NULL is allowed and does nothing. Allowed, and necessary
 * to free its memory, after fkv_close too.
 */
FKV_API void fkv_snapshot_close(fkv_snapshot *snapshot);

/*
 * As fkv_get, fkv_exists, fkv_value_size and fkv_borrow, of the snapshot's state. They take no lock
 * either. A value is borrowed between fkv_read_begin and fkv_read_end of the store, as there.
 * Errors as there, and FKV_SNAPSHOT_ENDED once the store is closed.
 */
FKV_API enum fkv_error fkv_snapshot_get(fkv_snapshot *snapshot, const void *key, size_t key_bytes,
                                        void *buffer, size_t buffer_bytes, size_t *value_bytes);
FKV_API enum fkv_error fkv_snapshot_exists(fkv_snapshot *snapshot, const void *key,
                                           size_t key_bytes);
FKV_API enum fkv_error fkv_snapshot_value_size(fkv_snapshot *snapshot, const void *key,
                                               size_t key_bytes, size_t *value_bytes);
FKV_API enum fkv_error fkv_snapshot_borrow(fkv_snapshot *snapshot, const void *key,
                                           size_t key_bytes, const void **value,
                                           size_t *value_bytes);
/* How many keys it has. 0 for NULL. */
FKV_API uint64_t fkv_snapshot_keys(const fkv_snapshot *snapshot);

/* ---------------------------------------------------------------- bulk loads */

/*
 * Load many pairs, each written to the file once and not to the log: for filling a store, or adding
 * much to it, at the speed of the disk. All of a load is there, and durable, once fkv_load_commit
 * has returned FKV_OK; until it is committed none of it is seen, and a crash or fkv_load_free
 * leaves nothing of it. A key that is put twice has the later value.
 *
 * Memory: about 32 bytes a pair until the commit and as much again during it, whatever the length
 * of the values, and 1 MiB. There is one load at a time in a store, used by one thread at a time;
 * other threads may read and write meanwhile. Pairs of more than 131,060 bytes are refused with
 * FKV_VALUE_TOO_LARGE: fkv_put writes those once, too.
 *
 * fkv_load_commit must not be called inside a read section (FKV_INVALID). It keeps other writers
 * waiting while it changes the index, about as long as as many puts of empty values would take;
 * readers go on, and see pairs of the load come one after the other. Then it makes a checkpoint. It
 * fails, and changes nothing, with FKV_FULL or FKV_NO_MEMORY, and may be tried again; or with
 * FKV_CONFLICT if others have written more than 64 GiB since the load began, and with FKV_FAILED
 * after a failed write. A load may have some 20 million pairs with the default log_bytes_max (24
 * bytes a pair must fit twice that and 64 MiB); FKV_FULL beyond.
 *
 * Errors of fkv_load_begin: FKV_CONFLICT if there is a load, FKV_READ_ONLY, FKV_FAILED,
 * FKV_NO_MEMORY, FKV_INVALID, FKV_FORKED. Of fkv_load_put: those of fkv_put, but that a full disk
 * only shows here or at the commit. After the commit, or once the store is closed, FKV_TXN_ENDED.
 * fkv_load_free(NULL) does nothing.
 */
FKV_API enum fkv_error fkv_load_begin(fkv *db, fkv_load **load);
FKV_API enum fkv_error fkv_load_put(fkv_load *load, const void *key, size_t key_bytes,
                                    const void *value, size_t value_bytes);
FKV_API enum fkv_error fkv_load_commit(fkv_load *load);
FKV_API void fkv_load_free(fkv_load *load);

/* ---------------------------------------------------------------- scans */

/*
 * A scan gives every key and value of a snapshot exactly once, in no order that means anything, at
 * the speed at which the file can be read; writers go on meanwhile.
 *
 *     const void *key, *value;
 *     size_t key_bytes, value_bytes;
 *     while (fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes) == FKV_OK)
 *         ...
 *
 * In digest mode keys are the digests: 26 bytes. A scan is used by one thread at a time; a snapshot
 * may have any number. To scan with n threads, open n scans, one for each part.
 */
typedef struct fkv_scan_options {
    size_t size;
    uint32_t flags; /* none so far: 0 */
    /* This one of so many parts, which together are all pairs; 0 of 0: all. part < parts. */
    uint32_t part, parts;
    /* Go on where fkv_scan_position said, in a scan of the same part of the same snapshot. 0: from
     * the beginning. */
    uint64_t position;
} fkv_scan_options;

FKV_API void fkv_scan_options_init(fkv_scan_options *options);

/* options: NULL for a scan of everything. The scan may outlive fkv_snapshot_close: the snapshot is
 * closed with the last of them. Errors: FKV_INVALID, FKV_NO_MEMORY, FKV_SNAPSHOT_ENDED, FKV_FORKED.
 */
FKV_API enum fkv_error fkv_scan_open(fkv_snapshot *snapshot, const fkv_scan_options *options,
                                     fkv_scan **scan);
/* NULL is allowed. Allowed, and necessary, after fkv_close too. */
FKV_API void fkv_scan_close(fkv_scan *scan);

/*
 * The next pair. *key and *value are lent until the next call on this scan. Where the value is
 * stored in several pieces (see fkv_borrow), *value is NULL: fkv_scan_value copies it.
 *
 * FKV_NOT_FOUND: that was the last. FKV_DAMAGED: a part of the file is damaged, and what was in it
 * is passed over; the next call goes on behind it. Other errors: FKV_IO, FKV_NO_MEMORY (the rest of
 * a sector of 1 MiB is passed over), FKV_INVALID, FKV_SNAPSHOT_ENDED, FKV_FORKED.
 */
FKV_API enum fkv_error fkv_scan_next(fkv_scan *scan, const void **key, size_t *key_bytes,
                                     const void **value, size_t *value_bytes);
/* Copy the value of the pair that was given last, of whatever length. Errors: FKV_BUFFER_TOO_SMALL,
 * FKV_DAMAGED, FKV_IO, FKV_NO_MEMORY, FKV_INVALID, FKV_SNAPSHOT_ENDED, FKV_FORKED. */
FKV_API enum fkv_error fkv_scan_value(fkv_scan *scan, void *buffer, size_t buffer_bytes);
/* Where the scan is: behind the pair given last. For fkv_scan_options.position. */
FKV_API uint64_t fkv_scan_position(const fkv_scan *scan);

/* ---------------------------------------------------------------- backups */

/* Options of backups. Initialise with fkv_backup_options_init. */
typedef struct fkv_backup_options {
    size_t size;
    uint32_t flags; /* none so far: 0 */
    /* The backup's file is written no faster than this. The store's is read as fast, and up to
     * twice as fast where half of it is garbage. Default 0: no limit. */
    uint64_t bytes_per_second;
    /* Called now and then, at least every 100 ms while it waits for the limit, with how far the
     * reading is, in bytes; `done` is `total` once, at the end. To return anything but 0 ends the
     * backup with FKV_CANCELLED, also then. It may use this handle, but not close it. Default NULL.
     */
    int (*progress)(void *context, uint64_t done, uint64_t total);
    void *context; /* for `progress` */
} fkv_backup_options;

FKV_API void fkv_backup_options_init(fkv_backup_options *options);

/*
 * Write a backup: a store of its own, in one file, with the pairs that this one has at the last
 * commit before the call, and no garbage. Readers and writers go on meanwhile and do not wait for
 * it. To restore it is to open it; or to copy it to where the store was, once no process has that
 * open, and to remove the old log, NAME-wal, which is not its own.
 *
 * Every record is verified before it is copied, whatever FKV_NO_VERIFY says, and the keys are
 * counted: what is damaged is not backed up, but found. A snapshot is open for as long as the
 * backup takes, and pins what is overwritten meanwhile (see above). Memory: 24 bytes a key, and
 * some MiB, whatever the length of the values. A store that is opened read-only can be backed up
 * too. In digest mode the backup has the digests, and the same keys are found in it.
 *
 * path      the new file; must not exist, nor a log of that name ("-wal" appended). It appears
 *           under this name at once, whole and durable, when all is done. Until then it has the
 *           name with "-part" appended: that is what a crash leaves at most, and what the next
 *           backup to the same path replaces.
 * options   NULL for the defaults.
 *
 * On an error there is no new file. FKV_DAMAGED: the store is damaged; fkv_check_file says where,
 * fkv_repair saves what is whole. FKV_EXISTS: the path, or a log of that name, exists.
 * FKV_IN_USE: another backup is being written to it. FKV_CANCELLED, FKV_FULL, FKV_IO,
 * FKV_NO_MEMORY, FKV_NOT_EXIST (no such directory), FKV_PERMISSION, FKV_IS_DIRECTORY, FKV_FORKED,
 * FKV_INVALID (a NULL, an unknown flag, or inside a read section).
 */
FKV_API enum fkv_error fkv_backup(fkv *db, const char *path, const fkv_backup_options *options);

/*
 * The same into a file that the caller has open, as `fd`: a regular one, empty, open for writing,
 * and without O_APPEND and O_DIRECT; else FKV_INVALID. (A store is not written from its first byte
 * to its last: the header comes at the end. `fkv dump` writes to pipes.) The file is synced, its
 * directory is not; the descriptor stays open, and its offset as it was. It is not a store before
 * all is done, and is empty again after an error.
 */
FKV_API enum fkv_error fkv_backup_fd(fkv *db, int fd, const fkv_backup_options *options);

/* ---------------------------------------------------------------- asynchronous reads */

/*
 * Gets that are under way at the same time, for programs with an event loop: a queue takes gets,
 * and gives back completions in whatever order they come. Records that are not in memory are read
 * through io_uring, so the disk has many to work on; where liburing or the kernel's permission is
 * missing, the system is asked to read ahead, and the reads are made in fkv_async_wait. No thread
 * is started. What is in memory is answered by fkv_async_get itself; so are values in several
 * pieces (see fkv_borrow), which are read there and then. Where the system does not say what is in
 * its page cache (Linux before 6.5), stores read in a mapping count as in memory.
 *
 * While the file is larger than the memory that the process may use, most of the reads go past the
 * page cache (O_DIRECT), where the file system allows it: that costs the processor half as much.
 * Every sixteenth fills the cache, so that records which are asked for often are found there.
 *
 *     fkv_async *async;
 *     fkv_async_open(db, 32, &async);
 *     while (more() || open) {
 *         while (more() && fkv_async_get(async, key, key_bytes, buffer, room, request) == FKV_OK)
 *             open++;
 *         fkv_completion done[32];
 *         size_t count;
 *         fkv_async_wait(async, 1, done, 32, &count);
 *         open -= count;
 *     }
 *     fkv_async_close(async);
 *
 * A queue belongs to one thread at a time; a store may have many. A value is one that the key had
 * at some moment between fkv_async_get and the completion.
 */
typedef struct fkv_async fkv_async;

typedef struct fkv_completion {
    void *tag;            /* as given to fkv_async_get */
    enum fkv_error error; /* as of fkv_get; FKV_CANCELLED */
    size_t value_bytes;   /* on FKV_OK and FKV_BUFFER_TOO_SMALL */
} fkv_completion;

/* depth: gets that may be open at a time, 1 to 4,096. Errors: FKV_INVALID, FKV_NO_MEMORY, FKV_IO,
 * FKV_FORKED. */
FKV_API enum fkv_error fkv_async_open(fkv *db, unsigned depth, fkv_async **async);

/*
 * Take a get. The key is copied; the buffer must stay until the completion. Errors, of the call and
 * without a completion: FKV_INVALID, FKV_KEY_TOO_LARGE, FKV_NO_MEMORY, FKV_BUSY (take completions
 * first), FKV_CANCELLED (the store was closed), FKV_FORKED.
 */
FKV_API enum fkv_error fkv_async_get(fkv_async *async, const void *key, size_t key_bytes,
                                     void *buffer, size_t buffer_bytes, void *tag);

/* Have the system begin the reads of all gets that were taken; fkv_async_wait does it too. For
 * programs that now wait for the descriptor. Errors: FKV_INVALID, FKV_IO, FKV_CANCELLED,
 * FKV_FORKED. */
FKV_API enum fkv_error fkv_async_submit(fkv_async *async);

/*
 * Take up to `room` completions, at least 1; *count receives how many: of reads, at most a quarter
 * of the depth at a time, so that the disk works while the program does. With `wait` not 0, wait
 * for at least one if any get is open. fkv_error_detail of the store has more about the get that
 * failed last. After the store was closed, the rest can still be taken. Errors: FKV_INVALID,
 * FKV_IO, FKV_FORKED.
 */
FKV_API enum fkv_error fkv_async_wait(fkv_async *async, int wait, fkv_completion *completions,
                                      size_t room, size_t *count);

/* A descriptor, the queue's own, that is readable when fkv_async_wait has something to do. For
 * poll, epoll and the like; not to be read or closed. A queue that was asked for it has to signal
 * from then on, so do not ask without need. -1 if it cannot be had, and in a child of fork().
 * While gets are open, epoll_wait may fail with EINTR in the thread that submitted them, though no
 * signal has come, since the kernel does work of io_uring in that thread (poll goes on by itself):
 * call it again. */
FKV_API int fkv_async_fd(const fkv_async *async);

/* Waits for reads under way, drops all else, and frees the queue; also after the store was closed.
 * Not while fkv_close runs. NULL is allowed. */
FKV_API void fkv_async_close(fkv_async *async);

/* ---------------------------------------------------------------- knowing and tuning */

/* What a store holds and has done. Byte counts of writing are since it was opened. */
typedef struct fkv_stats {
    uint64_t keys;
    uint64_t cell_bytes;   /* the unit of the cells below, in bytes */
    uint64_t live_cells;   /* cells of records that a key leads to, sectors_large included */
    uint64_t dead_cells;   /* cells of records that were overwritten, deleted or moved, and of
                            * gaps between records */
    uint64_t sectors_free; /* sectors of 1 MiB by type; together, with the header and
                            * snapshot_sectors, the file */
    uint64_t sectors_quarantined; /* freed, not to be reused before the next checkpoint */
    uint64_t sectors_values;
    uint64_t sectors_large; /* each holds a piece of one large value */
    uint64_t sectors_pages; /* index, maps and tables */
    uint64_t file_bytes;
    uint64_t log_bytes;      /* length of the log file */
    uint64_t log_bytes_live; /* of it, what a recovery would have to read */
    uint64_t index_slots;    /* of all its pages, also those that are not in memory now */
    uint64_t index_bytes;    /* memory of the index now, directory and page tables included */
    uint64_t index_splits;   /* segments rebuilt to grow, split, shrink or merge, since open */
    uint64_t memory_bytes;   /* all memory the library holds for this store, what is open on it
                              * (snapshots, transactions, queues...) included; not what a call
                              * uses while it runs, nor stacks of threads, nor the page cache */
    uint64_t collector_debt_cells; /* collection owed and not yet done */
    uint64_t commits;              /* since open */
    uint64_t checkpoints;          /* since open */
    uint64_t syncs;                /* of the log, since open */
    uint64_t bytes_put;            /* keys (or digests) and values of puts that were committed */
    uint64_t bytes_written_log;
    uint64_t bytes_written_values;    /* value sectors, moved records included */
    uint64_t bytes_written_collector; /* of them, records moved by the collector */
    uint64_t bytes_written_pages;     /* index, map and table pages, headers */
    uint64_t snapshots;               /* that are open */
    uint64_t snapshot_sectors; /* free but for snapshots that see records in them; in no other
                                * count of sectors */
    uint64_t snapshot_bytes;   /* memory of what is kept for snapshots */
    uint64_t index_loads;      /* index pages read from the file, one by one, since open */
    uint64_t index_evictions;  /* index pages that left memory, since open (index_memory_max) */
    /* fkv_compact_start: 0, none is under way; 1, one collects; 2, one waits for its last
     * checkpoint, and gives space back. How many have ended since open, and how the last one did:
     * an enum fkv_error. */
    uint64_t compacting;
    uint64_t compactions;
    uint64_t compaction_error;
} fkv_stats;

/*
 * Fill in `stats`, which the caller made: `stats_bytes` is sizeof(fkv_stats), so that programs
 * built against an older header keep working. Waits for a commit, or a check, that is under way.
 * Errors: FKV_INVALID, FKV_FORKED.
 */
FKV_API enum fkv_error fkv_get_stats(fkv *db, fkv_stats *stats, size_t stats_bytes);

/*
 * Write a checkpoint now and wait for it: afterwards the file alone holds every commit and opening
 * replays nothing. Also returns space at the end of the file to the file system. Never needed.
 *
 * Errors: FKV_INVALID, FKV_READ_ONLY, FKV_FAILED, FKV_IO, FKV_FULL, FKV_NO_MEMORY, FKV_FORKED.
 */
FKV_API enum fkv_error fkv_checkpoint(fkv *db);

/*
 * Collect garbage until dead record space is at most this percentage of live record space (0 to
 * 100; but for the open sector of 1 MiB), and give the space that comes free back to the file
 * system. Works in small steps beside readers and writers, in the calling thread, and returns once
 * it is done; with writers that overwrite as fast as it collects, once it has gone through all
 * there was at the beginning. Needs some MiB of free space in the file or on the disk.
 *
 * Errors: FKV_INVALID, FKV_READ_ONLY, FKV_FAILED, FKV_IO, FKV_FULL, FKV_NO_MEMORY, FKV_FORKED.
 */
FKV_API enum fkv_error fkv_compact(fkv *db, uint32_t garbage_percent);

/*
 * The same in the background, in place of a compaction there that has not ended. Returns at once;
 * fkv_get_stats tells when it is over, and how it went. The library's checkpoint thread takes steps
 * of some 20 microseconds, in which writers wait for it; while there are commits it takes a fifth
 * of the time at most, and none during checkpoints. Readers do not wait. The bound on space
 * (garbage_percent_max) holds meanwhile as ever.
 *
 * A store that is opened with FKV_NO_THREAD does a little of it in each commit, and in each
 * fkv_compact_step.
 *
 * Errors: FKV_INVALID, FKV_READ_ONLY, FKV_FAILED, FKV_FORKED. Those that it ends with, in
 * fkv_stats.compaction_error: FKV_OK, FKV_CANCELLED (by fkv_compact_stop, or by another
 * fkv_compact_start), FKV_FULL (there was no room to move anything to), FKV_NO_MEMORY, FKV_IO,
 * FKV_FAILED.
 */
FKV_API enum fkv_error fkv_compact_start(fkv *db, uint32_t garbage_percent);

/* End it, if there is one; what it has done stays. fkv_close does the same. Errors: FKV_INVALID,
 * FKV_FORKED. */
FKV_API enum fkv_error fkv_compact_stop(fkv *db);

/*
 * For FKV_NO_THREAD: do a little of what fkv_compact_start has begun, less than a millisecond as a
 * rule, and of the checkpoints that it needs, which may sync. *more receives 0 once nothing is left
 * to do. Other stores need no such calls, and only learn this from them.
 *
 * Errors: that which the compaction has just ended with; FKV_INVALID, FKV_FORKED.
 */
FKV_API enum fkv_error fkv_compact_step(fkv *db, int *more);

/* The library's version, "MAJOR.MINOR.PATCH"; a string that lives for ever. */
FKV_API const char *fkv_version(void);

/* A short English text for an error number; a string that lives for ever, never NULL. */
FKV_API const char *fkv_error_text(enum fkv_error error);

/*
 * More about the last call that failed in the calling thread on this handle (NULL: of those without
 * one, as fkv_open, fkv_close, fkv_check_file and fkv_repair): what was expected, what was found,
 * where. "" if there is nothing to add.
 *
 * FKV_NOT_FOUND is no failure here, in whatever function: it has no detail, and leaves that of the
 * failure before it where it is. So does FKV_OK. A thread keeps the detail of one failure: after
 * one on another handle that of this one is "". The text is valid until the calling thread's next
 * call of the library.
 */
FKV_API const char *fkv_error_detail(const fkv *db);

/* ---------------------------------------------------------------- checking and repairing */

/* The parts of a store, as problems name them. Numbers are never reused. */
enum fkv_part {
    FKV_PART_HEADER = 0, /* the two copies of the header, and the size of the file */
    FKV_PART_PAGES = 1,  /* pages and the trees that lead to them: references, checksums, places */
    FKV_PART_INDEX = 2,  /* the index and its directory: which key is where */
    FKV_PART_TABLE = 3,  /* the table of sectors: what each one is, and its counts */
    FKV_PART_MAPS = 4,   /* the deletion maps: which records are dead */
    FKV_PART_VALUES = 5, /* values sectors: their headers and records */
    FKV_PART_LARGE = 6,  /* values in several pieces */
    FKV_PART_SPACE = 7,  /* free, quarantined and used sectors; the bound on dead space */
    FKV_PART_COUNTERS = 8, /* counts over the whole store */
    FKV_PART_LOG = 9,      /* the log */
    FKV_PART_MEMORY = 10,  /* what an open handle has in memory: a bug, or damaged memory */
};
#define FKV_PARTS 16 /* room for parts to come */

/* A short English name, "deletion maps" say; a string that lives for ever, never NULL. */
FKV_API const char *fkv_part_name(enum fkv_part part);

/* Something that is wrong with a store. Valid during the call that it is given to. */
typedef struct fkv_problem {
    enum fkv_part part;
    uint64_t offset;  /* in the file, or in the log if that is the part; UINT64_MAX: nowhere */
    const char *text; /* what is wrong and where: one line, without a full stop */
} fkv_problem;

/* Options of checks. Initialise with fkv_check_options_init. */
typedef struct fkv_check_options {
    size_t size;
    uint32_t flags; /* none so far: 0 */
    /* Called for every problem. Default NULL. */
    void (*problem)(void *context, const fkv_problem *problem);
    /* Called now and then with how much of the work is done, in bytes to be read; `done` is `total`
     * at the end. To return anything but 0 ends the check with FKV_CANCELLED, also then.
     * Default NULL. */
    int (*progress)(void *context, uint64_t done, uint64_t total);
    void *context; /* for both */
} fkv_check_options;

FKV_API void fkv_check_options_init(fkv_check_options *options);

/* What a check found. */
typedef struct fkv_check_result {
    uint64_t problems;               /* how many, all parts together */
    uint64_t problems_in[FKV_PARTS]; /* how many in each part */
    uint64_t keys;                   /* keys whose record is whole */
    uint64_t keys_unreadable;        /* keys whose record is damaged, or cannot be read */
    uint64_t records_live;           /* whole records that are in use, pieces included */
    uint64_t records_dead;           /* whole records that are not */
    /* In values sectors, counted from records and maps; sectors_large are not in live_cells. */
    uint64_t live_cells, dead_cells;
    uint64_t pad_cells;
    uint64_t sectors_values, sectors_large, sectors_pages, sectors_free;
    uint64_t pages;      /* pages and nodes of the trees in the file */
    uint64_t log_frames; /* frames of the log that a recovery needs */
    int complete;        /* 0: ended early, by `progress` or an error */
    int opened;          /* fkv_check_file: 0 if the store cannot be opened */
} fkv_check_result;

/*
 * Verify everything there is to verify in an open store: both copies of the header; every page and
 * its checksum; every record and its checksum; index, deletion maps, table, free space and counters
 * against the records and against each other; the bound on dead space; the log.
 *
 * It reads the whole file. Other threads go on reading, but those that write wait until it is over,
 * and so do checkpoints. Every problem is reported, not only the first; what hangs on a part that
 * cannot be read is passed over. The callbacks must not call functions on this handle.
 *
 * options   NULL for the defaults.
 * result    what was found; result_bytes is sizeof(fkv_check_result). Written whatever is returned,
 *           but for FKV_INVALID and FKV_FORKED. NULL where it is not wanted.
 *
 * FKV_OK: no problem. FKV_DAMAGED: there are problems. FKV_CANCELLED: `progress` has ended it;
 * `result` has what was found so far, and is not complete. FKV_NO_MEMORY, FKV_INVALID, FKV_FORKED.
 */
FKV_API enum fkv_error fkv_check(fkv *db, const fkv_check_options *options,
                                 fkv_check_result *result, size_t result_bytes);

/*
 * The same for a store that no handle has open for writing. Nothing is written; commits that are in
 * the log only are recovered in memory. A store that is too damaged to be opened is checked as far
 * as it can be read: its last checkpoint, and the frames of the log.
 *
 * In addition the errors of fkv_open that are not about damage: FKV_NOT_EXIST, FKV_IN_USE,
 * FKV_PERMISSION, FKV_IS_DIRECTORY, FKV_NOT_A_STORE, FKV_UNKNOWN_FORMAT, FKV_IO.
 */
FKV_API enum fkv_error fkv_check_file(const char *path, const fkv_check_options *options,
                                      fkv_check_result *result, size_t result_bytes);

/* Options of fkv_repair. Initialise with fkv_repair_options_init. */
typedef struct fkv_repair_options {
    size_t size;
    uint32_t flags; /* none so far: 0 */
    /* Called with each thing that is damaged, lost or uncertain. Default NULL. */
    void (*problem)(void *context, const fkv_problem *problem);
    /* Called now and then with how much of the work is done, in bytes to be read. To return
     * anything but 0 ends the repair with FKV_CANCELLED, and there is no new store. Default NULL.
     */
    int (*progress)(void *context, uint64_t done, uint64_t total);
    void *context; /* for both */
} fkv_repair_options;

FKV_API void fkv_repair_options_init(fkv_repair_options *options);

/* What fkv_repair found and did. */
typedef struct fkv_repair_result {
    uint64_t keys;               /* in the new store */
    uint64_t records;            /* whole records of the damaged store that were looked at */
    uint64_t damaged;            /* stretches of cells that should hold records and do not */
    uint64_t damaged_cells;      /* their length */
    uint64_t values_incomplete;  /* values in pieces that lack some: not in the new store */
    uint64_t sectors_unreadable; /* sectors of which not everything could be read */
    uint64_t pages_lost;         /* of deletion maps and table: damaged, or nothing leads to them */
    uint64_t log_frames;         /* of the log, made use of */
    int deleted_may_be_back; /* 1: keys that were deleted may be there, values may be old ones */
    int log_incomplete;      /* 1: the last commits may be missing, or be there in part */
    int header_lost;         /* 1: both copies; in digest mode no key can be found any more */
    int complete;            /* 0: ended early, by `progress` or an error; no new store */
} fkv_repair_result;

/*
 * Make a new store out of everything that is whole in a damaged one, which is only read: the newest
 * version of each key, from the records in the file and in the log. Where deletion maps and table
 * are whole, what was deleted stays deleted.
 *
 * path       the damaged store. No handle may have it open for writing.
 * new_path   the new store; must not exist.
 * options    NULL for the defaults.
 * result     written whatever is returned, but for FKV_INVALID; result_bytes is its size. NULL
 *            where it is not wanted.
 *
 * FKV_OK: nothing was found to be missing. FKV_DAMAGED: something is lost or uncertain, and
 * `result` says what; the new store holds the rest. All other errors: there is no new store. They
 * are those of fkv_open, FKV_EXISTS among them if new_path exists, FKV_NOT_A_STORE if nothing in
 * the file is of a store, and FKV_CANCELLED.
 */
FKV_API enum fkv_error fkv_repair(const char *path, const char *new_path,
                                  const fkv_repair_options *options, fkv_repair_result *result,
                                  size_t result_bytes);

#ifdef __cplusplus
}
#endif
#endif
