/*
 * test_threads_linear.c: what threads see of one store has an order. Threads put, get, delete and
 * commit small transactions on few keys and record when each call began and ended and what it gave,
 * while others split segments, keep the collector busy and write checkpoints; the checker of
 * linear.h says whether all of that can have happened one after another.
 *
 * The checker is tested first: against every order of short histories, and with histories known to
 * be good and bad. And the whole is tested with bugs planted into the store.
 *
 *     FKV_TEST_SEED=n   of what the threads do (not of how they are scheduled)
 */
#include "api_support.h"
#include "linear.h"
#include "planted.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

/* ---------------------------------------------------------------- the checker */

#define OPERATION(from, to, ...)                                                          \
    {                                                                                     \
        (from), (to),                                                                     \
            sizeof((struct linear_access[]){__VA_ARGS__}) / sizeof(struct linear_access), \
            {__VA_ARGS__},                                                                \
    }
#define READ(key, value)        \
    {                           \
        key, LINEAR_READ, value \
    }
#define EXISTS(key, value)        \
    {                             \
        key, LINEAR_EXISTS, value \
    }
#define WRITE(key, value)        \
    {                            \
        key, LINEAR_WRITE, value \
    }
#define DELETE(key, value)        \
    {                             \
        key, LINEAR_DELETE, value \
    }

static const struct known {
    const char *name;
    enum linear_verdict verdict;
    size_t count;
    struct linear_operation history[6];
} knowns[] = {
    {"nothing", LINEAR_YES, 0, {{0}}},
    {"a read after a write",
     LINEAR_YES,
     2,
     {OPERATION(1, 2, WRITE(0, 5)), OPERATION(3, 4, READ(0, 5))}},
    {"a stale read", LINEAR_NO, 2, {OPERATION(1, 2, WRITE(0, 5)), OPERATION(3, 4, READ(0, 0))}},
    {"a read of what comes later",
     LINEAR_NO,
     2,
     {OPERATION(1, 2, READ(0, 5)), OPERATION(3, 4, WRITE(0, 5))}},
    {"a read beside a write may see either",
     LINEAR_YES,
     3,
     {OPERATION(1, 9, WRITE(0, 5)), OPERATION(2, 3, READ(0, 0)), OPERATION(4, 5, READ(0, 5))}},
    {"but not go back",
     LINEAR_NO,
     3,
     {OPERATION(1, 9, WRITE(0, 5)), OPERATION(2, 3, READ(0, 5)), OPERATION(4, 5, READ(0, 0))}},
    {"at one time is beside",
     LINEAR_YES,
     2,
     {OPERATION(1, 2, READ(0, 5)), OPERATION(2, 3, WRITE(0, 5))}},
    {"a value from nowhere", LINEAR_NO, 1, {OPERATION(1, 2, READ(0, 7))}},
    {"two readers that disagree",
     LINEAR_NO,
     6,
     {OPERATION(1, 20, WRITE(0, 1)), OPERATION(1, 20, WRITE(0, 2)), OPERATION(2, 3, READ(0, 1)),
      OPERATION(4, 5, READ(0, 2)), OPERATION(6, 7, READ(0, 1))}},
    {"exists after a delete",
     LINEAR_NO,
     3,
     {OPERATION(1, 2, WRITE(0, 5)), OPERATION(3, 4, DELETE(0, 1)), OPERATION(5, 6, EXISTS(0, 1))}},
    {"two deletes of one value",
     LINEAR_NO,
     3,
     {OPERATION(1, 2, WRITE(0, 5)), OPERATION(3, 6, DELETE(0, 1)), OPERATION(4, 5, DELETE(0, 1))}},
    {"a delete that finds what is there only later",
     LINEAR_NO,
     2,
     {OPERATION(1, 2, DELETE(0, 1)), OPERATION(3, 4, WRITE(0, 5))}},
    {"a torn commit",
     LINEAR_NO,
     3,
     {OPERATION(1, 9, WRITE(0, 5), WRITE(1, 5)), OPERATION(2, 3, READ(0, 5)),
      OPERATION(4, 5, READ(1, 0))}},
    {"a commit that is seen as one",
     LINEAR_YES,
     4,
     {OPERATION(1, 9, WRITE(0, 5), WRITE(1, 5)), OPERATION(2, 3, READ(1, 0)),
      OPERATION(4, 5, READ(0, 5)), OPERATION(6, 7, READ(1, 5))}},
    {"a lost update",
     LINEAR_NO,
     3,
     {OPERATION(1, 8, READ(0, 0), WRITE(0, 1)), OPERATION(2, 9, READ(0, 0), WRITE(0, 2)),
      OPERATION(10, 11, READ(0, 2))}},
    {"write skew",
     LINEAR_NO,
     2,
     {OPERATION(1, 9, READ(0, 0), WRITE(1, 1)), OPERATION(1, 9, READ(1, 0), WRITE(0, 1))}},
    {"two keys, two orders",
     LINEAR_NO,
     4,
     {OPERATION(1, 20, WRITE(0, 1), WRITE(1, 1)), OPERATION(1, 20, WRITE(0, 2), WRITE(1, 2)),
      OPERATION(30, 31, READ(0, 1)), OPERATION(32, 33, READ(1, 2))}},
};

