#include "compose.h"

#include "header.h"

enum { CELLS_PER_PAGE = PAGE_BYTES / CELL_BYTES };

/* ---------------------------------------------------------------- making, sectors */

enum fkv_error compose_begin(struct compose *compose, const struct os_ops *ops,
                             struct os_file *file, const char *path,
                             const struct format_header *like, uint64_t keys)
{
    *compose = (struct compose){.ops = ops, .file = file, .path = path};
    struct format_header *header = &compose->header;
    *header = (struct format_header){.magic = FORMAT_MAGIC,
                                     .version = FORMAT_VERSION,
                                     .features = like->features,
                                     .sector_count = 1,
                                     .commit = like->commit,
                                     .log_offset = LOG_FRAMES_OFFSET,
                                     .log_chain = like->log_chain,
                                     .clean = 1,
                                     .next_sequence = 1};
    memcpy(header->store_id, like->store_id, sizeof header->store_id);
    memcpy(header->salt, like->salt, sizeof header->salt);
    hash_seeds_make(&compose->hash_seeds, header->salt);
    compose->seed = load_u64(header->store_id + 8);
    compose->buffer = memory_buffer(SECTOR_BYTES);
    compose->table_room = 64;
    compose->table = memory_new(compose->table_room * sizeof *compose->table);
    compose->key_room = keys + 1;
    compose->keys = memory_buffer(compose->key_room * sizeof *compose->keys);
    if (!compose->buffer || !compose->table || !compose->keys)
        return FKV_NO_MEMORY;
    return FKV_OK;
}

void compose_drop(struct compose *compose)
{
    memory_free(compose->buffer);
    memory_free(compose->large);
    memory_free(compose->table);
    memory_free(compose->keys);
    memory_free(compose->segment);
    for (int s = 0; s < SPACE_COUNT; s++)
        memory_free(compose->space[s].references);
}

enum fkv_error compose_room(void **items, size_t item_bytes, uint64_t count, uint64_t *room)
{
    if (count < *room)
        return FKV_OK;
    uint64_t more = max_u64(64, *room + *room / 2);
    void *larger = memory_resize(*items, more * item_bytes);
    if (!larger)
        return FKV_NO_MEMORY;
    *items = larger;
    *room = more;
    return FKV_OK;
}

enum fkv_error compose_write(struct compose *compose, const uint8_t *bytes, uint32_t sector)
{
    uint64_t offset = (uint64_t)sector * SECTOR_BYTES;
    int status = compose->ops->write(compose->file, bytes, SECTOR_BYTES, offset);
    if (status)
        return error_os(status, "write a sector of", compose->path);
    compose->ops->start_writeback(compose->file, offset, SECTOR_BYTES);
    return compose->wrote ? compose->wrote(compose->context, SECTOR_BYTES) : FKV_OK;
}

enum fkv_error compose_sector(struct compose *compose, uint32_t *sector)
{
    uint32_t number = (uint32_t)compose->header.sector_count;
    if (number >= SECTORS_MAX)
        return error_set(FKV_FULL, "%s: a store holds at most %u sectors", compose->path,
                         SECTORS_MAX);
    uint64_t room = compose->table_room;
    enum fkv_error error =
        compose_room((void **)&compose->table, sizeof *compose->table, number, &room);
    if (error)
        return error;
    compose->table_room = (uint32_t)room;
    compose->table[number] = (struct format_sector){.type = SECTOR_FREE};
    compose->header.sector_count++;
    *sector = number;
    return FKV_OK;
}

/* A new sector of this type, with its header in `bytes`. */
static enum fkv_error begin_sector(struct compose *compose, enum sector_type type, uint8_t *bytes,
                                   uint32_t *sector)
{
    enum fkv_error error = compose_sector(compose, sector);
    if (error)
        return error;
    uint64_t sequence = compose->header.next_sequence++;
    compose->table[*sector] = (struct format_sector){.sequence = sequence, .type = (uint8_t)type};
    sector_header_write(bytes, compose->header.store_id, *sector, sequence, type);
    return FKV_OK;
}

/* ---------------------------------------------------------------- records */

static uint32_t place(const struct compose *compose, uint32_t sector, uint32_t cell)
{
    return record_place(compose->table[sector].sequence, cell);
}

