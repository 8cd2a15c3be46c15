#include "load.h"

#include "frame.h"
#include "header.h"
#include "planted.h"

enum { BLOCK_PAIRS = 1 << 14 };

struct pair {
    struct hash128 hash;
    uint64_t entry;
    uint32_t checksum; /* of the record */
};

struct pair_block {
    struct pair_block *next;
    uint32_t count;
    struct pair pairs[BLOCK_PAIRS];
};

/* A value in several pieces that goes when the load comes; in the order of the pairs. */
struct replaced {
    struct replaced *next;
    uint64_t address; /* of its head */
    struct large *parts;
};

struct fkv_load {
    struct fkv *db; /* not once it has ended: the store may be closed */
    uint64_t owner; /* db->id */
    bool ended;
    enum fkv_error failed; /* what was put is not all there */
    uint64_t sequence;     /* of the first sector */
    struct load_sector {
        uint32_t sector;
        uint32_t end; /* of its records; pads follow */
    } * sectors;
    uint32_t sector_count, sector_room;
    uint8_t *buffer; /* of the last one */
    bool written;    /* it is in the file */
    struct pair_block *first, *last;
    uint64_t pairs, bytes;
    struct replaced *replaced, *replaced_last;
    uint64_t memory_bytes; /* of what is above; in db->opened_bytes */
};

static void took(struct fkv_load *load, uint64_t bytes)
{
    store_took(load->db, &load->memory_bytes, bytes);
}

enum fkv_error load_begin(struct fkv *db, fkv_load **begun)
{
    struct fkv_load *load = memory_new(sizeof *load);
    uint8_t *buffer = memory_new(SECTOR_BYTES);
    enum fkv_error error = load && buffer ? FKV_OK : FKV_NO_MEMORY;
    if (!error) {
        pthread_mutex_lock(&db->writer);
        if (db->load)
            error = error_set(FKV_CONFLICT, "%s: there is a load already", db->path);
        else
            db->load = load;
        *load = (struct fkv_load){.db = db,
                                  .owner = db->id,
                                  .buffer = buffer,
                                  .sequence = db->sectors.next_sequence + LOAD_SEQUENCES};
        pthread_mutex_unlock(&db->writer);
    }
    if (error) {
        memory_free(load);
        memory_free(buffer);
        return error;
    }
    took(load, sizeof *load + SECTOR_BYTES);
    *begun = load;
    return FKV_OK;
}

struct fkv *load_store(const fkv_load *load)
{
    return load->db;
}

uint64_t load_owner(const fkv_load *load)
{
    return load->owner;
}

bool load_ended(const fkv_load *load)
{
    return load->ended;
}

/* ---------------------------------------------------------------- sectors */

static struct load_sector *last_sector(struct fkv_load *load)
{
    return load->sector_count ? &load->sectors[load->sector_count - 1] : NULL;
}

static uint64_t sequence_of(const struct fkv_load *load, uint32_t number)
{
    return load->sequence + number;
}

/* Call `each` with every pad behind the records of a sector. */
static void for_pads(uint32_t end, void (*each)(void *context, uint32_t cell, uint32_t cells),
                     void *context)
{
    for (uint32_t cells; end < SECTOR_CELLS; end += cells) {
        cells = (uint32_t)min_u64(SECTOR_CELLS - end, RECORD_CELLS_MAX);
        each(context, end, cells);
    }
}

static void write_pad(void *context, uint32_t cell, uint32_t cells)
{
    struct fkv_load *load = context;
    record_write_pad(load->buffer + cell * CELL_BYTES, load->db->seed,
                     record_place(sequence_of(load, load->sector_count - 1), cell), cells);
}

/* Write the last sector to the file. */
static enum fkv_error write_sector(struct fkv_load *load)
{
    struct fkv *db = load->db;
    struct load_sector *last = last_sector(load);
    if (!last || load->written)
        return FKV_OK;
    for_pads(last->end, write_pad, load);
    uint64_t offset = (uint64_t)last->sector * SECTOR_BYTES;
    int status = db->sectors.ops->write(db->file, load->buffer, SECTOR_BYTES, offset);
    if (status) {
        enum fkv_error error = error_os(status, "write values to", db->path);
        if (error != FKV_FULL && error != FKV_NO_MEMORY) /* else it is written again, whole */
            load->failed = error;
        return error;
    }
    db->sectors.ops->start_writeback(db->file, offset, SECTOR_BYTES);
    db->tail.written_bytes += SECTOR_BYTES;
    load->written = true;
    return FKV_OK;
}

