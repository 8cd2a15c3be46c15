#include "crash_engine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct crash_totals totals;
struct reached reached;

uint64_t the_seed(void)
{
    return environment_u64("FKV_TEST_SEED", 1);
}

void crash_print_totals(void)
{
    printf("counts: points %" PRIu64 " crashes %" PRIu64 " kills %" PRIu64 " in_recovery %" PRIu64
           " openings %" PRIu64 " refused %" PRIu64 " continued %" PRIu64 " operations %" PRIu64
           "\n",
           totals.points, totals.crashes, totals.kills, totals.in_recovery, totals.openings,
           totals.refused, totals.continued, totals.operations);
    printf("simulated crashes: %" PRIu64 "\n", totals.crashes + totals.kills);
}

/* Says what a part of the run has cost. */
static void say(const char *name, uint64_t parts, const char *of_what, uint64_t crashes,
                clock_t began)
{
    double seconds = (double)(clock() - began) / CLOCKS_PER_SEC;
    printf("%-10s %6" PRIu64 " %s %7" PRIu64 " crashes, %.1f s of CPU, %.2f ms each\n", name, parts,
           of_what, crashes, seconds, seconds * 1e3 / (double)max_u64(crashes, 1));
    fflush(stdout);
}

/* ---------------------------------------------------------------- what has been reached */

/* Of one store, at the step before. */
struct seen {
    uint64_t segments;
    uint64_t log_bytes;
    uint64_t head;
};

static uint64_t segments_in_use(const struct fkv *db)
{
    const struct directory *directory = db->index.directory;
    uint64_t count = 1;
    for (uint32_t i = 1; i < 1u << directory->depth; i++)
        count += directory->segment[i] != directory->segment[i - 1];
    return count;
}

static void note_step(const struct life *life, struct seen *seen)
{
    const struct fkv *db = life->db;
    if (!db)
        return;
    uint64_t segments = segments_in_use(db);
    reached.splits += seen->segments && segments > seen->segments;
    reached.merges += segments < seen->segments;
    reached.large_sectors += db->sectors.large_count > 0;
    reached.referred += atomic_load(&db->log.data_unsynced);
    reached.log_wraps += db->log.head.offset < db->log.start && seen->head >= db->log.start;
    reached.log_growths += db->log.size > seen->log_bytes;
    reached.borrowed += life->borrowed_count;
    *seen =
        (struct seen){.segments = segments, .log_bytes = db->log.size, .head = db->log.head.offset};
}

/* A handle is about to go. */
static void note_end(const struct life *life)
{
    const struct fkv *db = life->db;
    if (!db)
        return;
    reached.rebuilds += db->index.rebuilds;
    reached.evictions += db->index.limit.evictions;
    reached.moved_bytes += db->collector.moved_bytes;
    reached.checkpoints += db->checkpoint.done;
    if (db->sectors.next_sequence > db->sectors.count)
        reached.sectors_reused += db->sectors.next_sequence - db->sectors.count;
}

static void note_disk(struct os_sim *sim)
{
    reached.truncates += os_sim_calls(sim, OS_SIM_TRUNCATE);
    reached.holes += os_sim_calls(sim, OS_SIM_PUNCH);
}

/* ---------------------------------------------------------------- opening what a crash left */

/* Crash or kill; with `kill` all that has returned survives. */
static void strike(struct os_sim *sim, bool kill, uint64_t seed)
{
    if (kill)
        os_sim_kill(sim, seed);
    else
        os_sim_crash(sim, seed);
    totals.crashes += !kill;
    totals.kills += kill;
}

