/*
 * sizes: small pairs, keys of 16 bytes and values of 32, at several numbers of keys: how reading
 * scales when it is the index that fills the memory. Reported as workloads small-1M, small-5M, ...
 */
#include "run.h"

static int run_sizes(const struct bench *bench)
{
    struct dataset data = dataset_of_small_pairs(bench->settings->seed, bench->keys);
    struct run *run = run_begin(bench, data, "store");
    uint64_t spent = run_write(run, "load", 0, data.keys, NULL);
    bench_metric(bench, "load_ns", (double)spent / (double)data.keys, "ns");

    run_prepare_reads(run);
    uint64_t wrong = run_verify(run, "verify the load");
    run_read_rounds(run);
    run_send_index_bytes(run);
    if (!bench->engine->memory_only) {
        run_flush(run);
        bench_metric(bench, "space_amp_loaded", run_space_amp(run), "ratio");
    }
    run_end(run);
    return wrong != 0;
}

const struct workload workload_sizes = {
    .name = "sizes",
    .about = "small pairs, keys of 16 bytes and values of 32, at several numbers of keys",
    .engines = "memory,fkv",
    .run = run_sizes,
};
