/*
 * crash_support: stores on simulated disks that are worked on by chance, and a model of what they
 * must hold, for the tests of crashes, faults and damage.
 *
 * THE MODEL knows what each key holds after the last commit, and how to go back: every commit that
 * a crash might undo is kept as what was there before it. So it can say what the store must hold
 * after commit n, for all n from the last synced commit on.
 *
 * VALUES are cut from one pool of random bytes, at a place that their stamp decides, and begin with
 * it: no two stamps have the same value, and a value is checked at the speed of memcmp.
 *
 * A LIFE is one handle on a store from its opening to its end. Everything in it is drawn from one
 * generator, and getrandom() too, so a seed replays.
 *
 * When something is wrong the program says so and ends: trouble().
 */
#ifndef FKV_TESTS_CRASH_SUPPORT_H
#define FKV_TESTS_CRASH_SUPPORT_H

#include "check.h"
#include "os_sim.h"
#include "store.h"
#include "support.h"

#define STORE_PATH "d/store"
#define LOG_PATH "d/store-wal"

/* Once, before all else: memory that was used is kept, not given back and faulted in again; and
 * SIGTERM ends the program between two cases, when say_counts has said what was done. */
void crash_prepare(void (*say_counts)(void));

/* ---------------------------------------------------------------- troubles */

/* Where we are: what trouble() says besides. A case that computes for longer than CASE_SECONDS
 * until the next one is set is taken for a hang, which is trouble too. */
