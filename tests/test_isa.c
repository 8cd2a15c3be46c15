/*
 * test_isa.c: what is compiled once for each instruction set (isa.h), each against a plain model:
 * NH as the paper defines it, records of all lengths, gets through the public call.
 */
#include "isa.h"

#include "api_support.h"
#include "format.h"
#include "hash.h"
#include "nh.h"
#include "record.h"
#include "support.h"

static const struct isa *const all[] = {
    &isa_plain,
#ifdef ISA_X86
    &isa_avx2,
    &isa_avx512,
#elif defined(ISA_ARM)
    &isa_arm,
#endif
};
enum { ALL = sizeof all / sizeof all[0] };

/* ---------------------------------------------------------------- the model */

static uint32_t word_of(const uint8_t *data, size_t bytes, size_t word)
{
    uint32_t value = 0;
    for (size_t b = 0; b < 4 && word * 4 + b < bytes; b++)
        value |= (uint32_t)data[word * 4 + b] << 8 * b;
    return value;
}

/* "UMAC: fast and secure message authentication", 3.1, with zeros up to a whole cell. */
static uint64_t model_nh(const uint8_t *data, size_t bytes)
{
    uint64_t sum = 0;
    for (size_t word = 0; word * 4 < round_up(bytes, CELL_BYTES); word += 2) {
        uint32_t a = word_of(data, bytes, word) + word_of(nh_key, sizeof nh_key, word);
        uint32_t b = word_of(data, bytes, word + 1) + word_of(nh_key, sizeof nh_key, word + 1);
        sum += (uint64_t)a * b;
    }
    return sum;
}

static uint32_t model_checksum(const uint8_t *record, size_t bytes)
{
    uint8_t *copy = malloc(bytes);
    memcpy(copy, record, bytes);
    memset(copy, 0, 4);
    uint64_t sum = 0;
    for (size_t at = 0; at < bytes; at += 1024)
        sum = (sum ^ model_nh(copy + at, bytes - at < 1024 ? bytes - at : 1024)) *
              UINT64_C(0x9e3779b97f4a7c15);
    free(copy);
    return (uint32_t)(sum >> 32);
}

/* ---------------------------------------------------------------- tests */

static struct isa early; /* as a constructor of the program finds it */

__attribute__((constructor)) static void before_main(void)
{
    early = isa;
}

static void test_constructors_may_use_it(void **state)
{
    (void)state;
    assert_non_null(early.get);
    assert_string_equal(early.name, isa.name);
}

/* Of Vigna's splitmix64.c with the state 0. */
static void test_key(void **state)
{
    (void)state;
    assert_true(load_u64(nh_key) == UINT64_C(0xe220a8397b1dcdaf));
    assert_true(load_u64(nh_key + 8) == UINT64_C(0x6e789e6aa1b965f4));
    assert_true(load_u64(nh_key + 16) == UINT64_C(0x06c45d188009454f));
}

static void test_the_best_is_chosen(void **state)
{
    (void)state;
    assert_true(isa_runs(&isa_plain));
    const struct isa *best = &isa_plain;
    for (int i = 0; i < ALL; i++)
        if (isa_runs(all[i]))
            best = all[i];
        else
            print_message("this processor does not run %s\n", all[i]->name);
    assert_string_equal(isa.name, best->name);
}

/* All lengths to 5 KiB; each record ends with its allocation, so that a sanitizer sees who reads
 * beyond it. */
static void test_checksums(void **state)
{
    (void)state;
    struct rng rng = rng_make(1);
    for (size_t bytes = RECORD_HEADER_BYTES; bytes < 5 * KIB; bytes++) {
        uint8_t *record = malloc(bytes);
        rng_fill(&rng, record, bytes);
        uint32_t wanted = model_checksum(record, bytes);
        for (int i = 0; i < ALL; i++)
            if (isa_runs(all[i]))
                assert_int_equal(
                    all[i]->record_checksum(record, (uint32_t)divide_up(bytes, CELL_BYTES), bytes),
                    wanted);
        free(record);
    }
}

static void test_xxh3(void **state)
{
    (void)state;
    struct rng rng = rng_make(2);
    uint8_t data[2000];
    rng_fill(&rng, data, sizeof data);
    for (size_t bytes = 0; bytes <= sizeof data; bytes++)
        for (int i = 0; i < ALL; i++)
            if (isa_runs(all[i]))
                assert_true(all[i]->checksum64(data, bytes) == isa_plain.checksum64(data, bytes));
    assert_true(isa_plain.checksum64(data, 0) == UINT64_C(0x2d06800538d394c2)); /* xxHash's own */
}

