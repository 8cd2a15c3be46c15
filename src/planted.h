/*
 * planted: known bugs, for the test of the tests (tests/test_planted.c), and points between two
 * steps that other threads may see apart, where a test can make a thread lose its turn. Where
 * FKV_TESTING is not defined there are none: PLANTED is the constant 0, SCHEDULE_POINT is nothing,
 * and what is TUNABLE by tests is constant.
 */
#ifndef FKV_PLANTED_H
#define FKV_PLANTED_H

#ifdef FKV_TESTING
enum planted {
    PLANTED_NOTHING,
    /* What is durable, and when */
    PLANTED_SKIP_LOG_SYNC,         /* commits are said to be synced, and are not */
    PLANTED_SKIP_DATA_SYNC,        /* records that the log refers to are not synced before it */
    PLANTED_SKIP_PAGES_SYNC,       /* a checkpoint's header is written before what it leads to */
    PLANTED_SKIP_HEADER_SYNC,      /* what a header frees is used before it is durable */
    PLANTED_SKIP_DIRECTORY_SYNC,   /* a new file's name is not durable */
    PLANTED_SKIP_TAIL_FLUSH,       /* a checkpoint forgets the open sector's beginning */
    PLANTED_RELEASE_LOG_EARLY,     /* the log is reused before the checkpoint is over */
    PLANTED_CHECKPOINT_AHEAD,      /* a checkpoint says that it holds what only the log has */
    PLANTED_CHECKPOINT_BEFORE_LOG, /* a header that needs a log is durable before the log is */
    PLANTED_CLOSE_EARLY,           /* closing, a checkpoint begun before says that all is in it */
    /* Reuse of space */
    PLANTED_REUSE_SECTOR_EARLY, /* a freed sector is used before a checkpoint knows it to be free */
    PLANTED_REUSE_PAGE_EARLY,   /* and a replaced page */
    PLANTED_SPILL_OVER_OLD,     /* a page is spilled to where the last checkpoint has it */
    PLANTED_SPILL_BESIDE,       /* pages are spilled beside a checkpoint */
    PLANTED_LOSE_CHANGE,        /* a change of a page is not kept when the page is parked */
    PLANTED_LOSE_MOVE,          /* nor a move that waits for its page taken by it */
    PLANTED_SPILL_IN_LOG,       /* in a replay pages are spilled where the log wants to go */
    PLANTED_NO_GRACE,           /* what readers may still see is used again */
    PLANTED_NO_COPY,            /* a page is changed under the checkpoint that has to hold it */
    /* The log */
    PLANTED_NO_RESTART,        /* an opening does not mark the log */
    PLANTED_RESTART_UNSYNCED,  /* nor for good where frames that are undone might come back */
    PLANTED_WRAP_UNSYNCED,     /* nor where it marks the log's front, for good */
    PLANTED_LOG_HOLES,         /* nor has space for what is to be stored there */
    PLANTED_REFER_NOT_AGAIN,   /* nor writes again what frames refer to */
    PLANTED_OTHER_COPY_FIRST,  /* nor first the copy of the header that may be in the cache only */
    PLANTED_NO_CHAIN,          /* replay follows frames of other rounds */
    PLANTED_NO_FRAME_CHECKSUM, /* and torn ones */
    PLANTED_NO_REFER_CHECKSUM, /* and takes what lies there for what the log refers to */
    PLANTED_HALF_BATCH_LOGGED, /* a frame has half of its commit's keys */
    PLANTED_HALF_BATCH_REPLAYED, /* half of a frame is put into effect */
    /* Space and index */
    PLANTED_LIVE_AS_DEAD,  /* the collector takes a live record for dead */
    PLANTED_WRONG_DEAD,    /* an overwrite marks the new record dead, not the old */
    PLANTED_LARGE_LEAK,    /* a large value that dies keeps its sectors */
    PLANTED_NO_COLLECTION, /* dead records are never collected */
    /* Threads (found by tests/test_threads_linear.c) */
    PLANTED_NO_OVERLAY,  /* a commit of several keys shows one key at a time */
    PLANTED_NO_CONFLICT, /* a transaction commits over what has changed since it read */
    /* Faults and damage */
    PLANTED_IGNORE_WRITE_ERROR, /* values that could not be written are taken for written */
    PLANTED_SYNC_AGAIN,         /* after a failed sync the next one is believed */
    PLANTED_LEAK,               /* a failed commit forgets memory */
    PLANTED_NO_RECORD_CHECKSUM, /* a record that is read is not verified */
    PLANTED_NO_PAGE_CHECKSUM,   /* nor a page */
    PLANTED_COUNT,
};

extern enum planted planted_bug;
#define PLANTED(name) (__builtin_expect(planted_bug == PLANTED_##name, 0))
extern void (*schedule_point)(void); /* NULL: go on */
#define SCHEDULE_POINT() (schedule_point ? schedule_point() : (void)0)
#define TUNABLE
#else
#define TUNABLE static const
#define PLANTED(name) 0
#define SCHEDULE_POINT() ((void)0)
#endif

#endif
