/*
 * test_seed_failures.c: what broke in the seed, each a test (DESIGN.md, "What broke in the seed").
 */
#include "api_support.h"

#include <signal.h>

#include "format.h"
#include "os_sim.h"
#include "store.h"

/* ---------------------------------------------------------------- several transactions, one log */

static void two_transactions(void *context)
{
    const struct place *place = context;
    fkv *db = NULL;
    insist_ok(fkv_open(place->path, NULL, &db));
    for (uint64_t round = 1; round <= 3; round++) {
        fkv_txn *txn;
        insist_ok(fkv_txn_begin(db, &txn));
        for (uint64_t key = 0; key < 100; key++)
            if (round < 3 || key % 2)
                insist_ok(fkv_txn_put(txn, &key, sizeof key, &round, sizeof round));
        insist_ok(fkv_txn_commit(txn, 0));
        fkv_txn_free(txn);
    }
    insist_ok(fkv_delete(db, &(uint64_t){7}, 8));
    kill(getpid(), SIGKILL);
}

/* The seed replayed the first, over what the later ones had written. */
static void test_several_transactions_in_one_log(void **state)
{
    struct place *place = *state;
    assert_int_equal(run_child(two_transactions, place), 1000 + SIGKILL);
    fkv *db = open_with(place->path, 0);
    for (int reopened = 0; reopened < 3; reopened++) {
        for (uint64_t key = 0; key < 100; key++) {
            uint64_t value = 0;
            enum fkv_error error = fkv_get(db, &key, sizeof key, &value, sizeof value, NULL);
            assert_int_equal(error, key == 7 ? FKV_NOT_FOUND : FKV_OK);
            if (!error)
                assert_int_equal(value, key % 2 ? 3 : 2);
        }
        assert_int_equal(stats_of(db).keys, 99);
        must(fkv_close(db));
        db = open_with(place->path, reopened ? FKV_OPEN_READ_ONLY : 0);
    }
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- an old log, put back */

static void write_generation(fkv *db, uint64_t generation)
{
    for (uint64_t key = 0; key < 400; key++)
        insist_ok(put_value(db, key, 1000 + generation, key + generation));
}

struct old_log {
    const struct place *place;
    bool close;
};

static void write_and_checkpoint(void *context)
{
    const struct old_log *make = context;
    const struct place *place = make->place;
    fkv *db = NULL;
    insist_ok(fkv_open(place->path, NULL, &db));
    write_generation(db, 1);
    file_copy(place->log_path, place->other); /* with generation 1 in it */
    write_generation(db, 2);
    insist_ok(fkv_checkpoint(db));
    write_generation(db, 3);
    insist_ok(fkv_checkpoint(db));
    if (make->close)
        insist_ok(fkv_close(db));
    kill(getpid(), SIGKILL);
}

/* Replayed over what was flushed later, it would bring generation 1 back, or worse. */
static void old_log(struct place *place, bool close)
{
    struct old_log make = {.place = place, .close = close};
    assert_int_equal(run_child(write_and_checkpoint, &make), 1000 + SIGKILL);
    file_copy(place->other, place->log_path);
    fkv *db = NULL;
    enum fkv_error error = try_open(place->path, 0, &db);
    if (error) {
        assert_true(error == FKV_DAMAGED || error == FKV_LOG_MISMATCH);
        return;
    }
    for (uint64_t key = 0; key < 400; key++)
        assert_value(db, key, 1003, key + 3);
    assert_int_equal(stats_of(db).keys, 400);
    must(fkv_close(db));
}

static void test_old_log_over_later_flushes(void **state)
{
    old_log(*state, false);
}

static void test_old_log_over_a_closed_store(void **state)
{
    old_log(*state, true);
}

/* ---------------------------------------------------------------- flipped bits */

enum { FLIP_KEYS = 300, FLIP_LARGE = 3, LAST_KEY = 999 };

static size_t flip_bytes(uint64_t key)
{
    static const size_t large[FLIP_LARGE] = {150000, 1048480, 1500000};
    return key < FLIP_KEYS ? key * key % 6007 : large[key - FLIP_KEYS];
}

struct flip_store {
    const struct place *place;
    bool in_log; /* everything is in the log, nothing in a checkpoint */
    bool closed;
};

/* Several checkpoints, collection, overwrites; everything synced but one last small commit. */
static void make_flip_store(void *context)
{
    const struct flip_store *make = context;
    fkv *db = NULL;
    insist_ok((make->in_log ? try_open : try_open_small_log)(make->place->path, 0, &db));
    for (uint64_t round = 0; round < 3; round++)
        for (uint64_t key = 0; key < FLIP_KEYS + FLIP_LARGE; key++)
            if (round < 2 || key % 3 == 0)
                insist_ok(put_value(db, key, flip_bytes(key), round == 2 || key % 3 ? key : 5000));
    insist_ok(fkv_sync(db));
    insist_ok(put_value(db, LAST_KEY, 10, LAST_KEY));
    if (make->closed)
        insist_ok(fkv_close(db));
    kill(getpid(), SIGKILL);
}

static void file_flip(const char *path, uint64_t offset, unsigned bit)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte;
    insist(fd >= 0 && pread(fd, &byte, 1, (off_t)offset) == 1);
    byte ^= (uint8_t)(1u << bit);
    insist(pwrite(fd, &byte, 1, (off_t)offset) == 1);
    close(fd);
}

