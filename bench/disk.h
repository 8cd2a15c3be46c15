/* Directories of the stores: making, measuring, removing. */
#ifndef BENCH_DISK_H
#define BENCH_DISK_H

#include "engine.h"

struct disk_usage {
    uint64_t data_bytes; /* allocated (st_blocks) by all files but the logs */
    uint64_t log_bytes;  /* allocated by the write-ahead logs */
};

struct disk_usage disk_measure(const struct engine *engine, const char *directory);

/* mkdir -p and rm -rf; false and a complaint if it fails. What is not there is removed already. */
bool disk_make_directory(const char *directory);
bool disk_remove_directory(const char *directory);

/* Write so many bytes, up to the next MiB, to a new file in pieces of 1 MiB, and sync it; the
 * nanoseconds that this takes. The file stays. */
uint64_t disk_write(const char *path, uint64_t bytes);

#endif
