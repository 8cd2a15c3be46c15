/*
 * sectors: what each sector of the file is, which are free, and which cells are dead.
 *
 * Values sectors form a queue in the order in which they were opened (their sequence). A sector
 * whose records are all dead is freed at once, wherever it is in the queue; the collector
 * (collect.c) works at the front. The dead cells are in the deletion maps, one bit a cell, set for
 * the first cell of a record.
 *
 * A sector that is freed goes through quarantine: it is not used again before a checkpoint
 * that knows it to be free is durable (until then a recovery may still need its records), until
 * no reader can be looking at it, and until the snapshots that see its records are closed.
 *
 * Readers know a sector by its view: the address of its bytes, in the tail buffer or in the
 * mapping of the file, and its sequence, which the checksums of its records are bound to.
 *
 * Threads: the writer lock protects all but the views, which readers load without one.
 *
 * Invariants:
 *  1. live_cells + dead_cells + pad_cells is the sum over values sectors of the cells in use,
 *     headers of sectors not counted.
 *  2. A sector is in exactly one of: the header, the queue, large, pages, free, quarantine.
 *  3. In the table (SPACE_SECTORS) only values and large sectors are not SECTOR_FREE.
 */
#ifndef FKV_SECTORS_H
#define FKV_SECTORS_H

#include <stdatomic.h>

#include "pages.h"

struct undo; /* undo.h */

struct sector_view {
    const uint8_t *base; /* NULL: no address, the records are to be read by calls */
    uint64_t sequence;   /* 0: holds no records */
};

struct sector {
    uint32_t next, previous; /* in the queue, or in a quarantine list; 0 none */
    uint32_t dead_cells;
    uint16_t pad_cells;
    uint8_t type;   /* enum sector_type */
    uint8_t sealed; /* values: no more records will come */
    bool populated; /* the mapping has page table entries for it */
    bool held;      /* free, but for `holds` */
    uint32_t holds; /* undos that lead to a record in it, or have its map */
};

struct sector_list {
    uint32_t head;
    uint32_t count;
};

struct sectors {
    struct os_file *file;
    const struct os_ops *ops;
    const char *path;
    struct pages *pages;
    uint8_t store_id[16];

    uint32_t count; /* of the file, the header's included */
    /* What the file really has: the flusher adds sectors ahead of need, and the writer takes note
     * of them when it wants some. Changed with size_lock held, which comes after the writer's. */
    _Atomic uint32_t file_count;
    _Atomic uint32_t allocated_count; /* have space; the flusher asks for many at a time */
    pthread_mutex_t size_lock;
    uint32_t allocating; /* from this sector on the flusher asks for space; 0: it does not */
    pthread_cond_t allocated;
    pthread_mutex_t space_lock; /* of who asks for space, or gives it back; before the writer's */
    uint32_t refused; /* so many sectors were asked for, and there was no space; 0: none were */
    uint64_t refused_until; /* clock_ns(): before, as many are not asked for again */
    struct reservation views;
    struct reservation states;
    /* One bit a sector: free and backed by space of the file system, or free and a hole. */
    struct reservation free_backed, free_holes;
    struct reservation queued; /* one bit a sector too, which readers load: it is in the queue */
    uint32_t free_backed_count, free_hole_count;
    uint32_t changing;  /* becoming holes or backed, while the writer lock is released */
    uint32_t free_hint; /* no free backed sector is below */
    uint32_t hole_hint; /* holes below have been asked space for, on a full disk: they are some */

    uint8_t **windows; /* mappings of 1,024 sectors each */
    bool unmapped;     /* there are none (FKV_READ_WITHOUT_MAPPING) */
    /* Readers get no address of what is in the file: fetch.h. A hint where there are windows. */
    _Atomic bool by_call;
    bool read_only; /* the file is never grown: what recovery needs beyond it is in memory */

    uint32_t front, back; /* of the queue */
    uint64_t next_sequence;
    uint32_t values_count, large_count;
    struct sector_list freed;     /* since the last checkpoint began */
    struct sector_list uncertain; /* before it began: free once it is durable */
    uint32_t awaiting_readers;    /* durable; in the hands of reclaim */
    uint32_t held_count;          /* free, but for snapshots that look at them */
    struct undo *undo;            /* what is left for snapshots */

