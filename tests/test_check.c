/*
 * test_check.c: checks and repairs. Healthy stores of many shapes pass every check at every step;
 * each kind of damage is found and the part named; repairs bring back all that is whole, as a model
 * of what was put knows.
 */
#include "check_parts.h"
#include "checksum.h"
#include "fetch.h"
#include "os_sim.h"
#include "repair.h"
#include "support.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH "d/store"
#define LOG_PATH "d/store-wal"

/* ---------------------------------------------------------------- a store and what it must hold */

enum { KEYS_MAX = 60000, VALUE_BYTES_MOST = 4 << 20 };

/* Values are cut from random bytes, where the stamp says. */
static uint8_t pool[VALUE_BYTES_MOST + 65536];

struct content {
    uint32_t stamp; /* 0: absent */
    uint32_t bytes;
};

enum { PAST = 8 };

struct world {
    struct os_sim *sim;
    struct fkv *db;
    struct content model[KEYS_MAX];
    struct content past[KEYS_MAX][PAST]; /* what was there before */
    uint8_t past_count[KEYS_MAX];
    struct rng rng;
    uint32_t stamp;
    unsigned flags;
    uint64_t log_bytes_max;
};

static size_t key_of(uint32_t number, uint8_t *key)
{
    size_t bytes = number % 100 == 99 ? 300 + number % 1000 : 4 + number % 23;
    for (size_t i = 4; i < bytes; i++)
        key[i] = (uint8_t)(number * 31 + i);
    memcpy(key, &number, 4);
    return bytes;
}

static const uint8_t *value_of(struct content content)
{
    return pool + (content.stamp * 2654435761u >> 16);
}

static struct world *world_make(uint64_t seed, unsigned flags)
{
    static struct world world;
    if (!pool[0] && !pool[1]) {
        struct rng rng = rng_make(1);
        rng_fill(&rng, pool, sizeof pool);
    }
    world = (struct world){.sim = os_sim_new(&(struct os_sim_options){.seed = seed}),
                           .rng = rng_make(seed),
                           .flags = flags,
                           .log_bytes_max = 4 << 20};
    return &world;
}

static enum fkv_error world_try_open(struct world *world, unsigned more)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = world->flags | more;
    options.log_bytes_max = world->log_bytes_max;
    return store_open(os_sim_os(world->sim), PATH, &options, &world->db);
}

static void world_open(struct world *world)
{
    assert_ok(world_try_open(world, 0));
}

static void world_close(struct world *world)
{
    assert_ok(store_close(world->db));
    world->db = NULL;
}

static void world_drop(struct world *world)
{
    if (world->db)
        world_close(world);
    assert_int_equal(os_sim_open_files(world->sim), 0);
    assert_int_equal(os_sim_open_mappings(world->sim), 0);
    os_sim_free(world->sim);
}

static void remember(struct world *world, uint32_t number)
{
    if (world->model[number].stamp)
        world->past[number][world->past_count[number]++ % PAST] = world->model[number];
}

static void put(struct world *world, uint32_t number, uint32_t bytes)
{
    uint8_t key[2000];
    struct content content = {++world->stamp, bytes};
    assert_ok(fkv_put(world->db, key, key_of(number, key), value_of(content), bytes));
    remember(world, number);
    world->model[number] = content;
}

static void erase(struct world *world, uint32_t number)
{
    uint8_t key[2000];
    enum fkv_error error = fkv_delete(world->db, key, key_of(number, key));
    assert_int_equal(error, world->model[number].stamp ? FKV_OK : FKV_NOT_FOUND);
    remember(world, number);
    world->model[number] = (struct content){0};
}

/* ---------------------------------------------------------------- checks */

/* What a check said. */
struct findings {
    fkv_check_result result;
    uint64_t said;
    char first[320];
    const char *words; /* looked for in all that is said */
    bool heard;
    bool print;
};

static void note(void *context, const fkv_problem *problem)
{
    struct findings *findings = context;
    assert_true(strlen(problem->text) > 10);
    assert_true(strcmp(fkv_part_name(problem->part), "unknown part") != 0);
    if (!findings->said++)
        snprintf(findings->first, sizeof findings->first, "%s: %s", fkv_part_name(problem->part),
                 problem->text);
    if (findings->words && strstr(problem->text, findings->words))
        findings->heard = true;
    if (findings->print)
        print_message("    %s (%" PRIx64 "): %s\n", fkv_part_name(problem->part), problem->offset,
                      problem->text);
}

static struct check_options note_options(struct findings *findings)
{
    *findings = (struct findings){.print = getenv("FKV_TEST_PRINT") != NULL};
    return (struct check_options){.problem = note, .context = findings};
}

/* Cells of values sectors, counted once more, from records and maps alone. */
struct cell_counts {
    uint64_t live, dead, pad;
};

static enum fkv_error count_sector(struct fkv *db, uint32_t sector, struct sector_room *room,
                                   struct cell_counts *counts)
{
    const uint8_t *base;
    bool open = db->tail.open && sector == db->tail.sector;
    uint32_t end = open ? db->tail.cell : SECTOR_CELLS;
    enum fkv_error error = sectors_prepare(&db->sectors, sector);
    if (error || (error = fetch_sector(db, sector, room, &base)))
        return error;
    for (uint32_t cell = SECTOR_HEADER_CELLS, cells; cell < end; cell += cells) {
        const uint8_t *record = base + (size_t)cell * CELL_BYTES;
        if (!(cells = record_walk(record, end - cell)))
            return FKV_DAMAGED;
        if (record_header(record).kind == RECORD_PAD)
            *(pad_is_gap(cell, cells) ? &counts->dead : &counts->pad) += cells;
        else if (sectors_is_dead(&db->sectors, (uint64_t)sector * SECTOR_CELLS + cell))
            counts->dead += cells;
        else
            counts->live += cells;
    }
    return FKV_OK;
}

static enum fkv_error count_cells(struct fkv *db, struct cell_counts *counts)
{
    struct sector_room room = {0};
    enum fkv_error error = FKV_OK;
    *counts = (struct cell_counts){0};
    for (uint32_t sector = 1; !error && sector < db->sectors.count; sector++)
        if (sector_state(&db->sectors, sector)->type == SECTOR_VALUES)
            error = count_sector(db, sector, &room, counts);
    sector_room_drop(&room);
    return error;
}

static void must_be_healthy(struct world *world)
{
    struct findings findings;
    struct check_options options = note_options(&findings);
    pthread_mutex_lock(&world->db->writer);
    check_wait(world->db);
    enum fkv_error error = store_check(world->db, &options, &findings.result);
    struct cell_counts counts;
    if (!error)
        error = count_cells(world->db, &counts);
    pthread_mutex_unlock(&world->db->writer);
    if (error || findings.result.problems)
        fail_msg("%s", findings.first);
    assert_true(findings.result.complete);
    uint64_t keys = 0;
    for (uint32_t i = 0; i < KEYS_MAX; i++)
        keys += world->model[i].stamp != 0;
    assert_int_equal(findings.result.keys, keys);
    assert_int_equal(counts.live, findings.result.live_cells);
    assert_int_equal(counts.dead, findings.result.dead_cells);
    assert_int_equal(counts.pad, findings.result.pad_cells);
    assert_int_equal(findings.result.keys_unreadable, 0);
}

static enum fkv_error check_closed_store(struct world *world, struct findings *findings)
{
    struct check_options options = note_options(findings);
    enum fkv_error error = check_file(os_sim_os(world->sim), PATH, &options, &findings->result);
    assert_int_equal(findings->said, findings->result.problems);
    return error;
}

static void closed_must_be_healthy(struct world *world)
{
    struct findings findings;
    enum fkv_error error = check_closed_store(world, &findings);
    if (error)
        fail_msg("%s", findings.first);
    assert_true(findings.result.complete && findings.result.opened);
}

/* ---------------------------------------------------------------- healthy stores */

static void random_step(struct world *world, uint32_t keys, uint32_t large_percent)
{
    uint32_t number = (uint32_t)rng_below(&world->rng, keys);
    if (rng_percent(&world->rng, 30))
        erase(world, number);
    else if (rng_percent(&world->rng, large_percent))
        put(world, number, (uint32_t)rng_between(&world->rng, 1, VALUE_BYTES_MOST));
    else
        put(world, number,
            (uint32_t)rng_below(&world->rng, rng_percent(&world->rng, 5) ? 100000 : 700));
}

static void test_empty(void **state)
{
    (void)state;
    struct world *world = world_make(1, FKV_NO_THREAD);
    world_open(world);
    must_be_healthy(world);
    world_close(world);
    closed_must_be_healthy(world);
    world_open(world);
    must_be_healthy(world);
    world_drop(world);
}

static void test_every_step(void **state)
{
    (void)state;
    for (struct rounds rounds = rounds_begin(SANITIZED ? 1 : 3); rounds_next(&rounds);) {
        struct world *world = world_make(rounds.seed, FKV_NO_THREAD);
        world->log_bytes_max = MIB;
        world_open(world);
        for (int i = 0; i < 500; i++) {
            random_step(world, 200, 3);
            if (rng_percent(&world->rng, 2))
                assert_ok(fkv_checkpoint(world->db));
            if (rng_percent(&world->rng, 1)) {
                world_close(world);
                closed_must_be_healthy(world);
                world_open(world);
            }
            must_be_healthy(world);
        }
        world_drop(world);
    }
}

static void test_many_keys(void **state)
{
    (void)state;
    const unsigned flags[] = {FKV_NO_THREAD, 0, FKV_NO_THREAD | FKV_DIGEST};
    for (size_t f = 0; f < sizeof flags / sizeof *flags; f++) {
        struct world *world = world_make(f + 1, flags[f]);
        world_open(world);
        for (uint32_t i = 0; i < KEYS_MAX; i++) {
            put(world, i, (uint32_t)rng_below(&world->rng, 60));
            if (i % 10000 == 0)
                must_be_healthy(world);
        }
        for (uint32_t i = 0; i < KEYS_MAX; i++) {
            if (rng_percent(&world->rng, 85))
                erase(world, i);
            if (i % 10000 == 0)
                must_be_healthy(world);
        }
        must_be_healthy(world);
        world_close(world);
        closed_must_be_healthy(world);
        world_open(world);
        must_be_healthy(world);
        world_drop(world);
    }
}

static void test_after_kill(void **state)
{
    (void)state;
    for (struct rounds rounds = rounds_begin(4); rounds_next(&rounds);) {
        struct world *world = world_make(rounds.seed, FKV_NO_THREAD);
        world_open(world);
        for (int i = 0; i < 300; i++)
            random_step(world, 150, 3);
        os_sim_kill(world->sim, rounds.seed);
        store_close(world->db);
        world->db = NULL;
        closed_must_be_healthy(world); /* recovered in memory */
        assert_ok(world_try_open(world, FKV_OPEN_READ_ONLY));
        must_be_healthy(world);
        world_close(world);
        world_open(world);
        must_be_healthy(world);
        world_drop(world);
    }
}

/* ---------------------------------------------------------------- where things are */

struct spot {
    const char *name;
    const char *path;
    uint64_t offset;
    size_t bytes; /* that a checksum covers, from there on */
    enum fkv_part part;
};

/* A closed store of everything there is: dead records, padding, values in pieces. */
static struct world *damage_world(uint64_t seed, unsigned flags)
{
    struct world *world = world_make(seed, FKV_NO_THREAD | flags);
    world->log_bytes_max = 64 << 20;
    world_open(world);
    for (uint32_t i = 0; i < 3000; i++)
        put(world, i, (uint32_t)rng_below(&world->rng, 700));
    put(world, 3000, 3 << 20);
    put(world, 3001, 200000);
    put(world, 3002, 1 << 20);
    for (uint32_t i = 0; i < 900; i++)
        erase(world, (uint32_t)rng_below(&world->rng, 3000));
    for (uint32_t i = 0; i < 300; i++)
        put(world, (uint32_t)rng_below(&world->rng, 3000), 100);
    return world;
}

