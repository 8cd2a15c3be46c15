/*
 * fkv, with default options: a put is written to the log and not synced; reads are verified.
 * fkv-inline is the same with FKV_NO_THREAD: no thread works beside the callers', so that what they
 * do alone can be told from what shares their cores.
 */
#include "engine.h"
#include "util.h"

#include <fkv.h>
#include <string.h>
#include <unistd.h>

struct store {
    fkv *db;
    fkv_txn *txn;   /* the batch that is open */
    fkv_load *load; /* or this */
};

static enum engine_result failed(const char *call, enum fkv_error error, const fkv *db)
{
    complain("fkv: %s: %s. %s", call, fkv_error_text(error), fkv_error_detail(db));
    return ENGINE_ERROR;
}

static struct store *open_with(const char *directory, uint32_t flags, uint64_t log_bytes_max)
{
    struct store *store = need_memory(1, sizeof *store);
    char *path = path_join(directory, "store.fkv");
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = log_bytes_max;
    options.index_memory_max = engine_index_memory_max;
    enum fkv_error error = fkv_open(path, &options, &store->db);
    free(path);
    if (error == FKV_OK)
        return store;
    failed("fkv_open", error, NULL);
    free(store);
    return NULL;
}

static struct store *engine_open(const char *directory)
{
    return open_with(directory, 0, 0);
}

static struct store *engine_open_log(const char *directory)
{
    return open_with(directory, 0, UINT64_C(2) << 30);
}

static struct store *engine_open_calls(const char *directory)
{
    return open_with(directory, FKV_READ_WITHOUT_MAPPING, 0);
}

static struct store *engine_open_inline(const char *directory)
{
    return open_with(directory, FKV_NO_THREAD, 0);
}

static enum engine_result engine_close(struct store *store)
{
    enum fkv_error error = fkv_close(store->db);
    free(store);
    return error == FKV_OK ? ENGINE_OK : failed("fkv_close", error, NULL);
}

static enum engine_result engine_put(struct store *store, const void *key, size_t key_bytes,
                                     const void *value, size_t value_bytes)
{
    enum fkv_error error = fkv_put(store->db, key, key_bytes, value, value_bytes);
    return error == FKV_OK ? ENGINE_OK : failed("fkv_put", error, store->db);
}

static enum engine_result engine_put_sync(struct store *store, const void *key, size_t key_bytes,
                                          const void *value, size_t value_bytes)
{
    enum fkv_error error = fkv_put_with(store->db, key, key_bytes, value, value_bytes, FKV_SYNC);
    return error == FKV_OK ? ENGINE_OK : failed("fkv_put_with", error, store->db);
}

static void *engine_snapshot(struct store *store)
{
    fkv_snapshot *snapshot;
    if (fkv_snapshot_open(store->db, &snapshot) != FKV_OK)
        die("fkv: no snapshot");
    return snapshot;
}

static void engine_snapshot_end(struct store *store, void *snapshot)
{
    (void)store;
    fkv_snapshot_close(snapshot);
}

static enum engine_result engine_get(struct store *store, const void *key, size_t key_bytes,
                                     void *buffer, size_t buffer_bytes, size_t *value_bytes)
{
    enum fkv_error error = fkv_get(store->db, key, key_bytes, buffer, buffer_bytes, value_bytes);
    if (error == FKV_OK)
        return ENGINE_OK;
    return error == FKV_NOT_FOUND ? ENGINE_NOT_FOUND : failed("fkv_get", error, store->db);
}

