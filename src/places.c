#include "places.h"

#include <assert.h>

#include "planted.h"

enum fkv_error places_make(struct places *places, const char *path, struct sector_source source)
{
    *places = (struct places){.path = path, .source = source};
    size_t bytes = (size_t)SECTORS_MAX * sizeof(uint32_t);
    return reservation_make(&places->sector_index, bytes, false) == 0 ? FKV_OK : FKV_NO_MEMORY;
}

void places_drop(struct places *places)
{
    reservation_drop(&places->sector_index);
    memory_free(places->sectors);
}

uint64_t places_memory_bytes(const struct places *places)
{
    return places->sector_index.backed_bytes + places->sector_room * sizeof *places->sectors;
}

/* ---------------------------------------------------------------- sectors */

static uint32_t *sector_slot(const struct places *places, uint32_t sector)
{
    return (uint32_t *)places->sector_index.base + sector;
}

static enum fkv_error sector_add(struct places *places, uint32_t sector)
{
    struct page_sector *sectors = memory_room(
        places->sectors, sizeof *sectors, places->sector_count + UINT64_C(1), &places->sector_room);
    if (!sectors)
        return FKV_NO_MEMORY;
    places->sectors = sectors;
    if (reservation_back(&places->sector_index, ((size_t)sector + 1) * sizeof(uint32_t)) != 0)
        return FKV_NO_MEMORY;
    places->sectors[places->sector_count++] = (struct page_sector){.sector = sector};
    *sector_slot(places, sector) = places->sector_count;
    return FKV_OK;
}

static void sector_remove(struct places *places, uint32_t at)
{
    uint32_t sector = places->sectors[at].sector;
    *sector_slot(places, sector) = 0;
    uint32_t last = --places->sector_count;
    if (at != last) {
        places->sectors[at] = places->sectors[last];
        *sector_slot(places, places->sectors[at].sector) = at + 1;
    }
    places->source.give(places->source.context, sector);
}

/* Choose the sector that the next pages go to: whole runs are worth more than full sectors. */
static enum fkv_error choose_fill(struct places *places)
{
    enum { RUN_WORTH_HAVING = 32 };
    uint32_t best = places->sector_count;
    for (uint32_t i = 0; i < places->sector_count; i++)
        if (places->sectors[i].used_count < SECTOR_PAGES &&
            (best == places->sector_count ||
             places->sectors[i].used_count < places->sectors[best].used_count))
            best = i;
    places->fill_place = 0;
    places->fill = best;
    if (best < places->sector_count && !places->fresh_sectors &&
        SECTOR_PAGES - places->sectors[best].used_count >= RUN_WORTH_HAVING)
        return FKV_OK;
    uint32_t sector;
    enum fkv_error error = places->source.take(places->source.context, &sector);
    if (!error && (error = sector_add(places, sector)))
        places->source.give(places->source.context, sector);
    if (error)
        return best < places->sector_count ? FKV_OK : error;
    places->fill = places->sector_count - 1;
    return FKV_OK;
}

/* ---------------------------------------------------------------- places */

/* The sector of a place, and where in it that is. */
static struct page_sector *sector_of(const struct places *places, uint64_t location, uint32_t *p)
{
    uint32_t at = *sector_slot(places, (uint32_t)(location / SECTOR_PAGES));
    *p = location % SECTOR_PAGES;
    assert(at);
    return &places->sectors[at - 1];
}

static bool bit_is_set(const uint64_t *bits, uint32_t p)
{
    return bits[p >> 6] >> (p & 63) & 1;
}

static void bit_set(uint64_t *bits, uint32_t p)
{
    bits[p >> 6] |= 1ull << (p & 63);
}

static void bit_clear(uint64_t *bits, uint32_t p)
{
    bits[p >> 6] &= ~(1ull << (p & 63));
}

static void use(struct places *places, struct page_sector *sector, uint32_t p)
{
    bit_set(sector->used, p);
    sector->used_count++;
    places->used_count++;
}

