#include "image.h"

#include <stdarg.h>
#include <stdio.h>

#include "header.h"
#include "memory.h"
#include "tree.h"

void report(struct report *to, enum fkv_part part, uint64_t offset, const char *format, ...)
{
    char text[320];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    to->say(to, &(fkv_problem){.part = part, .offset = offset, .text = text});
}

const char *image_space_name(enum space space)
{
    static const char *const names[SPACE_COUNT] = {"index", "directory", "sector table",
                                                   "deletion map"};
    return names[space];
}

/* ---------------------------------------------------------------- opening */

static bool is_known(const struct format_header *header)
{
    return header_is_whole(header) && header->version == FORMAT_VERSION &&
           !(header->features & ~(uint32_t)FEATURE_DIGEST);
}

enum fkv_error image_open(struct image *image, const struct os_ops *ops, struct os_file *file,
                          const char *path)
{
    *image = (struct image){.ops = ops, .file = file, .path = path};
    int status = ops->size(file, &image->file_bytes);
    if (status)
        return error_os(status, "size of", path);
    image->sector_count =
        (uint32_t)min_u64(divide_up(image->file_bytes, SECTOR_BYTES), SECTORS_MAX);
    for (int i = 0; i < 2; i++) {
        struct format_header *copy = &image->copies[i];
        uint8_t page[PAGE_BYTES];
        image_read(image, (uint64_t)i * PAGE_BYTES, sizeof page, page);
        memcpy(copy, page, sizeof *copy);
        image->whole[i] = is_known(copy);
        if (image->whole[i] && (!image->header || copy->sequence > image->header->sequence))
            image->header = copy;
    }
    return FKV_OK;
}

void image_drop(struct image *image)
{
    for (int s = 0; s < SPACE_COUNT; s++)
        memory_free(image->space[s].pages);
    memory_free(image->claimed);
}

uint32_t image_read(const struct image *image, uint64_t offset, size_t bytes, uint8_t *to)
{
    uint32_t lost = 0;
    if (offset + bytes <= image->file_bytes &&
        image->ops->read(image->file, to, bytes, offset) == 0)
        return 0;
    for (size_t at = 0, part; at < bytes; at += part) {
        part = PAGE_BYTES - (offset + at) % PAGE_BYTES;
        if (part > bytes - at)
            part = bytes - at;
        size_t have = part;
        if (offset + at >= image->file_bytes)
            have = 0;
        else if (offset + at + part > image->file_bytes)
            have = (size_t)(image->file_bytes - offset - at);
        if (have < part || image->ops->read(image->file, to + at, have, offset + at) != 0) {
            bool some = have && image->ops->read(image->file, to + at, have, offset + at) == 0;
            memset(to + at + (some ? have : 0), 0, part - (some ? have : 0));
            lost++;
        }
    }
    return lost;
}

/* ---------------------------------------------------------------- trees */

bool image_is_claimed(const struct image *image, uint64_t location)
{
    return location < (uint64_t)image->sector_count * SECTOR_PAGES &&
           (image->claimed[location >> 6] >> (location & 63) & 1);
}

bool image_has_pages(const struct image *image, uint32_t sector)
{
    if (sector >= image->sector_count)
        return false;
    const uint64_t *words = image->claimed + (size_t)sector * (SECTOR_PAGES / 64);
    return words[0] | words[1] | words[2] | words[3];
}

/* Note that something refers to a page of the file; false if that cannot be. */
static bool claim(struct image *image, uint64_t location, enum space space, uint32_t level,
                  uint64_t number, struct report *problems)
{
    const char *what = level ? "node" : "page";
    if (location < SECTOR_PAGES || location / SECTOR_PAGES >= image->sector_count) {
        report(problems, FKV_PART_PAGES, NOWHERE,
               "the %s %s %llu (level %u) is said to be at page %llu, outside the file",
               image_space_name(space), what, (unsigned long long)number, level,
               (unsigned long long)location);
        return false;
    }
    if (image_is_claimed(image, location)) {
        report(problems, FKV_PART_PAGES, location * PAGE_BYTES,
               "page %llu of the file is referred to twice, once as the %s %s %llu (level %u)",
               (unsigned long long)location, image_space_name(space), what,
               (unsigned long long)number, level);
        return true;
    }
    image->claimed[location >> 6] |= 1ull << (location & 63);
    image->pages_stored++;
    return true;
}

enum fkv_error image_reference(const struct image *image, struct format_reference from,
                               uint64_t seed, void *bytes)
{
    if (image->ops->read(image->file, bytes, PAGE_BYTES, from.location * PAGE_BYTES) != 0)
        return FKV_IO;
    return page_checksum(bytes, seed) == from.checksum ? FKV_OK : FKV_DAMAGED;
}

