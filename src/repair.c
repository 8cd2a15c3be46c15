#include "repair.h"

#include <errno.h>
#include <stdlib.h>

#include "header.h"

static void say(struct report *to, const fkv_problem *problem)
{
    struct repair *repair = (struct repair *)to;
    if (repair->options.problem)
        repair->options.problem(repair->options.context, problem);
}

static void say_nothing(struct report *to, const fkv_problem *problem)
{
    (void)to;
    (void)problem;
}

static void advance(struct repair *repair, uint64_t bytes)
{
    repair->work_done += bytes;
    if (repair->options.progress &&
        repair->options.progress(repair->options.context,
                                 min_u64(repair->work_done, repair->work_total),
                                 repair->work_total))
        repair->ended = true;
}

/* ---------------------------------------------------------------- the new store */

static void commit(struct repair *repair, struct write *write)
{
    struct fkv *out = repair->out;
    if (repair->incomplete.count)
        repair_forget_incomplete(repair, write->hash);
    store_lock(out);
    enum fkv_error error = commit_end(out, commit_writes(out, write, 1, NULL, false), false);
    if (error != FKV_NOT_FOUND)
        repair->error = error;
}

void repair_put(struct repair *repair, const void *key, size_t key_bytes, const void *value,
                size_t value_bytes)
{
    struct write write = {.hash = hash_key(&repair->out->hash_seeds.keys, key, key_bytes),
                          .key = key,
                          .key_bytes = (uint32_t)key_bytes,
                          .value = value,
                          .value_bytes = (uint32_t)value_bytes};
    commit(repair, &write);
}

void repair_remove(struct repair *repair, struct hash128 hash)
{
    struct write write = {.hash = hash, .remove = true};
    commit(repair, &write);
}

/* Give the store, which is empty and closed, the salt of the damaged one, and in digest mode the id
 * too, since digests hang on both. */
static enum fkv_error adopt_salt(struct repair *repair)
{
    const struct os_ops *ops = repair->os->ops;
    struct os_file *file;
    bool digest = repair->header->features & FEATURE_DIGEST;
    int status = ops->open(repair->os, repair->new_path, 0, &file);
    if (status)
        return error_os(status, "open", repair->new_path);
    for (uint64_t copy = 0; !status && copy < 2; copy++) {
        struct format_header header;
        if ((status = ops->read(file, &header, sizeof header, copy * PAGE_BYTES)))
            break;
        memcpy(header.salt, repair->header->salt, sizeof header.salt);
        if (digest)
            memcpy(header.store_id, repair->header->store_id, sizeof header.store_id);
        header.checksum = header_checksum(&header);
        status = ops->write(file, &header, sizeof header, copy * PAGE_BYTES);
    }
    if (!status)
        status = ops->sync(file);
    ops->close(file);
    return status ? error_os(status, "write the header of", repair->new_path) : FKV_OK;
}

static bool is_absent(struct os *os, const char *path)
{
    struct os_file *file;
    int status = os->ops->open(os, path, OS_READ_ONLY, &file);
    if (!status)
        os->ops->close(file);
    return status == -ENOENT;
}

static void remove_new(struct repair *repair)
{
    repair->os->ops->remove(repair->os, repair->new_path);
    repair->os->ops->remove(repair->os, repair->new_log_path);
}

static enum fkv_error create_store(struct repair *repair)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_EXCLUSIVE | FKV_NO_THREAD;
    if (repair->header && repair->header->features & FEATURE_DIGEST)
        options.flags |= FKV_DIGEST;
    bool absent =
        is_absent(repair->os, repair->new_path) && is_absent(repair->os, repair->new_log_path);
    enum fkv_error error = store_open(repair->os, repair->new_path, &options, &repair->out);
    if (error && absent && error != FKV_EXISTS && error != FKV_IN_USE)
        remove_new(repair); /* what an opening leaves that cannot take back what it has begun */
    if (error || !repair->header)
        return error;
    error = store_close(repair->out);
    repair->out = NULL;
    if (!error)
        error = adopt_salt(repair);
    if (!error) { /* a closed store needs no log, and this one is of another id perhaps */
        repair->os->ops->remove(repair->os, repair->new_log_path);
        options.flags = FKV_NO_CREATE | FKV_NO_THREAD;
        error = store_open(repair->os, repair->new_path, &options, &repair->out);
    }
    if (error)
        remove_new(repair);
    return error;
}

