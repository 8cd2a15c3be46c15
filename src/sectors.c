#include "sectors.h"

#include <assert.h>
#include <stdlib.h>

#include "clock.h"
#include "header.h"
#include "planted.h"
#include "undo.h"

enum {
    READY_SECTORS_MIN = 8,
    READY_SECTORS_MAX = 64,
    WINDOW_SECTORS = 1024,
    WINDOWS_MAX = SECTORS_MAX / WINDOW_SECTORS
};

/* ---------------------------------------------------------------- bits */

static uint64_t *bit_word(const struct reservation *bits, uint32_t at)
{
    return (uint64_t *)bits->base + (at >> 6);
}

static bool bit_get(const struct reservation *bits, uint32_t at)
{
    return *bit_word(bits, at) >> (at & 63) & 1;
}

static void bit_set(struct reservation *bits, uint32_t at)
{
    *bit_word(bits, at) |= 1ull << (at & 63);
}

static void bit_clear(struct reservation *bits, uint32_t at)
{
    *bit_word(bits, at) &= ~(1ull << (at & 63));
}

static bool is_queued(const struct sectors *sectors, uint32_t sector)
{
    return __atomic_load_n(bit_word(&sectors->queued, sector), __ATOMIC_ACQUIRE) >> (sector & 63) &
           1;
}

static void set_queued(struct sectors *sectors, uint32_t sector, bool queued)
{
    uint64_t *word = bit_word(&sectors->queued, sector);
    uint64_t bit = 1ull << (sector & 63);
    __atomic_store_n(word, queued ? *word | bit : *word & ~bit, __ATOMIC_RELEASE);
}

/* ---------------------------------------------------------------- making and growing */

enum fkv_error sectors_make(struct sectors *sectors, struct os_file *file, const struct os_ops *ops,
                            const char *path, struct pages *pages)
{
    *sectors = (struct sectors){.file = file,
                                .ops = ops,
                                .path = path,
                                .pages = pages,
                                .count = 1,
                                .file_count = 1,
                                .free_hint = 1,
                                .hole_hint = 1,
                                .next_sequence = 1};
    size_t bits = SECTORS_MAX / 8;
    if (reservation_make(&sectors->views, (size_t)SECTORS_MAX * sizeof(struct sector_view),
                         false) != 0 ||
        reservation_make(&sectors->states, (size_t)SECTORS_MAX * sizeof(struct sector), false) !=
            0 ||
        reservation_make(&sectors->free_backed, bits, false) != 0 ||
        reservation_make(&sectors->free_holes, bits, false) != 0 ||
        reservation_make(&sectors->queued, bits, false) != 0)
        return FKV_NO_MEMORY;
    pthread_mutex_init(&sectors->size_lock, NULL);
    pthread_cond_init(&sectors->allocated, NULL);
    pthread_mutex_init(&sectors->space_lock, NULL);
    sectors->windows = memory_new(WINDOWS_MAX * sizeof *sectors->windows);
    return sectors->windows ? FKV_OK : FKV_NO_MEMORY;
}

void sectors_drop(struct sectors *sectors)
{
    /* They were mapped from the first on. */
    for (uint32_t w = 0; sectors->windows && w < WINDOWS_MAX && sectors->windows[w]; w++)
        sectors->ops->unmap(sectors->file, sectors->windows[w], WINDOW_SECTORS * SECTOR_BYTES);
    memory_free(sectors->windows);
    reservation_drop(&sectors->views);
    reservation_drop(&sectors->states);
    reservation_drop(&sectors->free_backed);
    reservation_drop(&sectors->free_holes);
    reservation_drop(&sectors->queued);
}

uint64_t sectors_memory_bytes(const struct sectors *sectors)
{
    return WINDOWS_MAX * sizeof *sectors->windows + sectors->views.backed_bytes +
           sectors->states.backed_bytes + sectors->free_backed.backed_bytes +
           sectors->free_holes.backed_bytes + sectors->queued.backed_bytes;
}

/* Memory for the bookkeeping of so many sectors. */
static enum fkv_error back_arrays(struct sectors *sectors, uint64_t count)
{
    if (count > SECTORS_MAX)
        return error_set(FKV_FULL, "%s: a store holds at most %u sectors", sectors->path,
                         SECTORS_MAX);
    if (reservation_back(&sectors->views, count * sizeof(struct sector_view)) != 0 ||
        reservation_back(&sectors->states, count * sizeof(struct sector)) != 0 ||
        reservation_back(&sectors->free_backed, (count + 63) / 64 * 8) != 0 ||
        reservation_back(&sectors->free_holes, (count + 63) / 64 * 8) != 0 ||
        reservation_back(&sectors->queued, (count + 63) / 64 * 8) != 0)
        return FKV_NO_MEMORY;
    enum fkv_error error =
        pages_extend(sectors->pages, SPACE_SECTORS, (uint32_t)divide_up(count, SECTORS_PER_PAGE));
    return error ? error : pages_extend(sectors->pages, SPACE_MAPS, (uint32_t)count * 2);
}

/* Map what holds these sectors. Readers use views; a window never moves. */
static enum fkv_error map_windows(struct sectors *sectors, uint64_t count)
{
    for (uint32_t w = 0; !sectors->unmapped && w < divide_up(count, WINDOW_SECTORS); w++) {
        if (sectors->windows[w])
            continue;
        void *address;
        int status = sectors->ops->map(sectors->file, (uint64_t)w * WINDOW_SECTORS * SECTOR_BYTES,
                                       WINDOW_SECTORS * SECTOR_BYTES, false, &address);
        if (status)
            return error_os(status, "map", sectors->path);
        sectors->windows[w] = address;
    }
    return FKV_OK;
}

