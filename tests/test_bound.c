/*
 * test_bound: garbage is at most G times what is live, and a few sectors (docs/space-bound.md), at
 * every commit, whatever the operations.
 *
 * At each commit the live and the dead cells are counted from the records as they lie in the values
 * sectors and from the deletion maps; the store's own counters are compared with that, and are used
 * for one thing only: a sector of which nothing has changed by them is not counted again until the
 * next full count. Full counts come every so many commits and at the end of each phase.
 *
 * In half of the runs a compaction is under way in the background, most of the time.
 *
 * The adversaries know the store from inside: they kill the record that the collector will reach
 * last, or the one that it has just moved.
 */
#include "support.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store.h"

enum {
    FULL_COUNT_EVERY = 1000,
    KEYS_MAX = 200000,
    LOG_BYTES_MAX = 1 << 20, /* of "full log" */
    SECTORS_COUNTED_MAX = 4096,
};

/* What a values sector holds, as counted. */
struct count {
    uint64_t live, dead, gap, pad; /* cells; gaps are in `dead` too */
    uint64_t records;              /* live ones */
};

/* A values sector as it was when it was last counted. */
struct counted {
    struct count count;
    uint64_t sequence;
    uint32_t dead_cells, pad_cells; /* the store's */
    uint32_t end;                   /* records before this cell are known */
    uint32_t start_count, start_room;
    struct start {
        uint16_t cell, cells;
    } * starts; /* of them, but for padding */
};

struct world {
    struct rng rng;
    fkv *db;
    fkv_options options;
    uint32_t percent;         /* G */
    uint64_t checkpoints;     /* that have begun, before this commit */
    uint64_t checkpoints_max; /* that began between two commits */
    bool compacts;            /* in the background, most of the time */
    uint64_t further;         /* bytes, of those moved, that nobody owed, before this commit */
    bool commits_failed;      /* after they had stored records */
    struct counted *cache;
    uint64_t commits;
    uint32_t keys;      /* numbers of keys that were ever put are below this */
    uint8_t *present;   /* of each */
    uint64_t moved;     /* bytes, by the collector, before this commit */
    uint64_t moved_max; /* in one commit */
    uint64_t died;      /* cells that the collector was charged, before this commit */
    uint64_t debt;      /* cells, before this commit */
    uint64_t debt_max;  /* with a sector to collect */
    int64_t excess_max; /* dead - G live, in cells */
    double share_max;   /* dead / live where live is 8 MiB or more */
    size_t value_bytes;
    uint8_t *value;
};

/* ---------------------------------------------------------------- counting */

/* Where the records of a values sector end: the open one is not full. */
static uint32_t end_of(const struct fkv *db, uint32_t sector)
{
    return db->tail.open && db->tail.sector == sector ? db->tail.cell : SECTOR_CELLS;
}

/* Walk the records that are not yet known: those that lie there never change. */
static void learn_records(const struct fkv *db, uint32_t sector, struct counted *counted)
{
    const uint8_t *base = sector_view(&db->sectors, sector)->base;
    uint32_t end = end_of(db, sector);
    while (counted->end < end) {
        const uint8_t *record = base + (size_t)counted->end * CELL_BYTES;
        uint32_t cells = record_walk(record, end - counted->end);
        assert_true(cells);
        if (record_header(record).kind == RECORD_PAD) {
            assert_true(cells <= RECORD_CELLS_MAX);
            *(pad_is_gap(counted->end, cells) ? &counted->count.gap : &counted->count.pad) += cells;
        } else {
            if (counted->start_count == counted->start_room) {
                counted->start_room = counted->start_room ? counted->start_room * 2 : 512;
                counted->starts =
                    realloc(counted->starts, counted->start_room * sizeof *counted->starts);
            }
            counted->starts[counted->start_count++] =
                (struct start){(uint16_t)counted->end, (uint16_t)cells};
        }
        counted->end += cells;
    }
}

