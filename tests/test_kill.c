/*
 * test_kill.c: kill -9 at random moments, again and again, on one store.
 *
 * A child makes commits that are numbered and follow from their number alone; what it has begun and
 * what was acknowledged it notes in shared memory. The parent kills it, opens the store, and
 * finds exactly the acknowledged commits, and at most the one that was under way, whole. The child
 * of the next round goes on from there. The log is small, so that checkpoints, its rounds, and
 * recycling run all the time; phases of growing and shrinking make collection and the giving back
 * of space run too. Recovery is killed as well: the child recovers what the one before it left.
 *
 * FKV_TEST_LONG=1 FKV_TEST_SECONDS=n: runs so long; FKV_TEST_SEED: the same rounds again (the
 * moments of death will differ).
 */
#include "api_support.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>

enum { KEYS = 1500, WRITES_MAX = 40, TESTS = 3 };

/* What the child tells, and the parent reads once it is dead. */
struct shared {
    _Atomic uint64_t begun, acknowledged; /* commit numbers */
    _Atomic uint64_t opened;              /* how often recovery came to its end */
};

/* What a key should have: the number of the commit that wrote it, 0 if it is absent. */
struct model {
    uint64_t commit; /* up to which it is made */
    uint64_t version[KEYS];
    uint64_t count;
};

/* ---------------------------------------------------------------- what a commit does */

enum kind { PUT, DELETE, TRANSACTION, ABORT, CHECKPOINT, SYNC };

struct commit {
    enum kind kind;
    bool synced;
    uint32_t count;
    struct {
        uint32_t key;
        bool remove;
    } writes[WRITES_MAX];
};

/* Phases: growing, then a mix, then shrinking. */
static unsigned delete_percent(uint64_t number)
{
    static const unsigned percent[] = {5, 30, 80, 30};
    return percent[number / 3000 % 4];
}

static struct commit commit_of(uint64_t seed, uint64_t number)
{
    uint64_t random = checksum_mix(seed) ^ checksum_mix(number);
    struct commit commit = {.kind = PUT, .count = 1};
    uint64_t choice = random_below(&random, 1000);
    unsigned deletes = delete_percent(number);
    commit.synced = random_below(&random, 500) == 0;
    if (choice < 2)
        commit.kind = CHECKPOINT;
    else if (choice < 4)
        commit.kind = SYNC;
    else if (choice < 80)
        commit.kind = TRANSACTION;
    else if (choice < 90)
        commit.kind = ABORT;
    else if (random_below(&random, 100) < deletes)
        commit.kind = DELETE;
    if (commit.kind == TRANSACTION || commit.kind == ABORT)
        commit.count = 1 + (uint32_t)random_below(&random, WRITES_MAX);
    for (uint32_t i = 0; i < commit.count; i++) {
        commit.writes[i].key = (uint32_t)random_below(&random, KEYS);
        commit.writes[i].remove =
            commit.kind == DELETE || (commit.kind != PUT && random_below(&random, 100) < deletes);
    }
    return commit;
}

/* Lengths of all kinds: mostly short, now and then stored in pieces or in sectors of their own. */
static size_t value_bytes(uint64_t number, uint32_t key)
{
    uint64_t random = checksum_mix(number * KEYS + key);
    uint64_t choice = random_below(&random, 1000);
    if (choice < 3)
        return 1000000 + random_below(&random, 1500000);
    if (choice < 12)
        return 100000 + random_below(&random, 200000);
    if (choice < 80)
        return random_below(&random, 60000);
    return random_below(&random, 2000);
}

static uint64_t value_seed(uint64_t number, uint32_t key)
{
    return number * KEYS + key;
}

static void model_apply(struct model *model, uint64_t seed)
{
    uint64_t number = ++model->commit;
    struct commit commit = commit_of(seed, number);
    if (commit.kind == ABORT || commit.kind == CHECKPOINT || commit.kind == SYNC)
        return;
    for (uint32_t i = 0; i < commit.count; i++) {
        uint64_t *version = &model->version[commit.writes[i].key];
        model->count -= *version != 0;
        *version = commit.writes[i].remove ? 0 : number;
        model->count += *version != 0;
    }
}

