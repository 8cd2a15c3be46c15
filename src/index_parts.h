/*
 * What the files of the index share, and nobody else uses:
 *
 *   index.c           searching, setting, removing
 *   index_segments.c  segments: taken, built anew as they grow, split and merge; the directory
 *   index_limit.c     an index that is larger than its memory
 */
#ifndef FKV_INDEX_PARTS_H
#define FKV_INDEX_PARTS_H

#include "index_limit.h"
#include "index_search.h"

/* A segment grows beyond this many slots in use of each page's 256: 91%. Just after most segments
 * have split, that makes 19.8 bytes a key, with all tables; with 88% it was 20.3. */
enum { SLOTS_USED_MAX = 232 };

static inline uint32_t *segment_link(const struct index *index, uint32_t id)
{
    return (uint32_t *)index->links.base + id;
}

static inline struct format_segment *directory_write(struct index *index, uint32_t id)
{
    struct format_segment *entries =
        pages_write(index->pages, SPACE_DIRECTORY, id / SEGMENTS_PER_PAGE);
    return &entries[id % SEGMENTS_PER_PAGE];
}

static inline const struct format_segment *directory_read(const struct index *index, uint32_t id)
{
    const struct format_segment *entries =
        pages_read(index->pages, SPACE_DIRECTORY, id / SEGMENTS_PER_PAGE);
    return &entries[id % SEGMENTS_PER_PAGE];
}

static inline struct moves *moves_of(const struct index *index, uint32_t id)
{
    return (struct moves *)index->limit.moves.base + id;
}

/* find_segment for the writer, who alone changes the directory. */
static inline uint32_t segment_id(const struct index *index, struct hash128 hash)
{
    return index->directory->segment[directory_slot(index->directory, hash)];
}

/* The bytes of a slot, to change: marks its page as changed, and what of it. */
static inline struct slot *slot_write(struct index *index, const struct found *found)
{
    pages_write(index->pages, SPACE_INDEX, directory_read(index, found->id)->page[found->page]);
    pages_note(index->pages, found->slot);
    return found->slot;
}

static inline void slot_move(struct index *index, const struct found *found, uint64_t to)
{
    struct slot *slot = slot_write(index, found);
    __atomic_store_n(&slot->entry, entry_moved(slot->entry, to), __ATOMIC_RELEASE);
}

/* Are there too many pages in memory, and is there one to be taken out, as far as is known? */
static inline bool index_is_crowded(const struct index *index)
{
    return index->limit.frames_max &&
           atomic_load_explicit(&index->pages->space[SPACE_INDEX].frame_count,
                                memory_order_relaxed) >
               atomic_load_explicit(&index->limit.trim_at, memory_order_relaxed);
}

/* ---- index_segments.c */
/* Bring all pages of a segment into memory. */
enum fkv_error index_segment_load(struct index *index, uint32_t id);
/* The directory has counted fewer. */
enum fkv_error index_too_many_slots(const struct index *index, uint32_t id);
/* Build a segment anew, of so many pages; or make room in it, by a page or by splitting it. */
enum fkv_error index_resize(struct index *index, uint32_t id, uint32_t pages);
enum fkv_error index_grow(struct index *index, uint32_t id);

/* ---- index_limit.c */
void index_limit_drop(struct index *index);
/* All pages of the segment have taken their moves. What is left then is nobody's, in an index that
 * is damaged. load_lock. */
void index_moves_end(struct index *index, uint32_t id);

#endif
