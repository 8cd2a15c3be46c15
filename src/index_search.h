/*
 * index_search: the search of the index that readers make, inline.
 *
 * A lookup waits for memory once, for its home bucket. How many lookups a processor has under way
 * at a time depends on how few instructions each of them takes: hence all that nearly every lookup
 * does is here, without a call and nearly without branches, and the rest is in index.c.
 */
#ifndef FKV_INDEX_SEARCH_H
#define FKV_INDEX_SEARCH_H

#include "index_slots.h"

#if defined(__SSE2__) && !defined(__SANITIZE_THREAD__)
#include <immintrin.h>
#define BUCKET_VECTORS
#endif
#if defined(BUCKET_VECTORS) && defined(__AVX512F__)
#define CANDIDATE_BITS 4
#else
#define CANDIDATE_BITS 1
#endif

static inline struct segment *segment_of(const struct index *index, uint32_t id)
{
    return (struct segment *)index->segments.base + id;
}

static inline uint32_t directory_slot(const struct directory *directory, struct hash128 hash)
{
    return (uint32_t)(hash.hi >> 1 >> directory->shift); /* two shifts: depth may be 0 */
}

static inline uint32_t find_segment(const struct index *index, struct hash128 hash)
{
    const struct directory *directory = __atomic_load_n(&index->directory, __ATOMIC_ACQUIRE);
    return __atomic_load_n(&directory->segment[directory_slot(directory, hash)], __ATOMIC_ACQUIRE);
}

/* A bit for each slot that may hold the key (the lowest of CANDIDATE_BITS): all that do, and one in
 * millions that does not. All four are compared before anything is decided: which of them it is
 * cannot be predicted, that it is one of them mostly can. */
static inline uint32_t bucket_candidates(const struct bucket *bucket, uint64_t key_tag)
{
#if CANDIDATE_BITS == 4
    /* As below; a slot is four words of 32 bits, the tag's upper half the second of them. */
    __m512i slots = _mm512_load_si512(bucket);
    __m512i differ = _mm512_xor_si512(slots, _mm512_set1_epi32((int)(key_tag >> 32)));
    return _mm512_mask_testn_epi32_mask(0x2222, differ, _mm512_set1_epi32((int)(TAG_MASK >> 32)));
#elif defined(BUCKET_VECTORS)
    /* The upper halves of the tags, without the marks. Each is read whole, and what is decided here
     * is looked at again. */
    const __m128i *slots = (const __m128i *)bucket->slot;
    __m128i low = _mm_unpacklo_epi32(slots[0], slots[1]); /* 0l 1l 0h 1h, as halves of tags */
    __m128i high = _mm_unpacklo_epi32(slots[2], slots[3]);
    __m128i tags = _mm_unpackhi_epi64(low, high);
    __m128i mine = _mm_set1_epi32((int)(key_tag >> 32 << 2));
    return (uint32_t)_mm_movemask_ps(
        _mm_castsi128_ps(_mm_cmpeq_epi32(_mm_slli_epi32(tags, 2), mine)));
#else
    uint32_t candidates = 0;
    for (int s = 0; s < SLOTS_PER_BUCKET; s++) {
        uint64_t tag = __atomic_load_n(&bucket->slot[s].tag, __ATOMIC_RELAXED);
        candidates |= (uint32_t)(((tag ^ key_tag) & TAG_SURE) == 0) << s;
    }
    return candidates;
#endif
}

/* The slot of the key in this bucket, or NULL. The entry is looked at once more after the tag: the
 * slot may have been given to another key between the two, and then the bits of one are not to be
 * taken for the other's. */
static inline struct slot *bucket_find(struct bucket *bucket, struct fragment key, uint64_t *found)
{
    for (uint32_t candidates = bucket_candidates(bucket, key.tag); candidates;
         candidates &= candidates - 1) {
        struct slot *slot = &bucket->slot[__builtin_ctz(candidates) / CANDIDATE_BITS];
        uint64_t entry = __atomic_load_n(&slot->entry, __ATOMIC_ACQUIRE), now, tag;
        for (;; entry = now) {
            SCHEDULE_POINT();
            tag = __atomic_load_n(&slot->tag, __ATOMIC_ACQUIRE);
            now = __atomic_load_n(&slot->entry, __ATOMIC_ACQUIRE);
            if (__builtin_expect(now == entry, 1))
                break;
        }
        if (((tag ^ key.tag) & TAG_SURE) == 0 && entry && fragment_agrees(key, tag, entry)) {
            *found = entry;
            return slot;
        }
    }
    return NULL;
}

/* Where a search ended. */
struct found {
    struct slot *slot; /* NULL: the key is absent */
    uint64_t entry;    /* as it agreed with the key; the slot may be another's by now */
    uint32_t id;
    uint32_t page; /* in the segment */
    uint32_t probes;
};

/* Search a segment, from the `first` bucket of the key's order on; loads pages. */
enum fkv_error index_search_from(struct index *index, uint32_t id, struct fragment key,
                                 uint32_t first, struct found *found);

