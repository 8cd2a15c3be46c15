#include "frame.h"
#include "planted.h"
#include "store.h"

#include <assert.h>

/*
 * A commit, in this order:
 *   prepare   everything that can fail and changes nothing that is seen: index pages in memory,
 *             room in segments, maps, frames for copies, room in the file and in the log
 *   store     the new records go to the tail (large parts to sectors of their own)
 *   log       one frame
 *   apply     index, maps, counters; cannot fail
 * If something fails before the log has its frame, the records that were stored are dead cells,
 * nothing else, and the next frame does not mention them: a recovery takes them for padding.
 */

/* Records of more bytes than this in one commit are written to the file at once and the log only
 * refers to them. */
TUNABLE uint64_t commit_refer_bytes = 4 * MIB;

enum fkv_error store_fail(struct fkv *db, enum fkv_error error)
{
    int none = 0;
    atomic_compare_exchange_strong(&db->failed, &none, (int)error);
    return error;
}

enum fkv_error store_log(struct fkv *db, const uint8_t *end, uint32_t flags, uint64_t commit)
{
    enum fkv_error error = log_end(&db->log, end, flags, commit);
    return __builtin_expect(error, 0) ? store_fail(db, error) : FKV_OK;
}

enum fkv_error store_writable(struct fkv *db)
{
    if (db->read_only)
        return error_set(FKV_READ_ONLY, "%s is opened read-only", db->path);
    if (__builtin_expect(store_has_failed(db), 0))
        return error_set(FKV_FAILED,
                         "%s: an earlier write or sync failed; reopen the store to recover",
                         db->path);
    return FKV_OK;
}

enum fkv_error commit_has_number(const struct fkv *db)
{
    if (db->commit + 1 < COMMITS_MAX)
        return FKV_OK;
    return error_set(FKV_FULL, "%s has had all the commits that its format can number", db->path);
}

/* ---------------------------------------------------------------- prepare */

/* Where the parts of a value are that goes. They are prepared for it. */
static enum fkv_error list_parts(struct fkv *db, const struct large *old, struct undo_parts *parts)
{
    enum fkv_error error = FKV_OK;
    for (uint32_t i = 0; i < old->sector_count; i++)
        parts->entry[i] = (uint64_t)old->sectors[i] * SECTOR_CELLS;
    for (uint32_t i = old->sector_count; !error && i < parts->count; i++)
        error = index_prepare(&db->index, piece_hash(db, old->id, i), INDEX_LOOK, &parts->entry[i]);
    return error;
}

/* What a snapshot sees of this key, and where. */
enum fkv_error commit_leave_undo(struct fkv *db, struct hash128 hash, uint64_t entry,
                                 const struct large *old)
{
    struct undo_parts *parts = NULL;
    enum fkv_error error = FKV_OK;
    if (!undo_wants_key(&db->undo, hash))
        return FKV_OK;
    if (old && !(parts = undo_parts_new(old->sector_count + old->piece_count)))
        return FKV_NO_MEMORY;
    if (parts)
        error = list_parts(db, old, parts);
    if (!error)
        error = undo_key(&db->undo, hash, entry, parts);
    if (error)
        memory_free(parts);
    return error;
}

/* The same for a value in pieces. */
static enum fkv_error prepare_kill_parts(struct fkv *db, struct write *write)
{
    enum fkv_error error;
    if ((error = large_load(db, write->entry, &write->old)))
        return error;
    for (uint32_t i = 0; !error && i < write->old->sector_count; i++)
        error = sectors_prepare_large(&db->sectors, write->old->sectors[i]);
    for (uint32_t i = 0; !error && i < write->old->piece_count; i++) {
        struct hash128 hash = piece_hash(db, write->old->id, write->old->sector_count + i);
        uint64_t entry;
        error = index_prepare(&db->index, hash, INDEX_LOOK, &entry);
        if (!error && entry)
            error = sectors_prepare_kill(&db->sectors, entry_address(entry));
    }
    return error;
}

