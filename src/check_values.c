#include <stdlib.h>

#include "check_parts.h"
#include "header.h"

/* ---------------------------------------------------------------- the table */

static void bad_entry(struct check *check, uint32_t sector, const char *what)
{
    report(&check->report, FKV_PART_TABLE, NOWHERE, "the entry of sector %u in the table %s",
           sector, what);
}

static bool holds_pages(const struct check *check, uint32_t sector)
{
    if (!check->db)
        return image_has_pages(&check->image, sector);
    return places_sector_at(&check->db->pages.places, sector);
}

static uint8_t kind_of(struct check *check, uint32_t sector, const struct format_sector *entry)
{
    bool pages = holds_pages(check, sector);
    if (entry->type > SECTOR_LARGE || entry->zero) {
        bad_entry(check, sector, "is impossible");
        return SECTOR_IS_UNKNOWN;
    }
    if (entry->type == SECTOR_FREE) {
        if (entry->sequence || !sector_counts_are_possible(entry))
            bad_entry(check, sector, "has counts, and the sector is free");
        return pages ? SECTOR_IS_PAGES : SECTOR_IS_FREE;
    }
    if (pages) {
        bad_entry(check, sector, "says that it holds values, but it holds pages");
        return SECTOR_IS_UNKNOWN;
    }
    if (!entry->sequence || entry->sequence >= check->next_sequence)
        bad_entry(check, sector, "has a sequence that no sector has had so far");
    if (!sector_counts_are_possible(entry))
        bad_entry(check, sector, "has impossible counts");
    return entry->type == SECTOR_VALUES ? SECTOR_IS_VALUES : SECTOR_IS_LARGE;
}

