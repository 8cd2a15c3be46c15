#define _GNU_SOURCE
#include "async.h"
#include "fetch.h"
#include "frame.h"
#include "header.h"
#include "planted.h"
#include "thread.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

#define LOG_BYTES_DEFAULT (256 * MIB)
#define HEADER_COPIES_BYTES (2 * PAGE_BYTES)

enum fkv_error random_bytes(void *to, size_t bytes)
{
    if (getrandom(to, bytes, 0) == (ssize_t)bytes)
        return FKV_OK;
    return error_os(-errno, "get random bytes for", "a store");
}

/* ---------------------------------------------------------------- headers */

/* Which of the two copies counts; says what is wrong if neither does. */
static enum fkv_error header_choose(struct fkv *db, const struct format_header copies[2])
{
    const struct format_header *best = NULL;
    bool magic = false;
    for (int i = 0; i < 2; i++) {
        magic |= copies[i].magic == FORMAT_MAGIC;
        if (header_is_whole(&copies[i]) && (!best || copies[i].sequence > best->sequence))
            best = &copies[i];
    }
    /* A version is believed if it is in the copy that counts, or, of one to come, if neither is
     * whole as far as is known here; not in a damaged copy beside a whole one. */
    for (int i = 0; i < 2; i++)
        if (best == &copies[i]
                ? best->version != FORMAT_VERSION
                : !best && copies[i].magic == FORMAT_MAGIC && copies[i].version > FORMAT_VERSION)
            return error_set(FKV_UNKNOWN_FORMAT, "%s has format %u, known is %u", db->path,
                             copies[i].version, FORMAT_VERSION);
    if (!magic)
        return error_set(FKV_NOT_A_STORE, "%s is not a store of fkv", db->path);
    if (!best)
        return error_set(FKV_DAMAGED, "%s: both copies of the header fail their checksums",
                         db->path);
    if (best->features & ~(uint32_t)FEATURE_DIGEST)
        return error_set(FKV_UNKNOWN_FORMAT, "%s uses features (%#x) that are unknown here",
                         db->path, best->features);
    db->header = *best;
    db->header_copy = best == &copies[1];
    db->life.header_in_doubt = header_is_whole(&copies[1 - db->header_copy]);
    return FKV_OK;
}

enum { FIRST_SEQUENCE = 1 }; /* of a new header, before it is written for the first time */

/* A file that creating a store left behind when it was cut off: less than the shortest store, and
 * nothing in it but the beginning of its header. (Or a store that was cut off later: see
 * look_for_log.) */
static bool is_unfinished(const uint8_t *bytes, uint64_t size)
{
    struct format_header header;
    memcpy(&header, bytes, sizeof header);
    if (size > HEADER_COPIES_BYTES || header_is_whole(&header))
        return false;
    size_t end = size;
    while (end > 0 && !bytes[end - 1])
        end--;
    const uint64_t magic = FORMAT_MAGIC;
    return end <= sizeof header && memcmp(bytes, &magic, min_u64(end, sizeof magic)) == 0;
}

/* The same with the first copy of the header whole, and the other not written: a process that died
 * there has synced nothing, so what is read here may be in the system's cache only. */
static bool is_begun(const uint8_t *bytes, uint64_t size)
{
    struct format_header copies[2];
    memcpy(&copies[0], bytes, sizeof copies[0]);
    memcpy(&copies[1], bytes + PAGE_BYTES, sizeof copies[1]);
    return size <= HEADER_COPIES_BYTES && header_is_whole(&copies[0]) &&
           copies[0].sequence == FIRST_SEQUENCE + 1 && !copies[1].magic;
}

/* Is there a log beside the store, with its header? It is made once the store's own header is
 * durable, so a store that was there before is gone, or cut off; it is not to be made anew. Nor if
 * nobody knows, since the log cannot be read. */
