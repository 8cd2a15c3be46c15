/*
 * check: no figures; whether an engine's file does what engine.h says. Random puts, deletes and
 * reads of few keys, against what they should give, with flushing and reopening in between. Run it
 * once after adding an engine.
 */
#include "run.h"
#include "util.h"

#define KEYS 3000u
#define ROUNDS 30u
#define DELETES 1000u

static void delete_some(struct run *run)
{
    uint8_t key[DATASET_KEY_BYTES_MAX];
    for (unsigned i = 0; i < DELETES; i++) {
        uint64_t index = random_below(&run->random, run->data.keys);
        size_t key_bytes = dataset_key(&run->data, index, key);
        bool was_there = run->versions[index] != 0;
        enum engine_result result = run->engine->delete (run->store, key, key_bytes);
        if (result == ENGINE_ERROR || (was_there && result != ENGINE_OK))
            die("%s: delete failed", run->engine->name);
        if (run->engine->exists(run->store, key, key_bytes) != ENGINE_NOT_FOUND)
            die("%s: a deleted key exists", run->engine->name);
        if (was_there)
            run->live_bytes -=
                key_bytes + dataset_value_bytes(&run->data, index, run->versions[index]);
        run->versions[index] = 0;
    }
}

static uint64_t wrong_exists(struct run *run)
{
    uint64_t wrong = 0;
    uint8_t key[DATASET_KEY_BYTES_MAX];
    for (uint64_t i = 0; i < 2 * run->data.keys; i++) {
        bool is_there = i < run->data.keys && run->versions[i] != 0;
        size_t key_bytes = dataset_key(&run->data, i, key);
        wrong += run->engine->exists(run->store, key, key_bytes) !=
                 (is_there ? ENGINE_OK : ENGINE_NOT_FOUND);
    }
    if (wrong != 0)
        complain("%s: exists was wrong %llu times", run->engine->name, (unsigned long long)wrong);
    return wrong;
}

static int run_check(const struct bench *bench)
{
    struct dataset data = dataset_of_the_seed(bench->settings->seed, KEYS);
    struct run *run = run_begin(bench, data, "store");
    uint64_t wrong = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        double close_ms;
        double reopen_ms;
        run_write(run, "put", RUN_UNIFORM, KEYS, NULL);
        delete_some(run);
        wrong += run_verify(run, "verify") + wrong_exists(run);
        if (bench->engine->memory_only || round % 10 != 9)
            continue;
        run_write(run, "put", run->data.keys / 2, 1, NULL); /* what run_reopen reads */
        run_reopen(run, &close_ms, &reopen_ms);
        wrong += run_verify(run, "verify the reopened store");
        run_flush(run);
    }
    run_end(run);
    return wrong != 0;
}

const struct workload workload_check = {
    .name = "check",
    .about = "no figures: whether the engines' files do what they should",
    .engines = "memory,fkv,rocksdb",
    .run = run_check,
};
