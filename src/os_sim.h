/*
 * os_sim: a simulated disk, in memory, that loses what a real one may lose. For tests only.
 *
 * It is an implementation of os.h. A test opens the store on it, lets it work, and then
 *
 *   - cuts the power: os_sim_crash. What no sync covers survives in part, by a lottery;
 *   - kills the process: os_sim_kill. Everything written survives, and stays unsynced;
 *   - makes chosen calls fail, or the disk full;
 *   - damages files.
 *
 * THE DISK. Each file has a current image, which the process sees, and a durable one.
 *
 * 1. Bytes written, by os_write or by a store into a mapping, are unsynced until a sync of the
 *    file. At a crash each unsynced 512-byte block, independently of all others, has landed or is
 *    lost. In the write that was under way it may also be torn: a prefix is new, the rest is old.
 *    In pages mapped for writing any block may be torn, at a multiple of 8 bytes: the medium may
 *    have got it while the program was still filling it.
 * 2. A block that is written again before a sync may have reached the medium in between, so it may
 *    survive in an intermediate version. start_writeback lands about half of the blocks.
 * 3. Changes of the size (by write, truncate, allocate) and holes punched reach the medium in
 *    their order, each at any time up to the next sync of the file: at a crash, any number of the
 *    first ones have. Blocks between do not follow them. Whether space allocated but not synced
 *    stays allocated is drawn too.
 * 4. Creations and removals of a name reach the medium in their order, up to sync_directory of its
 *    directory. A sync of the file does not cover its name. To rename is to create one name and
 *    remove the other, which reach the medium independently: a crash may leave both, or none.
 * 5. A sync that was made to fail has landed some blocks and torn some; all are now taken for
 * clean: the process still sees them, no later sync writes them unless their page is written again,
 * a crash loses them. (Linux does that.) os_sim_evict lets go of them at once.
 * 6. A write that was made to fail, or had no space, has written a part of its bytes, from the
 *    front, and of those that it was made to fail for not all that it would have changed.
 * 7. A mapping is of the file, not a copy. Touching it beyond the page that holds the file's end
 *    is a segmentation fault, where the real thing is a bus error.
 * 8. An allocation for which there is no space may have been made in part, from the front. On a
 *    file system that cannot allocate (`emulates`) it is what the C library makes of it: a zero is
 *    written into each page that lies behind the end that the file had at first, or has a zero in
 *    that place; what others do meanwhile comes between. There are no holes to be made, and it says
 *    that it writes nothing in place.
 *
 * A CALL UNDER WAY. A crash, or the hook, always happens while some call is under way: a change
 * has been made and is unsynced, a sync has not synced anything yet. With a crash planned after n
 * calls, call n + 1 is under way, returns -EIO, and so does everything after it, on all handles,
 * until os_sim_crash or os_sim_kill. Both of these leave dead handles behind, on which every call
 * is -EIO and which remain to be closed; their mappings stay readable until they are unmapped, and
 * no longer are the file. A crash is cheaper once the dead mappings are gone.
 *
 * All is deterministic: the same calls with the same seeds leave the same bytes.
 *
 * Safe for threads: one lock, recursive, held in every call and while the hook runs. Its own
 * memory does not come from memory.h, so failing allocations never hit it.
 */
#ifndef FKV_OS_SIM_H
#define FKV_OS_SIM_H

#include "os.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct os_sim;

struct os_sim_options {
    /* Address space reserved for each file; -EFBIG and, for mappings, -ENOMEM beyond. Default
     * 1 GiB. */
    uint64_t file_bytes_max;
    /* Space on the disk, counted in allocated pages of 4 KiB. Default 0: no limit. */
    uint64_t capacity_bytes;
    /* What os_ops.memory says. Default 0: no limit. */
    uint64_t memory_bytes;
    bool emulates; /* allocations, has no holes, writes nothing in place: point 8 */
    /* For what happens before a crash: points 2, 5, 6 and 8 above. */
    uint64_t seed;
};

/* `options` NULL, or zeros in it: the defaults. Aborts if there is no memory. */
struct os_sim *os_sim_new(const struct os_sim_options *options);
/* Releases all, handles that are still open too: none of them may be used afterwards. */
void os_sim_free(struct os_sim *sim);
struct os *os_sim_os(struct os_sim *sim);

/*
 * A second disk in the same state, with what is unsynced and the write under way, and without
 * handles, plans, hook and counts. In a hook: a copy that can be crashed (several, with several
 * seeds) and recovered while the original goes on.
 */
struct os_sim *os_sim_copy(struct os_sim *sim);

/* ---------------------------------------------------------------- calls, and plans for them */

