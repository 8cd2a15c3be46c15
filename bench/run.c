#include "run.h"

#include "util.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

/* Pairs generated at a time: few enough to stay in a core's cache until they are put. */
#define BATCH 128u
/* Progress is sent, and space measured, this often in a phase. */
#define STEPS 100u

static void check(const struct run *run, const char *call, enum engine_result result)
{
    if (result == ENGINE_ERROR)
        die("%s: %s failed", run->engine->name, call);
}

/* ---------------------------------------------------------------- a store's life */

static void open_store(struct run *run)
{
    run->store = run->engine->open(run->directory);
    if (run->store == NULL)
        die("%s: open failed", run->engine->name);
}

/* Zeros, touched, that the children of a fork write to as well. */
static void *shared_memory(size_t bytes)
{
    void *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        die("no memory for %zu bytes", bytes);
    return memory;
}

static struct run *run_new(const struct bench *bench, struct dataset data, const char *name)
{
    struct run *run = need_memory(1, sizeof *run);
    run->bench = bench;
    run->engine = bench->engine;
    run->data = data;
    run->directory = path_join(bench->directory, name);
    run->versions = shared_memory(data.keys * sizeof *run->versions);
    run->random = mix64(data.seed ^ 0x72756e);
    if (!disk_make_directory(run->directory))
        die("no directory for the store");
    return run;
}

struct run *run_begin(const struct bench *bench, struct dataset data, const char *name)
{
    struct run *run = run_new(bench, data, name);
    open_store(run);
    return run;
}

void run_end(struct run *run)
{
    check(run, "close", run->engine->close(run->store));
    disk_remove_directory(run->directory);
    free(run->directory);
    munmap(run->versions, run->data.keys * sizeof *run->versions);
    free(run);
}

static double close_store(struct run *run)
{
    uint64_t start = now_ns();
    check(run, "close", run->engine->close(run->store));
    return (double)(now_ns() - start) / 1e6;
}

static double open_and_get(struct run *run)
{
    uint8_t key[DATASET_KEY_BYTES_MAX];
    uint8_t value[DATASET_VALUE_ROOM];
    size_t value_bytes;
    size_t key_bytes = dataset_key(&run->data, run->data.keys / 2, key);
    uint64_t start = now_ns();
    open_store(run);
    enum engine_result result =
        run->engine->get(run->store, key, key_bytes, value, sizeof value, &value_bytes);
    double ms = (double)(now_ns() - start) / 1e6;
    if (result != ENGINE_OK)
        die("%s: a key is gone after reopening", run->engine->name);
    return ms;
}

void run_reopen(struct run *run, double *close_ms, double *reopen_ms)
{
    *close_ms = close_store(run);
    *reopen_ms = open_and_get(run);
}

/* The child of run_begin_to_kill. Never returns. */
static void overwrite_and_die(struct run *run, uint64_t count)
{
    enum { STEP = 1024 };
    const struct engine *engine = run->engine;
    uint64_t done = 0;
    uint64_t most = 0;
    uint64_t last = 0;
    open_store(run);
    for (;;) {
        run_write(run, "overwrite and die", RUN_UNIFORM, STEP, NULL);
        done += STEP;
        uint64_t now = engine->log_bytes_live != NULL ? engine->log_bytes_live(run->store) : 0;
        /* As full as it was before; where that was a rare moment, half as full. */
        bool full = now >= most - (done < 4 * count ? most / 16 : most / 2) || done >= 8 * count;
        if (done >= count && (engine->log_bytes_live == NULL || (full && last <= now)))
            kill(getpid(), SIGKILL);
        most = now > most ? now : most;
        last = now;
    }
}

struct run *run_begin_to_kill(const struct bench *bench, struct dataset data, const char *name)
{
    int ends[2];
    struct run *run = run_new(bench, data, name);
    fflush(NULL);
    if (pipe(ends) != 0 || (run->child = fork()) < 0)
        die("a child: %s", strerror(errno));
    if (run->child == 0) {
        uint64_t count;
        close(ends[1]);
        if (read(ends[0], &count, sizeof count) != sizeof count)
            _exit(0); /* the parent has ended before */
        overwrite_and_die(run, count);
    }
    close(ends[0]);
    run->child_waits = ends[1];
    open_store(run);
    return run;
}

