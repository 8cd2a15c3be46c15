/*
 * seed: the experiment of the proof of concept that fkv grew from, made stricter. KEYS pairs of
 * 6-7 random bytes and 0-1,024 random bytes; every put is a commit of its own, written, not synced.
 *
 *  1. the first 10,000 puts into a new store, in FIRST_STORES stores: the median
 *  2. load all pairs
 *  3. let background work end (rocksdb-point: compact); read everything once and compare, which
 *     warms every engine's caches; then rounds of random gets, misses and exists
 *  4. flush, and measure the space
 *  5. OPS overwrites, each timed; on to 3 * KEYS, timed as a whole
 *  6. close; reopen until the first get is served
 *  7. flush, and measure the space again: now that no engine has data in its log only
 *  8. read everything and compare with what was written last
 *
 * Space is what all files but the logs have allocated, over the live bytes of keys and values. The
 * flush before it is measured (a checkpoint, for fkv) keeps an engine's log from holding a part of
 * the data that is then counted nowhere. space_amp_peak is the highest that was seen while
 * overwriting, without any flush, by looking a hundred times in each stretch. log_bytes is what the
 * log has allocated after the last overwrite, as it was left.
 */
#include "run.h"
#include "util.h"

#include <stdio.h>

#define FIRST_PUTS 10000u
#define FIRST_STORES 5

static void measure_first_write(const struct bench *bench)
{
    double figures[FIRST_STORES];
    struct dataset data = dataset_of_the_seed(bench->settings->seed + 1, bench->keys);
    if (data.keys > FIRST_PUTS)
        data.keys = FIRST_PUTS;
    for (int i = 0; i < FIRST_STORES; i++) {
        struct run *run = run_begin(bench, data, "first");
        figures[i] = (double)run_write(run, "first puts", 0, data.keys, NULL) / (double)data.keys;
        run_end(run);
    }
    bench_metric(bench, "first_write_ns", median(figures, FIRST_STORES), "ns");
}

static int compare_latencies(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left;
    uint64_t b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static void send_latencies(const struct bench *bench, uint64_t *latencies, uint64_t count)
{
    static const struct {
        const char *metric;
        double part;
    } percentiles[] = {
        {"overwrite_p50_us", 0.5},      {"overwrite_p99_us", 0.99}, {"overwrite_p999_us", 0.999},
        {"overwrite_p9999_us", 0.9999}, {"overwrite_max_us", 1},
    };
    qsort(latencies, count, sizeof *latencies, compare_latencies);
    for (size_t i = 0; i < sizeof percentiles / sizeof *percentiles; i++) {
        uint64_t rank = (uint64_t)(percentiles[i].part * (double)count);
        if (rank >= count)
            rank = count - 1;
        bench_metric(bench, percentiles[i].metric, (double)latencies[rank] / 1e3, "us");
    }
}

static void overwrite(struct run *run)
{
    const struct bench *bench = run->bench;
    uint64_t timed = bench->settings->operations;
    uint64_t *latencies = need_memory(timed, sizeof *latencies);
    uint64_t spent = run_write(run, "overwrite", RUN_UNIFORM, timed, latencies);
    bench_metric(bench, "overwrite_ns", (double)spent / (double)timed, "ns");
    send_latencies(bench, latencies, timed);
    free(latencies);

    if (timed >= 3 * bench->keys)
        return;
    uint64_t later = 3 * bench->keys - timed;
    spent = run_write(run, "overwrite on", RUN_UNIFORM, later, NULL);
    bench_metric(bench, "overwrite_later_ns", (double)spent / (double)later, "ns");
}

static void reopen_and_measure(struct run *run)
{
    const struct bench *bench = run->bench;
    struct disk_usage usage = disk_measure(run->engine, run->directory);
    double close_ms;
    double reopen_ms;
    bench_metric(bench, "log_bytes", (double)usage.log_bytes, "bytes");
    bench_metric(bench, "log_bytes_peak", (double)run->log_bytes_peak, "bytes");

    bench_progress(bench, "reopening", 0, 1);
    run_reopen(run, &close_ms, &reopen_ms);
    bench_metric(bench, "close_ms", close_ms, "ms");
    bench_metric(bench, "reopen_ms", reopen_ms, "ms");

    run_flush(run);
    bench_metric(bench, "space_amp_overwritten", run_space_amp(run), "ratio");
    bench_metric(bench, "space_amp_peak", run->space_amp_peak, "ratio");
}

static int run_seed(const struct bench *bench)
{
    bool on_disk = !bench->engine->memory_only;
    struct dataset data = dataset_of_the_seed(bench->settings->seed, bench->keys);
    uint64_t wrong;
    measure_first_write(bench);

    struct run *run = run_begin(bench, data, "store");
    uint64_t spent = run_write(run, "load", 0, data.keys, NULL);
    bench_metric(bench, "load_ns", (double)spent / (double)data.keys, "ns");

    run_prepare_reads(run);
    wrong = run_verify(run, "verify the load");
    run_read_rounds(run);
    run_send_index_bytes(run);
    if (on_disk) {
        run_flush(run);
        bench_metric(bench, "space_amp_loaded", run_space_amp(run), "ratio");
    }

    run->space_amp_peak = 0;
    run->log_bytes_peak = 0;
    overwrite(run);
    if (on_disk)
        reopen_and_measure(run);
    wrong += run_verify(run, "verify the overwrites");
    run_end(run);
    return wrong != 0;
}

const struct workload workload_seed = {
    .name = "seed",
    .about = "keys of 6-7 random bytes, values of 0-1,024 random bytes",
    .engines = "memory,fkv,rocksdb,rocksdb-near,rocksdb-point",
    .run = run_seed,
};
