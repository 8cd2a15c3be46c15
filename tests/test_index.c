/*
 * test_index: the index alone, as a map from hashes to numbers, with the page store under it on a
 * real file and nothing above it.
 *
 * The model is an array: the number of each key, 0 if it is absent. A key's hash follows from the
 * key; where a test wants hashes that agree in many bits, it makes them so.
 */
#include "support.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "index_parts.h"

/* ---------------------------------------------------------------- an index of its own */

struct world {
    struct page_file file;
    struct reclaim reclaim;
    struct index index;
    struct format_space roots[SPACE_COUNT]; /* of the last checkpoint */
    uint32_t segments;
    uint64_t memory_max; /* of the index; 0: no limit */
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

static void retire_frame(void *context, uint32_t frame)
{
    struct world *world = context;
    struct retired *retired = &world->reclaim.filling;
    *frame_link(&world->file.pages, frame) = retired->frames;
    retired->frames = frame;
    retired->count++;
}

/* Make an empty index, or take up the one that the last checkpoint left. */
static void open_world(struct world *world, bool threads)
{
    const char *path = support_path("index");
    if (!world->segments)
        unlink(path);
    assert_ok(
        page_file_open(&world->file, os_posix(), path, world->segments ? world->roots : NULL));
    world->file.retire_frame = retire_frame;
    world->file.context = world;
    assert_ok(reclaim_make(&world->reclaim, threads, release, world));
    assert_ok(index_make(&world->index, &world->file.pages, &world->reclaim));
    assert_ok(index_limit(&world->index, world->memory_max));
    if (world->segments)
        assert_ok(index_open(&world->index, world->segments));
    else
        assert_ok(index_create(&world->index));
}

static void make_limited_world(struct world *world, uint64_t memory_max)
{
    *world = (struct world){.memory_max = memory_max};
    open_world(world, false);
}

static void make_world(struct world *world)
{
    make_limited_world(world, 0);
}

static void drop_world(struct world *world)
{
    reclaim_finish(&world->reclaim, false);
    reclaim_drop(&world->reclaim);
    index_drop(&world->index);
    page_file_drop(&world->file);
}

static void checkpoint(struct world *world)
{
    world->segments = world->index.segment_count;
    assert_ok(page_file_checkpoint(&world->file, world->roots));
    reclaim_poll(&world->reclaim, true);
}

static void reopen(struct world *world)
{
    drop_world(world);
    open_world(world, false);
}

/* ---------------------------------------------------------------- what a caller does */

static uint64_t get(struct world *world, struct hash128 hash)
{
    uint64_t entry = 0;
    rcu_read_lock();
    enum fkv_error error = index_get(&world->index, hash, &entry);
    rcu_read_unlock();
    if (error == FKV_NOT_FOUND)
        return 0;
    assert_ok(error);
    assert_true(entry);
    return entry & ENTRY_VALUE_MASK;
}

/* What each operation of a commit may change is at most some pages: room for their copies. */
static void reserve_frames(struct world *world, uint32_t operations)
{
    assert_ok(pages_reserve_frames(&world->file.pages, operations * 4 + 16));
}

/* What follows a commit of so many operations. */
static void after_commit(struct world *world, uint32_t operations)
{
    pages_reserve_frames(&world->file.pages, 0);
    index_spill(&world->index, operations);
    index_trim(&world->index);
    reclaim_poll(&world->reclaim, false);
}

static void set(struct world *world, struct hash128 hash, uint64_t number, uint64_t expected)
{
    uint64_t entry;
    assert_ok(index_prepare(&world->index, hash, INDEX_PLAN, &entry));
    assert_int_equal(entry & ENTRY_VALUE_MASK, expected);
    reserve_frames(world, 1);
    entry = index_set(&world->index, hash, number);
    assert_int_equal(entry & ENTRY_VALUE_MASK, expected);
    index_unplan(&world->index);
    after_commit(world, 1);
}

static void drop(struct world *world, struct hash128 hash, uint64_t expected)
{
    uint64_t entry;
    assert_ok(index_prepare(&world->index, hash, INDEX_LOOK, &entry));
    assert_int_equal(entry & ENTRY_VALUE_MASK, expected);
    reserve_frames(world, 1);
    entry = index_remove(&world->index, hash);
    assert_int_equal(entry & ENTRY_VALUE_MASK, expected);
    index_tidy(&world->index, hash);
    index_unplan(&world->index);
    after_commit(world, 1);
}

/* ---------------------------------------------------------------- invariants */

/* All that index.h says of an index, and that its counters are right. */
static void check(struct world *world, uint64_t keys)
{
    struct index *index = &world->index;
    struct pages *pages = &world->file.pages;
    uint32_t page_count = pages->space[SPACE_INDEX].page_count;
    uint8_t *used = calloc(1, page_count);
    uint64_t covered = 0, entries = 0, used_pages = 0;
    for (uint32_t id = 1; id < index->segment_count; id++) {
        const struct format_segment *entry = (const struct format_segment *)pages_read(
                                                 pages, SPACE_DIRECTORY, id / SEGMENTS_PER_PAGE) +
                                             id % SEGMENTS_PER_PAGE;
        if (!entry->pages)
            continue;
        const struct segment *segment = (struct segment *)index->segments.base + id;
        uint32_t spread = index->directory->depth - entry->depth, slots = 0;
        assert_true(entry->pages <= SEGMENT_PAGES_MAX && entry->depth <= index->directory->depth);
        assert_int_equal(segment->pages, entry->pages);
        assert_int_equal(segment->depth, entry->depth);
        assert_int_equal(segment->count, entry->count);
        assert_int_equal(segment->planned, 0);
        for (uint32_t i = 0; i < 1u << spread; i++)
            assert_int_equal(index->directory->segment[(entry->prefix << spread) + i], id);
        covered += 1ull << spread;
        for (uint32_t p = 0; p < entry->pages; p++) {
            uint32_t frame;
            assert_true(entry->page[p] < page_count && !used[entry->page[p]]);
            used[entry->page[p]] = 1;
            used_pages++;
            assert_ok(pages_load(pages, SPACE_INDEX, entry->page[p], &frame));
            assert_true(!segment->frame[p] || segment->frame[p] == frame);
            const struct slot *slot = frame_bytes(pages, frame);
            for (uint32_t s = 0; s < SLOTS_PER_PAGE; s++)
                slots += slot[s].entry != 0;
        }
        assert_int_equal(slots, entry->count);
        entries += slots;
    }
    assert_int_equal(covered, 1ull << index->directory->depth);
    assert_int_equal(entries, index->entries);
    assert_int_equal(entries, keys);
    assert_int_equal(used_pages, index->page_count);
    for (uint32_t i = 0; i < index->free_number_count; i++) {
        assert_false(used[index->free_numbers[i]]);
        used[index->free_numbers[i]] = 1;
    }
    assert_int_equal(used_pages + index->free_number_count, index->next_number);
    free(used);
}

/* ---------------------------------------------------------------- the model */

struct model {
    uint32_t keys;
    uint64_t seed;
    unsigned common_bits; /* that all hashes begin with */
    uint64_t present;
    uint64_t *number; /* of each key */
};

static struct hash128 hash_of(const struct model *model, uint32_t key)
{
    struct hash128 hash = {rng_mix(model->seed, key, 1), rng_mix(model->seed, key, 2)};
    if (model->common_bits) {
        uint64_t prefix = rng_mix(model->seed, 0, 3) >> (64 - model->common_bits);
        hash.hi = hash.hi >> model->common_bits | prefix << (64 - model->common_bits);
    }
    return hash;
}

static struct model make_model(uint32_t keys, uint64_t seed, unsigned common_bits)
{
    return (struct model){.keys = keys,
                          .seed = seed,
                          .common_bits = common_bits,
                          .number = calloc(keys, sizeof(uint64_t))};
}

static uint64_t random_number(struct rng *rng)
{
    return entry_value(rng_between(rng, 1, ENTRY_ADDRESS_MASK),
                       (uint32_t)rng_between(rng, 1, RECORD_CELLS_MAX), rng_percent(rng, 3));
}

static void check_all(struct world *world, const struct model *model)
{
    for (uint32_t key = 0; key < model->keys; key++)
        assert_int_equal(get(world, hash_of(model, key)), model->number[key]);
    check(world, model->present);
}

/* The entries of all slots, whatever leads to them. */
struct seen {
    uint64_t count, sum;
};

static void see_page(struct index *index, uint32_t id, uint32_t page, struct seen *seen)
{
    uint32_t frame;
    assert_ok(pages_load(index->pages, SPACE_INDEX, directory_read(index, id)->page[page], &frame));
    __atomic_store_n(&segment_of(index, id)->frame[page], frame, __ATOMIC_RELEASE);
    const struct slot *slots = frame_bytes(index->pages, frame);
    for (uint32_t s = 0; s < SLOTS_PER_PAGE; s++) {
        seen->count += slots[s].entry != 0;
        seen->sum += slots[s].entry & ENTRY_VALUE_MASK;
    }
}

static void check_walk(struct world *world, const struct model *model)
{
    struct index *index = &world->index;
    struct seen seen = {0}, expected = {.count = model->present};
    for (uint32_t key = 0; key < model->keys; key++)
        expected.sum += model->number[key];
    for (uint32_t id = 1; id < index->segment_count; id++)
        for (uint32_t p = 0; p < directory_read(index, id)->pages; p++)
            see_page(index, id, p, &seen);
    assert_int_equal(seen.count, expected.count);
    assert_int_equal(seen.sum, expected.sum);
}

/* ---------------------------------------------------------------- the long test */

enum stage { IDLE, CAPTURING };

/* The model test's world: with a checkpoint under way, and the model as it was at its beginning
 * and as it is on disk. */
struct run {
    struct rng rng;
    struct world world;
    struct model model;
    enum stage stage;
    uint64_t *begun, *durable;
    uint64_t begun_present, durable_present;
    uint32_t last_moved;
    unsigned collection; /* % of steps that move records */
    uint32_t begun_segments;
    uint64_t freed[64]; /* addresses that nothing has any more: others get them again */
    uint64_t sets, rewrites, drops, finds, misses, moves, checkpoints, crashes, groups, waited;
};

/* A record has left this address. */
static void free_address(struct run *run, uint64_t number)
{
    if (number)
        run->freed[rng_below(&run->rng, 64)] = number & ENTRY_ADDRESS_MASK;
}

/* Of a record, at an address that was free. */
static uint64_t draw_number(struct run *run)
{
    uint64_t number = random_number(&run->rng);
    uint64_t *freed = &run->freed[rng_below(&run->rng, 64)];
    if (!*freed || rng_percent(&run->rng, 50))
        return number;
    number = (number & ~ENTRY_ADDRESS_MASK) | *freed;
    *freed = 0;
    return number;
}

static void model_set(struct run *run, uint32_t key, uint64_t number)
{
    uint64_t *at = &run->model.number[key];
    if (number)
        *(*at ? &run->rewrites : &run->sets) += 1;
    else
        run->drops++;
    run->model.present += (number != 0) - (*at != 0);
    free_address(run, *at);
    *at = number;
}

static uint32_t random_key(struct run *run)
{
    return (uint32_t)rng_below(&run->rng, run->model.keys);
}

/* One key: set it anew, move its record, or remove it. */
static void change(struct run *run, unsigned growth)
{
    uint32_t key = random_key(run);
    uint64_t old = run->model.number[key], number = draw_number(run);
    struct hash128 hash = hash_of(&run->model, key);
    if (rng_percent(&run->rng, 10)) {
        bool there = rng_percent(&run->rng, 80) && old;
        uint64_t to = number & ENTRY_ADDRESS_MASK;
        uint64_t from = there ? old & ENTRY_ADDRESS_MASK : (old ^ 1) & ENTRY_ADDRESS_MASK;
        uint64_t entry;
        assert_ok(index_prepare(&run->world.index, hash, INDEX_LOOK, &entry));
        reserve_frames(&run->world, 1);
        assert_int_equal(index_move(&run->world.index, hash, from, to), there);
        after_commit(&run->world, 1);
        if (there) {
            run->model.number[key] = (old & ~ENTRY_ADDRESS_MASK) | to;
            free_address(run, old);
        }
        run->moves += there;
    } else if (rng_percent(&run->rng, growth)) {
        set(&run->world, hash, number, old);
        model_set(run, key, number);
    } else {
        drop(&run->world, hash, old);
        if (old)
            model_set(run, key, 0);
    }
}

/* Many keys as one commit has them: all prepared, then all changed. */
static void change_group(struct run *run, unsigned growth)
{
    enum { GROUP_MAX = 4000 };
    static uint32_t keys[GROUP_MAX];
    static bool remove[GROUP_MAX];
    struct index *index = &run->world.index;
    uint32_t count = 0, most = (uint32_t)rng_between(&run->rng, 2, GROUP_MAX);
    if (rng_percent(&run->rng, 80))
        most = most % 20 + 2;
    uint32_t first = random_key(run);
    bool aborted = rng_percent(&run->rng, 10);
    for (; count < most && count < run->model.keys; count++) {
        uint64_t entry;
        keys[count] = (first + count) % run->model.keys;
        remove[count] = !rng_percent(&run->rng, growth);
        assert_ok(index_prepare(index, hash_of(&run->model, keys[count]),
                                remove[count] ? INDEX_LOOK : INDEX_PLAN, &entry));
        assert_int_equal(entry & ENTRY_VALUE_MASK, run->model.number[keys[count]]);
    }
    reserve_frames(&run->world, count);
    for (uint32_t i = 0; i < count && !aborted; i++) {
        struct hash128 hash = hash_of(&run->model, keys[i]);
        uint64_t old = run->model.number[keys[i]], number = remove[i] ? 0 : draw_number(run);
        uint64_t entry = remove[i] ? index_remove(index, hash) : index_set(index, hash, number);
        assert_int_equal(entry & ENTRY_VALUE_MASK, old);
        if (remove[i])
            index_tidy(index, hash);
        if (old || number)
            model_set(run, keys[i], number);
    }
    index_unplan(index);
    after_commit(&run->world, count);
    run->groups++;
}

/* Records that the collector moves in one step: some of them without their pages. */
static void move_group(struct run *run)
{
    enum { GROUP_MAX = 32 };
    struct index *index = &run->world.index;
    uint32_t keys[GROUP_MAX], count = 0;
    uint32_t first = rng_percent(&run->rng, 30) ? run->last_moved : random_key(run);
    uint32_t most = (uint32_t)rng_between(&run->rng, 1, GROUP_MAX);
    bool may_wait = rng_percent(&run->rng, 90);
    for (uint32_t i = 0; i < 2 * GROUP_MAX && i < run->model.keys && count < most; i++) {
        uint32_t key = (first + i) % run->model.keys;
        uint64_t entry;
        bool waits = may_wait;
        if (!run->model.number[key])
            continue;
        assert_ok(index_prepare_move(index, hash_of(&run->model, key), count, &entry, &waits));
        if (waits)
            run->waited++;
        else
            assert_int_equal(entry & ENTRY_VALUE_MASK, run->model.number[key]);
        keys[count++] = key;
    }
    reserve_frames(&run->world, count);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t *number = &run->model.number[keys[i]], from = *number & ENTRY_ADDRESS_MASK;
        uint64_t to = draw_number(run) & ENTRY_ADDRESS_MASK;
        if (rng_percent(&run->rng, 5)) /* a reader is faster */
            assert_int_equal(get(&run->world, hash_of(&run->model, keys[i])), *number);
        assert_true(index_make_move(index, hash_of(&run->model, keys[i]), from, to));
        free_address(run, from);
        *number = (*number & ~ENTRY_ADDRESS_MASK) | to;
    }
    after_commit(&run->world, count);
    run->last_moved = first;
    run->moves += count;
}

