/*
 * frames: memory for pages, 4 KiB each, in one range of addresses that grows and never moves.
 *
 * A frame is a number; 0 is none. Those that are free are a list; whoever else has a list of frames
 * links them in the same way (frame_next). The writer may reserve so many: then readers, who take
 * frames for the pages that they bring into memory, leave that many free ones to it, and a commit
 * that was prepared cannot fail for want of one.
 *
 * Threads: all of it has a lock of its own, but the bytes of a frame and its link are those of who
 * has the frame.
 */
#ifndef FKV_FRAMES_H
#define FKV_FRAMES_H

#include <pthread.h>
#include <stdbool.h>

#include "delta.h"
#include "error.h"
#include "memory.h"

struct frame_arena {
    struct reservation bytes;
    struct reservation links; /* uint32_t a frame: the next in a list */
    struct reservation units; /* struct units a frame, if pages may be parked */
    uint32_t count;           /* frames ever used; number 0 is none */
    uint32_t free_head, free_count;
    uint32_t reserved; /* free frames that only the writer may take */
    pthread_mutex_t lock;
};

enum fkv_error frames_make(struct frame_arena *frames);
void frames_drop(struct frame_arena *frames);
/* Have `units` for each. Before there are frames. */
enum fkv_error frames_add_units(struct frame_arena *frames);
uint64_t frames_memory_bytes(struct frame_arena *frames);

/* 0 without memory. The bytes are arbitrary. */
uint32_t frames_take(struct frame_arena *frames, bool writer);
/* So many with consecutive numbers; returns the first. */
uint32_t frames_take_run(struct frame_arena *frames, uint32_t count);
void frames_give(struct frame_arena *frames, uint32_t frame);
/* All of a list, which may be empty. */
void frames_give_list(struct frame_arena *frames, uint32_t frame);
/* Make sure that the next `count` frames the writer takes can be had; 0 ends the guarantee. If that
 * fails, it holds for as many as before. */
enum fkv_error frames_reserve(struct frame_arena *frames, uint32_t count);

static inline uint32_t *frame_next(const struct frame_arena *frames, uint32_t frame)
{
    return (uint32_t *)frames->links.base + frame;
}

#endif
