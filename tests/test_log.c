/*
 * test_log: the ring of frames alone, on the simulated disk: what was written is replayed, in
 * order, once and to the end; nothing else ever is.
 *
 * The model is the list of frames. A frame has one operation of random bytes that follow from its
 * number, so a replayed frame proves itself. A "header" stands for the store's: the position that a
 * replay begins at, and its commit.
 */
#include "support.h"

#include <errno.h>
#include <stdlib.h>

#include "checksum.h"
#include "log.h"
#include "os_sim.h"

enum { FRAMES_MAX = 100000 };

struct frame {
    uint64_t number; /* seed of the bytes */
    uint64_t commit; /* 0: none */
    uint32_t bytes;  /* of operations */
    uint32_t flags;
};

struct position {
    struct log_position log;
    uint64_t commit;
    uint64_t frame; /* index of the first frame after it */
};

struct world {
    struct rng rng;
    struct os_sim *sim;
    struct os_file *file;
    struct log log;
    uint64_t size_max;
    bool scarce; /* memory is */
    uint8_t id[16];
    struct frame *frames; /* all ever written that still count */
    uint64_t frame_count;
    uint64_t numbers;
    uint64_t commit;
    struct position header;
    uint64_t wraps, crashes, replayed, lost, full;
};

static const char *const name = "log";

static void open_log(struct world *world, bool create)
{
    struct os *os = os_sim_os(world->sim);
    log_make(&world->log, os->ops, name, world->size_max, NULL);
    world->log.scarce = world->scarce;
    assert_int_equal(os->ops->open(os, name, create ? OS_CREATE : 0, &world->file), 0);
    world->log.file = world->file;
    if (create) {
        assert_ok(log_create(&world->log, world->id));
        assert_int_equal(world->log.ops->sync(world->log.file), 0);
        assert_int_equal(os->ops->sync_directory(os, name), 0);
    } else {
        assert_ok(log_open(&world->log, world->id));
    }
}

static void drop_log(struct world *world)
{
    log_drop(&world->log);
    os_sim_os(world->sim)->ops->close(world->file);
}

static void make_world(struct world *world, uint64_t seed, uint64_t size_max)
{
    memset(world, 0, sizeof *world);
    world->rng = rng_make(seed);
    struct os_sim_options options = {.seed = rng_next(&world->rng)};
    world->sim = os_sim_new(&options);
    world->size_max = size_max;
    world->scarce = rng_percent(&world->rng, 50);
    rng_fill(&world->rng, world->id, sizeof world->id);
    world->frames = calloc(FRAMES_MAX, sizeof *world->frames);
    open_log(world, true);
    world->log.head.chain = rng_next(&world->rng);
    world->header.log = world->log.head;
}

static void drop_world(struct world *world)
{
    drop_log(world);
    os_sim_free(world->sim);
    free(world->frames);
}

/* ---------------------------------------------------------------- writing */

static void content(const struct frame *frame, uint8_t *to)
{
    struct rng rng = rng_make(frame->number);
    rng_fill(&rng, to, frame->bytes);
    if (frame->flags & FRAME_RESTART || frame->bytes < sizeof(struct format_operation))
        return;
    const struct format_operation operation = {.kind = OPERATION_PUT,
                                               .bytes = frame->bytes - (uint32_t)sizeof operation,
                                               .address = rng_next(&rng)};
    memcpy(to, &operation, sizeof operation);
}

/* False if the log is full. */
static bool append(struct world *world, uint32_t bytes, uint32_t flags)
{
    bool full;
    uint64_t whole = sizeof(struct format_frame) + bytes;
    uint64_t before = world->log.head.offset;
    enum fkv_error error = log_reserve(&world->log, whole, &full);
    if (error) {
        assert_int_equal(error, FKV_FULL);
        assert_true(full);
        world->full++;
        return false;
    }
    if (world->log.head.offset < before)
        world->wraps++;
    struct frame frame = {.number = rng_mix(world->numbers++, 1, 2),
                          .commit = flags ? 0 : ++world->commit,
                          .bytes = bytes,
                          .flags = flags};
    uint8_t *operations = log_begin(&world->log, rng_percent(&world->rng, 50));
    content(&frame, operations);
    log_end(&world->log, operations + bytes, flags, frame.commit);
    assert_true(world->frame_count < FRAMES_MAX);
    world->frames[world->frame_count++] = frame;
    assert_true(world->log.head.offset + sizeof(struct format_frame) <= world->log.size);
    assert_true(world->log.live_bytes <= world->log.size);
    return true;
}

