/*
 * compose: a store's file out of whole records, written once, from the front to the back.
 *
 * No store is open on the file, there is no log, and nothing in it ever changes its place:
 *
 *     sector 0       the header, which is written last: until then the file is not a store
 *     values, large  sectors, in the order in which the records come
 *     pages          index, directory and table, and the trees over them; deletion maps are zeros,
 *                    which are stored nowhere
 *
 * Records keep the checksum that they came with, but for the store and the place that are in it:
 * what was damaged on the way is damaged in the file too, and found when it is read. What is kept
 * in memory is 24 bytes a key, until all are there and the index can be built; it is built by
 * sorting them by their hash, one bit at a time, in place.
 *
 * The file is that of a store that was closed. Its last values sector is open, as always.
 */
#ifndef FKV_COMPOSE_H
#define FKV_COMPOSE_H

#include "index.h"
#include "os.h"
#include "record.h"

struct composed_key {
    struct hash128 hash;
    uint64_t entry; /* as entry_value() */
};

/* Pages of a space that are in the file, or zeros. */
struct composed_space {
    struct format_reference *references;
    uint32_t count, room;
};

struct compose {
    struct hash_seeds hash_seeds;
    const struct os_ops *ops;
    struct os_file *file;
    const char *path; /* for messages */
    /* Called with each sector that was written, if it is set; an error ends the work. */
    enum fkv_error (*wrote)(void *context, uint64_t bytes);
    void *context;

    struct format_header header; /* what it will be */
    uint64_t seed;               /* of record checksums */

    uint8_t *buffer; /* the values sector, later the sector of pages, that is being filled */
    uint32_t values; /* the values sector in it; 0: none */
    uint32_t cell;   /* where its next record goes */
    uint32_t pages;  /* the sector of pages in it; 0: none */
    uint32_t table_room;
    uint32_t page;               /* the next one of those */
    uint8_t *large;              /* room for a large sector; NULL: none was needed so far */
    struct format_sector *table; /* of header.sector_count sectors */

    struct composed_key *keys;
    uint64_t key_count, key_room;
    struct composed_space space[SPACE_COUNT];
    uint8_t *segment; /* pages of the index that are being filled */
};

/*
 * A store of this mode, salt and id, whose last commit is this one. `keys`: how many there will be,
 * as far as is known. The file is empty. compose_drop follows, whatever is returned.
 */
enum fkv_error compose_begin(struct compose *compose, const struct os_ops *ops,
                             struct os_file *file, const char *path,
                             const struct format_header *like, uint64_t keys);
/*
 * Add a record of so many cells, of whatever kind but a pad: a copy, with a checksum that is xor-ed
 * with `change`, in which are the seed and the place that it has. No two are of one key.
 */
enum fkv_error compose_record(struct compose *compose, const uint8_t *record, uint32_t cells,
                              uint32_t change);
/* Add a sector with this record of a large value, which fills it; *sector receives its number. */
enum fkv_error compose_large(struct compose *compose, const uint8_t *record, uint32_t change,
                             uint32_t *sector);
/* Write all the rest, and make it durable. */
enum fkv_error compose_end(struct compose *compose);
void compose_drop(struct compose *compose);

/* ---- compose_index.c, for compose_end: index, table and trees */
enum fkv_error compose_pages(struct compose *compose);

/* ---- compose.c, for compose_index.c */
/* Write the buffer, or another sector of bytes. */
enum fkv_error compose_write(struct compose *compose, const uint8_t *bytes, uint32_t sector);
/* The number of a new sector, which has an entry in the table. */
enum fkv_error compose_sector(struct compose *compose, uint32_t *sector);
/* Room for one more item in an array. */
enum fkv_error compose_room(void **items, size_t item_bytes, uint64_t count, uint64_t *room);

#endif
