/* Small things that every file of the benchmark needs: time, random numbers, memory, errors. */
#ifndef BENCH_UTIL_H
#define BENCH_UTIL_H

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A bijection of 64-bit numbers that looks random (the finaliser of SplitMix64). */
static inline uint64_t mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* SplitMix64: the next number of the sequence whose state is at `state`. */
static inline uint64_t random_next(uint64_t *state)
{
    return mix64(*state += 0x9e3779b97f4a7c15u);
}

/* A number in [0, bound), without the bias of a remainder (2^-64 of it is left). */
static inline uint64_t random_below(uint64_t *state, uint64_t bound)
{
    return (uint64_t)(((unsigned __int128)random_next(state) * bound) >> 64);
}

/* Print "fkv-bench: ..." to stderr; die() then exits with status 1. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Memory, zeroed and touched, or die. To be freed with free(). */
void *need_memory(size_t count, size_t bytes);

/* `directory`/`name` in new memory. */
char *path_join(const char *directory, const char *name);

/* Sort and return the middle value (the mean of the middle two). */
double median(double *values, size_t count);

#endif
