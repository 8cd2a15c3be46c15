/*
 * os_sim_file.c: one file of the simulated disk (os_sim.h says how the disk behaves).
 *
 * The current image is a range of memory. What the medium has instead is kept page by page, and
 * only where it may differ: before a page is changed for the first time since it was durable, its
 * bytes are saved. So a sync and a crash cost what was changed, not the size of the file. Stores
 * into a mapping cannot be noticed, so all pages that are mapped for writing are saved, from the
 * mapping on, and compared.
 *
 * Invariants:
 * 1. The durable bytes of page p are pages[p].saved if there is one, otherwise the image's.
 * 2. `saved` lists exactly the pages with pages[p].saved, in no order.
 * 3. Every page below `size` in a range mapped for writing has pages[p].saved.
 * 4. In the image all bytes from `size` on are zero, but for what was stored through a mapping
 *    behind the end in its last page; pages beyond are not accessible.
 * 5. A page that is not allocated is zero, unless it is mapped and was stored into since the last
 *    look.
 *
 * 6. Every change of a page of the image is counted (note_change), but for stores into a mapping,
 *    which are taken for having happened before a copy is made and when the mapping ends.
 *
 * An image that is copied again and again, for one crash after another, is not copied whole: a copy
 * that was let go of is taken again, and gets the pages that have changed, there or here.
 *
 * Every draw of the lottery is a function of the seed, the file's id and the block's number, and
 * so does not depend on the order in which pages came to be saved.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os_sim_file.h"

#include "bytes.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCKS_PER_PAGE (SIM_PAGE_BYTES / SIM_BLOCK_BYTES)
/* Whether space stays allocated is drawn for this many pages at once, as extents are long. */
#define EXTENT_PAGES 256u

/* What a draw is for: keeps draws for the same number apart. */
enum purpose {
    FOR_BLOCK = 1,
    FOR_TEAR,
    FOR_ODDS,
    FOR_CHANGES,
    FOR_EXTENT,
};

/* Stands for all saved pages that are zero. Never written to. */
static struct sim_saved zero_page;

void sim_die(const char *what)
{
    fprintf(stderr, "os_sim: %s\n", what);
    abort();
}

void *sim_new(size_t bytes)
{
    void *block = calloc(1, bytes > 0 ? bytes : 1);
    if (block == NULL)
        sim_die("no memory");
    return block;
}

void *sim_grow(void *array, size_t bytes)
{
    void *grown = realloc(array, bytes);
    if (grown == NULL)
        sim_die("no memory");
    return grown;
}

uint64_t sim_roll(uint64_t seed, uint64_t a, uint64_t b)
{
    uint64_t z = seed + a * 0x9e3779b97f4a7c15 + b * 0xd1b54a32d192ed03;
    for (int round = 0; round < 2; round++) {
        z += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        z ^= z >> 31;
    }
    return z;
}

static uint64_t draw(const struct sim_file *file, uint64_t seed, enum purpose purpose, uint64_t n)
{
    return sim_roll(seed ^ (uint64_t)purpose << 56, file->id, n);
}

/* ---------------------------------------------------------------- images */

/* Images that are free again, with their memory, which is still accessible: faulting it in anew, or
 * protecting it, would cost more than all that a crash costs otherwise. */
static struct {
    pthread_mutex_t mutex;
    struct sim_image *first;
    unsigned count;
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER};

#define POOL_IMAGES_MAX 16u
#define POOL_IMAGE_BYTES_MAX (64 * MIB)

/* One that was a copy of this image, if there is one. */
static struct sim_image *pool_take(uint64_t reserved_bytes, uint64_t copy_of)
{
    pthread_mutex_lock(&pool.mutex);
    struct sim_image **at = NULL;
    for (struct sim_image **any = &pool.first; *any != NULL; any = &(*any)->next)
        if ((*any)->reserved_bytes == reserved_bytes && (at == NULL || (*any)->copy_of == copy_of))
            at = any;
    struct sim_image *image = at != NULL ? *at : NULL;
    if (image != NULL) {
        *at = image->next;
        pool.count--;
    }
    pthread_mutex_unlock(&pool.mutex);
    return image;
}

static bool pool_give(struct sim_image *image)
{
    bool given = false;
    pthread_mutex_lock(&pool.mutex);
    if (pool.count < POOL_IMAGES_MAX && image->usable_bytes <= POOL_IMAGE_BYTES_MAX) {
        image->next = pool.first;
        pool.first = image;
        pool.count++;
        given = true;
    }
    pthread_mutex_unlock(&pool.mutex);
    return given;
}

/* Whole pages of this system, which may be larger than those of the file. */
static void protect(const struct sim_image *image, uint64_t begin, uint64_t end, int protection)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    begin = round_up(begin, page);
    end = round_up(end, page);
    if (begin < end && mprotect(image->base + begin, end - begin, protection) != 0)
        sim_die("mprotect failed");
}

