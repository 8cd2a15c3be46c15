/*
 * test_crash_threads: several threads write while the power fails, the process dies, calls fail or
 * the disk is full. tests/crash_*.c say what must become of a store that one thread works on; here
 * it is what the threads do to each other on the way there: commits that share a sync, that wait
 * for room, that go on beside a checkpoint, a compaction, and the failure of another one.
 *
 * A ROUND is one store, on a simulated disk, with options that are drawn: a short log or a longer
 * one, a limited index, a small disk, reads by call, with the library's thread or without. It has
 * some lives. A life opens the store, looks at what is in it, works in three threads, perhaps with
 * a fault planned, and ends: closed, without power, or dead; amid a call, after the work or while
 * it is closed.
 *
 * WHAT MUST HOLD. A thread writes keys of its own, and keeps what each of its commits changed. So
 * after an opening, what the store has of its keys must be what some number of its commits left:
 *
 *   - no half of a commit, nothing that was never written, nothing that has changed;
 *   - after a loss of power, no fewer than those that were synced, by itself or by a close;
 *   - after a death of the process, no fewer than those that have returned;
 *   - and of two threads: a commit that had returned when another one began is there if that is.
 *
 * And while it works a thread reads what it wrote last, what others write is whole, errors are such
 * as the faults explain, and fkv_check finds nothing.
 *
 * A seed decides what is planned and what each thread tries; which of them comes first is the
 * system's. So a failure may take some runs of its seed to come back:
 *
 *     FKV_TEST_SEED=n ./test_crash_threads
 *
 * Not for the thread sanitizer: a crash of the simulated disk reads what threads store into
 * mappings meanwhile, as the medium does.
 */
#include "crash_support.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fkv.h"

enum {
    WRITERS = 3,
    LIVES_MOST = 5,
    KEYS_FEW = 300, /* a thread, of all lengths */
    KEYS_MANY = 3000,
    TXN_KEYS = 12, /* where they are few */
    TXN_KEYS_MANY = 200,
    SHORT_MOST = 300,
    VALUE_MOST = 1500000,
    ROUNDS = SANITIZED ? 8 : 30
};

/* What all of it has come to. */
struct counts {
    uint64_t lives, closes, powers, deaths; /* how they ended */
    uint64_t amid;                          /* of the ends, those in a call */
    uint64_t commits, txns, large, syncs;
    uint64_t undone;          /* commits that a loss of power took back */
    uint64_t failed, full;    /* lives with a store that failed, puts that found the disk full */
    uint64_t checkpoints;     /* beside writers */
    uint64_t evictions;       /* pages of the index that left memory beside them */
    uint64_t parked, by_call; /* most pages parked at a time; lives with reads by call */
};

static struct counts counts;

/* ---------------------------------------------------------------- values */

/* A value begins so, and goes on with bytes that its key and stamp decide. */
struct label {
    uint32_t key, stamp;
};
enum { POOL_BYTES = 1 << 21 };
static uint8_t pool[POOL_BYTES];

static const uint8_t *pool_of(struct label label)
{
    return pool + rng_mix(label.key, label.stamp, 2) % (POOL_BYTES - VALUE_MOST);
}

/* Values are short; where keys are few, some are not, up to those that are stored in pieces. */
static uint32_t length_of(struct label label, bool any)
{
    struct rng rng = rng_make(rng_mix(label.key, label.stamp, 1));
    uint64_t percent = any ? rng_below(&rng, 100) : 0;
    uint32_t most = percent < 70   ? SHORT_MOST
                    : percent < 90 ? 20000
                    : percent < 98 ? RECORD_BYTES_MAX + 10000
                                   : VALUE_MOST;
    return (uint32_t)(sizeof label + rng_below(&rng, any ? most : 40));
}

static void value_make(uint8_t *to, struct label label, uint32_t bytes)
{
    memcpy(to, &label, sizeof label);
    memcpy(to + sizeof label, pool_of(label), bytes - sizeof label);
}

