#include "call.h"
#include "fetch.h"
#include "read.h"

/*
 * The public calls that read one key. The usual case is here, inline from the key to the value;
 * what is out of the ordinary begins anew in read.c.
 */

/* Inside a read section. The hash of the key by itself, so that it is in registers: a load of both
 * halves, where they were stored one by one a moment ago, would wait for the stores. */
static inline enum fkv_error get(fkv *db, const struct key *key, struct hash128 hash, void *buffer,
                                 size_t buffer_bytes, size_t *value_bytes)
{
    uint64_t entry;
    enum fkv_error error = read_find(db, hash, &entry);
    if (error)
        return error;
    SCHEDULE_POINT();
    struct place place;
    error = read_locate(db, entry, &place);
    if (__builtin_expect(error == READ_BY_CALL, 0))
        return fetch_value(db, key, buffer, buffer_bytes, value_bytes);
    if (__builtin_expect(error || entry & ENTRY_LARGE, 0))
        return read_value(db, key, buffer, buffer_bytes, value_bytes);
    prefetch_record(place.record, entry_cells(entry));
    error = check_record(db, entry, place.sequence, place.record, key->bytes, key->size);
    struct format_record header = record_header(place.record);
    if (__builtin_expect(error || header.value_bytes > buffer_bytes, 0))
        return read_value(db, key, buffer, buffer_bytes, value_bytes);
    if (header.value_bytes)
        memcpy(buffer, record_key(place.record) + header.key_bytes, header.value_bytes);
    if (value_bytes)
        *value_bytes = header.value_bytes;
    return FKV_OK;
}

enum fkv_error fkv_get(fkv *db, const void *key, size_t key_bytes, void *buffer,
                       size_t buffer_bytes, size_t *value_bytes)
{
    struct key made;
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if (__builtin_expect(!buffer && buffer_bytes, 0))
        return say(db, FKV_INVALID, "the buffer is NULL");
    if ((error = call_key(db, key, key_bytes, &made)))
        return said(db, error);
    struct hash128 hash = made.hash;
    rcu_read_lock();
    error = get(db, &made, hash, buffer, buffer_bytes, value_bytes);
    rcu_read_unlock();
    return said(db, error);
}

enum fkv_error fkv_exists(fkv *db, const void *key, size_t key_bytes)
{
    struct key made;
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if ((error = call_key(db, key, key_bytes, &made)))
        return said(db, error);
    uint64_t entry;
    struct hash128 hash = made.hash;
    rcu_read_lock();
    error = read_find(db, hash, &entry);
    rcu_read_unlock();
    return said(db, error);
}

enum fkv_error fkv_value_size(fkv *db, const void *key, size_t key_bytes, size_t *value_bytes)
{
    struct key made;
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if (!value_bytes)
        return say(db, FKV_INVALID, "no place for the size");
    if ((error = call_key(db, key, key_bytes, &made)))
        return said(db, error);
    rcu_read_lock();
    error = read_size(db, &made, value_bytes);
    rcu_read_unlock();
    return said(db, error);
}

void fkv_read_begin(fkv *db)
{
    (void)db;
    rcu_read_lock();
}

void fkv_read_end(fkv *db)
{
    (void)db;
    if (rcu_read_ongoing())
        rcu_read_unlock();
}

enum fkv_error fkv_borrow(fkv *db, const void *key, size_t key_bytes, const void **value,
                          size_t *value_bytes)
{
    struct key made;
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if (!value || !value_bytes)
        return say(db, FKV_INVALID, "no place for the value");
    if (!rcu_read_ongoing())
        return say(db, FKV_INVALID, "fkv_borrow outside fkv_read_begin and fkv_read_end");
    if ((error = call_key(db, key, key_bytes, &made)))
        return said(db, error);
    if (db->sectors.unmapped)
        return say(db, FKV_INVALID, "the store is open without a mapping: nothing can be lent");
    error = read_borrow(db, &made, value, value_bytes);
    if (error == FKV_VALUE_TOO_LARGE)
        error_set(error, "the value is stored in pieces");
    return said(db, error);
}
