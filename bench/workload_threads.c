/*
 * threads: several threads at once.
 *
 *   read, 95/5, 50/50   1, 2 and 4 threads that get, or get and put, keys chosen uniformly
 *   latency             of a reader's gets: alone; beside a thread that only computes, which shows
 *                       what this machine does to two busy threads; beside one that puts without
 *                       pause
 *   snapshots           gets and puts of one thread in a store that never had a snapshot, in one
 *                       that had some, and while one is held
 *   sync                1 to 32 threads whose every put is synced, and the same append and
 * fdatasync done bare, in turns
 *
 * A figure is the time that passes, over the operations of all threads together: twice as fast is
 * half of it. Making the keys and values is in it, the same for all engines. Each thread writes
 * keys of its own, so that all values can be verified afterwards.
 */
#include "run.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { THREADS_MAX = 32, PERCENT = 100 };

struct gang;

struct member {
    struct gang *gang;
    pthread_t thread;
    unsigned number;
    uint64_t random;
    uint64_t done;
    uint64_t began_ns, ended_ns;
    uint64_t *latencies; /* of its gets, or NULL */
};

/* Threads that begin together. */
struct gang {
    struct run *run;
    unsigned threads;
    void (*work)(struct member *member);
    unsigned read_percent;
    uint64_t operations; /* of each */
    pthread_barrier_t begin;
    _Atomic bool stop;
    struct member members[THREADS_MAX];
};

/* ---------------------------------------------------------------- single operations */

static void member_get(struct member *member)
{
    struct run *run = member->gang->run;
    uint8_t key[DATASET_KEY_BYTES_MAX];
    uint8_t value[DATASET_VALUE_ROOM];
    size_t value_bytes = 0;
    size_t key_bytes = dataset_key(&run->data, random_below(&member->random, run->data.keys), key);
    if (run->engine->get(run->store, key, key_bytes, value, sizeof value, &value_bytes) !=
        ENGINE_OK)
        die("%s: get failed", run->engine->name);
}

/* A key that no other thread writes. */
static uint64_t own_key(struct member *member)
{
    const struct gang *gang = member->gang;
    uint64_t share = gang->run->data.keys / gang->threads;
    return random_below(&member->random, share) * gang->threads + member->number;
}

static void member_put(struct member *member, bool sync)
{
    struct run *run = member->gang->run;
    uint8_t key[DATASET_KEY_BYTES_MAX];
    uint8_t value[DATASET_VALUE_ROOM];
    uint64_t index = own_key(member);
    size_t key_bytes = dataset_key(&run->data, index, key);
    size_t bytes = dataset_value(&run->data, index, ++run->versions[index], value);
    enum engine_result result =
        (sync ? run->engine->put_sync : run->engine->put)(run->store, key, key_bytes, value, bytes);
    if (result != ENGINE_OK)
        die("%s: put failed", run->engine->name);
}

/* ---------------------------------------------------------------- gangs */

static void *member_main(void *context)
{
    struct member *member = context;
    pthread_barrier_wait(&member->gang->begin);
    member->began_ns = now_ns();
    member->gang->work(member);
    member->ended_ns = now_ns();
    return NULL;
}

static void gang_begin(struct gang *gang)
{
    pthread_barrier_init(&gang->begin, NULL, gang->threads + 1);
    for (unsigned i = 0; i < gang->threads; i++) {
        struct member *member = &gang->members[i];
        member->gang = gang;
        member->number = i;
        member->random = random_next(&gang->run->random);
        if (pthread_create(&member->thread, NULL, member_main, member) != 0)
            die("no thread");
    }
    pthread_barrier_wait(&gang->begin);
}

/*
 * Wait for their ends; the nanoseconds that an operation took. By the members' own clocks: the
 * thread that made them may not have run before they were done.
 */
static double gang_end(struct gang *gang)
{
    uint64_t done = 0, began = UINT64_MAX, ended = 0;
    for (unsigned i = 0; i < gang->threads; i++) {
        const struct member *member = &gang->members[i];
        pthread_join(member->thread, NULL);
        done += member->done;
        began = member->began_ns < began ? member->began_ns : began;
        ended = member->ended_ns > ended ? member->ended_ns : ended;
    }
    pthread_barrier_destroy(&gang->begin);
    return (double)(ended - began) / (double)done;
}

/* ---------------------------------------------------------------- read and write */

static void mixed(struct member *member)
{
    const struct gang *gang = member->gang;
    for (; member->done < gang->operations; member->done++) {
        if (random_below(&member->random, PERCENT) < gang->read_percent)
            member_get(member);
        else
            member_put(member, false);
    }
}