/* Its stamp, if it is a value that this key was given. */
static uint32_t stamp_of(const uint8_t *value, size_t bytes, uint32_t key, bool any)
{
    struct label label;
    if (bytes < sizeof label)
        trouble("key %u has a value of %zu bytes", key, bytes);
    memcpy(&label, value, sizeof label);
    if (label.key != key || !label.stamp || bytes != length_of(label, any) ||
        memcmp(value + sizeof label, pool_of(label), bytes - sizeof label) != 0)
        trouble("what is read of key %u, %zu bytes, is not what was written", key, bytes);
    return label.stamp;
}

/* ---------------------------------------------------------------- what a thread has written */

struct change {
    uint32_t index;  /* of the key, among the thread's own */
    uint32_t before; /* its stamp; 0: absent */
};

struct commit {
    uint64_t began, returned; /* when, on the round's clock */
    size_t first;             /* of its changes */
};

struct round;

struct writer {
    struct round *round;
    uint32_t number;
    struct rng rng;
    pthread_t thread;
    uint8_t *buffer;
    uint32_t *now;   /* the stamp of each key after all commits */
    uint32_t *found; /* and in the store, at an opening */
    uint32_t last_stamp;
    struct change *changes;
    size_t change_count, change_room;
    struct commit *commits;
    size_t commit_count, commit_room;
    size_t returned, synced; /* so many of them outlive the process, and everything */
    size_t fewest, most;     /* so many can be what was found */
    struct counts counts;    /* of its own, while it works */
};

enum end { CLOSED, POWER, DEATH };

struct round {
    struct rng rng;
    struct os_sim *sim;
    struct fkv *db;
    fkv_options options;
    bool many; /* keys, with short values */
    uint32_t keys;
    uint32_t steps;        /* of each thread, in this life */
    unsigned sync_percent; /* of its commits */
    bool small_disk;
    struct os_sim_fault fault;
    uint64_t failed_before; /* calls, when this life began */
    enum end end;
    bool all_stays; /* that has returned, over this end */
    _Atomic uint64_t clock;
    struct writer writers[WRITERS];
};

static void *grown(void *array, size_t count, size_t *room, size_t item_bytes)
{
    if (count < *room)
        return array;
    *room = *room * 2 + 1000;
    array = realloc(array, *room * item_bytes);
    if (!array)
        trouble("no memory for the test itself");
    return array;
}

static void history_set(struct writer *writer, uint32_t index, uint32_t stamp)
{
    writer->changes =
        grown(writer->changes, writer->change_count, &writer->change_room, sizeof *writer->changes);
    writer->changes[writer->change_count++] = (struct change){index, writer->now[index]};
    writer->now[index] = stamp;
}

static void history_begin(struct writer *writer)
{
    writer->commits =
        grown(writer->commits, writer->commit_count, &writer->commit_room, sizeof *writer->commits);
    writer->commits[writer->commit_count++] =
        (struct commit){writer->round->clock++, UINT64_MAX, writer->change_count};
    writer->last_stamp++;
}

static void history_returned(struct writer *writer)
{
    writer->commits[writer->commit_count - 1].returned = writer->round->clock++;
    writer->returned = writer->commit_count;
}

/* From what keys are after commit n, counted from 1, to what they were before it. Returns how many
 * more of them are then not as they were found. */
static int64_t history_undo(const struct writer *writer, size_t n, uint32_t *state)
{
    int64_t wrong = 0;
    const struct commit *commit = &writer->commits[n - 1];
    size_t end = n == writer->commit_count ? writer->change_count : commit[1].first;
    while (end > commit->first) {
        struct change change = writer->changes[--end];
        uint32_t found = writer->found[change.index];
        wrong += (change.before != found) - (state[change.index] != found);
        state[change.index] = change.before;
    }
    return wrong;
}

/* Commits after the n-th have never been; `now` is for the caller to set. */
static void history_cut(struct writer *writer, size_t n)
{
    if (n < writer->commit_count)
        writer->change_count = writer->commits[n].first;
    writer->commit_count = n;
}

/* ---------------------------------------------------------------- what an opening finds */

