#include "undo.h"

enum { SLAB_NODES = 290, SETTLE_AT_ONCE = 128 }; /* 16 KiB */

struct undo_slab {
    struct retired_block retired;
    struct undo_slab *next;
    uint32_t count;
    uint32_t merged; /* of them, in the layer before too */
    struct undo_node nodes[SLAB_NODES];
};

/* ---------------------------------------------------------------- tables */

/* Where the node of this hash is, or would be; *found: the node, NULL if there was none. A reader
 * must not look at the place again: by then it may have the node of another hash. */
static struct undo_node *const *place_of(const struct undo_table *table, struct hash128 hash,
                                         const struct undo_node **found)
{
    enum { ROOT_BITS = 8, CHILD_BITS = 2 };
    uint64_t bits = hash.hi;
    struct undo_node *const *at = &table->root[bits >> (64 - ROOT_BITS)];
    for (bits <<= ROOT_BITS;; bits <<= CHILD_BITS) {
        const struct undo_node *node = __atomic_load_n(at, __ATOMIC_ACQUIRE);
        *found = node;
        if (!node || (node->hash.hi == hash.hi && node->hash.lo == hash.lo))
            return at;
        at = &node->child[bits >> (64 - CHILD_BITS)];
    }
}

static const struct undo_node *table_find(const struct undo_table *table, struct hash128 hash)
{
    const struct undo_node *found;
    place_of(table, hash, &found);
    return found;
}

static void took(struct undo *undo, struct undo_layer *layer, uint64_t bytes)
{
    layer->bytes += bytes;
    undo->bytes += bytes;
}

static void gave(struct undo *undo, struct undo_layer *layer, uint64_t bytes)
{
    layer->bytes -= bytes;
    undo->bytes -= bytes;
}

/* Of a hash that is not there. */
static enum fkv_error table_add(struct undo *undo, struct undo_layer *layer, bool key,
                                struct hash128 hash, uint64_t before)
{
    struct undo_table *table = key ? &layer->keys : &layer->sectors;
    struct undo_slab *slab = table->slabs;
    if (!slab || slab->count == SLAB_NODES) {
        if (!(slab = memory_new(sizeof *slab)))
            return FKV_NO_MEMORY;
        slab->next = table->slabs;
        table->slabs = slab;
        took(undo, layer, sizeof *slab);
    }
    struct undo_node *node = &slab->nodes[slab->count++];
    node->hash = hash;
    node->before = before;
    const struct undo_node *none;
    struct undo_node **place = (struct undo_node **)place_of(table, hash, &none);
    __atomic_store_n(place, node, __ATOMIC_RELEASE);
    return FKV_OK;
}

/* Sectors are spread over a table by a multiplication. */
static struct hash128 hash_of_sector(uint32_t sector)
{
    return (struct hash128){.hi = (sector + UINT64_C(1)) * 0x9e3779b97f4a7c15ull, .lo = sector};
}

/* ---------------------------------------------------------------- layers */

struct undo_layer *undo_open(struct undo *undo)
{
    struct undo_layer *layer = memory_new(sizeof *layer);
    if (!layer)
        return NULL;
    took(undo, layer, sizeof *layer);
    layer->number = ++undo->number;
    layer->open = true;
    layer->older = undo->newest;
    if (undo->newest)
        __atomic_store_n(&undo->newest->newer, layer, __ATOMIC_RELEASE);
    else
        undo->oldest = layer;
    undo->newest = undo->newest_open = layer;
    undo->open_count++;
    return layer;
}

void undo_close(struct undo *undo, struct undo_layer *layer)
{
    layer->open = false;
    undo->open_count--;
    while (undo->newest_open && !undo->newest_open->open)
        undo->newest_open = undo->newest_open->older;
}

uint64_t undo_oldest(const struct undo *undo)
{
    const struct undo_layer *layer = undo->oldest;
    while (layer && !layer->open)
        layer = layer->newer;
    return layer ? layer->number : 0;
}

/* Out of the list: only readers that are in it already still look. */
static struct undo_layer *take_out(struct undo *undo, struct undo_layer *layer)
{
    struct undo_layer *older = layer->older, *newer = layer->newer;
    if (older)
        __atomic_store_n(&older->newer, newer, __ATOMIC_RELEASE);
    else
        undo->oldest = newer;
    if (newer)
        newer->older = older;
    else
        undo->newest = older;
    undo->bytes -= layer->bytes;
    return layer;
}

/* What is done is put aside, for it would be passed again with each few undos that follow. */
static bool merge_keys(struct undo *undo, struct undo_layer *from, struct undo_layer *to,
                       uint32_t *budget)
{
    struct undo_slab *slab;
    while (*budget && (slab = from->keys.slabs)) {
        for (; slab->merged < slab->count && *budget; slab->merged++, --*budget) {
            const struct undo_node *node = &slab->nodes[slab->merged];
            if (!table_find(&to->keys, node->hash) &&
                table_add(undo, to, true, node->hash, node->before))
                return false;
        }
        if (slab->merged == slab->count) {
            from->keys.slabs = slab->next;
            slab->next = from->merged;
            from->merged = slab;
        }
    }
    return true;
}

