/*
 * random: SplitMix64, and numbers that follow from others.
 */
#ifndef FKV_POWER_RANDOM_H
#define FKV_POWER_RANDOM_H

#include <stdint.h>

static inline uint64_t random_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static inline uint64_t random_next(uint64_t *state)
{
    return random_mix(*state += 0x9e3779b97f4a7c15ull);
}

/* Below `end`, which is not 0. */
static inline uint64_t random_below(uint64_t *state, uint64_t end)
{
    return (uint64_t)((unsigned __int128)random_next(state) * end >> 64);
}

#endif
