/*
 * fault_engine: stores one call of which fails: of the disk, or a request for memory.
 *
 * A TRIAL takes a store as some work has left it, opens it, takes some steps, and closes it, while
 * the n-th call of a kind fails. For each kind n counts up from 1 until nothing has failed, so
 * every call of opening, the steps and closing has its turn. Then:
 *
 * 1. Whatever fails says so with an error that fits, and a sentence; the commit under way has taken
 *    place whole or not at all.
 * 2. The store holds what it must while the handle is open. It takes commits again, unless a sync
 * or a write failed: then it refuses them with FKV_FAILED, and its reads go on.
 * 3. No handle, mapping or block of memory is left when it is closed.
 * 4. The next opening, after a loss of power, after a kill, or after a kill when the system has let
 *    go of what it could not write, finds every synced commit, as the crash tests demand it.
 */
#ifndef FKV_TESTS_FAULT_ENGINE_H
#define FKV_TESTS_FAULT_ENGINE_H

#include "crash_engine.h"

/* Of each kind of fault, how many struck; in the order of fault_kind_name. */
enum { FAULT_KINDS = 8 };
extern struct fault_totals {
    uint64_t struck[FAULT_KINDS];
    uint64_t trials;
    uint64_t failed_stores; /* trials in which a failed sync or write made the store read-only */
} fault_totals;
const char *fault_kind_name(unsigned kind);
uint64_t faults_injected(void);

/* All kinds and calls, of a store that this workload has made in some hundred steps, or of one that
 * is yet to be created. Each `every`-th call of those there are. */
void faults_of(const struct workload *workload, uint64_t seed, unsigned every);

#endif
