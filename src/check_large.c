#include <stdlib.h>

#include "check_parts.h"

/* ---------------------------------------------------------------- collecting */

void check_large_head(struct check *check, const uint8_t *record, uint64_t address)
{
    if (!large_head_is_sound(record)) {
        report(&check->report, FKV_PART_LARGE, cell_offset(address),
               "the head of a large value in sector %llu, cell %llu is impossible",
               (unsigned long long)(address / SECTOR_CELLS),
               (unsigned long long)(address % SECTOR_CELLS));
        return;
    }
    struct format_large head = large_head(record);
    struct large_head *kept = vector_add(&check->large.heads);
    if (kept)
        *kept = (struct large_head){.id = head.id,
                                    .address = address,
                                    .value_bytes = head.value_bytes,
                                    .sectors = head.sectors,
                                    .pieces = head.pieces};
    for (uint32_t i = 0; kept && i < head.sectors; i++) {
        struct large_sector *sector = vector_add(&check->large.sectors);
        if (!sector)
            kept = NULL;
        else
            *sector = (struct large_sector){head.id, large_head_sector(record, i), i};
    }
    if (!kept)
        check_no_memory(check);
}

void check_large_piece(struct check *check, const uint8_t *record, uint64_t address)
{
    struct format_record header = record_header(record);
    struct format_piece_key key = {0};
    if (header.key_bytes == sizeof key)
        memcpy(&key, record_key(record), sizeof key);
    if (header.key_bytes != sizeof key || key.zero) {
        report(&check->report, FKV_PART_LARGE, cell_offset(address),
               "the piece of a large value in sector %llu, cell %llu is impossible",
               (unsigned long long)(address / SECTOR_CELLS),
               (unsigned long long)(address % SECTOR_CELLS));
        return;
    }
    struct large_piece *piece = vector_add(&check->large.pieces);
    if (!piece) {
        check_no_memory(check);
        return;
    }
    *piece = (struct large_piece){key.id, address, key.number, header.value_bytes};
}

/* ---------------------------------------------------------------- pieces in the queue */

static int by_id(const void *a, const void *b)
{
    const struct large_head *left = a, *right = b;
    return left->id < right->id ? -1 : left->id > right->id;
}

static int by_id_and_number(const void *a, const void *b)
{
    const struct large_piece *left = a, *right = b;
    if (left->id != right->id)
        return left->id < right->id ? -1 : 1;
    return left->number < right->number ? -1 : left->number > right->number;
}

static int by_sector(const void *a, const void *b)
{
    const struct large_sector *left = a, *right = b;
    return left->sector < right->sector ? -1 : left->sector > right->sector;
}

static void bad_value(struct check *check, const struct large_head *head, uint32_t number,
                      const char *what)
{
    report(&check->report, FKV_PART_LARGE, cell_offset(head->address),
           "piece %u of the large value %llu, whose head is in sector %llu, cell %llu, %s", number,
           (unsigned long long)head->id, (unsigned long long)(head->address / SECTOR_CELLS),
           (unsigned long long)(head->address % SECTOR_CELLS), what);
}

/* Take the pieces of this head off the list of all, which is sorted. Returns how many. */
static size_t match_pieces(struct check *check, const struct large_head *head,
                           const struct large_piece *piece, size_t count)
{
    size_t used = 0;
    uint32_t rest = head->value_bytes - head->sectors * LARGE_SECTOR_PAYLOAD;
    for (uint32_t i = 0; i < head->pieces; i++) {
        uint32_t bytes = (uint32_t)min_u64(rest, LARGE_PIECE_PAYLOAD);
        bool here =
            used < count && piece[used].id == head->id && piece[used].number == head->sectors + i;
        if (!here)
            bad_value(check, head, head->sectors + i, "is missing");
        else if (piece[used++].bytes != bytes)
            bad_value(check, head, head->sectors + i, "has a wrong length");
        rest -= bytes;
    }
    return used;
}

/* May a head or a piece be among what could not be read? */
static bool some_unread(const struct check *check)
{
    return check->damaged.count || check->pages_lost || check->sectors_unknown;
}

