/*
 * support: what the tests of the store's parts and the long tests share.
 *
 * SEEDS. All that a test draws comes from one seed: FKV_TEST_SEED, or else a fixed one in the
 * normal run and the time in the long run. It is printed at the start, and again, with the command
 * that replays the failure, when a test fails, an assertion of the library does, or a signal kills
 * the program.
 *
 * ROUNDS. Random tests run in rounds, each drawn from a seed of its own and nothing else, its
 * length included: the normal run has a few, the long run (FKV_TEST_LONG=1) goes on for ever or for
 * FKV_TEST_SECONDS a test. Round i has the seed FKV_TEST_SEED + i, so to replay round i alone is to
 * give its seed to the normal run.
 *
 *     FKV_TEST_SEED=7 ./test_index             replays
 *     FKV_TEST_LONG=1 FKV_TEST_SECONDS=600 ./test_long 'model*'
 *
 * The first argument of a test program is a pattern: only tests whose names match it run.
 */
#ifndef FKV_TESTS_SUPPORT_H
#define FKV_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "pages.h"
#include "sanitized.h"

/* ---------------------------------------------------------------- seeds and rounds */

/* A generator of random numbers: SplitMix64. */
struct rng {
    uint64_t state;
};

struct rng rng_make(uint64_t seed);
uint64_t rng_next(struct rng *rng);
/* Below `end`, which is not 0. */
uint64_t rng_below(struct rng *rng, uint64_t end);
/* From `first` to `last`, both included. */
uint64_t rng_between(struct rng *rng, uint64_t first, uint64_t last);
bool rng_percent(struct rng *rng, unsigned percent);
void rng_fill(struct rng *rng, void *to, size_t bytes);
/* A number that depends on all three, and looks random. */
uint64_t rng_mix(uint64_t a, uint64_t b, uint64_t c);

bool support_is_long(void);

/* for (struct rounds r = rounds_begin(4); rounds_next(&r);) { struct rng rng = rng_make(r.seed); }
 */
struct rounds {
    uint64_t done, normal;
    uint64_t seed;
    double began;
};
struct rounds rounds_begin(uint64_t normal);
bool rounds_next(struct rounds *rounds);

/* Seconds since some moment. */
double support_now(void);

/* ---------------------------------------------------------------- running */

/* What main does: returns its result. */
int support_run(int argc, char **argv, const char *name, const struct CMUnitTest *tests,
                size_t count);
#define SUPPORT_RUN(argc, argv, tests) \
    support_run(argc, argv, #tests, tests, sizeof(tests) / sizeof((tests)[0]))

/* A name in a directory of this program's own, that is removed when it ends well. Lives until the
 * program ends. */
const char *support_path(const char *name);

/* Fails with the error's text and detail. */
#define assert_ok(call) support_assert_error(call, FKV_OK, #call, __FILE__, __LINE__)
#define assert_error(call, error) support_assert_error(call, error, #call, __FILE__, __LINE__)
void support_assert_error(enum fkv_error error, enum fkv_error expected, const char *call,
                          const char *file, int line);

/* ---------------------------------------------------------------- a page store of its own */

/* struct pages over a file without the rest of the store: sectors come from a bitmap here. */
struct page_file {
    struct os *os;
    struct os_file *file;
    char path[256];
    struct pages pages;
    uint64_t *taken; /* a bit a sector */
    uint32_t sector_count;
    uint32_t sectors_max; /* no more than this: FKV_FULL */
    /* Where frames go that readers may still see; NULL: they are freed at once. */
    void (*retire_frame)(void *context, uint32_t frame);
    void *context;
};

enum { PAGE_FILE_SECTORS_MAX = 1 << 16 };

/* Make the file, or open it at `roots`. The members after `path` that the caller may set
 * (sectors_max, retire_frame) have their defaults afterwards. */
enum fkv_error page_file_open(struct page_file *page_file, struct os *os, const char *path,
                              const struct format_space *roots);
/* Forget everything in memory; what was written remains. */
void page_file_drop(struct page_file *page_file);
/* A whole checkpoint at once. */
enum fkv_error page_file_checkpoint(struct page_file *page_file, struct format_space *roots);

#endif
