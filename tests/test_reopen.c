/*
 * test_reopen: what the models (models/) found in openings after a sync that failed, or a loss of
 * power: each as it happens, on the simulated disk, with many lotteries; and with the bug planted
 * it must show. And what was found since.
 */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "frame.h"
#include "index_search.h"
#include "os_sim.h"
#include "planted.h"
#include "store.h"

#define NAME "store"
enum { RECORDS = 20 };

static enum fkv_error open_with(struct os_sim *sim, uint64_t log_bytes_max,
                                uint64_t index_memory_max, fkv **db)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    options.log_bytes_max = log_bytes_max;
    options.index_memory_max = index_memory_max;
    return store_open(os_sim_os(sim), NAME, &options, db);
}

static enum fkv_error open_on(struct os_sim *sim, fkv **db)
{
    return open_with(sim, 2 * MIB, 0, db);
}

static struct os_sim *disk_with_store(uint64_t seed, fkv **db)
{
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){.seed = seed});
    assert_ok(open_on(sim, db));
    assert_ok(fkv_put_with(*db, "first", 5, "1", 1, FKV_SYNC));
    return sim;
}

static bool has(fkv *db, const char *key)
{
    return fkv_value_size(db, key, strlen(key), &(size_t){0}) == FKV_OK;
}

/* A commit of several records, which the log only refers to. */
static enum fkv_error put_batch(fkv *db, unsigned flags)
{
    char key[24], value[200];
    fkv_txn *txn;
    assert_ok(fkv_txn_begin(db, &txn));
    for (int i = 0; i < RECORDS; i++) {
        memset(value, 'a' + i, sizeof value);
        int length = snprintf(key, sizeof key, "batch%d", i);
        assert_ok(fkv_txn_put(txn, key, (size_t)length, value, sizeof value));
    }
    enum fkv_error error = fkv_txn_commit(txn, flags);
    fkv_txn_free(txn);
    return error;
}

static bool has_batch(fkv *db)
{
    char key[24];
    int found = 0;
    for (int i = 0; i < RECORDS; i++) {
        snprintf(key, sizeof key, "batch%d", i);
        found += has(db, key);
    }
    return found == RECORDS;
}

static void crash(struct os_sim *sim, fkv *db, uint64_t seed)
{
    os_sim_crash(sim, seed);
    fkv_close(db);
}

/* Opens a disk that has been through a crash: is all there that must be? */
static bool holds(struct os_sim *sim, bool batch, const char *key)
{
    fkv *db;
    if (open_on(sim, &db))
        return false;
    bool good = has(db, "first") && (!batch || has_batch(db)) && (!key || has(db, key));
    fkv_close(db);
    return good;
}

/*
 * The sync of the records fails: the system takes them for clean. The process dies. The next one
 * has the commit, out of the cache, and syncs one of its own, and so this one too.
 */
static bool referred_survive(uint64_t seed)
{
    fkv *db;
    struct os_sim *sim = disk_with_store(seed, &db);
    os_sim_fail(sim, &(struct os_sim_fault){
                         .kinds = OS_SIM_SYNC, .nth = 1, .error = -EIO, .name_end = NAME});
    assert_error(put_batch(db, FKV_SYNC), FKV_IO);
    os_sim_kill(sim, seed);
    fkv_close(db);
    assert_ok(open_on(sim, &db));
    assert_true(has_batch(db));
    assert_ok(fkv_put_with(db, "second", 6, "2", 1, FKV_SYNC));
    crash(sim, db, seed);
    bool good = holds(sim, true, "second");
    os_sim_free(sim);
    return good;
}

/* The sync of a copy of the header fails. The process dies, and the power fails while the next one
 * opens the store, in the n-th call. */
static bool header_survives(uint64_t seed)
{
    fkv *db;
    struct os_sim *sim = disk_with_store(seed, &db);
    os_sim_fail(sim,
                &(struct os_sim_fault){
                    .kinds = OS_SIM_SYNC, .nth = 2 + seed % 2, .error = -EIO, .name_end = NAME});
    assert_true(fkv_checkpoint(db) != FKV_OK);
    os_sim_kill(sim, seed);
    fkv_close(db);
    os_sim_crash_after(sim, OS_SIM_WRITE | OS_SIM_SYNC, seed / 2 % 4);
    if (open_on(sim, &db) == FKV_OK)
        crash(sim, db, seed);
    else
        os_sim_crash(sim, seed);
    bool good = holds(sim, false, NULL);
    os_sim_free(sim);
    return good;
}

