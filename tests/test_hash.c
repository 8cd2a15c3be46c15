/*
 * test_hash.c: AES-CMAC against the vectors of RFC 4493 and those of another implementation; with
 * the processor's instructions, and without.
 */
#include "hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Key 00 01 .. 0f, input 00 01 .. of as many bytes as the index says, as OpenSSL's CMAC has them.
 */
static const char *const vectors[64] = {
    "97dd6e5a882cbd564c39ae7d1c5a31aa", "d78a1663af870e5aeb4d44875eeffdf3",
    "17ccf4cf99311642009b548ee8b17de7", "ba11a02da1153d098f9e7ab73fb10ba0",
    "1bf1faa0e4aa239249fec1d79e3b8024", "601904dde823f784a2ec08ce110ffcdd",
    "91d67a9adb9e8a1a10dc016a0c92a4be", "f232f3ce26f52b8674534b4a48d89e17",
    "42802eb1931f0032afe984443738cd31", "2055f9e0036b66d3eea9288804dc00a8",
    "cdd3973146d89db8d6f9d0b08107ffa6", "a1002982a4b4b5cd5982f4368bd07d77",
    "18c28d89fc1f033869ad6a84f57d123e", "de6974a9d2567f4b208f6b6cd8392907",
    "5a278957b5228384512903b15bea6835", "40fb69919e3fc3f445a34234d650a72b",
    "7bcfbbca7a2ea68b966fc5399f74809e", "dbab59423fbec5a7be32c48ce1a80e33",
    "15db87542dace5f8062355fb30c84f12", "46105595e5446b857a11463294ac9ad3",
    "980ae87b5f4c9c5214f5b6a8455e4c2d", "c075b2ee1d665cf834a2d5dbed2a4e98",
    "ad897f0b54f77403b1d1cbbdc36ef7a4", "c3c880c6a62c3d61d6133b50ee70a711",
    "52e50d1a3f4dc5f3f38438c7895f565e", "a3994ebe4764f7a9d53cdfa5bba81d9a",
    "cbe078f615f7e24840a3de8f5cbd5bb5", "31a5dd85ef0640ea12cdf08426c5ca9f",
    "b0fd20765e764035e3b164160bbf2e7e", "95d8d504f7d53c041679a7055b25cb1e",
    "44eaecc5fa15e2e1dd808843502d0bbd", "16063169661097122fa09c7325f236c3",
    "73dbfaf8321b282a162d2bac929fe7e7", "9e25b0abc7ab4433c6996e7c653bed24",
    "87c30316d1f56891b1992a8c395bbf51", "aecf070c0cf0d64f6f458d8093d78f26",
    "4c326163c611d9c39038e176d2855067", "92824146dda8acceac963b429c841a12",
    "64b217e0d73c1e70ac36b14540fbc712", "45b48e26c2cafd60b8a7858acfd600a2",
    "29146ca62a432ad98f98c34f23d2091a", "3730f763bd3881214929ec2b7f43d8f0",
    "0a06fdd4763cf6318ba9687030ac43c9", "34448beb5ec283d5f5fcdcf03d413fed",
    "5f26a04536d8e824da0f047af746c48d", "58fe5209245ba317aadb5e0fad1377fa",
    "743ca5e78c301aceaa620346f0fb7953", "f485e468a2ad9dd31b89d0d35c9f47c9",
    "5247121db0e50733fb83bab08fbba8ea", "9416bdc06a07eb619d23f0f0c1127f2b",
    "9f4183a8979385aa2c68a6ab024b8f89", "f0ddc3dd202f530d2452f90f1d3f6bc4",
    "ddf512b6e674ac473c35a84436d7d87f", "55d57ab1062be58b336af8688a2d06d6",
    "559ee08a6ddc205a2b8258dab3d0cc8c", "bbb6496a4939dc66d24092a9a1f389d3",
    "4f63a8df89f8884a1a2369333b46ec41", "c8d1eeb5fa0e4dc85892faae8bbbb6f3",
    "6cea8271b9277a877918c39acacd7f51", "881b4a3fb21a9d1a14a51bd71cb564ea",
    "66fe58daf24dae1f6f5fce839390d4b4", "81f44492d52b847edf9af24baacdfa52",
    "287a1bce57c2d2c2130b4ef6a87f2c22", "b65ef9d4db3ba2abee1a721b91405c62",
};

/* In the order of the output's bytes. */
static void to_hex(struct hash128 hash, char hex[33])
{
    for (int i = 0; i < 8; i++)
        sprintf(hex + 2 * i, "%02x", (unsigned)(hash.hi >> 8 * i & 0xff));
    for (int i = 0; i < 8; i++)
        sprintf(hex + 16 + 2 * i, "%02x", (unsigned)(hash.lo >> 8 * i & 0xff));
}