/* Read-only, it is in the same state that it will be in when it is opened for writing. */
static uint64_t look(struct life *life)
{
    fkv_options options;
    struct fkv *db;
    workload_options(life->workload, &options);
    options.flags |= FKV_OPEN_READ_ONLY;
    options.index_memory_max = rng_percent(&life->rng, 40) ? 32768 : 0;
    enum fkv_error error = store_open(os_sim_os(life->sim), STORE_PATH, &options, &db);
    if (error)
        trouble("opening read-only: %s; %s", fkv_error_text(error), error_last());
    uint64_t commit = db->commit;
    if (commit < life->model->synced || commit > life->model->commit)
        trouble("read-only it opens at %" PRIu64, commit);
    struct content *state = malloc(life->model->key_count * sizeof *state);
    model_state(life->model, commit, state);
    store_must_hold(db, state, life->model->key_count, "read-only");
    free(state);
    store_close(db);
    error_claim(0);
    return commit;
}

/* What goes wrong with an opening. */
static void plan_mishap(struct life *life)
{
    enum { CHANGES_MOST = 9, CALLS_MOST = 30, PAGES_MOST = 12 };
    struct os_sim *sim = life->sim;
    struct rng *rng = &life->rng;
    if (rng_percent(rng, 60)) {
        os_sim_crash_after(sim, OS_SIM_CHANGES, rng_below(rng, CHANGES_MOST));
    } else if (rng_percent(rng, 50)) {
        uint64_t pages = rng_below(rng, PAGES_MOST);
        os_sim_set_capacity(sim, max_u64(os_sim_used(sim) + (pages << pages / 2) * PAGE_BYTES, 1));
        if (rng_percent(rng, 30))
            os_sim_crash_after(sim, OS_SIM_CHANGES, rng_below(rng, 2 * CHANGES_MOST));
    } else {
        os_sim_fail(sim,
                    &(struct os_sim_fault){
                        .kinds = rng_percent(rng, 50) ? OS_SIM_CHANGES & ~OS_SIM_START_WRITEBACK
                                                      : OS_SIM_SYNC,
                        .nth = 1 + rng_below(rng, rng_percent(rng, 50) ? 5 : CALLS_MOST),
                        .error = rng_percent(rng, 70) ? -EIO : -ENOSPC,
                        .forever = rng_percent(rng, 30)});
    }
}

/* Open, though up to `again` times recovery is cut off too, or fails, or the power fails right
 * after it. *kill stays true if the power never failed. */
void recover(struct life *life, unsigned again, bool *kill)
{
    for (;;) {
        uint64_t commit = UINT64_MAX;
        if (life->varies && rng_percent(&life->rng, 30) && life->model->commit)
            commit = look(life);
        if (again)
            plan_mishap(life);
        enum fkv_error error = life_open(life);
        totals.openings++;
        bool crashed = os_sim_crashed(life->sim);
        if (!crashed && error && !again)
            trouble("opening: %s; %s", fkv_error_text(error), error_last());
        if (!crashed && error && error != FKV_FULL && error != FKV_IO)
            trouble("opening on a bad disk: %s; %s", fkv_error_text(error), error_last());
        if (!crashed && !error && commit != UINT64_MAX && commit != life->db->commit)
            trouble("read-only it opened at another commit");
        totals.refused += !crashed && error;
        if (!again)
            return;
        /* Whatever became of it, the process ends, or the power fails. */
        again--;
        totals.in_recovery++;
        bool dies = rng_percent(&life->rng, *kill ? 80 : 30);
        *kill = *kill && dies;
        os_sim_set_capacity(life->sim, 0);
        if (crashed)
            life_bury(life);
        strike(life->sim, dies, rng_next(&life->rng));
        life_bury(life);
    }
}

/* Steps, until the disk fails. */
static void work(struct life *life, const struct mood *mood, unsigned steps)
{
    for (unsigned i = 0; i < steps && !os_sim_crashed(life->sim); i++) {
        enum fkv_error error = life_step(life, mood);
        if (error && !os_sim_crashed(life->sim))
            trouble("%s: %s; %s", mood->name, fkv_error_text(error), fkv_error_detail(life->db));
    }
}

/* End a life: by the crash that was planned, if it has come; else close, in which it may come; or
 * crash between two calls. Returns whether everything that had returned survives. */