/* Where a search begins. */
struct home {
    const struct segment *segment;
    uint32_t id;
    uint32_t frame; /* of the page; 0: not in memory */
    struct fragment key;
    struct probe probe;
};

static inline __attribute__((always_inline)) struct home home_of(const struct index *index,
                                                                 struct hash128 hash)
{
    struct home home = {.id = find_segment(index, hash)};
    home.segment = segment_of(index, home.id);
    home.key = fragment_of(hash, home.segment->depth);
    home.probe = probe_of(home.key.tag, home.segment->pages);
    home.frame = __atomic_load_n(&home.segment->frame[home.probe.page], __ATOMIC_ACQUIRE);
    return home;
}

/* One key in three is not in its home bucket: the next comes from memory together with it. */
static inline void prefetch_next(const struct bucket *page, const struct probe *probe)
{
    __builtin_prefetch(page + ((probe->bucket + probe->step) & (BUCKETS_PER_PAGE - 1)));
}

/* Most keys are in their home bucket, and most absent ones are seen to be absent there. */
static inline __attribute__((always_inline)) enum fkv_error
index_search(struct index *index, struct hash128 hash, struct found *found)
{
    struct home home = home_of(index, hash);
    if (__builtin_expect(!home.frame, 0))
        return index_search_from(index, home.id, home.key, 0, found);
    struct bucket *page = frame_bytes(index->pages, home.frame);
    struct bucket *bucket = page + home.probe.bucket;
    prefetch_next(page, &home.probe);
    uint64_t entry = 0;
    struct slot *slot = bucket_find(bucket, home.key, &entry);
    if (!slot && is_marked(bucket, home.probe.class))
        return index_search_from(index, home.id, home.key, 1, found);
    *found = (struct found){slot, entry, home.id, home.probe.page, 0};
    return FKV_OK;
}

/* A key that is found is found by an acquire load; one that is not, by loads in any order: what the
 * caller loads to see whether that still holds has to come after them. (Nothing on x86.) */
static inline void absence_acquire(void)
{
#ifndef __SANITIZE_THREAD__ /* it does not know fences */
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
#endif
}

/* index_get, inline. */
static inline __attribute__((always_inline)) enum fkv_error
index_find(struct index *index, struct hash128 hash, uint64_t *entry)
{
    struct found found;
    enum fkv_error error = index_search(index, hash, &found);
    if (__builtin_expect(error, 0))
        return error;
    if (!found.slot) {
        absence_acquire();
        return FKV_NOT_FOUND;
    }
    *entry = found.entry;
    return FKV_OK;
}

/* Not entries. */
enum { INDEX_ABSENT = 0, INDEX_UNSURE = 1 };

/* The buckets near the home of a key: all in its home page. */
struct near {
    const struct bucket *page; /* NULL: not in memory */
    uint64_t tag;
    uint32_t bucket, step, class; /* as in struct probe */
};

static inline __attribute__((always_inline)) struct near index_near(const struct index *index,
                                                                    struct hash128 hash)
{
    struct home home = home_of(index, hash);
    struct near near = {NULL, home.key.tag, home.probe.bucket, home.probe.step, home.probe.class};
    if (__builtin_expect(home.frame != 0, 1)) {
        near.page = frame_bytes(index->pages, home.frame);
        prefetch_next(near.page, &home.probe);
    }
    return near;
}

/* Always inline: see prefetch_record. */
static inline __attribute__((always_inline)) void prefetch_near(const struct near *near)
{
    if (__builtin_expect(near->page != NULL, 1))
        __builtin_prefetch(near->page + near->bucket);
}

/*
 * For those who look at the record's key anyway, with the least that is needed: the entry of the
 * first slot that agrees with the key in the upper half of its tag, which one in millions does that
 * is another key's. INDEX_ABSENT; INDEX_UNSURE: a page is not in memory, or it is far from home.
 */
static inline __attribute__((always_inline)) uint64_t index_find_near(const struct near *near)
{
    uint32_t at = near->bucket;
    if (__builtin_expect(!near->page, 0))
        return INDEX_UNSURE;
    for (int i = 0; i < PROBES_IN_A_PAGE; i++) {
        const struct bucket *bucket = near->page + at;
        for (uint32_t candidates = bucket_candidates(bucket, near->tag);
             __builtin_expect(candidates != 0, 1); candidates &= candidates - 1) {
            uint32_t s = (uint32_t)__builtin_ctz(candidates) / CANDIDATE_BITS;
            uint64_t entry = __atomic_load_n(&bucket->slot[s].entry, __ATOMIC_ACQUIRE);
            if (__builtin_expect(entry != 0, 1))
                return entry;
        }
        if (!is_marked(bucket, near->class)) {
            absence_acquire();
            return INDEX_ABSENT;
        }
        at = (at + near->step) & (BUCKETS_PER_PAGE - 1);
    }
    return INDEX_UNSURE;
}

#endif
