/*
 * pages: a paged store with atomic checkpoints, in the sectors of one file.
 *
 * Index, directory, sector table and deletion maps are arrays of 4 KiB pages ("spaces"). Pages
 * live in memory, in frames; the writer changes them there. A checkpoint writes every page that
 * has changed to a place that is not in use, then the nodes that lead to it, and last the header
 * with the new roots: shadow paging (Lorie, 1977). Until the header is durable the old tree is
 * untouched, so a crash at any moment leaves one whole tree or the other; no page is ever
 * overwritten where it lies, and a torn write cannot matter. Each reference carries the
 * checksum of what it refers to, so stale, misplaced and damaged pages are all found.
 *
 * A checkpoint holds the state at one moment exactly (the epoch), while the writer goes on: a page
 * that is changed again before it was captured is first copied. So the log may be replayed
 * over it as plain operations, once each.
 *
 * Threads: the writer lock of the store protects everything here, but for loading a page, which
 * readers do too and which has a lock of its own. It is not held while the device reads.
 *
 * Invariants:
 *  1. A page whose epoch is the current one has its bit in dirty[epoch & 1].
 *  2. While a checkpoint runs, dirty[other] marks the pages that it has still to capture; such a
 *     page has its content of that moment in `saved` if it changed since, else in `frame`.
 *  3. location and checksum are changed at capture alone, and by pages_spill and
 *     pages_spill_parked, which no checkpoint runs beside.
 *  4. A page that is not in a frame is neither dirty nor to be captured, unless it is parked: then
 *     it is dirty, and its delta over what the file has is what it holds.
 *  5. While a page is in no frame, location and checksum change only with load_lock, and no place
 *     that it has is written to.
 *  6. While a checkpoint runs no page is parked.
 *  7. Of a page in a frame that may be parked, the frame's units are those that differ from the
 *     file's, and perhaps others.
 */
#ifndef FKV_PAGES_H
#define FKV_PAGES_H

#include <pthread.h>
#include <stdatomic.h>

#include "frames.h"
#include "moves.h"
#include "os.h"
#include "places.h"
#include "planted.h"

#define SAVED_ZEROS UINT32_MAX

struct page {
    uint64_t location;
    uint64_t checksum;
    uint32_t frame; /* 0: not in memory */
    uint32_t saved; /* frame that holds the content for the running checkpoint; 0 none; or
                     * SAVED_ZEROS: it was zeros */
    uint32_t epoch; /* in which it last changed */
    uint16_t zero;  /* discarded, and not in a frame since: zeros, whatever lies at `location` */
    uint16_t known; /* was in a frame before it left memory, and could be read since */
};

/* 256 pages: what one node of the lowest level refers to. */
struct page_chunk {
    struct page page[NODE_FANOUT];
    uint64_t dirty[2][NODE_FANOUT / 64];
    struct delta **deltas; /* of parked pages; NULL: there was none. load_lock, and to change them
                              the writer lock too */
};

#define PAGE_LEVELS 4 /* of nodes above pages: 2^32 page numbers */

struct page_node {
    uint64_t location;
    uint64_t checksum;
    bool dirty;
};

struct page_space {
    struct page_chunk **chunks;
    uint32_t chunk_count, chunk_room;
    uint32_t page_count;          /* page numbers are below this */
    uint32_t dirty_count;         /* of dirty_pages, those of this space */
    _Atomic uint32_t frame_count; /* pages that are in a frame */
    _Atomic uint64_t loads;       /* pages that were read from the file, since open */
    /* level[k]: nodes k + 1 above the pages. They never move: the checkpoint writes their checksums
     * without the writer lock. */
    struct page_node *level[PAGE_LEVELS];
    struct reservation level_memory[PAGE_LEVELS];
};

/* What pages need from the layers above. */
struct page_environment {
    const struct os_ops *ops;
    struct sector_source sectors;
    /* Free a frame once no reader can be looking at it. */
    void (*retire_frame)(void *context, uint32_t frame);
    void *context;
};

struct pages {
    /* Set when they are made. */
    struct os_file *file;
    const char *path;
    struct page_environment environment;

    struct frame_arena frames; /* has a lock of its own */

    /* load_lock, for whoever brings a page into memory; it is taken after the writer lock. */
    pthread_mutex_t load_lock;
    uint32_t loading_frames; /* taken for pages that are being read */