/* A window of asynchronous gets: whenever some are over, as many are begun. */
static enum engine_result engine_get_deep(struct store *store, struct engine_get *gets,
                                          size_t count, unsigned depth)
{
    enum { AT_ONCE = 64 };
    fkv_completion done[AT_ONCE];
    fkv_async *async;
    enum fkv_error error = fkv_async_open(store->db, depth, &async);
    if (error != FKV_OK)
        return failed("fkv_async_open", error, store->db);
    size_t begun = 0, over = 0, open = 0;
    while (error == FKV_OK && over < count) {
        for (; error == FKV_OK && begun < count && open < depth; begun++, open++)
            error = fkv_async_get(async, gets[begun].key, gets[begun].key_bytes, gets[begun].buffer,
                                  gets[begun].buffer_bytes, &gets[begun]);
        size_t given = 0;
        if (error == FKV_OK)
            error = fkv_async_wait(async, 1, done, AT_ONCE, &given);
        for (size_t i = 0; i < given; i++) {
            struct engine_get *get = done[i].tag;
            get->value_bytes = done[i].value_bytes;
            get->result = done[i].error == FKV_OK          ? ENGINE_OK
                          : done[i].error == FKV_NOT_FOUND ? ENGINE_NOT_FOUND
                                                           : ENGINE_ERROR;
        }
        open -= given;
        over += given;
    }
    fkv_async_close(async);
    return error == FKV_OK ? ENGINE_OK : failed("an asynchronous get", error, store->db);
}

static enum engine_result engine_get_many(struct store *store, struct engine_get *reads,
                                          unsigned count, bool exists)
{
    fkv_read asked[256];
    for (unsigned i = 0; i < count; i++)
        asked[i] = (fkv_read){.key = reads[i].key,
                              .key_bytes = reads[i].key_bytes,
                              .buffer = reads[i].buffer,
                              .buffer_bytes = reads[i].buffer_bytes};
    enum fkv_error error =
        exists ? fkv_exists_many(store->db, asked, count) : fkv_get_many(store->db, asked, count);
    for (unsigned i = 0; i < count; i++) {
        reads[i].result = asked[i].error == FKV_OK ? ENGINE_OK : ENGINE_NOT_FOUND;
        reads[i].value_bytes = asked[i].value_bytes;
    }
    return error == FKV_OK ? ENGINE_OK : failed("fkv_get_many", error, store->db);
}

static enum engine_result engine_exists(struct store *store, const void *key, size_t key_bytes)
{
    enum fkv_error error = fkv_exists(store->db, key, key_bytes);
    if (error == FKV_OK)
        return ENGINE_OK;
    return error == FKV_NOT_FOUND ? ENGINE_NOT_FOUND : failed("fkv_exists", error, store->db);
}

static enum engine_result engine_delete(struct store *store, const void *key, size_t key_bytes)
{
    enum fkv_error error = fkv_delete(store->db, key, key_bytes);
    if (error == FKV_OK)
        return ENGINE_OK;
    return error == FKV_NOT_FOUND ? ENGINE_NOT_FOUND : failed("fkv_delete", error, store->db);
}

static enum engine_result engine_batch_put(struct store *store, const void *key, size_t key_bytes,
                                           const void *value, size_t value_bytes, bool ordinary)
{
    enum fkv_error error = FKV_OK;
    if (ordinary && !store->txn)
        error = fkv_txn_begin(store->db, &store->txn);
    else if (!ordinary && !store->load)
        error = fkv_load_begin(store->db, &store->load);
    if (error == FKV_OK)
        error = ordinary ? fkv_txn_put(store->txn, key, key_bytes, value, value_bytes)
                         : fkv_load_put(store->load, key, key_bytes, value, value_bytes);
    return error == FKV_OK ? ENGINE_OK : failed("put into a batch", error, store->db);
}

static enum engine_result engine_batch_commit(struct store *store)
{
    enum fkv_error error =
        store->txn ? fkv_txn_commit(store->txn, FKV_SYNC) : fkv_load_commit(store->load);
    fkv_txn_free(store->txn);
    fkv_load_free(store->load);
    store->txn = NULL;
    store->load = NULL;
    return error == FKV_OK ? ENGINE_OK : failed("commit of a batch", error, store->db);
}

static uint64_t engine_scan(struct store *store)
{
    fkv_snapshot *snapshot;
    fkv_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    uint64_t pairs = 0;
    if (fkv_snapshot_open(store->db, &snapshot) != FKV_OK ||
        fkv_scan_open(snapshot, NULL, &scan) != FKV_OK)
        die("fkv: no scan");
    while (fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes) == FKV_OK)
        pairs++;
    fkv_scan_close(scan);
    fkv_snapshot_close(snapshot);
    return pairs;
}

