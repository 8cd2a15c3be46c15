/*
 * format: the bytes on disk. docs/file-format.md is the prose of this file.
 *
 * All integers are little-endian. A store is a sequence of sectors of 1 MiB; sector 0 holds the
 * two copies of the header. The other sectors hold values (cells of 16 bytes), pieces of large
 * values, or pages of 4 KiB with everything else.
 */
#ifndef FKV_FORMAT_H
#define FKV_FORMAT_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "bytes.h"

#define FORMAT_MAGIC 0x0a1a0d53564b66ffull /* ff 'f' 'K' 'V' 'S' 0d 1a 0a */
#define FORMAT_VERSION 2u

#define SECTOR_BYTES MIB
#define PAGE_BYTES ((size_t)4096)
#define SECTOR_PAGES 256u
#define CELL_BYTES ((size_t)16)
#define SECTOR_CELLS 65536u
/* 25 bits of sector and 16 of cell make an address; so a file has at most 32 TiB. */
#define SECTORS_MAX (1u << 25)
#define CELL_ADDRESS_BITS 41

/* ---------------------------------------------------------------- header */

enum format_features { FEATURE_DIGEST = 1u << 0 };

enum space { SPACE_INDEX, SPACE_DIRECTORY, SPACE_SECTORS, SPACE_MAPS, SPACE_COUNT };

/* Where a page, or a node of the tree over pages, is, and what it must hash to. A location of 0
 * means a page of zeros that is not stored. */
struct format_reference {
    uint64_t location; /* in pages from the start of the file */
    uint64_t checksum;
};

struct format_space {
    struct format_reference root;
    uint32_t pages;  /* page numbers are below this */
    uint32_t height; /* levels of nodes above the pages; 0 if there are no pages */
};

struct format_header {
    uint64_t magic;
    uint32_t version;
    uint32_t features; /* unknown bits: refuse to open */
    uint64_t sequence; /* of this copy; the higher of two valid copies counts */
    uint8_t store_id[16];
    uint8_t salt[16];
    uint64_t sector_count;  /* sectors the file has, this one included */
    uint64_t commit;        /* the last commit that is in the pages */
    uint64_t log_offset;    /* where in the log the next frame begins */
    uint64_t log_chain;     /* what that frame has as `previous` */
    uint64_t clean;         /* 1: closed; the log holds nothing that is not here */
    uint64_t next_sequence; /* of the next values sector */
    uint32_t tail_sector;   /* the open values sector; 0 none */
    uint32_t tail_cell;     /* the next free cell in it */
    uint64_t keys;
    uint64_t live_cells; /* these three: in values sectors */
    uint64_t dead_cells;
    uint64_t pad_cells;
    uint32_t segments; /* of the index: entries of the directory, used or not */
    uint32_t reserved;
    struct format_space spaces[SPACE_COUNT];
    uint64_t debt_cells; /* steps that the collector owes */
    uint64_t zero[13];
    uint64_t checksum; /* XXH3-64 of all bytes before it */
};
static_assert(sizeof(struct format_header) == 368, "header has no padding");

/* ---------------------------------------------------------------- tables */

#define NODE_FANOUT 256u
static_assert(sizeof(struct format_reference) * NODE_FANOUT == PAGE_BYTES, "a node is a page");

/* SPACE_SECTORS: what a sector is. Sectors that hold pages show as SECTOR_FREE here; they are
 * known by the references to them. */
enum sector_type { SECTOR_FREE = 0, SECTOR_VALUES = 1, SECTOR_LARGE = 2, SECTOR_PAGES_TYPE = 3 };

struct format_sector {
    uint64_t sequence; /* counts values sectors from the first ever: the order of the queue */
    uint32_t dead_cells;
    uint16_t pad_cells;
    uint8_t type;
    uint8_t zero;
};
#define SECTORS_PER_PAGE ((uint32_t)(PAGE_BYTES / sizeof(struct format_sector)))
static_assert(SECTORS_PER_PAGE == 256, "entries fill a page");

