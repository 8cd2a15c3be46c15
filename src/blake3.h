/*
 * blake3: the BLAKE3 hash, plain or keyed, 32 bytes of output.
 *
 * Used in digest mode, where a store keeps a salted digest in place of each key. Not used where
 * the hash of the index or a checksum will do: it costs several times as much.
 */
#ifndef FKV_BLAKE3_H
#define FKV_BLAKE3_H

#include <stddef.h>
#include <stdint.h>

#define BLAKE3_KEY_BYTES 32
#define BLAKE3_OUT_BYTES 32

/*
 * Hash any number of bytes, in one go. `key` NULL gives the plain hash, otherwise the keyed one.
 * `data` may be NULL if `bytes` is 0. Allocates nothing.
 */
void blake3_hash(const uint8_t *key, const void *data, size_t bytes, uint8_t out[BLAKE3_OUT_BYTES]);

#endif
