/*
 * test_long: the store through its public calls against a plain map: random puts, rewrites, deletes
 * and reads of keys of 6 and 7 bytes and values of 0 to 1,024, now and then of megabytes, alone and
 * in transactions, in phases that change the mix, closing and opening it in between.
 *
 * The map is an array: each key's version and length; the bytes of a value follow from its key and
 * version. Every round has options of its own: threads or none, a small log, a tight bound on
 * garbage, digests for keys.
 */
#include "support.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"

enum {
    VALUE_BYTES_USUAL = 1024,
    VALUE_BYTES_LARGE = 5 << 20,
    KEYS_WITH_LARGE_VALUES = 6, /* the first few: so that the store stays small */
};

struct pair {
    uint32_t version; /* 0: absent */
    uint32_t bytes;
};

/* What a phase does, in percent of its steps; the rest are single puts. */
struct mix {
    unsigned remove, read, transaction;
    unsigned large; /* puts of large values, in thousandths, of the keys that may have them */
};

struct world {
    struct rng rng;
    uint64_t seed;
    fkv *db;
    fkv_options options;
    const char *path;
    uint32_t key_count;
    uint32_t version;
    struct pair *pairs;
    uint64_t present;
    uint8_t *value; /* what is put */
    uint8_t *read;  /* what is read */
    struct {
        uint64_t puts, rewrites, removes, misses, reads, transactions, aborted, conflicts, opened,
            large, bytes;
    } did;
};

/* ---------------------------------------------------------------- keys, values, the map */

static size_t make_key(const struct world *world, uint32_t number, uint8_t key[8])
{
    uint64_t bytes = (number + 1) * 0x9e3779b97f4a7c15ull ^ world->seed;
    memcpy(key, &bytes, 8); /* six bytes of an odd multiple: no two are the same */
    key[6] = (uint8_t)number;
    return 6 + (number & 1);
}

static void make_value(const struct world *world, uint32_t number, struct pair pair, uint8_t *to)
{
    struct rng rng = rng_make(rng_mix(world->seed, number, pair.version));
    rng_fill(&rng, to, pair.bytes);
}

static struct pair next_pair(struct world *world, uint32_t number, unsigned large)
{
    struct rng *rng = &world->rng;
    struct pair pair = {.version = ++world->version,
                        .bytes = (uint32_t)rng_below(rng, VALUE_BYTES_USUAL + 1)};
    if (number < KEYS_WITH_LARGE_VALUES && rng_below(rng, 1000) < large) {
        pair.bytes = (uint32_t)rng_between(rng, 100 * KIB,
                                           rng_percent(rng, 30) ? VALUE_BYTES_LARGE : 2 * MIB);
        world->did.large++;
    }
    make_value(world, number, pair, world->value);
    world->did.bytes += pair.bytes;
    return pair;
}

static void map_put(struct world *world, uint32_t number, struct pair pair)
{
    struct pair *at = &world->pairs[number];
    *(at->version ? &world->did.rewrites : &world->did.puts) += 1;
    world->present += at->version == 0;
    *at = pair;
}

static void map_remove(struct world *world, uint32_t number)
{
    struct pair *at = &world->pairs[number];
    *(at->version ? &world->did.removes : &world->did.misses) += 1;
    world->present -= at->version != 0;
    *at = (struct pair){0};
}

/* Half of the time one of the first few, which get large values and are rewritten often. */
static uint32_t random_key(struct world *world)
{
    if (rng_percent(&world->rng, 5))
        return (uint32_t)rng_below(&world->rng, min_u64(KEYS_WITH_LARGE_VALUES, world->key_count));
    return (uint32_t)rng_below(&world->rng, world->key_count);
}

/* ---------------------------------------------------------------- reading */

static void check_bytes(struct world *world, uint32_t number, struct pair pair, const void *bytes)
{
    static uint8_t expected[VALUE_BYTES_LARGE];
    make_value(world, number, pair, expected);
    if (memcmp(bytes, expected, pair.bytes) != 0)
        fail_msg("key %u: the value has other bytes than were put", number);
}

