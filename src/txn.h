/*
 * txn: write transactions.
 *
 * A transaction is a table of writes in memory, one a key, that becomes a commit. It is optimistic:
 * it notes which classes of keys it has read (the class is 16 bits of the hash) and what the last
 * commit was when it began. While transactions are open, commits leave their number with the
 * class of each key they write; so a read, and then the commit, can tell that nothing it rests on
 * has changed since the beginning. What a transaction reads is the state at its beginning, or
 * FKV_CONFLICT.
 */
#ifndef FKV_TXN_H
#define FKV_TXN_H

#include "store.h"

enum fkv_error txn_begin(struct fkv *db, fkv_txn **txn);
struct fkv *txn_store(const fkv_txn *txn); /* while it is open */
uint64_t txn_owner(const fkv_txn *txn);    /* the number of the store's handle */
bool txn_ended(const fkv_txn *txn);
enum fkv_error txn_put(fkv_txn *txn, const struct key *key, const void *value, size_t value_bytes);
enum fkv_error txn_delete(fkv_txn *txn, const struct key *key);
enum fkv_error txn_get(fkv_txn *txn, const struct key *key, void *buffer, size_t buffer_bytes,
                       size_t *value_bytes);
enum fkv_error txn_exists(fkv_txn *txn, const struct key *key);
enum fkv_error txn_commit(fkv_txn *txn, bool sync);
void txn_abort(fkv_txn *txn);
void txn_free(fkv_txn *txn);

#endif
