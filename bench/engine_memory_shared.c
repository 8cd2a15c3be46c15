/*
 * memory-shared: the engine memory for several threads. 256 of its tables, each behind a lock for
 * readers and writers of its own, on a cache line of its own; some bits of the hash choose. That is
 * what a program would do that wants a hash table for many threads without further thought: readers
 * of different shards share nothing, readers of one do not wait for each other, but each read
 * writes to its lock twice.
 */
#include "engine.h"
#include "util.h"

#include <pthread.h>
#include <xxhash.h>

enum { SHARDS = 256, CACHE_LINE = 64 };

struct shard {
    _Alignas(CACHE_LINE) pthread_rwlock_t lock;
    struct store *table;
};

struct store {
    const struct engine *engine;
    struct shard *shards;
};

/* Higher bits than those which choose a slot in the table. */
static struct shard *shard_of(struct store *store, const void *key, size_t key_bytes)
{
    return &store->shards[XXH3_64bits(key, key_bytes) >> 56];
}

static enum engine_result shared_close(struct store *store)
{
    for (int i = 0; i < SHARDS; i++) {
        if (store->shards[i].table != NULL)
            store->engine->close(store->shards[i].table);
        pthread_rwlock_destroy(&store->shards[i].lock);
    }
    free(store->shards);
    free(store);
    return ENGINE_OK;
}

static struct store *shared_open(const char *directory)
{
    struct store *store = need_memory(1, sizeof *store);
    store->engine = engine_find("memory");
    store->shards = aligned_alloc(CACHE_LINE, SHARDS * sizeof *store->shards);
    if (store->engine == NULL || store->shards == NULL)
        die("memory-shared: no memory");
    bool opened = true;
    for (int i = 0; i < SHARDS; i++) {
        pthread_rwlock_init(&store->shards[i].lock, NULL);
        store->shards[i].table = store->engine->open(directory);
        opened = opened && store->shards[i].table != NULL;
    }
    if (opened)
        return store;
    shared_close(store);
    return NULL;
}

static enum engine_result shared_put(struct store *store, const void *key, size_t key_bytes,
                                     const void *value, size_t value_bytes)
{
    struct shard *shard = shard_of(store, key, key_bytes);
    pthread_rwlock_wrlock(&shard->lock);
    enum engine_result result =
        store->engine->put(shard->table, key, key_bytes, value, value_bytes);
    pthread_rwlock_unlock(&shard->lock);
    return result;
}

static enum engine_result shared_get(struct store *store, const void *key, size_t key_bytes,
                                     void *buffer, size_t buffer_bytes, size_t *value_bytes)
{
    struct shard *shard = shard_of(store, key, key_bytes);
    pthread_rwlock_rdlock(&shard->lock);
    enum engine_result result =
        store->engine->get(shard->table, key, key_bytes, buffer, buffer_bytes, value_bytes);
    pthread_rwlock_unlock(&shard->lock);
    return result;
}

static enum engine_result shared_exists(struct store *store, const void *key, size_t key_bytes)
{
    struct shard *shard = shard_of(store, key, key_bytes);
    pthread_rwlock_rdlock(&shard->lock);
    enum engine_result result = store->engine->exists(shard->table, key, key_bytes);
    pthread_rwlock_unlock(&shard->lock);
    return result;
}

static enum engine_result shared_delete(struct store *store, const void *key, size_t key_bytes)
{
    struct shard *shard = shard_of(store, key, key_bytes);
    pthread_rwlock_wrlock(&shard->lock);
    enum engine_result result = store->engine->delete (shard->table, key, key_bytes);
    pthread_rwlock_unlock(&shard->lock);
    return result;
}

static uint64_t shared_index_bytes(struct store *store)
{
    uint64_t bytes = 0;
    for (int i = 0; i < SHARDS; i++)
        bytes += store->engine->index_bytes(store->shards[i].table);
    return bytes;
}

static struct engine memory_shared = {
    .name = "memory-shared",
    .about = "256 tables like memory, each behind a rwlock: for threads",
    .open = shared_open,
    .close = shared_close,
    .put = shared_put,
    .get = shared_get,
    .exists = shared_exists,
    .delete = shared_delete,
    .index_bytes = shared_index_bytes,
    .memory_only = true,
};
ENGINE_REGISTER(memory_shared)
