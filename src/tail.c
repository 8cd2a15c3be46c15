#include "tail.h"

#include <assert.h>
#include <time.h>

#include "frame.h"
#include "header.h"
#include "planted.h"
#include "reclaim.h"

enum { CELLS_PER_PAGE = PAGE_BYTES / CELL_BYTES };

enum fkv_error tail_make(struct tail *tail, struct sectors *sectors, struct reclaim *reclaim,
                         uint64_t seed, bool threads)
{
    *tail = (struct tail){.sectors = sectors,
                          .reclaim = reclaim,
                          .seed = seed,
                          .threads = threads,
                          .hidden = UINT64_MAX,
                          .buffers_usual = BUFFERS_USUAL};
    pthread_mutex_init(&tail->flush_lock, NULL);
    pthread_mutex_init(&tail->queue_lock, NULL);
    pthread_cond_init(&tail->flush_wanted, NULL);
    pthread_cond_init(&tail->flush_done, NULL);
    return reservation_make(&tail->memory, BUFFERS_MAX * SECTOR_BYTES, true) ? FKV_NO_MEMORY
                                                                             : FKV_OK;
}

void tail_drop(struct tail *tail)
{
    memory_free(tail->opened);
    reservation_drop(&tail->memory);
}

uint64_t tail_memory_bytes(struct tail *tail)
{
    pthread_mutex_lock(&tail->queue_lock); /* the flusher makes buffers */
    uint64_t bytes = tail->memory.backed_bytes;
    pthread_mutex_unlock(&tail->queue_lock);
    return bytes + tail->opened_room * sizeof *tail->opened;
}

void tail_limit_memory(struct tail *tail, uint64_t bytes)
{
    uint64_t most = min_u64(bytes / 8 / SECTOR_BYTES, BUFFERS_USUAL);
    atomic_store(&tail->buffers_usual, (uint32_t)max_u64(most, BUFFERS_LEAST));
}

static uint32_t place_of(const struct tail *tail, uint32_t cell)
{
    return record_place(tail->sequence, cell);
}

/* ---------------------------------------------------------------- buffers */

static struct buffer *buffer_take_free(struct tail *tail)
{
    pthread_mutex_lock(&tail->queue_lock);
    struct buffer *buffer = tail->free;
    if (buffer) {
        tail->free = buffer->next;
        tail->free_count--;
    }
    pthread_mutex_unlock(&tail->queue_lock);
    return buffer;
}

/* queue_lock is held. */
static void put_free(struct tail *tail, struct buffer *buffer)
{
    buffer->next = tail->free;
    tail->free = buffer;
    tail->free_count++;
}

static struct buffer *buffer_new(struct tail *tail, uint32_t most)
{
    struct buffer *buffer = NULL;
    pthread_mutex_lock(&tail->queue_lock);
    uint32_t count = tail->buffer_count;
    if (count < most && reservation_back(&tail->memory, (count + 1) * SECTOR_BYTES) == 0) {
        buffer = &tail->buffers[count];
        buffer->bytes = tail->memory.base + count * SECTOR_BYTES;
        tail->buffer_count = count + 1;
    }
    pthread_mutex_unlock(&tail->queue_lock);
    return buffer;
}

/*
 * For the flusher: a pair of buffers more, if few are free. The first store to a buffer waits until
 * the system has found a huge page and filled it with zeros, 2 ms: that shall not be a commit's.
 */
static void make_buffers_ahead(struct tail *tail)
{
    enum { AHEAD_MAX = 32, PAIR = 2 };
    uint32_t ahead = (uint32_t)min_u64(2 + atomic_load(&tail->sectors->file_count) / 16, AHEAD_MAX);
    for (int i = 0; i < PAIR; i++) {
        pthread_mutex_lock(&tail->queue_lock);
        bool enough = tail->free_count >= ahead;
        pthread_mutex_unlock(&tail->queue_lock);
        struct buffer *buffer = enough ? NULL : buffer_new(tail, tail->buffers_usual);
        if (!buffer)
            return;
        for (size_t at = 0; at < SECTOR_BYTES; at += PAGE_BYTES)
            ((volatile uint8_t *)buffer->bytes)[at] = 0;
        pthread_mutex_lock(&tail->queue_lock);
        put_free(tail, buffer);
        pthread_mutex_unlock(&tail->queue_lock);
    }
}

