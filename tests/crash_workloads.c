/*
 * crash_workloads: small stores that are worked on so that every mechanism is at work, each
 * workload with some of them in the foreground.
 */
#include "crash_engine.h"

const struct workload workload_small = {
    .name = "small",
    .keys = 60,
    .phases = {{{.name = "mixed",
                 .put = 60,
                 .delete = 20,
                 .txn = 10,
                 .sync = 4,
                 .checkpoint = 4,
                 .reopen = 1,
                 .kill = 1,
                 .sync_percent = 30,
                 .value_least = 0,
                 .value_most = 3000,
                 .txn_keys = 12,
                 .txn_delete_percent = 30},
                600}},
};

/* Thousands of keys, so that segments grow, split, shrink and merge. */
#define INDEX_MOOD(name_, txn_, delete_, percent_)                                              \
    {                                                                                           \
        .name = (name_), .put = 5, .delete = (delete_), .txn = (txn_), .checkpoint = 2,         \
        .sync_percent = 20, .value_most = 12, .txn_keys = 160, .txn_delete_percent = (percent_) \
    }
const struct workload workload_index = {
    .name = "index",
    .keys = 5000,
    .phases = {{INDEX_MOOD("filling", 90, 3, 0), 110},
               {INDEX_MOOD("emptying", 90, 3, 97), 130},
               {INDEX_MOOD("filling again", 90, 3, 5), 40}},
};

/* Values of some ten KiB that are overwritten: sectors fill up, die and are used again. */
const struct workload workload_collection = {
    .name = "collection",
    .keys = 60,
    .garbage_percent_max = 50,
    .phases = {{{.name = "overwriting",
                 .put = 90,
                 .delete = 5,
                 .txn = 5,
                 .sync = 2,
                 .checkpoint = 1,
                 .kill = 1,
                 .sync_percent = 20,
                 .value_least = 9000,
                 .value_most = 60000,
                 .txn_keys = 4,
                 .txn_delete_percent = 20,
                 .hot_percent = 85},
                800}},
};

const struct workload workload_large = {
    .name = "large",
    .keys = 6,
    .phases = {{{.name = "large values",
                 .put = 70,
                 .delete = 15,
                 .txn = 10,
                 .sync = 4,
                 .checkpoint = 3,
                 .reopen = 1,
                 .kill = 1,
                 .sync_percent = 20,
                 .value_least = 0,
                 .value_most = 4000,
                 .large_percent = 35,
                 .large_most = 1300000,
                 .txn_keys = 3,
                 .txn_delete_percent = 20},
                130}},
};

/* Commits whose records go to the file at once, and the log only refers to them. */
const struct workload workload_refer = {
    .name = "refer",
    .keys = 40,
    .refer_bytes = 60000,
    .phases = {{{.name = "batches",
                 .put = 30,
                 .delete = 5,
                 .txn = 60,
                 .sync = 4,
                 .checkpoint = 3,
                 .kill = 2,
                 .sync_percent = 25,
                 .value_least = 1000,
                 .value_most = 50000,
                 .txn_keys = 10,
                 .txn_delete_percent = 10},
                300}},
};

/* The log goes round many times. */
const struct workload workload_log = {
    .name = "log",
    .keys = 30,
    .phases = {{{.name = "many commits",
                 .put = 95,
                 .delete = 5,
                 .sync = 1,
                 .kill = 1,
                 .sync_percent = 3,
                 .value_least = 3000,
                 .value_most = 20000,
                 .large_percent = 6,
                 .large_most = 400000},
                600}},
};

const struct workload workload_shrinking = {
    .name = "shrinking",
    .keys = 24,
    .phases =
        {{{.name = "growing",
           .put = 90,
           .txn = 5,
           .checkpoint = 2,
           .sync_percent = 10,
           .value_least = 60000,
           .value_most = 130000,
           .large_percent = 8,
           .large_most = 2200000,
           .txn_keys = 3},
          80},
         {{.name = "emptying", .delete = 85, .checkpoint = 15, .reopen = 3, .sync_percent = 10},
          80},
         {{.name = "growing again",
           .put = 90,
           .checkpoint = 5,
           .reopen = 3,
           .sync_percent = 10,
           .value_least = 10000,
           .value_most = 100000},
          60}},
};

