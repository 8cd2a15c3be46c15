/*
 * bulk: pairs of 1 KB, in no order of keys, are loaded as fast as each engine takes them so, and
 * are durable at the end; nothing is sorted before, for which RocksDB and LMDB have faster ways.
 * Figures: nanoseconds a pair; that time over what the disk takes (bulk_over_disk); the bytes that
 * the process had the system write for each live byte (bulk_write_amp: write_bytes of
 * /proc/self/io, closing included), and those that the engine says it wrote (bulk_write_amp_own,
 * closing not included). And the same for batches of BATCH pairs by the engine's ordinary means
 * (batch_...).
 *
 * What the disk takes is measured first, in the same directory: a file as long as the pairs are,
 * written in pieces of 1 MiB and synced at its end.
 */
#include "run.h"
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH 100000u

static uint64_t written_bytes(void)
{
    char line[128];
    unsigned long long bytes = 0;
    FILE *file = fopen("/proc/self/io", "r");
    while (file && fgets(line, sizeof line, file))
        sscanf(line, "write_bytes: %llu", &bytes);
    if (file)
        fclose(file);
    return bytes;
}

/* Nanoseconds to write so many bytes and sync them. */
static uint64_t disk_floor(const struct run *run, uint64_t bytes)
{
    char *path = path_join(run->bench->directory, "floor");
    sync();
    uint64_t spent = disk_write(path, bytes);
    unlink(path);
    free(path);
    return spent;
}

/* Load everything in batches of so many pairs; returns the nanoseconds spent in the engine. */
static uint64_t load(struct run *run, uint64_t batch, bool ordinary)
{
    const struct engine *engine = run->engine;
    uint8_t key[DATASET_KEY_BYTES_MAX];
    uint8_t *value = need_memory(1, DATASET_VALUE_ROOM);
    uint64_t spent = 0;
    for (uint64_t i = 0; i < run->data.keys; i++) {
        size_t key_bytes = dataset_key(&run->data, i, key);
        size_t value_bytes = dataset_value(&run->data, i, 1, value);
        bool last = i + 1 == run->data.keys || (i + 1) % batch == 0;
        run->versions[i] = 1;
        run->live_bytes += key_bytes + value_bytes;
        uint64_t begin = now_ns();
        if (engine->batch_put(run->store, key, key_bytes, value, value_bytes, ordinary) !=
                ENGINE_OK ||
            (last && engine->batch_commit(run->store) != ENGINE_OK))
            die("%s: loading failed", engine->name);
        spent += now_ns() - begin;
        if (i % 4096 == 0)
            bench_progress(run->bench, ordinary ? "batches" : "bulk load", i, run->data.keys);
    }
    free(value);
    return spent;
}

static uint64_t measure(const struct bench *bench, const char *name, uint64_t batch, bool ordinary)
{
    char metric[32];
    struct dataset data = dataset_of_kilobytes(bench->settings->seed, bench->keys);
    struct run *run = run_begin(bench, data, name);
    uint64_t floor_ns = disk_floor(run, data.keys * (data.key_bytes_max + data.value_bytes_max));
    uint64_t before = written_bytes();
    uint64_t spent = load(run, batch, ordinary);
    uint64_t own = run->engine->written_bytes ? run->engine->written_bytes(run->store) : 0;
    double close_ms;
    double reopen_ms;
    run_reopen(run, &close_ms, &reopen_ms);
    uint64_t written = written_bytes() - before;
    if (own) {
        snprintf(metric, sizeof metric, "%s_write_amp_own", name);
        bench_metric(bench, metric, (double)own / (double)run->live_bytes, "ratio");
    }
    snprintf(metric, sizeof metric, "%s_ns", name);
    bench_metric(bench, metric, (double)spent / (double)data.keys, "ns");
    snprintf(metric, sizeof metric, "%s_over_disk", name);
    bench_metric(bench, metric, (double)spent / (double)floor_ns, "ratio");
    snprintf(metric, sizeof metric, "%s_write_amp", name);
    bench_metric(bench, metric, (double)written / (double)run->live_bytes, "ratio");
    uint64_t wrong = run_verify(run, "verify the load");
    run_end(run);
    return wrong;
}

static int run_bulk(const struct bench *bench)
{
    if (!bench->engine->batch_put)
        return 0;
    uint64_t wrong = measure(bench, "bulk", UINT64_MAX, false);
    wrong += measure(bench, "batch", BATCH, true);
    return wrong != 0;
}

const struct workload workload_bulk = {
    .name = "bulk",
    .about = "pairs of 1 KB in no order, loaded as the engine takes them fastest, and in batches",
    .engines = "fkv,rocksdb,lmdb",
    .run = run_bulk,
};
