#include "fkv.h"

#include <limits.h>
#include <stdio.h>

#include "call.h"
#include "load.h"
#include "os_posix.h"
#include "txn.h"

/* The public calls: they check arguments, make keys, and take the locks. */

#define VERSION_TEXT(a, b, c) #a "." #b "." #c
#define VERSION_OF(a, b, c) VERSION_TEXT(a, b, c)

const char *fkv_version(void)
{
    return VERSION_OF(FKV_VERSION_MAJOR, FKV_VERSION_MINOR, FKV_VERSION_PATCH);
}

const char *fkv_error_detail(const fkv *db)
{
    return error_detail_of(db ? db->id : 0);
}

void fkv_options_init(fkv_options *options)
{
    if (options)
        *options = (fkv_options){.size = sizeof *options};
}

enum fkv_error call_handle_state(fkv *db)
{
    enum fkv_error error = check_alive(db);
    if (error)
        return error;
    assert(db);
    /* Without threads, where none writes, and where pages of the index come sooner than they can
     * leave: this reader waits for the others, before it begins. */
    __atomic_store_n(db->alive, HANDLE_ALIVE, __ATOMIC_RELAXED);
    reclaim_pause(&db->reclaim);
    return FKV_OK;
}

enum fkv_error call_no_key(const void *bytes, size_t size)
{
    if (!bytes && size <= FKV_KEY_BYTES_MAX)
        return error_set(FKV_INVALID, "the key is NULL");
    return error_set(FKV_KEY_TOO_LARGE, "a key of %zu bytes; at most %u", size, FKV_KEY_BYTES_MAX);
}

enum fkv_error key_make(const struct fkv *db, const void *bytes, size_t size, struct key *key)
{
    return call_key(db, bytes, size, key);
}

static enum fkv_error check_value(const void *value, size_t value_bytes)
{
    if (value_bytes > FKV_VALUE_BYTES_MAX)
        return error_set(FKV_VALUE_TOO_LARGE, "a value of %zu bytes; at most %u", value_bytes,
                         FKV_VALUE_BYTES_MAX);
    if (!value && value_bytes)
        return error_set(FKV_INVALID, "the value is NULL");
    return FKV_OK;
}

/* ---------------------------------------------------------------- opening and closing */

enum fkv_error call_path(const char *path, char *followed)
{
    int status = os_posix_follow(path, followed);
    return status ? error_os(status, "open", path) : FKV_OK;
}

enum fkv_error fkv_open(const char *path, const fkv_options *given, fkv **db)
{
    if (db)
        *db = NULL;
    if (!path || !*path || !db)
        return say(NULL, FKV_INVALID,
                   !db     ? "no place for the handle"
                   : !path ? "the path is NULL"
                           : "the path is empty");
    char followed[PATH_MAX];
    fkv_options options;
    fkv_options_init(&options);
    enum fkv_error error =
        call_options(&options, sizeof options, given, offsetof(fkv_options, garbage_percent_max),
                     "fkv_options_init");
    if (error || (error = call_path(path, followed)))
        return said(NULL, error);
    return said(NULL, store_open(os_posix(), followed, &options, db));
}

enum fkv_error fkv_close(fkv *db)
{
    return db ? said(NULL, store_close(db)) : FKV_OK;
}

/* ---------------------------------------------------------------- writing */

static enum fkv_error commit_one(fkv *db, struct write *write, unsigned flags)
{
    if (flags & ~(unsigned)FKV_SYNC)
        return error_set(FKV_INVALID, "unknown flags %#x", flags);
    rcu_read_lock();
    index_prefetch(&db->index, write->hash);
    rcu_read_unlock();
    bool sync = (flags & FKV_SYNC) || (db->flags & FKV_SYNC_EVERY);
    store_lock(db);
    enum fkv_error error = commit_writes(db, write, 1, NULL, sync);
    return commit_end(db, error, sync);
}

enum fkv_error fkv_put_with(fkv *db, const void *key, size_t key_bytes, const void *value,
                            size_t value_bytes, unsigned flags)
{
    struct key made;
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if ((error = key_make(db, key, key_bytes, &made)) || (error = check_value(value, value_bytes)))
        return said(db, error);
    struct write write = {.hash = made.hash,
                          .key = made.bytes,
                          .key_bytes = (uint32_t)made.size,
                          .value = value,
                          .value_bytes = (uint32_t)value_bytes};
    return said(db, commit_one(db, &write, flags));
}

