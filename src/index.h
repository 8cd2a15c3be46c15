/*
 * index: from the hash of a key to where its record is.
 *
 * The hash space is cut into prefixes, each served by a SEGMENT of 1 to 14 pages of 4 KiB. A
 * directory, an array over the longest prefix in use, leads to segments (extendible hashing: Fagin,
 * Nievergelt, Pippenger and Strong, 1979). A segment grows a page at a time, and at 14 pages splits
 * in two of one more prefix bit; so it is nearly full at any size and the index needs less than 20
 * bytes a key. Growing builds new pages aside and then switches the directory: readers see the old
 * segment, frozen, or the new one, and one operation never pays for more than one segment.
 *
 * A page is 64 buckets of 64 bytes, a cache line; a bucket is 4 slots of 16:
 *
 *     tag    bits 63-62  overflow marks of the bucket (two classes in each slot's tag)
 *            bits 61-0   the 62 hash bits that follow the segment's prefix
 *     entry  bits 63-51  12 more hash bits, and a 1 below the last known one
 *            bit  50     the record is the head of a large value
 *            bits 49-41  the record's length, as length_code()
 *            bits 40-0   its address, in cells; an entry of 0 is an empty slot
 *
 * So a slot knows 74 bits of a keyed hash besides the prefix that leads to it: a put or delete can
 * rest on them and never reads the record. When a segment splits, the bit that becomes prefix is
 * shifted out and the 1 moves up: slots that are old know fewer bits below the longer prefix, none
 * less than 46, and the sum does not change.
 *
 * A key's buckets are tried in an order of its own: six in its home page (double hashing), then six
 * in the next, and so on. Keys fall in 8 classes; a bucket that a key had to pass when it was
 * inserted is marked with the key's class, and a search that meets an unmarked bucket ends there
 * (after the overflow counts of F14, Bronson and Shi, 2019). A delete clears its slot and leaves no
 * tombstone; marks that it may have left too many are removed by building the segment again.
 *
 * Readers take no lock: an entry changes in one aligned store, and a slot becomes visible by it.
 *
 * Pages come into memory when they are asked for. Where their memory is limited, the writer takes
 * them out again (index_trim), round by round over the segments: it clears the frame number
 * in the segment, which is all that readers look at, and the frame is free after a grace period. A
 * reader that finds none reads the page. It never does so while something is prepared: what a
 * commit has found in memory stays there until it is applied.
 *
 * Invariants:
 *  1. The pages of a segment are all referred to by its directory entry, and by no other.
 *  2. A key is in at most one slot, which is reached from its home bucket over marked ones.
 *  3. count is the number of slots with an entry.
 */
#ifndef FKV_INDEX_H
#define FKV_INDEX_H

#include "hash.h"
#include "pages.h"
#include "reclaim.h"

#define SLOTS_PER_PAGE 256u
#define INDEX_DEPTH_MAX 28u
#define INDEX_MEMORY_MIN 32768u /* of a limit */

#define ENTRY_ADDRESS_MASK ((1ull << CELL_ADDRESS_BITS) - 1)
#define ENTRY_LENGTH_SHIFT CELL_ADDRESS_BITS
#define ENTRY_LARGE (1ull << 50)
#define ENTRY_VALUE_MASK ((1ull << 51) - 1)

/* The same record's entry at another address. */
static inline uint64_t entry_moved(uint64_t entry, uint64_t address)
{
    return (entry & ~ENTRY_ADDRESS_MASK) | address;
}

/* What an entry says of a record. */
static inline uint64_t entry_value(uint64_t address, uint32_t cells, bool large)
{
    return address | ((uint64_t)length_code(cells) << ENTRY_LENGTH_SHIFT) |
           (large ? ENTRY_LARGE : 0);
}
static inline uint64_t entry_address(uint64_t entry)
{
    return entry & ENTRY_ADDRESS_MASK;
}
static inline uint32_t entry_length_code(uint64_t entry)
{
    return entry >> ENTRY_LENGTH_SHIFT & 511;
}
static inline uint32_t entry_cells(uint64_t entry)
{
    return length_of_code(entry_length_code(entry));
}

