#include "compose.h"

#include "index_slots.h"
#include "tree.h"

/* ---------------------------------------------------------------- pages */

/* Put a page, or a node, into the file; pages of zeros are not stored. */
static enum fkv_error write_page(struct compose *compose, const void *bytes, uint64_t seed,
                                 struct format_reference *reference)
{
    enum fkv_error error;
    *reference = (struct format_reference){0};
    if (page_is_zero(bytes))
        return FKV_OK;
    if (!compose->pages) {
        if ((error = compose_sector(compose, &compose->pages)))
            return error;
        compose->page = 0;
    }
    memcpy(compose->buffer + compose->page * PAGE_BYTES, bytes, PAGE_BYTES);
    reference->location = (uint64_t)compose->pages * SECTOR_PAGES + compose->page;
    reference->checksum = page_checksum(bytes, seed);
    if (++compose->page < SECTOR_PAGES)
        return FKV_OK;
    error = compose_write(compose, compose->buffer, compose->pages);
    compose->pages = 0;
    return error;
}

/* The last sector of pages. */
static enum fkv_error write_last(struct compose *compose)
{
    if (!compose->pages)
        return FKV_OK;
    memset(compose->buffer + compose->page * PAGE_BYTES, 0,
           (SECTOR_PAGES - compose->page) * PAGE_BYTES);
    return compose_write(compose, compose->buffer, compose->pages);
}

/* The next page of a space. */
static enum fkv_error add_page(struct compose *compose, enum space which, const void *bytes)
{
    struct composed_space *space = &compose->space[which];
    uint64_t room = space->room;
    enum fkv_error error =
        compose_room((void **)&space->references, sizeof *space->references, space->count, &room);
    if (error)
        return error;
    space->room = (uint32_t)room;
    error = write_page(compose, bytes, page_seed(which, 0, space->count),
                       &space->references[space->count]);
    space->count++;
    return error;
}

/* The nodes of a level over `count` references, which those to the nodes take the place of. */
static enum fkv_error write_level(struct compose *compose, enum space which, uint32_t level,
                                  struct format_reference *references, uint32_t count)
{
    enum fkv_error error = FKV_OK;
    for (uint32_t n = 0; !error && n < divide_up(count, NODE_FANOUT); n++) {
        struct format_reference node[NODE_FANOUT] = {0};
        uint32_t first = n * NODE_FANOUT;
        memcpy(node, references + first,
               min_u64(count - first, NODE_FANOUT) * sizeof(struct format_reference));
        error = write_page(compose, node, page_seed(which, level + 1, n), &references[n]);
    }
    return error;
}

/* Where no page of a space is stored, nor is any node. */
static enum fkv_error write_tree(struct compose *compose, enum space which, uint32_t page_count)
{
    struct composed_space *space = &compose->space[which];
    struct format_space *root = &compose->header.spaces[which];
    root->pages = page_count;
    root->height = space_height(page_count);
    enum fkv_error error = FKV_OK;
    uint32_t count = space->count;
    if (!count)
        return FKV_OK;
    for (uint32_t k = 0; !error && k < root->height; k++, count = divide_up(count, NODE_FANOUT))
        error = write_level(compose, which, k, space->references, count);
    root->root = space->references[0];
    return error;
}

/* ---------------------------------------------------------------- the index */

static void insert(struct compose *compose, const struct composed_key *key,
                   const struct format_segment *segment)
{
    struct bucket *buckets = (struct bucket *)compose->segment;
    struct fragment fragment = fragment_of(key->hash, segment->depth);
    struct probe probe = probe_of(fragment.tag, segment->pages);
    for (uint32_t i = 0; i < probes_max(segment->pages); i++) {
        uint32_t page;
        uint32_t at = probe_at(&probe, segment->pages, i, &page);
        struct bucket *bucket = &buckets[page * BUCKETS_PER_PAGE + at];
        if (bucket_fill(bucket, fragment.tag, key->entry | (uint64_t)fragment.low << LOW_SHIFT))
            return;
        bucket_mark(bucket, probe.class);
    }
}

/* An array of entries that goes to the file page by page. */
struct paged {
    enum space space;
    uint32_t count; /* entries so far */
    _Alignas(8) uint8_t page[PAGE_BYTES];
};

static enum fkv_error paged_add(struct compose *compose, struct paged *paged, const void *entry,
                                size_t bytes)
{
    size_t at = paged->count++ * bytes % PAGE_BYTES;
    memcpy(paged->page + at, entry, bytes);
    if (at + bytes < PAGE_BYTES)
        return FKV_OK;
    enum fkv_error error = add_page(compose, paged->space, paged->page);
    memset(paged->page, 0, PAGE_BYTES);
    return error;
}

