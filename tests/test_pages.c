/*
 * test_pages: the page store alone, on the simulated disk, against a model: an array with the
 * version of every page, from which its bytes follow.
 *
 * What is tested is the promise of pages.h: a checkpoint, taken in small steps while pages change,
 * holds exactly the state at its beginning; a crash at any moment leaves the last one that ended;
 * one that fails is as if it had not been; no damage of the file is ever taken for a page.
 */
#include "support.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "checksum.h"
#include "os_sim.h"
#include "planted.h"

enum { PAGES_MAX = 9000 }; /* enough for three levels of nodes above 4,096 and 8,192 pages */

/* What the pages hold: their versions; 0 is zeros. */
struct model {
    uint32_t count[SPACE_COUNT];
    uint32_t version[SPACE_COUNT][PAGES_MAX];
};

enum stage { IDLE, CAPTURING, WRITTEN };

struct world {
    struct rng rng;
    struct os_sim *sim;
    struct page_file file;
    uint32_t version;
    enum stage stage;
    struct model now, begun, durable;
    struct format_space roots[SPACE_COUNT]; /* of what is durable */
    bool empty;                             /* nothing is durable yet */
    uint64_t checkpoints, abandoned, crashes, spilled, evicted, parked, unparked;
};

/* What a page holds: all of it is new in each VERSIONS-th version, and a unit in each other. */
enum { VERSIONS = 64 };

/* The unit that is new in this version. */
static uint32_t unit_of(uint32_t version)
{
    return checksum_mix(version) % PAGE_UNITS;
}

static void content(enum space space, uint32_t number, uint32_t version, uint64_t *words)
{
    if (!version) {
        memset(words, 0, PAGE_BYTES);
        return;
    }
    uint32_t first = version / VERSIONS * VERSIONS;
    struct rng rng = rng_make(rng_mix(space, number, first));
    for (size_t i = 0; i < PAGE_BYTES / 8; i++)
        words[i] = rng_next(&rng);
    for (uint32_t v = first + 1; v <= version; v++)
        words[unit_of(v) * UNIT_BYTES / 8] = v;
}

/* What has a content of its own. */
static uint32_t new_version(struct world *world)
{
    return world->version += VERSIONS;
}

static void open_file(struct world *world)
{
    assert_ok(page_file_open(&world->file, os_sim_os(world->sim), "pages",
                             world->empty ? NULL : world->roots));
    assert_ok(pages_allow_parking(&world->file.pages));
}

static void check_page(struct world *world, enum space space, uint32_t number)
{
    uint64_t expected[PAGE_BYTES / 8];
    uint32_t frame;
    assert_ok(pages_load(&world->file.pages, space, number, &frame));
    content(space, number, world->now.version[space][number], expected);
    assert_memory_equal(frame_bytes(&world->file.pages, frame), expected, PAGE_BYTES);
    assert_ptr_equal(pages_read(&world->file.pages, space, number),
                     frame_bytes(&world->file.pages, frame));
}

static void check_all(struct world *world)
{
    for (int s = 0; s < SPACE_COUNT; s++)
        for (uint32_t n = 0; n < world->now.count[s]; n++)
            check_page(world, s, n);
}

/* Places in the file that the trees in memory refer to are those in use: none is lost. */
static void check_places(const struct world *world)
{
    const struct pages *pages = &world->file.pages;
    uint64_t places = 0, used = 0;
    for (int s = 0; s < SPACE_COUNT; s++) {
        const struct page_space *space = &pages->space[s];
        for (uint32_t n = 0; n < space->page_count; n++)
            places += pages_find(pages, s, n)->location != 0;
        uint32_t nodes = space->page_count;
        for (uint32_t k = 0; nodes > 1 || (nodes == 1 && k == 0); k++) {
            nodes = (uint32_t)divide_up(nodes, NODE_FANOUT);
            for (uint32_t n = 0; n < nodes; n++)
                places += space->level[k][n].location != 0;
        }
    }
    for (uint32_t i = 0; i < pages->places.sector_count; i++)
        used += pages->places.sectors[i].used_count;
    assert_int_equal(used, pages->places.used_count);
    assert_int_equal(places, pages->places.used_count);
}

/* ---------------------------------------------------------------- steps */

static void extend(struct world *world)
{
    enum space space = (enum space)rng_below(&world->rng, SPACE_COUNT);
    uint32_t more = (uint32_t)rng_between(&world->rng, 1, rng_percent(&world->rng, 10) ? 3000 : 60);
    uint32_t count = (uint32_t)min_u64(world->now.count[space] + more, PAGES_MAX);
    assert_ok(pages_extend(&world->file.pages, space, count));
    world->now.count[space] = count;
}