/* The address of the record of a key, and what the index says of it. */
static uint64_t entry_of(struct world *world, uint32_t number)
{
    uint8_t bytes[2000];
    struct key key;
    uint64_t entry = 0;
    assert_ok(key_make(world->db, bytes, key_of(number, bytes), &key));
    assert_ok(index_get(&world->db->index, key.hash, &entry));
    return entry;
}

static uint32_t live_key(struct world *world)
{
    uint32_t number;
    do
        number = (uint32_t)rng_below(&world->rng, 3000);
    while (!world->model[number].stamp);
    return number;
}

static void say_nothing(struct report *report, const fkv_problem *problem)
{
    (void)report;
    (void)problem;
}

static void load_image(struct world *world, struct image *image)
{
    struct os *os = os_sim_os(world->sim);
    struct os_file *file;
    struct report nowhere = {say_nothing};
    assert_int_equal(os->ops->open(os, PATH, OS_READ_ONLY, &file), 0);
    assert_ok(image_open(image, os->ops, file, PATH));
    assert_non_null(image->header);
    assert_ok(image_load(image, image->header, &nowhere));
}

static void drop_image(struct image *image)
{
    image->ops->close(image->file);
    image_drop(image);
}

/* The place of some page of a space. */
static uint64_t page_offset(const struct image *image, enum space space)
{
    const struct image_space *pages = &image->space[space];
    for (uint32_t n = 0; n < pages->page_count; n++)
        if (pages->pages[n].location)
            return pages->pages[n].location * PAGE_BYTES;
    fail_msg("no page of space %d is stored", space);
    return 0;
}

static struct spot spot_of_page(const struct image *image, enum space space)
{
    return (struct spot){image_space_name(space), PATH, page_offset(image, space), PAGE_BYTES,
                         FKV_PART_PAGES};
}

enum { SPOTS = 16 };

/* One of everything. The store is open, and closed afterwards. */
static size_t find_spots(struct world *world, struct spot spots[SPOTS])
{
    size_t count = 0;
    uint64_t live = entry_address(entry_of(world, live_key(world)));
    struct large *large;
    assert_ok(large_load(world->db, entry_of(world, 3000), &large));
    uint64_t sector = (uint64_t)large->sectors[1] * SECTOR_BYTES;
    memory_free(large);
    uint64_t head = entry_address(entry_of(world, 3001));
    uint64_t dead = 0;
    for (uint64_t a = head / SECTOR_CELLS * SECTOR_CELLS; !dead; a++)
        dead = sectors_is_dead(&world->db->sectors, a) ? a : 0;
    world_close(world);
    struct image image;
    load_image(world, &image);
    uint64_t values = (uint64_t)(live / SECTOR_CELLS) * SECTOR_BYTES;
    spots[count++] = (struct spot){"record", PATH, cell_offset(live), 12, FKV_PART_VALUES};
    spots[count++] = (struct spot){"dead record", PATH, cell_offset(dead), 12, FKV_PART_VALUES};
    spots[count++] = (struct spot){"large head", PATH, cell_offset(head), 12, FKV_PART_VALUES};
    spots[count++] = (struct spot){"large sector", PATH, sector + 64, 900000, FKV_PART_LARGE};
    spots[count++] = (struct spot){"header of values", PATH, values, 64, FKV_PART_VALUES};
    spots[count++] = (struct spot){"header of large", PATH, sector, 64, FKV_PART_VALUES};
    spots[count++] = (struct spot){"header copy 0", PATH, 0, 368, FKV_PART_HEADER};
    spots[count++] = (struct spot){"header copy 1", PATH, PAGE_BYTES, 368, FKV_PART_HEADER};
    for (int s = 0; s < SPACE_COUNT; s++) {
        spots[count++] = spot_of_page(&image, s);
        spots[count++] =
            (struct spot){"node", PATH, image.header->spaces[s].root.location * PAGE_BYTES,
                          PAGE_BYTES, FKV_PART_PAGES};
    }
    assert_int_equal(count, SPOTS);
    drop_image(&image);
    return count;
}

/* ---------------------------------------------------------------- damage */

enum harm { FLIP, ZERO, RANDOM, SWAP, HARMS };
static const char *const harm_names[] = {"flip", "zero", "random", "swap"};

static void do_harm(struct os_sim *sim, struct rng *rng, const struct spot *spot, enum harm harm)
{
    uint8_t bytes[64];
    uint64_t block = spot->offset / 512 * 512;
    uint64_t size;
    assert_int_equal(os_sim_file_size(sim, spot->path, &size), 0);
    switch (harm) {
    case FLIP:
        os_sim_flip_bit(sim, spot->path, spot->offset * 8 + rng_below(rng, spot->bytes * 8));
        return;
    case ZERO:
        os_sim_zero(sim, spot->path, block, 512);
        return;
    case RANDOM:
        rng_fill(rng, bytes, sizeof bytes);
        os_sim_poke(sim, spot->path, spot->offset, bytes,
                    spot->bytes < sizeof bytes ? spot->bytes : sizeof bytes);
        return;
    default: /* with another page: what is there looks real, but is elsewhere */
        os_sim_swap(sim, spot->path, spot->offset / 4096 * 4096,
                    (spot->offset / 4096 + size / 8192) % (size / 4096) * 4096, 4096);
        return;
    }
}

/* No wrong value: every key has its own, or reading it is an error. Returns how many can be read;
 * a key that may be lost by the damage is in `lost` then. */
static uint32_t read_all(struct world *world, bool *lost)
{
    static uint8_t value[VALUE_BYTES_MOST];
    uint32_t readable = 0;
    for (uint32_t i = 0; i < KEYS_MAX; i++) {
        uint8_t key[2000];
        size_t bytes = 0;
        enum fkv_error error = fkv_get(world->db, key, key_of(i, key), value, sizeof value, &bytes);
        struct content content = world->model[i];
        if (error == FKV_OK) {
            assert_true(content.stamp);
            assert_int_equal(bytes, content.bytes);
            assert_memory_equal(value, value_of(content), bytes);
            readable++;
        } else if (error == FKV_NOT_FOUND) {
            assert_false(content.stamp);
        } else {
            assert_int_equal(error, FKV_DAMAGED);
        }
        if (lost)
            lost[i] = error && error != FKV_NOT_FOUND;
    }
    return readable;
}

static void test_damage_is_found(void **state)
{
    (void)state;
    struct world *world = damage_world(5, 0);
    must_be_healthy(world);
    struct spot spots[SPOTS];
    size_t count = find_spots(world, spots);
    closed_must_be_healthy(world);
    struct os_sim *whole = world->sim;
    for (size_t i = 0; i < count; i++)
        for (enum harm harm = 0; harm < HARMS; harm++) {
            struct findings findings;
            world->sim = os_sim_copy(whole);
            do_harm(world->sim, &world->rng, &spots[i], harm);
            enum fkv_error error = check_closed_store(world, &findings);
            if (error != FKV_DAMAGED || !findings.result.problems_in[spots[i].part])
                fail_msg("%s of %s: %s, %" PRIu64 " problems, the first: %s", harm_names[harm],
                         spots[i].name, fkv_error_text(error), findings.result.problems,
                         findings.first);
            if (world_try_open(world, FKV_OPEN_READ_ONLY) == FKV_OK) {
                read_all(world, NULL);
                world_close(world);
            } else {
                assert_int_equal(findings.result.opened, 0);
            }
            os_sim_free(world->sim);
        }
    world->sim = whole;
    world_drop(world);
}

/* ---------------------------------------------------------------- contradictions */

/*
 * Things that are wrong although every checksum is right: a store in memory is made to contradict
 * itself, and the check must find that there, and again in the file that it writes.
 */

static struct format_sector *table_of(struct world *world, uint32_t sector)
{
    struct format_sector *entries =
        pages_write(&world->db->pages, SPACE_SECTORS, sector / SECTORS_PER_PAGE);
    return &entries[sector % SECTORS_PER_PAGE];
}

static uint64_t *map_word(struct world *world, uint64_t address)
{
    uint64_t *map =
        pages_write(&world->db->pages, SPACE_MAPS, (uint32_t)(address / MAP_PAGE_CELLS));
    return &map[address % MAP_PAGE_CELLS / 64];
}

/* The slot with this entry, and that of a key, to change. */
static struct slot *slot_with(struct world *world, uint64_t entry)
{
    struct index *index = &world->db->index;
    for (uint32_t n = 0; n < index->next_number; n++) {
        uint32_t frame = pages_find(&world->db->pages, SPACE_INDEX, n)->frame;
        struct slot *slots = frame ? frame_bytes(&world->db->pages, frame) : NULL;
        for (uint32_t s = 0; slots && s < SLOTS_PER_PAGE; s++)
            if (slots[s].entry == entry) {
                pages_write(&world->db->pages, SPACE_INDEX, n);
                return &slots[s];
            }
    }
    fail_msg("no slot");
    return NULL;
}

static struct slot *slot_of(struct world *world, uint32_t number)
{
    return slot_with(world, entry_of(world, number));
}

static uint64_t live_address(struct world *world)
{
    return entry_address(entry_of(world, live_key(world)));
}

static uint64_t dead_address(struct world *world)
{
    uint64_t a = live_address(world) / SECTOR_CELLS * SECTOR_CELLS;
    while (!sectors_is_dead(&world->db->sectors, a))
        a++;
    return a;
}