    /* Writer lock; what of a page a reader changes, with load_lock. */
    struct page_space space[SPACE_COUNT];
    struct places places; /* where in the file they are, and can be */
    uint32_t epoch;
    uint32_t durable_epoch; /* pages that last changed before it are durable where they lie */
    uint64_t dirty_pages;   /* that the next checkpoint has to write */
    uint64_t pending_pages; /* that the running one has still to capture, or had when it failed */
    uint32_t node_count;    /* of all spaces and levels */

    /* Writer lock; pages_park.c. What is atomic changes with load_lock. */
    uint64_t spilled_nodes; /* that the next checkpoint has to write, for what was spilled */
    bool unparking;         /* a checkpoint waits for there to be no parked page */
    _Atomic uint32_t parked_pages;
    _Atomic uint64_t parked_bytes; /* memory of their deltas */
    _Atomic uint32_t delta_tables; /* chunks that have `deltas` */

    /* The running checkpoint; pages_checkpoint.c. Writer lock. */
    bool capturing;
    uint32_t cursor_space, cursor_at, cursor_level; /* level 0: pages, 1: nodes over them, ... */
    uint32_t captured_count[SPACE_COUNT];           /* page_count of the captured state */
    /* Of who does the next part of it, under the lock or not. */
    uint8_t *staging;
    struct page_target {
        uint64_t location;
        uint64_t seed;
        uint64_t *checksum; /* where the checksum goes */
    } * targets;
    uint32_t staged, summed; /* pages in it; those of them whose checksum is computed */
    uint32_t unwritten;      /* targets of a group that could not be written */
    _Atomic uint64_t written_bytes;
};

enum { STAGING_PAGES = 256 };

enum fkv_error pages_make(struct pages *pages, struct os_file *file, const char *path,
                          struct page_environment environment);
void pages_drop(struct pages *pages);

/* Frames (frames.h), for the writer. frame_new returns 0 when there is no memory. */
static inline uint32_t frame_new(struct pages *pages)
{
    return frames_take(&pages->frames, true);
}
static inline void frame_free(struct pages *pages, uint32_t frame)
{
    frames_give(&pages->frames, frame);
}
/* All of a list, linked by frame_link; `frame` may be 0. */
static inline void frames_free(struct pages *pages, uint32_t frame)
{
    frames_give_list(&pages->frames, frame);
}
/* See frames_reserve: a part of a commit may do without, the commit cannot. */
static inline enum fkv_error pages_reserve_frames(struct pages *pages, uint32_t count)
{
    return frames_reserve(&pages->frames, count);
}
/* All memory that is held here: of frames, free ones included, of the tables and lists. */
uint64_t pages_memory_bytes(struct pages *pages);
static inline void *frame_bytes(const struct pages *pages, uint32_t frame)
{
    return pages->frames.bytes.base + ((size_t)frame << 12);
}
static inline uint32_t *frame_link(const struct pages *pages, uint32_t frame)
{
    return frame_next(&pages->frames, frame);
}

static inline struct page *pages_find(const struct pages *pages, enum space space, uint32_t number)
{
    return &pages->space[space].chunks[number >> 8]->page[number & 255];
}

/* Its frame, 0 if it has none, for the writer without load_lock: a reader may bring it in just now,
 * and what it brought is seen then. */
static inline uint32_t page_frame(const struct page *page)
{
    return __atomic_load_n(&page->frame, __ATOMIC_ACQUIRE);
}

/* Make numbers below `count` valid; new pages are zeros without a frame. */
enum fkv_error pages_extend(struct pages *pages, enum space space, uint32_t count);

/* Bring a page into memory if it is not there. Any thread. */
enum fkv_error pages_load(struct pages *pages, enum space space, uint32_t number, uint32_t *frame);

/* The same for a caller that holds load_lock, and keeps it while the device reads. */
enum fkv_error pages_load_locked(struct pages *pages, enum space space, uint32_t number,
                                 uint32_t *frame);

/* A copy of a page as it lies in the file, that is to become the page's frame. */
struct page_copy {
    uint32_t frame; /* 0: none */
    bool read;
    enum fkv_error error; /* of reading it */
    uint64_t location, checksum;
};

/*
 * A step of loading a page, for a caller that holds load_lock and has looked for the page's frame
 * where it keeps it. True: the page is in *frame, or cannot be (*error). False: the lock was
 * released while the page was read; look again, then come again with the same copy. At last
 * pages_load_end, with the lock.
 */
bool pages_load_step(struct pages *pages, enum space space, uint32_t number, struct page_copy *copy,
                     uint32_t *frame, enum fkv_error *error);