/* SPACE_DIRECTORY: an index segment: the pages that hold the keys of one hash prefix. */
#define SEGMENT_PAGES_MAX 14u
struct format_segment {
    uint32_t prefix; /* the first `depth` bits of the hash, right-aligned */
    uint8_t depth;
    uint8_t pages; /* 0: this entry is unused */
    uint16_t count;
    uint32_t page[SEGMENT_PAGES_MAX];
};
#define SEGMENTS_PER_PAGE ((uint32_t)(PAGE_BYTES / sizeof(struct format_segment)))
static_assert(SEGMENTS_PER_PAGE == 64, "entries fill a page");

/* SPACE_MAPS: two pages a sector, numbers 2s and 2s + 1; a bit per cell, set for the first cell of
 * a dead record. */
#define MAP_PAGE_CELLS (SECTOR_CELLS / 2)

/* ---------------------------------------------------------------- values sectors */

struct format_sector_header {
    uint64_t magic;
    uint8_t store_id[16];
    uint64_t sequence;
    uint32_t sector;
    uint32_t type;
    uint8_t zero[16];
    uint64_t checksum; /* XXH3-64 of all bytes before it */
};
#define SECTOR_HEADER_CELLS 4u
#define SECTOR_MAGIC 0x6c61567365756c56ull
static_assert(sizeof(struct format_sector_header) == SECTOR_HEADER_CELLS * CELL_BYTES, "4 cells");

enum record_kind {
    RECORD_PLAIN = 1, /* key and value */
    RECORD_LARGE = 2, /* key, then format_large, sector numbers; the value is in pieces */
    RECORD_PIECE = 3, /* a piece of a large value: its key is a format_piece_key */
    RECORD_PAD = 4,   /* nothing: value_bytes cells to skip */
};

struct format_record {
    uint32_t checksum; /* record_checksum() */
    uint32_t value_bytes;
    uint16_t key_bytes;
    uint8_t kind;
    uint8_t zero;
};
#define RECORD_HEADER_BYTES ((size_t)12)
static_assert(sizeof(struct format_record) == RECORD_HEADER_BYTES, "record header");

/* No record is longer than this, pads included. */
#define RECORD_BYTES_MAX (128 * KIB)
#define RECORD_CELLS_MAX ((uint32_t)(RECORD_BYTES_MAX / CELL_BYTES))

/* A pad that ends with its sector, where a record may not have fitted, is padding: less than an
 * eighth of a sector. Any other is a gap, and counts as dead. */
static inline bool pad_is_gap(uint32_t cell, uint32_t cells)
{
    return cell + cells < SECTOR_CELLS || cells == RECORD_CELLS_MAX;
}

/* The id of a large value: the commit that made it, and in so many bits its number among those of
 * the commit. No two values may ever share one, for it leads to their pieces. */
#define LARGE_NUMBER_BITS 16

/* The value area of a RECORD_LARGE; followed by `sectors` numbers of 4 bytes. The value is the
 * payloads of those sectors in order and then of `pieces` records in the queue. */
struct format_large {
    uint64_t id;
    uint32_t value_bytes;
    uint32_t sectors;
    uint32_t pieces;
    uint32_t piece_bytes; /* of each piece in the queue but the last */
};
struct format_piece_key {
    uint64_t id;     /* of the large value: see LARGE_NUMBER_BITS */
    uint32_t number; /* sectors first, then pieces of the queue */
    uint32_t zero;
};
static_assert(sizeof(struct format_piece_key) == 16, "no padding");
/* Pieces are hashed under the salt with each byte xor-ed with this. */
#define PIECE_SALT 0xa5
/* What a sector of its own holds of a large value. */
#define LARGE_SECTOR_PAYLOAD                                                               \
    ((uint32_t)(SECTOR_BYTES - sizeof(struct format_sector_header) - RECORD_HEADER_BYTES - \
                sizeof(struct format_piece_key)))
