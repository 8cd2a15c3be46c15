#include "clock.h"
#include "fetch.h"
#include "header.h"
#include "planted.h"

#include <sched.h>
#include <stdio.h>
#include <time.h>

/*
 * A checkpoint makes the file alone hold the state of one moment:
 *
 *   INDEX    pages that are parked (a limited index: pages.h) go to the file; mostly there are none
 *   begin    the moment (writer lock, brief): the open sector is padded to a page, the position in
 *            the log noted, pages and freed sectors marked
 *   VALUES   sectors that were sealed before it, and the open one's beginning, go to the file
 *   PAGES    changed pages are copied in groups of 4 under the writer lock, and written
 *   SYNC     all of that is durable
 *   HEADER   the header that leads to it is written, one copy after the other, each synced; then
 *            the log before the moment, replaced pages and freed sectors can be used again
 *
 * If anything fails before the header, the file still holds the previous checkpoint, whole.
 */

static void lock(struct fkv *db)
{
    if (db->threads)
        pthread_mutex_lock(&db->writer);
}

static void unlock(struct fkv *db)
{
    if (db->threads)
        pthread_mutex_unlock(&db->writer);
}

static uint64_t room_in_log(const struct fkv *db)
{
    return db->log.size_max - min_u64(db->log.live_bytes, db->log.size_max);
}

/* ---------------------------------------------------------------- the stages */

static void begin(struct fkv *db)
{
    struct checkpoint *checkpoint = &db->checkpoint;
    struct sectors *sectors = &db->sectors;
    checkpoint->thorough = checkpoint->asked;
    checkpoint->asked = checkpoint->wanted = false;
    tail_pad_to_page(&db->tail);
    db->tail.opened_count = 0; /* the table will say so */
    checkpoint->log = db->log.head;
    checkpoint->log_bytes_before = db->log.written_bytes;
    checkpoint->log_room = room_in_log(db);
    checkpoint->header = db->header;
    struct format_header *header = &checkpoint->header;
    header->commit = db->commit;
    header->log_offset = checkpoint->log.offset;
    header->log_chain = checkpoint->log.chain;
    header->clean = checkpoint->closing;
    header->next_sequence = sectors->next_sequence;
    header->tail_sector = db->tail.open ? db->tail.sector : 0;
    header->tail_cell = db->tail.open ? db->tail.cell : 0;
    header->keys = db->keys;
    header->live_cells = sectors->live_cells;
    header->dead_cells = sectors->dead_cells;
    header->pad_cells = sectors->pad_cells;
    header->debt_cells = collector_owes(db);
    header->segments = db->index.segment_count;
    header->sector_count = sectors_in_use_end(sectors);
    if (PLANTED(RELEASE_LOG_EARLY))
        log_release(&db->log, checkpoint->log);
    sectors_checkpoint_begin(sectors);
    pages_checkpoint_begin(&db->pages);
    checkpoint->stage = CHECKPOINT_VALUES;
}

static void start(struct fkv *db)
{
    struct checkpoint *checkpoint = &db->checkpoint;
    if (!pages_any_parked(&db->pages)) {
        begin(db);
        return;
    }
    db->pages.unparking = true;
    checkpoint->tries = 0;
    checkpoint->log_bytes_before = db->log.written_bytes;
    checkpoint->log_room = room_in_log(db);
    checkpoint->stage = CHECKPOINT_INDEX;
}

static enum fkv_error write_values(struct fkv *db)
{
    struct checkpoint *checkpoint = &db->checkpoint;
    enum fkv_error error = tail_flush(&db->tail);
    if (!error && checkpoint->header.tail_sector && !PLANTED(SKIP_TAIL_FLUSH))
        error = tail_flush_open(&db->tail, checkpoint->header.tail_sector,
                                checkpoint->header.tail_cell);
    checkpoint->stage = CHECKPOINT_PAGES;
    return error;
}

/* Lock for a copy of a few pages. Who slept for it would have to be woken by a commit, which takes
 * longer than the commit. */
static void lock_for_copies(struct fkv *db)
{
    if (!db->threads)
        return;
    int spins = 0;
    while (pthread_mutex_trylock(&db->writer) != 0)
        if (spins++ < SPINS_MAX) {
            spin_pause();
        } else {
            pthread_mutex_lock(&db->writer);
            break;
        }
    atomic_store_explicit(&db->checkpoint.copies, true, memory_order_relaxed);
}