/* ---------------------------------------------------------------- the child */

static uint8_t scratch[4 << 20];

static void do_transaction(fkv *db, uint64_t number, const struct commit *commit)
{
    fkv_txn *txn;
    insist_ok(fkv_txn_begin(db, &txn));
    for (uint32_t i = 0; i < commit->count; i++) {
        uint32_t key = commit->writes[i].key;
        size_t bytes = value_bytes(number, key);
        value_fill(scratch, bytes, value_seed(number, key));
        if (commit->writes[i].remove)
            insist_ok(fkv_txn_delete(txn, &key, sizeof key));
        else
            insist_ok(fkv_txn_put(txn, &key, sizeof key, scratch, bytes));
    }
    if (commit->kind == ABORT)
        insist_ok(fkv_txn_abort(txn));
    else
        insist_ok(fkv_txn_commit(txn, commit->synced ? FKV_SYNC : 0));
    fkv_txn_free(txn);
}

static void do_commit(fkv *db, uint64_t number, const struct commit *commit)
{
    unsigned flags = commit->synced ? FKV_SYNC : 0;
    uint32_t key = commit->writes[0].key;
    size_t bytes = value_bytes(number, key);
    enum fkv_error error;
    switch (commit->kind) {
    case PUT:
        value_fill(scratch, bytes, value_seed(number, key));
        insist_ok(fkv_put_with(db, &key, sizeof key, scratch, bytes, flags));
        break;
    case DELETE:
        error = fkv_delete_with(db, &key, sizeof key, flags);
        insist(error == FKV_OK || error == FKV_NOT_FOUND);
        break;
    case TRANSACTION:
    case ABORT:
        do_transaction(db, number, commit);
        break;
    case CHECKPOINT:
        insist_ok(fkv_checkpoint(db));
        break;
    case SYNC:
        insist_ok(fkv_sync(db));
        break;
    }
}

struct run {
    struct place *place;
    struct shared *shared;
    uint64_t seed;
    uint64_t commits; /* verified so far */
    fkv_options options;
};

static void child(const struct run *run)
{
    fkv *db = NULL;
    enum fkv_error error = fkv_open(run->place->path, &run->options, &db);
    if (error) {
        fprintf(stderr, "the child cannot open: %s (%s)\n", fkv_error_text(error),
                fkv_error_detail(NULL));
        _exit(98);
    }
    run->shared->opened++;
    for (uint64_t number = run->commits + 1;; number++) {
        struct commit commit = commit_of(run->seed, number);
        run->shared->begun = number;
        do_commit(db, number, &commit);
        run->shared->acknowledged = number;
    }
}

/* ---------------------------------------------------------------- the parent */

/* Does the key have what the commit gave it (0: nothing)? NULL if so, else what is wrong. */
static const char *key_differs(fkv *db, uint32_t key, uint64_t version)
{
    size_t bytes = 0;
    enum fkv_error error = fkv_get(db, &key, sizeof key, scratch, sizeof scratch, &bytes);
    if (version == 0)
        return error == FKV_NOT_FOUND ? NULL : error ? fkv_error_text(error) : "is back";
    if (error)
        return fkv_error_text(error);
    if (bytes != value_bytes(version, key) || !value_is(scratch, bytes, value_seed(version, key)))
        return "has another value";
    return NULL;
}

static const char *differs(fkv *db, const struct model *model, uint32_t *key)
{
    for (*key = 0; *key < KEYS; ++*key) {
        const char *difference = key_differs(db, *key, model->version[*key]);
        if (difference)
            return difference;
    }
    return stats_of(db).keys == model->count ? NULL : "(the count of keys)";
}

/* The store must hold the acknowledged commits, or those and the one under way. */
static void verify(struct run *run, struct model *model, fkv *db)
{
    uint64_t acknowledged = run->shared->acknowledged, begun = run->shared->begun;
    uint32_t key = 0;
    const char *difference = NULL;
    while (model->commit < acknowledged)
        model_apply(model, run->seed);
    difference = differs(db, model, &key);
    if (difference && begun == acknowledged + 1) {
        model_apply(model, run->seed);
        difference = differs(db, model, &key);
    }
    if (difference)
        fail_msg("seed %" PRIu64 ", acknowledged %" PRIu64 ", begun %" PRIu64 ": key %u (version "
                 "%" PRIu64 ") %s; detail: %s",
                 run->seed, acknowledged, begun, key, model->version[key < KEYS ? key : 0],
                 difference, fkv_error_detail(db));
    run->commits = model->commit;
}