static enum fkv_error create(struct repair *repair)
{
    enum fkv_error error = create_store(repair);
    const struct os_ops *ops = repair->os->ops;
    if (!error && ops->permit) { /* before anything is in it */
        ops->permit(repair->out->file, repair->file);
        ops->permit(repair->out->log.file, repair->file);
    }
    return error;
}

/* ---------------------------------------------------------------- records */

void repair_found(struct repair *repair, const uint8_t *record, uint32_t cell, struct where where)
{
    struct format_record header = record_header(record);
    if (repair->pass == 1) {
        repair->result.records++;
        if (header.kind == RECORD_PIECE)
            repair_found_piece(repair, record, cell, where);
    } else if (header.kind == RECORD_PLAIN) {
        repair_put(repair, record_key(record), header.key_bytes,
                   record_key(record) + header.key_bytes, header.value_bytes);
    } else if (header.kind == RECORD_LARGE) {
        repair_put_large(repair, record);
    }
}

bool repair_is_damaged(const struct repair *repair, uint64_t address)
{
    const struct damaged_cells *damaged = repair->damaged.items;
    for (size_t i = 0; i < repair->damaged.count; i++)
        if (address >= damaged[i].address && address - damaged[i].address < damaged[i].cells)
            return true;
    return false;
}

static void damage(struct repair *repair, const struct source *source, const struct scanned *found)
{
    uint64_t address = (uint64_t)source->sector * SECTOR_CELLS + found->cell;
    bool at_end = found->cell + found->cells == source->end;
    if (repair->pass != 1 || !source->certain || (source->open && at_end))
        return;
    struct damaged_cells *cells = vector_add(&repair->damaged);
    if (!cells) {
        repair->error = FKV_NO_MEMORY;
        return;
    }
    *cells = (struct damaged_cells){address, found->cells};
    repair->result.damaged++;
    repair->result.damaged_cells += found->cells;
    report(&repair->report, FKV_PART_VALUES, cell_offset(address),
           "sector %u has no whole record from cell %u on, for %u cells", source->sector,
           found->cell, found->cells);
}

/* The deletion map of a sector, as far as it is there. */
struct map {
    bool whole[2];
    _Alignas(8) uint8_t bytes[2][PAGE_BYTES];
};

static bool is_dead(struct repair *repair, const struct map *map, const struct source *source,
                    const struct scanned *found)
{
    uint32_t half = found->cell / MAP_PAGE_CELLS;
    uint32_t bit = found->cell % MAP_PAGE_CELLS;
    if (source->known && map->whole[half])
        return map->bytes[half][bit / 8] >> (bit % 8) & 1;
    if (repair->index_loaded) {
        const struct check *check = &repair->check;
        struct hash128 hash = record_hash(&check->hash_seeds, found->record);
        struct index_place place;
        enum index_answer answer = check_index_find(check, hash, &place);
        if (answer != INDEX_UNKNOWN)
            return answer == INDEX_ABSENT ||
                   entry_address(place.entry) !=
                       (uint64_t)source->sector * SECTOR_CELLS + found->cell;
    }
    repair->result.deleted_may_be_back = 1;
    return false;
}

static void source_record(struct repair *repair, const struct source *source,
                          const struct scanned *found)
{
    struct where where = {.offset = (uint64_t)source->sector * SECTOR_BYTES +
                                    (uint64_t)found->cell * CELL_BYTES,
                          .sequence = source->sequence};
    if (record_header(found->record).kind != RECORD_PAD)
        repair_found(repair, found->record, found->cell, where);
}

/* Read a source into repair->bytes. */
static struct scan begin_source(struct repair *repair, const struct source *source)
{
    uint64_t offset = (uint64_t)source->sector * SECTOR_BYTES;
    uint32_t lost = image_read(&repair->check.image, offset, SECTOR_BYTES, repair->bytes);
    if (lost && repair->pass == 1) {
        repair->result.sectors_unreadable++;
        report(&repair->report, FKV_PART_VALUES, offset,
               "%u pages of 4 KiB of sector %u cannot be read", lost, source->sector);
    }
    struct scan scan = scan_begin(repair->bytes, repair->seed, source->sequence, source->end);
    scan.cell = source->first;
    return scan;
}

