#include "log.h"

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "frame.h"
#include "header.h"
#include "memory.h"
#include "planted.h"

TUNABLE uint64_t log_step = MIB; /* its least size, and what it grows by */
#define BEYOND_BYTES (64 * MIB)

enum { BUFFER_BYTES = 16 * KIB }; /* larger frames are stored, whoever syncs them, if they may be */

char *log_name(const char *store_path)
{
    return memory_join(store_path, "-wal");
}

void log_make(struct log *log, const struct os_ops *ops, const char *path, uint64_t size_max,
              struct data_sync *data)
{
    *log = (struct log){
        .ops = ops, .path = path, .size_max = size_max, .ahead_max = size_max, .data = data};
    pthread_mutex_init(&log->grow_lock, NULL);
}

static enum fkv_error map_log(struct log *log)
{
    /* Address space beyond the maximum is for single frames that need more, and for a log that was
     * longer before a crash and has to go on where it was. */
    uint64_t most = max_u64(log->size, 2 * log->size_max + BEYOND_BYTES);
    log->map_bytes = round_up(max_u64(most, log->head.offset + BEYOND_BYTES), MIB);
    void *map;
    int status = log->ops->map(log->file, 0, log->map_bytes, !log->read_only, &map);
    if (status)
        return error_os(status, "map", log->path);
    log->map = map;
    log->in_place = log->ops->in_place(log->file);
    return FKV_OK;
}

enum fkv_error log_write_header(struct log *log, const uint8_t store_id[16])
{
    struct format_log_header header = {.magic = LOG_MAGIC, .version = FORMAT_VERSION};
    memcpy(header.store_id, store_id, sizeof header.store_id);
    header.checksum = log_header_checksum(&header);
    int status = log->ops->write(log->file, &header, sizeof header, 0);
    return status ? error_os(status, "write the header of", log->path) : FKV_OK;
}

enum fkv_error log_create(struct log *log, const uint8_t store_id[16])
{
    log->seed = load_u64(store_id);
    int status = log->ops->allocate(log->file, 0, log_step);
    if (status)
        return error_os(status, "create", log->path);
    enum fkv_error error = log_write_header(log, store_id);
    if (error)
        return error;
    log->size = log_step;
    log->start = log->head.offset = LOG_FRAMES_OFFSET;
    return map_log(log);
}

enum fkv_error log_is_unfinished(struct log *log, uint64_t size, bool *unfinished)
{
    const uint64_t magic = LOG_MAGIC;
    uint8_t page[PAGE_BYTES] = {0};
    struct format_log_header header;
    *unfinished = size == 0;
    if (size == 0 || size > log_step)
        return FKV_OK;
    int status = log->ops->read(log->file, page, (size_t)min_u64(size, sizeof page), 0);
    if (status)
        return error_os(status, "read", log->path);
    memcpy(&header, page, sizeof header);
    if (header.checksum == log_header_checksum(&header))
        return FKV_OK;
    for (size_t i = 0; i < sizeof magic; i++) /* a torn header, or none */
        if (page[i] && page[i] != ((const uint8_t *)&magic)[i])
            return FKV_OK;
    *unfinished = bytes_are_zero(page + sizeof header, sizeof page - sizeof header);
    return FKV_OK;
}

static enum fkv_error write_again(struct log *log, uint8_t *buffer, uint64_t from, uint64_t to)
{
    for (uint64_t bytes; from < to; from += bytes) {
        bytes = min_u64(to - from, MIB);
        memcpy(buffer, log->map + from, bytes);
        int status = log->ops->write(log->file, buffer, bytes, from);
        if (status)
            return error_os(status, "write", log->path);
    }
    return FKV_OK;
}

/*
 * Space for all of an old log: a program that has copied it may have left out zeros, and to store
 * into a hole of the mapping on a full disk would be the end of the process. Some file systems want
 * more to be free than they will use; then what lies there is written as it is, which shows.
 */
