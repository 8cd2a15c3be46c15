/*
 * hash.c: AES-CMAC.
 *
 * Written from FIPS 197 (AES) and RFC 4493 (CMAC). tests/test_hash.c holds the vectors of the
 * latter, and those that another implementation gives for all short lengths.
 */
#include "hash_aes.h"

#include <string.h>

enum { BLOCK = HASH_BLOCK_BYTES, ROUNDS = HASH_ROUNDS };

/* x times the polynomial x in GF(2^8). */
static inline uint8_t times2(uint8_t x)
{
    return (uint8_t)(x << 1 ^ (x >> 7) * 0x1b);
}

static uint8_t rotate_left(uint8_t x, int bits)
{
    return (uint8_t)(x << bits | x >> (8 - bits));
}

static struct {
    uint8_t sbox[256];
    bool fast; /* the processor knows AES */
} aes;

/* FIPS 197, 5.1.1: inversion, then an affine map. p runs through the powers of 3, q through those
 * of its inverse. */
CONSTRUCTOR static void aes_make(void)
{
    uint8_t p = 1, q = 1;
    do {
        p = (uint8_t)(p ^ times2(p));
        q = (uint8_t)(q ^ q << 1);
        q = (uint8_t)(q ^ q << 2);
        q = (uint8_t)(q ^ q << 4);
        q ^= (uint8_t)(q >> 7) * 0x09;
        aes.sbox[p] = (uint8_t)(q ^ rotate_left(q, 1) ^ rotate_left(q, 2) ^ rotate_left(q, 3) ^
                                rotate_left(q, 4) ^ 0x63);
    } while (p != 1);
    aes.sbox[0] = 0x63;
#ifdef HASH_AES
    aes.fast = hash_aes_runs();
#endif
}

static void add_round_key(uint8_t state[BLOCK], const uint8_t key[BLOCK])
{
    for (int i = 0; i < BLOCK; i++)
        state[i] ^= key[i];
}

/* The rounds; the first key is in the state already. */
static void encrypt_plain(const struct hash_seed *seed, uint8_t state[BLOCK])
{
    for (int round = 1; round <= ROUNDS; round++) {
        uint8_t shifted[BLOCK];
        for (int i = 0; i < BLOCK; i++) /* bytes are substituted, rows are shifted */
            shifted[i] = aes.sbox[state[(i + 4 * (i % 4)) % BLOCK]];
        for (int column = 0; column < BLOCK && round < ROUNDS; column += 4) {
            uint8_t *c = shifted + column;
            uint8_t first = c[0], all = c[0] ^ c[1] ^ c[2] ^ c[3];
            c[0] ^= all ^ times2(c[0] ^ c[1]);
            c[1] ^= all ^ times2(c[1] ^ c[2]);
            c[2] ^= all ^ times2(c[2] ^ c[3]);
            c[3] ^= all ^ times2(c[3] ^ first);
        }
        memcpy(state, shifted, BLOCK);
        add_round_key(state, seed->round[round]);
    }
}

/* Double in GF(2^128) (RFC 4493, 2.3). */
static void doubled(uint8_t to[BLOCK], const uint8_t from[BLOCK])
{
    for (int i = 0; i < BLOCK; i++)
        to[i] = (uint8_t)(from[i] << 1 | (i + 1 < BLOCK ? from[i + 1] >> 7 : 0));
    to[BLOCK - 1] ^= (from[0] >> 7) * 0x87;
}

void hash_seed_make(struct hash_seed *seed, const uint8_t salt[HASH_SALT_BYTES])
{
    uint8_t constant = 1;
    memcpy(seed->round[0], salt, BLOCK);
    for (int round = 1; round <= ROUNDS; round++) { /* FIPS 197, 5.2 */
        const uint8_t *last = seed->round[round - 1];
        uint8_t *next = seed->round[round];
        for (int i = 0; i < 4; i++)
            next[i] = last[i] ^ aes.sbox[last[12 + (i + 1) % 4]];
        next[0] ^= constant;
        for (int i = 4; i < BLOCK; i++)
            next[i] = last[i] ^ next[i - 4];
        constant = times2(constant);
    }
    uint8_t zero[BLOCK];
    memcpy(zero, seed->round[0], BLOCK);
    encrypt_plain(seed, zero);
    doubled(seed->whole, zero);
    doubled(seed->part, seed->whole);
    add_round_key(seed->whole, seed->round[0]);
    add_round_key(seed->part, seed->round[0]);
}

struct hash128 hash_key_plain(const struct hash_seed *seed, const void *data, size_t bytes)
{
    const uint8_t *from = data;
    uint8_t state[BLOCK] = {0};
    for (; bytes > BLOCK; bytes -= BLOCK, from += BLOCK) {
        add_round_key(state, from);
        add_round_key(state, seed->round[0]);
        encrypt_plain(seed, state);
    }
    uint8_t block[BLOCK];
    if (bytes == BLOCK) {
        memcpy(block, from, BLOCK);
    } else {
        uint64_t part[2];
        hash_part(from, bytes, part);
        memcpy(block, part, BLOCK);
    }
    add_round_key(state, block);
    add_round_key(state, bytes == BLOCK ? seed->whole : seed->part);
    encrypt_plain(seed, state);
    return (struct hash128){load_u64(state), load_u64(state + 8)};
}

struct hash128 hash_key(const struct hash_seed *seed, const void *data, size_t bytes)
{
#ifdef HASH_AES
    if (__builtin_expect(aes.fast, 1))
        return hash_key_aes(seed, data, bytes);
#endif
    return hash_key_plain(seed, data, bytes);
}
