/*
 * store: what a handle is, and what the files of the store (README.md lists them) have for each
 * other.
 *
 * Locks: docs/architecture.md has them all, and their order; below, each group of members says what
 * guards it. Readers take none, but for a page of the index that is not in memory.
 */
#ifndef FKV_STORE_H
#define FKV_STORE_H

#include <pthread.h>
#include <stdatomic.h>

#include "index_limit.h"
#include "log.h"
#include "tail.h"
#include "undo.h"

#define DIGEST_BYTES 26
#define LARGE_PIECES_MAX ((LARGE_SECTOR_PAYLOAD + LARGE_PIECE_PAYLOAD - 1) / LARGE_PIECE_PAYLOAD)

/* A key as the layers below the API see it: in digest mode, its digest. */
struct key {
    const void *bytes;
    size_t size;
    struct hash128 hash;
    uint8_t digest[32];
};

/* The parts of a large value: those that a head record lists, or new ones. */
struct large {
    uint64_t id;
    uint32_t value_bytes;
    uint32_t sector_count;
    uint32_t piece_count;
    uint32_t sectors_taken;                   /* new ones: how many of `sectors` are taken */
    uint64_t piece_address[LARGE_PIECES_MAX]; /* new ones: of the pieces in the queue */
    /* sector_count of them; of new ones, then the checksums of their records */
    uint32_t sectors[];
};

/* One key of a commit. */
struct write {
    struct hash128 hash;
    const void *key;
    const void *value; /* NULL with `remove` */
    uint32_t key_bytes;
    uint32_t value_bytes;
    bool remove;
    /* Worked out by the commit: */
    uint32_t large;      /* the value does not fit one record: the n-th such of the commit */
    uint64_t entry;      /* the key's before, 0 if none */
    struct large *old;   /* parts of the value that goes, or NULL */
    struct large *fresh; /* parts of the value that comes, or NULL */
    uint64_t address;    /* of the new record */
    uint32_t cells;
};

/* What a commit of several keys hides from readers until it is complete: the entries before. */
struct overlay {
    struct retired_block retired;
    uint32_t mask;
    struct overlay_slot {
        struct hash128 hash;
        uint64_t entry;
        bool used;
    } slots[];
};

enum checkpoint_stage {
    CHECKPOINT_IDLE,
    CHECKPOINT_INDEX,  /* it has not begun: parked pages of the index go to the file */
    CHECKPOINT_VALUES, /* sealed sectors and the open one's beginning go to the file */
    CHECKPOINT_PAGES,  /* changed pages are copied, a group at a time, and written */
    CHECKPOINT_SYNC,
    CHECKPOINT_HEADER,
};

struct checkpoint {
    /* Any thread may look at them. */
    _Atomic int stage;       /* enum checkpoint_stage; who does the next part of it changes it */
    _Atomic bool copies;     /* pages, under the writer lock, and will be done soon */
    _Atomic int64_t owed_ns; /* commits are to sleep so long, together; less than 0: slept more */
    _Atomic uint64_t header_bytes; /* written, since open */

    /* Writer lock: what is asked for. */
    bool wanted;
    bool asked;           /* for, by the user: the next is thorough */
    bool closing;         /* the last one: the log is empty after it */
    bool stop;            /* the thread is to end */
    pthread_cond_t due;   /* for the thread: `wanted`, `stop`, or a compaction has begun */
    pthread_cond_t ended; /* for who waits: `over` has grown, or `stop` */

    /* Writer lock: the one that runs. */
    bool thorough;             /* gives back all the space that it can */
    struct log_position log;   /* where a replay over it begins */
    uint64_t log_bytes_before; /* of the log's written_bytes, when it began */
    uint64_t log_room;         /* that the log had when it began */
    uint64_t charged_bytes;    /* of the log's written_bytes: commits have paid for them */

    /* Of who does the next part of it: the thread, or else who has the writer lock. */
    struct format_header header; /* of the state it holds */
    uint32_t tries;              /* at a parked page that cannot be read */

