/*
 * pairs: the live keys and values of a snapshot, one after the other, in the order in which they
 * lie in the file.
 *
 * No index lookups: the records of a values sector are walked from one to the next, and those that
 * the snapshot's deletion map has as live are its pairs. Each live pair is there exactly once: the
 * collector's copies lie beyond the moment of the snapshot, and what it moved is live in the map
 * that was left. A sector in the mapping stays as it is for as long as the snapshot is open, so
 * keys and values are lent from there without a read section; of one that is in a buffer still, a
 * copy is made.
 */
#ifndef FKV_PAIRS_H
#define FKV_PAIRS_H

#include "scan.h"
#include "snapshot.h"

struct fkv_scan {
    struct fkv_snapshot *snapshot; /* one of its uses */
    uint64_t owner;                /* db->id */
    uint32_t sector, sector_end;
    uint32_t ahead; /* sectors before it are on their way into memory */
    bool loaded;    /* `records` are those of `sector` */
    /* Set by pairs_open, and to be changed after it: checksums are verified, as the store says; and
     * pieces of large values are given, as if they were pairs (no). */
    bool verify, pieces;
    struct scan records;
    uint64_t dead[SECTOR_CELLS / 64];
    uint8_t *copy;         /* room for a sector that is not in the mapping */
    const uint8_t *record; /* the pair given last; NULL: none */
};

/* Sectors from the one that holds `position` (0: the first) to `sector_end`. */
enum fkv_error pairs_open(struct fkv_snapshot *snapshot, uint64_t position, uint32_t sector_end,
                          struct fkv_scan **opened);
void pairs_close(struct fkv_scan *pairs);

/* FKV_NOT_FOUND: there are no more. FKV_DAMAGED, or another error: the next call goes on after it.
 */
enum fkv_error pairs_next(struct fkv_scan *pairs);
/* Where the next one is looked for; of no use to anybody but pairs_open, with the same snapshot. */
uint64_t pairs_position(const struct fkv_scan *pairs);

/* Of the pair found last: is its value in pieces? Its length; a copy. */
bool pairs_is_large(const struct fkv_scan *pairs);
uint32_t pairs_value_bytes(const struct fkv_scan *pairs);
enum fkv_error pairs_value(const struct fkv_scan *pairs, void *buffer);

#endif