/* Right, or an error that says so. Never another value, never "no such key". */
static unsigned check_flipped_key(fkv *db, uint64_t key, uint64_t offset)
{
    size_t bytes = 0;
    enum fkv_error error;
    uint8_t *value = get_value(db, &key, sizeof key, &bytes, &error);
    if (error == FKV_DAMAGED || error == FKV_TRUNCATED)
        return 1;
    if (error)
        fail_msg("bit flipped at %" PRIu64 ": key %" PRIu64 ": %s", offset, key,
                 fkv_error_text(error));
    if (bytes != flip_bytes(key) || !value_is(value, bytes, key))
        fail_msg("bit flipped at %" PRIu64 ": key %" PRIu64 " has another value", offset, key);
    free(value);
    return 0;
}

/* How many keys showed the damage; all if the store did not open. */
static unsigned check_flipped(const char *path, unsigned flags, bool last_may_be_lost,
                              uint64_t offset)
{
    fkv *db = NULL;
    enum fkv_error error = try_open(path, flags, &db);
    if (error) {
        if (error != FKV_DAMAGED && error != FKV_TRUNCATED && error != FKV_NOT_A_STORE &&
            error != FKV_UNKNOWN_FORMAT && error != FKV_LOG_MISMATCH && error != FKV_FULL)
            fail_msg("bit flipped at %" PRIu64 ": opening says %s (%s)", offset,
                     fkv_error_text(error), fkv_error_detail(NULL));
        assert_true(*fkv_error_detail(NULL));
        return FLIP_KEYS;
    }
    unsigned damaged = 0;
    for (uint64_t key = 0; key < FLIP_KEYS + FLIP_LARGE; key++)
        damaged += check_flipped_key(db, key, offset);
    uint64_t last = LAST_KEY;
    error = fkv_exists(db, &last, sizeof last);
    if (error != FKV_OK && error != FKV_DAMAGED && !(error == FKV_NOT_FOUND && last_may_be_lost))
        fail_msg("bit flipped at %" PRIu64 ": the last commit: %s", offset, fkv_error_text(error));
    error = fkv_exists(db, "never there", 11);
    assert_true(error == FKV_NOT_FOUND || error == FKV_DAMAGED);
    if (!(flags & FKV_OPEN_READ_ONLY)) { /* it can be worked with, or says why not */
        for (uint64_t key = 0; key < FLIP_KEYS + FLIP_LARGE; key++) {
            error = key % 2 ? fkv_delete(db, &key, sizeof key) : put_value(db, key, 3000, 7);
            assert_true(error == FKV_OK || error == FKV_DAMAGED || error == FKV_FAILED ||
                        error == FKV_TRUNCATED);
        }
        error = fkv_close(db);
        assert_true(error == FKV_OK || error == FKV_DAMAGED || error == FKV_FAILED);
    } else {
        must(fkv_close(db));
    }
    return damaged;
}