    /* Writer lock: those that are over. */
    uint64_t log_bytes;                /* that were written during the last ones: fades */
    uint64_t over;                     /* how many have ended, well or not */
    uint64_t done;                     /* how many well */
    uint64_t last_well;                /* `over` when the last of those had */
    enum fkv_error error;              /* of the last one */
    char error_text[ERROR_TEXT_BYTES]; /* what its thread said of that */
};

/* A values sector that was read from the file: see fetch_sector. */
struct sector_room {
    uint8_t *bytes;
    uint64_t sequence; /* of what is in it; 0: nothing */
};

/* Writer lock. */
struct collector {
    struct sector_room room; /* the front, where it has no address */
    uint64_t sequence;       /* of the sector at the front of the queue; 0 none */
    uint32_t cell;           /* where in it the next step is */
    uint64_t debt_cells;     /* steps owed */
    uint64_t seen_died;      /* collector_died() that is in the debt, or needed no collection */
    uint64_t begin_percent;  /* collects while dead cells exceed this share of live ones */
    uint64_t steps;          /* per cell that dies */
    uint64_t futile_died;    /* db->died_cells when collecting for room last did not make any;
                              * UINT64_MAX: it has not been tried */
    uint64_t moved_bytes;
    uint64_t further_bytes; /* of them, by steps that nobody owed */
    bool log_full;          /* the log had no room for what it was to do */
};

enum compaction_stage {
    COMPACTION_NONE,
    COMPACTION_COLLECTS,
    COMPACTION_ENDS, /* its last checkpoint is awaited, and what that frees is given back */
};

/* A compaction: that of a call, or the one in the background. Writer lock. */
struct compaction {
    enum compaction_stage stage;
    uint32_t percent;     /* dead cells of live ones: it ends there */
    uint64_t left;        /* steps, by which it has passed all that there was when it began */
    uint64_t credit;      /* steps that were granted: less than the record at the front needs */
    bool stuck;           /* no step could be taken, and a checkpoint is to make room */
    uint64_t number;      /* of those in the background, begun so far */
    uint64_t commits;     /* when its last steps were taken */
    uint64_t until;       /* checkpoints that are over when its last one is */
    uint32_t ahead;       /* the sector that was last asked for, to be read before it is needed */
    uint32_t turns;       /* waited at the end for readers of what it has freed */
    uint64_t released;    /* reclaim.released, when they are past that */
    uint64_t over;        /* so many in the background have ended */
    enum fkv_error error; /* of the last one */
};

enum { STRIPES = 65536, SPINS_MAX = 2000, IDLE_QUEUES = 8 };

/* What open.c keeps of a handle, with replay.c: nobody else has the store while it is opened or
 * closed. */
struct lifetime {
    bool made_file, made_log; /* by this opening; see unmake */
    /* As opened: the other copy of the header is whole too, and perhaps the only one on the medium
     * that is: a sync of this one that failed would have left it in the cache. */
    bool header_in_doubt;
    uint32_t replay_last; /* the last sector that the log names, during a replay; 0: none is on */
    pthread_t flusher, checkpointer;
    bool flusher_runs, checkpointer_runs;
};

/* The store's file once more, read past the page cache, where memory and places are multiples of a
 * block. Who has a queue (async.h) looks at it without a lock: fetch_open_direct was before. */
struct direct {
    struct os_file *file; /* NULL: cannot be, or is not wanted */
    uint32_t block_bytes;
    bool tried; /* writer lock */
};

/*
 * A handle. Its members are ordered by what guards them:
 *
 *   set by opening     then only read, by any thread
 *   fetch.c            set under the writer lock, for readers
 *   the parts          each says in its header who may do what
 *   writer lock        what a commit works with; and what callers have open
 *   the checkpoint's   of whoever does the next part of a checkpoint; while none runs, writer lock
 *   atomic             any thread, as it is said there
 */