static void end_life(struct life *life, bool close, const bool *kill)
{
    bool crashed = os_sim_crashed(life->sim);
    if (crashed) {
        life_bury(life);
    } else if (close && life->db) {
        enum fkv_error error = life_close(life);
        crashed = os_sim_crashed(life->sim);
        if (error && !crashed)
            trouble("closing: %s; %s", fkv_error_text(error), error_last());
    } else {
        strike(life->sim, *kill, rng_next(&life->rng));
        life_bury(life);
    }
    if (crashed)
        strike(life->sim, *kill, rng_next(&life->rng));
    os_sim_crash_after(life->sim, OS_SIM_ALL, UINT64_MAX);
}

/* ---------------------------------------------------------------- enumeration */

struct enumeration {
    const struct workload *workload;
    struct life *life;
    const struct mood *mood; /* the workload's present one */
    uint64_t seed;
    uint64_t point, only_point, only_lottery;
    unsigned every; /* only each so many-th point */
    unsigned lotteries;
};

/* What a crash left works on, and ends somehow. */
static void go_on(struct life *life, const struct mood *mood)
{
    bool kill = rng_percent(&life->rng, 20);
    totals.continued++;
    if (rng_percent(&life->rng, 60))
        os_sim_crash_after(life->sim, OS_SIM_CHANGES, rng_below(&life->rng, 30));
    work(life, mood, (unsigned)rng_between(&life->rng, 1, 20));
    end_life(life, true, &kill);
    recover(life, 0, &kill);
    life_must_have_recovered(life, kill, "after going on");
}

static void try_lottery(struct enumeration *at, struct os_sim *sim, unsigned lottery)
{
    context_set("workload %s, FKV_TEST_SEED=%" PRIu64 " FKV_POINT=%" PRIu64 " FKV_LOTTERY=%u",
                at->workload->name, at->seed, at->point, lottery);
    struct model model;
    struct life life = {.sim = os_sim_copy(sim),
                        .model = &model,
                        .workload = at->workload,
                        .level = 1,
                        .rng = rng_make(rng_mix(at->seed, at->point, lottery))};
    bool kill = lottery == 0 && at->lotteries > 1;
    model_fork(&model, at->life->model);
    strike(life.sim, kill, rng_next(&life.rng));
    unsigned again = rng_percent(&life.rng, 20) ? (unsigned)rng_between(&life.rng, 1, 2) : 0;
    recover(&life, again, &kill);
    life_must_have_recovered(&life, kill, kill ? "after a kill" : "after a crash");
    if (rng_percent(&life.rng, 10))
        go_on(&life, at->mood);
    life_abandon(&life);
    disk_must_be_sound(life.sim);
    totals.operations += life.operations;
    os_sim_free(life.sim);
    model_drop(&model);
}

/* The disk may crash here. */
static void try_point(struct enumeration *at, struct os_sim *sim)
{
    at->point++;
    if (at->point % at->every || (at->only_point && at->point != at->only_point))
        return;
    uint64_t random = random_state();
    uint64_t blocks = memory_test_blocks();
    totals.points++;
    for (unsigned lottery = 0; lottery < at->lotteries; lottery++) {
        random_fix(rng_mix(at->seed, at->point, lottery) | 1);
        if (at->only_lottery == UINT64_MAX || at->only_lottery == lottery)
            try_lottery(at, sim, lottery);
    }
    if (memory_test_blocks() != blocks)
        trouble("%" PRIu64 " blocks of memory are lost", memory_test_blocks() - blocks);
    random_restore(random);
}

static void on_change(void *context, struct os_sim *sim, enum os_sim_kind kind)
{
    (void)kind;
    try_point(context, sim);
}

