#include "pages.h"

#include <assert.h>

#include "planted.h"
#include "thread.h"
#include "tree.h"

#define DELTA_TABLE_BYTES (NODE_FANOUT * sizeof(struct delta *))

/* ---------------------------------------------------------------- frames */

static enum fkv_error frames_make(struct frame_arena *frames)
{
    /* More than the machine has; less where address space is limited, which others need too. */
    size_t bytes = max_u64(64 * GIB, round_up(2 * memory_of_machine(), GIB));
    bytes = min_u64(bytes, round_up(memory_address_limit() / 4, GIB));
    while (reservation_make(&frames->bytes, bytes, true) != 0) {
        bytes /= 4;
        if (bytes < 16 * MIB)
            return FKV_NO_MEMORY;
    }
    if (reservation_make(&frames->links, bytes / PAGE_BYTES * sizeof(uint32_t), false) != 0)
        return FKV_NO_MEMORY;
    frames->count = 1;
    pthread_mutex_init(&frames->lock, NULL);
    return FKV_OK;
}

/* Make so many frames usable. The lock is held. */
static bool frames_back(struct frame_arena *frames, size_t count)
{
    return count <= UINT32_MAX && reservation_back(&frames->links, count * sizeof(uint32_t)) == 0 &&
           (!frames->units.base ||
            reservation_back(&frames->units, count * sizeof(struct units)) == 0) &&
           reservation_back(&frames->bytes, count * PAGE_BYTES) == 0;
}

/* Take a frame from the arena's fresh end. The lock is held. */
static uint32_t frame_fresh(struct frame_arena *frames)
{
    size_t count = (size_t)frames->count + 1;
    if (!frames_back(frames, count))
        return 0;
    return frames->count++;
}

static uint32_t frame_take(struct pages *pages, bool writer)
{
    struct frame_arena *frames = &pages->frames;
    pthread_mutex_lock(&frames->lock);
    uint32_t frame;
    if (frames->free_count > (writer ? 0 : frames->reserved)) {
        frame = frames->free_head;
        frames->free_head = *frame_link(pages, frame);
        frames->free_count--;
    } else {
        frame = frame_fresh(frames);
    }
    if (writer && frame && frames->reserved)
        frames->reserved--;
    pthread_mutex_unlock(&frames->lock);
    return frame;
}

uint32_t frame_new(struct pages *pages)
{
    return frame_take(pages, true);
}

void frame_free(struct pages *pages, uint32_t frame)
{
    struct frame_arena *frames = &pages->frames;
    pthread_mutex_lock(&frames->lock);
    assert(frame && frame < frames->count);
    *frame_link(pages, frame) = frames->free_head;
    frames->free_head = frame;
    frames->free_count++;
    pthread_mutex_unlock(&frames->lock);
}

void frames_free(struct pages *pages, uint32_t frame)
{
    struct frame_arena *frames = &pages->frames;
    if (!frame)
        return;
    uint32_t last = frame, count = 1;
    for (; *frame_link(pages, last); last = *frame_link(pages, last))
        count++;
    pthread_mutex_lock(&frames->lock);
    *frame_link(pages, last) = frames->free_head;
    frames->free_head = frame;
    frames->free_count += count;
    pthread_mutex_unlock(&frames->lock);
}

enum fkv_error pages_reserve_frames(struct pages *pages, uint32_t count)
{
    struct frame_arena *frames = &pages->frames;
    enum fkv_error error = FKV_OK;
    pthread_mutex_lock(&frames->lock);
    while (frames->free_count < count) {
        uint32_t frame = frame_fresh(frames);
        if (!frame) {
            error = FKV_NO_MEMORY;
            count = frames->reserved;
            break;
        }
        *frame_link(pages, frame) = frames->free_head;
        frames->free_head = frame;
        frames->free_count++;
    }
    frames->reserved = count;
    pthread_mutex_unlock(&frames->lock);
    return error;
}

