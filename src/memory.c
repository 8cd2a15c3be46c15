#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bytes.h"
#include "error.h"

#ifdef FKV_TESTING
#include <malloc.h>
#include <stdatomic.h>

#include "planted.h"

enum planted planted_bug;
void (*schedule_point)(void);
static _Atomic uint64_t requests, fail_at, blocks, held_bytes;
static _Atomic bool fail_forever;

void memory_test_fail(uint64_t nth, bool forever)
{
    fail_forever = forever;
    fail_at = nth ? requests + nth : 0;
}

uint64_t memory_test_requests(void)
{
    return requests;
}

uint64_t memory_test_blocks(void)
{
    return blocks;
}

uint64_t memory_test_bytes(void)
{
    return held_bytes;
}

static bool refuse(void)
{
    uint64_t now = ++requests;
    uint64_t at = fail_at;
    return at && (now == at || (now > at && fail_forever));
}

static void count_block(int change)
{
    blocks += (uint64_t)(int64_t)change;
}

static size_t bytes_of(void *block)
{
    return block ? malloc_usable_size(block) : 0;
}

/* Memory that came or, as a negative number modulo 2^64, went. */
static void count_bytes(uint64_t bytes)
{
    held_bytes += bytes;
}

enum { KEPT_MAX = 64 };
static struct reservation kept[KEPT_MAX];
static size_t kept_count;
static bool keeps;

void memory_test_keep(bool keep)
{
    keeps = keep;
}

static bool take_kept(struct reservation *reservation, size_t bytes)
{
    for (size_t i = kept_count; keeps && i-- > 0;)
        if (kept[i].reserved_bytes == bytes) {
            *reservation = kept[i];
            kept[i] = kept[--kept_count];
            return true;
        }
    return false;
}

/* Most of it was never written to. */
static void zero_again(uint8_t *base, size_t bytes)
{
    enum { PART = 4 << 10 };
    for (size_t i = 0; i < bytes; i += PART)
        if (!bytes_are_zero(base + i, PART))
            memset(base + i, 0, PART);
}

static bool keep_one(struct reservation *reservation)
{
    if (!keeps || kept_count == KEPT_MAX)
        return false;
    enum { FAULTS_COST_MORE = 4 << 20 };
    if (reservation->backed_bytes > FAULTS_COST_MORE)
        madvise(reservation->base, reservation->backed_bytes, MADV_DONTNEED);
    else
        zero_again(reservation->base, reservation->backed_bytes);
    if (reservation->usable_bytes < reservation->backed_bytes)
        reservation->usable_bytes = reservation->backed_bytes;
    reservation->backed_bytes = 0;
    reservation->huge = false;
    kept[kept_count++] = *reservation;
    return true;
}

static bool is_kept(void)
{
    return keeps;
}

static bool is_usable(const struct reservation *reservation, size_t bytes)
{
    return bytes <= reservation->usable_bytes;
}
#else
static inline bool take_kept(struct reservation *reservation, size_t bytes)
{
    (void)reservation;
    (void)bytes;
    return false;
}

static inline bool keep_one(struct reservation *reservation)
{
    (void)reservation;
    return false;
}

static inline bool is_kept(void)
{
    return false;
}

static inline bool is_usable(const struct reservation *reservation, size_t bytes)
{
    (void)reservation;
    (void)bytes;
    return false;
}

static inline bool refuse(void)
{
    return false;
}

static inline void count_block(int change)
{
    (void)change;
}

static inline size_t bytes_of(void *block)
{
    (void)block;
    return 0;
}

static inline void count_bytes(uint64_t bytes)
{
    (void)bytes;
}
#endif

static void *counted(void *block, size_t bytes)
{
    if (!block)
        error_set(FKV_NO_MEMORY, "%zu bytes of memory could not be had", bytes);
    else
        count_block(1);
    count_bytes(bytes_of(block));
    return block;
}

void *memory_new(size_t bytes)
{
    return counted(refuse() ? NULL : calloc(1, bytes ? bytes : 1), bytes);
}

void *memory_buffer(size_t bytes)
{
    return counted(refuse() ? NULL : malloc(bytes ? bytes : 1), bytes);
}