static void live_as_dead(struct world *world)
{
    uint64_t a = live_address(world);
    *map_word(world, a) |= 1ull << (a & 63);
}
static void dead_as_live(struct world *world)
{
    uint64_t a = dead_address(world);
    *map_word(world, a) &= ~(1ull << (a & 63));
}
static void bit_within_a_record(struct world *world)
{
    uint32_t number = live_key(world);
    while (entry_cells(entry_of(world, number)) < 3)
        number = live_key(world);
    uint64_t a = entry_address(entry_of(world, number)) + 1;
    *map_word(world, a) |= 1ull << (a & 63);
}
static void entry_gone(struct world *world)
{
    slot_of(world, live_key(world))->entry = 0;
}
static void entry_elsewhere(struct world *world)
{
    slot_of(world, live_key(world))->entry += 2;
}
static void entry_to_a_dead_record(struct world *world)
{
    struct slot *slot = slot_of(world, live_key(world));
    slot->entry = (slot->entry & ~ENTRY_ADDRESS_MASK) | dead_address(world);
}
static void entry_to_nowhere(struct world *world)
{
    struct slot *slot = slot_of(world, live_key(world));
    slot->entry |= ENTRY_ADDRESS_MASK;
}
static void entry_of_another_length(struct world *world)
{
    slot_of(world, live_key(world))->entry += 1ull << ENTRY_LENGTH_SHIFT;
}
static void entry_of_another_kind(struct world *world)
{
    slot_of(world, live_key(world))->entry ^= ENTRY_LARGE;
}
static void entry_of_another_key(struct world *world)
{
    slot_of(world, live_key(world))->tag ^= 1ull << 20;
}
static void entry_twice(struct world *world)
{
    struct slot *slot = slot_of(world, live_key(world));
    struct slot *bucket = (struct slot *)((uintptr_t)slot & ~63ull);
    for (uint32_t s = 0; s < SLOTS_PER_BUCKET; s++)
        if (!bucket[s].entry) {
            bucket[s] = *slot;
            return;
        }
    bucket[slot == bucket] = *slot;
}
static void marks_gone(struct world *world)
{
    struct index *index = &world->db->index;
    for (uint32_t n = 0; n < index->next_number; n++) {
        if (!pages_find(&world->db->pages, SPACE_INDEX, n)->frame)
            continue;
        struct slot *slots = pages_write(&world->db->pages, SPACE_INDEX, n);
        for (uint32_t s = 0; s < SLOTS_PER_PAGE; s++)
            slots[s].tag &= TAG_MASK;
    }
}
static void segment_count_wrong(struct world *world)
{
    struct index *index = &world->db->index;
    uint32_t id = index->directory->segment[0];
    struct format_segment *entries =
        pages_write(&world->db->pages, SPACE_DIRECTORY, id / SEGMENTS_PER_PAGE);
    entries[id % SEGMENTS_PER_PAGE].count--;
    ((struct segment *)index->segments.base)[id].count--;
}
static void table_dead_cells(struct world *world)
{
    uint32_t sector = (uint32_t)(live_address(world) / SECTOR_CELLS);
    table_of(world, sector)->dead_cells += 4;
    sector_state(&world->db->sectors, sector)->dead_cells += 4;
}
static void table_pad_cells(struct world *world)
{
    uint32_t sector = (uint32_t)(live_address(world) / SECTOR_CELLS);
    table_of(world, sector)->pad_cells++;
    sector_state(&world->db->sectors, sector)->pad_cells++;
}
static void table_sequence(struct world *world)
{
    uint32_t first = world->db->sectors.front;
    uint32_t second = sector_state(&world->db->sectors, first)->next;
    table_of(world, first)->sequence = table_of(world, second)->sequence;
}
static void table_type(struct world *world)
{
    table_of(world, world->db->sectors.front)->type = SECTOR_LARGE;
}
static void keys_wrong(struct world *world)
{
    world->db->keys++;
}
static void live_cells_wrong(struct world *world)
{
    world->db->sectors.live_cells--;
}
static void pad_cells_wrong(struct world *world)
{
    world->db->sectors.pad_cells++;
}
static void large_sector_is_another(struct world *world)
{
    struct large *a, *b;
    assert_ok(large_load(world->db, entry_of(world, 3000), &a));
    assert_ok(large_load(world->db, entry_of(world, 3002), &b));
    uint64_t sequence = table_of(world, a->sectors[0])->sequence;
    table_of(world, a->sectors[0])->sequence = table_of(world, b->sectors[0])->sequence;
    table_of(world, b->sectors[0])->sequence = sequence;
    memory_free(a);
    memory_free(b);
}
/* A piece that the index no longer has is dead, by all other accounts. */
static void piece_gone(struct world *world)
{
    struct fkv *db = world->db;
    struct large *large;
    assert_ok(large_load(db, entry_of(world, 3001), &large));
    uint64_t entry = index_remove(&db->index, piece_hash(db, large->id, large->sector_count + 1));
    sectors_kill(&db->sectors, entry_address(entry), entry_cells(entry));
    memory_free(large);
}
/* The record that leads to the parts of a value is dead, they are not. */
static void remove_head(struct world *world, uint32_t i)
{
    struct fkv *db = world->db;
    uint8_t bytes[2000];
    struct key key;
    assert_ok(key_make(db, bytes, key_of(i, bytes), &key));
    uint64_t entry = index_remove(&db->index, key.hash);
    sectors_kill(&db->sectors, entry_address(entry), entry_cells(entry));
    db->keys--;
}
static void head_gone(struct world *world)
{
    remove_head(world, 3000);
}
static void head_of_pieces_gone(struct world *world)
{
    remove_head(world, 3001);
}
static void page_taken_for_free(struct world *world)
{
    struct page_sector *sector = &world->db->pages.places.sectors[0];
    for (uint32_t w = 0; w < SECTOR_PAGES / 64; w++)
        if (sector->used[w]) {
            sector->used[w] &= sector->used[w] - 1;
            return;
        }
}
static void page_not_marked(struct world *world)
{
    uint32_t frame = pages_find(&world->db->pages, SPACE_DIRECTORY, 0)->frame;
    ((uint8_t *)frame_bytes(&world->db->pages, frame))[100] ^= 1;
}
static uint32_t free_sector(const struct world *world)
{
    const struct sectors *sectors = &world->db->sectors;
    for (uint32_t s = 1; s < sectors->count; s++)
        if (((const uint64_t *)sectors->free_backed.base)[s / 64] >> (s & 63) & 1)
            return s;
    fail_msg("no free sector");
    return 0;
}
static void sector_lost(struct world *world)
{
    struct sectors *sectors = &world->db->sectors;
    uint32_t s = free_sector(world);
    ((uint64_t *)sectors->free_backed.base)[s / 64] &= ~(1ull << (s & 63));
    sectors->free_backed_count--;
}
static void sector_used_twice(struct world *world)
{
    struct sectors *sectors = &world->db->sectors;
    uint32_t s = sectors->front;
    ((uint64_t *)sectors->free_backed.base)[s / 64] |= 1ull << (s & 63);
    sectors->free_backed_count++;
}

static void table_impossible(struct world *world)
{
    table_of(world, world->db->sectors.front)->zero = 1;
}
static void table_counts_of_free(struct world *world)
{
    table_of(world, free_sector(world))->dead_cells = 4;
}
static void table_values_in_pages(struct world *world)
{
    struct format_sector *entry = table_of(world, world->db->pages.places.sectors[0].sector);
    entry->type = SECTOR_VALUES;
    entry->sequence = 1;
}
static void table_sequence_of_the_future(struct world *world)
{
    table_of(world, world->db->sectors.front)->sequence = world->db->sectors.next_sequence + 9;
}
static void table_too_long(struct world *world)
{
    assert_true(world->db->sectors.count % SECTORS_PER_PAGE);
    table_of(world, world->db->sectors.count)->type = SECTOR_LARGE;
}
static void open_sector_not_last(struct world *world)
{
    struct format_sector *front = table_of(world, world->db->sectors.front);
    struct format_sector *open = table_of(world, world->db->tail.sector);
    uint64_t sequence = front->sequence;
    front->sequence = open->sequence;
    open->sequence = sequence;
}

/* The index is to have more than one segment. */
static void grow(struct world *world)
{
    for (uint32_t i = 4000; i < 10000; i++)
        put(world, i, 10);
    assert_ok(fkv_checkpoint(world->db));
    assert_true(world->db->index.directory->depth);
}
static struct format_segment *segment_of(struct world *world, uint32_t slot)
{
    const struct directory *directory = world->db->index.directory;
    uint32_t id = directory->segment[slot & ((1u << directory->depth) - 1)];
    struct format_segment *entries =
        pages_write(&world->db->pages, SPACE_DIRECTORY, id / SEGMENTS_PER_PAGE);
    return &entries[id % SEGMENTS_PER_PAGE];
}
static void segment_impossible(struct world *world)
{
    segment_of(world, 0)->count = UINT16_MAX;
}
static void segment_elsewhere(struct world *world)
{
    grow(world);
    segment_of(world, 0)->prefix ^= 1;
}
static void segments_of_all(struct world *world)
{
    grow(world);
    for (uint32_t slot = 0; slot < 1u << world->db->index.directory->depth; slot++) {
        segment_of(world, slot)->prefix = 0;
        segment_of(world, slot)->depth = 0;
    }
    segment_of(world, 0)->depth = 24;
}
static void segments_share_a_page(struct world *world)
{
    grow(world);
    struct format_segment *first = segment_of(world, 0), *last = segment_of(world, UINT32_MAX);
    first->page[0] = last->page[0];
}
static void segment_without_a_page(struct world *world)
{
    segment_of(world, 0)->pages--;
}
static void directory_elsewhere(struct world *world)
{
    grow(world);
    struct directory *directory = world->db->index.directory;
    directory->segment[0] = directory->segment[(1u << directory->depth) - 1];
}
static struct segment *segment_in_memory(struct world *world)
{
    struct index *index = &world->db->index;
    return (struct segment *)index->segments.base + index->directory->segment[0];
}
static void segment_count_in_memory(struct world *world)
{
    segment_in_memory(world)->count++;
}
static void plan_left_over(struct world *world)
{
    segment_in_memory(world)->planned++;
}

/* A page in memory that no checkpoint has to write. */
static struct page *clean_page(struct world *world)
{
    struct page *page = pages_find(&world->db->pages, SPACE_INDEX, 0);
    assert_true(page->frame && page->epoch != world->db->pages.epoch);
    return page;
}
static void page_marked_as_zeros(struct world *world)
{
    clean_page(world)->zero = 1;
}
static void page_of_another_epoch(struct world *world)
{
    clean_page(world)->epoch = world->db->pages.epoch;
}
static void page_with_a_copy(struct world *world)
{
    clean_page(world)->saved = UINT32_MAX;
}
static void frame_that_is_not_there(struct world *world)
{
    clean_page(world)->saved = world->db->pages.frames.count;
}
static void frame_used_twice(struct world *world)
{
    clean_page(world)->saved = clean_page(world)->frame;
}
static void page_sector_not_found(struct world *world)
{
    struct pages *pages = &world->db->pages;
    ((uint32_t *)pages->places.sector_index.base)[pages->places.sectors[0].sector] = 0;
}
static void place_used_by_nothing(struct world *world)
{
    struct pages *pages = &world->db->pages;
    struct page_sector *sector = &pages->places.sectors[0];
    assert_true(sector->used_count < SECTOR_PAGES);
    uint32_t p = 0;
    while (sector->used[p / 64] >> (p & 63) & 1)
        p++;
    sector->used[p / 64] |= 1ull << (p & 63);
    sector->used_count++;
    pages->places.used_count++;
}
static void spare_outside_the_file(struct world *world)
{
    world->db->tail.spare = world->db->sectors.count;
}
static void queue_type(struct world *world)
{
    sector_state(&world->db->sectors, world->db->sectors.front)->type = SECTOR_LARGE;
}
static void queue_link(struct world *world)
{
    struct sectors *sectors = &world->db->sectors;
    sector_state(sectors, sector_state(sectors, sectors->front)->next)->previous = 0;
}
static void queue_end(struct world *world)
{
    world->db->sectors.back = world->db->sectors.front;
}
static void open_and_sealed(struct world *world)
{
    sector_state(&world->db->sectors, world->db->tail.sector)->sealed = 1;
}
static void open_cell_impossible(struct world *world)
{
    world->db->tail.open->flushed_cell = world->db->tail.cell + 1;
}
static void open_sector_elsewhere(struct world *world)
{
    world->db->tail.sequence++;
}

struct contradiction {
    const char *name;
    void (*make)(struct world *world);
    enum fkv_part part;      /* in which it is found in memory */
    bool memory_only;        /* it does not reach the file, or must not be let to */
    enum fkv_part file_part; /* 0: the same */
    const char *words;       /* that are said of it */
};

