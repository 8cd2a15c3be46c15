/*
 * What the files of pages share, and nobody else uses:
 *
 *   pages.c             pages in memory: making, loading, changing
 *   pages_many.c        many of them loaded at once
 *   pages_park.c        pages that leave memory although they have changed: spilled, parked
 *   pages_checkpoint.c  checkpoints, and the trees of a file that is opened
 *
 * frames.c and places.c are below: where pages are in memory, and where in the file.
 */
#ifndef FKV_PAGES_PARTS_H
#define FKV_PAGES_PARTS_H

#include "pages.h"
#include "tree.h"

/* ---- pages.c */

/* Read a page or node, and verify it. */
enum fkv_error page_read(struct pages *pages, struct format_reference from, uint64_t seed,
                         void *bytes);
/* A page as the file has it, there or, if that is nowhere, as zeros. */
enum fkv_error page_read_from(struct pages *pages, enum space space, uint32_t number,
                              struct format_reference from, void *bytes);

/* Where a page lies in the file; 0: nowhere, it is zeros. */
static inline uint64_t location_of(const struct page *page)
{
    return page->zero ? 0 : page->location;
}

static const struct units every_unit = {
    {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX},
};

/* What differs in a frame from the page that the file has, or will have. */
static inline void units_begin(struct pages *pages, uint32_t frame, struct units units)
{
    if (pages->frames.units.base)
        *frame_units(pages, frame) = units;
}

static inline uint64_t *dirty_word(struct pages *pages, enum space space, uint32_t number,
                                   uint32_t epoch)
{
    return &pages->space[space].chunks[number >> 8]->dirty[epoch & 1][(number >> 6) & 3];
}

/* Has the running checkpoint still to capture this page? */
static inline bool capture_pending(struct pages *pages, enum space space, uint32_t number)
{
    return pages->capturing &&
           (*dirty_word(pages, space, number, pages->epoch - 1) >> (number & 63) & 1);
}

/* It is changed, and the next checkpoint has to write it. */
static inline void page_mark(struct pages *pages, enum space space, uint32_t number,
                             struct page *page)
{
    uint64_t *word = dirty_word(pages, space, number, pages->epoch);
    uint64_t bit = 1ull << (number & 63);
    page->epoch = pages->epoch;
    pages->dirty_pages += !(*word & bit);
    pages->space[space].dirty_count += !(*word & bit);
    *word |= bit;
}

/* ---- pages_park.c */

/* The page's bytes are here, as they are in the file: if it is parked, it is not any more. Returns
 * what differs. load_lock. */
struct units page_unpark(struct pages *pages, enum space space, uint32_t number, void *bytes);
/* All deltas of a chunk; at closing. */
void page_deltas_free(struct page_chunk *chunk);
/* Memory of all deltas, and of the tables that lead to them. */
uint64_t pages_parked_memory(const struct pages *pages);
/* A changed page is zeros now: the file needs nothing of it. While pages_can_spill; else nothing is
 * done. */
void page_settle_zeros(struct pages *pages, enum space space, uint32_t number);

#endif
