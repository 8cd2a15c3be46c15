/*
 * store: what a key-value store has to do to be tried. One file store_NAME.c each.
 */
#ifndef FKV_POWER_STORE_H
#define FKV_POWER_STORE_H

#include "batch.h"

struct store; /* the store's own */

/* Errors are said in store_failed's text; NULL, false and -1 mean one. */
struct store_kind {
    const char *name;
    const char *about;
    /* Says of what it did not sync that it is durable: shows that the harness finds what is lost.
     */
    bool lies;
    /* A file system of a moment ago may have any state. `random` may choose between options. */
    struct store *(*open)(const char *directory, uint64_t random);
    /* All of a batch or nothing; durable on return if the batch is synced. */
    bool (*commit)(struct store *store, const struct batch *batch);
    /* The length of the value; -2: the key is absent. `room` for BATCH_VALUE_BYTES_MAX. */
    long (*get)(struct store *store, const char *key, uint8_t *room);
    /* Its own search for damage; NULL: it has none. */
    bool (*check)(struct store *store);
};

enum { STORE_ABSENT = -2, STORE_ERROR = -1 };

extern const struct store_kind store_fkv, store_fkv_lies;
#ifdef POWER_LMDB
extern const struct store_kind store_lmdb, store_lmdb_lies;
#endif
#ifdef POWER_ROCKSDB
extern const struct store_kind store_rocksdb, store_rocksdb_lies;
#endif

/* What the last call that failed said; for the harness. */
extern char store_failure[512];
bool store_failed(const char *call, const char *text);

#endif
