#include "ahead.h"
#include "fetch.h"
#include "frame.h"
#include "planted.h"

#include <errno.h>

/*
 * Recovery: what the log has since the last checkpoint is done again, frame by frame, as operations
 * on the parts. First all of it is looked through, before anything is changed. A frame that refers
 * to records which are not in the file was never durable, and ends the log.
 */

/* ---------------------------------------------------------------- what frames refer to */

/* Read what a frame refers to; *there false if the file ends before. */
static enum fkv_error read_referred(struct fkv *db, void *to, size_t bytes, uint64_t offset,
                                    bool *there)
{
    int status = db->os->ops->read(db->file, to, bytes, offset);
    *there = status == 0;
    return status && status != -ENODATA ? error_os(status, "read a record of", db->path) : FKV_OK;
}

/* See log_write_again. That the frame is written again makes it durable with the next sync, so what
 * it refers to has to be before. */
static enum fkv_error write_referred_again(struct fkv *db, const void *bytes, size_t count,
                                           uint64_t offset)
{
    int status = db->os->ops->write(db->file, bytes, count, offset);
    return status ? error_os(status, "write a record to", db->path) : FKV_OK;
}

/* What a frame refers to outside the log, is it there? `sequence` is that of the open sector. */
static enum fkv_error operation_is_backed(struct fkv *db, const struct format_operation *operation,
                                          const uint8_t *payload, uint64_t sequence,
                                          uint8_t *scratch, bool *backed)
{
    uint64_t offset = operation->address * CELL_BYTES;
    uint32_t cell = operation->address % SECTOR_CELLS;
    size_t most = SECTOR_BYTES - cell * CELL_BYTES;
    if (operation->kind == OPERATION_LARGE && operation->bytes == OPERATION_LARGE_BYTES) {
        const uint8_t *record = scratch + sizeof(struct format_sector_header);
        enum fkv_error error = read_referred(db, scratch, SECTOR_BYTES, offset, backed);
        *backed = *backed && memcmp(record, payload + 8, sizeof(uint32_t)) == 0 &&
                  record_verify_sector(record, db->seed, load_u64(payload));
        if (error || !*backed || db->read_only)
            return error;
        return write_referred_again(db, scratch, SECTOR_BYTES, offset);
    }
    *backed = true;
    if (operation->kind != OPERATION_REFER || operation->bytes != sizeof(uint32_t))
        return FKV_OK;
    enum fkv_error error = read_referred(db, scratch, RECORD_HEADER_BYTES, offset, backed);
    struct format_record header = record_header(scratch);
    size_t bytes = record_bytes(header.key_bytes, header.value_bytes);
    *backed = *backed && bytes <= RECORD_BYTES_MAX && bytes <= most;
    if (error || !*backed || (error = read_referred(db, scratch, bytes, offset, backed)))
        return error;
    *backed = *backed &&
              (memcmp(scratch, payload, sizeof(uint32_t)) == 0 || PLANTED(NO_REFER_CHECKSUM)) &&
              record_verify(scratch, bytes, db->seed, record_place(sequence, cell));
    if (!*backed || db->read_only || PLANTED(REFER_NOT_AGAIN))
        return FKV_OK;
    return write_referred_again(db, scratch, bytes, offset);
}

/* ---------------------------------------------------------------- operations */

static enum fkv_error bad_frame(const struct fkv *db, const struct log_frame *frame)
{
    return error_set(FKV_DAMAGED, "%s: the frame of commit %llu is not understood", db->log_path,
                     (unsigned long long)frame->header.commit);
}

static enum fkv_error replay_record(struct fkv *db, uint64_t address, const uint8_t *record,
                                    size_t bytes)
{
    enum fkv_error error;
    uint32_t cell = address % SECTOR_CELLS;
    uint32_t cells = record_cells(bytes);
    struct format_record header = record_header(record);
    if (!db->tail.open || address / SECTOR_CELLS != db->tail.sector ||
        cell + cells > SECTOR_CELLS || cells > RECORD_CELLS_MAX || header.kind > RECORD_PIECE ||
        record_bytes(header.key_bytes, header.value_bytes) != bytes ||
        !record_verify(record, bytes, db->seed, record_place(db->tail.sequence, cell)))
        return error_set(FKV_DAMAGED, "%s: a record in the log is damaged", db->log_path);
    struct write write = {.hash = record_hash(&db->hash_seeds, record),
                          .cells = cells,
                          .large = header.kind == RECORD_LARGE};
    if ((error = index_prepare(&db->index, write.hash, INDEX_ROOM, &write.entry)) ||
        (write.entry && (error = commit_prepare_kill(db, &write))) ||
        (error = tail_skip_to(&db->tail, cell))) {
        commit_release(&write, 1);
        return error;
    }
    memcpy(tail_append(&db->tail, cells, &write.address), record, bytes);
    uint64_t keys = db->keys;
    commit_apply(db, &write);
    if (header.kind == RECORD_PIECE)
        db->keys = keys;
    commit_release(&write, 1);
    return FKV_OK;
}