enum fkv_error fkv_put(fkv *db, const void *key, size_t key_bytes, const void *value,
                       size_t value_bytes)
{
    return fkv_put_with(db, key, key_bytes, value, value_bytes, 0);
}

enum fkv_error fkv_delete_with(fkv *db, const void *key, size_t key_bytes, unsigned flags)
{
    struct key made;
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if ((error = key_make(db, key, key_bytes, &made)))
        return said(db, error);
    struct write write = {.hash = made.hash, .remove = true};
    return said(db, commit_one(db, &write, flags));
}

enum fkv_error fkv_delete(fkv *db, const void *key, size_t key_bytes)
{
    return fkv_delete_with(db, key, key_bytes, 0);
}

enum fkv_error fkv_sync(fkv *db)
{
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if ((error = store_writable(db)))
        return said(db, error);
    return said(db, log_sync(&db->log, atomic_load(&db->log.written_commit)));
}

enum fkv_error fkv_checkpoint(fkv *db)
{
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    pthread_mutex_lock(&db->writer);
    db->checkpoint.asked = true;
    error = checkpoint_run_for_space(db);
    if (!error) {
        index_trim_again(&db->index); /* at its end others may still have waited for readers */
        sectors_trim(&db->sectors, 8, false, &db->writer);
    }
    pthread_mutex_unlock(&db->writer);
    return said(db, error);
}

enum { STEPS_AT_ONCE = 4096 }; /* of a compaction, by a call */

/* A little of what fkv_compact does, in one hold of the writer lock; *goes_on false at the end. */
static enum fkv_error compact_some(fkv *db, struct compaction *compaction, bool *goes_on)
{
    pthread_mutex_lock(&db->writer);
    commit_wait_for_room(db);
    enum fkv_error error = compaction_some(db, compaction, STEPS_AT_ONCE, goes_on);
    if (!error && compaction->stuck)
        error = checkpoint_run_for_space(db);
    checkpoint_poll(db);
    pthread_mutex_unlock(&db->writer);
    reclaim_wait(&db->reclaim);
    return error;
}

/* What the calls of compaction begin with; then the writer lock is held. */
static enum fkv_error compact_begin(fkv *db, uint32_t garbage_percent)
{
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if (garbage_percent > 100)
        return say(db, FKV_INVALID, "more than 100 percent");
    pthread_mutex_lock(&db->writer);
    if (!(error = store_writable(db)))
        return FKV_OK;
    pthread_mutex_unlock(&db->writer);
    return said(db, error);
}

enum fkv_error fkv_compact(fkv *db, uint32_t garbage_percent)
{
    struct compaction compaction;
    enum fkv_error error = compact_begin(db, garbage_percent);
    if (error)
        return error;
    compaction_make(db, &compaction, garbage_percent);
    pthread_mutex_unlock(&db->writer);
    for (bool goes_on = true; !error && goes_on;)
        error = compact_some(db, &compaction, &goes_on);
    return error ? said(db, error) : fkv_checkpoint(db);
}

enum fkv_error fkv_compact_start(fkv *db, uint32_t garbage_percent)
{
    enum fkv_error error = compact_begin(db, garbage_percent);
    if (error)
        return error;
    compaction_begin(db, garbage_percent);
    pthread_mutex_unlock(&db->writer);
    return FKV_OK;
}

enum fkv_error fkv_compact_stop(fkv *db)
{
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    pthread_mutex_lock(&db->writer);
    if (db->compaction.stage)
        compaction_end(db, FKV_CANCELLED);
    pthread_mutex_unlock(&db->writer);
    return FKV_OK;
}

enum fkv_error fkv_compact_step(fkv *db, int *more)
{
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if (!more)
        return say(db, FKV_INVALID, "no place to say whether there is more to do");
    pthread_mutex_lock(&db->writer);
    uint64_t number = db->compaction.number - (db->compaction.stage != COMPACTION_NONE);
    if (db->compaction.stage) {
        compaction_poll(db, STEPS_AT_ONCE);
        checkpoint_poll(db);
    }
    *more = db->compaction.stage != COMPACTION_NONE;
    if (!*more && number < db->compaction.over && (error = db->compaction.error))
        error_set(error, "%s: the compaction has ended: %s", db->path, fkv_error_text(error));
    pthread_mutex_unlock(&db->writer);
    reclaim_wait(&db->reclaim);
    return said(db, error);
}

