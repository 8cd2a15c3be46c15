#include "pages_parts.h"

#include <assert.h>

/* ---------------------------------------------------------------- making */

enum fkv_error pages_make(struct pages *pages, struct os_file *file, const char *path,
                          struct page_environment environment)
{
    *pages = (struct pages){
        .file = file, .path = path, .epoch = 1, .durable_epoch = 1, .environment = environment};
    pthread_mutex_init(&pages->load_lock, NULL);
    enum fkv_error error = frames_make(&pages->frames);
    if (error)
        return error;
    if ((error = places_make(&pages->places, path, environment.sectors)))
        return error;
    pages->staging = memory_buffer(STAGING_PAGES * PAGE_BYTES);
    pages->targets = memory_new(STAGING_PAGES * sizeof *pages->targets);
    return pages->staging && pages->targets ? FKV_OK : FKV_NO_MEMORY;
}

void pages_drop(struct pages *pages)
{
    for (int s = 0; s < SPACE_COUNT; s++) {
        struct page_space *space = &pages->space[s];
        for (uint32_t i = 0; i < space->chunk_count; i++) {
            page_deltas_free(space->chunks[i]);
            memory_free(space->chunks[i]);
        }
        memory_free(space->chunks);
        for (int k = 0; k < PAGE_LEVELS; k++)
            reservation_drop(&space->level_memory[k]);
    }
    frames_drop(&pages->frames);
    places_drop(&pages->places);
    memory_free(pages->staging);
    memory_free(pages->targets);
}

uint64_t pages_memory_bytes(struct pages *pages)
{
    uint64_t bytes = frames_memory_bytes(&pages->frames) + pages_parked_memory(pages) +
                     places_memory_bytes(&pages->places);
    for (int s = 0; s < SPACE_COUNT; s++) {
        const struct page_space *space = &pages->space[s];
        bytes += space->chunk_count * sizeof(struct page_chunk) +
                 space->chunk_room * sizeof(struct page_chunk *);
        for (int k = 0; k < PAGE_LEVELS; k++)
            bytes += space->level_memory[k].backed_bytes;
    }
    return bytes + STAGING_PAGES * (PAGE_BYTES + sizeof *pages->targets);
}

static enum fkv_error level_extend(struct page_space *space, uint32_t level, uint32_t count)
{
    struct reservation *memory = &space->level_memory[level];
    size_t most = ((1ull << 32) >> (8 * (level + 1))) * sizeof(struct page_node);
    if (!memory->base) {
        if (reservation_make(memory, most, false) != 0)
            return FKV_NO_MEMORY;
        space->level[level] = (struct page_node *)memory->base;
    }
    return reservation_back(memory, count * sizeof(struct page_node)) == 0 ? FKV_OK : FKV_NO_MEMORY;
}

static enum fkv_error chunks_extend(struct page_space *space, uint32_t chunk_count)
{
    struct page_chunk **chunks =
        memory_room(space->chunks, sizeof *chunks, chunk_count, &space->chunk_room);
    if (!chunks)
        return FKV_NO_MEMORY;
    space->chunks = chunks;
    while (space->chunk_count < chunk_count) {
        struct page_chunk *chunk = memory_new(sizeof *chunk);
        if (!chunk)
            return FKV_NO_MEMORY;
        space->chunks[space->chunk_count++] = chunk;
    }
    return FKV_OK;
}

static uint32_t nodes_over(uint32_t page_count)
{
    uint32_t nodes = 0;
    for (uint32_t k = 0; k < space_height(page_count); k++)
        nodes += level_count(page_count, k);
    return nodes;
}