static void early_source(struct repair *repair, const struct source *source)
{
    struct map map = {.whole = {false, false}};
    struct scanned found;
    struct scan scan = begin_source(repair, source);
    for (uint32_t half = 0; source->known && half < 2; half++)
        map.whole[half] = image_page(&repair->check.image, SPACE_MAPS, source->sector * 2 + half,
                                     map.bytes[half]) == FKV_OK;
    while (repair_goes_on(repair) && scan_next(&scan, &found)) {
        uint8_t kind = found.whole ? record_header(found.record).kind : RECORD_PAD;
        if (!found.whole)
            damage(repair, source, &found);
        else if (kind != RECORD_PAD && !is_dead(repair, &map, source, &found)) {
            repair->early_keys += repair->pass == 1 && kind != RECORD_PIECE;
            source_record(repair, source, &found);
        }
    }
    advance(repair, SECTOR_BYTES);
}

/* Where nothing is known to be damaged, as many keys as the last checkpoint counts are there: else
 * something behind a right checksum contradicts another. */
static void compare_count(struct repair *repair)
{
    const struct format_header *header = repair->header;
    fkv_repair_result *result = &repair->result;
    if (!header || repair->early_keys == header->keys || result->damaged ||
        result->sectors_unreadable || result->deleted_may_be_back)
        return;
    report(&repair->report, FKV_PART_COUNTERS, NOWHERE,
           "the last checkpoint counts %llu keys, and %llu were found",
           (unsigned long long)header->keys, (unsigned long long)repair->early_keys);
    repair->miscounted = true;
    result->deleted_may_be_back = repair->early_keys > header->keys;
}

void repair_late_records(struct repair *repair, uint64_t sequence, uint32_t cell)
{
    const struct source *sources = repair->late.items;
    while (repair_goes_on(repair) && repair->late_at < repair->late.count) {
        const struct source *source = &sources[repair->late_at];
        if (source->sequence > sequence)
            return;
        if (!repair->late_begun)
            repair->late_scan = begin_source(repair, source);
        repair->late_begun = true;
        struct scanned *found = &repair->late_next;
        if (!repair->late_waits && !scan_next(&repair->late_scan, found)) {
            repair->late_at++;
            repair->late_begun = false;
            advance(repair, SECTOR_BYTES);
            continue;
        }
        repair->late_waits = source->sequence == sequence && found->cell > cell;
        if (repair->late_waits)
            return;
        if (found->whole)
            source_record(repair, source, found);
        else
            damage(repair, source, found);
    }
}

/* ---------------------------------------------------------------- which sectors count */

static bool add_source(struct repair *repair, bool early, struct source source)
{
    struct source *added = vector_add(early ? &repair->early : &repair->late);
    if (!added) {
        repair->error = FKV_NO_MEMORY;
        return false;
    }
    *added = source;
    return true;
}

/* What the sector's own header says; false if there is none of this store. */
static bool own_header(const struct repair *repair, uint32_t sector,
                       struct format_sector_header *header)
{
    return image_sector_header(&repair->check.image, sector, header) &&
           memcmp(header->store_id, repair->store_id, sizeof repair->store_id) == 0;
}

/* A sector of the last checkpoint: the open one has been written to since. */
static void add_early(struct repair *repair, struct source source)
{
    const struct format_header *header = repair->header;
    bool open = source.sector == header->tail_sector && header->tail_cell >= SECTOR_HEADER_CELLS &&
                header->tail_cell < SECTOR_CELLS;
    source.certain = true;
    source.first = SECTOR_HEADER_CELLS;
    source.end = open ? header->tail_cell : SECTOR_CELLS;
    if (!add_source(repair, true, source) || !open || repair->log_is_whole)
        return;
    add_source(repair, false,
               (struct source){.sequence = source.sequence,
                               .sector = source.sector,
                               .first = source.end,
                               .end = SECTOR_CELLS});
}

/* Nothing is known of it but what it says itself: it may have been free for long. */
static void add_unknown(struct repair *repair, uint32_t sector, uint64_t sequence)
{
    struct source source = {
        .sequence = sequence, .sector = sector, .first = SECTOR_HEADER_CELLS, .end = SECTOR_CELLS};
    if (!repair->header) {
        source.certain = true;
        add_source(repair, false, source);
    } else if (sequence < repair->header->next_sequence) {
        add_early(repair, source);
    } else if (!repair->log_is_whole) { /* else the log has its records */
        add_source(repair, false, source);
    }
}