static void change(struct world *world, enum space space, uint32_t number)
{
    struct pages *pages = &world->file.pages;
    struct page *page = pages_find(pages, space, number);
    uint32_t *version = &world->now.version[space][number];
    uint32_t frame;
    assert_ok(pages_reserve_frames(pages, 4));
    if ((*version || pages_is_parked(pages, space, number)) && !page->frame)
        assert_ok(pages_load(pages, space, number, &frame));
    unsigned kind = (unsigned)rng_below(&world->rng, 10);
    if (kind == 0) { /* away with it */
        frame = pages_discard(pages, space, number);
        if (frame)
            frame_free(pages, frame);
        *version = 0;
    } else if (kind == 1 && !page->frame) { /* a new frame for it, as for a new segment */
        frame = frame_new(pages);
        assert_true(frame);
        *version = new_version(world);
        content(space, number, *version, frame_bytes(pages, frame));
        pages_place(pages, space, number, frame);
    } else {
        assert_ok(pages_load(pages, space, number, &frame));
        uint8_t *bytes = pages_write(pages, space, number);
        bool unit = *version && (*version + 1) % VERSIONS && rng_percent(&world->rng, 70);
        *version = unit ? *version + 1 : rng_percent(&world->rng, 5) ? 0 : new_version(world);
        content(space, number, *version, (uint64_t *)bytes);
        uint32_t first = unit ? unit_of(*version) : 0;
        for (uint32_t u = first; u < (unit ? first + 1 : PAGE_UNITS); u++)
            pages_note(pages, bytes + u * UNIT_BYTES);
    }
}

static void change_some(struct world *world)
{
    bool index = rng_percent(&world->rng, 30); /* and some more of its pages */
    enum space space = index ? SPACE_INDEX : (enum space)rng_below(&world->rng, SPACE_COUNT);
    uint32_t count = world->now.count[space];
    if (!count)
        return;
    uint32_t near = (uint32_t)rng_below(&world->rng, count);
    for (uint32_t i = (uint32_t)rng_between(&world->rng, 1, 12); i > 0; i--) {
        bool neighbour = rng_percent(&world->rng, 60);
        change(world, space,
               neighbour ? near : (uint32_t)rng_below(&world->rng, world->now.count[space]));
        near = (near + 1) % count;
    }
}

/* Changed pages go to the file while no checkpoint runs, or cannot; and clean ones out of memory.
 */
static void spill_some(struct world *world)
{
    struct pages *pages = &world->file.pages;
    enum space space = (enum space)rng_below(&world->rng, SPACE_COUNT);
    struct os_sim_fault fault = {.kinds = OS_SIM_WRITE, .nth = 1, .error = -EIO};
    uint32_t count = world->now.count[space];
    uint32_t first = count ? (uint32_t)rng_below(&world->rng, count) : 0;
    for (uint32_t i = 0; i < count && i < 300; i++) {
        uint32_t number = (first + i) % count;
        struct page *page = pages_find(pages, space, number);
        if (pages_can_spill(pages) && pages_is_changed(pages, page)) {
            bool fails = world->now.version[space][number] && rng_percent(&world->rng, 5);
            if (fails)
                os_sim_fail(world->sim, &fault);
            assert_error(pages_spill(pages, space, number), fails ? FKV_IO : FKV_OK);
            os_sim_fail(world->sim, NULL);
            assert_int_equal(pages_is_changed(pages, page), fails);
            world->spilled += !fails;
        }
        if (page->frame && pages_is_clean(pages, page) && rng_percent(&world->rng, 30)) {
            frame_free(pages, pages_evict(pages, space, number));
            world->evicted++;
        }
    }
}

/* It may fail: the disk has no room, or the page cannot be read. Then it is still parked. */
static void unpark(struct world *world, uint32_t number, unsigned failing)
{
    struct pages *pages = &world->file.pages;
    const struct os_sim_fault fault = {.kinds = rng_percent(&world->rng, 50) ? OS_SIM_WRITE
                                                                             : OS_SIM_READ,
                                       .nth = 1,
                                       .error = -EIO};
    if (rng_percent(&world->rng, failing))
        os_sim_fail(world->sim, &fault);
    bool unread;
    enum fkv_error error = pages_spill_parked(pages, SPACE_INDEX, number, &unread);
    os_sim_fail(world->sim, NULL);
    assert_true(!error || error == FKV_IO);
    assert_int_equal(pages_is_parked(pages, SPACE_INDEX, number), error != FKV_OK);
    world->unparked += !error;
}

