#include "fetch.h"

#include "snapshot.h"

enum fkv_error fetch_cells(struct fkv *db, uint64_t address, uint32_t cells,
                           struct fetched *fetched)
{
    size_t bytes = (size_t)cells * CELL_BYTES;
    uint8_t *to = fetched->small;
    if (bytes > sizeof fetched->small && !(to = fetched->block = memory_new(bytes)))
        return FKV_NO_MEMORY;
    fetched->record = to;
    int status = db->os->ops->read(db->file, to, bytes, address * CELL_BYTES);
    return status ? error_os(status, "read a record of", db->path) : FKV_OK;
}

enum fkv_error fetch_record(struct fkv *db, uint64_t entry, const void *key, size_t key_bytes,
                            struct fetched *fetched)
{
    fetched->block = NULL;
    enum fkv_error error = read_record(db, entry, key, key_bytes, &fetched->record);
    if (error != READ_BY_CALL)
        return error;
    uint64_t sequence = __atomic_load_n(
        &sector_view(&db->sectors, (uint32_t)(entry_address(entry) / SECTOR_CELLS))->sequence,
        __ATOMIC_RELAXED);
    error = fetch_cells(db, entry_address(entry), entry_cells(entry), fetched);
    return error ? error : read_check(db, entry, sequence, fetched->record, key, key_bytes);
}

static enum fkv_error entry_of(struct fkv *db, const struct fkv_snapshot *snapshot,
                               struct hash128 hash, uint64_t *entry)
{
    return snapshot ? snapshot_entry(snapshot, hash, entry) : read_entry(db, hash, entry);
}

enum fkv_error fetch_find(struct fkv *db, const struct fkv_snapshot *snapshot,
                          const struct key *key, uint64_t *entry, struct fetched *fetched,
                          const uint8_t **record)
{
    if (fetched)
        fetched->block = NULL;
    for (;;) {
        enum fkv_error error = entry_of(db, snapshot, key->hash, entry);
        if (error)
            return error;
        if (!fetched)
            error = read_lend(db, *entry, key->bytes, key->size, record);
        else if (!(error = fetch_record(db, *entry, key->bytes, key->size, fetched)))
            *record = fetched->record;
        if (error != FKV_NOT_FOUND)
            return error;
        if (fetched)
            fetch_done(fetched);
        /* As in read.c: the slot may have been given to another key between two looks at it. */
        uint64_t again;
        if (entry_of(db, snapshot, key->hash, &again) == FKV_OK && again == *entry)
            return read_damaged(db, *entry, "has another key than the index says"), FKV_DAMAGED;
    }
}

enum fkv_error fetch_value(struct fkv *db, const struct key *key, void *buffer, size_t buffer_bytes,
                           size_t *value_bytes)
{
    enum fkv_error error;
    bool again;
    do {
        struct fetched fetched;
        uint64_t entry;
        const uint8_t *record;
        again = false;
        error = fetch_find(db, NULL, key, &entry, &fetched, &record);
        if (!error)
            error = read_copy(db, key, entry, record, buffer, buffer_bytes, value_bytes, &again);
        fetch_done(&fetched);
    } while (again);
    return error;
}

enum fkv_error fetch_size(struct fkv *db, const struct key *key, size_t *value_bytes)
{
    struct fetched fetched;
    uint64_t entry;
    const uint8_t *record;
    enum fkv_error error = fetch_find(db, NULL, key, &entry, &fetched, &record);
    if (!error)
        *value_bytes = read_value_bytes(entry, record);
    fetch_done(&fetched);
    return error;
}

/* Once more page by page if it fails: an error may pass, and is the less likely the less is read.
 */
static int read_sector(struct fkv *db, uint32_t sector, uint8_t *to)
{
    uint64_t offset = (uint64_t)sector * SECTOR_BYTES;
    int status = db->os->ops->read(db->file, to, SECTOR_BYTES, offset);
    if (!status)
        return 0;
    status = 0;
    for (size_t at = 0; !status && at < SECTOR_BYTES; at += PAGE_BYTES)
        status = db->os->ops->read(db->file, to + at, PAGE_BYTES, offset + at);
    return status;
}

enum fkv_error fetch_sector(struct fkv *db, uint32_t sector, struct sector_room *room,
                            const uint8_t **bytes)
{
    uint64_t sequence = sector_view(&db->sectors, sector)->sequence;
    const uint8_t *base = sector_base(&db->sectors, sector);
    if (base) {
        *bytes = base;
        return FKV_OK;
    }
    if (!room->bytes && !(room->bytes = memory_buffer(SECTOR_BYTES)))
        return FKV_NO_MEMORY;
    if (room->sequence != sequence) {
        room->sequence = 0;
        int status = read_sector(db, sector, room->bytes);
        if (status)
            return error_os(status, "read a sector of", db->path);
        room->sequence = sequence;
    }
    *bytes = room->bytes;
    return FKV_OK;
}

#ifdef FKV_TESTING
bool fetch_test_by_call;
enum fetch_way fetch_test_way;
#endif

void fetch_open_direct(struct fkv *db)
{
    const struct os_ops *ops = db->os->ops;
    if (db->direct.tried)
        return; /* who has a queue looks at it without a lock */
    db->direct.tried = true;
    if (!ops->cached || !ops->open_direct ||
        ops->open_direct(db->file, &db->direct.file, &db->direct.block_bytes))
        db->direct.file = NULL;
}

enum fetch_way fetch_way(const struct fkv *db, uint64_t offset, uint64_t bytes, uint64_t nth)
{
    enum { FILLS_THE_CACHE = 16 };
    const struct os_ops *ops = db->os->ops;
    enum fetch_way way = FETCH_CACHED;
#ifdef FKV_TESTING
    if (fetch_test_way)
        return fetch_test_way == FETCH_DIRECT && !db->direct.file ? FETCH_CACHED : fetch_test_way;
#endif
    int cached = ops->cached ? ops->cached(db->file, offset, bytes) : -1;
    /* Where nobody knows, what readers have in the mapping counts as cached. */
    if (cached > 0 ||
        (cached < 0 && !atomic_load_explicit(&db->sectors.by_call, memory_order_relaxed)))
        way = FETCH_NOW;
    else if (cached == 0 && db->direct.file && nth % FILLS_THE_CACHE &&
             atomic_load_explicit(&db->beyond_memory, memory_order_relaxed))
        way = FETCH_DIRECT;
    return way;
}

void fetch_decide(struct fkv *db)
{
    struct sectors *sectors = &db->sectors;
    uint64_t memory = db->os->ops->memory(db->os);
#ifdef FKV_TESTING
    memory = fetch_test_by_call ? 0 : memory;
#endif
    tail_limit_memory(&db->tail, memory);
    uint64_t need = (uint64_t)sectors->count * SECTOR_BYTES + store_memory_bytes(db);
    bool beyond = atomic_load(&db->beyond_memory);
    /* Some way apart, so that a store at the edge does not change its way all the time. */
    if (beyond ? need >= memory / 8 * 7 : need <= memory)
        return;
    atomic_store(&db->beyond_memory, !beyond);
    db->log.scarce = !beyond;
    if (!sectors->unmapped)
        sectors_read_by_call(sectors, !beyond);
}
