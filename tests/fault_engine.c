#include "fault_engine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct fault_totals fault_totals;

enum source { DISK, MEMORY, ROOM };

/* Reading, writing, mapping, syncing, all of it: a hint cannot fail. */
#define ANY_CALL (OS_SIM_ALL & ~(unsigned)OS_SIM_START_WRITEBACK)

static const struct fault_kind {
    const char *name;
    enum source source;
    unsigned kinds;
    int error;
    bool forever;
} fault_kinds[FAULT_KINDS] = {
    {"input or output error", DISK, ANY_CALL, -EIO, false},
    {"input or output errors from then on", DISK, ANY_CALL, -EIO, true},
    {"no space", DISK, OS_SIM_WRITE | OS_SIM_ALLOCATE | OS_SIM_OPEN, -ENOSPC, false},
    {"no space from then on", DISK, OS_SIM_WRITE | OS_SIM_ALLOCATE | OS_SIM_OPEN, -ENOSPC, true},
    {"full disk", ROOM, 0, 0, true}, /* n - 1 pages are free */
    {"no memory for a mapping", DISK, OS_SIM_MAP, -ENOMEM, false},
    {"no memory", MEMORY, 0, 0, false},
    {"no memory from then on", MEMORY, 0, 0, true},
};

const char *fault_kind_name(unsigned kind)
{
    return fault_kinds[kind].name;
}

uint64_t faults_injected(void)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < FAULT_KINDS; i++)
        sum += fault_totals.struck[i];
    return sum;
}

/* ---------------------------------------------------------------- a fault */

/* One trial. */
struct trial {
    const struct fault_kind *kind;
    struct life life;
    uint64_t nth;
    uint64_t memory_before; /* requests for memory, when the fault was planned */
    bool planned;
    bool struck;
    bool refused; /* something has returned an error */
    bool failed;  /* the store was read-only in the end */
};

static void plan(struct trial *trial)
{
    const struct fault_kind *kind = trial->kind;
    struct os_sim *sim = trial->life.sim;
    struct os_sim_fault fault = {
        .kinds = kind->kinds, .nth = trial->nth, .error = kind->error, .forever = kind->forever};
    trial->planned = true;
    trial->memory_before = memory_test_requests();
    if (kind->source == MEMORY)
        memory_test_fail(trial->nth, kind->forever);
    else if (kind->source == DISK)
        os_sim_fail(sim, &fault);
    else
        os_sim_set_capacity(sim, os_sim_used(sim) + (trial->nth - 1) * PAGE_BYTES);
}

static bool has_struck(struct trial *trial)
{
    if (!trial->planned)
        return trial->struck;
    if (trial->kind->source == MEMORY)
        trial->struck = memory_test_requests() >= trial->memory_before + trial->nth;
    else if (trial->kind->source == DISK)
        trial->struck = os_sim_failed(trial->life.sim) > 0;
    else
        trial->struck = trial->refused;
    return trial->struck;
}

/* From now on everything goes well. */
static void relent(struct trial *trial)
{
    has_struck(trial);
    trial->planned = false;
    memory_test_fail(0, false);
    os_sim_fail(trial->life.sim, NULL);
    os_sim_set_capacity(trial->life.sim, 0);
}

/* An error is returned: may it be, and is it this one? */
static void must_fit(struct trial *trial, enum fkv_error error, const char *what)
{
    const struct fault_kind *kind = trial->kind;
    trial->refused = true;
    const char *detail = fkv_error_detail(trial->life.db);
    if (!has_struck(trial))
        trouble("%s: %s, and nothing has failed; %s", what, fkv_error_text(error), detail);
    bool fits = kind->source == MEMORY || kind->error == -ENOMEM ? error == FKV_NO_MEMORY
                : kind->error == -EIO                            ? error == FKV_IO
                                      : error == FKV_FULL || error == FKV_IO;
    if (!fits && !(error == FKV_FAILED && trial->failed))
        trouble("%s: %s does not fit; %s", what, fkv_error_text(error), detail);
    if (!*detail)
        trouble("%s: %s, without a word", what, fkv_error_text(error));
}

/* ---------------------------------------------------------------- the store under it */

static bool is_read_only(const struct fkv *db)
{
    return db->failed || db->tail.failed || db->log.sync_failed;
}