static void check_get(struct world *world, uint32_t number)
{
    uint8_t key[8];
    size_t key_bytes = make_key(world, number, key), bytes = SIZE_MAX;
    struct pair pair = world->pairs[number];
    enum fkv_error error =
        fkv_get(world->db, key, key_bytes, world->read, VALUE_BYTES_LARGE, &bytes);
    world->did.reads++;
    if (!pair.version) {
        assert_error(error, FKV_NOT_FOUND);
        assert_int_equal(bytes, SIZE_MAX);
        return;
    }
    assert_ok(error);
    assert_int_equal(bytes, pair.bytes);
    check_bytes(world, number, pair, world->read);
}

static void check_borrow(struct world *world, uint32_t number)
{
    uint8_t key[8];
    size_t key_bytes = make_key(world, number, key), bytes = SIZE_MAX;
    const void *value = NULL;
    struct pair pair = world->pairs[number];
    fkv_read_begin(world->db);
    enum fkv_error error = fkv_borrow(world->db, key, key_bytes, &value, &bytes);
    if (!pair.version) {
        assert_error(error, FKV_NOT_FOUND);
    } else if (pair.bytes > 900000) {
        assert_error(error, FKV_VALUE_TOO_LARGE);
        assert_int_equal(bytes, pair.bytes);
    } else if (error != FKV_VALUE_TOO_LARGE) {
        assert_ok(error);
        assert_int_equal(bytes, pair.bytes);
        check_bytes(world, number, pair, value);
    }
    fkv_read_end(world->db);
}

static void check_other_reads(struct world *world, uint32_t number)
{
    uint8_t key[8];
    size_t key_bytes = make_key(world, number, key), bytes = SIZE_MAX;
    struct pair pair = world->pairs[number];
    enum fkv_error expected = pair.version ? FKV_OK : FKV_NOT_FOUND;
    assert_error(fkv_exists(world->db, key, key_bytes), expected);
    assert_error(fkv_value_size(world->db, key, key_bytes, &bytes), expected);
    if (!pair.version)
        return;
    assert_int_equal(bytes, pair.bytes);
    if (!pair.bytes)
        return;
    bytes = 0;
    world->read[0] = 0x5a;
    assert_error(fkv_get(world->db, key, key_bytes, world->read, pair.bytes - 1, &bytes),
                 FKV_BUFFER_TOO_SMALL);
    assert_int_equal(bytes, pair.bytes);
    assert_int_equal(world->read[0], 0x5a);
}

static void check_all(struct world *world)
{
    fkv_stats stats;
    for (uint32_t number = 0; number < world->key_count; number++)
        check_get(world, number);
    assert_ok(fkv_get_stats(world->db, &stats, sizeof stats));
    assert_int_equal(stats.keys, world->present);
}

/* ---------------------------------------------------------------- writing */

static void put(struct world *world, uint32_t number, const struct mix *mix)
{
    uint8_t key[8];
    size_t key_bytes = make_key(world, number, key);
    struct pair pair = next_pair(world, number, mix->large);
    unsigned flags = rng_below(&world->rng, 500) == 0 ? FKV_SYNC : 0;
    assert_ok(fkv_put_with(world->db, key, key_bytes, world->value, pair.bytes, flags));
    map_put(world, number, pair);
}

static void remove_key(struct world *world, uint32_t number)
{
    uint8_t key[8];
    size_t key_bytes = make_key(world, number, key);
    assert_error(fkv_delete(world->db, key, key_bytes),
                 world->pairs[number].version ? FKV_OK : FKV_NOT_FOUND);
    map_remove(world, number);
}

/* A change that a transaction has made and the map has not. */
struct pending {
    uint32_t number;
    struct pair pair;
};

static void check_own_write(struct world *world, fkv_txn *txn, struct pending pending)
{
    uint8_t key[8];
    size_t key_bytes = make_key(world, pending.number, key), bytes = 0;
    enum fkv_error expected = pending.pair.version ? FKV_OK : FKV_NOT_FOUND;
    assert_error(fkv_txn_exists(txn, key, key_bytes), expected);
    assert_error(fkv_txn_get(txn, key, key_bytes, world->read, VALUE_BYTES_LARGE, &bytes),
                 expected);
    if (!pending.pair.version)
        return;
    assert_int_equal(bytes, pending.pair.bytes);
    check_bytes(world, pending.number, pending.pair, world->read);
}