static enum fkv_error fill_holes(struct log *log)
{
    uint8_t *buffer = NULL;
    enum fkv_error error = FKV_OK;
    if (log->ops->allocate(log->file, 0, log->size) == 0)
        return FKV_OK;
    for (uint64_t from = 0, to; from < log->size && !error; from = to) {
        to = min_u64(from + MIB, log->size);
        if (log->ops->allocate(log->file, from, to - from) == 0)
            continue;
        if (!buffer && !(buffer = memory_buffer(MIB)))
            return FKV_NO_MEMORY;
        error = write_again(log, buffer, from, to);
    }
    memory_free(buffer);
    return error;
}

enum fkv_error log_open(struct log *log, const uint8_t store_id[16])
{
    struct format_log_header header;
    uint64_t size;
    int status = log->ops->size(log->file, &size);
    if (status)
        return error_os(status, "size of", log->path);
    log->size = size;
    if (log->size < LOG_FRAMES_OFFSET + sizeof(struct format_frame))
        return error_set(FKV_TRUNCATED, "%s: the log has %llu bytes, less than its header",
                         log->path, (unsigned long long)log->size);
    if ((status = log->ops->read(log->file, &header, sizeof header, 0)))
        return error_os(status, "read", log->path);
    if (header.magic != LOG_MAGIC)
        return error_set(FKV_NOT_A_STORE, "%s is not a log of fkv", log->path);
    if (header.checksum != log_header_checksum(&header))
        return error_set(FKV_DAMAGED, "%s: the log's header fails its checksum", log->path);
    if (header.version != FORMAT_VERSION)
        return error_set(FKV_UNKNOWN_FORMAT, "%s has format %u, known is %u", log->path,
                         header.version, FORMAT_VERSION);
    if (memcmp(header.store_id, store_id, sizeof header.store_id) != 0)
        return error_set(FKV_LOG_MISMATCH, "%s belongs to another store", log->path);
    log->seed = load_u64(store_id);
    enum fkv_error error = map_log(log);
    return error || log->read_only || PLANTED(LOG_HOLES) ? error : fill_holes(log);
}

static bool make_buffer(struct log *log, uint64_t bytes)
{
    if (log->buffer_bytes >= bytes)
        return true;
    uint8_t *buffer = memory_buffer(max_u64(bytes, BUFFER_BYTES));
    if (!buffer)
        return false;
    memory_free(log->buffer);
    log->buffer = buffer;
    log->buffer_bytes = max_u64(bytes, BUFFER_BYTES);
    return true;
}

static void drop_buffer(struct log *log)
{
    memory_free(log->buffer);
    log->buffer = NULL;
    log->buffer_bytes = 0;
}

uint64_t log_memory_bytes(const struct log *log)
{
    return log->buffer_bytes;
}

void log_drop(struct log *log)
{
    if (log->map)
        log->ops->unmap(log->file, log->map, log->map_bytes);
    log->map = NULL;
    drop_buffer(log);
}

/* ---------------------------------------------------------------- room */

static const uint64_t wrap_bytes = sizeof(struct format_frame);

static bool fits_at_head(const struct log *log, uint64_t bytes)
{
    if (log->head.offset < log->start) /* wrapped: never reach start, full is not empty */
        return log->head.offset + bytes < log->start;
    return log->head.offset + bytes + wrap_bytes <= log->size;
}

/* The head may be beyond the file's end: where a crash undid growth that no sync had covered. */
static bool fits_at_front(const struct log *log, uint64_t bytes)
{
    return log->head.offset >= log->start && LOG_FRAMES_OFFSET + bytes < log->start &&
           log->head.offset + wrap_bytes <= log->size;
}

static enum fkv_error too_large(const struct log *log, uint64_t bytes)
{
    return error_set(FKV_FULL, "%s: a commit of %llu bytes of log is too large", log->path,
                     (unsigned long long)bytes);
}

