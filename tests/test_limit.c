/*
 * test_limit: an index that is larger than the memory it may have. Its pages come and go all the
 * while; what is read is what an array of versions says.
 */
#include "api_support.h"

#include "check.h"
#include "os_posix.h"
#include "os_sim.h"
#include "planted.h"
#include "store.h"

enum {
    KEYS = 60000,
    LIMIT = 256 << 10, /* a fifth of what the keys need */
    SLACK = 1 << 20,   /* what has changed since a checkpoint began */
    LEAVING = 1024,    /* pages that have left, and readers may still see: no more leave then */
    VALUE_LEAST = 8,
    VALUE_MOST = 60
};

struct world {
    fkv *db;
    const char *path;
    unsigned flags;
    uint64_t random;
    uint32_t version[KEYS]; /* 0: absent */
    uint32_t next_version;
    uint64_t keys;
    uint64_t loads, evictions; /* of handles that are closed */
    /* What check_key reads with, if not fkv_get. */
    fkv_snapshot *snapshot;
    fkv_async *async;
};

static size_t value_bytes_of(uint32_t key, uint32_t version)
{
    return VALUE_LEAST + checksum_mix((uint64_t)key << 32 | version) % (VALUE_MOST - VALUE_LEAST);
}

static size_t value_make(uint32_t key, uint32_t version, uint8_t *value)
{
    size_t bytes = value_bytes_of(key, version);
    value_fill(value, bytes, (uint64_t)key << 32 | version);
    return bytes;
}

static void world_open(struct world *world, uint64_t limit)
{
    must(try_open_limited(world->path, world->flags, limit, &world->db));
    assert_int_equal(stats_of(world->db).keys, world->keys);
}

static struct world *world_begin(struct place *place, unsigned flags)
{
    struct world *world = calloc(1, sizeof *world);
    world->path = place->path;
    world->flags = flags;
    world->random = test_seed("limit");
    world_open(world, LIMIT);
    return world;
}

static void world_close(struct world *world)
{
    fkv_stats stats = stats_of(world->db);
    world->loads += stats.index_loads;
    world->evictions += stats.index_evictions;
    must(fkv_close(world->db));
}

static void set_version(struct world *world, uint32_t key, uint32_t version)
{
    world->keys += (version != 0) - (world->version[key] != 0);
    world->version[key] = version;
}

static void put(struct world *world, uint32_t key)
{
    uint8_t value[VALUE_MOST];
    size_t bytes = value_make(key, ++world->next_version, value);
    must(fkv_put(world->db, &key, sizeof key, value, bytes));
    set_version(world, key, world->next_version);
}

static void remove_key(struct world *world, uint32_t key)
{
    expect(fkv_delete(world->db, &key, sizeof key), world->version[key] ? FKV_OK : FKV_NOT_FOUND);
    set_version(world, key, 0);
}

static enum fkv_error get(struct world *world, uint32_t key, uint8_t *value, size_t *bytes)
{
    fkv_completion done = {0};
    size_t count;
    if (world->snapshot)
        return fkv_snapshot_get(world->snapshot, &key, sizeof key, value, VALUE_MOST, bytes);
    if (!world->async)
        return fkv_get(world->db, &key, sizeof key, value, VALUE_MOST, bytes);
    must(fkv_async_get(world->async, &key, sizeof key, value, VALUE_MOST, NULL));
    must(fkv_async_wait(world->async, 1, &done, 1, &count));
    *bytes = done.value_bytes;
    return done.error;
}

static void check_key(struct world *world, uint32_t key)
{
    uint8_t value[VALUE_MOST];
    size_t bytes = 0;
    enum fkv_error error = get(world, key, value, &bytes);
    if (!world->version[key]) {
        expect(error, FKV_NOT_FOUND);
        return;
    }
    expect(error, FKV_OK);
    assert_int_equal(bytes, value_bytes_of(key, world->version[key]));
    assert_true(value_is(value, bytes, (uint64_t)key << 32 | world->version[key]));
}

static void check_all(struct world *world)
{
    for (uint32_t key = 0; key < KEYS; key++)
        check_key(world, key);
    assert_int_equal(stats_of(world->db).keys, world->keys);
}

static uint32_t any_key(struct world *world)
{
    return (uint32_t)random_below(&world->random, KEYS);
}

/* Changes so many keys at once, some of them twice. */
static void transaction(struct world *world, uint32_t count)
{
    fkv_txn *txn;
    must(fkv_txn_begin(world->db, &txn));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t key = any_key(world);
        uint8_t value[VALUE_MOST];
        if (random_below(&world->random, 4) == 0) {
            must(fkv_txn_delete(txn, &key, sizeof key));
            set_version(world, key, 0);
            continue;
        }
        size_t bytes = value_make(key, ++world->next_version, value);
        must(fkv_txn_put(txn, &key, sizeof key, value, bytes));
        set_version(world, key, world->next_version);
    }
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
}

