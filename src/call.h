/*
 * call: what all public calls begin and end with: the handle, the key, the detail of an error.
 */
#ifndef FKV_CALL_H
#define FKV_CALL_H

#include "blake3.h"
#include "store.h"

/* The detail of a failure is the handle's (by its number; 0: that of fkv_open); success and absence
 * have none to keep. */
static inline enum fkv_error said_of(uint64_t owner, enum fkv_error error)
{
    if (__builtin_expect(error > FKV_NOT_FOUND, 0))
        error_claim(owner);
    return error;
}

static inline enum fkv_error said(const fkv *db, enum fkv_error error)
{
    return said_of(db ? db->id : 0, error);
}

static inline enum fkv_error say_of(uint64_t owner, enum fkv_error error, const char *text)
{
    return said_of(owner, error_set(error, "%s", text));
}

static inline enum fkv_error say(const fkv *db, enum fkv_error error, const char *text)
{
    return said(db, error_set(error, "%s", text));
}

/* The file that a path leads to, through symbolic links; PATH_MAX bytes. */
enum fkv_error call_path(const char *path, char *followed);

/* Of a call that may be made inside a read section, and does not wait for readers: see
 * check_handle. */
static inline enum fkv_error check_alive(const fkv *db)
{
    if (!db)
        return say_of(0, FKV_INVALID, "the handle is NULL");
    if (__atomic_load_n(db->alive, __ATOMIC_RELAXED) == HANDLE_FORKED)
        return say(db, FKV_FORKED, "the store was opened before fork()");
    return FKV_OK;
}

/* The options that were given, as far as the caller knows of them, over the defaults that are in
 * `all`. Both begin with their size; at least `least` bytes are to be given, by `init`. */
static inline enum fkv_error call_options(void *all, size_t all_bytes, const void *given,
                                          size_t least, const char *init)
{
    size_t bytes;
    if (!given)
        return FKV_OK;
    memcpy(&bytes, given, sizeof bytes);
    if (bytes < least)
        return error_set(FKV_INVALID, "options were not made with %s", init);
    memcpy(all, given, min_u64(bytes, all_bytes));
    return FKV_OK;
}

/* Give the caller as much of the result as he knows of. */
static inline void call_give(void *to, size_t to_bytes, const void *from, size_t from_bytes)
{
    if (!to)
        return;
    if (to_bytes > from_bytes)
        memset(to, 0, to_bytes);
    memcpy(to, from, min_u64(to_bytes, from_bytes));
}

/* Not a key at all: why? */
enum fkv_error call_no_key(const void *bytes, size_t size);

/* key_make, inline. */
static inline enum fkv_error call_key(const struct fkv *db, const void *bytes, size_t size,
                                      struct key *key)
{
    if (__builtin_expect(size > FKV_KEY_BYTES_MAX || (!bytes && size), 0)) {
        enum fkv_error error = call_no_key(bytes, size);
        assert(error);
        return error;
    }
    key->bytes = bytes ? bytes : ""; /* NULL would be: any key's record will do */
    key->size = size;
    if (__builtin_expect(db->digest, 0)) {
        blake3_hash(db->digest_key, bytes, size, key->digest);
        key->bytes = key->digest;
        key->size = DIGEST_BYTES;
    }
    key->hash = hash_key(&db->hash_seeds.keys, key->bytes, key->size);
    return FKV_OK;
}

#endif
