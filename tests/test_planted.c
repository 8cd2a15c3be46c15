/*
 * test_planted: the tests are tested. Each bug of src/planted.h is planted in turn, and what the
 * normal runs of test_crash, test_faults and test_damage do must find it: the run of a child
 * process must end in trouble().
 *
 *     FKV_PLANT=name   only this one, with what it says
 */
#include "damage_engine.h"
#include "fault_engine.h"
#include "planted.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Parts of the normal run of test_crash. */
static void run_small(void)
{
    enumerate(&workload_small, the_seed(), 1, 10);
}
static void run_collection(void)
{
    enumerate(&workload_collection, the_seed(), 1, 6);
}
/* For what shows without a crash. */
static void run_collection_alone(void)
{
    for (uint64_t i = 0; i < 10; i++)
        enumerate(&workload_collection, the_seed() + i, 40, 1);
}
static void run_large(void)
{
    enumerate(&workload_large, the_seed(), 1, 4);
}
static void run_refer(void)
{
    enumerate(&workload_refer, the_seed(), 1, 6);
}
static void run_log(void)
{
    enumerate(&workload_log, the_seed(), 1, 4);
}
static void run_limited(void)
{
    for (uint64_t i = 0; i < 20; i++)
        enumerate(&workload_limited, the_seed() + i, 3, 2);
}
static void run_short(void)
{
    for (uint64_t i = 0; i < 16; i++)
        chain(CHAIN_SHORT, the_seed() + i, 500);
}
static void run_wraps(void)
{
    for (uint64_t i = 0; i < 16; i++)
        chain(CHAIN_WRAPS, the_seed() + i, 500);
}

static void run_faults(void)
{
    for (uint64_t i = 0; i < 12; i++)
        faults_of(&workload_refer, the_seed() + i, 1);
}
static void run_faults_large(void)
{
    for (uint64_t i = 0; i < 8; i++)
        faults_of(&workload_large, the_seed() + i, 1);
}
/* Where a sync fails and the next one is believed. */
static void run_faults_small(void)
{
    for (uint64_t i = 0; i < 24; i++)
        faults_of(&workload_small, the_seed() + i, 1);
}

static void run_damage(void)
{
    for (uint64_t i = 0; i < 12; i++)
        damage_of(&workload_small, the_seed() + i, 250);
}

struct plant {
    const char *name;
    enum planted bug;
    void (*run)(void); /* the part that finds it soonest */
};
#define PLANT(name, run)           \
    {                              \
#name, PLANTED_##name, run \
    }

static const struct plant plants[] = {
    PLANT(SKIP_LOG_SYNC, run_small),
    PLANT(SKIP_DATA_SYNC, run_refer),
    PLANT(SKIP_PAGES_SYNC, run_small),
    PLANT(SKIP_HEADER_SYNC, run_small),
    PLANT(SKIP_DIRECTORY_SYNC, run_small),
    PLANT(SKIP_TAIL_FLUSH, run_small),
    PLANT(RELEASE_LOG_EARLY, run_log),
    PLANT(CHECKPOINT_AHEAD, run_log),
    PLANT(CHECKPOINT_BEFORE_LOG, run_small),
    PLANT(CLOSE_EARLY, run_log),
    PLANT(REUSE_SECTOR_EARLY, run_collection),
    PLANT(REUSE_PAGE_EARLY, run_small),
    PLANT(SPILL_OVER_OLD, run_limited),
    PLANT(LOSE_CHANGE, run_limited),
    PLANT(LOSE_MOVE, run_limited),
    PLANT(NO_GRACE, run_collection_alone),
    PLANT(NO_COPY, run_log),
    PLANT(NO_RESTART, run_short),
    PLANT(WRAP_UNSYNCED, run_wraps),
    PLANT(LOG_HOLES, run_log),
    PLANT(NO_CHAIN, run_small),
    PLANT(NO_FRAME_CHECKSUM, run_small),
    PLANT(NO_REFER_CHECKSUM, run_short),
    PLANT(HALF_BATCH_LOGGED, run_small),
    PLANT(HALF_BATCH_REPLAYED, run_small),
    PLANT(LIVE_AS_DEAD, run_collection),
    PLANT(WRONG_DEAD, run_small),
    PLANT(LARGE_LEAK, run_large),
    PLANT(NO_COLLECTION, run_collection_alone),
    PLANT(IGNORE_WRITE_ERROR, run_faults),
    PLANT(SYNC_AGAIN, run_faults_small),
    PLANT(LEAK, run_faults_large),
    PLANT(NO_RECORD_CHECKSUM, run_damage),
    PLANT(NO_PAGE_CHECKSUM, run_damage),
};
enum { PLANTS = sizeof plants / sizeof plants[0], SECONDS_TO_FIND = 1200 };

static unsigned caught;

/* The last line of what a child said that is not empty. */
static void read_verdict(int from, char *verdict, size_t bytes)
{
    char all[16384];
    size_t used = 0;
    ssize_t got;
    while ((got = read(from, all + used, sizeof all - 1 - used)) > 0) {
        used += (size_t)got;
        if (used > sizeof all / 2) { /* only the end is wanted */
            memmove(all, all + used - sizeof all / 4, sizeof all / 4);
            used = sizeof all / 4;
        }
    }
    all[used] = 0;
    const char *trouble_at = strstr(all, "TROUBLE: ");
    const char *assertion = strstr(all, "Assertion");
    const char *what = trouble_at ? trouble_at + 9 : assertion ? assertion : "";
    snprintf(verdict, bytes, "%.*s", (int)strcspn(what, "\n"), what);
}

static void plant_one(const struct plant *plant)
{
    int pipes[2];
    char verdict[256];
    double began = support_now();
    assert_int_equal(pipe(pipes), 0);
    fflush(stdout);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(pipes[1], STDOUT_FILENO);
        dup2(pipes[1], STDERR_FILENO);
        close(pipes[0]);
        close(pipes[1]);
        alarm(SECONDS_TO_FIND);
        planted_bug = plant->bug;
        plant->run();
        _exit(0);
    }
    close(pipes[1]);
    read_verdict(pipes[0], verdict, sizeof verdict);
    close(pipes[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    bool found = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        found = false;
    printf("%-20s %s, %.1f s: %s\n", plant->name, found ? "caught" : "NOT CAUGHT",
           support_now() - began, verdict);
    fflush(stdout);
    caught += found;
}

static void test_planted_bugs(void **state)
{
    (void)state;
    const char *only = getenv("FKV_PLANT");
    unsigned planted = 0;
    for (unsigned i = 0; i < PLANTS; i++)
        if (!only || strcmp(only, plants[i].name) == 0) {
            plant_one(&plants[i]);
            planted++;
        }
    printf("counts: planted %u caught %u\n", planted, caught);
    assert_int_equal(caught, planted);
}

int main(int argc, char **argv)
{
    crash_prepare(crash_print_totals);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_planted_bugs)};
    return SUPPORT_RUN(argc, argv, tests);
}