static void work(struct world *world, uint32_t steps)
{
    for (uint32_t i = 0; i < steps; i++) {
        uint64_t choice = random_below(&world->random, 1000);
        if (choice < 500)
            put(world, any_key(world));
        else if (choice < 600)
            remove_key(world, any_key(world));
        else if (choice < 995)
            check_key(world, any_key(world));
        else
            transaction(world, 1 + (uint32_t)random_below(&world->random, 60));
    }
}

static void fill(struct world *world)
{
    for (uint32_t key = 0; key < KEYS; key++)
        put(world, key);
}

/* ---------------------------------------------------------------- against the model */

static void against_the_model(struct place *place, unsigned flags, uint64_t loads_least,
                              uint64_t evictions_least)
{
    struct world *world = world_begin(place, flags);
    fill(world);
    for (int round = 0; round < 6; round++) {
        work(world, 15000);
        must(fkv_check(world->db, NULL, NULL, 0));
        world_close(world);
        /* With more memory, or less, than before: what is in the log has to be replayed in it. */
        world_open(world, round % 3 == 0 ? 32768 : round % 3 == 1 ? 0 : LIMIT);
    }
    check_all(world);
    world_close(world);
    print_message("%" PRIu64 " index pages read, %" PRIu64 " evicted\n", world->loads,
                  world->evictions);
    assert_true(world->loads >= loads_least && world->evictions >= evictions_least);
    must(fkv_check_file(world->path, NULL, NULL, 0));
    free(world);
}

/* How many pages leave is up to the thread that writes checkpoints: changed ones cannot. That each
 * is read again after an opening is sure. */
static void test_model(void **state)
{
    against_the_model(*state, 0, KEYS / SLOTS_PER_PAGE, 0);
}

static void test_model_without_threads(void **state)
{
    against_the_model(*state, FKV_NO_THREAD, 2000, 2000);
}

/* ---------------------------------------------------------------- the limit */

static uint64_t pages_bytes(const fkv *db)
{
    return (uint64_t)db->pages.space[SPACE_INDEX].frame_count * PAGE_BYTES;
}

struct reading {
    uint64_t pages_bytes; /* in memory, at most */
    uint64_t loads;
    uint64_t frames; /* more than before */
};

static struct reading read_many(struct world *world)
{
    struct reading reading = {0};
    uint64_t loads = stats_of(world->db).index_loads;
    uint64_t frames = world->db->pages.frames.count;
    for (int i = 0; i < 50000; i++) {
        check_key(world, any_key(world));
        reading.pages_bytes = max_u64(reading.pages_bytes, pages_bytes(world->db));
    }
    reading.loads = stats_of(world->db).index_loads - loads;
    reading.frames = world->db->pages.frames.count - frames;
    print_message("reading: %" PRIu64 " KiB of pages at most, %" PRIu64 " loaded, %" PRIu64
                  " frames more\n",
                  reading.pages_bytes / KIB, reading.loads, reading.frames);
    return reading;
}

/* Frames of pages that have left are used again: there are no more than those that are in use, or
 * wait for readers, or for readers before those. */
static uint64_t frames_most(const struct world *world)
{
    uint64_t pages = world->db->index.page_count;
    return pages + 2 * (LEAVING + pages);
}

/* Pages that nobody has changed since a checkpoint leave, with the next write at the latest, as
 * soon as not too many that left before wait for readers: for liburcu's thread to say that they are
 * past them. */
static void await_limit(struct world *world)
{
    const uint32_t absent = KEYS;
    while (pages_bytes(world->db) > LIMIT) {
        expect(fkv_delete(world->db, &absent, sizeof absent), FKV_NOT_FOUND);
        usleep(1000);
    }
}

/* Beside threads: how many pages are in memory at one moment depends on how soon liburcu's thread
 * and the one that writes checkpoints get the processor. Not so what there is in the end. */
static void test_limit_is_kept(void **state)
{
    struct world *world = world_begin(*state, 0);
    fill(world);
    must(fkv_checkpoint(world->db));
    assert_true(world->db->index.page_count * PAGE_BYTES > 4 * LIMIT);
    await_limit(world);
    struct reading reading = read_many(world);
    assert_true(reading.frames <= frames_most(world));
    await_limit(world);
    for (int i = 0; i < 50000; i++)
        put(world, any_key(world));
    must(fkv_checkpoint(world->db));
    await_limit(world);
    check_all(world);
    world_close(world);
    free(world);
}