/* ---------------------------------------------------------------- transactions */

enum fkv_error fkv_txn_begin(fkv *db, fkv_txn **txn)
{
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if (!txn)
        return say(db, FKV_INVALID, "no place for the transaction");
    if ((error = store_writable(db)))
        return said(db, error);
    return said(db, txn_begin(db, txn));
}

static enum fkv_error check_txn(const fkv_txn *txn)
{
    if (!txn)
        return say(NULL, FKV_INVALID, "the transaction is NULL");
    if (txn_ended(txn)) /* and the store may be closed */
        return say_of(txn_owner(txn), FKV_TXN_ENDED, "the transaction has ended");
    return check_handle(txn_store(txn));
}

enum fkv_error fkv_txn_put(fkv_txn *txn, const void *key, size_t key_bytes, const void *value,
                           size_t value_bytes)
{
    struct key made;
    enum fkv_error error = check_txn(txn);
    if (error)
        return error;
    fkv *db = txn_store(txn);
    if ((error = key_make(db, key, key_bytes, &made)) || (error = check_value(value, value_bytes)))
        return said(db, error);
    return said(db, txn_put(txn, &made, value, value_bytes));
}

enum fkv_error fkv_txn_delete(fkv_txn *txn, const void *key, size_t key_bytes)
{
    struct key made;
    enum fkv_error error = check_txn(txn);
    if (error)
        return error;
    fkv *db = txn_store(txn);
    if ((error = key_make(db, key, key_bytes, &made)))
        return said(db, error);
    return said(db, txn_delete(txn, &made));
}

enum fkv_error fkv_txn_get(fkv_txn *txn, const void *key, size_t key_bytes, void *buffer,
                           size_t buffer_bytes, size_t *value_bytes)
{
    struct key made;
    enum fkv_error error = check_txn(txn);
    if (error)
        return error;
    fkv *db = txn_store(txn);
    if (!buffer && buffer_bytes)
        return say(db, FKV_INVALID, "the buffer is NULL");
    if ((error = key_make(db, key, key_bytes, &made)))
        return said(db, error);
    return said(db, txn_get(txn, &made, buffer, buffer_bytes, value_bytes));
}

enum fkv_error fkv_txn_exists(fkv_txn *txn, const void *key, size_t key_bytes)
{
    struct key made;
    enum fkv_error error = check_txn(txn);
    if (error)
        return error;
    fkv *db = txn_store(txn);
    if ((error = key_make(db, key, key_bytes, &made)))
        return said(db, error);
    return said(db, txn_exists(txn, &made));
}

enum fkv_error fkv_txn_commit(fkv_txn *txn, unsigned flags)
{
    enum fkv_error error = check_txn(txn);
    if (error)
        return error;
    fkv *db = txn_store(txn);
    if (flags & ~(unsigned)FKV_SYNC)
        return say(db, FKV_INVALID, "unknown flags");
    return said(db, txn_commit(txn, (flags & FKV_SYNC) || (db->flags & FKV_SYNC_EVERY)));
}

enum fkv_error fkv_txn_abort(fkv_txn *txn)
{
    enum fkv_error error = check_txn(txn);
    if (!error)
        txn_abort(txn);
    return error;
}

void fkv_txn_free(fkv_txn *txn)
{
    if (txn)
        txn_free(txn);
}

/* ---------------------------------------------------------------- loads */

enum fkv_error fkv_load_begin(fkv *db, fkv_load **load)
{
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if (!load)
        return say(db, FKV_INVALID, "no place for the load");
    if ((error = store_writable(db)))
        return said(db, error);
    return said(db, load_begin(db, load));
}

static enum fkv_error check_load(const fkv_load *load)
{
    if (!load)
        return say(NULL, FKV_INVALID, "the load is NULL");
    if (load_ended(load)) /* and the store may be closed */
        return say_of(load_owner(load), FKV_TXN_ENDED, "the load has ended");
    return check_handle(load_store(load));
}