static void make_hole(struct sectors *sectors, uint32_t sector)
{
    bit_set(&sectors->free_holes, sector);
    sectors->free_hole_count++;
}

static void make_free(struct sectors *sectors, uint32_t sector)
{
    assert(sector && !bit_get(&sectors->free_backed, sector));
    *sector_state(sectors, sector) = (struct sector){.type = SECTOR_FREE};
    /* What leads to it is damaged, and nobody is to look: the file may come to end before. */
    struct sector_view *view = sector_view(sectors, sector);
    __atomic_store_n(&view->base, NULL, __ATOMIC_RELAXED);
    __atomic_store_n(&view->sequence, 0, __ATOMIC_RELAXED);
    bit_set(&sectors->free_backed, sector);
    sectors->free_backed_count++;
    if (sector < sectors->free_hint)
        sectors->free_hint = sector;
}

/* Lengthen the file. size_lock is held. */
static enum fkv_error extend_file(struct sectors *sectors, uint32_t more)
{
    uint64_t from = atomic_load(&sectors->file_count);
    bool has_space = sectors->read_only || from + more <= sectors->allocated_count;
    int status = has_space ? 0
                           : sectors->ops->allocate(sectors->file, from * SECTOR_BYTES,
                                                    (uint64_t)more * SECTOR_BYTES);
    if (status)
        return error_os(status, "grow", sectors->path);
    atomic_fetch_add(&sectors->file_count, more);
    return FKV_OK;
}

/* Take note of what the file has grown by. */
static enum fkv_error adopt(struct sectors *sectors)
{
    uint32_t file_count = atomic_load(&sectors->file_count);
    enum fkv_error error;
    if (file_count == sectors->count)
        return FKV_OK;
    if ((error = back_arrays(sectors, file_count)) || (error = map_windows(sectors, file_count)))
        return error;
    while (sectors->count < file_count)
        make_free(sectors, sectors->count++);
    return FKV_OK;
}

enum fkv_error sectors_grow(struct sectors *sectors, uint32_t more)
{
    uint32_t target = sectors->count + more;
    enum fkv_error error = back_arrays(sectors, target);
    if (!error)
        error = map_windows(sectors, target);
    if (error)
        return error;
    pthread_mutex_lock(&sectors->size_lock);
    /* Where the file system cannot allocate, the C library writes zeros into what the file does not
     * have yet: nothing of that may be in use before it is done. */
    while (sectors->allocating && target > sectors->allocating)
        pthread_cond_wait(&sectors->allocated, &sectors->size_lock);
    uint32_t has = atomic_load(&sectors->file_count);
    if (has < target)
        error = extend_file(sectors, target - has);
    pthread_mutex_unlock(&sectors->size_lock);
    return error ? error : adopt(sectors);
}

/* Free sectors that the next checkpoint will want, once so many more pages have changed, beside
 * room in those that hold pages. */
static uint32_t wanted_for_pages(const struct sectors *sectors, uint64_t more)
{
    uint64_t needed = pages_places_needed(sectors->pages, more);
    uint64_t places = pages_places_free(sectors->pages);
    return needed > places ? (uint32_t)divide_up(needed - places, SECTOR_PAGES) : 0;
}

static uint32_t ready(const struct sectors *sectors)
{
    return sectors->free_backed_count + (atomic_load(&sectors->file_count) - sectors->count);
}

uint32_t sectors_run_low(const struct sectors *sectors)
{
    uint32_t free = ready(sectors);
    uint32_t least =
        wanted_for_pages(sectors, 0) + sectors_for_deletes(sectors) + READY_SECTORS_MIN;
    uint32_t want = least + (uint32_t)min_u64(sectors->count / 16, READY_SECTORS_MAX);
    /* What is in quarantine will be free soon: a file that grew instead would have it for ever. */
    uint32_t soon = sectors->freed.count + sectors->uncertain.count + sectors->awaiting_readers;
    free += (uint32_t)min_u64(soon, want - least);
    return free < want ? want - free : 0;
}

struct sectors_room sectors_room(const struct sectors *sectors)
{
    uint32_t allocated = atomic_load(&sectors->allocated_count);
    uint32_t count = atomic_load(&sectors->file_count);
    uint32_t free = ready(sectors) + (allocated > count ? allocated - count : 0);
    uint32_t kept = wanted_for_pages(sectors, 0) + sectors_for_deletes(sectors);
    uint32_t usual = 2 * READY_SECTORS_MIN + (uint32_t)min_u64(count / 32, READY_SECTORS_MAX);
    return (struct sectors_room){.left = free > kept ? free - kept : 0, .usual = usual};
}

/*
 * Space for more sectors, in large pieces and before it is needed: an allocation may have to wait
 * for the file system to read where there is some, behind all that the disk has to do, 0.1 s and
 * more. So size_lock is not held meanwhile, and the writer can take of what there is.
 */
static void allocate_ahead(struct sectors *sectors)
{
    pthread_mutex_lock(&sectors->space_lock);
    pthread_mutex_lock(&sectors->size_lock);
    uint32_t count = atomic_load(&sectors->file_count);
    uint32_t from = (uint32_t)max_u64(sectors->allocated_count, count);
    sectors->allocating = from;
    pthread_mutex_unlock(&sectors->size_lock);
    uint32_t step = (uint32_t)min_u64(max_u64(count / 16, 2), 64) & ~1u;
    step += from % 2;
    if (from - count >= max_u64(step / 2, 2))
        step = 0;
    for (; step; step = step > 2 ? 2 : 0)
        if (from + step <= SECTORS_MAX &&
            sectors->ops->allocate(sectors->file, (uint64_t)from * SECTOR_BYTES,
                                   (uint64_t)step * SECTOR_BYTES) == 0)
            break;
    pthread_mutex_lock(&sectors->size_lock);
    if (step)
        sectors->allocated_count = from + step;
    sectors->allocating = 0;
    pthread_cond_broadcast(&sectors->allocated);
    pthread_mutex_unlock(&sectors->size_lock);
    pthread_mutex_unlock(&sectors->space_lock);
}

