#define _GNU_SOURCE
#include "crash_features.h"

#include <errno.h>
#include <execinfo.h>
#include <inttypes.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

/* ---------------------------------------------------------------- troubles */

static char context[256];

static void (*last_words)(void);
static volatile sig_atomic_t is_to_stop;

static void on_stop(int signal_number)
{
    (void)signal_number;
    is_to_stop = 1;
}

void crash_prepare(void (*say_counts)(void))
{
    last_words = say_counts;
    signal(SIGTERM, on_stop);
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    memory_test_keep(true);
    log_step = 256 * KIB; /* of a mapping the simulator compares every page, again and again */
}

static void say_raw(const char *text)
{
    ssize_t written = write(STDERR_FILENO, text, strlen(text));
    (void)written;
}

static void on_hang(int signal_number)
{
    void *frames[32];
    (void)signal_number;
    say_raw("\nTROUBLE: a hang\n  in ");
    say_raw(context);
    say_raw(" of ");
    say_raw(program_invocation_short_name);
    say_raw("\n");
    /* If they hang too, the test ends by its timeout. NOLINTNEXTLINE(bugprone-signal-handler) */
    backtrace_symbols_fd(frames, backtrace(frames, 32), STDERR_FILENO);
    _exit(1);
}

/* Each process has timers of its own, children do not inherit them: one of the time that it
 * computes, and, ten times as long, one of the time that passes, on a machine that is busy or stops
 * it. */
static void restart_watchdog(void)
{
    static const clockid_t clocks[] = {CLOCK_PROCESS_CPUTIME_ID, CLOCK_MONOTONIC};
    static timer_t timers[2];
    static pid_t owner;
    if (owner != getpid()) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
        signal(SIGUSR2, on_hang);
        for (int i = 0; i < 2; i++)
            if (timer_create(clocks[i], &event, &timers[i]) != 0)
                return;
        owner = getpid();
    }
    for (int i = 0; i < 2; i++) {
        struct itimerspec seconds = {.it_value.tv_sec = i ? 10 * CASE_SECONDS : CASE_SECONDS};
        timer_settime(timers[i], 0, &seconds, NULL);
    }
}

void context_set(const char *format, ...)
{
    va_list arguments;
    if (is_to_stop) {
        last_words();
        fflush(stdout);
        _exit(0);
    }
    restart_watchdog();
    va_start(arguments, format);
    vsnprintf(context, sizeof context, format, arguments);
    va_end(arguments);
}

#ifdef __SANITIZE_ADDRESS__
void __lsan_do_leak_check(void);
#endif

void trouble(const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fflush(stdout);
    fprintf(stderr, "\nTROUBLE: %s\n  in %s\n", text, context);
    fflush(stderr);
    if (getenv("FKV_ABORT"))
        abort();
#ifdef __SANITIZE_ADDRESS__
    __lsan_do_leak_check();
#endif
    _exit(1);
}

/* ---------------------------------------------------------------- randomness of the library */

ssize_t __real_getrandom(void *to, size_t bytes, unsigned flags);
ssize_t __wrap_getrandom(void *to, size_t bytes, unsigned flags);

static struct rng fixed;

void random_fix(uint64_t seed)
{
    fixed = seed ? rng_make(seed) : (struct rng){0};
}

uint64_t random_state(void)
{
    return fixed.state;
}

void random_restore(uint64_t state)
{
    fixed.state = state;
}

/* The linker puts this in the place of getrandom(). */
ssize_t __wrap_getrandom(void *to, size_t bytes, unsigned flags)
{
    if (!fixed.state)
        return __real_getrandom(to, bytes, flags);
    rng_fill(&fixed, to, bytes);
    return (ssize_t)bytes;
}

/* ---------------------------------------------------------------- amounts */