void tail_reclaim(struct tail *tail, struct buffer *buffers)
{
    pthread_mutex_lock(&tail->queue_lock);
    for (struct buffer *next; buffers; buffers = next) {
        next = buffers->next;
        put_free(tail, buffers);
    }
    pthread_mutex_unlock(&tail->queue_lock);
}

/* Hand buffers that are written to reclaim, but for those that no reader can be in. */
static void retire_flushed(struct tail *tail)
{
    pthread_mutex_lock(&tail->queue_lock);
    struct buffer *buffers = tail->flushed;
    tail->flushed = NULL;
    pthread_mutex_unlock(&tail->queue_lock);
    struct retired *retired = &tail->reclaim->filling;
    for (struct buffer *next; buffers; buffers = next) {
        next = buffers->next;
        sector_state(tail->sectors, buffers->last_sector)->populated = true;
        if (buffers->sequence >= tail->hidden) {
            buffers->next = NULL;
            tail_reclaim(tail, buffers);
            continue;
        }
        buffers->next = retired->buffers;
        retired->buffers = buffers;
        retired->count++;
    }
}

static enum fkv_error flush_one_or_wait(struct tail *tail);

/*
 * Where memory is scarce: a buffer that readers may still be in is waited for, if there are as many
 * as there may be. For a while only, since one of them may want the writer lock.
 */
static struct buffer *wait_for_readers(struct tail *tail)
{
    enum { WAITS = 50 };
    struct buffer *buffer = buffer_take_free(tail);
    bool scarce = tail->buffers_usual < BUFFERS_USUAL && tail->reclaim->threads;
    for (int i = 0; !buffer && i < WAITS && scarce && !rcu_read_ongoing() &&
                    tail->buffer_count >= tail->buffers_usual && !reclaim_is_idle(tail->reclaim);
         i++) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        reclaim_poll(tail->reclaim, true);
        buffer = buffer_take_free(tail);
    }
    return buffer;
}

/* A buffer for the next sector: a free one, a new one, or one that was waited for. */
static enum fkv_error buffer_take(struct tail *tail, struct buffer **buffer)
{
    /* Opened read-only, all that the log has stays in memory: none can be written to come free. */
    if (tail->sectors->read_only) {
        if ((*buffer = buffer_new(tail, BUFFERS_MAX)))
            return FKV_OK;
        return error_set(FKV_NO_MEMORY, "%s: no memory for all that the log has: open it to write",
                         tail->sectors->path);
    }
    retire_flushed(tail);
    reclaim_poll(tail->reclaim, true);
    /* Else those that come back from readers would let ever more wait for the file. */
    bool keeps_up = tail_buffers_left(tail) > 1;
    if (keeps_up &&
        ((*buffer = buffer_take_free(tail)) || (*buffer = buffer_new(tail, tail->buffers_usual))))
        return FKV_OK;
    enum fkv_error error = flush_one_or_wait(tail);
    if (error)
        return error;
    retire_flushed(tail);
    reclaim_poll(tail->reclaim, true);
    if ((*buffer = wait_for_readers(tail)) || (*buffer = buffer_new(tail, BUFFERS_MAX)))
        return FKV_OK;
    return error_set(FKV_NO_MEMORY, "no memory for a sector: is a read section open for long?");
}

/* ---------------------------------------------------------------- sealing and opening */

/* Fill up to this cell. No pad is longer than records are: the collector pays for them alike. */
static void pad_to(struct tail *tail, uint32_t end)
{
    while (tail->cell < end) {
        uint32_t cells = (uint32_t)min_u64(end - tail->cell, RECORD_CELLS_MAX);
        record_write_pad(tail->open->bytes + tail->cell * CELL_BYTES, tail->seed,
                         place_of(tail, tail->cell), cells);
        sectors_count_pad(tail->sectors, tail->sector, tail->cell, cells);
        tail->cell += cells;
    }
}

void tail_seal(struct tail *tail)
{
    if (!tail->open)
        return;
    pad_to(tail, SECTOR_CELLS);
    struct buffer *buffer = tail->open;
    tail->open = NULL;
    pthread_mutex_lock(&tail->queue_lock);
    buffer->next = NULL;
    if (tail->sealed_tail)
        tail->sealed_tail->next = buffer;
    else
        tail->sealed_head = buffer;
    tail->sealed_tail = buffer;
    tail->sealed_count++;
    pthread_cond_signal(&tail->flush_wanted);
    pthread_mutex_unlock(&tail->queue_lock);
    sectors_seal(tail->sectors, tail->sector);
}

