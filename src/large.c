#include "fetch.h"
#include "header.h"

/*
 * A value that does not fit one record is cut in pieces: as many as fill whole sectors go to
 * sectors of their own, which are written to the file directly and freed at once when the value
 * dies (so that dead pieces of large values are never the collector's work); the rest, less than a
 * sector, goes to the queue in records of 64 KiB, each with a slot in the index of its own. The
 * key's record, the head, lists them. Pieces carry the id of the value they belong to.
 */

bool value_is_large(size_t key_bytes, size_t value_bytes)
{
    return record_bytes(key_bytes, value_bytes) > RECORD_BYTES_MAX;
}

struct hash128 piece_hash(const struct fkv *db, uint64_t id, uint32_t number)
{
    struct format_piece_key key = {.id = id, .number = number};
    return hash_key(&db->hash_seeds.pieces, &key, sizeof key);
}

struct format_large large_head(const uint8_t *record)
{
    struct format_large head;
    memcpy(&head, record_key(record) + record_header(record).key_bytes, sizeof head);
    return head;
}

uint32_t large_head_sector(const uint8_t *record, uint32_t at)
{
    uint32_t sector;
    memcpy(&sector,
           record_key(record) + record_header(record).key_bytes + sizeof(struct format_large) +
               at * sizeof sector,
           sizeof sector);
    return sector;
}

bool large_head_is_sound(const uint8_t *record)
{
    struct format_record header = record_header(record);
    if (header.kind != RECORD_LARGE || header.value_bytes < sizeof(struct format_large))
        return false;
    struct format_large head = large_head(record);
    uint64_t rest = head.value_bytes - (uint64_t)head.sectors * LARGE_SECTOR_PAYLOAD;
    return head.sectors <= head.value_bytes / LARGE_SECTOR_PAYLOAD &&
           head.piece_bytes == LARGE_PIECE_PAYLOAD &&
           head.pieces == divide_up(rest, LARGE_PIECE_PAYLOAD) &&
           header.value_bytes == sizeof head + head.sectors * sizeof(uint32_t);
}

static struct large *large_new(uint32_t sectors, bool fresh)
{
    struct large *large = memory_new(sizeof *large + (fresh ? 2 : 1) * sectors * sizeof(uint32_t));
    if (large)
        large->sector_count = sectors;
    return large;
}

static enum fkv_error load_head(struct fkv *db, const uint8_t *record, struct large **large)
{
    if (!large_head_is_sound(record))
        return error_set(FKV_DAMAGED, "%s: the head of a large value is damaged", db->path);
    struct format_large head = large_head(record);
    struct large *found = large_new(head.sectors, false);
    if (!found)
        return FKV_NO_MEMORY;
    found->id = head.id;
    found->value_bytes = head.value_bytes;
    found->piece_count = head.pieces;
    for (uint32_t i = 0; i < head.sectors; i++) {
        found->sectors[i] = large_head_sector(record, i);
        if (found->sectors[i] >= db->sectors.count ||
            sector_state(&db->sectors, found->sectors[i])->type != SECTOR_LARGE) {
            memory_free(found);
            return error_set(FKV_DAMAGED, "%s: a large value lists sector %u, not one of its",
                             db->path, large_head_sector(record, i));
        }
    }
    *large = found;
    return FKV_OK;
}

enum fkv_error large_load(struct fkv *db, uint64_t entry, struct large **large)
{
    struct fetched fetched;
    enum fkv_error error = fetch_record(db, entry, NULL, 0, &fetched);
    if (!error)
        error = load_head(db, fetched.record, large);
    fetch_done(&fetched);
    return error;
}

void large_undo(struct fkv *db, struct large *large)
{
    while (large->sectors_taken)
        sectors_give(&db->sectors, large->sectors[--large->sectors_taken]);
}

