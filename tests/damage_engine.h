/*
 * damage_engine: stores whose files are damaged while they are closed, or while they are open.
 *
 * Whatever is damaged, every call ends, and no read gives anything but what the store held: after
 * the last commit, or, where the end of the log is damaged, after an earlier one, which nobody can
 * tell from a loss of power. Everything else is an error which names the file. What fkv_check says
 * of the store goes together with that: where a read fails, it has found something.
 */
#ifndef FKV_TESTS_DAMAGE_ENGINE_H
#define FKV_TESTS_DAMAGE_ENGINE_H

#include "crash_engine.h"

enum damage {
    DAMAGE_FLIP_BIT,
    DAMAGE_FLIP_BITS,  /* some, near each other */
    DAMAGE_ZERO_BLOCK, /* of 512 bytes, or of a page */
    DAMAGE_GARBAGE_BLOCK,
    DAMAGE_SWAP_BLOCKS,
    DAMAGE_DUPLICATE_BLOCK,
    DAMAGE_STALE_BLOCK, /* as it was some steps ago */
    DAMAGE_CUT,
    DAMAGE_OLD_LOG, /* the log as it was */
    DAMAGE_OLD_FILE,
    DAMAGE_OTHER_LOG, /* of another store that did the same */
    DAMAGE_NO_LOG,
    DAMAGES,
};

extern struct damage_totals {
    uint64_t damaged;      /* files opened, or open, that were damaged */
    uint64_t refused;      /* the store could not be opened */
    uint64_t reads_failed; /* keys that could not be read, and said so */
    uint64_t undone;       /* stores that opened at an earlier commit */
    uint64_t unharmed;     /* where everything was as it had been */
    uint64_t of[DAMAGES];
} damage_totals;
const char *damage_name(enum damage damage);

/* So many times, a store that the workload has made. */
void damage_of(const struct workload *workload, uint64_t seed, uint64_t times);

#endif
