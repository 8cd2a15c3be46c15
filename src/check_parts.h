/*
 * check_parts: what the parts of a check share.
 *
 *     check.c         the whole: the order of things, the counters, files that cannot be opened
 *     check_stored.c  header copies, trees and pages in the file, the log
 *     check_memory.c  what an open handle has in memory: pages, frames, lists of sectors
 *     check_index.c   the directory, segments and slots
 *     check_values.c  the table of sectors, values sectors with their records, deletion maps
 *     check_large.c   values in several pieces
 *
 * A part that cannot be read is reported once, by whoever verifies it, and then answers that hang
 * on it are "unknown": nothing is concluded from them.
 */
#ifndef FKV_CHECK_PARTS_H
#define FKV_CHECK_PARTS_H

#include "check.h"
#include "image.h"
#include "index_slots.h"
#include "scan.h"

/* A list that grows. */
struct vector {
    void *items;
    size_t count, room;
    size_t item_bytes;
};
void *vector_add(struct vector *vector); /* NULL without memory */
void vector_drop(struct vector *vector);

/* What a sector was found to be. */
enum sector_kind {
    SECTOR_IS_UNKNOWN, /* its entry in the table is lost or impossible */
    SECTOR_IS_FREE,
    SECTOR_IS_VALUES,
    SECTOR_IS_LARGE,
    SECTOR_IS_PAGES,
};

struct checked_sector {
    uint64_t sequence;
    uint32_t dead_cells;
    uint16_t pad_cells;
    uint8_t kind;
};

/* Cells in which there are no whole records. */
struct damaged_cells {
    uint64_t address;
    uint32_t cells;
};

struct checked_index {
    uint32_t segment_count;
    struct format_segment *segments; /* by id; no pages: not in use, or lost */
    uint32_t depth;
    uint32_t *directory; /* ids; 0: lost */
    uint32_t page_count;
    const struct bucket **pages; /* by number; NULL: not in use, or lost */
    uint64_t *confirmed;         /* a bit a slot, 4 words a page: a live record was found there */
    struct vector blocks;        /* memory of pages that are not in frames */
    uint32_t block_used;
    uint64_t entries;
};

struct checked_large {
    struct vector heads;   /* struct large_head */
    struct vector pieces;  /* struct large_piece */
    struct vector sectors; /* struct large_sector */
};

struct check {
    struct report report; /* the first member */
    struct check_options options;
    fkv_check_result result;
    enum fkv_error error; /* FKV_NO_MEMORY: the check ends */
    bool ended;           /* by `progress` */
    uint64_t work_done, work_total;

    /* The subject. */
    struct fkv *db; /* NULL: the file alone */
    struct image image;
    const char *path, *log_path;
    struct os_file *file, *log_file; /* no log: NULL */
    uint8_t store_id[16];
    struct hash_seeds hash_seeds;
    uint64_t seed;
    uint32_t sector_count;
    uint64_t keys, live_cells, dead_cells, pad_cells, debt_cells, next_sequence;
    uint32_t segment_count;
    uint32_t tail_sector, tail_cell; /* the open sector, and where its records end */
    uint32_t page_count[SPACE_COUNT];

    /* What was found. */
    struct checked_sector *sectors;
    struct checked_index index;
    struct checked_large large;
    struct vector damaged; /* struct damaged_cells, by address */
    uint64_t pieces_live;
    bool pages_lost; /* some page or node: sums are not to be compared */
    bool sectors_unknown;
    uint8_t *sector_bytes; /* room for one */
};

/* The bytes of a page in the state that is checked: in memory, or in `room`. NULL: lost. */
const void *check_page(struct check *check, enum space space, uint32_t number, void *room);

/* The bytes of a sector, in memory or in check->sector_bytes; says so if some cannot be read. */
const uint8_t *check_sector_bytes(struct check *check, uint32_t sector);

/* So many bytes more are done. False if the check is to end. */
bool check_advance(struct check *check, uint64_t bytes);
/* Note that there is no memory. Returns false. */
bool check_no_memory(struct check *check);
static inline bool check_goes_on(const struct check *check)
{
    return !check->error && !check->ended;
}

/* ---- check_stored.c: nothing if the file is not to be looked at */
void check_headers(struct check *check);
void check_trees(struct check *check);
void check_stored_pages(struct check *check);
void check_log(struct check *check);

/* ---- check_memory.c: nothing if there is no handle */
void check_memory(struct check *check);

/* ---- check_index.c */
void check_index_load(struct check *check);
void check_index_drop(struct check *check);

enum index_answer { INDEX_FOUND, INDEX_ABSENT, INDEX_UNKNOWN };
struct index_place {
    uint64_t entry;
    uint32_t page; /* number */
    uint32_t slot;
};
enum index_answer check_index_find(const struct check *check, struct hash128 hash,
                                   struct index_place *place);
static inline void check_index_confirm(struct check *check, const struct index_place *place)
{
    check->index.confirmed[place->page * 4ull + place->slot / 64] |= 1ull << (place->slot & 63);
}
/* Every slot leads to a live record? Once all records have been looked at. */
void check_index_rest(struct check *check);

/* ---- check_values.c */
void check_table(struct check *check);
void check_values(struct check *check);
/* Is it among cells without whole records? */
bool check_is_damaged(const struct check *check, uint64_t address, uint32_t cells);
/* Header of a sector whose entry in the table is known. */
bool check_sector_header(struct check *check, const uint8_t *bytes, uint32_t sector);

/* ---- check_large.c */
struct large_head {
    uint64_t id;
    uint64_t address;
    uint32_t value_bytes, sectors, pieces;
};
struct large_piece {
    uint64_t id;
    uint64_t address;
    uint32_t number;
    uint32_t bytes;
};
struct large_sector {
    uint64_t id;
    uint32_t sector;
    uint32_t number;
};
/* A live record of these kinds was found. */
void check_large_head(struct check *check, const uint8_t *record, uint64_t address);
void check_large_piece(struct check *check, const uint8_t *record, uint64_t address);
/* Once all records have been looked at. */
void check_large(struct check *check);

/* The offset in the file of a cell. */
static inline uint64_t cell_offset(uint64_t address)
{
    return address * CELL_BYTES;
}

#endif