static enum fkv_error allocate_for(struct log *log, uint64_t bytes)
{
    uint64_t need = round_up(log->head.offset + bytes + wrap_bytes, log_step);
    if (log->ahead >= need) {
        log->size = log->ahead;
        return FKV_OK;
    }
    uint64_t size = max_u64(min_u64(log->size * 2, log->size_max), need);
    if (size > log->map_bytes)
        return too_large(log, bytes);
    uint64_t from = max_u64(log->size, log->ahead);
    int status = log->ops->allocate(log->file, from, size - from);
    if (status)
        return error_os(status, "grow", log->path);
    log->size = log->ahead = size;
    return FKV_OK;
}

static enum fkv_error grow(struct log *log, uint64_t bytes)
{
    pthread_mutex_lock(&log->grow_lock);
    enum fkv_error error = allocate_for(log, bytes);
    pthread_mutex_unlock(&log->grow_lock);
    return error;
}

/* By one step, through the mapping: so that the page cache holds it in pages, not in larger pieces
 * of which every sync would write the whole. */
static void lengthen_ahead(struct log *log)
{
    if (!log->in_place || pthread_mutex_trylock(&log->grow_lock))
        return;
    uint64_t from = max_u64(log->size, log->ahead);
    if (from == log->size && from + log_step <= log->ahead_max &&
        log->ops->allocate(log->file, from, log_step) == 0) {
        memset(log->map + from, 0, log_step);
        log->ahead = from + log_step;
    }
    pthread_mutex_unlock(&log->grow_lock);
}

/* The frame at `at`, in the mapping or not, is the next one. */
static enum fkv_error put_frame(struct log *log, uint8_t *at, uint64_t bytes, uint32_t flags,
                                uint64_t commit)
{
    struct format_frame header = {
        .previous = log->head.chain,
        .bytes = (uint32_t)bytes,
        .flags = flags,
        .commit = commit,
        .durable_commit = atomic_load_explicit(&log->durable_commit, memory_order_relaxed)};
    memcpy(at, &header, sizeof header);
    header.checksum = frame_checksum(at, bytes, log->seed);
    memcpy(at, &header.checksum, sizeof header.checksum);
    uint8_t *place = log->map + log->head.offset;
    int status = at == place ? 0 : log->ops->write(log->file, at, bytes, log->head.offset);
    if (status && !log->in_place) {
        error_os(status, "write", log->path);
        return FKV_IO; /* and not FKV_FULL, after which one might try again */
    }
    if (status) /* what the call has left is an end of the log that is torn; this replaces it */
        memcpy(place, at, bytes);
    log->head.chain = header.checksum;
    log->head.offset += bytes;
    log->live_bytes += bytes;
    log->written_bytes += bytes;
    return FKV_OK;
}

/*
 * See log.h. Only what lies between head and the first byte that a recovery needs, in whole pages;
 * and one page a call, so that the page cache does not hold them in larger pieces, of which every
 * sync would write the whole. What fails is only not done: storing into the page works all the
 * same.
 */
static void zero_pages(struct log *log, uint64_t bytes)
{
    static const uint8_t zeros[PAGE_BYTES];
    uint64_t end = log->head.offset < log->start ? log->start : log->size;
    end = min_u64(round_up(log->head.offset + bytes, PAGE_BYTES), end / PAGE_BYTES * PAGE_BYTES);
    uint64_t at = max_u64(log->zeroed, round_up(log->head.offset, PAGE_BYTES));
    for (; at < end; at += PAGE_BYTES)
        if (log->ops->write(log->file, zeros, PAGE_BYTES, at))
            return;
    log->zeroed = at;
}

static enum fkv_error wrap(struct log *log)
{
    uint8_t frame[sizeof(struct format_frame)];
    uint64_t left = log->size - log->head.offset - wrap_bytes;
    uint8_t *at = log->in_place ? log->map + log->head.offset : frame;
    enum fkv_error error = put_frame(log, at, wrap_bytes, FRAME_WRAP, 0);
    if (error)
        return error;
    log->live_bytes += left;
    log->head.offset = LOG_FRAMES_OFFSET;
    log->zeroed = 0;
    return FKV_OK;
}

/* Frames that take most of the mapping, or of the file where that cannot grow, fit there from the
 * front on only; and not before a replay begins there, as it does after a checkpoint that follows
 * on the wrap frame. */
