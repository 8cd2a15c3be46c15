/*
 * load.pml: a page of a limited index comes into memory and leaves it: pages_load_step of
 * src/pages.c, which readers call and which reads the file without a lock, beside the writer, who
 * changes the page, spills it, parks it, spills it while it is parked, and takes it out of memory;
 * and who uses the places again that the page has left. Checked exhaustively by
 * scripts/check-models.
 *
 * What must hold: whoever looks at the page sees what it holds; nobody finds it damaged.
 *
 * What the page holds is 0 or 1, so that it comes to be as it was before; its checksum is the same, and
 * so is its delta, which says what it comes to be over whatever the file has. A place in the file holds such a number, or what is written there
 * for another page, or, while it is written to, neither. A step is one hold of load_lock, one read, or
 * one half of a write. There is no checkpoint: it runs beside none of this but eviction. All places
 * that the page is spilled to are in no tree and free again at once (location_give).
 *
 * Bugs: BUG_NO_COMPARE takes what was read wherever the page is by now; BUG_NOT_AGAIN does not read it
 * again under the lock if it seems damaged; BUG_SPILL_IN_PLACE writes a parked page to where it lies;
 * BUG_NO_RELOCK takes note of that spill without load_lock, in two steps.
 */
#ifndef READERS
#define READERS 2
#endif
#ifndef CHANGES
#define CHANGES 3
#endif
#define PLACES 2
#define OTHER 254 /* what another page has */
#define TORN 255

byte value;             /* what the page holds */
byte frame;             /* what its frame holds, and is there one? */
bit here = 1;
bit changed;            /* since the file had it: dirty */
bit parked;             /* its delta is kept */
byte location, checksum; /* page->location, page->checksum */
byte place[PLACES];     /* the file */
byte changes;
bit lock;               /* load_lock */

#define free_place (1 - location)

/* The delta is laid over what the file has, whatever that is. copy_adopt, unpark. */
inline adopt(what)
{
    frame = (parked -> value : what);
    here = 1;
    parked = 0;
    assert(frame == value)
}

proctype writer()
{
end: /* if no reader brings the page in any more */
    do
    /* pages_write. Who changes the page finds it in memory: to bring it in he does what readers do. */
    :: atomic { here && changes < CHANGES -> changes++; value = 1 - value; frame = value; changed = 1 }
    /* pages_spill: the page is in a frame. Back to the same place, or elsewhere; the lock is not taken. */
    :: here && changed ->
        if
        :: place[location] = TORN; place[location] = value
        :: place[free_place] = TORN; place[free_place] = value; location = free_place
        fi;
        checksum = value;
        changed = 0
    /* pages_evict, pages_park: with load_lock. */
    :: atomic { here && !lock -> here = 0; frame = 0; parked = changed }
    /* pages_spill_parked: the file is read, the delta laid over it, and all that is written elsewhere;
     * a reader may bring the page in meanwhile. */
    :: parked ->
        assert(place[location] == checksum); /* read_from */
#ifdef BUG_SPILL_IN_PLACE
        place[location] = TORN; place[location] = value;
        atomic { !lock -> checksum = value; parked = 0; changed = 0 }
#else
        place[free_place] = TORN; place[free_place] = value;
#ifdef BUG_NO_RELOCK
        location = free_place;
        checksum = value; parked = 0; changed = 0
#else
        atomic { !lock -> location = free_place; checksum = value; parked = 0; changed = 0 }
#endif
#endif
    /* Another page is written to the place that this one has left. */
    :: place[free_place] != OTHER -> place[free_place] = TORN; place[free_place] = OTHER
    :: changes == CHANGES -> break
    od
}

proctype reader()
{
    byte at, sum, bytes;
again:
    /* pages_load_step, up to where the lock is released: copy_begin. */
    atomic {
        !lock;
        if
        :: here -> assert(frame == value); goto done
        :: else -> at = location; sum = checksum
        fi
    }
    bytes = place[at]; /* copy_read */
    /* And on, with the lock. */
    atomic { !lock -> lock = 1 }
    if
    :: here -> assert(frame == value)
#ifndef BUG_NO_COMPARE
    :: !here && (at != location || sum != checksum) -> lock = 0; goto again
    :: !here && at == location && sum == checksum ->
#else
    :: !here ->
#endif
#ifndef BUG_NOT_AGAIN
        if
        :: bytes != sum -> bytes = place[at]
        :: else
        fi;
#endif
        assert(bytes == sum);
        atomic { adopt(bytes) }
    fi;
    lock = 0;
done:
    at = 0; sum = 0; bytes = 0;
    if
    :: changes < CHANGES -> goto again
    :: true
    fi
}

init
{
    atomic {
        place[0] = 0; place[1] = OTHER;
        run writer();
        byte n;
        for (n : 1 .. READERS) { run reader() }
        n = 0
    }
}
