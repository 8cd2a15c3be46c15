/*
 * ahead: what makes the replay of a long log fast.
 *
 * Before it, all frames are looked at, and the pages of the index that they will need are read in
 * the order in which they lie; during it, the next frames are, and what they need is prefetched.
 * Nothing here decides anything: frames are not verified but for the chain, and what cannot be
 * understood is left to the replay.
 */
#ifndef FKV_AHEAD_H
#define FKV_AHEAD_H

#include "store.h"

enum { AHEAD_MAX = 64 }; /* operations that are looked at before their turn */

struct ahead_key {
    struct hash128 hash;
    uint64_t dies; /* the address that the record before seems to have; 0: none, or nobody knows */
    bool known;    /* the hash is */
};

struct ahead {
    uint64_t offset; /* of the next frame to look at */
    uint64_t chain;  /* what it has to follow on */
    uint64_t left;   /* bytes until all of the ring was looked at: stale frames may form a circle */
    const uint8_t *at, *end; /* the rest of the frame that is being looked at */
    /* Operations since the beginning that were replayed, and that each stage is done with. */
    uint64_t done, seen, fetched, found, mapped;
    struct ahead_key keys[AHEAD_MAX]; /* from `done` on */
};

void ahead_begin(struct ahead *ahead, const struct fkv *db);
/* So many operations were replayed since the last call: look at as many more. */
void ahead_look(struct ahead *ahead, const struct fkv *db, uint32_t operations_done);

/* Read the pages of the index that the log will need, sector by sector. */
void ahead_load_index(struct fkv *db);

#endif
