#include <stdio.h>
#include <stdlib.h>

#include "header.h"
#include "repair.h"

void repair_found_piece(struct repair *repair, const uint8_t *record, uint32_t cell,
                        struct where where)
{
    struct format_record header = record_header(record);
    struct format_piece_key key;
    if (header.key_bytes != sizeof key)
        return;
    memcpy(&key, record_key(record), sizeof key);
    struct found_piece *piece = vector_add(&repair->pieces);
    if (!piece) {
        repair->error = FKV_NO_MEMORY;
        return;
    }
    *piece =
        (struct found_piece){.id = key.id,
                             .number = key.number,
                             .order = (uint32_t)repair->pieces.count,
                             .bytes = (uint32_t)record_bytes(header.key_bytes, header.value_bytes),
                             .cell = cell,
                             .where = where};
}

static int compare(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

/* By id and number; of several, the one found last comes first. */
static int by_name(const void *a, const void *b)
{
    const struct found_piece *left = a, *right = b;
    int order = compare(left->id, right->id);
    if (!order)
        order = compare(left->number, right->number);
    return order ? order : compare(right->order, left->order);
}

void repair_sort_pieces(struct repair *repair)
{
    if (repair->pieces.count)
        qsort(repair->pieces.items, repair->pieces.count, repair->pieces.item_bytes, by_name);
}

static const struct found_piece *find_piece(const struct repair *repair, uint64_t id,
                                            uint32_t number)
{
    const struct found_piece *pieces = repair->pieces.items;
    size_t low = 0, high = repair->pieces.count;
    while (low < high) { /* the first that is not before */
        size_t middle = (low + high) / 2;
        if (pieces[middle].id < id || (pieces[middle].id == id && pieces[middle].number < number))
            low = middle + 1;
        else
            high = middle;
    }
    bool is = low < repair->pieces.count && pieces[low].id == id && pieces[low].number == number;
    return is ? &pieces[low] : NULL;
}

/* The payload of a piece from the queue; NULL if it is not there. */
static const uint8_t *read_piece(struct repair *repair, uint64_t id, uint32_t number,
                                 uint32_t bytes)
{
    const struct found_piece *piece = find_piece(repair, id, number);
    const uint8_t *record = repair->piece_bytes;
    if (!piece || piece->bytes > RECORD_BYTES_MAX)
        return NULL;
    if (piece->where.in_log)
        record =
            image_log_bytes(&repair->piece_log, piece->where.offset, piece->bytes, &repair->error);
    else if (image_read(&repair->check.image, piece->where.offset, piece->bytes,
                        repair->piece_bytes))
        return NULL;
    if (!record || !record_is_piece(record, id, number, bytes) ||
        (!piece->where.in_log && !record_verify(record, piece->bytes, repair->seed,
                                                record_place(piece->where.sequence, piece->cell))))
        return NULL;
    return record_key(record) + sizeof(struct format_piece_key);
}

/* The payload of a piece that has a sector of its own. */
static const uint8_t *read_sector_piece(struct repair *repair, uint32_t sector, uint64_t id,
                                        uint32_t number)
{
    const struct image *image = &repair->check.image;
    const uint8_t *record = repair->piece_bytes + sizeof(struct format_sector_header);
    struct format_sector_header header;
    struct format_sector entry = {0};
    uint8_t page[PAGE_BYTES];
    uint32_t page_number = UINT32_MAX;
    if (!sector || sector >= image->sector_count)
        return NULL;
    image_read(image, (uint64_t)sector * SECTOR_BYTES, SECTOR_BYTES, repair->piece_bytes);
    uint64_t sequences[2] = {0, 0};
    if (sector_header_read(repair->piece_bytes, &header))
        sequences[0] = header.sequence;
    if (repair->header && !image_table_entry(image, sector, page, &page_number, &entry) &&
        entry.type == SECTOR_LARGE)
        sequences[1] = entry.sequence;
    for (int i = 0; i < 2; i++)
        if (sequences[i] && record_verify_sector(record, repair->seed, sequences[i]) &&
            record_is_piece(record, id, number, LARGE_SECTOR_PAYLOAD))
            return record_key(record) + sizeof(struct format_piece_key);
    return NULL;
}

/* Put the value together; false if it lacks *missing. */
static bool assemble(struct repair *repair, const uint8_t *record, const struct format_large *head,
                     uint8_t *value, uint32_t *missing)
{
    uint32_t left = head->value_bytes - head->sectors * LARGE_SECTOR_PAYLOAD;
    for (uint32_t i = 0; i < head->sectors + head->pieces; i++) {
        uint32_t bytes =
            i < head->sectors ? LARGE_SECTOR_PAYLOAD : (uint32_t)min_u64(left, LARGE_PIECE_PAYLOAD);
        const uint8_t *piece =
            i < head->sectors ? read_sector_piece(repair, large_head_sector(record, i), head->id, i)
                              : read_piece(repair, head->id, i, bytes);
        if (!piece) {
            *missing = i;
            return false;
        }
        memcpy(value, piece, bytes);
        value += bytes;
        left -= i < head->sectors ? 0 : bytes;
    }
    return true;
}

/* ---------------------------------------------------------------- values that lack something */

static void write_key(const uint8_t *key, size_t bytes, char *to, size_t room)
{
    static const char digits[] = "0123456789abcdef";
    size_t at = 0;
    for (size_t i = 0; i < bytes && at + 8 < room; i++) {
        if (key[i] >= 0x20 && key[i] <= 0x7e && key[i] != '\\') {
            to[at++] = (char)key[i];
            continue;
        }
        to[at++] = '\\';
        to[at++] = 'x';
        to[at++] = digits[key[i] >> 4];
        to[at++] = digits[key[i] & 15];
    }
    if (at + 8 >= room)
        at += (size_t)sprintf(to + at, "...");
    to[at] = 0;
}

/* The key is absent then, unless a later version of it comes. */
static void give_up(struct repair *repair, const uint8_t *record, int64_t piece)
{
    struct format_record header = record_header(record);
    struct hash128 hash = record_hash(&repair->out->hash_seeds, record);
    repair_remove(repair, hash);
    struct incomplete *incomplete = vector_add(&repair->incomplete);
    if (!incomplete) {
        repair->error = FKV_NO_MEMORY;
        return;
    }
    *incomplete = (struct incomplete){.hash = hash, .piece = piece};
    write_key(record_key(record), header.key_bytes, incomplete->key, sizeof incomplete->key);
}

void repair_forget_incomplete(struct repair *repair, struct hash128 hash)
{
    struct incomplete *incomplete = repair->incomplete.items;
    size_t kept = 0;
    for (size_t i = 0; i < repair->incomplete.count; i++)
        if (incomplete[i].hash.hi != hash.hi || incomplete[i].hash.lo != hash.lo)
            incomplete[kept++] = incomplete[i];
    repair->incomplete.count = kept;
}

void repair_say_incomplete(struct repair *repair)
{
    const struct incomplete *incomplete = repair->incomplete.items;
    for (size_t i = 0; i < repair->incomplete.count; i++) {
        if (incomplete[i].piece < 0)
            report(&repair->report, FKV_PART_LARGE, NOWHERE,
                   "the value of key %s is lost: the head of its pieces is impossible",
                   incomplete[i].key);
        else
            report(&repair->report, FKV_PART_LARGE, NOWHERE,
                   "the value of key %s is lost: its piece %u is missing or damaged",
                   incomplete[i].key, (unsigned)incomplete[i].piece);
    }
    repair->result.values_incomplete = repair->incomplete.count;
}

void repair_put_large(struct repair *repair, const uint8_t *record)
{
    struct format_record header = record_header(record);
    uint32_t missing = 0;
    if (!large_head_is_sound(record) || large_head(record).value_bytes > FKV_VALUE_BYTES_MAX) {
        give_up(repair, record, -1);
        return;
    }
    struct format_large head = large_head(record);
    uint8_t *value = memory_new(head.value_bytes);
    if (!value) {
        repair->error = FKV_NO_MEMORY;
        return;
    }
    if (assemble(repair, record, &head, value, &missing))
        repair_put(repair, record_key(record), header.key_bytes, value, head.value_bytes);
    else if (!repair->error)
        give_up(repair, record, missing);
    memory_free(value);
}
