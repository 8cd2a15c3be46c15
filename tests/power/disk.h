/*
 * disk: a disk with a volatile write cache, in memory that several processes share.
 *
 * What was written is seen by reads at once, and is on the medium from the next flush on. When the
 * power is cut, each write since the last flush is, as the lottery has it, on the medium, lost, or
 * there in some of its blocks; order is not kept. From then on the disk is a ghost: it goes on
 * answering, so that the system which has it mounted can be taken down quietly, but nothing of that
 * reaches the medium. disk_power_on shows what the medium has.
 *
 * One process serves the disk (disk_write, disk_flush, disk_take_cut); the others look at
 * `control`. The power is cut before the request with the number that was asked for, or when
 * `cut_now` is set.
 */
#ifndef FKV_POWER_DISK_H
#define FKV_POWER_DISK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DISK_BLOCK_BYTES = 512 };

/* What happens to writes that were not flushed. */
enum disk_lottery {
    DISK_ALL_LOST,
    DISK_ALL_LANDED,
    DISK_ORDERED, /* the first ones landed, the others are lost */
    DISK_WRITES,  /* each is whole or lost */
    DISK_PAGES,   /* each 4096 bytes of each */
    DISK_BLOCKS,  /* each 512 bytes of each: torn pages */
    DISK_LOTTERIES,
};

struct disk {
    uint64_t bytes;
    _Atomic uint64_t requests; /* writes and flushes so far */
    _Atomic uint64_t cut_at;   /* the power fails before this one; UINT64_MAX: not */
    _Atomic bool cut_now;
    _Atomic bool is_off;
    uint64_t cut_seed;
    enum disk_lottery lottery;
    /* A number that some process counts up, and what it was just before the power was cut: what had
     * been promised by then. */
    _Atomic uint64_t promised;
    uint64_t promised_at_cut;

    uint64_t unflushed_blocks, lost_blocks; /* at the last cut */

    uint8_t *medium, *seen;
    uint8_t *touched; /* a byte a page: written since the power is on */
};

/* In shared memory, all zeros. NULL: there is no memory. */
struct disk *disk_make(uint64_t bytes);

/* All within the disk. False: no memory. */
bool disk_write(struct disk *disk, uint64_t offset, const void *data, size_t bytes);
void disk_flush(struct disk *disk);
/* Cut the power if it is time. To be called before each request, and now and then. */
void disk_take_cut(struct disk *disk);

/* While nobody has a request: reads show the medium. */
void disk_power_on(struct disk *disk);

#endif