/* Let exactly the first `usable` bytes, whole pages, be accessible. */
static void image_reach(struct sim_image *image, uint64_t usable)
{
    if (usable > image->reserved_bytes)
        sim_die("a file beyond its reserved address space");
    protect(image, image->usable_bytes, usable, PROT_READ | PROT_WRITE);
    protect(image, usable, image->usable_bytes, PROT_NONE);
    image->usable_bytes = usable;
}

/* Of any bytes, as far as usable: those of a copy of this image, perhaps (0: of none). */
static struct sim_image *image_take(uint64_t reserved_bytes, uint64_t copy_of)
{
    static _Atomic uint64_t last_id;
    struct sim_image *image = pool_take(reserved_bytes, copy_of);
    if (image == NULL) {
        image = sim_new(sizeof *image);
        void *base = mmap(NULL, reserved_bytes, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED)
            sim_die("no address space");
        madvise(base, reserved_bytes, MADV_HUGEPAGE);
        image->base = base;
        image->reserved_bytes = reserved_bytes;
        image->used = sim_new(reserved_bytes / SIM_PAGE_BYTES);
        image->changed = sim_new(reserved_bytes / SIM_PAGE_BYTES * sizeof *image->changed);
    }
    image->id = ++last_id;
    image->references = 1;
    return image;
}

static struct sim_image *image_new(uint64_t reserved_bytes)
{
    struct sim_image *image = image_take(reserved_bytes, 0);
    image->copy_of = 0;
    image_reach(image, 0);
    return image;
}

struct sim_image *sim_image_share(struct sim_image *image)
{
    image->references++;
    return image;
}

void sim_image_release(struct sim_image *image)
{
    if (--image->references > 0)
        return;
    if (pool_give(image))
        return;
    munmap(image->base, image->reserved_bytes);
    free(image->used);
    free(image->changed);
    free(image);
}

static void note_change(struct sim_image *image, uint64_t p)
{
    image->changed[p] = ++image->changes;
}

static void zero_page_of(struct sim_image *image, uint64_t p)
{
    note_change(image, p);
    if (image->used[p])
        memset(image->base + p * SIM_PAGE_BYTES, 0, SIM_PAGE_BYTES);
    image->used[p] = 0;
}

/* Let exactly the pages that hold the first `bytes` be accessible; new ones are zero. */
static void image_resize(struct sim_image *image, uint64_t bytes)
{
    uint64_t before = image->usable_bytes / SIM_PAGE_BYTES;
    image_reach(image, round_up(bytes, SIM_PAGE_BYTES));
    for (uint64_t p = before; p < image->usable_bytes / SIM_PAGE_BYTES; p++)
        zero_page_of(image, p);
}

/* Page p has been the same in both since the one was copied from the other. */
static bool is_same(const struct sim_image *copy, const struct sim_image *from, uint64_t p)
{
    return copy->copy_of == from->id && from->changed[p] <= copy->changes_of_original &&
           copy->changed[p] <= copy->changes_of_copy;
}

static void copy_page(struct sim_image *to, const struct sim_image *from, uint64_t p)
{
    if (from->used[p])
        memcpy(to->base + p * SIM_PAGE_BYTES, from->base + p * SIM_PAGE_BYTES, SIM_PAGE_BYTES);
    else
        zero_page_of(to, p);
    to->used[p] = from->used[p];
}

/* The same pages, in an image of their own. */
static struct sim_image *image_copy(const struct sim_image *from)
{
    struct sim_image *to = image_take(from->reserved_bytes, from->id);
    image_reach(to, from->usable_bytes);
    for (uint64_t p = 0; p < from->usable_bytes / SIM_PAGE_BYTES; p++)
        if (!is_same(to, from, p))
            copy_page(to, from, p);
    to->copy_of = from->id;
    to->changes_of_original = from->changes;
    to->changes_of_copy = to->changes;
    return to;
}

static const uint8_t *page_at(const struct sim_file *file, uint64_t p)
{
    return file->image->base + p * SIM_PAGE_BYTES;
}

/* To be written to. */
static uint8_t *use_page(struct sim_file *file, uint64_t p)
{
    note_change(file->image, p);
    file->image->used[p] = 1;
    return file->image->base + p * SIM_PAGE_BYTES;
}

static bool is_zero(const uint8_t *page)
{
    return bytes_are_zero(page, SIM_PAGE_BYTES);
}

static bool is_blank(const struct sim_file *file, uint64_t p)
{
    return !file->image->used[p] || is_zero(page_at(file, p));
}

/* ---------------------------------------------------------------- saved pages */