/* Fill the open sector up to this cell. */
static void pad_to(struct compose *compose, uint32_t end)
{
    struct format_sector *entry = &compose->table[compose->values];
    for (uint32_t cells; compose->cell < end; compose->cell += cells) {
        cells = (uint32_t)min_u64(end - compose->cell, RECORD_CELLS_MAX);
        record_write_pad(compose->buffer + compose->cell * CELL_BYTES, compose->seed,
                         place(compose, compose->values, compose->cell), cells);
        if (pad_is_gap(compose->cell, cells)) {
            entry->dead_cells += cells;
            compose->header.dead_cells += cells;
        } else {
            entry->pad_cells += (uint16_t)cells;
            compose->header.pad_cells += cells;
        }
    }
}

static enum fkv_error make_room(struct compose *compose, uint32_t cells)
{
    if (compose->values && compose->cell + cells <= SECTOR_CELLS)
        return FKV_OK;
    enum fkv_error error = FKV_OK;
    if (compose->values) {
        pad_to(compose, SECTOR_CELLS);
        error = compose_write(compose, compose->buffer, compose->values);
    }
    compose->cell = SECTOR_HEADER_CELLS;
    return error ? error : begin_sector(compose, SECTOR_VALUES, compose->buffer, &compose->values);
}

enum fkv_error compose_record(struct compose *compose, const uint8_t *record, uint32_t cells,
                              uint32_t change)
{
    enum fkv_error error = make_room(compose, cells);
    if (error || (error = compose_room((void **)&compose->keys, sizeof *compose->keys,
                                       compose->key_count, &compose->key_room)))
        return error;
    struct format_record header = record_header(record);
    uint64_t address = (uint64_t)compose->values * SECTOR_CELLS + compose->cell;
    record_copy(compose->buffer + compose->cell * CELL_BYTES, record, cells * CELL_BYTES,
                change ^ (uint32_t)compose->seed ^ place(compose, compose->values, compose->cell));
    compose->keys[compose->key_count++] =
        (struct composed_key){record_hash(&compose->hash_seeds, record),
                              entry_value(address, cells, header.kind == RECORD_LARGE)};
    compose->cell += cells;
    compose->header.live_cells += cells;
    compose->header.keys += header.kind != RECORD_PIECE;
    return FKV_OK;
}

enum fkv_error compose_large(struct compose *compose, const uint8_t *record, uint32_t change,
                             uint32_t *sector)
{
    size_t header_bytes = sizeof(struct format_sector_header);
    if (!compose->large && !(compose->large = memory_buffer(SECTOR_BYTES)))
        return FKV_NO_MEMORY;
    enum fkv_error error = begin_sector(compose, SECTOR_LARGE, compose->large, sector);
    if (error)
        return error;
    record_copy(compose->large + header_bytes, record, SECTOR_BYTES - header_bytes,
                change ^ (uint32_t)compose->seed ^ place(compose, *sector, SECTOR_HEADER_CELLS));
    return compose_write(compose, compose->large, *sector);
}

/* ---------------------------------------------------------------- the end */

/* The last values sector stays open, from a page on: nothing before is written again. */
static enum fkv_error write_tail(struct compose *compose)
{
    if (!compose->values)
        return FKV_OK;
    pad_to(compose, (uint32_t)round_up(compose->cell, CELLS_PER_PAGE));
    if (compose->cell < SECTOR_CELLS) {
        compose->header.tail_sector = compose->values;
        compose->header.tail_cell = compose->cell;
        memset(compose->buffer + compose->cell * CELL_BYTES, 0,
               (SECTOR_CELLS - compose->cell) * CELL_BYTES);
    }
    return compose_write(compose, compose->buffer, compose->values);
}

static enum fkv_error sync_file(const struct compose *compose)
{
    int status = compose->ops->sync(compose->file);
    return status ? error_sync(status, compose->path) : FKV_OK;
}

/* What makes a store of the file: not before all else is durable. */
static enum fkv_error write_header(struct compose *compose)
{
    enum fkv_error error = sync_file(compose);
    for (uint64_t copy = 0; !error && copy < 2; copy++) {
        uint8_t page[PAGE_BYTES] = {0};
        compose->header.sequence = copy + 1;
        compose->header.checksum = header_checksum(&compose->header);
        memcpy(page, &compose->header, sizeof compose->header);
        int status = compose->ops->write(compose->file, page, sizeof page, copy * PAGE_BYTES);
        if (status)
            error = error_os(status, "write the header of", compose->path);
    }
    return error ? error : sync_file(compose);
}

enum fkv_error compose_end(struct compose *compose)
{
    enum fkv_error error = write_tail(compose);
    if (error || (error = compose_pages(compose)))
        return error;
    return write_header(compose);
}