uint64_t pages_memory_bytes(struct pages *pages)
{
    struct frame_arena *frames = &pages->frames;
    pthread_mutex_lock(&frames->lock); /* readers take frames */
    uint64_t bytes = frames->bytes.backed_bytes + frames->links.backed_bytes +
                     frames->units.backed_bytes + pages->parked_bytes +
                     pages->delta_tables * DELTA_TABLE_BYTES;
    pthread_mutex_unlock(&frames->lock);
    for (int s = 0; s < SPACE_COUNT; s++) {
        const struct page_space *space = &pages->space[s];
        bytes += space->chunk_count * sizeof(struct page_chunk) +
                 space->chunk_room * sizeof(struct page_chunk *);
        for (int k = 0; k < PAGE_LEVELS; k++)
            bytes += space->level_memory[k].backed_bytes;
    }
    return bytes + pages->sector_index.backed_bytes + pages->sector_room * sizeof *pages->sectors +
           STAGING_PAGES * (PAGE_BYTES + sizeof *pages->targets);
}

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
    if (reservation_make(&pages->sector_index, (size_t)SECTORS_MAX * sizeof(uint32_t), false) != 0)
        return FKV_NO_MEMORY;
    pages->staging = memory_buffer(STAGING_PAGES * PAGE_BYTES);
    pages->targets = memory_new(STAGING_PAGES * sizeof *pages->targets);
    return pages->staging && pages->targets ? FKV_OK : FKV_NO_MEMORY;
}

