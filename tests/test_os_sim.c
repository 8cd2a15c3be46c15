/*
 * test_os_sim.c: the simulated disk keeps what it must, and does lose the rest. (That it does what
 * any implementation of os.h does is in test_os.c.)
 *
 * The random tests print their seed when they fail; FKV_SEED=n runs that seed alone, FKV_ROUNDS=n
 * as many as that from 1 on.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os_sim.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK 512u
#define PAGE 4096u
#define MIB_BYTES (1u << 20)

static struct os_sim *sim;
static struct os *os;

/* ---------------------------------------------------------------- helpers */

static int set_up(void **state)
{
    (void)state;
    sim = os_sim_new(NULL);
    os = os_sim_os(sim);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    os_sim_free(sim);
    sim = NULL;
    return 0;
}

/* A fresh disk in the middle of a test. */
static void restart_disk(uint64_t seed)
{
    os_sim_free(sim);
    sim = os_sim_new(&(struct os_sim_options){.seed = seed});
    os = os_sim_os(sim);
}

static struct os_file *open_file(const char *path)
{
    struct os_file *file = NULL;
    assert_int_equal(os->ops->open(os, path, OS_CREATE, &file), 0);
    return file;
}

/* A file whose name is durable. */
static struct os_file *make_file(const char *path)
{
    struct os_file *file = open_file(path);
    assert_int_equal(os->ops->sync_directory(os, path), 0);
    return file;
}

static bool exists(const char *path)
{
    struct os_file *file = NULL;
    int error = os->ops->open(os, path, 0, &file);
    if (error == 0)
        os->ops->close(file);
    return error == 0;
}

static void fill(struct os_file *file, uint64_t offset, size_t bytes, int byte)
{
    char *data = malloc(bytes);
    memset(data, byte, bytes);
    assert_int_equal(os->ops->write(file, data, bytes, offset), 0);
    free(data);
}

static void sync_file(struct os_file *file)
{
    assert_int_equal(os->ops->sync(file), 0);
}

static uint64_t durable_size(const char *path)
{
    uint64_t bytes = 0;
    assert_int_equal(os_sim_file_size(sim, path, &bytes), 0);
    return bytes;
}

static void durable(const char *path, uint64_t offset, void *buffer, size_t bytes)
{
    assert_int_equal(os_sim_peek(sim, path, offset, buffer, bytes), 0);
}

static bool all_are(const void *data, int byte, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (((const uint8_t *)data)[i] != (uint8_t)byte)
            return false;
    return true;
}

/* A whole file that is expected to be of one byte each. */
static void assert_file(const char *path, size_t bytes, int byte)
{
    uint8_t *data = malloc(bytes);
    assert_int_equal(durable_size(path), bytes);
    durable(path, 0, data, bytes);
    assert_true(all_are(data, byte, bytes));
    free(data);
}

static uint64_t random_state;

static uint64_t next_random(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint64_t below(uint64_t bound)
{
    return next_random() % bound;
}

/* ---------------------------------------------------------------- the lottery over blocks */

/* What became of unsynced blocks over many crashes. */
struct outcomes {
    unsigned lost, landed, torn, all, none, mixed;
};

/* A file of `blocks` blocks of old bytes, overwritten by new ones through `change`, then a crash.
 * Counts the outcomes; torn blocks must be a prefix of new bytes. */
static void crash_over_seeds(unsigned blocks, void (*change)(struct os_file *file, size_t bytes),
                             struct outcomes *outcomes, unsigned tear_step)
{
    memset(outcomes, 0, sizeof *outcomes);
    size_t bytes = blocks * BLOCK;
    uint8_t *data = malloc(bytes);
    for (uint64_t seed = 1; seed <= 300; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        fill(file, 0, bytes, 'o');
        sync_file(file);
        change(file, bytes);
        os_sim_crash(sim, seed);
        os->ops->close(file);

        unsigned landed = 0, torn = 0;
        durable("f", 0, data, bytes);
        for (unsigned b = 0; b < blocks; b++) {
            const uint8_t *block = data + b * BLOCK;
            size_t prefix = 0;
            while (prefix < BLOCK && block[prefix] == 'n')
                prefix++;
            assert_true(all_are(block + prefix, 'o', BLOCK - prefix));
            assert_int_equal(prefix % tear_step, 0);
            landed += prefix == BLOCK;
            torn += prefix > 0 && prefix < BLOCK;
        }
        outcomes->landed += landed;
        outcomes->torn += torn;
        outcomes->lost += blocks - landed - torn;
        outcomes->all += landed == blocks;
        outcomes->none += landed == 0 && torn == 0;
        outcomes->mixed += landed > 0 && landed < blocks;
    }
    free(data);
}

static void change_by_write(struct os_file *file, size_t bytes)
{
    fill(file, 0, bytes, 'n');
}

static void test_unsynced_blocks(void **state)
{
    (void)state;
    struct outcomes outcomes;
    crash_over_seeds(16, change_by_write, &outcomes, BLOCK);
    assert_true(outcomes.lost > 1000 && outcomes.landed > 1000);
    assert_int_equal(outcomes.torn, 0);
    assert_true(outcomes.all > 20 && outcomes.none > 20 && outcomes.mixed > 50);
}

static void change_under_way(struct os_file *file, size_t bytes)
{
    fill(file, 0, bytes / 2, 'n');
    os_sim_crash_after(sim, OS_SIM_WRITE, 0);
    char *data = malloc(bytes);
    memset(data, 'n', bytes);
    assert_int_equal(os->ops->write(file, data + bytes / 2, bytes / 2, bytes / 2), -EIO);
    free(data);
}

static void test_write_under_way_is_torn(void **state)
{
    (void)state;
    struct outcomes outcomes;
    crash_over_seeds(2, change_under_way, &outcomes, 1);
    assert_true(outcomes.torn > 20 && outcomes.torn < 300);
    assert_true(outcomes.lost > 50 && outcomes.landed > 50);
}

static void change_by_mapping(struct os_file *file, size_t bytes)
{
    void *address = NULL;
    assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, &address), 0);
    memset(address, 'n', bytes);
    os->ops->unmap(file, address, MIB_BYTES);
}

static void change_by_open_mapping(struct os_file *file, size_t bytes)
{
    void *address = NULL;
    assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, &address), 0);
    sync_file(file);
    memset(address, 'n', bytes);
}

static void test_mapped_blocks(void **state)
{
    (void)state;
    struct outcomes outcomes;
    crash_over_seeds(16, change_by_mapping, &outcomes, 8);
    assert_true(outcomes.lost > 1000 && outcomes.landed > 1000 && outcomes.torn > 100);
    assert_true(outcomes.all > 20 && outcomes.none > 20 && outcomes.mixed > 50);
    crash_over_seeds(16, change_by_open_mapping, &outcomes, 8);
    assert_true(outcomes.lost > 1000 && outcomes.landed > 1000 && outcomes.torn > 100);
}

static void change_and_sync(struct os_file *file, size_t bytes)
{
    void *address = NULL;
    assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, &address), 0);
    memset(address, 'n', bytes / 2);
    fill(file, bytes / 2, bytes / 2, 'n');
    sync_file(file);
}

static void test_synced_blocks(void **state)
{
    (void)state;
    struct outcomes outcomes;
    crash_over_seeds(16, change_and_sync, &outcomes, BLOCK);
    assert_int_equal(outcomes.lost + outcomes.torn, 0);
}

static void change_with_hint(struct os_file *file, size_t bytes)
{
    fill(file, 0, bytes, 'n');
    os->ops->start_writeback(file, 0, bytes);
}