static void unlock_after_copies(struct fkv *db)
{
    atomic_store_explicit(&db->checkpoint.copies, false, memory_order_relaxed);
    unlock(db);
}

/* A parked page that cannot be read now is tried again, after twice the pause each time: for a
 * second in all. Then the store has failed: an opening finds all in the log. (One that is damaged
 * is given up: to try again does not help there.) */
enum { TRIES = 10 };
#ifdef FKV_TESTING
static const long first_pause_ns = 0;
#else
static const long first_pause_ns = 1000000;
#endif

/* And begin, once no page is parked. */
static enum fkv_error write_parked(struct fkv *db)
{
    enum { PAGES_AT_ONCE = 8 };
    struct checkpoint *checkpoint = &db->checkpoint;
    bool none, unread;
    lock_for_copies(db);
    enum fkv_error error = index_spill_parked(&db->index, PAGES_AT_ONCE, &none, &unread);
    if (!error && none)
        begin(db);
    unlock_after_copies(db);
    if (unread && checkpoint->tries < TRIES) {
        nanosleep(&(struct timespec){.tv_nsec = first_pause_ns << checkpoint->tries++}, NULL);
        return FKV_OK;
    }
    checkpoint->tries = 0;
    if (db->threads) /* others can have the lock */
        sched_yield();
    return error;
}

static enum fkv_error write_pages(struct fkv *db)
{
    /* Beside commits, few at a time and often; inside of them, enough to get on. */
    enum { PAGES_BESIDE = 4, PAGES_INSIDE = 16 };
    bool done = false;
    enum fkv_error error = FKV_OK;
    uint32_t group = db->threads ? PAGES_BESIDE : PAGES_INSIDE;
    uint32_t groups = db->threads ? STAGING_PAGES / PAGES_BESIDE : 1;
    for (uint32_t g = 0; !error && !done && g < groups; g++) {
        uint32_t before = db->pages.staged;
        lock_for_copies(db);
        error = pages_capture(&db->pages, group, &done);
        unlock_after_copies(db);
        pages_sum_staged(&db->pages); /* between the groups, while others can have the lock */
        if (db->pages.staged == before)
            break;
    }
    enum fkv_error written = pages_write_staged(&db->pages);
    if (done)
        db->checkpoint.stage = CHECKPOINT_SYNC;
    if (!written || written == FKV_FULL) /* then they are to be written again, elsewhere */
        return written ? written : error;
    return store_fail(db, FKV_IO);
}

static enum fkv_error sync_store(struct fkv *db)
{
    /* log.data_unsynced stays: a log_sync that found it clear would not wait for this sync. */
    int status = data_sync(&db->data_sync);
    if (status)
        return store_fail(db, error_sync(status, db->path));
    return FKV_OK;
}

enum fkv_error checkpoint_write_copy(struct fkv *db, const struct format_header *header)
{
    uint8_t page[PAGE_BYTES] = {0};
    memcpy(page, header, sizeof *header);
    int status = db->os->ops->write(db->file, page, sizeof page, db->header_copy * PAGE_BYTES);
    if (status)
        return store_fail(db, error_os(status, "write the header of", db->path));
    db->checkpoint.header_bytes += PAGE_BYTES;
    return PLANTED(SKIP_HEADER_SYNC) ? FKV_OK : sync_store(db);
}

/*
 * Both copies get the same header but for their sequence: first the one that does not count, so
 * that there always is a whole one; and then, once that is durable, the other, so that one damaged
 * copy never brings an older state back. The sequence says which was written last.
 */
enum fkv_error checkpoint_write_header(struct fkv *db, struct format_header *header)
{
    header->sequence = db->header.sequence;
    for (int i = 0; i < 2; i++) {
        db->header_copy ^= 1;
        header->sequence++;
        header->checksum = header_checksum(header);
        enum fkv_error error = checkpoint_write_copy(db, header);
        if (error)
            return error;
    }
    db->header = *header;
    return FKV_OK;
}

/* How many free sectors stay in the file: those that come and go with each checkpoint. */
static uint32_t sectors_to_keep(const struct fkv *db)
{
    return (uint32_t)max_u64(16, (db->sectors.values_count + db->sectors.large_count) / 8);
}

