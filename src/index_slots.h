/*
 * index_slots: the bits of a slot of the index, and where the slot of a key may be.
 *
 * index.h explains them; here they are for those who look at pages of the index as they lie: the
 * index itself, and checks.
 */
#ifndef FKV_INDEX_SLOTS_H
#define FKV_INDEX_SLOTS_H

#include "index.h"

enum {
    SLOTS_PER_BUCKET = 4,
    BUCKETS_PER_PAGE = 64,
    PROBES_IN_A_PAGE = 6,
    /* Built anew, a segment leaves room for a few more keys: of each page's 256 slots it uses */
    SLOTS_USED_FRESH = 214,
};

/* Pages of a segment that is built for so many keys; perhaps more than one may have. */
static inline uint32_t segment_pages_for(uint32_t count)
{
    uint32_t pages = (uint32_t)divide_up(count, SLOTS_USED_FRESH);
    return pages ? pages : 1;
}

#define TAG_BITS 62
#define TAG_MASK ((1ull << TAG_BITS) - 1)
#define LOW_SHIFT 51 /* of the hash bits in an entry */
#define LOW_BITS 13
/* Tag bits that every slot is sure to know. */
#define TAG_SURE (TAG_MASK & ~0xffffull)

/* The 75 bits of a slot: 62 in the tag, 13 in the entry, the last of them a 1. */
struct fragment {
    uint64_t tag;
    uint32_t low;
};

struct bucket {
    struct slot slot[SLOTS_PER_BUCKET];
} __attribute__((aligned(64)));

/* Where a key's search begins, and how it goes on. */
struct probe {
    uint32_t page;   /* home page in the segment */
    uint32_t bucket; /* home bucket in it */
    uint32_t step;   /* odd */
    uint32_t class;  /* 0 to 7 */
};

static inline struct fragment fragment_of(struct hash128 hash, uint32_t depth)
{
    uint64_t high = hash.hi << depth | hash.lo >> 1 >> (63 - depth); /* depth may be 0 */
    uint64_t next = hash.lo << depth;
    return (struct fragment){.tag = high >> (64 - TAG_BITS),
                             .low = (uint32_t)((high & 3) << 11 | next >> 54 << 1 | 1)};
}

static inline struct probe probe_of(uint64_t tag, uint32_t pages)
{
    return (struct probe){.page = (uint32_t)((tag >> 30 & 0xffffffff) * pages >> 32),
                          .bucket = tag >> 24 & 63,
                          .step = (uint32_t)(tag >> 18 & 62) | 1,
                          .class = tag >> 16 & 7};
}

/* The i-th bucket of a search: which page of the segment, which bucket of the page. */
static inline uint32_t probe_at(const struct probe *probe, uint32_t pages, uint32_t i,
                                uint32_t *page)
{
    if (__builtin_expect(i < PROBES_IN_A_PAGE, 1)) { /* no divisions for nearly all */
        *page = probe->page;
        return (probe->bucket + i * probe->step) & (BUCKETS_PER_PAGE - 1);
    }
    uint32_t round = i / PROBES_IN_A_PAGE;
    uint32_t visit = round / pages;
    *page = (probe->page + round) % pages;
    return (probe->bucket + (visit * PROBES_IN_A_PAGE + i % PROBES_IN_A_PAGE) * probe->step) &
           (BUCKETS_PER_PAGE - 1);
}

/* Searches of so many buckets have seen all of the segment. */
static inline uint32_t probes_max(uint32_t pages)
{
    return pages * PROBES_IN_A_PAGE *
           ((BUCKETS_PER_PAGE + PROBES_IN_A_PAGE - 1) / PROBES_IN_A_PAGE);
}

static inline bool is_marked(const struct bucket *bucket, uint32_t class)
{
    uint64_t tag = __atomic_load_n(&bucket->slot[class >> 1].tag, __ATOMIC_RELAXED);
    return tag >> (TAG_BITS + (class & 1)) & 1;
}

/* Returns the slot that has the mark. */
static inline struct slot *bucket_mark(struct bucket *bucket, uint32_t class)
{
    struct slot *slot = &bucket->slot[class >> 1];
    __atomic_store_n(&slot->tag, slot->tag | 1ull << (TAG_BITS + (class & 1)), __ATOMIC_RELEASE);
    return slot;
}

/* Put a key into the first empty slot, whose marks stay; readers see it by its entry. NULL if there
 * is none. The tag comes after all that was stored before: who sees it, and so misses the key that
 * had the slot, sees that the entry of that one is gone, and what came before (an overlay, an
 * undo). */
static inline struct slot *bucket_fill(struct bucket *bucket, uint64_t tag, uint64_t entry)
{
    for (int s = 0; s < SLOTS_PER_BUCKET; s++) {
        struct slot *slot = &bucket->slot[s];
        if (slot->entry)
            continue;
        __atomic_store_n(&slot->tag, (slot->tag & ~TAG_MASK) | tag, __ATOMIC_RELEASE);
        __atomic_store_n(&slot->entry, entry, __ATOMIC_RELEASE);
        return slot;
    }
    return NULL;
}

/* Do all bits that the slot knows agree, where the sure ones do? The last 1 in it is below the
 * last known bit. */
static inline bool fragment_agrees(struct fragment key, uint64_t tag, uint64_t entry)
{
    uint32_t slot =
        (uint32_t)(tag & ~TAG_SURE & TAG_MASK) << LOW_BITS | (uint32_t)(entry >> LOW_SHIFT);
    uint32_t mine = (uint32_t)(key.tag & ~TAG_SURE) << LOW_BITS | key.low;
    uint32_t unknown = slot ^ (slot - 1); /* its last 1 and what is below */
    return slot && ((slot ^ mine) & ~unknown) == 0;
}

#endif
