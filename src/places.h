/*
 * places: where in the file pages can be written.
 *
 * Pages and nodes lie in sectors that have nothing else. Which of a sector's places are in use is
 * known in memory only: the trees say it when a store is opened (place_claim). A page is never
 * written where it lies, so a place goes through these states:
 *
 *   free      taken by place_take: for the next checkpoint, or for a page that is spilled
 *   used      a tree leads to it: that of the last checkpoint, or of the next
 *   retired   only the last checkpoint's tree does; free once the next one is durable
 *   spilled   used, but in no tree of a checkpoint yet (pages_spill): free as soon as it is not
 *             needed any more, or to be written once more
 *
 * A sector of which nothing is used goes back to where it came from. All of it is under the writer
 * lock.
 */
#ifndef FKV_PLACES_H
#define FKV_PLACES_H

#include <stdbool.h>

#include "error.h"
#include "format.h"
#include "memory.h"

/* A sector that holds pages and nodes. */
struct page_sector {
    uint32_t sector;
    uint32_t used_count;
    uint64_t used[SECTOR_PAGES / 64];    /* in use by the last checkpoint, or written by the next */
    uint64_t retired[SECTOR_PAGES / 64]; /* of them, free once the next checkpoint is durable */
    uint64_t spilled[SECTOR_PAGES / 64]; /* of them, in no tree of a checkpoint: to be used again */
};

/* Where sectors come from, and go. */
struct sector_source {
    enum fkv_error (*take)(void *context, uint32_t *sector);
    void (*give)(void *context, uint32_t sector);
    void *context;
};

struct places {
    const char *path; /* of the store, for errors */
    struct sector_source source;
    struct page_sector *sectors;
    uint32_t sector_count, sector_room;
    struct reservation sector_index; /* uint32_t a sector of the file: 1 + index in sectors[] */
    uint64_t used_count;             /* of all sectors */
    uint32_t fill;       /* index in sectors[] that new pages go to; sector_count: none */
    uint32_t fill_place; /* in it, where a free one is looked for */
    bool fresh_sectors;  /* most pages move: into empty sectors, so that the old ones come free */
};

enum fkv_error places_make(struct places *places, const char *path, struct sector_source source);
void places_drop(struct places *places);
uint64_t places_memory_bytes(const struct places *places);

/* Which of `sectors` a sector of the file is: 1 + the index; 0: it holds no pages. */
static inline uint32_t places_sector_at(const struct places *places, uint64_t sector)
{
    const struct reservation *index = &places->sector_index;
    bool known = (sector + 1) * sizeof(uint32_t) <= index->backed_bytes;
    return known ? ((const uint32_t *)index->base)[sector] : 0;
}

/* Places in these sectors that are free. */
static inline uint64_t places_free(const struct places *places)
{
    return (uint64_t)places->sector_count * SECTOR_PAGES - places->used_count;
}

/* Places are named by their location, in pages of the file; 0 is none. */

/* A free place; it is used from now on. Takes a sector where there is none. */
enum fkv_error place_take(struct places *places, uint64_t *location);
/* The last checkpoint's tree has it, and the next one's has not. */
void place_retire(struct places *places, uint64_t location);
/* No tree of a checkpoint has it: it is free at once. */
void place_give(struct places *places, uint64_t location);
/* A page was spilled there. Was one, so that place_give is what its end is? */
void place_note_spilled(struct places *places, uint64_t location);
bool place_is_spilled(const struct places *places, uint64_t location);
/* A tree of the file that is opened refers to it; twice, or from outside the file, is damage. */
enum fkv_error place_claim(struct places *places, uint64_t location, uint64_t sector_count);

/* A checkpoint begins, and has what was spilled in its tree; `pages` are to be written. */
void places_checkpoint_begin(struct places *places, uint64_t pages);
/* It is durable: what is retired is free. */
void places_checkpoint_done(struct places *places);
/* It has failed. */
void places_checkpoint_abandon(struct places *places);
/* Look for a sector anew for what is written next. */
static inline void places_choose_again(struct places *places)
{
    places->fill = places->sector_count;
}
/* The highest sector that has anything of the tree that was captured. */
uint32_t places_last_sector(const struct places *places);

#endif
