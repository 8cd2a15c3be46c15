/*
 * data_sync: syncs of the store's file, by checkpoints and by commits whose records are in it.
 *
 * The system tells of a failed write once: of two syncs one after the other the first fails, and
 * the second says that all is well. So syncs take turns, and after one that failed all fail.
 */
#ifndef FKV_DATA_SYNC_H
#define FKV_DATA_SYNC_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

#include "os.h"
#include "planted.h"

struct data_sync {
    pthread_mutex_t lock; /* the last in the order of locks */
    const struct os_ops *ops;
    struct os_file *file;
    const char *path;
    bool failed;
};

static inline int data_sync(struct data_sync *sync)
{
    pthread_mutex_lock(&sync->lock);
    int status = sync->failed && !PLANTED(SYNC_AGAIN) ? -EIO : sync->ops->sync(sync->file);
    sync->failed |= status != 0;
    pthread_mutex_unlock(&sync->lock);
    return status;
}

#endif
