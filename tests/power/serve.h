/*
 * serve: the disk as a file of the system, so that a loop device can lie on it.
 */
#ifndef FKV_POWER_SERVE_H
#define FKV_POWER_SERVE_H

#include "disk.h"

/*
 * Start a process that serves the disk until it is unmounted or the calling process ends; *device
 * is for serve_mount. It has to be outside of the mount namespace that the disk will be mounted in:
 * when all of that are killed, the kernel takes the mounts down, and still needs the server. False,
 * with `errno`: the system does not allow it.
 */
bool serve_start(struct disk *disk, int *device);
/* Mount a file system of FUSE that is one file, the disk, over the file `path`. Closes `device`. */
bool serve_mount(int device, const char *path);

#endif