enum fkv_error place_take(struct places *places, uint64_t *location)
{
    for (;;) {
        if (places->fill < places->sector_count) {
            struct page_sector *sector = &places->sectors[places->fill];
            for (uint32_t p = places->fill_place; p < SECTOR_PAGES; p++) {
                if (bit_is_set(sector->used, p))
                    continue;
                use(places, sector, p);
                places->fill_place = p + 1;
                *location = (uint64_t)sector->sector * SECTOR_PAGES + p;
                return FKV_OK;
            }
        }
        enum fkv_error error = choose_fill(places);
        if (error)
            return error;
    }
}

/* Free a place; it may be the next to be taken, if its sector is the one that is filled. */
static void unuse(struct places *places, struct page_sector *sector, uint32_t p, bool in_fill)
{
    bit_clear(sector->used, p);
    sector->used_count--;
    places->used_count--;
    if (in_fill && p < places->fill_place)
        places->fill_place = p;
}

void place_retire(struct places *places, uint64_t location)
{
    uint32_t p;
    if (!location)
        return;
    struct page_sector *sector = sector_of(places, location, &p);
    assert(bit_is_set(sector->used, p));
    bit_set(sector->retired, p);
    if (PLANTED(REUSE_PAGE_EARLY) && p < places->fill_place) {
        bit_clear(sector->retired, p);
        unuse(places, sector, p, true);
    }
}

void place_give(struct places *places, uint64_t location)
{
    uint32_t p;
    struct page_sector *sector = sector_of(places, location, &p);
    bit_clear(sector->spilled, p);
    unuse(places, sector, p, sector == &places->sectors[places->fill]);
}

void place_note_spilled(struct places *places, uint64_t location)
{
    uint32_t p;
    struct page_sector *sector = sector_of(places, location, &p);
    bit_set(sector->spilled, p);
}

bool place_is_spilled(const struct places *places, uint64_t location)
{
    uint32_t p;
    if (!location)
        return false;
    const struct page_sector *sector = sector_of(places, location, &p);
    return bit_is_set(sector->spilled, p) || PLANTED(SPILL_OVER_OLD);
}

enum fkv_error place_claim(struct places *places, uint64_t location, uint64_t sector_count)
{
    uint64_t number = location / SECTOR_PAGES;
    uint32_t p;
    if (number == 0 || number >= min_u64(sector_count, SECTORS_MAX))
        return error_set(FKV_DAMAGED, "%s: a reference leads to page %llu, outside the file",
                         places->path, (unsigned long long)location);
    enum fkv_error error;
    if (!places_sector_at(places, number) && (error = sector_add(places, (uint32_t)number)))
        return error;
    struct page_sector *sector = sector_of(places, location, &p);
    if (bit_is_set(sector->used, p))
        return error_set(FKV_DAMAGED, "%s: page %llu is referred to twice", places->path,
                         (unsigned long long)location);
    use(places, sector, p);
    return FKV_OK;
}

/* ---------------------------------------------------------------- checkpoints */

void places_checkpoint_begin(struct places *places, uint64_t pages)
{
    for (uint32_t i = 0; i < places->sector_count; i++)
        memset(places->sectors[i].spilled, 0, sizeof places->sectors[i].spilled);
    places->fresh_sectors = pages > places->used_count / 2;
    if (places->fresh_sectors)
        places_choose_again(places);
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

uint32_t places_last_sector(const struct places *places)
{
    uint32_t last = 0;
    for (uint32_t i = 0; i < places->sector_count; i++)
        if (places->sectors[i].sector > last && is_in_captured_tree(&places->sectors[i]))
            last = places->sectors[i].sector;
    return last;
}

void places_checkpoint_done(struct places *places)
{
    places->fresh_sectors = false;
    for (uint32_t i = places->sector_count; i-- > 0;) {
        struct page_sector *sector = &places->sectors[i];
        uint32_t used = 0;
        for (uint32_t w = 0; w < SECTOR_PAGES / 64; w++) {
            sector->used[w] &= ~sector->retired[w];
            sector->retired[w] = 0;
            used += (uint32_t)__builtin_popcountll(sector->used[w]);
        }
        places->used_count -= sector->used_count - used;
        sector->used_count = used;
        if (!used)
            sector_remove(places, i);
    }
    places_choose_again(places); /* others may be emptier now */
}

void places_checkpoint_abandon(struct places *places)
{
    places->fresh_sectors = false;
}
