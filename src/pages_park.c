#include "pages_parts.h"

#include <assert.h>

#define DELTA_TABLE_BYTES (NODE_FANOUT * sizeof(struct delta *))

/* ---------------------------------------------------------------- spilling */

static void move(struct pages *pages, struct page *page, uint64_t location, uint64_t checksum)
{
    if (place_is_spilled(&pages->places, page->location))
        place_give(&pages->places, page->location);
    else
        place_retire(&pages->places, page->location);
    page->location = location;
    page->checksum = checksum;
}

/* A changed page is as it lies in the file. */
static void settle(struct pages *pages, enum space which, uint32_t number)
{
    struct page_space *space = &pages->space[which];
    struct page_node *node = &space->level[0][number / NODE_FANOUT];
    *dirty_word(pages, which, number, pages->epoch) &= ~(1ull << (number & 63));
    pages_find(pages, which, number)->epoch = pages->epoch - 1;
    pages->dirty_pages--;
    space->dirty_count--;
    pages->spilled_nodes += !node->dirty;
    node->dirty = true;
}

/* Write a page to a place that is in no tree of a checkpoint. */
static enum fkv_error spill_to(struct pages *pages, enum space which, uint32_t number,
                               const void *bytes, struct format_reference *to)
{
    int status =
        pages->environment.ops->write(pages->file, bytes, PAGE_BYTES, to->location * PAGE_BYTES);
    if (status)
        return error_os(status, "write a page of", pages->path);
    place_note_spilled(&pages->places, to->location);
    to->checksum = page_checksum(bytes, page_seed(which, 0, number));
    pages->written_bytes += PAGE_BYTES;
    return FKV_OK;
}

/* The same, to a place that it takes; zeros are not stored: see stage(). */
static enum fkv_error spill_elsewhere(struct pages *pages, enum space which, uint32_t number,
                                      const void *bytes, struct format_reference *to)
{
    *to = (struct format_reference){0};
    if (page_is_zero(bytes))
        return FKV_OK;
    enum fkv_error error = place_take(&pages->places, &to->location);
    if (!error && (error = spill_to(pages, which, number, bytes, to)))
        place_give(&pages->places, to->location);
    return error;
}

enum fkv_error pages_spill(struct pages *pages, enum space which, uint32_t number)
{
    struct page *page = pages_find(pages, which, number);
    assert(pages_can_spill(pages) && pages_is_changed(pages, page));
    const void *bytes = frame_bytes(pages, page->frame);
    struct format_reference to = {page->location, 0};
    bool again = place_is_spilled(&pages->places, page->location) && !page_is_zero(bytes);
    enum fkv_error error = again ? spill_to(pages, which, number, bytes, &to)
                                 : spill_elsewhere(pages, which, number, bytes, &to);
    if (error && again)
        units_begin(pages, page->frame, every_unit); /* who knows what is there now */
    if (error)
        return error;
    if (again)
        page->checksum = to.checksum;
    else
        move(pages, page, to.location, to.checksum);
    units_begin(pages, page->frame, (struct units){0});
    settle(pages, which, number);
    return FKV_OK;
}

void page_settle_zeros(struct pages *pages, enum space space, uint32_t number)
{
    if (!pages_can_spill(pages))
        return;
    move(pages, pages_find(pages, space, number), 0, 0);
    settle(pages, space, number);
}

/* ---------------------------------------------------------------- deltas */

/* Where the delta of a page is, if it has one. load_lock. */
static struct delta **delta_of(struct pages *pages, enum space space, uint32_t number)
{
    static struct delta *none;
    struct delta **deltas = pages->space[space].chunks[number / NODE_FANOUT]->deltas;
    return deltas ? &deltas[number % NODE_FANOUT] : &none;
}

/* Lay a delta over the page as it is in the file, and the moves that are the page's own, which do
 * not wait any more if `take`. Returns what differs. load_lock. */
static struct units lay(const struct delta *delta, void *bytes, bool take)
{
    struct units units = delta->changed;
    delta_apply(delta, bytes);
    if (delta->moves && !PLANTED(LOSE_MOVE))
        moves_lay(delta->moves, bytes, take, &units);
    return units;
}