static void transaction(struct world *world, const struct mix *mix)
{
    enum { CHANGES_MAX = 3000 };
    static struct pending pending[CHANGES_MAX];
    struct rng *rng = &world->rng;
    uint32_t most = (uint32_t)(rng_percent(rng, 4) ? rng_between(rng, 100, CHANGES_MAX)
                                                   : rng_between(rng, 1, 20));
    uint32_t first = random_key(world);
    bool abort = rng_percent(rng, 15), conflict = !abort && rng_percent(rng, 10);
    fkv_txn *txn;
    assert_ok(fkv_txn_begin(world->db, &txn));
    uint32_t count = (uint32_t)min_u64(most, world->key_count); /* each key at most once: */
    for (uint32_t i = 0; i < count; i++) {
        uint8_t key[8];
        pending[i] = (struct pending){.number = (first + i) % world->key_count};
        size_t key_bytes = make_key(world, pending[i].number, key);
        if (rng_percent(rng, 30)) { /* or written twice */
            struct pair pair = next_pair(world, pending[i].number, 0);
            assert_ok(fkv_txn_put(txn, key, key_bytes, world->value, pair.bytes));
        }
        if (rng_percent(rng, mix->remove + mix->remove / 2)) {
            assert_ok(fkv_txn_delete(txn, key, key_bytes));
        } else {
            pending[i].pair = next_pair(world, pending[i].number, mix->large);
            assert_ok(fkv_txn_put(txn, key, key_bytes, world->value, pending[i].pair.bytes));
        }
        if (rng_percent(rng, 10))
            check_own_write(world, txn, pending[rng_below(rng, i + 1)]);
        if (rng_percent(rng, 10))
            check_get(world, pending[rng_below(rng, i + 1)].number); /* nobody else sees them */
    }
    world->did.transactions++;
    if (conflict) { /* someone writes what it has read */
        uint32_t number = (first + count) % world->key_count;
        uint8_t key[8];
        size_t key_bytes = make_key(world, number, key);
        if (count == world->key_count) /* every key is its own, and reads of those never conflict */
            conflict = false;
        else
            assert_error(fkv_txn_exists(txn, key, key_bytes),
                         world->pairs[number].version ? FKV_OK : FKV_NOT_FOUND);
        put(world, number, mix);
    }
    if (abort) {
        if (rng_percent(rng, 50))
            assert_ok(fkv_txn_abort(txn));
        world->did.aborted++;
    } else if (conflict) {
        assert_error(fkv_txn_commit(txn, 0), FKV_CONFLICT);
        world->did.conflicts++;
    } else {
        assert_ok(fkv_txn_commit(txn, rng_below(rng, 200) == 0 ? FKV_SYNC : 0));
        assert_error(fkv_txn_commit(txn, 0), FKV_TXN_ENDED);
        /* The put that was to conflict may have been of one of its keys: the commit was later. */
        for (uint32_t i = 0; i < count; i++)
            if (pending[i].pair.version)
                map_put(world, pending[i].number, pending[i].pair);
            else
                map_remove(world, pending[i].number);
    }
    fkv_txn_free(txn);
}

/* ---------------------------------------------------------------- rounds */

static void draw_options(struct world *world)
{
    const uint64_t logs[] = {MIB, MIB, 4 * MIB, 0};
    struct rng *rng = &world->rng;
    uint32_t digest = world->options.flags & FKV_DIGEST; /* is the file's */
    fkv_options_init(&world->options);
    world->options.flags = digest | (rng_percent(rng, 50) ? FKV_NO_THREAD : 0) |
                           (rng_percent(rng, 10) ? FKV_NO_VERIFY : 0);
    world->options.log_bytes_max = logs[rng_below(rng, 4)];
    world->options.garbage_percent_max = (uint32_t)rng_between(rng, 10, 100);
}

static void open_store(struct world *world)
{
    draw_options(world);
    assert_ok(fkv_open(world->path, &world->options, &world->db));
    world->did.opened++;
}

