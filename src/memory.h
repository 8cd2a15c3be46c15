/*
 * memory: where the library gets memory from, so that tests can make every request fail.
 *
 * Two kinds: ordinary allocations, and reservations: address ranges that are taken whole at the
 * start and backed by memory from the front as they fill, so that an array in one can grow without
 * ever moving under a reader.
 */
#ifndef FKV_MEMORY_H
#define FKV_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* NULL when there is none; error_set has been called. The bytes are zero. */
void *memory_new(size_t bytes);
/* The same, and the bytes are anything: for buffers, of which a part is filled before it is read.
 */
void *memory_buffer(size_t bytes);
/* Grow or shrink; the old block stays valid on NULL. New bytes are not zeroed. */
void *memory_resize(void *block, size_t bytes);
/* An array that grows, with room for so many items: itself, or, moved, one of at least twice as
 * many. NULL if there is none to be had: the old one stays. */
void *memory_room(void *items, size_t item_bytes, uint64_t least, uint32_t *room);
/* Two strings in one. */
char *memory_join(const char *a, const char *b);
void memory_free(void *block);

struct reservation {
    uint8_t *base;
    size_t reserved_bytes;
    size_t backed_bytes;
    bool huge; /* ask for huge pages */
#ifdef FKV_TESTING
    size_t usable_bytes; /* see memory_test_keep */
#endif
};

/* Both return 0 or -ENOMEM. A reservation takes address space only. */
int reservation_make(struct reservation *reservation, size_t bytes, bool huge);
/* Make sure that the first `bytes` are usable memory (zeros where new). */
int reservation_back(struct reservation *reservation, size_t bytes);
void reservation_drop(struct reservation *reservation);

/* How much memory the machine has, in bytes; 0 if it does not say. */
uint64_t memory_of_machine(void);
/* The limit of this process's address space; UINT64_MAX: there is none. */
uint64_t memory_address_limit(void);

#ifdef FKV_TESTING
/* Make the n-th request from now fail (and those after it too, if `forever`); 0: none. */
void memory_test_fail(uint64_t nth, bool forever);
uint64_t memory_test_requests(void);
/* Blocks not freed, and address ranges not dropped; what of them is memory, in bytes. */
uint64_t memory_test_blocks(void);
uint64_t memory_test_bytes(void);
/* Keep address ranges that are dropped, for the next that want one of that size, and no huge pages:
 * for tests that open a hundred thousand small stores, one after the other. Not for threads. */
void memory_test_keep(bool keep);
#endif

#endif
