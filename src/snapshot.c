#include "snapshot.h"

#include "fetch.h"

#include <sched.h>

enum fkv_error snapshot_open(struct fkv *db, struct fkv_snapshot **opened)
{
    struct fkv_snapshot *snapshot = memory_new(sizeof *snapshot);
    if (!snapshot)
        return FKV_NO_MEMORY;
    pthread_mutex_lock(&db->writer);
    struct undo_layer *layer = undo_open(&db->undo);
    if (layer) {
        layer->commit = db->commit;
        layer->sequence_end = db->sectors.next_sequence;
        layer->tail_sequence = db->tail.open ? db->tail.sequence : 0;
        layer->tail_cell = db->tail.open ? db->tail.cell : 0;
        layer->tail_dead =
            db->tail.open && sectors_all_dead(&db->sectors, db->tail.sector, db->tail.cell);
        layer->sector_count = db->sectors.count;
        snapshot->keys = db->keys;
        snapshot->commit = db->commit;
        snapshot->next = db->snapshots;
        if (snapshot->next)
            snapshot->next->previous = snapshot;
        db->snapshots = snapshot;
    }
    pthread_mutex_unlock(&db->writer);
    if (!layer) {
        memory_free(snapshot);
        return FKV_NO_MEMORY;
    }
    db->opened_bytes += sizeof *snapshot;
    snapshot->db = db;
    snapshot->owner = db->id;
    snapshot->uses = 1;
    snapshot->layer = layer;
    *opened = snapshot;
    return FKV_OK;
}

static void unlink_open(struct fkv_snapshot *snapshot)
{
    if (snapshot->next)
        snapshot->next->previous = snapshot->previous;
    if (snapshot->previous)
        snapshot->previous->next = snapshot->next;
    else
        snapshot->db->snapshots = snapshot->next;
}

/* Merge and forget what nobody needs any more, letting writers in between. */
static void settle(struct fkv *db)
{
    struct undo_layer *gone;
    pthread_mutex_lock(&db->writer);
    while (undo_settle(&db->undo, &gone)) {
        bool wait = gone && !rcu_read_ongoing();
        if (gone && !wait)
            undo_retire(&db->undo, gone);
        pthread_mutex_unlock(&db->writer);
        if (wait) {
            synchronize_rcu();
            rcu_grace_seen();
            undo_free(gone);
        }
        if (db->threads)
            sched_yield(); /* who waits for the lock would not get it otherwise */
        pthread_mutex_lock(&db->writer);
    }
    reclaim_poll(&db->reclaim, false);
    pthread_mutex_unlock(&db->writer);
    reclaim_wait(&db->reclaim);
}

void snapshot_give(struct fkv_snapshot *snapshot)
{
    if (atomic_fetch_sub(&snapshot->uses, 1) > 1)
        return;
    /* In a child of fork() a thread that is not there may hold the locks; the store is not used. */
    if (!snapshot->ended && !*snapshot->db->alive) {
        unlink_open(snapshot);
    } else if (!snapshot->ended) {
        struct fkv *db = snapshot->db;
        pthread_mutex_lock(&db->writer);
        unlink_open(snapshot);
        db->opened_bytes -= sizeof *snapshot;
        undo_close(&db->undo, snapshot->layer);
        pthread_mutex_unlock(&db->writer);
        settle(db);
    }
    memory_free(snapshot);
}

void snapshot_end_all(struct fkv *db)
{
    bool forked = !*db->alive;
    if (!forked)
        pthread_mutex_lock(&db->writer);
    for (struct fkv_snapshot *snapshot = db->snapshots; snapshot; snapshot = snapshot->next) {
        snapshot->ended = true;
        if (!forked)
            undo_close(&db->undo, snapshot->layer);
    }
    db->snapshots = NULL;
    if (forked)
        return;
    for (struct undo_layer *gone; undo_settle(&db->undo, &gone);) /* nothing is merged any more */
        if (gone)
            undo_retire(&db->undo, gone);
    pthread_mutex_unlock(&db->writer);
}

/* ---------------------------------------------------------------- reading */

enum fkv_error snapshot_entry(const struct fkv_snapshot *snapshot, struct hash128 hash,
                              uint64_t *entry)
{
    enum fkv_error error = index_get(&snapshot->db->index, hash, entry);
    if (undo_find_key(snapshot->layer, hash, entry)) /* after the index: see undo.h */
        error = *entry ? FKV_OK : FKV_NOT_FOUND;
    return error;
}

enum fkv_error snapshot_large(const struct fkv_snapshot *snapshot, const uint8_t *head,
                              void *buffer)
{
    enum { LOOKS_MAX = 64 }; /* a piece whose slot was given to another key is looked for again */
    bool torn = true;
    enum fkv_error error = FKV_OK;
    rcu_read_lock();
    for (int look = 0; torn && look < LOOKS_MAX; look++)
        error = large_read(snapshot->db, snapshot->layer, head, buffer, &torn);
    rcu_read_unlock();
    return error;
}

static enum fkv_error copy_value(const struct fkv_snapshot *snapshot, uint64_t entry,
                                 const uint8_t *record, void *buffer, size_t buffer_bytes,
                                 size_t *value_bytes)
{
    enum fkv_error error = FKV_OK;
    bool large = entry & ENTRY_LARGE;
    size_t bytes = read_value_bytes(entry, record);
    if (value_bytes && (!large || bytes > buffer_bytes))
        *value_bytes = bytes;
    if (bytes > buffer_bytes)
        return error_set(FKV_BUFFER_TOO_SMALL, "the value has %zu bytes, the buffer %zu", bytes,
                         buffer_bytes);
    if (large)
        error = snapshot_large(snapshot, record, buffer);
    if (large && !error && value_bytes)
        *value_bytes = bytes;
    if (!large && bytes)
        memcpy(buffer, record_key(record) + record_header(record).key_bytes, bytes);
    return error;
}

enum fkv_error snapshot_value(const struct fkv_snapshot *snapshot, const struct key *key,
                              void *buffer, size_t buffer_bytes, size_t *value_bytes)
{
    struct fetched fetched;
    uint64_t entry;
    const uint8_t *record;
    enum fkv_error error = fetch_find(snapshot->db, snapshot, key, &entry, &fetched, &record);
    if (!error)
        error = copy_value(snapshot, entry, record, buffer, buffer_bytes, value_bytes);
    fetch_done(&fetched);
    return error;
}

enum fkv_error snapshot_borrow(const struct fkv_snapshot *snapshot, const struct key *key,
                               const void **value, size_t *value_bytes)
{
    if (snapshot->db->sectors.unmapped)
        return error_set(FKV_INVALID, "%s is open without a mapping: nothing can be lent",
                         snapshot->db->path);
    uint64_t entry;
    const uint8_t *record;
    enum fkv_error error = fetch_find(snapshot->db, snapshot, key, &entry, NULL, &record);
    if (error)
        return error;
    return read_in_place(entry, record, value, value_bytes);
}

enum fkv_error snapshot_size(const struct fkv_snapshot *snapshot, const struct key *key,
                             size_t *value_bytes)
{
    struct fetched fetched;
    uint64_t entry;
    const uint8_t *record;
    enum fkv_error error = fetch_find(snapshot->db, snapshot, key, &entry, &fetched, &record);
    if (!error)
        *value_bytes = read_value_bytes(entry, record);
    fetch_done(&fetched);
    return error;
}