/* Changed pages go out of memory, and to the file later. */
static void park_some(struct world *world)
{
    struct pages *pages = &world->file.pages;
    uint32_t count = world->now.count[SPACE_INDEX];
    for (uint32_t number = 0; number < count; number++) {
        struct page *page = pages_find(pages, SPACE_INDEX, number);
        if (page->frame && pages_can_park(pages, page) && rng_percent(&world->rng, 50)) {
            uint32_t frame = pages_park(pages, SPACE_INDEX, number);
            assert_true(frame);
            frame_free(pages, frame);
            world->parked++;
        } else if (pages_is_parked(pages, SPACE_INDEX, number) && rng_percent(&world->rng, 10)) {
            if (pages_can_spill(pages))
                unpark(world, number, 5);
        }
    }
}

/* Before a checkpoint begins. */
static void unpark_all(struct world *world)
{
    struct pages *pages = &world->file.pages;
    for (uint32_t number = 0; pages->parked_pages; number++)
        if (pages_is_parked(pages, SPACE_INDEX, number))
            unpark(world, number, 0);
}

static void abandon(struct world *world)
{
    pages_checkpoint_abandon(&world->file.pages);
    world->stage = IDLE;
    world->abandoned++;
}

/* The next step of a checkpoint, or the first. */
static void advance(struct world *world)
{
    struct pages *pages = &world->file.pages;
    bool done = false;
    switch (world->stage) {
    case IDLE:
        if (rng_percent(&world->rng, 80)) /* a while, in which pages are spilled and parked */
            break;
        unpark_all(world);
        pages_checkpoint_begin(pages);
        world->begun = world->now;
        world->stage = CAPTURING;
        break;
    case CAPTURING:
        for (uint64_t groups = rng_between(&world->rng, 1, 4); groups > 0; groups--) {
            uint32_t staged = pages->staged;
            assert_ok(pages_capture(pages, (uint32_t)rng_between(&world->rng, 1, 40), &done));
            if (pages->staged == staged)
                break;
            /* The writer is not held while what it has captured is written. */
            if (rng_percent(&world->rng, 30))
                change_some(world);
            if (rng_percent(&world->rng, 5))
                extend(world);
        }
        assert_ok(pages_write_staged(pages));
        if (done)
            world->stage = WRITTEN;
        break;
    case WRITTEN:
        assert_int_equal(world->file.os->ops->sync(world->file.file), 0);
        pages_roots(pages, world->roots); /* the header is durable from here on */
        world->durable = world->begun;
        world->empty = false;
        if (rng_percent(&world->rng, 90)) {
            pages_checkpoint_done(pages);
            world->stage = IDLE;
            world->checkpoints++;
            check_places(world);
        } else { /* it is, but its process died before it knew */
            world->stage = IDLE;
            world->crashes++;
            os_sim_kill(world->sim, rng_next(&world->rng));
            page_file_drop(&world->file);
            world->now = world->durable;
            open_file(world);
            check_places(world);
        }
        break;
    }
}

static void crash(struct world *world)
{
    os_sim_crash(world->sim, rng_next(&world->rng));
    page_file_drop(&world->file);
    world->stage = IDLE;
    world->now = world->durable;
    world->crashes++;
    open_file(world);
    check_places(world);
    if (rng_percent(&world->rng, 50))
        check_all(world);
}

/* No sector is to be had in the middle of it, or the disk has no room for a write. */
static void run_out(struct world *world)
{
    struct pages *pages = &world->file.pages;
    struct os_sim_fault fault = {
        .kinds = OS_SIM_WRITE, .nth = rng_between(&world->rng, 1, 4), .error = -ENOSPC};
    bool done = false;
    if (world->stage != CAPTURING)
        return;
    bool no_sector = rng_percent(&world->rng, 50);
    if (no_sector)
        world->file.sectors_max = 0;
    else
        os_sim_fail(world->sim, &fault);
    enum fkv_error error = FKV_OK, written = FKV_OK;
    for (int group = 0; !done && !error && !written && group < 100; group++) {
        error = pages_capture(pages, 16, &done);
        written = pages_write_staged(pages);
    }
    os_sim_fail(world->sim, NULL);
    world->file.sectors_max = PAGE_FILE_SECTORS_MAX;
    if (error || written) {
        assert_true(error == FKV_OK || error == FKV_FULL);
        assert_true(written == FKV_OK || written == FKV_FULL);
        abandon(world);
    } else if (done) {
        world->stage = WRITTEN;
    }
}