/* A place with something in it: any sector as likely as another, and the headers. */
static uint64_t choose_place(const uint8_t *bytes, size_t count, uint64_t *random)
{
    if (random_below(random, 5) == 0)
        return random_below(random, 2) * PAGE_BYTES +
               random_below(random, sizeof(struct format_header));
    uint64_t begin = random_below(random, count / SECTOR_BYTES) * SECTOR_BYTES;
    uint64_t at = begin;
    for (int tries = 0; tries < 5000; tries++) {
        at = begin + random_below(random, SECTOR_BYTES);
        if (bytes[at])
            break;
    }
    return at;
}

static void flip_everywhere(struct place *place, bool closed, bool in_log)
{
    struct flip_store make = {.place = place, .in_log = in_log, .closed = closed};
    assert_int_equal(run_child(make_flip_store, &make), 1000 + SIGKILL);
    uint64_t random = test_seed("flipped bits");
    unsigned rounds = long_mode() ? UINT_MAX : SANITIZED ? 120 : 250, noticed = 0;
    double end = seconds_now() + seconds_to_run(1e9) / 3;
    const char *path = in_log ? place->log_path : place->path;
    size_t count;
    uint8_t *bytes = file_read(path, &count);
    char copy[PATH_MAX], copy_log[PATH_MAX + 8];
    snprintf(copy, sizeof copy, "%s/copy.fkv", place->directory);
    snprintf(copy_log, sizeof copy_log, "%s-wal", copy);
    for (unsigned round = 0; round < rounds && seconds_now() < end; round++) {
        uint64_t at = choose_place(bytes, count, &random);
        unsigned bit = (unsigned)random_below(&random, 8);
        bool write = round % 8 == 0;
        if (write) {
            file_copy(place->path, copy);
            file_copy(place->log_path, copy_log);
            file_flip(in_log ? copy_log : copy, at, bit);
            noticed += check_flipped(copy, round % 16 ? 0 : FKV_NO_THREAD, in_log, at) > 0;
        } else {
            file_flip(path, at, bit);
            noticed += check_flipped(place->path, FKV_OPEN_READ_ONLY, in_log, at) > 0;
            file_flip(path, at, bit);
        }
    }
    assert_true(noticed > 10);
    assert_int_equal(check_flipped(place->path, FKV_OPEN_READ_ONLY, false, 0), 0);
    free(bytes);
}

static void test_flipped_bits_in_a_closed_store(void **state)
{
    flip_everywhere(*state, true, false);
}

static void test_flipped_bits_in_an_unclosed_store(void **state)
{
    flip_everywhere(*state, false, false);
}

static void test_flipped_bits_in_the_log(void **state)
{
    flip_everywhere(*state, false, true);
}

/* ---------------------------------------------------------------- growth of the file */

static void grow_and_die(void *context)
{
    const struct place *place = context;
    fkv *db = NULL;
    insist_ok(fkv_open(place->path, NULL, &db));
    for (uint64_t key = 0; key < 2000; key++)
        insist_ok(put_value(db, key, 10000, key));
    kill(getpid(), SIGKILL);
}

