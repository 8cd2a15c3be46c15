/*
 * test_scale: what depends on how large a store is, at the edges of the format: addresses near the
 * end of the largest file, the index at its deepest, and closing a store that is too large for a
 * last checkpoint. Files are sparse: their space is not used. The long run takes the largest file
 * that ext4 can hold, and 2 GB of memory.
 */
#include "support.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fkv.h"
#include "store.h"

/* ---------------------------------------------------------------- numbers */

static void test_entries_at_the_edges(void **state)
{
    (void)state;
    const uint64_t last = (uint64_t)SECTORS_MAX * SECTOR_CELLS - 1;
    assert_true(last <= ENTRY_ADDRESS_MASK);
    assert_true((uint64_t)SECTORS_MAX * SECTOR_BYTES >= 32ull << 40);
    const uint64_t addresses[] = {1, last / 2, last - 1, last};
    const uint32_t cells[] = {1, 64, RECORD_CELLS_MAX};
    for (size_t a = 0; a < 4; a++)
        for (size_t c = 0; c < 3; c++)
            for (int large = 0; large < 2; large++) {
                uint64_t entry = entry_value(addresses[a], cells[c], large);
                assert_int_equal(entry_address(entry), addresses[a]);
                assert_int_equal(entry_cells(entry), cells[c]);
                assert_int_equal(!!(entry & ENTRY_LARGE), large);
                assert_int_equal(entry & ~ENTRY_VALUE_MASK, 0);
            }
    /* 10^11 keys: segments, and numbers of index pages. */
    const uint64_t keys = 100ull * 1000 * 1000 * 1000;
    assert_true(keys / (7 * 200) < 1ull << INDEX_DEPTH_MAX); /* just after they have split */
    assert_true(keys / 200 < UINT32_MAX);
}

/* ---------------------------------------------------------------- the index at its deepest */

struct world {
    struct page_file file;
    struct reclaim reclaim;
    struct index index;
};

static void release(void *context, struct retired *retired)
{
    struct world *world = context;
    for (uint32_t frame = retired->frames, next; frame; frame = next) {
        next = *frame_link(&world->file.pages, frame);
        frame_free(&world->file.pages, frame);
    }
    index_reclaim(&world->index, retired->segments);
    for (struct retired_block *block = retired->blocks, *next; block; block = next) {
        next = block->next;
        memory_free(block);
    }
}

static void open_world(struct world *world, const struct format_space *roots, uint32_t segments)
{
    memset(world, 0, sizeof *world);
    assert_ok(page_file_open(&world->file, os_posix(), support_path("deep"), roots));
    assert_ok(reclaim_make(&world->reclaim, false, release, world));
    assert_ok(index_make(&world->index, &world->file.pages, &world->reclaim));
    assert_ok(roots ? index_open(&world->index, segments) : index_create(&world->index));
}

static void drop_world(struct world *world)
{
    reclaim_finish(&world->reclaim, false);
    reclaim_drop(&world->reclaim);
    index_drop(&world->index);
    page_file_drop(&world->file);
}

/* Keys whose hashes agree in more bits than prefixes can have: all go to one segment. */
static struct hash128 deep_hash(uint64_t key)
{
    const uint64_t prefix = 0xabcdef9u;
    return (struct hash128){prefix << (64 - INDEX_DEPTH_MAX) |
                                rng_mix(key, 1, 1) >> INDEX_DEPTH_MAX,
                            rng_mix(key, 2, 2)};
}

static enum fkv_error add(struct world *world, uint64_t key)
{
    uint64_t entry;
    enum fkv_error error = index_prepare(&world->index, deep_hash(key), INDEX_PLAN, &entry);
    if (!error && !(error = pages_reserve_frames(&world->file.pages, 20)))
        assert_int_equal(index_set(&world->index, deep_hash(key), key + 1), 0);
    index_unplan(&world->index);
    pages_reserve_frames(&world->file.pages, 0);
    reclaim_poll(&world->reclaim, true);
    return error;
}