static void make_world(struct world *world, uint64_t seed)
{
    memset(world, 0, sizeof *world);
    world->rng = rng_make(seed);
    world->empty = true;
    struct os_sim_options options = {.seed = rng_next(&world->rng)};
    world->sim = os_sim_new(&options);
    open_file(world);
}

static void drop_world(struct world *world)
{
    page_file_drop(&world->file);
    os_sim_free(world->sim);
}

static void test_model(void **state)
{
    (void)state;
    uint64_t blocks = memory_test_blocks();
    struct world *world = malloc(sizeof *world);
    uint64_t checkpoints = 0, abandoned = 0, crashes = 0, spilled = 0, evicted = 0;
    uint64_t parked = 0, unparked = 0;
    for (struct rounds r = rounds_begin(6); rounds_next(&r);) {
        make_world(world, r.seed);
        uint64_t steps = rng_between(&world->rng, 1000, 5000);
        unsigned calm = (unsigned)rng_between(&world->rng, 1, 60);
        extend(world);
        for (uint64_t step = 0; step < steps; step++) {
            unsigned what = (unsigned)rng_below(&world->rng, 1000);
            if (what < 2)
                crash(world);
            else if (what < 12)
                run_out(world);
            else if (what < 14 && world->stage == CAPTURING)
                abandon(world);
            else if (what < 30)
                extend(world);
            else if (what < 30 + calm * 10)
                change_some(world);
            else if (what < 30 + calm * 11)
                spill_some(world);
            else if (what < 30 + calm * 12)
                park_some(world);
            else
                advance(world);
        }
        check_all(world);
        checkpoints += world->checkpoints;
        abandoned += world->abandoned;
        crashes += world->crashes;
        spilled += world->spilled;
        evicted += world->evicted;
        parked += world->parked;
        unparked += world->unparked;
        drop_world(world);
    }
    free(world);
    print_message("%" PRIu64 " checkpoints, %" PRIu64 " pages spilled, %" PRIu64
                  " evicted, %" PRIu64 " parked, %" PRIu64 " of them spilled\n",
                  checkpoints, spilled, evicted, parked, unparked);
    assert_true(checkpoints > 20 && abandoned > 5 && crashes > 5);
    assert_true(spilled > 100 && evicted > 1000 && parked > 300 && unparked > 100);
    assert_int_equal(memory_test_blocks(), blocks);
}

/* ---------------------------------------------------------------- damage */

/* A store of a few hundred pages, in a tree of two levels. */
static void make_pages(struct world *world, uint64_t seed)
{
    make_world(world, seed);
    for (int s = 0; s < SPACE_COUNT; s++) {
        world->now.count[s] = s == 0 ? 700 : 40;
        assert_ok(pages_extend(&world->file.pages, s, world->now.count[s]));
    }
    for (int i = 0; i < 400; i++)
        change_some(world);
    assert_ok(page_file_checkpoint(&world->file, world->roots));
    os_sim_settle(world->sim);
    world->durable = world->now;
    world->empty = false;
}

static enum fkv_error reopen(struct world *world)
{
    page_file_drop(&world->file);
    enum fkv_error error =
        page_file_open(&world->file, os_sim_os(world->sim), "pages", world->roots);
    for (int s = 0; !error && s < SPACE_COUNT; s++)
        for (uint32_t n = 0; !error && n < world->now.count[s]; n++) {
            uint32_t frame;
            error = pages_load(&world->file.pages, s, n, &frame);
        }
    return error;
}

/* Pages are changed beside a checkpoint, and spilled if they may be: what it holds is what was
 * there at its beginning. */
static bool checkpoint_holds_its_moment(void)
{
    struct world *world = malloc(sizeof *world);
    struct pages *pages = &world->file.pages;
    bool done = false;
    make_pages(world, 5);
    for (int i = 0; i < 200; i++)
        change_some(world);
    pages_checkpoint_begin(pages);
    world->begun = world->now;
    while (!done) {
        assert_ok(pages_capture(pages, 8, &done));
        assert_ok(pages_write_staged(pages));
        change_some(world);
        spill_some(world);
    }
    pages_roots(pages, world->roots);
    pages_checkpoint_done(pages);
    world->now = world->begun;
    bool good = reopen(world) == FKV_OK;
    for (int s = 0; good && s < SPACE_COUNT; s++)
        for (uint32_t n = 0; good && n < world->now.count[s]; n++) {
            uint64_t expected[PAGE_BYTES / 8];
            uint32_t frame;
            content(s, n, world->now.version[s][n], expected);
            good = pages_load(pages, s, n, &frame) == FKV_OK &&
                   memcmp(frame_bytes(pages, frame), expected, PAGE_BYTES) == 0;
        }
    drop_world(world);
    free(world);
    return good;
}

