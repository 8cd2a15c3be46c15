/*
 * beside: what goes on beside work, and what puts notice of it. The pairs of the seed.
 *
 *  1. load all pairs, overwrite half as many, flush
 *  2. rounds of: a scan of everything; a backup, from begin to durable; and, for the disk's part in
 *     it, as many bytes as the store's files have written to a file and synced. The medians.
 *  3. put values, each put timed: alone; beside backups, one after the other; beside compactions,
 *     one after the other; alone again. OPS puts each.
 *  4. compact, alone; space
 *  5. read everything and compare; open the first backup, read and compare
 */
#include "run.h"
#include "util.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void must(const struct run *run, const char *call, enum engine_result result)
{
    if (result != ENGINE_OK)
        die("%s: %s failed", run->engine->name, call);
}

/* ---------------------------------------------------------------- alone */

/* Milliseconds to write so many bytes and sync them. */
static double plain_ms(const char *directory, uint64_t bytes)
{
    char *path = path_join(directory, "plain");
    double ms = (double)disk_write(path, bytes) / 1e6;
    unlink(path);
    free(path);
    return ms;
}

static double scan_ms(const struct run *run)
{
    uint64_t start = now_ns();
    uint64_t pairs = run->engine->scan(run->store);
    double ms = (double)(now_ns() - start) / 1e6;
    if (pairs != run->data.keys)
        die("%s: a scan of %llu pairs", run->engine->name, (unsigned long long)pairs);
    return ms;
}

/* To a new directory; `keep` it. */
static double backup_ms(const struct run *run, const char *name, bool keep)
{
    char *directory = path_join(run->bench->directory, name);
    if (!disk_make_directory(directory))
        die("no directory for a backup");
    uint64_t start = now_ns();
    must(run, "backup", run->engine->backup(run->store, directory));
    double ms = (double)(now_ns() - start) / 1e6;
    if (!keep)
        disk_remove_directory(directory);
    free(directory);
    return ms;
}

static double amp(const struct run *run, const char *name)
{
    char *directory = path_join(run->bench->directory, name);
    struct disk_usage usage = disk_measure(run->engine, directory);
    free(directory);
    return (double)(usage.data_bytes + usage.log_bytes) / (double)run->live_bytes;
}

static void measure_alone(struct run *run)
{
    const struct bench *bench = run->bench;
    unsigned rounds = bench->settings->rounds;
    double *figures[3];
    for (int f = 0; f < 3; f++)
        figures[f] = need_memory(rounds, sizeof(double));
    uint64_t bytes = disk_measure(run->engine, run->directory).data_bytes;
    for (unsigned round = 0; round < rounds; round++) {
        bench_progress(bench, "scan and back up", round, rounds);
        figures[0][round] = plain_ms(bench->directory, bytes);
        figures[1][round] = scan_ms(run);
        figures[2][round] = backup_ms(run, round ? "again" : "backup", round == 0);
    }
    bench_metric(bench, "plain_ms", median(figures[0], rounds), "ms");
    bench_metric(bench, "scan_ms", median(figures[1], rounds), "ms");
    bench_metric(bench, "backup_ms", median(figures[2], rounds), "ms");
    bench_metric(bench, "space_amp_store", run_space_amp(run), "ratio");
    bench_metric(bench, "space_amp_backup", amp(run, "backup"), "ratio");
    for (int f = 0; f < 3; f++)
        free(figures[f]);
}

/* ---------------------------------------------------------------- beside puts */

enum beside { NOTHING, BACKUPS, COMPACTIONS };

struct other {
    const struct run *run;
    enum beside what;
    _Atomic bool stop;
    uint64_t done;
};

static void *work_beside(void *context)
{
    struct other *other = context;
    const struct run *run = other->run;
    for (; !other->stop; other->done++)
        if (other->what == BACKUPS)
            backup_ms(run, "beside", false);
        else
            must(run, "compact", run->engine->compact(run->store));
    return NULL;
}

