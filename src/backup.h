/*
 * backup: a store's pairs, as one commit left them, in a file that is a store.
 *
 * The live records of a snapshot are read from one sector to the next, as a scan does, and composed
 * into a new file (compose.h); so nobody waits for a backup, and it is as fast as the reading and
 * the writing. Each record is verified before it is copied. Heads of large values are written anew,
 * with the numbers that their sectors have in the new file; their pieces are records like others.
 *
 * Nothing is to be missing either: a damaged length of a dead record could lead the walk past live
 * ones. So keys and pieces are counted, and there have to be as many as the snapshot and the heads
 * say.
 *
 * A path gets its file when it is whole and durable. Before that the file has another name, whose
 * lock says that a backup is being written to it: what is left under it after a crash is removed by
 * the next one.
 */
#ifndef FKV_BACKUP_H
#define FKV_BACKUP_H

#include "store.h"

/* Of the name that a file has until it is whole. */
#define BACKUP_PART "-part"

/*
 * Keeps to a number of bytes a second. Each is allowed at a certain time; who comes earlier waits,
 * and who comes late has at most 100 ms of that to spare.
 */
struct pace {
    uint64_t bytes_per_second; /* 0: no limit */
    uint64_t free_ns;          /* when all is paid for that was done so far */
};
/* How long to wait now that so many bytes were written, in ns. */
uint64_t pace_wait_ns(struct pace *pace, uint64_t now_ns, uint64_t bytes);

struct backup_options {
    uint64_t bytes_per_second;
    int (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
};

enum fkv_error backup_to_path(struct fkv *db, const char *path,
                              const struct backup_options *options);
/* To an empty file that the caller has open, and closes. */
enum fkv_error backup_to_file(struct fkv *db, const struct os_ops *ops, struct os_file *file,
                              const struct backup_options *options);

#endif
