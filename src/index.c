#include "index.h"

#include <assert.h>

#include "index_parts.h"

enum {
    /* A segment grows beyond this many slots in use of each page's 256: 91%. Just after most
     * segments have split, that makes 19.8 bytes a key, with all tables; with 88% it was 20.3. */
    SLOTS_USED_MAX = 232,
    /* Segments are merged if the result has at most this many pages. */
    MERGED_PAGES_MAX = 9,
};

static inline uint32_t *segment_link(const struct index *index, uint32_t id)
{
    return (uint32_t *)index->links.base + id;
}

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

static struct directory *directory_new(uint32_t depth)
{
    struct directory *directory = memory_new(sizeof *directory + (sizeof(uint32_t) << depth));
    if (directory) {
        directory->depth = depth;
        directory->shift = 63 - depth;
    }
    return directory;
}

/* Have memory for the segments below `count`. */
static enum fkv_error segments_back(struct index *index, size_t count)
{
    bool failed = reservation_back(&index->segments, count * sizeof(struct segment)) ||
                  reservation_back(&index->links, count * sizeof(uint32_t)) ||
                  (index->limit.moves.base &&
                   reservation_back(&index->limit.moves, count * sizeof(struct moves)));
    return failed ? FKV_NO_MEMORY : FKV_OK;
}

/* Take a segment id out of those free; makes memory for it and its directory entry. */
static enum fkv_error segment_take(struct index *index, uint32_t *id)
{
    uint32_t next = index->free_segments;
    if (!next) {
        next = index->segment_count ? index->segment_count : 1; /* 0 ends lists */
        if (next >= 1u << INDEX_DEPTH_MAX)
            return error_set(FKV_FULL, "the index has its largest size");
        if (segments_back(index, (size_t)next + 1))
            return FKV_NO_MEMORY;
        enum fkv_error error =
            pages_extend(index->pages, SPACE_DIRECTORY, next / SEGMENTS_PER_PAGE + 1);
        if (error)
            return error;
    }
    uint32_t frame;
    enum fkv_error error =
        pages_load(index->pages, SPACE_DIRECTORY, next / SEGMENTS_PER_PAGE, &frame);
    if (error)
        return error;
    if (index->free_segments)
        index->free_segments = *segment_link(index, next);
    else
        index->segment_count = next + 1;
    *id = next; /* not before: whoever has an id gives it back */
    return FKV_OK;
}

static void segment_give(struct index *index, uint32_t id)
{
    *segment_link(index, id) = index->free_segments;
    index->free_segments = id;
}

/* Room to give back every page number there is. */
static enum fkv_error free_numbers_room(struct index *index, uint32_t count)
{
    uint32_t *numbers =
        memory_room(index->free_numbers, sizeof *numbers, count, &index->free_number_room);
    if (!numbers)
        return FKV_NO_MEMORY;
    index->free_numbers = numbers;
    return FKV_OK;
}

/* ---------------------------------------------------------------- building segments */

/* A segment under construction: nothing refers to it yet. */
struct building {
    uint32_t id;
    uint32_t prefix;
    uint32_t depth;
    uint32_t pages;
    uint32_t count;
    uint32_t planned;
    uint32_t plans; /* a list of them */
    uint32_t frame[SEGMENT_PAGES_MAX];
    uint32_t number[SEGMENT_PAGES_MAX];
};

/* False if there is no room. */
static bool building_insert(struct index *index, struct building *building, uint64_t tag,
                            uint64_t entry)
{
    struct probe probe = probe_of(tag, building->pages);
    for (uint32_t i = 0; i < probes_max(building->pages); i++) {
        uint32_t page;
        uint32_t at = probe_at(&probe, building->pages, i, &page);
        struct bucket *bucket =
            (struct bucket *)frame_bytes(index->pages, building->frame[page]) + at;
        if (bucket_fill(bucket, tag, entry)) {
            building->count++;
            return true;
        }
        bucket_mark(bucket, probe.class);
    }
    return false;
}

/* Take what a building needs; what was taken stays in it for building_undo. */
static enum fkv_error building_take(struct index *index, struct building *building)
{
    enum fkv_error error = segment_take(index, &building->id);
    if (error)
        return error;
    for (uint32_t i = 0; i < building->pages; i++) {
        building->frame[i] = frame_new(index->pages);
        if (!building->frame[i])
            return FKV_NO_MEMORY;
        memset(frame_bytes(index->pages, building->frame[i]), 0, PAGE_BYTES);
        if (index->free_number_count) {
            building->number[i] = index->free_numbers[--index->free_number_count];
        } else {
            if ((error = pages_extend(index->pages, SPACE_INDEX, index->next_number + 1)) ||
                (error = free_numbers_room(index, index->next_number + 1))) {
                frame_free(index->pages, building->frame[i]);
                building->frame[i] = 0;
                return error;
            }
            building->number[i] = index->next_number++;
        }
    }
    return FKV_OK;
}