/* The hint is no promise, but does something. */
static void test_start_writeback(void **state)
{
    (void)state;
    struct outcomes outcomes;
    crash_over_seeds(16, change_with_hint, &outcomes, BLOCK);
    assert_true(outcomes.lost > 500 && outcomes.landed > 2500);
    assert_true(outcomes.none < 3);
}

/* A block that is overwritten twice survives in any of its three versions. */
static void test_intermediate_versions(void **state)
{
    (void)state;
    unsigned seen[2][3] = {{0}};
    for (uint64_t seed = 1; seed <= 600; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        void *address = NULL;
        assert_int_equal(os->ops->truncate(file, MIB_BYTES), 0);
        sync_file(file);
        assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, &address), 0);
        if (seed % 2 == 0) {
            fill(file, 0, BLOCK, 1);
            fill(file, 0, BLOCK, 2);
        } else {
            memset(address, 1, 8);
            os_sim_writeback(sim, seed);
            memset(address, 2, 8);
        }
        os->ops->unmap(file, address, MIB_BYTES);
        os->ops->close(file);
        os_sim_crash(sim, seed);
        uint8_t first;
        durable("f", 0, &first, 1);
        assert_true(first <= 2);
        seen[seed % 2][first]++;
    }
    for (int how = 0; how < 2; how++)
        assert_true(seen[how][0] > 20 && seen[how][1] > 20 && seen[how][2] > 20);
}

/* A hole that is written again: the old bytes, zeros, or the new ones. */
static void test_holes(void **state)
{
    (void)state;
    unsigned old = 0, zero = 0, new = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        fill(file, 0, 4 * PAGE, 'o');
        sync_file(file);
        assert_int_equal(os->ops->punch(file, 0, 4 * PAGE), 0);
        fill(file, PAGE, PAGE, 'n');
        os->ops->close(file);
        os_sim_crash(sim, seed);
        uint8_t data[4 * PAGE];
        durable("f", 0, data, sizeof data);
        for (unsigned b = 0; b < sizeof data / BLOCK; b++) {
            const uint8_t *block = data + b * BLOCK;
            assert_true(all_are(block, block[0], BLOCK));
            bool written = b / 8 == 1;
            assert_true(block[0] == 'o' || block[0] == 0 || (block[0] == 'n' && written));
            if (written) {
                old += block[0] == 'o';
                zero += block[0] == 0;
                new += block[0] == 'n';
            }
        }
    }
    assert_true(old > 100 && zero > 100 && new > 100);
}

/* Whether space stays allocated is drawn too. */
static void test_allocations(void **state)
{
    (void)state;
    unsigned sparse = 0, full = 0, between = 0;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        assert_int_equal(os->ops->allocate(file, 0, MIB_BYTES), 0);
        sync_file(file);
        assert_int_equal(os->ops->allocate(file, MIB_BYTES, 2 * MIB_BYTES), 0);
        os->ops->close(file);
        os_sim_crash(sim, seed);
        if (durable_size("f") == MIB_BYTES) {
            assert_int_equal(os_sim_used(sim), MIB_BYTES);
            continue;
        }
        assert_int_equal(durable_size("f"), 3 * MIB_BYTES);
        sparse += os_sim_used(sim) == MIB_BYTES;
        between += os_sim_used(sim) == 2 * MIB_BYTES;
        full += os_sim_used(sim) == 3 * MIB_BYTES;
    }
    assert_true(sparse > 3 && between > 3 && full > 3);
}

/* ---------------------------------------------------------------- sizes, space, names */

static void test_sizes(void **state)
{
    (void)state;
    unsigned old = 0, between = 0, new = 0;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        fill(file, 0, 1000, 'a');
        sync_file(file);
        assert_int_equal(os->ops->allocate(file, 0, MIB_BYTES), 0);
        assert_int_equal(os->ops->truncate(file, 500), 0);
        os_sim_crash(sim, seed);
        os->ops->close(file);
        uint64_t bytes = durable_size("f");
        assert_true(bytes == 1000 || bytes == MIB_BYTES || bytes == 500);
        old += bytes == 1000;
        between += bytes == MIB_BYTES;
        new += bytes == 500;
        uint8_t data[1000];
        size_t there = bytes < sizeof data ? bytes : sizeof data;
        durable("f", 0, data, there);
        assert_true(all_are(data, 'a', 500));
        /* What was cut off is there as it was, block by block, or zero. */
        for (size_t i = 500; i < there; i++)
            assert_true(data[i] == 'a' || data[i] == 0);
        if (bytes == MIB_BYTES) {
            uint8_t last;
            durable("f", MIB_BYTES - 1, &last, 1);
            assert_int_equal(last, 0);
        }
    }
    assert_true(old > 50 && between > 20 && new > 50);
}

static void test_synced_sizes(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 50; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        fill(file, 0, 10000, 'a');
        assert_int_equal(os->ops->truncate(file, 300), 0);
        assert_int_equal(os->ops->truncate(file, 9000), 0);
        sync_file(file);
        os_sim_crash(sim, seed);
        os->ops->close(file);
        assert_int_equal(durable_size("f"), 9000);
        uint8_t data[9000];
        durable("f", 0, data, sizeof data);
        assert_true(all_are(data, 'a', 300) && all_are(data + 300, 0, 8700));
    }
}

/* A truncation that does not land leaves the old bytes whole, whatever was written since. */
static void test_lost_truncation(void **state)
{
    (void)state;
    unsigned kept = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        fill(file, 0, 16 * PAGE, 'o');
        sync_file(file);
        assert_int_equal(os->ops->truncate(file, 8 * PAGE), 0);
        if (seed % 2 == 0)
            fill(file, 8 * PAGE, 2 * PAGE, 'n');
        os_sim_crash(sim, seed);
        os->ops->close(file);
        if (durable_size("f") == 16 * PAGE) {
            assert_file("f", 16 * PAGE, 'o');
            kept++;
        } else if (durable_size("f") == 8 * PAGE) {
            assert_file("f", 8 * PAGE, 'o');
        } else {
            assert_int_equal(durable_size("f"), 10 * PAGE);
            uint8_t data[2 * PAGE];
            durable("f", 8 * PAGE, data, sizeof data);
            for (size_t i = 0; i < sizeof data; i++)
                assert_true(data[i] == 'n' || data[i] == 0);
        }
    }
    assert_true(kept > 50 && kept < 150);
}

static void test_names(void **state)
{
    (void)state;
    unsigned created = 0, removed = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("d/kept");
        os->ops->close(file);
        file = make_file("d/removed");
        os->ops->close(file);
        file = open_file("d/new");
        fill(file, 0, 100, 'n');
        sync_file(file); /* does not cover the name */
        os->ops->close(file);
        assert_int_equal(os->ops->remove(os, "d/removed"), 0);
        assert_int_equal(os->ops->sync_directory(os, "elsewhere/new"), 0);
        os_sim_crash(sim, seed);
        assert_true(exists("d/kept"));
        if (exists("d/new")) {
            assert_file("d/new", 100, 'n');
            created++;
        }
        removed += !exists("d/removed");
    }
    assert_true(created > 50 && created < 150);
    assert_true(removed > 50 && removed < 150);
}

