/*
 * serve: the disk as a file of the system, so that a loop device can lie on it.
 */
#ifndef FKV_POWER_SERVE_H
#define FKV_POWER_SERVE_H

#include "disk.h"

/*
 * Mount a file system of FUSE that is one file, the disk, over the file `path`, and start a process
 * that serves it until it is unmounted or the calling process ends. False, with `errno`: the system
 * does not allow it.
 */
bool serve_disk(struct disk *disk, const char *path);

#endif
