/*
 * header: are headers whole: that of a store, of its log, of a sector? And its entry in the table?
 */
#ifndef FKV_HEADER_H
#define FKV_HEADER_H

#include "checksum.h"
#include "format.h"

static inline uint64_t header_checksum(const struct format_header *header)
{
    return checksum64(header, offsetof(struct format_header, checksum));
}

/* A header of a store, of whatever version, as it was written. */
static inline bool header_is_whole(const struct format_header *header)
{
    return header->magic == FORMAT_MAGIC && header->checksum == header_checksum(header);
}

static inline uint64_t log_header_checksum(const struct format_log_header *header)
{
    return checksum64(header, offsetof(struct format_log_header, checksum));
}

static inline uint64_t sector_header_checksum(const struct format_sector_header *header)
{
    return checksum64(header, offsetof(struct format_sector_header, checksum));
}

/* The header of a values or large sector, at `to`. */
static inline void sector_header_write(uint8_t *to, const uint8_t store_id[16], uint32_t sector,
                                       uint64_t sequence, enum sector_type type)
{
    struct format_sector_header header = {
        .magic = SECTOR_MAGIC, .sequence = sequence, .sector = sector, .type = type};
    memcpy(header.store_id, store_id, sizeof header.store_id);
    header.checksum = sector_header_checksum(&header);
    memcpy(to, &header, sizeof header);
}

/* What an entry of the table counts: only what is in a values sector dies. */
static inline bool sector_counts_are_possible(const struct format_sector *entry)
{
    uint64_t gone = (uint64_t)entry->dead_cells + entry->pad_cells;
    return gone <= (entry->type == SECTOR_VALUES ? SECTOR_CELLS - SECTOR_HEADER_CELLS : 0);
}

/* Is there one at `bytes`, whole, of whatever store and sector? */
static inline bool sector_header_read(const uint8_t *bytes, struct format_sector_header *header)
{
    memcpy(header, bytes, sizeof *header);
    return header->magic == SECTOR_MAGIC && header->checksum == sector_header_checksum(header);
}

#endif
