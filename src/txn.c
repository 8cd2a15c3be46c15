#include "txn.h"

#include "planted.h"

/* Copies of keys and values, freed all at once. */
struct block {
    struct block *next;
    size_t used, size;
    uint8_t bytes[];
};

struct fkv_txn {
    struct fkv *db;                  /* not once it has ended: the store may be closed */
    uint64_t owner;                  /* db->id */
    struct fkv_txn *next, *previous; /* among the store's open ones */
    bool ended;
    uint64_t began; /* the last commit when it began */
    struct block *blocks;
    struct write *writes;
    uint32_t count, room;
    uint32_t *table; /* 1 + index in `writes`, by hash; open addressing */
    uint32_t table_mask;
    uint64_t *reads; /* a bit for each class of keys, of which one was read; NULL: none was */
    uint64_t bytes;  /* of memory, in db->opened_bytes */
};

static void took(struct fkv_txn *txn, uint64_t bytes)
{
    store_took(txn->db, &txn->bytes, bytes);
}

enum fkv_error txn_begin(struct fkv *db, fkv_txn **begun)
{
    struct fkv_txn *txn = memory_new(sizeof *txn);
    if (!txn)
        return FKV_NO_MEMORY;
    txn->db = db;
    txn->owner = db->id;
    pthread_mutex_lock(&db->writer);
    if (!db->stripes)
        db->stripes = memory_new(STRIPES * sizeof *db->stripes);
    bool made = db->stripes != NULL;
    if (made) {
        db->open_transactions++;
        txn->next = db->transactions;
        if (txn->next)
            txn->next->previous = txn;
        db->transactions = txn;
    }
    txn->began = db->commit;
    pthread_mutex_unlock(&db->writer);
    if (!made) {
        memory_free(txn);
        return FKV_NO_MEMORY;
    }
    took(txn, sizeof *txn);
    *begun = txn;
    return FKV_OK;
}

struct fkv *txn_store(const fkv_txn *txn)
{
    return txn->db;
}

uint64_t txn_owner(const fkv_txn *txn)
{
    return txn->owner;
}

bool txn_ended(const fkv_txn *txn)
{
    return txn->ended;
}

static struct write *find(const struct fkv_txn *txn, struct hash128 hash)
{
    if (!txn->table)
        return NULL;
    for (uint32_t i = (uint32_t)hash.lo & txn->table_mask;; i = (i + 1) & txn->table_mask) {
        if (!txn->table[i])
            return NULL;
        struct write *write = &txn->writes[txn->table[i] - 1];
        if (write->hash.hi == hash.hi && write->hash.lo == hash.lo)
            return write;
    }
}

static void table_add(struct fkv_txn *txn, uint32_t index)
{
    uint32_t i = (uint32_t)txn->writes[index].hash.lo & txn->table_mask;
    while (txn->table[i])
        i = (i + 1) & txn->table_mask;
    txn->table[i] = index + 1;
}

static enum fkv_error make_room(struct fkv_txn *txn)
{
    if (txn->count < txn->room)
        return FKV_OK;
    uint32_t room = txn->room ? txn->room * 2 : 8;
    if (room > 1u << 30)
        return error_set(FKV_NO_MEMORY, "a transaction of more than 2^30 keys");
    struct write *writes = memory_resize(txn->writes, room * sizeof *writes);
    if (!writes)
        return FKV_NO_MEMORY;
    txn->writes = writes;
    uint32_t *table = memory_new(room * 2 * sizeof *table);
    if (!table)
        return FKV_NO_MEMORY;
    took(txn, (room - txn->room) * (sizeof *writes + 2 * sizeof *table));
    memory_free(txn->table);
    txn->table = table;
    txn->table_mask = room * 2 - 1;
    txn->room = room;
    for (uint32_t i = 0; i < txn->count; i++)
        table_add(txn, i);
    return FKV_OK;
}

/* A copy that lives as long as the transaction. */
static uint8_t *copy(struct fkv_txn *txn, const void *bytes, size_t count)
{
    struct block *block = txn->blocks;
    if (!block || block->size - block->used < count) {
        size_t size = block ? min_u64(block->size * 2, MIB) : 4 * KIB;
        size = max_u64(size, count);
        block = memory_new(sizeof *block + size);
        if (!block)
            return NULL;
        took(txn, sizeof *block + size);
        block->size = size;
        block->next = txn->blocks;
        txn->blocks = block;
    }
    uint8_t *to = block->bytes + block->used;
    if (count)
        memcpy(to, bytes, count);
    block->used += count;
    return to;
}

static enum fkv_error add(struct fkv_txn *txn, const struct key *key, const void *value,
                          size_t value_bytes, bool remove)
{
    struct write *write = find(txn, key->hash);
    enum fkv_error error = write ? FKV_OK : make_room(txn);
    if (error)
        return error;
    struct write made = {.hash = key->hash,
                         .key_bytes = (uint32_t)key->size,
                         .value_bytes = (uint32_t)value_bytes,
                         .remove = remove};
    if (!remove && (!(made.key = copy(txn, key->bytes, key->size)) ||
                    !(made.value = copy(txn, value, value_bytes))))
        return FKV_NO_MEMORY;
    if (write) {
        *write = made;
    } else {
        txn->writes[txn->count] = made;
        table_add(txn, txn->count++);
    }
    return FKV_OK;
}