struct fkv {
    /* ---- Set by opening. */
    uint64_t id; /* of this handle, in this process */
    struct os *os;
    struct os_file *file;
    char *path, *log_path;
    uint32_t flags; /* as given */
    bool read_only, verify, digest;
    bool threads; /* has two of its own; not yet while it is opened, nor any more while it closes */
    struct hash_seeds hash_seeds;
    uint8_t digest_key[32];
    uint64_t seed; /* of record checksums */
    /* Becomes 0 in a child of fork(): a page that the kernel wipes there. */
    volatile uint32_t *alive; /* enum handle_state, stored and loaded as an atomic */
    struct lifetime life;

    /* ---- fetch.c: which way records are read. */
    struct direct direct;
    _Atomic bool beyond_memory; /* the file is larger than the memory that may be used */

    /* ---- The parts. */
    struct pages pages;
    struct sectors sectors;
    struct reclaim reclaim;
    struct index index;
    struct tail tail;
    struct data_sync data_sync;
    struct log log;
    struct undo undo;

    /* ---- Writer lock: commits. */
    pthread_mutex_t writer;
    bool making_room; /* a commit waits for a checkpoint to make room in the log: others queue */
    pthread_cond_t room_made;
    uint64_t commit; /* the last one */
    uint64_t keys;
    uint64_t commits; /* since open */
    uint64_t bytes_put;
    uint64_t died_cells; /* by overwrites and deletes, since open */
    struct collector collector;
    struct compaction compaction; /* in the background */
    struct checkpoint checkpoint; /* not all of it: see there */

    /* ---- The checkpoint's. */
    struct format_header header; /* the last one written */
    uint32_t header_copy;        /* where it is whole: 0 or 1 */

    /* ---- Atomic: what a commit shows to others. */
    _Atomic(struct overlay *) overlay; /* set under the writer lock, for readers */
    _Atomic int failed;                /* enum fkv_error: writes are refused; it stays so */

    /* ---- Writer lock: what callers have open. */
    /* Conflict detection: the last commit that wrote a key of each class, which transactions look
     * at without the lock. NULL: none was ever begun; written to only while some are open. */
    uint64_t *stripes;
    uint32_t open_transactions;
    struct fkv_txn *transactions;   /* a list of those */
    struct fkv_load *load;          /* the one that is open, or NULL */
    struct fkv_snapshot *snapshots; /* a list of those that are open */
    struct fkv_async *asyncs;       /* another */

    /* ---- Atomic: what reads have. */
    _Atomic uint64_t opened_bytes; /* memory of what callers have open: those and scans */
    _Atomic(struct fkv_async *) idle_queues[IDLE_QUEUES]; /* that fkv_get_many keeps */
};

/* Something that a caller has open takes so much more memory; `of` counts what it has in all, to be
 * taken off at its end. */
static inline void store_took(struct fkv *db, uint64_t *of, uint64_t bytes)
{
    *of += bytes;
    atomic_fetch_add_explicit(&db->opened_bytes, bytes, memory_order_relaxed);
}

enum handle_state {
    HANDLE_FORKED,
    HANDLE_ALIVE,
    HANDLE_WAITS /* the next call that reads is to wait for readers: see reclaim_pause */
};

/* Take the writer lock for a commit. A checkpoint copies pages under it, a few microseconds at a
 * time: to sleep until it has done would take longer, and it would have the lock again by then. */
static inline void store_lock(struct fkv *db)
{
    for (int i = 0;
         i < SPINS_MAX && atomic_load_explicit(&db->checkpoint.copies, memory_order_relaxed); i++)
        spin_pause();
    pthread_mutex_lock(&db->writer);
}

/* ---- open.c */
/* Whole options, or NULL: the defaults. */
enum fkv_error store_open(struct os *os, const char *path, const fkv_options *options,
                          struct fkv **db);
enum fkv_error store_close(struct fkv *db);
/* Bytes that nobody can guess. */
enum fkv_error random_bytes(void *to, size_t bytes);

/* Pages that closing writes at most, 256 MiB of them: with more to be written it leaves the log. */
#define CLOSE_PAGES_MAX UINT64_C(65536)
#ifdef FKV_TESTING
extern uint64_t close_pages_max;
#endif