void pages_load_end(struct pages *pages, struct page_copy *copy);

/*
 * Bring pages of a space into memory, those with their bits in `wanted`, sector by sector: many
 * times faster than one by one, and with helpers on several cores. A hint: what cannot be read, or
 * is damaged, stays out, and whoever needs it is told. Only when nobody else uses the pages.
 */
void pages_load_wanted(struct pages *pages, enum space space, const uint64_t *wanted, bool helpers);
#ifdef FKV_TESTING
extern uint32_t pages_a_loader;
#endif

/* Is all of the page in the file, so that its frame can go? Writer lock. */
static inline bool pages_is_clean(const struct pages *pages, const struct page *page)
{
    return !page->saved && page->epoch < pages->durable_epoch;
}

/* Take a clean page's frame away, for the caller to free once nobody reads it. Writer lock and
 * load_lock. */
uint32_t pages_evict(struct pages *pages, enum space space, uint32_t number);

/*
 * Parking: a changed page leaves memory although the file does not have it as it is; what was
 * changed stays in memory, as a delta, a few bytes instead of a page, and is laid over the page
 * when that comes back. So pages that are changed here and there, one after the other, are read for
 * each change, but written only once for many. For the index whose memory is limited; not beside a
 * checkpoint, which captures whole pages: before one begins all parked pages are spilled.
 */
/* Let pages be parked. Before there are frames. Who changes a page of the index notes it then. */
enum fkv_error pages_allow_parking(struct pages *pages);
static inline struct units *frame_units(const struct pages *pages, uint32_t frame)
{
    return (struct units *)pages->frames.units.base + frame;
}
/* The unit at `at`, in a frame, was changed. Writer lock. */
static inline void pages_note(struct pages *pages, const void *at)
{
    if (__builtin_expect(pages->frames.units.base != NULL, 0) && !PLANTED(LOSE_CHANGE)) {
        size_t offset = (size_t)((const uint8_t *)at - pages->frames.bytes.base);
        units_add(frame_units(pages, (uint32_t)(offset / PAGE_BYTES)),
                  offset % PAGE_BYTES / UNIT_BYTES);
    }
}
/* May this changed page, in a frame, be parked? Writer lock. */
bool pages_can_park(const struct pages *pages, const struct page *page);
/* Do it, for the caller to free the frame once nobody reads it; 0 without memory. Writer lock and
 * load_lock. */
uint32_t pages_park(struct pages *pages, enum space space, uint32_t number);
/* Is the page parked? Writer lock: a reader may bring it in at any time, but none parks one. */
bool pages_is_parked(struct pages *pages, enum space space, uint32_t number);
/* Is any? If not, all that was is in its frame, whoever has brought it in. Writer lock. */
bool pages_any_parked(struct pages *pages);
/* Write a parked page to the file: it is clean then, and stays out of memory. A page that is not
 * parked is left alone; so is one that cannot be read, or is damaged in the file (*unread). While
 * pages_can_spill; writer lock. */
enum fkv_error pages_spill_parked(struct pages *pages, enum space space, uint32_t number,
                                  bool *unread);
/* Give up a parked page that is damaged, so that there can be checkpoints. What has changed of
 * it is lost: so from now on nothing that the file has of it counts as the page, and whoever needs
 * it is told that it is damaged. While pages_can_spill; writer lock. */
void pages_give_up(struct pages *pages, enum space space, uint32_t number);
/* Lay its delta over a parked page as the file has it; or, if it is in a frame by now, its frame.
 * Writer lock. */
const void *pages_complete(struct pages *pages, enum space space, uint32_t number, void *bytes);

/* The bytes of a page that is in memory, to read. */
static inline const void *pages_read(const struct pages *pages, enum space space, uint32_t number)
{
    return frame_bytes(pages, pages_find(pages, space, number)->frame);
}

/* The bytes of a page that is in memory, to change. Cannot fail; may have to write one page
 * itself when a checkpoint is running and memory is short. */
void *pages_write_slow(struct pages *pages, enum space space, uint32_t number, struct page *page);
static inline void *pages_write(struct pages *pages, enum space space, uint32_t number)
{
    struct page *page = pages_find(pages, space, number);
    if (__builtin_expect(page->epoch == pages->epoch, 1))
        return frame_bytes(pages, page->frame);
    return pages_write_slow(pages, space, number, page);
}

