/*
 * LMDB, set up for what the others do as well as it can: a commit that survives the death of the
 * process and is not synced.
 *
 *  MDB_WRITEMAP   pages are changed in the mapping: its documentation's advice for speed
 *  MDB_NOSYNC     a commit does not sync. LMDB has no log: after a loss of power the file may be
 *                 corrupt, where the others come back with some earlier commit. There is nothing
 *                 in between: MDB_MAPASYNC promises no more, MDB_NOMETASYNC syncs every commit.
 *  MDB_NORDAHEAD  its advice for random reads of data larger than memory
 *
 * Synced commits need an environment without MDB_NOSYNC; without MDB_WRITEMAP too, which is LMDB's
 * default: it writes the pages of a commit and calls fdatasync.
 *
 * A reading thread keeps its read transaction and renews it for each get, as the documentation
 * advises. Keys are 511 bytes at most.
 */
#include "engine.h"
#include "util.h"

#include <fcntl.h>
#include <lmdb.h>
#include <string.h>
#include <unistd.h>

#define MAP_BYTES ((size_t)256 << 30)

struct store {
    MDB_env *environment;
    MDB_dbi database;
    MDB_txn *batch; /* that is open, or NULL */
};

/* The thread's read transaction; one store is open at a time. */
static _Thread_local MDB_txn *reader;

static enum engine_result failed(const char *call, int error)
{
    complain("lmdb: %s: %s", call, mdb_strerror(error));
    return ENGINE_ERROR;
}

static int open_database(struct store *store)
{
    MDB_txn *txn;
    int error = mdb_txn_begin(store->environment, NULL, 0, &txn);
    if (error != 0)
        return error;
    error = mdb_dbi_open(txn, NULL, 0, &store->database);
    if (error != 0) {
        mdb_txn_abort(txn);
        return error;
    }
    return mdb_txn_commit(txn);
}

static struct store *open_with(const char *directory, unsigned flags)
{
    struct store *store = need_memory(1, sizeof *store);
    int error = mdb_env_create(&store->environment);
    if (error == 0)
        error = mdb_env_set_mapsize(store->environment, MAP_BYTES);
    if (error == 0)
        error = mdb_env_open(store->environment, directory, flags, 0644);
    if (error == 0)
        error = open_database(store);
    if (error == 0)
        return store;
    failed("open", error);
    mdb_env_close(store->environment);
    free(store);
    return NULL;
}

static struct store *engine_open(const char *directory)
{
    return open_with(directory, MDB_WRITEMAP | MDB_NOSYNC | MDB_NORDAHEAD);
}

static struct store *engine_open_synced(const char *directory)
{
    return open_with(directory, MDB_NORDAHEAD);
}

static enum engine_result engine_close(struct store *store)
{
    if (reader != NULL)
        mdb_txn_abort(reader);
    reader = NULL;
    mdb_env_close(store->environment);
    free(store);
    return ENGINE_OK;
}

static enum engine_result engine_put(struct store *store, const void *key, size_t key_bytes,
                                     const void *value, size_t value_bytes)
{
    MDB_txn *txn;
    MDB_val k = {key_bytes, (void *)key};
    MDB_val v = {value_bytes, (void *)value};
    int error = mdb_txn_begin(store->environment, NULL, 0, &txn);
    if (error != 0)
        return failed("mdb_txn_begin", error);
    error = mdb_put(txn, store->database, &k, &v, 0);
    if (error != 0) {
        mdb_txn_abort(txn);
        return failed("mdb_put", error);
    }
    error = mdb_txn_commit(txn);
    return error == 0 ? ENGINE_OK : failed("mdb_txn_commit", error);
}

/* Keys come in no order, so MDB_APPEND is of no use. */
static enum engine_result engine_batch_put(struct store *store, const void *key, size_t key_bytes,
                                           const void *value, size_t value_bytes, bool ordinary)
{
    (void)ordinary;
    MDB_val k = {key_bytes, (void *)key};
    MDB_val v = {value_bytes, (void *)value};
    int error = store->batch ? 0 : mdb_txn_begin(store->environment, NULL, 0, &store->batch);
    if (error == 0)
        error = mdb_put(store->batch, store->database, &k, &v, 0);
    return error == 0 ? ENGINE_OK : failed("mdb_put", error);
}