static void bad_header(struct repair *repair, uint32_t sector)
{
    report(&repair->report, FKV_PART_VALUES, (uint64_t)sector * SECTOR_BYTES,
           "the header of sector %u is damaged", sector);
}

static void add_sector(struct repair *repair, uint32_t sector, uint8_t *page, uint32_t *page_number)
{
    const struct image *image = &repair->check.image;
    struct format_sector_header header;
    struct format_sector entry;
    bool headed = own_header(repair, sector, &header);
    bool listed = repair->header && !repair->table_in_doubt &&
                  !image_table_entry(image, sector, page, page_number, &entry);
    /* Two that agree count for more than a third: a reference, or what the store's header says. */
    bool agreed = listed && headed && entry.type == SECTOR_VALUES && header.type == SECTOR_VALUES &&
                  header.sequence == entry.sequence;
    bool later =
        headed && !agreed && repair->header && header.sequence >= repair->header->next_sequence;
    if (repair->header && !agreed && image_has_pages(image, sector))
        return;
    if (listed && entry.type == SECTOR_VALUES && !later) {
        if (!headed || header.sequence != entry.sequence || header.type != SECTOR_VALUES)
            bad_header(repair, sector);
        add_early(repair,
                  (struct source){.sequence = entry.sequence, .sector = sector, .known = true});
    } else if (headed) {
        bool stale = listed && !later;
        if (!stale && header.type == SECTOR_VALUES)
            add_unknown(repair, sector, header.sequence);
    } else if (!listed) {
        uint64_t sequence;
        image_read(image, (uint64_t)sector * SECTOR_BYTES, SECTOR_BYTES, repair->bytes);
        if (!scan_find_sequence(repair->bytes, repair->seed, repair->next_sequence, &sequence))
            return;
        bad_header(repair, sector);
        add_unknown(repair, sector, sequence);
    }
}

static int by_sequence(const void *a, const void *b)
{
    const struct source *left = a, *right = b;
    if (left->sequence != right->sequence)
        return left->sequence < right->sequence ? -1 : 1;
    return left->first < right->first ? -1 : left->first > right->first;
}

static void sort_sources(struct vector *sources)
{
    if (sources->count)
        qsort(sources->items, sources->count, sources->item_bytes, by_sequence);
}

/* The highest sequence that a sector without a header can have. */
static void find_next_sequence(struct repair *repair)
{
    if (repair->header)
        repair->next_sequence = repair->header->next_sequence;
    for (uint32_t s = 1; s < repair->check.image.sector_count; s++) {
        struct format_sector_header header;
        if (own_header(repair, s, &header) && header.sequence >= repair->next_sequence)
            repair->next_sequence = header.sequence + 1;
    }
}

/* The sectors that the file is too short for. */
static void say_cut(struct repair *repair)
{
    uint32_t known = repair->header->sector_count, there = repair->check.image.sector_count;
    if (known <= there)
        return;
    repair->result.sectors_unreadable += known - there;
    report(&repair->report, FKV_PART_SPACE, (uint64_t)there * SECTOR_BYTES,
           "the file was cut: it has %u of its %u sectors", there, known);
}

/* Does the table say what the header says of it? As far as it is there. */
static bool table_agrees(const struct repair *repair)
{
    const struct format_header *header = repair->header;
    uint64_t dead_cells = 0, pad_cells = 0;
    bool open = header->tail_sector == 0;
    uint8_t page[PAGE_BYTES];
    uint32_t page_number = UINT32_MAX;
    for (uint32_t s = 1; s < repair->check.image.sector_count; s++) {
        struct format_sector entry;
        if (s / SECTORS_PER_PAGE >= header->spaces[SPACE_SECTORS].pages)
            break; /* the file has grown since */
        if (image_table_entry(&repair->check.image, s, page, &page_number, &entry))
            return true; /* that it is lost is known */
        dead_cells += entry.dead_cells;
        pad_cells += entry.pad_cells;
        open |= s == header->tail_sector && entry.type == SECTOR_VALUES;
    }
    return open && dead_cells == header->dead_cells && pad_cells == header->pad_cells;
}