/*
 * The power fails. If the log has landed and the records that it refers to have not, two commits
 * are gone. One of them is made again. The power fails again: the other must not be there.
 */
static bool undone_stay_undone(uint64_t seed)
{
    fkv *db;
    struct os_sim *sim = disk_with_store(seed, &db);
    assert_ok(put_batch(db, 0));
    assert_ok(fkv_put(db, "undone", 6, "3", 1));
    crash(sim, db, seed);
    bool good = true;
    for (uint64_t i = 0; good && i < 64; i++) {
        struct os_sim *copy = os_sim_copy(sim);
        assert_ok(open_on(copy, &db));
        bool gone = !has(db, "undone");
        if (gone && !has_batch(db)) {
            assert_ok(put_batch(db, 0));
            assert_ok(fkv_put(db, "other", 5, "4", 1));
        }
        crash(copy, db, i);
        assert_ok(open_on(copy, &db));
        good = !gone || !has(db, "undone");
        crash(copy, db, i);
        os_sim_free(copy);
        if (!gone)
            break;
    }
    os_sim_free(sim);
    return good;
}

/*
 * The log goes back to its front, and the power fails: the mark that says so is lost, and the
 * commits at the front have landed, and are undone. The next opening writes the very same mark, and
 * its own first frame over theirs. The power fails again: they must not be there.
 */
static bool undone_at_the_front_stay_undone(uint64_t seed)
{
    enum { MARK_BYTES = sizeof(struct format_frame), FRAME_BYTES = 72, LEFT_BYTES = 136 };
    fkv *db;
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){.seed = seed});
    assert_ok(open_with(sim, MIB, 0, &db));
    while (db->log.head.offset < MIB / 8 * 5)
        assert_ok(fkv_put(db, "a", 1, "1", 1));
    assert_ok(fkv_checkpoint(db));
    for (uint64_t left; (left = db->log.size - db->log.head.offset) > LEFT_BYTES;)
        assert_ok(fkv_put(db, "a", 1, "a longer one", (left - LEFT_BYTES) % FRAME_BYTES ? 9 : 1));
    os_sim_kill(sim, seed);
    fkv_close(db);
    /* Its first frame leaves no room for another one like it. */
    assert_ok(open_with(sim, MIB, 0, &db));
    uint64_t end = db->log.head.offset;
    assert_ok(fkv_put(db, "first", 5, "1", 1));
    assert_ok(fkv_put(db, "undone", 6, "3", 1));
    assert_true(db->log.head.offset < end);
    os_sim_kill(sim, seed);
    fkv_close(db);
    os_sim_settle(sim);
    assert_int_equal(os_sim_zero(sim, NAME "-wal", end, MARK_BYTES), 0);
    assert_ok(open_with(sim, MIB, 0, &db));
    assert_false(has(db, "first") || has(db, "undone"));
    assert_true(db->log.head.offset < end);
    crash(sim, db, seed);
    assert_ok(open_with(sim, MIB, 0, &db));
    bool good = !has(db, "first") && !has(db, "undone");
    crash(sim, db, seed);
    os_sim_free(sim);
    return good;
}

/* The first sync of a new log fails, and with it the creation of the store. The next opening finds
 * the log whole, in the cache. */
static bool new_log_survives(uint64_t seed)
{
    fkv *db;
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){.seed = seed});
    os_sim_fail(sim, &(struct os_sim_fault){
                         .kinds = OS_SIM_SYNC, .nth = 1, .error = -EIO, .name_end = NAME "-wal"});
    assert_error(open_on(sim, &db), FKV_IO);
    assert_int_equal(os_sim_failed(sim), 1);
    assert_ok(open_on(sim, &db));
    assert_ok(fkv_put_with(db, "first", 5, "1", 1, FKV_SYNC));
    crash(sim, db, seed);
    bool good = holds(sim, false, NULL);
    os_sim_free(sim);
    return good;
}

