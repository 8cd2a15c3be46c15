#include "crash_features.h"

#include "rcu.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct feature_counts feature_counts;

void feature_counts_print(void)
{
    const struct feature_counts *counts = &feature_counts;
    printf("features: snapshots looked at %" PRIu64 ", keys changed since %" PRIu64
           ", pairs scanned %" PRIu64 ", loads %" PRIu64 ", given up %" PRIu64 ", pairs %" PRIu64
           ", compactions %" PRIu64 ", asynchronous gets %" PRIu64 ", by call %" PRIu64 "\n",
           counts->snapshots, counts->kept, counts->scanned, counts->loads, counts->given_up,
           counts->loaded, counts->compactions, counts->async, counts->by_call);
}

/* A call failed that only reads: may it? */
static bool may_fail(const struct life *life, enum fkv_error error)
{
    if (life_is_over(life))
        return true;
    return life->faulty && (error == FKV_IO || error == FKV_NO_MEMORY || error == FKV_DAMAGED);
}

/* What a get has returned, and what should be there. */
static enum fkv_error must_be(struct life *life, uint32_t number, struct content content,
                              enum fkv_error error, size_t bytes, const uint8_t *value,
                              const char *by)
{
    if (error == FKV_NOT_FOUND && !content.stamp)
        return FKV_OK;
    if (error && error != FKV_NOT_FOUND && may_fail(life, error))
        return error;
    if (error || !content.stamp)
        trouble("%s: key %u, which is %s: %s; %s", by, number, content.stamp ? "there" : "absent",
                fkv_error_text(error), fkv_error_detail(life->db));
    if (bytes != content.bytes || !value_is(content, value))
        trouble("%s: key %u has %zu bytes and not the %u of stamp %u", by, number, bytes,
                content.bytes, content.stamp);
    return FKV_OK;
}

/* ---------------------------------------------------------------- snapshots */

static enum fkv_error open_snapshot(struct life *life, struct held_snapshot *held)
{
    enum fkv_error error = fkv_snapshot_open(life->db, &held->snapshot);
    if (error)
        return error;
    const size_t bytes = life->model->key_count * sizeof *held->state;
    held->state = malloc(bytes);
    memcpy(held->state, life->model->now, bytes);
    return FKV_OK;
}

static enum fkv_error get_some(struct life *life, const struct held_snapshot *held)
{
    enum { KEYS_LOOKED_AT = 8 };
    enum fkv_error error = FKV_OK;
    for (unsigned i = 0; i < KEYS_LOOKED_AT && !error; i++) {
        uint8_t key[KEY_BYTES_MOST];
        uint32_t number = (uint32_t)rng_below(&life->rng, life->model->key_count);
        size_t bytes = 0;
        struct content now = life->model->now[number];
        error = fkv_snapshot_get(held->snapshot, key, key_of(number, key), life_read_buffer(),
                                 VALUE_BYTES_MOST, &bytes);
        error = must_be(life, number, held->state[number], error, bytes, life_read_buffer(),
                        "a snapshot");
        feature_counts.kept += now.stamp != held->state[number].stamp;
    }
    return error;
}

/* The stamp of a pair, from the head of its value; 0 where it is too short for one. */
static uint32_t stamp_of(const void *value, size_t bytes)
{
    struct content content = {0};
    if (bytes >= sizeof content)
        memcpy(&content, value, sizeof content);
    return content.stamp;
}

static enum fkv_error scan_all(struct life *life, const struct held_snapshot *held)
{
    fkv_scan *scan;
    const void *key, *value;
    size_t key_bytes, bytes;
    uint64_t pairs = 0, stamps = 0;
    enum fkv_error error = fkv_scan_open(held->snapshot, NULL, &scan);
    if (error)
        return error;
    while (!(error = fkv_scan_next(scan, &key, &key_bytes, &value, &bytes))) {
        if (!value && (error = fkv_scan_value(scan, life_read_buffer(), VALUE_BYTES_MOST)))
            break;
        stamps += stamp_of(value ? value : life_read_buffer(), bytes);
        pairs++;
    }
    fkv_scan_close(scan);
    if (error != FKV_NOT_FOUND)
        return error;
    for (uint32_t k = 0; k < life->model->key_count; k++) {
        pairs -= held->state[k].stamp != 0;
        stamps -= held->state[k].bytes >= sizeof *held->state ? held->state[k].stamp : 0;
        feature_counts.scanned += held->state[k].stamp != 0;
    }
    if (pairs || stamps)
        trouble("a scan gives %" PRId64 " pairs too many; their stamps are %" PRId64 " off",
                (int64_t)pairs, (int64_t)stamps);
    return FKV_OK;
}