static void expect_keys(struct world *world, uint64_t count)
{
    for (uint64_t key = 0; key < count; key++) {
        uint64_t entry;
        rcu_read_lock();
        enum fkv_error error = index_get(&world->index, deep_hash(key), &entry);
        rcu_read_unlock();
        assert_ok(error);
        assert_int_equal(entry_address(entry), key + 1);
    }
    uint64_t entry;
    rcu_read_lock();
    assert_int_equal(index_get(&world->index, deep_hash(count + 1), &entry), FKV_NOT_FOUND);
    rcu_read_unlock();
}

static void test_deepest_directory(void **state)
{
    (void)state;
    struct world world;
    struct format_space roots[SPACE_COUNT];
    uint64_t count = 0;
    enum fkv_error error;
    unlink(support_path("deep"));
    open_world(&world, NULL, 0);
    while ((error = add(&world, count)) == FKV_OK)
        count++;
    assert_error(error, FKV_FULL); /* to the last slot of the last segment, and no further */
    assert_int_equal(world.index.directory->depth, INDEX_DEPTH_MAX);
    assert_int_equal(count, SEGMENT_PAGES_MAX * SLOTS_PER_PAGE);
    expect_keys(&world, count);
    uint32_t segments = world.index.segment_count;
    assert_ok(page_file_checkpoint(&world.file, roots));
    drop_world(&world);

    open_world(&world, roots, segments);
    assert_int_equal(world.index.directory->depth, INDEX_DEPTH_MAX);
    expect_keys(&world, count);
    drop_world(&world);
}

/* ---------------------------------------------------------------- the end of the address space */

enum { KEYS = 3000 };

static size_t make_value(uint64_t key, uint64_t version, uint8_t *value)
{
    struct rng rng = rng_make(rng_mix(key, version, 3));
    size_t bytes = rng_below(&rng, 2000);
    rng_fill(&rng, value, bytes);
    return bytes;
}

static void write_keys(fkv *db, uint64_t version)
{
    uint8_t value[2000];
    for (uint64_t key = 0; key < KEYS; key++)
        assert_ok(fkv_put(db, &key, sizeof key, value, make_value(key, version, value)));
}

static void expect_version(fkv *db, uint64_t version)
{
    uint8_t value[2000], expected[2000];
    for (uint64_t key = 0; key < KEYS; key++) {
        size_t bytes;
        assert_ok(fkv_get(db, &key, sizeof key, value, sizeof value, &bytes));
        assert_int_equal(bytes, make_value(key, version, expected));
        assert_memory_equal(value, expected, bytes);
    }
}

static fkv *open_store(const char *path)
{
    fkv *db;
    assert_ok(fkv_open(path, NULL, &db));
    return db;
}

/* Where the record of a key is. */
static uint64_t address_of(fkv *db, uint64_t key)
{
    struct key made;
    uint64_t entry;
    assert_ok(key_make(db, &key, sizeof key, &made));
    rcu_read_lock();
    assert_ok(read_entry(db, made.hash, &entry));
    rcu_read_unlock();
    return entry_address(entry);
}

/* Make the file as long as the file system and the memory of the test allow; in sectors. */
static uint64_t stretch(const char *path)
{
    const uint64_t longest = support_is_long() ? SECTORS_MAX : 1u << 20;
    for (uint64_t sectors = longest; sectors > 1000; sectors /= 2)
        for (uint64_t less = 0; less < 2; less++)
            if (truncate(path, (off_t)((sectors - less) * SECTOR_BYTES)) == 0)
                return sectors - less;
    fail_msg("no sparse file on this file system");
    return 0;
}

/* Only the last 48 sectors are free, as if pages were in the others. (To take them would fill the
 * holes that they are.) */
static void use_end(struct sectors *sectors, uint64_t count)
{
    uint64_t *holes = (uint64_t *)sectors->free_holes.base;
    for (uint32_t sector = 1; sector < count - 48; sector++) {
        uint64_t bit = 1ull << (sector & 63);
        if (!(holes[sector >> 6] & bit))
            continue;
        holes[sector >> 6] &= ~bit;
        sectors->free_hole_count--;
        sector_state(sectors, sector)->type = SECTOR_PAGES_TYPE;
    }
}