/* Keep what page p has now as what the medium has. */
static void save_page(struct sim_file *file, uint64_t p)
{
    struct sim_page *page = &file->pages[p];
    if (page->saved != NULL)
        return;
    if (!page->allocated || is_blank(file, p)) {
        page->saved = &zero_page;
    } else {
        page->saved = sim_new(sizeof *page->saved);
        memcpy(page->saved->bytes, page_at(file, p), SIM_PAGE_BYTES);
    }
    if (file->saved_count == file->saved_room) {
        file->saved_room = file->saved_room > 0 ? 2 * file->saved_room : 16;
        file->saved = sim_grow(file->saved, file->saved_room * sizeof *file->saved);
    }
    file->saved[file->saved_count++] = p;
}

static void save_mapped(struct sim_file *file, uint64_t p)
{
    save_page(file, p);
    use_page(file, p);
    file->pages[p].mapped = true;
}

static void free_saved(struct sim_saved *saved)
{
    if (saved == NULL || saved == &zero_page)
        return;
    free(saved->clean);
    free(saved->frozen);
    free(saved);
}

/* The saved bytes of page p, to be changed. */
static struct sim_saved *own_saved(struct sim_file *file, uint64_t p)
{
    struct sim_page *page = &file->pages[p];
    if (page->saved == &zero_page)
        page->saved = sim_new(sizeof *page->saved);
    return page->saved;
}

/* Write zeros to what the medium has of [begin, end), where that is not what the image has; but not
 * over what landed when more than `change` changes had been made. */
static void zero_saved(struct sim_file *file, uint64_t begin, uint64_t end, size_t change)
{
    end = min_u64(end, file->page_count * SIM_PAGE_BYTES);
    while (begin < end) {
        uint64_t stop = min_u64(end, (begin / SIM_BLOCK_BYTES + 1) * SIM_BLOCK_BYTES);
        struct sim_saved *saved = file->pages[begin / SIM_PAGE_BYTES].saved;
        uint64_t block = begin / SIM_BLOCK_BYTES % BLOCKS_PER_PAGE;
        if (saved != NULL && saved != &zero_page && saved->landed_at[block] <= change)
            memset(saved->bytes + begin % SIM_PAGE_BYTES, 0, stop - begin);
        begin = stop;
    }
}

static bool is_mapped(const struct sim_file *file, uint64_t p)
{
    uint64_t offset = p * SIM_PAGE_BYTES;
    for (size_t i = 0; i < file->mapped_count; i++)
        if (offset >= file->mapped[i].begin && offset < file->mapped[i].end)
            return true;
    return false;
}

static void set_allocated(struct sim_file *file, uint64_t p, bool allocated)
{
    struct sim_page *page = &file->pages[p];
    if (page->allocated == allocated)
        return;
    page->allocated = allocated;
    if (allocated)
        file->allocated_pages++;
    else
        file->allocated_pages--;
}

/* A mapping lets the program scribble behind the end, in the last page: that is no data. */
static void zero_tail(struct sim_file *file)
{
    uint64_t rest = file->size % SIM_PAGE_BYTES;
    if (rest != 0)
        memset(use_page(file, file->size / SIM_PAGE_BYTES) + rest, 0, SIM_PAGE_BYTES - rest);
}

/*
 * Does saved page p have bytes that a sync would write? Pages below the end only. Also notices
 * stores into holes here, since those are all found in pages that are dirty.
 */
static bool is_dirty(struct sim_file *file, uint64_t p)
{
    struct sim_page *page = &file->pages[p];
    if (p * SIM_PAGE_BYTES >= file->size)
        return false;
    if (p == file->size / SIM_PAGE_BYTES)
        zero_tail(file);
    const uint8_t *now = page_at(file, p);
    if (page->saved->clean != NULL) {
        if (memcmp(now, page->saved->clean, SIM_PAGE_BYTES) == 0)
            return false;
        free(page->saved->clean);
        page->saved->clean = NULL;
    }
    if (memcmp(now, page->saved->bytes, SIM_PAGE_BYTES) == 0)
        return false;
    if (!page->allocated && !is_zero(now)) {
        file->hole_stores++;
        set_allocated(file, p, true);
    }
    return true;
}

static bool block_differs(const struct sim_file *file, uint64_t block)
{
    uint64_t p = block / BLOCKS_PER_PAGE;
    const uint8_t *saved = file->pages[p].saved->bytes + block % BLOCKS_PER_PAGE * SIM_BLOCK_BYTES;
    return memcmp(file->image->base + block * SIM_BLOCK_BYTES, saved, SIM_BLOCK_BYTES) != 0;
}

/* The medium gets the block as it is now. */
static void land_block(struct sim_file *file, uint64_t block)
{
    struct sim_saved *saved = own_saved(file, block / BLOCKS_PER_PAGE);
    memcpy(saved->bytes + block % BLOCKS_PER_PAGE * SIM_BLOCK_BYTES,
           file->image->base + block * SIM_BLOCK_BYTES, SIM_BLOCK_BYTES);
    saved->landed_at[block % BLOCKS_PER_PAGE] = file->change_count;
}

