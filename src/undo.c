#include "undo.h"

#include "index.h"

enum { SLAB_NODES_MIN = 8, SLAB_NODES_MAX = 290, SETTLE_AT_ONCE = 128 }; /* of 16 KiB at most */

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
static enum fkv_error table_add(struct undo *undo, struct undo_layer *layer, bool key,
                                struct hash128 hash, uint64_t before)
{
    struct undo_table *table = key ? &layer->keys : &layer->held;
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
    node->hash = hash;
    node->before = before;
    struct undo_node *none;
    struct undo_node **place = (struct undo_node **)place_of(table, hash, &none);
    __atomic_store_n(place, node, __ATOMIC_RELEASE);
    return FKV_OK;
}

/* Sectors are spread over a table by a multiplication. */
static struct hash128 hash_of_sector(uint32_t sector)
{
    return (struct hash128){.hi = (sector + UINT64_C(1)) * 0x9e3779b97f4a7c15ull, .lo = sector};
}

/* The id of a large value is more than any sector's number. */
static struct hash128 hash_of_piece(struct hash128 hash, uint64_t id)
{
    return (struct hash128){.hi = hash.hi, .lo = id};
}

/* ---------------------------------------------------------------- what is held */

static void hold_record(struct undo *undo, uint64_t entry)
{
    if (entry)
        sectors_hold(undo->sectors, (uint32_t)(entry_address(entry) / SECTOR_CELLS));
}

static void release_record(struct undo *undo, uint64_t entry)
{
    if (entry)
        sectors_unhold(undo->sectors, (uint32_t)(entry_address(entry) / SECTOR_CELLS));
}

static size_t hold_bytes(const struct undo_hold *hold)
{
    return hold->kind == UNDO_MAP     ? sizeof(struct undo_map)
           : hold->kind == UNDO_PIECE ? sizeof(struct undo_piece)
                                      : sizeof *hold;
}

/* Into a layer that does not have it. */
static enum fkv_error hold_add(struct undo *undo, struct undo_layer *layer, struct undo_hold *hold)
{
    enum fkv_error error = hold->kind == UNDO_LARGE
                               ? FKV_OK
                               : table_add(undo, layer, false, hold->hash, (uintptr_t)hold);
    if (error)
        return error;
    hold->next = layer->holds;
    layer->holds = hold;
    took(undo, layer, hold_bytes(hold));
    return FKV_OK;
}

