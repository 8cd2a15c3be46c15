#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "fetch.h"
#include "os_posix.h"

enum { SEED_OF_NORMAL_RUNS = 20240229 };

static struct {
    const char *program;
    const char *filter;
    uint64_t seed;       /* of the program */
    uint64_t round_seed; /* of the round under way */
    char *directory;
    char *paths[64];
    int path_count;
} run;

/* ---------------------------------------------------------------- random numbers */

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

struct rng rng_make(uint64_t seed)
{
    return (struct rng){mix(seed + 0x9e3779b97f4a7c15ull)};
}

uint64_t rng_next(struct rng *rng)
{
    return mix(rng->state += 0x9e3779b97f4a7c15ull);
}

uint64_t rng_below(struct rng *rng, uint64_t end)
{
    return (uint64_t)((unsigned __int128)rng_next(rng) * end >> 64);
}

uint64_t rng_between(struct rng *rng, uint64_t first, uint64_t last)
{
    return first + rng_below(rng, last - first + 1);
}

bool rng_percent(struct rng *rng, unsigned percent)
{
    return rng_below(rng, 100) < percent;
}

void rng_fill(struct rng *rng, void *to, size_t bytes)
{
    uint8_t *at = to;
    for (; bytes >= 8; bytes -= 8, at += 8)
        store_u64(at, rng_next(rng));
    uint64_t last = rng_next(rng);
    memcpy(at, &last, bytes);
}

uint64_t rng_mix(uint64_t a, uint64_t b, uint64_t c)
{
    return mix(mix(mix(a + 1) ^ (b * 0x9e3779b97f4a7c15ull)) + c * 0xd1b54a32d192ed03ull);
}

/* ---------------------------------------------------------------- rounds */

double support_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

bool support_is_long(void)
{
    const char *set = getenv("FKV_TEST_LONG");
    return set && *set && strcmp(set, "0") != 0;
}

static double seconds_of_a_test(void)
{
    const char *seconds = getenv("FKV_TEST_SECONDS");
    return seconds ? atof(seconds) : 1e18;
}

struct rounds rounds_begin(uint64_t normal)
{
    return (struct rounds){.normal = normal, .began = support_now()};
}

bool rounds_next(struct rounds *rounds)
{
    bool more = support_is_long() ? support_now() - rounds->began < seconds_of_a_test()
                                  : rounds->done < rounds->normal;
    if (!more)
        return false;
    rounds->seed = run.round_seed = run.seed + rounds->done++;
    if (support_is_long()) {
        printf("round %" PRIu64 ", seed %" PRIu64 "\n", rounds->done, rounds->seed);
        fflush(stdout);
    }
    return true;
}

/* ---------------------------------------------------------------- running */

static void say_how_to_replay(void)
{
    /* No stdio: this is said in a signal handler too. glibc's snprintf takes no lock for these. */
    char text[1024];
    int bytes = // NOLINTNEXTLINE(bugprone-signal-handler)
        snprintf(text, sizeof text,
                 "FAILED with seed %" PRIu64 ". To replay: FKV_TEST_SEED=%" PRIu64 " %s%s%s%s\n",
                 run.round_seed, run.round_seed, run.program, run.filter ? " '" : "",
                 run.filter ? run.filter : "", run.filter ? "'" : "");
    if (write(STDERR_FILENO, text, (size_t)bytes) < 0)
        return;
}

static void on_abort(int number)
{
    say_how_to_replay();
    signal(number, SIG_DFL);
    raise(number);
}

/* Called by the address sanitizer before it ends the program. */
void __asan_on_error(void);
void __asan_on_error(void)
{
    say_how_to_replay();
}

static void remove_directory(void)
{
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", run.directory);
    if (system(command) != 0)
        fprintf(stderr, "%s remains\n", run.directory);
}

int support_run(int argc, char **argv, const char *name, const struct CMUnitTest *tests,
                size_t count)
{
    const char *seed = getenv("FKV_TEST_SEED");
    const char *by_call = getenv("FKV_TEST_BY_CALL");
    fetch_test_by_call = by_call && strcmp(by_call, "1") == 0;
    run.program = argv[0];
    run.filter = argc > 1 ? argv[1] : NULL;
    run.seed = seed                ? strtoull(seed, NULL, 0)
               : support_is_long() ? (uint64_t)time(NULL) * 1000
                                   : SEED_OF_NORMAL_RUNS;
    run.round_seed = run.seed;
    signal(SIGABRT, on_abort);
    printf("%s: seed %" PRIu64 "\n", argv[0], run.seed);
    fflush(stdout);
    if (run.filter)
        cmocka_set_test_filter(run.filter);
    int failed = _cmocka_run_group_tests(name, tests, count, NULL, NULL);
    if (failed)
        say_how_to_replay();
    else if (run.directory)
        remove_directory();
    return failed;
}

