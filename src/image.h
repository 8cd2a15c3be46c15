/*
 * image: the files of a store as they lie on the disk, in whatever state.
 *
 * Opening a store stops at the first thing that is wrong. An image is for looking at what is there:
 * the two copies of the header, the trees of pages as far as they can be followed, sectors as far
 * as they can be read, the frames of the log. Nothing is trusted that has no checksum, nothing is
 * changed, and nothing but the references to pages is kept in memory. What is wrong is reported,
 * and passed over. Checks and repairs are built on it.
 *
 * Files are read with calls and never mapped: a medium that fails is an error, not a signal.
 */
#ifndef FKV_IMAGE_H
#define FKV_IMAGE_H

#include "error.h"
#include "format.h"
#include "os.h"

/* ---------------------------------------------------------------- reports */

/* Where problems are told. */
struct report {
    void (*say)(struct report *report, const fkv_problem *problem);
};

#define NOWHERE UINT64_MAX

void report(struct report *report, enum fkv_part part, uint64_t offset, const char *format, ...)
    __attribute__((format(printf, 4, 5), cold));

/* ---------------------------------------------------------------- the file */

struct image_space {
    struct format_reference *pages; /* a location of IMAGE_UNKNOWN: nothing leads to the page */
    uint32_t page_count;
};
#define IMAGE_UNKNOWN UINT64_MAX

struct image {
    const struct os_ops *ops;
    struct os_file *file;
    const char *path;
    uint64_t file_bytes;
    uint32_t sector_count; /* that the file has, a part of one at its end included */
    struct format_header copies[2];
    bool whole[2];
    const struct format_header *header; /* the copy that counts; NULL: neither */
    struct image_space space[SPACE_COUNT];
    uint64_t *claimed;     /* a bit a page of the file: something refers to it */
    uint64_t pages_stored; /* pages and nodes that have a place in the file */
};

/* Read the header's copies. Fails where nothing can be said of the file at all. */
enum fkv_error image_open(struct image *image, const struct os_ops *ops, struct os_file *file,
                          const char *path);
void image_drop(struct image *image);

/* Follow the trees from the roots of this header. FKV_OK or FKV_NO_MEMORY. */
enum fkv_error image_load(struct image *image, const struct format_header *header,
                          struct report *report);

/* Read what a reference leads to. FKV_IO, or FKV_DAMAGED if it is something else. */
enum fkv_error image_reference(const struct image *image, struct format_reference from,
                               uint64_t seed, void *bytes);

/* A page as the file has it. FKV_DAMAGED if it cannot be read or is not what its reference says. */
enum fkv_error image_page(const struct image *image, enum space space, uint32_t number,
                          void *bytes);

/* Is anything of the trees in this page of the file, in this sector? */
bool image_is_claimed(const struct image *image, uint64_t location);
bool image_has_pages(const struct image *image, uint32_t sector);

/* The entry of a sector in the table; FKV_DAMAGED if the page is lost. *page_number is that of the
 * page in `page`, UINT32_MAX at first. */
enum fkv_error image_table_entry(const struct image *image, uint32_t sector, uint8_t *page,
                                 uint32_t *page_number, struct format_sector *entry);

/* Read a range. Pages that cannot be read, and what is beyond the end, are zeros: returns how many.
 */
uint32_t image_read(const struct image *image, uint64_t offset, size_t bytes, uint8_t *to);

/* The header of this sector, if there is a whole one: of any store and type. */
bool image_sector_header(const struct image *image, uint32_t sector,
                         struct format_sector_header *header);

/* The store that most sectors with a header belong to; returns how many do. For files that have
 * lost both copies of their own. */
uint32_t image_find_store(const struct image *image, uint8_t store_id[16]);

/* What a page, or a node, is called in a message. */
const char *image_space_name(enum space space);

/* ---------------------------------------------------------------- the log */

struct image_log {
    const struct os_ops *ops;
    struct os_file *file; /* NULL: there is none */
    const char *path;
    uint64_t size;
    uint64_t seed;
    bool unreadable; /* some of it could not be read */
    uint8_t *window; /* bytes from `window_offset` on */
    uint64_t window_offset;
    size_t window_bytes, window_room;
};

/* The log of the store with this id, open in `file`. FKV_OK, FKV_NO_MEMORY, or the error of asking
 * for its size. */
enum fkv_error image_log_open(struct image_log *log, const struct os_ops *ops, struct os_file *file,
                              const char *path, const uint8_t store_id[16]);
void image_log_drop(struct image_log *log);

/* Say what is wrong with the header of the log. */
bool image_log_header(struct image_log *log, const uint8_t store_id[16], struct report *report);

/* The whole frame that is at this offset; its operations are at *bytes, until the next call. False
 * if there is none. FKV_NO_MEMORY leaves *error so. */
bool image_log_frame(struct image_log *log, uint64_t offset, struct format_frame *frame,
                     const uint8_t **operations, enum fkv_error *error);

/* The first whole frame at `offset` or after it; UINT64_MAX if there is none. */
uint64_t image_log_find(struct image_log *log, uint64_t offset, struct format_frame *frame,
                        enum fkv_error *error);

/* Bytes of the log, all of which it has; until the next call. NULL if they cannot be read. */
const uint8_t *image_log_bytes(struct image_log *log, uint64_t offset, size_t bytes,
                               enum fkv_error *error);

/* Where the frame after this one begins, if the chain goes on. */
static inline uint64_t image_log_after(uint64_t offset, const struct format_frame *frame)
{
    return frame->flags & FRAME_WRAP ? LOG_FRAMES_OFFSET : offset + frame->bytes;
}

#endif