/* Pages of table and maps that are lost. */
static void count_lost_pages(struct repair *repair)
{
    const struct image *image = &repair->check.image;
    const enum space spaces[] = {SPACE_SECTORS, SPACE_MAPS};
    uint8_t page[PAGE_BYTES];
    for (int i = 0; i < 2; i++) {
        uint32_t count = repair->header->spaces[spaces[i]].pages;
        uint32_t there = image->space[spaces[i]].page_count; /* none, if so many are impossible */
        uint32_t lost = count - there;
        for (uint32_t n = 0; n < there; n++)
            lost += image_page(image, spaces[i], n, page) != FKV_OK;
        if (lost)
            report(&repair->report, FKV_PART_PAGES, NOWHERE, "%u of %u %s pages are lost", lost,
                   count, image_space_name(spaces[i]));
        repair->result.pages_lost += lost;
    }
}

/* Without maps and tables the index knows what is live. */
static void load_index(struct repair *repair)
{
    struct check *check = &repair->check;
    check->report.say = say_nothing;
    check->segment_count = repair->header->segments;
    for (int s = 0; s < SPACE_COUNT; s++)
        check->page_count[s] = check->image.space[s].page_count;
    hash_seeds_make(&check->hash_seeds, repair->header->salt);
    check_index_load(check);
    repair->error = check->error;
    repair->index_loaded = !check->error;
}

static void survey_sectors(struct repair *repair)
{
    uint8_t page[PAGE_BYTES];
    uint32_t page_number = UINT32_MAX;
    if (repair->header) {
        say_cut(repair);
        count_lost_pages(repair);
        repair->table_in_doubt = repair->check.image.sector_count >= repair->header->sector_count &&
                                 !repair->result.pages_lost && !table_agrees(repair);
        if (repair->table_in_doubt)
            report(&repair->report, FKV_PART_TABLE, NOWHERE,
                   "the table of sectors contradicts the header");
        if (repair->result.pages_lost || repair->table_in_doubt)
            load_index(repair);
    }
    find_next_sequence(repair);
    for (uint32_t s = 1; s < repair->check.image.sector_count && repair_goes_on(repair); s++)
        add_sector(repair, s, page, &page_number);
    sort_sources(&repair->early);
    sort_sources(&repair->late);
    if (!repair->header && repair->late.count)
        ((struct source *)repair->late.items)[repair->late.count - 1].open = true;
    repair->work_total = 2 * (repair->early.count + repair->late.count) * SECTOR_BYTES;
    if (!repair->header || !repair->log_is_whole)
        repair->result.deleted_may_be_back = 1;
}

/* ---------------------------------------------------------------- the whole */

static void run_pass(struct repair *repair, int pass)
{
    const struct source *early = repair->early.items;
    repair->pass = pass;
    repair->late_at = 0;
    repair->late_begun = repair->late_waits = false;
    for (size_t i = 0; i < repair->early.count && repair_goes_on(repair); i++)
        early_source(repair, &early[i]);
    if (pass == 1 && repair_goes_on(repair))
        compare_count(repair);
    if (repair_goes_on(repair))
        repair_log(repair);
    repair_late_records(repair, UINT64_MAX, UINT32_MAX);
}

static enum fkv_error open_damaged(struct repair *repair)
{
    const struct os_ops *ops = repair->os->ops;
    int status = ops->open(repair->os, repair->path, OS_READ_ONLY, &repair->file);
    if (status)
        return error_os(status, "open", repair->path);
    if ((status = ops->lock(repair->file, true)))
        return error_os(status, "lock", repair->path);
    status = ops->open(repair->os, repair->log_path, OS_READ_ONLY, &repair->log_file);
    if (status && status != -ENOENT)
        return error_os(status, "open", repair->log_path);
    return image_open(&repair->check.image, ops, repair->file, repair->path);
}

/* Of an older one with a right checksum, or, whatever its checksum is, of one that may come. */
static bool is_of_another_format(const struct format_header *header)
{
    return header->magic == FORMAT_MAGIC && header->version != FORMAT_VERSION &&
           (header->version > FORMAT_VERSION ? header->version < FORMAT_VERSION + 100
                                             : header_is_whole(header));
}