/* Removed and created again: before, nothing, or the new one. */
static void test_replaced_name(void **state)
{
    (void)state;
    unsigned old = 0, none = 0, new = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        fill(file, 0, 10, 'o');
        sync_file(file);
        os->ops->close(file);
        assert_int_equal(os->ops->remove(os, "f"), 0);
        file = open_file("f");
        fill(file, 0, 20, 'n');
        sync_file(file);
        os->ops->close(file);
        if (seed > 190)
            assert_int_equal(os->ops->sync_directory(os, "f"), 0);
        os_sim_crash(sim, seed);
        if (!exists("f")) {
            none++;
        } else if (durable_size("f") == 10) {
            assert_file("f", 10, 'o');
            old++;
        } else {
            assert_file("f", 20, 'n');
            new ++;
        }
        assert_true(seed <= 190 || (exists("f") && durable_size("f") == 20));
    }
    assert_true(old > 30 && none > 30 && new > 30);
}

static void test_full_disk(void **state)
{
    (void)state;
    os_sim_set_capacity(sim, 16 * PAGE);
    struct os_file *file = make_file("f");
    fill(file, 0, 10 * PAGE, 'a');
    assert_int_equal(os_sim_used(sim), 10 * PAGE);

    /* An allocation does what fits, or nothing; a write writes what fits. */
    uint64_t bytes = 10 * PAGE;
    for (int tries = 0; tries < 100 && bytes == 10 * PAGE; tries++) {
        assert_int_equal(os->ops->allocate(file, 0, 17 * PAGE), -ENOSPC);
        assert_int_equal(os->ops->size(file, &bytes), 0);
    }
    assert_int_equal(bytes, 16 * PAGE);
    assert_int_equal(os->ops->truncate(file, 10 * PAGE), 0);
    char data[8 * PAGE];
    memset(data, 'b', sizeof data);
    assert_int_equal(os->ops->write(file, data, sizeof data, 10 * PAGE), -ENOSPC);
    assert_int_equal(os->ops->size(file, &bytes), 0);
    assert_int_equal(bytes, 16 * PAGE);
    assert_int_equal(os_sim_used(sim), 16 * PAGE);

    /* Full: overwriting goes on, growing sparsely too, new pages do not. */
    fill(file, 0, 16 * PAGE, 'c');
    assert_int_equal(os->ops->truncate(file, 100 * PAGE), 0);
    assert_int_equal(os->ops->write(file, "x", 1, 50 * PAGE), -ENOSPC);

    /* What is given back can be used again. */
    assert_int_equal(os->ops->punch(file, PAGE + 1, 2 * PAGE), 0);
    assert_int_equal(os_sim_used(sim), 15 * PAGE);
    assert_int_equal(os->ops->allocate(file, 50 * PAGE, PAGE), 0);
    assert_int_equal(os->ops->truncate(file, 8 * PAGE + 1), 0);
    assert_int_equal(os_sim_used(sim), 8 * PAGE);

    /* A removed file takes its space for as long as it is open. */
    assert_int_equal(os->ops->remove(os, "f"), 0);
    assert_int_equal(os_sim_used(sim), 8 * PAGE);
    os->ops->close(file);
    assert_int_equal(os_sim_used(sim), 0);
}

/* What the C library makes of an allocation: zeros where there are zeros, or nothing yet. */
static void test_emulated_allocation(void **state)
{
    (void)state;
    struct os_sim *own = os_sim_new(&(struct os_sim_options){.emulates = true});
    struct os_file *file;
    char byte = 0;
    os = os_sim_os(own);
    assert_int_equal(os->ops->open(os, "f", OS_CREATE, &file), 0);
    fill(file, 0, PAGE, 'a');
    assert_int_equal(os->ops->truncate(file, 4 * PAGE), 0);
    fill(file, 2 * PAGE, PAGE, 'c');
    assert_int_equal(os_sim_used(own), 2 * PAGE);
    assert_int_equal(os->ops->punch(file, 0, PAGE), -EOPNOTSUPP);
    assert_int_equal(os->ops->allocate(file, 0, MIB_BYTES), 0);
    assert_int_equal(os_sim_used(own), MIB_BYTES);
    for (uint64_t p = 0; p < 4; p++) {
        assert_int_equal(os->ops->read(file, &byte, 1, p * PAGE + PAGE - 1), 0);
        assert_int_equal(byte, p == 0 ? 'a' : p == 2 ? 'c' : 0);
    }
    /* Not all fits. */
    os_sim_set_capacity(own, MIB_BYTES + 5 * PAGE);
    uint64_t bytes = 0;
    while (bytes < MIB_BYTES + 5 * PAGE) {
        assert_int_equal(os->ops->allocate(file, MIB_BYTES, MIB_BYTES), -ENOSPC);
        assert_int_equal(os->ops->size(file, &bytes), 0);
    }
    assert_int_equal(bytes, MIB_BYTES + 5 * PAGE);
    os->ops->close(file);
    os_sim_free(own);
}

static void test_hole_stores(void **state)
{
    (void)state;
    struct os_file *file = make_file("f");
    assert_int_equal(os->ops->truncate(file, MIB_BYTES), 0);
    assert_int_equal(os->ops->allocate(file, 0, 4 * PAGE), 0);
    void *address = NULL;
    assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, &address), 0);
    char *mapping = address;
    mapping[0] = 1;
    mapping[4 * PAGE - 1] = 1;
    sync_file(file);
    assert_int_equal(os_sim_hole_stores(sim), 0);
    mapping[4 * PAGE] = 1;
    sync_file(file);
    assert_int_equal(os_sim_hole_stores(sim), 1);
    assert_int_equal(os_sim_used(sim), 5 * PAGE);
    mapping[4 * PAGE] = 2;
    mapping[9 * PAGE] = 2;
    os->ops->unmap(file, address, MIB_BYTES);
    os->ops->close(file);
    os_sim_crash(sim, 1);
    assert_int_equal(os_sim_hole_stores(sim), 2);
}

/* ---------------------------------------------------------------- crash, kill, plans */

static void test_crash_after(void **state)
{
    (void)state;
    struct os_file *file = make_file("f");
    fill(file, 0, 100, 'a');
    sync_file(file);
    os_sim_crash_after(sim, OS_SIM_WRITE | OS_SIM_SYNC, 2);
    fill(file, 0, 100, 'b');
    uint64_t size = 0;
    assert_int_equal(os->ops->size(file, &size), 0); /* not counted */
    sync_file(file);
    assert_false(os_sim_crashed(sim));
    assert_int_equal(os->ops->write(file, "c", 1, 0), -EIO);
    assert_true(os_sim_crashed(sim));

    /* The power is off: nothing goes, nothing changes. */
    uint64_t calls = os_sim_calls(sim, OS_SIM_ALL);
    char byte;
    struct os_file *other = NULL;
    void *address = NULL;
    assert_int_equal(os->ops->read(file, &byte, 1, 0), -EIO);
    assert_int_equal(os->ops->write(file, "d", 1, 0), -EIO);
    assert_int_equal(os->ops->sync(file), -EIO);
    assert_int_equal(os->ops->size(file, &size), -EIO);
    assert_int_equal(os->ops->truncate(file, 0), -EIO);
    assert_int_equal(os->ops->allocate(file, 0, PAGE), -EIO);
    assert_int_equal(os->ops->punch(file, 0, PAGE), -EIO);
    assert_int_equal(os->ops->map(file, 0, PAGE, false, &address), -EIO);
    assert_int_equal(os->ops->lock(file, true), -EIO);
    os->ops->start_writeback(file, 0, PAGE);
    assert_int_equal(os->ops->open(os, "f", 0, &other), -EIO);
    assert_int_equal(os->ops->open(os, "g", OS_CREATE, &other), -EIO);
    assert_int_equal(os->ops->remove(os, "f"), -EIO);
    assert_int_equal(os->ops->sync_directory(os, "f"), -EIO);
    assert_int_equal(os_sim_calls(sim, OS_SIM_ALL), calls);

    /* After the crash the handle is dead, and others work. */
    os_sim_crash(sim, 1);
    assert_int_equal(os->ops->read(file, &byte, 1, 0), -EIO);
    assert_int_equal(os_sim_open_files(sim), 1);
    struct os_file *again = open_file("f");
    assert_int_equal(os->ops->lock(again, false), 0);
    assert_int_equal(os->ops->read(again, &byte, 1, 0), 0);
    assert_true(byte == 'b' || byte == 'c');
    assert_int_equal(os->ops->read(again, &byte, 1, 1), 0);
    assert_int_equal(byte, 'b');
    os->ops->close(file);
    os->ops->close(again);
    assert_int_equal(os_sim_open_files(sim), 0);
    assert_false(exists("g"));
}