/* Take up to so many holes that lie in a row, the lowest there are. Returns how many. */
static uint32_t take_holes(struct sectors *sectors, uint32_t most, uint32_t *first)
{
    uint32_t s = 1, count = 0;
    if (!sectors->free_hole_count)
        return 0;
    while (!*bit_word(&sectors->free_holes, s))
        s = (s / 64 + 1) * 64;
    while (!bit_get(&sectors->free_holes, s))
        s++;
    *first = s;
    for (; s < sectors->count && count < most && bit_get(&sectors->free_holes, s); s++, count++)
        bit_clear(&sectors->free_holes, s);
    sectors->free_hole_count -= count;
    return count;
}

/* Give holes their space again. Returns how many. */
static uint32_t fill_ahead(struct sectors *sectors, uint32_t most, pthread_mutex_t *writer)
{
    uint32_t first = 0;
    pthread_mutex_lock(writer);
    uint32_t count = take_holes(sectors, most, &first);
    sectors->changing += count;
    pthread_mutex_unlock(writer);
    if (!count)
        return 0;
    int status = sectors->ops->allocate(sectors->file, (uint64_t)first * SECTOR_BYTES,
                                        (uint64_t)count * SECTOR_BYTES);
    pthread_mutex_lock(writer);
    sectors->changing -= count;
    for (uint32_t s = first; s < first + count; s++) {
        if (status)
            make_hole(sectors, s);
        else
            make_free(sectors, s);
    }
    pthread_mutex_unlock(writer);
    return status ? 0 : count;
}

/* Nobody writes to them, so they take no memory. */
static uint8_t zeros[2 * SECTOR_BYTES];

void sectors_extend_ahead(struct sectors *sectors, uint32_t more, pthread_mutex_t *writer)
{
    uint32_t done = 0;
    for (uint32_t filled; done < more && (filled = fill_ahead(sectors, more - done, writer));)
        done += filled;
    while (done < more && !sectors->read_only) {
        allocate_ahead(sectors);
        pthread_mutex_lock(&sectors->size_lock);
        uint32_t from = atomic_load(&sectors->file_count);
        uint32_t pair = 2 - from % 2;
        bool extended = from + pair <= sectors->allocated_count;
        if (extended) {
            sectors->ops->write(sectors->file, zeros, pair * SECTOR_BYTES,
                                (uint64_t)from * SECTOR_BYTES);
            atomic_store(&sectors->file_count, from + pair);
        }
        pthread_mutex_unlock(&sectors->size_lock);
        if (!extended)
            return; /* whoever needs it will be told */
        done += pair;
    }
}

/* The file grows by 1/64 of itself at a time; by less where the disk is nearly full. */
static enum fkv_error grow_some(struct sectors *sectors, uint32_t need)
{
    uint32_t step = (uint32_t)min_u64(max_u64(sectors->count / 64, 1), 64);
    if (step > need && sectors_grow(sectors, step) == FKV_OK)
        return FKV_OK;
    return sectors_grow(sectors, need);
}

/* Give the file system's space to a hole again. */
static enum fkv_error fill(struct sectors *sectors, uint32_t sector)
{
    int status =
        sectors->ops->allocate(sectors->file, (uint64_t)sector * SECTOR_BYTES, SECTOR_BYTES);
    if (status)
        return error_os(status, "allocate space in", sectors->path);
    bit_clear(&sectors->free_holes, sector);
    sectors->free_hole_count--;
    make_free(sectors, sector);
    return FKV_OK;
}

/* The first hole from this sector on; `count` if there is none. */
static uint32_t next_hole(const struct sectors *sectors, uint32_t from)
{
    while (from < sectors->count && !bit_get(&sectors->free_holes, from))
        from =
            *bit_word(&sectors->free_holes, from) >> (from & 63) ? from + 1 : (from / 64 + 1) * 64;
    return (uint32_t)min_u64(from, sectors->count);
}

/*
 * What an opening finds free may be a hole or not, and on a full disk those that are not can be had
 * still. So there each is asked for, once: those below hole_hint were, and had no space. After that
 * there is room when the file system has some, and the lowest shows that as well as any.
 */
static enum fkv_error fill_hole(struct sectors *sectors)
{
    uint32_t sector;
    while ((sector = next_hole(sectors, sectors->hole_hint)) < sectors->count) {
        enum fkv_error error = fill(sectors, sector);
        if (error != FKV_FULL)
            return error;
        sectors->hole_hint = sector + 1;
    }
    sector = next_hole(sectors, 1);
    return sector < sectors->count ? fill(sectors, sector)
                                   : error_set(FKV_FULL, "%s: no free sector", sectors->path);
}

enum fkv_error sectors_reserve(struct sectors *sectors, uint32_t take, uint32_t leave,
                               uint64_t changes)
{
    return sectors_reserve_free(sectors, take + leave + wanted_for_pages(sectors, changes));
}

/*
 * Some file systems take milliseconds to find out that they have no space: tmpfs takes what there
 * is page by page, and gives it back. On a full disk each commit would pay for that, twice. So who
 * was refused asks again only after some times as long as that took, unless it has given space
 * back.
 */