static void test_end_of_a_sparse_file(void **state)
{
    (void)state;
    const char *path = support_path("sparse");
    fkv *db = open_store(path);
    write_keys(db, 1);
    assert_ok(fkv_close(db));
    uint64_t sectors = stretch(path);

    db = open_store(path);
    expect_version(db, 1);
    pthread_mutex_lock(&db->writer);
    use_end(&db->sectors, sectors);
    pthread_mutex_unlock(&db->writer);
    write_keys(db, 2);
    write_keys(db, 3);
    assert_in_range(address_of(db, KEYS - 1), (sectors - 48) * SECTOR_CELLS,
                    sectors * SECTOR_CELLS - 1);
    expect_version(db, 3);
    /* Closed without a checkpoint, so that nothing is given back; then the log is replayed. */
    close_pages_max = 0;
    assert_ok(fkv_close(db));
    close_pages_max = CLOSE_PAGES_MAX;
    db = open_store(path);
    expect_version(db, 3);
    fkv_check_result result;
    assert_ok(fkv_check(db, NULL, &result, sizeof result));
    assert_int_equal(result.keys, KEYS);
    close_pages_max = 0;
    assert_ok(fkv_close(db));
    close_pages_max = CLOSE_PAGES_MAX;
    printf("a file of %llu sectors\n", (unsigned long long)sectors);
}

static void test_more_sectors_than_there_are(void **state)
{
    (void)state;
    struct page_file file;
    struct sectors sectors;
    unlink(support_path("full"));
    assert_ok(page_file_open(&file, os_posix(), support_path("full"), NULL));
    assert_ok(sectors_make(&sectors, file.file, file.os->ops, file.path, &file.pages));
    assert_error(sectors_grow(&sectors, SECTORS_MAX), FKV_FULL);
    assert_int_equal(sectors.count, 1);
    assert_ok(sectors_grow(&sectors, 1));
    sectors_drop(&sectors);
    page_file_drop(&file);
}

/* ---------------------------------------------------------------- closing */

static void test_close_leaves_the_log(void **state)
{
    (void)state;
    const char *path = support_path("closed");
    for (unsigned threads = 0; threads < 2; threads++) {
        fkv *db;
        fkv_stats stats;
        fkv_options options;
        fkv_options_init(&options);
        options.flags = threads ? 0 : FKV_NO_THREAD;
        close_pages_max = 0;
        pages_a_loader = 1;
        for (uint64_t version = 1; version < 4; version++) {
            assert_ok(fkv_open(path, &options, &db));
            assert_ok(fkv_get_stats(db, &stats, sizeof stats));
            assert_true(version == 1 || stats.log_bytes_live > 0);
            if (version > 1)
                expect_version(db, version - 1);
            write_keys(db, version);
            assert_ok(fkv_close(db));
        }
        close_pages_max = CLOSE_PAGES_MAX;
        pages_a_loader = 4096;
        assert_ok(fkv_open(path, &options, &db)); /* replays, and closes with a checkpoint */
        expect_version(db, 3);
        assert_ok(fkv_check(db, NULL, NULL, 0));
        write_keys(db, 4);
        assert_ok(fkv_close(db));
        options.flags |= FKV_OPEN_READ_ONLY;
        assert_ok(fkv_open(path, &options, &db));
        assert_ok(fkv_get_stats(db, &stats, sizeof stats));
        assert_int_equal(stats.log_bytes_live, 0);
        expect_version(db, 4);
        assert_ok(fkv_close(db));
        unlink(path);
        char log[4096];
        snprintf(log, sizeof log, "%s-wal", path);
        unlink(log);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entries_at_the_edges),
        cmocka_unit_test(test_deepest_directory),
        cmocka_unit_test(test_end_of_a_sparse_file),
        cmocka_unit_test(test_more_sectors_than_there_are),
        cmocka_unit_test(test_close_leaves_the_log),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
