#include "async.h"
#include "call.h"
#include "read.h"

/*
 * The public calls that read many keys at once. What is in memory is read in groups (isa_code.h);
 * records that have no address there are left for the end, and read through a queue of the system
 * that is kept full.
 */

enum { DEPTH = 64 /* reads of the device that are under way */ };

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
    return async_open(db, DEPTH, true, &queue) ? NULL : queue;
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
    if (!(read->error = call_key(db, read->key, read->key_bytes, &key))) {
        rcu_read_lock();
        read->error = read_value(db, &key, read->buffer, read->buffer_bytes, &read->value_bytes);
        rcu_read_unlock();
    }
    said(db, read->error);
}

static bool any_is_cold(const fkv_read *reads, size_t count)
{
    bool cold = false;
    for (size_t i = 0; i < count; i++)
        cold |= reads[i].error == READ_BY_CALL;
    return cold;
}

/* Those that are to be read by calls, many at a time; what the queue could not do, one by one. Each
 * that fails says so at once: a queue that fails sets a detail too, which is nobody's. */
static void read_cold(fkv *db, fkv_read *reads, size_t count)
{
    fkv_async *queue = queue_take(db);
    if (queue) {
        read_through(queue, reads, count);
        if (any_is_cold(reads, count))
            fkv_async_close(queue); /* it is broken; waits for what is under way */
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
static enum fkv_error worst(const fkv_read *reads, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (reads[i].error > FKV_NOT_FOUND && reads[i].error != READ_BY_CALL)
            return reads[i].error;
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
    unsigned errors = 0;
    for (size_t at = 0; at < count; at += READ_GROUP) {
        rcu_read_lock();
        errors |= isa.read_group(db, reads + at, min_u64(count - at, READ_GROUP), READ_COPY);
        rcu_read_unlock();
    }
    if (__builtin_expect(errors <= FKV_NOT_FOUND, 1))
        return FKV_OK;
    said(db, worst(reads, count));
    if (any_is_cold(reads, count))
        read_cold(db, reads, count);
    return worst(reads, count);
}

enum fkv_error fkv_exists_many(fkv *db, fkv_read *reads, size_t count)
{
    enum fkv_error error = check_reads(db, reads, count);
    if (error)
        return error;
    unsigned errors = 0;
    for (size_t at = 0; at < count; at += READ_GROUP) {
        rcu_read_lock();
        errors |= isa.read_group(db, reads + at, min_u64(count - at, READ_GROUP), READ_LOOK);
        rcu_read_unlock();
    }
    return errors <= FKV_NOT_FOUND ? FKV_OK : said(db, worst(reads, count));
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
    unsigned errors = 0;
    for (size_t at = 0; at < count; at += READ_GROUP)
        errors |= isa.read_group(db, reads + at, min_u64(count - at, READ_GROUP), READ_LEND);
    return errors <= FKV_NOT_FOUND ? FKV_OK : said(db, worst(reads, count));
}