static int compare_latencies(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left;
    uint64_t b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

static void send_latencies(const struct bench *bench, const char *name, uint64_t *latencies,
                           uint64_t count)
{
    static const struct {
        const char *suffix;
        double part;
    } ranks[] = {{"p50", 0.5}, {"p99", 0.99}, {"p999", 0.999}, {"p9999", 0.9999}, {"max", 1}};
    qsort(latencies, count, sizeof *latencies, compare_latencies);
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
        char metric[32];
        uint64_t rank = (uint64_t)(ranks[i].part * (double)count);
        snprintf(metric, sizeof metric, "put_%s_%s_us", name, ranks[i].suffix);
        bench_metric(bench, metric, (double)latencies[rank < count ? rank : count - 1] / 1e3, "us");
    }
}

static void measure_puts(struct run *run, const char *name, enum beside what)
{
    const struct bench *bench = run->bench;
    uint64_t count = bench->settings->operations;
    uint64_t *latencies = need_memory(count, sizeof *latencies);
    struct other other = {.run = run, .what = what};
    pthread_t thread;
    char metric[32];
    run_rest(run);
    if (what != NOTHING && pthread_create(&thread, NULL, work_beside, &other) != 0)
        die("no thread");
    uint64_t spent = run_write(run, name, RUN_UNIFORM, count, latencies);
    other.stop = true;
    if (what != NOTHING) {
        pthread_join(thread, NULL);
        snprintf(metric, sizeof metric, "%s_done", name);
        bench_metric(bench, metric, (double)other.done, "count");
    }
    snprintf(metric, sizeof metric, "put_%s_ns", name);
    bench_metric(bench, metric, (double)spent / (double)count, "ns");
    send_latencies(bench, name, latencies, count);
    free(latencies);
}

static void compact_alone(struct run *run)
{
    run_flush(run);
    bench_metric(run->bench, "space_amp_overwritten", run_space_amp(run), "ratio");
    uint64_t start = now_ns();
    must(run, "compact", run->engine->compact(run->store));
    bench_metric(run->bench, "compact_ms", (double)(now_ns() - start) / 1e6, "ms");
    run_flush(run);
    bench_metric(run->bench, "space_amp_compacted", run_space_amp(run), "ratio");
}

/* ---------------------------------------------------------------- the workload */

/* The run goes on with the first backup, and what it should hold. */
static uint64_t verify_backup(struct run *run, const uint32_t *versions)
{
    char *directory = path_join(run->bench->directory, "backup");
    must(run, "close", run->engine->close(run->store));
    run->store = run->engine->open(directory);
    if (run->store == NULL)
        die("%s: a backup cannot be opened", run->engine->name);
    memcpy(run->versions, versions, run->data.keys * sizeof *versions);
    free(directory);
    return run_verify(run, "verify the backup");
}

static int run_beside(const struct bench *bench)
{
    struct dataset data = dataset_of_the_seed(bench->settings->seed, bench->keys);
    struct run *run = run_begin(bench, data, "store");
    run_write(run, "load", 0, data.keys, NULL);
    run_write(run, "overwrite", RUN_UNIFORM, data.keys / 2, NULL);
    run_flush(run);
    uint32_t *versions = need_memory(data.keys, sizeof *versions);
    memcpy(versions, run->versions, data.keys * sizeof *versions);
    measure_alone(run);
    measure_puts(run, "alone", NOTHING);
    measure_puts(run, "backups", BACKUPS);
    if (run->engine->compact != NULL) {
        measure_puts(run, "compactions", COMPACTIONS);
        compact_alone(run);
    }
    measure_puts(run, "alone_again", NOTHING);
    uint64_t wrong = run_verify(run, "verify");
    wrong += verify_backup(run, versions);
    free(versions);
    run_end(run);
    return wrong != 0;
}

const struct workload workload_beside = {
    .name = "beside",
    .about = "scans, backups and compactions, alone and beside puts",
    .engines = "fkv,lmdb",
    .run = run_beside,
};
