/*
 * loader: puts the pairs of a dump (dump.h) into a store.
 *
 * A dump that is cut off, or is none, is noticed at that place: what came before it is in the store
 * then. Memory: of a pair, however long a line is.
 */
#ifndef FKV_CLI_LOADER_H
#define FKV_CLI_LOADER_H

#include "dump.h"
#include "fkv.h"

struct loader {
    FILE *from;
    uint64_t lines;   /* read so far: where it went wrong */
    uint64_t pairs;   /* put so far */
    const char *what; /* is wrong with the dump; NULL: nothing */
    struct text key, value;
};

/* Read the first line; `loader` has nothing but `from`. False: this is no dump to be loaded. */
bool loader_begin(struct loader *loader);
/* The rest. What the store says if it fails, else FKV_OK: `what` tells then whether all is well. */
enum fkv_error loader_run(struct loader *loader, fkv *db);
void loader_drop(struct loader *loader);

#endif