/* Each kind of call can be the one under way, and its change may or may not have happened. */
static void test_crash_in_every_kind(void **state)
{
    (void)state;
    unsigned sizes[3] = {0}, created = 0, removed = 0;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        fill(file, 0, PAGE, 'a');
        sync_file(file);
        os_sim_crash_after(sim, OS_SIM_CHANGES, 0);
        struct os_file *other = NULL;
        if (seed % 4 == 0)
            assert_int_equal(os->ops->open(os, "g", OS_CREATE, &other), -EIO);
        else if (seed % 4 == 1)
            assert_int_equal(os->ops->remove(os, "f"), -EIO);
        else if (seed % 4 == 2)
            assert_int_equal(os->ops->allocate(file, 0, 2 * PAGE), -EIO);
        else
            assert_int_equal(os->ops->truncate(file, 0), -EIO);
        os_sim_crash(sim, seed);
        os->ops->close(file);
        created += exists("g");
        removed += !exists("f");
        if (seed % 4 >= 2)
            sizes[durable_size("f") / PAGE]++;
    }
    assert_true(created > 20 && created < 80 && removed > 20 && removed < 80);
    assert_true(sizes[0] > 20 && sizes[1] > 50 && sizes[2] > 20);
}

static void test_dead_mappings(void **state)
{
    (void)state;
    struct os_file *file = make_file("f");
    fill(file, 0, MIB_BYTES, 'a');
    sync_file(file);
    void *address = NULL;
    assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, &address), 0);
    memset(address, 'b', MIB_BYTES);
    os_sim_crash(sim, 3);
    assert_true(all_are(address, 'b', MIB_BYTES)); /* still readable, as it was */
    uint8_t before[PAGE], after[PAGE];
    durable("f", 0, before, PAGE);
    memset(address, 'c', MIB_BYTES); /* a ghost's stores */
    durable("f", 0, after, PAGE);
    assert_memory_equal(before, after, PAGE);
    assert_int_equal(os_sim_open_mappings(sim), 1);
    os->ops->unmap(file, address, MIB_BYTES);
    os->ops->close(file);
    assert_int_equal(os_sim_open_mappings(sim), 0);
}

static void test_kill(void **state)
{
    (void)state;
    struct os_file *file = open_file("f");
    assert_int_equal(os->ops->lock(file, false), 0);
    assert_int_equal(os->ops->truncate(file, MIB_BYTES), 0);
    void *address = NULL;
    assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, &address), 0);
    memset(address, 'm', PAGE);
    fill(file, PAGE, PAGE, 'w');
    os_sim_kill(sim, 1);
    memset(address, 'x', PAGE);
    assert_int_equal(os->ops->write(file, "x", 1, 0), -EIO);

    /* All is there, the lock is gone, and nothing was synced. */
    struct os_file *again = open_file("f");
    assert_int_equal(os->ops->lock(again, false), 0);
    char data[2 * PAGE];
    assert_int_equal(os->ops->read(again, data, sizeof data, 0), 0);
    assert_true(all_are(data, 'm', PAGE) && all_are(data + PAGE, 'w', PAGE));
    assert_int_equal(durable_size("f"), 0);
    os->ops->unmap(file, address, MIB_BYTES);
    os->ops->close(file);
    sync_file(again);
    assert_int_equal(durable_size("f"), MIB_BYTES);
    assert_int_equal(os->ops->sync_directory(os, "f"), 0);
    os->ops->close(again);
    os_sim_crash(sim, 7);
    durable("f", 0, data, sizeof data);
    assert_true(all_are(data, 'm', PAGE) && all_are(data + PAGE, 'w', PAGE));
}

/* Killed in a write: whole pages from the front have been written. */
static void test_kill_in_write(void **state)
{
    (void)state;
    unsigned seen[4] = {0};
    for (uint64_t seed = 1; seed <= 100; seed++) {
        restart_disk(seed);
        struct os_file *file = open_file("f");
        fill(file, 0, 2 * PAGE, 'o');
        char data[3 * PAGE];
        memset(data, 'n', sizeof data);
        os_sim_crash_after(sim, OS_SIM_WRITE, 0);
        assert_int_equal(os->ops->write(file, data, sizeof data, 0), -EIO);
        os_sim_kill(sim, seed);
        os->ops->close(file);
        file = open_file("f");
        uint64_t bytes = 0;
        assert_int_equal(os->ops->size(file, &bytes), 0);
        assert_true(bytes == 2 * PAGE || bytes == 3 * PAGE);
        assert_int_equal(os->ops->read(file, data, bytes, 0), 0);
        size_t new = 0;
        while (new < bytes && data[new] == 'n')
            new ++;
        assert_int_equal(new % PAGE, 0);
        assert_true(all_are(data + new, 'o', bytes - new));
        assert_int_equal(bytes, new > 2 * PAGE ? new : 2 * PAGE);
        seen[new / PAGE]++;
        os->ops->close(file);
    }
    assert_true(seen[0] > 5 && seen[1] > 5 && seen[2] > 5 && seen[3] > 5);
}

static void test_faults(void **state)
{
    (void)state;
    struct os_file *file = make_file("store-wal");
    struct os_file *other = make_file("store");
    os_sim_fail(sim, &(struct os_sim_fault){.kinds = OS_SIM_WRITE, .nth = 2, .error = -EIO});
    assert_int_equal(os->ops->write(file, "a", 1, 0), 0);
    assert_int_equal(os->ops->write(file, "b", 1, 0), -EIO);
    assert_int_equal(os->ops->write(file, "c", 1, 0), 0);
    assert_int_equal(os_sim_failed(sim), 1);

    os_sim_fail(sim, &(struct os_sim_fault){.kinds = OS_SIM_WRITE | OS_SIM_MAP,
                                            .nth = 2,
                                            .error = -ENOMEM,
                                            .forever = true,
                                            .name_end = "-wal"});
    void *address = NULL;
    assert_int_equal(os->ops->write(other, "a", 1, 0), 0);
    assert_int_equal(os->ops->write(file, "a", 1, 0), 0);
    assert_int_equal(os->ops->write(other, "b", 1, 0), 0);
    assert_int_equal(os->ops->write(file, "b", 1, 0), -ENOMEM);
    assert_int_equal(os->ops->map(file, 0, PAGE, false, &address), -ENOMEM);
    assert_int_equal(os->ops->write(other, "c", 1, 0), 0);
    os_sim_fail(sim, NULL);
    assert_int_equal(os->ops->write(file, "c", 1, 0), 0);
    assert_int_equal(os_sim_failed(sim), 3);

    /* Every kind can be made to fail; what failed has changed nothing (but a write, a sync). */
    struct os_file *third = NULL;
    uint64_t size = 0;
    char byte;
    os_sim_fail(sim, &(struct os_sim_fault){
                         .kinds = OS_SIM_ALL, .nth = 1, .error = -EDQUOT, .forever = true});
    assert_int_equal(os->ops->open(os, "new", OS_CREATE, &third), -EDQUOT);
    assert_int_equal(os->ops->read(file, &byte, 1, 0), -EDQUOT);
    assert_int_equal(os->ops->sync(file), -EDQUOT);
    assert_int_equal(os->ops->size(file, &size), -EDQUOT);
    assert_int_equal(os->ops->truncate(file, 0), -EDQUOT);
    assert_int_equal(os->ops->allocate(file, 0, PAGE), -EDQUOT);
    assert_int_equal(os->ops->punch(file, 0, PAGE), -EDQUOT);
    assert_int_equal(os->ops->lock(file, false), -EDQUOT);
    assert_int_equal(os->ops->remove(os, "store"), -EDQUOT);
    assert_int_equal(os->ops->sync_directory(os, "store"), -EDQUOT);
    os_sim_fail(sim, NULL);
    assert_false(exists("new"));
    assert_true(exists("store"));
    assert_int_equal(os->ops->size(file, &size), 0);
    assert_int_equal(size, 1);
    assert_int_equal(os->ops->read(file, &byte, 1, 0), 0);
    assert_int_equal(byte, 'c');
    os->ops->close(file);
    os->ops->close(other);
}