void pages_drop(struct pages *pages)
{
    for (int s = 0; s < SPACE_COUNT; s++) {
        struct page_space *space = &pages->space[s];
        for (uint32_t i = 0; i < space->chunk_count; i++) {
            struct delta **deltas = space->chunks[i]->deltas;
            for (uint32_t p = 0; deltas && p < NODE_FANOUT; p++)
                memory_free(deltas[p]);
            memory_free(deltas);
            memory_free(space->chunks[i]);
        }
        memory_free(space->chunks);
        for (int k = 0; k < PAGE_LEVELS; k++)
            reservation_drop(&space->level_memory[k]);
    }
    reservation_drop(&pages->frames.bytes);
    reservation_drop(&pages->frames.links);
    reservation_drop(&pages->frames.units);
    reservation_drop(&pages->sector_index);
    memory_free(pages->sectors);
    memory_free(pages->staging);
    memory_free(pages->targets);
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
    if (chunk_count > space->chunk_room) {
        uint32_t room = space->chunk_room ? space->chunk_room * 2 : 16;
        if (room < chunk_count)
            room = chunk_count;
        struct page_chunk **chunks = memory_resize(space->chunks, room * sizeof *chunks);
        if (!chunks)
            return FKV_NO_MEMORY;
        space->chunks = chunks;
        space->chunk_room = room;
    }
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

/* ---------------------------------------------------------------- pages in memory */

static enum fkv_error read_page(struct pages *pages, struct format_reference from, uint64_t seed,
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

/* Where a page lies in the file; 0: nowhere, it is zeros. */
static uint64_t location_of(const struct page *page)
{
    return page->zero ? 0 : page->location;
}

static const struct units every_unit = {
    {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX},
};

/* What differs in a frame from the page that the file has, or will have. */
static void units_begin(struct pages *pages, uint32_t frame, struct units units)
{
    if (pages->frames.units.base)
        *frame_units(pages, frame) = units;
}

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

/* The page's bytes are here, as they are in the file: if it is parked, it is not any more. Returns
 * what differs. load_lock. */
static struct units unpark(struct pages *pages, enum space space, uint32_t number, void *bytes)
{
    struct units units = {0};
    struct delta **delta = delta_of(pages, space, number);
    if (*delta) {
        units = lay(*delta, bytes, true);
        forget_delta(pages, delta);
    }
    return units;
}

static void copy_begin(struct pages *pages, const struct page *page, struct page_copy *copy)
{
    if (!copy->frame && (copy->frame = frame_take(pages, false)))
        pages->loading_frames++;
    copy->read = copy->frame != 0;
    copy->error = copy->frame ? FKV_OK : FKV_NO_MEMORY;
    copy->location = location_of(page);
    copy->checksum = copy->location ? page->checksum : 0;
}

/* A page as the file has it, there or, if that is nowhere, as zeros. */
static enum fkv_error read_from(struct pages *pages, enum space space, uint32_t number,
                                struct format_reference from, void *bytes)
{
    if (from.location)
        return read_page(pages, from, page_seed(space, 0, number), bytes);
    memset(bytes, 0, PAGE_BYTES);
    return FKV_OK;
}

static void copy_read(struct pages *pages, enum space space, uint32_t number,
                      struct page_copy *copy)
{
    struct format_reference from = {copy->location, copy->checksum};
    copy->error = read_from(pages, space, number, from, frame_bytes(pages, copy->frame));
}

static void copy_adopt(struct pages *pages, enum space space, uint32_t number,
                       struct page_copy *copy)
{
    struct page_space *in = &pages->space[space];
    struct page *page = pages_find(pages, space, number);
    units_begin(pages, copy->frame, unpark(pages, space, number, frame_bytes(pages, copy->frame)));
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

static inline uint64_t *dirty_word(struct pages *pages, enum space space, uint32_t number,
                                   uint32_t epoch)
{
    return &pages->space[space].chunks[number >> 8]->dirty[epoch & 1][(number >> 6) & 3];
}

/* Has the running checkpoint still to capture this page? */
static bool capture_pending(struct pages *pages, enum space space, uint32_t number)
{
    return pages->capturing &&
           (*dirty_word(pages, space, number, pages->epoch - 1) >> (number & 63) & 1);
}

static void mark_dirty(struct pages *pages, enum space space, uint32_t number, struct page *page)
{
    uint64_t *word = dirty_word(pages, space, number, pages->epoch);
    uint64_t bit = 1ull << (number & 63);
    page->epoch = pages->epoch;
    pages->dirty_pages += !(*word & bit);
    pages->space[space].dirty_count += !(*word & bit);
    *word |= bit;
}

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
    mark_dirty(pages, space, number, page);
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
    mark_dirty(pages, space, number, page);
}

/* ---------------------------------------------------------------- places in the file */

static uint32_t *sector_slot(struct pages *pages, uint32_t sector)
{
    return (uint32_t *)pages->sector_index.base + sector;
}

static enum fkv_error page_sector_add(struct pages *pages, uint32_t sector)
{
    if (pages->sector_count == pages->sector_room) {
        uint32_t room = pages->sector_room ? pages->sector_room * 2 : 16;
        struct page_sector *sectors = memory_resize(pages->sectors, room * sizeof *sectors);
        if (!sectors)
            return FKV_NO_MEMORY;
        pages->sectors = sectors;
        pages->sector_room = room;
    }
    if (reservation_back(&pages->sector_index, ((size_t)sector + 1) * sizeof(uint32_t)) != 0)
        return FKV_NO_MEMORY;
    pages->sectors[pages->sector_count++] = (struct page_sector){.sector = sector};
    *sector_slot(pages, sector) = pages->sector_count;
    return FKV_OK;
}

static void page_sector_remove(struct pages *pages, uint32_t at)
{
    uint32_t sector = pages->sectors[at].sector;
    *sector_slot(pages, sector) = 0;
    uint32_t last = --pages->sector_count;
    if (at != last) {
        pages->sectors[at] = pages->sectors[last];
        *sector_slot(pages, pages->sectors[at].sector) = at + 1;
    }
    pages->environment.give_sector(pages->environment.context, sector);
}

/* Choose the sector that the next pages go to: whole runs are worth more than full sectors. */
static enum fkv_error choose_fill(struct pages *pages)
{
    enum { RUN_WORTH_HAVING = 32 };
    uint32_t best = pages->sector_count;
    for (uint32_t i = 0; i < pages->sector_count; i++)
        if (pages->sectors[i].used_count < SECTOR_PAGES &&
            (best == pages->sector_count ||
             pages->sectors[i].used_count < pages->sectors[best].used_count))
            best = i;
    pages->fill_page = 0;
    pages->fill = best;
    if (best < pages->sector_count && !pages->fresh_sectors &&
        SECTOR_PAGES - pages->sectors[best].used_count >= RUN_WORTH_HAVING)
        return FKV_OK;
    uint32_t sector;
    enum fkv_error error = pages->environment.take_sector(pages->environment.context, &sector);
    if (!error && (error = page_sector_add(pages, sector)))
        pages->environment.give_sector(pages->environment.context, sector);
    if (error)
        return best < pages->sector_count ? FKV_OK : error;
    pages->fill = pages->sector_count - 1;
    return FKV_OK;
}

static enum fkv_error location_new(struct pages *pages, uint64_t *location)
{
    for (;;) {
        if (pages->fill < pages->sector_count) {
            struct page_sector *sector = &pages->sectors[pages->fill];
            for (uint32_t p = pages->fill_page; p < SECTOR_PAGES; p++) {
                if (sector->used[p >> 6] >> (p & 63) & 1)
                    continue;
                sector->used[p >> 6] |= 1ull << (p & 63);
                sector->used_count++;
                pages->used_pages++;
                pages->fill_page = p + 1;
                *location = (uint64_t)sector->sector * SECTOR_PAGES + p;
                return FKV_OK;
            }
        }
        enum fkv_error error = choose_fill(pages);
        if (error)
            return error;
    }
}

static void location_retire(struct pages *pages, uint64_t location)
{
    if (!location)
        return;
    uint32_t at = *sector_slot(pages, (uint32_t)(location / SECTOR_PAGES));
    uint32_t p = location % SECTOR_PAGES;
    assert(at && (pages->sectors[at - 1].used[p >> 6] >> (p & 63) & 1));
    pages->sectors[at - 1].retired[p >> 6] |= 1ull << (p & 63);
    if (PLANTED(REUSE_PAGE_EARLY) && p < pages->fill_page) {
        pages->sectors[at - 1].used[p >> 6] &= ~(1ull << (p & 63));
        pages->sectors[at - 1].retired[p >> 6] &= ~(1ull << (p & 63));
        pages->sectors[at - 1].used_count--;
        pages->used_pages--;
        pages->fill_page = p;
    }
}

/* ---------------------------------------------------------------- spilling */

static uint64_t *spilled_word(struct pages *pages, uint64_t location)
{
    uint32_t at = *sector_slot(pages, (uint32_t)(location / SECTOR_PAGES));
    return &pages->sectors[at - 1].spilled[location % SECTOR_PAGES >> 6];
}

static bool is_spilled(struct pages *pages, uint64_t location)
{
    return location &&
           (*spilled_word(pages, location) >> (location & 63) & 1 || PLANTED(SPILL_OVER_OLD));
}

/* A place that no tree of a checkpoint has is free at once. */
static void location_give(struct pages *pages, uint64_t location)
{
    uint32_t at = *sector_slot(pages, (uint32_t)(location / SECTOR_PAGES)) - 1;
    uint32_t p = location % SECTOR_PAGES;
    uint64_t bit = 1ull << (p & 63);
    struct page_sector *sector = &pages->sectors[at];
    sector->used[p >> 6] &= ~bit;
    sector->spilled[p >> 6] &= ~bit;
    sector->used_count--;
    pages->used_pages--;
    if (at == pages->fill && p < pages->fill_page)
        pages->fill_page = p;
}

static void move(struct pages *pages, struct page *page, uint64_t location, uint64_t checksum)
{
    if (is_spilled(pages, page->location))
        location_give(pages, page->location);
    else
        location_retire(pages, page->location);
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
    *spilled_word(pages, to->location) |= 1ull << (to->location & 63);
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
    enum fkv_error error = location_new(pages, &to->location);
    if (!error && (error = spill_to(pages, which, number, bytes, to)))
        location_give(pages, to->location);
    return error;
}

enum fkv_error pages_spill(struct pages *pages, enum space which, uint32_t number)
{
    struct page *page = pages_find(pages, which, number);
    assert(pages_can_spill(pages) && pages_is_changed(pages, page));
    const void *bytes = frame_bytes(pages, page->frame);
    struct format_reference to = {page->location, 0};
    bool again = is_spilled(pages, page->location) && !page_is_zero(bytes);
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

/* ---------------------------------------------------------------- parking */

enum fkv_error pages_allow_parking(struct pages *pages)
{
    struct frame_arena *frames = &pages->frames;
    assert(frames->count == 1);
    size_t bytes = frames->bytes.reserved_bytes / PAGE_BYTES * sizeof(struct units);
    return reservation_make(&frames->units, bytes, false) == 0 ? FKV_OK : FKV_NO_MEMORY;
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
            mark_dirty(pages, SPACE_INDEX, number[i], page);
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
    enum fkv_error error = read_from(pages, space, number, from, bytes);
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
    mark_dirty(pages, space, number, page);
    if (pages_can_spill(pages)) { /* zeros need no writing */
        move(pages, page, 0, 0);
        settle(pages, space, number);
    }
    return frame;
}

/* ---------------------------------------------------------------- checkpoint */

/* What was spilled is in the tree that will be written. */
static void keep_spilled(struct pages *pages)
{
    for (uint32_t i = 0; i < pages->sector_count; i++)
        memset(pages->sectors[i].spilled, 0, sizeof pages->sectors[i].spilled);
}

void pages_checkpoint_begin(struct pages *pages)
{
    assert(!pages->capturing && pages->staged == 0 && !pages->parked_pages);
    pages->unparking = false;
    pages->epoch++;
    keep_spilled(pages);
    pages->pending_pages = pages->dirty_pages;
    pages->dirty_pages = 0;
    pages->fresh_sectors = pages->pending_pages > pages->used_pages / 2;
    if (pages->fresh_sectors)
        pages->fill = pages->sector_count;
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
        enum fkv_error error = location_new(pages, &place);
        if (error)
            return error;
        memcpy(pages->staging + pages->staged * PAGE_BYTES, bytes, PAGE_BYTES);
        pages->targets[pages->staged++] = (struct page_target){place, seed, checksum};
    }
    location_retire(pages, *location);
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

/* Does the tree that was captured have anything in the sector? The old tree alone does not count:
 * once the new one is durable, the sector is free and may be cut off the file. */
static bool is_in_captured_tree(const struct page_sector *sector)
{
    for (uint32_t w = 0; w < SECTOR_PAGES / 64; w++)
        if (sector->used[w] & ~sector->retired[w])
            return true;
    return false;
}

uint32_t pages_last_sector(const struct pages *pages)
{
    uint32_t last = 0;
    for (uint32_t i = 0; i < pages->sector_count; i++)
        if (pages->sectors[i].sector > last && is_in_captured_tree(&pages->sectors[i]))
            last = pages->sectors[i].sector;
    return last;
}

void pages_checkpoint_done(struct pages *pages)
{
    pages->capturing = pages->fresh_sectors = false;
    pages->durable_epoch = pages->epoch;
    pages->spilled_nodes = 0;
    for (uint32_t i = pages->sector_count; i-- > 0;) {
        struct page_sector *sector = &pages->sectors[i];
        uint32_t used = 0;
        for (uint32_t w = 0; w < SECTOR_PAGES / 64; w++) {
            sector->used[w] &= ~sector->retired[w];
            sector->retired[w] = 0;
            used += (uint32_t)__builtin_popcountll(sector->used[w]);
        }
        pages->used_pages -= sector->used_count - used;
        sector->used_count = used;
        if (!used)
            page_sector_remove(pages, i);
    }
    pages->fill = pages->sector_count; /* choose again: others may be emptier now */
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
            mark_dirty(pages, space, number, pages_find(pages, space, number));
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
    pages->capturing = pages->fresh_sectors = false;
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
                    mark_dirty(pages, s, number, page);
                }
        }
    }
}

