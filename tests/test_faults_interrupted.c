/*
 * test_faults_interrupted: calls of the system that are interrupted by signals, again and again,
 * and reads and writes that do a part of what they were asked for, under whole stores: nothing of
 * it may show. os.h hides both from the library (tests/test_os.c has that alone), so here is shown
 * that no part of it reads or writes past os.h.
 *
 *     FKV_TEST_SEED=n   another seed
 */
#include "crash_engine.h"
#include "crash_features.h"
#include "os_posix.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

static struct rng rng;

enum call { OPEN, FSTAT, FLOCK, PREAD, PWRITE, FDATASYNC, FSYNC, FTRUNCATE, FALLOCATE, CALLS };
static const char *const call_names[CALLS] = {
    "open", "fstat", "flock", "pread", "pwrite", "fdatasync", "fsync", "ftruncate", "fallocate"};
static uint64_t interrupted[CALLS], short_reads, short_writes;

static bool interrupt(enum call call)
{
    if (!rng_percent(&rng, 40))
        return false;
    interrupted[call]++;
    errno = EINTR;
    return true;
}

/* All of it, or any part but nothing. */
static size_t part_of(size_t bytes, uint64_t *count)
{
    if (bytes < 2 || rng_percent(&rng, 60))
        return bytes;
    ++*count;
    return (size_t)rng_between(&rng, 1, bytes - 1);
}

static int some_open(const char *path, int flags, mode_t mode)
{
    return interrupt(OPEN) ? -1 : os_posix_system_calls.open(path, flags, mode);
}

static int some_fstat(int fd, struct stat *status)
{
    return interrupt(FSTAT) ? -1 : os_posix_system_calls.fstat(fd, status);
}

static int some_flock(int fd, int operation)
{
    return interrupt(FLOCK) ? -1 : os_posix_system_calls.flock(fd, operation);
}

static ssize_t some_pread(int fd, void *buffer, size_t bytes, off_t offset)
{
    return interrupt(PREAD)
               ? -1
               : os_posix_system_calls.pread(fd, buffer, part_of(bytes, &short_reads), offset);
}

static ssize_t some_pwrite(int fd, const void *buffer, size_t bytes, off_t offset)
{
    return interrupt(PWRITE)
               ? -1
               : os_posix_system_calls.pwrite(fd, buffer, part_of(bytes, &short_writes), offset);
}

static int some_fdatasync(int fd)
{
    return interrupt(FDATASYNC) ? -1 : os_posix_system_calls.fdatasync(fd);
}

static int some_fsync(int fd)
{
    return interrupt(FSYNC) ? -1 : os_posix_system_calls.fsync(fd);
}

static int some_ftruncate(int fd, off_t bytes)
{
    return interrupt(FTRUNCATE) ? -1 : os_posix_system_calls.ftruncate(fd, bytes);
}

static int some_fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    return interrupt(FALLOCATE) ? -1 : os_posix_system_calls.fallocate(fd, mode, offset, bytes);
}

static void disturb(void)
{
    struct os_posix_calls calls = os_posix_system_calls;
    calls.open = some_open;
    calls.fstat = some_fstat;
    calls.flock = some_flock;
    calls.pread = some_pread;
    calls.pwrite = some_pwrite;
    calls.fdatasync = some_fdatasync;
    calls.fsync = some_fsync;
    calls.ftruncate = some_ftruncate;
    calls.fallocate = some_fallocate;
    os_posix_set_calls(&calls);
}

/* ---------------------------------------------------------------- a store */

static void must(struct life *life, enum fkv_error error, const char *what)
{
    if (error)
        trouble("%s: %s; %s", what, fkv_error_text(error), fkv_error_detail(life->db));
}

static void work(struct life *life, const struct workload *workload)
{
    enum { STEPS_MOST = 150 };
    for (const struct phase *phase = workload->phases; phase->steps; phase++) {
        struct mood mood = phase->mood;
        mood.kill = 0; /* that is for the simulated disk */
        mood.reopen += 2;
        for (uint32_t i = 0; i < min_u64(phase->steps, STEPS_MOST); i++)
            must(life, life_step(life, &mood), mood.name);
    }
}

static void under_interruptions(const struct workload *workload, uint64_t seed)
{
    struct model model;
    char name[64];
    snprintf(name, sizeof name, "%s-%" PRIu64, workload->name, seed);
    struct life life = {.os = os_posix(),
                        .path = support_path(name),
                        .model = &model,
                        .workload = workload,
                        .rng = rng_make(seed)};
    context_set("workload %s, FKV_TEST_SEED=%" PRIu64, workload->name, seed);
    rng = rng_make(seed + 1);
    random_fix(seed | 1);
    model_make(&model, workload->keys);
    disturb();
    must(&life, life_open(&life), "opening");
    work(&life, workload);
    store_must_hold(life.db, model.now, model.key_count, "at work");
    must(&life, life_close(&life), "closing");
    must(&life, life_open(&life), "opening again");
    store_must_hold(life.db, model.now, model.key_count, "opened again");
    store_must_be_sound(life.db, workload, true, "opened again");
    must(&life, life_close(&life), "closing again");
    os_posix_set_calls(NULL);
    model_drop(&model);
}

static void test_interrupted(void **state)
{
    static const struct workload *const workloads[] = {
        &workload_small, &workload_index,     &workload_collection, &workload_large,
        &workload_refer, &workload_shrinking, &workload_log,        &workload_snapshots,
        &workload_loads, &workload_by_call,
    };
    (void)state;
    for (size_t i = 0; i < sizeof workloads / sizeof workloads[0]; i++)
        for (uint64_t seed = the_seed(); seed < the_seed() + scaled(2); seed++)
            under_interruptions(workloads[i], seed);
    for (unsigned call = 0; call < CALLS; call++) {
        printf("%s: interrupted %" PRIu64 "\n", call_names[call], interrupted[call]);
        assert_true(interrupted[call] > 0);
    }
    printf("short reads %" PRIu64 ", short writes %" PRIu64 "\n", short_reads, short_writes);
    assert_true(short_reads > 0 && short_writes > 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_interrupted)};
    return SUPPORT_RUN(argc, argv, tests);
}
