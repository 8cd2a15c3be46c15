/*
 * nh: NH, the hash that UMAC is made of, over up to 1 KiB.
 *
 * After Black, Halevi, Krawczyk, Krovetz and Rogaway, "UMAC: fast and secure message
 * authentication" (CRYPTO '99): words of 32 bits are added to those of a key, then multiplied in
 * pairs, and the products are summed, modulo 2^64. Of two inputs of the same length that differ,
 * whatever they are, one key in 2^32 gives both the same sum.
 *
 * Why this for records, and not XXH3: a get waits for memory, and how much of the next one a
 * processor can do meanwhile depends on how few instructions are in between, and on no branch
 * waiting too. XXH3 branches on a length that is in the record; here one loop runs over its cells,
 * whose number the index knows before the record has come, with five instructions for 64 bytes.
 */
#ifndef FKV_NH_H
#define FKV_NH_H

#include <stdbool.h>

#include "bytes.h"

#ifdef __SSE2__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { NH_CELL_BYTES = 16, NH_CELLS_MAX = 64, NH_BYTES_MAX = NH_CELL_BYTES * NH_CELLS_MAX };

/* SplitMix64 of 0, 1, 2, ... (Steele, Lea and Flood, "Fast splittable pseudorandom number
 * generators", OOPSLA 2014). */
extern uint8_t nh_key[NH_BYTES_MAX];

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__BMI2__)

#define NH_LINE_BYTES ((size_t)64)

static inline __m512i nh_sums(__m512i words, size_t at)
{
    return _mm512_add_epi32(words, _mm512_load_si512(nh_key + at));
}

static inline __m512i nh_line(__m512i words, size_t at)
{
    __m512i sums = nh_sums(words, at);
    return _mm512_mul_epu32(sums, _mm512_srli_epi64(sums, 32));
}

/* The last one, of which so many pairs count. */
static inline __m512i nh_last_line(__m512i words, size_t at, __mmask8 pairs)
{
    __m512i sums = nh_sums(words, at);
    return _mm512_maskz_mul_epu32(pairs, sums, _mm512_srli_epi64(sums, 32));
}

/* (_mm512_reduce_add_epi64 adds as signed numbers, which may not overflow.) */
static inline uint64_t nh_reduce(__m512i sums)
{
    __m256i half =
        _mm256_add_epi64(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
    __m128i quarter =
        _mm_add_epi64(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    quarter = _mm_add_epi64(quarter, _mm_unpackhi_epi64(quarter, quarter));
    return (uint64_t)_mm_cvtsi128_si64(quarter);
}

/* nh, or nh_copy; always inline, so that only what is wanted is left. */
static inline __attribute__((always_inline)) uint64_t nh_lines(const uint8_t *data, uint32_t cells,
                                                               size_t bytes, bool header, bool copy,
                                                               uint8_t *to, size_t skip)
{
    size_t whole = (cells - 1) * NH_CELL_BYTES & ~(NH_LINE_BYTES - 1);
    __mmask16 counting = header ? 0xfffe : 0xffff;
    __mmask64 first = copy ? ~_bzhi_u64(~0ull, (unsigned)skip) : 0;
    __mmask64 last = _bzhi_u64(~0ull, (unsigned)(bytes - whole));
    __mmask8 pairs = (__mmask8)_bzhi_u32(0xff, 2 * cells - (unsigned)(whole / 8));
    if (__builtin_expect(!whole, 0)) {
        __m512i line = _mm512_maskz_loadu_epi8(last, data);
        if (copy)
            _mm512_mask_storeu_epi8(to - skip, first & last, line);
        line = nh_last_line(_mm512_maskz_mov_epi32(counting, line), 0, pairs);
        return nh_reduce(line);
    }
    __m512i line = _mm512_loadu_si512(data);
    if (copy)
        _mm512_mask_storeu_epi8(to - skip, first, line);
    __m512i sum = nh_line(_mm512_maskz_mov_epi32(counting, line), 0);
    for (size_t at = NH_LINE_BYTES; at < whole; at += NH_LINE_BYTES) {
        line = _mm512_loadu_si512(data + at);
        if (copy)
            _mm512_storeu_si512(to - skip + at, line);
        sum = _mm512_add_epi64(sum, nh_line(line, at));
    }
    line = _mm512_maskz_loadu_epi8(last, data + whole);
    if (copy)
        _mm512_mask_storeu_epi8(to - skip + whole, last, line);
    sum = _mm512_add_epi64(sum, nh_last_line(line, whole, pairs));
    return nh_reduce(sum);
}

#else

#ifdef __SSE2__

/* Of a cell, which is the one at `at`: the products of its two pairs of words. */
static inline __m128i nh_cell(__m128i words, size_t at)
{
    __m128i sums = _mm_add_epi32(words, _mm_load_si128((const __m128i *)(nh_key + at)));
    return _mm_mul_epu32(sums, _mm_srli_epi64(sums, 32));
}

/* The cell that the data ends in, zeros after its end: of the 16 bytes before that, so many are
 * not its own. */
static inline __m128i nh_last_cell(const uint8_t *end, size_t others)
{
#ifdef __SSSE3__
    static const int8_t places[2 * NH_CELL_BYTES] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                                     11, 12, 13, 14, 15, -1, -1, -1, -1, -1, -1,
                                                     -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(end - NH_CELL_BYTES)),
                            _mm_loadu_si128((const __m128i *)(places + others)));
#else
    unsigned __int128 last;
    memcpy(&last, end - NH_CELL_BYTES, NH_CELL_BYTES);
    last >>= 8 * others;
    return _mm_set_epi64x((long long)(last >> 64), (long long)last);
#endif
}

