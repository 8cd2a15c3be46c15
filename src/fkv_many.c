#include "async.h"
#include "call.h"
#include "read.h"

/*
 * The public calls that read many keys at once.
 *
 * A single get waits for memory twice, one after the other: for its bucket of the index, then for
 * its record. Here a group of keys goes through each stage together, so that all buckets are being
 * fetched at the same time, and then some records ahead of the one that is being copied (after
 * "Improving hash join performance through prefetching", Chen, Ailamaki, Gibbons and Mowry, 2004).
 * Records that have no address in memory are left for the end, and read through a queue of the
 * system that is kept full.
 */

enum {
    GROUP = 32, /* keys in a stage: their buckets stay in the nearest cache meanwhile */
    AHEAD = 12, /* records that are being fetched, beyond the one that is copied */
    DEPTH = 64  /* reads of the device that are under way */
};

struct lookup {
    struct key key;
    uint64_t entry;
    struct place place; /* record: NULL if out of the ordinary */
};

/* Keys, hashes, and the buckets on their way. */
static void begin_group(fkv *db, fkv_read *reads, size_t count, struct lookup *lookups)
{
    for (size_t i = 0; i < count; i++) {
        reads[i].error = call_key(db, reads[i].key, reads[i].key_bytes, &lookups[i].key);
        if (__builtin_expect(!reads[i].error, 1))
            index_prefetch_bucket(&db->index, lookups[i].key.hash);
    }
}

static void find_group(fkv *db, fkv_read *reads, size_t count, struct lookup *lookups)
{
    for (size_t i = 0; i < count; i++)
        if (__builtin_expect(!reads[i].error, 1))
            reads[i].error = read_find(db, lookups[i].key.hash, &lookups[i].entry);
}

static void locate_group(fkv *db, fkv_read *reads, size_t count, struct lookup *lookups)
{
    for (size_t i = 0; i < count; i++) {
        lookups[i].place.record = NULL;
        if (reads[i].error || lookups[i].entry & ENTRY_LARGE)
            continue;
        enum fkv_error error =
            read_locate(db, lookups[i].entry, entry_cells(lookups[i].entry), &lookups[i].place);
        if (__builtin_expect(error, 0))
            lookups[i].place.record = NULL;
        if (__builtin_expect(error == READ_BY_CALL, 0))
            reads[i].error = READ_BY_CALL;
    }
}

static inline __attribute__((always_inline)) void prefetch_lookup(const struct lookup *lookup)
{
    if (lookup->place.record)
        prefetch_record(lookup->place.record, entry_cells(lookup->entry));
}

/* Is the record whole, and the key's? If not, the key is to be read again, by itself. */
static inline bool is_record(fkv *db, const struct lookup *lookup)
{
    return lookup->place.record &&
           !check_record(db, lookup->entry, lookup->place.sequence, lookup->place.record,
                         lookup->key.bytes, lookup->key.size);
}

static void copy(fkv *db, fkv_read *read, const struct lookup *lookup)
{
    const uint8_t *record = lookup->place.record;
    if (__builtin_expect(
            !is_record(db, lookup) || record_header(record).value_bytes > read->buffer_bytes, 0)) {
        read->error =
            read_value(db, &lookup->key, read->buffer, read->buffer_bytes, &read->value_bytes);
        return;
    }
    struct format_record header = record_header(record);
    if (header.value_bytes)
        memcpy(read->buffer, record_key(record) + header.key_bytes, header.value_bytes);
    read->value_bytes = header.value_bytes;
}

static void lend(fkv *db, fkv_read *read, const struct lookup *lookup)
{
    const uint8_t *record = lookup->place.record;
    if (__builtin_expect(!is_record(db, lookup), 0)) {
        read->error = read_borrow(db, &lookup->key, &read->value, &read->value_bytes);
        return;
    }
    struct format_record header = record_header(record);
    read->value = record_key(record) + header.key_bytes;
    read->value_bytes = header.value_bytes;
}

enum what { COPY, LEND, LOOK };

/* Inside a read section. */
static inline __attribute__((always_inline)) void read_group(fkv *db, fkv_read *reads, size_t count,
                                                             enum what what)
{
    struct lookup lookups[GROUP];
    begin_group(db, reads, count, lookups);
    find_group(db, reads, count, lookups);
    if (what == LOOK)
        return;
    SCHEDULE_POINT();
    locate_group(db, reads, count, lookups);
    for (size_t i = 0; i < count && i < AHEAD; i++)
        prefetch_lookup(&lookups[i]);
    for (size_t i = 0; i < count; i++) {
        if (i + AHEAD < count)
            prefetch_lookup(&lookups[i + AHEAD]);
        if (what == LEND && (!reads[i].error || reads[i].error == READ_BY_CALL)) {
            reads[i].error = FKV_OK;
            lend(db, &reads[i], &lookups[i]);
        } else if (what == COPY && !reads[i].error) {
            copy(db, &reads[i], &lookups[i]);
        }
    }
}

/* ---------------------------------------------------------------- what is not in memory */

/* A queue for reads: one that another call has left, or a new one. NULL: there is none to be had.
 */
static fkv_async *queue_take(fkv *db)
{
    for (int i = 0; i < IDLE_QUEUES; i++) {
        fkv_async *queue = atomic_exchange(&db->idle_queues[i], NULL);
        if (queue)
            return queue;
    }
    fkv_async *queue;
    return fkv_async_open(db, DEPTH, &queue) ? NULL : queue;
}