static const struct contradiction contradictions[] = {
    {"live as dead", live_as_dead, FKV_PART_INDEX, false, 0, NULL},
    {"dead as live", dead_as_live, FKV_PART_INDEX, false, 0, NULL},
    {"bit within a record", bit_within_a_record, FKV_PART_MAPS, false, 0, NULL},
    {"entry gone", entry_gone, FKV_PART_INDEX, false, 0, NULL},
    {"entry elsewhere", entry_elsewhere, FKV_PART_INDEX, false, 0, NULL},
    {"entry to a dead record", entry_to_a_dead_record, FKV_PART_INDEX, false, 0, NULL},
    {"entry to nowhere", entry_to_nowhere, FKV_PART_INDEX, false, 0, NULL},
    {"entry of another length", entry_of_another_length, FKV_PART_INDEX, false, 0, NULL},
    {"entry of another kind", entry_of_another_kind, FKV_PART_INDEX, false, 0, NULL},
    {"entry of another key", entry_of_another_key, FKV_PART_INDEX, false, 0, NULL},
    {"entry twice", entry_twice, FKV_PART_INDEX, false, 0, NULL},
    {"marks gone", marks_gone, FKV_PART_INDEX, false, 0, NULL},
    {"segment count", segment_count_wrong, FKV_PART_INDEX, false, 0, NULL},
    {"dead cells in the table", table_dead_cells, FKV_PART_TABLE, false, 0, NULL},
    {"padding in the table", table_pad_cells, FKV_PART_TABLE, false, 0, NULL},
    {"sequence in the table", table_sequence, FKV_PART_TABLE, false, 0, NULL},
    {"type in the table", table_type, FKV_PART_TABLE, false, 0, NULL},
    {"keys", keys_wrong, FKV_PART_COUNTERS, false, 0, NULL},
    {"live cells", live_cells_wrong, FKV_PART_COUNTERS, false, 0, NULL},
    {"padding", pad_cells_wrong, FKV_PART_COUNTERS, false, 0, NULL},
    {"large sectors of another", large_sector_is_another, FKV_PART_LARGE, false, 0, NULL},
    {"piece gone", piece_gone, FKV_PART_LARGE, false, 0, NULL},
    {"head gone", head_gone, FKV_PART_LARGE, false, 0, NULL},
    {"page taken for free", page_taken_for_free, FKV_PART_PAGES, true, 0, NULL},
    {"page not marked", page_not_marked, FKV_PART_MEMORY, true, 0, NULL},
    {"sector lost", sector_lost, FKV_PART_SPACE, true, 0, NULL},
    {"sector used twice", sector_used_twice, FKV_PART_SPACE, true, 0, NULL},
    {"impossible in the table", table_impossible, FKV_PART_TABLE, false, 0, "is impossible"},
    {"counts of a free sector", table_counts_of_free, FKV_PART_TABLE, false, 0, "has counts"},
    {"values in pages", table_values_in_pages, FKV_PART_TABLE, false, 0, "but it holds pages"},
    {"sequence of the future", table_sequence_of_the_future, FKV_PART_TABLE, false, 0, "so far"},
    {"table too long", table_too_long, FKV_PART_TABLE, false, 0, "no such sector"},
    {"open sector not last", open_sector_not_last, FKV_PART_TABLE, false, 0, "not the last of"},
    {"head of pieces gone", head_of_pieces_gone, FKV_PART_LARGE, false, 0, "belongs to no head"},
    {"impossible segment", segment_impossible, FKV_PART_INDEX, false, 0, "impossible"},
    {"segment elsewhere", segment_elsewhere, FKV_PART_INDEX, false, 0, "of the same hashes"},
    {"segments of all hashes", segments_of_all, FKV_PART_INDEX, false, 0, "of the same hashes"},
    {"page of two segments", segments_share_a_page, FKV_PART_INDEX, false, 0, "and to another"},
    {"page of no segment", segment_without_a_page, FKV_PART_MEMORY, false, FKV_PART_INDEX,
     "belongs to no segment"},
    {"directory elsewhere", directory_elsewhere, FKV_PART_MEMORY, true, 0, "which is another's"},
    {"segment in memory", segment_count_in_memory, FKV_PART_MEMORY, true, 0, "the directory says"},
    {"plan left over", plan_left_over, FKV_PART_MEMORY, true, 0, "1 plans left over"},
    {"page marked as zeros", page_marked_as_zeros, FKV_PART_MEMORY, true, 0, "marked as zeros"},
    {"page's epoch", page_of_another_epoch, FKV_PART_MEMORY, true, 0, "for another epoch"},
    {"page with a copy", page_with_a_copy, FKV_PART_MEMORY, true, 0, "for no checkpoint"},
    {"no frame", frame_that_is_not_there, FKV_PART_MEMORY, true, 0, "does not exist"},
    {"frame used twice", frame_used_twice, FKV_PART_MEMORY, true, 0, "is in use twice"},
    {"page sector not found", page_sector_not_found, FKV_PART_SPACE, true, 0, "by its number"},
    {"place used by nothing", place_used_by_nothing, FKV_PART_SPACE, true, 0, "in use by nothing"},
    {"spare not in the file", spare_outside_the_file, FKV_PART_SPACE, true, 0, "is not in the"},
    {"type in the queue", queue_type, FKV_PART_SPACE, true, 0, "not of values"},
    {"link of the queue", queue_link, FKV_PART_SPACE, true, 0, "the one before it"},
    {"end of the queue", queue_end, FKV_PART_SPACE, true, 0, "the queue ends at"},
    {"open and sealed", open_and_sealed, FKV_PART_MEMORY, true, 0, "open and sealed"},
    {"cell of the open sector", open_cell_impossible, FKV_PART_MEMORY, true, 0, "is impossible"},
    {"open sector elsewhere", open_sector_elsewhere, FKV_PART_MEMORY, true, 0,
     "than it is written"},
};

static void must_be_found(const struct contradiction *made, enum fkv_error error,
                          const struct findings *findings, enum fkv_part part, const char *where)
{
    enum { SAID_MOST = 1 << 20 };
    if (findings->said > SAID_MOST)
        fail_msg("%s, %s: it is said %" PRIu64 " times", made->name, where, findings->said);
    if (error != FKV_DAMAGED || !findings->result.problems_in[part])
        fail_msg("%s, %s: %s, %" PRIu64 " problems, the first: %s", made->name, where,
                 fkv_error_text(error), findings->result.problems, findings->first);
}

static void test_contradictions_are_found(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof contradictions / sizeof *contradictions; i++) {
        const struct contradiction *made = &contradictions[i];
        struct world *world = damage_world(7, 0);
        assert_ok(fkv_checkpoint(world->db));
        must_be_healthy(world);
        /* All that may be changed is in memory. */
        for (uint32_t s = 1; s < world->db->sectors.count; s++)
            assert_ok(sectors_prepare(&world->db->sectors, s));
        made->make(world);
        struct findings findings;
        struct check_options options = note_options(&findings);
        findings.words = made->words;
        enum fkv_error error = store_check(world->db, &options, &findings.result);
        must_be_found(made, error, &findings, made->part, "in memory");
        if (made->words && !made->file_part && !findings.heard)
            fail_msg("%s: nothing is said of it; the first: %s", made->name, findings.first);
        if (made->memory_only) { /* it is not to be worked with */
            os_sim_kill(world->sim, 1);
            store_close(world->db);
            world->db = NULL;
        } else {
            world_close(world);
            error = check_closed_store(world, &findings);
            must_be_found(made, error, &findings, made->file_part ? made->file_part : made->part,
                          "in the file");
        }
        world_drop(world);
    }
}

/* Where the index leads to a sector that is free, the record is damaged, and nothing is touched:
 * the file may end before. */
static void test_entry_to_what_is_gone(void **state)
{
    enum { FILLERS = 200 };
    (void)state;
    struct world *world = world_make(11, FKV_NO_THREAD);
    world_open(world);
    for (uint32_t i = 0; i <= FILLERS; i++)
        put(world, i, 20000);
    uint64_t address = entry_of(world, FILLERS / 2) & ENTRY_ADDRESS_MASK;
    struct slot *slot = slot_of(world, 0);
    slot->entry = (slot->entry & ~ENTRY_ADDRESS_MASK) | address;
    for (uint32_t i = 1; i <= FILLERS; i++)
        erase(world, i);
    assert_ok(fkv_checkpoint(world->db));
    uint32_t sector = (uint32_t)(address / SECTOR_CELLS);
    assert_int_equal(sector_state(&world->db->sectors, sector)->type, SECTOR_FREE);
    uint8_t key[2000], value[100];
    assert_error(fkv_get(world->db, key, key_of(0, key), value, sizeof value, NULL), FKV_DAMAGED);
    assert_non_null(strstr(fkv_error_detail(world->db), "in no values sector"));
    world_drop(world);
}

/* Where the index leads the empty key to another's record, it does not have that value: not if it
 * is given as NULL, either. */
static void test_empty_key_is_compared(void **state)
{
    (void)state;
    struct world *world = world_make(12, FKV_NO_THREAD);
    world_open(world);
    put(world, 0, 100);
    assert_ok(fkv_put(world->db, NULL, 0, "empty", 5));
    struct key key;
    uint64_t entry = 0;
    assert_ok(key_make(world->db, NULL, 0, &key));
    assert_ok(index_get(&world->db->index, key.hash, &entry));
    slot_with(world, entry)->entry =
        (entry & ~ENTRY_VALUE_MASK) | (entry_of(world, 0) & ENTRY_VALUE_MASK);
    uint8_t value[100];
    size_t bytes;
    const void *lent;
    fkv_read read = {.buffer = value, .buffer_bytes = sizeof value};
    assert_error(fkv_get(world->db, "", 0, value, sizeof value, NULL), FKV_DAMAGED);
    assert_error(fkv_get(world->db, NULL, 0, value, sizeof value, NULL), FKV_DAMAGED);
    assert_error(fkv_get_many(world->db, &read, 1), FKV_DAMAGED);
    assert_error(fkv_value_size(world->db, NULL, 0, &bytes), FKV_DAMAGED);
    fkv_read_begin(world->db);
    assert_error(fkv_borrow(world->db, NULL, 0, &lent, &bytes), FKV_DAMAGED);
    fkv_read_end(world->db);
    world_drop(world);
}

/* With a page of the table lost the store cannot be opened; the rest is checked all the same. */
static void test_rest_is_checked(void **state)
{
    (void)state;
    for (int round = 0; round < 4; round++) {
        struct world *world = damage_world(8, 0);
        assert_ok(fkv_checkpoint(world->db));
        if (round == 0)
            keys_wrong(world);
        if (round == 1)
            entry_elsewhere(world);
        if (round == 2)
            bit_within_a_record(world);
        uint64_t record = cell_offset(live_address(world));
        world_close(world);
        struct image image;
        load_image(world, &image);
        /* What is damaged: for the second and third round, something that they do not hang on. */
        uint64_t root = image.header->spaces[SPACE_DIRECTORY].root.location * PAGE_BYTES;
        uint64_t page = page_offset(&image, SPACE_INDEX);
        drop_image(&image);
        os_sim_flip_bit(world->sim, LOG_PATH, 9); /* the log's header: it cannot be opened */
        if (round == 3) {
            os_sim_flip_bit(world->sim, PATH, record * 8 + 70);
            os_sim_flip_bit(world->sim, PATH, page * 8 + 70);
            os_sim_flip_bit(world->sim, PATH, root * 8 + 70);
        }
        struct findings findings;
        enum fkv_error error = check_closed_store(world, &findings);
        assert_int_equal(error, FKV_DAMAGED);
        assert_int_equal(findings.result.opened, 0);
        assert_true(findings.result.complete);
        const uint64_t *in = findings.result.problems_in;
        assert_true(in[FKV_PART_LOG]);
        if (round == 0)
            assert_true(in[FKV_PART_COUNTERS]);
        if (round == 1)
            assert_true(in[FKV_PART_INDEX]);
        if (round == 2)
            assert_true(in[FKV_PART_MAPS]);
        if (round == 3)
            assert_true(in[FKV_PART_VALUES] && in[FKV_PART_PAGES]);
        world_drop(world);
    }
}

/* ---------------------------------------------------------------- the log */

