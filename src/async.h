/*
 * async: gets that are under way at the same time, for callers with an event loop of their own.
 *
 * A request is looked up in the index at once. What is in memory is answered at once too; the
 * others' records are read through a queue of the system (io_uring), or, where there is none, the
 * system is told to read ahead and the reads are made when the caller waits: no threads either way.
 *
 * No read section is open while a read is under way: it would last as long as the caller's loop
 * likes. Instead the index is asked again afterwards: if it still leads to the same record, in a
 * sector that was not opened anew (same sequence), then the record was live all the time, and its
 * bytes are those that were read. If not, the key is read again, now in a read section.
 *
 * An fkv_async is used by one thread at a time. Closing the store waits for the reads under way,
 * whose buffers are this module's, and ends their requests with FKV_CANCELLED.
 */
#ifndef FKV_ASYNC_H
#define FKV_ASYNC_H

#include "store.h"

/* fkv_async_open, and whether it is for a public call of the library: who calls that learns of no
 * failure but its own. */
enum fkv_error async_open(struct fkv *db, unsigned depth, bool inner, struct fkv_async **opened);

/* The store closes. Not in a child of fork(), where the queues are the parent's: `forked`. */
void async_end_all(struct fkv *db, bool forked);

#endif
