/* bytes: small arithmetic over sizes, and unaligned little-endian access. */
#ifndef FKV_BYTES_H
#define FKV_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the format is little-endian and read in place; a big-endian port must swap in format.h"
#endif

#if UINTPTR_MAX != UINT64_MAX
#error "files are mapped whole and arrays reserve room to grow: 64-bit addresses are needed"
#endif

/* For functions that run before the constructors of programs: those may open a store. */
#define CONSTRUCTOR __attribute__((constructor(101)))

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define GIB ((size_t)1 << 30)

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Tell the processor that this is a loop which waits. */
static inline void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* `step` is a power of two. */
static inline uint64_t round_up(uint64_t value, uint64_t step)
{
    return (value + step - 1) & ~(step - 1);
}

static inline uint64_t divide_up(uint64_t value, uint64_t by)
{
    return (value + by - 1) / by;
}

static inline uint64_t load_u64(const void *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* 8 or more. The first are zero, and each of the others is what lies 8 before it. */
static inline bool bytes_are_zero(const void *from, size_t bytes)
{
    return load_u64(from) == 0 && memcmp(from, (const uint8_t *)from + 8, bytes - 8) == 0;
}

static inline void store_u64(void *to, uint64_t value)
{
    memcpy(to, &value, sizeof value);
}

#endif
