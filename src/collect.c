#include "fetch.h"
#include "frame.h"
#include "planted.h"

#include <assert.h>

/*
 * The collector keeps dead cells within bounds (docs/space-bound.md has the rule and the theorem).
 * While they exceed the share b of the live ones, each cell that dies pays for r steps at the front
 * of the queue; a step passes one cell, and live records on the way move to the back. Neither
 * credit nor debt is kept from times when there is nothing to collect. A sector whose last live
 * record has moved is free.
 *
 * With the bound at G dead cells per live one, b = 3/8 G and r = (1 + b)(1 + G) / (G - b), rounded
 * up.
 *
 * Steps are owed in cells and records move whole: what is owed is kept until it pays for the record
 * at the front, so an operation moves at most what it owes and one record's part more.
 */

enum { MOVES_AT_ONCE = 32 };

void collector_make(struct collector *collector, uint32_t garbage_percent_max)
{
    uint64_t g = garbage_percent_max;
    uint64_t b = g * 3 / 8;
    *collector = (struct collector){.begin_percent = b,
                                    .steps = divide_up((100 + b) * (100 + g), 100 * (g - b)),
                                    .futile_died = UINT64_MAX};
    collector_forget_life(collector);
}

/* What an earlier life of the store may have owed or have done in vain: less than one record, steps
 * in the front sector, a checkpoint's gap. */
void collector_forget_life(struct collector *collector)
{
    collector->debt_cells = SECTOR_CELLS + RECORD_CELLS_MAX + SECTOR_PAGES * collector->steps;
}

uint64_t collector_died(const struct fkv *db)
{
    return db->died_cells + db->sectors.gap_cells;
}

uint64_t collector_owes(const struct fkv *db)
{
    const struct collector *collector = &db->collector;
    return collector->debt_cells + (collector_died(db) - collector->seen_died) * collector->steps;
}

struct move {
    uint64_t from;
    uint64_t to;
    struct hash128 hash;
    const uint8_t *record;
    uint32_t cells;
    uint64_t debt; /* before it was paid for */
};

/* A sector that cannot be read as a sequence of records is left alone, at the back. */
static void set_aside(struct fkv *db, uint32_t sector)
{
    struct sectors *sectors = &db->sectors;
    struct sector *state = sector_state(sectors, sector);
    if (!state->next)
        return;
    sectors->front = state->next;
    sector_state(sectors, state->next)->previous = 0;
    state->next = 0;
    state->previous = sectors->back;
    sector_state(sectors, sectors->back)->next = sector;
    sectors->back = sector;
}

/* Is there nothing in the queue but the open sector? */
static bool front_is_open(const struct fkv *db)
{
    uint32_t front = db->sectors.front;
    return !front || (db->tail.open && front == db->tail.sector);
}

/* Go to the front of the queue; false if nothing is there to be collected. */
static bool find_front(struct fkv *db)
{
    struct collector *collector = &db->collector;
    uint32_t front = db->sectors.front;
    if (front_is_open(db))
        return false;
    uint64_t sequence = sector_view(&db->sectors, front)->sequence;
    if (sequence != collector->sequence || collector->cell >= SECTOR_CELLS) {
        if (sequence == collector->sequence) { /* its end, and it was not freed */
            set_aside(db, front);
            collector->sequence = 0;
            return false;
        }
        collector->sequence = sequence;
        collector->cell = SECTOR_HEADER_CELLS;
        const uint8_t *base = sector_base(&db->sectors, front);
        struct sector *state = sector_state(&db->sectors, front);
        if (base && base == sectors_mapped(&db->sectors, front) && !state->populated) {
            db->sectors.ops->populate(db->file, (void *)base, SECTOR_BYTES, false);
            state->populated = true;
        }
    }
    return true;
}

/* The walk from record to record is a chain of cache misses, unless what comes is fetched early. */
static inline void prefetch_ahead(const uint8_t *record, const uint8_t *end)
{
    enum { DISTANCE = 3072, SPAN = 576, CACHE_LINE = 64 };
    const uint8_t *from = record + DISTANCE;
    if (from + SPAN < end)
        for (size_t at = 0; at < SPAN; at += CACHE_LINE)
            __builtin_prefetch(from + at);
}

