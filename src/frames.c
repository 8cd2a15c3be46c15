#include "frames.h"

#include <assert.h>

#include "bytes.h"

enum fkv_error frames_make(struct frame_arena *frames)
{
    /* More than the machine has; less where address space is limited, which others need too. */
    size_t bytes = max_u64(64 * GIB, round_up(2 * memory_of_machine(), GIB));
    bytes = min_u64(bytes, round_up(memory_address_limit() / 4, GIB));
    while (reservation_make(&frames->bytes, bytes, true) != 0) {
        bytes /= 4;
        if (bytes < 16 * MIB)
            return FKV_NO_MEMORY;
    }
    if (reservation_make(&frames->links, bytes / PAGE_BYTES * sizeof(uint32_t), false) != 0)
        return FKV_NO_MEMORY;
    frames->count = 1;
    pthread_mutex_init(&frames->lock, NULL);
    return FKV_OK;
}

void frames_drop(struct frame_arena *frames)
{
    reservation_drop(&frames->bytes);
    reservation_drop(&frames->links);
    reservation_drop(&frames->units);
}

enum fkv_error frames_add_units(struct frame_arena *frames)
{
    assert(frames->count == 1);
    size_t bytes = frames->bytes.reserved_bytes / PAGE_BYTES * sizeof(struct units);
    return reservation_make(&frames->units, bytes, false) == 0 ? FKV_OK : FKV_NO_MEMORY;
}

uint64_t frames_memory_bytes(struct frame_arena *frames)
{
    pthread_mutex_lock(&frames->lock); /* readers take frames */
    uint64_t bytes =
        frames->bytes.backed_bytes + frames->links.backed_bytes + frames->units.backed_bytes;
    pthread_mutex_unlock(&frames->lock);
    return bytes;
}

/* Make so many frames usable. The lock is held. */
static bool frames_back(struct frame_arena *frames, size_t count)
{
    return count <= UINT32_MAX && reservation_back(&frames->links, count * sizeof(uint32_t)) == 0 &&
           (!frames->units.base ||
            reservation_back(&frames->units, count * sizeof(struct units)) == 0) &&
           reservation_back(&frames->bytes, count * PAGE_BYTES) == 0;
}

/* Take frames from the fresh end of the range. The lock is held. */
static uint32_t take_fresh(struct frame_arena *frames, uint32_t count)
{
    size_t end = (size_t)frames->count + count;
    uint32_t first = frames->count;
    if (!frames_back(frames, end))
        return 0;
    frames->count = (uint32_t)end;
    return first;
}

uint32_t frames_take(struct frame_arena *frames, bool writer)
{
    pthread_mutex_lock(&frames->lock);
    uint32_t frame;
    if (frames->free_count > (writer ? 0 : frames->reserved)) {
        frame = frames->free_head;
        frames->free_head = *frame_next(frames, frame);
        frames->free_count--;
    } else {
        frame = take_fresh(frames, 1);
    }
    if (writer && frame && frames->reserved)
        frames->reserved--;
    pthread_mutex_unlock(&frames->lock);
    return frame;
}

uint32_t frames_take_run(struct frame_arena *frames, uint32_t count)
{
    pthread_mutex_lock(&frames->lock);
    uint32_t first = take_fresh(frames, count);
    pthread_mutex_unlock(&frames->lock);
    return first;
}

/* Put a list, from its first to its last, before those that are free. The lock is held. */
static void put_free(struct frame_arena *frames, uint32_t first, uint32_t last, uint32_t count)
{
    *frame_next(frames, last) = frames->free_head;
    frames->free_head = first;
    frames->free_count += count;
}

void frames_give(struct frame_arena *frames, uint32_t frame)
{
    pthread_mutex_lock(&frames->lock);
    assert(frame && frame < frames->count);
    put_free(frames, frame, frame, 1);
    pthread_mutex_unlock(&frames->lock);
}

void frames_give_list(struct frame_arena *frames, uint32_t frame)
{
    if (!frame)
        return;
    uint32_t last = frame, count = 1;
    for (; *frame_next(frames, last); last = *frame_next(frames, last))
        count++;
    pthread_mutex_lock(&frames->lock);
    put_free(frames, frame, last, count);
    pthread_mutex_unlock(&frames->lock);
}

/* Have so many free frames. The lock is held. (Not inline: each commit asks twice, and nearly
 * always there are enough.) */
static __attribute__((noinline)) bool make_free(struct frame_arena *frames, uint32_t count)
{
    while (frames->free_count < count) {
        uint32_t frame = take_fresh(frames, 1);
        if (!frame)
            return false;
        put_free(frames, frame, frame, 1);
    }
    return true;
}

enum fkv_error frames_reserve(struct frame_arena *frames, uint32_t count)
{
    enum fkv_error error = FKV_OK;
    pthread_mutex_lock(&frames->lock);
    if (frames->free_count >= count || make_free(frames, count))
        frames->reserved = count;
    else
        error = FKV_NO_MEMORY;
    pthread_mutex_unlock(&frames->lock);
    return error;
}
