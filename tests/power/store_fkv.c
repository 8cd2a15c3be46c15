/*
 * fkv. The options that vary from life to life: the size of the log (small, so that it is recycled
 * all the time), the bound on garbage, with and without threads and mapping. Batches are single
 * puts, transactions and bulk loads; checkpoints are asked for beside those that come by
 * themselves.
 */
#include "store.h"

#include <fkv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"

struct store {
    fkv *db;
    uint8_t *value;
    bool syncs;
};

static bool failed(const char *call, enum fkv_error error, fkv *db)
{
    char text[400];
    snprintf(text, sizeof text, "%s: %s", fkv_error_text(error), fkv_error_detail(db));
    return store_failed(call, text);
}

static struct store *open_fkv(const char *directory, uint64_t random, bool syncs)
{
    static const uint32_t percents[] = {10, 30, 100};
    struct store *store = calloc(1, sizeof *store);
    fkv_options options;
    char path[256];
    snprintf(path, sizeof path, "%s/store.fkv", directory);
    fkv_options_init(&options);
    options.flags = random_below(&random, 4) ? 0 : FKV_NO_THREAD;
    options.flags |= random_below(&random, 4) ? 0 : FKV_READ_WITHOUT_MAPPING;
    options.log_bytes_max = (uint64_t)1 << (20 + random_below(&random, 4));
    options.garbage_percent_max = percents[random_below(&random, 3)];
    enum fkv_error error = fkv_open(path, &options, &store->db);
    if (error) {
        failed("fkv_open", error, NULL);
        free(store);
        return NULL;
    }
    store->value = malloc(BATCH_VALUE_BYTES_MAX + 8);
    store->syncs = syncs;
    return store;
}

static struct store *store_open(const char *directory, uint64_t random)
{
    return open_fkv(directory, random, true);
}

static struct store *store_open_lies(const char *directory, uint64_t random)
{
    return open_fkv(directory, random, false);
}

static enum fkv_error commit_txn(struct store *store, const struct batch *batch, unsigned flags)
{
    fkv_txn *txn;
    char key[BATCH_KEY_BYTES];
    enum fkv_error error = fkv_txn_begin(store->db, &txn);
    if (error)
        return error;
    for (size_t i = 0; i < batch->count && !error; i++) {
        const struct change *change = &batch->changes[i];
        batch_key(key, change->key);
        batch_value(change, store->value);
        error = change->deletes
                    ? fkv_txn_delete(txn, key, sizeof key)
                    : fkv_txn_put(txn, key, sizeof key, store->value, change->value_bytes);
    }
    if (!error)
        error = fkv_txn_commit(txn, flags);
    fkv_txn_free(txn);
    return error;
}

static enum fkv_error commit_load(struct store *store, const struct batch *batch)
{
    fkv_load *load;
    char key[BATCH_KEY_BYTES];
    enum fkv_error error = fkv_load_begin(store->db, &load);
    if (error)
        return error;
    for (size_t i = 0; i < batch->count && !error; i++) {
        const struct change *change = &batch->changes[i];
        batch_key(key, change->key);
        batch_value(change, store->value);
        error = fkv_load_put(load, key, sizeof key, store->value, change->value_bytes);
    }
    if (!error)
        error = fkv_load_commit(load);
    fkv_load_free(load);
    return error;
}

/* Pairs of more than FKV's limit for loads are not for them. */
static bool is_for_load(const struct batch *batch)
{
    bool fits = batch->number % 16 == 0 && !batch->deletes;
    for (size_t i = 0; i < batch->count; i++)
        fits &= batch->changes[i].value_bytes < 128000;
    return fits;
}

static bool store_commit(struct store *store, const struct batch *batch)
{
    enum fkv_error error =
        store->syncs && is_for_load(batch)
            ? commit_load(store, batch)
            : commit_txn(store, batch, store->syncs && batch->synced ? FKV_SYNC : 0);
    if (error)
        return failed("commit", error, store->db);
    if (batch->number % 64 == 32)
        error = fkv_checkpoint(store->db);
    else if (batch->number % 512 == 100)
        error = fkv_compact(store->db, 5);
    return !error || failed("checkpoint or compact", error, store->db);
}

static long store_get(struct store *store, const char *key, uint8_t *room)
{
    size_t bytes;
    enum fkv_error error =
        fkv_get(store->db, key, BATCH_KEY_BYTES, room, BATCH_VALUE_BYTES_MAX, &bytes);
    if (error == FKV_NOT_FOUND)
        return STORE_ABSENT;
    if (error) {
        failed("fkv_get", error, store->db);
        return STORE_ERROR;
    }
    return (long)bytes;
}

static void note_problem(void *context, const fkv_problem *problem)
{
    (void)context;
    store_failed("fkv_check", problem->text);
}

static bool store_check(struct store *store)
{
    fkv_check_options options;
    fkv_check_options_init(&options);
    options.problem = note_problem;
    enum fkv_error error = fkv_check(store->db, &options, NULL, 0);
    return !error || (error != FKV_DAMAGED && failed("fkv_check", error, store->db));
}

const struct store_kind store_fkv = {
    .name = "fkv",
    .about = "FKV_SYNC on three of four commits, loads, checkpoints",
    .open = store_open,
    .commit = store_commit,
    .get = store_get,
    .check = store_check,
};
const struct store_kind store_fkv_lies = {
    .name = "fkv-nosync",
    .about = "no FKV_SYNC: has to lose commits",
    .lies = true,
    .open = store_open_lies,
    .commit = store_commit,
    .get = store_get,
    .check = store_check,
};