static void test_failed_write_wrote_a_part(void **state)
{
    (void)state;
    unsigned partial = 0;
    for (uint64_t seed = 1; seed <= 50; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        fill(file, 0, 1000, 'o');
        char data[1000];
        memset(data, 'n', sizeof data);
        os_sim_fail(sim, &(struct os_sim_fault){.kinds = OS_SIM_WRITE, .nth = 1, .error = -EIO});
        assert_int_equal(os->ops->write(file, data, sizeof data, 0), -EIO);
        assert_int_equal(os->ops->read(file, data, sizeof data, 0), 0);
        size_t new = 0;
        while (new < sizeof data && data[new] == 'n')
            new ++;
        assert_true(all_are(data + new, 'o', sizeof data - new));
        partial += new > 0 && new < sizeof data;
        os->ops->close(file);
    }
    assert_true(partial > 40);
}

/* After a sync that failed, what it did not write is lost for good unless it is written again. */
static void test_failed_sync(void **state)
{
    (void)state;
    unsigned lost = 0, landed = 0, torn = 0;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        restart_disk(seed);
        struct os_file *file = make_file("f");
        fill(file, 0, 4 * PAGE, 'o');
        sync_file(file);
        void *address = NULL;
        assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, &address), 0);
        uint8_t *mapping = address;
        memset(mapping, 'n', 2 * PAGE);
        fill(file, 2 * PAGE, 2 * PAGE, 'n');
        os_sim_fail(sim, &(struct os_sim_fault){.kinds = OS_SIM_SYNC, .nth = 1, .error = -EIO});
        assert_int_equal(os->ops->sync(file), -EIO);
        assert_true(all_are(mapping, 'n', 4 * PAGE)); /* the process sees no difference */
        mapping[PAGE] = 'N';                          /* pages 1 and 3 are dirty again */
        assert_int_equal(os->ops->write(file, "n", 1, 3 * PAGE), 0);
        sync_file(file);
        if (seed % 2 == 0) {
            os_sim_evict(sim);
            uint8_t data[4 * PAGE];
            durable("f", 0, data, sizeof data);
            assert_memory_equal(data, mapping, sizeof data);
        }
        os->ops->unmap(file, address, MIB_BYTES);
        os->ops->close(file);
        os_sim_crash(sim, seed);

        uint8_t data[4 * PAGE];
        durable("f", 0, data, sizeof data);
        assert_true(data[PAGE] == 'N' && all_are(data + PAGE + 1, 'n', PAGE - 1));
        assert_true(all_are(data + 3 * PAGE, 'n', PAGE));
        for (size_t b = 0; b < 4 * PAGE / BLOCK; b++) {
            const uint8_t *block = data + b * BLOCK;
            size_t new = 0;
            while (new < BLOCK && block[new] != 'o')
                new ++;
            assert_true(all_are(block + new, 'o', BLOCK - new));
            if (b / 8 % 2 == 0) {
                landed += new == BLOCK;
                lost += new == 0;
                torn += new > 0 && new < BLOCK;
            }
        }
    }
    assert_true(lost > 400 && landed > 500 && torn > 100);
}

static void test_counts(void **state)
{
    (void)state;
    struct os_file *file = make_file("f");
    char data[100] = {0};
    assert_int_equal(os->ops->write(file, data, 100, 0), 0);
    assert_int_equal(os->ops->write(file, data, 50, 0), 0);
    assert_int_equal(os->ops->read(file, data, 30, 0), 0);
    sync_file(file);
    assert_int_equal(os_sim_calls(sim, OS_SIM_WRITE), 2);
    assert_int_equal(os_sim_calls(sim, OS_SIM_WRITE | OS_SIM_READ), 3);
    assert_int_equal(os_sim_calls(sim, OS_SIM_ALL), 6);
    assert_int_equal(os_sim_bytes(sim, OS_SIM_WRITE), 150);
    assert_int_equal(os_sim_bytes(sim, OS_SIM_READ), 30);
    os->ops->close(file);
}

/* ---------------------------------------------------------------- copies and hooks */

#define COPIES_MAX 100

struct copies {
    struct os_sim *disks[COPIES_MAX];
    unsigned count;
};

static void take_copy(void *context, struct os_sim *hooked, enum os_sim_kind kind)
{
    (void)kind;
    struct copies *copies = context;
    assert_ptr_equal(hooked, sim);
    assert_true(copies->count < COPIES_MAX);
    copies->disks[copies->count++] = os_sim_copy(hooked);
}

/* A workload with all kinds of changes. Stops at the first error. */
static int work(void)
{
    struct os_file *file = NULL, *other = NULL;
    char data[3000];
    void *address = NULL;
    int error = os->ops->open(os, "f", OS_CREATE, &file);
    if (error == 0)
        error = os->ops->sync_directory(os, "f");
    if (error == 0)
        error = os->ops->allocate(file, 0, MIB_BYTES);
    if (error == 0)
        error = os->ops->map(file, 0, MIB_BYTES, true, &address);
    for (int i = 0; i < 6 && error == 0; i++) {
        memset(data, 'a' + i, sizeof data);
        memset((char *)address + 9999 * (i + 1), 'A' + i, 6000);
        error = os->ops->write(file, data, sizeof data, (uint64_t)i * 2000);
        if (error == 0 && i % 2 == 1)
            error = os->ops->sync(file);
        if (error == 0 && i == 2)
            os->ops->start_writeback(file, 0, 1000);
        if (error == 0 && i == 3)
            error = os->ops->punch(file, 4096, 8192);
    }
    if (error == 0)
        error = os->ops->truncate(file, 12345);
    if (error == 0)
        error = os->ops->open(os, "g", OS_CREATE, &other);
    if (error == 0)
        error = os->ops->write(other, data, sizeof data, 777);
    if (error == 0)
        error = os->ops->remove(os, "f");
    if (address != NULL)
        os->ops->unmap(file, address, MIB_BYTES);
    os->ops->close(file);
    os->ops->close(other);
    return error;
}