static void test_spilling_beside(void **state)
{
    (void)state;
    assert_true(checkpoint_holds_its_moment());
    planted_bug = PLANTED_SPILL_BESIDE;
    bool good = checkpoint_holds_its_moment();
    planted_bug = PLANTED_NOTHING;
    assert_false(good);
}

/* All places that hold something. */
static uint32_t list_places(const struct world *world, uint64_t *places)
{
    const struct pages *pages = &world->file.pages;
    uint32_t count = 0;
    for (uint32_t i = 0; i < pages->places.sector_count; i++)
        for (uint32_t p = 0; p < SECTOR_PAGES; p++)
            if (pages->places.sectors[i].used[p >> 6] >> (p & 63) & 1)
                places[count++] = (uint64_t)pages->places.sectors[i].sector * SECTOR_PAGES + p;
    return count;
}

static void test_damage_is_found(void **state)
{
    (void)state;
    struct world *world = malloc(sizeof *world);
    make_pages(world, 1);
    static uint64_t places[PAGES_MAX];
    uint32_t count = list_places(world, places);
    assert_true(count > 300);
    assert_ok(reopen(world));
    for (uint32_t i = 0; i < count; i += 3) { /* a bit of it */
        uint64_t bit = places[i] * PAGE_BYTES * 8 + rng_below(&world->rng, PAGE_BYTES * 8);
        assert_int_equal(os_sim_flip_bit(world->sim, "pages", bit), 0);
        assert_error(reopen(world), FKV_DAMAGED);
        assert_int_equal(os_sim_flip_bit(world->sim, "pages", bit), 0);
    }
    for (int i = 0; i < 60; i++) { /* one page in another's place */
        uint64_t a = places[rng_below(&world->rng, count)],
                 b = places[rng_below(&world->rng, count)];
        if (a == b)
            continue;
        os_sim_swap(world->sim, "pages", a * PAGE_BYTES, b * PAGE_BYTES, PAGE_BYTES);
        assert_error(reopen(world), FKV_DAMAGED);
        os_sim_swap(world->sim, "pages", a * PAGE_BYTES, b * PAGE_BYTES, PAGE_BYTES);
    }
    for (int i = 0; i < 40; i++) { /* a page that was never written */
        uint8_t page[PAGE_BYTES];
        uint64_t at = places[rng_below(&world->rng, count)] * PAGE_BYTES;
        os_sim_peek(world->sim, "pages", at, page, PAGE_BYTES);
        os_sim_zero(world->sim, "pages", at, PAGE_BYTES);
        assert_error(reopen(world), FKV_DAMAGED);
        os_sim_poke(world->sim, "pages", at, page, PAGE_BYTES);
    }
    assert_ok(reopen(world));
    check_all(world);
    drop_world(world);
    free(world);
}

/* Many at once: those that are asked for, if they are whole; the frames of others are free. */
static void test_many_are_loaded(void **state)
{
    (void)state;
    struct world *world = malloc(sizeof *world);
    make_pages(world, 3);
    struct pages *pages = &world->file.pages;
    pages_a_loader = 1;
    for (int round = 0; round < 20; round++) {
        uint64_t wanted[12] = {0};
        uint32_t damaged = 0;
        uint64_t bit = 0;
        for (uint32_t n = 0; n < 700; n++)
            if (round == 0 || rng_percent(&world->rng, (uint32_t)round * 5))
                wanted[n / 64] |= 1ull << n % 64;
        while (!pages_find(pages, SPACE_INDEX, damaged)->location)
            damaged++;
        if (round % 2) {
            bit = pages_find(pages, SPACE_INDEX, damaged)->location * PAGE_BYTES * 8 + 77;
            assert_int_equal(os_sim_flip_bit(world->sim, "pages", bit), 0);
        }
        page_file_drop(&world->file);
        assert_ok(page_file_open(&world->file, os_sim_os(world->sim), "pages", world->roots));
        pages_load_wanted(pages, SPACE_INDEX, wanted, round % 4 < 2);
        uint32_t in_frames = 0;
        for (uint32_t n = 0; n < 700; n++) {
            const struct page *page = pages_find(pages, SPACE_INDEX, n);
            bool expected =
                page->location && (wanted[n / 64] >> n % 64 & 1) && !(round % 2 && n == damaged);
            assert_int_equal(page->frame != 0, expected);
            in_frames += expected;
        }
        assert_int_equal(pages->space[SPACE_INDEX].frame_count, in_frames);
        assert_int_equal(pages->frames.count - 1, in_frames + pages->frames.free_count);
        if (round % 2)
            assert_int_equal(os_sim_flip_bit(world->sim, "pages", bit), 0);
        check_all(world);
    }
    pages_a_loader = 4096;
    drop_world(world);
    free(world);
}

