#include "index.h"

#include <assert.h>

#include "index_parts.h"

/* ---------------------------------------------------------------- making */

enum fkv_error index_make(struct index *index, struct pages *pages, struct reclaim *reclaim)
{
    *index = (struct index){.pages = pages, .reclaim = reclaim};
    size_t segments = (size_t)1 << INDEX_DEPTH_MAX;
    if (reservation_make(&index->segments, segments * sizeof(struct segment), true) != 0 ||
        reservation_make(&index->links, segments * sizeof(uint32_t), false) != 0)
        return FKV_NO_MEMORY;
    return FKV_OK;
}

void index_drop(struct index *index)
{
    index_limit_drop(index);
    memory_free(index->directory);
    memory_free(index->free_numbers);
    memory_free(index->plans);
    reservation_drop(&index->segments);
    reservation_drop(&index->links);
}

/* ---------------------------------------------------------------- reading */

/* A reader brings a page of a segment into memory. A segment that is retired has all of its pages
 * in memory and keeps them, so one that lacks a page is still in the directory; the lock keeps it
 * there. While the page is read the lock is not held: then all of that is asked again. */
static enum fkv_error load_page(struct index *index, uint32_t id, uint32_t page, uint32_t *frame)
{
    enum fkv_error error = FKV_OK;
    struct page_copy copy = {0};
    pthread_mutex_lock(&index->pages->load_lock);
    for (;;) {
        *frame = __atomic_load_n(&segment_of(index, id)->frame[page], __ATOMIC_ACQUIRE);
        if (*frame)
            break;
        uint32_t number = directory_read(index, id)->page[page];
        if (!pages_load_step(index->pages, SPACE_INDEX, number, &copy, frame, &error))
            continue;
        if (!error)
            __atomic_store_n(&segment_of(index, id)->frame[page], *frame, __ATOMIC_RELEASE);
        break;
    }
    pages_load_end(index->pages, &copy);
    pthread_mutex_unlock(&index->pages->load_lock);
    if (index->crowded && index_is_crowded(index))
        index->crowded(index->context);
    return error;
}

void index_prefetch_write(const struct index *index, struct hash128 hash)
{
    uint32_t id = segment_id(index, hash);
    const struct segment *segment = segment_of(index, id);
    struct probe probe = probe_of(fragment_of(hash, segment->depth).tag, segment->pages);
    uint32_t number = directory_read(index, id)->page[probe.page];
    __builtin_prefetch(pages_find(index->pages, SPACE_INDEX, number), 1);
    uint32_t frame = __atomic_load_n(&segment->frame[probe.page], __ATOMIC_RELAXED);
    if (frame) /* a reader may have brought it into memory just now */
        __builtin_prefetch((struct bucket *)frame_bytes(index->pages, frame) + probe.bucket);
}

void index_prefetch_segment(const struct index *index, struct hash128 hash)
{
    uint32_t id = find_segment(index, hash);
    __builtin_prefetch(segment_of(index, id), 1);
    __builtin_prefetch(directory_read(index, id), 1);
}

uint64_t index_guess(const struct index *index, struct hash128 hash)
{
    const struct segment *segment = segment_of(index, find_segment(index, hash));
    struct fragment key = fragment_of(hash, segment->depth);
    struct probe probe = probe_of(key.tag, segment->pages);
    uint32_t frame = __atomic_load_n(&segment->frame[probe.page], __ATOMIC_ACQUIRE);
    uint64_t entry = 0;
    if (frame)
        bucket_find((struct bucket *)frame_bytes(index->pages, frame) + probe.bucket, key, &entry);
    return entry;
}

void index_want(const struct index *index, struct hash128 hash, uint64_t *wanted)
{
    uint32_t id = find_segment(index, hash);
    const struct segment *segment = segment_of(index, id);
    struct probe probe = probe_of(fragment_of(hash, segment->depth).tag, segment->pages);
    uint32_t number = directory_read(index, id)->page[probe.page];
    wanted[number / 64] |= 1ull << number % 64;
}

void index_load_wanted(struct index *index, const uint64_t *wanted, bool helpers)
{
    pages_load_wanted(index->pages, SPACE_INDEX, wanted, helpers);
    for (uint32_t id = 1; id < index->segment_count; id++) {
        const struct format_segment *entry = directory_read(index, id);
        for (uint32_t i = 0; i < entry->pages; i++) {
            uint32_t number = entry->page[i];
            if (wanted[number / 64] >> number % 64 & 1)
                segment_of(index, id)->frame[i] =
                    pages_find(index->pages, SPACE_INDEX, number)->frame;
        }
    }
}

