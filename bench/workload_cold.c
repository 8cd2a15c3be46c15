/*
 * cold: reads of what is in no cache, so many under way at a time. Pairs of 1 KB, in a control
 * group that allows MEMORY bytes (a quarter of the pairs'), page cache included, so that each
 * engine reads as it does when data is larger than memory; with --memory=100000M it fits. The gets
 * are asynchronous ones of fkv, MultiGet of RocksDB.
 *
 *  1. load all pairs, flush, close, reopen; ask once for each key (exists), so that what engines
 *     keep in memory of an index is there
 *  2. rounds: drop the files from the page cache, then get random keys, 32 at a time; the median
 *     (`deep_ns`), and the reads that the block device served (`deep_reads`)
 *  3. what the disk can do, in the same directory: random reads of 4 KiB in a file as long as the
 *     pairs, 32 under way at a time, through the page cache and past it (O_DIRECT). By fio where it
 *     is installed (disk_by_fio is 1 then), or else by a loop over io_uring of this file.
 *
 * `of_cached` and `of_direct` are the reads of the gets a second over those of the disk.
 */
#include "run.h"
#include "util.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifdef FKV_HAVE_URING
#include <liburing.h>
#endif

enum { DEPTH = 32, READ_BYTES = 4096, ROUNDS = 5, DISK_SECONDS = 3 };

/* ---------------------------------------------------------------- the disk */

/* Reads a second, or 0 if there is no fio that can do it. */
static double disk_by_fio(const char *path, bool direct)
{
    enum { IOPS_FIELD = 8 }; /* of fio's terse format, version 3 */
    char command[1600];
    char line[4096];
    double reads = 0;
    snprintf(command, sizeof command,
             "fio --name=cold --filename='%s' --readonly --rw=randread --bs=%d --iodepth=%d "
             "--ioengine=io_uring --direct=%d --invalidate=1 --fadvise_hint=random --runtime=%d "
             "--time_based --output-format=terse --terse-version=3 2>/dev/null",
             path, READ_BYTES, DEPTH, direct, DISK_SECONDS);
    FILE *output = popen(command, "re");
    while (output && fgets(line, sizeof line, output)) {
        char *rest = line;
        for (int field = 1; field < IOPS_FIELD && rest; field++)
            strsep(&rest, ";");
        if (rest && strncmp(line, "3", 2) == 0) /* the first field was cut off there */
            reads = strtod(rest, NULL);
    }
    return output && pclose(output) == 0 ? reads : 0;
}

#ifdef FKV_HAVE_URING
static double disk_by_loop(const char *path, uint64_t bytes, bool direct)
{
    struct io_uring ring;
    int file = open(path, O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    uint8_t *room = aligned_alloc(READ_BYTES, (size_t)DEPTH * READ_BYTES);
    if (file < 0 || !room || io_uring_queue_init(DEPTH, &ring, 0) != 0)
        die("%s: cannot be read by io_uring", path);
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
    uint64_t random = 1, begun = 0, over = 0, begin = now_ns(), now = begin;
    uint64_t slots[DEPTH];
    for (uint64_t i = 0; i < DEPTH; i++)
        slots[i] = i;
    while (now - begin < DISK_SECONDS * UINT64_C(1000000000)) {
        for (; begun - over < DEPTH; begun++) {
            struct io_uring_sqe *entry = io_uring_get_sqe(&ring);
            uint64_t slot = slots[begun % DEPTH];
            io_uring_prep_read(entry, file, room + slot * READ_BYTES, READ_BYTES,
                               random_below(&random, bytes / READ_BYTES) * READ_BYTES);
            io_uring_sqe_set_data64(entry, slot);
        }
        struct io_uring_cqe *done;
        if (io_uring_submit_and_wait(&ring, 1) < 0)
            die("%s: cannot be read by io_uring", path);
        while (io_uring_peek_cqe(&ring, &done) == 0) {
            if (done->res != READ_BYTES)
                die("%s: a read gave %d", path, done->res);
            slots[over++ % DEPTH] = io_uring_cqe_get_data64(done);
            io_uring_cqe_seen(&ring, done);
        }
        now = now_ns();
    }
    io_uring_queue_exit(&ring);
    free(room);
    close(file);
    return (double)over * 1e9 / (double)(now - begin);
}
#else
static double disk_by_loop(const char *path, uint64_t bytes, bool direct)
{
    (void)path;
    (void)bytes;
    (void)direct;
    return 0;
}
#endif

/* Send what the disk can do, and `reads` a second beside it. */
static void measure_disk(const struct run *run, double reads)
{
    char *path = path_join(run->bench->directory, "disk");
    uint64_t bytes = run->data.keys * (run->data.key_bytes_max + run->data.value_bytes_max);
    bool by_fio = true;
    disk_write(path, bytes);
    for (int direct = 0; direct < 2; direct++) {
        bench_progress(run->bench, direct ? "the disk, O_DIRECT" : "the disk", 0, 1);
        double can = by_fio ? disk_by_fio(path, direct) : 0;
        if (can == 0) {
            by_fio = false;
            can = disk_by_loop(path, bytes, direct);
        }
        if (can == 0)
            continue;
        bench_metric(run->bench, direct ? "disk_direct_ns" : "disk_cached_ns", 1e9 / can, "ns");
        bench_metric(run->bench, direct ? "of_direct" : "of_cached", reads / can, "ratio");
    }
    bench_metric(run->bench, "disk_by_fio", by_fio, "ratio");
    unlink(path);
    free(path);
}

/* ---------------------------------------------------------------- gets */

static int drop_file(const char *path, const struct stat *status, int type, struct FTW *place)
{
    (void)status;
    (void)place;
    if (type != FTW_F)
        return 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        fdatasync(file);
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        close(file);
    }
    return 0;
}