static void test_checker_knows(void **state)
{
    (void)state;
    static const uint32_t nothing[LINEAR_KEYS];
    for (size_t i = 0; i < sizeof knowns / sizeof *knowns; i++)
        if (linear_check(knowns[i].history, knowns[i].count, nothing) != knowns[i].verdict)
            fail_msg("%s: the checker is wrong", knowns[i].name);
    struct linear_operation one = OPERATION(1, 2, READ(2, 9));
    uint32_t before[LINEAR_KEYS] = {[2] = 9};
    assert_int_equal(linear_check(&one, 1, before), LINEAR_YES);
}

/* By definition: is there an order? */
static bool any_order(const struct linear_operation *history, size_t count, unsigned done,
                      const uint32_t state[LINEAR_KEYS])
{
    if (done == (1u << count) - 1)
        return true;
    uint64_t limit = UINT64_MAX; /* nothing may come next that was called after this */
    for (size_t i = 0; i < count; i++)
        if (!(done & 1u << i) && history[i].end < limit)
            limit = history[i].end;
    for (size_t i = 0; i < count; i++) {
        uint32_t then[LINEAR_KEYS];
        memcpy(then, state, sizeof then);
        if (!(done & 1u << i) && history[i].call <= limit && linear_apply(&history[i], then) &&
            any_order(history, count, done | 1u << i, then))
            return true;
    }
    return false;
}

static struct linear_operation random_operation(uint64_t *random, uint32_t keys)
{
    struct linear_operation operation = {.call = random_below(random, 12)};
    operation.end = operation.call + random_below(random, 6);
    operation.count = 1 + (random_below(random, 4) == 0);
    for (uint32_t a = 0; a < operation.count; a++)
        operation.accesses[a] = (struct linear_access){
            .key = (uint8_t)random_below(random, keys),
            .kind = (uint8_t)random_below(random, 4),
            .value = (uint32_t)random_below(random, 3),
        };
    return operation;
}

static void test_checker_agrees_with_every_order(void **state)
{
    (void)state;
    enum { HISTORIES = 200000, LENGTH = 7 };
    uint64_t random = test_seed("every order");
    unsigned good = 0;
    for (unsigned i = 0; i < HISTORIES; i++) {
        struct linear_operation history[LENGTH];
        uint32_t before[LINEAR_KEYS] = {(uint32_t)random_below(&random, 2)};
        size_t count = 2 + random_below(&random, LENGTH - 1);
        uint32_t keys = 1 + (uint32_t)random_below(&random, 3);
        for (size_t o = 0; o < count; o++)
            history[o] = random_operation(&random, keys);
        bool is_good = any_order(history, count, 0, before);
        if ((linear_check(history, count, before) == LINEAR_YES) != is_good) {
            linear_print(history, count, before);
            fail_msg("history %u is %s", i, is_good ? "linearizable" : "not linearizable");
        }
        good += is_good;
    }
    print_message("%u of %u histories are linearizable\n", good, HISTORIES);
    assert_in_range(good, HISTORIES / 20, HISTORIES * 19 / 20);
}

/* ---------------------------------------------------------------- the store */

enum {
    THREADS = 5,
    OPERATIONS = 40, /* of each in a round */
    KEYS = 6,
    VALUE_BYTES_MAX = 200000,
    CROWD = 30000, /* keys that are written beside */
};
_Static_assert(THREADS *OPERATIONS + KEYS <= LINEAR_OPERATIONS, "a round fits the checker");