static void run_phase(struct enumeration *at, const struct phase *phase, struct seen *seen)
{
    enum { STEPS_A_POINT = 4 };
    struct life *life = at->life;
    at->mood = &phase->mood;
    for (uint32_t i = 0; i < phase->steps; i++) {
        context_set("workload %s, FKV_TEST_SEED=%" PRIu64 ", %s, step %u", at->workload->name,
                    at->seed, phase->mood.name, i);
        work(life, &phase->mood, 1);
        note_step(life, seen);
        if (i % STEPS_A_POINT == 0)
            try_point(at, life->sim);
    }
    context_set("workload %s, FKV_TEST_SEED=%" PRIu64 ", end of %s", at->workload->name, at->seed,
                phase->mood.name);
    store_must_hold(life->db, life->model->now, life->model->key_count, "at work");
    store_must_be_sound(life->db, at->workload, true, "at work");
}

static void print_sizes(struct fkv *db)
{
    fkv_stats stats;
    if (!getenv("FKV_VERBOSE") || fkv_get_stats(db, &stats, sizeof stats))
        return;
    printf("           file %" PRIu64 " MiB, live %" PRIu64 " KiB, dead %" PRIu64
           " KiB, sectors: values %" PRIu64 ", large %" PRIu64 ", pages %" PRIu64 "\n",
           stats.file_bytes / MIB, stats.live_cells * CELL_BYTES / KIB,
           stats.dead_cells * CELL_BYTES / KIB, stats.sectors_values, stats.sectors_large,
           stats.sectors_pages);
}

void enumerate(const struct workload *workload, uint64_t seed, unsigned every, unsigned lotteries)
{
    struct model model;
    struct seen seen = {0};
    struct life life = {.sim = workload_disk(workload, seed, workload->memory_bytes),
                        .model = &model,
                        .workload = workload,
                        .rng = rng_make(seed)};
    struct enumeration at = {.workload = workload,
                             .life = &life,
                             .mood = &workload->phases[0].mood,
                             .seed = seed,
                             .only_point = environment_u64("FKV_POINT", 0),
                             .only_lottery = environment_u64("FKV_LOTTERY", UINT64_MAX),
                             .every = every,
                             .lotteries = lotteries};
    uint64_t crashes = totals.crashes + totals.kills;
    clock_t began = clock();
    random_fix(seed | 1);
    model_make(&model, workload->keys);
    commit_refer_bytes = workload->refer_bytes ? workload->refer_bytes : commit_refer_bytes;
    os_sim_set_hook(life.sim, OS_SIM_CHANGES, on_change, &at);
    context_set("workload %s, FKV_TEST_SEED=%" PRIu64, workload->name, seed);
    enum fkv_error error = life_open(&life);
    if (error)
        trouble("creating: %s; %s", fkv_error_text(error), error_last());
    for (const struct phase *phase = workload->phases; phase->steps; phase++)
        run_phase(&at, phase, &seen);
    print_sizes(life.db);
    note_end(&life);
    bool kill = true;
    end_life(&life, true, &kill);
    os_sim_set_hook(life.sim, 0, NULL, NULL);
    recover(&life, 0, &kill);
    life_must_have_recovered(&life, kill, "after closing");
    note_disk(life.sim);
    life_abandon(&life);
    disk_must_be_sound(life.sim);
    totals.operations += life.operations;
    os_sim_free(life.sim);
    model_drop(&model);
    commit_refer_bytes = 4 * MIB;
    if (memory_test_blocks())
        trouble("%" PRIu64 " blocks of memory are lost", memory_test_blocks());
    say(workload->name, at.point / every, "points", totals.crashes + totals.kills - crashes, began);
}

/* ---------------------------------------------------------------- chains */

static const struct workload chained = {.name = "chain", .keys = 48, .refer_bytes = 40000};

/* Each life has one of these. The last ones, of a step or two, leave things behind that may be
 * taken for others of later. */
