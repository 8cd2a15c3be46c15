/*
 * index_limit: an index of which only a part may be in memory (index_memory_max).
 *
 * What is in memory: pages that have a frame. Who asks for one that has none brings it in, reader
 * or writer. With more than frames_max of them, less what the deltas below take, the index is
 * crowded.
 *
 * What must leave (index_trim): at the end of a commit, while nothing is prepared, a hand goes
 * round over the segments and takes out what it meets. A page leaves by having its frame's number
 * cleared in the segment, which is all that readers look at, and in the page; the frame is free
 * after a grace period. Of the pages that it meets,
 *
 *   clean ones      leave (pages_evict): the file has them
 *   changed a bit   are parked (pages_park): what has changed stays in memory, as a delta, and is
 *                   laid over the page when that comes back. A quarter of the limit is for deltas
 *   changed a lot   are spilled (pages_spill, index_spill): written without a checkpoint, they are
 *                   clean then. So are parked ones, where too much is kept of them
 *   a checkpoint's  stay, until its header is durable: beside one nothing is parked or spilled, and
 *                   before one begins all that are parked are spilled (index_spill_parked)
 *
 * Moves wait (moves.h): if the page that says where a record is that the collector moves is not in
 * memory, the move is kept with the segment, and all pages of it that are not in memory count as
 * parked. Whichever comes back, or is spilled, takes those that are its own.
 *
 * The policy is here; how a page leaves and comes back is in pages_park.c. docs/architecture.md
 * says why it is as it is.
 */
#ifndef FKV_INDEX_LIMIT_H
#define FKV_INDEX_LIMIT_H

#include "index.h"

/* Of no more memory than this for pages; 0 no limit. Before the index is used. */
enum fkv_error index_limit(struct index *index, uint64_t bytes_max);

/* ---- for the writer, while nothing is prepared */

/* Take pages out of memory if there are too many. A bounded amount of work. */
void index_trim(struct index *index);
/* A checkpoint is over: pages that it has written can be taken out. */
void index_trim_again(struct index *index);
/* Have readers brought in more than the limit, and more than may leave before a grace period ends?
 * Then they should wait for that. */
bool index_is_overrun(const struct index *index);
/* Write pages to the file, some and a few for each of so many operations, if too much is kept of
 * those that are parked, or if so much of others was changed that there is no room: they are clean
 * then. Before index_trim. */
void index_spill(struct index *index, uint64_t operations);
/* A checkpoint is to begin, and none may be parked (pages.unparking): write some of them. One that
 * is damaged in the file is given up (pages_give_up); one that cannot be read (*unread) is the
 * first to be tried the next time. */
enum fkv_error index_spill_parked(struct index *index, uint32_t most, bool *none, bool *unread);

/* Frames that are left before there are twice as many as the limit. */
static inline uint64_t index_room(const struct index *index)
{
    uint64_t most = index->limit.frames_max ? 2 * (uint64_t)index->limit.frames_max : UINT64_MAX;
    uint64_t have =
        index->pages->space[SPACE_INDEX].frame_count + index->pages->parked_bytes / PAGE_BYTES;
    return have < most ? most - have : 0;
}

/* Are so many pages changed that a checkpoint should write them, for others to have room? Where
 * they can be spilled, only if that does not help. */
static inline bool index_is_dirty(const struct index *index)
{
    uint64_t dirty = pages_changed(index->pages, SPACE_INDEX);
    return index->limit.frames_max &&
           dirty > (pages_can_spill(index->pages) ? 2 * (uint64_t)index->limit.frames_max
                                                  : index->limit.frames_max / 2);
}

/* ---- index_move in two steps, for the collector */

/*
 * The first is as INDEX_LOOK, but that, if *waits, it may leave a page out of memory: then there is
 * no entry to be looked at, else *waits becomes false. All pages of the segment may count as
 * changed. So many `others` may have been prepared, and not made. The second cannot fail after it.
 */
enum fkv_error index_prepare_limited_move(struct index *index, struct hash128 hash, uint32_t others,
                                          uint64_t *entry, bool *waits);
bool index_make_limited_move(struct index *index, struct hash128 hash, uint64_t from, uint64_t to);

static inline enum fkv_error index_prepare_move(struct index *index, struct hash128 hash,
                                                uint32_t others, uint64_t *entry, bool *waits)
{
    *waits = *waits && index->limit.moves.base;
    return *waits ? index_prepare_limited_move(index, hash, others, entry, waits)
                  : index_prepare(index, hash, INDEX_LOOK, entry);
}
static inline bool index_make_move(struct index *index, struct hash128 hash, uint64_t from,
                                   uint64_t to)
{
    return index->limit.moves.base ? index_make_limited_move(index, hash, from, to)
                                   : index_move(index, hash, from, to);
}

#endif