static void test_log_damage(void **state)
{
    (void)state;
    struct world *world = damage_world(9, 0);
    assert_ok(fkv_checkpoint(world->db));
    for (uint32_t i = 0; i < 300; i++)
        put(world, i, 300);
    assert_ok(fkv_sync(world->db));
    put(world, 301, 300);
    uint64_t begin = world->db->header.log_offset, end = world->db->log.head.offset;
    must_be_healthy(world);
    os_sim_kill(world->sim, 1);
    store_close(world->db);
    world->db = NULL;
    os_sim_settle(world->sim);
    closed_must_be_healthy(world);
    struct os_sim *whole = world->sim;
    for (int i = 0; i < 40; i++) {
        struct findings findings;
        world->sim = os_sim_copy(whole);
        uint64_t at = rng_between(&world->rng, begin, end - 600);
        os_sim_flip_bit(world->sim, LOG_PATH, at * 8 + rng_below(&world->rng, 8));
        assert_int_equal(check_closed_store(world, &findings), FKV_DAMAGED);
        assert_true(findings.result.problems_in[FKV_PART_LOG]);
        os_sim_free(world->sim);
    }
    world->sim = os_sim_copy(whole);
    struct findings findings;
    os_sim_delete_file(world->sim, LOG_PATH);
    assert_int_equal(check_closed_store(world, &findings), FKV_DAMAGED);
    assert_true(findings.result.problems_in[FKV_PART_LOG]);
    os_sim_free(world->sim);
    world->sim = whole;
    world_drop(world);
}

/* ---------------------------------------------------------------- flips anywhere */

/* Is this byte of the file covered by a checksum of something in use? */
static bool is_covered(const struct image *image, const struct checked_sector *kinds,
                       struct world *world, uint64_t offset)
{
    uint32_t sector = (uint32_t)(offset / SECTOR_BYTES);
    size_t at = offset % SECTOR_BYTES;
    (void)world;
    if (sector == 0)
        return at % PAGE_BYTES < sizeof(struct format_header) && at < 2 * PAGE_BYTES;
    if (image_is_claimed(image, offset / PAGE_BYTES))
        return true;
    if (kinds[sector].kind == SECTOR_IS_LARGE)
        return at < 64 + record_bytes(16, LARGE_SECTOR_PAYLOAD);
    if (kinds[sector].kind != SECTOR_IS_VALUES)
        return false;
    if (at < sizeof(struct format_sector_header))
        return true;
    static uint8_t bytes[SECTOR_BYTES];
    image_read(image, (uint64_t)sector * SECTOR_BYTES, sizeof bytes, bytes);
    uint32_t end = sector == image->header->tail_sector ? image->header->tail_cell : SECTOR_CELLS;
    struct scan scan =
        scan_begin(bytes, load_u64(image->header->store_id + 8), kinds[sector].sequence, end);
    struct scanned found;
    while (scan_next(&scan, &found)) {
        size_t first = found.cell * CELL_BYTES;
        struct format_record header = record_header(found.record);
        size_t length = header.kind == RECORD_PAD
                            ? RECORD_HEADER_BYTES
                            : record_bytes(header.key_bytes, header.value_bytes);
        if (at < first + found.cells * CELL_BYTES)
            return at < first + length;
    }
    return false;
}

static void test_flips_anywhere(void **state)
{
    (void)state;
    struct world *world = damage_world(10, 0);
    static struct checked_sector kinds[256];
    world_close(world);
    closed_must_be_healthy(world);
    struct image image;
    load_image(world, &image);
    uint8_t page[PAGE_BYTES];
    uint32_t page_number = UINT32_MAX;
    assert_true(image.sector_count <= 256);
    for (uint32_t s = 1; s < image.sector_count; s++) {
        struct format_sector entry;
        assert_ok(image_table_entry(&image, s, page, &page_number, &entry));
        kinds[s] = (struct checked_sector){.sequence = entry.sequence,
                                           .kind = entry.type == SECTOR_VALUES  ? SECTOR_IS_VALUES
                                                   : entry.type == SECTOR_LARGE ? SECTOR_IS_LARGE
                                                                                : SECTOR_IS_FREE};
    }
    struct os_sim *whole = world->sim;
    int covered = 0;
    for (struct rounds rounds = rounds_begin(200); rounds_next(&rounds);) {
        struct rng rng = rng_make(rounds.seed);
        uint64_t bit = rng_below(&rng, image.file_bytes * 8);
        bool is = is_covered(&image, kinds, world, bit / 8);
        struct findings findings;
        world->sim = os_sim_copy(whole);
        assert_int_equal(os_sim_flip_bit(world->sim, PATH, bit), 0);
        enum fkv_error error = check_closed_store(world, &findings);
        if (error != (is ? FKV_DAMAGED : FKV_OK))
            fail_msg("bit %" PRIu64 ", %s: %s; %s", bit, is ? "covered" : "not covered",
                     fkv_error_text(error), findings.first);
        covered += is;
        if (world_try_open(world, FKV_OPEN_READ_ONLY) == FKV_OK) {
            if (rng_percent(&rng, 10))
                read_all(world, NULL);
            world_close(world);
        }
        os_sim_free(world->sim);
    }
    assert_true(covered > 100);
    world->sim = whole;
    drop_image(&image);
    world_drop(world);
}

/* A log of zeros of which a page cannot be read. */
enum { BAD_LOG_BYTES = 16 << 20, BAD_LOG_PAGE = 11 << 20 };
static uint64_t bad_log_reads, bad_log_bytes;

static int bad_log_size(struct os_file *file, uint64_t *bytes)
{
    (void)file;
    *bytes = BAD_LOG_BYTES;
    return 0;
}

static int bad_log_read(struct os_file *file, void *buffer, size_t bytes, uint64_t offset)
{
    (void)file;
    assert_true(offset + bytes <= BAD_LOG_BYTES);
    memset(buffer, 0, bytes);
    bad_log_reads++;
    bad_log_bytes += bytes;
    return offset < BAD_LOG_PAGE + PAGE_BYTES && offset + bytes > BAD_LOG_PAGE ? -EIO : 0;
}

/* What lies around the page is read a few times, not once for each place where a frame could be. */
static void test_unreadable_log(void **state)
{
    (void)state;
    const struct os_ops ops = {.size = bad_log_size, .read = bad_log_read};
    const uint8_t store_id[16] = {1};
    struct image_log log;
    struct format_frame frame;
    enum fkv_error error = FKV_OK;
    int file; /* any but NULL */
    assert_ok(image_log_open(&log, &ops, (struct os_file *)(void *)&file, LOG_PATH, store_id));
    assert_true(image_log_find(&log, LOG_FRAMES_OFFSET, &frame, &error) == UINT64_MAX);
    assert_ok(error);
    assert_true(log.unreadable);
    if (bad_log_bytes > 2 * BAD_LOG_BYTES)
        fail_msg("%" PRIu64 " reads of %" PRIu64 " bytes", bad_log_reads, bad_log_bytes);
    image_log_drop(&log);
}

/* ---------------------------------------------------------------- repairs */

#define NEW_PATH "d/new"
#define NEW_LOG_PATH "d/new-wal"

/* What a repaired store holds, next to what it should. */
struct outcome {
    enum fkv_error error;
    fkv_repair_result result;
    uint64_t said;
    uint32_t right, missing, back, old;
};

static void note_loss(void *context, const fkv_problem *problem)
{
    struct outcome *outcome = context;
    outcome->said++;
    assert_true(strlen(problem->text) > 10);
    if (getenv("FKV_TEST_PRINT"))
        print_message("    %s (%" PRIx64 "): %s\n", fkv_part_name(problem->part), problem->offset,
                      problem->text);
}

static void compare_key(struct world *world, uint32_t number, struct outcome *outcome)
{
    static uint8_t value[VALUE_BYTES_MOST];
    uint8_t key[2000];
    size_t bytes = 0;
    enum fkv_error error =
        fkv_get(world->db, key, key_of(number, key), value, sizeof value, &bytes);
    struct content content = world->model[number];
    if (error == FKV_NOT_FOUND) {
        outcome->missing += content.stamp != 0;
        outcome->right += !content.stamp;
        return;
    }
    assert_ok(error);
    if (content.stamp && bytes == content.bytes && memcmp(value, value_of(content), bytes) == 0) {
        outcome->right++;
        return;
    }
    if (content.stamp)
        outcome->old++;
    else
        outcome->back++;
    for (int i = 0; i < PAST; i++) {
        content = world->past[number][i];
        if (content.stamp && bytes == content.bytes && !memcmp(value, value_of(content), bytes))
            return;
    }
    fail_msg("key %u has a value of %zu bytes that it never had", number, bytes);
}

/* Repair the store, which is closed, and look at the new one. */
static struct outcome try_repair(struct world *world)
{
    struct outcome outcome = {0};
    struct os *os = os_sim_os(world->sim);
    struct repair_options options = {.problem = note_loss, .context = &outcome};
    outcome.error = repair(os, PATH, NEW_PATH, &options, &outcome.result);
    assert_true(outcome.error == FKV_OK || outcome.error == FKV_DAMAGED);
    fkv_options how;
    fkv_options_init(&how);
    how.flags = FKV_NO_THREAD;
    assert_ok(store_open(os, NEW_PATH, &how, &world->db));
    struct findings findings;
    struct check_options check = note_options(&findings);
    if (store_check(world->db, &check, &findings.result))
        fail_msg("the new store: %s", findings.first);
    assert_int_equal(findings.result.keys, outcome.result.keys);
    assert_true(outcome.result.complete);
    for (uint32_t i = 0; i < KEYS_MAX; i++)
        compare_key(world, i, &outcome);
    world_close(world);
    os_sim_delete_file(world->sim, NEW_PATH);
    os_sim_delete_file(world->sim, NEW_LOG_PATH);
    return outcome;
}

static struct outcome do_repair(struct world *world, enum fkv_error expected)
{
    struct outcome outcome = try_repair(world);
    assert_int_equal(outcome.error, expected);
    return outcome;
}

static void nothing_is_lost(const struct outcome *outcome)
{
    assert_int_equal(outcome->missing, 0);
    assert_int_equal(outcome->old, 0);
    assert_int_equal(outcome->back, 0);
    assert_int_equal(outcome->result.damaged, 0);
    assert_int_equal(outcome->result.values_incomplete, 0);
    assert_int_equal(outcome->result.deleted_may_be_back, 0);
}

static uint64_t file_checksum(struct world *world, const char *path)
{
    uint64_t bytes, sum;
    assert_int_equal(os_sim_file_size(world->sim, path, &bytes), 0);
    uint8_t *data = malloc(bytes);
    assert_int_equal(os_sim_peek(world->sim, path, 0, data, bytes), 0);
    sum = checksum64(data, bytes);
    free(data);
    return sum;
}

static void test_repair_of_healthy_stores(void **state)
{
    (void)state;
    for (int mode = 0; mode < 2; mode++) {
        struct world *world = damage_world(11, mode ? FKV_DIGEST : 0);
        world_close(world);
        uint64_t before = file_checksum(world, PATH);
        struct outcome outcome = do_repair(world, FKV_OK);
        nothing_is_lost(&outcome);
        assert_int_equal(outcome.said, 0);
        /* with a log */
        world_open(world);
        for (int i = 0; i < 500; i++)
            random_step(world, 3000, 2);
        if (mode)
            assert_ok(fkv_checkpoint(world->db));
        for (int i = 0; i < 500; i++)
            random_step(world, 3000, 2);
        os_sim_kill(world->sim, 3);
        store_close(world->db);
        world->db = NULL;
        os_sim_settle(world->sim);
        assert_int_not_equal(before, file_checksum(world, PATH));
        before = file_checksum(world, PATH);
        outcome = do_repair(world, FKV_OK);
        nothing_is_lost(&outcome);
        assert_true(outcome.result.log_frames > 400);
        assert_int_equal(before, file_checksum(world, PATH));
        world_drop(world);
    }
}

