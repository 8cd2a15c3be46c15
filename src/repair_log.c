#include <stdlib.h>

#include "frame.h"
#include "repair.h"

/* ---------------------------------------------------------------- what the log refers to */

/* The sequence that a sector has, as far as the log was read. 0: not known. */
static uint64_t sequence_of(struct repair *repair, uint32_t sector)
{
    const struct image *image = &repair->check.image;
    const struct opened *opened = repair->opened.items;
    for (size_t i = repair->opened.count; i-- > 0;)
        if (opened[i].sector == sector)
            return opened[i].sequence;
    struct format_sector entry;
    uint8_t page[PAGE_BYTES];
    uint32_t page_number = UINT32_MAX;
    if (repair->header && sector == repair->header->tail_sector && sector < image->sector_count &&
        !image_table_entry(image, sector, page, &page_number, &entry) &&
        entry.type == SECTOR_VALUES)
        return entry.sequence;
    struct format_sector_header header;
    return image_sector_header(image, sector, &header) ? header.sequence : 0;
}

/* The whole record at this address in the file; NULL if there is none. */
static const uint8_t *record_at(struct repair *repair, uint64_t address, uint64_t sequence)
{
    const struct image *image = &repair->check.image;
    uint32_t cell = address % SECTOR_CELLS;
    uint8_t *record = repair->refer_bytes;
    if (cell < SECTOR_HEADER_CELLS || address / SECTOR_CELLS >= image->sector_count)
        return NULL;
    size_t most = (size_t)min_u64(RECORD_BYTES_MAX, (SECTOR_CELLS - cell) * CELL_BYTES);
    image_read(image, cell_offset(address), most, record);
    uint32_t cells = record_walk(record, (uint32_t)(most / CELL_BYTES));
    return cells && record_verify(record, most, repair->seed, record_place(sequence, cell)) ? record
                                                                                            : NULL;
}

static void open_sector(struct repair *repair, uint64_t address, const uint8_t *payload)
{
    struct opened *opened = vector_add(&repair->opened);
    if (opened)
        *opened = (struct opened){(uint32_t)(address / SECTOR_CELLS), load_u64(payload)};
    else
        repair->error = FKV_NO_MEMORY;
}

/* ---------------------------------------------------------------- which frames count */

/* The last commit that some frame says was synced. */
static uint64_t find_synced(struct repair *repair)
{
    struct format_frame frame;
    uint64_t synced = 0;
    for (uint64_t offset = LOG_FRAMES_OFFSET;
         (offset = image_log_find(&repair->log, offset, &frame, &repair->error)) != UINT64_MAX;
         offset += frame.bytes)
        if (frame.commit >= frame.durable_commit && frame.durable_commit > synced)
            synced = frame.durable_commit;
    return synced;
}

static bool is_piece_there(struct repair *repair, uint64_t address, const uint8_t *payload)
{
    const uint8_t *record = repair->piece_bytes + sizeof(struct format_sector_header);
    image_read(&repair->check.image, cell_offset(address), SECTOR_BYTES, repair->piece_bytes);
    return memcmp(record, payload + sizeof(uint64_t), sizeof(uint32_t)) == 0 &&
           record_verify_sector(record, repair->seed, load_u64(payload));
}

static bool is_there(struct repair *repair, const struct format_operation *operation,
                     const uint8_t *payload)
{
    if (operation->kind == OPERATION_LARGE && operation->bytes == OPERATION_LARGE_BYTES)
        return is_piece_there(repair, operation->address, payload);
    if (operation->kind != OPERATION_REFER || operation->bytes != sizeof(uint32_t))
        return true;
    uint64_t sequence = sequence_of(repair, (uint32_t)(operation->address / SECTOR_CELLS));
    const uint8_t *record = record_at(repair, operation->address, sequence);
    return record && memcmp(record, payload, sizeof(uint32_t)) == 0;
}

/* Is everything there that the frame refers to? Notes the sectors that it opens. */
static bool is_backed(struct repair *repair, const struct format_frame *frame,
                      const uint8_t *operations)
{
    const uint8_t *end = operations + frame->bytes - sizeof *frame;
    const uint8_t *payload;
    struct format_operation operation;
    bool backed = true;
    if (frame->flags & (FRAME_WRAP | FRAME_RESTART))
        return true;
    while (operation_next(&operations, end, &operation, &payload)) {
        if (operation.kind == OPERATION_OPEN && operation.bytes == sizeof(uint64_t))
            open_sector(repair, operation.address, payload);
        backed = backed && is_there(repair, &operation, payload);
    }
    return backed;
}

static void incomplete(struct repair *repair, const char *why)
{
    repair->result.log_incomplete = 1;
    report(&repair->report, FKV_PART_LOG, NOWHERE, "%s", why);
}

/*
 * Count the frames on the chain from the header. Returns the last commit. Frames at the end that
 * refer to what is not there, and were never durable, are what a crash left: they do not count. But
 * if others come after them it may as well be damage, and all count.
 */