static void close_snapshot(struct held_snapshot *held)
{
    fkv_snapshot_close(held->snapshot);
    free(held->state);
    *held = (struct held_snapshot){0};
}

enum fkv_error feature_snapshot(struct life *life)
{
    struct held_snapshot *held = &life->held[rng_below(&life->rng, HELD_SNAPSHOTS)];
    if (!held->snapshot)
        return open_snapshot(life, held);
    enum fkv_error error = get_some(life, held);
    if (!error && rng_percent(&life->rng, 25))
        error = scan_all(life, held);
    if (error && !may_fail(life, error))
        trouble("a snapshot: %s; %s", fkv_error_text(error), fkv_error_detail(life->db));
    feature_counts.snapshots++;
    if (rng_percent(&life->rng, 30))
        close_snapshot(held);
    return error;
}

void feature_end(struct life *life)
{
    for (unsigned i = 0; i < HELD_SNAPSHOTS; i++)
        if (life->held[i].snapshot)
            close_snapshot(&life->held[i]);
}

/* ---------------------------------------------------------------- bulk loads */

struct pair {
    uint32_t key;
    struct content content;
};

static enum fkv_error fill(struct life *life, const struct mood *mood, fkv_load *load,
                           struct pair *pairs, uint32_t count)
{
    enum { BYTES_MOST = 100000 }; /* longer ones are not for loads */
    enum fkv_error error = FKV_OK;
    for (uint32_t i = 0; i < count && !error; i++) {
        uint8_t key[KEY_BYTES_MOST];
        if (rng_percent(&life->rng, 5) && (error = life_put(life, mood)))
            return error;
        pairs[i] = (struct pair){life_draw_key(life, mood), life_draw_content(life, mood)};
        pairs[i].content.bytes = (uint32_t)min_u64(pairs[i].content.bytes, BYTES_MOST);
        error = fkv_load_put(load, key, key_of(pairs[i].key, key),
                             value_of(pairs[i].content, life->level), pairs[i].content.bytes);
    }
    return error;
}

enum fkv_error feature_load(struct life *life, const struct mood *mood)
{
    enum { PAIRS_MOST = 64 };
    struct pair pairs[PAIRS_MOST];
    struct model *model = life->model;
    fkv_load *load;
    uint32_t count = (uint32_t)rng_between(&life->rng, 1, min_u64(mood->txn_keys, PAIRS_MOST));
    bool gives_up = rng_percent(&life->rng, 10);
    life_give_back(life);
    if (rcu_read_ongoing()) /* of a life amid whose call we are: not for loads */
        return life_put(life, mood);
    enum fkv_error error = fkv_load_begin(life->db, &load);
    if (error)
        return error;
    error = fill(life, mood, load, pairs, count);
    if (!error && !gives_up) {
        model->commit++;
        for (uint32_t i = 0; i < count; i++)
            model_set(model, pairs[i].key, pairs[i].content);
        error = life_returned(life, fkv_load_commit(load), true);
    }
    fkv_load_free(load);
    feature_counts.loads += !error && !gives_up;
    feature_counts.given_up += !error && gives_up;
    feature_counts.loaded += !error && !gives_up ? count : 0;
    return error;
}

/* ---------------------------------------------------------------- the others */

static enum fkv_error some_steps(struct life *life)
{
    enum fkv_error error = FKV_OK;
    int more = 1;
    for (uint64_t steps = rng_below(&life->rng, 30); !error && more && steps > 0; steps--)
        error = fkv_compact_step(life->db, &more);
    return error;
}

