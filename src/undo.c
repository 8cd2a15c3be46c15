#include "undo.h"

#include <assert.h>

#include "index.h"

enum { SLAB_NODES_MIN = 7, SLAB_NODES_MAX = 255, SETTLE_AT_ONCE = 128 }; /* of 16 KiB at most */

struct undo_slab {
    struct retired_block retired;
    struct undo_slab *next;
    uint32_t room, count;
    uint32_t done; /* of them, in the other layer too, or forgotten: they hold no sectors */
    struct undo_node nodes[];
};

/* ---------------------------------------------------------------- tables */

/* Where the node of this hash is, or would be; *found: the node, NULL if there was none. A reader
 * must not look at the place again: by then it may have the node of another hash. */
static struct undo_node *const *place_of(const struct undo_table *table, struct hash128 hash,
                                         struct undo_node **found)
{
    enum { ROOT_BITS = 8, CHILD_BITS = 2 };
    uint64_t bits = hash.hi;
    struct undo_node *const *at = &table->root[bits >> (64 - ROOT_BITS)];
    for (bits <<= ROOT_BITS;; bits <<= CHILD_BITS) {
        struct undo_node *node = __atomic_load_n(at, __ATOMIC_ACQUIRE);
        *found = node;
        if (!node || (node->hash.hi == hash.hi && node->hash.lo == hash.lo))
            return at;
        at = &node->child[bits >> (64 - CHILD_BITS)];
    }
}

static struct undo_node *table_find(const struct undo_table *table, struct hash128 hash)
{
    struct undo_node *found;
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
static enum fkv_error table_add(struct undo *undo, struct undo_layer *layer,
                                struct undo_table *table, struct undo_node made)
{
    struct undo_slab *slab = table->slabs;
    if (!slab || slab->count == slab->room) {
        uint64_t room = min_u64(max_u64(table->count, SLAB_NODES_MIN), SLAB_NODES_MAX);
        size_t bytes = sizeof *slab + room * sizeof slab->nodes[0];
        if (!(slab = memory_new(bytes)))
            return FKV_NO_MEMORY;
        slab->room = (uint32_t)room;
        slab->next = table->slabs;
        table->slabs = slab;
        table->bytes += bytes;
        took(undo, layer, bytes);
    }
    struct undo_node *node = &slab->nodes[slab->count++];
    table->count++;
    *node = made;
    struct undo_node *none;
    struct undo_node **place = (struct undo_node **)place_of(table, made.hash, &none);
    __atomic_store_n(place, node, __ATOMIC_RELEASE);
    return FKV_OK;
}

/* Sectors are spread over a table by a multiplication. */
static struct hash128 hash_of_sector(uint32_t sector)
{
    return (struct hash128){.hi = (sector + UINT64_C(1)) * 0x9e3779b97f4a7c15ull, .lo = sector};
}

/* ---------------------------------------------------------------- what is held */

static void hold(struct undo *undo, uint64_t entry)
{
    if (entry)
        sectors_hold(undo->sectors, (uint32_t)(entry_address(entry) / SECTOR_CELLS));
}

static void unhold(struct undo *undo, uint64_t entry)
{
    if (entry)
        sectors_unhold(undo->sectors, (uint32_t)(entry_address(entry) / SECTOR_CELLS));
}

static size_t parts_bytes(const struct undo_parts *parts)
{
    return parts ? sizeof *parts + parts->count * sizeof parts->entry[0] : 0;
}

/* What a layer has of a key is not needed. The parts stay with it, where readers may still be. */
static void release_key(struct undo *undo, struct undo_layer *layer, uint64_t before,
                        struct undo_parts *parts)
{
    unhold(undo, before);
    if (!parts)
        return;
    for (uint32_t i = 0; i < parts->count; i++)
        unhold(undo, parts->entry[i]);
    parts->retired.next = layer->parts_done;
    layer->parts_done = &parts->retired;
}

/* Into a layer that does not have it. */
static enum fkv_error map_add(struct undo *undo, struct undo_layer *layer, struct undo_map *map)
{
    struct undo_node made = {.hash = hash_of_sector(map->sector), .before = (uintptr_t)map};
    enum fkv_error error = table_add(undo, layer, &layer->mapped, made);
    if (error)
        return error;
    map->next = layer->maps;
    layer->maps = map;
    took(undo, layer, sizeof *map);
    return FKV_OK;
}

/* ---------------------------------------------------------------- layers */

struct undo_layer *undo_open(struct undo *undo)
{
    struct undo_layer *layer = memory_new(sizeof *layer);
    if (!layer)
        return NULL;
    took(undo, layer, sizeof *layer);
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
    layer->next_closed = undo->closed;
    if (layer->next_closed)
        layer->next_closed->previous_closed = layer;
    undo->closed = layer;
    while (undo->newest_open && !undo->newest_open->open)
        undo->newest_open = undo->newest_open->older;
}

/* Out of the list: only readers that are in it already still look. It is closed. */
static void take_out(struct undo *undo, struct undo_layer *layer)
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
    if (layer->next_closed)
        layer->next_closed->previous_closed = layer->previous_closed;
    if (layer->previous_closed)
        layer->previous_closed->next_closed = layer->next_closed;
    else
        undo->closed = layer->next_closed;
}