/* A checkpoint has begun; its header may become durable much later. */
static struct position take_position(const struct world *world)
{
    return (struct position){world->log.head, world->commit, world->frame_count};
}

static void release(struct world *world, struct position position)
{
    world->header = position;
    log_release(&world->log, position.log);
}

/* ---------------------------------------------------------------- replay */

/* Reads all frames from the header on; returns how many there were. */
static uint64_t replay(struct world *world)
{
    struct log *log = &world->log;
    static uint8_t expected[72 * MIB]; /* no frame is larger */
    log->head = world->header.log;
    log->start = log->head.offset;
    log->live_bytes = 0;
    uint64_t at = world->header.frame;
    uint64_t commit = world->header.commit;
    for (;;) {
        struct log_frame frame;
        bool found;
        assert_ok(log_next(log, &frame, &found));
        if (!found)
            break;
        assert_true(at < world->frame_count);
        const struct frame *model = &world->frames[at++];
        assert_int_equal(frame.header.commit, model->commit);
        assert_int_equal(frame.header.flags, model->flags);
        assert_int_equal(frame.end - frame.operations, model->bytes);
        content(model, expected);
        assert_memory_equal(frame.operations, expected, model->bytes);
        if (model->commit)
            commit = model->commit;
    }
    world->commit = commit;
    world->replayed += at - world->header.frame;
    return at;
}

/* Open the log that a crash left, check what it has, and go on. */
static void recover(struct world *world, uint64_t durable)
{
    open_log(world, false);
    uint64_t at = replay(world);
    assert_true(world->commit >= durable);
    assert_ok(log_check_end(&world->log, world->commit));
    world->lost += world->frame_count - at;
    world->frame_count = at; /* what was cut off must never be seen again */
    atomic_store(&world->log.written_commit, world->commit);
    atomic_store(&world->log.durable_commit, world->header.commit);
    append(world, 16, FRAME_RESTART);
}

static uint32_t random_bytes_of_frame(struct world *world)
{
    uint64_t most = rng_percent(&world->rng, 2)    ? 300 * KIB
                    : rng_percent(&world->rng, 20) ? 9000
                                                   : 800;
    return (uint32_t)rng_below(&world->rng, most) / 8 * 8;
}

static void run_round(struct world *world)
{
    uint64_t steps = rng_between(&world->rng, 500, 6000);
    unsigned crashes = (unsigned)rng_between(&world->rng, 1, 8);
    unsigned syncs = (unsigned)rng_between(&world->rng, 1, 200);
    unsigned checkpoints = (unsigned)rng_below(&world->rng, 4) * 15 + 1;
    bool checkpointing = false;
    struct position position = {0};
    for (uint64_t step = 0; step < steps; step++) {
        unsigned what = (unsigned)rng_below(&world->rng, 1000);
        if (what < crashes) {
            uint64_t durable = atomic_load(&world->log.durable_commit);
            bool power = rng_percent(&world->rng, 70);
            if (power)
                os_sim_crash(world->sim, rng_next(&world->rng));
            else
                os_sim_kill(world->sim, rng_next(&world->rng));
            uint64_t commit = world->commit;
            drop_log(world);
            recover(world, power ? durable : commit);
            world->crashes++;
            checkpointing = false;
        } else if (what < 8 + syncs) {
            assert_ok(log_sync(&world->log, world->commit));
        } else if (what >= 300 && what < 300 + checkpoints && !checkpointing) {
            position = take_position(world);
            checkpointing = true;
        } else if (what >= 400 && what < 400 + checkpoints && checkpointing) {
            release(world, position);
            checkpointing = false;
        } else if (!append(world, random_bytes_of_frame(world),
                           rng_percent(&world->rng, 10) ? FRAME_COLLECT : 0)) {
            if (!checkpointing)
                position = take_position(world);
            release(world, position);
            checkpointing = false;
        }
        if (what % 16 == 0)
            os_sim_writeback(world->sim, rng_next(&world->rng));
    }
    assert_true(world->log.size <= max_u64(world->size_max, MIB) + 2 * MIB);
}