/* ---------------------------------------------------------------- files */

struct sim_file *sim_file_new(uint64_t id, uint64_t reserved_bytes)
{
    struct sim_file *file = sim_new(sizeof *file);
    file->id = id;
    file->references = 1;
    file->image = image_new(reserved_bytes);
    return file;
}

static void *copy_array(const void *array, size_t count, size_t item_bytes)
{
    void *copy = sim_grow(NULL, count > 0 ? count * item_bytes : 1);
    if (count > 0)
        memcpy(copy, array, count * item_bytes);
    return copy;
}

static struct sim_saved *copy_saved(struct sim_saved *saved)
{
    if (saved == &zero_page)
        return saved;
    struct sim_saved *copy = copy_array(saved, 1, sizeof *saved);
    if (saved->clean != NULL)
        copy->clean = copy_array(saved->clean, 1, SIM_PAGE_BYTES);
    if (saved->frozen != NULL)
        copy->frozen = copy_array(saved->frozen, 1, SIM_PAGE_BYTES);
    return copy;
}

/* What is stored through a mapping is not counted: whatever may have been. */
static void note_stores(struct sim_file *file)
{
    for (size_t i = 0; i < file->mapped_count; i++) {
        uint64_t end = min_u64(file->mapped[i].end, file->size);
        for (uint64_t p = file->mapped[i].begin / SIM_PAGE_BYTES; p * SIM_PAGE_BYTES < end; p++)
            note_change(file->image, p);
    }
}

struct sim_file *sim_file_copy(struct sim_file *file)
{
    struct sim_file *copy = copy_array(file, 1, sizeof *file);
    copy->references = 1;
    note_stores(file);
    copy->image = image_copy(file->image);
    copy->pages = copy_array(file->pages, file->page_count, sizeof *file->pages);
    copy->saved_room = file->saved_count;
    copy->saved = copy_array(file->saved, file->saved_count, sizeof *file->saved);
    copy->change_room = file->change_count;
    copy->changes = copy_array(file->changes, file->change_count, sizeof *file->changes);
    copy->mapped = NULL;
    copy->mapped_count = copy->mapped_room = 0;
    for (size_t i = 0; i < file->saved_count; i++) {
        size_t p = file->saved[i];
        copy->pages[p].saved = copy_saved(file->pages[p].saved);
    }
    return copy;
}

struct sim_file *sim_file_share(struct sim_file *file)
{
    file->references++;
    return file;
}

void sim_file_release(struct sim_file *file)
{
    if (--file->references > 0)
        return;
    for (size_t i = 0; i < file->saved_count; i++)
        free_saved(file->pages[file->saved[i]].saved);
    sim_image_release(file->image);
    free(file->pages);
    free(file->saved);
    free(file->changes);
    free(file->mapped);
    free(file);
}

/* Have entries for the pages of the first `bytes`. */
static void need_pages(struct sim_file *file, uint64_t bytes)
{
    uint64_t count = divide_up(bytes, SIM_PAGE_BYTES);
    if (count <= file->page_count)
        return;
    count = max_u64(count, file->page_count + file->page_count / 2);
    file->pages = sim_grow(file->pages, count * sizeof *file->pages);
    memset(file->pages + file->page_count, 0, (count - file->page_count) * sizeof *file->pages);
    file->page_count = count;
}

static void add_change(struct sim_file *file, struct sim_change change)
{
    if (file->change_count == file->change_room) {
        file->change_room = file->change_room > 0 ? 2 * file->change_room : 8;
        file->changes = sim_grow(file->changes, file->change_room * sizeof *file->changes);
    }
    file->changes[file->change_count++] = change;
}

uint64_t sim_file_pages_missing(const struct sim_file *file, uint64_t offset, uint64_t bytes)
{
    uint64_t missing = 0;
    uint64_t end = divide_up(offset + bytes, SIM_PAGE_BYTES);
    for (uint64_t p = offset / SIM_PAGE_BYTES; bytes > 0 && p < end; p++)
        missing += p >= file->page_count || !file->pages[p].allocated;
    return missing;
}

size_t sim_file_bytes_fitting(const struct sim_file *file, uint64_t offset, size_t bytes,
                              uint64_t free_pages)
{
    uint64_t at = offset;
    while (at < offset + bytes) {
        uint64_t p = at / SIM_PAGE_BYTES;
        if (p >= file->page_count || !file->pages[p].allocated) {
            if (free_pages == 0)
                break;
            free_pages--;
        }
        at = min_u64(offset + bytes, (p + 1) * SIM_PAGE_BYTES);
    }
    return (size_t)(at - offset);
}

/* ---------------------------------------------------------------- changes by the process */