struct slot {
    uint64_t tag;
    uint64_t entry;
};

/* What readers need of a segment: one cache line. */
struct segment {
    uint32_t frame[SEGMENT_PAGES_MAX]; /* 0: not in memory */
    uint16_t count;
    uint16_t stale; /* deletes that may have left a mark behind */
    uint8_t pages;
    uint8_t depth;
    uint16_t planned; /* inserts that were prepared and are still to come */
} __attribute__((aligned(64)));
static_assert(sizeof(struct segment) == 64, "a cache line");

struct directory {
    struct retired_block retired;
    uint32_t depth;
    uint32_t shift;     /* 63 - depth */
    uint32_t segment[]; /* 2^depth */
};

struct index {
    struct pages *pages;
    struct reclaim *reclaim;
    struct directory *directory;
    struct reservation segments; /* struct segment */
    struct reservation links;    /* uint32_t a segment: the next in a list; its plans if in use */
    uint32_t segment_count;      /* ids given out so far */
    uint32_t free_segments;      /* a list */
    uint32_t *free_numbers;      /* index pages not in use */
    uint32_t free_number_count, free_number_room;
    uint32_t next_number;
    uint64_t page_count; /* in use */
    /* A limit of pages in memory, 0 none. */
    uint32_t frames_max;
    struct reservation moves; /* struct moves a segment, if there is a limit; load_lock */
    _Atomic uint32_t trim_at; /* with more frames, index_trim has something to do */
    uint32_t trim_hand;       /* the segment it looks at next */
    uint32_t crowded_by;      /* pages that it found and could not take out, too many */
    uint32_t spill_hand;      /* as trim_hand, for index_spill */
    uint32_t unpark_hand;     /* and for index_spill_parked */
    uint64_t evictions;
    /* Called, if it is set, by a reader that has brought a page in, and there are too many. */
    void (*crowded)(void *context);
    /* Asked, if it is set, before segments are built anew: has the file places for so many pages
     * more that the next checkpoint has to write? */
    enum fkv_error (*room)(void *context, uint32_t pages);
    void *context;
    uint64_t entries;
    uint64_t rebuilds;
    /* Absent keys that are planned to be set, a list a segment, so that a split knows which half
     * needs the room. */
    struct plan {
        struct hash128 hash;
        uint32_t next; /* 1 + index in plans[]; 0 ends the list */
    } * plans;
    uint32_t plan_count, plan_room;
    uint64_t passed; /* pages that they may change, beside one each, where segments are too full */
};

enum fkv_error index_make(struct index *index, struct pages *pages, struct reclaim *reclaim);
void index_drop(struct index *index);
/* An empty index, in a new store. */
enum fkv_error index_create(struct index *index);
/* Read the directory of `segments` entries; the pages are open. */
enum fkv_error index_open(struct index *index, uint32_t segments);

/* Start fetching the bucket of a key into the processor's caches. Inside a read section. */
void index_prefetch(const struct index *index, struct hash128 hash);

/* The same for a key that will be changed. For the writer. */
void index_prefetch_write(const struct index *index, struct hash128 hash);

/* What that will look at; and later, without waiting for anything that is not here, the entry that
 * the key seems to have, 0 if that is not to be seen at once. For the writer. */
void index_prefetch_segment(const struct index *index, struct hash128 hash);
uint64_t index_guess(const struct index *index, struct hash128 hash);

/*
 * Bring pages of the index into memory at once, those with their bits in `wanted`, by threads of
 * its own too if `helpers`: a hint. Only before anybody uses the index. index_want sets the bit of
 * a key's page.
 */
void index_want(const struct index *index, struct hash128 hash, uint64_t *wanted);
void index_load_wanted(struct index *index, const uint64_t *wanted, bool helpers);

/* The entry of a key; FKV_NOT_FOUND, or the error of loading a page. Inside a read section. */
enum fkv_error index_get(struct index *index, struct hash128 hash, uint64_t *entry);

/* ---- for the writer */

/*
 * Make sure that this key can be set or removed without failing: pages in memory and, for one that
 * is absent, if it is to be set, room in the segment, for it and for all that are planned. *entry
 * receives its entry, 0 if it is absent.
 */
