/*
 * crash_features: steps of a life beside puts, deletes and transactions: snapshots, bulk loads,
 * compaction, asynchronous gets. Part of crash_support, whose life_step calls them.
 */
#ifndef FKV_TESTS_CRASH_FEATURES_H
#define FKV_TESTS_CRASH_FEATURES_H

#include "crash_support.h"

/* Open a snapshot; or look at one that is open, which must be what the store was then, and perhaps
 * close it. */
enum fkv_error feature_snapshot(struct life *life);
/* Load some pairs, with a put of somebody else's between them now and then; or give the load up. */
enum fkv_error feature_load(struct life *life, const struct mood *mood);
enum fkv_error feature_compact(struct life *life);
/* Some gets at a time, of keys that may be absent. */
enum fkv_error feature_async(struct life *life);

/* Close all snapshots, before the handle or after it. */
void feature_end(struct life *life);

/* What they have reached, all lives together. */
void feature_counts_print(void);
extern struct feature_counts {
    uint64_t snapshots;               /* looked at */
    uint64_t kept;                    /* keys of them that had changed since */
    uint64_t scanned;                 /* pairs */
    uint64_t loads, given_up, loaded; /* loads committed, and not; pairs */
    uint64_t compactions;
    uint64_t async, by_call; /* gets; of these, without a mapping */
} feature_counts;

/* ---- lent by crash_support.c */
uint32_t life_draw_key(struct life *life, const struct mood *mood);
struct content life_draw_content(struct life *life, const struct mood *mood);
enum fkv_error life_put(struct life *life, const struct mood *mood);
/* A call has returned that leaves the store at the model's commit. */
enum fkv_error life_returned(struct life *life, enum fkv_error error, bool synced);
uint8_t *life_read_buffer(void);
/* End the read section that is open, if one is. */
void life_give_back(struct life *life);

#endif
