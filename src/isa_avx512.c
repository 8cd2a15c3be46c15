/* For processors with AVX-512. */
#if defined(__x86_64__) && defined(__GNUC__)

#ifdef __clang__
#include <immintrin.h>
#pragma clang attribute push(                                                        \
    __attribute__((target("aes,avx2,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC target("aes,avx2,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define XXH_VECTOR 3 /* XXH_AVX512 */
#define ISA isa_avx512
#define ISA_NAME "avx512"
#include "isa_code.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
