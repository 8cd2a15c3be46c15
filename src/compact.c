#include "clock.h"
#include "store.h"

#include <sched.h>

/*
 * A compaction takes steps of the collector that nobody owes, a few in one hold of the writer lock,
 * until garbage is below a share or it has passed all that there was at its beginning. Then a
 * checkpoint makes what it freed free for use, and that goes back to the file system.
 *
 * In the background the checkpointer does it, whenever no checkpoint is wanted. Commits spin for
 * the lock while it has it, for some 20 microseconds; and while there are commits it sleeps in
 * between, so that it takes a fifth of the time at most. Without threads each commit does a little.
 */

void compaction_make(const struct fkv *db, struct compaction *compaction, uint32_t percent)
{
    *compaction = (struct compaction){.percent = percent,
                                      .left = (uint64_t)(db->sectors.values_count + UINT64_C(1)) *
                                              SECTOR_CELLS};
}

/* Nothing could be moved, though there is something to be moved. */
static enum fkv_error no_step(struct fkv *db, struct compaction *compaction, bool *goes_on)
{
    if (!compaction->stuck) {
        compaction->stuck = true;
        return FKV_OK;
    }
    compaction->stuck = *goes_on = false;
    if (sectors_reserve(&db->sectors, 1, RESERVE_NONE, 0) == FKV_FULL)
        return error_set(FKV_FULL, "%s: there is no room to move records to", db->path);
    return FKV_OK; /* what is left is damaged */
}

enum fkv_error compaction_some(struct fkv *db, struct compaction *compaction, uint64_t steps,
                               bool *goes_on)
{
    enum fkv_error error = store_writable(db);
    if (error)
        return error;
    /* The longest record is one of RECORD_CELLS_MAX, and moves whole. */
    compaction->credit = min_u64(compaction->credit + steps, RECORD_CELLS_MAX + steps);
    uint64_t taken = collect_further(db, compaction->credit, compaction->percent);
    bool enough = compaction->credit >= RECORD_CELLS_MAX;
    compaction->credit -= taken;
    compaction->left -= min_u64(compaction->left, taken);
    *goes_on = compaction->left && collect_is_left(db, compaction->percent);
    if (taken || !*goes_on)
        compaction->stuck = false;
    else if (enough || db->collector.log_full)
        error = no_step(db, compaction, goes_on);
    index_spill(&db->index, 0);
    store_trim(db);
    return error;
}

/* ---------------------------------------------------------------- in the background */

void compaction_begin(struct fkv *db, uint32_t percent)
{
    struct compaction *compaction = &db->compaction;
    if (compaction->stage)
        compaction_end(db, FKV_CANCELLED);
    struct compaction before = *compaction;
    compaction_make(db, compaction, percent);
    compaction->stage = COMPACTION_COLLECTS;
    compaction->number = before.number + 1;
    compaction->over = before.over;
    compaction->error = before.error;
    compaction->commits = db->commits;
    pthread_cond_signal(&db->checkpoint.due);
}

void compaction_end(struct fkv *db, enum fkv_error error)
{
    struct compaction *compaction = &db->compaction;
    compaction->stage = COMPACTION_NONE;
    compaction->error = error;
    compaction->over = compaction->number;
}

static void want_checkpoint(struct fkv *db)
{
    db->checkpoint.wanted = true;
    if (db->threads)
        pthread_cond_signal(&db->checkpoint.due);
}

/* Some steps were taken. */
static void go_on(struct fkv *db, enum fkv_error error, bool goes_on)
{
    struct compaction *compaction = &db->compaction;
    if (error) {
        compaction_end(db, error);
        return;
    }
    if (!goes_on) {
        compaction->stage = COMPACTION_ENDS;
        db->checkpoint.asked = true;
    }
    if (!goes_on || compaction->stuck) {
        compaction->until = checkpoint_next_over(db);
        want_checkpoint(db);
    }
}

/* Or does it wait for a checkpoint? */
static bool is_due(const struct fkv *db)
{
    const struct compaction *compaction = &db->compaction;
    bool waits = compaction->stuck || compaction->stage == COMPACTION_ENDS;
    return !waits || db->checkpoint.over >= compaction->until;
}