/* A delta that is in the page by now, or will never be. load_lock. */
static void forget_delta(struct pages *pages, struct delta **at)
{
    pages->parked_pages--;
    pages->parked_bytes -= delta_bytes(units_count(&(*at)->changed));
    memory_free(*at);
    *at = NULL;
}

struct units page_unpark(struct pages *pages, enum space space, uint32_t number, void *bytes)
{
    struct units units = {0};
    struct delta **delta = delta_of(pages, space, number);
    if (*delta) {
        units = lay(*delta, bytes, true);
        forget_delta(pages, delta);
    }
    return units;
}

void page_deltas_free(struct page_chunk *chunk)
{
    for (uint32_t p = 0; chunk->deltas && p < NODE_FANOUT; p++)
        memory_free(chunk->deltas[p]);
    memory_free(chunk->deltas);
}

uint64_t pages_parked_memory(const struct pages *pages)
{
    return pages->parked_bytes + pages->delta_tables * DELTA_TABLE_BYTES;
}

/* ---------------------------------------------------------------- parking */

enum fkv_error pages_allow_parking(struct pages *pages)
{
    return frames_add_units(&pages->frames);
}

bool pages_can_park(const struct pages *pages, const struct page *page)
{
    enum { WORTH_WHILE = PAGE_UNITS / 4 };
    return pages_can_await(pages) && page->epoch == pages->epoch && !page->saved &&
           units_count(frame_units(pages, page->frame)) <= WORTH_WHILE;
}

#ifdef FKV_TESTING
/* Invariant 7. What cannot be read, or is damaged, says nothing. */
static void check_delta(struct pages *pages, enum space space, uint32_t number,
                        const struct delta *delta)
{
    const struct page *page = pages_find(pages, space, number);
    uint64_t location = location_of(page);
    uint8_t bytes[PAGE_BYTES] = {0};
    if (PLANTED(LOSE_CHANGE))
        return;
    if (location &&
        (pages->environment.ops->read(pages->file, bytes, PAGE_BYTES, location * PAGE_BYTES) ||
         page_checksum(bytes, page_seed(space, 0, number)) != page->checksum))
        return;
    delta_apply(delta, bytes);
    assert(memcmp(bytes, frame_bytes(pages, page->frame), PAGE_BYTES) == 0);
}
#else
#define check_delta(...) ((void)0)
#endif

/* Keep these units of a page as its delta; NULL without memory. */
static struct delta *park(struct pages *pages, struct page_chunk *chunk, uint32_t number,
                          const struct units *units, const void *bytes)
{
    if (!chunk->deltas) {
        if (!(chunk->deltas = memory_new(DELTA_TABLE_BYTES)))
            return NULL;
        pages->delta_tables++;
    }
    struct delta *delta = delta_new(units, bytes);
    if (!delta)
        return NULL;
    chunk->deltas[number % NODE_FANOUT] = delta;
    pages->parked_pages++;
    pages->parked_bytes += delta_bytes(units_count(units));
    return delta;
}

uint32_t pages_park(struct pages *pages, enum space space, uint32_t number)
{
    struct page *page = pages_find(pages, space, number);
    struct page_chunk *chunk = pages->space[space].chunks[number / NODE_FANOUT];
    uint32_t frame = page->frame;
    const struct units *units = frame_units(pages, frame);
    assert(pages_can_park(pages, page));
    struct delta *delta = park(pages, chunk, number, units, frame_bytes(pages, frame));
    if (!delta)
        return 0;
    check_delta(pages, space, number, delta);
    page->frame = 0;
    page->known = 1;
    atomic_fetch_sub_explicit(&pages->space[space].frame_count, 1, memory_order_relaxed);
    return frame;
}

