/*
 * memory: a hash table in this process, without any file. It promises nothing once the process is
 * gone; it is the floor that a store is measured against, so it is made as fast as it can be made
 * without tricks:
 *
 *  - open addressing with linear probing; a slot is 16 bytes, the hash and a pointer, so that a
 *    probe touches the record only if all 64 bits of the hash agree, and growing touches none;
 *  - at most 5/8 of the slots in use, a power of two of them, on huge pages if the system lets us;
 *  - a record is one malloc: lengths, key, value; overwritten in place while it fits;
 *  - XXH3, inlined, for the hash.
 *
 * memory-huge is the same with the records on huge pages too: they come from an arena of size
 * classes instead of malloc, which saves the page-table misses of a get. No peer does it and most
 * programs do not; it is there to know what the last bit of the floor is.
 */
#include "engine.h"
#include "util.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <malloc.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define SLOTS_MIN ((size_t)1 << 12)

struct record {
    uint32_t value_bytes;
    uint32_t key_bytes;
    uint8_t bytes[]; /* key, value */
};

struct slot {
    uint64_t hash;
    struct record *record; /* NULL: the slot is free */
};

/* Records of memory-huge: a free list for each multiple of CLASS_BYTES, and chunks to cut from. */
#define CLASS_BYTES ((size_t)16)
#define CLASS_COUNT ((size_t)512)
#define CHUNK_BYTES ((size_t)64 << 20)

struct chunk {
    struct chunk *next;
};

struct arena {
    struct chunk *chunks;
    uint8_t *cut; /* where the newest chunk is still uncut, and its end */
    uint8_t *end;
    void *free[CLASS_COUNT];
};

struct store {
    struct slot *slots;
    size_t slot_mask;
    size_t count;
    struct arena *arena; /* NULL: malloc */
};

