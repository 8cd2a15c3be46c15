/*
 * SQLite as a key-value store, set up as its documentation advises for one process:
 *
 *  a table with row ids        whose rows come one behind the other, and an index of the keys. Keys
 *                              and values in one tree (WITHOUT ROWID) are advised where rows are
 *                              shorter than a twentieth of a page: here puts take 1.2 to 2 times
 *                              as long so
 *  ON CONFLICT DO UPDATE       for overwrites: REPLACE deletes, and inserts
 *  journal_mode=WAL            a commit appends to the log,
 *  synchronous=NORMAL          which is synced at checkpoints only: what the others do, too
 *  locking_mode=EXCLUSIVE      no locks of the file, no shared memory
 *  wal_autocheckpoint          once the log has 256 MiB, as fkv's has; not at every 4 MiB
 *  cache_size, mmap_size       all pages in memory, read from a mapping
 *
 * Statements are prepared once. One connection, so one thread at a time.
 */
#include "engine.h"
#include "util.h"

#include <sqlite3.h>
#include <string.h>

struct store {
    sqlite3 *db;
    sqlite3_stmt *put, *get, *exists, *delete, *begin, *commit;
    bool batch; /* one is open */
};

static enum engine_result failed(struct store *store, const char *call)
{
    complain("sqlite: %s: %s", call, sqlite3_errmsg(store->db));
    return ENGINE_ERROR;
}

static enum engine_result engine_close(struct store *store)
{
    sqlite3_stmt *statements[] = {store->put,    store->get,   store->exists,
                                  store->delete, store->begin, store->commit};
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        sqlite3_finalize(statements[i]);
    bool closed = sqlite3_close(store->db) == SQLITE_OK;
    free(store);
    return closed ? ENGINE_OK : ENGINE_ERROR;
}

static const char settings[] = "PRAGMA locking_mode=EXCLUSIVE;"
                               "PRAGMA journal_mode=WAL;"
                               "PRAGMA wal_autocheckpoint=65536;"
                               "PRAGMA cache_size=-4194304;"
                               "PRAGMA mmap_size=274877906944;"
                               "CREATE TABLE IF NOT EXISTS pairs"
                               " (key BLOB PRIMARY KEY, value BLOB NOT NULL);";
static const char put[] = "INSERT INTO pairs VALUES (?, ?)"
                          " ON CONFLICT (key) DO UPDATE SET value = excluded.value";

static bool prepare(struct store *store, sqlite3_stmt **statement, const char *text)
{
    return sqlite3_prepare_v3(store->db, text, -1, SQLITE_PREPARE_PERSISTENT, statement, NULL) ==
           SQLITE_OK;
}

static struct store *open_with(const char *directory, const char *synchronous)
{
    struct store *store = need_memory(1, sizeof *store);
    char *path = path_join(directory, "store.db");
    bool opened = sqlite3_open(path, &store->db) == SQLITE_OK &&
                  sqlite3_exec(store->db, settings, NULL, NULL, NULL) == SQLITE_OK &&
                  sqlite3_exec(store->db, synchronous, NULL, NULL, NULL) == SQLITE_OK &&
                  prepare(store, &store->put, put) &&
                  prepare(store, &store->get, "SELECT value FROM pairs WHERE key = ?") &&
                  prepare(store, &store->exists, "SELECT 1 FROM pairs WHERE key = ?") &&
                  prepare(store, &store->delete, "DELETE FROM pairs WHERE key = ?") &&
                  prepare(store, &store->begin, "BEGIN") &&
                  prepare(store, &store->commit, "COMMIT");
    free(path);
    if (opened)
        return store;
    failed(store, "open");
    engine_close(store);
    return NULL;
}

static struct store *engine_open(const char *directory)
{
    return open_with(directory, "PRAGMA synchronous=NORMAL");
}

static struct store *engine_open_synced(const char *directory)
{
    return open_with(directory, "PRAGMA synchronous=FULL");
}

static enum engine_result run(struct store *store, sqlite3_stmt *statement)
{
    int status = sqlite3_step(statement);
    sqlite3_reset(statement);
    return status == SQLITE_DONE ? ENGINE_OK : failed(store, sqlite3_sql(statement));
}