static enum fkv_error take_sector(struct fkv *db, uint32_t *sector)
{
    enum fkv_error error;
    pthread_mutex_lock(&db->writer);
    commit_wait_for_room(db);
    for (;;) {
        if (!(error = store_writable(db)))
            error = sectors_reserve(&db->sectors, 1, sectors_for_deletes(&db->sectors), 0);
        if (error != FKV_FULL || !commit_make_room(db, false))
            break;
    }
    commit_end_making_room(db);
    if (!error && !(error = sectors_take(&db->sectors, sector)))
        db->sectors.changing++;
    pthread_mutex_unlock(&db->writer);
    return error;
}

static enum fkv_error next_sector(struct fkv_load *load)
{
    struct fkv *db = load->db;
    enum fkv_error error = write_sector(load);
    if (error)
        return error;
    uint32_t room = load->sector_room;
    struct load_sector *sectors = memory_room(load->sectors, sizeof *sectors,
                                              load->sector_count + UINT64_C(1), &load->sector_room);
    if (!sectors)
        return FKV_NO_MEMORY;
    took(load, (load->sector_room - room) * sizeof *sectors);
    load->sectors = sectors;
    uint32_t sector;
    if ((error = take_sector(db, &sector)))
        return error;
    load->sectors[load->sector_count++] = (struct load_sector){sector, SECTOR_HEADER_CELLS};
    load->written = false;
    sector_header_write(load->buffer, db->sectors.store_id, sector,
                        sequence_of(load, load->sector_count - 1), SECTOR_VALUES);
    return FKV_OK;
}

/* ---------------------------------------------------------------- pairs */

static struct pair *pair_new(struct fkv_load *load)
{
    if (!load->last || load->last->count == BLOCK_PAIRS) {
        struct pair_block *block = memory_new(sizeof *block);
        if (!block)
            return NULL;
        took(load, sizeof *block);
        *(load->last ? &load->last->next : &load->first) = block;
        load->last = block;
    }
    return &load->last->pairs[load->last->count];
}

enum fkv_error load_put(fkv_load *load, const struct key *key, const void *value,
                        size_t value_bytes)
{
    if (load->failed)
        return error_set(FKV_FAILED, "%s: an earlier part of the load could not be written",
                         load->db->path);
    if (value_is_large(key->size, value_bytes))
        return error_set(FKV_VALUE_TOO_LARGE, "a load takes pairs of up to %zu bytes",
                         RECORD_BYTES_MAX - RECORD_HEADER_BYTES);
    uint32_t cells = record_cells(record_bytes(key->size, value_bytes));
    enum fkv_error error;
    struct load_sector *sector = last_sector(load);
    struct pair *pair = pair_new(load);
    if (!pair)
        return FKV_NO_MEMORY;
    /* Not before: nothing can fail now, so no sector stays without a pair. */
    if ((!sector || load->written || sector->end + cells > SECTOR_CELLS) &&
        (error = next_sector(load)))
        return error;
    sector = last_sector(load);
    uint8_t *to = load->buffer + sector->end * CELL_BYTES;
    record_write(to, load->db->seed,
                 record_place(sequence_of(load, load->sector_count - 1), sector->end), RECORD_PLAIN,
                 key->bytes, key->size, value, value_bytes);
    *pair = (struct pair){
        .hash = key->hash,
        .entry = entry_value((uint64_t)sector->sector * SECTOR_CELLS + sector->end, cells, false),
        .checksum = record_header(to).checksum};
    load->last->count++;
    load->pairs++;
    load->bytes += key->size + value_bytes;
    sector->end += cells;
    return FKV_OK;
}

/* ---------------------------------------------------------------- commit: prepare */

static void forget_replaced(struct fkv_load *load)
{
    for (struct replaced *one = load->replaced, *next; one; one = next) {
        next = one->next;
        memory_free(one->parts);
        memory_free(one);
    }
    load->replaced = load->replaced_last = NULL;
}

/* The parts of the value that a pair replaces. Those that come before it in the list are no longer
 * looked for: a key that was put twice is there twice. */
static struct replaced *find_replaced(struct replaced *one, uint64_t address)
{
    while (one && one->address != address)
        one = one->next;
    return one;
}

/* Each pair is somewhere else in the index. */
static void prefetch_ahead(const struct fkv_load *load, const struct pair_block *block, uint32_t i)
{
    enum { DISTANCE = 8 };
    if (i + DISTANCE < block->count)
        index_prefetch(&load->db->index, block->pairs[i + DISTANCE].hash);
}

