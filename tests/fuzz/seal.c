#include "seal.h"

#include "checksum.h"
#include "places.h"
#include "record.h"
#include "tree.h"

#include <stdlib.h>

/* ---------------------------------------------------------------- trees */

/* A circle of nodes must not keep us. */
struct budget {
    unsigned pages;
};

static void seal_reference(struct os_sim *sim, struct format_reference *reference, enum space space,
                           uint32_t level, uint64_t number, struct budget *budget)
{
    union {
        uint8_t bytes[PAGE_BYTES];
        struct format_reference references[NODE_FANOUT];
    } page;
    uint64_t offset = reference->location * PAGE_BYTES;
    if (!reference->location || reference->location > UINT32_MAX || !budget->pages ||
        os_sim_peek(sim, BASE_PATH, offset, &page, sizeof page))
        return;
    budget->pages--;
    if (level) {
        for (uint32_t i = 0; i < NODE_FANOUT; i++)
            seal_reference(sim, &page.references[i], space, level - 1, number * NODE_FANOUT + i,
                           budget);
        os_sim_poke(sim, BASE_PATH, offset, &page, sizeof page);
    }
    reference->checksum = page_checksum(&page, page_seed(space, level, number));
}

static void seal_header(struct os_sim *sim, uint64_t offset)
{
    enum { LEVELS_MOST = 4, PAGES_MOST = 1000 };
    struct format_header header;
    struct budget budget = {PAGES_MOST};
    if (os_sim_peek(sim, BASE_PATH, offset, &header, sizeof header))
        return;
    for (unsigned s = 0; s < SPACE_COUNT; s++) {
        struct format_space *space = &header.spaces[s];
        if (space->height <= LEVELS_MOST)
            seal_reference(sim, &space->root, (enum space)s, space->height, 0, &budget);
    }
    header.checksum = checksum64(&header, offsetof(struct format_header, checksum));
    os_sim_poke(sim, BASE_PATH, offset, &header, sizeof header);
}

void seal_trees(struct os_sim *sim)
{
    seal_header(sim, 0);
    seal_header(sim, PAGE_BYTES);
}

/* ---------------------------------------------------------------- sectors */

/* The checksum of a record at `record`; false if it is longer than what there is. */
static bool seal_record(uint8_t *record, size_t room, uint64_t seed, uint32_t place)
{
    if (room < RECORD_HEADER_BYTES)
        return false;
    struct format_record header = record_header(record);
    size_t bytes = header.kind == RECORD_PAD ? RECORD_HEADER_BYTES
                                             : record_bytes(header.key_bytes, header.value_bytes);
    if (bytes > room)
        return false;
    header.checksum = record_checksum(record, bytes, seed) ^ place;
    memcpy(record, &header.checksum, sizeof header.checksum);
    return true;
}

static void seal_sector(struct os_sim *sim, uint64_t offset, uint8_t *sector, uint64_t seed)
{
    struct format_sector_header header;
    os_sim_peek(sim, BASE_PATH, offset, sector, SECTOR_BYTES);
    memcpy(&header, sector, sizeof header);
    if (header.magic != SECTOR_MAGIC)
        return;
    header.checksum = checksum64(&header, offsetof(struct format_sector_header, checksum));
    memcpy(sector, &header, sizeof header);
    uint32_t cell = SECTOR_HEADER_CELLS;
    while (cell < SECTOR_CELLS) {
        uint8_t *record = sector + cell * CELL_BYTES;
        size_t room = SECTOR_BYTES - cell * CELL_BYTES;
        uint32_t cells = header.type == SECTOR_LARGE ? SECTOR_CELLS - cell
                                                     : record_walk(record, SECTOR_CELLS - cell);
        if (!cells || !seal_record(record, room, seed, record_place(header.sequence, cell)))
            break;
        cell += cells;
    }
    os_sim_poke(sim, BASE_PATH, offset, sector, min_u64(cell, SECTOR_CELLS) * CELL_BYTES);
}

