/*
 * tail: where new records go.
 *
 * The open values sector, at the back of the queue, is a buffer of 1 MiB in memory. Records are
 * written there, where readers see them at once, and the sector goes to the file in one piece when
 * it is full ("sealed"): by the flusher thread, or here if no buffer is free or threads are
 * forbidden. From then on readers find it in the mapping of the file, and the buffer is reused
 * when none of them can be in it any more. (Until a sector is written, its records are in the log.)
 *
 * Locks: the writer lock protects appending; `flush_lock` is held by whoever writes buffers to the
 * file, so that a buffer is not reused under him; `queue_lock` protects the lists of buffers.
 * Order: writer lock, flush_lock, queue_lock. With flush_lock nobody waits for the writer lock: so
 * the writer may wait for who has it.
 */
#ifndef FKV_TAIL_H
#define FKV_TAIL_H

#include <pthread.h>

#include "record.h"
#include "sectors.h"

struct buffer {
    struct buffer *next;
    uint8_t *bytes;
    uint32_t sector;       /* whose bytes are here and not yet all in the file; 0 none */
    uint32_t last_sector;  /* whose bytes these were, once they are all in the file */
    uint64_t sequence;     /* of that sector */
    uint32_t flushed_cell; /* the file has the cells before this; at a page boundary */
};

/* With more buffers than usual, or than memory allows, the writer writes sectors itself. It has
 * more than that only if read sections stay open long; beyond the maximum it fails. */
enum { BUFFERS_USUAL = 128, BUFFERS_LEAST = 8, BUFFERS_MAX = 1024 };

struct tail {
    struct sectors *sectors;
    struct reclaim *reclaim;
    uint64_t seed; /* of record checksums */
    bool threads;
    pthread_mutex_t *writer; /* the lock; only the flusher takes it through this */

    struct buffer *open; /* NULL: no sector is open */
    uint32_t sector;
    uint32_t cell; /* next free */
    uint64_t sequence;
    /* Nothing leads to the sectors from this sequence on: see tail_hide. UINT64_MAX: to none. */
    uint64_t hidden;

    uint32_t spare; /* a taken sector, ready to be opened; 0 none */
    /* Sectors opened since the last frame: the next one must say so. */
    uint32_t *opened;
    uint32_t opened_count, opened_room;

    struct reservation memory; /* of the buffers */
    struct buffer buffers[BUFFERS_MAX];
    _Atomic uint32_t buffer_count;
    _Atomic uint32_t buffers_usual; /* BUFFERS_USUAL, or fewer: tail_limit_memory */

    pthread_mutex_t flush_lock;
    pthread_mutex_t queue_lock;
    pthread_cond_t flush_wanted;
    struct buffer *free;
    uint32_t free_count;
    struct buffer *sealed_head, *sealed_tail;
    _Atomic uint32_t sealed_count;
    struct buffer *flushed;    /* written; readers may still be in them */
    pthread_cond_t flush_done; /* a sector was written, or flush_lock released */
    _Atomic uint32_t extend;   /* the flusher is to make so many sectors ready */
    bool stop;

    _Atomic uint64_t written_bytes;
    _Atomic bool failed; /* a write failed, and not for want of space: from here on read-only */
};

enum fkv_error tail_make(struct tail *tail, struct sectors *sectors, struct reclaim *reclaim,
                         uint64_t seed, bool threads);
void tail_drop(struct tail *tail);
/* Memory that is held here. */
uint64_t tail_memory_bytes(struct tail *tail);
/* So much memory may be used, by everybody: an eighth of it is for buffers. Those that there are
 * already stay. */
void tail_limit_memory(struct tail *tail, uint64_t bytes);

/* Take up the open sector of an opened store: its first cells are in the file. */
enum fkv_error tail_open(struct tail *tail, uint32_t sector, uint32_t cell);

/*
 * Make sure that the next tail_append of so many cells cannot fail. `leave` as sectors_reserve.
 * May seal the open sector and open another.
 */
enum fkv_error tail_prepare(struct tail *tail, uint32_t cells, uint32_t leave);
/* In recovery: go on at this very address. */
enum fkv_error tail_continue_at(struct tail *tail, uint32_t sector, uint64_t sequence);
enum fkv_error tail_skip_to(struct tail *tail, uint32_t cell);

/* Tell the log's frames of the sectors opened up to this one, if it was opened since the last one:
 * writes OPERATION_OPENs, returns the end. */
uint8_t *tail_log_opened(struct tail *tail, uint32_t sector, uint8_t *to);
uint64_t tail_opened_bytes(const struct tail *tail);

/* What fits the open sector. */
static inline uint64_t tail_room_bytes(const struct tail *tail)
{
    return tail->open ? (SECTOR_CELLS - tail->cell) * CELL_BYTES : 0;
}

/* Cells for a record. Counts them live. Returns where to write it, and its address. */
uint8_t *tail_append(struct tail *tail, uint32_t cells, uint64_t *address);

/* The last `cells` appended were for nothing. Only if no sector was opened since. */
void tail_unappend(struct tail *tail, uint32_t cells);

/* Nothing will lead to what is appended from now on, before tail_show. So buffers of sectors that
 * are opened meanwhile need not wait for readers, and a commit, however large, needs but a few:
 * nobody ever has to wait for readers with the writer lock held, but for a moment. */
static inline void tail_hide(struct tail *tail)
{
    tail->hidden = tail->sectors->next_sequence;
}
static inline void tail_show(struct tail *tail)
{
    tail->hidden = UINT64_MAX;
}

/* Fill the open sector up; there is none then. */
void tail_seal(struct tail *tail);

/* Fill up with padding to a page, so that what is before can be written and never again. */
void tail_pad_to_page(struct tail *tail);

/* How many sectors can still be opened before somebody has to wait for the file. */
static inline uint32_t tail_buffers_left(const struct tail *tail)
{
    uint32_t waiting = atomic_load_explicit(&tail->sealed_count, memory_order_relaxed);
    uint32_t usual = atomic_load_explicit(&tail->buffers_usual, memory_order_relaxed);
    return waiting < usual ? usual - waiting : 0;
}

/* Write the sealed sectors that wait, but none that is sealed meanwhile. Takes flush_lock. */
enum fkv_error tail_flush(struct tail *tail);
/* Write what the sector has before this cell, if it was not written. Takes flush_lock. */
enum fkv_error tail_flush_open(struct tail *tail, uint32_t sector, uint32_t cell);

/* Buffers that no reader uses any more. */
void tail_reclaim(struct tail *tail, struct buffer *buffers);

/* The body of the flusher thread; tail_stop ends it. */
void *tail_flusher(void *tail);
void tail_stop(struct tail *tail);

#endif