/* ---- replay.c */
/* Redo what the log has since the checkpoint. The parts are open, and nobody else has the store. */
enum fkv_error store_replay(struct fkv *db);

/* ---- fkv.c */
/* All memory that the library holds for this store. */
uint64_t store_memory_bytes(struct fkv *db);
enum fkv_error key_make(const struct fkv *db, const void *bytes, size_t size, struct key *key);
/* The handle is NULL, or not just alive: waits for readers, if that is why. */
enum fkv_error call_handle_state(fkv *db);
/* Of a call that may wait for readers. */
static inline enum fkv_error check_handle(fkv *db)
{
    if (__builtin_expect(!db || __atomic_load_n(db->alive, __ATOMIC_RELAXED) != HANDLE_ALIVE, 0))
        return call_handle_state(db);
    return FKV_OK;
}

/* ---- fkv_many.c */
/* The store closes: give up idle_queues. */
void many_drop(struct fkv *db);

/* ---- read.c: inside an RCU read section */
enum fkv_error read_entry(struct fkv *db, struct hash128 hash, uint64_t *entry);
/* The record of an entry, checked against the key (NULL: any) and its checksum. NULL and
 * FKV_NOT_FOUND if it is another key's. */
enum fkv_error read_record(struct fkv *db, uint64_t entry, const void *key, size_t key_bytes,
                           const uint8_t **record);
/* What read_record returns for a record without an address in memory: see fetch.h. No function of
 * the API does. */
#define READ_BY_CALL ((enum fkv_error)1000)
/* Is this the record of the entry, whole, and (if `key`) the key's? FKV_NOT_FOUND: another's. */
enum fkv_error read_check(struct fkv *db, uint64_t entry, uint64_t sequence, const uint8_t *record,
                          const void *key, size_t key_bytes);
/* Copy the value of a record that is whole. *again: it was replaced meanwhile, look again. */
enum fkv_error read_copy(struct fkv *db, const struct key *key, uint64_t entry,
                         const uint8_t *record, void *buffer, size_t buffer_bytes,
                         size_t *value_bytes, bool *again);
/* As read_record, for a pointer that shall last as long as the read section: in the mapping, where
 * there is one, even if others read by calls. */
enum fkv_error read_lend(struct fkv *db, uint64_t entry, const void *key, size_t key_bytes,
                         const uint8_t **record);
enum fkv_error read_damaged(const struct fkv *db, uint64_t entry, const char *what);
enum fkv_error read_value(struct fkv *db, const struct key *key, void *buffer, size_t buffer_bytes,
                          size_t *value_bytes);
enum fkv_error read_borrow(struct fkv *db, const struct key *key, const void **value,
                           size_t *value_bytes);
enum fkv_error read_size(struct fkv *db, const struct key *key, size_t *value_bytes);

/* ---- large.c */
bool value_is_large(size_t key_bytes, size_t value_bytes);
struct hash128 piece_hash(const struct fkv *db, uint64_t id, uint32_t number);
/* The parts that the head record of `entry` lists; to be given to memory_free. */
enum fkv_error large_load(struct fkv *db, uint64_t entry, struct large **large);
/* Parts for a new value; takes its sectors and writes them. */
enum fkv_error large_store(struct fkv *db, struct write *write, uint64_t id);
/* Undo large_store. */
void large_undo(struct fkv *db, struct large *large);
/* As the layer's snapshot has it; NULL: as it is now. */
enum fkv_error large_read(struct fkv *db, const struct undo_layer *layer, const uint8_t *head,
                          void *buffer, bool *torn);