static void check_pieces(struct check *check)
{
    const struct large_head *heads = check->large.heads.items;
    const struct large_piece *pieces = check->large.pieces.items;
    size_t p = 0;
    for (size_t h = 0; h < check->large.heads.count;) {
        if (h && heads[h].id == heads[h - 1].id)
            bad_value(check, &heads[h], 0, "is of another head too");
        if (p < check->large.pieces.count &&
            (pieces[p].id < heads[h].id ||
             (pieces[p].id == heads[h].id && pieces[p].number < heads[h].sectors))) {
            if (!some_unread(check))
                report(&check->report, FKV_PART_LARGE, cell_offset(pieces[p].address),
                       "piece %u of the large value %llu belongs to no head", pieces[p].number,
                       (unsigned long long)pieces[p].id);
            p++;
            continue;
        }
        p += match_pieces(check, &heads[h], pieces + p, check->large.pieces.count - p);
        h++;
    }
    for (; p < check->large.pieces.count && !some_unread(check); p++)
        report(&check->report, FKV_PART_LARGE, cell_offset(pieces[p].address),
               "piece %u of the large value %llu belongs to no head", pieces[p].number,
               (unsigned long long)pieces[p].id);
}

/* ---------------------------------------------------------------- sectors of their own */

static const char *wrong_contents(const struct check *check, const struct large_sector *reference,
                                  const uint8_t *bytes)
{
    const uint8_t *record = bytes + sizeof(struct format_sector_header);
    if (!record_verify_sector(record, check->seed, check->sectors[reference->sector].sequence))
        return "fails its checksum";
    if (!record_is_piece(record, reference->id, reference->number, LARGE_SECTOR_PAYLOAD))
        return "is a piece of something else";
    return NULL;
}

static void check_large_sector(struct check *check, const struct large_sector *reference)
{
    const uint8_t *bytes = check_sector_bytes(check, reference->sector);
    check_sector_header(check, bytes, reference->sector);
    const char *wrong = wrong_contents(check, reference, bytes);
    if (wrong)
        report(&check->report, FKV_PART_LARGE, (uint64_t)reference->sector * SECTOR_BYTES,
               "sector %u, piece %u of the large value %llu, %s", reference->sector,
               reference->number, (unsigned long long)reference->id, wrong);
    check_advance(check, SECTOR_BYTES);
}

static void check_large_sectors(struct check *check)
{
    const struct large_sector *references = check->large.sectors.items;
    size_t count = check->large.sectors.count;
    size_t r = 0;
    for (uint32_t s = 1; s < check->sector_count && check_goes_on(check); s++) {
        uint32_t named = 0;
        for (; r < count && references[r].sector <= s; r++)
            if (references[r].sector == s && named++ == 0 &&
                check->sectors[s].kind == SECTOR_IS_LARGE)
                check_large_sector(check, &references[r]);
        if (named > 1)
            report(&check->report, FKV_PART_LARGE, (uint64_t)s * SECTOR_BYTES,
                   "%u large values have a piece in sector %u", named, s);
        if (named && check->sectors[s].kind != SECTOR_IS_LARGE &&
            check->sectors[s].kind != SECTOR_IS_UNKNOWN)
            report(&check->report, FKV_PART_LARGE, (uint64_t)s * SECTOR_BYTES,
                   "a large value has a piece in sector %u, which holds none", s);
        if (!named && check->sectors[s].kind == SECTOR_IS_LARGE && !some_unread(check))
            report(&check->report, FKV_PART_LARGE, (uint64_t)s * SECTOR_BYTES,
                   "sector %u holds a piece of a large value, and no value has it", s);
    }
    for (; r < count && check_goes_on(check); r++)
        report(&check->report, FKV_PART_LARGE, NOWHERE,
               "a large value has a piece in sector %u, outside the file", references[r].sector);
}

void check_large(struct check *check)
{
    struct checked_large *large = &check->large;
    /* qsort wants a pointer even for nothing */
    if (large->heads.count)
        qsort(large->heads.items, large->heads.count, large->heads.item_bytes, by_id);
    if (large->pieces.count)
        qsort(large->pieces.items, large->pieces.count, large->pieces.item_bytes, by_id_and_number);
    if (large->sectors.count)
        qsort(large->sectors.items, large->sectors.count, large->sectors.item_bytes, by_sector);
    check_pieces(check);
    check_large_sectors(check);
}
