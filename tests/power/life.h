/*
 * life: what a process does between two losses of power. It opens the store, compares everything
 * in it with what was promised, and commits batch after batch until it is killed.
 */
#ifndef FKV_POWER_LIFE_H
#define FKV_POWER_LIFE_H

#include "disk.h"
#include "store.h"

enum { LIFE_BATCHES_MAX = 1 << 20 };

/* In memory shared with the parent. */
struct life {
    uint32_t number;
    _Atomic bool verified;  /* what was found is what was promised */
    _Atomic uint64_t found; /* the last batch that was there */
    _Atomic uint64_t begun; /* the last batch that was begun in any life */
    _Atomic bool has_failed;
    bool has_lost; /* batches that were promised, and nothing worse */
    char failure[600];
    uint32_t lives[LIFE_BATCHES_MAX]; /* in which each batch was made */
};

/* NULL: no memory. */
struct life *life_make(void);

/* In a process of its own, which ends only if something fails. */
_Noreturn void life_run(struct life *life, struct disk *disk, const struct store_kind *kind,
                        const char *directory, uint64_t random);

#endif