static void building_undo(struct index *index, struct building *building)
{
    if (!building->id)
        return;
    for (uint32_t i = 0; i < building->pages && building->frame[i]; i++) {
        frame_free(index->pages, building->frame[i]);
        index->free_numbers[index->free_number_count++] = building->number[i];
    }
    segment_give(index, building->id);
}

/* Write the directory entry, and what readers need, and the pages. */
static void building_finish(struct index *index, const struct building *building)
{
    struct format_segment entry = {.prefix = building->prefix,
                                   .depth = (uint8_t)building->depth,
                                   .pages = (uint8_t)building->pages,
                                   .count = (uint16_t)building->count};
    struct segment segment = {.depth = (uint8_t)building->depth,
                              .pages = (uint8_t)building->pages,
                              .count = (uint16_t)building->count,
                              .planned = (uint16_t)building->planned};
    for (uint32_t i = 0; i < building->pages; i++) {
        entry.page[i] = building->number[i];
        segment.frame[i] = building->frame[i];
        pages_place(index->pages, SPACE_INDEX, building->number[i], building->frame[i]);
    }
    *directory_write(index, building->id) = entry;
    *segment_of(index, building->id) = segment;
    *segment_link(index, building->id) = building->plans;
    index->page_count += building->pages;
}

/* Point all slots of the directory under a prefix to a segment. */
static void directory_point(struct directory *directory, const struct building *building)
{
    uint32_t spread = directory->depth - building->depth;
    uint32_t first = building->prefix << spread;
    for (uint32_t i = 0; i < 1u << spread; i++)
        __atomic_store_n(&directory->segment[first + i], building->id, __ATOMIC_RELEASE);
}

static void directory_switch(struct index *index, struct directory *wider)
{
    struct directory *old = index->directory;
    for (uint32_t i = 0; i < 1u << wider->depth; i++)
        wider->segment[i] = old->segment[i >> (wider->depth - old->depth)];
    __atomic_store_n(&index->directory, wider, __ATOMIC_RELEASE);
    reclaim_block(index->reclaim, &old->retired);
}

/* The segment is no longer in the directory: free its parts once no reader is in it. */
static void segment_retire(struct index *index, uint32_t id)
{
    struct retired *retired = &index->reclaim->filling;
    struct format_segment *entry = directory_write(index, id);
    pthread_mutex_lock(&index->pages->load_lock); /* see load_page */
    struct format_segment gone = *entry;
    *entry = (struct format_segment){0};
    index_moves_end(index, id);
    pthread_mutex_unlock(&index->pages->load_lock);
    for (uint32_t i = 0; i < gone.pages; i++) {
        uint32_t frame = pages_discard(index->pages, SPACE_INDEX, gone.page[i]);
        if (frame) {
            *frame_link(index->pages, frame) = retired->frames;
            retired->frames = frame;
        }
        index->free_numbers[index->free_number_count++] = gone.page[i];
    }
    index->page_count -= gone.pages;
    *segment_link(index, id) = retired->segments;
    retired->segments = id;
    retired->count++;
}

static enum fkv_error segment_load(struct index *index, uint32_t id)
{
    struct segment *segment = segment_of(index, id);
    const struct format_segment *entry = directory_read(index, id);
    for (uint32_t i = 0; i < segment->pages; i++) {
        uint32_t frame = __atomic_load_n(&segment->frame[i], __ATOMIC_ACQUIRE);
        if (frame)
            continue;
        enum fkv_error error = pages_load(index->pages, SPACE_INDEX, entry->page[i], &frame);
        if (error)
            return error;
        __atomic_store_n(&segment->frame[i], frame, __ATOMIC_RELEASE);
    }
    return FKV_OK;
}

/* The directory has counted fewer. */
static enum fkv_error too_many_slots(const struct index *index, uint32_t id)
{
    return error_set(FKV_DAMAGED, "%s: segment %u of the index has more keys than it counts",
                     index->pages->path, id);
}

/* Copy all slots of a segment into the buildings; `shift` is what its prefix grows by: 1 when it
 * splits in two buildings, 0, or -1 when it is merged into one. */
