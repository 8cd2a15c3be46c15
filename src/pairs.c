#include "pairs.h"

#include "planted.h"

enum { SECTORS_AHEAD = 8 };

enum fkv_error pairs_open(struct fkv_snapshot *snapshot, uint64_t position, uint32_t sector_end,
                          struct fkv_scan **opened)
{
    struct fkv_scan *pairs = memory_new(sizeof *pairs);
    if (!pairs)
        return FKV_NO_MEMORY;
    pairs->snapshot = snapshot;
    pairs->owner = snapshot->owner;
    pairs->sector = pairs->ahead = (uint32_t)max_u64(position / SECTOR_CELLS, 1);
    pairs->records.cell = (uint32_t)max_u64(position % SECTOR_CELLS, SECTOR_HEADER_CELLS);
    pairs->sector_end = sector_end;
    pairs->verify = snapshot->db->verify;
    atomic_fetch_add(&snapshot->uses, 1);
    snapshot->db->opened_bytes += sizeof *pairs;
    *opened = pairs;
    return FKV_OK;
}

void pairs_close(struct fkv_scan *pairs)
{
    if (!pairs->snapshot->ended)
        pairs->snapshot->db->opened_bytes -= sizeof *pairs + (pairs->copy ? SECTOR_BYTES : 0);
    snapshot_give(pairs->snapshot);
    memory_free(pairs->copy);
    memory_free(pairs);
}

uint64_t pairs_position(const struct fkv_scan *pairs)
{
    return (uint64_t)pairs->sector * SECTOR_CELLS + pairs->records.cell;
}

/* ---------------------------------------------------------------- sectors */

static bool may_hold_pairs(const struct fkv_scan *pairs, uint32_t sector)
{
    return sectors_is_seen(&pairs->snapshot->db->sectors, sector, pairs->snapshot->layer);
}

/* The mapping has no readahead of its own. */
static void read_ahead(struct fkv_scan *pairs)
{
    struct fkv *db = pairs->snapshot->db;
    uint32_t end = (uint32_t)min_u64(pairs->sector_end, pairs->sector + (uint64_t)SECTORS_AHEAD);
    if (pairs->ahead < pairs->sector)
        pairs->ahead = pairs->sector;
    for (; pairs->ahead < end; pairs->ahead++)
        if (may_hold_pairs(pairs, pairs->ahead))
            db->os->ops->start_read(db->file, (uint64_t)pairs->ahead * SECTOR_BYTES, SECTOR_BYTES);
}

/* Bytes that may go from where they are, or are in the file only. */
static enum fkv_error copy_sector(struct fkv_scan *pairs)
{
    struct fkv *db = pairs->snapshot->db;
    struct scan *records = &pairs->records;
    size_t bytes = records->end * CELL_BYTES;
    int status = 0;
    if (!pairs->copy) {
        if (!(pairs->copy = memory_new(SECTOR_BYTES)))
            return FKV_NO_MEMORY;
        db->opened_bytes += SECTOR_BYTES;
    }
    if (records->base)
        memcpy(pairs->copy, records->base, bytes);
    else
        status =
            db->os->ops->read(db->file, pairs->copy, bytes, (uint64_t)pairs->sector * SECTOR_BYTES);
    records->base = pairs->copy;
    return status ? error_os(status, "read a sector of", db->path) : FKV_OK;
}

static enum fkv_error check_header(const struct fkv_scan *pairs)
{
    const struct sectors *sectors = &pairs->snapshot->db->sectors;
    return sector_header_check(sectors, pairs->records.base, pairs->sector,
                               pairs->records.sequence);
}

/* The records of the sector that is next, from records.cell on. */
static enum fkv_error load(struct fkv_scan *pairs)
{
    struct fkv *db = pairs->snapshot->db;
    const struct undo_layer *layer = pairs->snapshot->layer;
    const struct sector_view *view = sector_view(&db->sectors, pairs->sector);
    struct scan *records = &pairs->records;
    bool queued = false;
    records->end = 0;
    if (!may_hold_pairs(pairs, pairs->sector))
        return FKV_OK;
    read_ahead(pairs);
    rcu_read_lock();
    enum fkv_error error = sectors_map_at(&db->sectors, layer, pairs->sector, pairs->dead, &queued);
    SCHEDULE_POINT();
    if (!error && queued) {
        records->base = __atomic_load_n(&view->base, __ATOMIC_ACQUIRE);
        records->seed = db->seed;
        records->sequence = __atomic_load_n(&view->sequence, __ATOMIC_RELAXED);
        records->end = records->sequence == layer->tail_sequence ? layer->tail_cell : SECTOR_CELLS;
        if (!records->base || records->base != sectors_mapped(&db->sectors, pairs->sector))
            error = copy_sector(pairs);
    }
    rcu_read_unlock();
    SCHEDULE_POINT();
    if (error)
        records->end = 0;
    else if (queued)
        error = check_header(pairs);
    return error;
}