enum fkv_error pages_extend(struct pages *pages, enum space which, uint32_t count)
{
    struct page_space *space = &pages->space[which];
    if (count <= space->page_count)
        return FKV_OK;
    enum fkv_error error;
    uint32_t height = space_height(count);
    for (uint32_t k = 0; k < height; k++)
        if ((error = level_extend(space, k, level_count(count, k))))
            return error;
    pthread_mutex_lock(&pages->load_lock); /* readers that load follow `chunks` */
    error = chunks_extend(space, (uint32_t)divide_up(count, NODE_FANOUT));
    pthread_mutex_unlock(&pages->load_lock);
    if (error)
        return error;
    /* A taller tree has new nodes over what it had. */
    for (uint32_t k = space_height(space->page_count); k < height; k++)
        space->level[k][0].dirty = true;
    pages->node_count += nodes_over(count) - nodes_over(space->page_count);
    space->page_count = count;
    return FKV_OK;
}

/* ---------------------------------------------------------------- loading */

enum fkv_error page_read(struct pages *pages, struct format_reference from, uint64_t seed,
                         void *bytes)
{
    static const char *const names[SPACE_COUNT] = {"index", "directory", "sector table",
                                                   "deletion map"};
    const struct os_ops *ops = pages->environment.ops;
    int status = ops->read(pages->file, bytes, PAGE_BYTES, from.location * PAGE_BYTES);
    if (status)
        return error_os(status, "read a page of", pages->path);
    if (page_checksum(bytes, seed) != from.checksum && !PLANTED(NO_PAGE_CHECKSUM))
        return error_set(
            FKV_DAMAGED, "%s: %s page %llu (level %u) at offset %llu fails its checksum",
            pages->path, names[seed >> 60], (unsigned long long)(seed & ((1ull << 56) - 1)),
            (unsigned)(seed >> 56 & 15), (unsigned long long)from.location * PAGE_BYTES);
    return FKV_OK;
}

/* A page as the file has it, there or, if that is nowhere, as zeros. */
enum fkv_error page_read_from(struct pages *pages, enum space space, uint32_t number,
                              struct format_reference from, void *bytes)
{
    if (from.location)
        return page_read(pages, from, page_seed(space, 0, number), bytes);
    memset(bytes, 0, PAGE_BYTES);
    return FKV_OK;
}

static void copy_begin(struct pages *pages, const struct page *page, struct page_copy *copy)
{
    if (!copy->frame && (copy->frame = frames_take(&pages->frames, false)))
        pages->loading_frames++;
    copy->read = copy->frame != 0;
    copy->error = copy->frame ? FKV_OK : FKV_NO_MEMORY;
    copy->location = location_of(page);
    copy->checksum = copy->location ? page->checksum : 0;
}

static void copy_read(struct pages *pages, enum space space, uint32_t number,
                      struct page_copy *copy)
{
    struct format_reference from = {copy->location, copy->checksum};
    copy->error = page_read_from(pages, space, number, from, frame_bytes(pages, copy->frame));
}

static void copy_adopt(struct pages *pages, enum space space, uint32_t number,
                       struct page_copy *copy)
{
    struct page_space *in = &pages->space[space];
    struct page *page = pages_find(pages, space, number);
    units_begin(pages, copy->frame,
                page_unpark(pages, space, number, frame_bytes(pages, copy->frame)));
    page->zero = 0;
    __atomic_store_n(&page->frame, copy->frame, __ATOMIC_RELEASE);
    copy->frame = 0;
    pages->loading_frames--;
    atomic_fetch_add_explicit(&in->frame_count, 1, memory_order_relaxed);
    if (copy->location)
        atomic_fetch_add_explicit(&in->loads, 1, memory_order_relaxed);
}

bool pages_load_step(struct pages *pages, enum space space, uint32_t number, struct page_copy *copy,
                     uint32_t *frame, enum fkv_error *error)
{
    struct page *page = pages_find(pages, space, number);
    *error = FKV_OK;
    if (!page->frame) {
        /* What was read is the page unless it was loaded, changed, written elsewhere and evicted
         * meanwhile; and if it was not found to be whole, that is why. */
        bool same = copy->read && copy->location == location_of(page) &&
                    (!copy->location || copy->checksum == page->checksum);
        if (!same) {
            copy_begin(pages, page, copy);
            if ((*error = copy->error))
                return true;
            pthread_mutex_unlock(&pages->load_lock);
            copy_read(pages, space, number, copy);
            pthread_mutex_lock(&pages->load_lock);
            return false;
        }
        /* Or it was spilled to the same place, and is by now as it was before: nobody can do that
         * while the lock is held. */
        if (copy->error == FKV_DAMAGED)
            copy_read(pages, space, number, copy);
        if ((*error = copy->error)) {
            page->known = 0;
            return true;
        }
        copy_adopt(pages, space, number, copy);
    }
    *frame = page->frame;
    return true;
}

