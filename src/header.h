/*
 * header: is a header of a store whole?
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

#endif