#ifdef FKV_TESTING
uint32_t sectors_patience = 0;
#else
static const uint32_t sectors_patience = 8;
#endif
static const uint64_t patience_most_ns = 20000000;

static void note_refusal(struct sectors *sectors, uint32_t missing, uint64_t began)
{
    uint64_t now = clock_ns();
    sectors->refused = missing;
    sectors->refused_until = now + min_u64((now - began) * sectors_patience, patience_most_ns);
}

static bool was_refused(const struct sectors *sectors, uint32_t missing)
{
    return sectors->refused && missing >= sectors->refused && clock_ns() < sectors->refused_until;
}

enum fkv_error sectors_reserve_free(struct sectors *sectors, uint32_t want)
{
    for (;;) {
        enum fkv_error error = adopt(sectors);
        if (error)
            return error;
        if (sectors->free_backed_count >= want)
            return FKV_OK;
        uint32_t missing = want - sectors->free_backed_count;
        if (was_refused(sectors, missing))
            return error_set(FKV_FULL, "%s: there was no space on the disk a moment ago",
                             sectors->path);
        uint64_t began = clock_ns();
        error = sectors->free_hole_count ? fill_hole(sectors) : grow_some(sectors, missing);
        if (error == FKV_FULL)
            note_refusal(sectors, missing, began);
        if (error)
            return error;
    }
}

/* ---------------------------------------------------------------- taking and giving */

static void unfree(struct sectors *sectors, uint32_t sector)
{
    bit_clear(&sectors->free_backed, sector);
    sectors->free_backed_count--;
}

enum fkv_error sectors_take(struct sectors *sectors, uint32_t *sector)
{
    enum fkv_error error;
    if (!sectors->free_backed_count && (error = adopt(sectors)))
        return error;
    if (!sectors->free_backed_count) {
        error = sectors->free_hole_count ? fill_hole(sectors) : grow_some(sectors, 1);
        if (error)
            return error;
    }
    uint32_t w = sectors->free_hint / 64;
    while (!*bit_word(&sectors->free_backed, w * 64))
        w++;
    *sector = w * 64 + (uint32_t)__builtin_ctzll(*bit_word(&sectors->free_backed, w * 64));
    sectors->free_hint = *sector;
    unfree(sectors, *sector);
    sector_state(sectors, *sector)->type = SECTOR_PAGES_TYPE; /* until the taker says otherwise */
    return FKV_OK;
}

enum fkv_error sectors_take_after(struct sectors *sectors, uint32_t last, uint32_t *sector)
{
    uint32_t s = last + 1;
    while (s < sectors->count && !bit_get(&sectors->free_backed, s) &&
           !bit_get(&sectors->free_holes, s))
        s++;
    *sector = s;
    return sectors_take_at(sectors, s);
}

enum fkv_error sectors_take_at(struct sectors *sectors, uint32_t sector)
{
    enum fkv_error error;
    if (sector == 0 || sector >= SECTORS_MAX)
        return error_set(FKV_DAMAGED, "%s: the log names sector %u", sectors->path, sector);
    if (sector >= sectors->count && (error = sectors_grow(sectors, sector + 1 - sectors->count)))
        return error;
    if (bit_get(&sectors->free_holes, sector) && (error = fill(sectors, sector)))
        return error;
    if (!bit_get(&sectors->free_backed, sector))
        return error_set(FKV_DAMAGED, "%s: the log uses sector %u, which is not free",
                         sectors->path, sector);
    unfree(sectors, sector);
    sector_state(sectors, sector)->type = SECTOR_PAGES_TYPE;
    return FKV_OK;
}

void sectors_give(struct sectors *sectors, uint32_t sector)
{
    make_free(sectors, sector);
}

const uint8_t *sectors_mapped(const struct sectors *sectors, uint32_t sector)
{
    uint8_t *window = sectors->windows[sector / WINDOW_SECTORS];
    return window ? window + (size_t)(sector % WINDOW_SECTORS) * SECTOR_BYTES : NULL;
}

const uint8_t *sectors_address(const struct sectors *sectors, uint32_t sector)
{
    return atomic_load_explicit(&sectors->by_call, memory_order_relaxed)
               ? NULL
               : sectors_mapped(sectors, sector);
}