/* ---------------------------------------------------------------- settling */

/* One of a key goes from a layer into another: the older one says what both see. */
static bool merge_key(struct undo *undo, const struct undo_node *node, struct undo_layer *from,
                      struct undo_layer *to)
{
    struct undo_node *there = table_find(&to->keys, node->hash);
    if (there && !undo->upwards) {
        release_key(undo, from, node->before, node->parts);
        return true;
    }
    if (!there) {
        struct undo_node made = {.hash = node->hash, .before = node->before, .parts = node->parts};
        if (table_add(undo, to, &to->keys, made))
            return false;
    } else { /* no reader gets to see it: they find that of the older layer first */
        release_key(undo, to, there->before, there->parts);
        there->before = node->before;
        there->parts = node->parts;
    }
    gave(undo, from, parts_bytes(node->parts));
    took(undo, to, parts_bytes(node->parts));
    return true;
}

/* Some keys of a layer go into another, or are forgotten (NULL). False if there is no memory. What
 * is done is put aside, for it would be passed again with each few that follow. */
static bool settle_keys(struct undo *undo, struct undo_layer *from, struct undo_layer *to,
                        uint32_t *budget)
{
    struct undo_slab *slab;
    while (*budget && (slab = from->keys.slabs)) {
        for (; slab->done < slab->count && *budget; slab->done++, --*budget) {
            const struct undo_node *node = &slab->nodes[slab->done];
            if (!to)
                release_key(undo, from, node->before, node->parts);
            else if (!merge_key(undo, node, from, to))
                return false;
        }
        if (slab->done == slab->count) {
            from->keys.slabs = slab->next;
            slab->next = from->keys.done;
            from->keys.done = slab;
        }
    }
    return true;
}

/* The same for maps: those go on which the older snapshot sees, too. What does not stays with its
 * layer, where readers may still come upon it. */
static bool settle_maps(struct undo *undo, struct undo_layer *from, struct undo_layer *to,
                        uint32_t *budget)
{
    for (struct undo_map *map; *budget && (map = from->maps); --*budget) {
        struct undo_map *next = map->next;
        bool needed = to && undo_sees(to, map->birth) &&
                      !table_find(&to->mapped, hash_of_sector(map->sector));
        if (needed && map_add(undo, to, map))
            return false;
        from->maps = next;
        if (needed) {
            gave(undo, from, sizeof *map);
        } else {
            map->next = from->done;
            from->done = map;
            sectors_unhold(undo->sectors, map->sector);
        }
    }
    return true;
}

/* All keys of this layer are in the newer one too, which has no other reader than this has: so it
 * gets them. Readers who still are in the old nodes, or find the way to the newer layer, are right,
 * too. */