void pages_load_end(struct pages *pages, struct page_copy *copy)
{
    if (!copy->frame)
        return;
    frame_free(pages, copy->frame);
    pages->loading_frames--;
}

enum fkv_error pages_load(struct pages *pages, enum space space, uint32_t number, uint32_t *frame)
{
    enum fkv_error error;
    struct page_copy copy = {0};
    pthread_mutex_lock(&pages->load_lock);
    while (!pages_load_step(pages, space, number, &copy, frame, &error))
        continue;
    pages_load_end(pages, &copy);
    pthread_mutex_unlock(&pages->load_lock);
    return error;
}

enum fkv_error pages_load_locked(struct pages *pages, enum space space, uint32_t number,
                                 uint32_t *frame)
{
    struct page *page = pages_find(pages, space, number);
    if (!page->frame) {
        struct page_copy copy = {0};
        copy_begin(pages, page, &copy);
        if (!copy.error)
            copy_read(pages, space, number, &copy);
        if (!copy.error)
            copy_adopt(pages, space, number, &copy);
        pages_load_end(pages, &copy);
        if (copy.error)
            return copy.error;
    }
    *frame = page->frame;
    return FKV_OK;
}

uint32_t pages_evict(struct pages *pages, enum space space, uint32_t number)
{
    struct page *page = pages_find(pages, space, number);
    uint32_t frame = page->frame;
    assert(frame && pages_is_clean(pages, page));
    page->frame = 0;
    page->known = 1;
    atomic_fetch_sub_explicit(&pages->space[space].frame_count, 1, memory_order_relaxed);
    return frame;
}

/* ---------------------------------------------------------------- changing */

void *pages_write_slow(struct pages *pages, enum space space, uint32_t number, struct page *page)
{
    assert(page->frame);
    if (!page->saved && capture_pending(pages, space, number) && !PLANTED(NO_COPY)) {
        uint32_t copy = frame_new(pages);
        assert(copy && "frames were not reserved");
        memcpy(frame_bytes(pages, copy), frame_bytes(pages, page->frame), PAGE_BYTES);
        page->saved = copy; /* this is what the file will have */
        units_begin(pages, page->frame, (struct units){0});
    }
    page_mark(pages, space, number, page);
    return frame_bytes(pages, page->frame);
}

void pages_place(struct pages *pages, enum space space, uint32_t number, uint32_t frame)
{
    struct page *page = pages_find(pages, space, number);
    assert(!page->frame);
    if (!page->saved && capture_pending(pages, space, number))
        page->saved = SAVED_ZEROS;
    units_begin(pages, frame, every_unit);
    page->frame = frame;
    atomic_fetch_add_explicit(&pages->space[space].frame_count, 1, memory_order_relaxed);
    page->zero = 0;
    page_mark(pages, space, number, page);
}

uint32_t pages_discard(struct pages *pages, enum space space, uint32_t number)
{
    struct page *page = pages_find(pages, space, number);
    uint32_t frame = page->frame;
    if (frame)
        atomic_fetch_sub_explicit(&pages->space[space].frame_count, 1, memory_order_relaxed);
    if (frame && !page->saved && page->epoch != pages->epoch &&
        capture_pending(pages, space, number)) {
        page->saved = frame;
        frame = 0;
    }
    page->frame = 0;
    page->zero = 1;
    page_mark(pages, space, number, page);
    page_settle_zeros(pages, space, number);
    return frame;
}