static enum fkv_error paged_end(struct compose *compose, struct paged *paged, size_t bytes)
{
    return paged->count * bytes % PAGE_BYTES ? add_page(compose, paged->space, paged->page)
                                             : FKV_OK;
}

static enum fkv_error write_segment(struct compose *compose, struct paged *directory,
                                    const struct composed_key *keys, uint64_t count, uint32_t depth,
                                    uint32_t prefix)
{
    uint32_t pages = segment_pages_for((uint32_t)count);
    struct format_segment segment = {.prefix = prefix,
                                     .depth = (uint8_t)depth,
                                     .pages = (uint8_t)min_u64(pages, SEGMENT_PAGES_MAX),
                                     .count = (uint16_t)count};
    enum fkv_error error = FKV_OK;
    if (count > segment.pages * SLOTS_PER_PAGE) /* at the last depth: no keys do this */
        return error_set(FKV_FULL, "%s: the index has its largest size", compose->path);
    memset(compose->segment, 0, segment.pages * PAGE_BYTES);
    for (uint64_t i = 0; i < count; i++)
        insert(compose, &keys[i], &segment);
    for (uint32_t p = 0; !error && p < segment.pages; p++) {
        segment.page[p] = compose->space[SPACE_INDEX].count;
        error = add_page(compose, SPACE_INDEX, compose->segment + p * PAGE_BYTES);
    }
    return error ? error : paged_add(compose, directory, &segment, sizeof segment);
}

/* Bring the keys whose hash has a 0 here before those that have a 1; returns how many they are. */
static uint64_t divide_keys(struct composed_key *keys, uint64_t count, uint32_t bit)
{
    uint64_t low = 0, high = count;
    while (low < high) {
        if (!(keys[low].hash.hi >> (63 - bit) & 1)) {
            low++;
            continue;
        }
        struct composed_key moved = keys[--high];
        keys[high] = keys[low];
        keys[low] = moved;
    }
    return low;
}

/* Segments for all keys of a prefix: one, or those of its halves. As deep as the index is. */
static enum fkv_error write_segments(struct compose *compose, struct paged *directory,
                                     struct composed_key *keys, uint64_t count, uint32_t depth,
                                     uint32_t prefix)
{
    if (count <= SEGMENT_PAGES_MAX * SLOTS_USED_FRESH || depth == INDEX_DEPTH_MAX)
        return write_segment(compose, directory, keys, count, depth, prefix);
    uint64_t zeros = divide_keys(keys, count, depth);
    enum fkv_error error = write_segments(compose, directory, keys, zeros, depth + 1, prefix << 1);
    return error ? error
                 : write_segments(compose, directory, keys + zeros, count - zeros, depth + 1,
                                  prefix << 1 | 1);
}

static enum fkv_error write_index(struct compose *compose)
{
    struct paged directory = {.space = SPACE_DIRECTORY, .count = 1}; /* entry 0 is none */
    compose->segment = memory_buffer(SEGMENT_PAGES_MAX * PAGE_BYTES);
    if (!compose->segment)
        return FKV_NO_MEMORY;
    enum fkv_error error =
        write_segments(compose, &directory, compose->keys, compose->key_count, 0, 0);
    if (!error)
        error = paged_end(compose, &directory, sizeof(struct format_segment));
    compose->header.segments = directory.count;
    return error;
}

/* ---------------------------------------------------------------- the table */

/* Sectors of pages are free in it: those that are still to come need no entry. */
static enum fkv_error write_table(struct compose *compose)
{
    struct paged table = {.space = SPACE_SECTORS};
    enum fkv_error error = FKV_OK;
    uint32_t count = (uint32_t)compose->header.sector_count;
    for (uint32_t s = 0; !error && s < count; s++)
        error = paged_add(compose, &table, &compose->table[s], sizeof compose->table[s]);
    return error ? error : paged_end(compose, &table, sizeof(struct format_sector));
}

enum fkv_error compose_pages(struct compose *compose)
{
    compose->table[0] = (struct format_sector){.type = SECTOR_FREE};
    enum fkv_error error = write_index(compose);
    if (error || (error = write_table(compose)))
        return error;
    for (int s = 0; !error && s < SPACE_MAPS; s++)
        error = write_tree(compose, s, compose->space[s].count);
    if (!error)
        error = write_last(compose);
    if (!error)
        error = write_tree(compose, SPACE_MAPS, (uint32_t)compose->header.sector_count * 2);
    return error;
}