static void take_over_keys(struct undo *undo, struct undo_layer *layer, struct undo_layer *newer)
{
    struct undo_table *keys = &layer->keys;
    struct undo_slab *old = keys->done;
    uint64_t old_bytes = keys->bytes;
    for (uint32_t i = 0; i < sizeof keys->root / sizeof keys->root[0]; i++)
        __atomic_store_n(&keys->root[i], newer->keys.root[i], __ATOMIC_RELEASE);
    keys->slabs = newer->keys.slabs;
    keys->done = NULL;
    keys->count = newer->keys.count;
    keys->bytes = newer->keys.bytes;
    newer->keys.slabs = NULL;
    newer->keys.done = old;
    newer->keys.bytes = old_bytes;
    gave(undo, layer, old_bytes);
    took(undo, layer, keys->bytes);
    gave(undo, newer, keys->bytes);
    took(undo, newer, old_bytes);
}

/* A closed layer with an open one before it; the oldest of all is open. */
static struct undo_layer *next_to_merge(const struct undo *undo)
{
    struct undo_layer *layer = undo->closed;
    while (layer && !layer->older->open)
        layer = layer->older;
    return layer;
}

static struct undo_layer *forget_some(struct undo *undo, uint32_t budget)
{
    struct undo_layer *layer = undo->forgetting;
    settle_keys(undo, layer, NULL, &budget);
    settle_maps(undo, layer, NULL, &budget);
    if (!budget)
        return NULL;
    undo->forgetting = NULL;
    undo->bytes -= layer->bytes;
    return layer;
}

bool undo_settle(struct undo *undo, struct undo_layer **gone)
{
    uint32_t budget = SETTLE_AT_ONCE;
    *gone = NULL;
    if (!undo->forgetting && undo->oldest && !undo->oldest->open) {
        undo->forgetting = undo->oldest;
        if (undo->merging &&
            undo->merging->older == undo->oldest) /* nobody needs that one either */
            undo->merging = NULL;
        take_out(undo, undo->oldest);
    }
    if (undo->forgetting) {
        *gone = forget_some(undo, budget);
        return true;
    }
    if (!undo->merging && (undo->merging = next_to_merge(undo)))
        undo->upwards = undo->merging->keys.count > undo->merging->older->keys.count;
    struct undo_layer *newer = undo->merging, *older = newer ? newer->older : NULL;
    if (!newer ||
        !settle_keys(undo, undo->upwards ? older : newer, undo->upwards ? newer : older, &budget) ||
        !settle_maps(undo, newer, older, &budget))
        return false;
    if (budget) { /* that was the last of it */
        if (undo->upwards)
            take_over_keys(undo, older, newer);
        undo->merging = NULL;
        take_out(undo, newer);
        undo->bytes -= newer->bytes;
        *gone = newer;
    }
    return true;
}

static void free_slabs(struct undo_slab *slab)
{
    for (struct undo_slab *next; slab; slab = next) {
        next = slab->next;
        memory_free(slab);
    }
}

static void free_maps(struct undo_map *map)
{
    for (struct undo_map *next; map; map = next) {
        next = map->next;
        memory_free(map);
    }
}

void undo_free(struct undo_layer *layer)
{
    for (const struct undo_slab *slab = layer->keys.slabs; slab; slab = slab->next)
        for (uint32_t i = slab->done; i < slab->count; i++)
            memory_free(slab->nodes[i].parts);
    for (struct retired_block *block = layer->parts_done, *next; block; block = next) {
        next = block->next;
        memory_free(block);
    }
    free_maps(layer->maps);
    free_maps(layer->done);
    free_slabs(layer->keys.slabs);
    free_slabs(layer->keys.done);
    free_slabs(layer->mapped.slabs);
    memory_free(layer);
}

static void retire_slabs(struct undo *undo, struct undo_slab *slab)
{
    for (struct undo_slab *next; slab; slab = next) {
        next = slab->next;
        reclaim_block(undo->reclaim, &slab->retired);
    }
}