static double run_mixed(struct run *run, unsigned threads, unsigned read_percent)
{
    struct gang gang = {.run = run, .threads = threads, .work = mixed};
    gang.read_percent = read_percent;
    gang.operations = run->bench->settings->operations / threads;
    gang_begin(&gang);
    return gang_end(&gang);
}

static void measure_mixes(struct run *run)
{
    static const unsigned threads[] = {1, 2, 4};
    static const struct {
        const char *name;
        unsigned read_percent;
    } mixes[] = {{"read", 100}, {"read95", 95}, {"read50", 50}};
    enum { THREADS = sizeof threads / sizeof *threads };
    unsigned rounds = run->bench->settings->rounds;
    for (size_t mix = 0; mix < sizeof mixes / sizeof *mixes; mix++) {
        double *figures[THREADS];
        for (int t = 0; t < THREADS; t++)
            figures[t] = need_memory(rounds, sizeof(double));
        for (unsigned round = 0; round < rounds; round++)
            for (int t = 0; t < THREADS; t++) {
                figures[t][round] = run_mixed(run, threads[t], mixes[mix].read_percent);
                bench_progress(run->bench, mixes[mix].name, round * THREADS + (uint64_t)t,
                               rounds * THREADS);
            }
        for (int t = 0; t < THREADS; t++) {
            char name[32];
            snprintf(name, sizeof name, "%s_ns_%ut", mixes[mix].name, threads[t]);
            bench_metric(run->bench, name, median(figures[t], rounds), "ns");
            free(figures[t]);
        }
    }
}

/* ---------------------------------------------------------------- a reader's latency */

static void timed_reads(struct member *member)
{
    for (; member->done < member->gang->operations; member->done++) {
        uint64_t begin = now_ns();
        member_get(member);
        member->latencies[member->done] = now_ns() - begin;
    }
}

