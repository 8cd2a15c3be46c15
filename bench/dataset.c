#include "dataset.h"

#include "util.h"

#include <string.h>

struct dataset dataset_of_the_seed(uint64_t seed, uint64_t keys)
{
    return (struct dataset){mix64(seed), keys, 6, 7, 0, 1024};
}

struct dataset dataset_of_small_pairs(uint64_t seed, uint64_t keys)
{
    return (struct dataset){mix64(seed), keys, 16, 16, 32, 32};
}

struct dataset dataset_of_kilobytes(uint64_t seed, uint64_t keys)
{
    return (struct dataset){mix64(seed), keys, 16, 16, 1024, 1024};
}

struct dataset dataset_of_mixed_pairs(uint64_t seed, uint64_t keys)
{
    return (struct dataset){mix64(seed), keys, 8, 32, 20, 100};
}

/* A bijection of the numbers of `bits` bits, keyed by `seed`: each step can be undone. */
static uint64_t permute(uint64_t seed, uint64_t x, unsigned bits)
{
    uint64_t mask = bits == 64 ? UINT64_MAX : ((uint64_t)1 << bits) - 1;
    for (int round = 0; round < 3; round++) {
        x = (x ^ (seed >> (5 * round))) & mask;
        x = (x * 0xd6e8feb86659fd93u) & mask;
        x ^= x >> (bits / 2);
    }
    return x;
}

size_t dataset_key(const struct dataset *data, uint64_t index, uint8_t *key)
{
    /* The length is a function of the index too; keys of one length are distinct, and others are.
     */
    uint64_t lengths = data->key_bytes_max - data->key_bytes_min + 1;
    size_t bytes = data->key_bytes_min + (size_t)(mix64(index ^ data->seed) % lengths);
    if (data->key_bytes_min >= 8) {
        uint64_t words[DATASET_KEY_BYTES_MAX / 8];
        words[0] = permute(data->seed, index, 64);
        for (size_t i = 1; i < DATASET_KEY_BYTES_MAX / 8; i++)
            words[i] = mix64(words[i - 1] + data->seed);
        memcpy(key, words, sizeof words);
        return bytes;
    }
    uint64_t word = permute(data->seed, index, (unsigned)bytes * 8);
    memcpy(key, &word, sizeof word);
    return bytes;
}

static uint64_t value_state(const struct dataset *data, uint64_t index, uint32_t version)
{
    return mix64(mix64(data->seed + index) + version);
}

static size_t value_bytes(const struct dataset *data, uint64_t state)
{
    uint64_t lengths = data->value_bytes_max - data->value_bytes_min + 1;
    return data->value_bytes_min + (size_t)(((state >> 32) * lengths) >> 32);
}

size_t dataset_value_bytes(const struct dataset *data, uint64_t index, uint32_t version)
{
    return value_bytes(data, value_state(data, index, version));
}

size_t dataset_value(const struct dataset *data, uint64_t index, uint32_t version, uint8_t *value)
{
    uint64_t state = value_state(data, index, version);
    size_t bytes = value_bytes(data, state);
    /* wyrand: a counter, one wide multiplication a word. */
    for (size_t at = 0; at < bytes; at += 8) {
        state += 0xa0761d6478bd642fu;
        unsigned __int128 product = (unsigned __int128)state * (state ^ 0xe7037ed1a0b428dbu);
        uint64_t word = (uint64_t)(product >> 64) ^ (uint64_t)product;
        memcpy(value + at, &word, sizeof word);
    }
    return bytes;
}
