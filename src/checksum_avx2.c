/* The same XXH3 for processors with AVX2; see checksum.h. */
#if defined(__x86_64__) && defined(__GNUC__)

#ifdef __clang__
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define XXH_VECTOR 2 /* XXH_AVX2 */
#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t checksum64_avx2(const void *data, size_t bytes);

uint64_t checksum64_avx2(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
