#include "pages_parts.h"

#include <assert.h>

/* ---------------------------------------------------------------- capturing */

void pages_checkpoint_begin(struct pages *pages)
{
    assert(!pages->capturing && pages->staged == 0 && !pages->parked_pages);
    pages->unparking = false;
    pages->epoch++;
    pages->pending_pages = pages->dirty_pages;
    pages->dirty_pages = 0;
    places_checkpoint_begin(&pages->places, pages->pending_pages);
    pages->capturing = true;
    pages->cursor_space = pages->cursor_at = pages->cursor_level = 0;
    for (int s = 0; s < SPACE_COUNT; s++) {
        pages->captured_count[s] = pages->space[s].page_count;
        pages->space[s].dirty_count = 0;
    }
}

/* Put a page on the staging area, and its new place in *location; zeros are not stored. */
static enum fkv_error stage(struct pages *pages, const void *bytes, uint64_t seed,
                            uint64_t *location, uint64_t *checksum)
{
    uint64_t place = 0;
    if (bytes && !page_is_zero(bytes)) {
        enum fkv_error error = place_take(&pages->places, &place);
        if (error)
            return error;
        memcpy(pages->staging + pages->staged * PAGE_BYTES, bytes, PAGE_BYTES);
        pages->targets[pages->staged++] = (struct page_target){place, seed, checksum};
    }
    place_retire(&pages->places, *location);
    *location = place;
    *checksum = 0;
    return FKV_OK;
}

static enum fkv_error capture_page(struct pages *pages, enum space space, uint32_t number)
{
    struct page *page = pages_find(pages, space, number);
    const void *bytes = NULL;
    if (page->saved == SAVED_ZEROS)
        bytes = NULL;
    else if (page->saved)
        bytes = frame_bytes(pages, page->saved);
    else if (page->frame)
        bytes = frame_bytes(pages, page->frame);
    enum fkv_error error =
        stage(pages, bytes, page_seed(space, 0, number), &page->location, &page->checksum);
    if (error)
        return error;
    if (page->frame && !page->saved) /* captured as it is now */
        units_begin(pages, page->frame, (struct units){0});
    *dirty_word(pages, space, number, pages->epoch - 1) &= ~(1ull << (number & 63));
    pages->pending_pages--;
    if (page->saved && page->saved != SAVED_ZEROS)
        pages->environment.retire_frame(pages->environment.context, page->saved);
    page->saved = 0;
    pages->space[space].level[0][number >> 8].dirty = true;
    return FKV_OK;
}

static enum fkv_error capture_node(struct pages *pages, enum space which, uint32_t level,
                                   uint32_t number)
{
    struct page_space *space = &pages->space[which];
    struct page_node *node = &space->level[level][number];
    struct format_reference references[NODE_FANOUT] = {0};
    uint32_t below =
        level ? level_count(pages->captured_count[which], level - 1) : pages->captured_count[which];
    for (uint32_t i = 0; i < NODE_FANOUT; i++) {
        uint32_t child = number * NODE_FANOUT + i;
        if (child >= below)
            break;
        if (level)
            references[i] = (struct format_reference){space->level[level - 1][child].location,
                                                      space->level[level - 1][child].checksum};
        else
            references[i] = (struct format_reference){space->chunks[number]->page[i].location,
                                                      space->chunks[number]->page[i].checksum};
    }
    enum fkv_error error = stage(pages, references, page_seed(which, level + 1, number),
                                 &node->location, &node->checksum);
    if (error)
        return error;
    node->dirty = false;
    if (level + 1 < space_height(pages->captured_count[which]))
        space->level[level + 1][number / NODE_FANOUT].dirty = true;
    return FKV_OK;
}

/* Capture of level 0: what is at the cursor's chunk. */
static enum fkv_error capture_chunk(struct pages *pages, uint32_t limit, bool *more)
{
    struct page_chunk *chunk = pages->space[pages->cursor_space].chunks[pages->cursor_at];
    uint64_t *dirty = chunk->dirty[(pages->epoch - 1) & 1];
    for (uint32_t w = 0; w < NODE_FANOUT / 64; w++) {
        while (dirty[w]) {
            if (pages->staged >= limit) {
                *more = true;
                return FKV_OK;
            }
            uint32_t number =
                pages->cursor_at * NODE_FANOUT + w * 64 + (uint32_t)__builtin_ctzll(dirty[w]);
            enum fkv_error error = capture_page(pages, pages->cursor_space, number);
            if (error)
                return error;
        }
    }
    *more = false;
    return FKV_OK;
}