static enum fkv_error segment_pour(struct index *index, uint32_t id, int shift,
                                   struct building *into)
{
    const struct segment *segment = segment_of(index, id);
    uint64_t last_bit = directory_read(index, id)->prefix & 1;
    for (uint32_t p = 0; p < segment->pages; p++) {
        const struct slot *slots = frame_bytes(index->pages, segment->frame[p]);
        for (uint32_t s = 0; s < SLOTS_PER_PAGE; s++) {
            uint64_t tag = slots[s].tag & TAG_MASK;
            uint64_t entry = slots[s].entry;
            uint64_t low = entry >> LOW_SHIFT;
            struct building *target = into;
            if (!entry)
                continue;
            if (shift > 0) {
                target = &into[tag >> (TAG_BITS - 1)];
                tag = (tag << 1 & TAG_MASK) | low >> (LOW_BITS - 1);
                low = low << 1 & ((1u << LOW_BITS) - 1);
            } else if (shift < 0) {
                uint64_t lost = low & 1;
                low = low >> 1 | (tag & 1) << (LOW_BITS - 1) | lost;
                tag = tag >> 1 | last_bit << (TAG_BITS - 1);
            }
            if (!building_insert(index, target, tag, (entry & ENTRY_VALUE_MASK) | low << LOW_SHIFT))
                return too_many_slots(index, id);
        }
    }
    return FKV_OK;
}

/* Keys of a segment by the bit that a split would go by. */
static void segment_count_halves(struct index *index, uint32_t id, uint32_t count[2])
{
    const struct segment *segment = segment_of(index, id);
    count[0] = count[1] = 0;
    for (uint32_t p = 0; p < segment->pages; p++) {
        const struct slot *slots = frame_bytes(index->pages, segment->frame[p]);
        for (uint32_t s = 0; s < SLOTS_PER_PAGE; s++)
            if (slots[s].entry)
                count[slots[s].tag >> (TAG_BITS - 1) & 1]++;
    }
}

/* Which half of a segment that was split to this depth a key belongs to. */
static uint32_t half_of(struct hash128 hash, uint32_t depth)
{
    return hash.hi >> (64 - depth) & 1;
}

static void segment_count_planned(const struct index *index, uint32_t id, uint32_t depth,
                                  uint32_t planned[2])
{
    planned[0] = planned[1] = 0;
    for (uint32_t p = *segment_link(index, id); p; p = index->plans[p - 1].next)
        planned[half_of(index->plans[p - 1].hash, depth)]++;
}

/* Hand the plans of a segment on to what takes its place. */
static void segment_pour_plans(struct index *index, uint32_t id, struct building *into,
                               int target_count)
{
    if (target_count == 1 && !into[0].plans) { /* the whole list, as it is */
        into[0].plans = *segment_link(index, id);
        return;
    }
    for (uint32_t p = *segment_link(index, id), next; p; p = next) {
        struct plan *plan = &index->plans[p - 1];
        struct building *target = &into[target_count > 1 ? half_of(plan->hash, into[0].depth) : 0];
        next = plan->next;
        plan->next = target->plans;
        target->plans = p;
    }
}

/* Are there places in the file for the pages of what is built anew, so many, and those that go?
 * They count as changed whether the commit that this is for is made or refused: without places for
 * them no checkpoint would succeed any more, and so nothing that gives room back. */
static enum fkv_error room_for(const struct index *index, uint32_t pages, const uint32_t *sources,
                               int source_count)
{
    for (int s = 0; s < source_count; s++)
        pages += segment_of(index, sources[s])->pages;
    return index->room ? index->room(index->context, pages) : FKV_OK;
}

/*
 * Replace `sources` (one segment, or two that are merged) by `targets` (one, or two halves), whose
 * prefix, depth, pages and planned are set. All or nothing.
 */
static enum fkv_error rebuild(struct index *index, const uint32_t *sources, int source_count,
                              struct building *targets, int target_count)
{
    uint32_t frames = 8;
    uint32_t held = index->pages->frames.reserved; /* for the commit that this is a part of */
    for (int t = 0; t < target_count; t++)
        frames += targets[t].pages;
    enum fkv_error error = room_for(index, frames, sources, source_count);
    if (error)
        return error;
    struct directory *wider = NULL;
    if (targets[0].depth > index->directory->depth && !(wider = directory_new(targets[0].depth)))
        return FKV_NO_MEMORY;
    error = pages_reserve_frames(index->pages, held + frames);
    for (int s = 0; !error && s < source_count; s++)
        error = segment_load(index, sources[s]);
    for (int t = 0; !error && t < target_count; t++)
        error = building_take(index, &targets[t]);
    for (int s = 0; !error && s < source_count; s++)
        error = segment_pour(index, sources[s], target_count - source_count, targets);
    if (error) {
        for (int t = 0; t < target_count; t++)
            building_undo(index, &targets[t]);
        memory_free(wider);
        pages_reserve_frames(index->pages, held);
        return error;
    }
    for (int s = 0; s < source_count; s++)
        segment_pour_plans(index, sources[s], targets, target_count);
    if (wider)
        directory_switch(index, wider);
    for (int t = 0; t < target_count; t++) {
        building_finish(index, &targets[t]);
        directory_point(index->directory, &targets[t]);
    }
    for (int s = 0; s < source_count; s++)
        segment_retire(index, sources[s]);
    pages_reserve_frames(index->pages, held);
    index->rebuilds++;
    return FKV_OK;
}

