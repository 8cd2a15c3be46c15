/*
 * LMDB with its default, which syncs every commit; and with MDB_NOSYNC.
 */
#include "store.h"

#include <lmdb.h>
#include <stdlib.h>
#include <string.h>

#define MAP_BYTES ((size_t)256 << 20)

struct store {
    MDB_env *environment;
    MDB_dbi database;
    uint8_t *value;
};

static bool failed(const char *call, int error)
{
    return store_failed(call, mdb_strerror(error));
}

static int open_database(struct store *store)
{
    MDB_txn *txn;
    int error = mdb_txn_begin(store->environment, NULL, 0, &txn);
    if (error == 0)
        error = mdb_dbi_open(txn, NULL, 0, &store->database);
    return error == 0 ? mdb_txn_commit(txn) : error;
}

static struct store *open_with(const char *directory, unsigned flags)
{
    struct store *store = calloc(1, sizeof *store);
    store->value = malloc(BATCH_VALUE_BYTES_MAX + 8);
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
    return NULL;
}

static struct store *store_open(const char *directory, uint64_t random)
{
    (void)random;
    return open_with(directory, 0);
}

static struct store *store_open_lies(const char *directory, uint64_t random)
{
    (void)random;
    return open_with(directory, MDB_NOSYNC);
}

static int make_changes(struct store *store, MDB_txn *txn, const struct batch *batch)
{
    char name[BATCH_KEY_BYTES];
    int error = 0;
    for (size_t i = 0; i < batch->count && error == 0; i++) {
        const struct change *change = &batch->changes[i];
        MDB_val key = {sizeof name, name};
        MDB_val value = {change->value_bytes, store->value};
        batch_key(name, change->key);
        batch_value(change, store->value);
        if (!change->deletes)
            error = mdb_put(txn, store->database, &key, &value, 0);
        else if ((error = mdb_del(txn, store->database, &key, NULL)) == MDB_NOTFOUND)
            error = 0;
    }
    return error;
}

static bool store_commit(struct store *store, const struct batch *batch)
{
    MDB_txn *txn;
    int error = mdb_txn_begin(store->environment, NULL, 0, &txn);
    if (error == 0)
        error = make_changes(store, txn, batch);
    if (error == 0)
        error = mdb_txn_commit(txn);
    return error == 0 || failed("commit", error);
}

static long store_get(struct store *store, const char *key, uint8_t *room)
{
    MDB_txn *txn;
    MDB_val k = {BATCH_KEY_BYTES, (void *)key}, v;
    int error = mdb_txn_begin(store->environment, NULL, MDB_RDONLY, &txn);
    if (error == 0) {
        error = mdb_get(txn, store->database, &k, &v);
        if (error == 0 && v.mv_size <= BATCH_VALUE_BYTES_MAX)
            memcpy(room, v.mv_data, v.mv_size);
        mdb_txn_abort(txn);
    }
    if (error == MDB_NOTFOUND)
        return STORE_ABSENT;
    if (error != 0) {
        failed("get", error);
        return STORE_ERROR;
    }
    return (long)v.mv_size;
}

const struct store_kind store_lmdb = {
    .name = "lmdb",
    .about = "default flags: every commit is synced",
    .open = store_open,
    .commit = store_commit,
    .get = store_get,
};
const struct store_kind store_lmdb_lies = {
    .name = "lmdb-nosync",
    .about = "MDB_NOSYNC: has to lose commits",
    .lies = true,
    .open = store_open_lies,
    .commit = store_commit,
    .get = store_get,
};
