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
 * Pages come into memory when they are asked for: a reader that finds no frame in the segment reads
 * the page. Where their memory is limited the writer takes them out again, and nothing that a
 * commit has prepared: index_limit.h.
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

/* How much of it may be in memory: index_limit.c, with the writer lock but where it says otherwise.
 */
struct index_limit {
    uint32_t frames_max;      /* pages; 0: no limit. Set by opening */
    struct reservation moves; /* struct moves a segment, if there is a limit; load_lock */
    _Atomic uint32_t trim_at; /* with more frames, index_trim has something to do */
    uint32_t trim_hand;       /* the segment it looks at next */
    uint32_t crowded_by;      /* pages that it found and could not take out, too many */
    uint32_t spill_hand;      /* as trim_hand, for index_spill */
    uint32_t unpark_hand;     /* and for index_spill_parked */
    uint64_t evictions;
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
    struct index_limit limit;
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

/* After a delete: give pages back if the segment is far too large. Optional work. */
void index_tidy(struct index *index, struct hash128 hash);

/* Free segments whose grace period is over. */
void index_reclaim(struct index *index, uint32_t segments);

/* Bytes of memory in use, page tables included. */
uint64_t index_memory_bytes(const struct index *index);
/* Of it, what the pages do not hold, and what is in reserve. */
uint64_t index_own_memory_bytes(const struct index *index);

#endif