enum fkv_error pages_capture(struct pages *pages, uint32_t limit, bool *done)
{
    limit = pages->staged + limit;
    if (limit > STAGING_PAGES)
        limit = STAGING_PAGES;
    *done = false;
    for (; pages->cursor_level <= PAGE_LEVELS; pages->cursor_level++, pages->cursor_space = 0) {
        /* A level needs the checksums of the one below, which writing computes. */
        if (pages->cursor_space == 0 && pages->cursor_at == 0 && pages->cursor_level &&
            pages->staged)
            return FKV_OK;
        for (; pages->cursor_space < SPACE_COUNT; pages->cursor_space++, pages->cursor_at = 0) {
            struct page_space *space = &pages->space[pages->cursor_space];
            uint32_t count = pages->captured_count[pages->cursor_space];
            uint32_t level = pages->cursor_level;
            uint32_t end = level == 0                     ? (uint32_t)divide_up(count, NODE_FANOUT)
                           : level <= space_height(count) ? level_count(count, level - 1)
                                                          : 0;
            for (; pages->cursor_at < end; pages->cursor_at++) {
                bool more = false;
                enum fkv_error error = FKV_OK;
                if (level == 0)
                    error = capture_chunk(pages, limit, &more);
                else if (space->level[level - 1][pages->cursor_at].dirty) {
                    more = pages->staged >= limit;
                    if (!more)
                        error =
                            capture_node(pages, pages->cursor_space, level - 1, pages->cursor_at);
                }
                if (error || more)
                    return error;
            }
        }
    }
    *done = true;
    return FKV_OK;
}

/* ---------------------------------------------------------------- writing */

void pages_sum_staged(struct pages *pages)
{
    for (; pages->summed < pages->staged; pages->summed++) {
        struct page_target *target = &pages->targets[pages->summed];
        *target->checksum =
            page_checksum(pages->staging + pages->summed * PAGE_BYTES, target->seed);
    }
}

enum fkv_error pages_write_staged(struct pages *pages)
{
    const struct os_ops *ops = pages->environment.ops;
    uint32_t staged = pages->staged;
    pages_sum_staged(pages);
    pages->staged = pages->summed = 0;
    for (uint32_t i = 0, run; i < staged; i += run) {
        uint64_t location = pages->targets[i].location;
        for (run = 1; i + run < staged; run++)
            if (pages->targets[i + run].location != location + run)
                break;
        int status = ops->write(pages->file, pages->staging + i * PAGE_BYTES, run * PAGE_BYTES,
                                location * PAGE_BYTES);
        if (status) {
            pages->unwritten = staged;
            return error_os(status, "write pages of", pages->path);
        }
        /* At the end all of it is synced: the medium should not begin only then. */
        ops->start_writeback(pages->file, location * PAGE_BYTES, run * PAGE_BYTES);
        pages->written_bytes += run * PAGE_BYTES;
    }
    return FKV_OK;
}

void pages_roots(const struct pages *pages, struct format_space roots[SPACE_COUNT])
{
    for (int s = 0; s < SPACE_COUNT; s++) {
        const struct page_space *space = &pages->space[s];
        uint32_t height = space_height(pages->captured_count[s]);
        roots[s] = (struct format_space){.pages = pages->captured_count[s], .height = height};
        if (height)
            roots[s].root = (struct format_reference){space->level[height - 1][0].location,
                                                      space->level[height - 1][0].checksum};
    }
}

/* ---------------------------------------------------------------- its end */

void pages_checkpoint_done(struct pages *pages)
{
    pages->capturing = false;
    pages->durable_epoch = pages->epoch;
    pages->spilled_nodes = 0;
    places_checkpoint_done(&pages->places);
}

/* What was captured and then could not be written is to be written again, elsewhere. */
static void forget_unwritten(struct pages *pages)
{
    for (; pages->unwritten; pages->unwritten--) {
        uint64_t seed = pages->targets[pages->unwritten - 1].seed;
        enum space space = (enum space)(seed >> 60);
        uint32_t level = seed >> 56 & 15;
        uint32_t number = (uint32_t)seed;
        if (level)
            pages->space[space].level[level - 1][number].dirty = true;
        else
            page_mark(pages, space, number, pages_find(pages, space, number));
    }
}