bool pages_await(struct pages *pages, const uint32_t *number, uint32_t count, struct moves *moves)
{
    assert(pages_can_await(pages));
    /* One that is damaged would be given up for it, one that cannot be read fail the store. */
    for (uint32_t i = 0; i < count; i++) {
        const struct page *page = pages_find(pages, SPACE_INDEX, number[i]);
        if (!page->frame && !page->known)
            return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct page *page = pages_find(pages, SPACE_INDEX, number[i]);
        struct page_chunk *chunk = pages->space[SPACE_INDEX].chunks[number[i] / NODE_FANOUT];
        struct delta *delta = *delta_of(pages, SPACE_INDEX, number[i]);
        if (page->frame)
            continue;
        if (!delta && !(delta = park(pages, chunk, number[i], &(struct units){0}, NULL)))
            return false;
        delta->moves = moves;
        if (page->epoch != pages->epoch)
            page_mark(pages, SPACE_INDEX, number[i], page);
    }
    return true;
}

bool pages_is_parked(struct pages *pages, enum space space, uint32_t number)
{
    if (!pages->parked_pages)
        return false;
    pthread_mutex_lock(&pages->load_lock);
    bool parked = *delta_of(pages, space, number) != NULL;
    pthread_mutex_unlock(&pages->load_lock);
    return parked;
}

bool pages_any_parked(struct pages *pages)
{
    if (!pages->frames.units.base)
        return false;
    pthread_mutex_lock(&pages->load_lock); /* a reader counts before it is done */
    bool any = pages->parked_pages > 0;
    pthread_mutex_unlock(&pages->load_lock);
    return any;
}

/* See pages_complete; *changed: what of the file's bytes. */
static const void *complete(struct pages *pages, enum space space, uint32_t number, void *bytes,
                            struct units *changed)
{
    const struct page *page = pages_find(pages, space, number);
    pthread_mutex_lock(&pages->load_lock);
    const struct delta *delta = *delta_of(pages, space, number);
    *changed = (struct units){0};
    if (page->frame)
        bytes = frame_bytes(pages, page->frame);
    else if (delta)
        *changed = lay(delta, bytes, false);
    pthread_mutex_unlock(&pages->load_lock);
    return bytes;
}

const void *pages_complete(struct pages *pages, enum space space, uint32_t number, void *bytes)
{
    struct units changed;
    return complete(pages, space, number, bytes, &changed);
}

enum fkv_error pages_spill_parked(struct pages *pages, enum space space, uint32_t number,
                                  bool *unread)
{
    uint8_t *bytes = pages->staging; /* of checkpoints, of which none runs */
    struct page *page = pages_find(pages, space, number);
    struct units changed;
    assert(pages_can_spill(pages));
    *unread = false;
    if (!pages_is_parked(pages, space, number))
        return FKV_OK;
    /* No lock but the writer's: nobody else moves it. (Not `zero`: it was in a frame.) */
    struct format_reference from = {page->location, page->checksum}, to;
    enum fkv_error error = page_read_from(pages, space, number, from, bytes);
    *unread = error != FKV_OK;
    if (error || complete(pages, space, number, bytes, &changed) != bytes)
        return error;
    bool same = !units_count(&changed); /* it was to take moves, and had none */
    /* Never to where it lies: a reader may be reading it there. */
    if (!same && (error = spill_elsewhere(pages, space, number, bytes, &to)))
        return error;
    pthread_mutex_lock(&pages->load_lock);
    /* A reader may have brought it in meanwhile, but nobody changes it. */
    struct delta **delta = delta_of(pages, space, number);
    if (!*delta) {
        units_begin(pages, page->frame, (struct units){0});
    } else {
        if ((*delta)->moves)
            moves_forget((*delta)->moves, bytes);
        forget_delta(pages, delta);
    }
    if (!same)
        move(pages, page, to.location, to.checksum);
    pthread_mutex_unlock(&pages->load_lock);
    settle(pages, space, number);
    return FKV_OK;
}

void pages_give_up(struct pages *pages, enum space space, uint32_t number)
{
    struct page *page = pages_find(pages, space, number);
    assert(pages_can_spill(pages));
    pthread_mutex_lock(&pages->load_lock);
    struct delta **delta = delta_of(pages, space, number);
    bool parked = *delta != NULL; /* or a reader had more luck just now */
    if (parked) {
        forget_delta(pages, delta);
        page->checksum = ~page->checksum; /* that of what the file has, should it be read again */
        page->known = 0;
    }
    pthread_mutex_unlock(&pages->load_lock);
    if (parked)
        settle(pages, space, number);
}