/* The size becomes larger; what lies between is zero. */
static void grow(struct sim_file *file, uint64_t bytes)
{
    uint64_t page_end = round_up(file->size, SIM_PAGE_BYTES);
    need_pages(file, bytes);
    image_resize(file->image, bytes);
    zero_tail(file);
    file->size = bytes;
    for (uint64_t p = page_end / SIM_PAGE_BYTES; p * SIM_PAGE_BYTES < bytes; p++)
        if (is_mapped(file, p))
            save_mapped(file, p);
}

/* Make [begin, end) zeros, below the end of the file, giving whole pages back. */
static void discard(struct sim_file *file, uint64_t begin, uint64_t end)
{
    uint64_t at = begin;
    while (at < end) {
        uint64_t p = at / SIM_PAGE_BYTES;
        uint64_t stop = min_u64(end, (p + 1) * SIM_PAGE_BYTES);
        if (file->pages[p].allocated || file->pages[p].saved != NULL) {
            save_page(file, p);
            if (file->image->used[p])
                memset(use_page(file, p) + at % SIM_PAGE_BYTES, 0, stop - at);
        }
        if (stop - at == SIM_PAGE_BYTES)
            set_allocated(file, p, false);
        at = stop;
    }
}

static void shrink(struct sim_file *file, uint64_t bytes)
{
    /* To the end of the last page: it is given back as a whole, though the file ends within. */
    discard(file, bytes, round_up(file->size, SIM_PAGE_BYTES));
    image_resize(file->image, bytes);
    file->size = bytes;
}

void sim_file_set_size(struct sim_file *file, uint64_t bytes)
{
    uint64_t before = file->size;
    if (bytes == before)
        return;
    if (bytes > before) {
        grow(file, bytes);
        add_change(file, (struct sim_change){.size = bytes});
    } else {
        shrink(file, bytes);
        add_change(file, (struct sim_change){
                             .zero_begin = bytes,
                             .zero_end = before,
                             .size = bytes,
                             .shrink = true,
                         });
    }
}

/* Page p is about to be written by a call. */
static void touch_page(struct sim_file *file, uint64_t p)
{
    save_page(file, p);
    use_page(file, p);
    struct sim_saved *saved = file->pages[p].saved;
    free(saved->clean);
    if (saved != &zero_page)
        saved->clean = NULL;
    set_allocated(file, p, true);
}

void sim_file_write(struct sim_file *file, uint64_t offset, const void *data, size_t bytes,
                    uint64_t seed)
{
    if (bytes == 0)
        return;
    uint64_t end = offset + bytes;
    zero_tail(file);
    /* What lies there unsynced may have landed before it is gone. */
    if (offset < file->size)
        for (uint64_t b = offset / SIM_BLOCK_BYTES; b * SIM_BLOCK_BYTES < min_u64(end, file->size);
             b++)
            if (file->pages[b / BLOCKS_PER_PAGE].saved != NULL &&
                draw(file, seed, FOR_BLOCK, b) % 4 == 0 && block_differs(file, b))
                land_block(file, b);
    if (end > file->size)
        sim_file_set_size(file, end);
    for (uint64_t p = offset / SIM_PAGE_BYTES; p * SIM_PAGE_BYTES < end; p++)
        touch_page(file, p);
    memcpy(file->image->base + offset, data, bytes);
}

void sim_file_allocate(struct sim_file *file, uint64_t offset, uint64_t bytes)
{
    if (offset + bytes > file->size)
        sim_file_set_size(file, offset + bytes);
    for (uint64_t p = offset / SIM_PAGE_BYTES; p * SIM_PAGE_BYTES < offset + bytes; p++) {
        /* A hole that is mapped may have been stored into: notice it while it is one. */
        if (!file->pages[p].allocated && file->pages[p].saved != NULL)
            is_dirty(file, p);
        set_allocated(file, p, true);
    }
}

void sim_file_punch(struct sim_file *file, uint64_t offset, uint64_t bytes)
{
    /* A hole that reaches the end takes the last page whole. */
    uint64_t end =
        offset + bytes >= file->size ? round_up(file->size, SIM_PAGE_BYTES) : offset + bytes;
    if (offset >= end)
        return;
    discard(file, offset, end);
    add_change(file, (struct sim_change){
                         .zero_begin = offset,
                         .zero_end = end,
                         .size = file->size,
                     });
}

void sim_file_mapped(struct sim_file *file, uint64_t offset, uint64_t bytes)
{
    if (file->mapped_count == file->mapped_room) {
        file->mapped_room = file->mapped_room > 0 ? 2 * file->mapped_room : 4;
        file->mapped = sim_grow(file->mapped, file->mapped_room * sizeof *file->mapped);
    }
    file->mapped[file->mapped_count++] = (struct sim_range){offset, offset + bytes};
    uint64_t end = min_u64(offset + bytes, file->size);
    for (uint64_t p = offset / SIM_PAGE_BYTES; p * SIM_PAGE_BYTES < end; p++)
        save_mapped(file, p);
}

