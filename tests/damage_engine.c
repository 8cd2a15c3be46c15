#include "damage_engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

struct damage_totals damage_totals;

static const char *const names[DAMAGES] = {
    "a bit flipped",
    "bits flipped",
    "a block of zeros",
    "a block of garbage",
    "blocks swapped",
    "a block twice",
    "a stale block",
    "a file cut off",
    "a log of before",
    "a file of before",
    "the log of another store",
    "no log",
};

const char *damage_name(enum damage damage)
{
    return names[damage];
}

/* A store, as it is and as it was; and another that has done the same. */
struct subject {
    const struct workload *workload;
    struct os_sim *now, *before, *other;
    struct model model; /* remembers all */
    uint64_t seed;
};

/* ---------------------------------------------------------------- harm */

struct place {
    const char *path;
    uint64_t bytes;
};

/* A file, the log more often than its length deserves, and what is in use of it. */
static struct place draw_file(struct os_sim *sim, struct rng *rng)
{
    struct place place = {.path = rng_percent(rng, 30) ? LOG_PATH : STORE_PATH};
    if (os_sim_file_size(sim, place.path, &place.bytes) || !place.bytes)
        os_sim_file_size(sim, place.path = STORE_PATH, &place.bytes);
    return place;
}

/* Where something is: damage to zeros that nobody needs teaches little. */
static uint64_t draw_offset(struct os_sim *sim, const struct place *place, struct rng *rng,
                            size_t unit)
{
    enum { TRIES = 24 };
    uint64_t offset = 0;
    for (unsigned i = 0; i < TRIES; i++) {
        uint8_t bytes[512] = {0};
        bool used = false;
        uint64_t span = rng_percent(rng, 25) ? min_u64(place->bytes, 2 * PAGE_BYTES) : place->bytes;
        offset = rng_below(rng, divide_up(span, unit)) * unit;
        os_sim_peek(sim, place->path, offset, bytes,
                    (size_t)min_u64(sizeof bytes, place->bytes - offset));
        for (size_t b = 0; b < sizeof bytes; b++)
            used |= bytes[b] != 0;
        if (used)
            break;
    }
    return offset;
}

static void flip_bits(struct os_sim *sim, struct rng *rng, unsigned count)
{
    struct place place = draw_file(sim, rng);
    uint64_t offset = draw_offset(sim, &place, rng, 512);
    uint64_t span = min_u64(512, place.bytes - offset);
    for (unsigned i = 0; i < count; i++)
        os_sim_flip_bit(sim, place.path, offset * 8 + rng_below(rng, span * 8));
}

static void harm_blocks(struct os_sim *sim, const struct subject *subject, enum damage damage,
                        struct rng *rng)
{
    uint8_t block[PAGE_BYTES];
    size_t bytes = rng_percent(rng, 50) ? 512 : PAGE_BYTES;
    struct place place = draw_file(sim, rng);
    uint64_t at = draw_offset(sim, &place, rng, bytes);
    uint64_t from = draw_offset(sim, &place, rng, bytes);
    bytes = (size_t)min_u64(bytes, place.bytes - max_u64(at, from));
    switch (damage) {
    case DAMAGE_ZERO_BLOCK:
        os_sim_zero(sim, place.path, at, bytes);
        return;
    case DAMAGE_GARBAGE_BLOCK:
        rng_fill(rng, block, bytes);
        break;
    case DAMAGE_SWAP_BLOCKS:
        if (at != from)
            os_sim_swap(sim, place.path, at, from, bytes);
        return;
    case DAMAGE_DUPLICATE_BLOCK:
        os_sim_peek(sim, place.path, from, block, bytes);
        break;
    default:
        if (os_sim_peek(subject->before, place.path, at, block, bytes))
            return; /* it was not there then */
        break;
    }
    os_sim_poke(sim, place.path, at, block, bytes);
}

static void cut_off(struct os_sim *sim, struct rng *rng)
{
    struct place place = draw_file(sim, rng);
    uint64_t bytes = rng_below(rng, place.bytes);
    if (rng_percent(rng, 30))
        bytes = rng_below(rng, min_u64(place.bytes, 2 * PAGE_BYTES + 1));
    os_sim_resize(sim, place.path, bytes);
}