enum fkv_error index_search_from(struct index *index, uint32_t id, struct fragment key,
                                 uint32_t first, struct found *found)
{
    const struct segment *segment = segment_of(index, id);
    uint32_t pages = segment->pages;
    struct probe probe = probe_of(key.tag, pages);
    for (uint32_t i = first; i < probes_max(pages); i++) {
        uint32_t page;
        uint32_t at = probe_at(&probe, pages, i, &page);
        uint32_t frame = __atomic_load_n(&segment->frame[page], __ATOMIC_ACQUIRE);
        if (__builtin_expect(!frame, 0)) {
            enum fkv_error error = load_page(index, id, page, &frame);
            if (error)
                return error;
        }
        struct bucket *bucket = (struct bucket *)frame_bytes(index->pages, frame) + at;
        uint64_t entry;
        struct slot *slot = bucket_find(bucket, key, &entry);
        if (slot) {
            *found = (struct found){slot, entry, id, page, i};
            return FKV_OK;
        }
        if (!is_marked(bucket, probe.class))
            break;
    }
    *found = (struct found){.id = id};
    return FKV_OK;
}

enum fkv_error index_get(struct index *index, struct hash128 hash, uint64_t *entry)
{
    return index_find(index, hash, entry);
}

void index_prefetch(const struct index *index, struct hash128 hash)
{
    struct near near = index_near(index, hash);
    prefetch_near(&near);
}

/* ---------------------------------------------------------------- writing */

/* Bring into memory what an insert of the key passes: all up to the first empty slot in its order.
 */
static enum fkv_error load_path(struct index *index, uint32_t id, struct hash128 hash)
{
    const struct segment *segment = segment_of(index, id);
    struct probe probe = probe_of(fragment_of(hash, segment->depth).tag, segment->pages);
    for (uint32_t i = 0; i < probes_max(segment->pages); i++) {
        uint32_t page;
        uint32_t at = probe_at(&probe, segment->pages, i, &page);
        uint32_t frame = __atomic_load_n(&segment->frame[page], __ATOMIC_ACQUIRE);
        enum fkv_error error;
        if (!frame && (error = load_page(index, id, page, &frame)))
            return error;
        const struct bucket *bucket = (struct bucket *)frame_bytes(index->pages, frame) + at;
        for (int s = 0; s < SLOTS_PER_BUCKET; s++)
            if (!bucket->slot[s].entry)
                return FKV_OK;
    }
    return index_too_many_slots(index, id);
}

static enum fkv_error plan_room(struct index *index)
{
    if (index->plan_count < index->plan_room)
        return FKV_OK;
    struct plan *plans = memory_room(index->plans, sizeof *plans, index->plan_count + UINT64_C(1),
                                     &index->plan_room);
    if (!plans)
        return FKV_NO_MEMORY;
    index->plans = plans;
    return FKV_OK;
}

static void plan_add(struct index *index, uint32_t id, struct hash128 hash)
{
    index->plans[index->plan_count++] =
        (struct plan){.hash = hash, .next = *segment_link(index, id)};
    *segment_link(index, id) = index->plan_count;
    segment_of(index, id)->planned++;
}

enum fkv_error index_prepare(struct index *index, struct hash128 hash, enum index_wish wish,
                             uint64_t *entry)
{
    bool plan = wish == INDEX_PLAN;
    struct found found;
    enum fkv_error error = index_search(index, hash, &found);
    if (error)
        return error;
    *entry = found.slot ? found.slot->entry : 0;
    if (*entry || wish == INDEX_LOOK)
        return FKV_OK;
    if (plan && (error = plan_room(index)))
        return error;
    for (;;) {
        uint32_t id = segment_id(index, hash);
        struct segment *segment = segment_of(index, id);
        uint32_t count = segment->count + segment->planned;
        uint32_t limit = segment->pages * SLOTS_USED_MAX;
        bool too_full = count >= limit;
        if (too_full) {
            if ((error = index_grow(index, id)) == FKV_OK)
                continue;
            /* Without memory to grow in, or places in the file, there is room to the last slot. */
            if (count >= segment->pages * SLOTS_PER_PAGE)
                return error;
        } else if (segment->stale > limit / 4) {
            if (index_resize(index, id, segment->pages) == FKV_OK)
                continue;
        }
        /* Beside other inserts it may pass through any page of the segment. */
        if ((error = segment->planned ? index_segment_load(index, id) : load_path(index, id, hash)))
            return error;
        if (plan)
            plan_add(index, id, hash);
        if (plan && too_full)
            index->passed += segment->pages - 1u;
        return FKV_OK;
    }
}