static enum fkv_error write_sector(struct fkv *db, struct large *large, uint32_t number,
                                   const uint8_t *payload, uint8_t *scratch)
{
    uint32_t sector = large->sectors[number];
    uint64_t sequence = db->sectors.next_sequence++;
    sector_header_write(scratch, db->sectors.store_id, sector, sequence, SECTOR_LARGE);
    struct format_piece_key key = {.id = large->id, .number = number};
    record_write(scratch + sizeof(struct format_sector_header), db->seed,
                 record_place(sequence, SECTOR_HEADER_CELLS), RECORD_PIECE, &key, sizeof key,
                 payload, LARGE_SECTOR_PAYLOAD);
    large->sectors[large->sector_count + number] =
        record_header(scratch + sizeof(struct format_sector_header)).checksum;
    int status =
        db->sectors.ops->write(db->file, scratch, SECTOR_BYTES, (uint64_t)sector * SECTOR_BYTES);
    if (status)
        return error_os(status, "write a large value to", db->path);
    db->sectors.ops->start_writeback(db->file, (uint64_t)sector * SECTOR_BYTES, SECTOR_BYTES);
    db->tail.written_bytes += SECTOR_BYTES;
    /* Until it is opened, the view is only a place to keep the sequence. */
    __atomic_store_n(&sector_view(&db->sectors, sector)->sequence, sequence, __ATOMIC_RELAXED);
    return FKV_OK;
}

enum fkv_error large_store(struct fkv *db, struct write *write, uint64_t id)
{
    uint32_t sectors = write->value_bytes / LARGE_SECTOR_PAYLOAD;
    uint32_t rest = write->value_bytes % LARGE_SECTOR_PAYLOAD;
    struct large *large = large_new(sectors, true);
    if (!large)
        return FKV_NO_MEMORY;
    write->fresh = large;
    large->id = id;
    large->value_bytes = write->value_bytes;
    large->piece_count = (uint32_t)divide_up(rest, LARGE_PIECE_PAYLOAD);
    if (!sectors)
        return FKV_OK;
    enum fkv_error error =
        sectors_reserve(&db->sectors, sectors, sectors_for_deletes(&db->sectors), 0);
    uint8_t *scratch = error ? NULL : memory_new(SECTOR_BYTES);
    if (!error && !scratch)
        error = FKV_NO_MEMORY;
    for (uint32_t i = 0; !error && i < sectors; i++) {
        if ((error = sectors_take(&db->sectors, &large->sectors[i])))
            break;
        large->sectors_taken++;
        if (!(error = sectors_prepare_large(&db->sectors, large->sectors[i])))
            error = write_sector(db, large, i,
                                 (const uint8_t *)write->value + (size_t)i * LARGE_SECTOR_PAYLOAD,
                                 scratch);
    }
    memory_free(scratch);
    return error;
}

/* ---------------------------------------------------------------- reading */

static enum fkv_error bad_piece(const struct fkv *db, uint64_t id, uint32_t number)
{
    return error_set(FKV_DAMAGED, "%s: piece %u of large value %llu is missing or damaged",
                     db->path, number, (unsigned long long)id);
}

/* Where a sector's record is: nothing of it is verified. False if there can be none. */
static bool find_sector_piece(struct fkv *db, uint32_t sector, struct fetched *fetched,
                              uint64_t *sequence, enum fkv_error *error)
{
    *error = FKV_OK;
    if ((size_t)sector * sizeof(struct sector_view) >= db->sectors.views.backed_bytes)
        return false;
    const struct sector_view *view = sector_view(&db->sectors, sector);
    const uint8_t *base = __atomic_load_n(&view->base, __ATOMIC_ACQUIRE);
    *sequence = __atomic_load_n(&view->sequence, __ATOMIC_RELAXED);
    if (base)
        fetched->record = base + sizeof(struct format_sector_header);
    else if (*sequence)
        *error = fetch_cells(db, (uint64_t)sector * SECTOR_CELLS + SECTOR_HEADER_CELLS,
                             SECTOR_CELLS - SECTOR_HEADER_CELLS, fetched);
    return base || *sequence;
}

