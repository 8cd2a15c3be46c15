#include "check.h"

#include <errno.h>
#include <stdio.h>

#include "check_parts.h"
#include "tree.h"

/* docs/space-bound.md: dead cells may exceed the bound by 5.1 sectors, and what is not yet paid. */
#define BOUND_SLACK_SECTORS 6ull
/* And a values sector that is not open is full but for less than the longest record. */
#define SECTOR_CELLS_USED_MIN (SECTOR_CELLS - SECTOR_HEADER_CELLS - (RECORD_CELLS_MAX - 1))

/* ---------------------------------------------------------------- what the parts share */

void *vector_add(struct vector *vector)
{
    if (vector->count == vector->room) {
        size_t room = vector->room ? vector->room * 2 : 64;
        void *items = memory_resize(vector->items, room * vector->item_bytes);
        if (!items)
            return NULL;
        vector->items = items;
        vector->room = room;
    }
    return (uint8_t *)vector->items + vector->count++ * vector->item_bytes;
}

void vector_drop(struct vector *vector)
{
    memory_free(vector->items);
}

bool check_no_memory(struct check *check)
{
    check->error = FKV_NO_MEMORY;
    return false;
}

bool check_advance(struct check *check, uint64_t bytes)
{
    check->work_done += bytes;
    if (check->options.progress &&
        check->options.progress(check->options.context,
                                min_u64(check->work_done, check->work_total), check->work_total))
        check->ended = true;
    return check_goes_on(check);
}

static void say(struct report *to, const fkv_problem *problem)
{
    struct check *check = (struct check *)to;
    check->result.problems++;
    check->result.problems_in[problem->part]++;
    if (check->options.problem)
        check->options.problem(check->options.context, problem);
}

const void *check_page(struct check *check, enum space space, uint32_t number, void *room)
{
    if (!check->db)
        return image_page(&check->image, space, number, room) ? NULL : room;
    struct pages *pages = &check->db->pages;
    if (number >= pages->space[space].page_count)
        return NULL;
    pthread_mutex_lock(&pages->load_lock); /* readers load pages */
    struct page page = *pages_find(pages, space, number);
    pthread_mutex_unlock(&pages->load_lock);
    if (page.frame)
        return frame_bytes(pages, page.frame);
    struct format_reference from = {page.location, page.checksum};
    if (!page.location || page.zero)
        memset(room, 0, PAGE_BYTES);
    else if (image_reference(&check->image, from, page_seed(space, 0, number), room))
        return NULL;
    return pages_complete(pages, space, number, room);
}

const uint8_t *check_sector_bytes(struct check *check, uint32_t sector)
{
    if (check->db) {
        struct sectors *sectors = &check->db->sectors;
        const uint8_t *base = sector_base(sectors, sector);
        if (base &&
            (check->options.flags & CHECK_NO_FILE || base != sectors_mapped(sectors, sector)))
            return base;
    }
    uint64_t offset = (uint64_t)sector * SECTOR_BYTES;
    uint32_t lost = image_read(&check->image, offset, SECTOR_BYTES, check->sector_bytes);
    if (lost)
        report(&check->report, FKV_PART_VALUES, offset,
               "%u pages of 4 KiB of sector %u cannot be read", lost, sector);
    return check->sector_bytes;
}

/* ---------------------------------------------------------------- sums */

static void compare(struct check *check, const char *what, uint64_t counted, uint64_t kept)
{
    if (counted != kept)
        report(&check->report, FKV_PART_COUNTERS, NOWHERE, "the store counts %llu %s, and has %llu",
               (unsigned long long)kept, what, (unsigned long long)counted);
}

static void check_counters(struct check *check)
{
    const fkv_check_result *result = &check->result;
    if (!check->pages_lost && !check->sectors_unknown && !check->damaged.count) {
        compare(check, "live cells", result->live_cells, check->live_cells);
        compare(check, "dead cells", result->dead_cells, check->dead_cells);
        compare(check, "cells of padding", result->pad_cells, check->pad_cells);
        compare(check, "keys", result->keys, check->keys);
        compare(check, "entries in the index", check->index.entries,
                result->keys + check->pieces_live);
    }
    uint64_t percent =
        check->options.garbage_percent_max ? check->options.garbage_percent_max : 100;
    uint64_t slack = BOUND_SLACK_SECTORS * SECTOR_CELLS + check->debt_cells;
    if (check->dead_cells > slack &&
        (check->dead_cells - slack) * 100 > check->live_cells * percent)
        report(&check->report, FKV_PART_SPACE, NOWHERE,
               "%llu dead cells to %llu live ones are beyond the bound",
               (unsigned long long)check->dead_cells, (unsigned long long)check->live_cells);
    uint64_t sectors_max = (check->live_cells + check->dead_cells) / SECTOR_CELLS_USED_MIN + 1;
    if (!check->sectors_unknown && result->sectors_values > sectors_max)
        report(&check->report, FKV_PART_SPACE, NOWHERE,
               "%llu values sectors hold what needs %llu at most",
               (unsigned long long)result->sectors_values, (unsigned long long)sectors_max);
}