/* ---------------------------------------------------------------- opening */

/* Note that a page of the file is referred to; twice, or from outside the file, is damage. */
static enum fkv_error location_claim(struct pages *pages, uint64_t location, uint64_t sector_count)
{
    uint64_t sector = location / SECTOR_PAGES;
    uint32_t p = location % SECTOR_PAGES;
    if (sector == 0 || sector >= min_u64(sector_count, SECTORS_MAX))
        return error_set(FKV_DAMAGED, "%s: a reference leads to page %llu, outside the file",
                         pages->path, (unsigned long long)location);
    enum fkv_error error;
    if (!pages_sector_at(pages, sector) && (error = page_sector_add(pages, (uint32_t)sector)))
        return error;
    struct page_sector *in = &pages->sectors[*sector_slot(pages, (uint32_t)sector) - 1];
    if (in->used[p >> 6] >> (p & 63) & 1)
        return error_set(FKV_DAMAGED, "%s: page %llu is referred to twice", pages->path,
                         (unsigned long long)location);
    in->used[p >> 6] |= 1ull << (p & 63);
    in->used_count++;
    pages->used_pages++;
    return FKV_OK;
}

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
            if ((error = location_claim(pages, node->location, sector_count)) ||
                (error = read_page(pages, from, page_seed(which, level + 1, n), references)))
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
            if (page->location && (error = location_claim(pages, page->location, sector_count)))
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
    pages->fill = pages->sector_count;
    return FKV_OK;
}