/* A process dies while it creates the store, at its `first`-th call that changes the disk: with one
 * copy of the header written, say, and nothing synced. The next one finds that copy in the cache,
 * and is not to take it for durable; the power fails at its `second`-th call. True if both came to
 * that call. */
static bool creation_is_cut_off(uint64_t first, uint64_t second, uint64_t seed)
{
    fkv *db;
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){.seed = seed});
    const uint64_t calls[] = {first, second};
    bool died[2];
    for (int i = 0; i < 2; i++) {
        os_sim_crash_after(sim, OS_SIM_CHANGES, calls[i]);
        bool opened = open_on(sim, &db) == FKV_OK;
        died[i] = os_sim_crashed(sim);
        if (i == 0)
            os_sim_kill(sim, seed);
        else
            os_sim_crash(sim, seed);
        if (opened)
            fkv_close(db);
    }
    if (open_on(sim, &db))
        fail_msg("call %llu, then %llu, lottery %llu: %s", (unsigned long long)first,
                 (unsigned long long)second, (unsigned long long)seed, error_last());
    assert_ok(fkv_put_with(db, "first", 5, "1", 1, FKV_SYNC));
    crash(sim, db, seed);
    assert_true(holds(sim, false, NULL));
    os_sim_free(sim);
    return died[0] && died[1];
}

/* All lotteries end well; and, with the bug, one of them does not. */
static void check(bool (*survives)(uint64_t seed), enum planted bug, uint64_t lotteries)
{
    lotteries = SANITIZED ? divide_up(lotteries, 4) : lotteries;
    commit_refer_bytes = 1024;
    for (uint64_t seed = 0; seed < lotteries; seed++)
        if (!survives(seed))
            fail_msg("lottery %llu", (unsigned long long)seed);
    if (SANITIZED) { /* fewer lotteries need not find it */
        commit_refer_bytes = 4 * MIB;
        return;
    }
    planted_bug = bug;
    uint64_t seed = 0;
    while (seed < lotteries && survives(seed))
        seed++;
    planted_bug = PLANTED_NOTHING;
    commit_refer_bytes = 4 * MIB;
    assert_true(seed < lotteries);
    print_message("with the bug, the first that fails is %llu\n", (unsigned long long)seed);
}

static void test_referred(void **state)
{
    (void)state;
    check(referred_survive, PLANTED_REFER_NOT_AGAIN, 20);
}

static void test_header(void **state)
{
    (void)state;
    check(header_survives, PLANTED_OTHER_COPY_FIRST, 300);
}

static void test_undone(void **state)
{
    (void)state;
    check(undone_stay_undone, PLANTED_RESTART_UNSYNCED, 20);
}

static void test_undone_at_the_front(void **state)
{
    (void)state;
    check(undone_at_the_front_stay_undone, PLANTED_WRAP_UNSYNCED, 50);
}

static void test_new_log(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++)
        if (!new_log_survives(seed))
            fail_msg("lottery %llu", (unsigned long long)seed);
}

static void test_creation(void **state)
{
    (void)state;
    enum { CALLS = 26, STEP = SANITIZED ? 4 : 1 }; /* that a creation has, one more than that */
    uint64_t points = 0;
    for (uint64_t first = 0; first < CALLS; first++)
        for (uint64_t second = first % STEP; second < CALLS; second += STEP)
            points += creation_is_cut_off(first, second, first * CALLS + second);
    print_message("cut off %llu times\n", (unsigned long long)points);
    assert_true(points > CALLS * CALLS / 2 / STEP);
}

/*
 * The process dies in the sync of a checkpoint's first header. The next opening replays what came
 * since, and, with a limited index, spills pages: the power fails in it, and the header was not
 * durable.
 */
enum { SPILL_KEYS = 20000 };

static enum fkv_error open_limited(struct os_sim *sim, fkv **db)
{
    return open_with(sim, MIB, 32768, db);
}