/* ---------------------------------------------------------------- the whole */

static void begin(struct check *check, const struct check_options *options)
{
    check->report.say = say;
    if (options)
        check->options = *options;
    check->damaged.item_bytes = sizeof(struct damaged_cells);
    check->large.heads.item_bytes = sizeof(struct large_head);
    check->large.pieces.item_bytes = sizeof(struct large_piece);
    check->large.sectors.item_bytes = sizeof(struct large_sector);
    check->sector_bytes = memory_buffer(SECTOR_BYTES);
    if (!check->sector_bytes)
        check_no_memory(check);
}

static void run(struct check *check)
{
    void (*const parts[])(struct check *) = {check_headers,      check_trees,   check_table,
                                             check_stored_pages, check_log,     check_memory,
                                             check_index_load,   check_values,  check_large,
                                             check_index_rest,   check_counters};
    for (size_t i = 0; i < sizeof parts / sizeof *parts && check_goes_on(check); i++)
        parts[i](check);
    if (check_goes_on(check)) {
        check->work_done = check->work_total;
        check_advance(check, 0);
    }
    check->result.complete = check_goes_on(check);
}

static enum fkv_error end(struct check *check, fkv_check_result *result)
{
    check_index_drop(check);
    vector_drop(&check->damaged);
    vector_drop(&check->large.heads);
    vector_drop(&check->large.pieces);
    vector_drop(&check->large.sectors);
    memory_free(check->sectors);
    memory_free(check->sector_bytes);
    image_drop(&check->image);
    if (result)
        *result = check->result;
    if (check->error)
        return check->error;
    if (check->ended)
        return error_set(FKV_CANCELLED, "the check of %s was cancelled by its progress function",
                         check->path);
    if (!check->result.problems)
        return FKV_OK;
    return error_set(FKV_DAMAGED, "%s: the check found %llu problems", check->path,
                     (unsigned long long)check->result.problems);
}

static void use_store(struct check *check, struct fkv *db)
{
    check->db = db;
    check->path = db->path;
    check->log_path = db->log_path;
    check->file = db->file;
    check->log_file = db->log.file;
    memcpy(check->store_id, db->header.store_id, sizeof check->store_id);
    check->hash_seeds = db->hash_seeds;
    check->seed = db->seed;
    check->sector_count = db->sectors.count;
    check->keys = db->keys;
    check->live_cells = db->sectors.live_cells;
    check->dead_cells = db->sectors.dead_cells;
    check->pad_cells = db->sectors.pad_cells;
    check->debt_cells = collector_owes(db);
    check->next_sequence = db->sectors.next_sequence;
    check->segment_count = db->index.segment_count;
    check->tail_sector = db->tail.open ? db->tail.sector : 0;
    check->tail_cell = db->tail.cell;
    for (int s = 0; s < SPACE_COUNT; s++)
        check->page_count[s] = db->pages.space[s].page_count;
}

enum fkv_error store_check(struct fkv *db, const struct check_options *options,
                           fkv_check_result *result)
{
    struct check check = {.result.opened = 1};
    begin(&check, options);
    use_store(&check, db);
    check.image = (struct image){.ops = db->os->ops,
                                 .file = db->file,
                                 .path = db->path,
                                 .file_bytes = (uint64_t)db->sectors.count * SECTOR_BYTES};
    if (check_goes_on(&check) && !(check.options.flags & CHECK_NO_FILE))
        check.error = image_open(&check.image, db->os->ops, db->file, db->path);
    if (check_goes_on(&check))
        run(&check);
    return end(&check, result);
}

void check_wait(struct fkv *db)
{
    while (db->threads && db->checkpoint.stage != CHECKPOINT_IDLE)
        pthread_cond_wait(&db->checkpoint.ended, &db->writer);
}

/* ---------------------------------------------------------------- files that cannot be opened */