enum os_sim_kind {
    OS_SIM_OPEN = 1 << 0,
    OS_SIM_LOCK = 1 << 1,
    OS_SIM_READ = 1 << 2,
    OS_SIM_WRITE = 1 << 3,
    OS_SIM_SYNC = 1 << 4,
    OS_SIM_START_WRITEBACK = 1 << 5, /* cannot fail */
    OS_SIM_SIZE = 1 << 6,
    OS_SIM_TRUNCATE = 1 << 7,
    OS_SIM_ALLOCATE = 1 << 8,
    OS_SIM_PUNCH = 1 << 9,
    OS_SIM_MAP = 1 << 10,
    OS_SIM_REMOVE = 1 << 11,
    OS_SIM_SYNC_DIRECTORY = 1 << 12,
    OS_SIM_RENAME = 1 << 13,
    OS_SIM_ALL = (1 << 14) - 1,
    /* Those that change the disk, so that crashing in them is worth while. Opening is one where
     * it creates. */
    OS_SIM_CHANGES = OS_SIM_OPEN | OS_SIM_WRITE | OS_SIM_SYNC | OS_SIM_START_WRITEBACK |
                     OS_SIM_TRUNCATE | OS_SIM_ALLOCATE | OS_SIM_PUNCH | OS_SIM_REMOVE |
                     OS_SIM_SYNC_DIRECTORY | OS_SIM_RENAME,
};

/* Calls of these kinds so far, failed ones included, those after a crash not; and the bytes that
 * reads or writes (or both, as `kinds` says) were asked for. */
uint64_t os_sim_calls(struct os_sim *sim, unsigned kinds);
uint64_t os_sim_bytes(struct os_sim *sim, unsigned kinds);

/*
 * Let `n` calls of these kinds pass from now on; the one after them is under way when the power
 * fails or the process dies. UINT64_MAX: no longer. os_sim_crashed says whether it has happened.
 */
void os_sim_crash_after(struct os_sim *sim, unsigned kinds, uint64_t n);
bool os_sim_crashed(struct os_sim *sim);

struct os_sim_fault {
    unsigned kinds;
    uint64_t nth;         /* 1: the next call of these kinds; 0: no fault */
    int error;            /* what it returns: -EIO, -ENOSPC, -ENOMEM, ... */
    bool forever;         /* and so do all after it */
    const char *name_end; /* count and fail only calls on names that end so ("-wal"); or NULL */
};

/* Plan a fault, in place of any planned before; NULL: none. A crash and a kill end it. */
void os_sim_fail(struct os_sim *sim, const struct os_sim_fault *fault);
/* How many calls os_sim_fail has made to fail so far. */
uint64_t os_sim_failed(struct os_sim *sim);
/* The kinds of those calls. */
unsigned os_sim_failed_kinds(struct os_sim *sim);

/* Called whenever a call of these kinds is under way. It may copy the disk, look at it, change the
 * plans. NULL: none. What it does with files of this disk is not hooked again. */
typedef void os_sim_hook(void *context, struct os_sim *sim, enum os_sim_kind kind);
void os_sim_set_hook(struct os_sim *sim, unsigned kinds, os_sim_hook *hook, void *context);

/* ---------------------------------------------------------------- what happens to the disk */

void os_sim_crash(struct os_sim *sim, uint64_t seed);
/* `seed` decides how much of a write under way has been done (whole pages, from the front). */
void os_sim_kill(struct os_sim *sim, uint64_t seed);
/* The system's own writeback: each unsynced block lands or does not, by the seed. Call it between
 * operations to have blocks that are stored into again and again land in intermediate versions. */
void os_sim_writeback(struct os_sim *sim, uint64_t seed);
/* Make all durable as the process sees it: files, sizes, names. */
void os_sim_settle(struct os_sim *sim);
/* Forget pages whose writing failed: they read as the medium has them. */
void os_sim_evict(struct os_sim *sim);

void os_sim_set_capacity(struct os_sim *sim, uint64_t capacity_bytes);
/* Bytes allocated on the disk. */
uint64_t os_sim_used(struct os_sim *sim);
/* Pages that were stored into through a mapping where nothing was allocated (seen at syncs and
 * crashes): with the disk full, each of them would have killed the process. */
uint64_t os_sim_hole_stores(struct os_sim *sim);
/* Handles not yet closed, dead ones included; mappings not yet unmapped. For finding leaks. */
size_t os_sim_open_files(struct os_sim *sim);
size_t os_sim_open_mappings(struct os_sim *sim);

/* ---------------------------------------------------------------- the files, from outside */

/*
 * All of these look at and change what is durable (after a kill, os_sim_settle first); changes are
 * seen by the process too, at once. They are not counted and never fail but for -ENOENT, -ENODATA
 * beyond the end, and -EFBIG. Not through a mapping that is being stored into at the same time.
 */
int os_sim_file_size(struct os_sim *sim, const char *path, uint64_t *bytes);
int os_sim_peek(struct os_sim *sim, const char *path, uint64_t offset, void *buffer, size_t bytes);
int os_sim_poke(struct os_sim *sim, const char *path, uint64_t offset, const void *data,
                size_t bytes);
int os_sim_flip_bit(struct os_sim *sim, const char *path, uint64_t bit);
int os_sim_zero(struct os_sim *sim, const char *path, uint64_t offset, size_t bytes);
/* Swap two ranges that do not overlap. */
int os_sim_swap(struct os_sim *sim, const char *path, uint64_t a, uint64_t b, size_t bytes);
int os_sim_resize(struct os_sim *sim, const char *path, uint64_t bytes);
/* Make or replace a file. */
int os_sim_put_file(struct os_sim *sim, const char *path, const void *data, size_t bytes);
int os_sim_delete_file(struct os_sim *sim, const char *path);
/* Replace a file by what is durable of another, perhaps on another disk. */
int os_sim_copy_file(struct os_sim *to, const char *to_path, struct os_sim *from,
                     const char *from_path);

#endif