static void look_up(struct run *run)
{
    uint32_t key = random_key(run);
    uint64_t number = run->model.number[key];
    assert_int_equal(get(&run->world, hash_of(&run->model, key)), number);
    *(number ? &run->finds : &run->misses) += 1;
}

static void keep(uint64_t *to, const uint64_t *from, const struct run *run)
{
    memcpy(to, from, run->model.keys * sizeof *to);
}

static void checkpoint_step(struct run *run)
{
    struct pages *pages = &run->world.file.pages;
    bool done = false;
    if (run->stage == IDLE) {
        if (pages_any_parked(pages)) {
            bool none, unread;
            pages->unparking = true;
            assert_ok(index_spill_parked(&run->world.index, 64, &none, &unread));
            if (!none)
                return;
        }
        pages_checkpoint_begin(pages);
        keep(run->begun, run->model.number, run);
        run->begun_present = run->model.present;
        run->begun_segments = run->world.index.segment_count;
        run->stage = CAPTURING;
        return;
    }
    assert_ok(pages_capture(pages, (uint32_t)rng_between(&run->rng, 1, 64), &done));
    assert_ok(pages_write_staged(pages));
    if (!done)
        return;
    pages_roots(pages, run->world.roots);
    pages_checkpoint_done(pages);
    run->world.segments = run->begun_segments;
    keep(run->durable, run->begun, run);
    run->durable_present = run->begun_present;
    run->stage = IDLE;
    run->checkpoints++;
    index_trim_again(&run->world.index);
}

