/*
 * hash: the keyed hash that places keys in the index.
 *
 * AES-128 in CMAC mode (RFC 4493) under the file's random salt: 128 bits. The index rests on it
 * twice: a write identifies a key by about 95 bits of it without reading the record, and nobody who
 * picks keys but does not know the salt can pick buckets, or a key that agrees with another's.
 *
 * Why a cipher and not a hash for tables: processors have instructions for AES, and a key of up to
 * 16 bytes is one block. That is some 40 instructions where SipHash-2-4 has 180, nearly all of them
 * in one chain; short enough for the processor to begin the next lookup while it waits for memory.
 * Where there are no such instructions, plain code gives the same hash, slowly.
 */
#ifndef FKV_HASH_H
#define FKV_HASH_H

#include <stddef.h>
#include <stdint.h>

#define HASH_SALT_BYTES 16

/* The first 8 bytes of the output, little-endian, are `hi`, the other 8 are `lo`. */
struct hash128 {
    uint64_t hi, lo;
};

/* A salt, made ready: the round keys of AES, and those of CMAC with the first of them in. */
struct hash_seed {
    uint8_t round[11][16];
    uint8_t whole[16]; /* for a last block that is full */
    uint8_t part[16];  /* for one that is not */
} __attribute__((aligned(64)));

void hash_seed_make(struct hash_seed *seed, const uint8_t salt[HASH_SALT_BYTES]);

/* Hash any number of bytes; `data` may be NULL if `bytes` is 0. */
struct hash128 hash_key(const struct hash_seed *seed, const void *data, size_t bytes);

/* The same without special instructions. */
struct hash128 hash_key_plain(const struct hash_seed *seed, const void *data, size_t bytes);

#endif