/* The flusher may set the address of a sector meanwhile, and then it is the other way: no harm. */
void sectors_read_by_call(struct sectors *sectors, bool by_call)
{
    atomic_store(&sectors->by_call, by_call);
    for (uint32_t s = 1; s < sectors->count; s++) {
        const struct sector *state = sector_state(sectors, s);
        if (state->type != SECTOR_VALUES && state->type != SECTOR_LARGE)
            continue;
        const uint8_t *mapped = sectors_mapped(sectors, s);
        const uint8_t *from = by_call ? mapped : NULL;
        __atomic_compare_exchange_n(&sector_view(sectors, s)->base, &from, by_call ? NULL : mapped,
                                    false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
    }
}

/* ---------------------------------------------------------------- table and maps */

static struct format_sector *table_entry(struct sectors *sectors, uint32_t sector)
{
    struct format_sector *entries =
        pages_write(sectors->pages, SPACE_SECTORS, sector / SECTORS_PER_PAGE);
    return &entries[sector % SECTORS_PER_PAGE];
}

/* ---------------------------------------------------------------- snapshots */

void sectors_hold(struct sectors *sectors, uint32_t sector)
{
    sector_state(sectors, sector)->holds++;
}

void sectors_unhold(struct sectors *sectors, uint32_t sector)
{
    struct sector *state = sector_state(sectors, sector);
    if (PLANTED(REUSE_SECTOR_EARLY))
        return;
    assert(state->holds);
    if (--state->holds || !state->held)
        return;
    sectors->held_count--;
    make_free(sectors, sector);
}

static void free_unless_held(struct sectors *sectors, uint32_t sector)
{
    struct sector *state = sector_state(sectors, sector);
    if (!state->holds) {
        make_free(sectors, sector);
        return;
    }
    state->held = true;
    sectors->held_count++;
}

/* Was it in the queue at the moment of the newest snapshot? */
static bool is_older(const struct sectors *sectors, uint32_t sector)
{
    return undo_is_wanted(sectors->undo) &&
           undo_sees(sectors->undo->newest_open, sector_view(sectors, sector)->sequence);
}

/* Before a record dies that the newest snapshot may see: leave the sector's map for it. */
static enum fkv_error leave_map(struct sectors *sectors, uint32_t sector)
{
    struct undo *undo = sectors->undo;
    uint32_t frame[2];
    if (sector_state(sectors, sector)->type != SECTOR_VALUES || !is_older(sectors, sector) ||
        !undo_wants_map(undo, sector))
        return FKV_OK;
    enum fkv_error error = pages_load(sectors->pages, SPACE_MAPS, sector * 2, &frame[0]);
    if (error || (error = pages_load(sectors->pages, SPACE_MAPS, sector * 2 + 1, &frame[1])))
        return error;
    struct undo_map *map = memory_new(sizeof *map);
    if (!map)
        return FKV_NO_MEMORY;
    for (int half = 0; half < 2; half++)
        memcpy((uint8_t *)map->bits + half * PAGE_BYTES, frame_bytes(sectors->pages, frame[half]),
               PAGE_BYTES);
    if ((error = undo_map(undo, map, sector)))
        memory_free(map);
    return error;
}

static uint64_t *map_word(struct sectors *sectors, uint32_t sector, uint32_t word)
{
    enum { WORDS = MAP_PAGE_CELLS / 64 };
    return (uint64_t *)pages_read(sectors->pages, SPACE_MAPS, sector * 2 + word / WORDS) +
           word % WORDS;
}

bool sectors_is_seen(const struct sectors *sectors, uint32_t sector, const struct undo_layer *layer)
{
    return undo_sees(layer,
                     __atomic_load_n(&sector_view(sectors, sector)->sequence, __ATOMIC_RELAXED));
}

/* The order matters: a bit that is set after the snapshot is seen only if the map that was left
 * before it is seen too. */
enum fkv_error sectors_map_at(struct sectors *sectors, const struct undo_layer *layer,
                              uint32_t sector, uint64_t *bits, bool *queued)
{
    enum { WORDS = SECTOR_CELLS / 64 };
    enum fkv_error error = FKV_OK;
    const struct undo_map *left = undo_find_map(layer, sector);
    *queued = false;
    if (!left) {
        uint32_t frame;
        pthread_mutex_lock(&sectors->pages->load_lock);
        *queued = is_queued(sectors, sector) && sectors_is_seen(sectors, sector, layer);
        for (uint32_t half = 0; !error && *queued && half < 2; half++)
            error = pages_load_locked(sectors->pages, SPACE_MAPS, sector * 2 + half, &frame);
        for (uint32_t w = 0; !error && *queued && w < WORDS; w++)
            bits[w] = __atomic_load_n(map_word(sectors, sector, w), __ATOMIC_ACQUIRE);
        pthread_mutex_unlock(&sectors->pages->load_lock);
        left = undo_find_map(layer, sector);
    }
    if (left) {
        *queued = sectors_is_seen(sectors, sector, layer);
        memcpy(bits, left->bits, sizeof left->bits);
        return FKV_OK;
    }
    return error;
}

enum fkv_error sectors_prepare_large(struct sectors *sectors, uint32_t sector)
{
    uint32_t frame;
    return pages_load(sectors->pages, SPACE_SECTORS, sector / SECTORS_PER_PAGE, &frame);
}

enum fkv_error sectors_prepare(struct sectors *sectors, uint32_t sector)
{
    uint32_t frame;
    enum fkv_error error = sectors_prepare_large(sectors, sector);
    for (uint32_t half = 0; !error && half < 2; half++)
        if (!page_frame(pages_find(sectors->pages, SPACE_MAPS, sector * 2 + half)))
            error = pages_load(sectors->pages, SPACE_MAPS, sector * 2 + half, &frame);
    if (undo_is_wanted(sectors->undo) && !error)
        error = leave_map(sectors, sector);
    return error;
}

enum fkv_error sectors_prepare_kill(struct sectors *sectors, uint64_t address)
{
    uint32_t sector = (uint32_t)(address / SECTOR_CELLS);
    uint32_t page = (uint32_t)(address / MAP_PAGE_CELLS);
    if (__builtin_expect(
            sector >= sectors->count || sector_state(sectors, sector)->type != SECTOR_VALUES, 0))
        return error_set(FKV_DAMAGED, "%s: the index leads to sector %u, where no records are",
                         sectors->path, sector);
    uint32_t frame = page_frame(pages_find(sectors->pages, SPACE_MAPS, page));
    if (__builtin_expect(
            frame && pages_find(sectors->pages, SPACE_SECTORS, sector / SECTORS_PER_PAGE)->frame,
            1)) {
        const uint64_t *map = frame_bytes(sectors->pages, frame);
        __builtin_prefetch(map + address % MAP_PAGE_CELLS / 64, 1);
        return undo_is_wanted(sectors->undo) ? leave_map(sectors, sector) : FKV_OK;
    }
    enum fkv_error error = pages_load(sectors->pages, SPACE_MAPS, page, &frame);
    if (!error)
        error = pages_load(sectors->pages, SPACE_SECTORS, sector / SECTORS_PER_PAGE, &frame);
    if (undo_is_wanted(sectors->undo) && !error)
        error = leave_map(sectors, sector);
    return error;
}

void sectors_prefetch_kill(const struct sectors *sectors, uint64_t address, bool map)
{
    uint32_t sector = (uint32_t)(address / SECTOR_CELLS);
    if (sector >= sectors->count)
        return;
    const struct page *page =
        pages_find(sectors->pages, SPACE_MAPS, (uint32_t)(address / MAP_PAGE_CELLS));
    if (!map) {
        __builtin_prefetch(page, 1);
        __builtin_prefetch(sector_state(sectors, sector), 1);
    } else {
        uint32_t frame = page_frame(page);
        const uint64_t *bits = frame_bytes(sectors->pages, frame);
        if (frame)
            __builtin_prefetch(bits + address % MAP_PAGE_CELLS / 64, 1);
    }
}

/* With the lock under which scans copy maps. */
static void drop_maps(struct sectors *sectors, uint32_t sector)
{
    pthread_mutex_lock(&sectors->pages->load_lock);
    set_queued(sectors, sector, false);
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t frame = pages_discard(sectors->pages, SPACE_MAPS, sector * 2 + half);
        if (frame)
            frame_free(sectors->pages, frame);
    }
    pthread_mutex_unlock(&sectors->pages->load_lock);
}