enum fkv_error commit_prepare_kill(struct fkv *db, struct write *write)
{
    enum fkv_error error = sectors_prepare_kill(&db->sectors, entry_address(write->entry));
    return error || !(write->entry & ENTRY_LARGE) ? error : prepare_kill_parts(db, write);
}

/* The id of the large value that a write of the next commit makes. */
static uint64_t large_id(const struct fkv *db, const struct write *write)
{
    return (db->commit + 1) << LARGE_NUMBER_BITS | (write->large - 1);
}

static uint32_t pieces_of(const struct write *write)
{
    return (uint32_t)divide_up(write->value_bytes % LARGE_SECTOR_PAYLOAD, LARGE_PIECE_PAYLOAD);
}

/* What a commit needs, at most. */
struct needs {
    uint64_t record_bytes; /* in the tail */
    uint64_t log_bytes;
    uint64_t pages;   /* that it may change */
    uint64_t changes; /* see commit_changes */
    uint32_t sectors; /* free ones, to be taken */
    bool refer;
};

uint64_t commit_changes(const struct fkv *db, uint64_t keys, uint64_t sectors)
{
    enum { ALWAYS = 64 };
    uint64_t changes = pages_changes(&db->pages, SPACE_INDEX, keys + db->index.passed) +
                       pages_changes(&db->pages, SPACE_DIRECTORY, keys) +
                       pages_changes(&db->pages, SPACE_SECTORS, keys + sectors) +
                       pages_changes(&db->pages, SPACE_MAPS, keys);
    return changes > ALWAYS ? changes : 0;
}

static void count_needs(const struct fkv *db, const struct write *writes, size_t count,
                        struct needs *needs)
{
    *needs = (struct needs){.log_bytes = sizeof(struct format_frame) + tail_opened_bytes(&db->tail),
                            .pages = 16 + db->index.passed};
    uint64_t references = 0, keys = count, large_sectors = 0;
    for (size_t i = 0; i < count; i++) {
        const struct write *write = &writes[i];
        needs->pages += 4;
        if (write->old) {
            needs->pages += 3ull * (write->old->sector_count + write->old->piece_count);
            keys += write->old->piece_count;
            large_sectors += write->old->sector_count;
        }
        if (write->remove) {
            references += operation_bytes(sizeof write->hash);
            continue;
        }
        uint64_t bytes = record_bytes(write->key_bytes, write->value_bytes);
        if (write->large) {
            uint32_t sectors = write->value_bytes / LARGE_SECTOR_PAYLOAD;
            needs->sectors += sectors;
            uint32_t pieces = pieces_of(write);
            bytes = record_bytes(write->key_bytes,
                                 sizeof(struct format_large) + sectors * sizeof(uint32_t)) +
                    write->value_bytes % LARGE_SECTOR_PAYLOAD + pieces * 64ull;
            references += sectors * operation_bytes(OPERATION_LARGE_BYTES) +
                          pieces * (operation_bytes(sizeof(uint32_t)) + 64);
            needs->pages += 3 * sectors + 4ull * pieces;
            keys += pieces;
            large_sectors += sectors;
        }
        needs->record_bytes += bytes + bytes / 32 + CELL_BYTES;
        references += operation_bytes(sizeof(uint32_t)) + 8;
    }
    needs->changes = commit_changes(db, keys, large_sectors);
    needs->refer = needs->record_bytes > commit_refer_bytes;
    uint64_t opens = needs->record_bytes / (SECTOR_BYTES - RECORD_BYTES_MAX - 64) + 2;
    if (needs->record_bytes &&
        needs->record_bytes + (count > 1 ? RECORD_BYTES_MAX : 0) > tail_room_bytes(&db->tail))
        needs->sectors += (uint32_t)opens - 1 - (db->tail.spare != 0);
    needs->log_bytes += references + opens * operation_bytes(sizeof(uint64_t)) +
                        (needs->refer ? 0 : needs->record_bytes);
    needs->log_bytes = round_up(needs->log_bytes, 8);
}

