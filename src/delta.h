/*
 * delta: the parts of a page that differ from what the file has of it, without the page.
 *
 * A page is 256 units of 16 bytes (a slot of the index is one). Who changes a page notes which
 * units; a delta is those units, copied out of it. A delta laid over the page as the file has it is
 * the page.
 */
#ifndef FKV_DELTA_H
#define FKV_DELTA_H

#include "format.h"

#define UNIT_BYTES 16u
#define PAGE_UNITS (PAGE_BYTES / UNIT_BYTES)

/* A bit for each unit of a page. */
struct units {
    uint64_t bits[PAGE_UNITS / 64];
};

static inline void units_add(struct units *units, uint32_t unit)
{
    units->bits[unit / 64] |= UINT64_C(1) << unit % 64;
}

static inline uint32_t units_count(const struct units *units)
{
    uint32_t count = 0;
    for (uint32_t w = 0; w < PAGE_UNITS / 64; w++)
        count += (uint32_t)__builtin_popcountll(units->bits[w]);
    return count;
}

struct delta {
    struct units changed;
    struct moves *moves;        /* of which the page may have some; NULL: none. See moves.h */
    uint8_t unit[][UNIT_BYTES]; /* in the order of their places */
};

/* Memory of a delta of so many units. */
static inline uint64_t delta_bytes(uint32_t units)
{
    return sizeof(struct delta) + (uint64_t)units * UNIT_BYTES;
}

/* These units of a page, to be freed with memory_free; NULL without memory. */
struct delta *delta_new(const struct units *changed, const void *page);
/* Lay it over a page. */
void delta_apply(const struct delta *delta, void *page);

#endif