static enum fkv_error replay_refer(struct fkv *db, uint64_t address)
{
    uint8_t *scratch = memory_buffer(RECORD_BYTES_MAX);
    if (!scratch)
        return FKV_NO_MEMORY;
    uint64_t offset = address * CELL_BYTES;
    enum fkv_error error = FKV_OK;
    int status = db->os->ops->read(db->file, scratch, RECORD_HEADER_BYTES, offset);
    struct format_record header = record_header(scratch);
    size_t bytes = record_bytes(header.key_bytes, header.value_bytes);
    if (!status && bytes <= RECORD_BYTES_MAX)
        status = db->os->ops->read(db->file, scratch, bytes, offset);
    if (status || bytes > RECORD_BYTES_MAX)
        error = error_os(status ? status : -EIO, "read a record of", db->path);
    else
        error = replay_record(db, address, scratch, bytes);
    memory_free(scratch);
    return error;
}

static enum fkv_error replay_delete(struct fkv *db, struct hash128 hash)
{
    struct write write = {.hash = hash, .remove = true};
    enum fkv_error error = index_prepare(&db->index, hash, INDEX_LOOK, &write.entry);
    if (!error && write.entry && !(error = commit_prepare_kill(db, &write)))
        commit_apply(db, &write);
    commit_release(&write, 1);
    return error;
}

static enum fkv_error replay_move(struct fkv *db, uint64_t from, uint64_t to)
{
    uint32_t sector = (uint32_t)(from / SECTOR_CELLS);
    uint32_t cell = from % SECTOR_CELLS;
    if (sector >= db->sectors.count || sector_state(&db->sectors, sector)->type != SECTOR_VALUES ||
        !db->tail.open || to / SECTOR_CELLS != db->tail.sector)
        return error_set(FKV_DAMAGED, "%s: the log moves a record from nowhere", db->log_path);
    const struct sector_view *view = sector_view(&db->sectors, sector);
    const uint8_t *base;
    enum fkv_error error = fetch_sector(db, sector, &db->collector.room, &base);
    if (error)
        return error;
    const uint8_t *record = base + (size_t)cell * CELL_BYTES;
    uint32_t cells = record_walk(record, SECTOR_CELLS - cell);
    struct format_record header = record_header(record);
    if (!cells || header.kind == RECORD_PAD || cells > RECORD_CELLS_MAX ||
        to % SECTOR_CELLS + cells > SECTOR_CELLS)
        return error_set(FKV_DAMAGED, "%s: the log moves a record that is damaged", db->path);
    struct hash128 hash = record_hash(&db->hash_seeds, record);
    uint64_t entry, address;
    if ((error = index_prepare(&db->index, hash, INDEX_LOOK, &entry)) ||
        (error = sectors_prepare_kill(&db->sectors, from)) ||
        (error = tail_skip_to(&db->tail, to % SECTOR_CELLS)))
        return error;
    if (entry_address(entry) != from)
        return error_set(FKV_DAMAGED, "%s: the log moves a record that is not live", db->log_path);
    uint8_t *at = tail_append(&db->tail, cells, &address);
    record_copy(at, record, cells * CELL_BYTES,
                record_place(view->sequence, cell) ^
                    record_place(db->tail.sequence, to % SECTOR_CELLS));
    index_move(&db->index, hash, from, to);
    sectors_kill(&db->sectors, from, cells);
    return FKV_OK;
}

static enum fkv_error replay_large(struct fkv *db, uint32_t sector, uint64_t sequence)
{
    enum fkv_error error = sectors_take_at(&db->sectors, sector);
    if (!error && !(error = sectors_prepare_large(&db->sectors, sector)))
        sectors_open_large(&db->sectors, sector, sequence);
    return error;
}

static enum fkv_error replay_operation(struct fkv *db, const struct log_frame *frame,
                                       const struct format_operation *operation,
                                       const uint8_t *payload)
{
    uint32_t sector = (uint32_t)(operation->address / SECTOR_CELLS);
    struct hash128 hash;
    switch (operation->kind) {
    case OPERATION_OPEN:
        if (operation->bytes == sizeof(uint64_t))
            return tail_continue_at(&db->tail, sector, load_u64(payload));
        break;
    case OPERATION_PUT:
        if (operation->bytes >= RECORD_HEADER_BYTES)
            return replay_record(db, operation->address, payload, operation->bytes);
        break;
    case OPERATION_REFER:
        if (operation->bytes == sizeof(uint32_t))
            return replay_refer(db, operation->address);
        break;
    case OPERATION_DELETE:
        if (operation->bytes != sizeof hash)
            break;
        memcpy(&hash, payload, sizeof hash);
        return replay_delete(db, hash);
    case OPERATION_MOVE:
        if (operation->bytes == sizeof(uint64_t))
            return replay_move(db, load_u64(payload), operation->address);
        break;
    case OPERATION_LARGE:
        if (operation->bytes == OPERATION_LARGE_BYTES)
            return replay_large(db, sector, load_u64(payload));
        break;
    default:
        break;
    }
    return bad_frame(db, frame);
}

/* ---------------------------------------------------------------- frames */