void sectors_open_values(struct sectors *sectors, uint32_t sector, uint64_t sequence,
                         const uint8_t *base)
{
    struct sector *state = sector_state(sectors, sector);
    *state = (struct sector){.type = SECTOR_VALUES, .previous = sectors->back};
    if (sectors->back)
        sector_state(sectors, sectors->back)->next = sector;
    else
        sectors->front = sector;
    sectors->back = sector;
    sectors->values_count++;
    if (sequence >= sectors->next_sequence)
        sectors->next_sequence = sequence + 1;
    *table_entry(sectors, sector) =
        (struct format_sector){.sequence = sequence, .type = SECTOR_VALUES};
    struct sector_view *view = sector_view(sectors, sector);
    __atomic_store_n(&view->sequence, sequence, __ATOMIC_RELAXED);
    __atomic_store_n(&view->base, base, __ATOMIC_RELEASE);
    set_queued(sectors, sector, true);
}

void sectors_open_large(struct sectors *sectors, uint32_t sector, uint64_t sequence)
{
    *sector_state(sectors, sector) = (struct sector){.type = SECTOR_LARGE, .sealed = 1};
    sectors->large_count++;
    if (sequence >= sectors->next_sequence)
        sectors->next_sequence = sequence + 1;
    *table_entry(sectors, sector) =
        (struct format_sector){.sequence = sequence, .type = SECTOR_LARGE};
    struct sector_view *view = sector_view(sectors, sector);
    __atomic_store_n(&view->sequence, sequence, __ATOMIC_RELAXED);
    __atomic_store_n(&view->base, sectors_address(sectors, sector), __ATOMIC_RELEASE);
}

static void quarantine(struct sectors *sectors, uint32_t sector)
{
    *table_entry(sectors, sector) = (struct format_sector){.type = SECTOR_FREE};
    if (PLANTED(REUSE_SECTOR_EARLY)) {
        make_free(sectors, sector);
        return;
    }
    struct sector *state = sector_state(sectors, sector);
    *state = (struct sector){.next = sectors->freed.head, .holds = state->holds};
    sectors->freed.head = sector;
    sectors->freed.count++;
}

void sectors_free_large(struct sectors *sectors, uint32_t sector)
{
    if (__builtin_expect(sector_state(sectors, sector)->type != SECTOR_LARGE, 0)) {
        sectors->killed_twice++;
        return;
    }
    sectors->large_count--;
    quarantine(sectors, sector);
}

bool sectors_all_dead(const struct sectors *sectors, uint32_t sector, uint32_t cell)
{
    const struct sector *state = sector_state(sectors, sector);
    return state->dead_cells + state->pad_cells >= cell - SECTOR_HEADER_CELLS;
}

static void free_if_dead(struct sectors *sectors, uint32_t sector)
{
    struct sector *state = sector_state(sectors, sector);
    if (!state->sealed || !sectors_all_dead(sectors, sector, SECTOR_CELLS))
        return;
    if (state->previous)
        sector_state(sectors, state->previous)->next = state->next;
    else
        sectors->front = state->next;
    if (state->next)
        sector_state(sectors, state->next)->previous = state->previous;
    else
        sectors->back = state->previous;
    sectors->values_count--;
    sectors->dead_cells -= state->dead_cells;
    sectors->pad_cells -= state->pad_cells;
    drop_maps(sectors, sector);
    quarantine(sectors, sector);
}

void sectors_seal(struct sectors *sectors, uint32_t sector)
{
    sector_state(sectors, sector)->sealed = 1;
    free_if_dead(sectors, sector);
}

void sectors_count_pad(struct sectors *sectors, uint32_t sector, uint32_t cell, uint32_t cells)
{
    struct sector *state = sector_state(sectors, sector);
    if (pad_is_gap(cell, cells)) {
        state->dead_cells += cells;
        sectors->dead_cells += cells;
        sectors->gap_cells += cells;
        table_entry(sectors, sector)->dead_cells = state->dead_cells;
    } else {
        state->pad_cells += (uint16_t)cells;
        sectors->pad_cells += cells;
        table_entry(sectors, sector)->pad_cells = state->pad_cells;
    }
}