static const struct mood chain_moods[] = {
    {.name = "one referred to", .put = 1, .value_least = 41000, .value_most = 60000},
    {.name = "one large value",
     .put = 1,
     .value_most = 10,
     .large_percent = 100,
     .large_most = 1300000,
     .key_end = 3},
    {.name = "the same again", .put = 1, .value_most = 500, .scripted = true},
    {.name = "opening and closing",
     .put = 20,
     .txn = 20,
     .reopen = 30,
     .kill = 30,
     .checkpoint = 5,
     .sync_percent = 20,
     .value_least = 0,
     .value_most = 20000,
     .txn_keys = 4,
     .txn_delete_percent = 20},
    {.name = "mixed",
     .put = 60,
     .delete = 20,
     .txn = 10,
     .sync = 4,
     .checkpoint = 4,
     .reopen = 1,
     .kill = 1,
     .sync_percent = 30,
     .value_least = 0,
     .value_most = 3000,
     .txn_keys = 12,
     .txn_delete_percent = 30},
    {.name = "batches",
     .put = 10,
     .txn = 60,
     .sync = 4,
     .checkpoint = 3,
     .kill = 2,
     .sync_percent = 15,
     .value_least = 1000,
     .value_most = 40000,
     .txn_keys = 8,
     .txn_delete_percent = 10},
    {.name = "overwriting",
     .put = 90,
     .delete = 5,
     .txn = 5,
     .sync = 2,
     .sync_percent = 20,
     .value_least = 2000,
     .value_most = 60000,
     .txn_keys = 4,
     .txn_delete_percent = 20},
    {.name = "large values",
     .put = 50,
     .delete = 15,
     .txn = 10,
     .sync = 4,
     .checkpoint = 3,
     .kill = 1,
     .sync_percent = 15,
     .value_least = 0,
     .value_most = 4000,
     .large_percent = 40,
     .large_most = 1300000,
     .txn_keys = 3,
     .txn_delete_percent = 20,
     .key_end = 4},
    {.name = "snapshots",
     .put = 50,
     .delete = 20,
     .txn = 10,
     .sync = 3,
     .checkpoint = 3,
     .reopen = 1,
     .snapshot = 25,
     .compact = 2,
     .async = 3,
     .sync_percent = 20,
     .value_most = 30000,
     .txn_keys = 6,
     .txn_delete_percent = 30},
    {.name = "loads",
     .put = 20,
     .delete = 10,
     .txn = 10,
     .checkpoint = 2,
     .kill = 1,
     .snapshot = 5,
     .load = 25,
     .compact = 4,
     .sync_percent = 20,
     .value_most = 15000,
     .txn_keys = 20,
     .txn_delete_percent = 30},
    {.name = "tiny",
     .put = 50,
     .delete = 50,
     .txn = 3,
     .sync = 2,
     .checkpoint = 2,
     .kill = 1,
     .sync_percent = 5,
     .value_most = 8,
     .txn_keys = 40,
     .txn_delete_percent = 50},
    {.name = "emptying",
     .delete = 70,
     .txn = 10,
     .checkpoint = 3,
     .reopen = 5,
     .sync_percent = 20,
     .value_most = 3000,
     .txn_keys = 6,
     .txn_delete_percent = 90},
};
enum { CHAIN_MOODS = sizeof chain_moods / sizeof chain_moods[0], SHORT_MOODS = 4 };

/* The log has 1 MiB, and is gone round in some of these. */
static const struct workload wrapping = {.name = "wraps", .keys = 36};
static const struct mood wrap_moods[] = {
    {.name = "up to the end",
     .put = 1,
     .sync_percent = 50,
     .to_end = true,
     .key_first = 8,
     .key_end = 36},
    {.name = "up to the end, unsynced",
     .put = 1,
     .sync_percent = 10,
     .to_end = true,
     .key_first = 8,
     .key_end = 36},
    {.name = "large batches",
     .txn = 1,
     .sync_percent = 30,
     .value_least = 30000,
     .value_most = 120000,
     .txn_keys = 4,
     .key_first = 8,
     .key_end = 36},
    {.name = "a few small ones",
     .put = 10,
     .delete = 3,
     .sync = 1,
     .checkpoint = 1,
     .sync_percent = 20,
     .value_most = 300,
     .key_end = 5},
    {.name = "the same again", .put = 1, .value_most = 500, .scripted = true, .key_end = 5},
};
enum {
    WRAP_MOODS = sizeof wrap_moods / sizeof wrap_moods[0],
    AT_THE_END = 3, /* those from here on, of small values, are for where the log ends */
};

