/*
 * moves: records that were moved while the page of the index that says where they are was not in
 * memory.
 *
 * To bring the page in for each record that the collector moves would cost more than all else that
 * it does. So such a move waits, with the segment of the index that its key belongs to: which page
 * of it has the slot is not known, but that it is one of those not in memory. Whichever of these
 * comes into memory, or is written to the file, takes the moves that are its own. The address that
 * a record had may by then be that of another, so they are told by their tags too.
 */
#ifndef FKV_MOVES_H
#define FKV_MOVES_H

#include "delta.h"

#include <stdbool.h>

#define MOVES_MAX 255u /* of a segment */

struct moves {
    uint32_t count, room;
    struct moved {
        uint64_t from, to; /* addresses; above each, half of the bits that are sure of the tag */
    } * moved;
};

/* Memory that they take, besides the structure. */
static inline uint64_t moves_bytes(const struct moves *moves)
{
    return (uint64_t)moves->room * sizeof *moves->moved;
}

/* Room for so many more; false if there is none. */
bool moves_reserve(struct moves *moves, uint32_t more);
/* There is room. A record whose move waits already is moved on. `tag` as in its slot. */
void moves_add(struct moves *moves, uint64_t tag, uint64_t from, uint64_t to);
void moves_free(struct moves *moves);

/* Change the slots of a page that have moved, and note which. The moves do not wait any more if
 * `take`. */
void moves_lay(struct moves *moves, void *page, bool take, struct units *changed);
/* Those that were laid over this page do not. */
void moves_forget(struct moves *moves, const void *page);

#endif
