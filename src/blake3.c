/*
 * blake3.c: BLAKE3, written from its specification.
 *
 * Source: J. O'Connor, J.-P. Aumasson, S. Neves, Z. Wilcox-O'Hearn, "BLAKE3: one function, fast
 * everywhere" (2020); sections are cited below. tests/test_blake3.c holds the authors' vectors.
 *
 * The input is cut into chunks of 1,024 bytes, chunks into blocks of 64. Each block is compressed
 * into a chaining value of eight words; the chaining values of the chunks are the leaves of a
 * binary tree whose left subtrees are complete; the compression at its root gives the output.
 *
 * Inputs are mostly one block, so there is nothing to run side by side but what one compression
 * offers: its four columns, then its four diagonals. The state is therefore four rows of four
 * words, each a vector of the compiler's, and any machine with 128-bit vectors does a row at once.
 */
#include "blake3.h"

#include "bytes.h"

#include <string.h>

#define BLOCK_BYTES 64
#define CHUNK_BYTES 1024
/* Enough complete subtrees for 2^64 bytes. */
#define DEPTH_MAX 54

/* Domain separation (2.1, table 3). */
enum {
    CHUNK_START = 1 << 0,
    CHUNK_END = 1 << 1,
    PARENT = 1 << 2,
    ROOT = 1 << 3,
    KEYED_HASH = 1 << 4,
};

typedef uint32_t row __attribute__((vector_size(16)));

/* A chaining value: eight words, as two rows. */
struct chain {
    row low, high;
};

/* The words of a block or of a key. */
struct words16 {
    uint32_t word[16];
};

static const struct chain IV = {
    .low = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a},
    .high = {0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19},
};

/* What to compress last: kept back, since whether it is the root is known only at the end. */
struct node {
    struct chain chain;
    struct words16 block;
    uint64_t counter;
    uint32_t block_bytes;
    uint32_t flags;
};

/* The words in `bytes` bytes (bytes.h: the machine is little-endian); those above are zero. */
static inline struct words16 load_words(const uint8_t *data, size_t bytes)
{
    struct words16 words;
    if (bytes == BLOCK_BYTES) {
        memcpy(words.word, data, BLOCK_BYTES);
    } else {
        memset(&words, 0, sizeof words);
        if (bytes > 0)
            memcpy(words.word, data, bytes);
    }
    return words;
}

static inline row rotate_right(row words, int bits)
{
    return words >> bits | words << (32 - bits);
}

/* ---------------------------------------------------------------- the compression function */

/* The quarter round G (2.2) on all four columns at once: x and y are the columns' words. */
#define G(a, b, c, d, x, y)                \
    do {                                   \
        (a) += (b) + (x);                  \
        (d) = rotate_right((d) ^ (a), 16); \
        (c) += (d);                        \
        (b) = rotate_right((b) ^ (c), 12); \
        (a) += (b) + (y);                  \
        (d) = rotate_right((d) ^ (a), 8);  \
        (c) += (d);                        \
        (b) = rotate_right((b) ^ (c), 7);  \
    } while (0)

/* The words of a row in another order: the same in clang and in gcc, whose older versions know only
 * a name of their own. */
#if defined(__clang__) || __GNUC__ >= 12
#define TURN(r, i, j, k, l) __builtin_shufflevector(r, r, i, j, k, l)
#else
#define TURN(r, i, j, k, l) __builtin_shuffle(r, (row){i, j, k, l})
#endif

#define PICK(m, i, j, k, l) ((row){(m)[i], (m)[j], (m)[k], (m)[l]})

/* One round, with the words in the order i0 to i15: columns, then diagonals. */
#define ROUND(m, i0, i1, i2, i3, i4, i5, i6, i7, i8, i9, i10, i11, i12, i13, i14, i15) \
    do {                                                                               \
        G(a, b, c, d, PICK(m, i0, i2, i4, i6), PICK(m, i1, i3, i5, i7));               \
        b = TURN(b, 1, 2, 3, 0);                                                       \
        c = TURN(c, 2, 3, 0, 1);                                                       \
        d = TURN(d, 3, 0, 1, 2);                                                       \
        G(a, b, c, d, PICK(m, i8, i10, i12, i14), PICK(m, i9, i11, i13, i15));         \
        b = TURN(b, 3, 0, 1, 2);                                                       \
        c = TURN(c, 2, 3, 0, 1);                                                       \
        d = TURN(d, 1, 2, 3, 0);                                                       \
    } while (0)