static unsigned steps_most(const struct mood *mood)
{
    return mood->value_most == 120000 ? 3
           : mood->value_most == 300  ? 2
           : mood->scripted           ? 8
           : mood->put == 1           ? 2
           : mood->reopen > 10        ? 4
           : mood->value_most == 8    ? 300
                                      : 30;
}

/* What is left of the log behind its head. */
static uint64_t left_of_log(const struct fkv *db)
{
    return db->log.size - min_u64(db->log.head.offset, db->log.size);
}

enum { NEARLY_AT_THE_END = 300, NO_ROOM_TO_RESTART = 40 + 56 };

static const struct mood *draw_mood(enum chain_kind kind, const struct fkv *db, struct rng *rng)
{
    if (kind == CHAIN_WRAPS && left_of_log(db) < NEARLY_AT_THE_END && rng_percent(rng, 80))
        return &wrap_moods[AT_THE_END + rng_below(rng, WRAP_MOODS - AT_THE_END)];
    if (kind == CHAIN_WRAPS)
        return &wrap_moods[rng_below(rng, WRAP_MOODS)];
    return &chain_moods[rng_below(rng, kind == CHAIN_SHORT ? SHORT_MOODS : CHAIN_MOODS)];
}

/* What is done in a life of a chain, and how it ends. */
struct fate {
    unsigned steps;
    bool at_the_end; /* of the log, where an opening could not mark it */
    /* Per cent: by a kill, in a call, closing; and again in recovery. */
    unsigned kill, crash, close, again;
};

/* Where the log ends, what an opening or a commit writes goes round: mostly there is none until an
 * opening finds no room to mark the log, and one commit then. */
static struct fate draw_fate(struct life *life, const struct mood *mood, bool wraps)
{
    struct rng *rng = &life->rng;
    if (!wraps)
        return (struct fate){.steps = (unsigned)rng_between(rng, 1, steps_most(mood)),
                             .kill = 25,
                             .crash = 80,
                             .close = 30,
                             .again = 30};
    uint64_t left = left_of_log(life->db);
    unsigned steps = (unsigned)rng_below(rng, steps_most(mood) + 1);
    if (left < NEARLY_AT_THE_END && rng_percent(rng, 80))
        steps = left < NO_ROOM_TO_RESTART;
    bool waits = mood->to_end || (left < NEARLY_AT_THE_END && !steps);
    return (struct fate){.steps = steps,
                         .at_the_end = left < NO_ROOM_TO_RESTART,
                         .kill = waits ? 70 : 15,
                         .crash = 20,
                         .close = 5,
                         .again = waits ? 20 : 70};
}

/* What has just been written goes round: copies of the disk lose power, again and again. */
static void lose_power_at_the_end(struct life *life)
{
    enum { LOTTERIES = 12 };
    uint64_t random = random_state();
    for (unsigned i = 0; i < LOTTERIES; i++) {
        struct model model;
        struct life copy = {.sim = os_sim_copy(life->sim),
                            .model = &model,
                            .workload = life->workload,
                            .level = 1,
                            .rng = rng_make(rng_next(&life->rng))};
        bool kill = false;
        random_fix(rng_next(&life->rng) | 1);
        model_fork(&model, life->model);
        strike(copy.sim, kill, rng_next(&copy.rng));
        for (unsigned again = 1 + i % 2; again > 0; again--) {
            recover(&copy, 0, &kill);
            life_must_have_recovered(&copy, kill, "after a crash where the log ends");
            strike(copy.sim, kill, rng_next(&copy.rng));
            life_bury(&copy);
        }
        recover(&copy, (unsigned)rng_below(&copy.rng, 2), &kill);
        life_must_have_recovered(&copy, kill, "after crashes where the log ends");
        life_abandon(&copy);
        os_sim_free(copy.sim);
        model_drop(&model);
    }
    random_restore(random);
}

