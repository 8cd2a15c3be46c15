/*
 * The keys and values of a workload, as functions of a seed: nothing is stored, everything can be
 * generated again to be compared.
 *
 * Key i is a bijection of i, so the keys of a set are distinct, and keys with i >= `keys` are in no
 * set: these are the misses. Values are random bytes of random length, a new one for each version
 * of each key; they do not compress.
 */
#ifndef BENCH_DATASET_H
#define BENCH_DATASET_H

#include <stddef.h>
#include <stdint.h>

#define DATASET_KEY_BYTES_MAX 32u
/* Room that dataset_value needs: the longest value, and what it writes past the end. */
#define DATASET_VALUE_ROOM 1040u

struct dataset {
    uint64_t seed;
    uint64_t keys;
    size_t key_bytes_min; /* 6 to 8; or from 8 on */
    size_t key_bytes_max;
    size_t value_bytes_min; /* 0 to 1024 */
    size_t value_bytes_max;
};

/* The seed's pairs: keys of 6 or 7 bytes, values of 0 to 1024. Small ones: 16 and 32 bytes. And
 * mixed ones: keys of 8 to 32 bytes, values of 20 to 100. */
struct dataset dataset_of_the_seed(uint64_t seed, uint64_t keys);
struct dataset dataset_of_small_pairs(uint64_t seed, uint64_t keys);
/* Keys of 16 bytes, values of 1,024. */
struct dataset dataset_of_kilobytes(uint64_t seed, uint64_t keys);
struct dataset dataset_of_mixed_pairs(uint64_t seed, uint64_t keys);

/* Write key `index` to `key`, which has room for DATASET_KEY_BYTES_MAX; return its length. */
size_t dataset_key(const struct dataset *data, uint64_t index, uint8_t *key);

/* The length of version `version` of the value of key `index`; the value itself, with its length,
 * to `value`, which has DATASET_VALUE_ROOM. */
size_t dataset_value_bytes(const struct dataset *data, uint64_t index, uint32_t version);
size_t dataset_value(const struct dataset *data, uint64_t index, uint32_t version, uint8_t *value);

#endif