/* What a page was before has another checksum than what refers to it, at the same place too. */
static void test_old_pages_are_found(void **state)
{
    (void)state;
    struct world *world = malloc(sizeof *world);
    make_pages(world, 2);
    static uint8_t old[4 * SECTOR_BYTES];
    uint64_t bytes;
    os_sim_file_size(world->sim, "pages", &bytes);
    assert_in_range(bytes, 1, sizeof old);
    os_sim_peek(world->sim, "pages", 0, old, bytes);
    for (int i = 0; i < 9; i++) { /* so many that places come round again */
        for (int k = 0; k < 30; k++)
            change_some(world);
        assert_ok(page_file_checkpoint(&world->file, world->roots));
    }
    os_sim_settle(world->sim);
    static uint64_t places[PAGES_MAX];
    uint32_t count = list_places(world, places), stale = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t page[PAGE_BYTES];
        if ((places[i] + 1) * PAGE_BYTES > bytes)
            continue;
        os_sim_peek(world->sim, "pages", places[i] * PAGE_BYTES, page, PAGE_BYTES);
        if (memcmp(page, old + places[i] * PAGE_BYTES, PAGE_BYTES) == 0)
            continue;
        if (stale++ % 4)
            continue;
        os_sim_poke(world->sim, "pages", places[i] * PAGE_BYTES, old + places[i] * PAGE_BYTES,
                    PAGE_BYTES);
        assert_error(reopen(world), FKV_DAMAGED);
        os_sim_poke(world->sim, "pages", places[i] * PAGE_BYTES, page, PAGE_BYTES);
    }
    assert_true(stale > 50);
    assert_ok(reopen(world));
    check_all(world);
    drop_world(world);
    free(world);
}

static void test_impossible_roots(void **state)
{
    (void)state;
    struct world *world = malloc(sizeof *world);
    make_pages(world, 3);
    struct format_space sound[SPACE_COUNT];
    memcpy(sound, world->roots, sizeof sound);
    world->roots[1].height++;
    assert_error(reopen(world), FKV_DAMAGED);
    memcpy(world->roots, sound, sizeof sound);
    world->roots[2].root.location = 1ull << 40;
    assert_error(reopen(world), FKV_DAMAGED);
    world->roots[2].root.location = 5; /* in the header's sector */
    assert_error(reopen(world), FKV_DAMAGED);
    world->roots[2].root = world->roots[3].root; /* twice the same */
    assert_error(reopen(world), FKV_DAMAGED);
    memcpy(world->roots, sound, sizeof sound);
    world->roots[0].pages = UINT32_MAX;
    assert_error(reopen(world), FKV_DAMAGED);
    memcpy(world->roots, sound, sizeof sound);
    world->roots[0].root.checksum ^= 1;
    assert_error(reopen(world), FKV_DAMAGED);
    memcpy(world->roots, sound, sizeof sound);
    assert_ok(reopen(world));
    drop_world(world);
    free(world);
}

/* ---------------------------------------------------------------- memory */

/* Each request for memory fails once: an error is returned, and nothing is lost or leaks. */
static void test_memory_fails(void **state)
{
    (void)state;
    struct world *world = malloc(sizeof *world);
    uint64_t blocks = memory_test_blocks();
    bool failed = true;
    for (uint64_t nth = 1; failed; nth++) {
        make_world(world, 5);
        struct pages *pages = &world->file.pages;
        uint64_t requests = memory_test_requests();
        memory_test_fail(nth, false);
        enum fkv_error error = FKV_OK;
        for (uint32_t count = 200; count <= 4500 && !error; count += 2000) {
            for (int s = 0; s < SPACE_COUNT && !error; s++)
                if (!(error = pages_extend(pages, s, count)))
                    world->now.count[s] = count;
            if (!error && !(error = pages_reserve_frames(pages, 40)))
                for (int i = 0; i < 3; i++)
                    change_some(world);
            if (!error) {
                world->begun = world->now;
                if (!(error = page_file_checkpoint(&world->file, world->roots))) {
                    world->durable = world->begun;
                    world->empty = false;
                }
            }
        }
        memory_test_fail(0, false);
        failed = memory_test_requests() - requests >= nth;
        if (error)
            assert_int_equal(error, FKV_NO_MEMORY);
        else
            assert_false(failed);
        assert_ok(page_file_checkpoint(&world->file, world->roots));
        assert_ok(reopen(world));
        check_all(world);
        check_places(world);
        drop_world(world);
        assert_int_equal(memory_test_blocks(), blocks);
    }
    free(world);
}

