#include "moves.h"

#include "index_slots.h"
#include "memory.h"

bool moves_reserve(struct moves *moves, uint32_t more)
{
    uint32_t least = moves->count + more;
    if (least <= moves->room)
        return true;
    if (least > MOVES_MAX)
        return false;
    uint32_t room = (uint32_t)min_u64(least + least / 2, MOVES_MAX);
    struct moved *moved = memory_resize(moves->moved, room * sizeof *moved);
    if (!moved)
        return false;
    moves->moved = moved;
    moves->room = room;
    return true;
}

/* Halves of the tag bits that every slot is sure to know: so many bits each. */
enum { HALF_BITS = 23, SURE_SHIFT = 16 };
static_assert(CELL_ADDRESS_BITS + HALF_BITS == 64, "an address and half of a tag");
static_assert(TAG_SURE == ((UINT64_C(1) << 2 * HALF_BITS) - 1) << SURE_SHIFT, "two halves");

static uint64_t low_half(uint64_t tag)
{
    return tag >> SURE_SHIFT << CELL_ADDRESS_BITS;
}

static uint64_t high_half(uint64_t tag)
{
    return tag >> (SURE_SHIFT + HALF_BITS) << CELL_ADDRESS_BITS;
}

void moves_add(struct moves *moves, uint64_t tag, uint64_t from, uint64_t to)
{
    to |= high_half(tag);
    for (uint32_t i = 0; i < moves->count; i++)
        if (moves->moved[i].to == (from | high_half(tag))) {
            moves->moved[i].to = to;
            return;
        }
    moves->moved[moves->count++] = (struct moved){from | low_half(tag), to};
}

void moves_free(struct moves *moves)
{
    memory_free(moves->moved);
    *moves = (struct moves){0};
}

/* The moves by a few bits of their tags, so that a page is gone through once. */
struct bins {
    uint8_t first[256]; /* 1 + the number of the move; 0 ends a list */
    uint8_t next[MOVES_MAX];
};

static void bins_fill(struct bins *bins, const struct moves *moves)
{
    memset(bins->first, 0, sizeof bins->first);
    for (uint32_t i = 0; i < moves->count; i++) {
        uint8_t bin = (uint8_t)(moves->moved[i].from >> CELL_ADDRESS_BITS);
        bins->next[i] = bins->first[bin];
        bins->first[bin] = (uint8_t)(i + 1);
    }
}

/* The move of a slot's record that has left its address, or, if `laid`, is at it; or NULL. */
static struct moved *bins_find(const struct bins *bins, const struct moves *moves,
                               const struct slot *slot, bool laid)
{
    uint64_t address = entry_address(slot->entry);
    uint64_t from = address | low_half(slot->tag), to = address | high_half(slot->tag);
    uint8_t bin = (uint8_t)(from >> CELL_ADDRESS_BITS);
    for (uint32_t i = bins->first[bin]; i; i = bins->next[i - 1]) {
        struct moved *moved = &moves->moved[i - 1];
        /* The other half agrees too, or it is another key's that had the address later. */
        if (laid ? moved->to == to && (moved->from ^ from) >> CELL_ADDRESS_BITS == 0
                 : moved->from == from && (moved->to ^ to) >> CELL_ADDRESS_BITS == 0)
            return moved;
    }
    return NULL;
}

/* Address 0, where no record is, in `to`: it does not wait any more. */
static void drop_taken(struct moves *moves)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < moves->count; i++)
        if (moves->moved[i].to)
            moves->moved[left++] = moves->moved[i];
    moves->count = left;
}

void moves_lay(struct moves *moves, void *page, bool take, struct units *changed)
{
    struct slot *slots = page;
    struct bins bins;
    bins_fill(&bins, moves);
    for (uint32_t s = 0; s < SLOTS_PER_PAGE; s++) {
        struct moved *moved = bins_find(&bins, moves, &slots[s], false);
        if (!moved)
            continue;
        slots[s].entry = entry_moved(slots[s].entry, moved->to & ENTRY_ADDRESS_MASK);
        units_add(changed, s);
        if (take)
            moved->to = 0;
    }
    if (take)
        drop_taken(moves);
}

void moves_forget(struct moves *moves, const void *page)
{
    const struct slot *slots = page;
    struct bins bins;
    bins_fill(&bins, moves);
    for (uint32_t s = 0; s < SLOTS_PER_PAGE; s++) {
        struct moved *moved = bins_find(&bins, moves, &slots[s], true);
        if (moved)
            moved->to = 0;
    }
    drop_taken(moves);
}