/* ---------------------------------------------------------------- reading many pages at once */

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
    uint64_t first = (uint64_t)loading->pages->sectors[at].sector * SECTOR_PAGES;
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
            pages->file, (uint64_t)pages->sectors[at].sector * SECTOR_BYTES, SECTOR_BYTES);
}

static void *load_sectors(void *context)
{
    struct loading *loading = context;
    uint32_t count = loading->pages->sector_count;
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
            uint32_t at = *sector_slot(pages, (uint32_t)(page->location / SECTOR_PAGES)) - 1;
            loading->owner[(size_t)at * SECTOR_PAGES + page->location % SECTOR_PAGES] = number + 1;
            loading->frame[at]++;
            count++;
        }
    return count;
}

/* Give each sector its frames, out of `count` from the arena's fresh end; false if there are none.
 */
static bool give_frames(struct loading *loading, uint32_t count)
{
    struct frame_arena *frames = &loading->pages->frames;
    pthread_mutex_lock(&frames->lock);
    size_t end = (size_t)frames->count + count;
    bool given = frames_back(frames, end);
    uint32_t frame = frames->count;
    if (given)
        frames->count = (uint32_t)end;
    pthread_mutex_unlock(&frames->lock);
    for (uint32_t at = 0; given && at <= loading->pages->sector_count; at++) {
        uint32_t here = loading->frame[at];
        loading->frame[at] = frame;
        frame += here;
    }
    return given;
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
    loading.owner = memory_new((size_t)pages->sector_count * SECTOR_PAGES * sizeof *loading.owner);
    loading.frame = memory_new((pages->sector_count + 1) * sizeof *loading.frame);
    if (loading.owner && loading.frame && (count = find_owners(&loading, wanted)) > 0 &&
        give_frames(&loading, count))
        load_together(&loading, count, helpers);
    memory_free(loading.owner);
    memory_free(loading.frame);
}