typedef struct hash128 hash_function(const struct hash_seed *seed, const void *data, size_t bytes);

static hash_function *const functions[] = {hash_key, hash_key_plain};
enum { FUNCTIONS = sizeof functions / sizeof *functions };

static void fill_salt(uint8_t salt[HASH_SALT_BYTES])
{
    for (int i = 0; i < HASH_SALT_BYTES; i++)
        salt[i] = (uint8_t)i;
}

static struct hash_seed counted_seed(void)
{
    uint8_t salt[HASH_SALT_BYTES];
    struct hash_seed seed;
    fill_salt(salt);
    hash_seed_make(&seed, salt);
    return seed;
}

static void from_hex(const char *hex, uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        unsigned byte;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        bytes[i] = (uint8_t)byte;
    }
}

/* RFC 4493, section 4. */
static void test_rfc(void **state)
{
    (void)state;
    static const struct {
        size_t bytes;
        const char *hash;
    } examples[] = {{0, "bb1d6929e95937287fa37d129b756746"},
                    {16, "070a16b46b4d4144f79bdd9dd04a287c"},
                    {40, "dfa66747de9ae63030ca32611497c827"},
                    {64, "51f0bebf7e3b9d92fc49741779363cfe"}};
    uint8_t salt[HASH_SALT_BYTES], message[64];
    char hex[33];
    struct hash_seed seed;
    from_hex("2b7e151628aed2a6abf7158809cf4f3c", salt, sizeof salt);
    from_hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
             "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
             message, sizeof message);
    hash_seed_make(&seed, salt);
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
        for (int f = 0; f < FUNCTIONS; f++) {
            to_hex(functions[f](&seed, message, examples[i].bytes), hex);
            assert_string_equal(hex, examples[i].hash);
        }
}

static void test_vectors(void **state)
{
    (void)state;
    struct hash_seed seed = counted_seed();
    for (size_t bytes = 0; bytes < 64; bytes++) {
        /* An allocation of exactly this length, so that a sanitizer sees a read past its ends. */
        uint8_t *data = malloc(bytes > 0 ? bytes : 1);
        for (size_t i = 0; i < bytes; i++)
            data[i] = (uint8_t)i;
        for (int f = 0; f < FUNCTIONS; f++) {
            char hex[33];
            to_hex(functions[f](&seed, data, bytes), hex);
            assert_string_equal(hex, vectors[bytes]);
        }
        free(data);
    }
}

static void test_no_data(void **state)
{
    (void)state;
    struct hash_seed seed = counted_seed();
    for (int f = 0; f < FUNCTIONS; f++) {
        char hex[33];
        to_hex(functions[f](&seed, NULL, 0), hex);
        assert_string_equal(hex, vectors[0]);
    }
}

static void test_any_alignment(void **state)
{
    (void)state;
    uint8_t buffer[8 + 300 + 8];
    uint8_t data[300];
    struct hash_seed seed = counted_seed();
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(37 * i + 11);
    for (size_t bytes = 0; bytes <= sizeof data; bytes++) {
        struct hash128 expected = hash_key_plain(&seed, data, bytes);
        for (size_t shift = 0; shift < 8; shift++) {
            memcpy(buffer + shift, data, bytes);
            struct hash128 hash = hash_key(&seed, buffer + shift, bytes);
            assert_true(hash.hi == expected.hi && hash.lo == expected.lo);
        }
    }
}

/* Each bit of the input and of the salt changes the hash, and so does a zero more at the end. */
static void test_every_bit_counts(void **state)
{
    (void)state;
    uint8_t salt[HASH_SALT_BYTES];
    uint8_t data[41] = {0};
    struct hash_seed seed = counted_seed(), other;
    fill_salt(salt);
    for (size_t bytes = 0; bytes < sizeof data; bytes++) {
        struct hash128 plain = hash_key(&seed, data, bytes);
        struct hash128 longer = hash_key(&seed, data, bytes + 1);
        assert_true(longer.lo != plain.lo && longer.hi != plain.hi);
        for (size_t bit = 0; bit < 8 * bytes; bit++) {
            data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            struct hash128 changed = hash_key(&seed, data, bytes);
            assert_true(changed.lo != plain.lo && changed.hi != plain.hi);
            data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        for (size_t bit = 0; bit < 8 * sizeof salt; bit++) {
            salt[bit / 8] ^= (uint8_t)(1u << bit % 8);
            hash_seed_make(&other, salt);
            struct hash128 changed = hash_key(&other, data, bytes);
            assert_true(changed.lo != plain.lo && changed.hi != plain.hi);
            salt[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rfc),
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_no_data),
        cmocka_unit_test(test_any_alignment),
        cmocka_unit_test(test_every_bit_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