static void buffer_assign(struct tail *tail, struct buffer *buffer, uint32_t sector,
                          uint64_t sequence, uint32_t flushed_cell)
{
    pthread_mutex_lock(&tail->queue_lock);
    buffer->sector = sector;
    buffer->sequence = sequence;
    buffer->flushed_cell = flushed_cell;
    pthread_mutex_unlock(&tail->queue_lock);
}

static void open_sector(struct tail *tail, uint32_t sector, uint64_t sequence,
                        struct buffer *buffer)
{
    buffer_assign(tail, buffer, sector, sequence, 0);
    sector_header_write(buffer->bytes, tail->sectors->store_id, sector, sequence, SECTOR_VALUES);
    tail->open = buffer;
    tail->sector = sector;
    tail->cell = SECTOR_HEADER_CELLS;
    tail->sequence = sequence;
    sectors_open_values(tail->sectors, sector, sequence, buffer->bytes);
}

enum fkv_error tail_prepare(struct tail *tail, uint32_t cells, uint32_t leave)
{
    if (tail->open && tail->cell + cells <= SECTOR_CELLS)
        return FKV_OK;
    struct sectors *sectors = tail->sectors;
    enum fkv_error error;
    uint32_t *opened = memory_room(tail->opened, sizeof *opened, tail->opened_count + UINT64_C(1),
                                   &tail->opened_room);
    if (!opened)
        return FKV_NO_MEMORY;
    tail->opened = opened;
    if (!tail->spare) {
        if ((error = sectors_reserve(sectors, 1, leave, 0)) ||
            (error = sectors_take(sectors, &tail->spare)))
            return error;
    }
    struct buffer *buffer;
    if ((error = sectors_prepare(sectors, tail->spare)) || (error = buffer_take(tail, &buffer)))
        return error;
    tail_seal(tail);
    tail->opened[tail->opened_count++] = tail->spare;
    open_sector(tail, tail->spare, sectors->next_sequence, buffer);
    tail->spare = 0;
    if (!tail->threads) { /* without space it waits, until its buffer is needed */
        error = tail_flush(tail);
        return error == FKV_FULL ? FKV_OK : error;
    }
    uint32_t low = sectors_run_low(sectors);
    if (low) {
        pthread_mutex_lock(&tail->queue_lock);
        tail->extend = low;
        pthread_cond_signal(&tail->flush_wanted);
        pthread_mutex_unlock(&tail->queue_lock);
    }
    return FKV_OK;
}

enum fkv_error tail_open(struct tail *tail, uint32_t sector, uint32_t cell)
{
    struct sectors *sectors = tail->sectors;
    struct buffer *buffer;
    enum fkv_error error;
    if (sector >= sectors->count || sector_state(sectors, sector)->type != SECTOR_VALUES ||
        cell < SECTOR_HEADER_CELLS || cell > SECTOR_CELLS || sectors->back != sector)
        return error_set(FKV_DAMAGED, "%s: the header names an impossible open sector",
                         sectors->path);
    if ((error = sectors_prepare(sectors, sector)) || (error = buffer_take(tail, &buffer)))
        return error;
    struct sector_view *view = sector_view(sectors, sector);
    int status = sectors->ops->read(sectors->file, buffer->bytes, cell * CELL_BYTES,
                                    (uint64_t)sector * SECTOR_BYTES);
    if (status)
        return error_os(status, "read the open sector of", sectors->path);
    if ((error = sector_header_check(sectors, buffer->bytes, sector, view->sequence)))
        return error;
    sector_state(sectors, sector)->sealed = 0;
    buffer_assign(tail, buffer, sector, view->sequence, cell);
    tail->open = buffer;
    tail->sector = sector;
    tail->cell = cell;
    tail->sequence = view->sequence;
    __atomic_store_n(&view->base, buffer->bytes, __ATOMIC_RELEASE);
    return FKV_OK;
}

enum fkv_error tail_continue_at(struct tail *tail, uint32_t sector, uint64_t sequence)
{
    struct buffer *buffer;
    enum fkv_error error;
    if (tail->open && sequence <= tail->sequence)
        return error_set(FKV_DAMAGED, "%s: the log opens sectors out of order",
                         tail->sectors->path);
    if ((error = sectors_take_at(tail->sectors, sector)) ||
        (error = sectors_prepare(tail->sectors, sector)) || (error = buffer_take(tail, &buffer)))
        return error;
    tail_seal(tail);
    open_sector(tail, sector, sequence, buffer);
    return tail_flush(tail);
}

