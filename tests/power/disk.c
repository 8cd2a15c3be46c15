#define _GNU_SOURCE
#include "disk.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "random.h"

enum { PAGE_BYTES = 4096 };

/* Writes since the last flush, oldest first; known to the process that serves the disk only. */
struct write {
    uint64_t offset;
    size_t bytes;
    uint8_t *data;
};

static struct {
    struct write *writes;
    size_t count, room;
} cache;

static void *shared(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

struct disk *disk_make(uint64_t bytes)
{
    struct disk *disk = shared(sizeof *disk);
    if (!disk)
        return NULL;
    disk->bytes = bytes;
    disk->cut_at = UINT64_MAX;
    disk->medium = shared(bytes);
    disk->seen = shared(bytes);
    disk->touched = shared(bytes / PAGE_BYTES);
    return disk->medium && disk->seen && disk->touched ? disk : NULL;
}

static struct write *cache_add(void)
{
    if (cache.count == cache.room) {
        size_t room = cache.room ? 2 * cache.room : 1024;
        struct write *writes = realloc(cache.writes, room * sizeof *writes);
        if (!writes)
            return NULL;
        cache.writes = writes;
        cache.room = room;
    }
    return &cache.writes[cache.count];
}

static void cache_clear(void)
{
    for (size_t i = 0; i < cache.count; i++)
        free(cache.writes[i].data);
    cache.count = 0;
}

bool disk_write(struct disk *disk, uint64_t offset, const void *data, size_t bytes)
{
    if (!disk->is_off) {
        struct write *write = cache_add();
        uint8_t *copy = malloc(bytes);
        if (!write || !copy) {
            free(copy);
            return false;
        }
        memcpy(copy, data, bytes);
        *write = (struct write){offset, bytes, copy};
        cache.count++;
    }
    memcpy(disk->seen + offset, data, bytes);
    for (uint64_t page = offset / PAGE_BYTES; page * PAGE_BYTES < offset + bytes; page++)
        disk->touched[page] = 1;
    disk->requests++;
    return true;
}

void disk_flush(struct disk *disk)
{
    for (size_t i = 0; i < cache.count; i++)
        memcpy(disk->medium + cache.writes[i].offset, cache.writes[i].data, cache.writes[i].bytes);
    cache_clear();
    disk->requests++;
}

/* ---------------------------------------------------------------- the power fails */

/* Land each piece of a write, or lose it. */
static void land_pieces(struct disk *disk, const struct write *write, size_t piece_bytes,
                        unsigned percent, uint64_t *random)
{
    for (size_t at = 0, bytes; at < write->bytes; at += bytes) {
        bytes = piece_bytes - (write->offset + at) % piece_bytes;
        if (bytes > write->bytes - at)
            bytes = write->bytes - at;
        if (random_below(random, 100) < percent)
            memcpy(disk->medium + write->offset + at, write->data + at, bytes);
        else
            disk->lost_blocks += (bytes + DISK_BLOCK_BYTES - 1) / DISK_BLOCK_BYTES;
    }
}

static void draw(struct disk *disk)
{
    uint64_t random = disk->cut_seed;
    /* Sometimes nearly everything lands, or hardly anything. */
    unsigned percent = 2 + (unsigned)random_below(&random, 97);
    size_t landing = random_below(&random, cache.count + 1);
    for (size_t i = 0; i < cache.count; i++) {
        const struct write *write = &cache.writes[i];
        disk->unflushed_blocks += (write->bytes + DISK_BLOCK_BYTES - 1) / DISK_BLOCK_BYTES;
        switch (disk->lottery) {
        case DISK_ALL_LOST:
            land_pieces(disk, write, write->bytes, 0, &random);
            break;
        case DISK_ALL_LANDED:
            land_pieces(disk, write, write->bytes, 100, &random);
            break;
        case DISK_ORDERED:
            land_pieces(disk, write, write->bytes, i < landing ? 100 : 0, &random);
            break;
        case DISK_WRITES:
            land_pieces(disk, write, disk->bytes, percent, &random);
            break;
        case DISK_PAGES:
            land_pieces(disk, write, PAGE_BYTES, percent, &random);
            break;
        default:
            land_pieces(disk, write, DISK_BLOCK_BYTES, percent, &random);
        }
    }
}

void disk_take_cut(struct disk *disk)
{
    if (disk->is_off || (!disk->cut_now && disk->requests < disk->cut_at))
        return;
    /* Whatever was promised until now had been flushed before: no request is under way. */
    disk->promised_at_cut = disk->promised;
    disk->unflushed_blocks = disk->lost_blocks = 0;
    draw(disk);
    cache_clear();
    disk->is_off = true;
}

void disk_power_on(struct disk *disk)
{
    for (uint64_t page = 0; page < disk->bytes / PAGE_BYTES; page++) {
        if (!disk->touched[page])
            continue;
        memcpy(disk->seen + page * PAGE_BYTES, disk->medium + page * PAGE_BYTES, PAGE_BYTES);
        disk->touched[page] = 0;
    }
    disk->cut_at = UINT64_MAX;
    disk->cut_now = disk->is_off = false;
}