static enum fkv_error put_versions(fkv *db, uint32_t from, uint32_t count, uint32_t version)
{
    fkv_txn *txn;
    assert_ok(fkv_txn_begin(db, &txn));
    for (uint32_t key = from; key < from + count; key++)
        assert_ok(fkv_txn_put(txn, &key, sizeof key, &version, sizeof version));
    enum fkv_error error = fkv_txn_commit(txn, FKV_SYNC);
    fkv_txn_free(txn);
    return error;
}

static bool spilled_over_an_older_one(uint64_t seed)
{
    enum { BATCH = 20 };
    fkv *db;
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){.seed = seed});
    assert_ok(open_limited(sim, &db));
    for (uint32_t key = 0; key < SPILL_KEYS; key += 500)
        assert_ok(put_versions(db, key, 500, 1));
    assert_ok(fkv_checkpoint(db));
    assert_ok(fkv_checkpoint(db));
    uint64_t done = db->checkpoint.done;
    uint32_t changed = 0;
    enum fkv_error error = FKV_OK;
    while (db->checkpoint.done == done && !error) {
        if (db->checkpoint.stage == CHECKPOINT_HEADER)
            os_sim_crash_after(sim, OS_SIM_SYNC, 0);
        if (!(error = put_versions(db, changed, BATCH, 2)))
            changed += BATCH;
    }
    assert_true(os_sim_crashed(sim) && changed < SPILL_KEYS);
    os_sim_kill(sim, seed);
    fkv_close(db);
    os_sim_crash_after(sim, OS_SIM_WRITE | OS_SIM_SYNC, seed % 64);
    bool opened = open_limited(sim, &db) == FKV_OK;
    os_sim_crash(sim, seed);
    if (opened)
        fkv_close(db);
    bool good = open_limited(sim, &db) == FKV_OK;
    if (!good)
        db = NULL;
    for (uint32_t key = 0; good && key < SPILL_KEYS; key++) {
        uint32_t version = 0;
        good = fkv_get(db, &key, sizeof key, &version, sizeof version, NULL) == FKV_OK &&
               (version == (key < changed ? 2 : 1) || (key >= changed && key < changed + BATCH));
    }
    if (db)
        fkv_close(db);
    os_sim_free(sim);
    return good;
}

static void test_spilled_over_an_older_one(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < (SANITIZED ? 6 : 24); seed++)
        assert_true(spilled_over_an_older_one(seed));
}

/* The log of a process that died has more than there are buffers for sectors, where little memory
 * may be used. Opened read-only it is all kept in memory, and nothing is written. */
static void test_read_only(void **state)
{
    (void)state;
    enum { KEYS = 200, VALUE_BYTES = 100000 };
    static uint8_t value[VALUE_BYTES];
    fkv *db;
    fkv_options options;
    fkv_check_result result;
    fkv_options_init(&options);
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){.memory_bytes = 64 * MIB});
    assert_ok(open_with(sim, 64 * MIB, 0, &db));
    for (uint32_t key = 0; key < KEYS; key++)
        assert_ok(fkv_put(db, &key, sizeof key, value, sizeof value));
    os_sim_kill(sim, 1);
    fkv_close(db);
    uint64_t changes = os_sim_calls(sim, OS_SIM_WRITE | OS_SIM_TRUNCATE | OS_SIM_ALLOCATE);
    options.flags = FKV_OPEN_READ_ONLY;
    assert_ok(store_open(os_sim_os(sim), NAME, &options, &db));
    for (uint32_t key = 0; key < KEYS; key++)
        assert_ok(fkv_get(db, &key, sizeof key, value, sizeof value, &(size_t){0}));
    assert_ok(fkv_check(db, NULL, &result, sizeof result));
    assert_int_equal(result.problems, 0);
    assert_ok(fkv_close(db));
    assert_int_equal(os_sim_calls(sim, OS_SIM_WRITE | OS_SIM_TRUNCATE | OS_SIM_ALLOCATE), changes);
    os_sim_free(sim);
}

/* A loss of power undoes the growth of a log that was never synced, and the next opening allows it
 * less than where it has to go on. */
