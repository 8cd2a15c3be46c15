/*
 * many: keys that are asked for in batches, where everything is in memory: the time a key takes, in
 * batches of 1 to 256, beside single gets. Of the seed's pairs (many_...), and of small ones, keys
 * of 16 bytes and values of 32 (small_...).
 */
#include <stdio.h>
#include <string.h>

#include "run.h"
#include "util.h"

enum { BATCH_MOST = 256, BATCHES = 6 };
static const unsigned batches[BATCHES] = {1, 4, 16, 32, 64, 256};

/* Keys that are there, one after another: what the timed loops read. */
struct keys {
    uint8_t (*key)[DATASET_KEY_BYTES_MAX];
    uint8_t *bytes;
    uint64_t value_bytes; /* of all of them */
};

static struct keys keys_choose(struct run *run, uint64_t count)
{
    struct keys keys = {need_memory(count, sizeof *keys.key), need_memory(count, 1), 0};
    for (uint64_t i = 0; i < count; i++) {
        uint64_t index = random_below(&run->random, run->data.keys);
        keys.bytes[i] = (uint8_t)dataset_key(&run->data, index, keys.key[i]);
        keys.value_bytes += dataset_value_bytes(&run->data, index, run->versions[index]);
    }
    return keys;
}

static void keys_free(struct keys *keys)
{
    free(keys->key);
    free(keys->bytes);
}

static uint8_t room[BATCH_MOST][DATASET_VALUE_ROOM];

static double ask_singly(struct run *run, const struct keys *keys, uint64_t count, bool exists)
{
    uint64_t found = 0, value_bytes = 0, start = now_ns();
    for (uint64_t i = 0; i < count; i++) {
        size_t bytes = 0;
        found += (exists ? run->engine->exists(run->store, keys->key[i], keys->bytes[i])
                         : run->engine->get(run->store, keys->key[i], keys->bytes[i], room[i % 32],
                                            DATASET_VALUE_ROOM, &bytes)) == ENGINE_OK;
        value_bytes += bytes;
    }
    double spent = (double)(now_ns() - start) / (double)count;
    if (found != count || (!exists && value_bytes != keys->value_bytes))
        die("%s: a get found something else than was put", run->engine->name);
    return spent;
}

static double ask_many(struct run *run, const struct keys *keys, uint64_t count, unsigned batch,
                       bool exists)
{
    struct engine_get reads[BATCH_MOST];
    uint64_t found = 0, value_bytes = 0, start = now_ns();
    for (uint64_t at = 0; at < count; at += batch) {
        unsigned some = count - at < batch ? (unsigned)(count - at) : batch;
        for (unsigned i = 0; i < some; i++)
            reads[i] = (struct engine_get){.key = keys->key[at + i],
                                           .key_bytes = keys->bytes[at + i],
                                           .buffer = room[i],
                                           .buffer_bytes = DATASET_VALUE_ROOM};
        if (run->engine->get_many(run->store, reads, some, exists) != ENGINE_OK)
            die("%s: get_many failed", run->engine->name);
        for (unsigned i = 0; i < some; i++) {
            found += reads[i].result == ENGINE_OK;
            value_bytes += reads[i].value_bytes;
        }
    }
    double spent = (double)(now_ns() - start) / (double)count;
    if (found != count || (!exists && value_bytes != keys->value_bytes))
        die("%s: a batch found something else than was put", run->engine->name);
    return spent;
}

/* Values read in batches are those that were written. */
static uint64_t verify_many(struct run *run)
{
    struct engine_get reads[BATCH_MOST];
    uint8_t key[BATCH_MOST][DATASET_KEY_BYTES_MAX], expected[DATASET_VALUE_ROOM];
    uint64_t wrong = 0;
    for (uint64_t at = 0; at < run->data.keys; at += BATCH_MOST) {
        unsigned some =
            run->data.keys - at < BATCH_MOST ? (unsigned)(run->data.keys - at) : BATCH_MOST;
        for (unsigned i = 0; i < some; i++)
            reads[i] = (struct engine_get){.key = key[i],
                                           .key_bytes = dataset_key(&run->data, at + i, key[i]),
                                           .buffer = room[i],
                                           .buffer_bytes = DATASET_VALUE_ROOM};
        if (run->engine->get_many(run->store, reads, some, false) != ENGINE_OK)
            die("%s: get_many failed", run->engine->name);
        for (unsigned i = 0; i < some; i++) {
            size_t bytes = dataset_value(&run->data, at + i, run->versions[at + i], expected);
            wrong += reads[i].result != ENGINE_OK || reads[i].value_bytes != bytes ||
                     memcmp(room[i], expected, bytes) != 0;
        }
    }
    if (wrong)
        complain("%s: %llu values of batches are wrong", run->engine->name,
                 (unsigned long long)wrong);
    return wrong;
}

/* Rounds of everything in turns; the median of each is sent. */
static void ask_in_turns(struct run *run, const char *of)
{
    enum { FIGURES = 2 + 2 * BATCHES };
    unsigned rounds = run->bench->settings->rounds;
    uint64_t count = run->bench->settings->operations;
    double *figures[FIGURES];
    for (int f = 0; f < FIGURES; f++)
        figures[f] = need_memory(rounds, sizeof(double));
    for (unsigned round = 0; round < rounds; round++) {
        struct keys keys = keys_choose(run, count);
        for (int exists = 0; exists < 2; exists++) {
            figures[exists][round] = ask_singly(run, &keys, count, exists);
            for (int b = 0; run->engine->get_many && b < BATCHES; b++)
                figures[2 + exists * BATCHES + b][round] =
                    ask_many(run, &keys, count, batches[b], exists);
        }
        keys_free(&keys);
        bench_progress(run->bench, of, round + 1, rounds);
    }
    for (int f = 0; f < FIGURES; f++) {
        char name[32];
        bool exists = f >= 2 ? (f - 2) / BATCHES : f;
        if (f < 2)
            snprintf(name, sizeof name, "%s_%s_ns", of, exists ? "exists" : "get");
        else
            snprintf(name, sizeof name, "%s_%s%u_ns", of, exists ? "exists" : "get",
                     batches[(f - 2) % BATCHES]);
        if (f < 2 || run->engine->get_many)
            bench_metric(run->bench, name, median(figures[f], rounds), "ns");
        free(figures[f]);
    }
}

static uint64_t ask_about(const struct bench *bench, struct dataset data, const char *of)
{
    struct run *run = run_begin(bench, data, "store");
    run_write(run, "load", 0, data.keys, NULL);
    run_prepare_reads(run);
    uint64_t wrong = run_verify(run, "verify the load");
    if (bench->engine->get_many)
        wrong += verify_many(run);
    ask_in_turns(run, of);
    run_end(run);
    return wrong;
}

static int run_many(const struct bench *bench)
{
    uint64_t seed = bench->settings->seed;
    uint64_t wrong = ask_about(bench, dataset_of_the_seed(seed, bench->keys), "many");
    wrong += ask_about(bench, dataset_of_small_pairs(seed, bench->keys), "small");
    return wrong != 0;
}

const struct workload workload_many = {
    .name = "many",
    .about = "keys asked for in batches of 1 to 256, in memory",
    .engines = "memory,fkv,rocksdb-point",
    .run = run_many,
};