static bool is_for_front(const struct log *log, uint64_t bytes, uint64_t log_bytes)
{
    return log->head.offset + bytes + wrap_bytes > log_bytes &&
           LOG_FRAMES_OFFSET + bytes + wrap_bytes <= log_bytes && fits_at_front(log, 0);
}

enum fkv_error log_can_hold(const struct log *log, uint64_t bytes)
{
    bool can = bytes < UINT32_MAX && LOG_FRAMES_OFFSET + bytes + wrap_bytes <= log->map_bytes;
    return can ? FKV_OK : too_large(log, bytes);
}

static enum fkv_error reserve(struct log *log, uint64_t bytes, bool *full)
{
    *full = false;
    enum fkv_error error = log_can_hold(log, bytes);
    if (error)
        return error;
    if (fits_at_head(log, bytes))
        return FKV_OK;
    /* Go back to the front if there is enough room there that it is worth it. */
    bool front = fits_at_front(log, bytes);
    if (front && (log->size >= log->size_max || log->start > log->size / 2))
        return wrap(log);
    bool alone = log->live_bytes == 0; /* nothing that a checkpoint could free */
    bool to_front = alone && is_for_front(log, bytes, log->map_bytes);
    error = FKV_FULL;
    if (!to_front && log->head.offset >= log->start && (log->size < log->size_max || alone))
        error = grow(log, bytes);
    if (error == FKV_FULL && front) {
        log->size_max = min_u64(log->size_max, log->size); /* as it is, it must do */
        return reserve(log, bytes, full);
    }
    if (error == FKV_FULL && alone && (to_front || is_for_front(log, bytes, log->size))) {
        enum fkv_error failed = wrap(log);
        if (failed)
            return failed;
        alone = false;
    }
    if (error == FKV_FULL && !alone) {
        *full = true;
        error_set(error, "%s: no room for %llu bytes before the next checkpoint", log->path,
                  (unsigned long long)bytes);
    }
    return error;
}

enum fkv_error log_reserve(struct log *log, uint64_t bytes, bool *full)
{
    enum fkv_error error = reserve(log, bytes, full);
    if (error)
        return error;
    log->reserved = bytes;
    if (!log->in_place)
        return make_buffer(log, bytes) ? FKV_OK : FKV_NO_MEMORY;
    if (__builtin_expect(log->scarce, 0))
        zero_pages(log, bytes);
    return FKV_OK;
}

uint8_t *log_begin(struct log *log, bool synced)
{
    uint64_t bytes = log->reserved;
    assert(fits_at_head(log, bytes));
    bool by_call = !log->in_place || (synced && bytes <= BUFFER_BYTES && make_buffer(log, bytes));
    log->frame = by_call ? log->buffer : log->map + log->head.offset;
    return log->frame + sizeof(struct format_frame);
}

enum fkv_error log_end(struct log *log, const uint8_t *end, uint32_t flags, uint64_t commit)
{
    uint64_t bytes = (uint64_t)(end - log->frame);
    assert(bytes <= log->reserved && bytes % 8 == 0);
    log->reserved = 0;
    enum fkv_error error = put_frame(log, log->frame, bytes, flags, commit);
    if (log->buffer_bytes > BUFFER_BYTES)
        drop_buffer(log);
    if (!error && commit)
        atomic_store_explicit(&log->written_commit, commit, memory_order_release);
    return error;
}

void log_shrink(struct log *log)
{
    if (max_u64(log->size, log->ahead) > log_step && log->ops->truncate(log->file, log_step) == 0)
        log->size = log->ahead = log_step;
}

void log_release(struct log *log, struct log_position position)
{
    log->start = position.offset;
    if (log->head.offset >= log->start)
        log->live_bytes = log->head.offset - log->start;
    else
        log->live_bytes = log->size - log->start + log->head.offset - LOG_FRAMES_OFFSET;
}

/* ---------------------------------------------------------------- sync */