static enum engine_result engine_batch_commit(struct store *store)
{
    int error = mdb_txn_commit(store->batch);
    store->batch = NULL;
    if (error == 0)
        error = mdb_env_sync(store->environment, 1);
    return error == 0 ? ENGINE_OK : failed("mdb_txn_commit", error);
}

static int read_begin(struct store *store)
{
    if (reader != NULL)
        return mdb_txn_renew(reader);
    return mdb_txn_begin(store->environment, NULL, MDB_RDONLY, &reader);
}

static enum engine_result engine_get(struct store *store, const void *key, size_t key_bytes,
                                     void *buffer, size_t buffer_bytes, size_t *value_bytes)
{
    MDB_val k = {key_bytes, (void *)key};
    MDB_val v;
    int error = read_begin(store);
    if (error != 0)
        return failed("read transaction", error);
    enum engine_result result = ENGINE_OK;
    error = mdb_get(reader, store->database, &k, &v);
    if (error == MDB_NOTFOUND) {
        result = ENGINE_NOT_FOUND;
    } else if (error != 0 || v.mv_size > buffer_bytes) {
        result = failed("mdb_get", error);
    } else {
        memcpy(buffer, v.mv_data, v.mv_size);
        *value_bytes = v.mv_size;
    }
    mdb_txn_reset(reader);
    return result;
}

static enum engine_result engine_exists(struct store *store, const void *key, size_t key_bytes)
{
    MDB_val k = {key_bytes, (void *)key};
    MDB_val v;
    int error = read_begin(store);
    if (error != 0)
        return failed("read transaction", error);
    error = mdb_get(reader, store->database, &k, &v);
    mdb_txn_reset(reader);
    if (error == 0)
        return ENGINE_OK;
    return error == MDB_NOTFOUND ? ENGINE_NOT_FOUND : failed("mdb_get", error);
}

static enum engine_result engine_delete(struct store *store, const void *key, size_t key_bytes)
{
    MDB_txn *txn;
    MDB_val k = {key_bytes, (void *)key};
    int error = mdb_txn_begin(store->environment, NULL, 0, &txn);
    if (error != 0)
        return failed("mdb_txn_begin", error);
    error = mdb_del(txn, store->database, &k, NULL);
    if (error != 0) {
        mdb_txn_abort(txn);
        return error == MDB_NOTFOUND ? ENGINE_NOT_FOUND : failed("mdb_del", error);
    }
    error = mdb_txn_commit(txn);
    return error == 0 ? ENGINE_OK : failed("mdb_txn_commit", error);
}

static const char *engine_version(void)
{
    static char text[] = MDB_VERSION_STRING;
    /* "LMDB 0.9.24: (July 24, 2019)" */
    char *colon = strchr(text, ':');
    if (colon != NULL)
        *colon = '\0';
    return strncmp(text, "LMDB ", 5) == 0 ? text + 5 : text;
}

static uint64_t engine_scan(struct store *store)
{
    MDB_txn *txn;
    MDB_cursor *cursor;
    MDB_val key, value;
    uint64_t pairs = 0;
    if (mdb_txn_begin(store->environment, NULL, MDB_RDONLY, &txn) != 0 ||
        mdb_cursor_open(txn, store->database, &cursor) != 0)
        die("lmdb: no cursor");
    while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0)
        pairs++;
    mdb_cursor_close(cursor);
    mdb_txn_abort(txn);
    return pairs;
}

/* It does not sync what it has written. */
static enum engine_result engine_backup(struct store *store, const char *directory)
{
    int error = mdb_env_copy2(store->environment, directory, MDB_CP_COMPACT);
    if (error != 0)
        return failed("mdb_env_copy2", error);
    char *path = path_join(directory, "data.mdb");
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0 || fdatasync(file) != 0)
        die("lmdb: a backup cannot be synced");
    close(file);
    free(path);
    return ENGINE_OK;
}

static struct engine engine_lmdb = {
    .name = "lmdb",
    .about = "WRITEMAP, NOSYNC (no log: may be corrupt after a loss of power), NORDAHEAD",
    .version = engine_version,
    .open = engine_open,
    .close = engine_close,
    .put = engine_put,
    .put_sync = engine_put,
    .batch_put = engine_batch_put,
    .batch_commit = engine_batch_commit,
    .open_synced = engine_open_synced,
    .scan = engine_scan,
    .backup = engine_backup,
    .get = engine_get,
    .exists = engine_exists,
    .delete = engine_delete,
};
ENGINE_REGISTER(engine_lmdb)