/* All of it; or begin one that goes on with each commit, and take some more steps of that. */
enum fkv_error feature_compact(struct life *life)
{
    uint32_t percent = (uint32_t)rng_below(&life->rng, 4) * 10;
    feature_counts.compactions++;
    if (rng_percent(&life->rng, 50))
        return life_returned(life, fkv_compact(life->db, percent), false);
    enum fkv_error error = fkv_compact_start(life->db, percent);
    if (!error)
        error = some_steps(life);
    return life_returned(life, error, false);
}

enum { GETS = 6 };

struct gets {
    uint32_t number[GETS];
    uint8_t *buffer[GETS];
};

static void *tag_of(unsigned get)
{
    return (void *)(uintptr_t)(1 + get);
}

/* Take what is over; the first error that may be. */
static enum fkv_error take(struct life *life, fkv_async *async, const struct gets *gets,
                           unsigned *open)
{
    fkv_completion done[GETS];
    size_t count = 0;
    enum fkv_error first = FKV_OK;
    enum fkv_error error = fkv_async_wait(async, 1, done, GETS, &count);
    if (error)
        trouble("waiting for asynchronous gets: %s", fkv_error_text(error));
    for (size_t i = 0; i < count; i++) {
        unsigned get = (unsigned)((uintptr_t)done[i].tag - 1);
        uint32_t number = gets->number[get];
        error = must_be(life, number, life->model->now[number], done[i].error, done[i].value_bytes,
                        gets->buffer[get], "an asynchronous get");
        first = first ? first : error;
    }
    *open -= (unsigned)count;
    return first;
}

static enum fkv_error get_all(struct life *life, fkv_async *async, struct gets *gets)
{
    unsigned open = 0;
    enum fkv_error first = FKV_OK;
    for (unsigned i = 0; i < GETS && !first; i++) {
        uint8_t key[KEY_BYTES_MOST];
        gets->number[i] = (uint32_t)rng_below(&life->rng, life->model->key_count);
        first = fkv_async_get(async, key, key_of(gets->number[i], key), gets->buffer[i],
                              VALUE_BYTES_MOST, tag_of(i));
        open += !first;
    }
    while (open) {
        enum fkv_error error = take(life, async, gets, &open);
        first = first ? first : error;
    }
    return first;
}

/* The same in one call. */
static enum fkv_error get_many(struct life *life, struct gets *gets)
{
    fkv_read reads[GETS];
    uint8_t keys[GETS][KEY_BYTES_MOST];
    for (unsigned i = 0; i < GETS; i++) {
        gets->number[i] = (uint32_t)rng_below(&life->rng, life->model->key_count);
        reads[i] = (fkv_read){.key = keys[i],
                              .key_bytes = key_of(gets->number[i], keys[i]),
                              .buffer = gets->buffer[i],
                              .buffer_bytes = VALUE_BYTES_MOST};
    }
    enum fkv_error error = fkv_get_many(life->db, reads, GETS);
    for (unsigned i = 0; i < GETS; i++) {
        uint32_t number = gets->number[i];
        enum fkv_error other = must_be(life, number, life->model->now[number], reads[i].error,
                                       reads[i].value_bytes, reads[i].buffer, "a get of many");
        error = error ? error : other;
    }
    return error;
}

enum fkv_error feature_async(struct life *life)
{
    static uint8_t *room[GETS];
    struct gets gets;
    fkv_async *async;
    for (unsigned i = 0; i < GETS; i++)
        gets.buffer[i] = room[i] ? room[i] : (room[i] = malloc(VALUE_BYTES_MOST));
    enum fkv_error error = get_many(life, &gets);
    if (error && !may_fail(life, error))
        trouble("gets of many: %s", fkv_error_text(error));
    if (error || (error = fkv_async_open(life->db, GETS, &async)))
        return error;
    error = get_all(life, async, &gets);
    if (error && !may_fail(life, error))
        trouble("an asynchronous get: %s", fkv_error_text(error));
    fkv_async_close(async);
    feature_counts.async += GETS;
    feature_counts.by_call += life->db->sectors.unmapped ? GETS : 0;
    return error;
}