static uint64_t follow_chain(struct repair *repair, uint64_t synced)
{
    struct log_position at = {repair->header->log_offset, repair->header->log_chain};
    uint64_t last = repair->header->commit, counted = last;
    uint64_t bytes = 0, frames = 0, unbacked = 0, bad = 0;
    struct format_frame frame;
    const uint8_t *operations;
    while (repair_goes_on(repair) && bytes <= repair->log.size &&
           image_log_frame(&repair->log, at.offset, &frame, &operations, &repair->error) &&
           frame.previous == at.chain) {
        bool commit = frame_is_commit(&frame);
        bool backed = is_backed(repair, &frame, operations);
        if (commit && frame.commit != last + 1) {
            incomplete(repair, "the commits of the log do not follow on that of the header");
            break;
        }
        last += commit;
        bytes += frame.bytes;
        frames++;
        unbacked += !backed;
        if (commit && (backed || last <= synced)) {
            repair->chain_frames = frames;
            counted = last;
            bad = unbacked;
        }
        at = (struct log_position){image_log_after(at.offset, &frame), frame.checksum};
    }
    if (bad)
        incomplete(repair, "some of the last commits refer to records that are not there");
    return counted;
}

static int by_commit(const void *a, const void *b)
{
    const struct loose_frame *left = a, *right = b;
    if (left->commit != right->commit)
        return left->commit < right->commit ? -1 : 1;
    /* Of two the one counts that came after more that was synced: the other was undone by a crash.
     */
    return left->durable_commit > right->durable_commit
               ? -1
               : left->durable_commit < right->durable_commit;
}

/* List the commits after this one, wherever they are. */
static void collect_loose(struct repair *repair, uint64_t last)
{
    struct format_frame frame;
    for (uint64_t offset = LOG_FRAMES_OFFSET;
         (offset = image_log_find(&repair->log, offset, &frame, &repair->error)) != UINT64_MAX;
         offset += frame.bytes) {
        if (!frame_is_commit(&frame) || frame.commit <= last)
            continue;
        struct loose_frame *loose = vector_add(&repair->loose);
        if (!loose) {
            repair->error = FKV_NO_MEMORY;
            return;
        }
        *loose = (struct loose_frame){offset, frame.commit, frame.durable_commit};
    }
    struct loose_frame *frames = repair->loose.items;
    size_t count = repair->loose.count, kept = 0;
    if (count)
        qsort(frames, count, sizeof *frames, by_commit);
    for (size_t i = 0; i < count; i++)
        if (!i || frames[i].commit != frames[i - 1].commit)
            frames[kept++] = frames[i];
    repair->loose.count = kept;
}

void repair_survey_log(struct repair *repair)
{
    bool clean = repair->header && repair->header->clean;
    uint64_t last = 0;
    if (!repair->log_file) {
        repair->log_is_whole = clean;
        if (!clean)
            incomplete(repair, "there is no log: the last commits are lost, but for what of them "
                               "is in the file");
        return;
    }
    repair->error = image_log_open(&repair->log, repair->os->ops, repair->log_file,
                                   repair->log_path, repair->store_id);
    if (!repair->error)
        repair->error = image_log_open(&repair->piece_log, repair->os->ops, repair->log_file,
                                       repair->log_path, repair->store_id);
    if (repair->error)
        return;
    bool headed = false;
    if (!clean || repair->log.size)
        headed = image_log_header(&repair->log, repair->store_id, &repair->report);
    uint64_t synced = find_synced(repair);
    if (repair->header && repair_goes_on(repair)) {
        last = follow_chain(repair, synced);
        /* A log without its header, and without a frame that follows on the checkpoint, may be
         * another's: what has come since then was in one that is not there. */
        repair->log_is_whole =
            last >= synced &&
            (clean || (!repair->log.unreadable && (headed || repair->chain_frames)));
    }
    repair->opened.count = 0;
    if (repair->log_is_whole || !repair_goes_on(repair))
        return;
    collect_loose(repair, last);
    if (repair->header)
        incomplete(repair, "the log is damaged: some of the last commits are lost");
}

/* ---------------------------------------------------------------- what the frames say */

/* False if it is none. */
static bool put(struct repair *repair, uint64_t offset, const struct format_operation *operation,
                const uint8_t *record)
{
    if (operation->bytes < RECORD_HEADER_BYTES)
        return false;
    struct format_record header = record_header(record);
    if (record_bytes(header.key_bytes, header.value_bytes) != operation->bytes ||
        header.kind < RECORD_PLAIN || header.kind > RECORD_PIECE)
        return false;
    repair_found(repair, record, operation->address % SECTOR_CELLS,
                 (struct where){.offset = offset, .in_log = true});
    return true;
}

static void refer(struct repair *repair, uint64_t commit, const struct format_operation *operation,
                  const uint8_t *payload)
{
    uint64_t sequence = sequence_of(repair, (uint32_t)(operation->address / SECTOR_CELLS));
    const uint8_t *record = record_at(repair, operation->address, sequence);
    if (record && memcmp(record, payload, sizeof(uint32_t)) == 0) {
        repair_found(
            repair, record, operation->address % SECTOR_CELLS,
            (struct where){.offset = cell_offset(operation->address), .sequence = sequence});
    } else if (repair->pass == 1) {
        repair->result.damaged++;
        report(&repair->report, FKV_PART_VALUES, cell_offset(operation->address),
               "a record of commit %llu, in sector %llu, cell %llu, is damaged",
               (unsigned long long)commit, (unsigned long long)(operation->address / SECTOR_CELLS),
               (unsigned long long)(operation->address % SECTOR_CELLS));
    }
}