static uint32_t key_number(const struct writer *writer, uint32_t index)
{
    return writer->number * KEYS_MANY + index;
}

static uint32_t find_stamp(struct writer *writer, uint32_t index)
{
    uint32_t key = key_number(writer, index);
    size_t bytes = 0;
    enum fkv_error error =
        fkv_get(writer->round->db, &key, sizeof key, writer->buffer, VALUE_MOST * 2, &bytes);
    if (error == FKV_NOT_FOUND)
        return 0;
    if (error)
        trouble("key %u: %s; %s", key, fkv_error_text(error), fkv_error_detail(writer->round->db));
    return stamp_of(writer->buffer, bytes, key, !writer->round->many);
}

/* How many of the commits leave what was found? Commits that cancel each other out leave it twice:
 * so it is a range. */
static void must_be_some_commit(struct writer *writer, size_t least)
{
    int64_t wrong = 0;
    for (uint32_t i = 0; i < writer->round->keys; i++) {
        writer->found[i] = find_stamp(writer, i);
        wrong += writer->found[i] != writer->now[i];
    }
    writer->most = writer->fewest = SIZE_MAX;
    for (size_t n = writer->commit_count;; n--) {
        if (!wrong)
            writer->fewest = n;
        if (!wrong && writer->most == SIZE_MAX)
            writer->most = n;
        if (n == least)
            break;
        wrong += history_undo(writer, n, writer->now);
    }
    if (writer->most == SIZE_MAX)
        trouble("thread %u has made %zu commits, and no number of them, from %zu on, left this: "
                "%" PRId64 " keys differ from the least",
                writer->number, writer->commit_count, least, wrong);
}

/* What had returned when a commit began is there if that commit is. */
static void must_be_in_order(const struct writer *before, const struct writer *after)
{
    if (before->most == before->commit_count || !after->fewest)
        return;
    const struct commit *lost = &before->commits[before->most];
    if (lost->returned < after->commits[after->fewest - 1].began)
        trouble("commit %zu of thread %u is lost; it had returned when commit %zu of thread %u "
                "began, which is there",
                before->most + 1, before->number, after->fewest, after->number);
}

/* It is the truth from now on: what was under way has been or has not. */
static void accept_found(struct writer *writer)
{
    if (writer->most < writer->returned)
        counts.undone += writer->returned - writer->most;
    history_cut(writer, writer->most);
    memcpy(writer->now, writer->found, writer->round->keys * sizeof *writer->now);
    if (writer->commit_count && writer->returned < writer->commit_count)
        history_returned(writer);
    writer->returned = writer->commit_count;
}

static void must_be_whole(struct fkv *db)
{
    fkv_check_result result;
    enum fkv_error error = fkv_check(db, NULL, &result, sizeof result);
    if (error || result.problems)
        trouble("a check finds %" PRIu64 " problems: %s; %s", (uint64_t)result.problems,
                fkv_error_text(error), fkv_error_detail(db));
}

/* `all_stays` says how many of each thread's commits have to be there. */
static void must_have_recovered(struct round *round)
{
    for (int i = 0; i < WRITERS; i++) {
        struct writer *writer = &round->writers[i];
        must_be_some_commit(writer, round->all_stays ? writer->returned : writer->synced);
    }
    for (int i = 0; i < WRITERS; i++)
        for (int j = 0; j < WRITERS; j++)
            must_be_in_order(&round->writers[i], &round->writers[j]);
    for (int i = 0; i < WRITERS; i++)
        accept_found(&round->writers[i]);
    must_be_whole(round->db);
}

/* ---------------------------------------------------------------- a thread at work */

static bool has_struck(const struct round *round)
{
    return os_sim_failed(round->sim) > round->failed_before;
}

/* Is there a reason for a call to fail so? Then the thread's work is over, unless nothing has
 * changed: a full disk. */
