/*
 * machine: a file system of the kernel's on the disk, by way of a loop device.
 */
#ifndef FKV_POWER_MACHINE_H
#define FKV_POWER_MACHINE_H

#include "disk.h"

struct machine {
    struct disk *disk;
    const char *kind;   /* of file system: "ext4" */
    char root[64];      /* a directory of our own, for the following */
    char disk_path[96]; /* the disk as a file */
    char directory[96]; /* where the file system is mounted */
};

/* What is lacking to have a machine, for people; NULL: nothing. */
const char *machine_lacks(const char *kind);

/* A private mount namespace, a disk, and a server for it. Reports errors on stderr. */
bool machine_make(struct machine *machine, uint64_t bytes);
/* Remove what machine_make made in the file system. */
void machine_drop(struct machine *machine);

/* Make a new, empty file system. */
bool machine_format(struct machine *machine);
/* Mount it: the kernel replays its journal. */
bool machine_mount(struct machine *machine);
/* Unmount it. Its files must not be open. */
bool machine_unmount(struct machine *machine);

/* Have the kernel write back, in no particular order and without any promise, some of what was
 * written to files and not synced. */
void machine_write_back(struct machine *machine, uint64_t *random);

#endif