static void test_model(void **state)
{
    (void)state;
    uint64_t wraps = 0, crashes = 0, replayed = 0, lost = 0, full = 0;
    for (struct rounds r = rounds_begin(12); rounds_next(&r);) {
        struct world world;
        make_world(&world, r.seed, MIB << r.seed % 3);
        run_round(&world);
        wraps += world.wraps;
        crashes += world.crashes;
        replayed += world.replayed;
        lost += world.lost;
        full += world.full;
        drop_world(&world);
    }
    assert_true(wraps > 10 && crashes > 10 && replayed > 1000 && lost > 10 && full > 0);
}

/* ---------------------------------------------------------------- room */

static void test_grows_to_its_maximum(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 1, 8 * MIB);
    assert_int_equal(world.log.size, MIB);
    uint64_t before = MIB;
    while (append(&world, 10000, 0)) {
        assert_true(world.log.size == before || world.log.size == before * 2);
        before = world.log.size;
    }
    assert_int_equal(world.log.size, 8 * MIB);
    assert_true(world.log.live_bytes > 8 * MIB - 2 * 10000 - 2 * PAGE_BYTES);
    uint64_t at = replay(&world);
    assert_int_equal(at, world.frame_count);
    /* Half of it given back is half of it to be had, again and again. */
    for (int i = 0; i < 20; i++) {
        struct position position = take_position(&world);
        release(&world, position);
        uint64_t count = 0;
        while (append(&world, 10000, 0))
            count++;
        assert_in_range(count, 8 * MIB / 10040 - 4, 8 * MIB / 10040);
        assert_int_equal(world.log.size, 8 * MIB);
        assert_int_equal(replay(&world), world.frame_count);
    }
    drop_world(&world);
}

/* A checkpoint after each commit: the log is empty each time, wherever its head is. */
static void test_stays_small_when_released_often(void **state)
{
    (void)state;
    const uint32_t sizes[] = {1000, 100000, 400000};
    for (int s = 0; s < 3; s++) {
        struct world world;
        make_world(&world, 2, MIB);
        while (world.wraps < 5) {
            assert_true(append(&world, sizes[s], 0));
            release(&world, take_position(&world));
            assert_int_equal(world.log.live_bytes, 0);
            assert_int_equal(world.log.size, MIB);
        }
        assert_int_equal(replay(&world), world.frame_count);
        drop_world(&world);
    }
}

/* Where memory is scarce, the pages that frames are stored into were written before, whole, as
 * zeros; but never what a recovery needs. */
static void test_zeros_ahead(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 3, MIB);
    world.log.scarce = world.scarce = true;
    struct log *log = &world.log;
    struct position position = take_position(&world);
    uint64_t zeros = 0, shared = 0, wraps = 0;
    while (wraps < 5) {
        bool full;
        uint64_t before = log->head.offset;
        uint32_t bytes = (uint32_t)rng_below(&world.rng, 3 * PAGE_BYTES) / 8 * 8;
        uint64_t whole = sizeof(struct format_frame) + bytes;
        uint64_t calls = os_sim_calls(world.sim, OS_SIM_WRITE);
        if (!log_reserve(log, whole, &full)) {
            wraps += log->head.offset < before;
            uint64_t limit = log->head.offset < log->start ? log->start : log->size;
            uint64_t at = round_up(log->head.offset, PAGE_BYTES);
            uint64_t end = log->head.offset + whole;
            for (; at < end; at++)
                if (at / PAGE_BYTES == limit / PAGE_BYTES)
                    shared++; /* with what is needed */
                else
                    assert_int_equal(log->map[at], 0), zeros++;
            calls = os_sim_calls(world.sim, OS_SIM_WRITE) - calls;
            assert_true(calls <= divide_up(whole, PAGE_BYTES) + 1);
        }
        if (!append(&world, bytes, 0)) {
            release(&world, position);
            position = take_position(&world);
            continue;
        }
        if (rng_percent(&world.rng, 5))
            position = take_position(&world);
        if (rng_percent(&world.rng, 3)) { /* all that is needed is there */
            struct log_position head = log->head;
            uint64_t start = log->start, live = log->live_bytes;
            assert_int_equal(replay(&world), world.frame_count);
            assert_true(log->start == start && log->live_bytes == live);
            assert_true(log->head.offset == head.offset && log->head.chain == head.chain);
        }
    }
    assert_true(zeros > 2 * MIB && shared > 0);
    drop_world(&world);
}

