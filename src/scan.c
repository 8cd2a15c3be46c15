#include "scan.h"

#include "checksum.h"

uint32_t scan_whole(const struct scan *scan, uint32_t cell)
{
    const uint8_t *record = scan->base + (size_t)cell * CELL_BYTES;
    uint32_t cells = record_walk(record, scan->end - cell);
    if (!cells || !record_verify(record, (size_t)cells * CELL_BYTES, scan->seed,
                                 record_place(scan->sequence, cell)))
        return 0;
    return cells;
}

bool scan_next(struct scan *scan, struct scanned *found)
{
    if (scan->cell >= scan->end)
        return false;
    *found = (struct scanned){.record = scan->base + (size_t)scan->cell * CELL_BYTES,
                              .cell = scan->cell};
    found->cells = scan_whole(scan, scan->cell);
    found->whole = found->cells != 0;
    while (!found->whole && scan->cell + found->cells < scan->end) {
        found->cells++;
        if (scan->cell + found->cells < scan->end &&
            scan_whole(scan, scan->cell + found->cells) != 0)
            break;
    }
    scan->cell += found->cells;
    return true;
}

/* ---------------------------------------------------------------- lost sequences */

/* The place that the record at this cell was written for, if it is whole; false if it cannot be a
 * record. */
static bool place_of(const uint8_t *base, uint64_t seed, uint32_t cell, uint32_t *cells,
                     uint32_t *place)
{
    const uint8_t *record = base + (size_t)cell * CELL_BYTES;
    *cells = record_walk(record, SECTOR_CELLS - cell);
    if (!*cells)
        return false;
    struct format_record header = record_header(record);
    size_t bytes = header.kind == RECORD_PAD ? RECORD_HEADER_BYTES
                                             : record_bytes(header.key_bytes, header.value_bytes);
    *place = header.checksum ^ record_checksum(record, bytes, seed);
    return true;
}

/* How many cells are in whole records, if this is the sector's sequence? */
static uint32_t whole_cells(const uint8_t *base, uint64_t seed, uint64_t sequence)
{
    struct scan scan = scan_begin(base, seed, sequence, SECTOR_CELLS);
    struct scanned found;
    uint32_t cells = 0;
    while (scan_next(&scan, &found))
        cells += found.whole ? found.cells : 0;
    return cells;
}

/* Places of the same two cells are alike in most sequences of the same first place: so of those
 * that agree, the one counts with which most of the sector is whole. */
bool scan_find_sequence(const uint8_t *base, uint64_t seed, uint64_t sequence_max,
                        uint64_t *sequence)
{
    enum { PAIRS_MAX = 256 };
    uint32_t pairs = 0, best = 0;
    for (uint32_t cell = SECTOR_HEADER_CELLS; !best && cell < SECTOR_CELLS && pairs < PAIRS_MAX;
         cell++) {
        uint32_t cells, place, next_cells, next_place;
        if (!place_of(base, seed, cell, &cells, &place) || cell + cells >= SECTOR_CELLS ||
            !place_of(base, seed, cell + cells, &next_cells, &next_place))
            continue;
        pairs++;
        for (uint64_t s = 1; s <= sequence_max; s++) {
            if (record_place(s, cell) != place || record_place(s, cell + cells) != next_place)
                continue;
            uint32_t whole = whole_cells(base, seed, s);
            if (whole > best) {
                best = whole;
                *sequence = s;
            }
        }
    }
    return best != 0;
}