/* *operations: how many it has. */
static enum fkv_error replay_frame(struct fkv *db, const struct log_frame *frame, uint8_t *scratch,
                                   bool *backed, uint32_t *operations)
{
    struct format_operation operation;
    const uint8_t *payload;
    const uint8_t *at = frame->operations;
    uint64_t sequence = db->tail.sequence;
    *backed = true;
    *operations = 0;
    while (*backed && operation_next(&at, frame->end, &operation, &payload)) {
        ++*operations;
        if (operation.kind == OPERATION_OPEN && operation.bytes == sizeof sequence)
            sequence = load_u64(payload);
        enum fkv_error error =
            operation_is_backed(db, &operation, payload, sequence, scratch, backed);
        if (error)
            return error;
    }
    if (!*backed)
        return FKV_OK;
    if (at != frame->end)
        return bad_frame(db, frame);
    const uint8_t *half = frame->operations + (frame->end - frame->operations) / 2;
    (void)half; /* where nothing is planted */
    for (at = frame->operations; operation_next(&at, frame->end, &operation, &payload);) {
        if (PLANTED(HALF_BATCH_REPLAYED) && at > half && half > frame->operations + 200)
            break;
        enum fkv_error error = replay_operation(db, frame, &operation, payload);
        if (error)
            return error;
    }
    return FKV_OK;
}

/* The largest sector that a frame opens. */
static uint32_t last_sector(const struct log_frame *frame)
{
    struct format_operation operation;
    const uint8_t *payload, *at = frame->operations;
    uint64_t last = 0;
    while (operation_next(&at, frame->end, &operation, &payload))
        if (operation.kind == OPERATION_OPEN || operation.kind == OPERATION_LARGE)
            last = max_u64(last, operation.address / SECTOR_CELLS);
    return (uint32_t)last;
}

/*
 * Before a replay writes anything: a log that lost what had been synced is refused, and the file
 * left as it is. And where an index that is larger than its memory spills meanwhile, it must not
 * take a sector that the log will name (replay_last).
 */
static enum fkv_error look_through(struct fkv *db, bool spills, uint64_t *last_commit)
{
    struct log *log = &db->log;
    struct log_position before = log->head;
    uint64_t live = log->live_bytes;
    struct log_frame frame;
    enum fkv_error error;
    bool found;
    uint64_t asked = before.offset;
    db->life.replay_last = spills;
    *last_commit = db->commit;
    for (;;) {
        log_read_ahead(log, log->head.offset, &asked);
        if ((error = log_next(log, &frame, &found)) || !found)
            break;
        if (frame.header.flags & FRAME_RESTART)
            continue;
        if (frame_is_commit(&frame.header) && frame.header.commit != ++*last_commit)
            return bad_frame(db, &frame);
        if (spills)
            db->life.replay_last = (uint32_t)max_u64(db->life.replay_last, last_sector(&frame));
    }
    if (!error)
        error = log_check_end(log, *last_commit);
    log->head = before;
    log->live_bytes = live;
    return error;
}

enum fkv_error store_replay(struct fkv *db)
{
    struct log *log = &db->log;
    log->head = (struct log_position){db->header.log_offset, db->header.log_chain};
    log->start = log->head.offset;
    atomic_store(&log->durable_commit, db->commit);
    bool spills = db->index.limit.frames_max && !db->read_only;
    uint64_t last_commit;
    enum fkv_error error = look_through(db, spills, &last_commit);
    /* Pages that are spilled may go over those of the checkpoint before this one: so this one's
     * header must be more than something that the system has in its cache. */
    if (!error && spills && db->life.header_in_doubt)
        error = checkpoint_write_copy(db, &db->header);
    if (error)
        return error;
    uint8_t *scratch = memory_buffer(SECTOR_BYTES);
    if (!scratch)
        return FKV_NO_MEMORY;
    struct ahead ahead;
    uint32_t operations = 0;
    ahead_load_index(db);
    ahead_begin(&ahead, db);
    for (;;) {
        ahead_look(&ahead, db, operations);
        operations = 0;
        struct log_position before = log->head;
        uint64_t live = log->live_bytes;
        struct log_frame frame;
        bool found, backed;
        if ((error = log_next(log, &frame, &found)) || !found)
            break;
        if (frame.header.flags & FRAME_RESTART)
            continue;
        uint64_t died = collector_died(db);
        if ((error = replay_frame(db, &frame, scratch, &backed, &operations)))
            break;
        if (!backed) { /* written, but what it refers to was not: it was never durable */
            log->head = before;
            log->live_bytes = live;
            log->stale = true;
            break;
        }
        if (spills)
            index_spill(&db->index, operations);
        store_trim(db);
        if (frame_is_commit(&frame.header)) { /* what was owed before it was paid before it */
            db->commit = frame.header.commit;
            collector_forget_life(&db->collector);
            db->collector.seen_died = died;
        }
    }
    memory_free(scratch);
    db->life.replay_last = 0;
    if (!error && db->commit < last_commit)
        error = log_check_end(log, db->commit);
    atomic_store(&log->written_commit, db->commit);
    return error;
}