static enum fkv_error look_for_log(struct fkv *db, bool *there)
{
    const struct os_ops *ops = db->os->ops;
    struct format_log_header header = {0};
    struct os_file *file;
    *there = false;
    int status = ops->open(db->os, db->log_path, OS_READ_ONLY, &file);
    if (status == -ENOENT)
        return FKV_OK;
    if (status)
        return error_os(status, "open", db->log_path);
    status = ops->read(file, &header, sizeof header, 0);
    ops->close(file);
    if (status == -ENODATA)
        return FKV_OK;
    if (status)
        return error_os(status, "read the header of", db->log_path);
    *there = header.magic == LOG_MAGIC && header.checksum == log_header_checksum(&header);
    return FKV_OK;
}

/* *fresh: there is no store in the file yet. */
static enum fkv_error header_read(struct fkv *db, bool *fresh)
{
    uint64_t size;
    int status = db->os->ops->size(db->file, &size);
    if (status)
        return error_os(status, "size of", db->path);
    uint8_t bytes[HEADER_COPIES_BYTES] = {0};
    size_t have = (size_t)min_u64(size, sizeof bytes);
    if ((status = db->os->ops->read(db->file, bytes, have, 0)))
        return error_os(status, "read the header of", db->path);
    bool unfinished = is_unfinished(bytes, size), has_log = false;
    *fresh = unfinished || is_begun(bytes, size);
    enum fkv_error error = *fresh ? look_for_log(db, &has_log) : FKV_OK;
    if (error)
        return error;
    *fresh &= !has_log;
    if (unfinished && has_log)
        return error_set(FKV_TRUNCATED, "%s has %llu bytes, less than its header, and has a log",
                         db->path, (unsigned long long)size);
    if (*fresh)
        return FKV_OK;
    struct format_header copies[2];
    memcpy(&copies[0], bytes, sizeof copies[0]);
    memcpy(&copies[1], bytes + PAGE_BYTES, sizeof copies[1]);
    if ((error = header_choose(db, copies)))
        return error;
    uint64_t log_offset = db->header.log_offset;
    if (log_offset < LOG_FRAMES_OFFSET || log_offset > LOG_OFFSET_MAX || log_offset % 8)
        return error_set(FKV_DAMAGED, "%s: the header names an impossible place in the log",
                         db->path);
    if (size / SECTOR_BYTES < db->header.sector_count)
        return error_set(FKV_TRUNCATED, "%s has %llu bytes and should have at least %llu", db->path,
                         (unsigned long long)size,
                         (unsigned long long)db->header.sector_count * SECTOR_BYTES);
    return FKV_OK;
}

static enum fkv_error header_create(struct fkv *db)
{
    db->header = (struct format_header){
        .magic = FORMAT_MAGIC,
        .version = FORMAT_VERSION,
        .features = db->flags & FKV_DIGEST ? FEATURE_DIGEST : 0,
        .sequence = FIRST_SEQUENCE,
        .next_sequence = 1,
        .log_offset = LOG_FRAMES_OFFSET,
        .clean = 1,
    };
    enum fkv_error error = random_bytes(db->header.store_id, sizeof db->header.store_id);
    if (error || (error = random_bytes(db->header.salt, sizeof db->header.salt)) ||
        (error = random_bytes(&db->header.log_chain, sizeof db->header.log_chain)))
        return error;
    struct format_header header = db->header;
    db->header_copy = 1; /* so that the first one is written first: see is_unfinished */
    return checkpoint_write_header(db, &header);
}

/* ---------------------------------------------------------------- keys to the parts */

static void use_header(struct fkv *db)
{
    const struct format_header *header = &db->header;
    hash_seeds_make(&db->hash_seeds, header->salt);
    memcpy(db->digest_key, header->salt, 16);
    memcpy(db->digest_key + 16, header->store_id, 16);
    memcpy(db->sectors.store_id, header->store_id, sizeof db->sectors.store_id);
    db->seed = load_u64(header->store_id + 8);
    db->tail.seed = db->seed;
    db->digest = header->features & FEATURE_DIGEST;
    db->commit = header->commit;
    db->keys = header->keys;
}

