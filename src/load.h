/*
 * load: many pairs at once, each written to the file once.
 *
 * The pairs of a load go to values sectors of its own, which are written straight to the file and
 * which nothing leads to before the commit: a crash, or giving up, leaves free sectors. In memory
 * are a hash, an entry and a checksum for each pair, 32 bytes. The commit is one frame of the log
 * that opens these sectors and refers to their records, as that of any large commit does; so a
 * recovery knows nothing of loads.
 *
 * The sequences of the sectors must follow on those of all that others open before the commit, and
 * records are bound to them when they are written. So a load begins LOAD_SEQUENCES after the next
 * one of the store, and cannot be committed if others have opened so many meanwhile. There is one
 * load at a time.
 *
 * Threads: one at a time in a load. The writer lock protects what belongs to the store.
 */
#ifndef FKV_LOAD_H
#define FKV_LOAD_H

#include "store.h"

enum { LOAD_SEQUENCES = 1 << 16 };

enum fkv_error load_begin(struct fkv *db, fkv_load **load);
struct fkv *load_store(const fkv_load *load); /* while it is open */
uint64_t load_owner(const fkv_load *load);    /* the number of the store's handle */
bool load_ended(const fkv_load *load);
enum fkv_error load_put(fkv_load *load, const struct key *key, const void *value,
                        size_t value_bytes);
enum fkv_error load_commit(fkv_load *load);
void load_free(fkv_load *load);

#endif