/* Look every record up in the deletion map. */
static void count_records(const struct fkv *db, uint32_t sector, struct counted *counted)
{
    struct count *count = &counted->count;
    count->live = count->records = 0;
    count->dead = count->gap;
    for (uint32_t i = 0; i < counted->start_count; i++) {
        struct start start = counted->starts[i];
        bool dead = sectors_is_dead(&db->sectors, (uint64_t)sector * SECTOR_CELLS + start.cell);
        *(dead ? &count->dead : &count->live) += start.cells;
        count->records += !dead;
    }
}

static const struct count *recount(struct world *world, uint32_t sector, bool full)
{
    struct fkv *db = world->db;
    const struct sector *state = sector_state(&db->sectors, sector);
    assert_true(sector < SECTORS_COUNTED_MAX);
    struct counted *counted = &world->cache[sector];
    uint64_t sequence = sector_view(&db->sectors, sector)->sequence;
    bool fresh = full || counted->sequence != sequence;
    if (!fresh && counted->end == end_of(db, sector) && counted->dead_cells == state->dead_cells &&
        counted->pad_cells == state->pad_cells)
        return &counted->count;
    if (fresh)
        *counted = (struct counted){.end = SECTOR_HEADER_CELLS,
                                    .sequence = sequence,
                                    .starts = counted->starts,
                                    .start_room = counted->start_room};
    assert_ok(sectors_prepare(&db->sectors, sector));
    learn_records(db, sector, counted);
    count_records(db, sector, counted);
    counted->dead_cells = state->dead_cells;
    counted->pad_cells = state->pad_cells;
    assert_int_equal(counted->count.dead, state->dead_cells);
    assert_int_equal(counted->count.pad, state->pad_cells);
    return &counted->count;
}

static struct count count_store(struct world *world, bool full)
{
    const struct fkv *db = world->db;
    struct count sum = {0};
    uint32_t sectors = 0;
    for (uint32_t s = db->sectors.front; s; s = sector_state(&db->sectors, s)->next, sectors++) {
        const struct count *count = recount(world, s, full);
        sum.live += count->live;
        sum.dead += count->dead;
        sum.pad += count->pad;
        sum.records += count->records;
    }
    assert_int_equal(sectors, db->sectors.values_count);
    assert_int_equal(sum.live, db->sectors.live_cells);
    assert_int_equal(sum.dead, db->sectors.dead_cells);
    assert_int_equal(sum.pad, db->sectors.pad_cells);
    assert_int_equal(sum.records, db->index.entries);
    uint32_t used_min = SECTOR_CELLS - SECTOR_HEADER_CELLS - (RECORD_CELLS_MAX - 1);
    assert_true(sectors <= (sum.live + sum.dead) / used_min + 1);
    return sum;
}

/* K of the theorem, in cells. */
static int64_t slack_cells(const struct world *world)
{
    double g = world->percent / 100.0;
    double c = (1 + g) / (double)world->db->collector.steps;
    double s = SECTOR_CELLS - SECTOR_HEADER_CELLS, e = RECORD_CELLS_MAX - 1;
    double gaps = 255.0 * (1 + world->checkpoints_max) + (world->commits_failed ? 2 * s : 0);
    double first = 2 * s + c * (s + e), second = (s + c * e + gaps) / (1 - c);
    return (int64_t)(first > second ? first : second);
}

/* The theorem. What was ever measured is less: half of K. */
static void check_bound(struct world *world, bool full)
{
    struct count count = count_store(world, full);
    int64_t excess = (int64_t)count.dead - (int64_t)(count.live * world->percent / 100);
    if (excess > world->excess_max)
        world->excess_max = excess;
    if (count.live >= 8 * MIB / CELL_BYTES)
        world->share_max = (double)count.dead / (double)count.live > world->share_max
                               ? (double)count.dead / (double)count.live
                               : world->share_max;
    if (excess > slack_cells(world))
        fail_msg("commit %d: %d cells are dead and %d live, with a bound of %u%%",
                 (int)world->commits, (int)count.dead, (int)count.live, world->percent);
}

static uint64_t checkpoints_begun(const struct fkv *db)
{
    return db->checkpoint.over + (db->checkpoint.stage != CHECKPOINT_IDLE);
}

