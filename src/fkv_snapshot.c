#include "snapshot.h"

#include "call.h"

/* The public calls of snapshots: arguments, keys, read sections, errors. */

static enum fkv_error check_snapshot(const fkv_snapshot *snapshot)
{
    if (!snapshot)
        return say_of(0, FKV_INVALID, "the snapshot is NULL");
    if (snapshot->ended)
        return say_of(snapshot->owner, FKV_SNAPSHOT_ENDED, "the store was closed");
    return check_handle(snapshot->db);
}

enum fkv_error fkv_snapshot_open(fkv *db, fkv_snapshot **snapshot)
{
    enum fkv_error error = check_alive(db);
    if (error)
        return error;
    if (!snapshot)
        return say_of(db->id, FKV_INVALID, "no place for the snapshot");
    return said_of(db->id, snapshot_open(db, snapshot));
}

void fkv_snapshot_close(fkv_snapshot *snapshot)
{
    if (snapshot)
        snapshot_give(snapshot);
}

uint64_t fkv_snapshot_keys(const fkv_snapshot *snapshot)
{
    return snapshot ? snapshot->keys : 0;
}

/* What every read begins with: the key, and a read section if there is no error. */
static enum fkv_error begin(const fkv_snapshot *snapshot, const void *bytes, size_t size,
                            struct key *key)
{
    enum fkv_error error = check_snapshot(snapshot);
    if (error)
        return error;
    if ((error = key_make(snapshot->db, bytes, size, key)))
        return said_of(snapshot->owner, error);
    rcu_read_lock();
    return FKV_OK;
}

static enum fkv_error end(const fkv_snapshot *snapshot, enum fkv_error error)
{
    rcu_read_unlock();
    return said_of(snapshot->owner, error);
}

enum fkv_error fkv_snapshot_get(fkv_snapshot *snapshot, const void *key, size_t key_bytes,
                                void *buffer, size_t buffer_bytes, size_t *value_bytes)
{
    struct key made;
    enum fkv_error error = check_snapshot(snapshot);
    if (!error && !buffer && buffer_bytes)
        return say_of(snapshot->owner, FKV_INVALID, "the buffer is NULL");
    if (error || (error = begin(snapshot, key, key_bytes, &made)))
        return error;
    return end(snapshot, snapshot_value(snapshot, &made, buffer, buffer_bytes, value_bytes));
}

enum fkv_error fkv_snapshot_exists(fkv_snapshot *snapshot, const void *key, size_t key_bytes)
{
    struct key made;
    uint64_t entry;
    enum fkv_error error = begin(snapshot, key, key_bytes, &made);
    return error ? error : end(snapshot, snapshot_entry(snapshot, made.hash, &entry));
}

enum fkv_error fkv_snapshot_value_size(fkv_snapshot *snapshot, const void *key, size_t key_bytes,
                                       size_t *value_bytes)
{
    struct key made;
    enum fkv_error error = check_snapshot(snapshot);
    if (!error && !value_bytes)
        return say_of(snapshot->owner, FKV_INVALID, "no place for the size");
    if (error || (error = begin(snapshot, key, key_bytes, &made)))
        return error;
    return end(snapshot, snapshot_size(snapshot, &made, value_bytes));
}

enum fkv_error fkv_snapshot_borrow(fkv_snapshot *snapshot, const void *key, size_t key_bytes,
                                   const void **value, size_t *value_bytes)
{
    struct key made;
    enum fkv_error error = check_snapshot(snapshot);
    if (error)
        return error;
    if (!value || !value_bytes)
        return say_of(snapshot->owner, FKV_INVALID, "no place for the value");
    if (!rcu_read_ongoing())
        return say_of(snapshot->owner, FKV_INVALID,
                      "fkv_snapshot_borrow outside fkv_read_begin and fkv_read_end");
    if ((error = begin(snapshot, key, key_bytes, &made)))
        return error;
    return end(snapshot, snapshot_borrow(snapshot, &made, value, value_bytes));
}
