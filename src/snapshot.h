/*
 * snapshot: the store as one commit left it, whatever comes after it. undo.h says how.
 */
#ifndef FKV_SNAPSHOT_H
#define FKV_SNAPSHOT_H

#include "store.h"

struct fkv_snapshot {
    struct fkv *db;                       /* not once it has ended: the store may be closed */
    uint64_t owner;                       /* db->id */
    struct fkv_snapshot *next, *previous; /* among the store's open ones */
    _Atomic bool ended;
    _Atomic uint32_t uses; /* the caller's, and those of scans */
    uint64_t keys;
    uint64_t commit; /* that it is the state of */
    struct undo_layer *layer;
};

enum fkv_error snapshot_open(struct fkv *db, struct fkv_snapshot **opened);
/* One use of it less; the last one closes it. */
void snapshot_give(struct fkv_snapshot *snapshot);

/* As those of read.c; inside a read section. */
enum fkv_error snapshot_entry(const struct fkv_snapshot *snapshot, struct hash128 hash,
                              uint64_t *entry);
enum fkv_error snapshot_value(const struct fkv_snapshot *snapshot, const struct key *key,
                              void *buffer, size_t buffer_bytes, size_t *value_bytes);
enum fkv_error snapshot_borrow(const struct fkv_snapshot *snapshot, const struct key *key,
                               const void **value, size_t *value_bytes);
/* The value whose head this whole record is; takes a read section itself. */
enum fkv_error snapshot_large(const struct fkv_snapshot *snapshot, const uint8_t *head,
                              void *buffer);
enum fkv_error snapshot_size(const struct fkv_snapshot *snapshot, const struct key *key,
                             size_t *value_bytes);

#endif
