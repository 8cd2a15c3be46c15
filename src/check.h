/*
 * check: is everything in a store as it should be?
 *
 * fkv.h says what is verified (fkv_check). There are two subjects: an open store, which is checked
 * in the state that its handle has in memory, and besides that what its file holds; and the file of
 * a store that cannot be opened, whose last checkpoint is checked as far as it can be read. Both
 * are given to the same code as pages, sectors and counters (check_parts.h).
 *
 * The one idea: the walk over all records looks up each live one in the index and marks the slot
 * that leads to it. Slots are marked once at most, since each has one address; so if every live
 * record finds its slot and no slot is left over, index and records are one to one, and neither had
 * to be kept or sorted. Memory: a bit a slot of the index, the pages of the index that are not in
 * memory already, and 24 bytes for each part of a value in several pieces.
 */
#ifndef FKV_CHECK_H
#define FKV_CHECK_H

#include "store.h"

enum check_flags {
    CHECK_NO_FILE = 1 << 0, /* look at what is in memory, and at records; fast */
};

struct check_options {
    unsigned flags;
    uint32_t garbage_percent_max; /* the bound on dead cells; 0: 100 */
    void (*problem)(void *context, const fkv_problem *problem);
    int (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
};

/*
 * Check an open store. The caller has the writer lock, or is alone, and no checkpoint runs in
 * another thread; one that is advanced step by step (FKV_NO_THREAD) may be anywhere. FKV_OK,
 * FKV_DAMAGED or FKV_NO_MEMORY. options and result may be NULL.
 */
enum fkv_error store_check(struct fkv *db, const struct check_options *options,
                           fkv_check_result *result);

/* Wait until store_check may be called. The caller has the writer lock, which is released
 * meanwhile, and no checkpoint begins before he does that again. */
void check_wait(struct fkv *db);

/* fkv_check_file on any file system. */
enum fkv_error check_file(struct os *os, const char *path, const struct check_options *options,
                          fkv_check_result *result);

#endif
