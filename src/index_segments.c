#include "index_parts.h"

#include <assert.h>

/* Segments are merged if the result has at most this many pages. */
enum { MERGED_PAGES_MAX = 9 };

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

enum fkv_error index_segment_load(struct index *index, uint32_t id)
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

enum fkv_error index_too_many_slots(const struct index *index, uint32_t id)
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
                return index_too_many_slots(index, id);
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
        error = index_segment_load(index, sources[s]);
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

enum fkv_error index_resize(struct index *index, uint32_t id, uint32_t pages)
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
    enum fkv_error error = index_segment_load(index, id);
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

enum fkv_error index_grow(struct index *index, uint32_t id)
{
    struct segment *segment = segment_of(index, id);
    uint32_t want = (uint32_t)divide_up(segment->count + segment->planned + 1u, SLOTS_USED_MAX);
    if (want <= segment->pages)
        want = segment->pages + 1u;
    if (want <= SEGMENT_PAGES_MAX)
        return index_resize(index, id, want);
    return split(index, id);
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
        index_resize(index, id, pages);
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

/* ---------------------------------------------------------------- creating and opening */

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