/* One life, from a store that is open to one that is open again after its end. */
static void live_and_die(struct life *life, const struct mood *mood, bool wraps, struct seen *seen)
{
    enum { UP_TO_END_MOST = 16 };
    struct fate fate = draw_fate(life, mood, wraps);
    bool kill = rng_percent(&life->rng, fate.kill);
    if (rng_percent(&life->rng, fate.crash))
        os_sim_crash_after(life->sim, OS_SIM_CHANGES,
                           rng_below(&life->rng, rng_percent(&life->rng, 50) ? 10 : 100));
    if (fate.at_the_end && rng_percent(&life->rng, 70)) /* some time has passed */
        os_sim_settle(life->sim);
    if (mood->to_end) {
        for (unsigned i = 0; i < UP_TO_END_MOST && !os_sim_crashed(life->sim) &&
                             left_of_log(life->db) >= NEARLY_AT_THE_END;
             i++)
            work(life, mood, 1);
    } else {
        work(life, mood, fate.steps);
    }
    if (fate.at_the_end && fate.steps && !os_sim_crashed(life->sim))
        lose_power_at_the_end(life);
    reached.at_the_end += fate.at_the_end;
    note_step(life, seen);
    note_end(life);
    end_life(life, rng_percent(&life->rng, fate.close), &kill);
    unsigned again =
        rng_percent(&life->rng, fate.again) ? (unsigned)rng_between(&life->rng, 1, 3) : 0;
    recover(life, again, &kill);
    life_must_have_recovered(life, kill, mood->name);
    totals.lives++;
}

void chain(enum chain_kind kind, uint64_t seed, uint64_t lives)
{
    static const char *const names[] = {"chain", "short", "varied", "wraps"};
    const struct workload *workload = kind == CHAIN_WRAPS ? &wrapping : &chained;
    const char *name = names[kind];
    struct model model;
    struct seen seen = {0};
    struct life life = {.sim = workload_disk(workload, seed, seed % 3 ? 0 : 1),
                        .model = &model,
                        .workload = workload,
                        .varies = kind == CHAIN_VARIED,
                        .rng = rng_make(seed + (uint64_t)kind)};
    uint64_t crashes = totals.crashes + totals.kills, wraps = reached.log_wraps;
    clock_t began = clock();
    random_fix(seed | 1);
    model_make(&model, workload->keys);
    commit_refer_bytes = workload->refer_bytes ? workload->refer_bytes : commit_refer_bytes;
    bool kill = true;
    recover(&life, 0, &kill);
    for (uint64_t i = 0; i < lives; i++) {
        const struct mood *mood = draw_mood(kind, life.db, &life.rng);
        context_set("%s, FKV_TEST_SEED=%" PRIu64 ", life %" PRIu64 ", %s", name, seed, i,
                    mood->name);
        live_and_die(&life, mood, kind == CHAIN_WRAPS, &seen);
    }
    reached.chain_wraps += kind == CHAIN_WRAPS ? reached.log_wraps - wraps : 0;
    note_disk(life.sim);
    life_abandon(&life);
    disk_must_be_sound(life.sim);
    commit_refer_bytes = 4 * MIB;
    totals.operations += life.operations;
    os_sim_free(life.sim);
    model_drop(&model);
    if (memory_test_blocks())
        trouble("%" PRIu64 " blocks of memory are lost", memory_test_blocks());
    say(name, lives, "lives ", totals.crashes + totals.kills - crashes, began);
}