enum fkv_error fkv_load_put(fkv_load *load, const void *key, size_t key_bytes, const void *value,
                            size_t value_bytes)
{
    struct key made;
    enum fkv_error error = check_load(load);
    if (error)
        return error;
    fkv *db = load_store(load);
    if ((error = key_make(db, key, key_bytes, &made)) || (error = check_value(value, value_bytes)))
        return said(db, error);
    return said(db, load_put(load, &made, value, value_bytes));
}

enum fkv_error fkv_load_commit(fkv_load *load)
{
    enum fkv_error error = check_load(load);
    if (error)
        return error;
    fkv *db = load_store(load);
    if (rcu_read_ongoing())
        return say(db, FKV_INVALID, "a load is not to be committed inside a read section");
    return said(db, load_commit(load));
}

void fkv_load_free(fkv_load *load)
{
    if (load)
        load_free(load);
}

/* ---------------------------------------------------------------- statistics */

uint64_t store_memory_bytes(struct fkv *db)
{
    return sizeof *db + strlen(db->path) + strlen(db->log_path) + PAGE_BYTES /* db->alive */ +
           pages_memory_bytes(&db->pages) + sectors_memory_bytes(&db->sectors) +
           index_own_memory_bytes(&db->index) + tail_memory_bytes(&db->tail) +
           log_memory_bytes(&db->log) + sizeof *db->reclaim.grace + db->undo.bytes +
           (db->collector.room.bytes ? SECTOR_BYTES : 0) +
           (db->stripes ? STRIPES * sizeof *db->stripes : 0) + db->opened_bytes;
}

static void fill_stats(struct fkv *db, fkv_stats *stats)
{
    const struct sectors *sectors = &db->sectors;
    uint64_t written = db->tail.written_bytes;
    *stats = (fkv_stats){
        .keys = db->keys,
        .cell_bytes = CELL_BYTES,
        .live_cells = sectors->live_cells + (uint64_t)sectors->large_count * SECTOR_CELLS,
        .dead_cells = sectors->dead_cells,
        .sectors_free = sectors_free_count(sectors) + (db->tail.spare != 0) + sectors->changing,
        .sectors_quarantined =
            sectors->freed.count + sectors->uncertain.count + sectors->awaiting_readers,
        .sectors_values = sectors->values_count,
        .sectors_large = sectors->large_count,
        .sectors_pages = db->pages.places.sector_count,
        .file_bytes = (uint64_t)sectors->count * SECTOR_BYTES,
        .log_bytes = db->log.size,
        .log_bytes_live = db->log.live_bytes,
        .index_slots = db->index.page_count * SLOTS_PER_PAGE,
        .index_bytes = index_memory_bytes(&db->index),
        .index_splits = db->index.rebuilds,
        .collector_debt_cells = db->collector.debt_cells,
        .commits = db->commits,
        .checkpoints = db->checkpoint.done,
        .syncs = db->log.syncs,
        .bytes_put = db->bytes_put,
        .bytes_written_log = db->log.written_bytes,
        .bytes_written_values = written,
        .bytes_written_collector = db->collector.moved_bytes,
        .bytes_written_pages = db->pages.written_bytes + db->checkpoint.header_bytes,
        .snapshots = db->undo.open_count,
        .snapshot_sectors = sectors->held_count,
        .snapshot_bytes = db->undo.bytes,
        .index_loads = db->pages.space[SPACE_INDEX].loads,
        .index_evictions = db->index.limit.evictions,
        .compacting = db->compaction.stage,
        .compactions = db->compaction.over,
        .compaction_error = db->compaction.error,
    };
    stats->memory_bytes = store_memory_bytes(db);
}

enum fkv_error fkv_get_stats(fkv *db, fkv_stats *stats, size_t stats_bytes)
{
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if (!stats || !stats_bytes)
        return say(db, FKV_INVALID, "no place for the statistics");
    fkv_stats all;
    pthread_mutex_lock(&db->writer);
    fill_stats(db, &all);
    pthread_mutex_unlock(&db->writer);
    call_give(stats, stats_bytes, &all, sizeof all);
    return FKV_OK;
}