static int no_sync(struct os_file *file)
{
    (void)file;
    return 0;
}

/* Commits that are faster than checkpoints sleep: else all of the index would be in memory, and
 * changed, for as long as they go on. But no longer than 4 ms each: a disk whose syncs take seconds
 * would have it so all the same, and so there is none here. */
static void test_writing_at_full_speed(void **state)
{
    enum { MANY = 300000, ROOM = 1 << 20 };
    const struct place *place = *state;
    struct os_ops ops = *os_posix()->ops;
    struct os os = {.ops = &ops};
    uint64_t most = 0;
    fkv *db;
    fkv_options options;
    fkv_options_init(&options);
    options.log_bytes_max = MIB;
    options.index_memory_max = ROOM;
    ops.sync = no_sync;
    must(store_open(&os, place->path, &options, &db));
    for (uint64_t i = 0; i < MANY; i++) {
        uint64_t key = checksum_mix(i);
        must(fkv_put(db, &key, sizeof key, &i, sizeof i));
        if (i % 64 == 0)
            most = max_u64(most, pages_bytes(db));
    }
    print_message("writing: %" PRIu64 " of %" PRIu64 " KiB of pages at most\n", most / KIB,
                  db->index.page_count * PAGE_BYTES / KIB);
    assert_true(db->index.page_count * PAGE_BYTES > 5 * ROOM);
    assert_true(most < 3 * ROOM);
    must(fkv_close(db));
}

