/*
 * The benchmark: what a workload is, and what it is given.
 *
 * The program forks one child for each engine and workload, so that no engine inherits another's
 * memory or page cache, runs them one after another, and collects through a pipe what they measure.
 *
 *     main.c       arguments, the plan, the children
 *     workload_*.c what is measured: one workload a file
 *     run.c        a store and what it should hold: timed writes and reads, verification
 *     dataset.c    keys and values
 *     engine_*.c   the engines, behind engine.h
 *     report.c     progress, table, JSON lines
 */
#ifndef BENCH_H
#define BENCH_H

#include "engine.h"

struct settings {
    uint64_t keys;
    uint64_t operations;
    uint64_t seed;
    uint64_t memory; /* of the workload limited, in bytes; 0: a quarter of the pairs */
    unsigned rounds; /* of each reading phase; the median counts */
    const char *directory;
};

/* One engine under one workload, in the child. */
struct bench {
    const struct settings *settings;
    const struct engine *engine;
    const char *directory; /* empty; removed when the child is gone */
    uint64_t keys;         /* how many keys this run of the workload is about */
    int pipe;              /* to the parent */
};

/* A workload: returns 0, or not if a result was wrong or a call failed. */
struct workload {
    const char *name;
    const char *about;
    const char *engines; /* that it runs on if nothing else was asked for */
    int (*run)(const struct bench *bench);
};

/* One a file; a new one is declared here and listed in main.c. */

extern const struct workload workload_seed;
extern const struct workload workload_sizes;
extern const struct workload workload_many;
extern const struct workload workload_threads;
extern const struct workload workload_scale;
extern const struct workload workload_limited;
extern const struct workload workload_limited_index;
extern const struct workload workload_cold;
extern const struct workload workload_bulk;
extern const struct workload workload_beside;
extern const struct workload workload_check;

/* Call `measure` in a child in a control group that allows so much memory, page cache included;
 * where that is not allowed, say so, and return 0 without it. */
int bench_in_group(const struct bench *bench, uint64_t memory,
                   int (*measure)(const struct bench *));

/* What travels through the pipe. */
struct message {
    enum { MESSAGE_METRIC, MESSAGE_PROGRESS } type;
    char name[32]; /* of the metric, or what is being done */
    char unit[8];
    double value; /* the metric's, or the part that is done, 0 to 1 */
};

/* Send a result to the parent; say how far the child is. */
void bench_metric(const struct bench *bench, const char *name, double value, const char *unit);
void bench_progress(const struct bench *bench, const char *what, uint64_t done, uint64_t total);

#endif