static enum fkv_error check_options(const fkv_options *options)
{
    const uint32_t known = FKV_OPEN_READ_ONLY | FKV_NO_CREATE | FKV_EXCLUSIVE | FKV_DIGEST |
                           FKV_NO_THREAD | FKV_NO_VERIFY | FKV_SYNC_EVERY |
                           FKV_READ_WITHOUT_MAPPING;
    if (options->flags & ~known)
        return error_set(FKV_INVALID, "unknown flags %#x", options->flags & ~known);
    if ((options->flags & FKV_EXCLUSIVE) && (options->flags & (FKV_NO_CREATE | FKV_OPEN_READ_ONLY)))
        return error_set(FKV_INVALID, "FKV_EXCLUSIVE asks for a new store, another flag for none");
    if (options->garbage_percent_max &&
        (options->garbage_percent_max < 10 || options->garbage_percent_max > 100))
        return error_set(FKV_INVALID, "garbage_percent_max is %u, not from 10 to 100",
                         options->garbage_percent_max);
    if (options->log_bytes_max &&
        (options->log_bytes_max < MIB || options->log_bytes_max > 64 * GIB))
        return error_set(FKV_INVALID, "log_bytes_max is %llu, not from 1 MiB to 64 GiB",
                         (unsigned long long)options->log_bytes_max);
    if (options->index_memory_max && options->index_memory_max < INDEX_MEMORY_MIN)
        return error_set(FKV_INVALID, "index_memory_max is %llu, at least %u, or 0",
                         (unsigned long long)options->index_memory_max, INDEX_MEMORY_MIN);
    return FKV_OK;
}

static void release(void *context, struct retired *retired)
{
    struct fkv *db = context;
    frames_free(&db->pages, retired->frames);
    index_reclaim(&db->index, retired->segments);
    for (struct retired_block *block = retired->blocks, *next; block; block = next) {
        next = block->next;
        memory_free(block);
    }
    tail_reclaim(&db->tail, retired->buffers);
    sectors_reclaim(&db->sectors, retired->sectors);
}

static void retire_frame(void *context, uint32_t frame)
{
    struct fkv *db = context;
    struct retired *retired = &db->reclaim.filling;
    *frame_link(&db->pages, frame) = retired->frames;
    retired->frames = frame;
    retired->count++;
}

static enum fkv_error take_sector(void *context, uint32_t *sector)
{
    struct fkv *db = context;
    if (db->life.replay_last)
        return sectors_take_after(&db->sectors, db->life.replay_last - PLANTED(SPILL_IN_LOG),
                                  sector);
    /* Where pages have places elsewhere, if not in a row, the collector's sectors are not for them.
     */
    if (pages_places_free(&db->pages)) {
        enum fkv_error error = sectors_reserve_free(&db->sectors, 1 + RESERVE_FOR_COLLECTOR);
        if (error)
            return error;
    }
    return sectors_take(&db->sectors, sector);
}

static void give_sector(void *context, uint32_t sector)
{
    struct fkv *db = context;
    sectors_give(&db->sectors, sector);
}

/* A reader found too many index pages in memory. If it cannot have the lock it leaves them to the
 * commit that has it. */
static void crowded(void *context)
{
    struct fkv *db = context;
    if (pthread_mutex_trylock(&db->writer) != 0)
        return;
    store_trim(db);
    if (reclaim_is_wanted(&db->reclaim) || index_is_overrun(&db->index))
        __atomic_store_n(db->alive, HANDLE_WAITS, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&db->writer);
}

/* The index grows, beside what commits count. */
static enum fkv_error room_for_pages(void *context, uint32_t pages)
{
    struct fkv *db = context;
    return sectors_reserve(&db->sectors, 0, sectors_for_deletes(&db->sectors), pages);
}