static void copy_file(const char *from, const char *to)
{
    static uint8_t bytes[1 << 20];
    size_t got;
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_true(in && out);
    while ((got = fread(bytes, 1, sizeof bytes, in)) > 0)
        assert_int_equal(fwrite(bytes, 1, got, out), got);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

/* What a process leaves that is killed now, under another name. */
static const char *copy_store(const char *path)
{
    static char to[PATH_MAX + 16];
    char from[PATH_MAX + 16];
    for (int i = 1; i >= 0; i--) {
        snprintf(from, sizeof from, "%s%s", path, i ? "-wal" : "");
        snprintf(to, sizeof to, "%s-copy%s", path, i ? "-wal" : "");
        copy_file(from, to);
    }
    return to;
}

/* It opens, and that keeps to the limit too; and not, if a replay spills to where the log goes on.
 */
static void recover_copy(const char *path, const fkv_options *options, uint64_t keys)
{
    const char *copy = copy_store(path);
    fkv *db;
    fkv_options less = *options; /* with the same, it spills when and where the process did */
    less.index_memory_max /= 8;
    planted_bug = PLANTED_SPILL_IN_LOG;
    enum fkv_error error = fkv_open(copy, &less, &db);
    planted_bug = PLANTED_NOTHING;
    assert_int_equal(error, FKV_DAMAGED);
    copy_store(path);
    must(fkv_open(copy, &less, &db));
    print_message("recovered: %" PRIu64 " KiB of pages, %u changed\n", pages_bytes(db) / KIB,
                  db->pages.space[SPACE_INDEX].dirty_count);
    assert_int_equal(stats_of(db).keys, keys);
    assert_true(pages_bytes(db) < less.index_memory_max * 2);
    must(fkv_check(db, NULL, NULL, 0));
    must(fkv_close(db));
    must(fkv_check_file(copy, NULL, NULL, 0));
}

/* Where the log is long no checkpoint is needed for the limit's sake: changed pages are spilled. */
static void test_spilling(void **state)
{
    enum { MANY = SANITIZED ? 100000 : 200000, ROOM = SANITIZED ? 256 << 10 : 512 << 10 };
    const struct place *place = *state;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    options.index_memory_max = ROOM;
    fkv *db;
    must(fkv_open(place->path, &options, &db));
    uint64_t most = 0;
    for (uint64_t i = 0; i < 2 * MANY; i++) {
        uint64_t key = checksum_mix(i % MANY);
        must(fkv_put(db, &key, sizeof key, &i, sizeof i));
        if (i % 64 == 0)
            most = max_u64(most, pages_bytes(db));
    }
    fkv_stats stats = stats_of(db);
    print_message("spilling: %" PRIu64 " of %" PRIu64 " KiB of pages at most, %" PRIu64
                  " checkpoints, %" PRIu64 " KiB written\n",
                  most / KIB, db->index.page_count * PAGE_BYTES / KIB, stats.checkpoints,
                  stats.bytes_written_pages / KIB);
    assert_true(db->index.page_count * PAGE_BYTES > 5 * ROOM);
    assert_true(most < ROOM + ROOM / 2);
    assert_true(stats.checkpoints <= 1);
    assert_true(stats.bytes_written_pages > 100 * ROOM);
    must(fkv_check(db, NULL, NULL, 0));
    recover_copy(place->path, &options, MANY);
    for (uint64_t i = MANY; i < 2 * MANY; i++) {
        uint64_t key = checksum_mix(i % MANY), value = 0;
        must(fkv_get(db, &key, sizeof key, &value, sizeof value, NULL));
        assert_int_equal(value, i);
    }
    must(fkv_close(db));
    must(fkv_check_file(place->path, NULL, NULL, 0));
}

/* Writes keep to it, but for what a checkpoint has still to write. */
static void test_writing_without_threads(void **state)
{
    uint64_t most = 0;
    struct world *world = world_begin(*state, FKV_NO_THREAD);
    fill(world);
    must(fkv_checkpoint(world->db));
    assert_true(world->db->index.page_count * PAGE_BYTES > 4 * LIMIT);
    for (int i = 0; i < 50000; i++) {
        put(world, any_key(world));
        most = max_u64(most, pages_bytes(world->db));
    }
    print_message("writing: %" PRIu64 " KiB of pages at most\n", most / KIB);
    assert_true(most <= LIMIT + SLACK);
    must(fkv_checkpoint(world->db));
    assert_true(pages_bytes(world->db) <= LIMIT);
    check_all(world);
    world_close(world);
    free(world);
}

static void read_within_limit(struct world *world)
{
    struct reading reading = read_many(world);
    assert_true(reading.pages_bytes <= LIMIT + LIMIT / 8 && reading.frames <= 800);
    assert_true(reading.loads > 500);
}

/* Where no thread waits for readers and nobody writes, readers do it themselves, by whatever call
 * they read; and one in a read section, who cannot, does not let frames pile up. */
static void test_reading_without_threads(void **state)
{
    const unsigned flags[] = {FKV_NO_THREAD, FKV_OPEN_READ_ONLY};
    struct world *world = world_begin(*state, 0);
    fill(world);
    for (int f = 0; f < 2; f++) {
        world_close(world);
        world->flags = flags[f];
        world_open(world, LIMIT);
        read_within_limit(world);
        must(fkv_snapshot_open(world->db, &world->snapshot));
        read_within_limit(world);
        fkv_snapshot_close(world->snapshot);
        world->snapshot = NULL;
        must(fkv_async_open(world->db, 1, &world->async));
        read_within_limit(world);
        fkv_async_close(world->async);
        world->async = NULL;
        fkv_read_begin(world->db);
        struct reading reading = read_many(world);
        assert_true(reading.frames <= frames_most(world) && reading.loads > 500);
        fkv_read_end(world->db);
    }
    world_close(world);
    free(world);
}

/* A store that so many pairs were loaded into. */
static fkv *open_loaded(const struct place *place, unsigned flags, uint32_t pairs)
{
    fkv *db;
    fkv_load *load;
    must(try_open_limited(place->path, flags, LIMIT, &db));
    must(fkv_load_begin(db, &load));
    for (uint32_t key = 0; key < pairs; key++)
        must(fkv_load_put(load, &key, sizeof key, &key, 1));
    must(fkv_load_commit(load));
    fkv_load_free(load);
    return db;
}

/* What can go is found among many segments that have nothing in memory: a load leaves one entry of
 * the directory for each page, most of them not in use, and here is one page in 28 in memory. */
static void test_among_many_segments(void **state)
{
    enum { PAIRS = 400000, GETS = 20000, PUTS = 5000 };
    uint64_t random = 1, most = 0;
    const struct place *place = *state;
    fkv *db = open_loaded(place, FKV_NO_THREAD, PAIRS);
    for (int i = 0; i < GETS; i++) { /* of all that there is after the load */
        uint32_t key = (uint32_t)random_below(&random, PAIRS);
        must(fkv_exists(db, &key, sizeof key));
    }
    assert_true(pages_bytes(db) <= LIMIT + LIMIT / 8);
    must(fkv_close(db));
    must(try_open_limited(place->path, FKV_NO_THREAD, LIMIT, &db));
    assert_true(db->index.page_count * PAGE_BYTES > 25 * LIMIT);
    assert_true(db->index.segment_count > 1000);
    for (uint32_t i = 0; i < GETS + PUTS; i++) {
        uint32_t key = (uint32_t)random_below(&random, PAIRS);
        must(i < GETS ? fkv_exists(db, &key, sizeof key)
                      : fkv_put(db, &key, sizeof key, &key, sizeof key));
        most = max_u64(most, pages_bytes(db));
    }
    print_message("among %u segments: %" PRIu64 " KiB of pages at most\n", db->index.segment_count,
                  most / KIB);
    assert_true(most <= LIMIT + LIMIT / 8);
    must(fkv_check(db, NULL, NULL, 0));
    must(fkv_close(db));
}

/* Who reads faster than pages that have left are seen to be out of sight waits for that: else all
 * of the index would be in memory. */
static void test_reading_at_full_speed(void **state)
{
    enum { PAIRS = 1000000, GETS = 60000, LATE = 500 /* come while somebody has the lock */ };
    uint64_t random = 1, most = 0;
    const struct place *place = *state;
    must(fkv_close(open_loaded(place, 0, PAIRS)));
    fkv *db;
    must(try_open_limited(place->path, 0, LIMIT, &db));
    for (int i = 0; i < GETS; i++) {
        uint32_t key = (uint32_t)random_below(&random, PAIRS);
        must(fkv_exists(db, &key, sizeof key));
        most = max_u64(most, pages_bytes(db));
    }
    print_message("reading: %" PRIu64 " of %" PRIu64 " KiB of pages at most\n", most / KIB,
                  db->index.page_count * PAGE_BYTES / KIB);
    assert_true(db->index.page_count > 2 * (LEAVING + LATE));
    assert_true(most <= LIMIT + (LEAVING + LATE) * PAGE_BYTES);
    must(fkv_close(db));
}

/* A commit that needs more than there may be has it, and gives it back. */
static void test_large_transaction(void **state)
{
    struct world *world = world_begin(*state, 0);
    for (int i = 0; i < 4; i++) {
        transaction(world, KEYS);
        must(fkv_checkpoint(world->db));
        await_limit(world);
    }
    check_all(world);
    must(fkv_check(world->db, NULL, NULL, 0));
    world_close(world);
    free(world);
}

/* What a snapshot sees is found beside the pages that go. */
static void test_snapshot(void **state)
{
    struct world *world = world_begin(*state, 0);
    fill(world);
    fkv_snapshot *snapshot;
    must(fkv_snapshot_open(world->db, &snapshot));
    uint32_t *then = malloc(sizeof world->version);
    memcpy(then, world->version, sizeof world->version);
    work(world, 30000);
    for (uint32_t key = 0; key < KEYS; key += 3) {
        uint8_t value[VALUE_MOST];
        size_t bytes;
        must(fkv_snapshot_get(snapshot, &key, sizeof key, value, sizeof value, &bytes));
        assert_true(bytes == value_bytes_of(key, then[key]) &&
                    value_is(value, bytes, (uint64_t)key << 32 | then[key]));
    }
    free(then);
    fkv_snapshot_close(snapshot);
    check_all(world);
    world_close(world);
    free(world);
}

static void test_options(void **state)
{
    struct place *place = *state;
    fkv *db;
    expect(try_open_limited(place->path, 0, 32767, &db), FKV_INVALID);
    must(try_open_limited(place->path, 0, 32768, &db));
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- errors of the device */

/* The store on a simulated disk. */
static fkv *open_on(struct os_sim *sim, uint64_t index_memory_max)
{
    fkv *db;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    options.index_memory_max = index_memory_max;
    if (store_open(os_sim_os(sim), "store", &options, &db))
        fail_msg("%s", error_last());
    return db;
}

/* A page that cannot be read is an error of that call alone. */
static void test_errors_of_reads(void **state)
{
    (void)state;
    enum { SOME = 20000 };
    struct os_sim *sim = os_sim_new(NULL);
    fkv *db = open_on(sim, 32768);
    for (uint32_t key = 0; key < SOME; key++)
        must(fkv_put(db, &key, sizeof key, &key, sizeof key));
    must(fkv_checkpoint(db));
    const struct os_sim_fault fault = {
        .kinds = OS_SIM_READ, .nth = 1, .error = -EIO, .forever = true};
    uint32_t value, failed[3] = {0};
    size_t bytes;
    for (uint32_t key = 0; key + 1 < SOME; key += 7) {
        os_sim_fail(sim, &fault);
        enum fkv_error error = fkv_get(db, &key, sizeof key, &value, sizeof value, &bytes);
        assert_true(error == FKV_OK || error == FKV_IO);
        assert_true(error == FKV_OK || strstr(fkv_error_detail(db), "read a page of store"));
        failed[0] += error != FKV_OK;
        uint32_t new_key = SOME + key, other = key + 1;
        enum fkv_error put = fkv_put(db, &new_key, sizeof key, &new_key, sizeof key);
        enum fkv_error removed = fkv_delete(db, &other, sizeof other);
        os_sim_fail(sim, NULL);
        assert_true(put == FKV_OK || put == FKV_IO);
        assert_true(removed == FKV_OK || removed == FKV_IO);
        failed[1] += put != FKV_OK;
        failed[2] += removed != FKV_OK;
        must(fkv_get(db, &key, sizeof key, &value, sizeof value, &bytes));
        assert_int_equal(value, key);
        expect(fkv_exists(db, &new_key, sizeof key), put ? FKV_NOT_FOUND : FKV_OK);
        expect(fkv_exists(db, &other, sizeof key), removed ? FKV_OK : FKV_NOT_FOUND);
    }
    print_message("failed: %u gets, %u puts, %u deletes\n", failed[0], failed[1], failed[2]);
    assert_true(failed[0] > 500 && failed[1] > 500 && failed[2] > 500);
    must(fkv_check(db, NULL, NULL, 0));
    must(fkv_close(db));
    os_sim_free(sim);
}

/* ---------------------------------------------------------------- parked pages that cannot be read
 */

/* One page of the file: of so many reads of it, the first fail, or all bring something else. */
static struct {
    const struct os_ops *real;
    uint64_t offset, failing, reads;
    bool rotten;
} bad_page;

static int read_but_bad_page(struct os_file *file, void *to, size_t bytes, uint64_t offset)
{
    int status = bad_page.real->read(file, to, bytes, offset);
    if (status || offset != bad_page.offset || bytes != PAGE_BYTES)
        return status;
    *(uint8_t *)to ^= bad_page.rotten;
    return bad_page.reads++ < bad_page.failing ? -EIO : 0;
}

enum { PARKED_KEYS = 20000 };

static fkv *open_with_bad_page(const struct place *place, unsigned flags)
{
    static struct os_ops ops;
    static struct os os = {.ops = &ops};
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.index_memory_max = 65536; /* a fifth of what the keys need */
    bad_page.real = os_posix()->ops;
    ops = *bad_page.real;
    ops.read = read_but_bad_page;
    fkv *db;
    must(store_open(&os, place->path, &options, &db));
    return db;
}

/* Puts a version of every key, but for those that cannot be, of a page; returns how many these are.
 */
static uint32_t put_all(fkv *db, uint32_t version)
{
    uint32_t damaged = 0;
    for (uint32_t key = 0; key < PARKED_KEYS; key++) {
        uint32_t value[2] = {key, version};
        enum fkv_error error = fkv_put(db, &key, sizeof key, value, sizeof value);
        assert_true(!error || error == (bad_page.failing ? FKV_IO : FKV_DAMAGED));
        damaged += error != FKV_OK;
    }
    return damaged;
}

static uint32_t get_all(fkv *db, uint32_t version)
{
    uint32_t damaged = 0;
    for (uint32_t key = 0; key < PARKED_KEYS; key++) {
        uint32_t value[2];
        size_t bytes;
        enum fkv_error error = fkv_get(db, &key, sizeof key, value, sizeof value, &bytes);
        assert_true(!error || error == (bad_page.failing ? FKV_IO : FKV_DAMAGED));
        assert_true(error || (bytes == sizeof value && value[0] == key && value[1] == version));
        damaged += error != FKV_OK;
    }
    return damaged;
}

/* Where in the file a page lies that is parked; 0: none is. */
static uint64_t some_parked_page(fkv *db)
{
    struct pages *pages = &db->pages;
    uint64_t location = 0;
    pthread_mutex_lock(&db->writer);
    for (uint32_t n = 0; n < pages->space[SPACE_INDEX].page_count && !location; n++)
        if (pages_is_parked(pages, SPACE_INDEX, n))
            location = pages_find(pages, SPACE_INDEX, n)->location;
    pthread_mutex_unlock(&db->writer);
    return location * PAGE_BYTES;
}

/* All have this version, and a page is parked: for what has changed of it, or moves that wait. */
static fkv *open_and_park(const struct place *place, unsigned flags, uint32_t version)
{
    bad_page.offset = bad_page.failing = bad_page.reads = 0;
    bad_page.rotten = false;
    fkv *db = open_with_bad_page(place, flags);
    assert_int_equal(put_all(db, version - 1), 0);
    must(fkv_checkpoint(db));
    do
        assert_int_equal(put_all(db, version), 0);
    while (!(bad_page.offset = some_parked_page(db)));
    return db;
}

/* Only the keys of that page are lost, and all else goes on: here, and after an opening, though the
 * page can be read again by then, without what had changed of it. */
static void parked_page_is_lost(const struct place *place, unsigned flags)
{
    fkv *db = open_and_park(place, flags, 3);
    bad_page.rotten = true;
    must(fkv_checkpoint(db));
    assert_false(pages_any_parked(&db->pages));
    uint32_t damaged = get_all(db, 3);
    print_message("%u keys of %u are lost\n", damaged, PARKED_KEYS);
    assert_in_range(damaged, 1, SLOTS_PER_PAGE * 3 / 2); /* some had to pass it */
    for (uint32_t version = 4; version <= 6; version++) {
        assert_int_equal(put_all(db, version), damaged);
        must(fkv_checkpoint(db));
    }
    bad_page.rotten = false;
    for (int round = 0; round < 2; round++) {
        assert_int_equal(get_all(db, 6), damaged);
        fkv_check_result result;
        expect(fkv_check(db, NULL, &result, sizeof result), FKV_DAMAGED);
        must(fkv_close(db));
        db = open_with_bad_page(place, flags);
    }
    must(fkv_close(db));
    must(fkv_repair(place->path, place->other, NULL, NULL, 0)); /* their records are there */
    must(fkv_open(place->other, NULL, &db));
    assert_int_equal(stats_of(db).keys, PARKED_KEYS);
    for (uint32_t key = 0; key < PARKED_KEYS; key++) {
        uint32_t value[2];
        must(fkv_get(db, &key, sizeof key, value, sizeof value, NULL));
        assert_true(value[0] == key && (value[1] == 6 || (value[1] == 3 && damaged-- > 0)));
    }
    must(fkv_close(db));
    remove_store(place);
    char log[PATH_MAX + 16];
    snprintf(log, sizeof log, "%s-wal", place->other);
    unlink(place->other);
    unlink(log);
}

static void test_parked_page_is_lost(void **state)
{
    parked_page_is_lost(*state, 0);
    parked_page_is_lost(*state, FKV_NO_THREAD);
}

/* One that cannot be read for long, but is whole: an opening finds it, and all else in the log. */
static void test_parked_page_is_unreadable(void **state)
{
    const uint32_t key = 0;
    for (unsigned flags = 0; flags <= FKV_NO_THREAD; flags += FKV_NO_THREAD) {
        fkv *db = open_and_park(*state, flags, 3);
        bad_page.failing = UINT64_MAX;
        expect(fkv_checkpoint(db), FKV_IO);
        expect(fkv_put(db, &key, sizeof key, &key, sizeof key), FKV_FAILED);
        (void)fkv_close(db);
        bad_page.failing = 0;
        db = open_with_bad_page(*state, flags);
        assert_int_equal(get_all(db, 3), 0);
        must(fkv_check(db, NULL, NULL, 0));
        must(fkv_close(db));
        remove_store(*state);
    }
}

/* One that cannot be read for a moment is not lost, and no checkpoint fails for it. */
static void test_parked_page_is_late(void **state)
{
    enum { LATE = 5 };
    for (unsigned flags = 0; flags <= FKV_NO_THREAD; flags += FKV_NO_THREAD) {
        fkv *db = open_and_park(*state, flags, 3);
        bad_page.reads = 0;
        bad_page.failing = LATE;
        must(fkv_checkpoint(db));
        assert_true(bad_page.reads > LATE);
        assert_int_equal(get_all(db, 3), 0);
        must(fkv_check(db, NULL, NULL, 0));
        must(fkv_close(db));
        remove_store(*state);
    }
}

/* Puts that a full disk refuses bring pages in for nothing: they go again. */
static void test_refused_puts(void **state)
{
    (void)state;
    enum { SHORT = 30, LONG = 100000, REFUSED = 500, MOST = 64 };
    static uint8_t value[LONG];
    struct os_sim *sim = os_sim_new(&(struct os_sim_options){.capacity_bytes = 16 * MIB});
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    options.log_bytes_max = 2 * MIB;
    options.index_memory_max = 32768;
    fkv *db;
    must(store_open(os_sim_os(sim), "store", &options, &db));
    uint32_t keys = 0;
    enum fkv_error error;
    while (!(error = fkv_put(db, &keys, sizeof keys, value, SHORT)))
        keys++;
    expect(error, FKV_FULL);
    assert_true(db->index.page_count > 4 * MOST);
    uint64_t random = 1, most = 0;
    for (int i = 0; i < REFUSED; i++) {
        uint32_t key = (uint32_t)random_below(&random, keys);
        expect(fkv_put(db, &key, sizeof key, value, LONG), FKV_FULL);
        most = max_u64(most, db->pages.space[SPACE_INDEX].frame_count);
    }
    print_message("refused puts: %" PRIu64 " of %" PRIu64 " pages in memory at most\n", most,
                  db->index.page_count);
    assert_true(most <= MOST);
    must(fkv_check(db, NULL, NULL, 0));
    must(fkv_close(db));
    os_sim_free(sim);
}

static uint64_t address_of(fkv *db, uint32_t key)
{
    uint64_t entry = 0;
    fkv_read_begin(db);
    must(index_get(&db->index, hash_key(&db->hash_seeds.keys, &key, sizeof key), &entry));
    fkv_read_end(db);
    return entry_address(entry);
}

/* A record whose key is damaged seems to be another's. It is not moved as that without a look at
 * the index: the log would have the move of what is nobody's, and no recovery could follow it. */
static void test_damaged_keys(void **state)
{
    (void)state;
    enum { MANY = 8000, DAMAGED = 2000, EACH = 100, BYTES = 200 };
    uint8_t value[BYTES] = {0};
    size_t bytes;
    struct os_sim *sim = os_sim_new(NULL);
    fkv *db = open_on(sim, 32768);
    for (uint32_t key = 0; key < MANY; key++)
        must(fkv_put(db, &key, sizeof key, value, BYTES));
    must(fkv_checkpoint(db));
    for (uint32_t key = 0; key < DAMAGED; key += EACH) {
        uint64_t end = address_of(db, key) * CELL_BYTES + RECORD_HEADER_BYTES + sizeof key;
        assert_int_equal(os_sim_flip_bit(sim, "store", end * 8 - 1), 0);
    }
    for (int round = 0; round < 3; round++)
        for (uint32_t key = 0; key < MANY; key++)
            if (key % 4)
                must(fkv_put(db, &key, sizeof key, value, BYTES));
    assert_true(stats_of(db).bytes_written_collector > MIB);
    os_sim_kill(sim, 0);
    fkv_close(db);
    db = open_on(sim, 32768);
    for (uint32_t key = 0; key < MANY; key++)
        expect(fkv_get(db, &key, sizeof key, value, BYTES, &bytes),
               key < DAMAGED && key % EACH == 0 ? FKV_DAMAGED : FKV_OK);
    must(fkv_close(db));
    os_sim_free(sim);
}

/* Where the disk is full, the collector opens its next sector only beside as many places as all the
 * pages may need that come to wait in the same step; else they are to be looked at. */
static void test_waiting_on_a_full_disk(void **state)
{
    (void)state;
    enum { MANY = 200000, PLACES = 8, SLACK_PLACES = 64 /* in what is needed */, STEPS = 20000 };
    static uint32_t held[4096];
    uint32_t count = 0;
    struct os_sim *sim = os_sim_new(NULL);
    fkv *db = open_on(sim, 512 << 10);
    for (uint32_t round = 1; round <= 3; round++) {
        for (uint32_t key = 0; key < MANY; key += round)
            must(fkv_put(db, &key, sizeof key, &key, sizeof key));
        must(fkv_checkpoint(db));
    }
    tail_seal(&db->tail);
    os_sim_set_capacity(sim, 1); /* the file does not grow */
    while (db->sectors.free_backed_count > 2)
        must(sectors_take(&db->sectors, &held[count++]));
    assert_true(pages_places_free(&db->pages) >= PLACES);
    uint64_t taken = pages_places_free(&db->pages) - PLACES;
    db->pages.places.used_count += taken;
    pthread_mutex_lock(&db->writer);
    assert_true(collect_further(db, STEPS, 0) > 0 && db->tail.open);
    pthread_mutex_unlock(&db->writer);
    assert_int_equal(db->sectors.free_backed_count, 1);
    print_message("%" PRIu64 " places for pages are needed\n", pages_places_needed(&db->pages, 0));
    assert_true(pages_places_needed(&db->pages, 0) <= PLACES + SECTOR_PAGES + SLACK_PLACES);
    db->pages.places.used_count -= taken;
    while (count)
        sectors_give(&db->sectors, held[--count]);
    os_sim_set_capacity(sim, 0);
    must(fkv_check(db, NULL, NULL, 0));
    must(fkv_close(db));
    os_sim_free(sim);
}

/* So small a limit means many checkpoints, and what they sync is of no matter here. */
#define in_memory(function) \
    cmocka_unit_test_setup_teardown(function, place_make_in_memory, place_drop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_place(test_options),
        in_memory(test_model),
        in_memory(test_model_without_threads),
        in_memory(test_limit_is_kept),
        in_memory(test_writing_at_full_speed),
        in_memory(test_spilling),
        in_memory(test_writing_without_threads),
        in_memory(test_reading_without_threads),
        in_memory(test_among_many_segments),
        in_memory(test_reading_at_full_speed),
        in_memory(test_large_transaction),
        in_memory(test_snapshot),
        cmocka_unit_test(test_errors_of_reads),
        in_memory(test_parked_page_is_lost),
        in_memory(test_parked_page_is_unreadable),
        in_memory(test_parked_page_is_late),
        cmocka_unit_test(test_refused_puts),
        cmocka_unit_test(test_damaged_keys),
        cmocka_unit_test(test_waiting_on_a_full_disk),
    };
    return run_all(tests);
}