void *memory_resize(void *block, size_t bytes)
{
    size_t before = bytes_of(block);
    void *resized = refuse() ? NULL : realloc(block, bytes ? bytes : 1);
    if (!resized)
        error_set(FKV_NO_MEMORY, "%zu bytes of memory could not be had", bytes);
    else if (!block)
        count_block(1);
    if (resized)
        count_bytes(bytes_of(resized) - before);
    return resized;
}

void *memory_room(void *items, size_t item_bytes, uint64_t least, uint32_t *room)
{
    enum { FIRST = 16 };
    if (least <= *room)
        return items;
    uint64_t more = min_u64(max_u64(max_u64(least, FIRST), 2 * (uint64_t)*room), UINT32_MAX);
    void *larger = memory_resize(items, more * item_bytes);
    if (larger)
        *room = (uint32_t)more;
    return larger;
}

char *memory_join(const char *a, const char *b)
{
    size_t length = strlen(a), more = strlen(b);
    char *joined = memory_new(length + more + 1);
    if (joined) {
        memcpy(joined, a, length);
        memcpy(joined + length, b, more);
    }
    return joined;
}

void memory_free(void *block)
{
    if (block)
        count_block(-1);
    count_bytes(-(uint64_t)bytes_of(block));
    free(block);
}

/* One huge page, or so; the largest page of any processor; for tests that keep them. */
enum { BACK_STEP = 2 << 20, SMALL_STEP = 1 << 16, LEAST_STEP = 1 << 14 };

static size_t back_step(const struct reservation *reservation)
{
    size_t page = is_kept() ? (size_t)sysconf(_SC_PAGESIZE) : 0;
    if (page)
        return LEAST_STEP > page ? LEAST_STEP : page; /* it has to be zeroed when it is dropped */
    return reservation->huge ? BACK_STEP : SMALL_STEP;
}

int reservation_make(struct reservation *reservation, size_t bytes, bool huge)
{
    bytes = round_up(bytes, BACK_STEP);
    bool refused = refuse();
    if (!refused && take_kept(reservation, bytes)) {
        count_block(1);
        return 0;
    }
    void *base = refused ? MAP_FAILED
                         : mmap(NULL, bytes + BACK_STEP, PROT_NONE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        error_set(FKV_NO_MEMORY, "%zu bytes of address space could not be had", bytes);
        return -ENOMEM;
    }
    /* Huge pages want their own alignment: cut the ends off. */
    uint8_t *aligned = (uint8_t *)round_up((uintptr_t)base, BACK_STEP);
    size_t before = (size_t)(aligned - (uint8_t *)base);
    if (before)
        munmap(base, before);
    munmap(aligned + bytes, BACK_STEP - before);
    *reservation = (struct reservation){.base = aligned, .reserved_bytes = bytes, .huge = huge};
    count_block(1);
    return 0;
}

int reservation_back(struct reservation *reservation, size_t bytes)
{
    if (bytes <= reservation->backed_bytes)
        return 0;
    size_t target = round_up(bytes, back_step(reservation));
    if (target > reservation->reserved_bytes || refuse() ||
        (!is_usable(reservation, target) &&
         mprotect(reservation->base + reservation->backed_bytes, target - reservation->backed_bytes,
                  PROT_READ | PROT_WRITE) != 0)) {
        error_set(FKV_NO_MEMORY, "%zu bytes of memory could not be had", bytes);
        return -ENOMEM;
    }
    if (reservation->huge)
        madvise(reservation->base + reservation->backed_bytes, target - reservation->backed_bytes,
                MADV_HUGEPAGE);
    count_bytes(target - reservation->backed_bytes);
    reservation->backed_bytes = target;
    return 0;
}

void reservation_drop(struct reservation *reservation)
{
    if (!reservation->base)
        return;
    count_bytes(-(uint64_t)reservation->backed_bytes);
    if (!keep_one(reservation))
        munmap(reservation->base, reservation->reserved_bytes);
    *reservation = (struct reservation){0};
    count_block(-1);
}

uint64_t memory_of_machine(void)
{
    long pages = sysconf(_SC_PHYS_PAGES);
    long bytes = sysconf(_SC_PAGESIZE);
    return pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes : 0;
}

uint64_t memory_address_limit(void)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY ? limit.rlim_cur
                                                                                : UINT64_MAX;
}