static bool is_seen(const struct undo_layer *layer, const struct undo_hold *hold)
{
    return hold->kind == UNDO_PIECE ? hold->birth <= layer->commit : undo_sees(layer, hold->birth);
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

/* One of a key goes into a layer: the older one says what both see. */
static bool merge_key(struct undo *undo, const struct undo_node *node, struct undo_layer *to)
{
    struct undo_node *there = table_find(&to->keys, node->hash);
    if (!there)
        return table_add(undo, to, true, node->hash, node->before) == FKV_OK;
    uint64_t unneeded = node->before;
    if (undo->upwards) { /* no reader gets to see it: they find that of the older layer first */
        unneeded = there->before;
        there->before = node->before;
    }
    release_record(undo, unneeded);
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
                release_record(undo, node->before);
            else if (!merge_key(undo, node, to))
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

/* The same for what is held: that goes on which the older snapshot sees, too. What does not stays
 * with its layer, where readers may still come upon it. */
static bool settle_holds(struct undo *undo, struct undo_layer *from, struct undo_layer *to,
                         uint32_t *budget)
{
    for (struct undo_hold *hold; *budget && (hold = from->holds); --*budget) {
        struct undo_hold *next = hold->next;
        bool needed = to && is_seen(to, hold) &&
                      (hold->kind == UNDO_LARGE || !table_find(&to->held, hold->hash));
        if (needed && hold_add(undo, to, hold))
            return false;
        from->holds = next;
        if (needed) {
            gave(undo, from, hold_bytes(hold));
        } else {
            hold->next = from->done;
            from->done = hold;
            sectors_unhold(undo->sectors, hold->sector);
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
    settle_holds(undo, layer, NULL, &budget);
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
        !settle_holds(undo, newer, older, &budget))
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

static void free_holds(struct undo_hold *hold)
{
    for (struct undo_hold *next; hold; hold = next) {
        next = hold->next;
        memory_free(hold);
    }
}

void undo_free(struct undo_layer *layer)
{
    free_holds(layer->holds);
    free_holds(layer->done);
    free_slabs(layer->keys.slabs);
    free_slabs(layer->keys.done);
    free_slabs(layer->held.slabs);
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
    for (struct undo_hold *hold = layer->done, *next; hold; hold = next) {
        next = hold->next;
        reclaim_block(undo->reclaim, &hold->retired);
    }
    retire_slabs(undo, layer->keys.done);
    retire_slabs(undo, layer->held.slabs);
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
        if (table_find(key ? &layer->keys : &layer->held, hash))
            return true;
    return false;
}

bool undo_wants_key(const struct undo *undo, struct hash128 hash)
{
    return undo->newest_open && !is_left(undo, true, hash);
}

enum fkv_error undo_key(struct undo *undo, struct hash128 hash, uint64_t before)
{
    if (!undo_wants_key(undo, hash))
        return FKV_OK;
    struct undo_layer *layer = undo->newest_open;
    if (undo->merging && undo->upwards && undo->merging->older == layer)
        layer = undo->merging; /* all that comes after is merged already */
    enum fkv_error error = table_add(undo, layer, true, hash, before);
    if (!error)
        hold_record(undo, before);
    return error;
}

/* For the newest snapshot. The memory is the undo's if there is no error. */
static enum fkv_error leave_hold(struct undo *undo, struct undo_hold *hold, uint32_t sector)
{
    hold->sector = sector;
    enum fkv_error error = hold_add(undo, undo->newest_open, hold);
    if (!error)
        sectors_hold(undo->sectors, sector);
    return error;
}

enum fkv_error undo_large(struct undo *undo, uint32_t sector)
{
    struct undo_hold *hold = memory_new(sizeof *hold);
    if (!hold)
        return FKV_NO_MEMORY;
    hold->kind = UNDO_LARGE;
    hold->birth = sector_view(undo->sectors, sector)->sequence;
    return leave_hold(undo, hold, sector);
}

enum fkv_error undo_piece(struct undo *undo, struct hash128 hash, uint64_t id, uint64_t entry)
{
    uint64_t commit = id >> LARGE_NUMBER_BITS;
    struct hash128 by = hash_of_piece(hash, id);
    if (!undo->newest_open || commit > undo->newest_open->commit || is_left(undo, false, by))
        return FKV_OK;
    struct undo_piece *piece = memory_new(sizeof *piece);
    if (!piece)
        return FKV_NO_MEMORY;
    *piece = (struct undo_piece){.hold = {.hash = by, .birth = commit, .kind = UNDO_PIECE},
                                 .entry = entry};
    enum fkv_error error =
        leave_hold(undo, &piece->hold, (uint32_t)(entry_address(entry) / SECTOR_CELLS));
    if (error)
        memory_free(piece);
    return error;
}

bool undo_wants_map(const struct undo *undo, uint32_t sector)
{
    return undo->newest_open && !is_left(undo, false, hash_of_sector(sector));
}

enum fkv_error undo_map(struct undo *undo, struct undo_map *map, uint32_t sector)
{
    map->hold.hash = hash_of_sector(sector);
    map->hold.kind = UNDO_MAP;
    map->hold.birth = sector_view(undo->sectors, sector)->sequence;
    return leave_hold(undo, &map->hold, sector);
}

/* ---------------------------------------------------------------- finding */

static const struct undo_node *find(const struct undo_layer *layer, bool key, struct hash128 hash)
{
    while (layer) {
        const struct undo_layer *newer = __atomic_load_n(&layer->newer, __ATOMIC_ACQUIRE);
        const struct undo_node *node = table_find(key ? &layer->keys : &layer->held, hash);
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

bool undo_find_piece(const struct undo_layer *layer, struct hash128 hash, uint64_t id,
                     uint64_t *entry)
{
    const struct undo_node *node = find(layer, false, hash_of_piece(hash, id));
    if (node)
        *entry = ((const struct undo_piece *)(uintptr_t)node->before)->entry;
    return node != NULL;
}

const struct undo_map *undo_find_map(const struct undo_layer *layer, uint32_t sector)
{
    const struct undo_node *node = find(layer, false, hash_of_sector(sector));
    return node ? (const struct undo_map *)(uintptr_t)node->before : NULL;
}
