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
 * What an undo leads to is HELD: a sector that is freed is not used again while an undo in any
 * layer leads to a record in it, or has its map; each sector counts these. An undo is in a layer
 * for as long as an open snapshot sees it and no longer, so that is true of sectors, too. It would
 * not do to hold sectors for snapshots of certain moments: what a snapshot sees may have been moved
 * since, to a sector that was opened later.
 *
 * Readers take no lock: a layer is a trie that only grows. A reader must look at the index before
 * the layers: the writer publishes in the other order. A layer that is closed is merged with the
 * one before it, a few undos at a time, and taken out of the list; if there is none before it,
 * nobody needs it. A reader must load `newer` before it looks into a layer, for that reason.
 *
 * Merging goes from the layer that has fewer undos to the one that has more, so that an undo is
 * merged a logarithmic number of times at most, in whatever order snapshots are closed. If the
 * closed layer has more it gets what the one before it has, which goes before its own, and in the
 * end hands all over to that one. Maps always go to the older one: it may not see all of them.
 *
 * The writer lock protects everything here, but for readers in an RCU read section.
 */
#ifndef FKV_UNDO_H
#define FKV_UNDO_H

#include "hash.h"
#include "reclaim.h"

/*
 * The parts of a large value: they die when the entry of their key changes, and at no other time,
 * so they go with its undo. (If each had its own, all pieces that ever came and went would have
 * one: no other value has their keys.)
 */
struct undo_parts {
    struct retired_block retired;
    uint32_t count;
    /* By their numbers: the entry of a piece, the first address of a sector; 0: there is none. */
    uint64_t entry[];
};

struct undo_node {
    struct hash128 hash;
    uint64_t before;          /* the entry, 0 if the key was absent; or a struct undo_map */
    struct undo_parts *parts; /* of the value that the entry leads to; NULL: it has none */
    struct undo_node *child[4];
};

/* A trie that only grows, by the hash: 8 bits at the root, then 2 at a time. */
struct undo_table {
    struct undo_node *root[256];
    struct undo_slab *slabs; /* of its nodes */
    struct undo_slab *done;  /* the same: those whose nodes are merged, or forgotten */
    uint64_t count;          /* of nodes */
    uint64_t bytes;          /* of slabs */
};

/* The map of a values sector. It says itself when that began, so that it goes no further back than
 * to the first snapshot that sees it. */
struct undo_map {
    struct retired_block retired;
    struct undo_map *next;            /* in the same layer */
    uint64_t birth;                   /* the sequence of the sector */
    uint32_t sector;                  /* that is held */
    uint64_t bits[SECTOR_CELLS / 64]; /* both pages */
};

struct undo_layer {
    struct retired_block retired;
    struct undo_layer *older, *newer;
    struct undo_layer *next_closed, *previous_closed;
    bool open;
    struct undo_table keys;
    struct undo_table mapped; /* where `maps` are found, by the sector */
    struct undo_map *maps;
    struct undo_map *done;            /* those that hold nothing any more */
    struct retired_block *parts_done; /* the same of parts */
    uint64_t bytes;                   /* of memory, all of that */
    /* The moment: the last commit, and what was in the queue. */
    uint64_t commit;
    uint64_t sequence_end;  /* values sectors below this sequence */
    uint64_t tail_sequence; /* the open one's, 0 if none was open; */
    uint32_t tail_cell;     /* its records end here, */
    bool tail_dead;         /* and all of them were dead: it may have been freed since */
    uint32_t sector_count;  /* all have lower numbers than this */
};

struct undo {
    struct reclaim *reclaim;
    struct sectors *sectors;
    struct undo_layer *oldest, *newest;
    struct undo_layer *newest_open; /* NULL: no snapshot is open, and nothing is left for any */
    struct undo_layer *closed;      /* a list of those that are */
    struct undo_layer *merging;     /* one of them that is being merged with the one before it; */
    bool upwards;                   /* into it, then */
    struct undo_layer *forgetting;  /* out of the list, and being gone through */
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
 * merged. False once nothing is left, or nothing can be done for want of memory. The writer lock
 * may be released between calls. *gone: a layer that is out of the list, or NULL; to be freed after
 * a grace period, by undo_free, without the lock; or to be given to undo_retire.
 */
bool undo_settle(struct undo *undo, struct undo_layer **gone);
void undo_free(struct undo_layer *layer);
void undo_retire(struct undo *undo, struct undo_layer *layer);

/* Does a snapshot see records of a values sector of this sequence, if there are any that have not
 * died before it? */
static inline bool undo_sees(const struct undo_layer *layer, uint64_t sequence)
{
    return sequence && sequence < layer->sequence_end &&
           !(layer->tail_dead && sequence == layer->tail_sequence);
}

/* Before the entry of a key changes: is it to be left? And leave it. The parts, if there are any,
 * are the undo's if there is no error. */
bool undo_wants_key(const struct undo *undo, struct hash128 hash);
struct undo_parts *undo_parts_new(uint32_t count);
enum fkv_error undo_key(struct undo *undo, struct hash128 hash, uint64_t before,
                        struct undo_parts *parts);
/* Before a record of a sector dies: is its map to be left? And leave it; `bits` are filled in. */
bool undo_wants_map(const struct undo *undo, uint32_t sector);
enum fkv_error undo_map(struct undo *undo, struct undo_map *map, uint32_t sector);

/* ---- for readers, in a read section */

/* The entry that the key had; false if it has not changed since. */
bool undo_find_key(const struct undo_layer *layer, struct hash128 hash, uint64_t *before);
/* The parts of the large value that the key had; NULL if that has not changed since. */
const struct undo_parts *undo_find_parts(const struct undo_layer *layer, struct hash128 hash);
/* The map that the sector had; NULL if it has not changed since. */
const struct undo_map *undo_find_map(const struct undo_layer *layer, uint32_t sector);

/* All memory, at closing: nobody looks any more. */
void undo_drop(struct undo *undo);

#endif