static void *map_huge(size_t bytes)
{
    void *memory = mmap(NULL, bytes + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    /* Align, and give back what lies before and behind. */
    uint8_t *begin = memory;
    size_t before = -(uintptr_t)begin & (HUGE_PAGE_BYTES - 1);
    if (before != 0)
        munmap(begin, before);
    if (before != HUGE_PAGE_BYTES)
        munmap(begin + before + bytes, HUGE_PAGE_BYTES - before);
    madvise(begin + before, bytes, MADV_HUGEPAGE);
    return begin + before;
}

static size_t table_bytes(size_t slots)
{
    return slots * sizeof(struct slot);
}

/* ---------------------------------------------------------------- records */

static size_t class_of(size_t bytes)
{
    return (bytes + CLASS_BYTES - 1) / CLASS_BYTES;
}

static struct record *arena_alloc(struct arena *arena, size_t bytes)
{
    size_t class = class_of(bytes);
    if (class >= CLASS_COUNT)
        return malloc(bytes);
    void *record = arena->free[class];
    if (record != NULL) {
        memcpy(&arena->free[class], record, sizeof(void *));
        return record;
    }
    if (arena->cut == NULL || (size_t)(arena->end - arena->cut) < class * CLASS_BYTES) {
        struct chunk *chunk = map_huge(CHUNK_BYTES);
        if (chunk == NULL)
            return NULL;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
        arena->cut = (uint8_t *)chunk + CLASS_BYTES;
        arena->end = (uint8_t *)chunk + CHUNK_BYTES;
    }
    record = arena->cut;
    arena->cut += class * CLASS_BYTES;
    return record;
}

static size_t record_bytes(size_t key_bytes, size_t value_bytes)
{
    return sizeof(struct record) + key_bytes + value_bytes;
}

static struct record *record_alloc(struct store *store, size_t bytes)
{
    return store->arena != NULL ? arena_alloc(store->arena, bytes) : malloc(bytes);
}

static void record_free(struct store *store, struct record *record)
{
    size_t class = class_of(record_bytes(record->key_bytes, record->value_bytes));
    if (store->arena == NULL || class >= CLASS_COUNT) {
        free(record);
        return;
    }
    memcpy(record, &store->arena->free[class], sizeof(void *));
    store->arena->free[class] = record;
}

/* Whether a value of another length can be put in place of the one there. */
static bool record_fits(const struct store *store, struct record *record, size_t value_bytes)
{
    size_t bytes = record_bytes(record->key_bytes, value_bytes);
    if (store->arena == NULL)
        return bytes <= malloc_usable_size(record);
    size_t class = class_of(bytes);
    return class < CLASS_COUNT &&
           class == class_of(record_bytes(record->key_bytes, record->value_bytes));
}

/* ---------------------------------------------------------------- the table */

/* The slot of the key, or the free slot where it would go. */
static inline struct slot *find(const struct store *store, uint64_t hash, const void *key,
                                size_t key_bytes)
{
    for (size_t i = hash & store->slot_mask;; i = (i + 1) & store->slot_mask) {
        struct slot *slot = &store->slots[i];
        if (slot->record == NULL)
            return slot;
        if (slot->hash == hash && slot->record->key_bytes == key_bytes &&
            memcmp(slot->record->bytes, key, key_bytes) == 0)
            return slot;
    }
}

static bool grow(struct store *store)
{
    size_t old_slots = store->slot_mask + 1;
    struct slot *slots = map_huge(table_bytes(old_slots * 2));
    if (slots == NULL)
        return false;
    size_t mask = old_slots * 2 - 1;
    for (size_t i = 0; i < old_slots; i++) {
        if (store->slots[i].record == NULL)
            continue;
        size_t to = store->slots[i].hash & mask;
        while (slots[to].record != NULL)
            to = (to + 1) & mask;
        slots[to] = store->slots[i];
    }
    munmap(store->slots, table_bytes(old_slots));
    store->slots = slots;
    store->slot_mask = mask;
    return true;
}

static enum engine_result out_of_memory(void)
{
    complain("memory: no memory");
    return ENGINE_ERROR;
}

static enum engine_result memory_put(struct store *store, const void *key, size_t key_bytes,
                                     const void *value, size_t value_bytes)
{
    if ((store->count + 1) * 8 > (store->slot_mask + 1) * 5 && !grow(store))
        return out_of_memory();
    uint64_t hash = XXH3_64bits(key, key_bytes);
    struct slot *slot = find(store, hash, key, key_bytes);
    struct record *record = slot->record;
    if (record == NULL || !record_fits(store, record, value_bytes)) {
        record = record_alloc(store, record_bytes(key_bytes, value_bytes));
        if (record == NULL)
            return out_of_memory();
        record->key_bytes = (uint32_t)key_bytes;
        memcpy(record->bytes, key, key_bytes);
        if (slot->record != NULL)
            record_free(store, slot->record);
        else
            store->count++;
        *slot = (struct slot){hash, record};
    }
    record->value_bytes = (uint32_t)value_bytes;
    memcpy(record->bytes + key_bytes, value, value_bytes);
    return ENGINE_OK;
}

static enum engine_result memory_get(struct store *store, const void *key, size_t key_bytes,
                                     void *buffer, size_t buffer_bytes, size_t *value_bytes)
{
    const struct record *record = find(store, XXH3_64bits(key, key_bytes), key, key_bytes)->record;
    if (record == NULL)
        return ENGINE_NOT_FOUND;
    if (record->value_bytes > buffer_bytes)
        return ENGINE_ERROR;
    memcpy(buffer, record->bytes + key_bytes, record->value_bytes);
    *value_bytes = record->value_bytes;
    return ENGINE_OK;
}

static enum engine_result memory_exists(struct store *store, const void *key, size_t key_bytes)
{
    return find(store, XXH3_64bits(key, key_bytes), key, key_bytes)->record != NULL
               ? ENGINE_OK
               : ENGINE_NOT_FOUND;
}

static enum engine_result memory_delete(struct store *store, const void *key, size_t key_bytes)
{
    struct slot *slot = find(store, XXH3_64bits(key, key_bytes), key, key_bytes);
    if (slot->record == NULL)
        return ENGINE_NOT_FOUND;
    record_free(store, slot->record);
    store->count--;
    /* Close the gap: move back every later slot of the run that may lie as early as the gap. */
    size_t mask = store->slot_mask;
    size_t gap = (size_t)(slot - store->slots);
    for (size_t i = (gap + 1) & mask; store->slots[i].record != NULL; i = (i + 1) & mask) {
        size_t home = store->slots[i].hash & mask;
        if (((i - home) & mask) >= ((i - gap) & mask)) {
            store->slots[gap] = store->slots[i];
            gap = i;
        }
    }
    store->slots[gap] = (struct slot){0, NULL};
    return ENGINE_OK;
}

static struct store *memory_open(const char *directory)
{
    (void)directory;
    struct store *store = need_memory(1, sizeof *store);
    store->slots = map_huge(table_bytes(SLOTS_MIN));
    store->slot_mask = SLOTS_MIN - 1;
    if (store->slots == NULL) {
        out_of_memory();
        free(store);
        return NULL;
    }
    return store;
}

static struct store *memory_huge_open(const char *directory)
{
    struct store *store = memory_open(directory);
    if (store != NULL)
        store->arena = need_memory(1, sizeof *store->arena);
    return store;
}

static enum engine_result memory_close(struct store *store)
{
    for (size_t i = 0; i <= store->slot_mask; i++)
        if (store->slots[i].record != NULL)
            record_free(store, store->slots[i].record);
    munmap(store->slots, table_bytes(store->slot_mask + 1));
    if (store->arena != NULL) {
        for (struct chunk *chunk = store->arena->chunks, *next; chunk != NULL; chunk = next) {
            next = chunk->next;
            munmap(chunk, CHUNK_BYTES);
        }
        free(store->arena);
    }
    free(store);
    return ENGINE_OK;
}

static uint64_t memory_index_bytes(struct store *store)
{
    return table_bytes(store->slot_mask + 1);
}

static struct engine memory = {
    .name = "memory",
    .about = "a hash table in the process, no file: the floor",
    .open = memory_open,
    .close = memory_close,
    .put = memory_put,
    .get = memory_get,
    .exists = memory_exists,
    .delete = memory_delete,
    .index_bytes = memory_index_bytes,
    .memory_only = true,
    .single = true,
};
ENGINE_REGISTER(memory)

static struct engine memory_huge = {
    .name = "memory-huge",
    .about = "memory, with the records on huge pages too, from an arena instead of malloc",
    .open = memory_huge_open,
    .close = memory_close,
    .put = memory_put,
    .get = memory_get,
    .exists = memory_exists,
    .delete = memory_delete,
    .index_bytes = memory_index_bytes,
    .memory_only = true,
    .single = true,
};
ENGINE_REGISTER(memory_huge)