static void must_be_due(const struct round *round, enum fkv_error error, bool txn)
{
    bool due = false;
    if (error == FKV_FULL) /* the log is too short for some transactions */
        due = round->small_disk || round->fault.error == -ENOSPC || txn;
    else if (error == FKV_IO || error == FKV_FAILED)
        due = has_struck(round) || os_sim_crashed(round->sim);
    if (!due)
        trouble("a commit: %s, without a reason; %s", fkv_error_text(error),
                fkv_error_detail(round->db));
}

/* A commit has ended; false: so has the work. */
static bool end_commit(struct writer *writer, enum fkv_error error, bool sync, bool txn)
{
    struct round *round = writer->round;
    if (error)
        must_be_due(round, error, txn);
    if (error == FKV_FULL) {
        writer->counts.full += round->small_disk && !round->fault.nth;
        history_undo(writer, writer->commit_count, writer->now);
        history_cut(writer, writer->commit_count - 1);
        return true;
    }
    if (error || os_sim_crashed(round->sim)) /* stores into a dead process's mapping go on */
        return false;
    history_returned(writer);
    writer->counts.commits++;
    writer->counts.txns += txn;
    writer->counts.syncs += sync;
    if (sync)
        writer->synced = writer->returned;
    return true;
}

static uint32_t draw_index(struct writer *writer)
{
    return (uint32_t)rng_below(&writer->rng, writer->round->keys);
}

/* What a commit does to a key: a value for the buffer, or, at times, its end (0 bytes). */
static uint32_t draw_change(struct writer *writer, uint32_t index)
{
    if (writer->now[index] && rng_percent(&writer->rng, 25)) {
        history_set(writer, index, 0);
        return 0;
    }
    struct label label = {key_number(writer, index), writer->last_stamp};
    uint32_t bytes = length_of(label, !writer->round->many);
    value_make(writer->buffer, label, bytes);
    writer->counts.large += bytes > RECORD_BYTES_MAX;
    history_set(writer, index, label.stamp);
    return bytes;
}

static bool step_single(struct writer *writer)
{
    struct fkv *db = writer->round->db;
    uint32_t index = draw_index(writer), key = key_number(writer, index);
    bool sync = rng_percent(&writer->rng, writer->round->sync_percent);
    unsigned flags = sync ? FKV_SYNC : 0;
    history_begin(writer);
    uint32_t bytes = draw_change(writer, index);
    enum fkv_error error = bytes ? fkv_put_with(db, &key, sizeof key, writer->buffer, bytes, flags)
                                 : fkv_delete_with(db, &key, sizeof key, flags);
    return end_commit(writer, error, sync, false);
}

static bool step_txn(struct writer *writer)
{
    fkv_txn *txn = NULL;
    bool sync = rng_percent(&writer->rng, writer->round->sync_percent);
    enum fkv_error error = fkv_txn_begin(writer->round->db, &txn);
    uint64_t count = rng_between(&writer->rng, 2, writer->round->many ? TXN_KEYS_MANY : TXN_KEYS);
    history_begin(writer);
    for (; !error && count; count--) {
        uint32_t index = draw_index(writer), key = key_number(writer, index);
        uint32_t bytes = draw_change(writer, index);
        error = bytes ? fkv_txn_put(txn, &key, sizeof key, writer->buffer, bytes)
                      : fkv_txn_delete(txn, &key, sizeof key);
    }
    if (!error)
        error = fkv_txn_commit(txn, sync ? FKV_SYNC : 0);
    fkv_txn_free(txn);
    return end_commit(writer, error, sync, true);
}

/* All that has returned is made durable, of all threads; each knows of its own. */
static bool step_sync(struct writer *writer)
{
    struct round *round = writer->round;
    enum fkv_error error =
        rng_percent(&writer->rng, 50) ? fkv_sync(round->db) : fkv_checkpoint(round->db);
    if (error == FKV_FULL && (round->small_disk || round->fault.error == -ENOSPC))
        return true;
    if (error)
        must_be_due(round, error, false);
    if (error || os_sim_crashed(round->sim))
        return false;
    writer->synced = writer->returned;
    writer->counts.syncs++;
    return true;
}