/* All that was not in a checkpoint is gone. */
static void crash(struct run *run)
{
    if (!run->world.segments)
        return;
    reopen(&run->world);
    run->stage = IDLE;
    keep(run->model.number, run->durable, run);
    run->model.present = run->durable_present;
    memset(run->freed, 0, sizeof run->freed);
    run->crashes++;
    check_all(&run->world, &run->model);
}

static void run_phase(struct run *run)
{
    unsigned growth = (unsigned)rng_below(&run->rng, 101); /* % of changes that set */
    unsigned lookups = (unsigned)rng_below(&run->rng, 60);
    unsigned checkpoints = (unsigned)rng_below(&run->rng, 20);
    uint64_t steps = rng_between(&run->rng, 1000, 12000);
    for (uint64_t step = 0; step < steps; step++) {
        unsigned what = (unsigned)rng_below(&run->rng, 100);
        if (what < lookups)
            look_up(run);
        else if (what < lookups + checkpoints &&
                 /* beside one nothing waits */
                 (run->stage == CAPTURING || !run->world.memory_max || rng_percent(&run->rng, 5)))
            checkpoint_step(run);
        else if (what == 99 && rng_percent(&run->rng, 20))
            change_group(run, growth);
        else if (what >= 90 && what < 90 + run->collection)
            move_group(run);
        else
            change(run, growth);
    }
}