static void queue_give(fkv *db, fkv_async *queue)
{
    for (int i = 0; i < IDLE_QUEUES; i++) {
        fkv_async *none = NULL;
        if (atomic_compare_exchange_strong(&db->idle_queues[i], &none, queue))
            return;
    }
    fkv_async_close(queue);
}

/* Take completions, at least one. */
static enum fkv_error reap(fkv_async *queue, size_t *open)
{
    fkv_completion done[DEPTH];
    size_t count = 0;
    enum fkv_error error = fkv_async_wait(queue, 1, done, DEPTH, &count);
    for (size_t i = 0; i < count; i++) {
        fkv_read *read = done[i].tag;
        read->error = done[i].error;
        if (!done[i].error || done[i].error == FKV_BUFFER_TOO_SMALL)
            read->value_bytes = done[i].value_bytes;
    }
    *open -= count;
    return error;
}

static void read_through(fkv_async *queue, fkv_read *reads, size_t count)
{
    size_t open = 0;
    for (size_t i = 0; i < count; i++) {
        if (reads[i].error != READ_BY_CALL)
            continue;
        if (open == DEPTH && reap(queue, &open))
            return;
        if (fkv_async_get(queue, reads[i].key, reads[i].key_bytes, reads[i].buffer,
                          reads[i].buffer_bytes, &reads[i]))
            continue;
        open++;
    }
    while (open)
        if (reap(queue, &open))
            return;
}

static void read_one(fkv *db, fkv_read *read)
{
    struct key key;
    if ((read->error = call_key(db, read->key, read->key_bytes, &key)))
        return;
    rcu_read_lock();
    read->error = read_value(db, &key, read->buffer, read->buffer_bytes, &read->value_bytes);
    rcu_read_unlock();
}

/* Those that are to be read by calls, many at a time; what the queue could not do, one by one. */
static void read_cold(fkv *db, fkv_read *reads, size_t count)
{
    fkv_async *queue = queue_take(db);
    if (queue) {
        read_through(queue, reads, count);
        bool broken = false;
        for (size_t i = 0; i < count; i++)
            broken |= reads[i].error == READ_BY_CALL;
        if (broken)
            fkv_async_close(queue); /* waits for what is under way */
        else
            queue_give(db, queue);
    }
    for (size_t i = 0; i < count; i++)
        if (reads[i].error == READ_BY_CALL)
            read_one(db, &reads[i]);
}

void many_drop(fkv *db)
{
    for (int i = 0; i < IDLE_QUEUES; i++)
        fkv_async_close(atomic_exchange(&db->idle_queues[i], NULL));
}

/* ---------------------------------------------------------------- the calls */

/* Can this be answered at all? */
static enum fkv_error check_reads(fkv *db, const fkv_read *reads, size_t count)
{
    enum fkv_error error = check_handle(db);
    if (!error && !reads && count)
        error = say(db, FKV_INVALID, "the reads are NULL");
    return error;
}

/* The first error that is more than absence. */
static enum fkv_error worst(const fkv *db, const fkv_read *reads, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (__builtin_expect(reads[i].error > FKV_NOT_FOUND, 0))
            return said(db, reads[i].error);
    return FKV_OK;
}

enum fkv_error fkv_get_many(fkv *db, fkv_read *reads, size_t count)
{
    enum fkv_error error = check_reads(db, reads, count);
    if (error)
        return error;
    for (size_t i = 0; i < count; i++)
        if (__builtin_expect(!reads[i].buffer && reads[i].buffer_bytes, 0))
            return say(db, FKV_INVALID, "a buffer is NULL");
    bool cold = false;
    for (size_t at = 0; at < count; at += GROUP) {
        size_t group = min_u64(count - at, GROUP);
        rcu_read_lock();
        read_group(db, reads + at, group, COPY);
        rcu_read_unlock();
        for (size_t i = at; i < at + group; i++)
            cold |= reads[i].error == READ_BY_CALL;
    }
    if (__builtin_expect(cold, 0))
        read_cold(db, reads, count);
    return worst(db, reads, count);
}

enum fkv_error fkv_exists_many(fkv *db, fkv_read *reads, size_t count)
{
    enum fkv_error error = check_reads(db, reads, count);
    if (error)
        return error;
    for (size_t at = 0; at < count; at += GROUP) {
        size_t group = min_u64(count - at, GROUP);
        rcu_read_lock();
        read_group(db, reads + at, group, LOOK);
        rcu_read_unlock();
    }
    return worst(db, reads, count);
}

enum fkv_error fkv_borrow_many(fkv *db, fkv_read *reads, size_t count)
{
    enum fkv_error error = check_reads(db, reads, count);
    if (error)
        return error;
    if (!rcu_read_ongoing())
        return say(db, FKV_INVALID, "fkv_borrow_many outside fkv_read_begin and fkv_read_end");
    if (db->sectors.unmapped)
        return say(db, FKV_INVALID, "the store is open without a mapping: nothing can be lent");
    for (size_t at = 0; at < count; at += GROUP)
        read_group(db, reads + at, min_u64(count - at, GROUP), LEND);
    return worst(db, reads, count);
}
