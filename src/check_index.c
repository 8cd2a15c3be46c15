#include "check_parts.h"

enum { BLOCK_PAGES = 64 };

/* ---------------------------------------------------------------- loading */

/* Memory for one page, aligned as frames are. */
static uint8_t *page_room(struct check *check)
{
    struct checked_index *index = &check->index;
    index->blocks.item_bytes = sizeof(uint8_t *);
    if (!index->blocks.count || index->block_used == BLOCK_PAGES) {
        uint8_t **block = vector_add(&index->blocks);
        if (block && !(*block = memory_new((BLOCK_PAGES + 1) * PAGE_BYTES))) {
            index->blocks.count--;
            block = NULL;
        }
        if (!block) {
            check_no_memory(check);
            return NULL;
        }
        index->block_used = 0;
    }
    uint8_t *block = ((uint8_t **)index->blocks.items)[index->blocks.count - 1];
    return (uint8_t *)round_up((uintptr_t)block, PAGE_BYTES) + index->block_used * PAGE_BYTES;
}

static void load_page(struct check *check, uint32_t number)
{
    uint8_t *room = page_room(check);
    if (!room)
        return;
    const void *bytes = check_page(check, SPACE_INDEX, number, room);
    check->index.pages[number] = bytes;
    if (bytes == room)
        check->index.block_used++;
    check->pages_lost |= !bytes;
}

static bool segment_is_possible(const struct check *check, const struct format_segment *segment)
{
    if (segment->pages > SEGMENT_PAGES_MAX || segment->depth > INDEX_DEPTH_MAX ||
        (uint64_t)segment->prefix >> segment->depth ||
        segment->count > segment->pages * SLOTS_PER_PAGE)
        return false;
    for (uint32_t i = 0; i < segment->pages; i++)
        if (segment->page[i] >= check->index.page_count)
            return false;
    return true;
}

static bool load_directory(struct check *check)
{
    struct checked_index *index = &check->index;
    uint8_t room[PAGE_BYTES];
    const struct format_segment *entries = NULL;
    for (uint32_t id = 1; id < index->segment_count; id++) {
        if (id == 1 || id % SEGMENTS_PER_PAGE == 0)
            entries = check_page(check, SPACE_DIRECTORY, id / SEGMENTS_PER_PAGE, room);
        check->pages_lost |= !entries;
        if (!entries)
            continue;
        struct format_segment *segment = &index->segments[id];
        *segment = entries[id % SEGMENTS_PER_PAGE];
        if (!segment_is_possible(check, segment)) {
            report(&check->report, FKV_PART_INDEX, NOWHERE,
                   "entry %u of the index directory is impossible", id);
            *segment = (struct format_segment){0};
            check->pages_lost = true;
        }
        if (segment->pages && segment->depth > index->depth)
            index->depth = segment->depth;
    }
    index->directory = memory_new(sizeof(uint32_t) << index->depth);
    return index->directory || check_no_memory(check);
}

/* Every hash has one segment, every page of the index one segment or none. */
static void cover(struct check *check)
{
    struct checked_index *index = &check->index;
    uint64_t gaps = 0;
    for (uint32_t id = 1; id < index->segment_count; id++) {
        const struct format_segment *segment = &index->segments[id];
        if (!segment->pages)
            continue;
        uint32_t spread = index->depth - segment->depth, i = 0;
        uint32_t *slots = &index->directory[segment->prefix << spread];
        while (i < 1u << spread && !slots[i])
            slots[i++] = id;
        /* That ends at the first which is another's: there may be millions, in each segment. */
        if (i < 1u << spread)
            report(&check->report, FKV_PART_INDEX, NOWHERE,
                   "segments %u and %u of the index are of the same hashes", slots[i], id);
    }
    for (uint32_t slot = 0; slot < 1u << index->depth; slot++)
        gaps += !index->directory[slot];
    if (gaps && index->segment_count && !check->pages_lost)
        report(&check->report, FKV_PART_INDEX, NOWHERE,
               "%llu of %u parts of the index lead to no segment", (unsigned long long)gaps,
               1u << index->depth);
}

/* A page of the index that no segment has holds nothing. */
static void check_unused(struct check *check)
{
    if (check->db || check->pages_lost)
        return; /* in memory, check_memory.c knows more */
    for (uint32_t n = 0; n < check->index.page_count; n++)
        if (!check->index.pages[n] && check->image.space[SPACE_INDEX].pages[n].location)
            report(&check->report, FKV_PART_INDEX,
                   check->image.space[SPACE_INDEX].pages[n].location * PAGE_BYTES,
                   "page %u of the index belongs to no segment", n);
}

