/*
 * scale: keys of 8 to 32 bytes, values of 20 to 100, from a thousand pairs to a hundred million:
 * what depends on how many there are. Reported as workloads scale-1k, ..., scale-100M.
 *
 * Besides the time of a put (of the first and the last tenth too), of reads, and space: how long
 * it takes to close, to open until the first get is served, and to come back after a kill with as
 * much in the log as there ever is.
 */
#include "run.h"
#include "util.h"

/* Read back this many, spread over all keys, beyond this number. */
#define VERIFIED_MAX 20000000u

static void load(struct run *run)
{
    const struct bench *bench = run->bench;
    uint64_t total = 0;
    for (uint64_t tenth = 0, from = 0; tenth < 10; tenth++) {
        uint64_t to = run->data.keys * (tenth + 1) / 10;
        uint64_t spent = run_write(run, "load", from, to - from, NULL);
        total += spent;
        if (tenth == 0 || tenth == 9)
            bench_metric(bench, tenth == 0 ? "load_first_ns" : "load_last_ns",
                         (double)spent / (double)(to - from), "ns");
        from = to;
    }
    bench_metric(bench, "load_ns", (double)total / (double)run->data.keys, "ns");
}

static void close_and_recover(struct run *run)
{
    double close_ms;
    double reopen_ms;
    double recover_ms;
    bench_progress(run->bench, "reopening", 0, 1);
    run_reopen(run, &close_ms, &reopen_ms);
    bench_metric(run->bench, "close_ms", close_ms, "ms");
    bench_metric(run->bench, "reopen_ms", reopen_ms, "ms");
    run_kill(run, run->bench->settings->operations, &recover_ms);
    bench_metric(run->bench, "recover_ms", recover_ms, "ms");
}

static int run_scale(const struct bench *bench)
{
    struct dataset data = dataset_of_mixed_pairs(bench->settings->seed, bench->keys);
    bool on_disk = !bench->engine->memory_only;
    struct run *run =
        on_disk ? run_begin_to_kill(bench, data, "store") : run_begin(bench, data, "store");
    load(run);
    if (on_disk) { /* as the load left it: closing has the most to do */
        double close_ms;
        double reopen_ms;
        run_reopen(run, &close_ms, &reopen_ms);
        bench_metric(bench, "close_loaded_ms", close_ms, "ms");
        bench_metric(bench, "reopen_loaded_ms", reopen_ms, "ms");
    }
    run_prepare_reads(run);
    uint64_t wrong = run_verify_some(run, "verify the load", VERIFIED_MAX);
    run_read_rounds(run);
    run_send_index_bytes(run);
    if (on_disk) {
        run_flush(run);
        bench_metric(bench, "space_amp_loaded", run_space_amp(run), "ratio");
        close_and_recover(run);
        wrong += run_verify_some(run, "verify what was recovered", VERIFIED_MAX / 10);
    }
    run_end(run);
    return wrong != 0;
}

const struct workload workload_scale = {
    .name = "scale",
    .about = "keys of 8-32 bytes, values of 20-100, at several numbers of keys",
    .engines = "memory,fkv,rocksdb,lmdb",
    .run = run_scale,
};