static void reopen(struct world *world)
{
    assert_ok(fkv_close(world->db));
    open_store(world);
}

static void step(struct world *world, const struct mix *mix)
{
    unsigned what = (unsigned)rng_below(&world->rng, 100);
    uint32_t number = random_key(world);
    if (what < mix->remove)
        remove_key(world, number);
    else if (what < mix->remove + mix->transaction / 10)
        transaction(world, mix);
    else if (what < mix->remove + mix->transaction / 10 + mix->read)
        switch (rng_below(&world->rng, 4)) {
        case 0:
            check_borrow(world, number);
            break;
        case 1:
            check_other_reads(world, number);
            break;
        default:
            check_get(world, number);
        }
    else
        put(world, number, mix);
    if (rng_below(&world->rng, 3000) == 0)
        assert_ok(fkv_checkpoint(world->db));
    if (rng_below(&world->rng, 3000) == 0)
        assert_ok(fkv_sync(world->db));
    if (rng_below(&world->rng, 5000) == 0)
        reopen(world);
}

static void run_phase(struct world *world)
{
    struct rng *rng = &world->rng;
    struct mix mix = {.remove = (unsigned)rng_below(rng, rng_percent(rng, 30) ? 70 : 30),
                      .read = (unsigned)rng_below(rng, 25),
                      .transaction = (unsigned)rng_below(rng, 50),
                      .large = (unsigned)rng_below(rng, 2) * (unsigned)rng_below(rng, 60)};
    for (uint64_t steps = rng_between(rng, 1000, 6000); steps > 0; steps--)
        step(world, &mix);
    check_all(world);
    if (rng_percent(rng, 60)) {
        reopen(world);
        check_all(world);
    }
}

static void run_round(struct world *world, uint64_t seed)
{
    const uint32_t sizes[] = {1, 40, 2000, 20000};
    *world = (struct world){.rng = rng_make(seed), .seed = rng_mix(seed, 1, 1)};
    world->path = support_path("long");
    unlink(world->path);
    unlink(support_path("long-wal"));
    world->key_count = sizes[min_u64(rng_below(&world->rng, 8), 3)];
    world->pairs = calloc(world->key_count, sizeof *world->pairs);
    world->value = malloc(VALUE_BYTES_LARGE);
    world->read = malloc(VALUE_BYTES_LARGE);
    world->options.flags = rng_percent(&world->rng, 25) ? FKV_DIGEST : 0;
    open_store(world);
    for (uint64_t phases = rng_between(&world->rng, 2, 5); phases > 0; phases--)
        run_phase(world);
    assert_ok(fkv_close(world->db));
    free(world->pairs);
    free(world->value);
    free(world->read);
}

static void test_model(void **state)
{
    (void)state;
    struct world sum = {0}, world;
    uint64_t blocks = memory_test_blocks();
    for (struct rounds r = rounds_begin(8); rounds_next(&r);) {
        run_round(&world, r.seed);
        uint64_t *to = (uint64_t *)&sum.did, *from = (uint64_t *)&world.did;
        for (size_t i = 0; i < sizeof sum.did / sizeof *to; i++)
            to[i] += from[i];
        assert_int_equal(memory_test_blocks(), blocks);
    }
    if (support_is_long() || getenv("FKV_TEST_SEED"))
        return; /* what a seed reaches is known of the usual one alone */
    print_message(
        "%d puts, %d rewrites, %d deletes, %d reads, %d transactions, %d openings, %d MB\n",
        (int)sum.did.puts, (int)sum.did.rewrites, (int)sum.did.removes, (int)sum.did.reads,
        (int)sum.did.transactions, (int)sum.did.opened, (int)(sum.did.bytes / 1000000));
    assert_true(sum.did.puts > 10000 && sum.did.rewrites > 10000 && sum.did.removes > 5000);
    assert_true(sum.did.misses > 1000 && sum.did.reads > 50000 && sum.did.large > 50);
    assert_true(sum.did.transactions > 500 && sum.did.aborted > 50 && sum.did.conflicts > 20);
    assert_true(sum.did.opened > 20);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_model)};
    return SUPPORT_RUN(argc, argv, tests);
}
