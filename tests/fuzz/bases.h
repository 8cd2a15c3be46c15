/*
 * bases: the stores that fuzzing begins with, on simulated disks, and what they hold.
 *
 * They are made when they are first asked for, by the library itself, always the same. Between them
 * they have every structure of the format and every operation of the log.
 *
 * Each value says whose it is, and which version: whatever happens to the files, a value that the
 * store gives for a key must be one that this key had.
 */
#ifndef FKV_TESTS_FUZZ_BASES_H
#define FKV_TESTS_FUZZ_BASES_H

#include "os_sim.h"
#include "store.h"

#include <stdbool.h>

#define BASE_PATH "d/store"
#define BASE_LOG_PATH "d/store-wal"

enum place_kind {
    PLACE_HEADER,
    PLACE_NODE,
    PLACE_PAGE, /* of the index, and then those of the other spaces in their order */
    PLACE_SECTOR = PLACE_PAGE + SPACE_COUNT,
    PLACE_RECORD,
    PLACE_LOG_HEADER,
    PLACE_FRAME,
    PLACE_KINDS,
};

/* Where something of the format lies. */
struct place {
    enum place_kind kind;
    bool in_log;
    uint32_t bytes;
    uint64_t offset;
};

enum { BASE_PLACES_MAX = 4096, BASE_KEYS_MAX = 8192, BASE_VALUE_BYTES_MAX = 2 << 20 };

struct base {
    const char *name;
    struct os_sim *sim; /* no handle is open on it, and all is durable */
    uint32_t flags;     /* that it is opened with */
    uint32_t garbage_percent_max;
    uint32_t keys; /* they are numbered */
    uint32_t last_version;
    uint32_t *latest; /* of each key; 0: it has none */
    uint64_t commit;  /* the last */
    struct place *places;
    size_t place_count;
};

size_t base_count(void);
const struct base *base_get(size_t number);

size_t base_key(uint32_t number, uint8_t key[16]);
size_t base_value(uint32_t key, uint32_t version, size_t bytes, uint8_t *to);
/* Is this a value that the key had? *version: which. Values of keys unknown to the base, too. */
bool base_value_is(uint32_t key, const uint8_t *bytes, size_t count, uint32_t *version);
#define BASE_VALUE_BYTES_MIN ((size_t)12)

void base_options(const struct base *base, fkv_options *options);
/* The n-th place of a kind, counted round and round; NULL if there is none. */
const struct place *base_place(const struct base *base, enum place_kind kind, size_t n);

#endif