enum fkv_error large_fetch_sector(struct fkv *db, const uint8_t *head, uint32_t number, bool verify,
                                  struct fetched *fetched, uint64_t *sequence)
{
    uint64_t id = large_head(head).id;
    enum fkv_error error;
    fetched->block = NULL;
    if (!find_sector_piece(db, large_head_sector(head, number), fetched, sequence, &error))
        return bad_piece(db, id, number);
    if (error)
        return error;
    if ((verify && !record_verify_sector(fetched->record, db->seed, *sequence)) ||
        !record_is_piece(fetched->record, id, number, LARGE_SECTOR_PAYLOAD))
        return bad_piece(db, id, number);
    return FKV_OK;
}

static enum fkv_error read_sector_piece(struct fkv *db, const uint8_t *head, uint32_t number,
                                        uint8_t *to)
{
    struct fetched fetched = {.record = NULL};
    uint64_t sequence;
    enum fkv_error error = large_fetch_sector(db, head, number, db->verify, &fetched, &sequence);
    if (!error)
        memcpy(to, record_key(fetched.record) + sizeof(struct format_piece_key),
               LARGE_SECTOR_PAYLOAD);
    fetch_done(&fetched);
    return error;
}

/* Where a piece is, as the layer's snapshot has it. */
static enum fkv_error find_piece(struct fkv *db, const struct undo_layer *layer,
                                 const uint8_t *head, uint32_t number, uint64_t *entry)
{
    enum fkv_error error =
        index_get(&db->index, piece_hash(db, large_head(head).id, number), entry);
    const struct undo_parts *parts =
        layer ? undo_find_parts(layer, record_hash(&db->hash_seeds, head)) : NULL;
    if (!parts || number >= parts->count || !parts->entry[number]) /* after the index: see undo.h */
        return error;
    *entry = parts->entry[number];
    return FKV_OK;
}

/* *torn: it is not there, as when the value was replaced meanwhile. */
static enum fkv_error read_queue_piece(struct fkv *db, const struct undo_layer *layer,
                                       const uint8_t *head, uint32_t number, uint32_t bytes,
                                       uint8_t *to, bool *torn)
{
    uint64_t entry, id = large_head(head).id;
    struct fetched fetched;
    enum fkv_error error = find_piece(db, layer, head, number, &entry);
    if (error == FKV_NOT_FOUND) {
        *torn = true;
        return bad_piece(db, id, number);
    }
    if (error)
        return error;
    error = fetch_record(db, entry, NULL, 0, &fetched);
    if (!error && record_is_piece(fetched.record, id, number, bytes)) {
        memcpy(to, record_key(fetched.record) + sizeof(struct format_piece_key), bytes);
    } else if (!error) {
        *torn = true;
        error = bad_piece(db, id, number);
    }
    fetch_done(&fetched);
    return error;
}

enum fkv_error large_read(struct fkv *db, const struct undo_layer *layer, const uint8_t *head,
                          void *buffer, bool *torn)
{
    *torn = false;
    if (!large_head_is_sound(head))
        return error_set(FKV_DAMAGED, "%s: the head of a large value is damaged", db->path);
    struct format_large large = large_head(head);
    uint8_t *to = buffer;
    enum fkv_error error;
    for (uint32_t i = 0; i < large.sectors; i++, to += LARGE_SECTOR_PAYLOAD)
        if ((error = read_sector_piece(db, head, i, to)))
            return error;
    uint32_t left = large.value_bytes - large.sectors * LARGE_SECTOR_PAYLOAD;
    for (uint32_t i = 0; i < large.pieces; i++) {
        uint32_t bytes = left < LARGE_PIECE_PAYLOAD ? left : LARGE_PIECE_PAYLOAD;
        uint32_t number = large.sectors + i;
        if ((error = read_queue_piece(db, layer, head, number, bytes, to, torn)))
            return error;
        to += bytes;
        left -= bytes;
    }
    return FKV_OK;
}