void sim_file_unmapped(struct sim_file *file, uint64_t offset, uint64_t bytes)
{
    note_stores(file);
    for (size_t i = 0; i < file->mapped_count; i++)
        if (file->mapped[i].begin == offset && file->mapped[i].end == offset + bytes) {
            file->mapped[i] = file->mapped[--file->mapped_count];
            return;
        }
}

/* ---------------------------------------------------------------- what becomes durable */

static void drop_saved(struct sim_file *file, uint64_t p)
{
    free_saved(file->pages[p].saved);
    file->pages[p].saved = NULL;
    file->pages[p].mapped = false;
}

/* All is durable: forget the saved pages, but those that are mapped still, to be compared again,
 * and those that no sync writes any more. */
static void drop_synced(struct sim_file *file)
{
    size_t kept = 0;
    for (size_t i = 0; i < file->saved_count; i++) {
        uint64_t p = file->saved[i];
        struct sim_page *page = &file->pages[p];
        bool below_end = p * SIM_PAGE_BYTES < file->size;
        page->mapped = below_end && is_mapped(file, p);
        if (page->mapped || (below_end && page->saved->clean != NULL))
            file->saved[kept++] = p;
        else
            drop_saved(file, p);
    }
    file->saved_count = kept;
}

void sim_file_sync(struct sim_file *file)
{
    for (size_t i = 0; i < file->saved_count; i++) {
        uint64_t p = file->saved[i];
        if (is_dirty(file, p))
            memcpy(own_saved(file, p)->bytes, page_at(file, p), SIM_PAGE_BYTES);
        if (file->pages[p].saved != &zero_page)
            memset(file->pages[p].saved->landed_at, 0, sizeof file->pages[p].saved->landed_at);
    }
    drop_synced(file);
    for (uint64_t p = 0; p < file->page_count; p++)
        file->pages[p].allocated_durable = file->pages[p].allocated;
    file->size_durable = file->size;
    file->change_count = 0;
}

/* Land some blocks of page p, those in [begin, end). */
static void land_some(struct sim_file *file, uint64_t p, uint64_t begin, uint64_t end,
                      uint64_t seed)
{
    for (uint64_t b = p * BLOCKS_PER_PAGE; b < (p + 1) * BLOCKS_PER_PAGE; b++) {
        uint64_t offset = b * SIM_BLOCK_BYTES;
        if (offset + SIM_BLOCK_BYTES > begin && offset < end &&
            draw(file, seed, FOR_BLOCK, b) % 2 == 0 && block_differs(file, b))
            land_block(file, b);
    }
}

void sim_file_writeback(struct sim_file *file, uint64_t begin, uint64_t end, uint64_t seed)
{
    for (size_t i = 0; i < file->saved_count; i++) {
        uint64_t p = file->saved[i];
        uint64_t offset = p * SIM_PAGE_BYTES;
        if (offset + SIM_PAGE_BYTES > begin && offset < end && is_dirty(file, p))
            land_some(file, p, begin, end, seed);
    }
}

/* Tear some of the blocks of page p that have not landed. */
static void tear_some(struct sim_file *file, uint64_t p, uint64_t seed)
{
    for (uint64_t b = p * BLOCKS_PER_PAGE; b < (p + 1) * BLOCKS_PER_PAGE; b++) {
        uint64_t tear = draw(file, seed, FOR_TEAR, b);
        if (tear % 4 || !block_differs(file, b))
            continue;
        size_t at = b * SIM_BLOCK_BYTES % SIM_PAGE_BYTES;
        memcpy(own_saved(file, p)->bytes + at, page_at(file, p) + at,
               tear / 4 % SIM_BLOCK_BYTES & ~7u);
    }
}

void sim_file_sync_failed(struct sim_file *file, uint64_t seed)
{
    for (size_t i = 0; i < file->saved_count; i++) {
        uint64_t p = file->saved[i];
        if (!is_dirty(file, p))
            continue;
        land_some(file, p, 0, UINT64_MAX, seed);
        tear_some(file, p, seed);
        own_saved(file, p)->clean = copy_array(page_at(file, p), 1, SIM_PAGE_BYTES);
    }
}

void sim_file_evict(struct sim_file *file)
{
    for (size_t i = 0; i < file->saved_count; i++) {
        uint64_t p = file->saved[i];
        struct sim_saved *saved = file->pages[p].saved;
        if (saved->clean != NULL && !is_dirty(file, p) && p * SIM_PAGE_BYTES < file->size)
            memcpy(use_page(file, p), saved->bytes, SIM_PAGE_BYTES);
    }
}

/* ---------------------------------------------------------------- crash and kill */

/* How likely a block of this file is to land at this crash, of 256. All and none are frequent: what
 * goes wrong when one file lands and the other does not, even odds would hardly ever find. */
