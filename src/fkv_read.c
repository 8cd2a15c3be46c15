#include "call.h"
#include "fetch.h"
#include "read.h"

/*
 * The public calls that read one key. The usual get is in isa_code.h; get_any does all of them.
 */

enum fkv_error get_any(fkv *db, const void *key, size_t key_bytes, void *buffer,
                       size_t buffer_bytes, size_t *value_bytes)
{
    struct key made;
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if (!buffer && buffer_bytes)
        return say(db, FKV_INVALID, "the buffer is NULL");
    if ((error = call_key(db, key, key_bytes, &made)))
        return said(db, error);
    rcu_read_lock();
    error = read_value(db, &made, buffer, buffer_bytes, value_bytes);
    rcu_read_unlock();
    return said(db, error);
}

enum fkv_error exists_any(fkv *db, const void *key, size_t key_bytes)
{
    struct key made;
    enum fkv_error error = check_handle(db);
    if (error)
        return error;
    if ((error = call_key(db, key, key_bytes, &made)))
        return said(db, error);
    uint64_t entry;
    rcu_read_lock();
    error = read_find(db, made.hash, &entry);
    rcu_read_unlock();
    return said(db, error);
}

enum fkv_error fkv_get(fkv *db, const void *key, size_t key_bytes, void *buffer,
                       size_t buffer_bytes, size_t *value_bytes)
{
    return isa.get(db, key, key_bytes, buffer, buffer_bytes, value_bytes);
}

enum fkv_error fkv_exists(fkv *db, const void *key, size_t key_bytes)
{
    return isa.exists(db, key, key_bytes);
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
    return said(db, read_borrow(db, &made, value, value_bytes));
}