static void test_shorter_log(void **state)
{
    (void)state;
    enum { KEYS = 1000, VALUE_BYTES = 100000 };
    static uint8_t value[VALUE_BYTES];
    fkv *db;
    struct os_sim *sim = os_sim_new(NULL);
    assert_ok(open_with(sim, 256 * MIB, 0, &db));
    for (uint32_t key = 0; key < KEYS; key++)
        assert_ok(fkv_put(db, &key, sizeof key, value, sizeof value));
    assert_ok(fkv_checkpoint(db));
    assert_true(db->header.log_offset > 66 * MIB);
    os_sim_kill(sim, 1);
    fkv_close(db);
    os_sim_settle(sim);
    assert_int_equal(os_sim_resize(sim, NAME "-wal", MIB), 0);
    assert_ok(open_with(sim, MIB, 0, &db));
    for (uint32_t key = 0; key < KEYS; key += 2)
        assert_ok(fkv_put(db, &key, sizeof key, value, sizeof value));
    for (uint32_t key = 0; key < KEYS; key += 4)
        assert_ok(fkv_delete(db, &key, sizeof key));
    os_sim_kill(sim, 2);
    fkv_close(db);
    assert_ok(open_with(sim, MIB, 0, &db));
    for (uint32_t key = 0; key < KEYS; key++)
        assert_error(fkv_exists(db, &key, sizeof key), key % 4 ? FKV_OK : FKV_NOT_FOUND);
    assert_ok(fkv_close(db));
    os_sim_free(sim);
}

/* A program that copied the store has left out of the log what was zeros. On a full disk that is
 * an error, and nothing is stored where there is no space. */
static void test_log_with_holes(void **state)
{
    (void)state;
    fkv *db;
    struct os_file *file;
    struct os_sim *sim = disk_with_store(1, &db);
    struct os *os = os_sim_os(sim);
    assert_ok(fkv_close(db));
    assert_int_equal(os->ops->open(os, NAME "-wal", 0, &file), 0);
    assert_int_equal(os->ops->punch(file, PAGE_BYTES, MIB - PAGE_BYTES), 0);
    os->ops->close(file);
    os_sim_set_capacity(sim, os_sim_used(sim) + MIB / 2);
    assert_error(open_on(sim, &db), FKV_FULL);
    os_sim_set_capacity(sim, 0);
    assert_ok(open_on(sim, &db));
    assert_true(has(db, "first"));
    assert_ok(fkv_close(db));
    /* To ask for space may fail where all of it is there. */
    os_sim_fail(sim, &(struct os_sim_fault){.kinds = OS_SIM_ALLOCATE,
                                            .nth = 1,
                                            .error = -ENOSPC,
                                            .forever = true,
                                            .name_end = "-wal"});
    assert_ok(open_on(sim, &db));
    assert_ok(fkv_delete(db, "first", 5));
    assert_ok(fkv_close(db));
    assert_int_equal(os_sim_hole_stores(sim), 0);
    os_sim_free(sim);
}

/* The log's last frame, whole, puts what is no record: a pad, with a key that would reach beyond
 * the file. */
static void test_pad_in_the_log(void **state)
{
    (void)state;
    enum { FRAME_BYTES = 40 + 16 + 16 };
    fkv *db;
    struct os_sim *sim = disk_with_store(1, &db);
    while (db->log.size - db->log.head.offset > 3 * FRAME_BYTES)
        assert_ok(fkv_put(db, "a", 1, "b", 1));
    uint32_t cell = db->tail.cell;
    struct format_record header = {.kind = RECORD_PAD, .key_bytes = 65535, .value_bytes = 1};
    uint8_t record[CELL_BYTES] = {0};
    memcpy(record, &header, sizeof header);
    header.checksum =
        record_checksum(record, sizeof header, db->seed) ^ record_place(db->tail.sequence, cell);
    bool full;
    assert_ok(log_reserve(&db->log, FRAME_BYTES, &full));
    uint8_t *to = log_begin(&db->log, false);
    to = operation_write(to, OPERATION_PUT, (uint64_t)db->tail.sector * SECTOR_CELLS + cell,
                         &header, sizeof header);
    assert_ok(log_end(&db->log, to, 0, db->commit + 1));
    os_sim_kill(sim, 1);
    fkv_close(db);
    assert_error(open_on(sim, &db), FKV_DAMAGED);
    os_sim_free(sim);
}

/* The directory of the index counts fewer keys than a segment has: building it anew for so few, and
 * putting one more where there is no room, must end. */