static void test_repair_of_damage(void **state)
{
    (void)state;
    struct world *world = damage_world(12, 0);
    struct spot spots[SPOTS];
    size_t count = find_spots(world, spots);
    struct os_sim *whole = world->sim;
    for (size_t i = 0; i < count; i++)
        for (enum harm harm = 0; harm < SWAP; harm++) {
            struct outcome outcome;
            world->sim = os_sim_copy(whole);
            do_harm(world->sim, &world->rng, &spots[i], harm);
            bool records = spots[i].part == FKV_PART_VALUES && strncmp(spots[i].name, "header", 6);
            bool sector = spots[i].part == FKV_PART_LARGE;
            /* A block of zeros over a sector's header goes over its first records too. */
            records |= harm == ZERO && strcmp(spots[i].name, "header of values") == 0;
            sector |= harm == ZERO && strcmp(spots[i].name, "header of large") == 0;
            outcome = do_repair(world, records || sector ? FKV_DAMAGED : FKV_OK);
            if (getenv("FKV_TEST_PRINT"))
                print_message("%s of %s: %u right, %u missing, %u back, %u old\n", harm_names[harm],
                              spots[i].name, outcome.right, outcome.missing, outcome.back,
                              outcome.old);
            assert_int_equal(outcome.old, 0);
            assert_int_equal(outcome.back, 0);
            assert_int_equal(outcome.result.damaged != 0, records);
            assert_int_equal(outcome.result.values_incomplete, sector);
            if (sector)
                assert_int_equal(outcome.missing, 1);
            else if (records)
                assert_true(outcome.missing <= 512 / CELL_BYTES);
            else
                assert_int_equal(outcome.missing, 0);
            if (harm == FLIP &&
                (!strcmp(spots[i].name, "record") || !strcmp(spots[i].name, "large head")))
                assert_int_equal(outcome.missing, 1);
            os_sim_free(world->sim);
        }
    world->sim = whole;
    world_drop(world);
}

/* Losing what knows the dead: the index does as well, and without it deleted keys come back, but
 * what is there is the newest. */
static void test_repair_without_pages(void **state)
{
    (void)state;
    struct world *world = damage_world(13, 0);
    world_close(world);
    struct os_sim *whole = world->sim;
    for (int round = 0; round < 16; round++) {
        struct image image;
        world->sim = os_sim_copy(whole);
        load_image(world, &image);
        bool lost[SPACE_COUNT];
        for (int s = 0; s < SPACE_COUNT; s++) {
            lost[s] = round >> s & 1;
            if (lost[s])
                os_sim_zero(world->sim, PATH, image.header->spaces[s].root.location * PAGE_BYTES,
                            PAGE_BYTES);
        }
        drop_image(&image);
        bool index = lost[SPACE_INDEX] || lost[SPACE_DIRECTORY];
        bool maps = lost[SPACE_MAPS] || lost[SPACE_SECTORS];
        struct outcome outcome = do_repair(world, maps && index ? FKV_DAMAGED : FKV_OK);
        assert_int_equal(outcome.missing, 0);
        assert_int_equal(outcome.old, 0);
        assert_int_equal(outcome.result.deleted_may_be_back, maps && index);
        assert_int_equal(outcome.back != 0, maps && index);
        assert_int_equal(outcome.result.pages_lost != 0, maps);
        os_sim_free(world->sim);
    }
    world->sim = whole;
    world_drop(world);
}

static void test_repair_without_headers(void **state)
{
    (void)state;
    for (int killed = 0; killed < 2; killed++) {
        struct world *world = damage_world(14, 0);
        if (killed) {
            for (int i = 0; i < 500; i++)
                random_step(world, 3000, 2);
            os_sim_kill(world->sim, 3);
            store_close(world->db);
            world->db = NULL;
            os_sim_settle(world->sim);
        } else {
            world_close(world);
        }
        os_sim_zero(world->sim, PATH, 0, 2 * PAGE_BYTES);
        struct findings findings;
        assert_int_equal(check_closed_store(world, &findings), FKV_DAMAGED);
        assert_true(findings.result.problems_in[FKV_PART_HEADER]);
        struct outcome outcome = do_repair(world, FKV_DAMAGED);
        assert_int_equal(outcome.missing, 0);
        assert_int_equal(outcome.old, 0);
        assert_int_equal(outcome.result.header_lost, 1);
        assert_int_equal(outcome.result.damaged, 0);
        /* and the header of a sector besides */
        os_sim_zero(world->sim, PATH, SECTOR_BYTES * 2, 512);
        outcome = do_repair(world, FKV_DAMAGED);
        assert_true(outcome.missing + outcome.old < 32);
        world_drop(world);
    }
}

static void test_repair_with_a_damaged_log(void **state)
{
    (void)state;
    struct world *world = damage_world(15, 0);
    assert_ok(fkv_checkpoint(world->db));
    uint64_t begin = world->db->log.head.offset;
    for (uint32_t i = 100; i < 400; i++)
        put(world, i, 300);
    for (uint32_t i = 100; i < 200; i++)
        erase(world, i);
    assert_ok(fkv_sync(world->db));
    put(world, 401, 300);
    uint64_t end = world->db->log.head.offset;
    os_sim_kill(world->sim, 1);
    store_close(world->db);
    world->db = NULL;
    os_sim_settle(world->sim);
    struct os_sim *whole = world->sim;
    for (int i = 0; i < 20; i++) {
        world->sim = os_sim_copy(whole);
        uint64_t at = rng_between(&world->rng, begin, end - 600);
        os_sim_flip_bit(world->sim, LOG_PATH, at * 8 + rng_below(&world->rng, 8));
        /* One frame is lost: one key is as it was, or not there, or back. */
        struct outcome outcome = do_repair(world, FKV_DAMAGED);
        assert_true(outcome.missing + outcome.old + outcome.back <= 1);
        assert_int_equal(outcome.result.log_incomplete, 1);
        os_sim_free(world->sim);
    }
    world->sim = os_sim_copy(whole);
    os_sim_delete_file(world->sim, LOG_PATH);
    struct outcome outcome = do_repair(world, FKV_DAMAGED);
    assert_int_equal(outcome.result.log_incomplete, 1);
    assert_true(outcome.missing + outcome.old + outcome.back <= 302);
    os_sim_free(world->sim);
    world->sim = whole;
    world_drop(world);
}

/* A log that is another store's is none. */
static void test_repair_with_another_log(void **state)
{
    (void)state;
    struct world *world = damage_world(15, 0);
    struct os *os = os_sim_os(world->sim);
    assert_ok(fkv_checkpoint(world->db));
    for (uint32_t i = 100; i < 200; i++)
        put(world, i, 300);
    os_sim_kill(world->sim, 1);
    store_close(world->db);
    world->db = NULL;
    os_sim_settle(world->sim);
    fkv *other;
    assert_ok(store_open(os, "d/other", NULL, &other));
    assert_ok(fkv_put(other, "a", 1, "b", 1));
    assert_ok(store_close(other));
    os_sim_delete_file(world->sim, LOG_PATH);
    assert_int_equal(os_sim_copy_file(world->sim, LOG_PATH, world->sim, "d/other-wal"), 0);
    struct outcome outcome = do_repair(world, FKV_DAMAGED);
    assert_int_equal(outcome.result.log_incomplete, 1);
    assert_true(outcome.missing + outcome.old > 0);
    world_drop(world);
}

/* Both copies of the header, with checksums that are right. */
static void put_headers(struct world *world, struct format_header header)
{
    for (uint64_t i = 0; i < 2; i++, header.sequence++) {
        header.checksum = checksum64(&header, offsetof(struct format_header, checksum));
        os_sim_poke(world->sim, PATH, i * PAGE_BYTES, &header, sizeof header);
    }
}

/* Behind right checksums one part contradicts another: what the others agree on is brought back,
 * and what is missing is said to be. */
static void test_repair_of_contradictions(void **state)
{
    (void)state;
    struct world *world = damage_world(16, 0);
    world_close(world);
    struct format_header whole, header;
    os_sim_peek(world->sim, PATH, 0, &whole, sizeof whole);

    header = whole;
    header.next_sequence = 1;
    put_headers(world, header);
    struct outcome outcome = do_repair(world, FKV_OK);
    nothing_is_lost(&outcome);

    header = whole; /* as if all sectors were free */
    header.spaces[SPACE_SECTORS].root = (struct format_reference){0};
    put_headers(world, header);
    outcome = do_repair(world, FKV_OK);
    nothing_is_lost(&outcome);
    assert_true(outcome.said > 0);

    header = whole; /* as if the open sector had nothing */
    header.tail_cell = SECTOR_HEADER_CELLS;
    put_headers(world, header);
    outcome = do_repair(world, FKV_DAMAGED);
    assert_true(outcome.said > 0 && outcome.missing > 0);

    header = whole; /* as if nothing had died */
    header.spaces[SPACE_MAPS].root = (struct format_reference){0};
    put_headers(world, header);
    outcome = do_repair(world, FKV_DAMAGED);
    assert_int_equal(outcome.result.deleted_may_be_back, 1);

    header = whole; /* more pages than can be looked at, one by one */
    header.spaces[SPACE_MAPS].pages = UINT32_MAX;
    put_headers(world, header);
    outcome = do_repair(world, FKV_OK);
    nothing_is_lost(&outcome);

    put_headers(world, whole);
    world_open(world);
    os_sim_peek(world->sim, PATH, 0, &header, sizeof header);
    put(world, 100, 300);
    os_sim_kill(world->sim, 1);
    store_close(world->db);
    world->db = NULL;
    os_sim_settle(world->sim);
    put_headers(world, header);
    outcome = do_repair(world, FKV_OK);
    nothing_is_lost(&outcome);
    header.commit++;
    put_headers(world, header);
    outcome = do_repair(world, FKV_DAMAGED);
    assert_int_equal(outcome.result.log_incomplete, 1);
    header.commit--;
    put_headers(world, header);

    struct format_frame frame; /* a record that is longer than its operation */
    static uint8_t log[64 * KIB];
    assert_int_equal(os_sim_peek(world->sim, LOG_PATH, header.log_offset, log, sizeof log), 0);
    uint8_t *at = log;
    memcpy(&frame, at, sizeof frame);
    if (frame.flags & FRAME_RESTART)
        memcpy(&frame, at += frame.bytes, sizeof frame);
    at[sizeof frame + sizeof(struct format_operation) +
       offsetof(struct format_record, key_bytes)] ^= 0x80;
    frame.checksum = checksum64(at + 8, frame.bytes - 8) ^ load_u64(header.store_id);
    memcpy(at, &frame, sizeof frame.checksum);
    os_sim_poke(world->sim, LOG_PATH, header.log_offset, log, sizeof log);
    outcome = do_repair(world, FKV_DAMAGED);
    assert_int_equal(outcome.result.log_incomplete, 1);
    world_drop(world);
}

/* What is beyond the end of a file that was cut is lost, and that is said. */
static void test_repair_of_a_cut_file(void **state)
{
    (void)state;
    struct world *world = damage_world(17, 0);
    world_close(world);
    uint64_t bytes;
    assert_int_equal(os_sim_file_size(world->sim, PATH, &bytes), 0);
    struct os_sim *whole = world->sim;
    const uint64_t lengths[] = {2 * PAGE_BYTES, SECTOR_BYTES, 2 * SECTOR_BYTES, bytes / 2};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        world->sim = os_sim_copy(whole);
        os_sim_resize(world->sim, PATH, lengths[i]);
        struct outcome outcome = do_repair(world, FKV_DAMAGED);
        assert_true(outcome.missing > 0 && outcome.said > 0);
        assert_true(outcome.result.sectors_unreadable > 0);
        os_sim_free(world->sim);
    }
    world->sim = whole;
    world_drop(world);
}

enum { RECORD_AT = 20 }; /* in the middle of the smallest */

static void damage_record(struct world *world, uint64_t address)
{
    os_sim_flip_bit(world->sim, PATH, (cell_offset(address) + RECORD_AT) * 8);
}