/* A record that was moved since the checkpoint counts where it was, unless it is damaged there. */
static void moved(struct repair *repair, uint64_t from, uint64_t to)
{
    if (!repair_is_damaged(repair, from))
        return;
    uint64_t sequence = sequence_of(repair, (uint32_t)(to / SECTOR_CELLS));
    const uint8_t *record = record_at(repair, to, sequence);
    if (record)
        repair_found(repair, record, to % SECTOR_CELLS,
                     (struct where){.offset = cell_offset(to), .sequence = sequence});
}

static void removed(struct repair *repair, const uint8_t *payload)
{
    struct hash128 hash;
    memcpy(&hash, payload, sizeof hash);
    if (!repair->header)
        repair->result.deleted_may_be_back = 1; /* the hash of which key, nobody knows */
    else if (repair->pass == 2)
        repair_remove(repair, hash);
}

/* The sectors that it opens, and the last place that it names. */
static void look_ahead(struct repair *repair, const uint8_t *at, const uint8_t *end,
                       uint64_t *sequence, uint32_t *cell)
{
    struct format_operation operation;
    const uint8_t *payload;
    while (operation_next(&at, end, &operation, &payload)) {
        if (operation.kind == OPERATION_OPEN && operation.bytes == sizeof(uint64_t))
            open_sector(repair, operation.address, payload);
        if (operation.kind != OPERATION_PUT && operation.kind != OPERATION_REFER)
            continue;
        uint64_t found = sequence_of(repair, (uint32_t)(operation.address / SECTOR_CELLS));
        if (found >= *sequence) {
            *sequence = found;
            *cell = operation.address % SECTOR_CELLS;
        }
    }
}

static void apply(struct repair *repair, uint64_t offset, const struct format_frame *frame,
                  const uint8_t *operations)
{
    const uint8_t *begin = operations;
    const uint8_t *end = operations + frame->bytes - sizeof *frame;
    const uint8_t *payload;
    struct format_operation operation;
    bool understood = true;
    while (repair_goes_on(repair) && operation_next(&operations, end, &operation, &payload)) {
        uint64_t at = offset + sizeof *frame + (uint64_t)(payload - begin);
        if (operation.kind == OPERATION_PUT)
            understood &= put(repair, at, &operation, payload);
        else if (operation.kind == OPERATION_REFER && operation.bytes == sizeof(uint32_t))
            refer(repair, frame->commit, &operation, payload);
        else if (operation.kind == OPERATION_DELETE && operation.bytes == sizeof(struct hash128))
            removed(repair, payload);
        else if (operation.kind == OPERATION_MOVE && operation.bytes == sizeof(uint64_t))
            moved(repair, load_u64(payload), operation.address);
        else
            understood &=
                (operation.kind == OPERATION_OPEN && operation.bytes == sizeof(uint64_t)) ||
                (operation.kind == OPERATION_LARGE && operation.bytes == OPERATION_LARGE_BYTES);
    }
    if (repair_goes_on(repair) && repair->pass == 1 && !(understood && operations == end))
        incomplete(repair, "a frame of the log has something that is not understood");
}

/* Everything up to the place of this frame, and then the frame. */
static void apply_in_turn(struct repair *repair, uint64_t offset, const struct format_frame *frame,
                          const uint8_t *operations, uint64_t *sequence, uint32_t *cell)
{
    if (frame->flags & (FRAME_WRAP | FRAME_RESTART))
        return;
    look_ahead(repair, operations, operations + frame->bytes - sizeof *frame, sequence, cell);
    repair_late_records(repair, *sequence, *cell);
    apply(repair, offset, frame, operations);
    if (repair->pass == 1)
        repair->result.log_frames++;
}

void repair_log(struct repair *repair)
{
    struct format_frame frame;
    const uint8_t *operations;
    uint64_t sequence = 0;
    uint32_t cell = 0;
    repair->opened.count = 0;
    uint64_t offset = repair->header ? repair->header->log_offset : 0;
    for (uint64_t i = 0; i < repair->chain_frames && repair_goes_on(repair); i++) {
        if (!image_log_frame(&repair->log, offset, &frame, &operations, &repair->error))
            break;
        apply_in_turn(repair, offset, &frame, operations, &sequence, &cell);
        offset = image_log_after(offset, &frame);
    }
    const struct loose_frame *loose = repair->loose.items;
    for (size_t i = 0; i < repair->loose.count && repair_goes_on(repair); i++)
        if (image_log_frame(&repair->log, loose[i].offset, &frame, &operations, &repair->error))
            apply_in_turn(repair, loose[i].offset, &frame, operations, &sequence, &cell);
}