static enum fkv_error write_header(struct fkv *db)
{
    struct checkpoint *checkpoint = &db->checkpoint;
    struct format_header *header = &checkpoint->header;
    lock(db);
    header->sector_count =
        max_u64(header->sector_count, places_last_sector(&db->pages.places) + UINT64_C(1));
    if (PLANTED(CHECKPOINT_AHEAD)) {
        header->commit = db->commit;
        header->log_offset = db->log.head.offset;
        header->log_chain = db->log.head.chain;
    }
    unlock(db);
    pages_roots(&db->pages, header->spaces);
    if (header->clean ||
        (PLANTED(CLOSE_EARLY) &&
         checkpoint->closing)) { /* not `closing`: this one may have begun before that was set */
        header->log_offset = LOG_FRAMES_OFFSET;
        if (random_bytes(&header->log_chain, sizeof header->log_chain))
            header->log_chain = header->log_chain * 0x9e3779b97f4a7c15ull + header->sequence;
    }
    enum fkv_error error = checkpoint_write_header(db, header);
    if (error)
        return error;
    lock(db);
    pages_checkpoint_done(&db->pages);
    struct sector_list list = sectors_checkpoint_done(&db->sectors);
    struct sector_list *retired = &db->reclaim.filling.sectors;
    for (uint32_t sector = list.head, next; sector; sector = next) {
        next = sector_state(&db->sectors, sector)->next;
        sector_state(&db->sectors, sector)->next = retired->head;
        retired->head = sector;
    }
    retired->count += list.count;
    db->reclaim.filling.count += list.count;
    log_release(&db->log, checkpoint->log);
    checkpoint->done++;
    fetch_decide(db);
    unlock(db);
    return FKV_OK;
}

/* Give back what the checkpoint made free. The writer lock is released now and then, without
 * threads too: so the checkpoint must be over, or another thread would go on with it. */
static void give_back(struct fkv *db)
{
    lock(db);
    reclaim_poll(&db->reclaim, true);
    /* What comes and goes is left alone: to take it away and get it again costs more than time. */
    uint32_t keep = sectors_to_keep(db);
    if (db->checkpoint.thorough || db->sectors.free_backed_count > 2 * keep)
        sectors_trim(&db->sectors, keep, true, &db->writer);
    unlock(db);
}

/* Whoever waits for the checkpoint is told why it failed, by another thread. */
static void keep_error(struct checkpoint *checkpoint, enum fkv_error error)
{
    checkpoint->error = error;
    if (error)
        snprintf(checkpoint->error_text, sizeof checkpoint->error_text, "%s", error_last());
}

static void over(struct fkv *db, enum fkv_error error)
{
    struct checkpoint *checkpoint = &db->checkpoint;
    lock(db);
    db->pages.unparking = false;
    keep_error(checkpoint, error);
    if (error) {
        if (checkpoint->stage != CHECKPOINT_INDEX) {
            pages_checkpoint_abandon(&db->pages);
            sectors_checkpoint_abandon(&db->sectors);
        }
        if (error != FKV_FULL && error != FKV_NO_MEMORY)
            store_fail(db, error);
    }
    /* What one needs that was asked for while nobody wrote says little of the next. */
    checkpoint->log_bytes = max_u64(db->log.written_bytes - checkpoint->log_bytes_before,
                                    checkpoint->log_bytes / 8 * 7);
    atomic_store_explicit(&checkpoint->owed_ns, 0, memory_order_relaxed);
    index_trim_again(&db->index);
    checkpoint->stage = CHECKPOINT_IDLE;
    checkpoint->over++;
    if (!error)
        checkpoint->last_well = checkpoint->over;
    pthread_cond_broadcast(&db->checkpoint.ended);
    unlock(db);
}

/* Do the next part of a checkpoint that has begun. With threads, the writer lock is not held. */
static void advance(struct fkv *db)
{
    enum fkv_error error = FKV_OK;
    switch ((enum checkpoint_stage)db->checkpoint.stage) {
    case CHECKPOINT_IDLE:
        return;
    case CHECKPOINT_INDEX:
        error = write_parked(db);
        break;
    case CHECKPOINT_VALUES:
        error = write_values(db);
        break;
    case CHECKPOINT_PAGES:
        error = write_pages(db);
        break;
    case CHECKPOINT_SYNC:
        error = PLANTED(SKIP_PAGES_SYNC) ? FKV_OK : sync_store(db);
        db->checkpoint.stage = CHECKPOINT_HEADER;
        break;
    case CHECKPOINT_HEADER:
        error = write_header(db);
        over(db, error);
        if (!error)
            give_back(db);
        return;
    }
    if (error)
        over(db, error);
}