static void start_and_kill(struct run *run, useconds_t after)
{
    fflush(stdout);
    fflush(stderr);
    run->shared->begun = run->shared->acknowledged = run->commits;
    pid_t pid = fork();
    if (pid == 0)
        child(run);
    usleep(after);
    kill(pid, SIGKILL);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        fail_msg("seed %" PRIu64 ": the child ended by itself: %x", run->seed, status);
}

static void choose_options(struct run *run, unsigned flags, uint64_t *random)
{
    static const uint32_t percents[] = {10, 30, 100};
    fkv_options_init(&run->options);
    run->options.flags = flags;
    run->options.log_bytes_max = MIB << random_below(random, 3);
    run->options.garbage_percent_max = percents[random_below(random, 3)];
}

/* Sometimes the store is looked at without being changed, so that the next child recovers it, and
 * may be killed while it does. */
static void open_and_verify(struct run *run, struct model *model, uint64_t *random)
{
    unsigned flags = random_below(random, 2) ? FKV_OPEN_READ_ONLY : run->options.flags;
    if (random_below(random, 4) == 0)
        flags ^= FKV_NO_THREAD;
    fkv *db = NULL;
    enum fkv_error error = try_open(run->place->path, flags, &db);
    if (error)
        fail_msg("seed %" PRIu64 ", acknowledged %" PRIu64 ": opening: %s (%s)", run->seed,
                 (uint64_t)run->shared->acknowledged, fkv_error_text(error),
                 fkv_error_detail(NULL));
    verify(run, model, db);
    must(fkv_close(db));
}

static void kill_again_and_again(struct place *place, const char *name, unsigned flags)
{
    struct run run = {.place = place, .seed = test_seed(name)};
    struct model *model = calloc(1, sizeof *model);
    run.shared =
        mmap(NULL, sizeof *run.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t random = run.seed ^ flags, rounds = 0, in_recovery = 0;
    must(fkv_close(open_with(place->path, flags)));
    double end = seconds_now() + seconds_to_run(15) / TESTS;
    /* A machine that is busy elsewhere gets more time, and its children do before they are killed.
     */
    for (uint64_t late = 0; rounds <= 3 || run.commits <= 50 || seconds_now() < end;
         late += seconds_now() >= end) {
        choose_options(&run, flags, &random);
        uint64_t opened = run.shared->opened;
        uint64_t scale = 1 + random_below(&random, 9); /* mostly short, now and then long */
        start_and_kill(&run,
                       (useconds_t)random_below(&random, scale * scale * 1500 + late * 50000));
        in_recovery += run.shared->opened == opened;
        open_and_verify(&run, model, &random);
        rounds++;
    }
    print_message("%s: %" PRIu64 " kills (%" PRIu64 " before the store was open), %" PRIu64
                  " commits, %" PRIu64 " keys at the end\n",
                  name, rounds, in_recovery, run.commits, model->count);
    munmap(run.shared, sizeof *run.shared);
    free(model);
}

static void test_kill_on_disk(void **state)
{
    kill_again_and_again(*state, "kill, on disk", 0);
}

/* Where a sync costs nothing: more rounds, more commits, and none of the disk's rhythm. */
static void test_kill(void **state)
{
    kill_again_and_again(*state, "kill", 0);
}

static void test_kill_without_threads(void **state)
{
    kill_again_and_again(*state, "kill without threads", FKV_NO_THREAD);
}

int main(void)
{
    const struct CMUnitTest tests[TESTS] = {
        in_place(test_kill_on_disk),
        cmocka_unit_test_setup_teardown(test_kill, place_make_in_memory, place_drop),
        cmocka_unit_test_setup_teardown(test_kill_without_threads, place_make_in_memory,
                                        place_drop),
    };
    return run_all(tests);
}