/* All that it had is settled. */
void undo_retire(struct undo *undo, struct undo_layer *layer)
{
    for (struct undo_map *map = layer->done, *next; map; map = next) {
        next = map->next;
        reclaim_block(undo->reclaim, &map->retired);
    }
    for (struct retired_block *block = layer->parts_done, *next; block; block = next) {
        next = block->next;
        reclaim_block(undo->reclaim, block);
    }
    retire_slabs(undo, layer->keys.done);
    retire_slabs(undo, layer->mapped.slabs);
    reclaim_block(undo->reclaim, &layer->retired);
}

void undo_drop(struct undo *undo)
{
    for (struct undo_layer *layer = undo->oldest, *newer; layer; layer = newer) {
        newer = layer->newer;
        undo_free(layer);
    }
    if (undo->forgetting)
        undo_free(undo->forgetting);
    undo->oldest = undo->newest = undo->newest_open = undo->forgetting = NULL;
}

/* ---------------------------------------------------------------- leaving */

/* Has it been left since the newest snapshot? Layers that are newer are closed ones. */
static bool is_left(const struct undo *undo, bool key, struct hash128 hash)
{
    for (const struct undo_layer *layer = undo->newest_open; layer; layer = layer->newer)
        if (table_find(key ? &layer->keys : &layer->mapped, hash))
            return true;
    return false;
}

bool undo_wants_key(const struct undo *undo, struct hash128 hash)
{
    return undo->newest_open && !is_left(undo, true, hash);
}

struct undo_parts *undo_parts_new(uint32_t count)
{
    struct undo_parts *parts = memory_new(sizeof(struct undo_parts) + count * sizeof(uint64_t));
    if (parts)
        parts->count = count;
    return parts;
}

enum fkv_error undo_key(struct undo *undo, struct hash128 hash, uint64_t before,
                        struct undo_parts *parts)
{
    assert(undo_wants_key(undo, hash));
    struct undo_layer *layer = undo->newest_open;
    if (undo->merging && undo->upwards && undo->merging->older == layer)
        layer = undo->merging; /* all that comes after is merged already */
    struct undo_node made = {.hash = hash, .before = before, .parts = parts};
    enum fkv_error error = table_add(undo, layer, &layer->keys, made);
    if (error)
        return error;
    took(undo, layer, parts_bytes(parts));
    hold(undo, before);
    for (uint32_t i = 0; parts && i < parts->count; i++)
        hold(undo, parts->entry[i]);
    return FKV_OK;
}

bool undo_wants_map(const struct undo *undo, uint32_t sector)
{
    return undo->newest_open && !is_left(undo, false, hash_of_sector(sector));
}

/* For the newest snapshot. The memory is the undo's if there is no error. */
enum fkv_error undo_map(struct undo *undo, struct undo_map *map, uint32_t sector)
{
    map->sector = sector;
    map->birth = sector_view(undo->sectors, sector)->sequence;
    enum fkv_error error = map_add(undo, undo->newest_open, map);
    if (!error)
        sectors_hold(undo->sectors, sector);
    return error;
}

/* ---------------------------------------------------------------- finding */

static const struct undo_node *find(const struct undo_layer *layer, bool key, struct hash128 hash)
{
    while (layer) {
        const struct undo_layer *newer = __atomic_load_n(&layer->newer, __ATOMIC_ACQUIRE);
        const struct undo_node *node = table_find(key ? &layer->keys : &layer->mapped, hash);
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

const struct undo_parts *undo_find_parts(const struct undo_layer *layer, struct hash128 hash)
{
    const struct undo_node *node = find(layer, true, hash);
    return node ? node->parts : NULL;
}

const struct undo_map *undo_find_map(const struct undo_layer *layer, uint32_t sector)
{
    const struct undo_node *node = find(layer, false, hash_of_sector(sector));
    return node ? (const struct undo_map *)(uintptr_t)node->before : NULL;
}