enum fkv_error tail_skip_to(struct tail *tail, uint32_t cell)
{
    if (!tail->open || cell < tail->cell || cell > SECTOR_CELLS)
        return error_set(FKV_DAMAGED, "%s: the log puts a record where there is one",
                         tail->sectors->path);
    pad_to(tail, cell);
    return FKV_OK;
}

uint64_t tail_opened_bytes(const struct tail *tail)
{
    return tail->opened_count * operation_bytes(sizeof(uint64_t));
}

uint8_t *tail_log_opened(struct tail *tail, uint32_t sector, uint8_t *to)
{
    uint32_t done = 0;
    for (uint32_t i = 0; i < tail->opened_count && !done; i++)
        if (tail->opened[i] == sector)
            done = i + 1;
    for (uint32_t i = 0; i < done; i++) {
        const struct sector_view *view = sector_view(tail->sectors, tail->opened[i]);
        to = operation_write(to, OPERATION_OPEN, (uint64_t)tail->opened[i] * SECTOR_CELLS,
                             &view->sequence, sizeof view->sequence);
    }
    tail->opened_count -= done;
    if (done)
        memmove(tail->opened, tail->opened + done, tail->opened_count * sizeof *tail->opened);
    return to;
}

uint8_t *tail_append(struct tail *tail, uint32_t cells, uint64_t *address)
{
    assert(tail->open && tail->cell + cells <= SECTOR_CELLS);
    *address = (uint64_t)tail->sector * SECTOR_CELLS + tail->cell;
    uint8_t *at = tail->open->bytes + tail->cell * CELL_BYTES;
    tail->cell += cells;
    sectors_count_live(tail->sectors, cells);
    return at;
}

void tail_unappend(struct tail *tail, uint32_t cells)
{
    tail->cell -= cells;
    tail->sectors->live_cells -= cells;
}

void tail_pad_to_page(struct tail *tail)
{
    if (tail->open)
        pad_to(tail, (uint32_t)round_up(tail->cell, CELLS_PER_PAGE));
}

/* ---------------------------------------------------------------- writing to the file */

/* Write the cells of a buffer up to `cell`. flush_lock is held. */
static enum fkv_error write_cells(struct tail *tail, struct buffer *buffer, uint32_t cell)
{
    struct sectors *sectors = tail->sectors;
    if (cell <= buffer->flushed_cell)
        return FKV_OK;
    size_t from = buffer->flushed_cell * CELL_BYTES;
    size_t bytes = cell * CELL_BYTES - from;
    uint64_t offset = (uint64_t)buffer->sector * SECTOR_BYTES + from;
    int status = sectors->ops->write(sectors->file, buffer->bytes + from, bytes, offset);
    if (status && !PLANTED(IGNORE_WRITE_ERROR)) {
        enum fkv_error error = error_os(status, "write values to", sectors->path);
        if (error != FKV_FULL) /* else it is written again, whole */
            tail->failed = true;
        return error;
    }
    sectors->ops->start_writeback(sectors->file, offset, bytes);
    tail->written_bytes += bytes;
    buffer->flushed_cell = cell;
    return FKV_OK;
}

static void flush_unlock(struct tail *tail)
{
    pthread_mutex_unlock(&tail->flush_lock);
    pthread_mutex_lock(&tail->queue_lock);
    pthread_cond_signal(&tail->flush_done);
    pthread_mutex_unlock(&tail->queue_lock);
}

