/*
 * reclaim: things that readers may still be looking at, until they are not.
 *
 * Readers run inside RCU read sections (liburcu, the "bulletproof" flavour, where threads need no
 * registration). What the writer takes out of their sight it hands to reclaim, which gives it back
 * for reuse after a grace period: index frames and segments, directories, sectors, tail buffers.
 *
 * With threads allowed, grace periods are waited for by liburcu's own call_rcu thread and nobody
 * here ever waits. Without, a writer waits itself, unless its thread is in a read section: after it
 * has released the writer lock, for a reader may want that before it leaves its section.
 *
 * fork(): liburcu's locks and its thread must be whole in the child, so that it can open stores
 * of its own; handlers are registered for that. They may wait for a grace period. A fork inside a
 * read section would wait for itself, so they do nothing then, and the child can open no store.
 *
 * exit(): who calls it inside a read section leaves that, for liburcu may wait for readers.
 *
 * The writer lock protects everything here but `state`.
 */
#ifndef FKV_RECLAIM_H
#define FKV_RECLAIM_H

#include "rcu.h"
#include "sectors.h"
#include <stdatomic.h>

struct buffer; /* tail.h */

/* Memory that begins with one of these can be retired. */
struct retired_block {
    struct retired_block *next;
};

struct retired {
    uint32_t frames;   /* a list, linked by frame_link */
    uint32_t segments; /* a list, linked by segment_link */
    struct retired_block *blocks;
    struct buffer *buffers;
    struct sector_list sectors;
    uint32_t count;
};

enum reclaim_state {
    RECLAIM_IDLE,
    RECLAIM_WANTED, /* without threads: whoever calls reclaim_wait next will wait */
    RECLAIM_WAITING,
    RECLAIM_OVER,
    RECLAIM_ABANDONED
};

/* A grace period under way. Its memory is not the store's: a thread that borrows from one store
 * may close another, and cannot wait for the end of what it holds up itself. */
struct grace {
    struct rcu_head rcu;
    _Atomic int state; /* enum reclaim_state */
};

struct reclaim {
    struct retired filling;
    struct retired waiting;
    uint64_t released; /* how many times what waited was released */
    struct grace *grace;
    bool threads;
    bool alone; /* the store is being opened or closed: it has no readers */
    /* Gives back what is in `retired`; set by the store. */
    void (*release)(void *context, struct retired *retired);
    void *context;
};

static inline void reclaim_block(struct reclaim *reclaim, struct retired_block *block)
{
    block->next = reclaim->filling.blocks;
    reclaim->filling.blocks = block;
    reclaim->filling.count++;
}

/* FKV_FORKED where the process was forked inside a read section; FKV_NO_MEMORY too where no thread
 * can be started. */
enum fkv_error reclaim_make(struct reclaim *reclaim, bool threads,
                            void (*release)(void *context, struct retired *retired), void *context);

/* Is nothing waiting for the end of a grace period? */
bool reclaim_is_idle(const struct reclaim *reclaim);

/* Release what is past its grace period, and begin another for what has come since; if `now`, even
 * for little. Cheap when there is nothing to do. */
void reclaim_poll(struct reclaim *reclaim, bool now);
/* Without threads: wait for the grace period that is wanted, if any. Not under the writer lock. */
void reclaim_wait_wanted(struct reclaim *reclaim);
static inline bool reclaim_is_wanted(const struct reclaim *reclaim)
{
    return atomic_load_explicit(&reclaim->grace->state, memory_order_relaxed) == RECLAIM_WANTED;
}
static inline void reclaim_wait(struct reclaim *reclaim)
{
    if (__builtin_expect(reclaim_is_wanted(reclaim), 0))
        reclaim_wait_wanted(reclaim);
}
/* The same for who reads; with threads, sleep for a moment while a grace period is under way. */
void reclaim_pause(struct reclaim *reclaim);
/* Wait for the grace period under way, or that is wanted. Not under the writer lock, nor in a read
 * section. */
void reclaim_wait_all(struct reclaim *reclaim);
/* The same, but with threads for a moment at most: a reader may be waiting for who waits here. */
void reclaim_wait_a_while(struct reclaim *reclaim);

/* Release everything, after the grace period under way if it can be waited for: not in a child of
 * fork(), not in a read section. No reader may be inside. */
void reclaim_finish(struct reclaim *reclaim, bool forked);
/* After reclaim_finish, or for one that was never made. */
void reclaim_drop(struct reclaim *reclaim);

#endif
