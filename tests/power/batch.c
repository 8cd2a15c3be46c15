#include "batch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"

static uint32_t draw_length(uint64_t *random)
{
    uint64_t kind = random_below(random, 100);
    if (kind == 0)
        return (uint32_t)random_below(random, BATCH_VALUE_BYTES_MAX);
    return (uint32_t)random_below(random, kind < 20 ? 8192 : 1024);
}

void batch_make(struct batch *batch, uint64_t number, uint32_t life)
{
    uint64_t random = random_mix(number) ^ random_mix(life * 0x1000003ull);
    /* Now and then the keys go, so that files shrink. */
    unsigned deletes_percent = number % 1000 < 900 ? 10 : 70;
    batch->number = number;
    batch->synced = random_below(&random, 4) != 0;
    batch->deletes = false;
    batch->count =
        1 + (size_t)random_below(&random, random_below(&random, 2) ? 3 : BATCH_CHANGES_MAX);
    for (size_t i = 0; i < batch->count; i++) {
        struct change *change = &batch->changes[i];
        change->key = (uint32_t)random_below(&random, BATCH_KEYS);
        change->deletes = random_below(&random, 100) < deletes_percent;
        change->value_bytes = change->deletes ? 0 : draw_length(&random);
        change->seed = random_next(&random);
        batch->deletes |= change->deletes;
    }
    batch->changes[batch->count++] = (struct change){BATCH_LAST, false, 8, number};
}

void batch_key(char key[static BATCH_KEY_BYTES], uint32_t number)
{
    memset(key, '.', BATCH_KEY_BYTES);
    snprintf(key, BATCH_KEY_BYTES, "key %u", number);
}

void batch_value(const struct change *change, uint8_t *value)
{
    uint64_t random = change->seed;
    if (change->key == BATCH_LAST) {
        memcpy(value, &change->seed, 8);
        return;
    }
    for (size_t at = 0; at < change->value_bytes; at += 8) {
        uint64_t word = random_next(&random);
        memcpy(value + at, &word, 8);
    }
}

struct change *batch_state(uint64_t last, const uint32_t *lives)
{
    struct change *state = calloc(BATCH_KEYS + 1, sizeof *state);
    struct batch batch;
    for (uint32_t key = 0; state && key <= BATCH_KEYS; key++)
        state[key].deletes = true;
    for (uint64_t number = 1; state && number <= last; number++) {
        batch_make(&batch, number, lives[number]);
        for (size_t i = 0; i < batch.count; i++)
            state[batch.changes[i].key] = batch.changes[i];
    }
    return state;
}