void index_unplan(struct index *index)
{
    enum { ROOM_TO_KEEP = 1024 };
    for (uint32_t p = 0; p < index->plan_count; p++) {
        uint32_t id = segment_id(index, index->plans[p].hash);
        segment_of(index, id)->planned = 0;
        *segment_link(index, id) = 0;
    }
    index->plan_count = 0;
    index->passed = 0;
    if (index->plan_room > ROOM_TO_KEEP) {
        memory_free(index->plans);
        index->plans = NULL;
        index->plan_room = 0;
    }
}

static void set_count(struct index *index, uint32_t id, int change)
{
    struct segment *segment = segment_of(index, id);
    segment->count = (uint16_t)(segment->count + change);
    index->entries += (uint64_t)(int64_t)change;
    directory_write(index, id)->count = segment->count;
}

static void insert(struct index *index, struct hash128 hash, uint64_t value)
{
    uint32_t id = segment_id(index, hash);
    struct segment *segment = segment_of(index, id);
    const struct format_segment *entry = directory_read(index, id);
    struct fragment key = fragment_of(hash, segment->depth);
    struct probe probe = probe_of(key.tag, segment->pages);
    for (uint32_t i = 0; i < probes_max(segment->pages); i++) {
        uint32_t page;
        uint32_t at = probe_at(&probe, segment->pages, i, &page);
        struct bucket *bucket =
            (struct bucket *)pages_write(index->pages, SPACE_INDEX, entry->page[page]) + at;
        const struct slot *slot =
            bucket_fill(bucket, key.tag, value | (uint64_t)key.low << LOW_SHIFT);
        if (slot) {
            pages_note(index->pages, slot);
            set_count(index, id, 1);
            return;
        }
        pages_note(index->pages, bucket_mark(bucket, probe.class));
    }
    assert(!"index_prepare made room");
}

uint64_t index_set(struct index *index, struct hash128 hash, uint64_t value)
{
    struct found found = {0};
    enum fkv_error error = index_search(index, hash, &found);
    assert(!error);
    (void)error;
    if (!found.slot) {
        insert(index, hash, value);
        return 0;
    }
    struct slot *slot = slot_write(index, &found);
    uint64_t old = slot->entry;
    __atomic_store_n(&slot->entry, value | (old & ~ENTRY_VALUE_MASK), __ATOMIC_RELEASE);
    return old;
}

uint64_t index_remove(struct index *index, struct hash128 hash)
{
    struct found found = {0};
    /* Of one that is absent the search may pass more by now than was looked at, and is missing. */
    if (index_search(index, hash, &found) || !found.slot)
        return 0;
    struct slot *slot = slot_write(index, &found);
    uint64_t old = slot->entry;
    __atomic_store_n(&slot->entry, 0, __ATOMIC_RELEASE);
    if (found.probes && segment_of(index, found.id)->stale < UINT16_MAX)
        segment_of(index, found.id)->stale++;
    set_count(index, found.id, -1);
    return old;
}

bool index_move(struct index *index, struct hash128 hash, uint64_t from, uint64_t to)
{
    struct found found;
    if (index_search(index, hash, &found) || !found.slot ||
        entry_address(found.slot->entry) != from)
        return false;
    slot_move(index, &found, to);
    return true;
}

/* ---------------------------------------------------------------- measuring */

uint64_t index_memory_bytes(const struct index *index)
{
    uint64_t page_tables = 0;
    const enum space spaces[] = {SPACE_INDEX, SPACE_DIRECTORY};
    for (int s = 0; s < 2; s++) {
        const struct page_space *space = &index->pages->space[spaces[s]];
        page_tables += space->chunk_count * sizeof(struct page_chunk) +
                       space->chunk_room * sizeof(struct page_chunk *);
    }
    return (uint64_t)index->pages->space[SPACE_INDEX].frame_count * PAGE_BYTES +
           index->pages->parked_bytes + page_tables +
           (uint64_t)index->segment_count * (sizeof(struct segment) + sizeof(uint32_t)) +
           round_up((uint64_t)index->segment_count * sizeof(struct format_segment), PAGE_BYTES) +
           (sizeof(uint32_t) << index->directory->depth) +
           index->free_number_room * sizeof(uint32_t);
}

uint64_t index_own_memory_bytes(const struct index *index)
{
    return index->segments.backed_bytes + index->links.backed_bytes +
           index->limit.moves.backed_bytes + sizeof *index->directory +
           (sizeof(uint32_t) << index->directory->depth) +
           index->free_number_room * sizeof *index->free_numbers +
           index->plan_room * sizeof *index->plans;
}