/* One frame larger than the log may be gets its room, if nothing else is in the way. */
static void test_large_frames(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 3, MIB);
    bool full;
    for (uint32_t i = 0; i < 30; i++) {
        append(&world, 5000, 0);
        release(&world, take_position(&world));
        assert_true(append(&world, 3 * MIB - (i & 7) * 8, 0));
        release(&world, take_position(&world));
    }
    assert_true(world.log.size <= 8 * MIB);
    assert_int_equal(replay(&world), world.frame_count);
    assert_error(log_reserve(&world.log, 1ull << 32, &full), FKV_FULL);
    assert_false(full);
    assert_error(log_reserve(&world.log, 200 * MIB, &full), FKV_FULL);
    assert_false(full); /* no checkpoint can help */
    drop_world(&world);
}

/* The largest frames there are, one after another: each has its room after one checkpoint, wherever
 * the last one ended. */
static void test_largest_frames(void **state)
{
    (void)state;
    const uint32_t sizes[] = {40, 41, 65, 64, 20, 65, 65};
    struct world world;
    make_world(&world, 4, MIB);
    append(&world, 5000, 0);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        release(&world, take_position(&world));
        if (!append(&world, sizes[i] * MIB, 0)) {
            release(&world, take_position(&world));
            assert_true(append(&world, sizes[i] * MIB, 0));
        }
        assert_int_equal(replay(&world), world.frame_count);
    }
    assert_true(world.log.size <= 67 * MIB);
    drop_world(&world);
}

/* The disk has no room for the log to grow: it makes do with what it has. */
static void test_full_disk(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 4, 64 * MIB);
    os_sim_set_capacity(world.sim, 3 * MIB);
    for (int i = 0; i < 1000; i++) {
        if (append(&world, 9000, 0))
            continue;
        release(&world, take_position(&world));
        assert_true(append(&world, 9000, 0));
    }
    assert_true(world.log.size <= 3 * MIB);
    assert_int_equal(replay(&world), world.frame_count);
    assert_int_equal(os_sim_hole_stores(world.sim), 0);
    drop_world(&world);
}

/* Nor for a frame that takes most of it, while the head is in the middle and nothing is needed any
 * more: it goes to the front, after a checkpoint that follows on the wrap frame. */
static void test_full_disk_long_frames(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 8, 64 * MIB);
    os_sim_set_capacity(world.sim, MIB);
    for (uint32_t bytes = MIB / 4; bytes < MIB / 8 * 7; bytes += MIB / 16) {
        for (int tries = 0; !append(&world, bytes, 0); tries++) {
            assert_true(tries < 2);
            release(&world, take_position(&world));
        }
        release(&world, take_position(&world));
    }
    assert_int_equal(world.log.size, MIB);
    assert_int_equal(replay(&world), world.frame_count);
    drop_world(&world);
}

/* ---------------------------------------------------------------- damage */

struct place {
    uint64_t offset, bytes;
};

/* Frames of which all are durable, and where they are. The last says that those before it are. */
static uint64_t make_durable(struct world *world, uint64_t seed, struct place *places)
{
    make_world(world, seed, MIB);
    uint64_t count = 40;
    for (uint64_t i = 0; i < count; i++) {
        places[i].offset = world->log.head.offset;
        assert_true(append(world, (uint32_t)rng_below(&world->rng, 300) * 8, 0));
        places[i].bytes = world->log.head.offset - places[i].offset;
        assert_ok(log_sync(&world->log, world->commit));
    }
    os_sim_settle(world->sim);
    return count;
}

/* A damaged frame ends the replay. If a later one shows that it was durable, that is said. */
static void test_damage_before_durable_frames(void **state)
{
    (void)state;
    struct world world;
    struct place places[64];
    uint64_t count = make_durable(&world, 5, places);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t bit = (places[i].offset + rng_below(&world.rng, places[i].bytes)) * 8;
        drop_log(&world);
        os_sim_flip_bit(world.sim, name, bit + i % 8);
        open_log(&world, false);
        uint64_t at = replay(&world);
        assert_int_equal(at, i);
        /* Frame i + 1 says that commit i + 1 is durable. The last has no witness. */
        assert_error(log_check_end(&world.log, world.commit), i + 1 < count ? FKV_DAMAGED : FKV_OK);
        drop_log(&world);
        os_sim_flip_bit(world.sim, name, bit + i % 8);
        open_log(&world, false);
        assert_int_equal(replay(&world), count);
        assert_ok(log_check_end(&world.log, world.commit));
    }
    drop_world(&world);
}