static enum engine_result engine_backup(struct store *store, const char *directory)
{
    char *path = path_join(directory, "store.fkv");
    enum fkv_error error = fkv_backup(store->db, path, NULL);
    free(path);
    return error == FKV_OK ? ENGINE_OK : failed("fkv_backup", error, store->db);
}

/* In the background, or in the puts: to 5 dead bytes in 100 of the live ones. */
static enum engine_result engine_compact(struct store *store)
{
    int more = 1;
    enum fkv_error error = fkv_compact_start(store->db, 5);
    for (; error == FKV_OK && more; usleep(1000))
        error = fkv_compact_step(store->db, &more);
    return error == FKV_OK ? ENGINE_OK : failed("fkv_compact_start", error, store->db);
}

static enum engine_result engine_flush(struct store *store)
{
    enum fkv_error error = fkv_checkpoint(store->db);
    return error == FKV_OK ? ENGINE_OK : failed("fkv_checkpoint", error, store->db);
}

static fkv_stats get_stats(struct store *store)
{
    fkv_stats stats = {0};
    enum fkv_error error = fkv_get_stats(store->db, &stats, sizeof stats);
    if (error != FKV_OK)
        failed("fkv_get_stats", error, store->db);
    return stats;
}

static uint64_t engine_written_bytes(struct store *store)
{
    fkv_stats stats;
    enum fkv_error error = fkv_get_stats(store->db, &stats, sizeof stats);
    if (error == FKV_OK)
        return stats.bytes_written_log + stats.bytes_written_values + stats.bytes_written_pages;
    failed("fkv_get_stats", error, store->db);
    return 0;
}

static uint64_t engine_index_bytes(struct store *store)
{
    return get_stats(store).index_bytes;
}

static uint64_t engine_log_bytes_live(struct store *store)
{
    return get_stats(store).log_bytes_live;
}

static bool engine_is_log(const char *file_name)
{
    size_t length = strlen(file_name);
    return length >= 4 && strcmp(file_name + length - 4, "-wal") == 0;
}

#define FKV_ENGINE(variable, name_, about_, open_) \
    static struct engine variable = {              \
        .name = (name_),                           \
        .about = (about_),                         \
        .version = fkv_version,                    \
        .open = (open_),                           \
        .close = engine_close,                     \
        .put = engine_put,                         \
        .put_sync = engine_put_sync,               \
        .snapshot = engine_snapshot,               \
        .snapshot_end = engine_snapshot_end,       \
        .scan = engine_scan,                       \
        .backup = engine_backup,                   \
        .compact = engine_compact,                 \
        .batch_put = engine_batch_put,             \
        .batch_commit = engine_batch_commit,       \
        .written_bytes = engine_written_bytes,     \
        .get = engine_get,                         \
        .get_deep = engine_get_deep,               \
        .get_many = engine_get_many,               \
        .exists = engine_exists,                   \
        .delete = engine_delete,                   \
        .flush = engine_flush,                     \
        .index_bytes = engine_index_bytes,         \
        .log_bytes_live = engine_log_bytes_live,   \
        .is_log = engine_is_log,                   \
    };                                             \
    ENGINE_REGISTER(variable)

FKV_ENGINE(engine_fkv, "fkv", "default options; exists reads the index only", engine_open)
FKV_ENGINE(engine_fkv_log, "fkv-log", "a log of 2 GiB: fewer checkpoints, longer recoveries",
           engine_open_log)
FKV_ENGINE(engine_fkv_inline, "fkv-inline", "FKV_NO_THREAD: all work is done inside the calls",
           engine_open_inline)
FKV_ENGINE(engine_fkv_calls, "fkv-calls",
           "FKV_READ_WITHOUT_MAPPING: what is in the file is read by calls", engine_open_calls)