/* What one record in the queue holds of it. */
#define LARGE_PIECE_PAYLOAD ((uint32_t)(64 * KIB))

/*
 * Lengths of records, in cells, are kept in 9 bits: exact to 64 cells, and in 32 steps an octave
 * from there, so records longer than 1 KiB are rounded up by at most 1/32.
 */
#define CELLS_EXACT 64u
static inline uint32_t length_code(uint32_t cells)
{
    if (cells <= CELLS_EXACT)
        return cells;
    uint32_t shift = 31u - (uint32_t)__builtin_clz(cells - 1) - 5; /* steps of 2^shift */
    uint32_t steps = (cells + (1u << shift) - 1) >> shift;         /* 33 to 64 */
    return 64 + (shift - 1) * 32 + (steps - 32);
}

static inline uint32_t length_of_code(uint32_t code)
{
    if (code <= 64)
        return code;
    uint32_t shift = (code - 65) / 32 + 1;
    return ((code - 65) % 32 + 33) << shift;
}

/* Cells that a record of so many bytes takes. */
static inline uint32_t record_cells(size_t bytes)
{
    uint32_t cells = (uint32_t)divide_up(bytes, CELL_BYTES);
    return cells <= CELLS_EXACT ? cells : length_of_code(length_code(cells));
}

/* ---------------------------------------------------------------- log */

/*
 * What a frame says of records outside the log names their checksums: a commit that a crash undid
 * may have left others in their place, whole and of the same sequence.
 */

#define LOG_MAGIC 0x0a1a0d4c564b66ffull
#define LOG_FRAMES_OFFSET PAGE_BYTES
/* No frame begins beyond this. */
#define LOG_OFFSET_MAX (1ull << 40)
/* No commit has this number: at a million a second it is nine years away. */
#define COMMITS_MAX (1ull << (64 - LARGE_NUMBER_BITS))

struct format_log_header {
    uint64_t magic;
    uint32_t version;
    uint32_t zero;
    uint8_t store_id[16];
    uint64_t checksum;
};

enum frame_flags {
    FRAME_WRAP = 1u << 0,    /* no operations; the next frame is at LOG_FRAMES_OFFSET */
    FRAME_RESTART = 1u << 1, /* no commit: a new opening of the store begins here */
    FRAME_COLLECT = 1u << 2, /* no commit: the collector's moves */
    FRAME_FLAGS_ALL = FRAME_WRAP | FRAME_RESTART | FRAME_COLLECT,
};

/* Frames are 8-byte aligned and so are the operations in them. */
struct format_frame {
    uint64_t checksum; /* XXH3-64 of the rest of the frame, xor the store's id's first 8 bytes */
    uint64_t previous; /* checksum of the frame before: the chain that replay follows */
    uint32_t bytes;    /* of the frame, this header included, a multiple of 8; never 0 */
    uint32_t flags;
    uint64_t commit;         /* the number of the commit */
    uint64_t durable_commit; /* commits up to this one were synced when this was written */
};
static_assert(sizeof(struct format_frame) == 40, "frame header");

enum operation_kind {
    OPERATION_OPEN = 1,   /* a new values sector: address is its number << 16, then sequence */
    OPERATION_PUT = 2,    /* address, then the record */
    OPERATION_REFER = 3,  /* address of a record that is in the file already, then its checksum */
    OPERATION_DELETE = 4, /* then the hash, 16 bytes */
    OPERATION_MOVE = 5,   /* address, then where from, 8 bytes */
    OPERATION_LARGE = 6,  /* a sector that holds a piece of a large value: as OPERATION_OPEN, then
                           * the checksum of its record */
};

#define OPERATION_LARGE_BYTES (sizeof(uint64_t) + sizeof(uint32_t))

struct format_operation {
    uint32_t kind;
    uint32_t bytes; /* of what follows, before padding to 8 */
    uint64_t address;
};

#endif