/* A part of a frame did not reach the disk: it and what follows were never durable. */
static void test_torn_frames(void **state)
{
    (void)state;
    struct rng rng = rng_make(6);
    for (int round = 0; round < 30; round++) {
        struct world world;
        make_world(&world, 100 + (uint64_t)round, MIB);
        uint64_t count = rng_between(&rng, 1, 20), synced = rng_below(&rng, count);
        struct place places[20];
        for (uint64_t i = 0; i < count; i++) {
            places[i].offset = world.log.head.offset;
            append(&world, (uint32_t)rng_between(&rng, 20, 300) * 8, 0);
            places[i].bytes = world.log.head.offset - places[i].offset;
            if (i == synced)
                assert_ok(log_sync(&world.log, world.commit));
        }
        uint64_t torn = rng_between(&rng, synced + 1, count);
        drop_log(&world);
        os_sim_settle(world.sim);
        if (torn < count) { /* blocks of 512 bytes that are still as they were: zeros */
            uint64_t keep = round_up(places[torn].offset, 512) + 512 * rng_below(&rng, 2);
            uint64_t end = places[torn].offset + places[torn].bytes;
            if (keep >= end)
                keep = places[torn].offset;
            os_sim_zero(world.sim, name, keep, end - keep);
        }
        open_log(&world, false);
        assert_int_equal(replay(&world), torn);
        assert_ok(log_check_end(&world.log, world.commit));
        drop_world(&world);
    }
}

/* Frames that are to be synced are written by a call. Where it fails they are stored. */
static void test_failed_writes(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 11, MIB);
    const struct os_sim_fault fault = {
        .kinds = OS_SIM_WRITE, .nth = 5, .error = -EIO, .forever = true};
    os_sim_fail(world.sim, &fault);
    for (int i = 0; i < 100; i++)
        append(&world, 800, 0);
    assert_true(os_sim_failed(world.sim) > 10);
    os_sim_fail(world.sim, NULL);
    assert_ok(log_sync(&world.log, world.commit));
    os_sim_crash(world.sim, 1);
    drop_log(&world);
    open_log(&world, false);
    assert_int_equal(replay(&world), 100);
    drop_world(&world);
}

/* Frames of an older round, whole and with sound checksums, lie behind the head everywhere. */
static void test_stale_frames(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 7, MIB);
    for (int round = 0; round < 30; round++) {
        while (append(&world, 1000, 0)) /* all of one size: stale ones lie where new ones could */
            ;
        assert_ok(log_sync(&world.log, world.commit));
        struct position position = take_position(&world);
        release(&world, position);
        for (uint64_t i = 0; i < 10 + 20 * (uint64_t)round; i++)
            append(&world, 1000, 0);
        uint64_t commit = world.commit;
        os_sim_settle(world.sim);
        drop_log(&world);
        open_log(&world, false);
        assert_int_equal(replay(&world), world.frame_count);
        assert_int_equal(world.commit, commit);
        assert_ok(log_check_end(&world.log, world.commit));
    }
    assert_true(world.wraps > 10);
    drop_world(&world);
}

/* A log that was opened again does not go on with frames that were cut off before. */
static void test_cut_off_frames(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 8, MIB);
    append(&world, 800, 0);
    assert_ok(log_sync(&world.log, world.commit));
    uint64_t first = world.log.head.offset;
    for (int i = 0; i < 5; i++)
        append(&world, 800, 0);
    os_sim_settle(world.sim);
    uint8_t byte = 0;
    os_sim_peek(world.sim, name, first + 100, &byte, 1);
    drop_log(&world);
    os_sim_flip_bit(world.sim, name, (first + 100) * 8); /* the first of them is torn */
    recover(&world, 1);
    assert_int_equal(world.frame_count, 2); /* with the restart */
    /* Were it to land now, and the new frames not, the old must not be taken up again. */
    while (world.log.head.offset < first + 3 * (800 + sizeof(struct format_frame)))
        append(&world, 800 - 16 - sizeof(struct format_frame), 0);
    os_sim_settle(world.sim);
    drop_log(&world);
    open_log(&world, false);
    assert_int_equal(replay(&world), world.frame_count);
    drop_world(&world);
}