enum { PAIRS = 4000, KEY_MAX = 70, VALUE_MAX = 1300 };
struct pair {
    uint8_t key[KEY_MAX];
    size_t key_bytes, value_bytes;
    uint8_t value[VALUE_MAX];
};
static struct pair pairs[PAIRS];

static void make_pairs(struct rng *rng)
{
    for (uint32_t i = 0; i < PAIRS; i++) {
        struct pair *pair = &pairs[i];
        pair->key_bytes = 4 + i % (KEY_MAX - 3);
        rng_fill(rng, pair->key, pair->key_bytes);
        memcpy(pair->key, &i, sizeof i);
        size_t most = rng_percent(rng, 50) ? 90 : VALUE_MAX;
        pair->value_bytes = rng_below(rng, most + 1);
        rng_fill(rng, pair->value, pair->value_bytes);
    }
}

/* The value, and not a byte beside it, whatever room there is. */
static void check_get(fkv *db, struct rng *rng, const struct pair *pair)
{
    size_t room = pair->value_bytes + (rng_percent(rng, 50) ? 0 : rng_below(rng, 100));
    uint8_t *buffer = malloc(room + 2);
    uint8_t guard = (uint8_t)rng_next(rng);
    memset(buffer, guard, room + 2);
    size_t bytes = 12345;
    must(fkv_get(db, pair->key, pair->key_bytes, buffer + 1, room,
                 rng_percent(rng, 90) ? &bytes : NULL));
    assert_true(bytes == pair->value_bytes || bytes == 12345);
    assert_memory_equal(buffer + 1, pair->value, pair->value_bytes);
    assert_int_equal(buffer[0], guard);
    for (size_t i = pair->value_bytes + 1; i < room + 2; i++)
        assert_int_equal(buffer[i], guard);
    must(fkv_exists(db, pair->key, pair->key_bytes));
    if (pair->value_bytes) {
        memset(buffer, guard, room + 2);
        room = rng_below(rng, pair->value_bytes);
        expect(fkv_get(db, pair->key, pair->key_bytes, buffer + 1, room, &bytes),
               FKV_BUFFER_TOO_SMALL);
        assert_int_equal(bytes, pair->value_bytes);
        assert_int_equal(buffer[1], guard); /* untouched */
    }
    free(buffer);
    uint8_t absent[KEY_MAX];
    memcpy(absent, pair->key, pair->key_bytes);
    absent[rng_below(rng, 4)] ^=
        0x80; /* beyond PAIRS, or another's first bytes before its own end */
    if (load_u64(memcpy((uint8_t[8]){0}, absent, 4)) >= PAIRS) {
        uint8_t byte = 7;
        expect(fkv_get(db, absent, pair->key_bytes, &byte, 1, &bytes), FKV_NOT_FOUND);
        expect(fkv_exists(db, absent, pair->key_bytes), FKV_NOT_FOUND);
        assert_int_equal(byte, 7);
    }
}

static void check_all(fkv *db, uint64_t seed)
{
    const struct isa best = isa;
    for (int i = 0; i < ALL; i++) {
        if (!isa_runs(all[i]))
            continue;
        isa = *all[i];
        struct rng rng = rng_make(seed);
        for (uint32_t p = 0; p < PAIRS; p++)
            check_get(db, &rng, &pairs[p]);
    }
    isa = best;
}

static void test_gets(void **state)
{
    const struct place *place = *state;
    struct rng rng = rng_make(3);
    make_pairs(&rng);
    for (uint32_t flags = 0; flags <= FKV_NO_VERIFY; flags += FKV_NO_VERIFY) {
        fkv *db = open_with(place->path, flags);
        for (uint32_t p = 0; p < PAIRS; p++)
            must(fkv_put(db, pairs[p].key, pairs[p].key_bytes, pairs[p].value,
                         pairs[p].value_bytes));
        check_all(db, 4);
        must(fkv_close(db));
        db = open_with(place->path, flags);
        check_all(db, 5);
        must(fkv_close(db));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_constructors_may_use_it),
        cmocka_unit_test(test_key),
        cmocka_unit_test(test_the_best_is_chosen),
        cmocka_unit_test(test_checksums),
        cmocka_unit_test(test_xxh3),
        in_place(test_gets),
    };
    return run_all(tests);
}