/* Pass dead records, and list live ones that the debt pays for. */
static uint32_t list_moves(struct fkv *db, struct move *moves, uint32_t most)
{
    struct collector *collector = &db->collector;
    uint32_t sector = db->sectors.front;
    uint32_t count = 0;
    const uint8_t *base;
    if (sectors_prepare(&db->sectors, sector))
        return 0;
    enum fkv_error error = fetch_sector(db, sector, &collector->room, &base);
    if (error) {
        if (error != FKV_NO_MEMORY) { /* its records can still be read one by one, for the most */
            set_aside(db, sector);
            collector->sequence = 0;
        }
        return 0;
    }
    while (collector->cell < SECTOR_CELLS && count < most) {
        const uint8_t *record = base + collector->cell * CELL_BYTES;
        uint32_t cells = record_walk(record, SECTOR_CELLS - collector->cell);
        uint64_t address = (uint64_t)sector * SECTOR_CELLS + collector->cell;
        prefetch_ahead(record, base + SECTOR_BYTES);
        if (!cells) {
            set_aside(db, sector);
            collector->sequence = 0;
            break;
        }
        bool pad = record_header(record).kind == RECORD_PAD;
        bool costs = !pad || pad_is_gap(collector->cell, cells);
        if (costs && cells > collector->debt_cells)
            break;
        if (PLANTED(LIVE_AS_DEAD) && !pad && !sectors_is_dead(&db->sectors, address) &&
            collector->cell % 16 == 0)
            sectors_kill(&db->sectors, address, cells);
        if (!pad && !sectors_is_dead(&db->sectors, address)) {
            moves[count] = (struct move){.from = address,
                                         .hash = record_hash(&db->hash_seeds, record),
                                         .record = record,
                                         .cells = cells,
                                         .debt = collector->debt_cells};
            index_prefetch(&db->index, moves[count].hash);
            count++;
        }
        collector->debt_cells -= costs ? cells : 0;
        collector->cell += cells;
    }
    return count;
}

/* Copy one record to the tail; so many others were before, in this step. */
static enum fkv_error copy(struct fkv *db, struct move *move, uint32_t others, bool may_wait)
{
    uint64_t entry;
    uint64_t sequence = sector_view(&db->sectors, (uint32_t)(move->from / SECTOR_CELLS))->sequence;
    uint32_t place = record_place(sequence, move->from % SECTOR_CELLS);
    /* One that is damaged may seem to be of a key that the index has not, or of another length. If
     * it waited, nobody would see that. */
    bool waits =
        may_wait && record_verify(move->record, (size_t)move->cells * CELL_BYTES, db->seed, place);
    enum fkv_error error = index_prepare_move(&db->index, move->hash, others, &entry, &waits);
    if (error)
        return error;
    if (!waits && (entry_address(entry) != move->from || entry_cells(entry) != move->cells))
        return error_set(FKV_DAMAGED, "%s: the index does not lead to a live record", db->path);
    if ((error = tail_prepare(&db->tail, move->cells, RESERVE_NONE)))
        return error;
    uint8_t *to = tail_append(&db->tail, move->cells, &move->to);
    record_copy(to, move->record, move->cells * CELL_BYTES,
                place ^ record_place(db->tail.sequence, move->to % SECTOR_CELLS));
    db->collector.moved_bytes += move->cells * CELL_BYTES;
    return FKV_OK;
}

static uint64_t log_bytes_for(const struct fkv *db, uint32_t moves)
{
    uint64_t opens = 6; /* 32 records of 128 KiB */
    return sizeof(struct format_frame) + tail_opened_bytes(&db->tail) +
           (opens + moves) * operation_bytes(sizeof(uint64_t));
}

static enum fkv_error log_moves(struct fkv *db, const struct move *moves, uint32_t count)
{
    uint8_t *to = log_begin(&db->log, false);
    for (uint32_t i = 0; i < count; i++) {
        to = tail_log_opened(&db->tail, (uint32_t)(moves[i].to / SECTOR_CELLS), to);
        to = operation_write(to, OPERATION_MOVE, moves[i].to, &moves[i].from, sizeof moves[i].from);
    }
    return store_log(db, to, FRAME_COLLECT, 0);
}

/* So many sectors may have to be opened for the records: each is full but for less than one. */
static uint32_t sectors_for(const struct move *moves, uint32_t count)
{
    uint32_t cells = 0;
    for (uint32_t i = 0; i < count; i++)
        cells += moves[i].cells;
    return cells / (SECTOR_CELLS - SECTOR_HEADER_CELLS - RECORD_CELLS_MAX) + 1;
}

/* Do some of what is owed; false if no more can be done now. */
static bool step(struct fkv *db)
{
    struct move moves[MOVES_AT_ONCE];
    if (!find_front(db))
        return false;
    if (pages_reserve_frames(&db->pages, 4 * MOVES_AT_ONCE) ||
        sectors_reserve(&db->sectors, 0, 0, 0) ||
        log_reserve(&db->log, log_bytes_for(db, MOVES_AT_ONCE), &db->collector.log_full))
        return false;
    struct collector *collector = &db->collector;
    struct collector before = *collector;
    uint32_t front = db->sectors.front;
    uint32_t count = list_moves(db, moves, MOVES_AT_ONCE);
    if (!count)
        return collector->cell != before.cell || collector->sequence != before.sequence;
    /* All pages that a move may wait for count as changed, and need room in the file, beside the
     * sectors that the records go to. */
    bool may_wait =
        db->index.limit.frames_max &&
        !sectors_reserve(&db->sectors, sectors_for(moves, count), 0, count * SEGMENT_PAGES_MAX);
    uint32_t done = 0;
    enum fkv_error error = FKV_OK;
    while (done < count && !(error = copy(db, &moves[done], done, may_wait)))
        done++;
    if (done) {
        if (log_moves(db, moves, done)) {
            for (uint32_t i = 0; i < done; i++)
                sectors_kill(&db->sectors, moves[i].to, moves[i].cells);
            return false;
        }
        for (uint32_t i = 0; i < done; i++) {
            bool moved = index_make_move(&db->index, moves[i].hash, moves[i].from, moves[i].to);
            assert(moved);
            (void)moved;
            sectors_kill(&db->sectors, moves[i].from, moves[i].cells);
        }
    }
    bool unclear = error == FKV_DAMAGED || error == FKV_IO;
    if (unclear) { /* some records of the sector are to stay: to move the others would be in vain */
        if (db->sectors.front == front)
            set_aside(db, front);
        collector->sequence = 0;
    } else if (error) { /* the rest comes another time */
        collector->cell = moves[done].from % SECTOR_CELLS;
        collector->debt_cells = moves[done].debt;
    }
    return !error || unclear;
}

