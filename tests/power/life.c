#define _GNU_SOURCE
#include "life.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

char store_failure[512];

bool store_failed(const char *call, const char *text)
{
    snprintf(store_failure, sizeof store_failure, "%s: %s", call, text);
    return false;
}

struct life *life_make(void)
{
    struct life *life = mmap(NULL, sizeof *life, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return life == MAP_FAILED ? NULL : life;
}

static _Noreturn void fail(struct life *life, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(life->failure, sizeof life->failure, format, arguments);
    va_end(arguments);
    life->has_failed = true;
    _exit(1);
}

static uint64_t last_batch(struct life *life, const struct store_kind *kind, struct store *store,
                           uint8_t *room)
{
    char key[BATCH_KEY_BYTES];
    uint64_t number;
    batch_key(key, BATCH_LAST);
    long bytes = kind->get(store, key, room);
    if (bytes == STORE_ERROR)
        fail(life, "%s", store_failure);
    if (bytes == STORE_ABSENT)
        return 0;
    memcpy(&number, room, 8);
    if (bytes != 8 || number > life->begun)
        fail(life, "batch %" PRIu64 " is said to be the last, and %" PRIu64 " was begun last",
             number, life->begun);
    return number;
}

static void compare_key(struct life *life, const struct store_kind *kind, struct store *store,
                        const struct change *should, uint32_t number, uint8_t *room)
{
    static uint8_t value[BATCH_VALUE_BYTES_MAX + 8];
    char key[BATCH_KEY_BYTES];
    batch_key(key, number);
    long bytes = kind->get(store, key, room);
    if (bytes == STORE_ERROR)
        fail(life, "%s", store_failure);
    if (bytes == STORE_ABSENT && should->deletes)
        return;
    if (bytes == STORE_ABSENT || should->deletes)
        fail(life, "after batch %" PRIu64 ", '%s' should%s be there", life->found, key,
             should->deletes ? " not" : "");
    batch_value(should, value);
    if (bytes != (long)should->value_bytes || memcmp(room, value, should->value_bytes) != 0)
        fail(life, "after batch %" PRIu64 ", the value of '%s' is not that of any commit it has",
             life->found, key);
}

/* All of the batches up to some one, and nothing else; that one no earlier than was promised. */
static void verify(struct life *life, const struct store_kind *kind, struct store *store,
                   uint64_t promised)
{
    uint8_t *room = malloc(BATCH_VALUE_BYTES_MAX + 8);
    life->found = last_batch(life, kind, store, room);
    struct change *state = batch_state(life->found, life->lives);
    for (uint32_t key = 0; key <= BATCH_KEYS; key++)
        compare_key(life, kind, store, &state[key], key, room);
    if (kind->check && !kind->check(store))
        fail(life, "%s", store_failure);
    if (life->found < promised) {
        life->has_lost = true;
        fail(life, "batch %" PRIu64 " is the last one, and %" PRIu64 " had been synced",
             life->found, promised);
    }
    free(state);
    free(room);
}

_Noreturn void life_run(struct life *life, struct disk *disk, const struct store_kind *kind,
                        const char *directory, uint64_t random)
{
    struct batch batch;
    struct store *store = kind->open(directory, random);
    if (!store)
        fail(life, "%s", store_failure);
    verify(life, kind, store, disk->promised);
    life->verified = true;
    for (uint64_t number = life->found + 1; number < LIFE_BATCHES_MAX; number++) {
        life->lives[number] = life->number;
        life->begun = number;
        batch_make(&batch, number, life->number);
        if (!kind->commit(store, &batch))
            fail(life, "batch %" PRIu64 ": %s", number, store_failure);
        if (batch.synced)
            disk->promised = number;
    }
    fail(life, "more batches than there is room for");
}