static void test_model(void **state)
{
    (void)state;
    struct run sum = {0};
    uint64_t blocks = memory_test_blocks();
    for (struct rounds r = rounds_begin(12); rounds_next(&r);) {
        const uint32_t sizes[] = {30, 3000, 20000, 60000};
        const unsigned bits[] = {0, 0, 3, 11};
        struct run *run = calloc(1, sizeof *run);
        run->rng = rng_make(r.seed);
        bool limited = r.done % 2 == 0;
        uint32_t keys = sizes[limited ? rng_between(&run->rng, 2, 3) : rng_below(&run->rng, 4)];
        run->model = make_model(keys, r.seed, bits[rng_below(&run->rng, 4)]);
        run->begun = calloc(keys, sizeof(uint64_t));
        run->durable = calloc(keys, sizeof(uint64_t));
        make_limited_world(&run->world, limited ? max_u64(INDEX_MEMORY_MIN, keys * 4) : 0);
        run->collection = (unsigned)rng_between(&run->rng, limited ? 4 : 0, 9);
        for (uint64_t phases = rng_between(&run->rng, 1, 6); phases > 0; phases--) {
            run_phase(run);
            check_all(&run->world, &run->model);
            check_walk(&run->world, &run->model);
            if (rng_percent(&run->rng, 40))
                crash(run);
        }
        sum.sets += run->sets;
        sum.rewrites += run->rewrites;
        sum.drops += run->drops;
        sum.finds += run->finds;
        sum.misses += run->misses;
        sum.moves += run->moves;
        sum.checkpoints += run->checkpoints;
        sum.crashes += run->crashes;
        sum.groups += run->groups;
        sum.waited += run->waited;
        drop_world(&run->world);
        free(run->model.number);
        free(run->begun);
        free(run->durable);
        free(run);
    }
    assert_int_equal(memory_test_blocks(), blocks);
    if (support_is_long())
        return;
    assert_true(sum.sets > 10000 && sum.rewrites > 5000 && sum.drops > 5000);
    assert_true(sum.finds > 5000 && sum.misses > 5000 && sum.moves > 1000);
    assert_true(sum.checkpoints > 20 && sum.crashes > 3 && sum.groups > 20);
    print_message("%u moves waited for their pages\n", (unsigned)sum.waited);
    assert_true(sum.waited > 1000);
}