/* ---------------------------------------------------------------- when */

/*
 * How much of the log must be free when a checkpoint begins: twice what was written to it during
 * the last ones, so that commits need not wait. The less that is, the later checkpoints begin and
 * the fewer there are: where keys are spread over the index each of them writes nearly all of it.
 */
static uint64_t log_room(const struct fkv *db)
{
    uint64_t most = db->log.size_max / 2;
    uint64_t least = db->threads ? db->log.size_max / 4 : most;
    return max_u64(min_u64(2 * db->checkpoint.log_bytes, most), least);
}

static bool is_time(const struct fkv *db)
{
    const struct sectors *sectors = &db->sectors;
    uint32_t used = sectors->values_count + sectors->large_count;
    return room_in_log(db) < log_room(db) || index_is_dirty(&db->index) ||
           sectors->freed.count > max_u64(16, used / 12);
}

/*
 * Who outruns a checkpoint finds the log full and waits for all the rest of it, 0.1 s and more, or
 * has more and more pages of the index in memory, changed and not written, whatever its limit is;
 * who outruns the flusher has no buffer for a sector, or no space for it in the file, and waits for
 * it at each one. So commits slow down before: once half of the room is used they pay for what they
 * write to the log with time, and four times as much with each further halving; who finds enough of
 * it owed gives way to others for so long, or sleeps. The first price lets the log be filled at
 * 500 MB/s, the second at 125, and so on: commits go on, and use most of the room while the disk
 * does what it can.
 */
enum {
    PRICE_LOG = 2,    /* ns a byte */
    PRICE_INDEX = 16, /* a small operation changes a page of 4 KiB */
    PRICES = 7,       /* the last for the last 1/128 of the room */
    PAUSE_LEAST_NS = 1000,
    SLEEP_LEAST_NS = 64000, /* as much, or more, the system makes of a shorter sleep */
    SLEEP_MOST_NS = 4000000,
};

static uint64_t price(uint64_t left, uint64_t room, uint64_t first)
{
    if (__builtin_expect(left >= room / 2, 1))
        return 0;
    uint32_t halvings = 0;
    for (uint64_t half = room / 4; left < half && halvings < PRICES - 1; half /= 2)
        halvings++;
    return first << 2 * halvings;
}

/* What the commit owes for what it has written. */
static void charge(struct fkv *db)
{
    struct checkpoint *checkpoint = &db->checkpoint;
    uint64_t bytes = db->log.written_bytes - checkpoint->charged_bytes;
    checkpoint->charged_bytes = db->log.written_bytes;
    uint64_t most = price(tail_buffers_left(&db->tail), db->tail.buffers_usual, PRICE_LOG);
    if (checkpoint->stage != CHECKPOINT_IDLE)
        most = max_u64(most, price(room_in_log(db), checkpoint->log_room, PRICE_LOG));
    most = max_u64(most, price(index_room(&db->index), db->index.limit.frames_max, PRICE_INDEX));
    if (atomic_load_explicit(&db->tail.extend, memory_order_relaxed)) {
        struct sectors_room room = sectors_room(&db->sectors);
        most = max_u64(most, price(room.left, room.usual, PRICE_LOG));
    }
    if (most)
        atomic_fetch_add_explicit(&checkpoint->owed_ns, (int64_t)(bytes * most),
                                  memory_order_relaxed);
}

void checkpoint_pause(struct fkv *db)
{
    _Atomic int64_t *owed_ns = &db->checkpoint.owed_ns;
    int64_t owed = atomic_load_explicit(owed_ns, memory_order_relaxed);
    if (__builtin_expect(owed < PAUSE_LEAST_NS, 1) || rcu_read_ongoing())
        return;
    uint64_t begin = clock_ns();
    int64_t paid = 0;
    if (owed < SLEEP_LEAST_NS)
        for (; paid < owed; paid = (int64_t)(clock_ns() - begin))
            sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = owed < SLEEP_MOST_NS ? owed : SLEEP_MOST_NS}, NULL);
    paid = (int64_t)(clock_ns() - begin); /* often longer: the next ones need not */
    atomic_fetch_sub_explicit(owed_ns, paid < owed ? owed : paid, memory_order_relaxed);
}