static void harm(struct os_sim *sim, const struct subject *subject, enum damage damage,
                 struct rng *rng)
{
    switch (damage) {
    case DAMAGE_FLIP_BIT:
        flip_bits(sim, rng, 1);
        break;
    case DAMAGE_FLIP_BITS:
        flip_bits(sim, rng, (unsigned)rng_between(rng, 2, 40));
        break;
    case DAMAGE_CUT:
        cut_off(sim, rng);
        break;
    case DAMAGE_OLD_LOG:
        os_sim_copy_file(sim, LOG_PATH, subject->before, LOG_PATH);
        break;
    case DAMAGE_OLD_FILE:
        os_sim_copy_file(sim, STORE_PATH, subject->before, STORE_PATH);
        break;
    case DAMAGE_OTHER_LOG:
        os_sim_copy_file(sim, LOG_PATH, subject->other, LOG_PATH);
        break;
    case DAMAGE_NO_LOG:
        os_sim_delete_file(sim, LOG_PATH);
        break;
    default:
        harm_blocks(sim, subject, damage, rng);
        break;
    }
}

/* ---------------------------------------------------------------- what must hold */

static void must_tell(enum fkv_error error, const char *detail, const char *what)
{
    switch (error) {
    case FKV_DAMAGED:
    case FKV_TRUNCATED:
    case FKV_NOT_A_STORE:
    case FKV_UNKNOWN_FORMAT:
    case FKV_LOG_MISMATCH:
    case FKV_LOG_MISSING:
    case FKV_FAILED: /* writing stops where a checkpoint has met damage */
        break;
    default:
        trouble("%s: %s; %s", what, fkv_error_text(error), detail);
    }
    if (!strstr(detail, STORE_PATH))
        trouble("%s: %s, and does not say where: '%s'", what, fkv_error_text(error), detail);
}

/* Every key reads as it was, or says that it cannot be read. Returns how many say so. */
static uint64_t must_read_right(struct fkv *db, const struct content *state, uint32_t key_count,
                                const char *when)
{
    static uint8_t *buffer;
    uint64_t unreadable = 0;
    if (!buffer)
        buffer = malloc(VALUE_BYTES_MOST);
    for (uint32_t k = 0; k < key_count; k++) {
        uint8_t key[KEY_BYTES_MOST];
        size_t bytes = 0;
        enum fkv_error error = fkv_get(db, key, key_of(k, key), buffer, VALUE_BYTES_MOST, &bytes);
        if (error == FKV_NOT_FOUND && !state[k].stamp)
            continue;
        if (error == FKV_NOT_FOUND)
            trouble("%s: key %u is gone, and nothing is said", when, k);
        if (error) {
            must_tell(error, fkv_error_detail(db), when);
            unreadable++;
        } else if (!state[k].stamp) {
            trouble("%s: key %u is there again", when, k);
        } else if (bytes != state[k].bytes || !value_is(state[k], buffer)) {
            trouble("%s: key %u has a wrong value of %zu bytes", when, k, bytes);
        }
    }
    return unreadable;
}

static void count_problem(void *context, const fkv_problem *problem)
{
    uint64_t *problems = context;
    if (!*problem->text)
        trouble("a problem without a word");
    ++*problems;
}

static uint64_t problems_of(struct fkv *db, const struct workload *workload)
{
    uint64_t problems = 0;
    struct check_options options = {.garbage_percent_max = workload->garbage_percent_max,
                                    .problem = count_problem,
                                    .context = &problems};
    enum fkv_error error = store_check(db, &options, NULL);
    if ((error != FKV_OK) != (problems > 0))
        trouble("the check: %s, with %" PRIu64 " problems", fkv_error_text(error), problems);
    return problems;
}

/* It is open: what must hold, before and after some steps. */
static void must_stand(struct life *life, const struct content *state, const struct mood *mood)
{
    struct model *model = life->model;
    uint64_t failed = must_read_right(life->db, state, model->key_count, "damaged");
    uint64_t problems = problems_of(life->db, life->workload);
    if (failed && !problems)
        trouble("%" PRIu64 " keys cannot be read, and the check finds nothing", failed);
    damage_totals.reads_failed += failed;
    damage_totals.unharmed += !problems;
    for (unsigned i = 0; i < 6 && life->db; i++) {
        enum fkv_error error = life_step(life, mood);
        if (!error)
            continue;
        must_tell(error, fkv_error_detail(life->db), mood->name);
        if (!life->db || life->db->commit + 1 < model->commit)
            return;
        if (life->db->commit < model->commit)
            model_rewind(model, life->db->commit);
        model->returned = model->commit;
    }
    if (life->db)
        must_read_right(life->db, model->now, model->key_count, "damaged, and worked on");
}