/* Build a segment again with so many pages. */
static enum fkv_error resize(struct index *index, uint32_t id, uint32_t pages)
{
    struct segment *segment = segment_of(index, id);
    struct building target = {.prefix = directory_read(index, id)->prefix,
                              .depth = segment->depth,
                              .pages = pages,
                              .planned = segment->planned};
    return rebuild(index, &id, 1, &target, 1);
}

static enum fkv_error split(struct index *index, uint32_t id)
{
    struct segment *segment = segment_of(index, id);
    if (segment->depth == INDEX_DEPTH_MAX)
        return error_set(FKV_FULL, "the index has its largest size");
    enum fkv_error error = segment_load(index, id);
    if (error)
        return error;
    uint32_t count[2], planned[2];
    segment_count_halves(index, id, count);
    segment_count_planned(index, id, segment->depth + 1u, planned);
    struct building halves[2];
    for (uint32_t h = 0; h < 2; h++) {
        uint32_t pages = segment_pages_for(count[h] + planned[h]);
        halves[h] =
            (struct building){.prefix = directory_read(index, id)->prefix << 1 | h,
                              .depth = segment->depth + 1u,
                              .pages = pages < SEGMENT_PAGES_MAX ? pages : SEGMENT_PAGES_MAX,
                              .planned = planned[h]};
    }
    return rebuild(index, &id, 1, halves, 2);
}

/* Make room for one more key in a segment that has as many as it should. */
static enum fkv_error grow(struct index *index, uint32_t id)
{
    struct segment *segment = segment_of(index, id);
    uint32_t want = (uint32_t)divide_up(segment->count + segment->planned + 1u, SLOTS_USED_MAX);
    if (want <= segment->pages)
        want = segment->pages + 1u;
    if (want <= SEGMENT_PAGES_MAX)
        return resize(index, id, want);
    return split(index, id);
}

/* ---------------------------------------------------------------- creating, opening */

enum fkv_error index_create(struct index *index)
{
    index->directory = directory_new(0);
    if (!index->directory)
        return FKV_NO_MEMORY;
    struct building only = {.pages = 1};
    enum fkv_error error = pages_reserve_frames(index->pages, 4);
    if (error || (error = building_take(index, &only)))
        return error;
    building_finish(index, &only);
    index->directory->segment[0] = only.id;
    return FKV_OK;
}

static enum fkv_error damaged_directory(const struct index *index, uint32_t id)
{
    return error_set(FKV_DAMAGED, "%s: entry %u of the index directory is impossible",
                     index->pages->path, id);
}

/* Check an entry of the directory and note the pages it uses in `used`. */
static enum fkv_error open_entry(struct index *index, uint32_t id,
                                 const struct format_segment *entry, uint8_t *used)
{
    uint32_t page_count = index->pages->space[SPACE_INDEX].page_count;
    if (entry->pages > SEGMENT_PAGES_MAX || entry->depth > INDEX_DEPTH_MAX ||
        entry->count > entry->pages * SLOTS_PER_PAGE || (uint64_t)entry->prefix >> entry->depth)
        return damaged_directory(index, id);
    for (uint32_t i = 0; i < entry->pages; i++) {
        uint32_t number = entry->page[i];
        if (number >= page_count || used[number])
            return damaged_directory(index, id);
        used[number] = 1;
    }
    *segment_of(index, id) =
        (struct segment){.depth = entry->depth, .pages = entry->pages, .count = entry->count};
    index->page_count += entry->pages;
    index->entries += entry->count;
    return FKV_OK;
}