static enum fkv_error find_identity(struct repair *repair)
{
    struct image *image = &repair->check.image;
    repair->header = image->header;
    for (int i = 0; i < 2; i++)
        if (!image->whole[i])
            report(&repair->report, FKV_PART_HEADER, (uint64_t)i * PAGE_BYTES,
                   "copy %d of the header is damaged", i);
    for (int i = 0; !repair->header && i < 2; i++)
        if (is_of_another_format(&image->copies[i]))
            return error_set(FKV_UNKNOWN_FORMAT, "%s has format %u, known is %u", repair->path,
                             image->copies[i].version, FORMAT_VERSION);
    if (repair->header) {
        memcpy(repair->store_id, repair->header->store_id, sizeof repair->store_id);
    } else {
        repair->result.header_lost = 1;
        if (!image_find_store(image, repair->store_id))
            return error_set(FKV_NOT_A_STORE, "%s has nothing of a store of fkv in it",
                             repair->path);
    }
    repair->seed = load_u64(repair->store_id + 8);
    return repair->header ? image_load(image, repair->header, &repair->report) : FKV_OK;
}

static enum fkv_error begin(struct repair *repair)
{
    repair->report.say = say;
    repair->early.item_bytes = repair->late.item_bytes = sizeof(struct source);
    repair->pieces.item_bytes = sizeof(struct found_piece);
    repair->damaged.item_bytes = sizeof(struct damaged_cells);
    repair->loose.item_bytes = sizeof(struct loose_frame);
    repair->opened.item_bytes = sizeof(struct opened);
    repair->incomplete.item_bytes = sizeof(struct incomplete);
    repair->bytes = memory_new(SECTOR_BYTES);
    repair->piece_bytes = memory_new(SECTOR_BYTES);
    repair->refer_bytes = memory_new(RECORD_BYTES_MAX);
    repair->log_path = log_name(repair->path);
    repair->new_log_path = log_name(repair->new_path);
    bool all = repair->bytes && repair->piece_bytes && repair->refer_bytes && repair->log_path &&
               repair->new_log_path;
    return all ? FKV_OK : FKV_NO_MEMORY;
}

static void drop(struct repair *repair)
{
    check_index_drop(&repair->check);
    image_drop(&repair->check.image);
    image_log_drop(&repair->log);
    image_log_drop(&repair->piece_log);
    struct vector *const vectors[] = {&repair->early,     &repair->late,  &repair->pieces,
                                      &repair->damaged,   &repair->loose, &repair->opened,
                                      &repair->incomplete};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        vector_drop(vectors[i]);
    memory_free(repair->bytes);
    memory_free(repair->piece_bytes);
    memory_free(repair->refer_bytes);
    memory_free(repair->log_path);
    memory_free(repair->new_log_path);
    if (repair->log_file)
        repair->os->ops->close(repair->log_file);
    if (repair->file)
        repair->os->ops->close(repair->file);
}

/* Look at the damaged store; then make the new one. */
static enum fkv_error run(struct repair *repair)
{
    enum fkv_error error;
    if ((error = begin(repair)) || (error = open_damaged(repair)) ||
        (error = find_identity(repair)))
        return error;
    void (*const steps[])(struct repair *) = {repair_survey_log, survey_sectors};
    for (int i = 0; i < 2 && repair_goes_on(repair); i++)
        steps[i](repair);
    if (repair_goes_on(repair))
        run_pass(repair, 1);
    repair_sort_pieces(repair);
    if (!repair_goes_on(repair) || (repair->error = create(repair)))
        return repair->error;
    run_pass(repair, 2);
    repair_say_incomplete(repair);
    repair->result.keys = repair->out->keys;
    error = store_close(repair->out);
    if (repair->error || repair->ended || error) {
        remove_new(repair);
        return repair->error ? repair->error : error;
    }
    repair->result.complete = 1;
    return FKV_OK;
}

enum fkv_error repair(struct os *os, const char *path, const char *new_path,
                      const struct repair_options *options, fkv_repair_result *result)
{
    struct repair repair = {.os = os, .path = path, .new_path = new_path};
    if (options)
        repair.options = *options;
    enum fkv_error error = run(&repair);
    drop(&repair);
    if (!repair.result.complete)
        repair.result.keys = 0;
    if (result)
        *result = repair.result;
    if (!error && repair.ended)
        return error_set(FKV_CANCELLED, "the repair of %s was cancelled by its progress function",
                         path);
    const fkv_repair_result *found = &repair.result;
    if (!error && (found->damaged || found->values_incomplete || found->sectors_unreadable ||
                   found->deleted_may_be_back || found->log_incomplete || found->header_lost ||
                   repair.miscounted))
        error = error_set(FKV_DAMAGED, "%s: not everything could be brought back", path);
    return error;
}