void run_kill(struct run *run, uint64_t count, double *recover_ms)
{
    int status;
    close_store(run);
    if (write(run->child_waits, &count, sizeof count) != sizeof count)
        die("the child to be killed is gone");
    close(run->child_waits);
    while (waitpid(run->child, &status, 0) < 0)
        if (errno != EINTR)
            die("waitpid: %s", strerror(errno));
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        die("%s: the child that should have been killed ended otherwise", run->engine->name);
    *recover_ms = open_and_get(run);
}

/* ---------------------------------------------------------------- writing */

struct batch {
    size_t count;
    uint8_t keys[BATCH][DATASET_KEY_BYTES_MAX];
    size_t key_bytes[BATCH];
    size_t value_at[BATCH];
    size_t value_bytes[BATCH];
    uint8_t values[BATCH * DATASET_VALUE_ROOM];
};

static void batch_fill(struct batch *batch, struct run *run, uint64_t first, size_t count)
{
    size_t at = 0;
    batch->count = count;
    for (size_t i = 0; i < count; i++) {
        uint64_t index =
            first == RUN_UNIFORM ? random_below(&run->random, run->data.keys) : first + i;
        batch->key_bytes[i] = dataset_key(&run->data, index, batch->keys[i]);
        if (run->versions[index] == 0)
            run->live_bytes += batch->key_bytes[i];
        else
            run->live_bytes -= dataset_value_bytes(&run->data, index, run->versions[index]);
        run->versions[index]++;
        batch->value_at[i] = at;
        batch->value_bytes[i] =
            dataset_value(&run->data, index, run->versions[index], batch->values + at);
        run->live_bytes += batch->value_bytes[i];
        at += (batch->value_bytes[i] + 15) & ~(size_t)15;
    }
}

static uint64_t batch_put(const struct batch *batch, struct run *run, uint64_t *latencies)
{
    const struct engine *engine = run->engine;
    uint64_t start = now_ns();
    uint64_t last = start;
    for (size_t i = 0; i < batch->count; i++) {
        check(run, "put",
              engine->put(run->store, batch->keys[i], batch->key_bytes[i],
                          batch->values + batch->value_at[i], batch->value_bytes[i]));
        if (latencies != NULL) {
            uint64_t now = now_ns();
            latencies[i] = now - last;
            last = now;
        }
    }
    return (latencies != NULL ? last : now_ns()) - start;
}

static void sample_space(struct run *run)
{
    if (run->engine->memory_only || run->live_bytes == 0)
        return;
    struct disk_usage usage = disk_measure(run->engine, run->directory);
    double space_amp = (double)usage.data_bytes / (double)run->live_bytes;
    if (space_amp > run->space_amp_peak)
        run->space_amp_peak = space_amp;
    if (usage.log_bytes > run->log_bytes_peak)
        run->log_bytes_peak = usage.log_bytes;
}

uint64_t run_write(struct run *run, const char *what, uint64_t first, uint64_t count,
                   uint64_t *latencies)
{
    static struct batch batch;
    uint64_t spent = 0;
    uint64_t step = count / STEPS + 1;
    uint64_t next_step = step;
    for (uint64_t done = 0; done < count; done += batch.count) {
        uint64_t left = count - done;
        batch_fill(&batch, run, first == RUN_UNIFORM ? RUN_UNIFORM : first + done,
                   left < BATCH ? left : BATCH);
        spent += batch_put(&batch, run, latencies != NULL ? latencies + done : NULL);
        if (done >= next_step) {
            next_step += step;
            bench_progress(run->bench, what, done, count);
            sample_space(run);
        }
    }
    sample_space(run);
    bench_progress(run->bench, what, count, count);
    return spent;
}