enum { CASE_SECONDS = SANITIZED ? 500 : 100 };
void context_set(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void trouble(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* How trouble() ends the program: exit status 1, without a core and without cleaning up. */

/* What getrandom() gives from now on is drawn from this seed. 0: from the system again. */
void random_fix(uint64_t seed);
uint64_t random_state(void);
void random_restore(uint64_t state);

/* How much is to be done: 100 in the normal run, less under sanitizers; FKV_SCALE percent of it. */
uint64_t scaled(uint64_t normal);
uint64_t environment_u64(const char *name, uint64_t otherwise);

/* ---------------------------------------------------------------- keys and values */

/* What a key holds. */
struct content {
    uint32_t stamp; /* 0: the key is absent */
    uint32_t bytes;
};

enum { KEY_BYTES_MOST = 4096, VALUE_BYTES_MOST = 5 << 20 };

size_t key_of(uint32_t number, uint8_t key[KEY_BYTES_MOST]);
/* The bytes of a value, until the next call of the same level: 0 or 1. */
const uint8_t *value_of(struct content content, unsigned level);
bool value_is(struct content content, const uint8_t *bytes);

/* ---------------------------------------------------------------- the model */

struct event {
    uint64_t commit;
    uint32_t key;
    struct content before;
};

struct model {
    uint32_t key_count;
    uint32_t last_stamp;
    struct content *now; /* after `commit` */
    struct event *events;
    size_t event_count, event_room;
    uint64_t commit;   /* the last one, under way perhaps */
    uint64_t returned; /* up to here they have returned: they outlive the process */
    uint64_t synced;   /* up to here they outlive everything */
    bool remembers;    /* synced commits can be undone too, by damage */
};

void model_make(struct model *model, uint32_t key_count);
void model_drop(struct model *model);
/* A model of its own of the same. */
void model_fork(struct model *fork, const struct model *model);
/* Commits after this one are undone. */
void model_rewind(struct model *model, uint64_t commit);
/* Commits up to this one can never be undone any more. */
void model_synced(struct model *model, uint64_t commit);
/* Into `state`, what keys hold after this commit. */
void model_state(const struct model *model, uint64_t commit, struct content *state);
void model_set(struct model *model, uint32_t key, struct content content);

/* Does the store hold exactly this? Says what is wrong by trouble(), under this name. */
void store_must_hold(struct fkv *db, const struct content *state, uint32_t key_count,
                     const char *when);
/* ---------------------------------------------------------------- work */

/* What is done, by weights. */
struct mood {
    const char *name;
    uint16_t put, delete, txn, sync, checkpoint, reopen, kill, snapshot, load, compact, async;
    uint8_t sync_percent; /* of commits that ask for it */
    uint32_t value_least, value_most;
    uint8_t large_percent; /* of values are */
    uint32_t large_most;   /* up to this */
    uint32_t txn_keys;     /* a transaction, or a load, has up to this many */
    uint8_t txn_delete_percent;
    uint32_t key_first, key_end; /* 0: all of the workload's */
    uint8_t hot_percent;         /* of all goes to a fifth of them */
    bool
        scripted; /* what is done depends on the commit's number alone: a client that tries again */
    bool to_end;  /* values are as long as what is left of the log, or nearly */
};

struct phase {
    struct mood mood;
    uint32_t steps;
};

struct workload {
    const char *name;
    uint32_t keys;
    uint32_t flags; /* besides FKV_NO_THREAD */
    uint32_t garbage_percent_max;
    uint64_t log_bytes_max;
    uint64_t index_memory_max;
    uint64_t memory_bytes; /* that the process may use; 0: any. If less than the store, records are
                            * read by calls, and the log's pages zeroed ahead of frames */
    uint64_t refer_bytes;  /* 0: the library's own */
    struct phase phases[12];
};

/* A snapshot, and what it must hold. */
struct held_snapshot {
    fkv_snapshot *snapshot; /* NULL: none is open */
    struct content *state;
};
enum { HELD_SNAPSHOTS = 3 };

struct life {
    struct os_sim *sim;
    struct os *os;    /* NULL: the simulated disk */
    const char *path; /* NULL: STORE_PATH */
    struct fkv *db;
    struct model *model;
    const struct workload *workload;
    struct rng rng;
    uint64_t operations;
    /* Values borrowed in a read section that is open for some steps. */
    struct {
        const uint8_t *bytes;
        struct content content;
    } borrowed[4];
    unsigned borrowed_count, borrowed_steps;
    struct held_snapshot held[HELD_SNAPSHOTS];
    bool faulty;    /* a call may fail that only reads */
    bool varies;    /* each handle has other options */
    unsigned level; /* 1: at work while another life, of level 0, is amid a call */
};

/* The full check, the bound on space included; `thorough`: of what the file has too. */
void store_must_be_sound(struct fkv *db, const struct workload *workload, bool thorough,
                         const char *when);

/* A disk for a store of this workload: every third is of a file system that cannot allocate. */
struct os_sim *workload_disk(const struct workload *workload, uint64_t seed, uint64_t memory_bytes);
/* Nothing was stored into a mapping where there was no space. */
void disk_must_be_sound(struct os_sim *sim);
void workload_options(const struct workload *workload, fkv_options *options);
enum fkv_error life_open(struct life *life);
/* The handle is gone afterwards; the commits are durable if it returns FKV_OK. */
enum fkv_error life_close(struct life *life);
/* The process dies where it stands: the handle is released, nothing is written any more. */
void life_abandon(struct life *life);
/* Release the handle on a disk that has failed. */
void life_bury(struct life *life);
/* One operation. Its result is that of the call that failed, or FKV_OK; then the model is what the
 * store must be. A commit that failed, or was cut off, is the model's last one, not returned. */
enum fkv_error life_step(struct life *life, const struct mood *mood);
/* After a step has failed on a disk that works: see from the store what became of the commit. */
void life_settle_failure(struct life *life, enum fkv_error error);
/* The store has been opened after a crash, or after a `kill`: is it as it must be? The model's
 * later commits are undone. */
void life_must_have_recovered(struct life *life, bool kill, const char *when);
/* The same after a kill, when the system has let go of what it could not write: of what is there
 * some may be in its cache only. */
void life_must_have_been_let_go(struct life *life, const char *when);
/* Has the disk failed for good? */
bool life_is_over(const struct life *life);

#endif
