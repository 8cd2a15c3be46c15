/* A store under test, together with what it should hold: the phases that workloads are made of. */
#ifndef BENCH_RUN_H
#define BENCH_RUN_H

#include "bench.h"
#include "dataset.h"
#include "disk.h"

#include <sys/types.h>

struct run {
    const struct bench *bench;
    const struct engine *engine;
    struct dataset data;
    char *directory;
    struct store *store;
    uint32_t *versions;  /* of each key's value, as last written; 0: not there. Shared memory */
    uint64_t live_bytes; /* of keys and values that are there */
    uint64_t random;     /* state of the choice of keys */
    uint64_t log_bytes_peak;
    double space_amp_peak; /* the highest seen while writing */
    pid_t child;           /* of run_begin_to_kill, which reads from the other end of a pipe */
    int child_waits;
};

/* Open a new store in a directory of its own under the bench's; close it and forget everything.
 * Everything here ends the child with a message if the engine fails. */
struct run *run_begin(const struct bench *bench, struct dataset data, const char *name);
/* With a child for run_kill. It is made before the store is opened: what an engine knows of its
 * threads is not true any more in a child that is made later. */
struct run *run_begin_to_kill(const struct bench *bench, struct dataset data, const char *name);
void run_end(struct run *run);

/* Close and open again; the time that it takes to close, and from open to the first get served. */
void run_reopen(struct run *run, double *close_ms, double *reopen_ms);

/*
 * The child of run_begin_to_kill overwrites at least `count` values and is killed, by SIGKILL, when
 * the engine has the most in its log (if it can tell); the time from open until the first get is
 * served. Once a run.
 */
void run_kill(struct run *run, uint64_t count, double *recover_ms);

/*
 * Put `count` pairs, each as its own commit: new keys from `first` on, or new values for keys
 * chosen uniformly (RUN_UNIFORM). Returns the nanoseconds spent in puts. `latencies` receives each
 * put's, or is NULL. Pairs are generated 128 at a time between the timed stretches.
 */
#define RUN_UNIFORM UINT64_MAX
uint64_t run_write(struct run *run, const char *what, uint64_t first, uint64_t count,
                   uint64_t *latencies);

/* Delete `count` pairs that are there, chosen uniformly, each as its own commit, as run_write puts.
 * `count` is well below what is there. */
uint64_t run_delete(struct run *run, const char *what, uint64_t count);

/*
 * Nanoseconds a call of get, of get for keys that are not there, of exists for keys that are; keys
 * chosen uniformly and laid out one after another before the clock starts. Lengths of values are
 * compared in sum, contents in run_verify.
 */
enum run_read { RUN_GET, RUN_MISS, RUN_EXISTS };
double run_read(struct run *run, enum run_read kind, uint64_t count);

/* Rounds of all three; the medians are sent as get_ns, miss_ns, exists_ns. */
void run_read_rounds(struct run *run);

/* Read every key once and compare: the number of values that are wrong, complained about. */
uint64_t run_verify(struct run *run, const char *what);
/* The same for at most so many keys, evenly spread. */
uint64_t run_verify_some(struct run *run, const char *what, uint64_t most);

/* Wait for the engine's background work to end, until its files change no more. Force nothing. */
void run_rest(struct run *run);
/* The same after what is in the log only was written to the data files. */
void run_flush(struct run *run);
void run_prepare_reads(struct run *run);

/* Allocated bytes of all files but the logs, over live bytes of keys and values. */
double run_space_amp(struct run *run);
void run_send_index_bytes(struct run *run);

/* Reads that the block device under the store has served, anybody's: for a quiet machine. */
uint64_t run_device_reads(const struct run *run);

#endif