/* Is what was freed past its readers? What others free meanwhile does not count: it is past them
 * once what waits and what has gathered are released. They may stay for ever; that is not waited
 * for. */
static bool is_released(struct fkv *db)
{
    enum { TURNS_MAX = 1000 };
    struct compaction *compaction = &db->compaction;
    if (!compaction->turns)
        compaction->released = db->reclaim.released + 2;
    reclaim_poll(&db->reclaim, true);
    return !db->sectors.awaiting_readers || db->reclaim.released >= compaction->released ||
           ++compaction->turns >= TURNS_MAX;
}

/* The last steps were taken, and the checkpoint after them is over. */
static void end(struct fkv *db)
{
    enum { SECTORS_TO_KEEP = 8 };
    const struct compaction *compaction = &db->compaction;
    uint64_t number = compaction->number;
    enum fkv_error error = checkpoint_error_of(db, compaction->until);
    if (error) {
        compaction_end(db, error);
    } else if (is_released(db)) {
        sectors_trim(&db->sectors, SECTORS_TO_KEEP, false, &db->writer);
        /* The lock was released: another may have been begun. */
        if (compaction->stage == COMPACTION_ENDS && compaction->number == number)
            compaction_end(db, FKV_OK);
    }
}

/* As many steps as a commit may wait for. */
static void collect_for_a_while(struct fkv *db)
{
    const uint64_t while_ns = 20000;
    enum { STEPS_AT_ONCE = 256 };
    uint64_t began = clock_ns();
    bool goes_on = true;
    enum fkv_error error;
    atomic_store_explicit(&db->checkpoint.copies, true, memory_order_relaxed);
    do
        error = compaction_some(db, &db->compaction, STEPS_AT_ONCE, &goes_on);
    while (!error && goes_on && !db->compaction.stuck && clock_ns() - began < while_ns);
    atomic_store_explicit(&db->checkpoint.copies, false, memory_order_relaxed);
    go_on(db, error, goes_on);
}

/* The sector that comes after the one at the front, once: it shall not be read under the lock. */
static uint32_t sector_ahead(struct fkv *db)
{
    uint32_t front = db->sectors.front;
    uint32_t next = front ? sector_state(&db->sectors, front)->next : 0;
    if (next == db->compaction.ahead)
        return 0;
    db->compaction.ahead = next;
    return next;
}

void compaction_turn(struct fkv *db)
{
    const long between_commits_ns = 50000, for_readers_ns = 1000000;
    struct compaction *compaction = &db->compaction;
    bool ends = compaction->stage == COMPACTION_ENDS;
    bool due =
        is_due(db) && !db->making_room; /* else it would take the room from who asked for it */
    uint32_t ahead = 0;
    if (due && ends)
        end(db);
    else if (due)
        collect_for_a_while(db);
    if (!ends)
        ahead = sector_ahead(db);
    checkpoint_poll(db);
    bool commits = compaction->commits != db->commits;
    compaction->commits = db->commits;
    bool wanted = db->checkpoint.wanted;
    pthread_mutex_unlock(&db->writer);
    if (ahead)
        db->os->ops->start_read(db->file, (uint64_t)ahead * SECTOR_BYTES, SECTOR_BYTES);
    if (ends && !wanted)
        nanosleep(&(struct timespec){.tv_nsec = for_readers_ns}, NULL);
    else if (commits || !due)
        nanosleep(&(struct timespec){.tv_nsec = between_commits_ns}, NULL);
    else
        sched_yield();
    pthread_mutex_lock(&db->writer);
}

void compaction_poll(struct fkv *db, uint64_t steps)
{
    struct compaction *compaction = &db->compaction;
    bool goes_on = true;
    if (db->threads || db->making_room)
        return;
    if (store_has_failed(db)) { /* no checkpoint will come */
        compaction_end(db, FKV_FAILED);
        return;
    }
    if (!is_due(db))
        return;
    if (compaction->stage == COMPACTION_ENDS) {
        end(db);
    } else if (compaction->stage == COMPACTION_COLLECTS) {
        enum fkv_error error = compaction_some(db, compaction, steps, &goes_on);
        go_on(db, error, goes_on);
    }
}