/* What there was no room in, so that a checkpoint may help. */
enum shortage { SHORTAGE_NONE, SHORTAGE_OF_DISK, SHORTAGE_OF_LOG };

/* The index needs places in the file to grow. */
static enum fkv_error index_shortage(enum fkv_error error, enum shortage *shortage)
{
    if (error == FKV_FULL)
        *shortage = SHORTAGE_OF_DISK;
    return error;
}

enum { PREPARE_AHEAD = 8 };

/* Who only deletes leaves so many sectors. */
static enum fkv_error prepare(struct fkv *db, struct write *writes, size_t count, uint32_t leave,
                              struct needs *needs, enum shortage *shortage)
{
    enum fkv_error error;
    bool log_full = false;
    uint32_t large = 0;
    *shortage = SHORTAGE_NONE;
    if ((error = commit_has_number(db)))
        return error;
    /* What is changed of the index is on its way, of several keys at a time. */
    for (size_t i = 0; i < count && i < PREPARE_AHEAD; i++)
        index_prefetch_write(&db->index, writes[i].hash);
    for (size_t i = 0; i < count; i++) {
        struct write *write = &writes[i];
        if (i + PREPARE_AHEAD < count)
            index_prefetch_write(&db->index, writes[i + PREPARE_AHEAD].hash);
        enum index_wish wish = write->remove ? INDEX_LOOK : INDEX_PLAN;
        if ((error = index_prepare(&db->index, write->hash, wish, &write->entry)))
            return index_shortage(error, shortage);
        if (write->entry && (error = commit_prepare_kill(db, write)))
            return error;
        if (undo_is_wanted(&db->undo) && (write->entry || !write->remove) &&
            (error = commit_leave_undo(db, write->hash, write->entry, write->old)))
            return error;
        write->large = 0;
        if (write->remove || !value_is_large(write->key_bytes, write->value_bytes))
            continue;
        if ((write->large = ++large) > 1u << LARGE_NUMBER_BITS)
            return error_set(FKV_INVALID, "a transaction of more than %u values of over 128 KiB",
                             1u << LARGE_NUMBER_BITS);
        for (uint32_t p = 0; p < pieces_of(write); p++) {
            uint64_t entry;
            struct hash128 hash =
                piece_hash(db, large_id(db, write), write->value_bytes / LARGE_SECTOR_PAYLOAD + p);
            if ((error = index_prepare(&db->index, hash, INDEX_PLAN, &entry)))
                return index_shortage(error, shortage);
        }
    }
    count_needs(db, writes, count, needs);
    uint64_t frames = min_u64(needs->pages, db->pages.pending_pages + 64) + 16;
    if ((error = log_can_hold(&db->log, needs->log_bytes)) ||
        (error = pages_reserve_frames(&db->pages, (uint32_t)frames)))
        return error;
    if (needs->record_bytes)
        leave = sectors_for_deletes(&db->sectors);
    if ((error = sectors_reserve(&db->sectors, needs->sectors, leave, needs->changes)) ||
        (error = log_reserve(&db->log, needs->log_bytes, &log_full)))
        if (error == FKV_FULL)
            *shortage = log_full ? SHORTAGE_OF_LOG : SHORTAGE_OF_DISK;
    return error;
}

void commit_unprepare(struct fkv *db)
{
    index_unplan(&db->index);
    pages_reserve_frames(&db->pages, 0);
}

void store_trim(struct fkv *db)
{
    index_trim(&db->index);
    reclaim_poll(&db->reclaim, false);
}

void commit_release(struct write *writes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        memory_free(writes[i].old);
        memory_free(writes[i].fresh);
        writes[i].old = writes[i].fresh = NULL;
    }
}

/* ---------------------------------------------------------------- store */