struct round {
    struct engine_get *gets;
    uint8_t *keys, *values;
    size_t count;
};

static struct round round_make(uint64_t count)
{
    struct round round = {.count = (size_t)count};
    round.gets = need_memory(count, sizeof *round.gets);
    round.keys = need_memory(count, DATASET_KEY_BYTES_MAX);
    round.values = need_memory(count, DATASET_VALUE_ROOM);
    return round;
}

static double run_round(struct run *run, struct round *round)
{
    uint64_t wanted = 0, got = 0;
    for (size_t i = 0; i < round->count; i++) {
        uint64_t index = random_below(&run->random, run->data.keys);
        uint8_t *key = round->keys + i * DATASET_KEY_BYTES_MAX;
        round->gets[i] = (struct engine_get){
            .key = key,
            .key_bytes = dataset_key(&run->data, index, key),
            .buffer = round->values + i * DATASET_VALUE_ROOM,
            .buffer_bytes = DATASET_VALUE_ROOM,
        };
        wanted += dataset_value_bytes(&run->data, index, run->versions[index]);
    }
    nftw(run->directory, drop_file, 16, FTW_PHYS);
    uint64_t begin = now_ns();
    if (run->engine->get_deep(run->store, round->gets, round->count, DEPTH) != ENGINE_OK)
        die("%s: gets failed", run->engine->name);
    uint64_t spent = now_ns() - begin;
    for (size_t i = 0; i < round->count; i++)
        got += round->gets[i].result == ENGINE_OK ? round->gets[i].value_bytes : 0;
    if (got != wanted)
        die("%s: values of a wrong length", run->engine->name);
    return (double)spent / (double)round->count;
}

static int measure(const struct bench *bench)
{
    struct dataset data = dataset_of_kilobytes(bench->settings->seed, bench->keys);
    /* Few, so that one seldom finds what another has brought into the page cache. */
    struct round round = round_make(bench->keys / 64 + 1);
    double close_ms, reopen_ms, ns[ROUNDS];
    struct run *run = run_begin(bench, data, "store");
    run_write(run, "load", 0, data.keys, NULL);
    run_flush(run);
    run_reopen(run, &close_ms, &reopen_ms);
    run_prepare_reads(run);
    run_read(run, RUN_EXISTS, data.keys < 300000 ? data.keys : 300000);
    uint64_t reads = run_device_reads(run);
    for (int i = 0; i < ROUNDS; i++) {
        bench_progress(bench, "cold gets", (uint64_t)i, ROUNDS);
        ns[i] = run_round(run, &round);
    }
    double reads_each = (double)(run_device_reads(run) - reads) / (ROUNDS * (double)round.count);
    double middle = median(ns, ROUNDS);
    bench_metric(bench, "deep_ns", middle, "ns");
    bench_metric(bench, "deep_reads", reads_each, "ratio");
    measure_disk(run, 1e9 / middle * (reads_each < 1 ? reads_each : 1));
    uint64_t wrong = run_verify_some(run, "verify", 100000);
    run_end(run);
    free(round.gets);
    free(round.keys);
    free(round.values);
    return wrong != 0;
}

static int run_cold(const struct bench *bench)
{
    uint64_t memory = bench->settings->memory;
    if (memory == 0)
        memory = bench->keys * 1040 / 4;
    return bench->engine->get_deep ? bench_in_group(bench, memory, measure) : 0;
}

const struct workload workload_cold = {
    .name = "cold",
    .about = "reads of what is in no cache, 32 under way at a time, beside what the disk can do",
    .engines = "fkv,rocksdb",
    .run = run_cold,
};