static void try_damage(const struct subject *subject, enum damage damage, uint64_t number)
{
    struct rng rng = rng_make(rng_mix(subject->seed, damage, number));
    struct mood mood = subject->workload->phases[0].mood;
    struct model model;
    struct life life = {.sim = os_sim_copy(subject->now),
                        .model = &model,
                        .workload = subject->workload,
                        .faulty = true,
                        .rng = rng_make(rng_next(&rng))};
    const uint64_t blocks = memory_test_blocks();
    const bool open = damage < DAMAGE_CUT && rng_percent(&rng, 25); /* harmed while it is open */
    mood.kill = 0;
    mood.reopen = 0;
    model_fork(&model, &subject->model);
    damage_totals.damaged++;
    damage_totals.of[damage]++;
    if (!open)
        harm(life.sim, subject, damage, &rng);
    enum fkv_error error = life_open(&life);
    if (error) {
        must_tell(error, error_last(), "opening");
        damage_totals.refused++;
    } else {
        damage_totals.undone += life.db->commit < model.commit;
        if (life.db->commit > model.commit)
            trouble("it opens at commit %" PRIu64 ", and %" PRIu64 " was the last", life.db->commit,
                    model.commit);
        model_rewind(&model, life.db->commit);
        if (open)
            harm(life.sim, subject, damage, &rng);
        must_stand(&life, model.now, &mood);
    }
    life_abandon(&life);
    if (os_sim_open_files(life.sim) || memory_test_blocks() != blocks)
        trouble("left behind: %zu handles, %" PRIu64 " blocks of memory",
                os_sim_open_files(life.sim), memory_test_blocks() - blocks);
    os_sim_free(life.sim);
    model_drop(&model);
}

/* ---------------------------------------------------------------- making stores */

static void must_step(struct life *life, const struct phase *phases, uint32_t steps)
{
    for (const struct phase *phase = phases; phase->steps && steps; phase++)
        for (uint32_t i = 0; i < phase->steps && steps; i++, steps--) {
            enum fkv_error error = life_step(life, &phase->mood);
            if (error)
                trouble("before any damage: %s; %s", fkv_error_text(error),
                        fkv_error_detail(life->db));
        }
}

static void make_store(struct subject *subject, struct os_sim **sim, struct os_sim **before,
                       struct model *model, uint64_t random)
{
    *sim = os_sim_new(&(struct os_sim_options){.seed = subject->seed});
    struct life life = {
        .sim = *sim, .model = model, .workload = subject->workload, .rng = rng_make(subject->seed)};
    uint32_t steps = (uint32_t)rng_between(&life.rng, 20, 250);
    random_fix(random);
    model_make(model, subject->workload->keys);
    model->remembers = true;
    enum fkv_error error = life_open(&life);
    if (error)
        trouble("before any damage: %s; %s", fkv_error_text(error), error_last());
    must_step(&life, subject->workload->phases, steps);
    if (before) {
        *before = os_sim_copy(*sim);
        os_sim_kill(*before, 0);
        os_sim_settle(*before);
    }
    must_step(&life, subject->workload->phases, steps / 4);
    if (rng_percent(&life.rng, 40) && (error = life_close(&life)))
        trouble("before any damage: %s; %s", fkv_error_text(error), error_last());
    if (life.db)
        os_sim_kill(*sim, 0);
    life_bury(&life);
    os_sim_settle(*sim);
}

void damage_of(const struct workload *workload, uint64_t seed, uint64_t times)
{
    enum { SECONDS_MOST = 1200 };
    const uint64_t only = environment_u64("FKV_DAMAGE", UINT64_MAX);
    struct subject subject = {.workload = workload, .seed = seed};
    struct model others;
    const clock_t began = clock();
    commit_refer_bytes = workload->refer_bytes ? workload->refer_bytes : commit_refer_bytes;
    context_set("workload %s, FKV_TEST_SEED=%" PRIu64, workload->name, seed);
    alarm(SECONDS_MOST); /* nothing may hang */
    make_store(&subject, &subject.now, &subject.before, &subject.model, seed | 1);
    make_store(&subject, &subject.other, NULL, &others, (seed + 7919) | 1);
    for (uint64_t i = 0; i < times; i++) {
        enum damage damage = i % DAMAGES;
        context_set("workload %s, FKV_TEST_SEED=%" PRIu64 " FKV_DAMAGE=%" PRIu64 " (%s)",
                    workload->name, seed, i, names[damage]);
        if (only == UINT64_MAX || only == i)
            try_damage(&subject, damage, i);
    }
    alarm(0);
    os_sim_free(subject.now);
    os_sim_free(subject.before);
    os_sim_free(subject.other);
    model_drop(&subject.model);
    model_drop(&others);
    commit_refer_bytes = 4 * MIB;
    double seconds = (double)(clock() - began) / CLOCKS_PER_SEC;
    printf("%-10s seed %" PRIu64 ": %" PRIu64 " times, %.2f ms each\n", workload->name, seed, times,
           seconds * 1e3 / (double)max_u64(times, 1));
    fflush(stdout);
}