/* Is this whole record a head that makes sense? Then what it says, and the n-th sector it lists. */
bool large_head_is_sound(const uint8_t *record);
struct format_large large_head(const uint8_t *record);
uint32_t large_head_sector(const uint8_t *record, uint32_t number);
static inline size_t read_value_bytes(uint64_t entry, const uint8_t *record)
{
    return entry & ENTRY_LARGE ? large_head(record).value_bytes : record_header(record).value_bytes;
}
/* The value where it lies, for who borrows it; of one in pieces only the length. */
static inline enum fkv_error read_in_place(uint64_t entry, const uint8_t *record,
                                           const void **value, size_t *value_bytes)
{
    *value_bytes = read_value_bytes(entry, record);
    if (entry & ENTRY_LARGE)
        return error_set(FKV_VALUE_TOO_LARGE, "the value is stored in pieces");
    *value = record_key(record) + record_header(record).key_bytes;
    return FKV_OK;
}

#ifdef FKV_TESTING
extern uint64_t commit_refer_bytes; /* from how many on the log refers to records */
#endif

/* ---- commit.c: the writer lock is held */
/* FKV_NOT_FOUND if all writes are removals of absent keys: nothing is written then. Releases the
 * lock while it waits for room in the log. `txn`, if not NULL, is asked whether it is still valid
 * once the lock is held for good. `synced`: a log_sync follows, for which the caller sees. */
enum fkv_error commit_writes(struct fkv *db, struct write *writes, size_t count,
                             const struct fkv_txn *txn, bool synced);
/* After it: releases the lock, does what is to be done without it, and syncs if that is asked for.
 */
enum fkv_error commit_end(struct fkv *db, enum fkv_error error, bool sync);
void commit_release(struct write *writes, size_t count);
/* What a snapshot sees of this key, before it changes, and where; for the writer's preparations. */
enum fkv_error commit_leave_undo(struct fkv *db, struct hash128 hash, uint64_t entry,
                                 const struct large *old);
/* What was prepared is done, or not to be. */
void commit_unprepare(struct fkv *db);
/* Pages of a limited index that are too many leave, and what no reader can see any more is free.
 * Under the writer lock, while nothing is prepared. */
void store_trim(struct fkv *db);
/* What an entry leads to dies, with its parts if it is the head of a large value. */
void commit_kill(struct fkv *db, uint64_t entry, const struct large *parts);
/* While a checkpoint makes room for somebody (db->making_room), others wait; until it is had. */
void commit_wait_for_room(struct fkv *db);
void commit_end_making_room(struct fkv *db);
/* The log or the disk is full, and nothing is prepared: make room, while others wait. False if
 * there is none to be made. */
bool commit_make_room(struct fkv *db, bool in_log);
/* collect(), with a checkpoint where the log has no room for it. */
void collect_with_room(struct fkv *db);
/* Make sure that the entry of a key, and what goes with it when it dies, can be changed without
 * failing. */
enum fkv_error commit_prepare_kill(struct fkv *db, struct write *write);
/* Has a write or a sync failed, so that the store is read-only? */
static inline bool store_has_failed(const struct fkv *db)
{
    return atomic_load_explicit(&db->failed, memory_order_relaxed) || db->tail.failed ||
           atomic_load(&db->log.sync_failed);
}

/* Pages, at most, that a commit of so many keys and pieces changes, and the checkpoint after it has
 * to write for it: 0 for so few as can always change. `sectors`: that come and go. */
uint64_t commit_changes(const struct fkv *db, uint64_t keys, uint64_t sectors);
/* Put into effect: the record at write->address is the key's (or none, if `remove`). */
void commit_apply(struct fkv *db, struct write *write);
enum fkv_error store_writable(struct fkv *db);
/* Is there a number for one more? FKV_FULL: there never will be. */
enum fkv_error commit_has_number(const struct fkv *db);
/* A write or a sync has failed in a way after which nothing may be written: from now on the store
 * is read-only. Returns `error`. */
enum fkv_error store_fail(struct fkv *db, enum fkv_error error);
/* log_end, for all frames of an open store: if the frame cannot be written, the store has failed.
 */
enum fkv_error store_log(struct fkv *db, const uint8_t *end, uint32_t flags, uint64_t commit);

/* ---- snapshot.c */
/* The store closes: end all that are open. */
void snapshot_end_all(struct fkv *db);