struct arena {
    fkv *db;
    uint64_t seed;
    pthread_barrier_t begin, end;
    _Atomic bool stop;
    _Atomic uint32_t next_value;
    _Atomic uint64_t conflicts, commits;
    struct player {
        struct arena *arena;
        pthread_t thread;
        uint64_t random;
        uint8_t *scratch;
        struct linear_operation history[OPERATIONS];
        size_t count;
    } players[THREADS];
};

/* Between two steps of the store: now and then it is somebody else's turn. */
static void lose_turn(void)
{
    static _Thread_local uint64_t random;
    if (random_below(&random, 8) == 0)
        sched_yield();
}

/* Nearly all values are small; some lie in several pieces. */
static size_t bytes_of(uint32_t key, uint32_t value)
{
    uint64_t random = value;
    uint64_t choice = random_below(&random, 40);
    size_t most = choice == 0 && key == 0 ? VALUE_BYTES_MAX - 8 : choice < 5 ? 5000 : 100;
    return sizeof value + random_below(&random, most);
}

static size_t make_value(uint8_t *to, uint32_t key, uint32_t value)
{
    size_t bytes = bytes_of(key, value);
    memcpy(to, &value, sizeof value);
    value_fill(to + sizeof value, bytes - sizeof value, (uint64_t)key << 32 | value);
    return bytes;
}

/* The number in a value, which must be whole. */
static uint32_t value_number(const uint8_t *from, size_t bytes, uint32_t key)
{
    uint32_t value;
    insist(bytes >= sizeof value);
    memcpy(&value, from, sizeof value);
    insist(bytes == bytes_of(key, value));
    insist(value_is(from + sizeof value, bytes - sizeof value, (uint64_t)key << 32 | value));
    return value;
}

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void note(struct linear_operation *operation, uint32_t key, enum linear_kind kind,
                 uint32_t value)
{
    operation->accesses[operation->count++] =
        (struct linear_access){(uint8_t)key, (uint8_t)kind, value};
}

static bool found(const struct player *player, enum fkv_error error)
{
    if (error != FKV_OK && error != FKV_NOT_FOUND) {
        fprintf(stderr, "%s; %s\n", fkv_error_text(error), fkv_error_detail(player->arena->db));
        _exit(99);
    }
    return error == FKV_OK;
}

static void do_read(struct player *player, struct linear_operation *operation, uint32_t key)
{
    fkv *db = player->arena->db;
    size_t bytes = 0;
    uint32_t value = 0;
    if (random_below(&player->random, 4) == 0) {
        note(operation, key, LINEAR_EXISTS, found(player, fkv_exists(db, &key, sizeof key)));
        return;
    }
    if (found(player, fkv_get(db, &key, sizeof key, player->scratch, VALUE_BYTES_MAX, &bytes)))
        value = value_number(player->scratch, bytes, key);
    note(operation, key, LINEAR_READ, value);
}

static void do_write(struct player *player, struct linear_operation *operation, uint32_t key)
{
    fkv *db = player->arena->db;
    if (random_below(&player->random, 3) == 0) {
        note(operation, key, LINEAR_DELETE, found(player, fkv_delete(db, &key, sizeof key)));
        return;
    }
    uint32_t value = ++player->arena->next_value;
    size_t bytes = make_value(player->scratch, key, value);
    insist_ok(fkv_put(db, &key, sizeof key, player->scratch, bytes));
    note(operation, key, LINEAR_WRITE, value);
}

/* Read some keys, write some; what comes of it, not yet committed. */
static enum fkv_error fill_transaction(struct player *player, struct linear_operation *operation,
                                       fkv_txn *txn)
{
    unsigned reads = (unsigned)random_below(&player->random, 4);
    unsigned writes = reads ? (unsigned)random_below(&player->random, 4) : 3;
    for (unsigned i = 0; i < reads; i++) {
        uint32_t key = (uint32_t)random_below(&player->random, KEYS), value = 0;
        size_t bytes = 0;
        enum fkv_error error =
            fkv_txn_get(txn, &key, sizeof key, player->scratch, VALUE_BYTES_MAX, &bytes);
        if (error == FKV_CONFLICT)
            return error;
        if (found(player, error))
            value = value_number(player->scratch, bytes, key);
        note(operation, key, LINEAR_READ, value);
    }
    for (unsigned i = 0; i < writes; i++) {
        uint32_t key = (uint32_t)random_below(&player->random, KEYS), value = 0;
        if (random_below(&player->random, 4) == 0) {
            insist_ok(fkv_txn_delete(txn, &key, sizeof key));
        } else {
            value = ++player->arena->next_value;
            size_t bytes = make_value(player->scratch, key, value);
            insist_ok(fkv_txn_put(txn, &key, sizeof key, player->scratch, bytes));
        }
        note(operation, key, LINEAR_WRITE, value);
    }
    return FKV_OK;
}