static void must_refuse(struct fkv *db, enum fkv_error error, const char *what)
{
    if (error != FKV_FAILED)
        trouble("a sync or a write has failed, and %s: %s", what, fkv_error_text(error));
    if (!*fkv_error_detail(db))
        trouble("a sync or a write has failed, and %s: no word of it", what);
}

/* The store has failed for good: no commit any more, and reading goes on. */
static void must_be_read_only(struct life *life)
{
    fkv_txn *txn;
    must_refuse(life->db, fkv_put(life->db, "key", 3, "x", 1), "a put");
    must_refuse(life->db, fkv_put_with(life->db, "key", 3, "x", 1, FKV_SYNC), "a synced put");
    must_refuse(life->db, fkv_checkpoint(life->db), "a checkpoint");
    if (life->db->log.sync_failed)
        must_refuse(life->db, fkv_sync(life->db), "a sync");
    if (fkv_txn_begin(life->db, &txn) == FKV_OK) {
        enum fkv_error error = fkv_txn_put(txn, "key", 3, "x", 1);
        if (!error)
            must_refuse(life->db, fkv_txn_commit(txn, 0), "a transaction");
        fkv_txn_free(txn);
    }
    store_must_hold(life->db, life->model->now, life->model->key_count, "read-only");
}

/* Open again what an opening, or a step that opens, has left; now and then that is cut off, too. */
static void open_again(struct trial *trial, const char *when)
{
    struct life *life = &trial->life;
    bool kill = true;
    relent(trial);
    unsigned again = rng_percent(&life->rng, 25) ? (unsigned)rng_between(&life->rng, 1, 2) : 0;
    recover(life, again, &kill);
    life_must_have_recovered(life, kill, when);
}

/* A step has failed. */
static void after_failure(struct trial *trial, enum fkv_error error, const char *what)
{
    struct life *life = &trial->life;
    trial->failed = life->db && is_read_only(life->db);
    must_fit(trial, error, what);
    if (!life->db) {
        open_again(trial, "opening after a failed one");
        return;
    }
    life_settle_failure(life, error);
    if (!trial->failed && life->model->commit != life->model->returned)
        trouble("%s: %s, the commit took place, and the store goes on", what,
                fkv_error_text(error));
}

/* Steps, whatever fails, until nothing more can be done. */
static void work_on(struct trial *trial, const struct mood *mood, unsigned steps)
{
    enum { FAILURES_MOST = 4 };
    struct life *life = &trial->life;
    unsigned failures = 0;
    for (unsigned i = 0; i < steps && !trial->failed && failures < FAILURES_MOST; i++) {
        const uint64_t handle = life->db->id;
        const uint64_t failed = os_sim_failed(life->sim);
        enum fkv_error error = life_step(life, mood);
        if (error)
            after_failure(trial, error, mood->name);
        failures += error != FKV_OK;
        trial->failed = is_read_only(life->db);
        if (os_sim_failed(life->sim) > failed && !trial->failed && life->db->id == handle &&
            (os_sim_failed_kinds(life->sim) & OS_SIM_SYNC))
            trouble("%s: a sync has failed, and the store takes commits", mood->name);
    }
}

/* After it has struck, with the handle still open. */
static void must_stand(struct trial *trial, const struct mood *mood)
{
    struct life *life = &trial->life;
    relent(trial);
    if (trial->failed) {
        fault_totals.failed_stores++;
        must_be_read_only(life);
        return;
    }
    for (unsigned i = 0; i < 2; i++) {
        enum fkv_error error = life_step(life, mood);
        if (error)
            trouble("all is well again, and %s: %s; %s", mood->name, fkv_error_text(error),
                    fkv_error_detail(life->db));
    }
    store_must_hold(life->db, life->model->now, life->model->key_count, "after a fault");
    if (rng_percent(&life->rng, 20))
        store_must_be_sound(life->db, life->workload, false, "after a fault");
}

static void end_by_closing(struct trial *trial)
{
    struct life *life = &trial->life;
    const bool failed = trial->failed;
    enum fkv_error error = life_close(life);
    if (error && !failed)
        must_fit(trial, error, "closing");
    else if (failed && !error)
        trouble("closing a store that has failed: success");
    relent(trial);
}