/* What was captured did not all come to the file. */
static void forget_units(struct pages *pages)
{
    struct frame_arena *frames = &pages->frames;
    if (!frames->units.base)
        return;
    pthread_mutex_lock(&pages->load_lock); /* who brings a page in notes them */
    pthread_mutex_lock(&frames->lock);
    for (uint32_t frame = 1; frame < frames->count; frame++)
        *frame_units(pages, frame) = every_unit;
    pthread_mutex_unlock(&frames->lock);
    pthread_mutex_unlock(&pages->load_lock);
}

void pages_checkpoint_abandon(struct pages *pages)
{
    assert(!pages->staged);
    forget_unwritten(pages);
    places_checkpoint_abandon(&pages->places);
    pages->capturing = false;
    pages->pending_pages = 0;
    forget_units(pages);
    for (int s = 0; s < SPACE_COUNT; s++) {
        struct page_space *space = &pages->space[s];
        for (uint32_t c = 0; c < space->chunk_count; c++) {
            uint64_t *pending = space->chunks[c]->dirty[(pages->epoch - 1) & 1];
            for (uint32_t w = 0; w < NODE_FANOUT / 64; w++)
                for (; pending[w]; pending[w] &= pending[w] - 1) {
                    uint32_t number =
                        c * NODE_FANOUT + w * 64 + (uint32_t)__builtin_ctzll(pending[w]);
                    struct page *page = pages_find(pages, s, number);
                    if (page->saved && page->saved != SAVED_ZEROS)
                        pages->environment.retire_frame(pages->environment.context, page->saved);
                    page->saved = 0;
                    page_mark(pages, s, number, page);
                }
        }
    }
}

/* ---------------------------------------------------------------- opening */

/* Read the nodes of one level, whose own references are known. */
static enum fkv_error open_level(struct pages *pages, enum space which, uint32_t level,
                                 uint64_t sector_count)
{
    struct page_space *space = &pages->space[which];
    uint32_t below = level ? level_count(space->page_count, level - 1) : space->page_count;
    for (uint32_t n = 0; n < level_count(space->page_count, level); n++) {
        struct page_node *node = &space->level[level][n];
        struct format_reference references[NODE_FANOUT] = {0};
        enum fkv_error error;
        if (node->location) {
            struct format_reference from = {node->location, node->checksum};
            if ((error = place_claim(&pages->places, node->location, sector_count)) ||
                (error = page_read(pages, from, page_seed(which, level + 1, n), references)))
                return error;
        }
        for (uint32_t i = 0; i < NODE_FANOUT && n * NODE_FANOUT + i < below; i++) {
            if (level) {
                struct page_node *child = &space->level[level - 1][n * NODE_FANOUT + i];
                child->location = references[i].location;
                child->checksum = references[i].checksum;
                continue;
            }
            struct page *page = &space->chunks[n]->page[i];
            page->location = references[i].location;
            page->checksum = references[i].checksum;
            if (page->location &&
                (error = place_claim(&pages->places, page->location, sector_count)))
                return error;
        }
    }
    return FKV_OK;
}

enum fkv_error pages_open(struct pages *pages, const struct format_space roots[SPACE_COUNT],
                          uint64_t sector_count)
{
    for (int s = 0; s < SPACE_COUNT; s++) {
        if (roots[s].height != space_height(roots[s].pages) ||
            (uint64_t)roots[s].pages > (sector_count + 1) * SECTOR_PAGES * NODE_FANOUT)
            return error_set(FKV_DAMAGED, "%s: the header names an impossible tree", pages->path);
        enum fkv_error error = pages_extend(pages, s, roots[s].pages);
        if (error)
            return error;
        if (!roots[s].height)
            continue;
        struct page_node *top = &pages->space[s].level[roots[s].height - 1][0];
        top->location = roots[s].root.location;
        top->checksum = roots[s].root.checksum;
        for (uint32_t k = roots[s].height; k-- > 0;) {
            pages->space[s].level[k][0].dirty = false;
            if ((error = open_level(pages, s, k, sector_count)))
                return error;
        }
    }
    places_choose_again(&pages->places);
    return FKV_OK;
}