/* One that conflicts must have done nothing: it is not in the history. */
static void do_transaction(struct player *player, struct linear_operation *operation)
{
    fkv_txn *txn;
    insist_ok(fkv_txn_begin(player->arena->db, &txn));
    enum fkv_error error = fill_transaction(player, operation, txn);
    if (!error)
        error = fkv_txn_commit(txn, 0);
    insist(error == FKV_OK || error == FKV_CONFLICT);
    if (error)
        operation->count = 0;
    player->arena->conflicts += error != FKV_OK;
    player->arena->commits += error == FKV_OK;
    fkv_txn_free(txn);
}

static void play(struct player *player)
{
    player->count = 0;
    for (unsigned i = 0; i < OPERATIONS; i++) {
        struct linear_operation *operation = &player->history[player->count];
        uint32_t key = (uint32_t)random_below(&player->random, KEYS);
        uint64_t choice = random_below(&player->random, 100);
        operation->count = 0;
        operation->call = clock_ns();
        if (choice < 50)
            do_read(player, operation, key);
        else if (choice < 80)
            do_write(player, operation, key);
        else
            do_transaction(player, operation);
        operation->end = clock_ns();
        player->count += operation->count != 0;
    }
}

static void *player_main(void *context)
{
    struct player *player = context;
    for (;;) {
        pthread_barrier_wait(&player->arena->begin);
        if (player->arena->stop)
            return NULL;
        play(player);
        pthread_barrier_wait(&player->arena->end);
    }
}

/* Keys that come and go beside: splits and merges, collection. */
static void *crowd_main(void *context)
{
    struct arena *arena = context;
    uint64_t random = arena->seed + 99;
    uint8_t value[600] = {0};
    while (!arena->stop) {
        uint64_t key = UINT64_C(1) << 40 | random_below(&random, CROWD);
        if (random_below(&random, 3))
            insist_ok(fkv_put(arena->db, &key, sizeof key, value, random_below(&random, 600)));
        else
            found(&arena->players[0], fkv_delete(arena->db, &key, sizeof key));
    }
    return NULL;
}

static void *checkpoint_main(void *context)
{
    struct arena *arena = context;
    uint64_t random = arena->seed + 100;
    while (!arena->stop) {
        insist_ok(fkv_checkpoint(arena->db));
        insist_ok(fkv_sync(arena->db));
        usleep((useconds_t)random_below(&random, 10000));
    }
    return NULL;
}

/* A round: everybody plays, and then each key is read. Is that linearizable? `state` becomes what
 * it is after it. */
static enum linear_verdict play_round(struct arena *arena, uint32_t state[LINEAR_KEYS],
                                      size_t *operations)
{
    struct linear_operation history[LINEAR_OPERATIONS];
    uint32_t before[LINEAR_KEYS];
    size_t count = 0;
    memcpy(before, state, sizeof before);
    pthread_barrier_wait(&arena->begin);
    pthread_barrier_wait(&arena->end);
    for (unsigned i = 0; i < THREADS; i++) {
        memcpy(history + count, arena->players[i].history,
               arena->players[i].count * sizeof *history);
        count += arena->players[i].count;
    }
    struct player *player = &arena->players[0];
    for (uint32_t key = 0; key < KEYS; key++) {
        struct linear_operation *operation = &history[count++];
        size_t bytes = 0;
        *operation = (struct linear_operation){.call = clock_ns()};
        state[key] = 0;
        if (found(player,
                  fkv_get(arena->db, &key, sizeof key, player->scratch, VALUE_BYTES_MAX, &bytes)))
            state[key] = value_number(player->scratch, bytes, key);
        operation->end = clock_ns();
        note(operation, key, LINEAR_READ, state[key]);
    }
    *operations += count;
    enum linear_verdict verdict = linear_check(history, count, before);
    if (verdict != LINEAR_YES && !planted_bug)
        linear_print(history, count, before);
    return verdict;
}

struct match {
    uint64_t rounds, operations, commits, conflicts, checkpoints, splits, moved;
    enum linear_verdict verdict;
};