static int by_number(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

/* No two sectors have the same place in the queue. */
static void check_sequences(struct check *check)
{
    uint64_t *sequences = memory_new(check->sector_count * sizeof *sequences);
    size_t count = 0;
    if (!sequences) {
        check_no_memory(check);
        return;
    }
    for (uint32_t s = 1; s < check->sector_count; s++)
        if (check->sectors[s].kind == SECTOR_IS_VALUES || check->sectors[s].kind == SECTOR_IS_LARGE)
            sequences[count++] = check->sectors[s].sequence;
    qsort(sequences, count, sizeof *sequences, by_number);
    for (size_t i = 1; i < count; i++)
        if (sequences[i] == sequences[i - 1])
            report(&check->report, FKV_PART_TABLE, NOWHERE, "two sectors have sequence %llu",
                   (unsigned long long)sequences[i]);
    memory_free(sequences);
}

static void count_kind(struct check *check, uint8_t kind)
{
    uint64_t *const counts[] = {[SECTOR_IS_FREE] = &check->result.sectors_free,
                                [SECTOR_IS_VALUES] = &check->result.sectors_values,
                                [SECTOR_IS_LARGE] = &check->result.sectors_large,
                                [SECTOR_IS_PAGES] = &check->result.sectors_pages};
    if (kind == SECTOR_IS_UNKNOWN)
        check->sectors_unknown = true;
    else
        ++*counts[kind];
}

/* Entries behind the last sector are empty. */
static void check_rest_of_table(struct check *check, const struct format_sector *entries)
{
    static const struct format_sector none;
    for (uint32_t s = check->sector_count; s % SECTORS_PER_PAGE; s++)
        if (memcmp(&entries[s % SECTORS_PER_PAGE], &none, sizeof none) != 0)
            bad_entry(check, s, "is in use, but the file has no such sector");
}

static void check_work(struct check *check)
{
    uint64_t sectors = check->result.sectors_values + check->result.sectors_large;
    check->work_total = sectors * SECTOR_BYTES + check->image.pages_stored * PAGE_BYTES;
}

void check_table(struct check *check)
{
    uint8_t room[PAGE_BYTES];
    const struct format_sector *entries = NULL;
    check->sectors = memory_new(check->sector_count * sizeof *check->sectors);
    if (!check->sectors) {
        check_no_memory(check);
        return;
    }
    for (uint32_t s = 1; s < check->sector_count; s++) {
        struct checked_sector *sector = &check->sectors[s];
        if (s == 1 || s % SECTORS_PER_PAGE == 0)
            entries = check_page(check, SPACE_SECTORS, s / SECTORS_PER_PAGE, room);
        if (entries) {
            const struct format_sector *entry = &entries[s % SECTORS_PER_PAGE];
            *sector = (struct checked_sector){.sequence = entry->sequence,
                                              .dead_cells = entry->dead_cells,
                                              .pad_cells = entry->pad_cells,
                                              .kind = kind_of(check, s, entry)};
        } else if (s / SECTORS_PER_PAGE >= check->page_count[SPACE_SECTORS]) {
            sector->kind = SECTOR_IS_FREE; /* the file has grown since the checkpoint */
        }
        count_kind(check, sector->kind);
    }
    if (entries)
        check_rest_of_table(check, entries);
    check_sequences(check);
    check_work(check);
}

/* ---------------------------------------------------------------- sectors */

bool check_sector_header(struct check *check, const uint8_t *bytes, uint32_t sector)
{
    struct format_sector_header header;
    const char *wrong = NULL;
    uint32_t type = check->sectors[sector].kind == SECTOR_IS_LARGE ? SECTOR_LARGE : SECTOR_VALUES;
    if (!sector_header_read(bytes, &header))
        wrong = "is damaged";
    else if (memcmp(header.store_id, check->store_id, sizeof header.store_id) != 0)
        wrong = "is of another store";
    else if (header.sector != sector)
        wrong = "is of another sector";
    else if (header.sequence != check->sectors[sector].sequence)
        wrong = "has another sequence than the table";
    else if (header.type != type)
        wrong = "has another type than the table";
    if (wrong)
        report(&check->report, FKV_PART_VALUES, (uint64_t)sector * SECTOR_BYTES,
               "the header of sector %u %s", sector, wrong);
    return !wrong;
}

bool check_is_damaged(const struct check *check, uint64_t address, uint32_t cells)
{
    const struct damaged_cells *damaged = check->damaged.items;
    size_t low = 0, high = check->damaged.count;
    while (low < high) { /* the first that does not end before the address */
        size_t middle = (low + high) / 2;
        if (damaged[middle].address + damaged[middle].cells <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low < check->damaged.count && damaged[low].address < address + cells;
}

/* A values sector that is being walked. */
struct walk {
    struct check *check;
    uint32_t sector;
    uint32_t end; /* its records end before this cell */
    bool damaged;
    const uint64_t *map[2];                  /* NULL: lost */
    uint64_t dead_starts[SECTOR_CELLS / 64]; /* first cells of records that may be dead */
    uint64_t live_cells, dead_cells, pad_cells;
    _Alignas(8) uint8_t map_room[2][PAGE_BYTES];
};

static void damage(struct walk *walk, const struct scanned *found)
{
    struct check *check = walk->check;
    uint64_t address = (uint64_t)walk->sector * SECTOR_CELLS + found->cell;
    struct damaged_cells *cells = vector_add(&check->damaged);
    if (!cells) {
        check_no_memory(check);
        return;
    }
    *cells = (struct damaged_cells){address, found->cells};
    walk->damaged = true;
    report(&check->report, FKV_PART_VALUES, cell_offset(address),
           "sector %u has no whole record from cell %u on, for %u cells", walk->sector, found->cell,
           found->cells);
}

/* Where the index leads to, as a phrase. */
static void say_not_led_to(struct walk *walk, uint64_t address, enum index_answer answer,
                           uint64_t entry)
{
    struct check *check = walk->check;
    uint32_t cell = address % SECTOR_CELLS;
    if (answer == INDEX_ABSENT)
        report(&check->report, FKV_PART_INDEX, cell_offset(address),
               "the record in sector %u, cell %u is live, and nothing in the index leads to it",
               walk->sector, cell);
    else
        report(
            &check->report, FKV_PART_INDEX, cell_offset(address),
            "the record in sector %u, cell %u is live, but the index has its key in sector %llu, "
            "cell %llu",
            walk->sector, cell, (unsigned long long)(entry_address(entry) / SECTOR_CELLS),
            (unsigned long long)(entry_address(entry) % SECTOR_CELLS));
}

static void live(struct walk *walk, const struct scanned *found, uint8_t kind,
                 const struct index_place *place)
{
    struct check *check = walk->check;
    uint64_t address = (uint64_t)walk->sector * SECTOR_CELLS + found->cell;
    bool large = place->entry & ENTRY_LARGE;
    check_index_confirm(check, place);
    if (entry_cells(place->entry) != found->cells || large != (kind == RECORD_LARGE))
        report(&check->report, FKV_PART_INDEX, cell_offset(address),
               "the index has another %s for the record in sector %u, cell %u than it has",
               large != (kind == RECORD_LARGE) ? "kind" : "length", walk->sector, found->cell);
    if (kind == RECORD_PIECE)
        check->pieces_live++;
    else
        check->result.keys++;
}

static bool is_marked_dead(const struct walk *walk, uint32_t cell)
{
    const uint64_t *map = walk->map[cell / MAP_PAGE_CELLS];
    return map && (map[cell % MAP_PAGE_CELLS / 64] >> (cell & 63) & 1);
}

static void say_too_long(struct walk *walk, const struct scanned *found)
{
    uint64_t address = (uint64_t)walk->sector * SECTOR_CELLS + found->cell;
    report(&walk->check->report, FKV_PART_VALUES, cell_offset(address),
           "the record in sector %u, cell %u is longer than records are", walk->sector,
           found->cell);
}

/* A whole record that is no padding. */
static void record(struct walk *walk, const struct scanned *found)
{
    struct check *check = walk->check;
    struct format_record header = record_header(found->record);
    uint64_t address = (uint64_t)walk->sector * SECTOR_CELLS + found->cell;
    bool known = walk->map[found->cell / MAP_PAGE_CELLS] != NULL;
    bool dead = is_marked_dead(walk, found->cell);
    if (found->cells > RECORD_CELLS_MAX)
        say_too_long(walk, found);
    walk->dead_starts[found->cell / 64] |= 1ull << (found->cell & 63);
    if (!dead) {
        struct hash128 hash = record_hash(&check->hash_seeds, found->record);
        struct index_place place;
        enum index_answer answer = check_index_find(check, hash, &place);
        bool led_to = answer == INDEX_FOUND && entry_address(place.entry) == address;
        if (led_to)
            live(walk, found, header.kind, &place);
        else if (known && answer != INDEX_UNKNOWN)
            say_not_led_to(walk, address, answer, place.entry);
        dead = !known && !led_to; /* as far as can be told */
    }
    if (dead) {
        check->result.records_dead++;
        walk->dead_cells += found->cells;
        return;
    }
    check->result.records_live++;
    walk->live_cells += found->cells;
    if (header.kind == RECORD_LARGE)
        check_large_head(check, found->record, address);
    if (header.kind == RECORD_PIECE)
        check_large_piece(check, found->record, address);
}

static void pad(struct walk *walk, const struct scanned *found)
{
    if (found->cells > RECORD_CELLS_MAX)
        say_too_long(walk, found);
    *(pad_is_gap(found->cell, found->cells) ? &walk->dead_cells : &walk->pad_cells) += found->cells;
}

/* No bit of the maps is anywhere but at the first cell of a record. */
static void check_map(struct walk *walk)
{
    struct check *check = walk->check;
    for (uint32_t w = 0; w < SECTOR_CELLS / 64; w++) {
        const uint64_t *map = walk->map[w / (MAP_PAGE_CELLS / 64)];
        uint64_t extra = map ? map[w % (MAP_PAGE_CELLS / 64)] & ~walk->dead_starts[w] : 0;
        for (; extra; extra &= extra - 1) {
            uint32_t cell = w * 64 + (uint32_t)__builtin_ctzll(extra);
            uint64_t address = (uint64_t)walk->sector * SECTOR_CELLS + cell;
            if (!check_is_damaged(check, address, 1))
                report(&check->report, FKV_PART_MAPS, cell_offset(address),
                       "cell %u of sector %u is marked dead, and no record begins there", cell,
                       walk->sector);
        }
    }
}

static void compare_counts(struct walk *walk)
{
    struct check *check = walk->check;
    const struct checked_sector *sector = &check->sectors[walk->sector];
    if (walk->damaged || !walk->map[0] || !walk->map[1])
        return;
    if (walk->dead_cells != sector->dead_cells)
        report(&check->report, FKV_PART_TABLE, NOWHERE,
               "the table counts %u dead cells in sector %u, and there are %llu",
               sector->dead_cells, walk->sector, (unsigned long long)walk->dead_cells);
    if (walk->pad_cells != sector->pad_cells)
        report(&check->report, FKV_PART_TABLE, NOWHERE,
               "the table counts %u cells of padding in sector %u, and there are %llu",
               sector->pad_cells, walk->sector, (unsigned long long)walk->pad_cells);
    if (!walk->live_cells && walk->sector != check->tail_sector)
        report(&check->report, FKV_PART_SPACE, NOWHERE,
               "sector %u has no live record, and is not free", walk->sector);
}

static void check_sector(struct walk *walk)
{
    struct check *check = walk->check;
    const uint8_t *bytes = check_sector_bytes(check, walk->sector);
    check_sector_header(check, bytes, walk->sector);
    struct scan scan =
        scan_begin(bytes, check->seed, check->sectors[walk->sector].sequence, walk->end);
    struct scanned found;
    while (check_goes_on(check) && scan_next(&scan, &found)) {
        if (!found.whole)
            damage(walk, &found);
        else if (record_header(found.record).kind == RECORD_PAD)
            pad(walk, &found);
        else
            record(walk, &found);
    }
    if (!check_goes_on(check))
        return;
    check_map(walk);
    compare_counts(walk);
    check->result.live_cells += walk->live_cells;
    check->result.dead_cells += walk->dead_cells;
    check->result.pad_cells += walk->pad_cells;
}

/* The open sector is the last of the queue, and its records end where the next will be. */
static void check_open_sector(struct check *check)
{
    uint32_t open = check->tail_sector;
    if (!open)
        return;
    if (open >= check->sector_count || check->tail_cell < SECTOR_HEADER_CELLS ||
        check->tail_cell > SECTOR_CELLS) {
        report(&check->report, FKV_PART_HEADER, NOWHERE,
               "the open sector is said to be %u, at cell %u", open, check->tail_cell);
        check->tail_sector = 0;
        return;
    }
    if (check->sectors[open].kind == SECTOR_IS_UNKNOWN)
        return;
    bool last = check->sectors[open].kind == SECTOR_IS_VALUES;
    for (uint32_t s = 1; last && s < check->sector_count; s++)
        last = check->sectors[s].kind != SECTOR_IS_VALUES ||
               check->sectors[s].sequence <= check->sectors[open].sequence;
    if (!last)
        report(&check->report, FKV_PART_TABLE, NOWHERE,
               "the open sector, %u, is not the last of the queue", open);
}

void check_values(struct check *check)
{
    struct walk *walk = memory_new(sizeof *walk);
    if (!walk) {
        check_no_memory(check);
        return;
    }
    check_open_sector(check);
    for (uint32_t s = 1; s < check->sector_count && check_goes_on(check); s++) {
        if (check->sectors[s].kind != SECTOR_IS_VALUES)
            continue;
        memset(walk, 0, offsetof(struct walk, map_room));
        walk->check = check;
        walk->sector = s;
        walk->end = s == check->tail_sector ? check->tail_cell : SECTOR_CELLS;
        for (uint32_t half = 0; half < 2; half++) {
            walk->map[half] = check_page(check, SPACE_MAPS, s * 2 + half, walk->map_room[half]);
            check->pages_lost |= !walk->map[half];
        }
        check_sector(walk);
        check_advance(check, SECTOR_BYTES);
    }
    memory_free(walk);
}
