/*
 * batch: what is committed. All of a batch follows from its number and from the life in which it
 * was made, so that a batch of an earlier life that comes back after it was undone does not pass
 * for the one that was made in its place.
 */
#ifndef FKV_POWER_BATCH_H
#define FKV_POWER_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BATCH_KEYS = 3000, /* and one more, which has the number of the last batch */
    BATCH_LAST = BATCH_KEYS,
    BATCH_CHANGES_MAX = 24,
    BATCH_KEY_BYTES = 16,
    BATCH_VALUE_BYTES_MAX = 300 << 10,
};

struct change {
    uint32_t key; /* its number */
    bool deletes;
    uint32_t value_bytes;
    uint64_t seed; /* of the value */
};

struct batch {
    uint64_t number;
    bool synced;  /* or made so by a later one */
    bool deletes; /* some key */
    size_t count;
    struct change changes[BATCH_CHANGES_MAX + 1];
};

/* Numbers begin at 1. */
void batch_make(struct batch *batch, uint64_t number, uint32_t life);

/* The key with a number, BATCH_KEY_BYTES long. */
void batch_key(char key[static BATCH_KEY_BYTES], uint32_t number);
/* The value that a change gives; room for its bytes and 8 more. */
void batch_value(const struct change *change, uint8_t *value);

/* For each key, the change that the batches from 1 to `last` leave it with; made in lives[number].
 * False: no memory. */
struct change *batch_state(uint64_t last, const uint32_t *lives);

#endif
