/*
 * log: the write-ahead log, NAME-wal.
 *
 * A header page and then a ring of frames, one a commit, stored into a mapping: a commit makes no
 * system call, and what it wrote survives the process. Who syncs after each frame writes it by a
 * call: a sync makes its pages read-only, and a store into one again costs a fault, which takes
 * longer. A frame names the checksum of the frame before it, from the header of the store on, so
 * replay follows one chain and ends at the first frame that is not of it: a torn one, or one of an
 * older round. Each opening of the store begins with a frame of random bytes (FRAME_RESTART), so
 * that frames which a crash cut off can never follow on what is written after it.
 *
 * The log begins small and grows by doubling to its maximum, preferring to reuse its beginning,
 * which checkpoints free; the space is allocated, so storing into the mapping finds room. (Where a
 * file system writes nothing in place it need not: there each frame is written by a call, which may
 * fail. A store would be the end of the process.) Space that is only allocated costs the file
 * system a change of metadata when it is first synced, about as much as the sync itself. So who
 * syncs lengthens the file ahead of need, by a MiB of zeros that are stored.
 *
 * Pages of the ring's last round leave memory where that is scarce, and to store into a page that
 * is not there reads it from the device first. So then each is written as zeros, whole, before
 * frames are stored into it: that reads nothing, and the chain ends at zeros as at older frames.
 *
 * A frame is made in three steps: log_reserve makes sure of room, log_begin says where its
 * operations go, and log_end, told where they end, makes it the next one. Nothing comes between the
 * first and the second that writes to the log.
 *
 * Threads: the writer lock protects the ring. log_sync takes no lock: whoever makes sync_round odd
 * syncs for all that is written, while the others sleep until it is even again (group commit).
 * grow_lock is between the writer that needs a longer file and the one that lengthens it ahead.
 *
 * Invariant: frames lie in [start, head), or, once head is below start, in [start, end of the last
 * frame) and [LOG_FRAMES_OFFSET, head).
 */
#ifndef FKV_LOG_H
#define FKV_LOG_H

#include <pthread.h>
#include <stdatomic.h>

#include "data_sync.h"
#include "error.h"
#include "format.h"
#include "os.h"

/* Where in the log, and what the chain is there. */
struct log_position {
    uint64_t offset;
    uint64_t chain;
};

struct log {
    struct os_file *file;
    const struct os_ops *ops;
    const char *path;
    uint64_t seed; /* of checksums: from the store's id */
    bool read_only;
    bool in_place; /* see os.h */
    /* As opened, whole frames follow on its end that lack what they refer to. It may come to be
     * there: so they must be gone for good before anything else is written. */
    bool stale;
    uint8_t *map;
    size_t map_bytes;
    uint8_t *buffer; /* for frames that are written by a call; NULL before the first */
    size_t buffer_bytes;
    uint64_t reserved;     /* for the frame that comes next, at most */
    uint8_t *frame;        /* the one being made: in the buffer, or in the mapping */
    _Atomic uint64_t size; /* of the file, but for what is lengthened ahead */
    uint64_t ahead_max;    /* it is lengthened ahead to this */
    uint64_t ahead;        /* up to where it is; grow_lock */
    pthread_mutex_t grow_lock;
    uint64_t size_max; /* it grows to this, or to what one frame needs */
    struct log_position head;
    uint64_t start;      /* the first byte that a recovery needs */
    uint64_t live_bytes; /* from start to head */
    uint64_t written_bytes;
    bool scarce;     /* is memory? Writer lock */
    uint64_t zeroed; /* from head on, pages up to here are in memory, as zeros. If less: none */
    _Atomic uint64_t syncs;

    _Atomic uint64_t written_commit; /* the last that is in a frame */
    _Atomic uint64_t durable_commit;
    _Atomic bool sync_failed;
    _Atomic uint32_t sync_round; /* odd: one is under way; who waits for it sleeps on this word */
    _Atomic uint32_t sync_sleepers;
    _Atomic uint64_t sync_arrived; /* calls of log_sync that had to wait or to sync */
    uint64_t sync_served;          /* of them, those that the last sync was for, and before */
    uint64_t sync_group;           /* those that it was for, and that came meanwhile */
    uint64_t sync_ns;              /* that it took */
    /* Records that frames refer to were written to the store's file and not synced. */
    _Atomic bool data_unsynced;
    struct data_sync *data;
};

/* The name of the log of a store; to be given to memory_free. */
char *log_name(const char *store_path);

void log_make(struct log *log, const struct os_ops *ops, const char *path, uint64_t size_max,
              struct data_sync *data);
/* Write the header of a new log and map it; the file is open in log->file. To sync it is up to the
 * caller. */
enum fkv_error log_create(struct log *log, const uint8_t store_id[16]);
/* Write its header as it is once more: a sync that failed before may have left it in the system's
 * cache only, taken for written. */
enum fkv_error log_write_header(struct log *log, const uint8_t store_id[16]);
/* Is this what creating a log left behind when it was cut off, or nothing? */
enum fkv_error log_is_unfinished(struct log *log, uint64_t size, bool *unfinished);
/* Check the header of a log and map it; frames will go on from log->head.offset. */
enum fkv_error log_open(struct log *log, const uint8_t store_id[16]);
void log_drop(struct log *log);
uint64_t log_memory_bytes(const struct log *log);

/* FKV_FULL if a frame of so many bytes can never fit. */
enum fkv_error log_can_hold(const struct log *log, uint64_t bytes);
/* Make sure that the next one fits, of so many bytes, its header included. *full if a checkpoint
 * must free room first; then FKV_FULL is returned. */
enum fkv_error log_reserve(struct log *log, uint64_t bytes, bool *full);
/* Where the operations of the next frame go, room for which was reserved. `synced`: a log_sync
 * follows at once; nothing depends on that but time. */
uint8_t *log_begin(struct log *log, bool synced);
/* The operations end there: the frame is complete but for its header. If it cannot be written, as
 * may be where nothing is written in place, it is not there, and nothing more may be written: the
 * sectors that it told of are told of nowhere. (The store's way to it is store_log.) */
enum fkv_error log_end(struct log *log, const uint8_t *end, uint32_t flags, uint64_t commit);

/* Nothing in the log is needed any more: give its space back, but for a little. */
void log_shrink(struct log *log);

/* Frames before this position are not needed any more. */
void log_release(struct log *log, struct log_position position);

/* Make commits up to this one durable. Any thread. */
enum fkv_error log_sync(struct log *log, uint64_t commit);

/* ---- replay */

struct log_frame {
    struct format_frame header;
    const uint8_t *operations; /* in the mapping */
    const uint8_t *end;
};

/*
 * After a loss of power the log is not in memory, and the mapping would bring it in page by page:
 * have it read in large pieces, ahead of who looks at it at `offset`. *asked: up to where; at first
 * where he begins.
 */
void log_read_ahead(const struct log *log, uint64_t offset, uint64_t *asked);
/* The frame at head, if it continues the chain: *found false at the end of the log. Moves head. */
enum fkv_error log_next(struct log *log, struct log_frame *frame, bool *found);
/*
 * Write the frames that a recovery would need once more. After a sync that failed, the system may
 * take bytes for written that are in its cache only; the process that saw it fail has ended, and
 * no sync of this one would write them. (Records are written again by their replay.)
 */
enum fkv_error log_write_again(struct log *log);
/* After the last frame: does the log show that a frame which was durable is damaged? */
enum fkv_error log_check_end(const struct log *log, uint64_t last_commit);

#ifdef FKV_TESTING
extern uint64_t log_step;
#endif

#endif
