#include "checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#if defined(__x86_64__) && defined(__GNUC__)

uint64_t checksum64_avx2(const void *data, size_t bytes);
uint64_t checksum64_avx512(const void *data, size_t bytes);

static enum { PLAIN, AVX2, AVX512 } best;

__attribute__((constructor)) static void choose(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        best = AVX512;
    else if (__builtin_cpu_supports("avx2"))
        best = AVX2;
}

uint64_t checksum64(const void *data, size_t bytes)
{
    if (best == AVX512)
        return checksum64_avx512(data, bytes);
    return best == AVX2 ? checksum64_avx2(data, bytes) : XXH3_64bits(data, bytes);
}

#else

uint64_t checksum64(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

#endif
