/*
 * crash_engine: workloads whose disks crash, again and again, and what must hold afterwards.
 */
#ifndef FKV_TESTS_CRASH_ENGINE_H
#define FKV_TESTS_CRASH_ENGINE_H

#include "crash_support.h"

extern struct crash_totals {
    uint64_t points;      /* of enumerations: places where disks crashed */
    uint64_t crashes;     /* losses of power */
    uint64_t kills;       /* deaths of the process */
    uint64_t in_recovery; /* of both, those that cut off a recovery, or came right after it */
    uint64_t refused;     /* openings that failed: the disk was full, or a call of them failed */
    uint64_t openings;    /* tried after them */
    uint64_t continued;   /* stores that worked on and crashed or closed again */
    uint64_t lives;       /* of chains */
    uint64_t operations;
} totals;

/* What the workloads have reached, as counted at the end of each. */
extern struct reached {
    uint64_t rebuilds; /* of index segments */
    uint64_t splits, merges;
    uint64_t moved_bytes;
    uint64_t sectors_reused;
    uint64_t large_sectors;
    uint64_t checkpoints;
    uint64_t log_wraps, chain_wraps; /* the latter in chains that are for it */
    uint64_t log_growths;
    uint64_t at_the_end; /* of the log: openings that could not mark it there */
    uint64_t referred;   /* commits whose records the log only refers to */
    uint64_t truncates;
    uint64_t holes;
    uint64_t borrowed;
    uint64_t evictions; /* of index pages */
} reached;

/*
 * Run a workload on a disk. At every `every`-th call that changes the disk, and between operations,
 * copies of it crash, by so many lotteries each; the first is a kill. Some crash again in recovery,
 * some go on.
 */
void enumerate(const struct workload *workload, uint64_t seed, unsigned every, unsigned lotteries);

/* One store, so many lives, each of which ends in a crash, a kill or a close. */
/* Varied: each of its openings has other options, and some are read-only. Wraps: a commit or two a
 * life, often where the log ends, and more crashes than commits. */
enum chain_kind { CHAIN_MIXED, CHAIN_SHORT, CHAIN_VARIED, CHAIN_WRAPS };
void chain(enum chain_kind kind, uint64_t seed, uint64_t lives);

/* Open what a crash or a kill has left, though `again` times the opening is cut off, or the disk is
 * full then, or a call of it fails, and the process dies or the power fails after that too. *kill
 * stays true if the power never failed. */
void recover(struct life *life, unsigned again, bool *kill);

/* crash_workloads.c */
extern const struct workload workload_small, workload_index, workload_collection, workload_large,
    workload_refer, workload_log, workload_shrinking, workload_digests, workload_snapshots,
    workload_loads, workload_by_call, workload_limited;

/* The seed of the run: FKV_TEST_SEED, or 1. */
uint64_t the_seed(void);
/* `counts: NAME N ...`, which scripts/soak adds up, and the sum of crashes and kills. */
void crash_print_totals(void);

#endif
