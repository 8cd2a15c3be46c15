/*
 * checksum: XXH3, 64 bits, of the xxHash library.
 *
 * It is compiled in for AVX-512, for AVX2 and for any processor (isa.h). Checksums that must differ
 * from store to store or from place to place are xor-ed with a number for that: a seed would have
 * XXH3 derive a new secret each time. Records have a checksum of their own: record.h.
 */
#ifndef FKV_CHECKSUM_H
#define FKV_CHECKSUM_H

#include "isa.h"

static inline uint64_t checksum64(const void *data, size_t bytes)
{
    return isa.checksum64(data, bytes);
}

/* Spread the bits of a number over 64 (Stafford's variant 13 of MurmurHash3's finaliser). */
static inline uint64_t checksum_mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

#endif