/* ---------------------------------------------------------------- size */

/* From one million keys on, less than 20 bytes a key at any size; and it all goes away again. */
static void test_memory_per_key(void **state)
{
    (void)state;
    enum { FROM = 1000000, TO = 2000000, STEP = 10000 };
    struct world world;
    struct model model = make_model(TO, 11, 0);
    double most = 0, sum = 0;
    unsigned samples = 0;
    make_world(&world);
    for (uint32_t key = 0; key < TO; key++) {
        set(&world, hash_of(&model, key), key + 1, 0);
        if (key + 1 < FROM || (key + 1) % STEP)
            continue;
        double each = (double)index_memory_bytes(&world.index) / (key + 1);
        most = each > most ? each : most;
        sum += each;
        samples++;
        assert_true(each < 20);
    }
    print_message("bytes a key, %u to %u keys: %.2f on average, at most %.2f\n", FROM, TO,
                  sum / samples, most);
    check(&world, TO);
    for (uint32_t key = 0; key < TO; key += 97)
        assert_int_equal(get(&world, hash_of(&model, key)), key + 1);

    uint64_t full_pages = world.index.page_count;
    for (uint32_t key = 0; key < TO; key++) {
        drop(&world, hash_of(&model, key), key + 1);
        if (key == TO / 2) /* half as many keys need about half as much */
            assert_true(world.index.page_count < full_pages * 7 / 10);
    }
    check(&world, 0);
    print_message("pages: %u for %u keys, %u after all are deleted\n", (unsigned)full_pages, TO,
                  (unsigned)world.index.page_count);
    assert_true(world.index.page_count <= full_pages / 50);
    set(&world, hash_of(&model, 5), 7, 0);
    assert_int_equal(get(&world, hash_of(&model, 5)), 7);
    drop_world(&world);
    free(model.number);
}

/* ---------------------------------------------------------------- hashes that agree */

/* Put `count` keys that begin as `near` does for so many bits: segments on the way split until
 * their prefix is as long. */
static void crowd(struct world *world, struct hash128 near, unsigned bits, uint32_t count,
                  bool remove)
{
    for (uint32_t i = 0; i < count; i++) {
        struct hash128 hash = {rng_mix(near.hi, i, bits), rng_mix(near.hi, i, bits + 100)};
        hash.hi = hash.hi >> bits | near.hi >> (64 - bits) << (64 - bits);
        if (remove)
            drop(world, hash, i + 1);
        else
            set(world, hash, i + 1, 0);
    }
}

/* Slots that were made when prefixes were short are found when they are long, and short again. */
static void test_old_slots_in_deep_segments(void **state)
{
    (void)state;
    enum { KEYS = 200, CROWD = 3400 };
    struct world world;
    struct model model = make_model(KEYS, 12, 0);
    make_world(&world);
    for (uint32_t key = 0; key < KEYS; key++)
        set(&world, hash_of(&model, key), model.number[key] = key + 1, 0);
    model.present = KEYS;
    for (unsigned bits = 4; bits <= 18; bits += 7) {
        uint32_t center = bits;
        struct hash128 near = hash_of(&model, center);
        crowd(&world, near, bits, CROWD, false);
        assert_true(world.index.directory->depth > bits);
        model.present += CROWD;
        check_all(&world, &model);
        for (uint32_t key = 0; key < KEYS; key++) { /* they are rewritten in place */
            set(&world, hash_of(&model, key), model.number[key] + 1000, model.number[key]);
            model.number[key] += 1000;
        }
        checkpoint(&world);
        reopen(&world);
        check_all(&world, &model);
        drop(&world, near, model.number[center]); /* and removed, and made again with more bits */
        assert_int_equal(get(&world, near), 0);
        set(&world, near, model.number[center], 0);
        crowd(&world, near, bits, CROWD, true);
        model.present -= CROWD;
        check_all(&world, &model);
    }
    drop_world(&world);
    free(model.number);
}