static void assert_same_file(struct os_sim *a, struct os_sim *b, const char *path)
{
    uint64_t bytes_a = 0, bytes_b = 0;
    int error = os_sim_file_size(a, path, &bytes_a);
    assert_int_equal(os_sim_file_size(b, path, &bytes_b), error);
    assert_int_equal(bytes_a, bytes_b);
    char *data_a = malloc(bytes_a + 1), *data_b = malloc(bytes_b + 1);
    if (error == 0) {
        assert_int_equal(os_sim_peek(a, path, 0, data_a, bytes_a), 0);
        assert_int_equal(os_sim_peek(b, path, 0, data_b, bytes_b), 0);
        assert_memory_equal(data_a, data_b, bytes_a);
    }
    free(data_a);
    free(data_b);
}

static void assert_same_disk(struct os_sim *a, struct os_sim *b)
{
    assert_same_file(a, b, "f");
    assert_same_file(a, b, "g");
    assert_int_equal(os_sim_used(a), os_sim_used(b));
}

/* Two runs with the same seeds leave the same bytes at every point of crash; a copy made in the
 * hook and crashed is the same as a crash; a copy that is killed the same as a kill. */
static void test_deterministic_and_copied(void **state)
{
    (void)state;
    struct copies copies = {0};
    os_sim_set_hook(sim, OS_SIM_CHANGES, take_copy, &copies);
    assert_int_equal(work(), 0);
    assert_true(copies.count > 15);
    struct os_sim *hooked = sim;
    sim = NULL;
    unsigned different = 0;
    for (unsigned n = 0; n < copies.count; n++) {
        struct os_sim *runs[2];
        for (int run = 0; run < 2; run++) {
            sim = NULL;
            restart_disk(0);
            os_sim_crash_after(sim, OS_SIM_CHANGES, n);
            assert_int_equal(work(), -EIO);
            runs[run] = sim;
        }
        struct os_sim *again = os_sim_copy(copies.disks[n]);
        struct os_sim *third = os_sim_copy(copies.disks[n]);
        if (n % 3 == 2) {
            os_sim_kill(runs[0], n);
            os_sim_kill(runs[1], n);
            os_sim_kill(again, n);
            os_sim_settle(runs[0]);
            os_sim_settle(runs[1]);
            os_sim_settle(again);
        } else {
            os_sim_crash(runs[0], n);
            os_sim_crash(runs[1], n);
            os_sim_crash(again, n);
        }
        assert_same_disk(runs[0], runs[1]);
        assert_same_disk(runs[0], again);
        os_sim_crash(third, n + 1000);
        uint64_t a = 0, b = 0;
        os_sim_file_size(again, "f", &a);
        os_sim_file_size(third, "f", &b);
        different += a != b;
        os_sim_free(runs[0]);
        os_sim_free(runs[1]);
        os_sim_free(again);
        os_sim_free(third);
        os_sim_free(copies.disks[n]);
    }
    assert_true(different > 0);
    sim = hooked;
}

/* Some change of a file of at most 2 MiB, which may be mapped. */
static void change_somehow(struct os_file *file, uint8_t **mapped)
{
    uint64_t size = 0;
    os->ops->size(file, &size);
    uint64_t at = below(2 * MIB_BYTES - 3 * PAGE), bytes = 1 + below(3 * PAGE);
    switch (below(9)) {
    case 0:
        fill(file, at, bytes, (int)below(256));
        break;
    case 1:
        assert_int_equal(os->ops->truncate(file, below(3) == 0 ? 0 : at), 0);
        break;
    case 2:
        assert_int_equal(os->ops->punch(file, at, bytes), 0);
        break;
    case 3:
        assert_int_equal(os->ops->allocate(file, at, bytes), 0);
        break;
    case 4:
        sync_file(file);
        break;
    case 5:
        if (*mapped != NULL)
            os->ops->unmap(file, *mapped, MIB_BYTES);
        *mapped = NULL;
        break;
    default:
        if (*mapped == NULL)
            assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, (void **)mapped), 0);
        size = size < MIB_BYTES ? size : MIB_BYTES;
        if (size > bytes)
            memset(*mapped + at % (size - bytes), (int)below(256), bytes);
    }
}

/* A copy takes from one that was made before what has not changed since: whatever has, in the disk
 * itself and in the earlier copies, this one must be as the process sees the disk. */
static void test_copies_of_a_disk_at_work(void **state)
{
    (void)state;
    struct os_file *file = make_file("f");
    uint8_t *mapped = NULL;
    uint8_t *now = malloc(2 * MIB_BYTES), *there = malloc(2 * MIB_BYTES);
    random_state = 4;
    for (int round = 0; round < 1000; round++) {
        for (uint64_t i = below(5); i > 0; i--)
            change_somehow(file, &mapped);
        if (below(20) == 0) { /* the process dies, and another takes its place */
            os_sim_kill(sim, (uint64_t)round);
            if (mapped != NULL)
                os->ops->unmap(file, mapped, MIB_BYTES);
            mapped = NULL;
            os->ops->close(file);
            file = open_file("f");
        }
        struct os_sim *disk = sim, *copy = os_sim_copy(sim);
        uint64_t size = 0;
        assert_int_equal(os->ops->size(file, &size), 0);
        assert_int_equal(os->ops->read(file, now, size, 0), 0);
        os_sim_kill(copy, 0);
        sim = copy;
        os = os_sim_os(copy);
        struct os_file *copied = open_file("f");
        uint64_t copied_size = 0;
        assert_int_equal(os->ops->size(copied, &copied_size), 0);
        assert_int_equal(copied_size, size);
        assert_int_equal(os->ops->read(copied, there, size, 0), 0);
        assert_memory_equal(now, there, size);
        uint8_t *copied_map = NULL;
        for (uint64_t i = below(5); i > 0; i--)
            change_somehow(copied, &copied_map);
        if (below(2) == 0)
            os_sim_crash(copy, (uint64_t)round);
        os_sim_free(copy);
        sim = disk;
        os = os_sim_os(disk);
    }
    if (mapped != NULL)
        os->ops->unmap(file, mapped, MIB_BYTES);
    os->ops->close(file);
    free(now);
    free(there);
}

/* ---------------------------------------------------------------- damage */

static void test_damage(void **state)
{
    (void)state;
    uint8_t data[100], read[100];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)i;
    assert_int_equal(os_sim_put_file(sim, "f", data, sizeof data), 0);
    assert_int_equal(os_sim_flip_bit(sim, "f", 8 * 7 + 3), 0);
    durable("f", 0, read, sizeof read);
    data[7] ^= 8;
    assert_memory_equal(data, read, sizeof data);
    assert_int_equal(os_sim_zero(sim, "f", 10, 10), 0);
    assert_int_equal(os_sim_swap(sim, "f", 30, 60, 10), 0);
    assert_int_equal(os_sim_resize(sim, "f", 90), 0);
    assert_int_equal(os_sim_poke(sim, "f", 89, "x", 1), 0);

    /* The process sees it, in mappings that it had too. */
    struct os_file *file = open_file("f");
    assert_int_equal(os->ops->read(file, read, 90, 0), 0);
    assert_true(all_are(read + 10, 0, 10));
    assert_int_equal(read[30], 60);
    assert_int_equal(read[60], 30);
    assert_int_equal(read[89], 'x');
    assert_int_equal(os->ops->read(file, read, 91, 0), -ENODATA);
    void *address = NULL;
    assert_int_equal(os->ops->map(file, 0, PAGE, true, &address), 0);
    assert_int_equal(os_sim_poke(sim, "f", 0, "yz", 2), 0);
    assert_memory_equal(address, "yz", 2);
    os->ops->unmap(file, address, PAGE);
    os->ops->close(file);
    os_sim_crash(sim, 1);
    durable("f", 0, read, 2);
    assert_memory_equal(read, "yz", 2);

    assert_int_equal(os_sim_peek(sim, "f", 80, read, 11), -ENODATA);
    assert_int_equal(os_sim_poke(sim, "f", 80, read, 11), -ENODATA);
    assert_int_equal(os_sim_peek(sim, "g", 0, read, 1), -ENOENT);
    assert_int_equal(os_sim_copy_file(sim, "g", sim, "f"), 0);
    assert_int_equal(os_sim_delete_file(sim, "f"), 0);
    assert_int_equal(os_sim_delete_file(sim, "f"), -ENOENT);
    assert_int_equal(durable_size("g"), 90);
    assert_int_equal(os_sim_resize(sim, "g", 20 * PAGE), 0);
    os_sim_crash(sim, 2);
    assert_int_equal(durable_size("g"), 20 * PAGE);
    assert_false(exists("f"));
}