/* Fill the directory array from the entries; every slot must be covered exactly once. */
static enum fkv_error open_directory(struct index *index, uint32_t depth)
{
    index->directory = directory_new(depth);
    if (!index->directory)
        return FKV_NO_MEMORY;
    uint64_t covered = 0;
    for (uint32_t id = 1; id < index->segment_count; id++) {
        const struct format_segment *entry = directory_read(index, id);
        if (!entry->pages)
            continue;
        struct building as = {.id = id, .prefix = entry->prefix, .depth = entry->depth};
        uint32_t first = entry->prefix << (depth - entry->depth);
        for (uint32_t i = 0; i < 1u << (depth - entry->depth); i++)
            if (index->directory->segment[first + i])
                return damaged_directory(index, id);
        directory_point(index->directory, &as);
        covered += 1u << (depth - entry->depth);
    }
    if (covered != 1u << depth)
        return error_set(FKV_DAMAGED, "%s: the index directory has gaps", index->pages->path);
    return FKV_OK;
}

enum fkv_error index_open(struct index *index, uint32_t segments)
{
    uint32_t page_count = index->pages->space[SPACE_INDEX].page_count;
    if (segments < 2 || segments > 1u << INDEX_DEPTH_MAX ||
        divide_up(segments, SEGMENTS_PER_PAGE) > index->pages->space[SPACE_DIRECTORY].page_count)
        return error_set(FKV_DAMAGED, "%s: the header names an impossible index",
                         index->pages->path);
    if (segments_back(index, segments))
        return FKV_NO_MEMORY;
    index->segment_count = segments;
    uint8_t *used = memory_new(page_count);
    if (!used)
        return FKV_NO_MEMORY;
    enum fkv_error error = free_numbers_room(index, page_count);
    uint32_t depth = 0;
    for (uint32_t id = 1; !error && id < segments; id++) {
        uint32_t frame;
        if (id == 1 || id % SEGMENTS_PER_PAGE == 0)
            error = pages_load(index->pages, SPACE_DIRECTORY, id / SEGMENTS_PER_PAGE, &frame);
        if (error)
            break;
        const struct format_segment *entry = directory_read(index, id);
        if (!entry->pages) {
            segment_give(index, id);
            continue;
        }
        error = open_entry(index, id, entry, used);
        depth = (uint32_t)max_u64(depth, entry->depth);
    }
    for (uint32_t number = page_count; !error && number-- > 0;)
        if (!used[number])
            index->free_numbers[index->free_number_count++] = number;
    index->next_number = page_count;
    memory_free(used);
    return error ? error : open_directory(index, depth);
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
    index_prefetch_bucket(index, hash);
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
    return too_many_slots(index, id);
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
            if ((error = grow(index, id)) == FKV_OK)
                continue;
            /* Without memory to grow in, or places in the file, there is room to the last slot. */
            if (count >= segment->pages * SLOTS_PER_PAGE)
                return error;
        } else if (segment->stale > limit / 4) {
            if (resize(index, id, segment->pages) == FKV_OK)
                continue;
        }
        /* Beside other inserts it may pass through any page of the segment. */
        if ((error = segment->planned ? segment_load(index, id) : load_path(index, id, hash)))
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

/* Merge a segment with its neighbour of the same prefix but for the last bit. */
static bool merge(struct index *index, uint32_t id)
{
    uint32_t depth = segment_of(index, id)->depth;
    uint32_t prefix = directory_read(index, id)->prefix;
    uint32_t other = index->directory->segment[(prefix ^ 1) << (index->directory->depth - depth)];
    if (segment_of(index, other)->depth != depth)
        return false;
    uint32_t planned = (uint32_t)segment_of(index, id)->planned + segment_of(index, other)->planned;
    uint32_t pages = segment_pages_for((uint32_t)segment_of(index, id)->count +
                                       segment_of(index, other)->count + planned);
    if (pages > MERGED_PAGES_MAX)
        return false;
    struct building merged = {
        .prefix = prefix >> 1, .depth = depth - 1, .pages = pages, .planned = planned};
    uint32_t sources[2] = {id, other};
    return rebuild(index, sources, 2, &merged, 1) == FKV_OK;
}

void index_tidy(struct index *index, struct hash128 hash)
{
    uint32_t id = segment_id(index, hash);
    struct segment *segment = segment_of(index, id);
    uint32_t count = segment->count + segment->planned;
    if (count >= segment->pages * (SLOTS_USED_MAX * 2u / 3) ||
        (segment->pages == 1 && (!segment->depth || count > SLOTS_USED_MAX / 2)))
        return;
    if (segment->depth && segment->pages < MERGED_PAGES_MAX && merge(index, id))
        return;
    uint32_t pages = segment_pages_for(count);
    if (pages < segment->pages)
        resize(index, id, pages);
}

void index_reclaim(struct index *index, uint32_t segments)
{
    for (uint32_t next; segments; segments = next) {
        next = *segment_link(index, segments);
        struct segment *segment = segment_of(index, segments);
        memset(segment->frame, 0, sizeof segment->frame); /* for segment_is_here */
        segment_give(index, segments);
    }
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
