/*
 * twin.h: a store beside a plain model of it, and snapshots beside copies of the model.
 */
#ifndef FKV_SNAPSHOT_TWIN_H
#define FKV_SNAPSHOT_TWIN_H

#include "fkv.h"
#include "support.h"

enum { TWIN_KEYS = 3000, TWIN_SNAPSHOTS = 10, TWIN_VALUE_MAX = 3 << 20 };

/* Of each key: 0 if it is absent, or a number that its value is made from. */
struct twin_state {
    uint64_t version[TWIN_KEYS];
    uint64_t keys;
};

struct twin {
    struct rng rng;
    char path[256];
    unsigned flags;
    fkv *db;
    uint64_t versions; /* given out */
    struct twin_state now;
    struct twin_snapshot {
        fkv_snapshot *snapshot; /* NULL: none */
        struct twin_state state;
    } snapshots[TWIN_SNAPSHOTS];
    uint8_t *value, *buffer;
};

void twin_make(struct twin *twin, uint64_t seed, const char *path, unsigned flags);
void twin_drop(struct twin *twin);
void twin_open(struct twin *twin);
/* Closes snapshots too. */
void twin_close(struct twin *twin);

size_t twin_key(uint32_t number, uint8_t key[32]);
/* The key's number; fails if it is none. */
uint32_t twin_key_number(const void *key, size_t key_bytes);
size_t twin_value_bytes(uint32_t number, uint64_t version);
void twin_value(uint32_t number, uint64_t version, uint8_t *to);

/* One commit of one or more random puts and deletes. */
void twin_commit(struct twin *twin);
/* Everything that is to be known of a key, in the present (NULL) or in a snapshot. */
void twin_check_key(struct twin *twin, const struct twin_snapshot *snapshot, uint32_t number);
void twin_check_all(struct twin *twin, const struct twin_snapshot *snapshot);
/* A scan in so many parts, now and then left and resumed, against the model. */
void twin_check_scan(struct twin *twin, const struct twin_snapshot *snapshot, uint32_t parts);
void twin_snapshot_open(struct twin *twin, struct twin_snapshot *snapshot);
void twin_snapshot_close(struct twin_snapshot *snapshot);

#endif
