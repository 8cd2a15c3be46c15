#include "places.h"

#include "record.h"
#include "tree.h"

struct finder {
    struct os_sim *sim;
    struct place *places;
    size_t count, room;
};

static void found(struct finder *finder, enum place_kind kind, bool in_log, uint64_t offset,
                  uint32_t bytes)
{
    if (finder->count < finder->room)
        finder->places[finder->count++] = (struct place){kind, in_log, bytes, offset};
}

struct format_header places_header(struct os_sim *sim)
{
    struct format_header copies[2];
    os_sim_peek(sim, BASE_PATH, 0, &copies[0], sizeof copies[0]);
    os_sim_peek(sim, BASE_PATH, PAGE_BYTES, &copies[1], sizeof copies[1]);
    return copies[copies[1].sequence > copies[0].sequence];
}

static void find_pages(struct finder *finder, enum space space, uint64_t location, uint32_t height)
{
    struct format_reference references[NODE_FANOUT];
    uint64_t offset = location * PAGE_BYTES;
    if (!location)
        return;
    found(finder, height ? PLACE_NODE : PLACE_PAGE + (enum place_kind)space, false, offset,
          PAGE_BYTES);
    if (!height || os_sim_peek(finder->sim, BASE_PATH, offset, references, sizeof references))
        return;
    for (uint32_t i = 0; i < NODE_FANOUT; i++)
        find_pages(finder, space, references[i].location, height - 1);
}

static void find_records(struct finder *finder, uint64_t sector_offset)
{
    uint8_t header_bytes[RECORD_HEADER_BYTES];
    for (uint32_t cell = SECTOR_HEADER_CELLS, cells; cell < SECTOR_CELLS; cell += cells) {
        uint64_t offset = sector_offset + cell * CELL_BYTES;
        os_sim_peek(finder->sim, BASE_PATH, offset, header_bytes, sizeof header_bytes);
        struct format_record header = record_header(header_bytes);
        cells = record_walk(header_bytes, SECTOR_CELLS - cell);
        if (!cells)
            return;
        found(finder, PLACE_RECORD, false, offset,
              header.kind == RECORD_PAD
                  ? (uint32_t)RECORD_HEADER_BYTES
                  : (uint32_t)record_bytes(header.key_bytes, header.value_bytes));
    }
}

static void find_sectors(struct finder *finder)
{
    uint64_t size = 0;
    os_sim_file_size(finder->sim, BASE_PATH, &size);
    for (uint64_t offset = SECTOR_BYTES; offset < size; offset += SECTOR_BYTES) {
        struct format_sector_header header;
        os_sim_peek(finder->sim, BASE_PATH, offset, &header, sizeof header);
        if (header.magic != SECTOR_MAGIC)
            continue;
        found(finder, PLACE_SECTOR, false, offset, sizeof header);
        if (finder->count + 256 < finder->room)
            find_records(finder, offset);
    }
}

/* Those that a recovery would replay. */
static void find_frames(struct finder *finder, uint64_t offset, uint64_t chain)
{
    struct format_frame frame;
    while (!os_sim_peek(finder->sim, BASE_LOG_PATH, offset, &frame, sizeof frame) &&
           frame.previous == chain) {
        found(finder, PLACE_FRAME, true, offset, frame.bytes);
        chain = frame.checksum;
        offset += frame.bytes;
    }
}

size_t places_find(struct os_sim *sim, struct place *places, size_t room)
{
    struct finder finder = {.sim = sim, .places = places, .room = room};
    struct format_header header = places_header(sim);
    found(&finder, PLACE_HEADER, false, 0, sizeof header);
    found(&finder, PLACE_HEADER, false, PAGE_BYTES, sizeof header);
    found(&finder, PLACE_LOG_HEADER, true, 0, sizeof(struct format_log_header));
    for (unsigned s = 0; s < SPACE_COUNT; s++)
        find_pages(&finder, (enum space)s, header.spaces[s].root.location, header.spaces[s].height);
    find_frames(&finder, header.log_offset, header.log_chain);
    find_sectors(&finder);
    return finder.count;
}
