/*
 * test_faults: whatever call fails, there is a clear error, nothing leaks, nothing is read wrong,
 * and what was committed is there when the store is opened again. fault_engine.h says what is
 * tried.
 *
 *     FKV_TEST_SEED=n        another seed      FKV_SCALE=percent   more or less of everything
 *     FKV_KIND=n FKV_NTH=n   only what trouble() names
 */
#include "crash_features.h"
#include "fault_engine.h"

#include <inttypes.h>
#include <stdio.h>

/* So many stores; scaled down, fewer, and then only some of the calls. */
static void faults_of_stores(const struct workload *workload, unsigned stores)
{
    uint64_t hundredths = scaled(100ull * stores);
    uint64_t runs = max_u64(hundredths / 100, 1);
    uint64_t every = hundredths < 100 ? 100 / hundredths : 1;
    for (uint64_t i = 0; i < runs; i++)
        faults_of(workload, the_seed() + i, (unsigned)every);
}

#define FAULTS(name, stores)                        \
    static void faults_##name(void **state)         \
    {                                               \
        (void)state;                                \
        faults_of_stores(&workload_##name, stores); \
    }
FAULTS(small, 58)
FAULTS(index, 1)
FAULTS(collection, 14)
FAULTS(large, 1)
FAULTS(refer, 12)
FAULTS(log, 10)
FAULTS(shrinking, 4)
FAULTS(digests, 36)
FAULTS(snapshots, 8)
FAULTS(loads, 2)
FAULTS(by_call, 8)
FAULTS(limited, 1)

/* What the normal run has to have tried, all its parts together. */
static void enough_faults(void **state)
{
    enum { FAULTS_LEAST = 50000 };
    (void)state;
    if (environment_u64("FKV_SCALE", 100) < 100 || SANITIZED)
        return;
    for (unsigned i = 0; i < FAULT_KINDS; i++)
        assert_true(fault_totals.struck[i] > 0);
    assert_true(fault_totals.failed_stores > 0);
    feature_counts_print();
    assert_true(feature_counts.kept > 0 && feature_counts.loads > 0 &&
                feature_counts.compactions > 0 && feature_counts.by_call > 0);
    assert_in_range(faults_injected(), FAULTS_LEAST, UINT64_MAX);
}

static void print_totals(void)
{
    for (unsigned i = 0; i < FAULT_KINDS; i++)
        printf("%-36s %8" PRIu64 "\n", fault_kind_name(i), fault_totals.struck[i]);
    printf("counts: trials %" PRIu64 " faults %" PRIu64 " failed_stores %" PRIu64 "\n",
           fault_totals.trials, faults_injected(), fault_totals.failed_stores);
    printf("injected faults: %" PRIu64 "\n", faults_injected());
}

int main(int argc, char **argv)
{
    crash_prepare(print_totals);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(faults_small),      cmocka_unit_test(faults_index),
        cmocka_unit_test(faults_collection), cmocka_unit_test(faults_large),
        cmocka_unit_test(faults_refer),      cmocka_unit_test(faults_log),
        cmocka_unit_test(faults_shrinking),  cmocka_unit_test(faults_digests),
        cmocka_unit_test(faults_snapshots),  cmocka_unit_test(faults_loads),
        cmocka_unit_test(faults_by_call),    cmocka_unit_test(faults_limited),
        cmocka_unit_test(enough_faults),
    };
    int failed = SUPPORT_RUN(argc, argv, tests);
    print_totals();
    return failed;
}
