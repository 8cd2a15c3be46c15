#include "bases.h"

#include "fuzz.h"
#include "os_sim_file.h"
#include "places.h"

#include <stdio.h>
#include <stdlib.h>

/* ---------------------------------------------------------------- keys and values */

size_t base_key(uint32_t number, uint8_t key[16])
{
    return (size_t)snprintf((char *)key, 16, "key %u", number);
}

size_t base_value(uint32_t key, uint32_t version, size_t bytes, uint8_t *to)
{
    const uint32_t head[3] = {key, version, (uint32_t)bytes};
    memcpy(to, head, sizeof head);
    enum { RUN_BYTES = 512 };
    for (size_t at = sizeof head; at < bytes; at += RUN_BYTES) {
        size_t count = bytes - at < RUN_BYTES ? bytes - at : RUN_BYTES;
        memset(to + at, (int)sim_roll(version, key, at), count);
    }
    return bytes;
}

bool base_value_is(uint32_t key, const uint8_t *bytes, size_t count, uint32_t *version)
{
    static uint8_t *expected;
    uint32_t head[3];
    if (count < sizeof head || count > BASE_VALUE_BYTES_MAX)
        return false;
    memcpy(head, bytes, sizeof head);
    if (head[0] != key || head[2] != count)
        return false;
    if (!expected)
        expected = malloc(BASE_VALUE_BYTES_MAX);
    base_value(key, head[1], count, expected);
    *version = head[1];
    return memcmp(expected, bytes, count) == 0;
}

/* ---------------------------------------------------------------- making one */

struct maker {
    struct base *base;
    struct fkv *db;
    uint8_t *value;
};

static void must(enum fkv_error error, const char *what)
{
    if (error)
        fuzz_fail("making a store: %s: %s; %s", what, fkv_error_text(error), error_last());
}

void base_options(const struct base *base, fkv_options *options)
{
    fkv_options_init(options);
    options->flags = base->flags | FKV_NO_THREAD;
    options->garbage_percent_max = base->garbage_percent_max;
    options->log_bytes_max = MIB;
}

static void make_open(struct maker *maker)
{
    fkv_options options;
    base_options(maker->base, &options);
    must(store_open(os_sim_os(maker->base->sim), BASE_PATH, &options, &maker->db), "open");
}

static void make_close(struct maker *maker)
{
    maker->base->commit = maker->db->commit;
    must(store_close(maker->db), "close");
    os_sim_settle(maker->base->sim);
    maker->db = NULL;
}

/* The process dies: the log holds what the file does not. */
static void make_killed(struct maker *maker)
{
    maker->base->commit = maker->db->commit;
    os_sim_kill(maker->base->sim, 0);
    store_close(maker->db);
    os_sim_settle(maker->base->sim);
    maker->db = NULL;
}

static size_t next_value(struct maker *maker, uint32_t key, size_t bytes)
{
    struct base *base = maker->base;
    base->latest[key] = ++base->last_version;
    return base_value(key, base->last_version, bytes, maker->value);
}

static void make_put(struct maker *maker, uint32_t number, size_t bytes)
{
    uint8_t key[16];
    size_t key_bytes = base_key(number, key);
    bytes = next_value(maker, number, bytes);
    must(fkv_put(maker->db, key, key_bytes, maker->value, bytes), "put");
}

static void make_delete(struct maker *maker, uint32_t number)
{
    uint8_t key[16];
    enum fkv_error error = fkv_delete(maker->db, key, base_key(number, key));
    must(error == FKV_NOT_FOUND ? FKV_OK : error, "delete");
    maker->base->latest[number] = 0;
}

/* `count` keys from `first` on, in one commit. */
static void make_together(struct maker *maker, uint32_t first, uint32_t count, size_t bytes)
{
    fkv_txn *txn;
    must(fkv_txn_begin(maker->db, &txn), "txn_begin");
    for (uint32_t number = first; number < first + count; number++) {
        uint8_t key[16];
        size_t key_bytes = base_key(number, key);
        next_value(maker, number, bytes);
        must(fkv_txn_put(txn, key, key_bytes, maker->value, bytes), "txn_put");
    }
    must(fkv_txn_commit(txn, 0), "txn_commit");
    fkv_txn_free(txn);
}

static void make_some(struct maker *maker, uint32_t steps)
{
    for (uint32_t i = 0; i < steps; i++) {
        uint64_t drawn = sim_roll(maker->base->keys, steps, i);
        uint32_t number = (uint32_t)(drawn % maker->base->keys);
        if (drawn >> 32 & 3)
            make_put(maker, number, BASE_VALUE_BYTES_MIN + (drawn >> 40 & 255));
        else
            make_delete(maker, number);
    }
}