static void test_too_many_slots(void **state)
{
    (void)state;
    enum { KEYS = 1000, COUNTED = 3 };
    fkv *db;
    struct os_sim *sim = os_sim_new(NULL);
    assert_ok(open_on(sim, &db));
    for (uint32_t key = 0; key < KEYS; key++)
        assert_ok(fkv_put(db, &key, sizeof key, "x", 1));
    uint32_t id = db->index.directory->segment[0];
    assert_int_equal(db->index.directory->depth, 0);
    struct format_segment *entries =
        pages_write(&db->pages, SPACE_DIRECTORY, id / SEGMENTS_PER_PAGE);
    entries[id % SEGMENTS_PER_PAGE].count = COUNTED;
    assert_ok(fkv_close(db));
    assert_ok(open_on(sim, &db));
    enum fkv_error error = FKV_OK;
    uint32_t keys = KEYS;
    for (; !error; keys++)
        error = fkv_put(db, &keys, sizeof keys, "x", 1);
    assert_int_equal(error, FKV_DAMAGED);
    for (uint32_t key = 0; key < 10; key++)
        assert_ok(fkv_delete(db, &key, sizeof key));
    for (uint32_t key = 10; key < keys - 1; key++)
        assert_ok(fkv_exists(db, &key, sizeof key));
    fkv_close(db);
    os_sim_free(sim);
}

/* The index says of a plain record without a value that it is the head of a large one. */
static void test_plain_for_large(void **state)
{
    (void)state;
    fkv *db;
    uint8_t value[100];
    struct found found;
    struct key key;
    size_t bytes;
    struct os_sim *sim = disk_with_store(1, &db);
    assert_ok(fkv_put(db, "plain", 5, "", 0));
    assert_ok(key_make(db, "plain", 5, &key));
    assert_ok(index_search(&db->index, key.hash, &found));
    assert_true(found.slot);
    found.slot->entry |= ENTRY_LARGE; /* NOLINT(clang-analyzer-core.NullDereference) */
    assert_ok(fkv_close(db));
    assert_ok(open_on(sim, &db));
    assert_error(fkv_get(db, "plain", 5, value, sizeof value, &bytes), FKV_DAMAGED);
    assert_error(fkv_value_size(db, "plain", 5, &bytes), FKV_DAMAGED);
    assert_error(fkv_put(db, "plain", 5, "", 0), FKV_DAMAGED);
    fkv_close(db);
    os_sim_free(sim);
}

static void leave_memory(const char *path)
{
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(fdatasync(fd), 0);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); /* tmpfs keeps it */
    close(fd);
}

static long major_faults(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_majflt;
}

/* A log that is not in memory, as after a loss of power, is read in large pieces before it is
 * looked at in its mapping: not page by page. */
static void test_cold_log(void **state)
{
    (void)state;
    enum { PUTS = 10000, BYTES = 1000 };
    static const char value[BYTES];
    fkv *db;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    const char *path = support_path("cold"), *log = support_path("cold-wal");
    pid_t child = fork();
    if (!child) {
        enum fkv_error error = fkv_open(path, &options, &db);
        for (int i = 0; !error && i < PUTS; i++)
            error = fkv_put(db, &i, sizeof i, value, sizeof value);
        _exit(error || fkv_sync(db));
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    leave_memory(path);
    leave_memory(log);
    long before = major_faults();
    assert_ok(fkv_open(path, &options, &db));
    assert_in_range(major_faults() - before, 0, PUTS * BYTES / PAGE_BYTES / 4);
    assert_ok(fkv_close(db));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_log),
        cmocka_unit_test(test_creation),
        cmocka_unit_test(test_spilled_over_an_older_one),
        cmocka_unit_test(test_referred),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_undone),
        cmocka_unit_test(test_undone_at_the_front),
        cmocka_unit_test(test_read_only),
        cmocka_unit_test(test_shorter_log),
        cmocka_unit_test(test_log_with_holes),
        cmocka_unit_test(test_pad_in_the_log),
        cmocka_unit_test(test_too_many_slots),
        cmocka_unit_test(test_plain_for_large),
        cmocka_unit_test(test_cold_log),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