/* Has the record come to the file? What is still in a buffer goes with the process. */
static bool is_in_file(struct world *world, uint64_t copy, uint64_t original)
{
    uint8_t bytes[2][8];
    uint64_t at[2] = {cell_offset(copy) + RECORD_AT, cell_offset(original) + RECORD_AT};
    for (int i = 0; i < 2; i++)
        assert_int_equal(os_sim_peek(world->sim, PATH, at[i], bytes[i], sizeof bytes[i]), 0);
    return memcmp(bytes[0], bytes[1], sizeof bytes[0]) == 0;
}

/* A record that the collector has moved since the last checkpoint is in two places, either of which
 * does. */
static void test_repair_of_moved_records(void **state)
{
    (void)state;
    static uint64_t before[3000], now[3000];
    uint32_t moved[3000], count = 0;
    struct world *world = damage_world(16, 0);
    assert_ok(fkv_checkpoint(world->db));
    uint64_t checkpoints = world->db->checkpoint.over;
    for (uint32_t i = 0; i < 3000; i++)
        before[i] = world->model[i].stamp ? entry_address(entry_of(world, i)) : 0;
    for (uint32_t i = 0; i < 500; i++) /* not so many that a record is moved twice */
        put(world, 3100 + i % 100, 600);
    for (uint32_t i = 0; i < 3000; i++)
        now[i] = before[i] ? entry_address(entry_of(world, i)) : 0;
    assert_int_equal(world->db->checkpoint.over, checkpoints);
    os_sim_kill(world->sim, 1);
    store_close(world->db);
    world->db = NULL;
    os_sim_settle(world->sim);
    for (uint32_t i = 0; i < 3000; i++)
        if (now[i] != before[i] && is_in_file(world, now[i], before[i]))
            moved[count++] = i;
    assert_true(count > 100);
    struct os_sim *whole = world->sim;
    for (int round = 0; round < 24; round++) {
        uint32_t number = moved[rng_below(&world->rng, count)];
        bool was = round % 3 != 1, is = round % 3 != 0; /* which of them is damaged */
        world->sim = os_sim_copy(whole);
        if (was)
            damage_record(world, before[number]);
        if (is)
            damage_record(world, now[number]);
        struct outcome outcome = do_repair(world, was ? FKV_DAMAGED : FKV_OK);
        assert_int_equal(outcome.missing, was && is);
        assert_int_equal(outcome.old + outcome.back, 0);
        assert_int_equal(outcome.result.damaged, was);
        os_sim_free(world->sim);
    }
    world->sim = whole;
    world_drop(world);
}

/* Several things go wrong anywhere. Nothing is made up, and what is lost is said. */
static void test_repair_of_chance(void **state)
{
    (void)state;
    struct world *world = damage_world(16, 0);
    assert_ok(fkv_checkpoint(world->db));
    for (int i = 0; i < 1000; i++)
        random_step(world, 3000, 1);
    assert_ok(fkv_sync(world->db));
    put(world, 1, 100); /* to say so in the log */
    assert_ok(fkv_sync(world->db));
    os_sim_kill(world->sim, 1);
    store_close(world->db);
    world->db = NULL;
    os_sim_settle(world->sim);
    struct os_sim *whole = world->sim;
    uint64_t bytes[2];
    os_sim_file_size(whole, PATH, &bytes[0]);
    os_sim_file_size(whole, LOG_PATH, &bytes[1]);
    for (struct rounds rounds = rounds_begin(SANITIZED ? 6 : 25); rounds_next(&rounds);) {
        struct rng rng = rng_make(rounds.seed);
        world->sim = os_sim_copy(whole);
        for (uint64_t n = rng_between(&rng, 1, 8); n; n--) {
            int log = rng_percent(&rng, 20);
            struct spot spot = {"anything", log ? LOG_PATH : PATH, 0, 512, FKV_PART_HEADER};
            spot.offset =
                rng_below(&rng, rng_percent(&rng, 20) ? 2 * PAGE_BYTES : bytes[log] - 512);
            do_harm(world->sim, &rng, &spot, (enum harm)rng_below(&rng, HARMS));
        }
        if (rng_percent(&rng, 10))
            os_sim_resize(world->sim, PATH, rng_between(&rng, SECTOR_BYTES, bytes[0]));
        struct findings findings;
        enum fkv_error error = check_closed_store(world, &findings);
        assert_true(error == FKV_OK || error == FKV_DAMAGED);
        struct outcome outcome = try_repair(world);
        if (!outcome.error)
            nothing_is_lost(&outcome);
        if (!outcome.result.deleted_may_be_back)
            assert_int_equal(outcome.old + outcome.back, 0);
        os_sim_free(world->sim);
    }
    world->sim = whole;
    world_drop(world);
}

/* Headers that say anything at all, with right checksums: no crash, and no store that is not one.
 */
static void test_made_up_headers(void **state)
{
    (void)state;
    struct world *world = damage_world(20, 0);
    world_close(world);
    struct os_sim *whole = world->sim;
    for (struct rounds rounds = rounds_begin(60); rounds_next(&rounds);) {
        struct rng rng = rng_make(rounds.seed);
        struct format_header header;
        world->sim = os_sim_copy(whole);
        os_sim_peek(world->sim, PATH, 0, &header, sizeof header);
        for (uint64_t n = rng_between(&rng, 1, 3); n; n--) {
            size_t at = rng_between(&rng, 56, offsetof(struct format_header, zero) - 8) / 4 * 4;
            uint32_t word = (uint32_t)(rng_next(&rng) >> rng_between(&rng, 32, 63));
            memcpy((uint8_t *)&header + at, &word, sizeof word);
        }
        header.checksum = checksum64(&header, offsetof(struct format_header, checksum));
        os_sim_poke(world->sim, PATH, 0, &header, sizeof header);
        os_sim_poke(world->sim, PATH, PAGE_BYTES, &header, sizeof header);
        struct findings findings;
        enum fkv_error error = check_closed_store(world, &findings);
        assert_true(error == FKV_OK || error == FKV_DAMAGED || error == FKV_NO_MEMORY);
        fkv_repair_result result;
        error = repair(os_sim_os(world->sim), PATH, NEW_PATH, NULL, &result);
        assert_true(error == FKV_OK || error == FKV_DAMAGED || error == FKV_NO_MEMORY);
        os_sim_free(world->sim);
    }
    world->sim = whole;
    world_drop(world);
}

/* An entry of the table that cannot be is refused when the store is opened, not when the sector has
 * been used. */
static void test_impossible_entries(void **state)
{
    (void)state;
    static const struct format_sector wrong[] = {
        {.type = SECTOR_FREE, .dead_cells = 7},
        {.type = SECTOR_FREE, .sequence = 7},
        {.type = SECTOR_VALUES, .dead_cells = UINT32_MAX, .pad_cells = 5}, /* 4, in 32 bits */
        {.type = SECTOR_VALUES, .dead_cells = SECTOR_CELLS - SECTOR_HEADER_CELLS + 1},
        {.type = SECTOR_LARGE, .pad_cells = 1},
        {.type = SECTOR_FREE, .pad_cells = 1}, /* this one behind the last sector */
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct world *world = world_make(19, FKV_NO_THREAD);
        world_open(world);
        for (int n = 0; n < 100; n++)
            random_step(world, 3000, 2);
        struct sectors *sectors = &world->db->sectors;
        uint32_t sector = sectors->count;
        if (i + 1 < sizeof wrong / sizeof *wrong) {
            assert_ok(sectors_take(sectors, &sector)); /* it is nobody's */
            sectors_give(sectors, sector);
        }
        assert_true(sector % SECTORS_PER_PAGE);
        *table_of(world, sector) = wrong[i];
        world_close(world);
        fkv *db;
        assert_error(store_open(os_sim_os(world->sim), PATH, NULL, &db), FKV_DAMAGED);
        assert_true(strstr(error_last(), "impossible entry") != NULL);
        world_drop(world);
    }
}

/* ---------------------------------------------------------------- when things fail */

/* With every n-th request for memory refused: an error, nothing lost or left behind. */
static void test_no_memory(void **state)
{
    (void)state;
    struct world *world = world_make(17, FKV_NO_THREAD);
    world_open(world);
    for (int i = 0; i < 200; i++)
        random_step(world, 100, 5);
    uint64_t blocks = memory_test_blocks();
    enum fkv_error error = FKV_NO_MEMORY;
    for (uint64_t n = 1; error; n++) {
        memory_test_fail(n, false);
        error = store_check(world->db, NULL, NULL);
        memory_test_fail(0, false);
        assert_true(error == FKV_OK || error == FKV_NO_MEMORY);
        assert_int_equal(memory_test_blocks(), blocks);
    }
    world_close(world);
    blocks = memory_test_blocks();
    error = FKV_NO_MEMORY;
    for (uint64_t n = 1; error; n++) {
        memory_test_fail(n, false);
        error = check_file(os_sim_os(world->sim), PATH, NULL, NULL);
        memory_test_fail(0, false);
        assert_true(error == FKV_OK || error == FKV_NO_MEMORY);
        assert_int_equal(memory_test_blocks(), blocks);
    }
    os_sim_flip_bit(world->sim, LOG_PATH, 9);
    for (uint64_t n = 1; error != FKV_DAMAGED; n++) {
        memory_test_fail(n, false);
        error = check_file(os_sim_os(world->sim), PATH, NULL, NULL);
        memory_test_fail(0, false);
        assert_true(error == FKV_DAMAGED || error == FKV_NO_MEMORY);
        assert_int_equal(memory_test_blocks(), blocks);
    }
    for (uint64_t n = 1; error; n++) {
        uint64_t size;
        memory_test_fail(n, false);
        error = repair(os_sim_os(world->sim), PATH, NEW_PATH, NULL, NULL);
        memory_test_fail(0, false);
        assert_true(error == FKV_OK || error == FKV_NO_MEMORY);
        assert_int_equal(memory_test_blocks(), blocks);
        /* No new store, or a whole one. */
        assert_int_equal(os_sim_file_size(world->sim, NEW_PATH, &size), error ? -ENOENT : 0);
    }
    struct findings findings;
    struct check_options options = note_options(&findings);
    assert_ok(check_file(os_sim_os(world->sim), NEW_PATH, &options, &findings.result));
    world_drop(world);
}

/* With every n-th call of the file system failing. */
static void test_input_errors(void **state)
{
    (void)state;
    struct world *world = world_make(18, FKV_NO_THREAD);
    world_open(world);
    for (int i = 0; i < 300; i++)
        random_step(world, 100, 5);
    world_close(world);
    for (int what = 0; what < 2; what++)
        for (uint64_t n = 1, failed = os_sim_failed(world->sim) + 1;
             os_sim_failed(world->sim) < failed; n += 1 + n / 20, failed++) {
            struct os_sim_fault fault = {.kinds = OS_SIM_ALL, .nth = n, .error = -EIO};
            struct findings findings;
            uint64_t size;
            os_sim_fail(world->sim, &fault);
            enum fkv_error error = what ? repair(os_sim_os(world->sim), PATH, NEW_PATH, NULL, NULL)
                                        : check_closed_store(world, &findings);
            os_sim_fail(world->sim, NULL);
            if (os_sim_failed(world->sim) < failed) {
                assert_ok(error);
                break;
            }
            assert_int_equal(os_sim_open_files(world->sim), 0);
            if (what && error && error != FKV_DAMAGED)
                assert_int_equal(os_sim_file_size(world->sim, NEW_PATH, &size), -ENOENT);
            os_sim_delete_file(world->sim, NEW_PATH);
            os_sim_delete_file(world->sim, NEW_LOG_PATH);
        }
    closed_must_be_healthy(world);
    world_drop(world);
}