static void use_header(struct check *check, const struct format_header *header)
{
    memcpy(check->store_id, header->store_id, sizeof check->store_id);
    hash_seeds_make(&check->hash_seeds, header->salt);
    check->seed = load_u64(header->store_id + 8);
    /* Sectors that the table has, even if the file was cut off; or that came after it. */
    check->sector_count = (uint32_t)min_u64(
        header->sector_count, (uint64_t)header->spaces[SPACE_SECTORS].pages * SECTORS_PER_PAGE);
    check->sector_count = (uint32_t)min_u64(
        max_u64(check->sector_count, check->image.file_bytes / SECTOR_BYTES), SECTORS_MAX);
    check->keys = header->keys;
    check->live_cells = header->live_cells;
    check->dead_cells = header->dead_cells;
    check->pad_cells = header->pad_cells;
    check->debt_cells = header->debt_cells;
    check->next_sequence = header->next_sequence;
    check->segment_count = header->segments;
    check->tail_sector = header->tail_sector;
    check->tail_cell = header->tail_cell;
    for (int s = 0; s < SPACE_COUNT; s++)
        check->page_count[s] = header->spaces[s].pages;
}

/* Neither copy of the header is whole: are there traces of a store? */
static enum fkv_error without_header(struct check *check, enum fkv_error why)
{
    uint32_t count =
        why == FKV_UNKNOWN_FORMAT ? 0 : image_find_store(&check->image, check->store_id);
    if (!count)
        return why;
    check_headers(check);
    report(&check->report, FKV_PART_HEADER, NOWHERE,
           "nothing can be checked without a header; %u sectors are of a store", count);
    return FKV_OK;
}

/* What is wrong with what fkv_open says is wrong, in detail. */
static enum fkv_error check_image(struct check *check, enum fkv_error why, const char *text)
{
    if (!check->image.header)
        return without_header(check, why);
    use_header(check, check->image.header);
    run(check);
    if (check_goes_on(check) && !check->result.problems)
        report(&check->report,
               why == FKV_LOG_MISSING || why == FKV_LOG_MISMATCH ? FKV_PART_LOG : FKV_PART_HEADER,
               NOWHERE, "the store cannot be opened: %s", text);
    return FKV_OK;
}

static enum fkv_error open_files(struct check *check, struct os *os, const char *path,
                                 const char *log_path)
{
    check->path = path;
    check->log_path = log_path;
    int status = os->ops->open(os, path, OS_READ_ONLY, &check->file);
    if (status)
        return error_os(status, "open", path);
    if ((status = os->ops->lock(check->file, true)))
        return error_os(status, "lock", path);
    status = os->ops->open(os, log_path, OS_READ_ONLY, &check->log_file);
    if (status && status != -ENOENT)
        report(&check->report, FKV_PART_LOG, NOWHERE, "the log cannot be opened");
    return image_open(&check->image, os->ops, check->file, path);
}

static enum fkv_error check_closed(struct os *os, const char *path,
                                   const struct check_options *options, fkv_check_result *result,
                                   enum fkv_error why, const char *text)
{
    struct check check = {0};
    begin(&check, options);
    char *log_path = log_name(path);
    enum fkv_error error = log_path ? check.error : FKV_NO_MEMORY;
    if (!error)
        error = open_files(&check, os, path, log_path);
    if (!error)
        error = check_image(&check, why, text);
    enum fkv_error found = end(&check, result);
    if (check.log_file)
        os->ops->close(check.log_file);
    if (check.file)
        os->ops->close(check.file);
    memory_free(log_path);
    return error ? error : found;
}

enum fkv_error check_file(struct os *os, const char *path, const struct check_options *options,
                          fkv_check_result *result)
{
    fkv_options how;
    fkv_options_init(&how);
    how.flags = FKV_OPEN_READ_ONLY | FKV_NO_THREAD;
    struct fkv *db;
    char text[320];
    enum fkv_error error = store_open(os, path, &how, &db);
    if (!error) {
        pthread_mutex_lock(&db->writer);
        error = store_check(db, options, result);
        pthread_mutex_unlock(&db->writer);
        enum fkv_error closed = store_close(db);
        return error ? error : closed;
    }
    snprintf(text, sizeof text, "%s", error_last());
    switch (error) {
    case FKV_NOT_A_STORE:
    case FKV_TRUNCATED:
    case FKV_DAMAGED:
    case FKV_LOG_MISMATCH:
    case FKV_LOG_MISSING:
    case FKV_UNKNOWN_FORMAT: /* in the log, or in one copy of the header */
    case FKV_IO:
        return check_closed(os, path, options, result, error, text);
    default:
        return error;
    }
}