/* Keys are told apart by 74 bits, all of which may agree but one. */
static void test_equal_prefixes(void **state)
{
    (void)state;
    struct world world;
    make_world(&world);
    struct hash128 base = {0x123456789abcdef0, 0x0fedcba987654321};
    set(&world, base, 1, 0);
    for (unsigned bit = 0; bit < 74; bit++) {
        struct hash128 other = base;
        if (bit < 64)
            other.hi ^= 1ull << (63 - bit);
        else
            other.lo ^= 1ull << (127 - bit);
        assert_int_equal(get(&world, other), 0);
        set(&world, other, bit + 2, 0);
    }
    assert_int_equal(get(&world, base), 1);
    for (unsigned bit = 0; bit < 74; bit++) {
        struct hash128 other = base;
        if (bit < 64)
            other.hi ^= 1ull << (63 - bit);
        else
            other.lo ^= 1ull << (127 - bit);
        assert_int_equal(get(&world, other), bit + 2);
        if (bit % 3)
            drop(&world, other, bit + 2);
    }
    assert_int_equal(get(&world, base), 1);
    drop_world(&world);
}

/* A thousand keys with the same bucket, step and class everywhere, told apart by the last bits. */
static void test_keys_of_one_bucket(void **state)
{
    (void)state;
    enum { KEYS = 1000 };
    struct world world;
    struct rng rng = rng_make(13);
    static uint64_t number[KEYS];
    make_world(&world);
    memset(number, 0, sizeof number);
    for (int i = 0; i < 30000; i++) {
        uint32_t key = (uint32_t)rng_below(&rng, KEYS);
        struct hash128 hash = {0xfeedfacecafebeec | key >> 8, (uint64_t)key << 56};
        if (rng_percent(&rng, i < 10000 ? 90 : 45)) {
            set(&world, hash, (uint64_t)i + 1, number[key]);
            number[key] = (uint64_t)i + 1;
        } else {
            drop(&world, hash, number[key]);
            number[key] = 0;
        }
        if (i % 5000)
            continue;
        checkpoint(&world);
        reopen(&world);
        for (key = 0; key < KEYS; key++)
            assert_int_equal(
                get(&world, (struct hash128){0xfeedfacecafebeec | key >> 8, (uint64_t)key << 56}),
                number[key]);
    }
    drop_world(&world);
}

/* A commit of very many new keys: each segment is as large as its own part of them needs. */
static void test_large_groups(void **state)
{
    (void)state;
    enum { KEYS = 200000 };
    struct world world;
    struct model model = make_model(KEYS, 14, 0);
    make_world(&world);
    for (uint32_t key = 0; key < KEYS; key++) {
        uint64_t entry;
        assert_ok(index_prepare(&world.index, hash_of(&model, key), INDEX_PLAN, &entry));
        assert_int_equal(entry, 0);
        if (key % 1000 == 0)
            reclaim_poll(&world.reclaim, true);
    }
    assert_true(world.index.page_count < KEYS * 16 / (PAGE_BYTES * 3 / 4));
    for (uint32_t key = 0; key < KEYS; key++)
        index_set(&world.index, hash_of(&model, key), model.number[key] = key + 1);
    model.present = KEYS;
    index_unplan(&world.index);
    check_all(&world, &model);
    drop_world(&world);
    free(model.number);
}

/* ---------------------------------------------------------------- memory */

/* Fill an index whose segments grow and split on the way, with the n-th request for memory denied.
 * Returns whether it was. */
static bool grow_with_failure(uint64_t nth, bool forever, const struct model *model)
{
    struct world world;
    uint64_t entry;
    make_world(&world);
    for (uint32_t key = 0; key < 3000; key++)
        set(&world, hash_of(model, key), key + 1, 0);
    uint64_t requests = memory_test_requests();
    memory_test_fail(nth, forever);
    uint32_t added = 3000;
    enum fkv_error error = FKV_OK;
    for (; added < 8000 && !error; added++) {
        error = index_prepare(&world.index, hash_of(model, added), INDEX_PLAN, &entry);
        if (!error) {
            pages_reserve_frames(&world.file.pages, 20);
            index_set(&world.index, hash_of(model, added), added + 1);
        } else {
            added--;
        }
        index_unplan(&world.index);
        reclaim_poll(&world.reclaim, false);
    }
    memory_test_fail(0, false);
    bool failed = memory_test_requests() - requests >= nth;
    assert_true(error == FKV_OK || error == FKV_NO_MEMORY);
    if (!forever && added < 8000) { /* the same call succeeds when there is memory */
        set(&world, hash_of(model, added), added + 1, 0);
        added++;
    }
    for (uint32_t key = 0; key < added; key++)
        assert_int_equal(get(&world, hash_of(model, key)), key + 1);
    check(&world, added);
    for (uint32_t key = 0; key < added; key += 2)
        drop(&world, hash_of(model, key), key + 1);
    check(&world, added / 2);
    drop_world(&world);
    return failed;
}

