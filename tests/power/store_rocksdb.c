/*
 * RocksDB with its default options and a small write buffer, so that it flushes and compacts while
 * it is tried; sync on where a batch is to be synced, or never.
 */
#include "store.h"

#include <rocksdb/c.h>
#include <stdlib.h>
#include <string.h>

struct store {
    rocksdb_t *db;
    rocksdb_readoptions_t *reading;
    rocksdb_writeoptions_t *writing, *syncing;
    uint8_t *value;
};

static bool failed(const char *call, char *error)
{
    store_failed(call, error);
    rocksdb_free(error);
    return false;
}

static struct store *open_with(const char *directory, bool syncs)
{
    char *error = NULL;
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(options, 1);
    rocksdb_options_set_write_buffer_size(options, 1 << 20);
    rocksdb_options_set_compression(options, rocksdb_no_compression);
    rocksdb_t *db = rocksdb_open(options, directory, &error);
    rocksdb_options_destroy(options);
    if (error) {
        failed("open", error);
        return NULL;
    }
    struct store *store = calloc(1, sizeof *store);
    store->db = db;
    store->reading = rocksdb_readoptions_create();
    store->writing = rocksdb_writeoptions_create();
    store->syncing = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(store->syncing, syncs);
    store->value = malloc(BATCH_VALUE_BYTES_MAX + 8);
    return store;
}

static struct store *store_open(const char *directory, uint64_t random)
{
    (void)random;
    return open_with(directory, true);
}

static struct store *store_open_lies(const char *directory, uint64_t random)
{
    (void)random;
    return open_with(directory, false);
}

static bool store_commit(struct store *store, const struct batch *batch)
{
    char key[BATCH_KEY_BYTES], *error = NULL;
    rocksdb_writebatch_t *writes = rocksdb_writebatch_create();
    for (size_t i = 0; i < batch->count; i++) {
        const struct change *change = &batch->changes[i];
        batch_key(key, change->key);
        batch_value(change, store->value);
        if (change->deletes)
            rocksdb_writebatch_delete(writes, key, sizeof key);
        else
            rocksdb_writebatch_put(writes, key, sizeof key, (char *)store->value,
                                   change->value_bytes);
    }
    rocksdb_write(store->db, batch->synced ? store->syncing : store->writing, writes, &error);
    rocksdb_writebatch_destroy(writes);
    return !error || failed("write", error);
}

static long store_get(struct store *store, const char *key, uint8_t *room)
{
    size_t bytes;
    char *error = NULL;
    char *value = rocksdb_get(store->db, store->reading, key, BATCH_KEY_BYTES, &bytes, &error);
    if (error) {
        failed("get", error);
        return STORE_ERROR;
    }
    if (!value)
        return STORE_ABSENT;
    if (bytes <= BATCH_VALUE_BYTES_MAX)
        memcpy(room, value, bytes);
    rocksdb_free(value);
    return (long)bytes;
}

const struct store_kind store_rocksdb = {
    .name = "rocksdb",
    .about = "default options, sync on three of four writes",
    .open = store_open,
    .commit = store_commit,
    .get = store_get,
};
const struct store_kind store_rocksdb_lies = {
    .name = "rocksdb-nosync",
    .about = "no sync: has to lose commits",
    .lies = true,
    .open = store_open_lies,
    .commit = store_commit,
    .get = store_get,
};