static void change_one_of_each_node(struct pages *pages, uint32_t nodes, uint32_t version)
{
    for (uint32_t node = 0; node < nodes; node++) {
        uint32_t frame;
        assert_ok(pages_load(pages, 0, node * NODE_FANOUT, &frame));
        content(0, node * NODE_FANOUT, version, pages_write(pages, 0, node * NODE_FANOUT));
    }
}

/* Changed pages that lie far apart have a node each: there are places for these too; also for the
 * few that an operation changes without a word. */
static void test_places_for_nodes(void **state)
{
    (void)state;
    enum { NODES = 1500, UNCOUNTED = 64 };
    struct world *world = malloc(sizeof *world);
    make_world(world, 7);
    struct pages *pages = &world->file.pages;
    assert_ok(pages_extend(pages, 0, NODES * NODE_FANOUT));
    change_one_of_each_node(pages, NODES, 1);
    uint64_t needed = pages_places_needed(pages, 0);
    assert_ok(page_file_checkpoint(&world->file, world->roots));
    print_message("%" PRIu64 " places, of %" PRIu64 "\n", pages->places.used_count, needed);
    assert_true(pages->places.used_count > 2 * NODES && pages->places.used_count <= needed);
    needed = pages_places_needed(pages, 0);
    uint64_t written = pages->written_bytes;
    change_one_of_each_node(pages, UNCOUNTED, 2);
    assert_ok(page_file_checkpoint(&world->file, world->roots));
    assert_in_range((pages->written_bytes - written) / PAGE_BYTES, 2 * UNCOUNTED, needed);
    drop_world(world);
    free(world);
}

/* Frames that are reserved for the writer stay so if more cannot be had, whatever readers take. */
static void test_reserved_frames(void **state)
{
    (void)state;
    enum { RESERVED = 40, MANY = 100000 };
    struct world *world = malloc(sizeof *world);
    make_world(world, 6);
    struct pages *pages = &world->file.pages;
    assert_ok(pages_extend(pages, 0, MANY));
    assert_ok(pages_reserve_frames(pages, RESERVED));
    memory_test_fail(1, true);
    assert_error(pages_reserve_frames(pages, MANY), FKV_NO_MEMORY);
    uint32_t frame, loaded = 0;
    while (!pages_load(pages, 0, loaded, &frame))
        loaded++;
    assert_true(loaded < MANY);
    for (int i = 0; i < RESERVED; i++)
        assert_true(frame_new(pages));
    memory_test_fail(0, false);
    drop_world(world);
    free(world);
}

/* A page is read while it is spilled over; by when the reader looks again, it is as before. */
static struct {
    struct world *world;
    struct os_ops ops;
    const struct os_ops *real;
    bool reads; /* the next read is the reader's */
} back_and_forth;

static void change_and_evict(struct pages *pages, uint32_t version)
{
    uint32_t frame;
    assert_ok(pages_load(pages, 0, 5, &frame));
    content(0, 5, version * VERSIONS, pages_write(pages, 0, 5));
    assert_ok(pages_spill(pages, 0, 5));
    pthread_mutex_lock(&pages->load_lock);
    frame_free(pages, pages_evict(pages, 0, 5));
    pthread_mutex_unlock(&pages->load_lock);
}

static int read_meanwhile(struct os_file *file, void *to, size_t bytes, uint64_t offset)
{
    struct pages *pages = &back_and_forth.world->file.pages;
    if (!back_and_forth.reads)
        return back_and_forth.real->read(file, to, bytes, offset);
    back_and_forth.reads = false;
    change_and_evict(pages, 2);
    int status = back_and_forth.real->read(file, to, bytes, offset);
    change_and_evict(pages, 1);
    return status;
}

/* Until the world is dropped reads go through this; the next one is the reader's. */
static void read_through(struct world *world,
                         int (*read)(struct os_file *file, void *to, size_t bytes, uint64_t offset))
{
    struct pages *pages = &world->file.pages;
    back_and_forth.world = world;
    back_and_forth.real = pages->environment.ops;
    back_and_forth.ops = *back_and_forth.real;
    back_and_forth.ops.read = read;
    back_and_forth.reads = true;
    pages->environment.ops = &back_and_forth.ops;
}

