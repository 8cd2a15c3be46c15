/*
 * record: a key and its value as they lie in cells.
 *
 * The checksum is NH (nh.h) over each KiB, folded; and it is bound to the place: xor-ed with a
 * number made of the sector's sequence and the cell. So bytes that were written for another place,
 * another life of the sector or another store fail it; and the collector moves a record by
 * exchanging that number, without reading the contents and without ever making a damaged record
 * whole.
 */
#ifndef FKV_RECORD_H
#define FKV_RECORD_H

#include "checksum.h"
#include "error.h"
#include "format.h"
#include "hash.h"

/* What the checksum of a record at this place is xor-ed with. */
static inline uint32_t record_place(uint64_t sequence, uint32_t cell)
{
    uint64_t x = sequence * SECTOR_CELLS + cell;
    x *= 0x9e3779b97f4a7c15ull;
    return (uint32_t)(x >> 32);
}

static inline size_t record_bytes(size_t key_bytes, size_t value_bytes)
{
    return RECORD_HEADER_BYTES + key_bytes + value_bytes;
}

static inline struct format_record record_header(const uint8_t *record)
{
    struct format_record header;
    memcpy(&header, record, sizeof header);
    return header;
}

static inline const uint8_t *record_key(const uint8_t *record)
{
    return record + RECORD_HEADER_BYTES;
}

/* A store's two: of keys, and of the pieces of large values, which no key can be made to meet. */
struct hash_seeds {
    struct hash_seed keys, pieces;
};

void hash_seeds_make(struct hash_seeds *seeds, const uint8_t salt[HASH_SALT_BYTES]);

/* The hash of a record's key: what leads to it in the index. */
static inline struct hash128 record_hash(const struct hash_seeds *seeds, const uint8_t *record)
{
    struct format_record header = record_header(record);
    return hash_key(header.kind == RECORD_PIECE ? &seeds->pieces : &seeds->keys, record_key(record),
                    header.key_bytes);
}

/* Write a record; returns its length in bytes. */
size_t record_write(uint8_t *to, uint64_t seed, uint32_t place, enum record_kind kind,
                    const void *key, size_t key_bytes, const void *value, size_t value_bytes);

/* Give a record that is written but for its checksum that of this place. */
void record_seal(uint8_t *record, uint64_t seed, uint32_t place);

/* Copy a record to another place, of the same store or another: `change` is what its checksum is
 * xor-ed with, the two places, and the seeds of two stores. What was damaged stays damaged. */
static inline void record_copy(uint8_t *to, const uint8_t *record, size_t bytes, uint32_t change)
{
    uint32_t checksum = record_header(record).checksum ^ change;
    memcpy(to, record, bytes);
    memcpy(to, &checksum, sizeof checksum);
}

/* Write a record of RECORD_PAD over this many cells. */
void record_write_pad(uint8_t *to, uint64_t seed, uint32_t place, uint32_t cells);

/* Of so many bytes, the checksum itself counting as 0. */
static inline uint32_t record_checksum(const uint8_t *record, size_t bytes, uint64_t seed)
{
    return isa.record_checksum(record, (uint32_t)divide_up(bytes, CELL_BYTES), bytes) ^
           (uint32_t)seed;
}

/* Is the record whole, and within `bytes_max`? */
static inline bool record_verify(const uint8_t *record, size_t bytes_max, uint64_t seed,
                                 uint32_t place)
{
    if (bytes_max < RECORD_HEADER_BYTES)
        return false;
    struct format_record header = record_header(record);
    size_t bytes = header.kind == RECORD_PAD ? RECORD_HEADER_BYTES
                                             : record_bytes(header.key_bytes, header.value_bytes);
    return bytes <= bytes_max && header.checksum == (record_checksum(record, bytes, seed) ^ place);
}

/* The same for a record that the index says is of so many cells: which is what is decided by, where
 * the cells tell the length to a cell, so that no branch waits for the record. */
static inline bool record_verify_cells(const uint8_t *record, uint32_t cells, uint64_t seed,
                                       uint32_t place)
{
    struct format_record header = record_header(record);
    size_t bytes = record_bytes(header.key_bytes, header.value_bytes);
    if (__builtin_expect(cells > CELLS_EXACT, 0))
        return record_verify(record, (size_t)cells * CELL_BYTES, seed, place);
    return divide_up(bytes, CELL_BYTES) == cells &&
           header.checksum == (isa.record_checksum(record, cells, bytes) ^ (uint32_t)seed ^ place);
}

/* Is the piece of a large value that fills the rest of its sector whole? */
static inline bool record_verify_sector(const uint8_t *record, uint64_t seed, uint64_t sequence)
{
    return record_verify(record, SECTOR_BYTES - sizeof(struct format_sector_header), seed,
                         record_place(sequence, SECTOR_HEADER_CELLS));
}

/* Is it that piece of a large value, as its header and its key have it? */
bool record_is_piece(const uint8_t *record, uint64_t id, uint32_t number, uint32_t bytes);

/* Cells of the record that begins here, as its header has it; 0 if that cannot be. */
uint32_t record_walk(const uint8_t *record, uint32_t cells_left);

#endif