uint64_t run_delete(struct run *run, const char *what, uint64_t count)
{
    static struct batch batch;
    uint64_t spent = 0;
    for (uint64_t done = 0; done < count; done += batch.count) {
        batch.count = count - done < BATCH ? count - done : BATCH;
        for (size_t i = 0; i < batch.count; i++) {
            uint64_t index;
            do {
                index = random_below(&run->random, run->data.keys);
            } while (run->versions[index] == 0);
            batch.key_bytes[i] = dataset_key(&run->data, index, batch.keys[i]);
            run->live_bytes -=
                batch.key_bytes[i] + dataset_value_bytes(&run->data, index, run->versions[index]);
            run->versions[index] = 0;
        }
        uint64_t start = now_ns();
        for (size_t i = 0; i < batch.count; i++)
            check(run, "delete",
                  run->engine->delete (run->store, batch.keys[i], batch.key_bytes[i]));
        spent += now_ns() - start;
        bench_progress(run->bench, what, done + batch.count, count);
    }
    return spent;
}

/* ---------------------------------------------------------------- reading */

/* Keys to ask for, one after another, so that fetching them costs the engine's cache little. */
struct questions {
    uint8_t *bytes;
    size_t stride; /* the last byte of each is its length */
    uint64_t count;
    uint64_t value_bytes; /* of all answers together */
};

static struct questions questions_make(struct run *run, enum run_read kind, uint64_t count)
{
    struct questions questions = {NULL, (run->data.key_bytes_max & ~(size_t)7) + 8, count, 0};
    questions.bytes = need_memory(count, questions.stride);
    for (uint64_t i = 0; i < count; i++) {
        uint8_t key[DATASET_KEY_BYTES_MAX];
        uint64_t index = random_below(&run->random, run->data.keys);
        if (kind == RUN_MISS)
            index += run->data.keys;
        else
            questions.value_bytes += dataset_value_bytes(&run->data, index, run->versions[index]);
        size_t key_bytes = dataset_key(&run->data, index, key);
        uint8_t *to = questions.bytes + i * questions.stride;
        memcpy(to, key, key_bytes);
        to[questions.stride - 1] = (uint8_t)key_bytes;
    }
    return questions;
}

struct answers {
    uint64_t found;
    uint64_t value_bytes;
};

static void ask(struct run *run, enum run_read kind, const struct questions *questions,
                uint64_t from, uint64_t to, struct answers *answers)
{
    static uint8_t buffer[DATASET_VALUE_ROOM];
    const struct engine *engine = run->engine;
    for (uint64_t i = from; i < to; i++) {
        const uint8_t *key = questions->bytes + i * questions->stride;
        size_t key_bytes = key[questions->stride - 1];
        size_t value_bytes = 0;
        enum engine_result result =
            kind == RUN_EXISTS
                ? engine->exists(run->store, key, key_bytes)
                : engine->get(run->store, key, key_bytes, buffer, sizeof buffer, &value_bytes);
        check(run, "read", result);
        answers->found += result == ENGINE_OK;
        answers->value_bytes += value_bytes;
    }
}

double run_read(struct run *run, enum run_read kind, uint64_t count)
{
    static const char *const names[] = {"get", "miss", "exists"};
    struct questions questions = questions_make(run, kind, count);
    struct answers answers = {0, 0};
    uint64_t spent = 0;
    uint64_t step = count / STEPS + 1;
    for (uint64_t done = 0; done < count; done += step) {
        uint64_t to = done + step < count ? done + step : count;
        uint64_t start = now_ns();
        ask(run, kind, &questions, done, to, &answers);
        spent += now_ns() - start;
        bench_progress(run->bench, names[kind], to, count);
    }
    free(questions.bytes);
    if (answers.found != (kind == RUN_MISS ? 0 : count))
        die("%s: %s: %llu of %llu keys were found", run->engine->name, names[kind],
            (unsigned long long)answers.found, (unsigned long long)count);
    if (kind == RUN_GET && answers.value_bytes != questions.value_bytes)
        die("%s: values of a wrong length", run->engine->name);
    return (double)spent / (double)count;
}