    /* In values sectors. Dead: of records that are not live, and of gaps; see pad_is_gap. */
    uint64_t live_cells, dead_cells, pad_cells;
    uint64_t gap_cells; /* that were made since open */
    /* Records, and sectors of large values, that were to die and were dead already: of a store
     * that, behind right checksums, leads to them twice, or in spite of the deletion map. Nothing
     * is counted twice. */
    uint64_t killed_twice;
};

/* How many sectors a caller must leave for those who free space: the collector moves records to
 * them. See sectors_for_deletes, too. */
enum sector_reserve { RESERVE_FOR_COLLECTOR = 2, RESERVE_NONE = 0 };

enum fkv_error sectors_make(struct sectors *sectors, struct os_file *file, const struct os_ops *ops,
                            const char *path, struct pages *pages);
void sectors_drop(struct sectors *sectors);
/* Memory that is held here: mappings of the file are none. */
uint64_t sectors_memory_bytes(const struct sectors *sectors);

/* And how many a caller who stores something new: the first death in a values sector needs places
 * for its deletion map, of two pages, and many of them for what leads there: a node for 256 pages
 * of maps, a page of the table for 256 sectors, and the nodes over those. */
static inline uint32_t sectors_for_deletes(const struct sectors *sectors)
{
    return RESERVE_FOR_COLLECTOR +
           (2 * sectors->values_count + sectors->values_count / 64) / SECTOR_PAGES;
}

static inline struct sector *sector_state(const struct sectors *sectors, uint32_t sector)
{
    return (struct sector *)sectors->states.base + sector;
}
static inline struct sector_view *sector_view(const struct sectors *sectors, uint32_t sector)
{
    return (struct sector_view *)sectors->views.base + sector;
}

/* Where its bytes are now: the flusher changes it from the buffer to the mapping. */
static inline const uint8_t *sector_base(const struct sectors *sectors, uint32_t sector)
{
    return __atomic_load_n(&sector_view(sectors, sector)->base, __ATOMIC_ACQUIRE);
}

/* Make room in the file for `more` sectors beyond `count`; they are free then. */
enum fkv_error sectors_grow(struct sectors *sectors, uint32_t more);
/* By how many sectors sectors_extend_ahead should lengthen the file soon. */
uint32_t sectors_run_low(const struct sectors *sectors);
/* How many can be opened before the writer must ask for space in the file itself. */
struct sectors_room {
    uint32_t left, usual;
};
struct sectors_room sectors_room(const struct sectors *sectors);
/*
 * Fill holes, or add sectors to the file, before the writer must wait for it. Takes the writer lock
 * for moments. New ones are written with zeros in pairs of 2 MiB: the page cache then keeps each
 * pair in one huge page, which the mapping shows as such, and reads of values miss the TLB less (a
 * random copy of 512 bytes takes 0.75 of the time).
 */
void sectors_extend_ahead(struct sectors *sectors, uint32_t more, pthread_mutex_t *writer);

/* Make sure that after taking `take` sectors for values, `leave` free ones and the places that
 * the next checkpoint needs remain; grows the file if it must. It needs some for `changes`, too:
 * pages that have not changed yet, and that nothing is to keep from changing. (A few can always
 * change.) */
enum fkv_error sectors_reserve(struct sectors *sectors, uint32_t take, uint32_t leave,
                               uint64_t changes);
/* Make sure that so many are free, those included that the next checkpoint needs. For a moment
 * after the file system had no space it is not asked again. */
enum fkv_error sectors_reserve_free(struct sectors *sectors, uint32_t want);
#ifdef FKV_TESTING
extern uint32_t sectors_patience; /* how many times as long as it took to be refused; here 0 */
#endif

/* A free sector. Grows the file if there is none. */
enum fkv_error sectors_take(struct sectors *sectors, uint32_t *sector);
/* The same, in recovery: one with a higher number than any that the log names. */
enum fkv_error sectors_take_after(struct sectors *sectors, uint32_t last, uint32_t *sector);
/* This very sector, in recovery. */
enum fkv_error sectors_take_at(struct sectors *sectors, uint32_t sector);
/* Back to the free ones, without quarantine: it never held anything that a tree refers to, or a
 * checkpoint that does not refer to it is durable. */
void sectors_give(struct sectors *sectors, uint32_t sector);

/* Can the table and maps of this sector be changed without failing? Loads what is missing. */
enum fkv_error sectors_prepare(struct sectors *sectors, uint32_t sector);
/* The same for a sector of a large value, which has no maps. */
enum fkv_error sectors_prepare_large(struct sectors *sectors, uint32_t sector);
enum fkv_error sectors_prepare_kill(struct sectors *sectors, uint64_t address);
/* Start fetching what the death of a record will change: where it lies first, later (`map`) the
 * word of the map. A hint. */