static enum fkv_error make_parts(struct fkv *db)
{
    struct page_environment environment = {.ops = db->os->ops,
                                           .sectors = {take_sector, give_sector, db},
                                           .retire_frame = retire_frame,
                                           .context = db};
    enum fkv_error error = pages_make(&db->pages, db->file, db->path, environment);
    if (!error)
        error = sectors_make(&db->sectors, db->file, db->os->ops, db->path, &db->pages);
    if (!error)
        error = index_make(&db->index, &db->pages, &db->reclaim);
    if (!error)
        error = tail_make(&db->tail, &db->sectors, &db->reclaim, 0, db->threads);
    tail_limit_memory(&db->tail, db->os->ops->memory(db->os));
    db->tail.writer = &db->writer;
    db->undo.reclaim = &db->reclaim;
    db->undo.sectors = &db->sectors;
    db->sectors.undo = &db->undo;
    db->sectors.read_only = db->read_only;
    db->sectors.unmapped = db->flags & FKV_READ_WITHOUT_MAPPING;
    db->sectors.by_call = db->sectors.unmapped;
    return error;
}

/* ---------------------------------------------------------------- opening */

/* Mark in the log that a new opening begins here: for good, where frames that are undone might
 * follow again. Those at the front of the log follow on a wrap frame, and all that are written at
 * this place are the same. */
static enum fkv_error log_restart(struct fkv *db, bool *full)
{
    uint8_t random[RESTART_BYTES];
    uint64_t end = db->log.head.offset;
    uint64_t bytes = sizeof(struct format_frame) + sizeof random;
    enum fkv_error error = random_bytes(random, sizeof random);
    if (!error)
        error = log_reserve(&db->log, bytes, full);
    if (error)
        return error;
    bool wrapped = db->log.head.offset < end;
    uint8_t *to = log_begin(&db->log, false);
    memcpy(to, random, sizeof random);
    if ((error = log_end(&db->log, to + sizeof random, FRAME_RESTART, 0)))
        return error;
    if (!(db->log.stale || (wrapped && !PLANTED(WRAP_UNSYNCED))) || PLANTED(RESTART_UNSYNCED))
        return FKV_OK;
    int status = db->os->ops->sync(db->log.file);
    return status ? store_fail(db, error_sync(status, db->log_path)) : FKV_OK;
}

/* From the header that start() writes on, there has to be a log. That it was found whole does not
 * say that it, or its name, or that of the file, is durable: who made it may have been killed. */
static enum fkv_error log_make_durable(struct fkv *db)
{
    if (PLANTED(CHECKPOINT_BEFORE_LOG))
        return FKV_OK;
    int status = db->os->ops->sync(db->log.file);
    if (status)
        return error_os(status, "sync", db->log_path);
    status = db->os->ops->sync_directory(db->os, db->log_path);
    return status ? error_os(status, "sync the directory of", db->log_path) : FKV_OK;
}

/* Not before the store's name is durable, whoever has made the store: a log without it would look
 * like one whose store is gone. */
static enum fkv_error make_log(struct fkv *db)
{
    int status = PLANTED(SKIP_DIRECTORY_SYNC) ? 0 : db->os->ops->sync_directory(db->os, db->path);
    if (status)
        return error_os(status, "sync the directory of", db->path);
    return log_create(&db->log, db->header.store_id);
}