/* ---------------------------------------------------------------- the stores */

static void make_small(struct maker *maker)
{
    make_some(maker, 60);
    make_close(maker);
    make_open(maker);
    make_some(maker, 12);
    make_together(maker, 3, 5, 40);
    make_killed(maker);
}

static void make_closed(struct maker *maker)
{
    make_some(maker, 60);
    make_close(maker);
}

/* Values in several pieces, with sectors of their own, in the file and in the log. */
static void make_large(struct maker *maker)
{
    make_put(maker, 0, (1 << 20) + 100000);
    make_put(maker, 1, 200000);
    make_close(maker);
    make_open(maker);
    make_put(maker, 1, 1100000);
    make_put(maker, 2, 140000);
    make_delete(maker, 0);
    make_killed(maker);
}

/* A log that refers to records of the file. */
static void make_referring(struct maker *maker)
{
    commit_refer_bytes = 512;
    make_some(maker, 10);
    make_close(maker);
    make_open(maker);
    make_together(maker, 0, 6, 300);
    make_some(maker, 5);
    make_together(maker, 4, 6, 200);
    make_killed(maker);
}

/* The collector has moved records, and says so in the log. */
static void make_collected(struct maker *maker)
{
    commit_refer_bytes = 512;
    for (uint32_t number = 0; number < maker->base->keys; number++)
        make_put(maker, number, 30000);
    make_close(maker);
    make_open(maker);
    for (uint32_t i = 0; i < 60; i++)
        make_put(maker, i * 3 % maker->base->keys, 30000);
    make_killed(maker);
}

/* An index of several segments, with pages of every space. */
static void make_indexed(struct maker *maker)
{
    for (uint32_t first = 0; first + 500 <= maker->base->keys; first += 500)
        make_together(maker, first, 500, BASE_VALUE_BYTES_MIN);
    make_close(maker);
    make_open(maker);
    make_some(maker, 8);
    make_killed(maker);
}

static const struct recipe {
    const char *name;
    void (*make)(struct maker *maker);
    uint32_t keys;
    uint32_t flags;
    uint32_t garbage_percent_max;
} recipes[] = {
    {"small", make_small, 30, 0, 0},
    {"closed", make_closed, 30, 0, 0},
    {"large", make_large, 4, 0, 0},
    {"referring", make_referring, 16, 0, 0},
    {"collected", make_collected, 40, 0, 10},
    {"indexed", make_indexed, 6000, 0, 0},
    {"digest", make_small, 20, FKV_DIGEST, 0},
};
enum { RECIPES = sizeof recipes / sizeof *recipes };

size_t base_count(void)
{
    return RECIPES;
}

/* To what is in use of it: who looks for frames in it looks at every byte. */
static void shorten_log(struct base *base)
{
    uint64_t end = 2 * PAGE_BYTES;
    for (size_t i = 0; i < base->place_count; i++)
        if (base->places[i].in_log)
            end = max_u64(end, base->places[i].offset + base->places[i].bytes);
    os_sim_resize(base->sim, BASE_LOG_PATH, round_up(end, PAGE_BYTES));
}

static void make(struct base *base, const struct recipe *recipe)
{
    const uint64_t refer_bytes = commit_refer_bytes;
    *base = (struct base){.name = recipe->name,
                          .sim = os_sim_new(NULL),
                          .flags = recipe->flags,
                          .garbage_percent_max = recipe->garbage_percent_max,
                          .keys = recipe->keys,
                          .latest = calloc(recipe->keys, sizeof *base->latest),
                          .places = malloc(BASE_PLACES_MAX * sizeof *base->places)};
    struct maker maker = {.base = base, .value = malloc(BASE_VALUE_BYTES_MAX)};
    fuzz_random(1 + (uint64_t)(recipe - recipes));
    make_open(&maker);
    recipe->make(&maker);
    free(maker.value);
    commit_refer_bytes = refer_bytes;
    base->place_count = places_find(base->sim, base->places, BASE_PLACES_MAX);
    shorten_log(base);
}

const struct base *base_get(size_t number)
{
    static struct base bases[RECIPES];
    struct base *base = &bases[number % RECIPES];
    memory_test_keep(true); /* address ranges: thousands of openings a second want them */
    if (!base->sim)
        make(base, &recipes[number % RECIPES]);
    return base;
}

const struct place *base_place(const struct base *base, enum place_kind kind, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < base->place_count; i++)
        count += base->places[i].kind == kind;
    n = count ? n % count : 0;
    for (size_t i = 0; i < base->place_count; i++)
        if (base->places[i].kind == kind && n-- == 0)
            return &base->places[i];
    return NULL;
}