/* The file grew and no checkpoint knows of it; and there is garbage behind its end. */
static void test_file_is_longer_than_the_store_knows(void **state)
{
    struct place *place = *state;
    assert_int_equal(run_child(grow_and_die, place), 1000 + SIGKILL);
    size_t garbage_bytes = 5 * MIB + 12345;
    uint8_t *garbage = malloc(garbage_bytes);
    value_fill(garbage, garbage_bytes, 1);
    int fd = open(place->path, O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_int_equal(write(fd, garbage, garbage_bytes), garbage_bytes);
    close(fd);
    free(garbage);
    fkv *db = open_with(place->path, 0);
    for (uint64_t key = 0; key < 2000; key++)
        assert_value(db, key, 10000, key);
    for (uint64_t key = 0; key < 2000; key++)
        must(put_value(db, key, 10000, key + 1));
    must(fkv_close(db));
    db = open_with(place->path, 0);
    for (uint64_t key = 0; key < 2000; key++)
        assert_value(db, key, 10000, key + 1);
    must(fkv_checkpoint(db));
    assert_true(file_bytes(place->path) < 2000 * 10000 * 3);
    must(fkv_close(db));
}

/* ---------------------------------------------------------------- begun anew in silence */

static void test_short_file_is_not_begun_anew(void **state)
{
    struct place *place = *state;
    fkv *db = open_with(place->path, 0);
    must(put_text(db, "a", "1"));
    must(fkv_close(db));
    file_copy(place->path, place->other);
    for (off_t bytes = 0; bytes < (off_t)SECTOR_BYTES; bytes += bytes < 600 ? 50 : 50000) {
        file_copy(place->other, place->path);
        assert_int_equal(truncate(place->path, bytes), 0);
        fkv *none = NULL;
        expect(try_open(place->path, 0, &none), FKV_TRUNCATED);
        assert_int_equal(file_bytes(place->path), (uint64_t)bytes);
    }
}

/* ---------------------------------------------------------------- a wrong salt */

/* The salt is in the header, under its checksum. So it can be wrong only if it is damaged, or if
 * the header is another store's. */
static void test_wrong_salt(void **state)
{
    struct place *place = *state;
    char other_log[PATH_MAX + 8];
    snprintf(other_log, sizeof other_log, "%s-wal", place->other);
    const char *paths[2] = {place->path, place->other};
    for (int i = 0; i < 2; i++) {
        fkv *db = open_with(paths[i], 0);
        for (uint64_t key = 0; key < 500; key++)
            must(put_value(db, key, 100, key));
        must(fkv_close(db));
    }
    for (int copy = 0; copy < 2; copy++) /* one copy damaged: the other counts */
        for (uint64_t byte = 0; byte < 16; byte++) {
            uint64_t at = (uint64_t)copy * PAGE_BYTES + offsetof(struct format_header, salt) + byte;
            file_flip(place->path, at, byte % 8);
            fkv *db = open_with(place->path, FKV_OPEN_READ_ONLY);
            for (uint64_t key = 0; key < 500; key++)
                assert_value(db, key, 100, key);
            must(fkv_close(db));
            file_flip(place->path, at, byte % 8);
        }
    fkv *db = NULL;
    file_flip(place->path, offsetof(struct format_header, salt), 0);
    file_flip(place->path, PAGE_BYTES + offsetof(struct format_header, salt), 0);
    expect(try_open(place->path, 0, &db), FKV_DAMAGED);
    size_t count;
    uint8_t *bytes = file_read(place->other, &count);
    file_patch(place->path, 0, bytes, 2 * PAGE_BYTES);
    free(bytes);
    expect(try_open(place->path, 0, &db), FKV_LOG_MISMATCH);
    file_copy(other_log, place->log_path);
    expect(try_open(place->path, 0, &db), FKV_DAMAGED);
}

/* ---------------------------------------------------------------- two handles */

static void test_two_handles(void **state)
{
    struct place *place = *state;
    fkv *one = open_with(place->path, 0), *two = NULL;
    expect(try_open(place->path, 0, &two), FKV_IN_USE);
    assert_null(two);
    for (uint64_t key = 0; key < 100; key++)
        must(put_value(one, key, 10, key));
    must(fkv_close(one));
    two = open_with(place->path, 0);
    assert_int_equal(stats_of(two).keys, 100);
    must(fkv_close(two));
}

/* ---------------------------------------------------------------- bounded work */

/* What one call took: of the processor, for this thread alone (a clock would show what else the
 * machine does, and what its disk does not), and of records that the collector moved in it. */
struct slowest {
    fkv *db;
    double seconds, begun;
    uint64_t moved, moved_before;
    const char *what, *what_moved;
};

static double seconds_worked(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void call_begins(struct slowest *slowest)
{
    slowest->moved_before = stats_of(slowest->db).bytes_written_collector;
    slowest->begun = seconds_worked();
}

static void call_ends(struct slowest *slowest, const char *what)
{
    double seconds = seconds_worked() - slowest->begun;
    uint64_t moved = stats_of(slowest->db).bytes_written_collector - slowest->moved_before;
    if (seconds > slowest->seconds) {
        slowest->seconds = seconds;
        slowest->what = what;
    }
    if (moved > slowest->moved) {
        slowest->moved = moved;
        slowest->what_moved = what;
    }
}

/* One delete behind a value of 64 MiB took the seed 1.7 s: its collector met the value whole. */
static void delete_behind_large(struct place *place, unsigned flags)
{
    fkv *db = open_with(place->path, flags);
    struct slowest slowest = {.db = db};
    must(put_value(db, 1000000, 64 * MIB, 1));
    for (uint64_t key = 0; key < 20000; key++)
        must(put_value(db, key, 1000, key));
    for (uint64_t key = 0; key < 20000; key++) {
        call_begins(&slowest);
        if (key % 2)
            must(fkv_delete(db, &key, sizeof key));
        else
            must(fkv_put(db, &key, sizeof key, "short", 5));
        call_ends(&slowest, "a delete or put behind it");
    }
    uint64_t large = 1000000;
    assert_value(db, large, 64 * MIB, 1);
    call_begins(&slowest);
    must(fkv_delete(db, &large, sizeof large));
    call_ends(&slowest, "the delete of the value itself");
    for (uint64_t key = 0; key < 20000; key += 2) {
        call_begins(&slowest);
        must(fkv_delete(db, &key, sizeof key));
        call_ends(&slowest, "a delete after it");
    }
    assert_int_equal(stats_of(db).keys, 0);
    must(fkv_close(db));
    print_message("at most %.4f s of work (%s), %" PRIu64 " bytes moved (%s)\n", slowest.seconds,
                  slowest.what, slowest.moved, slowest.what_moved ? slowest.what_moved : "none");
    if (slowest.seconds > (SANITIZED ? 3.0 : 0.7))
        fail_msg("%s took %.3f s", slowest.what, slowest.seconds);
    if (slowest.moved > MIB)
        fail_msg("%s moved %" PRIu64 " bytes", slowest.what_moved, slowest.moved);
}

static void test_delete_behind_a_large_value(void **state)
{
    delete_behind_large(*state, 0);
}

static void test_delete_behind_a_large_value_without_threads(void **state)
{
    delete_behind_large(*state, FKV_NO_THREAD);
}

/* ---------------------------------------------------------------- space */

static uint64_t disk_bytes(const char *path)
{
    struct stat stat_;
    assert_int_equal(stat(path, &stat_), 0);
    return (uint64_t)stat_.st_blocks * 512;
}

static void shrink(struct place *place, unsigned flags)
{
    uint64_t keys = SANITIZED ? 3000 : 10000;
    fkv *db = open_with(place->path, flags);
    for (uint64_t key = 0; key < keys; key++)
        must(put_value(db, key, 10000, key));
    must(put_value(db, keys, 20 * MIB, 1));
    assert_true(file_bytes(place->path) > keys * 10000);
    for (uint64_t key = 0; key <= keys; key++)
        if (key != keys / 2)
            must(fkv_delete(db, &key, sizeof key));
    for (int i = 0; i < 3; i++)
        must(fkv_checkpoint(db));
    assert_true(disk_bytes(place->path) < 16 * MIB);
    must(fkv_close(db));
    assert_true(disk_bytes(place->path) < 16 * MIB);
    assert_true(disk_bytes(place->log_path) < 16 * MIB);
    db = open_with(place->path, flags);
    assert_value(db, keys / 2, 10000, keys / 2);
    assert_int_equal(stats_of(db).keys, 1);
    must(fkv_close(db));
}

static void test_file_shrinks(void **state)
{
    shrink(*state, 0);
}

static void test_file_shrinks_without_threads(void **state)
{
    shrink(*state, FKV_NO_THREAD);
}

/* The seed's offsets only grew. Here space is used again and again, and addresses with it. */
static void test_space_is_used_again(void **state)
{
    struct place *place = *state;
    fkv *db = NULL;
    /* Without threads, so that nobody has to wait for one that does not get the processor. */
    must(try_open_small_log(place->path, FKV_NO_THREAD, &db));
    uint64_t total = SANITIZED ? 100 * MIB : 500 * MIB, written = 0, highest = 0, random = 1;
    while (written < total) {
        uint64_t key = random_below(&random, 200);
        size_t bytes = 20000 + random_below(&random, 20000);
        must(put_value(db, key, bytes, key));
        written += bytes;
        uint64_t now = stats_of(db).file_bytes;
        highest = now > highest ? now : highest;
    }
    if (highest > 80 * MIB)
        fail_msg("%" PRIu64 " MiB of file for 6 MiB of values", highest / MIB);
    must(fkv_close(db));
}

/* 40-byte pairs took 4.5 times their size. */
static void test_small_pairs_are_small(void **state)
{
    struct place *place = *state;
    uint64_t keys = SANITIZED ? 50000 : 200000;
    fkv *db = open_with(place->path, 0);
    uint8_t value[32] = {1};
    for (uint64_t key = 0; key < keys; key++)
        must(fkv_put(db, &key, sizeof key, value, sizeof value));
    must(fkv_checkpoint(db));
    must(fkv_checkpoint(db));
    must(fkv_close(db));
    double ratio = (double)disk_bytes(place->path) / (double)(keys * 40);
    if (ratio > (SANITIZED ? 3.2 : 2.6))
        fail_msg("pairs of 40 bytes take %.2f times their size", ratio);
}

/* ---------------------------------------------------------------- syncs */

static fkv *open_sim(struct os_sim *sim)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    options.log_bytes_max = MIB;
    fkv *db = NULL;
    must(store_open(os_sim_os(sim), "store.fkv", &options, &db));
    return db;
}

/* Nothing was ever synced. Here a synced commit is there after the power went, on a disk that loses
 * whatever was not. */
static void test_synced_is_durable(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct os_sim *sim = os_sim_new(&(struct os_sim_options){.seed = seed});
        fkv *db = open_sim(sim);
        for (uint64_t key = 0; key < 50; key++)
            must(put_value(db, key, key * 97 % 3000, key));
        uint64_t syncs = os_sim_calls(sim, OS_SIM_SYNC);
        uint64_t synced = seed % 3;
        if (synced == 0) {
            must(fkv_sync(db));
        } else if (synced == 1) {
            must(fkv_put_with(db, "last", 4, "1", 1, FKV_SYNC));
        } else {
            fkv_txn *txn;
            must(fkv_txn_begin(db, &txn));
            must(fkv_txn_put(txn, "last", 4, "1", 1));
            must(fkv_txn_commit(txn, FKV_SYNC));
            fkv_txn_free(txn);
        }
        assert_true(os_sim_calls(sim, OS_SIM_SYNC) > syncs);
        os_sim_crash(sim, seed);
        (void)fkv_close(db);
        db = open_sim(sim);
        for (uint64_t key = 0; key < 50; key++)
            assert_value(db, key, key * 97 % 3000, key);
        if (synced)
            assert_text(db, "last", "1");
        must(fkv_close(db));
        os_sim_free(sim);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_place(test_several_transactions_in_one_log),
        in_place(test_old_log_over_later_flushes),
        in_place(test_old_log_over_a_closed_store),
        in_place(test_flipped_bits_in_a_closed_store),
        in_place(test_flipped_bits_in_an_unclosed_store),
        in_place(test_flipped_bits_in_the_log),
        in_place(test_file_is_longer_than_the_store_knows),
        in_place(test_short_file_is_not_begun_anew),
        in_place(test_wrong_salt),
        in_place(test_two_handles),
        in_place(test_delete_behind_a_large_value),
        in_place(test_delete_behind_a_large_value_without_threads),
        in_place(test_file_shrinks),
        in_place(test_file_shrinks_without_threads),
        in_place(test_space_is_used_again),
        in_place(test_small_pairs_are_small),
        cmocka_unit_test(test_synced_is_durable),
    };
    return run_all(tests);
}
