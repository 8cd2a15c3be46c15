/*
 * frame: could these bytes be a frame of the log? And its operations: to write and to read them.
 *
 * Whoever looks for frames in a log without knowing where they begin tries every multiple of 8. A
 * checksum over each length that is found there takes time of the square of the log's length: of a
 * log of small records, half of the places have an address where a frame has its length. That the
 * operations end exactly where the frame does is seen at a glance, and nearly nothing but frames
 * has it.
 */
#ifndef FKV_FRAME_H
#define FKV_FRAME_H

#include "checksum.h"
#include "format.h"

#define RESTART_BYTES 16u

/* Of all but the checksum; `seed`: the first 8 bytes of the store's id. */
static inline uint64_t frame_checksum(const uint8_t *frame, uint64_t bytes, uint64_t seed)
{
    size_t skip = sizeof(uint64_t);
    return checksum64(frame + skip, bytes - skip) ^ seed;
}

/* The header alone; `room` bytes are there. */
static inline bool frame_header_is_plausible(const struct format_frame *header, uint64_t room)
{
    return header->bytes >= sizeof *header && header->bytes % 8 == 0 && header->bytes <= room &&
           header->flags <= FRAME_FLAGS_ALL && header->commit < COMMITS_MAX &&
           header->durable_commit < COMMITS_MAX;
}

/* Is it one, and not the collector's moves, a wrap or a restart? */
static inline bool frame_is_commit(const struct format_frame *header)
{
    return !(header->flags & FRAME_FLAGS_ALL);
}

/* What an operation takes in a frame, with so many bytes behind it. */
static inline uint64_t operation_bytes(uint64_t bytes)
{
    return sizeof(struct format_operation) + round_up(bytes, 8);
}

/* Write one; returns its end. */
static inline uint8_t *operation_write(uint8_t *to, enum operation_kind kind, uint64_t address,
                                       const void *bytes, size_t count)
{
    struct format_operation operation = {
        .kind = kind, .bytes = (uint32_t)count, .address = address};
    memcpy(to, &operation, sizeof operation);
    to += sizeof operation;
    size_t padded = round_up(count, 8);
    if (padded != count)
        memset(to + padded - 8, 0, 8);
    if (count)
        memcpy(to, bytes, count);
    return to + padded;
}

/* Take the next operation off the front of a frame's; false at their end, and, with *at before
 * `end`, where one is cut off. */
static inline bool operation_next(const uint8_t **at, const uint8_t *end,
                                  struct format_operation *operation, const uint8_t **payload)
{
    if ((size_t)(end - *at) < sizeof *operation)
        return false;
    memcpy(operation, *at, sizeof *operation);
    *payload = *at + sizeof *operation;
    if (round_up(operation->bytes, 8) > (uint64_t)(end - *payload))
        return false;
    *at = *payload + round_up(operation->bytes, 8);
    return true;
}

static inline bool operations_fill(const uint8_t *at, const uint8_t *end)
{
    struct format_operation operation;
    const uint8_t *payload;
    while (operation_next(&at, end, &operation, &payload))
        if (operation.kind < OPERATION_OPEN || operation.kind > OPERATION_LARGE)
            return false;
    return at == end;
}

/* All of it, header->bytes at `frame`. */
static inline bool frame_is_plausible(const struct format_frame *header, const uint8_t *frame)
{
    if (header->flags & FRAME_WRAP)
        return header->bytes == sizeof *header;
    if (header->flags & FRAME_RESTART)
        return header->bytes == sizeof *header + RESTART_BYTES;
    return operations_fill(frame + sizeof *header, frame + header->bytes);
}

#endif