static enum fkv_error open_log(struct fkv *db, uint64_t log_bytes_max)
{
    log_make(&db->log, db->os->ops, db->log_path, log_bytes_max, &db->data_sync);
    db->log.head.offset = db->header.log_offset;
    bool may_be_missing = db->header.clean;
    const struct os_ops *ops = db->os->ops;
    int status = ops->open(db->os, db->log_path, db->read_only ? OS_READ_ONLY : 0, &db->log.file);
    if (status == -ENOENT && may_be_missing && !db->read_only) {
        status = ops->open(db->os, db->log_path, OS_CREATE | OS_EXCLUSIVE, &db->log.file);
        db->life.made_log = !status;
        if (!status && ops->permit) /* all that is put is in it */
            ops->permit(db->log.file, db->file);
    }
    if (status == -ENOENT && may_be_missing)
        return FKV_OK; /* read-only, and nothing to read */
    if (status == -ENOENT)
        return error_set(FKV_LOG_MISSING, "%s is missing, and %s was not closed", db->log_path,
                         db->path);
    if (status)
        return error_os(status, "open", db->log_path);
    db->log.read_only = db->read_only;
    uint64_t size;
    if ((status = db->os->ops->size(db->log.file, &size)))
        return error_os(status, "size of", db->log_path);
    bool unfinished = false;
    enum fkv_error error = FKV_OK;
    if (may_be_missing && (error = log_is_unfinished(&db->log, size, &unfinished)))
        return error;
    if (unfinished && db->read_only)
        return FKV_OK;
    if (unfinished && !db->life.made_log)
        db->life.made_file = false; /* a log that was there stays, and will need this store */
    error = unfinished ? make_log(db) : log_open(&db->log, db->header.store_id);
    if (error || !may_be_missing || db->read_only)
        return error;
    if (!unfinished && (error = log_write_header(&db->log, db->header.store_id)))
        return error;
    return log_make_durable(db);
}

static enum fkv_error open_parts(struct fkv *db, uint64_t log_bytes_max)
{
    uint64_t size;
    enum fkv_error error;
    int status = db->os->ops->size(db->file, &size);
    if (status)
        return error_os(status, "size of", db->path);
    if ((error = open_log(db, log_bytes_max)) ||
        (error = pages_open(&db->pages, db->header.spaces, max_u64(size / SECTOR_BYTES, 1))) ||
        (error = sectors_open(&db->sectors, db->header.sector_count, size)))
        return error;
    db->sectors.next_sequence = max_u64(db->header.next_sequence, 1);
    db->sectors.live_cells = db->header.live_cells;
    db->sectors.dead_cells = db->header.dead_cells;
    db->sectors.pad_cells = db->header.pad_cells;
    /* More than all cells cannot be owed: after so many steps nothing is left of what was garbage.
     */
    db->collector.debt_cells +=
        min_u64(db->header.debt_cells, (uint64_t)db->sectors.count * SECTOR_CELLS);
    if (db->header.tail_sector &&
        (error = tail_open(&db->tail, db->header.tail_sector, db->header.tail_cell)))
        return error;
    if (db->header.segments)
        error = index_open(&db->index, db->header.segments);
    else
        error = index_create(&db->index);
    if (!error && db->log.map)
        error = store_replay(db);
    if (!error)
        fetch_decide(db);
    return error;
}

static enum fkv_error start_threads(struct fkv *db)
{
    db->life.flusher_runs = thread_start(&db->life.flusher, tail_flusher, &db->tail, "fkv-flush");
    if (db->life.flusher_runs)
        db->life.checkpointer_runs =
            thread_start(&db->life.checkpointer, checkpoint_thread, db, "fkv-checkpoint");
    if (!db->life.checkpointer_runs)
        return error_set(FKV_NO_MEMORY, "%s: a thread could not be started", db->path);
    return FKV_OK;
}

/* What has to be done before the store is used: a new one has its first checkpoint, and one that
 * was not closed collects what its last commit may still owe. */
static enum fkv_error settle(struct fkv *db, bool closed)
{
    bool threads = db->threads;
    enum fkv_error error = FKV_OK;
    pthread_mutex_lock(&db->writer);
    db->threads = false; /* there are none yet */
    if (!db->header.segments)
        error = checkpoint_run(db);
    db->reclaim.alone = false; /* the collector is a reader */
    if (!error && !closed) {
        collect_with_room(db);
        error = store_has_failed(db) ? FKV_IO : FKV_OK;
    }
    db->threads = threads;
    pthread_mutex_unlock(&db->writer);
    return error;
}