static unsigned draw_odds(const struct sim_file *file, uint64_t seed)
{
    uint64_t drawn = draw(file, seed, FOR_ODDS, 0);
    static const unsigned odds[] = {0, 0, 256, 256, 8, 64, 128, 192, 248};
    return odds[drawn % (sizeof odds / sizeof *odds)];
}

/* How many of the changes, from the first, have reached the medium. */
static size_t draw_changes(const struct sim_file *file, uint64_t seed)
{
    uint64_t drawn = draw(file, seed, FOR_CHANGES, 0);
    switch (drawn % 4) {
    case 0:
        return 0;
    case 1:
        return file->change_count;
    default:
        return (size_t)(drawn / 4 % (file->change_count + 1));
    }
}

/* Is this offset in a part that was cut off by a change that has not landed? Then the medium still
 * has the old bytes there: what was written since would need the change first. */
static bool cut_off(const struct sim_file *file, size_t landed, uint64_t offset)
{
    for (size_t i = landed; i < file->change_count; i++)
        if (file->changes[i].shrink && offset >= file->changes[i].zero_begin &&
            offset < round_up(file->changes[i].zero_end, SIM_PAGE_BYTES))
            return true;
    return false;
}

struct lottery {
    uint64_t seed;
    unsigned odds;
    struct sim_range torn;
};

/* How many bytes of this block, from the front, have landed. */
static unsigned draw_block(const struct sim_file *file, const struct lottery *lottery,
                           uint64_t block)
{
    uint64_t offset = block * SIM_BLOCK_BYTES;
    uint64_t tear = draw(file, lottery->seed, FOR_TEAR, block);
    bool torn = offset + SIM_BLOCK_BYTES > lottery->torn.begin && offset < lottery->torn.end;
    if (torn && tear % 3 == 0)
        return (unsigned)(tear / 3 % SIM_BLOCK_BYTES);
    /* Rarely, in the extreme draws not at all: they stand for all or nothing. */
    if (file->pages[block / BLOCKS_PER_PAGE].mapped && lottery->odds % 256 != 0 && tear % 4 == 0)
        return (unsigned)(tear / 4 % SIM_BLOCK_BYTES) & ~7u;
    return draw(file, lottery->seed, FOR_BLOCK, block) % 256 < lottery->odds ? SIM_BLOCK_BYTES : 0;
}

/* Turn page p of the image into what is left of it. */
static void crash_page(struct sim_file *file, uint64_t p, size_t changes_landed,
                       const struct lottery *lottery)
{
    bool dirty = is_dirty(file, p);
    if (!dirty && p * SIM_PAGE_BYTES < file->size && file->pages[p].saved->clean == NULL)
        return; /* both are the same */
    uint8_t *page = use_page(file, p);
    for (uint64_t b = p * BLOCKS_PER_PAGE; b < (p + 1) * BLOCKS_PER_PAGE; b++) {
        uint64_t offset = b * SIM_BLOCK_BYTES;
        unsigned landed = 0;
        if (dirty && offset < file->size && !cut_off(file, changes_landed, offset))
            landed = draw_block(file, lottery, b);
        const uint8_t *saved = file->pages[p].saved->bytes + offset % SIM_PAGE_BYTES;
        memcpy(page + offset % SIM_PAGE_BYTES + landed, saved + landed, SIM_BLOCK_BYTES - landed);
    }
}

/* Decide what is allocated now. Bytes that are there are; beyond them the lottery decides where
 * the medium and the process disagreed. */
static void crash_allocation(struct sim_file *file, uint64_t seed)
{
    uint64_t end = divide_up(file->size, SIM_PAGE_BYTES);
    for (uint64_t p = 0; p < file->page_count; p++) {
        struct sim_page *page = &file->pages[p];
        if (p < end && page->allocated && page->allocated_durable)
            continue;
        if (p >= end)
            set_allocated(file, p, false);
        else if (page->saved != NULL && !is_blank(file, p))
            set_allocated(file, p, true);
        else if (page->allocated != page->allocated_durable && is_blank(file, p))
            set_allocated(file, p, draw(file, seed, FOR_EXTENT, p / EXTENT_PAGES) % 2 == 0);
        page->allocated_durable = page->allocated;
    }
}

/* From now on no mapping is the file's. */
static void leave_mappings(struct sim_file *file)
{
    note_stores(file);
    file->mapped_count = 0; /* pages[p].mapped remembers until the next sync */
    if (file->image->references == 1)
        return;
    struct sim_image *shared = file->image;
    file->image = image_copy(shared);
    sim_image_release(shared);
}