enum fkv_error txn_put(fkv_txn *txn, const struct key *key, const void *value, size_t value_bytes)
{
    return add(txn, key, value, value_bytes, false);
}

enum fkv_error txn_delete(fkv_txn *txn, const struct key *key)
{
    return add(txn, key, NULL, 0, true);
}

/* ---------------------------------------------------------------- reading */

static bool unchanged(const struct fkv_txn *txn, uint16_t class)
{
    return __atomic_load_n(&txn->db->stripes[class], __ATOMIC_ACQUIRE) <= txn->began ||
           PLANTED(NO_CONFLICT);
}

static enum fkv_error conflict(void)
{
    return error_set(FKV_CONFLICT, "a key that the transaction read was written since it began");
}

static enum fkv_error note_read(struct fkv_txn *txn, const struct key *key)
{
    if (!txn->reads) {
        if (!(txn->reads = memory_new(STRIPES / 8)))
            return FKV_NO_MEMORY;
        took(txn, STRIPES / 8);
    }
    uint32_t class = key->hash.lo % STRIPES;
    txn->reads[class / 64] |= 1ull << class % 64;
    return FKV_OK;
}

enum fkv_error txn_get(fkv_txn *txn, const struct key *key, void *buffer, size_t buffer_bytes,
                       size_t *value_bytes)
{
    const struct write *write = find(txn, key->hash);
    if (write && write->remove)
        return FKV_NOT_FOUND;
    if (write) {
        if (value_bytes)
            *value_bytes = write->value_bytes;
        if (write->value_bytes > buffer_bytes)
            return error_set(FKV_BUFFER_TOO_SMALL, "the value has %u bytes, the buffer %zu",
                             write->value_bytes, buffer_bytes);
        if (write->value_bytes)
            memcpy(buffer, write->value, write->value_bytes);
        return FKV_OK;
    }
    enum fkv_error error = note_read(txn, key);
    if (error)
        return error;
    rcu_read_lock();
    error = read_value(txn->db, key, buffer, buffer_bytes, value_bytes);
    rcu_read_unlock();
    SCHEDULE_POINT();
    return unchanged(txn, key->hash.lo % STRIPES) ? error : conflict();
}

enum fkv_error txn_exists(fkv_txn *txn, const struct key *key)
{
    const struct write *write = find(txn, key->hash);
    if (write)
        return write->remove ? FKV_NOT_FOUND : FKV_OK;
    enum fkv_error error = note_read(txn, key);
    if (error)
        return error;
    uint64_t entry;
    rcu_read_lock();
    error = read_entry(txn->db, key->hash, &entry);
    rcu_read_unlock();
    return unchanged(txn, key->hash.lo % STRIPES) ? error : conflict();
}

/* ---------------------------------------------------------------- ending */

/* The writer lock is held. */
static void end(struct fkv_txn *txn)
{
    struct fkv *db = txn->db;
    txn->ended = true;
    db->opened_bytes -= txn->bytes; /* it is soon freed */
    db->open_transactions--;
    if (txn->next)
        txn->next->previous = txn->previous;
    if (txn->previous)
        txn->previous->next = txn->next;
    else
        db->transactions = txn->next;
}

void txn_end_all(struct fkv *db)
{
    for (struct fkv_txn *txn = db->transactions; txn; txn = txn->next)
        txn->ended = true;
    db->transactions = NULL;
    db->open_transactions = 0;
}

enum fkv_error txn_validate(const struct fkv_txn *txn)
{
    for (uint32_t i = 0; txn->reads && i < STRIPES / 64; i++)
        for (uint64_t left = txn->reads[i]; left; left &= left - 1)
            if (!unchanged(txn, (uint16_t)(64 * i + (uint32_t)__builtin_ctzll(left))))
                return conflict();
    return FKV_OK;
}

enum fkv_error txn_commit(fkv_txn *txn, bool sync)
{
    struct fkv *db = txn->db;
    pthread_mutex_lock(&db->writer);
    enum fkv_error error = txn_validate(txn);
    if (!error && txn->count)
        error = commit_writes(db, txn->writes, txn->count, txn, sync);
    if (error == FKV_NOT_FOUND) /* deletes of what is not there */
        error = FKV_OK;
    bool again = error == FKV_FULL || error == FKV_NO_MEMORY;
    if (!again)
        end(txn);
    return commit_end(db, error, sync);
}

void txn_abort(fkv_txn *txn)
{
    bool forked = !*txn->db->alive; /* a thread that is not in this process may hold the lock */
    if (!forked)
        pthread_mutex_lock(&txn->db->writer);
    end(txn);
    if (!forked)
        pthread_mutex_unlock(&txn->db->writer);
}

void txn_free(fkv_txn *txn)
{
    if (!txn->ended)
        txn_abort(txn);
    for (struct block *block = txn->blocks, *next; block; block = next) {
        next = block->next;
        memory_free(block);
    }
    memory_free(txn->writes);
    memory_free(txn->table);
    memory_free(txn->reads);
    memory_free(txn);
}