/* Write up to so many sealed sectors. flush_lock is held. */
static enum fkv_error flush_locked(struct tail *tail, uint32_t most)
{
    enum fkv_error error = FKV_OK;
    while (!error && most--) {
        pthread_mutex_lock(&tail->queue_lock);
        struct buffer *buffer = tail->sealed_head;
        pthread_mutex_unlock(&tail->queue_lock);
        if (!buffer || (error = write_cells(tail, buffer, SECTOR_CELLS)))
            break;
        const uint8_t *mapped = sectors_address(tail->sectors, buffer->sector);
        if (mapped)
            tail->sectors->ops->populate(tail->sectors->file, (void *)mapped, SECTOR_BYTES, false);
        struct sector_view *view = sector_view(tail->sectors, buffer->sector);
        __atomic_store_n(&view->base, mapped, __ATOMIC_RELEASE);
        pthread_mutex_lock(&tail->queue_lock);
        tail->sealed_head = buffer->next;
        if (!tail->sealed_head)
            tail->sealed_tail = NULL;
        tail->sealed_count--;
        buffer->last_sector = buffer->sector;
        buffer->sector = 0;
        buffer->next = tail->flushed;
        tail->flushed = buffer;
        pthread_cond_signal(&tail->flush_done);
        pthread_mutex_unlock(&tail->queue_lock);
    }
    return error;
}

static enum fkv_error flush_some(struct tail *tail, uint32_t most)
{
    if (tail->sectors->read_only)
        return FKV_OK;
    pthread_mutex_lock(&tail->flush_lock);
    enum fkv_error error = flush_locked(tail, most);
    flush_unlock(tail);
    return error;
}

/*
 * For the writer: until the file has one more of the sealed sectors. Who is at it already may have
 * many to write, of some milliseconds each, so the lock is not waited for, but a sector.
 */
static enum fkv_error flush_one_or_wait(struct tail *tail)
{
    enum fkv_error error = FKV_OK;
    bool mine = false;
    pthread_mutex_lock(&tail->queue_lock);
    while (tail->sealed_head && !tail->flushed && !tail->failed &&
           !(mine = pthread_mutex_trylock(&tail->flush_lock) == 0))
        pthread_cond_wait(&tail->flush_done, &tail->queue_lock);
    pthread_mutex_unlock(&tail->queue_lock);
    if (mine) {
        error = flush_locked(tail, 1);
        flush_unlock(tail);
    } else if (tail->failed) {
        error = error_set(FKV_IO, "%s: values could not be written", tail->sectors->path);
    }
    return error;
}

enum fkv_error tail_flush(struct tail *tail)
{
    return flush_some(tail, atomic_load(&tail->sealed_count));
}

enum fkv_error tail_flush_open(struct tail *tail, uint32_t sector, uint32_t cell)
{
    enum fkv_error error = FKV_OK;
    pthread_mutex_lock(&tail->flush_lock);
    pthread_mutex_lock(&tail->queue_lock);
    struct buffer *buffer = NULL;
    for (uint32_t i = 0; i < tail->buffer_count; i++)
        if (tail->buffers[i].sector == sector)
            buffer = &tail->buffers[i];
    pthread_mutex_unlock(&tail->queue_lock);
    if (buffer)
        error = write_cells(tail, buffer, cell);
    flush_unlock(tail);
    return error;
}

void *tail_flusher(void *context)
{
    enum { EXTEND_AT_ONCE = 2 };
    const long without_space_ns = 50000000;
    struct tail *tail = context;
    pthread_mutex_lock(&tail->queue_lock);
    for (;;) {
        while (!tail->sealed_head && !tail->extend && !tail->stop)
            pthread_cond_wait(&tail->flush_wanted, &tail->queue_lock);
        if (tail->stop)
            break;
        /* In turns, so that neither ready sectors nor free buffers run out while the other is seen
         * to. */
        uint32_t extend = (uint32_t)min_u64(tail->extend, EXTEND_AT_ONCE);
        pthread_mutex_unlock(&tail->queue_lock);
        make_buffers_ahead(tail);
        if (extend) {
            sectors_extend_ahead(tail->sectors, extend, tail->writer);
            pthread_mutex_lock(&tail->queue_lock);
            tail->extend -= (uint32_t)min_u64(tail->extend, extend);
            pthread_mutex_unlock(&tail->queue_lock);
        }
        if (flush_some(tail, 1) == FKV_FULL) /* whoever needs the buffer is told */
            nanosleep(&(struct timespec){.tv_nsec = without_space_ns}, NULL);
        pthread_mutex_lock(&tail->queue_lock);
        if (tail->failed)
            break; /* the buffers stay, readers go on */
    }
    pthread_mutex_unlock(&tail->queue_lock);
    return NULL;
}

void tail_stop(struct tail *tail)
{
    pthread_mutex_lock(&tail->queue_lock);
    tail->stop = true;
    pthread_cond_signal(&tail->flush_wanted);
    pthread_mutex_unlock(&tail->queue_lock);
}