/* ---------------------------------------------------------------- a trial */

/* What a store is like at the beginning of a trial. */
struct start {
    struct os_sim *sim;
    struct model model;
    const struct workload *workload;
    struct mood mood;
    uint64_t seed;
    unsigned steps;
};

static void must_go_well(struct life *life, const struct mood *mood)
{
    enum fkv_error error = life_step(life, mood);
    if (error && !life_is_over(life))
        trouble("after a fault and the end, %s: %s; %s", mood->name, fkv_error_text(error),
                fkv_error_detail(life->db));
}

/* It goes on, and the power fails or the process dies: now and then in an opening. What the fault
 * has left in the system's cache only must not be what later commits rest on. */
static void go_on_and_die(struct life *life, const struct mood *mood)
{
    enum { STEPS_MOST = 4, CHANGES_MOST = 20 };
    bool kill = rng_percent(&life->rng, 20);
    if (rng_percent(&life->rng, 30))
        os_sim_crash_after(life->sim, OS_SIM_CHANGES, rng_below(&life->rng, CHANGES_MOST));
    for (uint64_t i = rng_below(&life->rng, STEPS_MOST); i > 0 && !life_is_over(life); i--)
        must_go_well(life, mood);
    if (!life_is_over(life) && rng_percent(&life->rng, 70)) {
        enum fkv_error error = fkv_sync(life->db);
        if (!life_is_over(life) && error)
            trouble("after a fault and the end, a sync: %s", fkv_error_text(error));
        if (!life_is_over(life))
            model_synced(life->model, life->model->commit);
    }
    if (kill)
        os_sim_kill(life->sim, rng_next(&life->rng));
    else
        os_sim_crash(life->sim, rng_next(&life->rng));
    life_bury(life);
    recover(life, (unsigned)rng_below(&life->rng, 3), &kill);
    life_must_have_recovered(life, kill, "after a fault, the end and a crash");
}

static void must_reopen(struct trial *trial, const struct mood *mood)
{
    enum { KILL, LET_GO, CRASH, ENDS };
    struct life *life = &trial->life;
    unsigned end = (unsigned)rng_below(&life->rng, ENDS);
    if (end == CRASH)
        os_sim_crash(life->sim, rng_next(&life->rng));
    else
        os_sim_kill(life->sim, rng_next(&life->rng));
    if (end == LET_GO)
        os_sim_evict(life->sim);
    enum fkv_error error = life_open(life);
    if (error)
        trouble("opening %s: %s; %s",
                end == CRASH  ? "after a crash"
                : end == KILL ? "after a kill"
                              : "what was let go",
                fkv_error_text(error), error_last());
    if (end == LET_GO)
        life_must_have_been_let_go(life, "after a fault, the end, and what was let go");
    else
        life_must_have_recovered(life, end == KILL, "after a fault and the end");
    if (rng_percent(&life->rng, os_sim_failed_kinds(life->sim) & OS_SIM_SYNC ? 80 : 15))
        go_on_and_die(life, mood);
}

static void must_have_let_go(struct os_sim *sim, uint64_t blocks)
{
    if (os_sim_open_files(sim) || os_sim_open_mappings(sim) || memory_test_blocks() != blocks)
        trouble("left behind: %zu handles, %zu mappings, %" PRIu64 " blocks of memory",
                os_sim_open_files(sim), os_sim_open_mappings(sim), memory_test_blocks() - blocks);
    disk_must_be_sound(sim);
}