static void endless_puts(struct member *member)
{
    for (; !atomic_load_explicit(&member->gang->stop, memory_order_relaxed); member->done++)
        member_put(member, false);
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Touches nothing that another thread does. */
static void endless_sums(struct member *member)
{
    while (!atomic_load_explicit(&member->gang->stop, memory_order_relaxed))
        random_next(&member->random);
}

struct company {
    const char *name;
    void (*work)(struct member *member); /* NULL: none */
    double *p50, *p999;                  /* of the reader, in microseconds, a round each */
};

static void read_latency(struct run *run, struct company *company, unsigned round)
{
    uint64_t count = run->bench->settings->operations;
    uint64_t *latencies = need_memory(count, sizeof *latencies);
    struct gang beside = {.run = run, .threads = 1, .work = company->work};
    struct gang reading = {.run = run, .threads = 1, .work = timed_reads, .operations = count};
    reading.members[0].latencies = latencies;
    if (company->work) {
        gang_begin(&beside);
        usleep(200000); /* until it has found its pace */
    }
    gang_begin(&reading);
    gang_end(&reading);
    if (company->work) {
        beside.stop = true;
        gang_end(&beside);
    }
    qsort(latencies, count, sizeof *latencies, compare_u64);
    company->p50[round] = (double)latencies[count / 2] / 1000;
    company->p999[round] = (double)latencies[count - 1 - count / 1000] / 1000;
    free(latencies);
}

static void report_latency(struct run *run, const char *quantile, const char *beside,
                           double *figures)
{
    char name[32];
    snprintf(name, sizeof name, "get_%s_us_%s", quantile, beside);
    bench_metric(run->bench, name, median(figures, run->bench->settings->rounds), "us");
}

static void measure_latency(struct run *run)
{
    struct company companies[] = {
        {.name = "alone"},
        {.name = "busy", .work = endless_sums},
        {.name = "beside", .work = endless_puts},
    };
    enum { COMPANIES = sizeof companies / sizeof *companies };
    unsigned rounds = run->bench->settings->rounds;
    for (int c = 0; c < COMPANIES; c++) {
        companies[c].p50 = need_memory(rounds, sizeof(double));
        companies[c].p999 = need_memory(rounds, sizeof(double));
    }
    for (unsigned round = 0; round < rounds; round++) {
        run_rest(run);
        for (unsigned c = 0; c < COMPANIES; c++) {
            read_latency(run, &companies[c], round);
            bench_progress(run->bench, "latency of reads", COMPANIES * round + c + 1,
                           COMPANIES * rounds);
        }
    }
    for (int c = 0; c < COMPANIES; c++) {
        report_latency(run, "p50", companies[c].name, companies[c].p50);
        report_latency(run, "p999", companies[c].name, companies[c].p999);
        free(companies[c].p50);
        free(companies[c].p999);
    }
}

/* ---------------------------------------------------------------- snapshots */

enum state { NEVER, AFTER, HELD, STATES };

static const char *const state_names[STATES] = {"never", "after", "held"};

static void measure_snapshots(struct run *runs[STATES])
{
    const struct bench *bench = runs[NEVER]->bench;
    const struct engine *engine = bench->engine;
    unsigned rounds = bench->settings->rounds;
    double *gets[STATES], *puts[STATES];
    for (int s = 0; s < STATES; s++) {
        gets[s] = need_memory(rounds, sizeof(double));
        puts[s] = need_memory(rounds, sizeof(double));
    }
    for (unsigned round = 0; round < rounds; round++) {
        for (unsigned turn = 0; turn < STATES; turn++) { /* each comes first as often as others */
            unsigned s = (round + turn) % STATES;
            struct store *store = runs[s]->store;
            void *snapshot = s == NEVER ? NULL : engine->snapshot(store);
            if (s == AFTER)
                engine->snapshot_end(store, snapshot);
            gets[s][round] = run_mixed(runs[s], 1, PERCENT);
            puts[s][round] = run_mixed(runs[s], 1, 0);
            if (s == HELD)
                engine->snapshot_end(store, snapshot);
            run_rest(runs[s]);
        }
        bench_progress(bench, "snapshots", round + 1, rounds);
    }
    for (int s = 0; s < STATES; s++) {
        char name[32];
        snprintf(name, sizeof name, "snapshot_%s_get_ns", state_names[s]);
        bench_metric(bench, name, median(gets[s], rounds), "ns");
        snprintf(name, sizeof name, "snapshot_%s_put_ns", state_names[s]);
        bench_metric(bench, name, median(puts[s], rounds), "ns");
        free(gets[s]);
        free(puts[s]);
    }
}

/* ---------------------------------------------------------------- synced commits */

#define SLICE_NS UINT64_C(200000000)

static void synced_puts(struct member *member)
{
    for (; !atomic_load_explicit(&member->gang->stop, memory_order_relaxed); member->done++)
        member_put(member, true);
}

static double sync_slice(struct run *run, unsigned threads)
{
    struct gang gang = {.run = run, .threads = threads, .work = synced_puts};
    gang_begin(&gang);
    usleep(SLICE_NS / 1000);
    gang.stop = true;
    return gang_end(&gang) / 1000;
}

/*
 * The floor: a file, and in a loop one write of what a commit has to log, and fdatasync. In the
 * form that is kindest to the file system: over blocks that were written before, in a ring, so that
 * no sync has anything but data to write; and in the form that is obvious, at the end of a file.
 */
struct bare {
    const char *name;
    int file;
    uint64_t ring_bytes; /* 0: the file grows */
    uint64_t at;
};

enum { RING_BYTES = 16 << 20, FRAME_BYTES = 48, RING_STEP = 4096 };

static struct bare bare_open(const struct run *run, const char *name, uint64_t ring_bytes)
{
    static const uint8_t zeros[RING_STEP];
    struct bare bare = {name, -1, ring_bytes, 0};
    char *path = path_join(run->directory, name);
    bare.file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    free(path);
    bool ok = bare.file >= 0;
    for (uint64_t at = 0; ok && at < ring_bytes; at += sizeof zeros)
        ok = pwrite(bare.file, zeros, sizeof zeros, (off_t)at) == (ssize_t)sizeof zeros;
    if (!ok || fsync(bare.file) != 0)
        die("%s: %s", name, strerror(errno));
    return bare;
}

static double bare_slice(struct run *run, struct bare *bare)
{
    static uint8_t frame[FRAME_BYTES + DATASET_VALUE_ROOM];
    uint64_t begin = now_ns();
    uint64_t done = 0;
    for (; now_ns() - begin < SLICE_NS; done++) {
        uint64_t index = random_below(&run->random, run->data.keys);
        size_t bytes =
            FRAME_BYTES + dataset_value(&run->data, index, (uint32_t)done + 1, frame + FRAME_BYTES);
        if (bare->ring_bytes && bare->at + bytes > bare->ring_bytes)
            bare->at = 0;
        if (pwrite(bare->file, frame, bytes, (off_t)bare->at) != (ssize_t)bytes ||
            fdatasync(bare->file) != 0)
            die("%s: %s", bare->name, strerror(errno));
        bare->at += bytes;
    }
    return (double)(now_ns() - begin) / 1000 / (double)done;
}

/* Disks drift within seconds: a bare slice before and after each, and ratios to their mean. */
static void measure_syncs(struct run *run)
{
    static const unsigned threads[] = {1, 2, 4, 8, 16, 32};
    enum { COUNTS = sizeof threads / sizeof *threads };
    unsigned rounds = 2 * run->bench->settings->rounds + 1;
    double *figures[COUNTS], *ratios[COUNTS];
    double *bares = need_memory(rounds * COUNTS, sizeof(double));
    double *appends = need_memory(rounds, sizeof(double));
    struct bare ring = bare_open(run, "bare-ring", RING_BYTES);
    struct bare append = bare_open(run, "bare-append", 0);
    for (int t = 0; t < COUNTS; t++) {
        figures[t] = need_memory(rounds, sizeof(double));
        ratios[t] = need_memory(rounds, sizeof(double));
    }
    for (unsigned round = 0; round < rounds; round++) {
        appends[round] = bare_slice(run, &append);
        double before = bare_slice(run, &ring);
        for (int t = 0; t < COUNTS; t++) {
            figures[t][round] = sync_slice(run, threads[t]);
            double after = bare_slice(run, &ring);
            ratios[t][round] = figures[t][round] / ((before + after) / 2);
            bares[round * COUNTS + (unsigned)t] = before = after;
            bench_progress(run->bench, "syncs", round * COUNTS + (unsigned)t + 1, rounds * COUNTS);
        }
    }
    bench_metric(run->bench, "bare_append_us", median(appends, rounds), "us");
    bench_metric(run->bench, "bare_us", median(bares, rounds * COUNTS), "us");
    for (int t = 0; t < COUNTS; t++) {
        char name[32];
        snprintf(name, sizeof name, "sync_us_%ut", threads[t]);
        bench_metric(run->bench, name, median(figures[t], rounds), "us");
        snprintf(name, sizeof name, "sync_per_bare_%ut", threads[t]);
        bench_metric(run->bench, name, median(ratios[t], rounds), "ratio");
        free(figures[t]);
        free(ratios[t]);
    }
    close(ring.file);
    close(append.file);
    free(bares);
    free(appends);
}

/* ---------------------------------------------------------------- the workload */

static uint64_t run_shared_store(const struct bench *bench)
{
    struct dataset data = dataset_of_the_seed(bench->settings->seed, bench->keys);
    struct run *run = run_begin(bench, data, "store");
    run_write(run, "load", 0, bench->keys, NULL);
    run_prepare_reads(run);
    measure_mixes(run);
    measure_latency(run);
    uint64_t wrong = run_verify(run, "verify");
    run_end(run);
    return wrong;
}

/* Stores that are the same, but that one never has a snapshot, one has had some, and in one there
 * is one while it is measured. */
static uint64_t run_snapshot_stores(const struct bench *bench)
{
    struct run *runs[STATES];
    for (int s = 0; s < STATES; s++) {
        struct dataset data = dataset_of_the_seed(bench->settings->seed, bench->keys);
        runs[s] = run_begin(bench, data, state_names[s]);
        run_write(runs[s], "load", 0, bench->keys, NULL);
        run_prepare_reads(runs[s]);
    }
    measure_snapshots(runs);
    uint64_t wrong = 0;
    for (int s = 0; s < STATES; s++) {
        wrong += run_verify(runs[s], "verify snapshots");
        run_end(runs[s]);
    }
    return wrong;
}

/* In a store of its own, which begins empty. */
static uint64_t run_synced_store(const struct bench *bench)
{
    struct engine engine = *bench->engine;
    struct bench synced = *bench;
    if (engine.open_synced != NULL)
        engine.open = engine.open_synced;
    synced.engine = &engine;
    struct dataset data = dataset_of_the_seed(bench->settings->seed, bench->keys);
    struct run *run = run_begin(&synced, data, "synced");
    measure_syncs(run);
    uint64_t wrong = run_verify(run, "verify synced");
    run_end(run);
    return wrong;
}

static int run_threads(const struct bench *bench)
{
    if (bench->engine->single)
        die("%s is for one thread", bench->engine->name);
    uint64_t wrong = run_shared_store(bench);
    if (bench->engine->snapshot != NULL)
        wrong += run_snapshot_stores(bench);
    if (bench->engine->put_sync != NULL)
        wrong += run_synced_store(bench);
    return wrong != 0;
}

const struct workload workload_threads = {
    .name = "threads",
    .about = "1 to 4 threads that read and write; synced commits of 1 to 32; a reader's latency",
    .engines = "memory-shared,fkv,fkv-inline,rocksdb,lmdb",
    .run = run_threads,
};