/* The state that the next commit begins with. */
static void remember(struct world *world)
{
    const struct fkv *db = world->db;
    world->moved = db->collector.moved_bytes;
    world->further = db->collector.further_bytes;
    world->died = db->collector.seen_died;
    world->debt = db->collector.debt_cells;
    world->checkpoints = checkpoints_begun(db);
}

/* The work of a commit is bounded: by what died in it, and by what is owed from before, which is
 * less than one record needs unless there was nothing to collect. */
static void check_work(struct world *world)
{
    const struct fkv *db = world->db;
    const struct collector *collector = &db->collector;
    uint64_t further = collector->further_bytes - world->further;
    uint64_t moved = collector->moved_bytes - world->moved - further;
    uint64_t died = collector->seen_died - world->died;
    assert_true(moved <= (world->debt + died * collector->steps) * CELL_BYTES);
    bool idle = !db->sectors.front || (db->tail.open && db->sectors.front == db->tail.sector);
    if (!idle)
        world->debt_max = max_u64(world->debt_max, collector->debt_cells);
    world->moved_max = max_u64(world->moved_max, moved);
    /* What a commit does for a compaction: what it is granted, and a record that was waited for. */
    if (db->flags & FKV_NO_THREAD && world->compacts)
        assert_true(further <= (COMPACTION_STEPS_INSIDE + (uint64_t)RECORD_CELLS_MAX) * CELL_BYTES);
    remember(world);
    assert_true(!collector->debt_cells || (!idle && collector->debt_cells < RECORD_CELLS_MAX));
}

/* To be called after each commit. */
static void committed(struct world *world)
{
    pthread_mutex_lock(&world->db->writer);
    world->checkpoints_max =
        max_u64(world->checkpoints_max, checkpoints_begun(world->db) - world->checkpoints);
    check_work(world);
    check_bound(world, ++world->commits % FULL_COUNT_EVERY == 0);
    bool begin = world->compacts && !world->db->compaction.stage && rng_percent(&world->rng, 2);
    pthread_mutex_unlock(&world->db->writer);
    if (begin)
        assert_ok(fkv_compact_start(world->db, (uint32_t)rng_below(&world->rng, 30)));
}

/* ---------------------------------------------------------------- operations */

/* Syncs take long while this is set: checkpoints do. (Power does not fail here.) */
static _Atomic bool slow_syncs;

static int fake_sync(struct os_file *file)
{
    (void)file;
    if (slow_syncs)
        usleep(20000);
    return 0;
}

static void open_world(struct world *world)
{
    static struct os_ops ops;
    static struct os os = {.ops = &ops};
    ops = *os_posix()->ops;
    ops.sync = fake_sync;
    assert_ok(store_open(&os, support_path("bound"), &world->options, &world->db));
    pthread_mutex_lock(&world->db->writer);
    remember(world);
    check_bound(world, true);
    pthread_mutex_unlock(&world->db->writer);
}

/* Close and open again; or as if the process had been killed. */
static void reopen(struct world *world, bool killed)
{
    if (killed)
        store_fail(world->db, FKV_IO);
    assert_error(fkv_close(world->db), killed ? FKV_FAILED : FKV_OK);
    open_world(world);
}

static void put(struct world *world, uint32_t number, size_t bytes)
{
    assert_true(number < KEYS_MAX && bytes <= world->value_bytes);
    assert_ok(fkv_put(world->db, &number, sizeof number, world->value, bytes));
    world->present[number] = 1;
    if (number >= world->keys)
        world->keys = number + 1;
    committed(world);
}

static void drop(struct world *world, uint32_t number)
{
    assert_error(fkv_delete(world->db, &number, sizeof number),
                 world->present[number] ? FKV_OK : FKV_NOT_FOUND);
    bool was_there = world->present[number];
    world->present[number] = 0;
    if (was_there) /* or it was no commit, and what an opening owes is owed still */
        committed(world);
}