/* Of its own keys it must find what it wrote last; others' may change meanwhile. */
static void step_read(struct writer *writer)
{
    struct round *round = writer->round;
    const struct writer *owner = &round->writers[rng_below(&writer->rng, WRITERS)];
    uint32_t index = draw_index(writer), key = key_number(owner, index), stamp = 0;
    size_t bytes = 0;
    enum fkv_error error =
        fkv_get(round->db, &key, sizeof key, writer->buffer, VALUE_MOST * 2, &bytes);
    if (!error)
        stamp = stamp_of(writer->buffer, bytes, key, !round->many);
    else if (error == FKV_IO && (has_struck(round) || os_sim_crashed(round->sim)))
        return;
    else if (error != FKV_NOT_FOUND)
        trouble("key %u: %s; %s", key, fkv_error_text(error), fkv_error_detail(round->db));
    if (owner == writer && stamp != writer->now[index])
        trouble("key %u is read with stamp %u, and was written with %u", key, stamp,
                writer->now[index]);
}

static void *work(void *context)
{
    struct writer *writer = context;
    struct round *round = writer->round;
    bool goes_on = true;
    for (uint32_t i = 0; goes_on && i < round->steps; i++) {
        uint64_t percent = rng_below(&writer->rng, 100);
        goes_on = percent < 78   ? step_single(writer)
                  : percent < 99 ? step_txn(writer)
                                 : step_sync(writer);
        if (goes_on)
            step_read(writer);
        uint32_t parked = round->db->pages.parked_pages;
        writer->counts.parked = max_u64(writer->counts.parked, parked);
    }
    return NULL;
}

/* ---------------------------------------------------------------- a life */

/* A disk that was too full to open the store gets larger. */
static void open_store(struct round *round)
{
    struct os *os = os_sim_os(round->sim);
    enum fkv_error error = store_open(os, STORE_PATH, &round->options, &round->db);
    if (error == FKV_FULL && round->small_disk) {
        round->small_disk = false;
        os_sim_set_capacity(round->sim, 0);
        error = store_open(os, STORE_PATH, &round->options, &round->db);
    }
    if (error)
        trouble("opening: %s; %s", fkv_error_text(error), error_last());
}

static void plan_fault(struct round *round)
{
    static const struct {
        unsigned kinds;
        int error;
        uint64_t most; /* calls before it */
    } faults[] = {
        {OS_SIM_WRITE, -EIO, 200},      {OS_SIM_WRITE, -ENOSPC, 200}, {OS_SIM_SYNC, -EIO, 20},
        {OS_SIM_ALLOCATE, -ENOSPC, 20}, {OS_SIM_ALLOCATE, -EIO, 20},  {OS_SIM_READ, -EIO, 100},
    };
    static const char *const names[] = {NULL, STORE_PATH, LOG_PATH};
    uint64_t which = rng_below(&round->rng, sizeof faults / sizeof faults[0]);
    round->fault = (struct os_sim_fault){.kinds = faults[which].kinds,
                                         .nth = rng_between(&round->rng, 1, faults[which].most),
                                         .error = faults[which].error,
                                         .forever = rng_percent(&round->rng, 20),
                                         .name_end = names[rng_below(&round->rng, 3)]};
}

/* In a sync there is most to be lost; in any other change it is in the middle of something. */
static void plan_crash(struct round *round)
{
    if (rng_percent(&round->rng, 50))
        os_sim_crash_after(round->sim, OS_SIM_SYNC, rng_between(&round->rng, 0, 40));
    else
        os_sim_crash_after(round->sim, OS_SIM_CHANGES, rng_between(&round->rng, 0, 400));
}

static void plan_life(struct round *round)
{
    round->fault = (struct os_sim_fault){0};
    round->failed_before = os_sim_failed(round->sim);
    round->steps = (uint32_t)rng_between(&round->rng, 20, round->many ? 600 : 400);
    round->sync_percent = (unsigned)rng_below(&round->rng, 16);
    round->end = (enum end)rng_below(&round->rng, 3);
    if (rng_percent(&round->rng, 40))
        plan_fault(round);
    os_sim_fail(round->sim, &round->fault);
    if (round->end != CLOSED && rng_percent(&round->rng, 75))
        plan_crash(round);
    if (rng_percent(&round->rng, 20))
        (void)fkv_compact_start(round->db, 10);
}