/*
 * Spilling: a changed page goes to the file before any checkpoint asks for it, so that its frame
 * can go too. It goes to a place that is not in use, as in a checkpoint, or to the one that it was
 * spilled to before: no checkpoint has that in its tree. The next one finds it there, if it was not
 * changed again. Not beside a checkpoint, whose tree would get what is newer than its moment; nor
 * after a failed one, whose places are not told from those of the last. Writer lock.
 */
static inline bool pages_can_spill(const struct pages *pages)
{
    return PLANTED(SPILL_BESIDE) || (!pages->capturing && pages->durable_epoch == pages->epoch);
}
/* One page. It is clean then; if that fails it is as changed as before. */
enum fkv_error pages_spill(struct pages *pages, enum space space, uint32_t number);
/*
 * Moves that wait for their pages (moves.h). These pages of the index are to take those in `moves`
 * when they come into memory or are spilled: the ones of them that are not in memory are parked for
 * it, changed or not. False if one cannot be. While pages_can_await; writer lock and load_lock.
 */
static inline bool pages_can_await(const struct pages *pages)
{
    return pages->frames.units.base && !pages->unparking && pages_can_spill(pages);
}
bool pages_await(struct pages *pages, const uint32_t *number, uint32_t count, struct moves *moves);

/* Has it changed since it was written, and is it here to be spilled? (A reader may bring a parked
 * page in meanwhile; only the writer takes one out.) */
static inline bool pages_is_changed(const struct pages *pages, const struct page *page)
{
    return page->epoch == pages->epoch && page_frame(page);
}
/* Changed pages of a space that are in frames. */
static inline uint64_t pages_changed(const struct pages *pages, enum space space)
{
    uint32_t parked = space == SPACE_INDEX ? pages->parked_pages : 0;
    return pages->space[space].dirty_count - parked;
}

/* Give a page without a frame this frame as its new content (fresh pages of rebuilt segments). */
void pages_place(struct pages *pages, enum space space, uint32_t number, uint32_t frame);

/* Make the page zeros again, without a frame. Returns the frame for the caller to free, 0 if the
 * running checkpoint has taken it over. */
uint32_t pages_discard(struct pages *pages, enum space space, uint32_t number);

/* ---- checkpoint, in the order of calls */

/* Take the present state as what the checkpoint shall hold. */
void pages_checkpoint_begin(struct pages *pages);
/* Copy up to `limit` pages into the staging area; *done when nothing is left. Writer lock. */
enum fkv_error pages_capture(struct pages *pages, uint32_t limit, bool *done);
/* Compute the checksums of what was captured. No lock needed: only the checkpoint calls it. */
void pages_sum_staged(struct pages *pages);
/* Write what is staged. No lock needed: only the checkpoint calls it. */
enum fkv_error pages_write_staged(struct pages *pages);
/* The roots, once all is captured and written. */
void pages_roots(const struct pages *pages, struct format_space roots[SPACE_COUNT]);
/* The header is durable: what the old tree alone used is free. Writer lock. */
void pages_checkpoint_done(struct pages *pages);
/* The checkpoint failed: what it had not captured is dirty again. Writer lock. */
void pages_checkpoint_abandon(struct pages *pages);

/* Of so many pages of a space that are going to change, how many can there be that the next
 * checkpoint has not to write anyway? */
static inline uint64_t pages_changes(const struct pages *pages, enum space space, uint64_t most)
{
    uint32_t unchanged = pages->space[space].page_count - pages->space[space].dirty_count;
    return most < unchanged ? most : unchanged;
}

/* Places that checkpoints will still need, nodes included, once so many more pages have changed;
 * and places there are for them in sectors that hold pages already. */
static inline uint64_t pages_places_needed(const struct pages *pages, uint64_t more)
{
    enum { UNCOUNTED = 64 }; /* that one operation may change, see commit_changes */
    uint64_t count = pages->dirty_pages + pages->pending_pages + pages->spilled_nodes + more;
    count += UNCOUNTED;
    /* Nodes: each page may have its own. Those of a checkpoint that runs, or has failed, are not
     * counted one by one. */
    uint64_t nodes = pages->node_count, begun = pages->epoch != pages->durable_epoch ? nodes : 0;
    return count + min_u64(2 * count, nodes) + begun;
}
static inline uint64_t pages_places_free(const struct pages *pages)
{
    return places_free(&pages->places);
}

/* Read the nodes of a tree. Pages come into memory when they are used. */
enum fkv_error pages_open(struct pages *pages, const struct format_space roots[SPACE_COUNT],
                          uint64_t sector_count);

#endif