void sectors_prefetch_kill(const struct sectors *sectors, uint64_t address, bool map);

/* The address that the sector's bytes have in the mapping of the file; NULL if there is none. */
const uint8_t *sectors_mapped(const struct sectors *sectors, uint32_t sector);
/* The address that readers shall use once the sector is in the file: that, or NULL. */
const uint8_t *sectors_address(const struct sectors *sectors, uint32_t sector);
/* From now on they shall, or shall not, read it by calls. There is a mapping. */
void sectors_read_by_call(struct sectors *sectors, bool by_call);

/* A taken sector becomes the back of the queue; `base` is where readers find its bytes. */
void sectors_open_values(struct sectors *sectors, uint32_t sector, uint64_t sequence,
                         const uint8_t *base);
void sectors_seal(struct sectors *sectors, uint32_t sector);
/* A taken sector holds a piece of a large value, in the mapping already. */
void sectors_open_large(struct sectors *sectors, uint32_t sector, uint64_t sequence);
void sectors_free_large(struct sectors *sectors, uint32_t sector);

/* A record was written; one died: frees the sector with its last record. */
static inline void sectors_count_live(struct sectors *sectors, uint32_t cells)
{
    sectors->live_cells += cells;
}
/* A pad was written at this cell. */
void sectors_count_pad(struct sectors *sectors, uint32_t sector, uint32_t cell, uint32_t cells);
void sectors_kill(struct sectors *sectors, uint64_t address, uint32_t cells);
bool sectors_is_dead(const struct sectors *sectors, uint64_t address);
/* Are all records of the open sector dead, if the next one begins at this cell? */
bool sectors_all_dead(const struct sectors *sectors, uint32_t sector, uint32_t cell);

/* Is this the header of the values sector? */
enum fkv_error sector_header_check(const struct sectors *sectors, const uint8_t *bytes,
                                   uint32_t sector, uint64_t sequence);

/* Checkpoint: begun, durable, failed. Durable gives the list that readers may still look at. */
void sectors_checkpoint_begin(struct sectors *sectors);
struct sector_list sectors_checkpoint_done(struct sectors *sectors);
void sectors_checkpoint_abandon(struct sectors *sectors);
/* No reader looks at these any more. */
void sectors_reclaim(struct sectors *sectors, struct sector_list list);

/* An undo leads to this sector: it is not to be used again. And it is no longer there. */
void sectors_hold(struct sectors *sectors, uint32_t sector);
void sectors_unhold(struct sectors *sectors, uint32_t sector);
/*
 * For readers: the deletion map (SECTOR_CELLS bits) of a values sector as a snapshot sees it. It
 * has undefined bits for records that came later. *queued: false if the snapshot sees no live
 * record in this sector. In a read section; takes load_lock.
 */
struct undo_layer;
enum fkv_error sectors_map_at(struct sectors *sectors, const struct undo_layer *layer,
                              uint32_t sector, uint64_t *bits, bool *queued);
/* For readers: does the snapshot see this life of the sector? Of one whose map is wanted, to be
 * asked once that is known: it may be free, or opened again, and have a map left for a later
 * snapshot. */
bool sectors_is_seen(const struct sectors *sectors, uint32_t sector,
                     const struct undo_layer *layer);

/*
 * Give space back: free sectors at the end of the file, and holes for others (if `pairs`, whole
 * pairs, which keeps huge pages whole), but for `keep` that stay ready, and what the next
 * checkpoint and deletes need, for others may take what is given back; if `keep` is 0, all. The
 * writer lock, which must be held, is released at the beginning and during the work of the file
 * system. Its errors are ignored: it is a courtesy.
 */
void sectors_trim(struct sectors *sectors, uint32_t keep, bool pairs, pthread_mutex_t *writer);

/* Read the table. The pages are open. */
enum fkv_error sectors_open(struct sectors *sectors, uint64_t header_count, uint64_t file_bytes);

/* How long the file must be, in sectors, to hold the values that the present state refers to: those
 * in quarantine do not count, for they may be cut off once a checkpoint of this state is durable.
 */
uint32_t sectors_in_use_end(const struct sectors *sectors);

/* Free sectors, backed or not. */
static inline uint32_t sectors_free_count(const struct sectors *sectors)
{
    return sectors->free_backed_count + sectors->free_hole_count;
}

#endif