void sectors_kill(struct sectors *sectors, uint64_t address, uint32_t cells)
{
    uint32_t sector = (uint32_t)(address / SECTOR_CELLS);
    uint32_t cell = address % MAP_PAGE_CELLS;
    if (__builtin_expect(sector_state(sectors, sector)->type != SECTOR_VALUES, 0)) {
        sectors->killed_twice++; /* the first time was the end of its sector */
        return;
    }
    uint64_t *map = pages_write(sectors->pages, SPACE_MAPS, (uint32_t)(address / MAP_PAGE_CELLS));
    if (__builtin_expect(map[cell >> 6] >> (cell & 63) & 1, 0)) {
        sectors->killed_twice++;
        return;
    }
    __atomic_store_n(&map[cell >> 6], map[cell >> 6] | 1ull << (cell & 63), __ATOMIC_RELEASE);

    struct sector *state = sector_state(sectors, sector);
    state->dead_cells += cells;
    sectors->live_cells -= cells;
    sectors->dead_cells += cells;
    table_entry(sectors, sector)->dead_cells = state->dead_cells;
    free_if_dead(sectors, sector);
}

bool sectors_is_dead(const struct sectors *sectors, uint64_t address)
{
    const uint64_t *map =
        pages_read(sectors->pages, SPACE_MAPS, (uint32_t)(address / MAP_PAGE_CELLS));
    uint32_t cell = address % MAP_PAGE_CELLS;
    return map[cell >> 6] >> (cell & 63) & 1;
}

/* ---------------------------------------------------------------- sector headers */

enum fkv_error sector_header_check(const struct sectors *sectors, const uint8_t *bytes,
                                   uint32_t sector, uint64_t sequence)
{
    struct format_sector_header header;
    if (!sector_header_read(bytes, &header) ||
        memcmp(header.store_id, sectors->store_id, sizeof header.store_id) != 0 ||
        header.sector != sector || header.sequence != sequence)
        return error_set(FKV_DAMAGED, "%s: the header of values sector %u is damaged",
                         sectors->path, sector);
    return FKV_OK;
}

/* ---------------------------------------------------------------- quarantine */

void sectors_checkpoint_begin(struct sectors *sectors)
{
    assert(!sectors->uncertain.count);
    sectors->uncertain = sectors->freed;
    sectors->freed = (struct sector_list){0};
}

struct sector_list sectors_checkpoint_done(struct sectors *sectors)
{
    struct sector_list list = sectors->uncertain;
    sectors->uncertain = (struct sector_list){0};
    sectors->awaiting_readers += list.count;
    return list;
}

void sectors_checkpoint_abandon(struct sectors *sectors)
{
    uint32_t sector = sectors->uncertain.head;
    while (sector) {
        struct sector *state = sector_state(sectors, sector);
        uint32_t next = state->next;
        state->next = sectors->freed.head;
        sectors->freed.head = sector;
        sectors->freed.count++;
        sector = next;
    }
    sectors->uncertain = (struct sector_list){0};
}

void sectors_reclaim(struct sectors *sectors, struct sector_list list)
{
    sectors->awaiting_readers -= list.count;
    for (uint32_t sector = list.head, next; sector; sector = next) {
        next = sector_state(sectors, sector)->next;
        free_unless_held(sectors, sector);
    }
}

uint32_t sectors_in_use_end(const struct sectors *sectors)
{
    uint32_t end = sectors->count;
    while (end > 1 && sector_state(sectors, end - 1)->type != SECTOR_VALUES &&
           sector_state(sectors, end - 1)->type != SECTOR_LARGE)
        end--;
    return end;
}

/* Cut free sectors off the end of the file. */
static void trim_end(struct sectors *sectors, uint32_t keep, pthread_mutex_t *writer)
{
    uint32_t count = sectors->count;
    while (count > 1) {
        if (bit_get(&sectors->free_holes, count - 1)) {
            bit_clear(&sectors->free_holes, count - 1);
            sectors->free_hole_count--;
        } else if (sectors->free_backed_count > keep && bit_get(&sectors->free_backed, count - 1)) {
            unfree(sectors, count - 1);
        } else {
            break;
        }
        count--;
    }
    if (count == sectors->count && sectors->allocated_count <= count)
        return;
    sectors->count = count;
    pthread_mutex_lock(&sectors->size_lock);
    atomic_store(&sectors->file_count, count);
    sectors->allocated_count = count;
    pthread_mutex_unlock(writer);
    sectors->ops->truncate(sectors->file, (uint64_t)count * SECTOR_BYTES);
    pthread_mutex_unlock(&sectors->size_lock);
    pthread_mutex_lock(writer);
    sectors->refused = 0;
}

/* Make one hole of free sectors; the writer lock is released meanwhile. */
static bool punch(struct sectors *sectors, uint32_t first, uint32_t count, pthread_mutex_t *writer)
{
    for (uint32_t s = first; s < first + count; s++)
        unfree(sectors, s);
    sectors->changing += count;
    pthread_mutex_unlock(writer);
    int status = sectors->ops->punch(sectors->file, (uint64_t)first * SECTOR_BYTES,
                                     (uint64_t)count * SECTOR_BYTES);
    pthread_mutex_lock(writer);
    sectors->changing -= count;
    for (uint32_t s = first; s < first + count; s++) {
        if (status) {
            make_free(sectors, s);
        } else {
            make_hole(sectors, s);
        }
    }
    sectors->refused = 0;
    return status == 0;
}

/* Make holes of runs of free sectors, from the end of the file; if `pairs`, only of whole pairs:
 * half a pair would cost the other half its huge page. */