static enum fkv_error append_record(struct fkv *db, enum record_kind kind, const void *key,
                                    uint32_t key_bytes, const void *value, uint32_t value_bytes,
                                    uint64_t *address, uint32_t *cells)
{
    uint32_t need = record_cells(record_bytes(key_bytes, value_bytes));
    enum fkv_error error = tail_prepare(&db->tail, need, sectors_for_deletes(&db->sectors));
    if (error)
        return error;
    uint8_t *to = tail_append(&db->tail, need, address);
    record_write(to, db->seed, record_place(db->tail.sequence, *address % SECTOR_CELLS), kind, key,
                 key_bytes, value, value_bytes);
    *cells = need;
    return FKV_OK;
}

static enum fkv_error store_large(struct fkv *db, struct write *write)
{
    uint64_t id = large_id(db, write);
    enum fkv_error error = large_store(db, write, id);
    if (error)
        return error;
    struct large *large = write->fresh;
    const uint8_t *rest =
        (const uint8_t *)write->value + (size_t)large->sector_count * LARGE_SECTOR_PAYLOAD;
    uint32_t left = write->value_bytes % LARGE_SECTOR_PAYLOAD;
    for (uint32_t i = 0; i < large->piece_count; i++) {
        struct format_piece_key key = {.id = id, .number = large->sector_count + i};
        uint32_t bytes = left < LARGE_PIECE_PAYLOAD ? left : LARGE_PIECE_PAYLOAD;
        uint32_t cells;
        if ((error = append_record(db, RECORD_PIECE, &key, sizeof key, rest, bytes,
                                   &large->piece_address[i], &cells)))
            return error;
        rest += bytes;
        left -= bytes;
    }
    size_t area_bytes = sizeof(struct format_large) + large->sector_count * sizeof(uint32_t);
    uint8_t *area = memory_new(area_bytes);
    if (!area)
        return FKV_NO_MEMORY;
    struct format_large head = {.id = id,
                                .value_bytes = write->value_bytes,
                                .sectors = large->sector_count,
                                .pieces = large->piece_count,
                                .piece_bytes = LARGE_PIECE_PAYLOAD};
    memcpy(area, &head, sizeof head);
    memcpy(area + sizeof head, large->sectors, large->sector_count * sizeof(uint32_t));
    error = append_record(db, RECORD_LARGE, write->key, write->key_bytes, area,
                          (uint32_t)area_bytes, &write->address, &write->cells);
    memory_free(area);
    return error;
}

static enum fkv_error store_write(struct fkv *db, struct write *write)
{
    if (write->large)
        return store_large(db, write);
    return append_record(db, RECORD_PLAIN, write->key, write->key_bytes, write->value,
                         write->value_bytes, &write->address, &write->cells);
}

static uint32_t piece_cells(const struct write *write, uint32_t piece)
{
    uint32_t rest = write->value_bytes % LARGE_SECTOR_PAYLOAD - piece * LARGE_PIECE_PAYLOAD;
    uint32_t bytes = rest < LARGE_PIECE_PAYLOAD ? rest : LARGE_PIECE_PAYLOAD;
    return record_cells(record_bytes(sizeof(struct format_piece_key), bytes));
}

static void kill_cells(struct fkv *db, uint64_t address, uint32_t cells)
{
    sectors_kill(&db->sectors, address, cells);
    db->died_cells += cells;
}

/* Sectors that a commit opened which failed: the next checkpoint's table will have them, but until
 * it is there a recovery must know what later frames put into them. There was room for it. */
static void log_opened(struct fkv *db)
{
    const struct tail *tail = &db->tail;
    if (!tail->opened_count || store_has_failed(db))
        return;
    uint8_t *to = log_begin(&db->log, false);
    store_log(db, tail_log_opened(&db->tail, tail->opened[tail->opened_count - 1], to),
              FRAME_COLLECT, 0);
}