void seal_sectors(struct os_sim *sim)
{
    uint8_t *sector = malloc(SECTOR_BYTES);
    struct format_header header = places_header(sim);
    uint64_t size = 0;
    os_sim_file_size(sim, BASE_PATH, &size);
    for (uint64_t offset = SECTOR_BYTES; offset + SECTOR_BYTES <= size; offset += SECTOR_BYTES)
        seal_sector(sim, offset, sector, load_u64(header.store_id + 8));
    free(sector);
}

/* ---------------------------------------------------------------- the log */

struct sealing {
    uint8_t *log;
    uint64_t size;
    struct format_header header; /* of the store */
    uint64_t sequence;           /* of the open sector */
};

static void seal_operations(struct sealing *sealing, uint8_t *at, const uint8_t *end)
{
    struct format_operation operation;
    while ((size_t)(end - at) >= sizeof operation) {
        memcpy(&operation, at, sizeof operation);
        at += sizeof operation;
        if (operation.bytes > (size_t)(end - at))
            return;
        if (operation.kind == OPERATION_OPEN && operation.bytes == sizeof(uint64_t))
            sealing->sequence = load_u64(at);
        if (operation.kind == OPERATION_PUT)
            seal_record(at, operation.bytes, load_u64(sealing->header.store_id + 8),
                        record_place(sealing->sequence, operation.address % SECTOR_CELLS));
        if (round_up(operation.bytes, 8) > (size_t)(end - at))
            return;
        at += round_up(operation.bytes, 8);
    }
}

static void seal_log_header(struct sealing *sealing)
{
    struct format_log_header header;
    if (sealing->size < sizeof header)
        return;
    memcpy(&header, sealing->log, sizeof header);
    header.checksum = checksum64(&header, offsetof(struct format_log_header, checksum));
    memcpy(sealing->log, &header, sizeof header);
}

static void seal_chain(struct sealing *sealing, const struct seal_log *options)
{
    enum { FRAMES_MOST = 4096 };
    uint64_t offset = sealing->header.log_offset;
    uint64_t chain = sealing->header.log_chain;
    uint64_t commit = sealing->header.commit;
    for (unsigned i = 0; i < FRAMES_MOST; i++) {
        struct format_frame frame;
        if (offset > sealing->size || sealing->size - offset < sizeof frame)
            return;
        uint8_t *at = sealing->log + offset;
        memcpy(&frame, at, sizeof frame);
        if (frame.bytes < sizeof frame || frame.bytes > sealing->size - offset || frame.bytes % 8)
            return;
        if (options->records)
            seal_operations(sealing, at + sizeof frame, at + frame.bytes);
        if (options->numbers && !(frame.flags & FRAME_FLAGS_ALL))
            frame.commit = ++commit;
        frame.previous = chain;
        memcpy(at, &frame, sizeof frame);
        chain = checksum64(at + sizeof chain, frame.bytes - sizeof chain) ^
                load_u64(sealing->header.store_id);
        memcpy(at, &chain, sizeof chain);
        offset = frame.flags & FRAME_WRAP ? LOG_FRAMES_OFFSET : offset + frame.bytes;
    }
}

void seal_log(struct os_sim *sim, const struct seal_log *options)
{
    struct sealing sealing = {.header = places_header(sim)};
    struct format_sector_header sector;
    if (os_sim_file_size(sim, BASE_LOG_PATH, &sealing.size))
        return;
    sealing.size = min_u64(sealing.size, MIB);
    sealing.log = malloc(sealing.size + 1);
    os_sim_peek(sim, BASE_LOG_PATH, 0, sealing.log, sealing.size);
    if (!os_sim_peek(sim, BASE_PATH, (uint64_t)sealing.header.tail_sector * SECTOR_BYTES, &sector,
                     sizeof sector))
        sealing.sequence = sector.sequence;
    seal_log_header(&sealing);
    seal_chain(&sealing, options);
    os_sim_poke(sim, BASE_LOG_PATH, 0, sealing.log, sealing.size);
    free(sealing.log);
}