/* ---------------------------------------------------------------- slots */

static const struct slot *slot_at(const struct check *check, uint32_t page, uint32_t slot)
{
    return &check->index.pages[page][slot / SLOTS_PER_BUCKET].slot[slot % SLOTS_PER_BUCKET];
}

/* All hash bits that a slot has, and how many at the end are not known. */
static unsigned __int128 slot_bits(const struct slot *slot, uint32_t *unknown)
{
    unsigned __int128 bits = (unsigned __int128)(slot->tag & TAG_MASK) << LOW_BITS |
                             (uint32_t)(slot->entry >> LOW_SHIFT);
    *unknown = (uint64_t)bits ? (uint32_t)__builtin_ctzll((uint64_t)bits) + 1 : 64;
    return bits;
}

static bool slots_agree(const struct slot *a, const struct slot *b)
{
    uint32_t unknown_a, unknown_b;
    unsigned __int128 differ = slot_bits(a, &unknown_a) ^ slot_bits(b, &unknown_b);
    return differ >> (unknown_a > unknown_b ? unknown_a : unknown_b) == 0;
}

/* Is a search for this slot's key sure to end at it? */
static void check_slot(struct check *check, uint32_t id, const struct slot *slot)
{
    const struct format_segment *segment = &check->index.segments[id];
    struct probe probe = probe_of(slot->tag & TAG_MASK, segment->pages);
    uint32_t unknown, page, at;
    slot_bits(slot, &unknown);
    if (unknown > LOW_BITS + 16) {
        report(&check->report, FKV_PART_INDEX, NOWHERE,
               "a slot in segment %u of the index knows too little of its key", id);
        return;
    }
    for (uint32_t i = 0; i < probes_max(segment->pages); i++) {
        at = probe_at(&probe, segment->pages, i, &page);
        if (!check->index.pages[segment->page[page]])
            return;
        const struct bucket *bucket = &check->index.pages[segment->page[page]][at];
        for (int s = 0; s < SLOTS_PER_BUCKET; s++) {
            if (&bucket->slot[s] == slot)
                return;
            if (bucket->slot[s].entry && slots_agree(&bucket->slot[s], slot)) {
                report(&check->report, FKV_PART_INDEX, NOWHERE,
                       "two slots in segment %u of the index are of the same key", id);
                return;
            }
        }
        if (!is_marked(bucket, probe.class))
            break;
    }
    report(&check->report, FKV_PART_INDEX, NOWHERE,
           "a slot in segment %u of the index is not found by searches", id);
}

static void load_segment(struct check *check, uint32_t id)
{
    struct checked_index *index = &check->index;
    const struct format_segment *segment = &index->segments[id];
    uint32_t count = 0;
    bool whole = true;
    for (uint32_t p = 0; p < segment->pages && check_goes_on(check); p++) {
        if (index->pages[segment->page[p]]) {
            report(&check->report, FKV_PART_INDEX, NOWHERE,
                   "page %u of the index belongs to segment %u and to another", segment->page[p],
                   id);
            continue;
        }
        load_page(check, segment->page[p]);
        whole &= index->pages[segment->page[p]] != NULL;
    }
    for (uint32_t p = 0; p < segment->pages && check_goes_on(check); p++) {
        if (!index->pages[segment->page[p]])
            continue;
        for (uint32_t s = 0; s < SLOTS_PER_PAGE; s++) {
            const struct slot *slot = slot_at(check, segment->page[p], s);
            if (!slot->entry)
                continue;
            count++;
            check_slot(check, id, slot);
        }
    }
    index->entries += count;
    if (whole && count != segment->count)
        report(&check->report, FKV_PART_INDEX, NOWHERE,
               "segment %u of the index has %u entries, and counts %u", id, count, segment->count);
}

/* Can a file of that length have so many segments? Numbers of segments are used again, so that all
 * but a few pages of the directory are in the file, and far more of the index with them. */
static bool segments_possible(const struct check *check)
{
    uint64_t pages = divide_up(check->segment_count, SEGMENTS_PER_PAGE);
    return check->segment_count <= 1u << INDEX_DEPTH_MAX &&
           pages <= check->page_count[SPACE_DIRECTORY] &&
           pages <= divide_up(check->image.file_bytes, PAGE_BYTES);
}