/* The commit failed: what was stored is garbage. It may be tried again. */
static void unstore(struct fkv *db, struct write *writes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct write *write = &writes[i];
        if (write->fresh) {
            for (uint32_t p = 0; p < write->fresh->piece_count; p++)
                if (write->fresh->piece_address[p])
                    kill_cells(db, write->fresh->piece_address[p], piece_cells(write, p));
            large_undo(db, write->fresh);
        }
        if (write->address)
            kill_cells(db, write->address, write->cells);
        write->address = 0;
    }
    log_opened(db);
}

/* What a log frame refers to must be in the file before it. */
static enum fkv_error write_referred(struct fkv *db)
{
    tail_pad_to_page(&db->tail);
    enum fkv_error error = tail_flush(&db->tail);
    if (!error && db->tail.open)
        error = tail_flush_open(&db->tail, db->tail.sector, db->tail.cell);
    return error;
}

/* ---------------------------------------------------------------- log */

/* A record of this commit that is in the file by now, and has no address there. It was written a
 * moment ago: if it cannot be read, nothing can be trusted to be. */
static uint8_t *log_written(struct fkv *db, uint8_t *to, uint64_t address, bool refer)
{
    struct format_record header = {0};
    uint64_t offset = address * CELL_BYTES;
    int status = db->os->ops->read(db->file, &header, sizeof header, offset);
    size_t bytes = record_bytes(header.key_bytes, header.value_bytes);
    if (!status && refer)
        return operation_write(to, OPERATION_REFER, address, &header.checksum,
                               sizeof header.checksum);
    uint8_t *end = operation_write(to, OPERATION_PUT, address, NULL, 0);
    if (!status)
        status = db->os->ops->read(db->file, end, bytes, offset);
    if (status) {
        store_fail(db, error_os(status, "read what was written to", db->path));
        return to;
    }
    ((struct format_operation *)to)->bytes = (uint32_t)bytes;
    memset(end + bytes, 0, round_up(bytes, 8) - bytes);
    return end + round_up(bytes, 8);
}

static uint8_t *log_record(struct fkv *db, uint8_t *to, uint64_t address, bool refer)
{
    uint32_t sector = (uint32_t)(address / SECTOR_CELLS);
    if (db->tail.opened_count)
        to = tail_log_opened(&db->tail, sector, to);
    const uint8_t *base = sector_base(&db->sectors, sector);
    if (!base)
        return log_written(db, to, address, refer);
    const uint8_t *record = base + address % SECTOR_CELLS * CELL_BYTES;
    struct format_record header = record_header(record);
    if (refer)
        return operation_write(to, OPERATION_REFER, address, &header.checksum,
                               sizeof header.checksum);
    return operation_write(to, OPERATION_PUT, address, record,
                           record_bytes(header.key_bytes, header.value_bytes));
}

static uint8_t *log_write(struct fkv *db, uint8_t *to, const struct write *write, bool refer)
{
    if (write->remove)
        return write->entry
                   ? operation_write(to, OPERATION_DELETE, 0, &write->hash, sizeof write->hash)
                   : to;
    const struct large *large = write->fresh;
    for (uint32_t i = 0; large && i < large->sector_count; i++) {
        uint8_t payload[OPERATION_LARGE_BYTES];
        store_u64(payload, sector_view(&db->sectors, large->sectors[i])->sequence);
        memcpy(payload + 8, &large->sectors[large->sector_count + i], 4);
        to = operation_write(to, OPERATION_LARGE, (uint64_t)large->sectors[i] * SECTOR_CELLS,
                             payload, sizeof payload);
    }
    for (uint32_t i = 0; large && i < large->piece_count; i++)
        to = log_record(db, to, large->piece_address[i], refer);
    return log_record(db, to, write->address, refer);
}

/* ---------------------------------------------------------------- apply */

static void kill_entry(struct fkv *db, uint64_t entry)
{
    kill_cells(db, entry_address(entry), entry_cells(entry));
}