static void next_sector(struct fkv_scan *pairs)
{
    pairs->sector++;
    pairs->loaded = false;
    pairs->records.cell = SECTOR_HEADER_CELLS;
}

/* ---------------------------------------------------------------- records */

/* What comes is fetched early, as the walk is a chain of cache misses. */
static inline void prefetch_ahead(const uint8_t *record, const uint8_t *end)
{
    enum { DISTANCE = 4096, SPAN = 256, CACHE_LINE = 64 };
    const uint8_t *from = record + DISTANCE;
    if (from + SPAN < end)
        for (size_t at = 0; at < SPAN; at += CACHE_LINE)
            __builtin_prefetch(from + at);
}

static enum fkv_error damaged(struct fkv_scan *pairs)
{
    struct scanned found = {0};
    scan_next(&pairs->records, &found);
    return error_set(FKV_DAMAGED, "%s: sector %u has no whole record in cells %u to %u",
                     pairs->snapshot->db->path, pairs->sector, found.cell,
                     found.cell + found.cells - 1);
}

/* Its header says that there is a record; is it whole, as far as that is to be verified, and one
 * that a pair can be made of? Nothing else sees to it that the head of a large value is one: no
 * entry of the index led here. */
static bool is_sound(const struct fkv_scan *pairs, const uint8_t *record, uint32_t cell,
                     uint32_t cells)
{
    const struct scan *records = &pairs->records;
    if (pairs->verify && !record_verify(record, cells * CELL_BYTES, records->seed,
                                        record_place(records->sequence, cell)))
        return false;
    return record_header(record).kind != RECORD_LARGE || large_head_is_sound(record);
}

/* The next pair in this sector; FKV_NOT_FOUND if there is none. */
static enum fkv_error next_in_sector(struct fkv_scan *pairs)
{
    struct scan *records = &pairs->records;
    while (records->cell < records->end) {
        uint32_t cell = records->cell;
        const uint8_t *record = records->base + cell * CELL_BYTES;
        uint32_t cells = record_walk(record, records->end - cell);
        if (!cells)
            return damaged(pairs);
        prefetch_ahead(record, records->base + records->end * CELL_BYTES);
        uint8_t kind = record_header(record).kind;
        bool dead = pairs->dead[cell >> 6] >> (cell & 63) & 1;
        if (!dead && (kind == RECORD_PLAIN || kind == RECORD_LARGE ||
                      (kind == RECORD_PIECE && pairs->pieces))) {
            if (!is_sound(pairs, record, cell, cells))
                return damaged(pairs);
            records->cell += cells;
            pairs->record = record;
            return FKV_OK;
        }
        records->cell += cells;
    }
    return FKV_NOT_FOUND;
}

enum fkv_error pairs_next(struct fkv_scan *pairs)
{
    pairs->record = NULL;
    for (; pairs->sector < pairs->sector_end; next_sector(pairs)) {
        if (!pairs->loaded) {
            enum fkv_error error = load(pairs);
            pairs->loaded = true;
            if (error)
                return error;
        }
        enum fkv_error error = next_in_sector(pairs);
        if (error != FKV_NOT_FOUND)
            return error;
    }
    return FKV_NOT_FOUND;
}

/* ---------------------------------------------------------------- values */

bool pairs_is_large(const struct fkv_scan *pairs)
{
    return record_header(pairs->record).kind == RECORD_LARGE;
}

uint32_t pairs_value_bytes(const struct fkv_scan *pairs)
{
    return pairs_is_large(pairs) ? large_head(pairs->record).value_bytes
                                 : record_header(pairs->record).value_bytes;
}

enum fkv_error pairs_value(const struct fkv_scan *pairs, void *buffer)
{
    const struct fkv_snapshot *snapshot = pairs->snapshot;
    if (pairs_is_large(pairs))
        return snapshot_large(snapshot, pairs->record, buffer);
    struct format_record header = record_header(pairs->record);
    if (header.value_bytes)
        memcpy(buffer, record_key(pairs->record) + header.key_bytes, header.value_bytes);
    return FKV_OK;
}
