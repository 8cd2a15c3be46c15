/*
 * tree: the shape of the trees that lead to pages, and what a page must hash to at its place.
 *
 * A tree of `pages` pages has as many levels of nodes as it takes to come down to one node: level 0
 * is right above the pages, and each node refers to NODE_FANOUT pages or nodes of the level below.
 */
#ifndef FKV_TREE_H
#define FKV_TREE_H

#include "checksum.h"
#include "format.h"

/* Nodes of level k (k + 1 above the pages) that so many pages need. */
static inline uint32_t level_count(uint32_t page_count, uint32_t level)
{
    return (uint32_t)divide_up(page_count, 1ull << (8 * (level + 1)));
}

static inline uint32_t space_height(uint32_t page_count)
{
    uint32_t height = 0;
    if (page_count)
        while (height++, level_count(page_count, height - 1) > 1)
            ;
    return height;
}

/* The place of a page (level 0) or of a node of level k (k + 1), as its checksum has it. */
static inline uint64_t page_seed(enum space space, uint32_t level, uint64_t number)
{
    /* Wrong of a level 0. NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult) */
    return ((uint64_t)space << 60) | ((uint64_t)level << 56) | number;
}

static inline uint64_t page_checksum(const void *bytes, uint64_t seed)
{
    return checksum64(bytes, PAGE_BYTES) ^ checksum_mix(seed);
}

/* Such pages, and nodes, are not stored. */
static inline bool page_is_zero(const void *bytes)
{
    return bytes_are_zero(bytes, PAGE_BYTES);
}

#endif