/* Compress one block into a chaining value (2.2). The order of words is the permutation of table 2,
 * applied once more in each round. */
static struct chain compress(const struct chain *chain, const struct words16 *block,
                             uint64_t counter, uint32_t block_bytes, uint32_t flags)
{
    const uint32_t *m = block->word;
    row a = chain->low;
    row b = chain->high;
    row c = IV.low;
    row d = {(uint32_t)counter, (uint32_t)(counter >> 32), block_bytes, flags};
    ROUND(m, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    ROUND(m, 2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8);
    ROUND(m, 3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1);
    ROUND(m, 10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6);
    ROUND(m, 12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4);
    ROUND(m, 9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7);
    ROUND(m, 11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13);
    return (struct chain){.low = a ^ c, .high = b ^ d};
}

static struct chain finish(const struct node *node, uint32_t flags)
{
    return compress(&node->chain, &node->block, node->counter, node->block_bytes,
                    node->flags | flags);
}

/* ---------------------------------------------------------------- chunks and the tree */

/* The last node of a chunk of 0 to CHUNK_BYTES bytes (2.4). `flags` are those of the mode. */
static struct node chunk_node(const struct chain *key, const uint8_t *data, size_t bytes,
                              uint64_t counter, uint32_t flags)
{
    struct node node = {
        .chain = *key,
        .counter = counter,
        .block_bytes = BLOCK_BYTES,
        .flags = flags | CHUNK_START,
    };
    while (bytes > BLOCK_BYTES) {
        node.block = load_words(data, BLOCK_BYTES);
        node.chain = finish(&node, 0);
        node.flags = flags;
        data += BLOCK_BYTES;
        bytes -= BLOCK_BYTES;
    }
    node.block = load_words(data, bytes);
    node.block_bytes = (uint32_t)bytes;
    node.flags |= CHUNK_END;
    return node;
}

/* The node above two chaining values (2.5). */
static struct node parent_node(const struct chain *key, const struct chain *left,
                               const struct chain *right, uint32_t flags)
{
    struct node node = {
        .chain = *key,
        .block_bytes = BLOCK_BYTES,
        .flags = flags | PARENT,
    };
    memcpy(node.block.word, left, sizeof *left);
    memcpy(node.block.word + 8, right, sizeof *right);
    return node;
}

/*
 * The root of the tree over all of the input. `stack` holds the chaining values of the complete
 * subtrees that await a right sibling, largest first: after n chunks, one for each bit set in n
 * (5.1.2). The last chunk is not pushed: it is the right edge of the tree.
 */
static struct node tree_root(const struct chain *key, const uint8_t *data, size_t bytes,
                             uint32_t flags)
{
    struct chain stack[DEPTH_MAX];
    size_t depth = 0;
    uint64_t chunk = 0;
    for (; bytes > CHUNK_BYTES; data += CHUNK_BYTES, bytes -= CHUNK_BYTES) {
        struct node node = chunk_node(key, data, CHUNK_BYTES, chunk, flags);
        struct chain chain = finish(&node, 0);
        chunk++;
        for (uint64_t chunks = chunk; (chunks & 1) == 0; chunks >>= 1) {
            node = parent_node(key, &stack[--depth], &chain, flags);
            chain = finish(&node, 0);
        }
        stack[depth++] = chain;
    }
    struct node node = chunk_node(key, data, bytes, chunk, flags);
    while (depth > 0) {
        struct chain chain = finish(&node, 0);
        node = parent_node(key, &stack[--depth], &chain, flags);
    }
    return node;
}

void blake3_hash(const uint8_t *key, const void *data, size_t bytes, uint8_t out[BLAKE3_OUT_BYTES])
{
    struct chain start = IV;
    if (key != NULL)
        memcpy(&start, key, BLAKE3_KEY_BYTES);
    struct node root = tree_root(&start, data, bytes, key != NULL ? KEYED_HASH : 0);
    struct chain chain = finish(&root, ROOT);
    memcpy(out, &chain, BLAKE3_OUT_BYTES);
}