static inline __attribute__((always_inline)) uint64_t nh_sum(const uint8_t *data, uint32_t cells,
                                                             size_t bytes, bool header)
{
    const __m128i counting = _mm_set_epi32(-1, -1, -1, header ? 0 : -1);
    size_t whole = (size_t)(cells - 1) * NH_CELL_BYTES, at = NH_CELL_BYTES;
    __m128i cell, sums;
    if (__builtin_expect(whole != 0, 1)) {
        sums = nh_cell(nh_last_cell(data + bytes, whole + NH_CELL_BYTES - bytes), whole);
        cell = _mm_loadu_si128((const __m128i *)data);
    } else {
        uint8_t only[NH_CELL_BYTES] = {0};
        memcpy(only, data, bytes);
        sums = _mm_setzero_si128();
        cell = _mm_loadu_si128((const __m128i *)only);
    }
    sums = _mm_add_epi64(sums, nh_cell(_mm_and_si128(cell, counting), 0));
#ifdef __AVX2__
    __m256i wide = _mm256_setzero_si256();
    for (; at + 32 <= whole; at += 32) {
        __m256i words = _mm256_loadu_si256((const __m256i *)(data + at));
        words = _mm256_add_epi32(words, _mm256_loadu_si256((const __m256i *)(nh_key + at)));
        wide = _mm256_add_epi64(wide, _mm256_mul_epu32(words, _mm256_srli_epi64(words, 32)));
    }
    __m128i half = _mm256_extracti128_si256(wide, 1);
    sums = _mm_add_epi64(sums, _mm_add_epi64(_mm256_castsi256_si128(wide), half));
#endif
    for (; at < whole; at += NH_CELL_BYTES)
        sums = _mm_add_epi64(sums, nh_cell(_mm_loadu_si128((const __m128i *)(data + at)), at));
    sums = _mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums));
    return (uint64_t)_mm_cvtsi128_si64(sums);
}

#else

/* The product of a pair of words, which are in one of 64 bits. */
static inline uint64_t nh_pair(uint64_t words, size_t at)
{
    uint64_t key = load_u64(nh_key + at);
    uint32_t low = (uint32_t)words + (uint32_t)key;
    uint32_t high = (uint32_t)(words >> 32) + (uint32_t)(key >> 32);
    return (uint64_t)low * high;
}