void sim_file_freeze(struct sim_file *file)
{
    for (size_t i = 0; i < file->saved_count; i++) {
        uint64_t p = file->saved[i];
        const struct sim_page *page = &file->pages[p];
        if (page->mapped && p * SIM_PAGE_BYTES < file->size &&
            memcmp(page_at(file, p), page->saved->bytes, SIM_PAGE_BYTES) != 0)
            own_saved(file, p)->frozen = copy_array(page_at(file, p), 1, SIM_PAGE_BYTES);
    }
    file->frozen = true;
}

/* Take back what was stored since the freeze. */
static void thaw(struct sim_file *file)
{
    if (!file->frozen)
        return;
    for (size_t i = 0; i < file->saved_count; i++) {
        uint64_t p = file->saved[i];
        struct sim_page *page = &file->pages[p];
        if (!page->mapped || p * SIM_PAGE_BYTES >= file->size)
            continue;
        const uint8_t *then =
            page->saved->frozen != NULL ? page->saved->frozen : page->saved->bytes;
        memcpy(use_page(file, p), then, SIM_PAGE_BYTES);
        free(page->saved->frozen);
        if (page->saved != &zero_page)
            page->saved->frozen = NULL;
    }
    file->frozen = false;
}

void sim_file_crash(struct sim_file *file, uint64_t seed, struct sim_range torn)
{
    leave_mappings(file);
    thaw(file);
    size_t landed = draw_changes(file, seed);
    uint64_t size = landed > 0 ? file->changes[landed - 1].size : file->size_durable;
    for (size_t i = 0; i < landed; i++)
        zero_saved(file, file->changes[i].zero_begin, file->changes[i].zero_end, i);

    struct lottery lottery = {.seed = seed, .odds = draw_odds(file, seed), .torn = torn};
    image_resize(file->image, max_u64(size, file->size));
    for (size_t i = 0; i < file->saved_count; i++)
        if (file->saved[i] * SIM_PAGE_BYTES < file->image->usable_bytes)
            crash_page(file, file->saved[i], landed, &lottery);

    file->size = file->size_durable = size;
    file->change_count = 0;
    image_resize(file->image, size);
    zero_tail(file);
    crash_allocation(file, seed);
    for (size_t i = 0; i < file->saved_count; i++)
        drop_saved(file, file->saved[i]);
    file->saved_count = 0;
}

void sim_file_kill(struct sim_file *file)
{
    leave_mappings(file);
    thaw(file);
}

void sim_file_unwrite(struct sim_file *file, uint64_t offset, const void *data, size_t bytes)
{
    for (uint64_t p = offset / SIM_PAGE_BYTES; p * SIM_PAGE_BYTES < offset + bytes; p++)
        use_page(file, p);
    memcpy(file->image->base + offset, data, bytes);
}

/* ---------------------------------------------------------------- from outside */

/* What the medium has of page p, which may lie behind the current end. */
static const uint8_t *durable_page(const struct sim_file *file, uint64_t p)
{
    if (file->pages[p].saved != NULL)
        return file->pages[p].saved->bytes;
    if (p * SIM_PAGE_BYTES < file->image->usable_bytes)
        return page_at(file, p);
    return zero_page.bytes;
}

void sim_file_peek(const struct sim_file *file, uint64_t offset, void *buffer, size_t bytes)
{
    uint8_t *to = buffer;
    while (bytes > 0) {
        size_t within = offset % SIM_PAGE_BYTES;
        size_t part = min_u64(bytes, SIM_PAGE_BYTES - within);
        memcpy(to, durable_page(file, offset / SIM_PAGE_BYTES) + within, part);
        to += part;
        offset += part;
        bytes -= part;
    }
}

/* Change a part of one page, on the medium and, where the file still reaches, in the image. */
static void poke_page(struct sim_file *file, uint64_t offset, const uint8_t *data, size_t bytes)
{
    uint64_t p = offset / SIM_PAGE_BYTES;
    if (file->pages[p].saved != NULL)
        memcpy(own_saved(file, p)->bytes + offset % SIM_PAGE_BYTES, data, bytes);
    if (offset >= file->size)
        return;
    memcpy(use_page(file, p) + offset % SIM_PAGE_BYTES, data, min_u64(bytes, file->size - offset));
    set_allocated(file, p, true);
    file->pages[p].allocated_durable = true;
}

void sim_file_poke(struct sim_file *file, uint64_t offset, const void *data, size_t bytes)
{
    const uint8_t *from = data;
    while (bytes > 0) {
        size_t part = min_u64(bytes, SIM_PAGE_BYTES - offset % SIM_PAGE_BYTES);
        poke_page(file, offset, from, part);
        from += part;
        offset += part;
        bytes -= part;
    }
}

void sim_file_resize(struct sim_file *file, uint64_t bytes)
{
    uint64_t zero_begin = min_u64(file->size, bytes);
    sim_file_set_size(file, bytes);
    zero_saved(file, zero_begin, UINT64_MAX, SIZE_MAX);
    file->size_durable = bytes;
    file->change_count = 0;
}
