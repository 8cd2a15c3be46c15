/*
 * read: from a key to its record, inline: the way of every get.
 *
 * Reading takes no lock. An entry leads to a record that is immutable for as long as the read
 * section lasts: the cells of a record that dies meanwhile are not reused before all readers of
 * that time have left. So a reader sees each key as some commit left it.
 */
#ifndef FKV_READ_H
#define FKV_READ_H

#include "index_search.h"
#include "planted.h"
#include "store.h"

/* A commit of several keys is under way: what its keys were before, which they are until it is
 * over. False if this is none of them. */
bool read_hidden(const struct overlay *overlay, struct hash128 hash, uint64_t *entry);

/* fkv_get and fkv_exists where anything is out of the ordinary: see isa_code.h. */
enum fkv_error get_any(fkv *db, const void *key, size_t key_bytes, void *buffer,
                       size_t buffer_bytes, size_t *value_bytes);
enum fkv_error exists_any(fkv *db, const void *key, size_t key_bytes);

/* read_entry, inline. */
static inline __attribute__((always_inline)) enum fkv_error
read_find(struct fkv *db, struct hash128 hash, uint64_t *entry)
{
    struct overlay *overlay = atomic_load_explicit(&db->overlay, memory_order_acquire);
    for (;;) {
        if (__builtin_expect(overlay != NULL, 0) && read_hidden(overlay, hash, entry))
            return *entry ? FKV_OK : FKV_NOT_FOUND;
        SCHEDULE_POINT();
        enum fkv_error error = index_find(&db->index, hash, entry);
        SCHEDULE_POINT();
        struct overlay *now = atomic_load_explicit(&db->overlay, memory_order_acquire);
        if (__builtin_expect(now == overlay, 1))
            return error;
        overlay = now;
    }
}

/* Where a record is, and what its checksum is bound to. */
struct place {
    const uint8_t *record;
    uint64_t sequence; /* of its sector */
};

/* The address of the record of an entry, which is of so many cells. READ_BY_CALL if it has none;
 * FKV_DAMAGED. */
static inline enum fkv_error read_locate(const struct fkv *db, uint64_t entry, uint32_t cells,
                                         struct place *place)
{
    uint64_t address = entry_address(entry);
    uint32_t sector = (uint32_t)(address / SECTOR_CELLS);
    uint32_t cell = address % SECTOR_CELLS;
    if (__builtin_expect((size_t)sector * sizeof(struct sector_view) >=
                                 db->sectors.views.backed_bytes ||
                             cell < SECTOR_HEADER_CELLS || cell + cells > SECTOR_CELLS,
                         0))
        return read_damaged(db, entry, "is not in the file"), FKV_DAMAGED;
    const struct sector_view *view = sector_view(&db->sectors, sector);
    const uint8_t *base = __atomic_load_n(&view->base, __ATOMIC_ACQUIRE);
    place->sequence = __atomic_load_n(&view->sequence, __ATOMIC_RELAXED);
    if (__builtin_expect(!base && !place->sequence, 0))
        return read_damaged(db, entry, "is in no values sector"), FKV_DAMAGED;
    if (__builtin_expect(!base, 0))
        return READ_BY_CALL;
    place->record = base + (size_t)cell * CELL_BYTES;
    return FKV_OK;
}

/* Begin to fetch a record before it is looked at: it is seldom in the processor's caches. (Every
 * other line, and leave the rest to the processor's own prefetching, takes a tenth longer.)
 * Always inline: gcc takes a function that only prefetches for one without effect. */
static inline __attribute__((always_inline)) void prefetch_record(const uint8_t *record,
                                                                  uint32_t cells)
{
    enum { CACHE_LINE = 64, LINES_MAX = 20 };
    uint32_t lines = cells / (CACHE_LINE / CELL_BYTES) + 1;
    if (lines > LINES_MAX)
        lines = LINES_MAX;
    for (uint32_t i = 0; i < lines; i++)
        __builtin_prefetch(record + (size_t)i * CACHE_LINE);
}

/* read_check, inline. */
static inline enum fkv_error check_record(struct fkv *db, uint64_t entry, uint64_t sequence,
                                          const uint8_t *record, const void *key, size_t key_bytes)
{
    uint32_t cells = entry_cells(entry);
    uint32_t cell = entry_address(entry) % SECTOR_CELLS;
    if (__builtin_expect(
            db->verify && !PLANTED(NO_RECORD_CHECKSUM) &&
                !record_verify_cells(record, cells, db->seed, record_place(sequence, cell)),
            0))
        return read_damaged(db, entry, "fails its checksum");
    struct format_record header = record_header(record);
    if (__builtin_expect(
            record_bytes(header.key_bytes, header.value_bytes) > (size_t)cells * CELL_BYTES, 0))
        return read_damaged(db, entry, "is longer than the index says");
    if (__builtin_expect((entry & ENTRY_LARGE) && !large_head_is_sound(record), 0))
        return read_damaged(db, entry, "is not the head of a large value");
    if (key && (header.key_bytes != key_bytes ||
                (key_bytes && memcmp(record_key(record), key, key_bytes) != 0)))
        return FKV_NOT_FOUND;
    return FKV_OK;
}

#endif