void check_index_load(struct check *check)
{
    struct checked_index *index = &check->index;
    index->page_count = check->page_count[SPACE_INDEX];
    index->segment_count = check->segment_count;
    if (!check->db && !segments_possible(check)) {
        report(&check->report, FKV_PART_INDEX, NOWHERE, "the header names an impossible index");
        check->pages_lost = true;
        index->segment_count = 0;
    }
    index->segments = memory_new(index->segment_count * sizeof *index->segments);
    index->pages = memory_new(index->page_count * sizeof(struct bucket *));
    index->confirmed = memory_new((uint64_t)index->page_count * SLOTS_PER_PAGE / 8);
    if (!index->segments || !index->pages || !index->confirmed) {
        check_no_memory(check);
        return;
    }
    if (!load_directory(check))
        return;
    cover(check);
    for (uint32_t id = 1; id < index->segment_count && check_goes_on(check); id++)
        if (index->segments[id].pages)
            load_segment(check, id);
    if (check_goes_on(check))
        check_unused(check);
}

void check_index_drop(struct check *check)
{
    struct checked_index *index = &check->index;
    for (size_t i = 0; i < index->blocks.count; i++)
        memory_free(((uint8_t **)index->blocks.items)[i]);
    vector_drop(&index->blocks);
    memory_free(index->segments);
    memory_free(index->directory);
    memory_free(index->pages);
    memory_free(index->confirmed);
}

/* ---------------------------------------------------------------- searching */

enum index_answer check_index_find(const struct check *check, struct hash128 hash,
                                   struct index_place *place)
{
    const struct checked_index *index = &check->index;
    uint32_t id = index->directory[index->depth ? hash.hi >> (64 - index->depth) : 0];
    if (!id)
        return INDEX_UNKNOWN;
    const struct format_segment *segment = &index->segments[id];
    struct fragment key = fragment_of(hash, segment->depth);
    struct probe probe = probe_of(key.tag, segment->pages);
    for (uint32_t i = 0; i < probes_max(segment->pages); i++) {
        uint32_t page;
        uint32_t at = probe_at(&probe, segment->pages, i, &page);
        uint32_t number = segment->page[page];
        if (!index->pages[number])
            return INDEX_UNKNOWN;
        const struct bucket *bucket = &index->pages[number][at];
        for (uint32_t s = 0; s < SLOTS_PER_BUCKET; s++) {
            const struct slot *slot = &bucket->slot[s];
            if (slot->entry && ((slot->tag ^ key.tag) & TAG_SURE) == 0 &&
                fragment_agrees(key, slot->tag, slot->entry)) {
                *place = (struct index_place){slot->entry, number, at * SLOTS_PER_BUCKET + s};
                return INDEX_FOUND;
            }
        }
        if (!is_marked(bucket, probe.class))
            break;
    }
    return INDEX_ABSENT;
}

/* ---------------------------------------------------------------- slots that are left over */

/* What is wrong with an entry that led no live record here. */
static void explain(struct check *check, uint32_t id, uint64_t entry)
{
    uint64_t address = entry_address(entry);
    uint32_t cells = entry_cells(entry);
    uint32_t sector = (uint32_t)(address / SECTOR_CELLS);
    uint32_t cell = address % SECTOR_CELLS;
    const char *what = "where no live record of its key begins";
    if (sector && sector < check->sector_count &&
        check->sectors[sector].kind == SECTOR_IS_UNKNOWN) {
        check->result.keys_unreadable++;
        return; /* the table is lost, and so nothing is known of the sector */
    }
    if (!sector || sector >= check->sector_count ||
        check->sectors[sector].kind != SECTOR_IS_VALUES) {
        what = "where there are no values";
    } else if (cell < SECTOR_HEADER_CELLS || !cells || cell + cells > SECTOR_CELLS) {
        what = "where no record can be";
    } else if (check_is_damaged(check, address, cells)) {
        check->result.keys_unreadable++;
        return; /* it is said already that there are no whole records */
    }
    report(&check->report, FKV_PART_INDEX, NOWHERE,
           "a slot in segment %u of the index leads to sector %u, cell %u, %s", id, sector, cell,
           what);
}

void check_index_rest(struct check *check)
{
    const struct checked_index *index = &check->index;
    for (uint32_t id = 1; id < index->segment_count; id++) {
        const struct format_segment *segment = &index->segments[id];
        for (uint32_t p = 0; p < segment->pages; p++) {
            uint32_t page = segment->page[p];
            if (!index->pages[page])
                continue;
            for (uint32_t s = 0; s < SLOTS_PER_PAGE; s++)
                if (slot_at(check, page, s)->entry &&
                    !(index->confirmed[page * 4ull + s / 64] >> (s & 63) & 1))
                    explain(check, id, slot_at(check, page, s)->entry);
        }
    }
}
