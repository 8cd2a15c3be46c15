/*
 * test_crash: whenever the power fails or the process dies, the store opens at a state that some
 * commit left, with every synced commit in it, is sound, and works on.
 *
 * Two ways. Enumeration: a workload runs on a simulated disk, and at every n-th call that changes
 * the disk, and between operations, copies of the disk crash, by several lotteries each; some crash
 * again while they recover; some go on to work and crash or close. Chains: one store lives through
 * hundreds of lives, each of which ends in a crash at a random call.
 *
 *     FKV_TEST_SEED=n  another seed          FKV_SCALE=percent  more or less of everything
 *     FKV_POINT=n FKV_LOTTERY=n FKV_TRACE=1  of an enumeration, only what trouble() names
 */
#include "crash_engine.h"
#include "crash_features.h"

#include <inttypes.h>
#include <stdio.h>

/* Of each workload, so many seeds. Scaled down, fewer; and then only some of the points. */
static void enumerate_seeds(const struct workload *workload, unsigned seeds, unsigned lotteries)
{
    uint64_t hundredths = scaled(100ull * seeds);
    uint64_t runs = max_u64(hundredths / 100, 1);
    uint64_t every = hundredths < 100 ? 100 / hundredths : 1;
    for (uint64_t i = 0; i < runs; i++)
        enumerate(workload, the_seed() + i, (unsigned)every, lotteries);
}

#define ENUMERATION(name, seeds, lotteries)                  \
    static void enumerate_##name(void **state)               \
    {                                                        \
        (void)state;                                         \
        enumerate_seeds(&workload_##name, seeds, lotteries); \
    }
ENUMERATION(small, 3, 10)
ENUMERATION(index, 1, 3)
ENUMERATION(collection, 1, 6)
ENUMERATION(large, 1, 3)
ENUMERATION(refer, 2, 6)
ENUMERATION(log, 1, 4)
ENUMERATION(shrinking, 1, 2)
ENUMERATION(digests, 2, 8)
ENUMERATION(snapshots, 1, 4)
ENUMERATION(loads, 1, 3)
ENUMERATION(by_call, 1, 4)
ENUMERATION(limited, 1, 1)

static void chain_seeds(enum chain_kind kind, uint64_t lives)
{
    enum { LIVES = 500 };
    uint64_t left = scaled(lives);
    for (uint64_t seed = the_seed(); left; seed++) {
        chain(kind, seed, min_u64(left, LIVES));
        left -= min_u64(left, LIVES);
    }
}

static void chain_mixed(void **state)
{
    (void)state;
    chain_seeds(CHAIN_MIXED, 3000);
}

static void chain_short(void **state)
{
    (void)state;
    chain_seeds(CHAIN_SHORT, 1500);
}

static void chain_varied(void **state)
{
    (void)state;
    chain_seeds(CHAIN_VARIED, 1500);
}

static void chain_wraps(void **state)
{
    (void)state;
    chain_seeds(CHAIN_WRAPS, 1000);
    printf("reached: wraps %" PRIu64 " at_the_end %" PRIu64 "\n", reached.chain_wraps,
           reached.at_the_end);
    if (environment_u64("FKV_SCALE", 100) >= 100 && !SANITIZED)
        assert_true(reached.chain_wraps > 10 && reached.at_the_end > 0);
}

/* A workload that no longer reaches what it is there for would pass unseen. */
static void enumerate_reached_all(void **state)
{
    (void)state;
    printf("reached: rebuilds %" PRIu64 " splits %" PRIu64 " merges %" PRIu64 " moved %" PRIu64
           " reused %" PRIu64 " large %" PRIu64 " checkpoints %" PRIu64 " wraps %" PRIu64
           " growths %" PRIu64 " referred %" PRIu64 " truncates %" PRIu64 " holes %" PRIu64
           " borrowed %" PRIu64 " evictions %" PRIu64 "\n",
           reached.rebuilds, reached.splits, reached.merges, reached.moved_bytes,
           reached.sectors_reused, reached.large_sectors, reached.checkpoints, reached.log_wraps,
           reached.log_growths, reached.referred, reached.truncates, reached.holes,
           reached.borrowed, reached.evictions);
    if (environment_u64("FKV_SCALE", 100) < 100 || SANITIZED)
        return;
    assert_true(reached.rebuilds > 0 && reached.splits > 0 && reached.merges > 0 &&
                reached.moved_bytes > 0 && reached.sectors_reused > 0 &&
                reached.large_sectors > 0 && reached.checkpoints > 0 && reached.log_wraps > 0 &&
                reached.log_growths > 0 && reached.referred > 0 && reached.truncates > 0 &&
                reached.holes > 0 && reached.borrowed > 0 && reached.evictions > 0);
}

/* Snapshots, loads and the like, in all parts. */
static void features_reached(void **state)
{
    const struct feature_counts *counts = &feature_counts;
    (void)state;
    feature_counts_print();
    if (environment_u64("FKV_SCALE", 100) < 100 || SANITIZED)
        return;
    assert_true(counts->snapshots > 0 && counts->kept > 0 && counts->scanned > 0 &&
                counts->loads > 0 && counts->given_up > 0 && counts->loaded > 0 &&
                counts->compactions > 0 && counts->async > 0 && counts->by_call > 0);
}

/* What the normal run has to have tried, all its parts together. */
static void enough_crashes(void **state)
{
    enum { CRASHES_LEAST = 100000 };
    (void)state;
    if (environment_u64("FKV_SCALE", 100) < 100 || SANITIZED)
        return;
    assert_in_range(totals.crashes + totals.kills, CRASHES_LEAST, UINT64_MAX);
}

int main(int argc, char **argv)
{
    crash_prepare(crash_print_totals);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(enumerate_small),       cmocka_unit_test(enumerate_index),
        cmocka_unit_test(enumerate_collection),  cmocka_unit_test(enumerate_large),
        cmocka_unit_test(enumerate_refer),       cmocka_unit_test(enumerate_log),
        cmocka_unit_test(enumerate_shrinking),   cmocka_unit_test(enumerate_digests),
        cmocka_unit_test(enumerate_snapshots),   cmocka_unit_test(enumerate_loads),
        cmocka_unit_test(enumerate_by_call),     cmocka_unit_test(enumerate_limited),
        cmocka_unit_test(enumerate_reached_all), cmocka_unit_test(chain_mixed),
        cmocka_unit_test(chain_short),           cmocka_unit_test(chain_varied),
        cmocka_unit_test(chain_wraps),           cmocka_unit_test(features_reached),
        cmocka_unit_test(enough_crashes),
    };
    int failed = SUPPORT_RUN(argc, argv, tests);
    crash_print_totals();
    return failed;
}
