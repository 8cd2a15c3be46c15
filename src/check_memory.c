#include <stdarg.h>
#include <stdio.h>

#include "check_parts.h"
#include "tree.h"

/*
 * What an open handle has in memory, against its own invariants (pages.h, sectors.h, index.h) and
 * against the file. Lists are followed for no more steps than they can have.
 */

static void wrong(struct check *check, enum fkv_part part, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void wrong(struct check *check, enum fkv_part part, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    report(&check->report, part, NOWHERE, "%s", text);
}

static void expect(struct check *check, enum fkv_part part, const char *what, uint64_t counted,
                   uint64_t kept)
{
    if (counted != kept)
        wrong(check, part, "%s: %llu are counted, there are %llu", what, (unsigned long long)kept,
              (unsigned long long)counted);
}

/* ---------------------------------------------------------------- places of pages */

/* Which places are referred to by the trees in memory: like page_sector.used, in the same order. */
struct places_seen {
    uint64_t (*words)[SECTOR_PAGES / 64];
    uint64_t count;
};

static void place(struct check *check, struct places_seen *places, uint64_t location,
                  enum space space, uint32_t level, uint32_t number)
{
    const struct pages *pages = &check->db->pages;
    uint32_t at = places_sector_at(&pages->places, location / SECTOR_PAGES);
    uint32_t p = location % SECTOR_PAGES;
    if (!location)
        return;
    const char *bad = NULL;
    if (!at || at > pages->places.sector_count)
        bad = "in a sector that holds no pages";
    else if (!(pages->places.sectors[at - 1].used[p >> 6] >> (p & 63) & 1))
        bad = "at a place that counts as free";
    else if (pages->places.sectors[at - 1].retired[p >> 6] >> (p & 63) & 1)
        bad = "at a place that is to be free";
    else if (places->words[at - 1][p >> 6] >> (p & 63) & 1)
        bad = "where another one is";
    if (bad) {
        wrong(check, FKV_PART_PAGES, "the %s page %u (level %u) is, at page %llu of the file, %s",
              image_space_name(space), number, level, (unsigned long long)location, bad);
        return;
    }
    places->words[at - 1][p >> 6] |= 1ull << (p & 63);
    places->count++;
}

static void place_space(struct check *check, struct places_seen *places, enum space which)
{
    const struct page_space *space = &check->db->pages.space[which];
    for (uint32_t n = 0; n < space->page_count; n++)
        place(check, places, pages_find(&check->db->pages, which, n)->location, which, 0, n);
    for (uint32_t k = 0; k < space_height(space->page_count); k++)
        for (uint32_t n = 0; n < level_count(space->page_count, k); n++)
            place(check, places, space->level[k][n].location, which, k + 1, n);
}

/* The places in use are those of the trees in memory and the retired ones, and the tree in the file
 * is among them. */
static void check_places(struct check *check)
{
    const struct pages *pages = &check->db->pages;
    struct places_seen places = {0};
    uint64_t used = 0, lost = 0, stolen = 0;
    places.words = memory_new((pages->places.sector_count + 1) * sizeof *places.words);
    if (!places.words) {
        check_no_memory(check);
        return;
    }
    for (int s = 0; s < SPACE_COUNT; s++)
        place_space(check, &places, s);
    for (uint32_t i = 0; i < pages->places.sector_count; i++) {
        const struct page_sector *sector = &pages->places.sectors[i];
        uint32_t in_sector = 0;
        for (uint32_t w = 0; w < SECTOR_PAGES / 64; w++) {
            lost += (uint32_t)__builtin_popcountll(sector->used[w] & ~sector->retired[w] &
                                                   ~places.words[i][w]);
            in_sector += (uint32_t)__builtin_popcountll(sector->used[w]);
            if (check->image.claimed && sector->sector < check->image.sector_count)
                stolen += (uint32_t)__builtin_popcountll(
                    check->image.claimed[sector->sector * (SECTOR_PAGES / 64) + w] &
                    ~sector->used[w]);
        }
        if (places_sector_at(&pages->places, sector->sector) != i + 1)
            wrong(check, FKV_PART_SPACE, "sector %u, of pages, is not found by its number",
                  sector->sector);
        expect(check, FKV_PART_SPACE, "pages in a sector of pages", in_sector, sector->used_count);
        used += in_sector;
    }
    memory_free(places.words);
    expect(check, FKV_PART_SPACE, "pages in use", used, pages->places.used_count);
    if (lost)
        wrong(check, FKV_PART_SPACE, "%llu places for pages are in use by nothing",
              (unsigned long long)lost);
    if (stolen)
        wrong(check, FKV_PART_SPACE, "%llu pages of the last checkpoint count as free",
              (unsigned long long)stolen);
}

/* ---------------------------------------------------------------- pages in memory */

/* A page that was not changed since it was written is what was written. */
static void check_clean(struct check *check, enum space space, uint32_t number,
                        const struct page *page)
{
    struct pages *pages = &check->db->pages;
    pthread_mutex_lock(&pages->load_lock); /* a reader may bring it in; it does not leave again */
    uint32_t frame = page->frame;
    bool zero = page->zero;
    pthread_mutex_unlock(&pages->load_lock);
    if (!frame)
        return;
    const void *bytes = frame_bytes(pages, frame);
    bool same = page->location ? page_checksum(bytes, page_seed(space, 0, number)) == page->checksum
                               : page_is_zero(bytes);
    if (!same)
        wrong(check, FKV_PART_MEMORY, "the %s page %u was changed and is not marked for it",
              image_space_name(space), number);
    if (zero)
        wrong(check, FKV_PART_MEMORY, "the %s page %u is in memory and marked as zeros",
              image_space_name(space), number);
}

static void check_marks(struct check *check)
{
    const struct pages *pages = &check->db->pages;
    uint64_t dirty = 0, pending = 0;
    for (int s = 0; s < SPACE_COUNT; s++)
        for (uint32_t n = 0; n < pages->space[s].page_count; n++) {
            const struct page_chunk *chunk = pages->space[s].chunks[n >> 8];
            const struct page *page = &chunk->page[n & 255];
            bool now = chunk->dirty[pages->epoch & 1][n >> 6 & 3] >> (n & 63) & 1;
            bool then = chunk->dirty[(pages->epoch - 1) & 1][n >> 6 & 3] >> (n & 63) & 1;
            dirty += now;
            pending += then;
            if (now != (page->epoch == pages->epoch))
                wrong(check, FKV_PART_MEMORY, "the %s page %u is marked for another epoch",
                      image_space_name(s), n);
            if (page->saved && !then)
                wrong(check, FKV_PART_MEMORY, "the %s page %u has a copy for no checkpoint",
                      image_space_name(s), n);
            if (!now && !then)
                check_clean(check, s, n, page);
        }
    expect(check, FKV_PART_MEMORY, "pages to be written", dirty, pages->dirty_pages);
    expect(check, FKV_PART_MEMORY, "pages the checkpoint has to write", pending,
           pages->pending_pages);
}

/* The load lock is held. */
static void check_parked(struct check *check)
{
    const struct pages *pages = &check->db->pages;
    const struct page_space *space = &pages->space[SPACE_INDEX];
    const struct index *index = &check->db->index;
    uint64_t count = 0, bytes = 0;
    for (uint32_t n = 0; n < space->page_count; n++) {
        const struct page_chunk *chunk = space->chunks[n / NODE_FANOUT];
        const struct page *page = &chunk->page[n % NODE_FANOUT];
        const struct delta *delta = chunk->deltas ? chunk->deltas[n % NODE_FANOUT] : NULL;
        if (!delta)
            continue;
        count++;
        bytes += delta_bytes(units_count(&delta->changed));
        if (page->frame || page->epoch != pages->epoch)
            wrong(check, FKV_PART_MEMORY, "the index page %u is parked and %s", n,
                  page->frame ? "in memory" : "not changed");
    }
    for (uint32_t id = 1; index->limit.moves.base && id < index->segment_count; id++)
        bytes += moves_bytes((const struct moves *)index->limit.moves.base + id);
    expect(check, FKV_PART_MEMORY, "parked pages", count, pages->parked_pages);
    expect(check, FKV_PART_MEMORY, "bytes of parked pages", bytes, pages->parked_bytes);
}

/* ---------------------------------------------------------------- frames */

struct frame_use {
    struct check *check;
    uint8_t *used;
    uint32_t count;
};

static bool use_frame(struct frame_use *use, uint32_t frame, const char *what)
{
    if (frame >= use->check->db->pages.frames.count) {
        wrong(use->check, FKV_PART_MEMORY, "frame %u, %s, does not exist", frame, what);
        return false;
    }
    if (use->used[frame]++) {
        wrong(use->check, FKV_PART_MEMORY, "frame %u, %s, is in use twice", frame, what);
        return false;
    }
    use->count++;
    return true;
}

static uint32_t use_list(struct frame_use *use, uint32_t frame, const char *what)
{
    uint32_t count = 0;
    for (; frame && use_frame(use, frame, what); count++)
        frame = *frame_link(&use->check->db->pages, frame);
    return count;
}

/* Every frame is in use for one thing. The load lock is held: who is between taking a frame and
 * using it has it counted. */
static void check_frames(struct check *check)
{
    const struct pages *pages = &check->db->pages;
    struct frame_use use = {.check = check, .used = memory_new(pages->frames.count)};
    if (!use.used) {
        check_no_memory(check);
        return;
    }
    for (int s = 0; s < SPACE_COUNT; s++) {
        uint32_t count = 0;
        for (uint32_t n = 0; n < pages->space[s].page_count; n++) {
            const struct page *page = pages_find(pages, s, n);
            count += page->frame != 0;
            if (page->frame)
                use_frame(&use, page->frame, "of a page");
            if (page->saved && page->saved != SAVED_ZEROS)
                use_frame(&use, page->saved, "of a copy for a checkpoint");
        }
        expect(check, FKV_PART_MEMORY, "pages in memory", count, pages->space[s].frame_count);
    }
    use_list(&use, check->db->reclaim.filling.frames, "retired");
    use_list(&use, check->db->reclaim.waiting.frames, "retired");
    expect(check, FKV_PART_MEMORY, "free frames", use_list(&use, pages->frames.free_head, "free"),
           pages->frames.free_count);
    expect(check, FKV_PART_MEMORY, "frames", use.count + pages->loading_frames,
           pages->frames.count - 1);
    memory_free(use.used);
}

/* ---------------------------------------------------------------- sectors */

struct sector_use {
    struct check *check;
    uint8_t *used;
};

static bool use_sector(struct sector_use *use, uint32_t sector, const char *what)
{
    if (!sector || sector >= use->check->sector_count) {
        wrong(use->check, FKV_PART_SPACE, "sector %u, %s, is not in the file", sector, what);
        return false;
    }
    if (use->used[sector]++) {
        wrong(use->check, FKV_PART_SPACE, "sector %u, %s, is something else too", sector, what);
        return false;
    }
    return true;
}

static void use_queue(struct sector_use *use)
{
    struct check *check = use->check;
    const struct sectors *sectors = &check->db->sectors;
    uint32_t previous = 0, count = 0;
    for (uint32_t s = sectors->front; s && use_sector(use, s, "in the queue"); count++) {
        const struct sector *state = sector_state(sectors, s);
        if (state->type != SECTOR_VALUES)
            wrong(check, FKV_PART_SPACE, "sector %u is in the queue and not of values", s);
        if (state->previous != previous)
            wrong(check, FKV_PART_SPACE, "sector %u is not linked to the one before it", s);
        if (previous &&
            sector_view(sectors, previous)->sequence >= sector_view(sectors, s)->sequence)
            wrong(check, FKV_PART_SPACE, "sector %u is in the wrong place of the queue", s);
        previous = s;
        s = state->next;
    }
    if (sectors->back != previous)
        wrong(check, FKV_PART_SPACE, "the queue ends at sector %u, not %u", previous,
              sectors->back);
    expect(check, FKV_PART_SPACE, "sectors in the queue", count, sectors->values_count);
}

static void use_sectors(struct sector_use *use, struct sector_list list, const char *what)
{
    uint32_t count = 0;
    for (uint32_t s = list.head; s && use_sector(use, s, what); count++)
        s = sector_state(&use->check->db->sectors, s)->next;
    expect(use->check, FKV_PART_SPACE, what, count, list.count);
}

static void use_bits(struct sector_use *use, const struct reservation *bits, uint32_t counted,
                     const char *what)
{
    uint32_t count = 0;
    for (uint32_t s = 0; s < bits->backed_bytes * 8; s += 64)
        for (uint64_t word = ((const uint64_t *)bits->base)[s / 64]; word; word &= word - 1) {
            use_sector(use, s + (uint32_t)__builtin_ctzll(word), what);
            count++;
        }
    expect(use->check, FKV_PART_SPACE, what, count, counted);
}

static void use_held(struct sector_use *use)
{
    struct check *check = use->check;
    uint32_t count = 0;
    for (uint32_t s = 1; s < check->sector_count; s++) {
        const struct sector *state = sector_state(&check->db->sectors, s);
        if (state->held && use_sector(use, s, "held by snapshots"))
            count++;
    }
    expect(check, FKV_PART_SPACE, "sectors held by snapshots", count,
           check->db->sectors.held_count);
}

/* Every sector is one thing. */
static void check_sectors(struct check *check)
{
    struct fkv *db = check->db;
    struct sector_use use = {.check = check, .used = memory_new(check->sector_count)};
    uint32_t large = 0, nothing = 0;
    if (!use.used) {
        check_no_memory(check);
        return;
    }
    use_queue(&use);
    use_bits(&use, &db->sectors.free_backed, db->sectors.free_backed_count, "free");
    use_bits(&use, &db->sectors.free_holes, db->sectors.free_hole_count, "free and a hole");
    use_sectors(&use, db->sectors.freed, "freed");
    use_sectors(&use, db->sectors.uncertain, "freed before the checkpoint");
    use_held(&use);
    use_sectors(&use, db->reclaim.filling.sectors, "retired");
    use_sectors(&use, db->reclaim.waiting.sectors, "retired");
    for (uint32_t i = 0; i < db->pages.places.sector_count; i++)
        use_sector(&use, db->pages.places.sectors[i].sector, "of pages");
    if (db->tail.spare)
        use_sector(&use, db->tail.spare, "taken for the next values");
    for (uint32_t s = 1; s < check->sector_count; s++)
        if (sector_state(&db->sectors, s)->type == SECTOR_LARGE)
            large += use_sector(&use, s, "of a large value");
    for (uint32_t s = 1; s < check->sector_count; s++)
        nothing += !use.used[s];
    memory_free(use.used);
    expect(check, FKV_PART_SPACE, "sectors that are nothing, neither used nor free", nothing,
           db->sectors.changing);
    expect(check, FKV_PART_SPACE, "sectors of large values", large, db->sectors.large_count);
    expect(check, FKV_PART_SPACE, "sectors that wait for readers",
           db->reclaim.filling.sectors.count + db->reclaim.waiting.sectors.count,
           db->sectors.awaiting_readers);
}

/* The table says what the handle does. */
static void check_states(struct check *check)
{
    const struct sectors *sectors = &check->db->sectors;
    for (uint32_t s = 1; s < check->sector_count; s++) {
        const struct sector *state = sector_state(sectors, s);
        const struct checked_sector *table = &check->sectors[s];
        bool holds = state->type == SECTOR_VALUES || state->type == SECTOR_LARGE;
        bool said = table->kind == SECTOR_IS_VALUES || table->kind == SECTOR_IS_LARGE;
        if (table->kind == SECTOR_IS_UNKNOWN)
            continue;
        if (holds != said ||
            (holds && (state->type == SECTOR_LARGE) != (table->kind == SECTOR_IS_LARGE)))
            wrong(check, FKV_PART_TABLE, "the table has sector %u as another type than it is", s);
        else if (holds &&
                 (state->dead_cells != table->dead_cells || state->pad_cells != table->pad_cells ||
                  sector_view(sectors, s)->sequence != table->sequence))
            wrong(check, FKV_PART_TABLE, "the table has other counts for sector %u than it has", s);
        if (holds && !sector_base(sectors, s) && !sectors->by_call)
            wrong(check, FKV_PART_MEMORY, "sector %u cannot be read by readers", s);
        if (holds && (s == check->tail_sector) == (state->sealed != 0))
            wrong(check, FKV_PART_MEMORY, "sector %u is %s", s,
                  state->sealed ? "open and sealed" : "neither open nor sealed");
    }
}

static void check_tail(struct check *check)
{
    const struct tail *tail = &check->db->tail;
    if (!tail->open)
        return;
    if (tail->sector >= check->sector_count || tail->cell < SECTOR_HEADER_CELLS ||
        tail->cell > SECTOR_CELLS || tail->open->sector != tail->sector ||
        tail->open->flushed_cell > tail->cell) {
        wrong(check, FKV_PART_MEMORY, "the open sector, %u at cell %u, is impossible", tail->sector,
              tail->cell);
        return;
    }
    const struct sectors *sectors = &check->db->sectors;
    if (sector_base(sectors, tail->sector) != tail->open->bytes ||
        sector_view(sectors, tail->sector)->sequence != tail->sequence)
        wrong(check, FKV_PART_MEMORY, "readers see sector %u elsewhere than it is written",
              tail->sector);
    if (check->db->sectors.back != tail->sector)
        wrong(check, FKV_PART_SPACE, "the open sector %u is not the last of the queue",
              tail->sector);
}

/* ---------------------------------------------------------------- the index */

static void check_segment(struct check *check, uint32_t id, const struct format_segment *entry)
{
    const struct segment *segment = (const struct segment *)check->db->index.segments.base + id;
    if (!entry->pages)
        return;
    if (segment->pages != entry->pages || segment->depth != entry->depth ||
        segment->count != entry->count) {
        wrong(check, FKV_PART_MEMORY, "segment %u of the index is not what the directory says", id);
        return;
    }
    if (segment->planned)
        wrong(check, FKV_PART_MEMORY, "segment %u of the index has %u plans left over", id,
              segment->planned);
    for (uint32_t i = 0; i < segment->pages; i++) {
        uint32_t frame = entry->page[i] < check->page_count[SPACE_INDEX]
                             ? pages_find(&check->db->pages, SPACE_INDEX, entry->page[i])->frame
                             : 0;
        if (segment->frame[i] && segment->frame[i] != frame)
            wrong(check, FKV_PART_MEMORY, "page %u of segment %u of the index is elsewhere", i, id);
    }
}

static const struct format_segment *directory_entry(const struct check *check, uint32_t id)
{
    const struct pages *pages = &check->db->pages;
    if (id / SEGMENTS_PER_PAGE >= check->page_count[SPACE_DIRECTORY] ||
        !pages_find(pages, SPACE_DIRECTORY, id / SEGMENTS_PER_PAGE)->frame)
        return NULL;
    const struct format_segment *entries =
        pages_read(pages, SPACE_DIRECTORY, id / SEGMENTS_PER_PAGE);
    return &entries[id % SEGMENTS_PER_PAGE];
}

static void check_directory(struct check *check)
{
    const struct directory *directory = check->db->index.directory;
    for (uint32_t slot = 0; slot < 1u << directory->depth; slot++) {
        uint32_t id = directory->segment[slot];
        const struct format_segment *entry =
            id && id < check->segment_count ? directory_entry(check, id) : NULL;
        if (!entry || !entry->pages || entry->depth > directory->depth ||
            slot >> (directory->depth - entry->depth) != entry->prefix)
            wrong(check, FKV_PART_MEMORY,
                  "slot %u of the directory in memory leads to segment %u, which is another's",
                  slot, id);
    }
}

static uint32_t list_length(const struct index *index, uint32_t id)
{
    uint32_t count = 0;
    for (; id && count <= index->segment_count; count++)
        id = ((const uint32_t *)index->links.base)[id];
    return count;
}

static void check_index_memory(struct check *check)
{
    const struct index *index = &check->db->index;
    const struct reclaim *reclaim = &check->db->reclaim;
    uint64_t pages = 0, entries = 0, segments = 0;
    for (uint32_t id = 1; id < index->segment_count; id++) {
        const struct format_segment *entry = directory_entry(check, id);
        if (!entry) {
            wrong(check, FKV_PART_MEMORY, "segment %u of the index is not in the directory", id);
            return;
        }
        check_segment(check, id, entry);
        pages += entry->pages;
        entries += entry->count;
        segments += entry->pages != 0;
    }
    check_directory(check);
    expect(check, FKV_PART_MEMORY, "pages of the index", pages, index->page_count);
    expect(check, FKV_PART_MEMORY, "entries of the index", entries, index->entries);
    expect(check, FKV_PART_MEMORY, "numbers of pages of the index",
           index->page_count + index->free_number_count, index->next_number);
    expect(check, FKV_PART_MEMORY, "segments of the index",
           segments + list_length(index, index->free_segments) +
               list_length(index, reclaim->filling.segments) +
               list_length(index, reclaim->waiting.segments),
           index->segment_count - 1);
}

void check_memory(struct check *check)
{
    if (!check->db)
        return;
    expect(check, FKV_PART_INDEX, "records that died twice", 0, check->db->sectors.killed_twice);
    check_places(check);
    if (!check_goes_on(check))
        return;
    check_marks(check);
    pthread_mutex_lock(&check->db->pages.load_lock);
    check_frames(check);
    check_parked(check);
    pthread_mutex_unlock(&check->db->pages.load_lock);
    if (!check_goes_on(check))
        return;
    check_sectors(check);
    check_states(check);
    check_tail(check);
    check_index_memory(check);
}