static void kill_parts(struct fkv *db, const struct large *large)
{
    for (uint32_t i = 0; i < large->piece_count; i++) {
        uint64_t entry =
            index_remove(&db->index, piece_hash(db, large->id, large->sector_count + i));
        if (entry)
            kill_entry(db, entry);
    }
    for (uint32_t i = 0; i < large->sector_count && !PLANTED(LARGE_LEAK); i++)
        sectors_free_large(&db->sectors, large->sectors[i]);
}

void commit_kill(struct fkv *db, uint64_t entry, const struct large *parts)
{
    kill_entry(db, entry);
    if (parts)
        kill_parts(db, parts);
}

/* New pieces come before the head that leads to them, and old ones go after it. */
void commit_apply(struct fkv *db, struct write *write)
{
    if (write->remove) {
        uint64_t entry = write->entry ? index_remove(&db->index, write->hash) : 0;
        if (!entry)
            return;
        db->keys--;
        commit_kill(db, entry, write->old);
        index_tidy(&db->index, write->hash);
        return;
    }
    const struct large *fresh = write->fresh;
    if (fresh) {
        for (uint32_t i = 0; i < fresh->sector_count; i++)
            sectors_open_large(&db->sectors, fresh->sectors[i],
                               sector_view(&db->sectors, fresh->sectors[i])->sequence);
        for (uint32_t i = 0; i < fresh->piece_count; i++)
            index_set(&db->index, piece_hash(db, fresh->id, fresh->sector_count + i),
                      entry_value(fresh->piece_address[i], piece_cells(write, i), false));
    }
    uint64_t old =
        index_set(&db->index, write->hash, entry_value(write->address, write->cells, write->large));
    if (!old) {
        db->keys++;
        return;
    }
    if (PLANTED(WRONG_DEAD) && db->commit % 64 == 0)
        old = entry_value(write->address, write->cells, write->large);
    commit_kill(db, old, write->old);
}

static struct overlay *overlay_new(const struct write *writes, size_t count)
{
    uint32_t size = 16;
    while (size < count * 2)
        size *= 2;
    struct overlay *overlay = memory_new(sizeof *overlay + size * sizeof overlay->slots[0]);
    if (!overlay)
        return NULL;
    overlay->mask = size - 1;
    for (size_t i = 0; i < count; i++) {
        uint32_t at = (uint32_t)writes[i].hash.lo & overlay->mask;
        while (overlay->slots[at].used)
            at = (at + 1) & overlay->mask;
        overlay->slots[at] = (struct overlay_slot){writes[i].hash, writes[i].entry, true};
    }
    return overlay;
}

static void apply(struct fkv *db, struct write *writes, size_t count, struct overlay *overlay)
{
    if (overlay && !PLANTED(NO_OVERLAY))
        atomic_store_explicit(&db->overlay, overlay, memory_order_seq_cst);
    for (size_t i = 0; i < count; i++) {
        if (db->open_transactions)
            __atomic_store_n(&db->stripes[writes[i].hash.lo % STRIPES], db->commit,
                             __ATOMIC_RELEASE);
        SCHEDULE_POINT();
        commit_apply(db, &writes[i]);
        SCHEDULE_POINT();
        db->bytes_put += writes[i].remove ? 0 : writes[i].key_bytes + writes[i].value_bytes;
    }
    if (overlay) {
        atomic_store_explicit(&db->overlay, NULL, memory_order_seq_cst);
        reclaim_block(&db->reclaim, &overlay->retired);
    }
}

/* ---------------------------------------------------------------- the whole */