/* The sum over whole cells. */
static inline uint64_t nh_cells(const uint8_t *data, size_t bytes)
{
    size_t at = 0;
    uint64_t sum = 0;
#ifdef __aarch64__
    uint64x2_t sums = vdupq_n_u64(0);
    for (; at < bytes; at += NH_CELL_BYTES) {
        uint32x4_t words = vreinterpretq_u32_u8(vld1q_u8(data + at));
        words = vaddq_u32(words, vreinterpretq_u32_u8(vld1q_u8(nh_key + at)));
        uint64x2_t pairs = vreinterpretq_u64_u32(words);
        sums = vmlal_u32(sums, vmovn_u64(pairs), vshrn_n_u64(pairs, 32));
    }
    sum = vaddvq_u64(sums);
#else
    for (; at < bytes; at += sizeof(uint64_t))
        sum += nh_pair(load_u64(data + at), at);
#endif
    return sum;
}

static inline __attribute__((always_inline)) uint64_t nh_sum(const uint8_t *data, uint32_t cells,
                                                             size_t bytes, bool header)
{
    size_t whole = (size_t)(cells - 1) * NH_CELL_BYTES;
    unsigned __int128 last = 0; /* the last cell, zeros after its end */
    if (__builtin_expect(whole != 0, 1)) {
        memcpy(&last, data + bytes - NH_CELL_BYTES, NH_CELL_BYTES);
        last >>= 8 * (whole + NH_CELL_BYTES - bytes);
    } else {
        memcpy(&last, data, bytes);
    }
    uint64_t sum = nh_cells(data, whole) + nh_pair((uint64_t)last, whole) +
                   nh_pair((uint64_t)(last >> 64), whole + 8);
    if (header) {
        uint64_t words = load_u64(data);
        sum += nh_pair(words & ~(uint64_t)UINT32_MAX, 0) - nh_pair(words, 0);
    }
    return sum;
}

#endif

/* Copy so many bytes, of which at least `sure` are sure to be there, and less than a cell more: no
 * branch waits for the record to say how many there are. */
static inline __attribute__((always_inline)) void nh_take(const uint8_t *from, size_t bytes,
                                                          size_t sure, uint8_t *to)
{
    if (__builtin_expect(sure >= 48, 1)) {
        for (size_t at = 0; at + 32 <= sure; at += 32)
            memcpy(to + at, from + at, 32);
        memcpy(to + bytes - 48, from + bytes - 48, 48);
    } else if (sure >= 32) {
        memcpy(to, from, 32);
        memcpy(to + bytes - 32, from + bytes - 32, 32);
    } else if (sure >= 16) {
        size_t middle = (bytes - 16) / 2;
        memcpy(to, from, 16);
        memcpy(to + middle, from + middle, 16);
        memcpy(to + bytes - 16, from + bytes - 16, 16);
    } else if (bytes) {
        memcpy(to, from, bytes);
    }
}

static inline __attribute__((always_inline)) uint64_t nh_lines(const uint8_t *data, uint32_t cells,
                                                               size_t bytes, bool header, bool copy,
                                                               uint8_t *to, size_t skip)
{
    size_t past = (size_t)(cells - 1) * NH_CELL_BYTES + 1; /* so many bytes are sure to be there */
    if (copy)
        nh_take(data + skip, bytes - skip, past > skip ? past - skip : 0, to);
    return nh_sum(data, cells, bytes, header);
}

#endif

/*
 * NH of data that is in `cells` cells of 16 bytes, of which the last has at least one byte: `bytes`
 * in all, and zeros up to the end of the last. No more is read. With `header`, the first word
 * counts as 0: that of a record's checksum, in at least 8 bytes. What is decided, is decided by
 * `cells`.
 */
static inline __attribute__((always_inline)) uint64_t nh(const uint8_t *data, uint32_t cells,
                                                         size_t bytes, bool header)
{
    return nh_lines(data, cells, bytes, header, false, NULL, 0);
}

/* The same with `header`, and a copy of the data from its `skip`th byte on, at most the 64th. */
static inline __attribute__((always_inline)) uint64_t
nh_copy(const uint8_t *data, uint32_t cells, size_t bytes, uint8_t *to, size_t skip)
{
    return nh_lines(data, cells, bytes, true, true, to, skip);
}

#endif