const char *support_path(const char *name)
{
    if (!run.directory) {
        const char *parent = getenv("TMPDIR");
        if (asprintf(&run.directory, "%s/fkv-test-XXXXXX", parent ? parent : "/tmp") < 0 ||
            !mkdtemp(run.directory))
            fail_msg("no directory for the test: %s", strerror(errno));
    }
    char *path;
    if (asprintf(&path, "%s/%s", run.directory, name) < 0)
        fail_msg("no memory");
    for (int i = 0; i < run.path_count; i++)
        if (strcmp(path, run.paths[i]) == 0) {
            free(path);
            return run.paths[i];
        }
    if (run.path_count == sizeof run.paths / sizeof run.paths[0])
        fail_msg("too many paths");
    return run.paths[run.path_count++] = path;
}

void support_assert_error(enum fkv_error error, enum fkv_error expected, const char *call,
                          const char *file, int line)
{
    if (error == expected)
        return;
    error_claim(0);
    print_error("%s:%d: %s\n    is %d (%s), not %d; %s\n", file, line, call, error,
                fkv_error_text(error), expected, error ? error_last() : "");
    _fail(file, line);
}

/* ---------------------------------------------------------------- a page store of its own */

static enum fkv_error take_sector(void *context, uint32_t *sector)
{
    struct page_file *page_file = context;
    for (uint32_t s = 1; s < page_file->sectors_max; s++) {
        if (page_file->taken[s >> 6] >> (s & 63) & 1)
            continue;
        if (s >= page_file->sector_count) {
            int status =
                page_file->os->ops->allocate(page_file->file, s * SECTOR_BYTES, SECTOR_BYTES);
            if (status)
                return error_os(status, "grow", page_file->path);
            page_file->sector_count = s + 1;
        }
        page_file->taken[s >> 6] |= 1ull << (s & 63);
        *sector = s;
        return FKV_OK;
    }
    return error_set(FKV_FULL, "no sector is left");
}

static void give_sector(void *context, uint32_t sector)
{
    struct page_file *page_file = context;
    assert_true(page_file->taken[sector >> 6] >> (sector & 63) & 1);
    page_file->taken[sector >> 6] &= ~(1ull << (sector & 63));
}

static void retire_frame(void *context, uint32_t frame)
{
    struct page_file *page_file = context;
    if (page_file->retire_frame)
        page_file->retire_frame(page_file->context, frame);
    else
        frame_free(&page_file->pages, frame);
}

enum fkv_error page_file_open(struct page_file *page_file, struct os *os, const char *path,
                              const struct format_space *roots)
{
    *page_file = (struct page_file){.os = os, .sectors_max = PAGE_FILE_SECTORS_MAX};
    snprintf(page_file->path, sizeof page_file->path, "%s", path);
    page_file->taken = calloc(PAGE_FILE_SECTORS_MAX / 64, sizeof *page_file->taken);
    int status = os->ops->open(os, path, OS_CREATE, &page_file->file);
    uint64_t bytes = 0;
    if (!status)
        status = os->ops->size(page_file->file, &bytes);
    if (!status)
        status = os->ops->sync_directory(os, path);
    if (status)
        return error_os(status, "open", path);
    struct page_environment environment = {.ops = os->ops,
                                           .sectors = {take_sector, give_sector, page_file},
                                           .retire_frame = retire_frame,
                                           .context = page_file};
    enum fkv_error error =
        pages_make(&page_file->pages, page_file->file, page_file->path, environment);
    page_file->sector_count = (uint32_t)max_u64(bytes / SECTOR_BYTES, 1);
    if (!error && roots)
        error = pages_open(&page_file->pages, roots, page_file->sector_count);
    for (uint32_t i = 0; !error && i < page_file->pages.places.sector_count; i++) {
        uint32_t sector = page_file->pages.places.sectors[i].sector;
        page_file->taken[sector >> 6] |= 1ull << (sector & 63);
    }
    return error;
}

void page_file_drop(struct page_file *page_file)
{
    pages_drop(&page_file->pages);
    page_file->os->ops->close(page_file->file);
    free(page_file->taken);
}

enum fkv_error page_file_checkpoint(struct page_file *page_file, struct format_space *roots)
{
    struct pages *pages = &page_file->pages;
    enum fkv_error error = FKV_OK;
    pages_checkpoint_begin(pages);
    for (bool done = false; !error && !done;)
        if (!(error = pages_capture(pages, STAGING_PAGES, &done)))
            error = pages_write_staged(pages);
    if (error) {
        pages_checkpoint_abandon(pages);
        return error;
    }
    pages_roots(pages, roots);
    pages_checkpoint_done(pages);
    return FKV_OK;
}