static enum fkv_error store_and_log(struct fkv *db, struct write *writes, size_t count,
                                    const struct needs *needs, bool synced)
{
    enum fkv_error error = FKV_OK;
    uint64_t commit = db->commit + 1;
    bool any_large = false;
    if (needs->sectors)
        tail_hide(&db->tail);
    for (size_t i = 0; !error && i < count; i++) {
        writes[i].address = 0;
        if (writes[i].remove)
            continue;
        error = store_write(db, &writes[i]);
        any_large |= writes[i].fresh && writes[i].fresh->sector_count;
    }
    tail_show(&db->tail);
    if (!error && needs->refer)
        error = write_referred(db);
    if (error) {
        unstore(db, writes, count);
        return error;
    }
    if (needs->refer || any_large)
        atomic_store(&db->log.data_unsynced, true);
    uint8_t *to = log_begin(&db->log, synced);
    for (size_t i = 0; i < count - (PLANTED(HALF_BATCH_LOGGED) ? count / 2 : 0); i++)
        to = log_write(db, to, &writes[i], needs->refer);
    if (__builtin_expect(atomic_load_explicit(&db->failed, memory_order_relaxed), 0)) {
        unstore(db, writes, count); /* see log_written */
        return (enum fkv_error)db->failed;
    }
    if ((error = store_log(db, to, 0, commit))) {
        unstore(db, writes, count);
        return error;
    }
    db->commit = commit;
    db->commits++;
    return FKV_OK;
}

/* Else the room would be taken from who asked for it. (Who is in a read section must not wait for
 * somebody who may wait for readers.) */
void commit_wait_for_room(struct fkv *db)
{
    while (__builtin_expect(db->making_room, 0) && !rcu_read_ongoing())
        pthread_cond_wait(&db->room_made, &db->writer);
}

void commit_end_making_room(struct fkv *db)
{
    if (__builtin_expect(db->making_room, 0)) {
        db->making_room = false;
        pthread_cond_broadcast(&db->room_made);
    }
}

/* Collect what the commit owes. Where the log has no room for that, a checkpoint makes some: else
 * garbage could outgrow its bound before the next one. */
void collect_with_room(struct fkv *db)
{
    uint64_t owed = UINT64_MAX;
    collect(db);
    while (__builtin_expect(db->collector.log_full, 0) && db->collector.debt_cells < owed) {
        owed = db->collector.debt_cells;
        db->making_room = true;
        if (checkpoint_run(db))
            break;
        collect(db);
    }
    commit_end_making_room(db);
}

/* Places that pages could have, less those that the next checkpoint needs. */
static int64_t spare_places(const struct fkv *db)
{
    uint64_t places = (uint64_t)sectors_free_count(&db->sectors) * SECTOR_PAGES;
    return (int64_t)(places + pages_places_free(&db->pages)) -
           (int64_t)pages_places_needed(&db->pages, 0);
}

/* A checkpoint frees the places of pages that were changed. */
static bool make_places(struct fkv *db)
{
    enum { WORTH_WHILE = 32 };
    int64_t spare = spare_places(db);
    bool unwritten =
        db->checkpoint.stage != CHECKPOINT_IDLE ||
        db->pages.dirty_pages + db->pages.pending_pages >= WORTH_WHILE ||
        db->commit - db->header.commit >= WORTH_WHILE; /* spilled pages have two places */
    return unwritten && !checkpoint_run_for_space(db) && spare_places(db) >= spare + WORTH_WHILE;
}

/* For records: in sectors that are free, and in the open one. */
static uint64_t room_for_records(const struct fkv *db)
{
    return (uint64_t)sectors_free_count(&db->sectors) * SECTOR_BYTES + tail_room_bytes(&db->tail);
}

/* And what is in quarantine; and what is dead among the living is freed by moving them together. */
static bool make_room_on_disk(struct fkv *db)
{
    if (make_places(db))
        return true;
    uint32_t before = sectors_free_count(&db->sectors);
    uint64_t room = room_for_records(db);
    bool quarantined =
        db->sectors.freed.count + db->sectors.uncertain.count + db->sectors.awaiting_readers > 0;
    if (quarantined && !checkpoint_run_for_space(db) && sectors_free_count(&db->sectors) > before)
        return true;
    if (store_writable(db) || !collect_for_room(db) || checkpoint_run_for_space(db))
        return false;
    bool more = sectors_free_count(&db->sectors) > before ||
                room_for_records(db) >= room + RECORD_BYTES_MAX;
    if (!more)
        db->collector.futile_died = db->died_cells; /* not again before more has died */
    return more;
}