void run_read_rounds(struct run *run)
{
    static const char *const metrics[] = {"get_ns", "miss_ns", "exists_ns"};
    unsigned rounds = run->bench->settings->rounds;
    double *figures[3];
    for (int kind = 0; kind < 3; kind++)
        figures[kind] = need_memory(rounds, sizeof(double));
    for (unsigned round = 0; round < rounds; round++)
        for (int kind = 0; kind < 3; kind++)
            figures[kind][round] =
                run_read(run, (enum run_read)kind, run->bench->settings->operations);
    for (int kind = 0; kind < 3; kind++) {
        bench_metric(run->bench, metrics[kind], median(figures[kind], rounds), "ns");
        free(figures[kind]);
    }
}

static bool is_right(struct run *run, uint64_t index, uint8_t *expected, uint8_t *found)
{
    uint8_t key[DATASET_KEY_BYTES_MAX];
    size_t key_bytes = dataset_key(&run->data, index, key);
    size_t found_bytes = 0;
    enum engine_result result =
        run->engine->get(run->store, key, key_bytes, found, DATASET_VALUE_ROOM, &found_bytes);
    check(run, "get", result);
    if (run->versions[index] == 0)
        return result == ENGINE_NOT_FOUND;
    size_t bytes = dataset_value(&run->data, index, run->versions[index], expected);
    return result == ENGINE_OK && found_bytes == bytes && memcmp(found, expected, bytes) == 0;
}

uint64_t run_verify_some(struct run *run, const char *what, uint64_t most)
{
    uint8_t expected[DATASET_VALUE_ROOM];
    uint8_t found[DATASET_VALUE_ROOM];
    uint64_t wrong = 0;
    uint64_t count = run->data.keys < most ? run->data.keys : most;
    uint64_t step = count / STEPS + 1;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t index = (uint64_t)((unsigned __int128)i * run->data.keys / count);
        wrong += !is_right(run, index, expected, found);
        if ((i + 1) % step == 0 || i + 1 == count)
            bench_progress(run->bench, what, i + 1, count);
    }
    if (wrong != 0)
        complain("%s: %s: %llu of %llu values are not what was written last", run->engine->name,
                 what, (unsigned long long)wrong, (unsigned long long)count);
    return wrong;
}

uint64_t run_verify(struct run *run, const char *what)
{
    return run_verify_some(run, what, UINT64_MAX);
}

/* ---------------------------------------------------------------- coming to rest */

void run_rest(struct run *run)
{
    bench_progress(run->bench, "coming to rest", 0, 1);
    if (run->engine->rest != NULL)
        check(run, "rest", run->engine->rest(run->store));
    if (run->engine->memory_only)
        return;
    /* Whatever the engine said: half a second without a change of its files, a minute at most. */
    struct disk_usage before = disk_measure(run->engine, run->directory);
    for (int look = 0, same = 0; look < 600 && same < 5; look++) {
        usleep(100000);
        struct disk_usage after = disk_measure(run->engine, run->directory);
        same = memcmp(&before, &after, sizeof before) == 0 ? same + 1 : 0;
        before = after;
    }
}

void run_flush(struct run *run)
{
    if (run->engine->flush != NULL)
        check(run, "flush", run->engine->flush(run->store));
    run_rest(run);
}

void run_prepare_reads(struct run *run)
{
    run_rest(run);
    if (run->engine->prepare_reads == NULL)
        return;
    bench_progress(run->bench, "preparing to read", 0, 1);
    check(run, "prepare_reads", run->engine->prepare_reads(run->store));
    run_rest(run);
}

double run_space_amp(struct run *run)
{
    struct disk_usage usage = disk_measure(run->engine, run->directory);
    return (double)usage.data_bytes / (double)run->live_bytes;
}

void run_send_index_bytes(struct run *run)
{
    if (run->engine->index_bytes != NULL)
        bench_metric(run->bench, "index_bytes_per_key",
                     (double)run->engine->index_bytes(run->store) / (double)run->data.keys,
                     "bytes");
}

uint64_t run_device_reads(const struct run *run)
{
    struct stat status;
    char path[64];
    unsigned long long reads = 0;
    if (stat(run->directory, &status) != 0)
        return 0;
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/stat", major(status.st_dev),
             minor(status.st_dev));
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        if (fscanf(file, "%llu", &reads) != 1)
            reads = 0;
        fclose(file);
    }
    return reads;
}
