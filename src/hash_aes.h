/*
 * hash_aes: the keyed hash with the processor's instructions for AES, inline: those of x86-64, and
 * of ARM where it has the cryptographic extension.
 */
#ifndef FKV_HASH_AES_H
#define FKV_HASH_AES_H

#include <stdbool.h>

#include "bytes.h"
#include "hash.h"

enum { HASH_BLOCK_BYTES = 16, HASH_ROUNDS = 10 };

static inline uint64_t load_u32_wide(const uint8_t *from)
{
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

/*
 * The last block, where it is not full: what is left of the data, a bit, zeros. Without a loop over
 * bytes: what two loads that overlap both hold, they agree on.
 */
static inline void hash_part(const uint8_t *data, size_t bytes, uint64_t block[2])
{
    uint64_t low = 0, high = 0;
    if (bytes >= 8) {
        low = load_u64(data);
        high = load_u64(data + bytes - 8) >> 8 >> (120 - 8 * bytes); /* two shifts: it may be 64 */
        high |= UINT64_C(0x80) << 8 * (bytes - 8);
    } else {
        if (bytes >= 4)
            low = load_u32_wide(data) | load_u32_wide(data + bytes - 4) << 8 * (bytes - 4);
        else if (bytes)
            low = data[0] | (uint64_t)data[bytes / 2] << 8 * (bytes / 2) |
                  (uint64_t)data[bytes - 1] << 8 * (bytes - 1);
        low |= UINT64_C(0x80) << 8 * bytes;
    }
    block[0] = low;
    block[1] = high;
}

#ifdef __x86_64__
#include <immintrin.h>

#define HASH_AES
#define WITH_AES __attribute__((target("aes,sse4.1")))

WITH_AES static inline __m128i hash_encrypt(const struct hash_seed *seed, __m128i state)
{
    const __m128i *round = (const __m128i *)seed->round;
#pragma GCC unroll 10
    for (int i = 1; i < HASH_ROUNDS; i++)
        state = _mm_aesenc_si128(state, round[i]);
    return _mm_aesenclast_si128(state, round[HASH_ROUNDS]);
}

/* The last block, with the key for it, where it is not full. */
WITH_AES static inline __m128i hash_last_part(const struct hash_seed *seed, const uint8_t *from,
                                              size_t bytes)
{
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__BMI2__)
    uint32_t mask = _bzhi_u32(0xffff, (uint32_t)bytes);
    __m128i block = _mm_maskz_loadu_epi8((__mmask16)mask, from);
    block = _mm_mask_set1_epi8(block, (__mmask16)(mask + 1), (char)0x80);
#else
    uint64_t part[2];
    hash_part(from, bytes, part);
    __m128i block = _mm_set_epi64x((long long)part[1], (long long)part[0]);
#endif
    return _mm_xor_si128(block, *(const __m128i *)seed->part);
}

WITH_AES static inline struct hash128 hash_key_aes(const struct hash_seed *seed,
                                                   const uint8_t *from, size_t bytes)
{
    __m128i state = _mm_setzero_si128();
    for (; __builtin_expect(bytes > HASH_BLOCK_BYTES, 0);
         bytes -= HASH_BLOCK_BYTES, from += HASH_BLOCK_BYTES) {
        __m128i block = _mm_loadu_si128((const __m128i *)from);
        block = _mm_xor_si128(block, *(const __m128i *)seed->round[0]);
        state = hash_encrypt(seed, _mm_xor_si128(state, block));
    }
    __m128i block;
    if (bytes == HASH_BLOCK_BYTES)
        block =
            _mm_xor_si128(_mm_loadu_si128((const __m128i *)from), *(const __m128i *)seed->whole);
    else
        block = hash_last_part(seed, from, bytes);
    state = hash_encrypt(seed, _mm_xor_si128(state, block));
    return (struct hash128){(uint64_t)_mm_cvtsi128_si64(state),
                            (uint64_t)_mm_extract_epi64(state, 1)};
}

static inline bool hash_aes_runs(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("sse4.1");
}

#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

#define HASH_AES

/* Not the compilers' own functions, which some have only where all code may use AES; volatile, for
 * none may come before the question whether this processor has it. */
static inline uint8x16_t aes_last_round(uint8x16_t state, uint8x16_t key)
{
    __asm__ volatile(".arch_extension aes\n\taese %0.16b, %1.16b" : "+w"(state) : "w"(key));
    return state;
}

static inline uint8x16_t aes_round(uint8x16_t state, uint8x16_t key)
{
    __asm__ volatile(".arch_extension aes\n\taese %0.16b, %1.16b\n\taesmc %0.16b, %0.16b"
                     : "+w"(state)
                     : "w"(key));
    return state;
}

/* An instruction adds a key before bytes are substituted, and x86's one after columns are mixed:
 * here the first of them adds nothing, since the first key is in the state already. */
static inline uint8x16_t hash_encrypt(const struct hash_seed *seed, uint8x16_t state)
{
    state = aes_round(state, vdupq_n_u8(0));
#pragma GCC unroll 10
    for (int i = 1; i < HASH_ROUNDS - 1; i++)
        state = aes_round(state, vld1q_u8(seed->round[i]));
    state = aes_last_round(state, vld1q_u8(seed->round[HASH_ROUNDS - 1]));
    return veorq_u8(state, vld1q_u8(seed->round[HASH_ROUNDS]));
}

static inline struct hash128 hash_key_aes(const struct hash_seed *seed, const uint8_t *from,
                                          size_t bytes)
{
    uint8x16_t state = vdupq_n_u8(0);
    for (; __builtin_expect(bytes > HASH_BLOCK_BYTES, 0);
         bytes -= HASH_BLOCK_BYTES, from += HASH_BLOCK_BYTES) {
        uint8x16_t block = veorq_u8(vld1q_u8(from), vld1q_u8(seed->round[0]));
        state = hash_encrypt(seed, veorq_u8(state, block));
    }
    uint8x16_t block;
    if (bytes == HASH_BLOCK_BYTES) {
        block = veorq_u8(vld1q_u8(from), vld1q_u8(seed->whole));
    } else {
        uint64_t part[2];
        hash_part(from, bytes, part);
        uint64x2_t words = vcombine_u64(vcreate_u64(part[0]), vcreate_u64(part[1]));
        block = veorq_u8(vreinterpretq_u8_u64(words), vld1q_u8(seed->part));
    }
    uint64x2_t hash = vreinterpretq_u64_u8(hash_encrypt(seed, veorq_u8(state, block)));
    return (struct hash128){vgetq_lane_u64(hash, 0), vgetq_lane_u64(hash, 1)};
}

static inline bool hash_aes_runs(void)
{
    return getauxval(AT_HWCAP) & HWCAP_AES;
}
#endif

#endif