static enum fkv_error start(struct fkv *db)
{
    if (db->read_only)
        return FKV_OK;
    bool closed = db->header.clean;
    /* The header that was found may not be durable: the process that wrote it was killed, or its
     * sync failed. Until one is, nothing may change that an older one would need; the log neither.
     */
    struct format_header header = db->header;
    header.clean = 0;
    if (db->life.header_in_doubt &&
        !PLANTED(OTHER_COPY_FIRST)) { /* so it is written first, with the sequence that it has */
        db->header_copy ^= 1;
        db->header.sequence--;
    }
    enum fkv_error error = log_write_again(&db->log);
    if (error || (error = checkpoint_write_header(db, &header)))
        return error;
    bool full = false; /* the log may be as full as it may be */
    error = PLANTED(NO_RESTART) ? FKV_OK : log_restart(db, &full);
    if (error && !full)
        return error;
    if ((error = settle(db, closed)))
        return error;
    return db->threads ? start_threads(db) : FKV_OK;
}

static void stop_threads(struct fkv *db)
{
    if (db->life.checkpointer_runs) {
        pthread_mutex_lock(&db->writer);
        db->checkpoint.stop = true;
        pthread_cond_broadcast(&db->checkpoint.due);
        pthread_cond_broadcast(&db->checkpoint.ended);
        pthread_mutex_unlock(&db->writer);
        pthread_join(db->life.checkpointer, NULL);
    }
    if (db->life.flusher_runs) {
        tail_stop(&db->tail);
        pthread_join(db->life.flusher, NULL);
    }
    db->life.checkpointer_runs = db->life.flusher_runs = false;
    db->threads = db->tail.threads = false;
    db->reclaim.alone = true;
}

/*
 * Remove what an opening that has failed has made. Nobody else has the file, whose lock is held.
 * Whatever this is cut off by, what is left has to be a store or the beginning of one: so the
 * header says, before the log goes, that it needs none, and the log is gone for good before the
 * file goes. Where that fails they stay: the next opening goes on with them.
 */
static void unmake(struct fkv *db)
{
    const struct os_ops *ops = db->os->ops;
    if (db->life.made_log) {
        if (store_has_failed(db) || db->data_sync.failed)
            return;
        struct format_header header = db->header;
        header.clean = 1;
        header.log_offset = LOG_FRAMES_OFFSET;
        log_drop(&db->log);
        ops->close(db->log.file); /* now: to sync the directory may take its descriptor */
        db->log.file = NULL;
        if (random_bytes(&header.log_chain, sizeof header.log_chain) ||
            checkpoint_write_header(db, &header) || ops->remove(db->os, db->log_path) ||
            ops->sync_directory(db->os, db->log_path))
            return;
    }
    ops->remove(db->os, db->path);
}

/* Give up everything. Called for a half-opened store too. */
static void drop(struct fkv *db)
{
    if (db->reclaim.release)
        reclaim_finish(&db->reclaim, false);
    reclaim_drop(&db->reclaim);
    undo_drop(&db->undo);
    if (db->log.file) {
        log_drop(&db->log);
        db->os->ops->close(db->log.file);
    }
    tail_drop(&db->tail);
    index_drop(&db->index);
    if (db->file && db->sectors.ops)
        sectors_drop(&db->sectors);
    pages_drop(&db->pages);
    if (db->direct.file)
        db->os->ops->close(db->direct.file);
    if (db->file)
        db->os->ops->close(db->file);
    sector_room_drop(&db->collector.room);
    memory_free(db->stripes);
    memory_free(db->path);
    memory_free(db->log_path);
    if (db->alive)
        munmap((void *)db->alive, PAGE_BYTES);
    memory_free(db);
}

