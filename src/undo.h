/*
 * undo: what the writer leaves behind for snapshots.
 *
 * Neither the index nor the deletion maps have versions. While a snapshot is open, the writer
 * leaves an UNDO before it changes the entry of a key: the entry that the key had. And before the
 * first record of a sector dies, the sector's map. Each snapshot has a LAYER of these: the changes
 * between its moment and the next snapshot's. What a snapshot sees of a key is the first undo in
 * its own layer or a newer one; where there is none, nothing has changed, and the index has the
 * entry.
 *
 *     older  ...  layer 7 (open)  layer 8 (closed)  layer 9 (open)   <- new undos
 *
 * A layer has at most one undo a key: the first change after its moment counts. It is left before
 * anything is changed, while a commit prepares, so it may fail there; a commit that then fails does
 * no harm, for what it says is true.
 *
 * Readers take no lock: a layer is a trie that only grows. A reader must look at the index before
 * the layers: the writer publishes in the other order. A layer that is closed is merged into the
 * one before it, a few undos at a time, and taken out of the list; if there is none before it,
 * nobody needs it. A reader must load `newer` before it looks into a layer, for that reason.
 *
 * The writer lock protects everything here, but for readers in an RCU read section.
 */
#ifndef FKV_UNDO_H
#define FKV_UNDO_H

#include "hash.h"
#include "reclaim.h"

struct undo_node {
    struct hash128 hash;
    uint64_t before; /* the entry, 0 if the key was absent; or a struct undo_map */
    struct undo_node *child[4];
};

/* A trie that only grows, by the hash: 8 bits at the root, then 2 at a time. */
struct undo_table {
    struct undo_node *root[256];
    struct undo_slab *slabs; /* of its nodes */
};

/* The deletion map of a sector, both pages. */
struct undo_map {
    struct retired_block retired;
    struct undo_map *next; /* in the same layer, or on the way out */
    uint32_t sector;
    uint64_t bits[SECTOR_CELLS / 64];
};

struct undo_layer {
    struct retired_block retired;
    struct undo_layer *older, *newer;
    uint64_t number; /* counts snapshots */
    bool open;
    struct undo_table keys, sectors;
    struct undo_slab *merged; /* of the keys': all in them is in the layer before too */
    struct undo_map *maps;
    uint64_t bytes; /* of memory, all of that */
    /* The moment: what was in the queue. */
    uint64_t sequence_end;  /* values sectors below this sequence */
    uint64_t tail_sequence; /* the open one's, 0 if none was open; */
    uint32_t tail_cell;     /* its records end here */
    uint32_t sector_count;  /* all have lower numbers than this */
};

struct undo {
    struct reclaim *reclaim;
    struct undo_layer *oldest, *newest;
    struct undo_layer *newest_open; /* NULL: no snapshot is open, and nothing is left for any */
    uint64_t number;                /* of the last snapshot */
    uint32_t open_count;
    uint64_t bytes; /* of memory */
};

static inline bool undo_is_wanted(const struct undo *undo)
{
    return __builtin_expect(undo->newest_open != NULL, 0);
}

/* A layer for a snapshot of this moment; its moment is the caller's to fill in. */
struct undo_layer *undo_open(struct undo *undo);

/* The snapshot of this layer is closed: nothing more is left for it. */
void undo_close(struct undo *undo, struct undo_layer *layer);
/*
 * Do a part of what closing leaves to be done: layers that nobody needs are taken out, others
 * merged. False once nothing is left, or nothing can be done for want of memory. For one thread at
 * a time, which may release the writer lock between calls. *gone: a layer that is out of the list,
 * or NULL; to be freed after a grace period, by undo_free, without the lock; or to be given to
 * undo_retire.
 */
bool undo_settle(struct undo *undo, struct undo_layer **gone);
void undo_free(struct undo_layer *layer);
void undo_retire(struct undo *undo, struct undo_layer *layer);

/* The oldest snapshot that is open; 0 if none is. */
uint64_t undo_oldest(const struct undo *undo);

/* Before the entry of a key changes. *left: it was left now, and not before. */
enum fkv_error undo_key(struct undo *undo, struct hash128 hash, uint64_t before, bool *left);
/* Before a record of a sector dies: is its map to be left? And leave it, filled in but for the
 * members that are the undo's. */
bool undo_wants_map(const struct undo *undo, uint32_t sector);
enum fkv_error undo_map(struct undo *undo, struct undo_map *map);

/* ---- for readers, in a read section */

/* The entry that the key had; false if it has not changed since. */
bool undo_find_key(const struct undo_layer *layer, struct hash128 hash, uint64_t *before);
/* The map that the sector had; NULL if it has not changed since. */
const struct undo_map *undo_find_map(const struct undo_layer *layer, uint32_t sector);

/* All memory, at closing: nobody looks any more. */
void undo_drop(struct undo *undo);

#endif