static enum fkv_error sync_files(struct log *log)
{
    int status = 0;
    /* What frames refer to must be durable before the frames are. */
    if (atomic_exchange(&log->data_unsynced, false) && !PLANTED(SKIP_DATA_SYNC) &&
        (status = data_sync(log->data)))
        return error_sync(status, log->data->path);
    if (!PLANTED(SKIP_LOG_SYNC) && (status = log->ops->sync(log->file)))
        return error_sync(status, log->path);
    return FKV_OK;
}

/*
 * Those who shared the last sync are on their way back with their next commits, if that is what
 * they do: a sync that does not wait for them leaves them to the one after it, and all wait twice.
 * So give way until as many have come, for half of the time that a sync takes at most, and not
 * longer where that is much: who is on the way is here soon. A thread that syncs alone never waits.
 */
static void gather(const struct log *log)
{
    const uint64_t most_ns = 2000000;
    uint64_t until = 0;
    while (atomic_load(&log->sync_arrived) - log->sync_served < log->sync_group) {
        uint64_t now = clock_ns();
        if (!until)
            until = now + min_u64(log->sync_ns / 2, most_ns);
        if (now >= until)
            break;
        sched_yield();
    }
}

/* sync_round is odd, and this thread made it so. */
static enum fkv_error sync_for_all(struct log *log)
{
    gather(log);
    uint64_t begin = clock_ns();
    uint64_t served = atomic_load(&log->sync_arrived); /* before the commit: theirs are in it */
    uint64_t target = atomic_load(&log->written_commit);
    enum fkv_error error = sync_files(log);
    if (error && !PLANTED(SYNC_AGAIN))
        atomic_store(&log->sync_failed, true);
    else
        atomic_store(&log->durable_commit, target);
    log->syncs++;
    log->sync_ns = clock_ns() - begin;
    log->sync_group = atomic_load(&log->sync_arrived) - log->sync_served;
    log->sync_served = served;
    atomic_fetch_add(&log->sync_round, 1);
    if (atomic_load(&log->sync_sleepers))
        syscall(SYS_futex, &log->sync_round, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    if (!error)
        lengthen_ahead(log);
    return error;
}

/* Until the round is over. Counted before the kernel looks at the word, so that whoever changes it
 * either sees the sleeper or keeps it from falling asleep. */
static void sleep_through(struct log *log, uint32_t round)
{
    atomic_fetch_add(&log->sync_sleepers, 1);
    syscall(SYS_futex, &log->sync_round, FUTEX_WAIT_PRIVATE, round, NULL, NULL, 0);
    atomic_fetch_sub(&log->sync_sleepers, 1);
}

enum fkv_error log_sync(struct log *log, uint64_t commit)
{
    bool arrived = false;
    for (;;) {
        /* Looked at before durable_commit: a round that ends between the two ends the sleep too. */
        uint32_t round = atomic_load(&log->sync_round);
        if (atomic_load(&log->durable_commit) >= commit)
            return FKV_OK;
        if (atomic_load(&log->sync_failed))
            return error_set(FKV_FAILED, "%s: an earlier sync failed", log->path);
        if (!arrived)
            atomic_fetch_add(&log->sync_arrived, 1);
        arrived = true;
        if (round % 2) {
            sleep_through(log, round);
        } else if (atomic_compare_exchange_strong(&log->sync_round, &round, round + 1)) {
            enum fkv_error error = sync_for_all(log);
            if (error)
                return error;
        }
    }
}

/* ---------------------------------------------------------------- replay */

void log_read_ahead(const struct log *log, uint64_t offset, uint64_t *asked)
{
    enum { AT_ONCE = 8 << 20 };
    if (offset + AT_ONCE < *asked) /* it went on at the front */
        *asked = offset;
    if (offset + AT_ONCE / 2 < *asked)
        return;
    log->ops->start_read(log->file, *asked, AT_ONCE);
    *asked += AT_ONCE;
}

/* Is there a whole frame at this offset? */
static bool frame_at(const struct log *log, uint64_t offset, struct format_frame *header)
{
    if (offset < LOG_FRAMES_OFFSET || offset % 8 || offset + sizeof *header > log->size)
        return false;
    memcpy(header, log->map + offset, sizeof *header);
    return header->bytes >= sizeof *header && header->bytes % 8 == 0 &&
           header->bytes <= log->size - offset &&
           (PLANTED(NO_FRAME_CHECKSUM) ||
            header->checksum == frame_checksum(log->map + offset, header->bytes, log->seed));
}

enum fkv_error log_next(struct log *log, struct log_frame *frame, bool *found)
{
    for (;;) {
        struct format_frame header;
        *found = frame_at(log, log->head.offset, &header) &&
                 (PLANTED(NO_CHAIN) || header.previous == log->head.chain);
        if (!*found)
            return FKV_OK;
        frame->header = header;
        frame->operations = log->map + log->head.offset + sizeof header;
        frame->end = log->map + log->head.offset + header.bytes;
        log->head.chain = header.checksum;
        log->live_bytes += header.bytes;
        log->head.offset += header.bytes;
        if (!(header.flags & FRAME_WRAP))
            return FKV_OK;
        log->live_bytes += log->size - log->head.offset;
        log->head.offset = LOG_FRAMES_OFFSET;
        if (log->live_bytes > log->size)
            return error_set(FKV_DAMAGED, "%s: the log runs in a circle", log->path);
    }
}

enum fkv_error log_write_again(struct log *log)
{
    if (log->live_bytes == 0)
        return FKV_OK;
    uint8_t *buffer = memory_buffer(min_u64(log->live_bytes, MIB));
    if (!buffer)
        return FKV_NO_MEMORY;
    enum fkv_error error;
    if (log->head.offset > log->start) {
        error = write_again(log, buffer, log->start, log->head.offset);
    } else if (!(error = write_again(log, buffer, log->start, log->size))) {
        error = write_again(log, buffer, LOG_FRAMES_OFFSET, log->head.offset);
    }
    memory_free(buffer);
    return error;
}

/* A frame of any age and chain? Its checksum comes last: see frame.h. */
static bool any_frame_at(const struct log *log, uint64_t offset, struct format_frame *header)
{
    memcpy(header, log->map + offset, sizeof *header);
    return frame_header_is_plausible(header, log->size - offset) &&
           frame_is_plausible(header, log->map + offset) && frame_at(log, offset, header);
}

/* How far the next place is that may have a header, behind one that has none: of a log that was
 * never full the most part is zeros, and where a header says that its frame has 0 bytes it is none.
 */
static uint64_t step_over(const struct log *log, uint64_t offset)
{
    enum { SOME = 256, MANY = 4 * KIB, UP_TO_BYTES = offsetof(struct format_frame, bytes) };
    const uint8_t *at = log->map + offset;
    uint64_t left = log->size - offset;
    if (left < SOME || !bytes_are_zero(at, SOME))
        return 8;
    return (left < MANY || !bytes_are_zero(at, MANY) ? SOME : MANY) - UP_TO_BYTES;
}

/*
 * Whole frames of any age are passed over in one step: what looks like a frame inside of one is
 * somebody's value. Only where an old frame was written over in part every place is tried.
 */
enum fkv_error log_check_end(const struct log *log, uint64_t last_commit)
{
    uint64_t step, asked = LOG_FRAMES_OFFSET;
    for (uint64_t offset = LOG_FRAMES_OFFSET; offset + sizeof(struct format_frame) <= log->size;
         offset += step) {
        struct format_frame header;
        log_read_ahead(log, offset, &asked);
        if (!any_frame_at(log, offset, &header)) {
            step = step_over(log, offset);
            continue;
        }
        step = header.bytes;
        if (header.durable_commit > last_commit && header.commit >= header.durable_commit)
            return error_set(FKV_DAMAGED,
                             "%s: the log ends at commit %llu (offset %llu), but commit %llu had "
                             "been synced",
                             log->path, (unsigned long long)last_commit,
                             (unsigned long long)log->head.offset,
                             (unsigned long long)header.durable_commit);
    }
    return FKV_OK;
}