/* Read one node; its references go to `children`, of which there are `count`. */
static void load_node(struct image *image, enum space space, uint32_t level, uint32_t number,
                      struct format_reference from, struct format_reference *children,
                      uint32_t count, struct report *problems)
{
    struct format_reference references[NODE_FANOUT];
    bool known = from.location != IMAGE_UNKNOWN;
    if (known && from.location == 0)
        return; /* zeros */
    if (known)
        known = claim(image, from.location, space, level + 1, number, problems);
    if (known) {
        enum fkv_error error =
            image_reference(image, from, page_seed(space, level + 1, number), references);
        known = !error;
        if (error)
            report(
                problems, FKV_PART_PAGES, from.location * PAGE_BYTES,
                "the %s node %u (level %u) at page %llu of the file %s: what it leads to is lost",
                image_space_name(space), number, level + 1, (unsigned long long)from.location,
                error == FKV_IO ? "cannot be read" : "fails its checksum");
    }
    for (uint32_t i = 0; i < count; i++)
        children[i] = known ? references[i] : (struct format_reference){.location = IMAGE_UNKNOWN};
}

static enum fkv_error load_space(struct image *image, enum space which,
                                 const struct format_space *root, struct report *problems)
{
    struct image_space *space = &image->space[which];
    if (root->height != space_height(root->pages) ||
        (uint64_t)root->pages > ((uint64_t)image->sector_count + 1) * SECTOR_PAGES * NODE_FANOUT) {
        report(problems, FKV_PART_PAGES, NOWHERE, "the header names an impossible tree of %s pages",
               image_space_name(which));
        return FKV_OK;
    }
    struct format_reference *level = memory_new(sizeof *level);
    if (!level)
        return FKV_NO_MEMORY;
    level[0] = root->root;
    for (uint32_t k = root->height; k-- > 0;) {
        uint32_t below = k ? level_count(root->pages, k - 1) : root->pages;
        struct format_reference *children = memory_new(below * sizeof *children);
        if (!children) {
            memory_free(level);
            return FKV_NO_MEMORY;
        }
        for (uint32_t n = 0; n < level_count(root->pages, k); n++)
            load_node(image, which, k, n, level[n], children + (size_t)n * NODE_FANOUT,
                      (uint32_t)min_u64(NODE_FANOUT, below - (uint64_t)n * NODE_FANOUT), problems);
        memory_free(level);
        level = children;
    }
    space->pages = level;
    space->page_count = root->pages;
    for (uint32_t p = 0; p < root->pages; p++)
        if (level[p].location && level[p].location != IMAGE_UNKNOWN &&
            !claim(image, level[p].location, which, 0, p, problems))
            level[p].location = IMAGE_UNKNOWN;
    return FKV_OK;
}

enum fkv_error image_load(struct image *image, const struct format_header *header,
                          struct report *problems)
{
    image->claimed = memory_new(((size_t)image->sector_count + 1) * (SECTOR_PAGES / 8));
    enum fkv_error error = image->claimed ? FKV_OK : FKV_NO_MEMORY;
    for (int s = 0; !error && s < SPACE_COUNT; s++)
        error = load_space(image, s, &header->spaces[s], problems);
    return error;
}

enum fkv_error image_page(const struct image *image, enum space space, uint32_t number, void *bytes)
{
    if (number >= image->space[space].page_count)
        return FKV_DAMAGED;
    struct format_reference from = image->space[space].pages[number];
    if (from.location == IMAGE_UNKNOWN)
        return FKV_DAMAGED;
    if (from.location == 0) {
        memset(bytes, 0, PAGE_BYTES);
        return FKV_OK;
    }
    return image_reference(image, from, page_seed(space, 0, number), bytes) ? FKV_DAMAGED : FKV_OK;
}

enum fkv_error image_table_entry(const struct image *image, uint32_t sector, uint8_t *page,
                                 uint32_t *page_number, struct format_sector *entry)
{
    uint32_t number = sector / SECTORS_PER_PAGE;
    if (*page_number != number) {
        *page_number = UINT32_MAX;
        if (image_page(image, SPACE_SECTORS, number, page))
            return FKV_DAMAGED;
        *page_number = number;
    }
    memcpy(entry, page + sector % SECTORS_PER_PAGE * sizeof *entry, sizeof *entry);
    return FKV_OK;
}

/* ---------------------------------------------------------------- sectors */

bool image_sector_header(const struct image *image, uint32_t sector,
                         struct format_sector_header *header)
{
    uint8_t bytes[sizeof *header];
    image_read(image, (uint64_t)sector * SECTOR_BYTES, sizeof bytes, bytes);
    return sector_header_read(bytes, header) && header->sector == sector;
}

uint32_t image_find_store(const struct image *image, uint8_t store_id[16])
{
    struct format_sector_header header;
    uint32_t lead = 0, count = 0; /* Boyer and Moore: whoever has the majority is left over */
    for (uint32_t s = 1; s < image->sector_count; s++) {
        if (!image_sector_header(image, s, &header))
            continue;
        if (!lead)
            memcpy(store_id, header.store_id, sizeof header.store_id);
        if (memcmp(store_id, header.store_id, sizeof header.store_id) == 0)
            lead++;
        else
            lead--;
    }
    for (uint32_t s = 1; s < image->sector_count; s++)
        count += image_sector_header(image, s, &header) &&
                 memcmp(store_id, header.store_id, sizeof header.store_id) == 0;
    return count;
}