const struct workload workload_digests = {
    .name = "digests",
    .keys = 50,
    .flags = FKV_DIGEST | FKV_SYNC_EVERY,
    .phases = {{{.name = "mixed",
                 .put = 60,
                 .delete = 20,
                 .txn = 10,
                 .checkpoint = 4,
                 .reopen = 2,
                 .kill = 2,
                 .sync_percent = 100,
                 .value_least = 0,
                 .value_most = 30000,
                 .txn_keys = 6,
                 .txn_delete_percent = 30},
                200}},
};

/* Snapshots are open while what they see is overwritten, deleted, collected and compacted. */
const struct workload workload_snapshots = {
    .name = "snapshots",
    .keys = 60,
    .garbage_percent_max = 50,
    .phases = {{{.name = "under snapshots",
                 .put = 60,
                 .delete = 15,
                 .txn = 8,
                 .sync = 2,
                 .checkpoint = 3,
                 .reopen = 1,
                 .kill = 1,
                 .snapshot = 25,
                 .compact = 2,
                 .sync_percent = 20,
                 .value_least = 3000,
                 .value_most = 40000,
                 .large_percent = 3,
                 .large_most = 300000,
                 .txn_keys = 6,
                 .txn_delete_percent = 30},
                400}},
};

const struct workload workload_loads = {
    .name = "loads",
    .keys = 120,
    .phases = {{{.name = "bulk loads",
                 .put = 25,
                 .delete = 10,
                 .txn = 5,
                 .sync = 2,
                 .checkpoint = 2,
                 .reopen = 1,
                 .kill = 1,
                 .snapshot = 6,
                 .load = 25,
                 .compact = 6,
                 .sync_percent = 20,
                 .value_least = 0,
                 .value_most = 20000,
                 .txn_keys = 40,
                 .txn_delete_percent = 30},
                160}},
};

/* Nothing is read in a mapping: not by gets, not by the collector. And memory is scarce. */
const struct workload workload_by_call = {
    .name = "by_call",
    .keys = 60,
    .flags = FKV_READ_WITHOUT_MAPPING,
    .memory_bytes = 1,
    .garbage_percent_max = 50,
    .phases = {{{.name = "reading by calls",
                 .put = 60,
                 .delete = 10,
                 .txn = 8,
                 .sync = 2,
                 .checkpoint = 3,
                 .reopen = 1,
                 .kill = 1,
                 .snapshot = 6,
                 .compact = 2,
                 .async = 15,
                 .sync_percent = 20,
                 .value_least = 3000,
                 .value_most = 40000,
                 .large_percent = 4,
                 .large_most = 400000,
                 .txn_keys = 4,
                 .txn_delete_percent = 20},
                300}},
};

/* An index that is larger than its memory: its pages come and go. */
const struct workload workload_limited = {
    .name = "limited",
    .keys = 6000,
    .index_memory_max = 32768,
    .garbage_percent_max = 10,
    .memory_bytes = 1,
    .phases = {{INDEX_MOOD("filling", 90, 3, 0), 60},
               /* more than a sector, so that the collector has records to move */
               {{.name = "rewriting",
                 .txn = 95,
                 .checkpoint = 5,
                 .value_most = 700,
                 .txn_keys = 300,
                 .sync_percent = 20},
                40},
               {{.name = "mixed",
                 .put = 60,
                 .delete = 20,
                 .txn = 8,
                 .sync = 2,
                 .checkpoint = 2,
                 .kill = 1,
                 .compact = 10,
                 .sync_percent = 20,
                 .value_most = 300,
                 .txn_keys = 12,
                 .txn_delete_percent = 30},
                120}},
};