/* ---------------------------------------------------------------- limits, threads */

/* Touch a byte in a child: does that end it? */
static bool is_fatal(volatile char *byte, bool store)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        fclose(stderr); /* a sanitizer's report would only confuse */
        signal(SIGSEGV, SIG_DFL);
        if (store)
            *byte = 1;
        _exit(*byte == 77 ? 2 : 0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

static void test_beyond_the_end(void **state)
{
    (void)state;
    struct os_file *file = make_file("f");
    assert_int_equal(os->ops->truncate(file, 2 * PAGE), 0);
    void *address = NULL;
    assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, &address), 0);
    char *mapping = address;
    assert_false(is_fatal(mapping + 2 * PAGE - 1, true));
    assert_true(is_fatal(mapping + 2 * PAGE, false));
    assert_int_equal(os->ops->truncate(file, 3 * PAGE), 0);
    assert_false(is_fatal(mapping + 2 * PAGE, true));
    assert_int_equal(os->ops->truncate(file, PAGE), 0);
    assert_true(is_fatal(mapping + PAGE, true));
    os->ops->unmap(file, address, MIB_BYTES);

    /* Bytes stored behind the end, in the last page, are no part of the file. */
    assert_int_equal(os->ops->truncate(file, 10), 0);
    assert_int_equal(os->ops->map(file, 0, MIB_BYTES, true, &address), 0);
    memset(address, 'x', PAGE);
    sync_file(file);
    assert_int_equal(os->ops->truncate(file, PAGE), 0);
    assert_true(all_are(address, 'x', 10) && all_are((char *)address + 10, 0, PAGE - 10));
    os->ops->unmap(file, address, MIB_BYTES);
    os->ops->close(file);
}

static void test_reserved_range(void **state)
{
    (void)state;
    os_sim_free(sim);
    sim = os_sim_new(&(struct os_sim_options){.file_bytes_max = 2 * MIB_BYTES});
    os = os_sim_os(sim);
    struct os_file *file = make_file("f");
    void *address = NULL;
    assert_int_equal(os->ops->truncate(file, 2 * MIB_BYTES), 0);
    assert_int_equal(os->ops->truncate(file, 2 * MIB_BYTES + 1), -EFBIG);
    assert_int_equal(os->ops->write(file, "xy", 2, 2 * MIB_BYTES - 1), -EFBIG);
    assert_int_equal(os->ops->allocate(file, MIB_BYTES, MIB_BYTES + 1), -EFBIG);
    assert_int_equal(os->ops->map(file, MIB_BYTES, 2 * MIB_BYTES, false, &address), -ENOMEM);
    assert_int_equal(os->ops->map(file, MIB_BYTES, MIB_BYTES, false, &address), 0);
    os->ops->unmap(file, address, MIB_BYTES);
    os->ops->close(file);
}

static void *thread_work(void *argument)
{
    const char *path = argument;
    struct os_file *file = NULL;
    if (os->ops->open(os, path, OS_CREATE, &file) != 0)
        return argument;
    for (unsigned i = 0; i < 500; i++) {
        os->ops->write(file, path, 2, i * 100);
        if (i % 10 == 0)
            os->ops->sync(file);
        char data[2];
        if (os->ops->read(file, data, 2, i * 100) != 0 || memcmp(data, path, 2) != 0)
            return argument;
    }
    os->ops->close(file);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    static const char *const paths[] = {"a1", "b2", "c3", "d4"};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, thread_work, (void *)paths[i]), 0);
    for (int i = 0; i < 4; i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    assert_int_equal(os_sim_calls(sim, OS_SIM_WRITE), 2000);
}

/* ---------------------------------------------------------------- against a model */

/*
 * The model of one file: what the process must see, and for each block every content that a crash
 * may leave: those it has had since the last sync, each with the zeros of later truncations and
 * holes too, since a lost write and a landed truncation leave that.
 */
#define MODEL_BLOCKS 64u
#define MODEL_BYTES (MODEL_BLOCKS * BLOCK)
/* So much of its beginning is mapped for writing. There, all blocks may be torn. */
#define MODEL_MAPPED_BYTES (MODEL_BYTES / 2)

struct versions {
    uint8_t (*data)[BLOCK];
    size_t count;
    bool tearable; /* may hold a prefix of the last version */
};

struct model {
    uint8_t current[MODEL_BYTES];
    uint64_t size;
    struct versions blocks[MODEL_BLOCKS];
    uint64_t sizes[200];
    size_t size_count;
};

static void add_version(struct model *model, unsigned block, const uint8_t *data)
{
    struct versions *versions = &model->blocks[block];
    for (size_t i = 0; i < versions->count; i++)
        if (memcmp(versions->data[i], data, BLOCK) == 0)
            return;
    versions->data = realloc(versions->data, (versions->count + 1) * BLOCK);
    memcpy(versions->data[versions->count++], data, BLOCK);
}

static void model_synced(struct model *model)
{
    for (unsigned b = 0; b < MODEL_BLOCKS; b++) {
        model->blocks[b].count = 0;
        model->blocks[b].tearable = b * BLOCK < MODEL_MAPPED_BYTES;
        add_version(model, b, model->current + b * BLOCK);
    }
    model->sizes[0] = model->size;
    model->size_count = 1;
}

static void model_size(struct model *model, uint64_t size)
{
    model->size = size;
    model->sizes[model->size_count++] = size;
}

static void model_store(struct model *model, uint64_t offset, const uint8_t *data, size_t bytes,
                        bool tearable)
{
    memcpy(model->current + offset, data, bytes);
    for (uint64_t b = offset / BLOCK; b * BLOCK < offset + bytes; b++) {
        add_version(model, (unsigned)b, model->current + b * BLOCK);
        model->blocks[b].tearable |= tearable;
    }
}

static void model_zero(struct model *model, uint64_t begin, uint64_t end)
{
    if (begin >= end)
        return;
    memset(model->current + begin, 0, end - begin);
    for (uint64_t b = begin / BLOCK; b * BLOCK < end; b++) {
        struct versions *versions = &model->blocks[b];
        uint64_t from = begin > b * BLOCK ? begin - b * BLOCK : 0;
        uint64_t to = end < (b + 1) * BLOCK ? end - b * BLOCK : BLOCK;
        for (size_t i = 0, count = versions->count; i < count; i++) {
            uint8_t zeroed[BLOCK];
            memcpy(zeroed, versions->data[i], BLOCK);
            memset(zeroed + from, 0, to - from);
            add_version(model, (unsigned)b, zeroed);
        }
        add_version(model, (unsigned)b, model->current + b * BLOCK);
    }
}