static int note_memory(void *context, uint64_t done, uint64_t total)
{
    uint64_t *most = context;
    (void)done;
    (void)total;
    if (memory_test_bytes() > *most)
        *most = memory_test_bytes();
    return 0;
}

/* What the new store no longer needs is used again: a long repair takes no more than a short one.
 */
static void test_repair_in_little_memory(void **state)
{
    enum { MEGABYTES = 48, LITTLE = 24 << 20 };
    (void)state;
    struct world *world = world_make(22, 0);
    world_open(world);
    for (uint32_t i = 0; i < MEGABYTES * 10; i++)
        put(world, i, 100000);
    world_close(world);
    uint64_t before = memory_test_bytes(), most = before;
    struct repair_options options = {.progress = note_memory, .context = &most};
    fkv_repair_result result;
    assert_ok(repair(os_sim_os(world->sim), PATH, NEW_PATH, &options, &result));
    assert_int_equal(result.keys, MEGABYTES * 10);
    if (most - before > LITTLE)
        fail_msg("the repair took %" PRIu64 " bytes of memory", most - before);
    world_drop(world);
}

static int stop_at_once(void *context, uint64_t done, uint64_t total)
{
    uint64_t *calls = context;
    assert_true(done <= total);
    return ++*calls == 3;
}

static int stop_at_the_end(void *context, uint64_t done, uint64_t total)
{
    (void)context;
    return done == total;
}

static void test_progress(void **state)
{
    (void)state;
    struct world *world = damage_world(19, 0);
    uint64_t calls = 0;
    struct findings findings;
    struct check_options options = note_options(&findings);
    assert_ok(store_check(world->db, &options, &findings.result));
    options = (struct check_options){.progress = stop_at_once, .context = &calls};
    fkv_check_result result;
    assert_error(store_check(world->db, &options, &result), FKV_CANCELLED);
    assert_int_equal(calls, 3);
    assert_false(result.complete);
    options.progress = stop_at_the_end;
    assert_error(store_check(world->db, &options, &result), FKV_CANCELLED);
    assert_false(result.complete);
    assert_int_equal(result.keys, findings.result.keys);
    world_close(world);
    struct repair_options repair_options = {.progress = stop_at_once, .context = &calls};
    fkv_repair_result repaired;
    uint64_t size;
    calls = 0;
    assert_error(repair(os_sim_os(world->sim), PATH, NEW_PATH, &repair_options, &repaired),
                 FKV_CANCELLED);
    assert_true(strstr(error_last(), "cancelled") != NULL);
    assert_false(repaired.complete);
    assert_int_equal(os_sim_file_size(world->sim, NEW_PATH, &size), -ENOENT);
    repair_options.progress = stop_at_the_end; /* with all of the new store written */
    assert_error(repair(os_sim_os(world->sim), PATH, NEW_PATH, &repair_options, &repaired),
                 FKV_CANCELLED);
    assert_false(repaired.complete);
    assert_int_equal(os_sim_file_size(world->sim, NEW_PATH, &size), -ENOENT);
    /* one that exists is not written over */
    assert_int_equal(os_sim_put_file(world->sim, NEW_PATH, "abc", 3), 0);
    assert_error(repair(os_sim_os(world->sim), PATH, NEW_PATH, NULL, NULL), FKV_EXISTS);
    assert_int_equal(os_sim_file_size(world->sim, NEW_PATH, &size), 0);
    assert_int_equal(size, 3);
    enum fkv_error error;
    for (uint64_t n = 1; n < 5000; n += 1 + n / 8) { /* nor removed, whatever else goes wrong */
        memory_test_fail(n, true);
        error = repair(os_sim_os(world->sim), PATH, NEW_PATH, NULL, NULL);
        memory_test_fail(0, false);
        assert_true(error == FKV_NO_MEMORY || error == FKV_EXISTS);
        assert_int_equal(os_sim_file_size(world->sim, NEW_PATH, &size), 0);
    }
    assert_int_equal(error, FKV_EXISTS);
    /* and what is no store is none */
    assert_error(repair(os_sim_os(world->sim), NEW_PATH, "d/other", NULL, NULL), FKV_NOT_A_STORE);
    assert_error(check_file(os_sim_os(world->sim), NEW_PATH, NULL, NULL), FKV_NOT_A_STORE);
    assert_error(check_file(os_sim_os(world->sim), "d/nothing", NULL, NULL), FKV_NOT_EXIST);
    /* nor is a log that is in the way */
    os_sim_delete_file(world->sim, NEW_PATH);
    assert_int_equal(os_sim_copy_file(world->sim, NEW_LOG_PATH, world->sim, LOG_PATH), 0);
    assert_error(repair(os_sim_os(world->sim), PATH, NEW_PATH, NULL, NULL), FKV_LOG_MISMATCH);
    assert_int_equal(os_sim_file_size(world->sim, NEW_PATH, &size), -ENOENT);
    assert_int_equal(os_sim_file_size(world->sim, NEW_LOG_PATH, &size), 0);
    world_drop(world);
}

/* ---------------------------------------------------------------- online, and the public calls */

struct traffic {
    fkv *db;
    _Atomic bool stop;
    uint64_t seed;
};

/* Writes as long as it may. Errors show in the check. */
static void *writes(void *context)
{
    struct traffic *traffic = context;
    struct rng rng = rng_make(traffic->seed);
    while (!traffic->stop) {
        uint8_t key[2000];
        size_t key_bytes = key_of((uint32_t)rng_below(&rng, 2000), key);
        if (rng_percent(&rng, 30))
            fkv_delete(traffic->db, key, key_bytes);
        else
            fkv_put(traffic->db, key, key_bytes, pool,
                    rng_percent(&rng, 1) ? 2000000 : rng_below(&rng, 3000));
    }
    return NULL;
}

static void *checkpoints(void *context)
{
    struct traffic *traffic = context;
    while (!traffic->stop)
        fkv_checkpoint(traffic->db);
    return NULL;
}

static void *reads(void *context)
{
    struct traffic *traffic = context;
    struct rng rng = rng_make(traffic->seed);
    static uint8_t value[2000000];
    while (!traffic->stop) {
        uint8_t key[2000];
        fkv_get(traffic->db, key, key_of((uint32_t)rng_below(&rng, 2000), key), value, sizeof value,
                NULL);
    }
    return NULL;
}

static void print_problem(void *context, const fkv_problem *problem)
{
    (void)context;
    print_message("%s: %s\n", fkv_part_name(problem->part), problem->text);
}

static void test_online(void **state)
{
    (void)state;
    struct traffic traffic = {.seed = 3};
    void *(*const bodies[])(void *) = {writes, writes, checkpoints, reads};
    pthread_t threads[4];
    fkv_options options;
    fkv_options_init(&options);
    options.log_bytes_max = 4 << 20;
    assert_ok(fkv_open(support_path("online"), &options, &traffic.db));
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, bodies[i], &traffic), 0);
    fkv_check_options check;
    fkv_check_options_init(&check);
    check.problem = print_problem;
    double until = support_now() + 2;
    for (int checks = 0; checks < 5 || support_now() < until; checks++) {
        fkv_check_result result;
        assert_ok(fkv_check(traffic.db, &check, &result, sizeof result));
        assert_true(result.complete && !result.problems);
    }
    traffic.stop = true;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_error(fkv_check_file(support_path("online"), &check, NULL, 0), FKV_IN_USE);
    assert_ok(fkv_close(traffic.db));
    fkv_check_result result;
    assert_ok(fkv_check_file(support_path("online"), &check, &result, sizeof result));
    fkv_repair_result repaired;
    assert_ok(fkv_repair(support_path("online"), support_path("again"), NULL, &repaired,
                         sizeof repaired));
    assert_int_equal(repaired.keys, result.keys);
    assert_ok(fkv_check_file(support_path("again"), &check, NULL, 0));
}

static void test_arguments(void **state)
{
    (void)state;
    fkv_check_result result;
    fkv_check_options options;
    fkv_repair_options how;
    fkv *db;
    assert_ok(fkv_open(support_path("arguments"), NULL, &db));
    assert_error(fkv_check(NULL, NULL, &result, sizeof result), FKV_INVALID);
    fkv_check_options_init(&options);
    options.flags = 1;
    assert_error(fkv_check(db, &options, &result, sizeof result), FKV_INVALID);
    assert_true(strlen(fkv_error_detail(db)) > 0);
    options.flags = 0;
    options.size = 4;
    assert_error(fkv_check(db, &options, &result, sizeof result), FKV_INVALID);
    /* an older program's structures, and a newer one's */
    struct {
        fkv_check_result result;
        char more[8];
    } larger = {.more = "abcdefg"};
    fkv_check_options_init(&options);
    options.size = offsetof(fkv_check_options, progress);
    options.progress = (int (*)(void *, uint64_t, uint64_t))1; /* it does not know of this */
    assert_ok(fkv_check(db, &options, &larger.result, sizeof larger));
    assert_int_equal(larger.more[0], 0);
    result.keys = 77;
    assert_ok(fkv_check(db, NULL, &result, offsetof(fkv_check_result, keys)));
    assert_int_equal(result.keys, 77);
    assert_ok(fkv_close(db));
    options.size = 4;
    assert_error(fkv_check_file(support_path("arguments"), &options, NULL, 0), FKV_INVALID);
    assert_string_equal(fkv_part_name((enum fkv_part)99), "unknown part");
    assert_error(fkv_check_file(NULL, NULL, NULL, 0), FKV_INVALID);
    assert_error(fkv_check_file("", NULL, NULL, 0), FKV_INVALID);
    assert_error(fkv_check_file(support_path("none"), NULL, NULL, 0), FKV_NOT_EXIST);
    assert_error(fkv_check_file("/tmp", NULL, NULL, 0), FKV_IS_DIRECTORY);
    assert_error(fkv_repair(support_path("arguments"), NULL, NULL, NULL, 0), FKV_INVALID);
    fkv_repair_options_init(&how);
    how.flags = 1;
    assert_error(fkv_repair("a", "b", &how, NULL, 0), FKV_INVALID);
    assert_error(fkv_repair(support_path("none"), support_path("new"), NULL, NULL, 0),
                 FKV_NOT_EXIST);
    assert_error(fkv_repair(support_path("arguments"), support_path("arguments"), NULL, NULL, 0),
                 FKV_EXISTS);
    assert_ok(fkv_check_file(support_path("arguments"), NULL, NULL, 0));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_every_step),
        cmocka_unit_test(test_many_keys),
        cmocka_unit_test(test_after_kill),
        cmocka_unit_test(test_damage_is_found),
        cmocka_unit_test(test_contradictions_are_found),
        cmocka_unit_test(test_entry_to_what_is_gone),
        cmocka_unit_test(test_empty_key_is_compared),
        cmocka_unit_test(test_rest_is_checked),
        cmocka_unit_test(test_log_damage),
        cmocka_unit_test(test_unreadable_log),
        cmocka_unit_test(test_flips_anywhere),
        cmocka_unit_test(test_repair_of_healthy_stores),
        cmocka_unit_test(test_repair_of_damage),
        cmocka_unit_test(test_repair_without_pages),
        cmocka_unit_test(test_repair_without_headers),
        cmocka_unit_test(test_repair_with_a_damaged_log),
        cmocka_unit_test(test_repair_with_another_log),
        cmocka_unit_test(test_repair_of_contradictions),
        cmocka_unit_test(test_impossible_entries),
        cmocka_unit_test(test_repair_of_moved_records),
        cmocka_unit_test(test_repair_of_a_cut_file),
        cmocka_unit_test(test_repair_of_chance),
        cmocka_unit_test(test_repair_in_little_memory),
        cmocka_unit_test(test_made_up_headers),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_input_errors),
        cmocka_unit_test(test_progress),
        cmocka_unit_test(test_online),
        cmocka_unit_test(test_arguments),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