static void trim_holes(struct sectors *sectors, uint32_t keep, bool pairs, pthread_mutex_t *writer)
{
    enum { RUN_MAX = 64 };
    for (uint32_t end = sectors->count; end > 1 && sectors->free_backed_count > keep;) {
        uint32_t most = (uint32_t)min_u64(sectors->free_backed_count - keep, RUN_MAX);
        uint32_t first = end;
        while (first > 1 && end - first < most && bit_get(&sectors->free_backed, first - 1))
            first--;
        uint32_t next = first == end ? end - 1 : first;
        if (pairs) {
            first = (first + 1) & ~1u;
            end &= ~1u;
        }
        if (first < end && !punch(sectors, first, end - first, writer))
            return;
        end = next;
    }
}

void sectors_trim(struct sectors *sectors, uint32_t keep, bool pairs, pthread_mutex_t *writer)
{
    pthread_mutex_unlock(writer);
    pthread_mutex_lock(&sectors->space_lock);
    pthread_mutex_lock(writer);
    bool adopted = adopt(sectors) == FKV_OK;
    if (keep)
        keep = (uint32_t)max_u64(keep, sectors_for_deletes(sectors)) + wanted_for_pages(sectors, 0);
    if (adopted)
        trim_end(sectors, keep, writer);
    pthread_mutex_unlock(&sectors->space_lock);
    if (adopted)
        trim_holes(sectors, keep, pairs, writer);
}

/* ---------------------------------------------------------------- opening */

struct queued {
    uint64_t sequence;
    uint32_t sector;
};

static int by_sequence(const void *a, const void *b)
{
    uint64_t left = ((const struct queued *)a)->sequence;
    uint64_t right = ((const struct queued *)b)->sequence;
    return left < right ? -1 : left > right;
}

/* Of a free sector nothing is kept. */
static bool entry_is_possible(const struct format_sector *entry, bool must_be_free)
{
    if (!sector_counts_are_possible(entry))
        return false;
    if (entry->type == SECTOR_FREE)
        return !entry->sequence;
    return !must_be_free && entry->type <= SECTOR_LARGE;
}

static enum fkv_error impossible_entry(const struct sectors *sectors, uint32_t sector)
{
    return error_set(FKV_DAMAGED, "%s: the table has an impossible entry for sector %u",
                     sectors->path, sector);
}

static enum fkv_error open_entry(struct sectors *sectors, uint32_t sector,
                                 const struct format_sector *entry)
{
    struct sector *state = sector_state(sectors, sector);
    bool pages = places_sector_at(&sectors->pages->places, sector);
    if (!entry_is_possible(entry, pages))
        return impossible_entry(sectors, sector);
    if (pages) {
        state->type = SECTOR_PAGES_TYPE;
        return FKV_OK;
    }
    if (entry->type == SECTOR_FREE && sectors->read_only) {
        make_free(sectors, sector);
        return FKV_OK;
    }
    if (entry->type == SECTOR_FREE) { /* it may be one, and to ask for its space does no harm */
        make_hole(sectors, sector);
        return FKV_OK;
    }
    *state = (struct sector){.type = entry->type,
                             .sealed = 1,
                             .dead_cells = entry->dead_cells,
                             .pad_cells = entry->pad_cells};
    *sector_view(sectors, sector) =
        (struct sector_view){.base = sectors_address(sectors, sector), .sequence = entry->sequence};
    set_queued(sectors, sector, entry->type == SECTOR_VALUES);
    if (entry->type == SECTOR_VALUES)
        sectors->values_count++;
    else
        sectors->large_count++;
    return FKV_OK;
}

/* Link the values sectors in the order of their sequences. */
static enum fkv_error open_queue(struct sectors *sectors)
{
    struct queued *queue = memory_new(sectors->values_count * sizeof *queue);
    if (!queue)
        return FKV_NO_MEMORY;
    uint32_t count = 0;
    for (uint32_t s = 1; s < sectors->count; s++)
        if (sector_state(sectors, s)->type == SECTOR_VALUES)
            queue[count++] = (struct queued){sector_view(sectors, s)->sequence, s};
    qsort(queue, count, sizeof *queue, by_sequence);
    for (uint32_t i = 0; i < count; i++) {
        struct sector *state = sector_state(sectors, queue[i].sector);
        state->previous = i ? queue[i - 1].sector : 0;
        state->next = i + 1 < count ? queue[i + 1].sector : 0;
    }
    if (count) {
        sectors->front = queue[0].sector;
        sectors->back = queue[count - 1].sector;
    }
    memory_free(queue);
    return FKV_OK;
}

enum fkv_error sectors_open(struct sectors *sectors, uint64_t header_count, uint64_t file_bytes)
{
    /* Sectors that were added after the checkpoint are free. */
    uint64_t count = max_u64(max_u64(header_count, file_bytes / SECTOR_BYTES), 1);
    enum fkv_error error = back_arrays(sectors, count);
    if (error || (error = map_windows(sectors, count)))
        return error;
    sectors->count = (uint32_t)count;
    atomic_store(&sectors->file_count, (uint32_t)count);
    /* And so are those that its last page has room for, until the file has them. */
    uint64_t listed = count > 1 ? round_up(count, SECTORS_PER_PAGE) : 1;
    for (uint32_t s = 1; s < listed; s++) {
        uint32_t page = s / SECTORS_PER_PAGE;
        uint32_t frame;
        if ((s == 1 || s % SECTORS_PER_PAGE == 0) &&
            (error = pages_load(sectors->pages, SPACE_SECTORS, page, &frame)))
            return error;
        const struct format_sector *entries = pages_read(sectors->pages, SPACE_SECTORS, page);
        const struct format_sector *entry = &entries[s % SECTORS_PER_PAGE];
        if (s >= count && !entry_is_possible(entry, true))
            return impossible_entry(sectors, s);
        if (s < count && (error = open_entry(sectors, s, entry)))
            return error;
    }
    return open_queue(sectors);
}
