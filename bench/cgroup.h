/* A memory control group, of version 1 or 2, for a workload to run in. */
#ifndef BENCH_CGROUP_H
#define BENCH_CGROUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cgroup {
    char path[1024];
};

/* Make a group below this process's own that allows so many bytes, page cache included. False, and
 * why in `why`, where that is not allowed. */
bool cgroup_make(struct cgroup *group, uint64_t bytes, char *why, size_t why_room);
/* What this process may use: the memory of the machine, or what its own group allows. */
uint64_t cgroup_memory_bytes(void);
/* Move this process there. */
bool cgroup_enter(const struct cgroup *group);
/* The most that was in use; 0 if it is not known. */
uint64_t cgroup_peak_bytes(const struct cgroup *group);
/* Nobody may be in it any more. */
void cgroup_remove(const struct cgroup *group);

#endif