static fkv_stats stats_of(struct round *round)
{
    fkv_stats stats;
    if (fkv_get_stats(round->db, &stats, sizeof stats))
        trouble("no statistics");
    return stats;
}

static void work_in_threads(struct round *round)
{
    fkv_stats before = stats_of(round);
    for (int i = 0; i < WRITERS; i++) {
        struct writer *writer = &round->writers[i];
        writer->rng = rng_make(rng_next(&round->rng));
        if (pthread_create(&writer->thread, NULL, work, writer))
            trouble("no thread");
    }
    for (int i = 0; i < WRITERS; i++)
        pthread_join(round->writers[i].thread, NULL);
    fkv_stats after = stats_of(round);
    counts.checkpoints += after.checkpoints - before.checkpoints;
    counts.evictions += after.index_evictions - before.index_evictions;
    counts.by_call += round->db->sectors.by_call;
    counts.failed += !os_sim_crashed(round->sim) && store_has_failed(round->db);
}

/* Returns whether all that was committed is durable. */
static bool close_store(struct round *round)
{
    bool crashed = os_sim_crashed(round->sim);
    enum fkv_error error = store_close(round->db);
    if (error && !crashed && !has_struck(round) && !os_sim_crashed(round->sim) &&
        !(error == FKV_FULL && round->small_disk))
        trouble("closing: %s, without a reason", fkv_error_text(error));
    return !error && !crashed;
}

/* A sync that failed may have lost what the system took for clean, once it lets go of it. */
static void end_life(struct round *round)
{
    bool closes = round->end == CLOSED || rng_percent(&round->rng, 30);
    bool durable = closes && close_store(round);
    counts.amid += os_sim_crashed(round->sim);
    if (round->end == POWER)
        os_sim_crash(round->sim, rng_next(&round->rng));
    else if (round->end == DEATH)
        os_sim_kill(round->sim, rng_next(&round->rng));
    if (!closes)
        store_close(round->db);
    os_sim_fail(round->sim, NULL);
    bool evicts = rng_percent(&round->rng, 50);
    if (evicts)
        os_sim_evict(round->sim);
    round->all_stays = round->end != POWER && !(evicts && has_struck(round));
    for (int i = 0; durable && i < WRITERS; i++)
        round->writers[i].synced = round->writers[i].returned;
}

static void count_life(struct round *round)
{
    counts.lives++;
    counts.closes += round->end == CLOSED;
    counts.powers += round->end == POWER;
    counts.deaths += round->end == DEATH;
    for (int i = 0; i < WRITERS; i++) {
        struct counts *own = &round->writers[i].counts;
        counts.commits += own->commits;
        counts.txns += own->txns;
        counts.large += own->large;
        counts.syncs += own->syncs;
        counts.full += own->full;
        counts.parked = max_u64(counts.parked, own->parked);
        *own = (struct counts){0};
    }
}

static void live(struct round *round)
{
    open_store(round);
    must_have_recovered(round);
    plan_life(round);
    work_in_threads(round);
    end_life(round);
    count_life(round);
}

/* ---------------------------------------------------------------- a round */

static void draw_options(struct round *round)
{
    struct rng *rng = &round->rng;
    fkv_options_init(&round->options);
    round->options.log_bytes_max = MIB << rng_below(rng, 4);
    round->options.flags = rng_percent(rng, 75) ? 0 : FKV_NO_THREAD;
    if (rng_percent(rng, 20))
        round->options.flags |= FKV_READ_WITHOUT_MAPPING;
    round->many = rng_percent(rng, 35);
    round->keys = round->many ? KEYS_MANY : KEYS_FEW;
    if (rng_percent(rng, round->many ? 80 : 20))
        round->options.index_memory_max = INDEX_MEMORY_MIN + rng_below(rng, 8) * 16384;
}