static bool merge_maps(struct undo *undo, struct undo_layer *from, struct undo_layer *to,
                       uint32_t *budget)
{
    for (; from->maps && *budget; --*budget) {
        struct undo_map *map = from->maps;
        struct hash128 hash = hash_of_sector(map->sector);
        bool there = table_find(&to->sectors, hash) != NULL;
        if (!there && table_add(undo, to, false, hash, (uintptr_t)map))
            return false;
        from->maps = map->next;
        gave(undo, from, sizeof *map);
        if (there) {
            reclaim_block(undo->reclaim, &map->retired);
        } else {
            map->next = to->maps;
            to->maps = map;
            took(undo, to, sizeof *map);
        }
    }
    return true;
}

bool undo_settle(struct undo *undo, struct undo_layer **gone)
{
    *gone = NULL;
    if (undo->oldest && !undo->oldest->open) {
        *gone = take_out(undo, undo->oldest);
        return true;
    }
    for (struct undo_layer *layer = undo->oldest; layer; layer = layer->newer) {
        uint32_t budget = SETTLE_AT_ONCE;
        if (layer->open || !merge_keys(undo, layer, layer->older, &budget) ||
            !merge_maps(undo, layer, layer->older, &budget))
            continue;
        if (budget) /* that was the last of it */
            *gone = take_out(undo, layer);
        return true;
    }
    return false;
}

static void free_slabs(struct undo_slab *slab)
{
    for (struct undo_slab *next; slab; slab = next) {
        next = slab->next;
        memory_free(slab);
    }
}

void undo_free(struct undo_layer *layer)
{
    for (struct undo_map *map = layer->maps, *next; map; map = next) {
        next = map->next;
        memory_free(map);
    }
    free_slabs(layer->keys.slabs);
    free_slabs(layer->merged);
    free_slabs(layer->sectors.slabs);
    memory_free(layer);
}

static void retire_slabs(struct undo *undo, struct undo_slab *slab)
{
    for (struct undo_slab *next; slab; slab = next) {
        next = slab->next;
        reclaim_block(undo->reclaim, &slab->retired);
    }
}

void undo_retire(struct undo *undo, struct undo_layer *layer)
{
    for (struct undo_map *map = layer->maps, *next; map; map = next) {
        next = map->next;
        reclaim_block(undo->reclaim, &map->retired);
    }
    retire_slabs(undo, layer->keys.slabs);
    retire_slabs(undo, layer->merged);
    retire_slabs(undo, layer->sectors.slabs);
    reclaim_block(undo->reclaim, &layer->retired);
}

void undo_drop(struct undo *undo)
{
    for (struct undo_layer *layer = undo->oldest, *newer; layer; layer = newer) {
        newer = layer->newer;
        undo_free(layer);
    }
    undo->oldest = undo->newest = undo->newest_open = NULL;
}

/* ---------------------------------------------------------------- leaving */

/* Has it been left since the newest snapshot? Layers that are newer are closed ones. */
static bool is_left(const struct undo *undo, bool key, struct hash128 hash)
{
    for (const struct undo_layer *layer = undo->newest_open; layer; layer = layer->newer)
        if (table_find(key ? &layer->keys : &layer->sectors, hash))
            return true;
    return false;
}

enum fkv_error undo_key(struct undo *undo, struct hash128 hash, uint64_t before, bool *left)
{
    struct undo_layer *layer = undo->newest_open;
    *left = false;
    if (!layer || is_left(undo, true, hash))
        return FKV_OK;
    enum fkv_error error = table_add(undo, layer, true, hash, before);
    *left = !error;
    return error;
}

bool undo_wants_map(const struct undo *undo, uint32_t sector)
{
    return undo->newest_open && !is_left(undo, false, hash_of_sector(sector));
}

enum fkv_error undo_map(struct undo *undo, struct undo_map *map)
{
    struct undo_layer *layer = undo->newest_open;
    enum fkv_error error =
        table_add(undo, layer, false, hash_of_sector(map->sector), (uintptr_t)map);
    if (error)
        return error;
    map->next = layer->maps;
    layer->maps = map;
    took(undo, layer, sizeof *map);
    return FKV_OK;
}

/* ---------------------------------------------------------------- finding */

static const struct undo_node *find(const struct undo_layer *layer, bool key, struct hash128 hash)
{
    while (layer) {
        const struct undo_layer *newer = __atomic_load_n(&layer->newer, __ATOMIC_ACQUIRE);
        const struct undo_node *node = table_find(key ? &layer->keys : &layer->sectors, hash);
        if (node)
            return node;
        layer = newer;
    }
    return NULL;
}

bool undo_find_key(const struct undo_layer *layer, struct hash128 hash, uint64_t *before)
{
    const struct undo_node *node = find(layer, true, hash);
    if (node)
        *before = node->before;
    return node != NULL;
}

const struct undo_map *undo_find_map(const struct undo_layer *layer, uint32_t sector)
{
    const struct undo_node *node = find(layer, false, hash_of_sector(sector));
    return node ? (const struct undo_map *)(uintptr_t)node->before : NULL;
}