static void test_memory_fails(void **state)
{
    (void)state;
    struct model model = make_model(8000, 15, 0);
    uint64_t blocks = memory_test_blocks();
    for (uint64_t nth = 1; grow_with_failure(nth, false, &model); nth++)
        assert_int_equal(memory_test_blocks(), blocks);
    for (uint64_t nth = 1; grow_with_failure(nth, true, &model); nth++)
        assert_int_equal(memory_test_blocks(), blocks);
    free(model.number);
}

/* Without memory to grow in, a segment takes keys to its last slot and then refuses; removing and
 * rewriting go on. */
static void test_no_memory_to_grow(void **state)
{
    (void)state;
    struct world world;
    struct model model = make_model(20000, 16, 0);
    make_world(&world);
    uint32_t count = 0;
    uint64_t entry;
    for (; count < 200; count++)
        set(&world, hash_of(&model, count), count + 1, 0);
    assert_int_equal(world.index.page_count, 1);
    while (frame_new(&world.file.pages) && world.file.pages.frames.count % 512 != 0)
        ; /* all that is backed is in use */
    memory_test_fail(1, true);
    for (;; count++) {
        enum fkv_error error =
            index_prepare(&world.index, hash_of(&model, count), INDEX_PLAN, &entry);
        if (error) {
            assert_int_equal(error, FKV_NO_MEMORY);
            break;
        }
        index_set(&world.index, hash_of(&model, count), count + 1);
        index_unplan(&world.index);
    }
    memory_test_fail(0, false);
    index_unplan(&world.index);
    assert_int_equal(count, SLOTS_PER_PAGE);
    check(&world, count);
    memory_test_fail(1, true);
    for (uint32_t key = 0; key < count; key++) {
        assert_int_equal(get(&world, hash_of(&model, key)), key + 1);
        assert_ok(index_prepare(&world.index, hash_of(&model, key), INDEX_LOOK, &entry));
        index_set(&world.index, hash_of(&model, key), key + 1000);
        if (key % 2) {
            index_remove(&world.index, hash_of(&model, key));
            index_tidy(&world.index, hash_of(&model, key));
        }
    }
    memory_test_fail(0, false);
    for (uint32_t key = 0; key < count; key++)
        assert_int_equal(get(&world, hash_of(&model, key)), key % 2 ? 0 : key + 1000);
    check(&world, count / 2);
    drop_world(&world);
    free(model.number);
}

/* ---------------------------------------------------------------- readers beside the writer */

enum { STABLE_KEYS = 3000, MOVING_KEYS = 40000, READERS = 2 };

struct reading {
    struct world *world;
    const struct model *model;
    _Atomic bool stop;
    _Atomic uint64_t reads, wrong;
};

/* Keys that nobody removes are always found, with a number that someone gave them; others are
 * found with their own number or not at all. But a slot that was found may be another key's when
 * its number is read, as index.h's users know: then it has changed again, or is the key's. */
static bool is_right(const struct reading *reading, uint32_t key)
{
    for (uint64_t before = 0;;) {
        uint64_t entry = 0;
        enum fkv_error error =
            index_get(&reading->world->index, hash_of(reading->model, key), &entry);
        entry &= ENTRY_ADDRESS_MASK;
        if (error)
            return error == FKV_NOT_FOUND && key >= STABLE_KEYS;
        if (entry % reading->model->keys == key)
            return true;
        if (key < STABLE_KEYS || entry == before)
            return false;
        before = entry;
    }
}

static void *reader(void *context)
{
    struct reading *reading = context;
    struct rng rng = rng_make((uint64_t)(uintptr_t)&rng);
    while (!atomic_load_explicit(&reading->stop, memory_order_relaxed)) {
        rcu_read_lock();
        for (int i = 0; i < 100; i++) {
            uint32_t key = (uint32_t)rng_below(&rng, reading->model->keys);
            if (!is_right(reading, key))
                reading->wrong++;
        }
        rcu_read_unlock();
        reading->reads += 100;
    }
    return NULL;
}

static void test_readers(void **state)
{
    (void)state;
    struct world world = {0};
    struct model model = make_model(STABLE_KEYS + MOVING_KEYS, 17, 0);
    struct rng rng = rng_make(17);
    open_world(&world, true);
    for (uint32_t key = 0; key < STABLE_KEYS; key++)
        set(&world, hash_of(&model, key), model.number[key] = key + model.keys, 0);
    checkpoint(&world);
    drop_world(&world); /* so that readers load pages too */
    open_world(&world, true);
    world.reclaim.alone = false; /* from here on there are readers */
    struct reading reading = {.world = &world, .model = &model};
    pthread_t threads[READERS];
    for (int i = 0; i < READERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, reader, &reading), 0);
    double end = support_now() + (support_is_long() ? 20 : 1.5);
    for (uint64_t wave = 0; support_now() < end || reading.reads <= 10000; wave++) {
        for (uint32_t i = 0; i < MOVING_KEYS / 2; i++) {
            uint32_t key = (uint32_t)rng_below(&rng, model.keys);
            uint64_t number = key + model.keys * rng_between(&rng, 1, 1000);
            if (key < STABLE_KEYS || rng_percent(&rng, wave % 2 ? 20 : 80)) {
                set(&world, hash_of(&model, key), number, model.number[key]);
                model.number[key] = number;
            } else {
                drop(&world, hash_of(&model, key), model.number[key]);
                model.number[key] = 0;
            }
            if (i % 4096 == 0)
                checkpoint(&world);
        }
    }
    reading.stop = true;
    for (int i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(reading.wrong, 0);
    for (uint32_t key = 0; key < model.keys; key++)
        model.present += model.number[key] != 0;
    check_all(&world, &model);
    drop_world(&world);
    free(model.number);
}