static struct os_sim *draw_disk(struct round *round, uint64_t seed)
{
    struct rng *rng = &round->rng;
    struct os_sim_options options = {.seed = seed, .file_bytes_max = 2 * GIB};
    round->small_disk = rng_percent(rng, 30);
    if (round->small_disk)
        options.capacity_bytes = rng_between(rng, 10, round->many ? 14 : 24) * MIB;
    if (rng_percent(rng, 20)) /* less than its file: records are read by calls */
        options.memory_bytes = rng_between(rng, 1, 40) * MIB;
    options.emulates = rng_percent(rng, 30);
    return os_sim_new(&options);
}

static void writer_make(struct writer *writer, struct round *round, uint32_t number)
{
    *writer = (struct writer){.round = round, .number = number};
    writer->buffer = malloc(VALUE_MOST * 2);
    writer->now = calloc(round->keys, sizeof *writer->now);
    writer->found = calloc(round->keys, sizeof *writer->found);
    assert_true(writer->buffer && writer->now && writer->found);
}

static void writer_drop(struct writer *writer)
{
    free(writer->buffer);
    free(writer->now);
    free(writer->found);
    free(writer->changes);
    free(writer->commits);
}

static void run_round(uint64_t seed)
{
    struct round *round = calloc(1, sizeof *round);
    assert_non_null(round);
    round->rng = rng_make(seed);
    random_fix(seed + 1);
    draw_options(round);
    round->sim = draw_disk(round, seed);
    for (uint32_t i = 0; i < WRITERS; i++)
        writer_make(&round->writers[i], round, i);
    uint32_t lives = (uint32_t)rng_between(&round->rng, 2, LIVES_MOST);
    for (uint32_t life = 0; life < lives; life++) {
        context_set(
            "life %u of a round. To replay, perhaps in more than one run: FKV_TEST_SEED=%" PRIu64
            " test_crash_threads",
            life, seed);
        live(round);
    }
    open_store(round);
    must_have_recovered(round);
    if (store_close(round->db))
        trouble("the last closing: %s", error_last());
    for (int i = 0; i < WRITERS; i++)
        writer_drop(&round->writers[i]);
    os_sim_free(round->sim);
    free(round);
}

/* Cmocka's own handlers end the program without a word where it is not the main thread's fault. */
static void on_fault(int signal_number)
{
    (void)signal_number;
    abort();
}

static void test_lives(void **state)
{
    (void)state;
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    struct rng rng = rng_make(1);
    rng_fill(&rng, pool, sizeof pool);
    for (struct rounds rounds = rounds_begin(ROUNDS); rounds_next(&rounds);)
        run_round(rounds.seed);
}

/* What is no longer reached would pass unseen. */
static void test_reached_all(void **state)
{
    (void)state;
    printf("reached: lives %" PRIu64 " closes %" PRIu64 " powers %" PRIu64 " deaths %" PRIu64
           " amid %" PRIu64 " commits %" PRIu64 " txns %" PRIu64 " large %" PRIu64 " syncs %" PRIu64
           " undone %" PRIu64 " failed %" PRIu64 " full %" PRIu64 " checkpoints %" PRIu64
           " evictions %" PRIu64 " parked %" PRIu64 " by call %" PRIu64 "\n",
           counts.lives, counts.closes, counts.powers, counts.deaths, counts.amid, counts.commits,
           counts.txns, counts.large, counts.syncs, counts.undone, counts.failed, counts.full,
           counts.checkpoints, counts.evictions, counts.parked, counts.by_call);
    if (SANITIZED || support_is_long())
        return;
    /* How often a fault strikes, or a disk is full, hangs on which thread comes first. */
    assert_true(counts.closes && counts.powers && counts.deaths && counts.amid && counts.txns &&
                counts.large && counts.syncs && counts.undone + counts.failed + counts.full > 0 &&
                counts.checkpoints && counts.evictions && counts.by_call);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lives),
        cmocka_unit_test(test_reached_all),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