static void bind(sqlite3_stmt *statement, int number, const void *bytes, size_t count)
{
    /* A NULL pointer would be NULL, not a blob of no bytes. */
    sqlite3_bind_blob64(statement, number, count ? bytes : "", count, SQLITE_STATIC);
}

static enum engine_result engine_put(struct store *store, const void *key, size_t key_bytes,
                                     const void *value, size_t value_bytes)
{
    bind(store->put, 1, key, key_bytes);
    bind(store->put, 2, value, value_bytes);
    return run(store, store->put);
}

static enum engine_result engine_batch_put(struct store *store, const void *key, size_t key_bytes,
                                           const void *value, size_t value_bytes, bool ordinary)
{
    (void)ordinary;
    if (!store->batch && run(store, store->begin) != ENGINE_OK)
        return ENGINE_ERROR;
    store->batch = true;
    return engine_put(store, key, key_bytes, value, value_bytes);
}

/* Durable is what a checkpoint has synced. */
static enum engine_result engine_flush(struct store *store)
{
    int status = sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    return status == SQLITE_OK ? ENGINE_OK : failed(store, "checkpoint");
}

static enum engine_result engine_batch_commit(struct store *store)
{
    store->batch = false;
    enum engine_result result = run(store, store->commit);
    return result == ENGINE_OK ? engine_flush(store) : result;
}

static enum engine_result engine_get(struct store *store, const void *key, size_t key_bytes,
                                     void *buffer, size_t buffer_bytes, size_t *value_bytes)
{
    enum engine_result result = ENGINE_NOT_FOUND;
    bind(store->get, 1, key, key_bytes);
    int status = sqlite3_step(store->get);
    if (status == SQLITE_ROW) {
        const void *value = sqlite3_column_blob(store->get, 0);
        *value_bytes = (size_t)sqlite3_column_bytes(store->get, 0);
        result = *value_bytes <= buffer_bytes ? ENGINE_OK : failed(store, "a value too long");
        if (result == ENGINE_OK && *value_bytes)
            memcpy(buffer, value, *value_bytes);
    } else if (status != SQLITE_DONE) {
        result = failed(store, "get");
    }
    sqlite3_reset(store->get);
    return result;
}

static enum engine_result engine_exists(struct store *store, const void *key, size_t key_bytes)
{
    bind(store->exists, 1, key, key_bytes);
    int status = sqlite3_step(store->exists);
    sqlite3_reset(store->exists);
    if (status == SQLITE_ROW)
        return ENGINE_OK;
    return status == SQLITE_DONE ? ENGINE_NOT_FOUND : failed(store, "exists");
}

static enum engine_result engine_delete(struct store *store, const void *key, size_t key_bytes)
{
    bind(store->delete, 1, key, key_bytes);
    enum engine_result result = run(store, store->delete);
    if (result != ENGINE_OK)
        return result;
    return sqlite3_changes(store->db) ? ENGINE_OK : ENGINE_NOT_FOUND;
}

static uint64_t engine_scan(struct store *store)
{
    sqlite3_stmt *all;
    uint64_t pairs = 0;
    if (!prepare(store, &all, "SELECT key, value FROM pairs"))
        die("sqlite: no scan");
    while (sqlite3_step(all) == SQLITE_ROW)
        pairs += sqlite3_column_blob(all, 0) != NULL || !sqlite3_column_bytes(all, 0);
    sqlite3_finalize(all);
    return pairs;
}

static bool engine_is_log(const char *file_name)
{
    return strcmp(file_name, "store.db-wal") == 0;
}

static struct engine engine_sqlite = {
    .name = "sqlite",
    .about = "row ids and an index of keys, WAL, synchronous=NORMAL, exclusive, all pages cached "
             "and mapped",
    .version = sqlite3_libversion,
    .open = engine_open,
    .close = engine_close,
    .put = engine_put,
    .put_sync = engine_put,
    .open_synced = engine_open_synced,
    .batch_put = engine_batch_put,
    .batch_commit = engine_batch_commit,
    .get = engine_get,
    .exists = engine_exists,
    .delete = engine_delete,
    .flush = engine_flush,
    .scan = engine_scan,
    .is_log = engine_is_log,
    .single = true,
};
ENGINE_REGISTER(engine_sqlite)
