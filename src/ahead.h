/*
 * ahead: what makes the replay of a long log fast.
 *
 * The next frames are looked at before their turn and what they need is prefetched; and if there
 * are enough of them that most of the index will be touched, the index is read in one go. Nothing
 * here decides anything: frames are not verified, and what cannot be understood is left to the
 * replay.
 */
#ifndef FKV_AHEAD_H
#define FKV_AHEAD_H

#include "store.h"

struct ahead {
    uint64_t offset; /* of the next frame to look at */
    uint64_t left;   /* bytes until all of the ring was looked at: stale frames may form a circle */
    uint32_t lead;   /* operations that were looked at and not yet replayed */
    bool over;
};

void ahead_begin(struct ahead *ahead, const struct fkv *db);
/* So many operations were replayed since the last call: look at as many more. */
void ahead_look(struct ahead *ahead, const struct fkv *db, uint32_t operations_done);

/* Read the whole index, if the log is long enough that most of it will be needed. */
void ahead_load_index(struct fkv *db);

#endif