enum index_wish {
    INDEX_LOOK, /* a key that is absent stays so */
    INDEX_PLAN, /* it is planned, until index_unplan */
    INDEX_ROOM, /* it is set before anything else is prepared */
};
enum fkv_error index_prepare(struct index *index, struct hash128 hash, enum index_wish wish,
                             uint64_t *entry);
/* Forget all plans. */
void index_unplan(struct index *index);
/* Set the value of a key; returns the entry it had before, 0 if none. */
uint64_t index_set(struct index *index, struct hash128 hash, uint64_t value);
/* Returns the entry that is gone, 0 if there was none. */
uint64_t index_remove(struct index *index, struct hash128 hash);
/* If the key's record is at address `from`, make it `to`. False if it is not: nothing changes. */
bool index_move(struct index *index, struct hash128 hash, uint64_t from, uint64_t to);

/*
 * The same in two steps, for the collector. The first is as INDEX_LOOK, but that, if *waits, it
 * may leave a page out of memory where that is limited (moves.h): then there is no entry to be
 * looked at, else *waits becomes false. All pages of the segment may count as changed. So many
 * `others` may have been prepared, and not made. The second cannot fail after it.
 */
enum fkv_error index_prepare_move(struct index *index, struct hash128 hash, uint32_t others,
                                  uint64_t *entry, bool *waits);
bool index_make_move(struct index *index, struct hash128 hash, uint64_t from, uint64_t to);

/* Of no more memory than this for pages; 0 no limit. Before the index is used. */
enum fkv_error index_limit(struct index *index, uint64_t bytes_max);
/* Take pages out of memory if there are too many: clean ones, and those of which little has
 * changed, which are parked. A bounded amount of work, for the writer while nothing is prepared. */
void index_trim(struct index *index);
/* Have readers brought in more than the limit, and more than may leave before a grace period ends?
 * Then they should wait for that. */
bool index_is_overrun(const struct index *index);
/* Write pages to the file, some and a few for each of so many operations, if too much is kept of
 * those that are parked, or if so much of others was changed that there is no room: they are clean
 * then. For the writer, where index_trim is, before it. */
void index_spill(struct index *index, uint64_t operations);
/* A checkpoint is to begin, and none may be parked (pages.unparking): write some of them. One that
 * is damaged in the file is given up (pages_give_up); one that cannot be read (*unread) is the
 * first to be tried the next time. */
enum fkv_error index_spill_parked(struct index *index, uint32_t most, bool *none, bool *unread);
/* A checkpoint is over: pages that it has written can be taken out. */
void index_trim_again(struct index *index);
/* Frames that are left before there are twice as many as the limit. */
static inline uint64_t index_room(const struct index *index)
{
    uint64_t most = index->frames_max ? 2 * (uint64_t)index->frames_max : UINT64_MAX;
    uint64_t have =
        index->pages->space[SPACE_INDEX].frame_count + index->pages->parked_bytes / PAGE_BYTES;
    return have < most ? most - have : 0;
}

/* Are so many pages changed that a checkpoint should write them, for others to have room? Where
 * they can be spilled, only if that does not help. */
static inline bool index_is_dirty(const struct index *index)
{
    uint64_t dirty = pages_changed(index->pages, SPACE_INDEX);
    return index->frames_max &&
           dirty > (pages_can_spill(index->pages) ? 2 * (uint64_t)index->frames_max
                                                  : index->frames_max / 2);
}

/* After a delete: give pages back if the segment is far too large. Optional work. */
void index_tidy(struct index *index, struct hash128 hash);

/* Free segments whose grace period is over. */
void index_reclaim(struct index *index, uint32_t segments);

/* Bytes of memory in use, page tables included. */
uint64_t index_memory_bytes(const struct index *index);
/* Of it, what the pages do not hold, and what is in reserve. */
uint64_t index_own_memory_bytes(const struct index *index);

/* Call `visit` for every entry; stops at its first non-zero result. Loads pages as it goes. For
 * the writer, and for checks. */
enum fkv_error index_walk(struct index *index,
                          enum fkv_error (*visit)(void *context, uint64_t entry), void *context);

#endif
