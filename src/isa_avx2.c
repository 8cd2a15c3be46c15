/* For processors with AVX2. */
#if defined(__x86_64__) && defined(__GNUC__)

#ifdef __clang__
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("aes,avx2,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("aes,avx2,bmi,bmi2")
#endif
#define XXH_VECTOR 2 /* XXH_AVX2 */
#define ISA isa_avx2
#define ISA_NAME "avx2"
#include "isa_code.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