/* ---- txn.c */
/* Has nothing that it read changed since it began? Sets FKV_CONFLICT if so. */
enum fkv_error txn_validate(const struct fkv_txn *txn);
/* The store closes: end all that are open. */
void txn_end_all(struct fkv *db);

/* ---- load.c */
/* Give up db->load. The writer lock is held, or the store closes. */
void load_abandon(struct fkv *db);
/* It is over, and the store has none. The writer lock is held, but in a child of fork(). */
void load_end(struct fkv_load *load);

/* ---- collect.c: the writer lock is held */
void collector_make(struct collector *collector, uint32_t garbage_percent_max);
/* The position and the debt of the life before this one are not known, and made up for. */
void collector_forget_life(struct collector *collector);
/* Cells that have died since open, gaps included. */
uint64_t collector_died(const struct fkv *db);
/* Steps that the collector owes, for deaths that it has not been told of too. */
uint64_t collector_owes(const struct fkv *db);
/* Do what is owed; if the log becomes full on the way, collector.log_full. */
void collect(struct fkv *db);
/*
 * Up to so many steps that nobody owes, while dead cells exceed this share of live ones. Returns
 * how many were taken: 0 if there is nothing to do, or nothing can be done now (collector.log_full:
 * before a checkpoint).
 */
uint64_t collect_further(struct fkv *db, uint64_t steps, uint32_t garbage_percent);
/* The disk is full: move records together beyond what is owed. False if nothing was moved. */
bool collect_for_room(struct fkv *db);
/* Do dead cells exceed this share, and is there anything to be collected? */
bool collect_is_left(const struct fkv *db, uint32_t garbage_percent);

/* ---- compact.c: the writer lock is held */
void compaction_make(const struct fkv *db, struct compaction *compaction, uint32_t percent);
/* Up to so many steps, and what they make due. *goes_on false: there is nothing more to do. If it
 * is `stuck` then, a checkpoint comes before the next steps. */
enum fkv_error compaction_some(struct fkv *db, struct compaction *compaction, uint64_t steps,
                               bool *goes_on);
/* In the background: begin one, in place of the one that there is; end it. */
void compaction_begin(struct fkv *db, uint32_t percent);
void compaction_end(struct fkv *db, enum fkv_error error);
/* For the background thread: a part of it. Releases the lock for a while. */
void compaction_turn(struct fkv *db);
/* Without threads: a part of it, of so many steps; in each commit so many. */
enum { COMPACTION_STEPS_INSIDE = 256 };
void compaction_poll(struct fkv *db, uint64_t steps);

/* ---- checkpoint.c */
/* Ask for a checkpoint if it is time; without threads, do a little of it. Writer lock. */
void checkpoint_poll(struct fkv *db);
/* One whose moment is yet to come is over when `checkpoint.over` is this. */
static inline uint64_t checkpoint_next_over(const struct fkv *db)
{
    return db->checkpoint.over + (db->checkpoint.stage <= CHECKPOINT_INDEX ? 1 : 2);
}
/* Why there is none that holds the state of the moment when this was the next: none if it, or one
 * after it, has ended well. */
static inline enum fkv_error checkpoint_error_of(const struct fkv *db, uint64_t next_over)
{
    return db->checkpoint.last_well >= next_over ? FKV_OK : db->checkpoint.error;
}
/* After a commit, with no lock held: sleep if it outruns a checkpoint. */
void checkpoint_pause(struct fkv *db);
/* Begin one that holds the present state, or join; wait until it is over. Writer lock, which is
 * released meanwhile. */
enum fkv_error checkpoint_run(struct fkv *db);
/* The same for who wants the sectors that it frees: waits for readers to leave them too, with
 * threads for a moment only. */
enum fkv_error checkpoint_run_for_space(struct fkv *db);
void *checkpoint_thread(void *db);
/* Write a header to the place of the copy that db->header_copy says, and sync it. */
enum fkv_error checkpoint_write_copy(struct fkv *db, const struct format_header *header);
/* Write a header to both its places, and sync each; it becomes db->header. */
enum fkv_error checkpoint_write_header(struct fkv *db, struct format_header *header);

#endif
