/*
 * scan: the records of a values sector, one after the other, and past what is damaged.
 *
 * A record says how long it is, so records are found by walking from one to the next. Where that
 * ends, because a header makes no sense or a checksum fails, every following cell is tried until a
 * whole record begins there: a record's checksum is bound to its place, so no bytes that only look
 * like a record pass for one, not even a copy of a record within another's value.
 */
#ifndef FKV_SCAN_H
#define FKV_SCAN_H

#include "record.h"

struct scan {
    const uint8_t *base; /* of the sector */
    uint64_t seed;       /* of record checksums */
    uint64_t sequence;   /* of the sector */
    uint32_t cell;       /* where the next one begins */
    uint32_t end;        /* cells before this one are looked at */
};

struct scanned {
    const uint8_t *record;
    uint32_t cell;
    uint32_t cells;
    bool whole; /* false: a stretch in which there are no whole records */
};

static inline struct scan scan_begin(const uint8_t *base, uint64_t seed, uint64_t sequence,
                                     uint32_t end)
{
    return (struct scan){base, seed, sequence, SECTOR_HEADER_CELLS, end};
}

/* The next record, or stretch of damage; false at the end. */
bool scan_next(struct scan *scan, struct scanned *found);

/* Cells of the whole record that begins here; 0 if none does. */
uint32_t scan_whole(const struct scan *scan, uint32_t cell);

/*
 * Find out what the sequence of a sector is whose header is lost: the one, up to sequence_max, that
 * at least two neighbouring records have in their checksums. False if there is none.
 */
bool scan_find_sequence(const uint8_t *base, uint64_t seed, uint64_t sequence_max,
                        uint64_t *sequence);

#endif