/* Delete some keys, all in one commit. */
static void drop_together(struct world *world, uint32_t first, uint32_t end)
{
    fkv_txn *txn;
    assert_ok(fkv_txn_begin(world->db, &txn));
    for (uint32_t number = first; number < end; number++) {
        assert_ok(fkv_txn_delete(txn, &number, sizeof number));
        world->present[number] = 0;
    }
    assert_ok(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    committed(world);
}

static size_t usual_bytes(struct world *world)
{
    return rng_between(&world->rng, 500, 4000);
}

/* New keys up to so many bytes of values. Returns how many. */
static uint32_t load(struct world *world, uint64_t bytes)
{
    uint32_t first = world->keys;
    while (bytes > 0) {
        size_t value_bytes = usual_bytes(world);
        put(world, world->keys, value_bytes);
        bytes -= min_u64(bytes, value_bytes);
    }
    return world->keys - first;
}

/* The number of the key whose record is the last in the queue (or the first, after the collector's
 * position): there the collector comes last (or next). UINT32_MAX if none is live. */
static uint32_t find_victim(struct world *world, bool last)
{
    struct fkv *db = world->db;
    uint32_t victim = UINT32_MAX;
    pthread_mutex_lock(&db->writer);
    uint32_t sector = last ? db->sectors.back : db->sectors.front;
    while (sector && victim == UINT32_MAX) {
        const uint8_t *base = sector_view(&db->sectors, sector)->base;
        uint32_t end = end_of(db, sector);
        for (uint32_t cell = SECTOR_HEADER_CELLS, cells; cell < end; cell += cells) {
            const uint8_t *record = base + (size_t)cell * CELL_BYTES;
            struct format_record header = record_header(record);
            cells = record_walk(record, end - cell);
            if (header.kind == RECORD_PAD || header.key_bytes != sizeof victim ||
                sectors_is_dead(&db->sectors, (uint64_t)sector * SECTOR_CELLS + cell))
                continue;
            memcpy(&victim, record_key(record), sizeof victim);
            if (!last)
                break;
        }
        const struct sector *state = sector_state(&db->sectors, sector);
        sector = last ? state->previous : state->next;
    }
    pthread_mutex_unlock(&db->writer);
    return victim;
}

/* ---------------------------------------------------------------- adversaries */

enum { LOAD = 9 << 20 };

static void newest_first(struct world *world)
{
    load(world, LOAD);
    for (uint32_t number = world->keys; number-- > 0;)
        drop(world, number);
}

static void oldest_first(struct world *world)
{
    load(world, LOAD);
    for (uint32_t number = 0; number < world->keys; number++)
        drop(world, number);
}

static void random_order(struct world *world)
{
    uint32_t count = load(world, LOAD);
    uint32_t *order = malloc(count * sizeof *order);
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    for (uint32_t i = count; i-- > 0;) {
        uint32_t other = (uint32_t)rng_below(&world->rng, i + 1), number = order[other];
        order[other] = order[i];
        drop(world, number);
    }
    free(order);
}

/* Whatever the collector moves goes to the back, and dies there before all else. */
static void farthest_first(struct world *world)
{
    load(world, LOAD);
    for (uint32_t victim; (victim = find_victim(world, true)) != UINT32_MAX;)
        drop(world, victim);
}

static void nearest_first(struct world *world)
{
    load(world, LOAD);
    for (uint32_t victim; (victim = find_victim(world, false)) != UINT32_MAX;)
        drop(world, victim);
}

/* Until collection is about to begin, dead records are spread so that it has to pass over all; then
 * what it will reach last dies. */
static void spread_then_farthest(struct world *world)
{
    load(world, LOAD);
    const struct sectors *sectors = &world->db->sectors;
    while (sectors->dead_cells * 100 <
           sectors->live_cells * (world->db->collector.begin_percent - 1))
        drop(world, (uint32_t)rng_below(&world->rng, world->keys));
    for (uint32_t victim; (victim = find_victim(world, true)) != UINT32_MAX;)
        drop(world, victim);
}

/* The same with rewrites, which keep the live data and add to what has to be passed. */
static void rewrite_farthest(struct world *world)
{
    uint32_t count = load(world, LOAD);
    for (uint32_t i = 0; i < 2 * count; i++) {
        uint32_t victim = find_victim(world, true);
        if (i % 3)
            put(world, victim, usual_bytes(world));
        else
            drop(world, victim);
        if (rng_percent(&world->rng, 20))
            load(world, 1);
    }
}

/* Values of many sectors lie at the front, and between; what is around them dies. */
static void huge_values(struct world *world)
{
    put(world, 0, 9 * MIB - 5);
    load(world, LOAD / 3);
    uint32_t second = world->keys;
    put(world, second, 2 * MIB + 700 * KIB);
    load(world, LOAD / 3);
    for (uint32_t number = world->keys; number-- > 1;)
        if (number != second)
            drop(world, number);
    for (int i = 0; i < 6; i++) {
        put(world, 0, (rng_below(&world->rng, 9) << 20) + 900 * KIB);
        put(world, second, 600 * KIB);
        load(world, LOAD / 12);
    }
    drop(world, 0);
    for (uint32_t victim; (victim = find_victim(world, true)) != UINT32_MAX;)
        drop(world, victim);
}

static void mixed_sizes(struct world *world)
{
    enum { KEYS = 600 };
    for (int i = 0; i < 6000; i++) {
        uint32_t number = (uint32_t)rng_below(&world->rng, KEYS);
        unsigned kind = (unsigned)rng_below(&world->rng, 1000);
        size_t bytes = rng_below(&world->rng, 2000);
        if (kind < 100)
            bytes = rng_below(&world->rng, 128 * KIB);
        else if (kind < 110)
            bytes = rng_below(&world->rng, 2 * MIB);
        if (rng_percent(&world->rng, i % 2000 < 1000 ? 30 : 55))
            drop(world, number);
        else
            put(world, number, bytes);
    }
}

static void delete_all_at_once(struct world *world)
{
    load(world, LOAD);
    drop_together(world, 0, world->keys);
    uint32_t first = world->keys, count = load(world, LOAD);
    for (uint32_t i = 0; i < count; i += 200)
        drop_together(world, first + i, (uint32_t)min_u64(first + i + 200, world->keys));
}

/* Alone, and beside much that is never touched. */
static void one_key_for_ever(struct world *world)
{
    for (int i = 0; i < 3000; i++)
        put(world, 0, usual_bytes(world));
    load(world, LOAD / 2);
    for (int i = 0; i < 6000; i++)
        put(world, 0, usual_bytes(world));
}

/* The seed's claim failed here: a load leaves credit, half of it dies uncollected, and then the
 * newest die first. */
static void half_dies_then_newest(struct world *world)
{
    uint32_t count = load(world, LOAD);
    for (uint32_t i = 0; i < count / 2; i++)
        drop(world, (uint32_t)rng_below(&world->rng, world->keys));
    load(world, LOAD / 2);
    for (uint32_t number = world->keys; number-- > 0;)
        if (world->present[number])
            drop(world, number);
}

/* Around the point where collection begins and ends: it never gets to finish. */
static void hover(struct world *world)
{
    load(world, LOAD);
    const struct sectors *sectors = &world->db->sectors;
    for (int i = 0; i < 3000; i++) {
        if (sectors->dead_cells * 100 > sectors->live_cells * world->db->collector.begin_percent)
            load(world, 1);
        else
            drop(world, find_victim(world, true));
    }
    for (uint32_t victim; (victim = find_victim(world, true)) != UINT32_MAX;)
        drop(world, victim);
}

/* Records of all but an eighth of a sector: padding everywhere, and few records a sector. */
static void large_records(struct world *world)
{
    for (uint32_t i = 0; i < 150; i++)
        put(world, i, 128 * KIB - 100);
    for (uint32_t i = 0; i < 600; i++)
        put(world, (uint32_t)rng_below(&world->rng, 150), 120 * KIB);
    for (uint32_t victim; (victim = find_victim(world, true)) != UINT32_MAX;)
        drop(world, victim);
}

/* The log has room for deletes, which are short, and none for what the collector has to say; and
 * the checkpoint that will make room takes its time. */
static void full_log(struct world *world)
{
    enum { VALUES = 24, VALUE_BYTES = 1040000, FILLERS = 64, FILL_BYTES = 60000, LEFT = 930 };
    const struct log *log = &world->db->log;
    for (uint32_t i = 0; i < VALUES; i++)
        put(world, i, VALUE_BYTES);
    slow_syncs = true;
    for (uint32_t i = 0; i < VALUES; i += 6) {
        for (uint32_t number = VALUES;; number++) {
            pthread_mutex_lock(&world->db->writer);
            uint64_t end = log->head.offset < log->start ? log->start : log->size + LOG_BYTES_MAX;
            uint64_t room = end - log->head.offset;
            pthread_mutex_unlock(&world->db->writer);
            if (room < LEFT)
                break;
            put(world, number % FILLERS + VALUES,
                room < 3000 ? 1 : min_u64(room * 7 / 8, FILL_BYTES));
        }
        for (uint32_t k = i; k < i + 6; k++)
            drop(world, k);
    }
    slow_syncs = false;
}

static void shrink_by_rewriting(struct world *world)
{
    uint32_t count = load(world, LOAD);
    for (uint32_t number = count; number-- > 0;)
        put(world, number, 10);
    for (uint32_t number = 0; number < count; number++)
        put(world, number, rng_below(&world->rng, 300));
}

/* Each commit in an opening of its own, as a command line does it: the collector begins at the
 * front sector's first cell each time. */
static void reopening(struct world *world)
{
    uint32_t count = load(world, LOAD / 2);
    for (uint32_t i = 0; i < 250; i++) {
        reopen(world, false);
        put(world, i % 3 ? (uint32_t)rng_below(&world->rng, count) : 0, 40 * KIB);
    }
}

/* The same, killed instead of closed; some commits are large, and owe much. */
static void crashes(struct world *world)
{
    load(world, LOAD / 2);
    for (uint32_t i = 0; i < 120; i++) {
        unsigned what = (unsigned)rng_below(&world->rng, 12);
        uint32_t first = (uint32_t)rng_below(&world->rng, world->keys);
        if (what == 0)
            drop_together(world, first, (uint32_t)min_u64(first + 2000, world->keys));
        else if (what == 1)
            load(world, LOAD / 8);
        else if (what < 4)
            assert_ok(fkv_checkpoint(world->db));
        else
            put(world, find_victim(world, true), what < 8 ? 100 * KIB : 10);
        if (rng_percent(&world->rng, 50))
            reopen(world, true);
    }
}

/* Each checkpoint leaves a gap. */
static void checkpoint_each(struct world *world)
{
    for (uint32_t i = 0; i < 4000; i++) {
        put(world, i, 100);
        assert_ok(fkv_checkpoint(world->db));
    }
    for (uint32_t i = 0; i < 2000; i++) {
        drop(world, i);
        assert_ok(fkv_checkpoint(world->db));
    }
}

/* A commit of many records and a large value, which may find no memory. False if it did not. */
static bool put_together(struct world *world, uint32_t first, uint64_t fail_at)
{
    enum { RECORDS = 700 };
    fkv_txn *txn;
    uint64_t died = collector_died(world->db);
    assert_ok(fkv_txn_begin(world->db, &txn));
    for (uint32_t number = first; number < first + RECORDS; number++)
        assert_ok(fkv_txn_put(txn, &number, sizeof number, world->value, usual_bytes(world)));
    uint32_t large = first + RECORDS;
    assert_ok(fkv_txn_put(txn, &large, sizeof large, world->value, MIB + 200 * KIB));
    memory_test_fail(fail_at, false);
    enum fkv_error error = fkv_txn_commit(txn, 0);
    memory_test_fail(0, false);
    fkv_txn_free(txn);
    if (error) {
        assert_error(error, FKV_NO_MEMORY);
        world->commits_failed |= collector_died(world->db) > died;
        return false;
    }
    memset(world->present + first, 1, RECORDS + 1);
    world->keys = (uint32_t)max_u64(world->keys, large + 1);
    committed(world);
    return true;
}

/* Commits fail when nearly all of what they have is stored. */
static void failing_commits(struct world *world)
{
    load(world, LOAD / 4);
    for (uint64_t fail_at = 1; !put_together(world, 100, fail_at); fail_at++)
        for (int again = 0; again < 3; again++)
            put_together(world, 100, fail_at);
    assert_true(world->commits_failed);
    for (uint64_t fail_at = 1; !put_together(world, 100, fail_at); fail_at++)
        put(world, 1, 10);
    for (uint32_t victim; (victim = find_victim(world, true)) != UINT32_MAX;)
        drop(world, victim);
}

static const struct adversary {
    const char *name;
    void (*attack)(struct world *world);
} adversaries[] = {
    {"newest first", newest_first},
    {"oldest first", oldest_first},
    {"random order", random_order},
    {"farthest first", farthest_first},
    {"nearest first", nearest_first},
    {"spread, then farthest", spread_then_farthest},
    {"rewrite the farthest", rewrite_farthest},
    {"huge values", huge_values},
    {"mixed sizes", mixed_sizes},
    {"delete all at once", delete_all_at_once},
    {"one key for ever", one_key_for_ever},
    {"half dies, then newest", half_dies_then_newest},
    {"hover", hover},
    {"large records", large_records},
    {"shrink by rewriting", shrink_by_rewriting},
    {"reopening", reopening},
    {"crashes", crashes},
    {"a checkpoint each", checkpoint_each},
    {"failing commits", failing_commits},
    {"full log", full_log}, /* the last: its log is small, and it needs the threads */
};

/* ---------------------------------------------------------------- the test */

static void make_world(struct world *world, uint64_t seed, uint32_t percent,
                       const struct adversary *adversary)
{
    *world = (struct world){.rng = rng_make(seed), .percent = percent, .value_bytes = 10 * MIB};
    world->cache = calloc(SECTORS_COUNTED_MAX, sizeof *world->cache);
    world->present = calloc(KEYS_MAX, 1);
    world->value = malloc(world->value_bytes);
    rng_fill(&world->rng, world->value, world->value_bytes);
    unlink(support_path("bound"));
    unlink(support_path("bound-wal"));
    fkv_options *options = &world->options;
    fkv_options_init(options);
    options->garbage_percent_max = percent;
    options->flags = rng_percent(&world->rng, 70) ? FKV_NO_THREAD : 0;
    options->log_bytes_max = MIB << rng_below(&world->rng, 5);
    if (adversary->attack == failing_commits)
        options->flags = FKV_NO_THREAD; /* whose requests for memory fail */
    if (adversary->attack == full_log) {
        options->flags = 0;
        options->log_bytes_max = LOG_BYTES_MAX;
    }
    open_world(world);
}

static void drop_world(struct world *world)
{
    pthread_mutex_lock(&world->db->writer);
    check_bound(world, true);
    pthread_mutex_unlock(&world->db->writer);
    assert_ok(fkv_close(world->db));
    for (uint32_t s = 0; s < SECTORS_COUNTED_MAX; s++)
        free(world->cache[s].starts);
    free(world->cache);
    free(world->present);
    free(world->value);
}

static void test_adversaries(void **state)
{
    (void)state;
    const uint32_t percents[] = {100, 50, 25, 10};
    for (struct rounds r = rounds_begin(1); rounds_next(&r);)
        for (size_t a = 0; a < sizeof adversaries / sizeof adversaries[0]; a++)
            for (size_t p = 0; p < 4; p++) {
                if (!support_is_long() && p && p != 1 + a % 3)
                    continue; /* the default, and one of the others */
                if (SANITIZED && !support_is_long() && (p == 0) == (a % 2 == 1))
                    continue; /* of these one */
                struct world world;
                make_world(&world, r.seed, percents[p], &adversaries[a]);
                world.compacts = (a ^ p ^ r.seed) & 1;
                adversaries[a].attack(&world);
                if (getenv("FKV_TEST_VERBOSE"))
                    print_message("%-24s G %3u%s: excess %6.2f sectors, dead / live %.3f, moved "
                                  "%7.1f KiB, debt %7.1f KiB, %d commits\n",
                                  adversaries[a].name, percents[p],
                                  world.compacts ? ", compacts" : "",
                                  (double)world.excess_max / SECTOR_CELLS, world.share_max,
                                  (double)world.moved_max / 1024,
                                  (double)world.debt_max * CELL_BYTES / 1024, (int)world.commits);
                drop_world(&world);
            }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_adversaries)};
    return SUPPORT_RUN(argc, argv, tests);
}