static enum fkv_error make_handle(struct os *os, const char *path, const fkv_options *options,
                                  struct fkv **made)
{
    struct fkv *db = memory_new(sizeof *db);
    if (!db)
        return FKV_NO_MEMORY;
    static _Atomic uint64_t handles;
    *made = db;
    db->id = ++handles;
    db->os = os;
    db->flags = options->flags;
    db->read_only = options->flags & FKV_OPEN_READ_ONLY;
    db->threads = !(options->flags & FKV_NO_THREAD) && !db->read_only;
    db->verify = !(options->flags & FKV_NO_VERIFY);
    /* Others hold the lock for a few microseconds: to sleep would take longer. */
    pthread_mutexattr_t adaptive;
    pthread_mutexattr_init(&adaptive);
#ifdef __GLIBC__
    pthread_mutexattr_settype(&adaptive, PTHREAD_MUTEX_ADAPTIVE_NP);
#endif
    pthread_mutex_init(&db->writer, &adaptive);
    pthread_mutexattr_destroy(&adaptive);
    pthread_mutex_init(&db->data_sync.lock, NULL);
    pthread_cond_init(&db->checkpoint.due, NULL);
    pthread_cond_init(&db->checkpoint.ended, NULL);
    pthread_cond_init(&db->room_made, NULL);
    collector_make(&db->collector,
                   options->garbage_percent_max ? options->garbage_percent_max : 100);
    db->path = memory_join(path, "");
    db->log_path = log_name(path);
    if (!db->path || !db->log_path)
        return FKV_NO_MEMORY;
    void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return error_os(-ENOMEM, "map a page for", path);
    madvise(page, PAGE_BYTES, MADV_WIPEONFORK);
    db->alive = page;
    *db->alive = HANDLE_ALIVE;
    return FKV_OK;
}

static enum fkv_error is_in_use(const struct fkv *db)
{
    return error_set(FKV_IN_USE, "%s is open in another handle or process", db->path);
}

/* The store's file, or a new one. With FKV_OK there may be none: another has made it meanwhile. */
static enum fkv_error find_file(struct fkv *db)
{
    const struct os_ops *ops = db->os->ops;
    bool create = !db->read_only && !(db->flags & FKV_NO_CREATE);
    bool exclusive = db->flags & FKV_EXCLUSIVE;
    int status = ops->open(db->os, db->path, db->read_only ? OS_READ_ONLY : 0, &db->file);
    if ((!status || status == -ENXIO) && exclusive)
        status = -EEXIST;
    if (status == -ENOENT && create) {
        bool has_log;
        enum fkv_error error = look_for_log(db, &has_log);
        if (error)
            return error;
        if (has_log)
            return error_set(FKV_LOG_MISMATCH, "%s is the log of a store that is not there",
                             db->log_path);
        status = ops->open(db->os, db->path, OS_CREATE | OS_EXCLUSIVE, &db->file);
        db->life.made_file = !status;
        if (status == -EEXIST && !exclusive)
            return FKV_OK;
    }
    return status ? error_os(status, "open", db->path) : FKV_OK;
}

/* Who fails to create a store removes its file, before the lock on it is gone: so a file that was
 * locked is not the store's if it has lost its name. */
static enum fkv_error open_file(struct fkv *db)
{
    enum { TRIES = 16 };
    const struct os_ops *ops = db->os->ops;
    for (int i = 0; i < TRIES; i++) {
        enum fkv_error error = find_file(db);
        if (error)
            return error;
        if (!db->file)
            continue;
        int status = ops->lock(db->file, db->read_only);
        uint64_t size = 0;
        bool made = db->life.made_file;
        db->life.made_file = false;
        if (status)
            return status == -EWOULDBLOCK ? is_in_use(db) : error_os(status, "lock", db->path);
        if (made && (status = ops->size(db->file, &size)))
            return error_os(status, "size of", db->path);
        if (ops->is_named(db->file, db->path)) {
            db->life.made_file = made && !size; /* or another was faster, and has had it */
            db->data_sync.ops = ops;
            db->data_sync.file = db->file;
            db->data_sync.path = db->path;
            return FKV_OK;
        }
        ops->close(db->file);
        db->file = NULL;
    }
    return is_in_use(db);
}

