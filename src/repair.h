/*
 * repair: a new store out of what is whole in a damaged one.
 *
 * Records carry all that this needs: their key, a checksum bound to their place, and an order, that
 * of the queue (sequence of the sector, then cell), in which a later version of a key comes after
 * an older one. So the records that are whole are put into the new store in this order, twice over:
 *
 *   pass 1   finds out where the pieces of values in several pieces are, and reports damage
 *   pass 2   puts keys and values
 *
 * each first through the sectors that the last checkpoint knows, without those records that it
 * knows to be dead, then through the log. Which records are dead is in the deletion maps; where
 * those or the table are lost, or the table contradicts the header, in the index; and where that is
 * lost too, nobody knows, and what was deleted may come back. If nothing is damaged and the keys of
 * the last checkpoint are yet not as many as it counts, that is said.
 *
 * The log counts from the checkpoint to its end, frame by frame, as in a recovery. Commits of which
 * that shows that they were synced must be in it. If they are not, or the log or both headers are
 * lost, then everything that is whole counts: frames that no chain leads to, in the order of their
 * commits, and records that are in the file since the checkpoint, merged by their places. A frame's
 * checksum is over the records in it too, so they are taken as they lie there: their own is bound
 * to a place whose sequence stands in another frame, which may be the one that is lost.
 *
 * The damaged store is only read, with calls (image.h). The new one gets its salt, so that the
 * hashes of deleted keys in the log mean something, and in digest mode its id: the digests hang on
 * both.
 */
#ifndef FKV_REPAIR_H
#define FKV_REPAIR_H

#include "check_parts.h"

struct repair_options {
    void (*problem)(void *context, const fkv_problem *problem);
    int (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
};

enum fkv_error repair(struct os *os, const char *path, const char *new_path,
                      const struct repair_options *options, fkv_repair_result *result);

/* ---------------------------------------------------------------- what the parts share */

/* A sector with records to look at. */
struct source {
    uint64_t sequence;
    uint32_t sector;
    uint32_t first, end; /* cells */
    bool known;          /* the last checkpoint knows what in it is dead */
    bool certain;        /* all of it should be records: what is not is damage */
    bool open;           /* but for its end, perhaps */
};

/* Where a whole record is. */
struct where {
    uint64_t offset; /* in the file or the log */
    uint64_t sequence;
    bool in_log;
};

struct found_piece {
    uint64_t id;
    uint32_t number;
    uint32_t order; /* of several, the last found counts */
    uint32_t bytes; /* of the record */
    uint32_t cell;
    struct where where;
};

/* A frame that is not on the chain from the header. */
struct loose_frame {
    uint64_t offset;
    uint64_t commit;
    uint64_t durable_commit;
};

/* A sector that the log says was opened. */
struct opened {
    uint32_t sector;
    uint64_t sequence;
};

/* A value in pieces that lacks one: lost, unless a later version of the key comes. */
struct incomplete {
    struct hash128 hash;
    int64_t piece; /* -1: its head is impossible */
    char key[48];  /* for messages */
};

struct repair {
    struct report report; /* the first member */
    struct repair_options options;
    fkv_repair_result result;
    enum fkv_error error;
    bool ended;
    uint64_t work_done, work_total;

    struct os *os;
    const char *path, *new_path;
    char *log_path, *new_log_path;
    struct os_file *file, *log_file;
    struct check check; /* of the image: the index, if it is needed */
    bool index_loaded;
    const struct format_header *header; /* NULL: lost */
    uint8_t store_id[16];
    uint64_t seed;
    uint64_t next_sequence;
    bool table_in_doubt; /* the table contradicts the header: the index decides */
    uint64_t early_keys; /* of the last checkpoint, that were found in pass 1 */
    bool miscounted;     /* and are not as many as it counts */

    struct vector early, late; /* struct source: known to the checkpoint, and the others */
    struct vector pieces;      /* struct found_piece */
    struct vector damaged;     /* struct damaged_cells, by address */
    struct vector incomplete;  /* struct incomplete */

    struct image_log log;
    struct image_log piece_log; /* the same, for pieces: the other is amid a frame */
    uint64_t chain_frames;      /* so many frames from the header on count */
    struct vector loose;        /* struct loose_frame, by commit; and these */
    struct vector opened;       /* struct opened */
    bool log_is_whole;

    int pass;
    uint8_t *bytes;       /* a sector: the source that is looked at */
    uint8_t *piece_bytes; /* a sector: the piece of a value that is put together */
    uint8_t *refer_bytes; /* a record that the log refers to */
    size_t late_at;       /* how far the late sources are */
    bool late_begun, late_waits;
    struct scan late_scan;
    struct scanned late_next; /* if it waits */
    struct fkv *out;
};

static inline bool repair_goes_on(const struct repair *repair)
{
    return !repair->error && !repair->ended;
}

/* ---- repair.c */
/* A whole record, in its turn. Its first cell is the `cell`-th of its sector. */
void repair_found(struct repair *repair, const uint8_t *record, uint32_t cell, struct where where);
/* In pass 2: set or remove a key of the new store. */
void repair_put(struct repair *repair, const void *key, size_t key_bytes, const void *value,
                size_t value_bytes);
void repair_remove(struct repair *repair, struct hash128 hash);
/* The records of late sources whose place is at most this, as far as they were not found yet. */
void repair_late_records(struct repair *repair, uint64_t sequence, uint32_t cell);
bool repair_is_damaged(const struct repair *repair, uint64_t address);

/* ---- repair_log.c */
/* Find out which frames count. */
void repair_survey_log(struct repair *repair);
/* All that they say, in its turn. */
void repair_log(struct repair *repair);

/* ---- repair_large.c */
void repair_found_piece(struct repair *repair, const uint8_t *record, uint32_t cell,
                        struct where where);
/* Between the passes. */
void repair_sort_pieces(struct repair *repair);
/* The key has another value, or none. */
void repair_forget_incomplete(struct repair *repair, struct hash128 hash);
/* Say which values are lost. */
void repair_say_incomplete(struct repair *repair);
/* A key whose value is in pieces: put it, or remove it if the value is not whole. */
void repair_put_large(struct repair *repair, const uint8_t *record);

#endif