static void test_headers(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 9, MIB);
    append(&world, 100 * 8, 0);
    os_sim_settle(world.sim);
    drop_log(&world);
    struct os *os = os_sim_os(world.sim);
    struct format_log_header sound, header;
    os_sim_peek(world.sim, name, 0, &sound, sizeof sound);
    struct {
        size_t offset;
        enum fkv_error error;
    } cases[] = {
        {offsetof(struct format_log_header, magic), FKV_NOT_A_STORE},
        {offsetof(struct format_log_header, store_id), FKV_DAMAGED},
        {offsetof(struct format_log_header, version), FKV_DAMAGED},
        {offsetof(struct format_log_header, checksum), FKV_DAMAGED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        header = sound;
        ((uint8_t *)&header)[cases[i].offset] ^= 1;
        os_sim_poke(world.sim, name, 0, &header, sizeof header);
        assert_int_equal(os->ops->open(os, name, 0, &world.file), 0);
        log_make(&world.log, os->ops, name, MIB, NULL);
        world.log.file = world.file;
        assert_error(log_open(&world.log, world.id), cases[i].error);
        drop_log(&world);
    }
    os_sim_poke(world.sim, name, 0, &sound, sizeof sound);
    uint8_t other[16];
    memset(other, 1, sizeof other);
    assert_int_equal(os->ops->open(os, name, 0, &world.file), 0);
    log_make(&world.log, os->ops, name, MIB, NULL);
    world.log.file = world.file;
    assert_error(log_open(&world.log, other), FKV_LOG_MISMATCH);
    drop_log(&world);
    os_sim_resize(world.sim, name, 100);
    assert_int_equal(os->ops->open(os, name, 0, &world.file), 0);
    log_make(&world.log, os->ops, name, MIB, NULL);
    world.log.file = world.file;
    assert_error(log_open(&world.log, world.id), FKV_TRUNCATED);
    drop_world(&world);
}

/* A value may be a frame of this very log, or look like the header of a long one: what is inside of
 * a whole frame is no frame. */
static void test_frames_in_values(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 8, MIB);
    append(&world, 200, 0);
    const uint64_t first = world.log.head.offset - 200 - sizeof(struct format_frame);
    struct format_frame frame;
    memcpy(&frame, world.log.map + first, sizeof frame);
    frame.commit = frame.durable_commit = 1000;
    uint8_t copy[sizeof frame + 200];
    memcpy(copy, &frame, sizeof frame);
    memcpy(copy + sizeof frame, world.log.map + first + sizeof frame, 200);
    frame.checksum = checksum64(copy + 8, sizeof copy - 8) ^ world.log.seed;
    memcpy(copy, &frame.checksum, sizeof frame.checksum);

    const uint64_t head = sizeof frame + sizeof(struct format_operation);
    append(&world, sizeof(struct format_operation) + sizeof copy, 0);
    const uint64_t outer = world.log.head.offset - sizeof copy - head;
    memcpy(world.log.map + outer + head, copy, sizeof copy);
    uint64_t checksum =
        checksum64(world.log.map + outer + 8, head + sizeof copy - 8) ^ world.log.seed;
    memcpy(world.log.map + outer, &checksum, sizeof checksum);
    assert_ok(log_check_end(&world.log, world.commit));

    /* The same bytes where no frame is whole are a frame that was lost. */
    world.log.map[outer] ^= 1;
    assert_error(log_check_end(&world.log, world.commit), FKV_DAMAGED);
    drop_world(&world);
}

/* A sync took long, and was for two: who begins the next alone does not wait as long for the other.
 */
static void test_sync_after_a_long_one(void **state)
{
    (void)state;
    struct world world;
    make_world(&world, 15, 4 * MIB);
    append(&world, 64, 0);
    world.log.sync_ns = 4000000000;
    world.log.sync_group = 2;
    double began = support_now();
    assert_ok(log_sync(&world.log, world.commit));
    assert_true(support_now() - began < 1);
    drop_world(&world);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grows_to_its_maximum),
        cmocka_unit_test(test_stays_small_when_released_often),
        cmocka_unit_test(test_zeros_ahead),
        cmocka_unit_test(test_large_frames),
        cmocka_unit_test(test_largest_frames),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_full_disk_long_frames),
        cmocka_unit_test(test_damage_before_durable_frames),
        cmocka_unit_test(test_torn_frames),
        cmocka_unit_test(test_failed_writes),
        cmocka_unit_test(test_stale_frames),
        cmocka_unit_test(test_cut_off_frames),
        cmocka_unit_test(test_frames_in_values),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_sync_after_a_long_one),
        cmocka_unit_test(test_model),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