/* Make sure that what the pair replaces can go without failing. */
static enum fkv_error prepare_pair(struct fkv_load *load, const struct pair *pair)
{
    struct write write = {.hash = pair->hash};
    enum fkv_error error = index_prepare(&load->db->index, pair->hash, INDEX_PLAN, &write.entry);
    if (!error && write.entry)
        error = commit_prepare_kill(load->db, &write);
    if (!error && undo_is_wanted(&load->db->undo))
        error = commit_leave_undo(load->db, write.hash, write.entry, write.old);
    if (error || !write.old) {
        memory_free(write.old);
        return error;
    }
    struct replaced *one = memory_new(sizeof *one);
    if (!one) {
        memory_free(write.old);
        return FKV_NO_MEMORY;
    }
    *one = (struct replaced){NULL, entry_address(write.entry), write.old};
    *(load->replaced ? &load->replaced_last->next : &load->replaced) = one;
    load->replaced_last = one;
    return FKV_OK;
}

static uint64_t log_bytes_for(const struct fkv_load *load)
{
    return sizeof(struct format_frame) + tail_opened_bytes(&load->db->tail) +
           load->sector_count * operation_bytes(sizeof(uint64_t)) +
           load->pairs * operation_bytes(sizeof(uint32_t));
}

/* Pages that may change: for the pairs, and for what goes with the values that they replace. */
static uint64_t changes_of(const struct fkv_load *load)
{
    uint64_t keys = load->pairs, sectors = load->sector_count;
    for (const struct replaced *one = load->replaced; one; one = one->next) {
        keys += one->parts->piece_count;
        sectors += one->parts->sector_count;
    }
    return commit_changes(load->db, keys, sectors);
}

static enum fkv_error prepare(struct fkv_load *load, bool *log_full)
{
    struct fkv *db = load->db;
    enum fkv_error error = FKV_OK;
    *log_full = false;
    for (struct pair_block *block = load->first; block && !error; block = block->next)
        for (uint32_t i = 0; i < block->count && !error; i++) {
            prefetch_ahead(load, block, i);
            error = prepare_pair(load, &block->pairs[i]);
        }
    for (uint32_t i = 0; i < load->sector_count && !error; i++)
        error = sectors_prepare(&db->sectors, load->sectors[i].sector);
    if (error)
        return error;
    uint64_t frames = db->pages.pending_pages + 64; /* each page is copied once at most */
    if ((error = pages_reserve_frames(&db->pages, (uint32_t)frames)) ||
        (error =
             sectors_reserve(&db->sectors, 0, sectors_for_deletes(&db->sectors), changes_of(load))))
        return error;
    return log_reserve(&db->log, log_bytes_for(load), log_full);
}

/* ---------------------------------------------------------------- commit: log and apply */

static enum fkv_error log_load(struct fkv_load *load)
{
    struct fkv *db = load->db;
    uint8_t *to = log_begin(&db->log, false);
    if (db->tail.opened_count)
        to = tail_log_opened(&db->tail, db->tail.opened[db->tail.opened_count - 1], to);
    uint32_t next = 0;
    for (const struct pair_block *block = load->first; block; block = block->next)
        for (uint32_t i = 0; i < block->count; i++) {
            const struct pair *pair = &block->pairs[i];
            uint64_t address = entry_address(pair->entry);
            if (next < load->sector_count && address / SECTOR_CELLS == load->sectors[next].sector) {
                uint64_t sequence = sequence_of(load, next++);
                to = operation_write(to, OPERATION_OPEN, address / SECTOR_CELLS * SECTOR_CELLS,
                                     &sequence, sizeof sequence);
            }
            to = operation_write(to, OPERATION_REFER, address, &pair->checksum,
                                 sizeof pair->checksum);
        }
    enum fkv_error error = store_log(db, to, 0, db->commit + 1);
    if (error)
        return error;
    db->commit++;
    db->commits++;
    return FKV_OK;
}

struct padded {
    struct sectors *sectors;
    uint32_t sector;
};

static void count_pad(void *context, uint32_t cell, uint32_t cells)
{
    const struct padded *padded = context;
    sectors_count_pad(padded->sectors, padded->sector, cell, cells);
}

/* *replaced: where in the list the next value in several pieces is looked for. */
static void apply_pair(struct fkv_load *load, const struct pair *pair, struct replaced **replaced)
{
    struct fkv *db = load->db;
    sectors_count_live(&db->sectors, entry_cells(pair->entry));
    if (db->open_transactions) /* before the pair is seen */
        __atomic_store_n(&db->stripes[pair->hash.lo % STRIPES], db->commit, __ATOMIC_RELEASE);
    uint64_t old = index_set(&db->index, pair->hash, pair->entry);
    SCHEDULE_POINT();
    if (!old) {
        db->keys++;
        return;
    }
    if (old & ENTRY_LARGE)
        *replaced = find_replaced(*replaced, entry_address(old));
    commit_kill(db, old, old & ENTRY_LARGE && *replaced ? (*replaced)->parts : NULL);
}