/* Returns whether anything failed. */
static bool try_fault(const struct start *start, unsigned kind, uint64_t nth)
{
    struct model model;
    struct trial trial = {.kind = &fault_kinds[kind],
                          .nth = nth,
                          .life = {.sim = os_sim_copy(start->sim),
                                   .model = &model,
                                   .workload = start->workload,
                                   .faulty = true,
                                   .rng = rng_make(start->seed)}};
    struct life *life = &trial.life;
    const uint64_t blocks = memory_test_blocks();
    /* Not what prepare() drew: a number that the store takes for one of a kind must not come again.
     */
    random_fix(rng_mix(start->seed, kind, nth) | 1);
    model_fork(&model, &start->model);
    plan(&trial);
    enum fkv_error error = life_open(life);
    if (error) {
        must_fit(&trial, error, "opening");
        must_have_let_go(life->sim, blocks);
        open_again(&trial, "opening after a failed opening");
    }
    work_on(&trial, &start->mood, trial.kind->source == ROOM ? 10 * start->steps : start->steps);
    if (has_struck(&trial))
        must_stand(&trial, &start->mood);
    end_by_closing(&trial);
    must_have_let_go(life->sim, blocks);
    life->rng = rng_make(rng_mix(start->seed, kind, nth));
    must_reopen(&trial, &start->mood);
    life_abandon(life);
    disk_must_be_sound(life->sim);
    os_sim_free(life->sim);
    model_drop(&model);
    if (memory_test_blocks() != blocks)
        trouble("%" PRIu64 " blocks of memory are lost", memory_test_blocks() - blocks);
    fault_totals.trials++;
    fault_totals.struck[kind] += trial.struck;
    return trial.struck;
}

/* Every call has its turn, until none is left; on a full disk, until all fits. */
static void try_kind(const struct start *start, unsigned kind, unsigned every)
{
    const uint64_t only = environment_u64("FKV_NTH", 0);
    const uint64_t first = only ? only : 1 + start->seed % every;
    bool more = true;
    for (uint64_t n = first; more; n += every) {
        context_set("workload %s, FKV_TEST_SEED=%" PRIu64 " FKV_KIND=%u FKV_NTH=%" PRIu64 " (%s)",
                    start->workload->name, start->seed, kind, n, fault_kinds[kind].name);
        more = try_fault(start, kind, n) && !only;
        if (fault_kinds[kind].source == ROOM) /* nothing fails that is asked for in MiBs */
            n += n / 8 * (n / 8);
    }
}

/* Some hundred steps of the workload, that go well. */
static void prepare(struct start *start)
{
    enum { STEPS_MOST = 300 };
    struct life life = {.sim = start->sim,
                        .model = &start->model,
                        .workload = start->workload,
                        .rng = rng_make(start->seed)};
    context_set("workload %s, FKV_TEST_SEED=%" PRIu64 ", before any fault", start->workload->name,
                start->seed);
    random_fix(start->seed | 1);
    uint32_t steps = (uint32_t)rng_below(&life.rng, STEPS_MOST);
    enum fkv_error error = life_open(&life);
    for (const struct phase *phase = start->workload->phases; phase->steps && steps; phase++)
        for (uint32_t i = 0; i < phase->steps && steps && !error; i++, steps--) {
            start->mood = phase->mood;
            error = life_step(&life, &phase->mood);
        }
    if (!error && rng_percent(&life.rng, 50))
        error = life_close(&life);
    if (error)
        trouble("before any fault: %s; %s", fkv_error_text(error), fkv_error_detail(life.db));
    life_abandon(&life);
    os_sim_kill(start->sim, 0);
}

void faults_of(const struct workload *workload, uint64_t seed, unsigned every)
{
    enum { ONE_IS_NEW = 4 };
    struct start start = {.sim = workload_disk(workload, seed, 0),
                          .workload = workload,
                          .mood = workload->phases[0].mood,
                          .steps = 8,
                          .seed = seed};
    const uint64_t only = environment_u64("FKV_KIND", UINT64_MAX);
    const uint64_t faults = faults_injected();
    clock_t began = clock();
    commit_refer_bytes = workload->refer_bytes ? workload->refer_bytes : commit_refer_bytes;
    model_make(&start.model, workload->keys);
    if (seed % ONE_IS_NEW)
        prepare(&start);
    start.mood.kill = 0; /* that would end the fault */
    start.mood.checkpoint += 10;
    start.mood.sync += 10;
    for (unsigned kind = 0; kind < FAULT_KINDS; kind++)
        if (only == UINT64_MAX || only == kind)
            try_kind(&start, kind, every);
    os_sim_free(start.sim);
    model_drop(&start.model);
    commit_refer_bytes = 4 * MIB;
    double seconds = (double)(clock() - began) / CLOCKS_PER_SEC;
    printf("%-10s seed %" PRIu64 ": %" PRIu64 " faults, %.1f s of CPU, %.2f ms each\n",
           workload->name, seed, faults_injected() - faults, seconds,
           seconds * 1e3 / (double)max_u64(faults_injected() - faults, 1));
    fflush(stdout);
}