static enum fkv_error open_store(struct fkv *db, const fkv_options *options)
{
    bool fresh;
    enum fkv_error error;
    if ((error = reclaim_make(&db->reclaim, db->threads, release, db)) || (error = open_file(db)))
        return error;
    if ((db->flags & FKV_EXCLUSIVE) && !db->life.made_file)
        return error_os(-EEXIST, "create", db->path);
    if ((error = header_read(db, &fresh)))
        return error;
    if (fresh && (db->flags & (FKV_OPEN_READ_ONLY | FKV_NO_CREATE)))
        return error_set(FKV_NOT_A_STORE, "%s is empty, or a store that was never finished",
                         db->path);
    if (fresh && (error = header_create(db)))
        return error;
    if ((db->flags & FKV_DIGEST) && !(db->header.features & FEATURE_DIGEST))
        return error_set(FKV_MODE_MISMATCH, "%s keeps keys, not digests", db->path);
    if ((error = make_parts(db)))
        return error;
    use_header(db);
    if ((error = index_limit(&db->index, options->index_memory_max)))
        return error;
    error = open_parts(db, options->log_bytes_max ? options->log_bytes_max : LOG_BYTES_DEFAULT);
    if (error || (error = start(db)))
        return error;
    /* From now on there are readers, and whoever prepares something has the lock. */
    db->reclaim.alone = false;
    db->index.context = db;
    db->index.crowded = crowded;
    db->index.room = room_for_pages; /* before, what the log has is replayed, wherever that leads */
    return FKV_OK;
}

enum fkv_error store_open(struct os *os, const char *path, const fkv_options *given,
                          struct fkv **opened)
{
    const fkv_options defaults = {0};
    const fkv_options *options = given ? given : &defaults;
    struct fkv *db = NULL;
    enum fkv_error error = check_options(options);
    if (!error)
        error = make_handle(os, path, options, &db);
    if (!error)
        error = open_store(db, options);
    if (error && db) {
        stop_threads(db);
        if (db->life.made_file) {
            char text[ERROR_TEXT_BYTES];
            snprintf(text, sizeof text, "%s", error_last());
            unmake(db);
            error_set(error, "%s", text);
        }
        drop(db);
        return error;
    }
    *opened = db;
    return error;
}

/* A last checkpoint that would write more pages than this is left out: the log has it all, and to
 * replay it takes less time. */
TUNABLE uint64_t close_pages_max = CLOSE_PAGES_MAX;

static bool is_left_to_the_log(const struct fkv *db)
{
    return db->pages.dirty_pages + db->pages.pending_pages > close_pages_max && db->log.live_bytes;
}

/* The last checkpoint; afterwards the file alone holds everything. */
static enum fkv_error close_with_checkpoint(struct fkv *db)
{
    db->checkpoint.closing = true;
    if (db->tail.spare)
        sectors_give(&db->sectors, db->tail.spare);
    db->tail.spare = 0;
    enum fkv_error error = checkpoint_run(db);
    if (!error)
        sectors_trim(&db->sectors, 0, false, &db->writer);
    if (!error)
        log_shrink(&db->log);
    return error;
}

enum fkv_error store_close(struct fkv *db)
{
    enum fkv_error error = FKV_OK;
    txn_end_all(db);
    snapshot_end_all(db);
    async_end_all(db, !*db->alive);
    many_drop(db);
    bool forked = !*db->alive;
    if (forked) { /* the threads, and the file, are the parent's */
        db->life.checkpointer_runs = db->life.flusher_runs = false;
        reclaim_finish(&db->reclaim, true);
        if (db->load)
            load_end(db->load);
        drop(db);
        return FKV_OK;
    }
    stop_threads(db);
    reclaim_finish(&db->reclaim, false);
    if (!db->read_only) {
        pthread_mutex_lock(&db->writer);
        if (db->load)
            load_abandon(db);
        error = store_writable(db);
        if (!error)
            error =
                is_left_to_the_log(db) ? log_sync(&db->log, db->commit) : close_with_checkpoint(db);
        pthread_mutex_unlock(&db->writer);
    }
    drop(db);
    return error;
}