/* Is this, in its first `bytes` bytes, something that the crash may have left? */
static bool is_possible(const struct versions *versions, const uint8_t *block, size_t bytes,
                        const uint8_t *current)
{
    for (size_t i = 0; i < versions->count; i++) {
        size_t prefix = 0;
        if (memcmp(versions->data[i], block, bytes) == 0)
            return true;
        while (prefix < bytes && current[prefix] == block[prefix])
            prefix++;
        if (versions->tearable &&
            memcmp(versions->data[i] + prefix, block + prefix, bytes - prefix) == 0)
            return true;
    }
    return false;
}

static void check_survivors(struct model *model)
{
    uint64_t size = durable_size("f");
    bool known = false;
    for (size_t i = 0; i < model->size_count; i++)
        known |= model->sizes[i] == size;
    assert_true(known);
    uint8_t data[MODEL_BYTES];
    durable("f", 0, data, size);
    for (unsigned b = 0; b * BLOCK < size; b++) {
        size_t bytes = size - b * BLOCK < BLOCK ? size - b * BLOCK : BLOCK;
        assert_true(
            is_possible(&model->blocks[b], data + b * BLOCK, bytes, model->current + b * BLOCK));
    }
    memset(model->current, 0, sizeof model->current);
    memcpy(model->current, data, size);
    model->size = size;
    model_synced(model);
}

static void random_range(uint64_t bound, uint64_t *offset, size_t *bytes)
{
    *bytes = 1 + below(below(2) ? 100 : 3 * PAGE);
    if (*bytes > bound)
        *bytes = bound;
    *offset = below(bound - *bytes + 1);
}

/* One random operation on file and model. */
static void random_step(struct model *model, struct os_file *file, uint8_t *mapping,
                        const uint8_t *whole)
{
    uint8_t data[MODEL_BYTES];
    uint64_t offset;
    size_t bytes;
    unsigned what = (unsigned)below(12);
    random_range(MODEL_BYTES, &offset, &bytes);
    memset(data, (int)(1 + below(255)), bytes);
    if (what < 4) {
        assert_int_equal(os->ops->write(file, data, bytes, offset), 0);
        model_store(model, offset, data, bytes, false);
        if (offset + bytes > model->size)
            model_size(model, offset + bytes);
    } else if (what < 8) {
        if (model->size == 0)
            return;
        random_range(model->size < MODEL_MAPPED_BYTES ? model->size : MODEL_MAPPED_BYTES, &offset,
                     &bytes);
        memcpy(mapping + offset, data, bytes);
        model_store(model, offset, data, bytes, true);
    } else if (what == 8) {
        sync_file(file);
        model_synced(model);
    } else if (what == 9) {
        uint64_t size = below(MODEL_BYTES);
        assert_int_equal(os->ops->truncate(file, size), 0);
        model_zero(model, size, model->size);
        model_size(model, size);
    } else if (what == 10) {
        assert_int_equal(os->ops->allocate(file, offset, bytes), 0);
        if (offset + bytes > model->size)
            model_size(model, offset + bytes);
    } else {
        assert_int_equal(os->ops->punch(file, offset, bytes), 0);
        model_zero(model, offset, offset + bytes < model->size ? offset + bytes : model->size);
    }
    if (below(10) == 0)
        os_sim_writeback(sim, next_random());
    if (below(10) == 0)
        os->ops->start_writeback(file, offset, bytes);
    assert_memory_equal(model->current, whole, model->size);
}

static void close_life(struct os_file *file, void *mapping, void *whole)
{
    os->ops->unmap(file, mapping, MODEL_MAPPED_BYTES);
    os->ops->unmap(file, whole, MIB_BYTES);
    os->ops->close(file);
}

/* A few dozen operations, then a crash; half of the time in the middle of a write. */
static void random_life(struct model *model)
{
    struct os_file *file = open_file("f");
    void *address = NULL;
    assert_int_equal(os->ops->map(file, 0, MIB_BYTES, false, &address), 0);
    void *whole = address;
    assert_int_equal(os->ops->map(file, 0, MODEL_MAPPED_BYTES, true, &address), 0);
    for (uint64_t left = below(40); left > 0; left--)
        random_step(model, file, address, whole);
    if (below(2) == 0) {
        uint8_t data[MODEL_BYTES];
        uint64_t offset;
        size_t bytes;
        random_range(MODEL_BYTES, &offset, &bytes);
        memset(data, 0xee, bytes);
        os_sim_crash_after(sim, OS_SIM_WRITE, 0);
        assert_int_equal(os->ops->write(file, data, bytes, offset), -EIO);
        model_store(model, offset, data, bytes, true);
        if (offset + bytes > model->size)
            model_size(model, offset + bytes);
    }
    bool close_first = below(2) == 0;
    if (close_first)
        close_life(file, address, whole);
    os_sim_crash(sim, next_random());
    if (!close_first)
        close_life(file, address, whole);
    check_survivors(model);
}

static void run_model(uint64_t seed)
{
    random_state = seed;
    restart_disk(seed);
    struct os_file *file = make_file("f");
    os->ops->close(file);
    struct model *model = calloc(1, sizeof *model);
    model_synced(model);
    for (int life = 0; life < 10; life++)
        random_life(model);
    for (unsigned b = 0; b < MODEL_BLOCKS; b++)
        free(model->blocks[b].data);
    free(model);
    assert_int_equal(os_sim_open_files(sim) + os_sim_open_mappings(sim), 0);
}

static uint64_t running_seed;

/* cmocka leaves a failing test by longjmp: this runs at its end, however it ends. */
static int model_tear_down(void **state)
{
    if (running_seed != 0)
        print_message("replay with FKV_SEED=%llu test_os_sim\n", (unsigned long long)running_seed);
    return tear_down(state);
}

static void test_model(void **state)
{
    (void)state;
    const char *seed = getenv("FKV_SEED");
    const char *rounds = getenv("FKV_ROUNDS");
    uint64_t first = seed != NULL ? strtoull(seed, NULL, 0) : 1;
    uint64_t count = seed != NULL ? 1 : rounds != NULL ? strtoull(rounds, NULL, 0) : 300;
    for (uint64_t s = first; s < first + count; s++) {
        running_seed = s;
        run_model(s);
    }
    running_seed = 0;
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_unsynced_blocks),
        TEST(test_write_under_way_is_torn),
        TEST(test_mapped_blocks),
        TEST(test_synced_blocks),
        TEST(test_start_writeback),
        TEST(test_intermediate_versions),
        TEST(test_holes),
        TEST(test_allocations),
        TEST(test_sizes),
        TEST(test_synced_sizes),
        TEST(test_lost_truncation),
        TEST(test_names),
        TEST(test_replaced_name),
        TEST(test_full_disk),
        TEST(test_emulated_allocation),
        TEST(test_hole_stores),
        TEST(test_crash_after),
        TEST(test_crash_in_every_kind),
        TEST(test_dead_mappings),
        TEST(test_kill),
        TEST(test_kill_in_write),
        TEST(test_faults),
        TEST(test_failed_write_wrote_a_part),
        TEST(test_failed_sync),
        TEST(test_counts),
        TEST(test_deterministic_and_copied),
        TEST(test_copies_of_a_disk_at_work),
        TEST(test_damage),
        TEST(test_beyond_the_end),
        TEST(test_reserved_range),
        TEST(test_threads),
        cmocka_unit_test_setup_teardown(test_model, set_up, model_tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