static void test_back_and_forth(void **state)
{
    (void)state;
    struct world *world = malloc(sizeof *world);
    make_pages(world, 9);
    struct pages *pages = &world->file.pages;
    change_and_evict(pages, 1);
    read_through(world, read_meanwhile);
    uint32_t frame;
    assert_ok(pages_load(pages, 0, 5, &frame));
    assert_false(back_and_forth.reads);
    drop_world(world);
    free(world);
}

/* Versions of a page that differ in a unit each, while it is parked, brought in, spilled. */
static void change_and_park(struct world *world)
{
    struct pages *pages = &world->file.pages;
    uint32_t version = ++world->now.version[0][5];
    uint32_t frame;
    assert_true(version % VERSIONS);
    assert_ok(pages_load(pages, 0, 5, &frame));
    uint8_t *bytes = pages_write(pages, 0, 5);
    content(0, 5, version, (uint64_t *)bytes);
    pages_note(pages, bytes + unit_of(version) * UNIT_BYTES);
    pthread_mutex_lock(&pages->load_lock);
    frame = pages_park(pages, 0, 5);
    pthread_mutex_unlock(&pages->load_lock);
    assert_true(frame);
    frame_free(pages, frame);
}

/* The reader has asked for the page where it lay. */
static int read_what_moves(struct os_file *file, void *to, size_t bytes, uint64_t offset)
{
    struct world *world = back_and_forth.world;
    if (!back_and_forth.reads)
        return back_and_forth.real->read(file, to, bytes, offset);
    back_and_forth.reads = false;
    for (int i = 0; i < 3; i++) {
        bool unread;
        assert_ok(pages_spill_parked(&world->file.pages, 0, 5, &unread));
        change_and_park(world);
    }
    return back_and_forth.real->read(file, to, bytes, offset);
}

static void test_parked_and_moved(void **state)
{
    (void)state;
    struct world *world = malloc(sizeof *world);
    make_pages(world, 9);
    struct pages *pages = &world->file.pages;
    uint32_t frame;
    assert_ok(pages_load(pages, 0, 5, &frame));
    world->now.version[0][5] = new_version(world);
    content(0, 5, world->now.version[0][5], pages_write(pages, 0, 5));
    assert_ok(pages_spill(pages, 0, 5));
    change_and_park(world);
    read_through(world, read_what_moves);
    check_page(world, 0, 5);
    assert_false(back_and_forth.reads);
    check_all(world);
    assert_ok(page_file_checkpoint(&world->file, world->roots));
    check_places(world);
    drop_world(world);
    free(world);
}

/* A page that is damaged takes no moves once somebody has seen that, nor do others for its sake: to
 * be spilled it would have to be read, and no checkpoint could begin. */
static void test_damaged_page_awaits_nothing(void **state)
{
    (void)state;
    enum { LOST = 9 };
    struct world *world = malloc(sizeof *world);
    make_pages(world, 9);
    struct pages *pages = &world->file.pages;
    const uint32_t numbers[] = {5, LOST};
    struct moves moves = {0};
    uint32_t frame;
    for (uint32_t i = 0; i < 2; i++) {
        assert_ok(pages_load(pages, 0, numbers[i], &frame));
        world->now.version[0][numbers[i]] = new_version(world);
        content(0, numbers[i], world->now.version[0][numbers[i]],
                pages_write(pages, 0, numbers[i]));
        assert_ok(pages_spill(pages, 0, numbers[i]));
        frame_free(pages, pages_evict(pages, 0, numbers[i]));
    }
    assert_true(pages_await(pages, numbers, 2, &moves));
    unpark_all(world);
    os_sim_settle(world->sim);
    uint64_t place = pages_find(pages, 0, LOST)->location * PAGE_BYTES;
    assert_int_equal(os_sim_flip_bit(world->sim, "pages", place * 8), 0);
    assert_error(pages_load(pages, 0, LOST, &frame), FKV_DAMAGED);
    assert_false(pages_await(pages, numbers, 2, &moves));
    assert_false(pages_any_parked(pages));
    assert_int_equal(os_sim_flip_bit(world->sim, "pages", place * 8), 0);
    check_all(world);
    drop_world(world);
    free(world);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damage_is_found),
        cmocka_unit_test(test_many_are_loaded),
        cmocka_unit_test(test_old_pages_are_found),
        cmocka_unit_test(test_impossible_roots),
        cmocka_unit_test(test_memory_fails),
        cmocka_unit_test(test_places_for_nodes),
        cmocka_unit_test(test_reserved_frames),
        cmocka_unit_test(test_spilling_beside),
        cmocka_unit_test(test_back_and_forth),
        cmocka_unit_test(test_parked_and_moved),
        cmocka_unit_test(test_damaged_page_awaits_nothing),
        cmocka_unit_test(test_model),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