uint64_t environment_u64(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

uint64_t scaled(uint64_t normal)
{
    enum { PERCENT_UNDER_SANITIZERS = 3 };
    uint64_t percent = environment_u64("FKV_SCALE", SANITIZED ? PERCENT_UNDER_SANITIZERS : 100);
    return max_u64(normal * percent / 100, 1);
}

/* ---------------------------------------------------------------- keys and values */

size_t key_of(uint32_t number, uint8_t key[KEY_BYTES_MOST])
{
    if (number == 0)
        return 0;
    size_t bytes = (size_t)snprintf((char *)key, KEY_BYTES_MOST, "key %u", number);
    size_t more = number % 61 == 7 ? 3000 : number % 16 == 5 ? 180 : 0;
    memset(key + bytes, (int)('a' + number % 26), more);
    return bytes + more;
}

enum { POOL_PLACES = 1 << 20 };
static uint8_t *pool;

/* Values are cut from here. */
static const uint8_t *pool_at(struct content content)
{
    enum { POOL_BYTES = POOL_PLACES + VALUE_BYTES_MOST };
    if (!pool) {
        pool = malloc(POOL_BYTES);
        struct rng rng = rng_make(12345);
        rng_fill(&rng, pool, POOL_BYTES);
    }
    return pool + content.stamp * 40503u % POOL_PLACES;
}

static void head_of(struct content content, uint8_t head[8])
{
    memcpy(head, &content, 8);
}

const uint8_t *value_of(struct content content, unsigned level)
{
    static uint8_t *values[2];
    if (!values[level])
        values[level] = malloc(VALUE_BYTES_MOST + 8);
    uint8_t *value = values[level];
    uint8_t head[8];
    head_of(content, head);
    memcpy(value, pool_at(content), content.bytes);
    memcpy(value, head, content.bytes < 8 ? content.bytes : 8);
    return value;
}

bool value_is(struct content content, const uint8_t *bytes)
{
    uint8_t head[8];
    head_of(content, head);
    size_t in_head = content.bytes < 8 ? content.bytes : 8;
    return memcmp(bytes, head, in_head) == 0 &&
           memcmp(bytes + in_head, pool_at(content) + in_head, content.bytes - in_head) == 0;
}

/* ---------------------------------------------------------------- the model */

void model_make(struct model *model, uint32_t key_count)
{
    *model = (struct model){.key_count = key_count, .now = calloc(key_count, sizeof *model->now)};
}

void model_drop(struct model *model)
{
    free(model->now);
    free(model->events);
    *model = (struct model){0};
}

void model_state(const struct model *model, uint64_t commit, struct content *state)
{
    memcpy(state, model->now, model->key_count * sizeof *state);
    for (size_t e = model->event_count; e-- > 0 && model->events[e].commit > commit;)
        state[model->events[e].key] = model->events[e].before;
}

void model_fork(struct model *fork, const struct model *model)
{
    *fork = *model;
    fork->now = malloc(model->key_count * sizeof *fork->now);
    memcpy(fork->now, model->now, model->key_count * sizeof *fork->now);
    fork->event_room = model->event_count + 16;
    fork->events = malloc(fork->event_room * sizeof *fork->events);
    if (model->event_count)
        memcpy(fork->events, model->events, model->event_count * sizeof *fork->events);
    fork->last_stamp += 1000000;
}

void model_rewind(struct model *model, uint64_t commit)
{
    while (model->event_count && model->events[model->event_count - 1].commit > commit) {
        const struct event *event = &model->events[--model->event_count];
        model->now[event->key] = event->before;
    }
    model->commit = commit;
    model->returned = min_u64(model->returned, commit);
}

void model_synced(struct model *model, uint64_t commit)
{
    model->synced = max_u64(model->synced, commit);
    size_t gone = 0;
    while (gone < model->event_count && model->events[gone].commit <= model->synced)
        gone++;
    if (model->remembers || (gone < 64 && gone < model->event_count))
        return;
    model->event_count -= gone;
    if (model->event_count)
        memmove(model->events, model->events + gone, model->event_count * sizeof *model->events);
}

void model_set(struct model *model, uint32_t key, struct content content)
{
    if (model->event_count == model->event_room) {
        model->event_room = model->event_room ? model->event_room * 2 : 64;
        model->events = realloc(model->events, model->event_room * sizeof *model->events);
    }
    model->events[model->event_count++] =
        (struct event){.commit = model->commit, .key = key, .before = model->now[key]};
    model->now[key] = content;
}

/* ---------------------------------------------------------------- checking a store */

uint8_t *life_read_buffer(void)
{
    static uint8_t *buffer;
    if (!buffer)
        buffer = malloc(VALUE_BYTES_MOST);
    return buffer;
}

static void key_must_hold(struct fkv *db, uint32_t number, struct content content, const char *when)
{
    uint8_t key[KEY_BYTES_MOST];
    size_t key_bytes = key_of(number, key);
    size_t bytes = 0;
    uint8_t *buffer = life_read_buffer();
    enum fkv_error error = fkv_get(db, key, key_bytes, buffer, VALUE_BYTES_MOST, &bytes);
    if (error == FKV_NOT_FOUND && !content.stamp)
        return;
    if (error == FKV_NOT_FOUND)
        trouble("%s: key %u is lost; it had stamp %u of %u bytes (commit %" PRIu64 ")", when,
                number, content.stamp, content.bytes, db->commit);
    if (error)
        trouble("%s: key %u: %s; %s", when, number, fkv_error_text(error), fkv_error_detail(db));
    struct content found = {0, (uint32_t)bytes};
    if (bytes >= 8)
        memcpy(&found.stamp, buffer, sizeof found.stamp);
    if (!content.stamp)
        trouble("%s: key %u is there again, with stamp %u of %zu bytes (commit %" PRIu64 ")", when,
                number, found.stamp, bytes, db->commit);
    if (bytes != content.bytes || !value_is(content, buffer))
        trouble("%s: key %u has stamp %u of %zu bytes, and not %u of %u (commit %" PRIu64 ")", when,
                number, found.stamp, bytes, content.stamp, content.bytes, db->commit);
}

void store_must_hold(struct fkv *db, const struct content *state, uint32_t key_count,
                     const char *when)
{
    uint64_t present = 0;
    for (uint32_t k = 0; k < key_count; k++) {
        key_must_hold(db, k, state[k], when);
        present += state[k].stamp != 0;
    }
    if (db->keys != present)
        trouble("%s: it counts %" PRIu64 " keys and holds %" PRIu64, when, db->keys, present);
}

static void on_problem(void *context_, const fkv_problem *problem)
{
    const char *when = context_;
    trouble("%s: the check finds in %s at %" PRIu64 ": %s", when, fkv_part_name(problem->part),
            problem->offset, problem->text);
}

void store_must_be_sound(struct fkv *db, const struct workload *workload, bool thorough,
                         const char *when)
{
    struct check_options options = {.flags = thorough ? 0 : CHECK_NO_FILE,
                                    .garbage_percent_max = workload->garbage_percent_max,
                                    .problem = on_problem,
                                    .context = (void *)when};
    enum fkv_error error = store_check(db, &options, NULL);
    if (error)
        trouble("%s: the check: %s", when, fkv_error_text(error));
}

/* ---------------------------------------------------------------- lives */

bool life_is_over(const struct life *life)
{
    return life->sim && os_sim_crashed(life->sim);
}

struct os_sim *workload_disk(const struct workload *workload, uint64_t seed, uint64_t memory_bytes)
{
    enum { ONE_EMULATES = 3 };
    bool emulates = rng_mix(seed, workload->keys, workload->name[0]) % ONE_EMULATES == 0;
    return os_sim_new(
        &(struct os_sim_options){.seed = seed, .memory_bytes = memory_bytes, .emulates = emulates});
}

void disk_must_be_sound(struct os_sim *sim)
{
    if (os_sim_hole_stores(sim))
        trouble("%" PRIu64 " pages stored into without space", os_sim_hole_stores(sim));
}

void workload_options(const struct workload *workload, fkv_options *options)
{
    fkv_options_init(options);
    options->flags = FKV_NO_THREAD | workload->flags;
    options->garbage_percent_max = workload->garbage_percent_max;
    options->log_bytes_max = workload->log_bytes_max ? workload->log_bytes_max : MIB;
    options->index_memory_max = workload->index_memory_max;
}

enum fkv_error life_open(struct life *life)
{
    fkv_options options;
    workload_options(life->workload, &options);
    life->db = NULL;
    struct os *os = life->os ? life->os : os_sim_os(life->sim);
    if (life->varies) {
        static const uint64_t logs[] = {MIB, MIB, 2 * MIB, 5 * MIB + 4096, 64 * MIB};
        options.log_bytes_max = logs[rng_below(&life->rng, 5)];
        options.garbage_percent_max = (uint32_t)rng_between(&life->rng, 10, 100);
        options.index_memory_max = rng_percent(&life->rng, 40) ? 32768 : 0;
    }
    enum fkv_error error =
        store_open(os, life->path ? life->path : STORE_PATH, &options, &life->db);
    error_claim(0);
    return error;
}

/* Borrowed values must be what they were, whatever has been written meanwhile. */
void life_give_back(struct life *life)
{
    if (!life->borrowed_steps)
        return;
    for (unsigned i = 0; i < life->borrowed_count; i++)
        if (!value_is(life->borrowed[i].content, life->borrowed[i].bytes))
            trouble("a borrowed value of stamp %u has changed", life->borrowed[i].content.stamp);
    life->borrowed_count = life->borrowed_steps = 0;
    fkv_read_end(life->db);
}

static void borrow(struct life *life)
{
    if (life->workload->flags & FKV_READ_WITHOUT_MAPPING)
        return;
    fkv_read_begin(life->db);
    life->borrowed_steps = (unsigned)rng_between(&life->rng, 1, 150);
    for (unsigned i = 0; i < 4; i++) {
        uint8_t key[KEY_BYTES_MOST];
        uint32_t number = (uint32_t)rng_below(&life->rng, life->workload->keys);
        struct content content = life->model->now[number];
        const void *bytes;
        size_t count;
        uint32_t key_bytes = (uint32_t)key_of(number, key);
        enum fkv_error error = fkv_borrow(life->db, key, key_bytes, &bytes, &count);
        if (error == FKV_VALUE_TOO_LARGE && value_is_large(key_bytes, count))
            continue;
        if (life->faulty && (error == FKV_IO || error == FKV_NO_MEMORY || error == FKV_DAMAGED))
            continue;
        if (error != (content.stamp ? FKV_OK : FKV_NOT_FOUND) || (!error && count != content.bytes))
            trouble("borrowing key %u: %s", number, fkv_error_text(error));
        if (!error) {
            life->borrowed[life->borrowed_count].bytes = bytes;
            life->borrowed[life->borrowed_count++].content = content;
        }
    }
}

enum fkv_error life_close(struct life *life)
{
    life_give_back(life);
    if (rng_percent(&life->rng, 50))
        feature_end(life);
    enum fkv_error error = store_close(life->db);
    error_claim(0);
    feature_end(life);
    life->db = NULL;
    if (!error && !life_is_over(life))
        model_synced(life->model, life->model->commit);
    return error;
}

void life_abandon(struct life *life)
{
    if (!life->db)
        return;
    os_sim_crash_after(life->sim, OS_SIM_ALL, 0);
    life_bury(life);
}

void life_bury(struct life *life)
{
    if (!life->db)
        return;
    life_give_back(life);
    store_close(life->db);
    feature_end(life);
    life->db = NULL;
}

uint32_t life_draw_key(struct life *life, const struct mood *mood)
{
    uint32_t end = mood->key_end ? mood->key_end : life->workload->keys;
    if (mood->to_end) /* what dies is the oldest: the collector has little to do, and to log */
        return mood->key_first + (uint32_t)(life->model->commit % (end - mood->key_first));
    if (rng_percent(&life->rng, mood->hot_percent))
        end = mood->key_first + (end - mood->key_first) / 5 + 1;
    return (uint32_t)rng_between(&life->rng, mood->key_first, end - 1);
}

/* Small lengths are as frequent as large ones of the same number of digits. */
static uint32_t draw_length(struct rng *rng, uint32_t least, uint32_t most)
{
    uint32_t digits = 0;
    for (uint32_t span = most - least; span; span >>= 1)
        digits++;
    uint32_t span = (uint32_t)rng_below(rng, digits + 1);
    uint32_t limit = span ? (uint32_t)min_u64((1ull << span) - 1, most - least) : 0;
    return least + (uint32_t)rng_below(rng, limit + 1u);
}

/* So long that the log is nearly at its end after a few of them: what a commit asks for at least,
 * and does not use, is left. (Then each opening adds a frame, until one has no room there.) */
static uint32_t draw_up_to_end(struct life *life)
{
    enum { NEAR = 2000, OTHERS = 40 + 16 + 12 + 6, UNUSED = 144, STEPS = 8, MOST = 120000 };
    const struct log *log = &life->db->log;
    uint64_t left = log->size - min_u64(log->head.offset, log->size);
    uint64_t others = OTHERS + UNUSED + left / 32 + 8 * rng_below(&life->rng, STEPS);
    if (left > 2 * NEAR)
        return (uint32_t)min_u64(left - NEAR, MOST);
    return left > others ? (uint32_t)(left - others) : 0;
}

struct content life_draw_content(struct life *life, const struct mood *mood)
{
    struct content content = {.stamp = ++life->model->last_stamp};
    if (mood->to_end)
        content.bytes = draw_up_to_end(life);
    else if (rng_percent(&life->rng, mood->large_percent))
        content.bytes = (uint32_t)rng_between(&life->rng, RECORD_BYTES_MAX, mood->large_most);
    else
        content.bytes = draw_length(&life->rng, mood->value_least, mood->value_most);
    return content;
}

/* A commit has returned. */
enum fkv_error life_returned(struct life *life, enum fkv_error error, bool synced)
{
    struct model *model = life->model;
    if (error || life_is_over(life)) /* from the other side of the grave */
        return error;
    model->returned = model->commit;
    if (synced)
        model_synced(model, model->commit);
    if (life->db->commit != model->commit)
        trouble("the store is at commit %" PRIu64 ", the model at %" PRIu64, life->db->commit,
                model->commit);
    return FKV_OK;
}

enum fkv_error life_put(struct life *life, const struct mood *mood)
{
    uint8_t key[KEY_BYTES_MOST];
    uint32_t number = life_draw_key(life, mood);
    struct content content = life_draw_content(life, mood);
    bool sync = rng_percent(&life->rng, mood->sync_percent);
    life->model->commit++;
    model_set(life->model, number, content);
    return life_returned(life,
                         fkv_put_with(life->db, key, key_of(number, key),
                                      value_of(content, life->level), content.bytes,
                                      sync ? FKV_SYNC : 0),
                         sync);
}

static enum fkv_error step_delete(struct life *life, const struct mood *mood)
{
    uint8_t key[KEY_BYTES_MOST];
    uint32_t number = life_draw_key(life, mood);
    bool sync = rng_percent(&life->rng, mood->sync_percent);
    bool there = life->model->now[number].stamp != 0;
    if (there) {
        life->model->commit++;
        model_set(life->model, number, (struct content){0});
    }
    enum fkv_error error = fkv_delete_with(life->db, key, key_of(number, key), sync ? FKV_SYNC : 0);
    if (!there && error == FKV_NOT_FOUND)
        return FKV_OK;
    if (error == FKV_NOT_FOUND || (!there && !error))
        trouble("deleting key %u, which is %s: %s", number, there ? "there" : "absent",
                fkv_error_text(error));
    return life_returned(life, error, sync);
}

static enum fkv_error fill_txn(struct life *life, const struct mood *mood, fkv_txn *txn,
                               bool *changes)
{
    uint32_t count = (uint32_t)rng_between(&life->rng, 1, mood->txn_keys);
    enum fkv_error error = FKV_OK;
    for (uint32_t i = 0; !error && i < count; i++) {
        uint8_t key[KEY_BYTES_MOST];
        uint32_t number = life_draw_key(life, mood);
        size_t key_bytes = key_of(number, key);
        if (rng_percent(&life->rng, mood->txn_delete_percent)) {
            *changes |= life->model->now[number].stamp != 0;
            model_set(life->model, number, (struct content){0});
            error = fkv_txn_delete(txn, key, key_bytes);
        } else {
            struct content content = life_draw_content(life, mood);
            *changes = true;
            model_set(life->model, number, content);
            error = fkv_txn_put(txn, key, key_bytes, value_of(content, life->level), content.bytes);
        }
    }
    return error;
}

/* A transaction that deletes only keys that it has put itself makes a commit or not: which keys
 * were there before it decides. */
static bool txn_commits(const struct model *model)
{
    size_t first = model->event_count;
    while (first && model->events[first - 1].commit == model->commit)
        first--;
    for (size_t e = first; e < model->event_count; e++) {
        uint32_t key = model->events[e].key;
        struct content before = model->events[e].before;
        for (size_t f = first; f < e; f++)
            if (model->events[f].key == key) {
                before = model->events[f].before;
                break;
            }
        if (before.stamp || model->now[key].stamp)
            return true;
    }
    return false;
}

static enum fkv_error step_txn(struct life *life, const struct mood *mood)
{
    fkv_txn *txn;
    bool changes = false;
    enum fkv_error error = fkv_txn_begin(life->db, &txn);
    if (error)
        return error;
    bool sync = rng_percent(&life->rng, mood->sync_percent);
    bool abort = rng_percent(&life->rng, 5);
    struct model *model = life->model;
    model->commit++;
    error = fill_txn(life, mood, txn, &changes);
    if (!error && abort) {
        model_rewind(model, model->commit - 1);
        error = fkv_txn_abort(txn);
    } else if (!error) {
        if (!txn_commits(model))
            model_rewind(model, model->commit - 1);
        error = life_returned(life, fkv_txn_commit(txn, sync ? FKV_SYNC : 0), sync);
    }
    fkv_txn_free(txn);
    return error;
}

static enum fkv_error step_sync(struct life *life)
{
    return life_returned(life, fkv_sync(life->db), true);
}

static enum fkv_error step_checkpoint(struct life *life)
{
    return life_returned(life, fkv_checkpoint(life->db), true);
}

static enum fkv_error step_reopen(struct life *life)
{
    enum fkv_error error = life_close(life);
    return error ? error : life_open(life);
}

/* The process dies between two calls, and another takes its place. */
static enum fkv_error step_kill(struct life *life)
{
    os_sim_kill(life->sim, rng_next(&life->rng));
    life_bury(life);
    enum fkv_error error = life_open(life);
    if (!error && life->db->commit != life->model->returned)
        trouble("killed after commit %" PRIu64 ", it opens at commit %" PRIu64,
                life->model->returned, life->db->commit);
    return error;
}

/* Is it within this weight? Else what is left of it. */
static bool falls_on(uint32_t *drawn, uint32_t weight)
{
    bool falls = *drawn < weight;
    *drawn -= falls ? 0 : weight;
    return falls;
}

static enum fkv_error step(struct life *life, const struct mood *mood)
{
    const uint32_t sum = 0u + mood->put + mood->delete + mood->txn + mood->sync + mood->checkpoint +
                         mood->reopen + mood->kill + mood->snapshot + mood->load + mood->compact +
                         mood->async;
    uint32_t drawn = (uint32_t)rng_below(&life->rng, sum);
    life->operations++;
    if (life->sim && rng_percent(&life->rng, 10))
        os_sim_writeback(life->sim, rng_next(&life->rng));
    if (life->borrowed_steps == 1)
        life_give_back(life);
    else if (life->borrowed_steps)
        life->borrowed_steps--;
    else if (rng_percent(&life->rng, 5))
        borrow(life);
    if (falls_on(&drawn, mood->put))
        return life_put(life, mood);
    if (falls_on(&drawn, mood->delete))
        return step_delete(life, mood);
    if (falls_on(&drawn, mood->txn))
        return step_txn(life, mood);
    if (falls_on(&drawn, mood->sync))
        return step_sync(life);
    if (falls_on(&drawn, mood->checkpoint))
        return step_checkpoint(life);
    if (falls_on(&drawn, mood->reopen))
        return step_reopen(life);
    if (falls_on(&drawn, mood->kill))
        return step_kill(life);
    if (falls_on(&drawn, mood->snapshot))
        return feature_snapshot(life);
    if (falls_on(&drawn, mood->load))
        return feature_load(life, mood);
    return falls_on(&drawn, mood->compact) ? feature_compact(life) : feature_async(life);
}

/* FKV_TRACE: say what is done. */
static void trace(const struct life *life, const char *what, enum fkv_error error)
{
    static int wanted = -1;
    if (wanted < 0)
        wanted = getenv("FKV_TRACE") != NULL;
    if (wanted)
        fprintf(stderr,
                "%*s%s: %s; commit %" PRIu64 " (%" PRIu64 "), returned %" PRIu64 ", synced %" PRIu64
                ", log %" PRIu64 " to %" PRIu64 "%s\n",
                (int)life->level * 4, "", what, fkv_error_text(error), life->model->commit,
                life->db ? life->db->commit : 0, life->model->returned, life->model->synced,
                life->db ? life->db->log.start : 0, life->db ? life->db->log.head.offset : 0,
                life_is_over(life) ? ", crashed" : "");
}

enum fkv_error life_step(struct life *life, const struct mood *mood)
{
    struct rng rng = life->rng;
    uint32_t stamp = life->model->last_stamp;
    if (mood->scripted) {
        life->rng = rng_make(life->model->commit);
        life->model->last_stamp = 2000000000u + (uint32_t)life->model->commit;
    }
    enum fkv_error error = step(life, mood);
    if (mood->scripted) {
        life->rng = rng;
        life->model->last_stamp = stamp;
    }
    trace(life, mood->name, error);
    return error;
}

void life_settle_failure(struct life *life, enum fkv_error error)
{
    struct model *model = life->model;
    if (!life->db || model->commit == model->returned)
        return;
    if (life->db->commit == model->commit) {
        if (error != FKV_IO && error != FKV_FAILED)
            trouble("a commit failed (%s) and took place", fkv_error_text(error));
    } else if (life->db->commit == model->commit - 1) {
        model_rewind(model, model->commit - 1);
    } else {
        trouble("the store is at commit %" PRIu64 ", the model at %" PRIu64, life->db->commit,
                model->commit);
    }
}

/* It has opened at least at this commit; those after what it opened at are undone. */
static uint64_t must_have_opened_at(struct life *life, uint64_t least, const char *when)
{
    struct model *model = life->model;
    uint64_t commit = life->db->commit;
    if (commit < least || commit > model->commit)
        trouble("%s: it opens at commit %" PRIu64 "; %" PRIu64 " to %" PRIu64 " are allowed", when,
                commit, least, model->commit);
    model_rewind(model, commit);
    store_must_hold(life->db, model->now, model->key_count, when);
    store_must_be_sound(life->db, life->workload, rng_percent(&life->rng, 20), when);
    model->returned = commit;
    return commit;
}

void life_must_have_recovered(struct life *life, bool kill, const char *when)
{
    struct model *model = life->model;
    uint64_t commit = must_have_opened_at(life, kill ? model->returned : model->synced, when);
    if (!kill) /* what is there after a loss of power is durable */
        model_synced(model, commit);
}

void life_must_have_been_let_go(struct life *life, const char *when)
{
    must_have_opened_at(life, life->model->synced, when);
}
