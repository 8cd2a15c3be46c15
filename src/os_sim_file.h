/*
 * os_sim_file: one file of the simulated disk: its bytes, what of them is durable, and the lottery
 * at a crash. Knows nothing of names, handles, plans and locks: os_sim.c does, and holds its lock
 * in every call. For tests only.
 */
#ifndef FKV_OS_SIM_FILE_H
#define FKV_OS_SIM_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_BLOCK_BYTES 512u
#define SIM_PAGE_BYTES 4096u

/* The bytes as the process sees them, at an address that never changes: mappings lie in it. Owned
 * by the file and by each mapping together, so that those of a dead process outlive the file. */
struct sim_image {
    uint8_t *base;
    uint64_t reserved_bytes;
    uint64_t usable_bytes; /* the rest is not accessible */
    uint8_t *used;         /* a byte a page, usable or not: it may hold something but zeros */
    uint64_t changes;      /* so far, of pages of it, which may change without being counted */
    uint64_t *changed;     /* where that number was when a page changed last */
    uint64_t id;           /* of what it holds */
    /* What it was copied from, and where both numbers were then. */
    uint64_t copy_of, changes_of_original, changes_of_copy;
    unsigned references;
    struct sim_image *next; /* in the pool */
};

struct sim_image *sim_image_share(struct sim_image *image);
void sim_image_release(struct sim_image *image);

/* What a page holds on the medium, while that may differ from the image. */
struct sim_saved {
    uint8_t *clean;  /* see sim_file_sync_failed; usually NULL */
    uint8_t *frozen; /* see sim_file_freeze; usually NULL */
    /* How many changes there had been when a block last landed: they do not apply to it. */
    size_t landed_at[SIM_PAGE_BYTES / SIM_BLOCK_BYTES];
    uint8_t bytes[SIM_PAGE_BYTES];
};

struct sim_page {
    struct sim_saved *saved; /* NULL: the medium has what the image has */
    bool mapped; /* saved because it is mapped for writing, or was since the last sync */
    bool allocated;
    bool allocated_durable;
};

/* A change of the size, or a hole, that no sync has covered yet. */
struct sim_change {
    uint64_t zero_begin, zero_end; /* bytes that it made zero */
    uint64_t size;                 /* afterwards */
    bool shrink;
};

struct sim_range {
    uint64_t begin, end;
};

struct sim_file {
    uint64_t id; /* goes into the lottery, so that files differ */
    unsigned references;
    struct sim_image *image;
    uint64_t size, size_durable;
    struct sim_page *pages;
    uint64_t page_count; /* entries of `pages`: enough for every size the file ever had */
    uint64_t allocated_pages;
    uint64_t *saved; /* the numbers of the pages that have `saved` */
    size_t saved_count, saved_room;
    struct sim_change *changes;
    size_t change_count, change_room;
    struct sim_range *mapped; /* what is mapped for writing now */
    size_t mapped_count, mapped_room;
    uint64_t hole_stores;
    bool frozen;
};

/* Deterministic randomness: 64 bits drawn from a seed and two numbers. */
uint64_t sim_roll(uint64_t seed, uint64_t a, uint64_t b);
_Noreturn void sim_die(const char *what);
/* calloc and realloc that do not return without memory. */
void *sim_new(size_t bytes);
void *sim_grow(void *array, size_t bytes);

/* Files are counted: made with one reference. */
struct sim_file *sim_file_new(uint64_t id, uint64_t reserved_bytes);
struct sim_file *sim_file_copy(struct sim_file *file);
struct sim_file *sim_file_share(struct sim_file *file);
void sim_file_release(struct sim_file *file);

/* How many pages a write or an allocation here would allocate; or, given how many there are, how
 * many of the bytes fit. */
uint64_t sim_file_pages_missing(const struct sim_file *file, uint64_t offset, uint64_t bytes);
size_t sim_file_bytes_fitting(const struct sim_file *file, uint64_t offset, size_t bytes,
                              uint64_t free_pages);

/* All of these change the current image; the caller has checked the space and the limits. */
void sim_file_write(struct sim_file *file, uint64_t offset, const void *data, size_t bytes,
                    uint64_t seed);
void sim_file_set_size(struct sim_file *file, uint64_t bytes);
void sim_file_allocate(struct sim_file *file, uint64_t offset, uint64_t bytes);
void sim_file_punch(struct sim_file *file, uint64_t offset, uint64_t bytes);

/* A writable mapping begins, ends. Read-only ones are nothing to the file. */
void sim_file_mapped(struct sim_file *file, uint64_t offset, uint64_t bytes);
void sim_file_unmapped(struct sim_file *file, uint64_t offset, uint64_t bytes);

void sim_file_sync(struct sim_file *file);
/* Some blocks land, some are torn; the pages are taken for clean, until they are written again. */
void sim_file_sync_failed(struct sim_file *file, uint64_t seed);
/* Some of the unsynced blocks that lie in [begin, end) land. */
void sim_file_writeback(struct sim_file *file, uint64_t begin, uint64_t end, uint64_t seed);
void sim_file_evict(struct sim_file *file);

/* The power has failed, or the process died, and the lottery is yet to come: stores through
 * mappings are those of a ghost from now on. */
void sim_file_freeze(struct sim_file *file);
/* The power fails; [torn.begin, torn.end) was being written. No mapping is the file's afterwards,
 * and everything that is left is durable. */
void sim_file_crash(struct sim_file *file, uint64_t seed, struct sim_range torn);
/* The process dies: no mapping is the file's afterwards. */
void sim_file_kill(struct sim_file *file);
/* Undo the end of a write, from `offset` on: `data` is what had been there. */
void sim_file_unwrite(struct sim_file *file, uint64_t offset, const void *data, size_t bytes);

/* Durable bytes, within the durable size; and changes from outside, durable at once. */
void sim_file_peek(const struct sim_file *file, uint64_t offset, void *buffer, size_t bytes);
void sim_file_poke(struct sim_file *file, uint64_t offset, const void *data, size_t bytes);
void sim_file_resize(struct sim_file *file, uint64_t bytes);

#endif
