#include "fuzz.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "os_sim_file.h"

void fuzz_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("\nFUZZ: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\n", stderr);
    va_end(arguments);
    abort();
}

static uint64_t random_seed, random_drawn;

void fuzz_random(uint64_t seed)
{
    random_seed = seed;
    random_drawn = 0;
}

ssize_t __wrap_getrandom(void *to, size_t bytes, unsigned flags);

/* The linker puts this in the place of getrandom(): an input does the same each time. */
ssize_t __wrap_getrandom(void *to, size_t bytes, unsigned flags)
{
    (void)flags;
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)to)[i] = (uint8_t)sim_roll(random_seed, 0, random_drawn++);
    return (ssize_t)bytes;
}

#ifdef __SANITIZE_ADDRESS__
const char *__asan_default_options(void);

/* A small quarantine: with the normal one every buffer is memory that was never used before. */
const char *__asan_default_options(void)
{
    return "quarantine_size_mb=16";
}
#endif
