/*
 * Reads that are under way at the same time, through io_uring: os_ops.queue_*. Without liburing, or
 * where the kernel forbids it, opening a queue is -ENOSYS and callers read in some other way.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os_posix.h"

#include <errno.h>
#include <time.h>

#include "memory.h"
#include "os.h"

#ifdef FKV_HAVE_URING
#include <liburing.h>

struct os_queue {
    struct io_uring ring;
    unsigned open; /* reads that were added and not taken */
};

/* Work of the kernel for this ring is done when a thread enters it anyway: nobody is interrupted.
 * The ring may be used by one thread after another, so IORING_SETUP_SINGLE_ISSUER is not for it. */
static int make_ring(unsigned depth, struct io_uring *ring)
{
#if defined(IORING_SETUP_COOP_TASKRUN) && defined(IORING_SETUP_TASKRUN_FLAG)
    if (io_uring_queue_init(depth, ring, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG) ==
        0)
        return 0;
#endif
    return io_uring_queue_init(depth, ring, 0);
}

int os_posix_queue_open(struct os *os, unsigned depth, int event_fd, struct os_queue **queue)
{
    (void)os;
    struct os_queue *made = memory_new(sizeof *made);
    if (!made)
        return -ENOMEM;
    if (make_ring(depth, &made->ring)) {
        memory_free(made);
        return -ENOSYS;
    }
    if (event_fd >= 0 && os_posix_queue_signal(made, event_fd)) {
        os_posix_queue_close(made);
        return -ENOSYS;
    }
    *queue = made;
    return 0;
}

int os_posix_queue_signal(struct os_queue *queue, int event_fd)
{
    return io_uring_register_eventfd(&queue->ring, event_fd);
}

void os_posix_queue_close(struct os_queue *queue)
{
    io_uring_queue_exit(&queue->ring);
    memory_free(queue);
}

int os_posix_queue_read(struct os_queue *queue, struct os_file *file, void *buffer, size_t bytes,
                        uint64_t offset, void *tag)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&queue->ring);
    if (!entry)
        return -EBUSY;
    io_uring_prep_read(entry, os_posix_descriptor(file), buffer, (unsigned)bytes, offset);
    io_uring_sqe_set_data(entry, tag);
    queue->open++;
    return 0;
}

int os_posix_queue_submit(struct os_queue *queue)
{
    int result;
    do {
        result = io_uring_submit(&queue->ring);
    } while (result == -EINTR);
    return result < 0 ? result : 0;
}

/* If the system cannot begin the others now, those that it has begun are waited for all the same.
 * It may not let anybody wait, where it has come to be forbidden; but they end, and are seen to. */
static int begin_and_wait(struct os_queue *queue)
{
    struct io_uring_cqe *done;
    int result = io_uring_submit_and_wait(&queue->ring, 1);
    if (result >= 0 || result == -EINTR)
        return 0;
    if (queue->open <= io_uring_sq_ready(&queue->ring))
        return result;
    result = io_uring_wait_cqe(&queue->ring, &done);
    if (result < 0 && result != -EINTR)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    return 0;
}

int os_posix_queue_reap(struct os_queue *queue, bool wait, void **tag)
{
    struct io_uring_cqe *done = NULL;
    int result;
    *tag = NULL;
    while ((result = io_uring_peek_cqe(&queue->ring, &done)) && wait)
        if ((result = begin_and_wait(queue)))
            return result;
    if (result)
        return result == -EAGAIN || result == -EINTR ? 0 : result;
    *tag = io_uring_cqe_get_data(done);
    result = done->res;
    io_uring_cqe_seen(&queue->ring, done);
    queue->open--;
    return result;
}

#else

int os_posix_queue_open(struct os *os, unsigned depth, int event_fd, struct os_queue **queue)
{
    (void)os;
    (void)depth;
    (void)event_fd;
    (void)queue;
    return -ENOSYS;
}

int os_posix_queue_signal(struct os_queue *queue, int event_fd)
{
    (void)queue;
    (void)event_fd;
    return -ENOSYS;
}

void os_posix_queue_close(struct os_queue *queue)
{
    (void)queue;
}

int os_posix_queue_read(struct os_queue *queue, struct os_file *file, void *buffer, size_t bytes,
                        uint64_t offset, void *tag)
{
    (void)queue;
    (void)file;
    (void)buffer;
    (void)bytes;
    (void)offset;
    (void)tag;
    return -ENOSYS;
}

int os_posix_queue_submit(struct os_queue *queue)
{
    (void)queue;
    return -ENOSYS;
}

int os_posix_queue_reap(struct os_queue *queue, bool wait, void **tag)
{
    (void)queue;
    (void)wait;
    *tag = NULL;
    return -ENOSYS;
}

#endif