bool commit_make_room(struct fkv *db, bool in_log)
{
    db->making_room = true;
    return in_log ? !checkpoint_run(db) : make_room_on_disk(db);
}

/* Deletes take what the collector needs only if a checkpoint does not help: what pages have got of
 * it is not soon a whole sector again. */
static bool make_room(struct fkv *db, const struct needs *needs, enum shortage shortage,
                      uint32_t *leave)
{
    if (shortage == SHORTAGE_OF_LOG || needs->record_bytes || *leave == RESERVE_NONE)
        return commit_make_room(db, shortage == SHORTAGE_OF_LOG);
    db->making_room = true;
    if (!make_places(db))
        *leave = RESERVE_NONE;
    return true;
}

/* Prepare until it succeeds; a checkpoint makes room where there is none. */
static enum fkv_error prepare_with_room(struct fkv *db, struct write *writes, size_t count,
                                        struct needs *needs)
{
    enum fkv_error error;
    uint32_t leave = RESERVE_FOR_COLLECTOR;
    for (;;) {
        enum shortage shortage;
        error = prepare(db, writes, count, leave, needs, &shortage);
        if (!error)
            break;
        commit_unprepare(db);
        if (!PLANTED(LEAK))
            commit_release(writes, count);
        if (shortage == SHORTAGE_NONE)
            break;
        /* A log that is full again after a checkpoint was filled by others: try again then. */
        bool made = make_room(db, needs, shortage, &leave);
        if (store_has_failed(db))
            error = error_set(FKV_IO, "%s: a write or a sync failed while room was made", db->path);
        if (!made || store_has_failed(db))
            break;
    }
    commit_end_making_room(db);
    return error;
}

enum fkv_error commit_writes(struct fkv *db, struct write *writes, size_t count,
                             const struct fkv_txn *txn, bool synced)
{
    struct needs needs = {0};
    struct overlay *overlay = NULL;
    commit_wait_for_room(db);
    enum fkv_error error = store_writable(db);
    if (error)
        return error;
    if ((error = prepare_with_room(db, writes, count, &needs))) {
        store_trim(db); /* of what it has brought in for nothing */
        return error;
    }
    bool nothing = true;
    for (size_t i = 0; nothing && i < count; i++)
        nothing = writes[i].remove && !writes[i].entry;
    if (txn)
        error = txn_validate(txn);
    if (!error && nothing)
        error = FKV_NOT_FOUND;
    if (!error && count > 1 && !(overlay = overlay_new(writes, count)))
        error = FKV_NO_MEMORY;
    if (!error)
        error = store_and_log(db, writes, count, &needs, synced);
    if (!error)
        apply(db, writes, count, overlay);
    else
        memory_free(overlay);
    commit_unprepare(db);
    commit_release(writes, count);
    if (db->tail.failed) {
        if (error <= FKV_NOT_FOUND) /* it was the flusher that found out */
            error_set(FKV_IO, "%s: values could not be written", db->path);
        return store_fail(db, FKV_IO);
    }
    if (!error)
        collect_with_room(db);
    if (__builtin_expect(db->compaction.stage, 0))
        compaction_poll(db, COMPACTION_STEPS_INSIDE);
    index_spill(&db->index, count);
    store_trim(db);
    checkpoint_poll(db);
    return error;
}

enum fkv_error commit_end(struct fkv *db, enum fkv_error error, bool sync)
{
    uint64_t commit = db->commit;
    pthread_mutex_unlock(&db->writer);
    reclaim_wait(&db->reclaim);
    checkpoint_pause(db);
    return !error && sync ? log_sync(&db->log, commit) : error;
}