/* ---------------------------------------------------------------- damage */

/* Directories that contradict themselves are refused, and never followed. */
static void test_impossible_directories(void **state)
{
    (void)state;
    struct world world;
    struct model model = make_model(20000, 18, 0);
    make_world(&world);
    for (uint32_t key = 0; key < model.keys; key++)
        set(&world, hash_of(&model, key), key + 1, 0);
    checkpoint(&world);
    struct rng rng = rng_make(18);
    struct index *index = &world.index;
    uint64_t refused = 0;
    for (int i = 0; i < 300; i++) {
        uint32_t segments = world.segments;
        index_drop(index);
        assert_ok(index_make(index, &world.file.pages, &world.reclaim));
        reserve_frames(&world, 1);
        struct format_segment *entry;
        do {
            uint32_t id = (uint32_t)rng_between(&rng, 1, segments - 1);
            entry = (struct format_segment *)pages_write(&world.file.pages, SPACE_DIRECTORY,
                                                         id / SEGMENTS_PER_PAGE) +
                    id % SEGMENTS_PER_PAGE;
        } while (!entry->pages);
        struct format_segment sound = *entry;
        size_t bit = rng_below(&rng, offsetof(struct format_segment, count) * 8);
        ((uint8_t *)entry)[bit / 8] ^= (uint8_t)(1 << bit % 8);
        enum fkv_error error = index_open(index, segments);
        assert_true(error == FKV_OK || error == FKV_DAMAGED);
        refused += error == FKV_DAMAGED;
        *entry = sound;
    }
    assert_true(refused > 250);
    index_drop(index);
    assert_ok(index_make(index, &world.file.pages, &world.reclaim));
    assert_error(index_open(index, 0), FKV_DAMAGED);
    assert_error(index_open(index, UINT32_MAX), FKV_DAMAGED);
    assert_error(index_open(index, world.segments + 1000), FKV_DAMAGED);
    assert_ok(index_open(index, world.segments));
    check(&world, model.keys);
    drop_world(&world);
    free(model.number);
}

/* A slot that is given to another key between two looks of a reader: the entry of the one is never
 * taken for the other's. Their tags agree where a bucket is searched for candidates, and what the
 * entries say of the hash is the same. */
static struct bucket given;
static uint64_t given_tag, given_entry;

static void give_slot(void)
{
    schedule_point = NULL;
    __atomic_store_n(&given.slot[0].entry, 0, __ATOMIC_RELEASE);
    if (given_entry)
        bucket_fill(&given, given_tag, given_entry);
    else
        given.slot[0].tag = given_tag;
}

static void test_slot_given_away(void **state)
{
    (void)state;
    const uint64_t low = 1;
    struct fragment old = {.tag = 0x1234567800010000, .low = low};
    struct fragment new = {.tag = 0x1234567800020000, .low = low};
    for (uint64_t after = 0; after <= 9; after += 9) {
        uint64_t found = 0;
        given = (struct bucket){0};
        assert_non_null(bucket_fill(&given, old.tag, 7 | low << LOW_SHIFT));
        assert_non_null(bucket_find(&given, old, &found));
        assert_int_equal(found & ENTRY_VALUE_MASK, 7);
        given_tag = new.tag;
        given_entry = after ? after | low << LOW_SHIFT : 0;
        schedule_point = give_slot;
        found = 0;
        (void)bucket_find(&given, new, &found);
        assert_true((found & ENTRY_VALUE_MASK) == after || !found); /* never the old one's */
        if (schedule_point) /* the bucket was not looked at more closely */
            give_slot();
        found = 0;
        (void)bucket_find(&given, new, &found);
        assert_int_equal(found & ENTRY_VALUE_MASK, after);
        assert_null(bucket_find(&given, old, &found));
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slot_given_away),
        cmocka_unit_test(test_memory_per_key),
        cmocka_unit_test(test_old_slots_in_deep_segments),
        cmocka_unit_test(test_equal_prefixes),
        cmocka_unit_test(test_keys_of_one_bucket),
        cmocka_unit_test(test_large_groups),
        cmocka_unit_test(test_memory_fails),
        cmocka_unit_test(test_no_memory_to_grow),
        cmocka_unit_test(test_readers),
        cmocka_unit_test(test_impossible_directories),
        cmocka_unit_test(test_model),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
