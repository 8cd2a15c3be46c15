#include "read.h"

#include "fetch.h"

bool read_hidden(const struct overlay *overlay, struct hash128 hash, uint64_t *entry)
{
    for (uint32_t i = (uint32_t)hash.lo & overlay->mask;; i = (i + 1) & overlay->mask) {
        const struct overlay_slot *slot = &overlay->slots[i];
        if (!slot->used)
            return false;
        if (slot->hash.hi == hash.hi && slot->hash.lo == hash.lo) {
            *entry = slot->entry;
            return true;
        }
    }
}

enum fkv_error read_entry(struct fkv *db, struct hash128 hash, uint64_t *entry)
{
    return read_find(db, hash, entry);
}

enum fkv_error read_damaged(const struct fkv *db, uint64_t entry, const char *what)
{
    uint64_t address = entry_address(entry);
    return error_set(FKV_DAMAGED, "%s: the record in sector %llu, cell %llu %s", db->path,
                     (unsigned long long)(address / SECTOR_CELLS),
                     (unsigned long long)(address % SECTOR_CELLS), what);
}

enum fkv_error read_check(struct fkv *db, uint64_t entry, uint64_t sequence, const uint8_t *record,
                          const void *key, size_t key_bytes)
{
    return check_record(db, entry, sequence, record, key, key_bytes);
}

enum fkv_error read_record(struct fkv *db, uint64_t entry, const void *key, size_t key_bytes,
                           const uint8_t **record)
{
    struct place place;
    enum fkv_error error = read_locate(db, entry, entry_cells(entry), &place);
    if (__builtin_expect(error, 0))
        return error;
    prefetch_record(place.record, entry_cells(entry));
    error = check_record(db, entry, place.sequence, place.record, key, key_bytes);
    if (!error)
        *record = place.record;
    return error;
}

/* Find the record of a key. */
static enum fkv_error find_record(struct fkv *db, const struct key *key, uint64_t *entry,
                                  const uint8_t **record)
{
    for (;;) {
        enum fkv_error error = read_entry(db, key->hash, entry);
        if (error)
            return error;
        SCHEDULE_POINT();
        error = read_record(db, *entry, key->bytes, key->size, record);
        if (error != FKV_NOT_FOUND)
            return error;
        /* The slot agreed in 74 bits, the record is another key's. Was the slot given to another
         * key between two looks at it? Then look again. */
        uint64_t again;
        if (read_entry(db, key->hash, &again) == FKV_OK && again == *entry)
            return read_damaged(db, *entry, "has another key than the index says");
    }
}

enum fkv_error read_copy(struct fkv *db, const struct key *key, uint64_t entry,
                         const uint8_t *record, void *buffer, size_t buffer_bytes,
                         size_t *value_bytes, bool *again)
{
    enum fkv_error error = FKV_OK;
    size_t bytes = read_value_bytes(entry, record);
    if (bytes > buffer_bytes) {
        if (value_bytes)
            *value_bytes = bytes;
        return error_set(FKV_BUFFER_TOO_SMALL, "the value has %zu bytes, the buffer %zu", bytes,
                         buffer_bytes);
    }
    bool torn = false;
    if (entry & ENTRY_LARGE)
        error = large_read(db, NULL, record, buffer, &torn);
    else if (bytes)
        memcpy(buffer, record_key(record) + record_header(record).key_bytes, bytes);
    if (torn) { /* a piece is gone: is the value itself? */
        uint64_t now;
        *again = atomic_load(&db->overlay) || read_entry(db, key->hash, &now) != FKV_OK ||
                 now != entry || atomic_load(&db->overlay);
        return error;
    }
    if (!error && value_bytes)
        *value_bytes = bytes;
    return error;
}

enum fkv_error read_value(struct fkv *db, const struct key *key, void *buffer, size_t buffer_bytes,
                          size_t *value_bytes)
{
    enum fkv_error error;
    bool again;
    do {
        uint64_t entry;
        const uint8_t *record;
        again = false;
        error = find_record(db, key, &entry, &record);
        if (__builtin_expect(error == READ_BY_CALL, 0))
            return fetch_value(db, key, buffer, buffer_bytes, value_bytes);
        if (!error)
            error = read_copy(db, key, entry, record, buffer, buffer_bytes, value_bytes, &again);
    } while (__builtin_expect(again, 0));
    return error;
}

enum fkv_error read_lend(struct fkv *db, uint64_t entry, const void *key, size_t key_bytes,
                         const uint8_t **record)
{
    enum fkv_error error = read_record(db, entry, key, key_bytes, record);
    if (__builtin_expect(error != READ_BY_CALL, 1))
        return error;
    uint32_t sector = (uint32_t)(entry_address(entry) / SECTOR_CELLS);
    const uint8_t *mapped = sectors_mapped(&db->sectors, sector);
    if (!mapped)
        return error_set(FKV_INVALID, "%s is open without a mapping: nothing can be lent",
                         db->path);
    uint64_t sequence =
        __atomic_load_n(&sector_view(&db->sectors, sector)->sequence, __ATOMIC_RELAXED);
    *record = mapped + entry_address(entry) % SECTOR_CELLS * CELL_BYTES;
    return read_check(db, entry, sequence, *record, key, key_bytes);
}

enum fkv_error read_borrow(struct fkv *db, const struct key *key, const void **value,
                           size_t *value_bytes)
{
    uint64_t entry;
    const uint8_t *record;
    enum fkv_error error = find_record(db, key, &entry, &record);
    if (__builtin_expect(error == READ_BY_CALL, 0))
        error = fetch_find(db, NULL, key, &entry, NULL, &record);
    if (error)
        return error;
    return read_in_place(entry, record, value, value_bytes);
}

enum fkv_error read_size(struct fkv *db, const struct key *key, size_t *value_bytes)
{
    uint64_t entry;
    const uint8_t *record;
    enum fkv_error error = find_record(db, key, &entry, &record);
    if (error == READ_BY_CALL)
        return fetch_size(db, key, value_bytes);
    if (!error)
        *value_bytes = read_value_bytes(entry, record);
    return error;
}
