/*
 * test_damage: damaged files never crash the program, never hang it, and never give a wrong value.
 * damage_engine.h says what is done to them, and what must hold.
 *
 *     FKV_TEST_SEED=n   another seed      FKV_SCALE=percent   more or less of everything
 *     FKV_DAMAGE=n      only what trouble() names
 */
#include "damage_engine.h"

#include <inttypes.h>
#include <stdio.h>

static void damage_stores(const struct workload *workload, uint64_t stores)
{
    enum { TIMES = 250 };
    uint64_t left = scaled(stores * TIMES);
    for (uint64_t seed = the_seed(); left; seed++) {
        damage_of(workload, seed, min_u64(left, TIMES));
        left -= min_u64(left, TIMES);
    }
}

#define DAMAGE(name, stores)                     \
    static void damage_##name(void **state)      \
    {                                            \
        (void)state;                             \
        damage_stores(&workload_##name, stores); \
    }
DAMAGE(small, 16)
DAMAGE(index, 3)
DAMAGE(collection, 8)
DAMAGE(large, 6)
DAMAGE(refer, 8)
DAMAGE(log, 6)
DAMAGE(shrinking, 4)
DAMAGE(digests, 10)
DAMAGE(snapshots, 3)
DAMAGE(loads, 3)
DAMAGE(by_call, 5)
DAMAGE(limited, 1)

static void print_totals(void)
{
    for (unsigned i = 0; i < DAMAGES; i++)
        printf("%-26s %8" PRIu64 "\n", damage_name(i), damage_totals.of[i]);
    printf("counts: damaged %" PRIu64 " refused %" PRIu64 " reads_failed %" PRIu64
           " undone %" PRIu64 " unharmed %" PRIu64 "\n",
           damage_totals.damaged, damage_totals.refused, damage_totals.reads_failed,
           damage_totals.undone, damage_totals.unharmed);
    printf("damaged stores: %" PRIu64 "\n", damage_totals.damaged);
}

int main(int argc, char **argv)
{
    crash_prepare(print_totals);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damage_small),      cmocka_unit_test(damage_index),
        cmocka_unit_test(damage_collection), cmocka_unit_test(damage_large),
        cmocka_unit_test(damage_refer),      cmocka_unit_test(damage_log),
        cmocka_unit_test(damage_shrinking),  cmocka_unit_test(damage_digests),
        cmocka_unit_test(damage_snapshots),  cmocka_unit_test(damage_loads),
        cmocka_unit_test(damage_by_call),    cmocka_unit_test(damage_limited),
    };
    int failed = SUPPORT_RUN(argc, argv, tests);
    print_totals();
    return failed;
}