static bool exceeds(const struct fkv *db, uint64_t percent)
{
    return db->sectors.dead_cells * 100 > db->sectors.live_cells * percent;
}

/* Do what is owed while dead cells exceed this share of live ones. */
static void take_steps(struct fkv *db, uint64_t percent)
{
    const struct collector *collector = &db->collector;
    /* What is listed to be moved may lie in a buffer that is written meanwhile: keep it. */
    rcu_read_lock();
    while (collector->debt_cells && exceeds(db, percent)) {
        uint64_t before = collector->debt_cells;
        if (!step(db) || collector->debt_cells == before)
            break;
    }
    rcu_read_unlock();
    pages_reserve_frames(&db->pages, 0);
}

static bool is_needed(const struct fkv *db)
{
    return exceeds(db, db->collector.begin_percent) && !front_is_open(db) &&
           !PLANTED(NO_COLLECTION);
}

void collect(struct fkv *db)
{
    struct collector *collector = &db->collector;
    collector->debt_cells = collector_owes(db);
    collector->seen_died = collector_died(db);
    collector->log_full = false;
    if (is_needed(db))
        take_steps(db, collector->begin_percent);
    if (!is_needed(db))
        collector->debt_cells = 0;
}

bool collect_is_left(const struct fkv *db, uint32_t garbage_percent)
{
    return exceeds(db, garbage_percent) && !front_is_open(db);
}

uint64_t collect_further(struct fkv *db, uint64_t steps, uint32_t garbage_percent)
{
    struct collector *collector = &db->collector;
    uint64_t owed = collector->debt_cells;
    uint64_t moved = collector->moved_bytes;
    collector->debt_cells = steps;
    collector->log_full = false;
    take_steps(db, garbage_percent);
    steps -= collector->debt_cells;
    collector->debt_cells = is_needed(db) ? owed : 0; /* as at the end of collect */
    collector->further_bytes += collector->moved_bytes - moved;
    return steps;
}

/* Is there a sector more that all is dead in? */
static bool is_freed(const struct fkv *db, uint32_t freed)
{
    return db->sectors.freed.count > freed;
}

/* Not more than one if less than a sector is dead: the next ones would be moved for nothing. */
static void collect_some_sectors(struct fkv *db)
{
    enum { WANTED = 4 };
    uint32_t freed = db->sectors.freed.count;
    uint32_t wanted = db->sectors.dead_cells < SECTOR_CELLS ? 1 : WANTED;
    for (uint32_t passed = 0; passed <= db->sectors.values_count; passed++)
        if (is_freed(db, freed + wanted - 1) || !collect_further(db, SECTOR_CELLS, 0))
            break;
}

/* Some room can be had for moving no more than eight cells for each. */
static bool is_cheap(const struct sectors *sectors)
{
    enum { MOVED_FOR_ONE = 8 };
    return sectors->dead_cells >= RECORD_CELLS_MAX &&
           sectors->dead_cells * MOVED_FOR_ONE >= sectors->live_cells;
}

/* The open sector is not collected before it is full, whatever dies in it; and what is to be put
 * may be too long for the rest of it. So it is closed if it is worth it: what is alive moves to
 * another. */
static bool close_open(struct fkv *db)
{
    const struct sectors *sectors = &db->sectors;
    const struct tail *tail = &db->tail;
    if (!tail->open || sector_state(sectors, tail->sector)->dead_cells < RECORD_CELLS_MAX)
        return false;
    if (!sectors_all_dead(sectors, tail->sector, tail->cell) &&
        !(is_cheap(sectors) && sectors->free_backed_count))
        return false;
    tail_seal(&db->tail);
    return true;
}

bool collect_for_room(struct fkv *db)
{
    struct collector *collector = &db->collector;
    if (collector->futile_died == db->died_cells)
        return false;
    uint64_t moved = collector->moved_bytes;
    uint32_t freed = db->sectors.freed.count;
    if (db->sectors.dead_cells >= SECTOR_CELLS || is_cheap(&db->sectors))
        collect_some_sectors(db);
    if (!is_freed(db, freed) && close_open(db))
        collect_some_sectors(db);
    return collector->moved_bytes > moved || is_freed(db, freed);
}
