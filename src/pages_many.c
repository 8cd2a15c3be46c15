#include "pages_parts.h"

#include <assert.h>

#include "thread.h"

enum {
    LOADERS_MAX = 8,
    LOAD_AT_ONCE = 4, /* sectors that one thread takes at a time */
};

/* Who has fewer pages than this to read for each thread does not start it. */
TUNABLE uint32_t pages_a_loader = 4096;

/* What several threads read together. */
struct loading {
    struct pages *pages;
    enum space space;
    uint32_t *owner;       /* a place in a sector that holds pages: 1 + the number of its page */
    uint32_t *frame;       /* such a sector, and one more: the first frame for what it has */
    _Atomic uint32_t next; /* the sector to be taken next */
};

/* Read a run of pages that lie one after the other into frames that do so too. One that is damaged
 * has no use for its frame. */
static void load_run(struct loading *loading, uint64_t location, const uint32_t *owner,
                     uint32_t count, uint32_t frame)
{
    struct pages *pages = loading->pages;
    int status = pages->environment.ops->read(pages->file, frame_bytes(pages, frame),
                                              (size_t)count * PAGE_BYTES, location * PAGE_BYTES);
    uint32_t loaded = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct page *page = pages_find(pages, loading->space, owner[i] - 1);
        if (status || page_checksum(frame_bytes(pages, frame + i),
                                    page_seed(loading->space, 0, owner[i] - 1)) != page->checksum) {
            frame_free(pages, frame + i);
        } else {
            page->frame = frame + i;
            loaded++;
        }
    }
    atomic_fetch_add_explicit(&pages->space[loading->space].frame_count, loaded,
                              memory_order_relaxed);
}

static void load_sector(struct loading *loading, uint32_t at)
{
    const uint32_t *owner = loading->owner + (size_t)at * SECTOR_PAGES;
    uint64_t first = (uint64_t)loading->pages->places.sectors[at].sector * SECTOR_PAGES;
    uint32_t frame = loading->frame[at];
    for (uint32_t p = 0, run; p < SECTOR_PAGES; p += run ? run : 1) {
        for (run = 0; p + run < SECTOR_PAGES && owner[p + run]; run++)
            continue;
        if (run)
            load_run(loading, first + p, owner + p, run, frame);
        frame += run;
    }
}

/* The device reads a sector in one piece sooner than many pieces of it. */
static void ask_for_sector(const struct loading *loading, uint32_t at)
{
    enum { WORTH_READING_ALL = SECTOR_PAGES / 8 };
    struct pages *pages = loading->pages;
    if (loading->frame[at + 1] - loading->frame[at] >= WORTH_READING_ALL)
        pages->environment.ops->start_read(
            pages->file, (uint64_t)pages->places.sectors[at].sector * SECTOR_BYTES, SECTOR_BYTES);
}

static void *load_sectors(void *context)
{
    struct loading *loading = context;
    uint32_t count = loading->pages->places.sector_count;
    uint32_t at;
    while ((at = atomic_fetch_add(&loading->next, LOAD_AT_ONCE)) < count) {
        uint32_t end = (uint32_t)min_u64(at + LOAD_AT_ONCE, count);
        for (uint32_t i = at; i < end; i++)
            ask_for_sector(loading, i);
        for (uint32_t i = at; i < end; i++)
            if (loading->frame[i] != loading->frame[i + 1])
                load_sector(loading, i);
    }
    return NULL;
}

/* Who lies where; returns how many pages are to be read. */
static uint32_t find_owners(struct loading *loading, const uint64_t *wanted)
{
    struct pages *pages = loading->pages;
    uint32_t count = 0;
    for (uint32_t w = 0; w < divide_up(pages->space[loading->space].page_count, 64); w++)
        for (uint64_t bits = wanted[w]; bits; bits &= bits - 1) {
            uint32_t number = w * 64 + (uint32_t)__builtin_ctzll(bits);
            if (number >= pages->space[loading->space].page_count)
                break;
            const struct page *page = pages_find(pages, loading->space, number);
            if (!page->location || page->zero || page->frame)
                continue;
            uint32_t at = places_sector_at(&pages->places, page->location / SECTOR_PAGES) - 1;
            loading->owner[(size_t)at * SECTOR_PAGES + page->location % SECTOR_PAGES] = number + 1;
            loading->frame[at]++;
            count++;
        }
    return count;
}

/* Give each sector its frames, `count` in all; false if there are none. */
static bool give_frames(struct loading *loading, uint32_t count)
{
    uint32_t frame = frames_take_run(&loading->pages->frames, count);
    if (!frame)
        return false;
    for (uint32_t at = 0; at <= loading->pages->places.sector_count; at++) {
        uint32_t here = loading->frame[at];
        loading->frame[at] = frame;
        frame += here;
    }
    return true;
}

/* With helpers, if a core is there for each and there is enough for it to do. */
static void load_together(struct loading *loading, uint32_t pages, bool helpers)
{
    pthread_t thread[LOADERS_MAX];
    uint32_t wanted = pages / pages_a_loader;
    uint32_t most = (uint32_t)min_u64(min_u64(thread_cores(), LOADERS_MAX), wanted);
    uint32_t count = 0;
    while (helpers && count + 1 < most &&
           thread_start(&thread[count], load_sectors, loading, "fkv-load"))
        count++;
    load_sectors(loading);
    while (count)
        pthread_join(thread[--count], NULL);
}

void pages_load_wanted(struct pages *pages, enum space which, const uint64_t *wanted, bool helpers)
{
    assert(!pages->capturing && !pages->staged);
    struct loading loading = {.pages = pages, .space = which};
    uint32_t count;
    loading.owner =
        memory_new((size_t)pages->places.sector_count * SECTOR_PAGES * sizeof *loading.owner);
    loading.frame = memory_new((pages->places.sector_count + 1) * sizeof *loading.frame);
    if (loading.owner && loading.frame && (count = find_owners(&loading, wanted)) > 0 &&
        give_frames(&loading, count))
        load_together(&loading, count, helpers);
    memory_free(loading.owner);
    memory_free(loading.frame);
}