/* Has enough gone on beside? Where much else runs that takes longer. */
static bool is_enough(struct arena *arena, uint64_t rounds)
{
    fkv_stats stats;
    insist_ok(fkv_get_stats(arena->db, &stats, sizeof stats));
    return rounds > 5 && arena->commits > 20 && stats.checkpoints > 0 && stats.index_splits > 0;
}

/* Rounds for so many seconds and until it is enough, or until one is not linearizable. */
static struct match play_match(const char *path, unsigned flags, uint64_t seed, double length)
{
    struct arena *arena = calloc(1, sizeof *arena);
    struct match match = {.verdict = LINEAR_YES};
    uint32_t state[LINEAR_KEYS] = {0};
    pthread_t crowd, checkpoints;
    size_t operations = 0;
    insist_ok(try_open_small_log(path, flags, &arena->db));
    arena->seed = seed;
    schedule_point = lose_turn;
    pthread_barrier_init(&arena->begin, NULL, THREADS + 1);
    pthread_barrier_init(&arena->end, NULL, THREADS + 1);
    for (unsigned i = 0; i < THREADS; i++) {
        struct player *player = &arena->players[i];
        player->arena = arena;
        player->random = seed + i * 1000;
        player->scratch = malloc(VALUE_BYTES_MAX);
        insist(pthread_create(&player->thread, NULL, player_main, player) == 0);
    }
    insist(pthread_create(&crowd, NULL, crowd_main, arena) == 0);
    insist(pthread_create(&checkpoints, NULL, checkpoint_main, arena) == 0);
    for (double end = seconds_now() + length;
         match.verdict == LINEAR_YES && (seconds_now() < end || !is_enough(arena, match.rounds));
         match.rounds++)
        match.verdict = play_round(arena, state, &operations);
    arena->stop = true;
    pthread_barrier_wait(&arena->begin);
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(arena->players[i].thread, NULL);
        free(arena->players[i].scratch);
    }
    pthread_join(crowd, NULL);
    pthread_join(checkpoints, NULL);
    fkv_stats stats;
    insist_ok(fkv_get_stats(arena->db, &stats, sizeof stats));
    match.operations = operations;
    match.commits = arena->commits;
    match.conflicts = arena->conflicts;
    match.checkpoints = stats.checkpoints;
    match.splits = stats.index_splits;
    match.moved = stats.bytes_written_collector;
    insist_ok(fkv_close(arena->db));
    schedule_point = NULL;
    free(arena);
    return match;
}

static void linearizable(struct place *place, const char *name, unsigned flags)
{
    struct match match = play_match(place->path, flags, test_seed(name), seconds_to_run(3));
    print_message("%s: %" PRIu64 " rounds, %" PRIu64 " operations, %" PRIu64
                  " transactions (%" PRIu64 " more in conflict), %" PRIu64 " checkpoints, %" PRIu64
                  " segments built, %" PRIu64 " KiB moved\n",
                  name, match.rounds, match.operations, match.commits, match.conflicts,
                  match.checkpoints, match.splits, match.moved / 1024);
    assert_int_equal(match.verdict, LINEAR_YES);
}

static void test_store_is_linearizable(void **state)
{
    linearizable(*state, "linearizable", 0);
}

static void test_store_is_linearizable_without_threads(void **state)
{
    linearizable(*state, "linearizable, FKV_NO_THREAD", FKV_NO_THREAD);
}

/* In a child, since a store with a bug may do anything. */
static bool is_caught(const char *path, enum planted bug)
{
    fflush(stdout);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(HANG_SECONDS);
        planted_bug = bug; /* found within seconds, if nothing else runs */
        _exit(play_match(path, 0, 1, HANG_SECONDS / 2.0).verdict == LINEAR_NO ? 1 : 0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

static void test_planted_bugs_are_caught(void **state)
{
    struct place *place = *state;
    assert_true(is_caught(place->path, PLANTED_NO_OVERLAY));
    assert_true(is_caught(place->other, PLANTED_NO_CONFLICT));
}

#define in_memory(function) \
    cmocka_unit_test_setup_teardown(function, place_make_in_memory, place_drop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checker_knows),
        cmocka_unit_test(test_checker_agrees_with_every_order),
        in_memory(test_planted_bugs_are_caught), /* forks: before this process has threads */
        in_memory(test_store_is_linearizable),
        in_memory(test_store_is_linearizable_without_threads),
    };
    return run_all(tests);
}