static void apply(struct fkv_load *load)
{
    struct fkv *db = load->db;
    struct replaced *replaced = load->replaced;
    for (uint32_t i = 0; i < load->sector_count; i++) {
        uint32_t sector = load->sectors[i].sector;
        sectors_open_values(&db->sectors, sector, sequence_of(load, i),
                            sectors_address(&db->sectors, sector));
        db->sectors.changing--;
        for_pads(load->sectors[i].end, count_pad, &(struct padded){&db->sectors, sector});
    }
    for (const struct pair_block *block = load->first; block; block = block->next)
        for (uint32_t i = 0; i < block->count; i++) {
            prefetch_ahead(load, block, i);
            apply_pair(load, &block->pairs[i], &replaced);
        }
    for (uint32_t i = 0; i < load->sector_count; i++)
        sectors_seal(&db->sectors, load->sectors[i].sector);
    db->bytes_put += load->bytes;
}

/* ---------------------------------------------------------------- commit: the whole */

void load_end(struct fkv_load *load)
{
    load->ended = true;
    load->db->opened_bytes -= load->memory_bytes; /* it is soon freed */
    load->db->load = NULL;
}

static enum fkv_error commit(struct fkv_load *load)
{
    struct fkv *db = load->db;
    enum fkv_error error;
    bool log_full;
    commit_wait_for_room(db);
    for (;;) {
        if ((error = store_writable(db)) || (error = commit_has_number(db)) ||
            (error = log_can_hold(&db->log, log_bytes_for(load))))
            break;
        if (db->sectors.next_sequence > load->sequence) {
            error = error_set(FKV_CONFLICT, "%s: too much was written while the load was open",
                              db->path);
            break;
        }
        if (!(error = prepare(load, &log_full)))
            break;
        commit_unprepare(db);
        forget_replaced(load);
        if (error != FKV_FULL || !commit_make_room(db, log_full))
            break;
    }
    commit_end_making_room(db);
    if (error) {
        store_trim(db);
        return error;
    }
    atomic_store(&db->log.data_unsynced, true);
    tail_seal(&db->tail);
    if (!(error = log_load(load)))
        apply(load);
    commit_unprepare(db);
    forget_replaced(load);
    if (error)
        return error;
    load_end(load);
    collect_with_room(db);
    index_spill(&db->index, UINT32_MAX);
    index_trim(&db->index);
    return FKV_OK;
}

enum fkv_error load_commit(fkv_load *load)
{
    struct fkv *db = load->db;
    if (load->failed)
        return error_set(FKV_FAILED, "%s: a part of the load could not be written", db->path);
    enum fkv_error error = write_sector(load);
    if (error)
        return error;
    pthread_mutex_lock(&db->writer);
    uint64_t number = db->commit;
    if (!load->pairs)
        load_abandon(db);
    else if (!(error = commit(load)))
        number = db->commit;
    pthread_mutex_unlock(&db->writer);
    reclaim_wait(&db->reclaim);
    if (error || (error = log_sync(&db->log, number)))
        return error;
    /* It is durable. A recovery would have to read all of it: a checkpoint spares that. */
    pthread_mutex_lock(&db->writer);
    if (load->pairs &&
        db->index.limit.frames_max) { /* all of the index is in memory: it is to go */
        checkpoint_run_for_space(db);
        index_trim_again(&db->index);
    } else if (load->pairs) {
        checkpoint_run(db);
    }
    pthread_mutex_unlock(&db->writer);
    return FKV_OK;
}

/* The writer lock is held, or the store is closing. */
void load_abandon(struct fkv *db)
{
    struct fkv_load *load = db->load;
    for (uint32_t i = 0; i < load->sector_count; i++) {
        sectors_give(&db->sectors, load->sectors[i].sector);
        db->sectors.changing--;
    }
    load_end(load);
}

void load_free(fkv_load *load)
{
    if (!load->ended) {
        struct fkv *db = load->db;
        bool forked = !*db->alive; /* a thread that is not in this process may hold the lock */
        if (forked) {
            load_end(load);
        } else {
            pthread_mutex_lock(&db->writer);
            load_abandon(db);
            pthread_mutex_unlock(&db->writer);
        }
    }
    for (struct pair_block *block = load->first, *next; block; block = next) {
        next = block->next;
        memory_free(block);
    }
    forget_replaced(load);
    memory_free(load->sectors);
    memory_free(load->buffer);
    memory_free(load);
}