void checkpoint_poll(struct fkv *db)
{
    struct checkpoint *checkpoint = &db->checkpoint;
    if (db->threads)
        charge(db);
    if (checkpoint->stage == CHECKPOINT_IDLE && !checkpoint->wanted && !is_time(db))
        return;
    if (db->threads) {
        if (checkpoint->stage == CHECKPOINT_IDLE && !checkpoint->wanted) {
            checkpoint->wanted = true;
            pthread_cond_signal(&db->checkpoint.due);
        }
        return;
    }
    if (store_has_failed(db))
        return;
    if (checkpoint->stage == CHECKPOINT_IDLE)
        start(db);
    else
        advance(db);
}

/* At the end of each the writer lock is released, without threads too: others may have begun the
 * next by then, and it may be over, well or not. */
enum fkv_error checkpoint_run(struct fkv *db)
{
    struct checkpoint *checkpoint = &db->checkpoint;
    enum fkv_error error = store_writable(db);
    if (error)
        return error;
    uint64_t until = checkpoint_next_over(db);
    while (!db->threads && checkpoint->over < until) {
        if (checkpoint->stage != CHECKPOINT_IDLE)
            advance(db);
        else if (store_has_failed(db)) /* after a failed sync no other is to be believed */
            return FKV_IO;
        else
            start(db);
    }
    while (db->threads && checkpoint->over < until && !db->checkpoint.stop) {
        if (checkpoint->stage == CHECKPOINT_IDLE) {
            checkpoint->wanted = true;
            pthread_cond_signal(&db->checkpoint.due);
        }
        pthread_cond_wait(&db->checkpoint.ended, &db->writer);
    }
    if ((error = checkpoint_error_of(db, until)))
        error_set(error, "%s", checkpoint->error_text);
    return error;
}

enum fkv_error checkpoint_run_for_space(struct fkv *db)
{
    enum fkv_error error = checkpoint_run(db);
    /* Sectors that it freed wait for readers; wait with them, if this thread is not one. */
    for (int round = 0; round < 3 && !error && !rcu_read_ongoing(); round++) {
        reclaim_poll(&db->reclaim, true);
        if (reclaim_is_idle(&db->reclaim))
            break;
        pthread_mutex_unlock(&db->writer);
        reclaim_wait_a_while(&db->reclaim);
        pthread_mutex_lock(&db->writer);
    }
    return error;
}

/* The store closes while much of the checkpoint is still to be written: the log has it all. */
static bool is_given_up(struct fkv *db)
{
    lock(db);
    int stage = db->checkpoint.stage;
    uint64_t left = stage == CHECKPOINT_INDEX   ? db->pages.dirty_pages
                    : stage == CHECKPOINT_PAGES ? db->pages.pending_pages
                                                : 0;
    bool given_up = db->checkpoint.stop && left > CLOSE_PAGES_MAX;
    unlock(db);
    return given_up;
}

void *checkpoint_thread(void *context)
{
    struct fkv *db = context;
    pthread_mutex_lock(&db->writer);
    while (!db->checkpoint.stop) {
        if (!db->checkpoint.wanted) {
            if (db->compaction.stage)
                compaction_turn(db);
            else
                pthread_cond_wait(&db->checkpoint.due, &db->writer);
            continue;
        }
        db->checkpoint.wanted = false;
        enum fkv_error failed = store_writable(db);
        if (failed) {
            keep_error(&db->checkpoint, failed);
            db->checkpoint.over++;
            pthread_cond_broadcast(&db->checkpoint.ended);
            continue;
        }
        start(db);
        pthread_mutex_unlock(&db->writer);
        while (db->checkpoint.stage != CHECKPOINT_IDLE) {
            if (is_given_up(db))
                over(db, FKV_FULL); /* which is no failure of the store */
            else
                advance(db);
        }
        pthread_mutex_lock(&db->writer);
    }
    pthread_mutex_unlock(&db->writer);
    return NULL;
}
