/*
 * limited: less memory than data. The pairs of the seed, in a control group that allows MEMORY
 * bytes (by default a quarter of the pairs'), page cache included, from the first put on.
 *
 *  1. load all pairs, flush, close, reopen
 *  2. gets that nobody times, so that indexes and caches hold what they can
 *  3. random gets, gets of keys that are not there, exists: a tenth of OPS each
 *  4. OPS overwrites, each its own commit: what goes on in the background comes to pass, too
 *  5. deletes, each its own commit: a tenth of OPS
 *  6. read some keys and compare
 *
 * Beside the times: what each operation read and wrote, as /proc/self/io has it (bytes that were
 * fetched from or sent to the device, for this process alone), and how many reads the block device
 * under the directory served (which counts everybody's: run it on a quiet machine).
 *
 * limited-index: the same, and the index of engines that can limit it has a quarter of the memory
 * that it needs.
 */
#include "run.h"
#include "util.h"

#include <stdio.h>
#include <string.h>

struct io {
    uint64_t read_bytes, write_bytes; /* this process */
    uint64_t device_reads;
};

static uint64_t read_field(const char *path, const char *name)
{
    char line[256];
    unsigned long long value = 0;
    FILE *file = fopen(path, "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, name, strlen(name)) == 0 && sscanf(line + strlen(name), "%llu", &value))
            break;
    if (file != NULL)
        fclose(file);
    return value;
}

static struct io io_now(const struct run *run)
{
    struct io io = {.read_bytes = read_field("/proc/self/io", "read_bytes:"),
                    .write_bytes = read_field("/proc/self/io", "write_bytes:"),
                    .device_reads = run_device_reads(run)};
    return io;
}

static void send_io(const struct run *run, const char *what, struct io before, uint64_t count)
{
    struct io now = io_now(run);
    char name[32];
    double each = 1.0 / (double)count;
    snprintf(name, sizeof name, "%s_reads", what);
    bench_metric(run->bench, name, (double)(now.device_reads - before.device_reads) * each,
                 "ratio");
    snprintf(name, sizeof name, "%s_read_bytes", what);
    bench_metric(run->bench, name, (double)(now.read_bytes - before.read_bytes) * each, "bytes");
    snprintf(name, sizeof name, "%s_write_bytes", what);
    bench_metric(run->bench, name, (double)(now.write_bytes - before.write_bytes) * each, "bytes");
}

static void read_phase(struct run *run, enum run_read kind, const char *what, uint64_t count)
{
    char name[32];
    bench_progress(run->bench, what, 0, 1);
    struct io before = io_now(run);
    double ns = run_read(run, kind, count);
    send_io(run, what, before, count);
    snprintf(name, sizeof name, "%s_ns", what);
    bench_metric(run->bench, name, ns, "ns");
}

static uint64_t operations(const struct bench *bench)
{
    uint64_t count = bench->settings->operations / 10;
    return count != 0 ? count : 1;
}

/* In the group. */
static int measure(const struct bench *bench)
{
    struct dataset data = dataset_of_the_seed(bench->settings->seed, bench->keys);
    uint64_t count = operations(bench);
    double close_ms, reopen_ms;
    struct run *run = run_begin(bench, data, "store");
    uint64_t spent = run_write(run, "load", 0, data.keys, NULL);
    bench_metric(bench, "load_ns", (double)spent / (double)data.keys, "ns");
    run_flush(run);
    run_reopen(run, &close_ms, &reopen_ms);
    bench_metric(bench, "reopen_ms", reopen_ms, "ms");
    run_prepare_reads(run);
    run_read(run, RUN_GET, count);

    read_phase(run, RUN_GET, "get", count);
    read_phase(run, RUN_MISS, "miss", count);
    read_phase(run, RUN_EXISTS, "exists", count);
    uint64_t overwrites = bench->settings->operations;
    struct io before = io_now(run);
    spent = run_write(run, "overwrite", RUN_UNIFORM, overwrites, NULL);
    send_io(run, "overwrite", before, overwrites);
    bench_metric(bench, "overwrite_ns", (double)spent / (double)overwrites, "ns");
    before = io_now(run);
    spent = run_delete(run, "delete", count);
    send_io(run, "delete", before, count);
    bench_metric(bench, "delete_ns", (double)spent / (double)count, "ns");
    uint64_t wrong = run_verify_some(run, "verify", count);
    run_send_index_bytes(run);
    run_end(run);
    return wrong != 0;
}

static int run_limited(const struct bench *bench)
{
    uint64_t memory = bench->settings->memory;
    if (memory == 0)
        memory = bench->keys * 519 / 4; /* 6.5 bytes of key, 512 of value */
    return bench_in_group(bench, memory, measure);
}

const struct workload workload_limited = {
    .name = "limited",
    .about = "the seed's pairs, in a control group with less memory than data",
    .engines = "fkv,rocksdb,rocksdb-point",
    .run = run_limited,
};

static int run_limited_index(const struct bench *bench)
{
    enum { INDEX_BYTES_OF_KEY = 19 };
    engine_index_memory_max = bench->keys * INDEX_BYTES_OF_KEY / 4;
    if (engine_index_memory_max < 32768)
        engine_index_memory_max = 32768;
    return run_limited(bench);
}

const struct workload workload_limited_index = {
    .name = "limited-index",
    .about = "limited, and a quarter of the memory that the index needs",
    .engines = "fkv,rocksdb",
    .run = run_limited_index,
};
