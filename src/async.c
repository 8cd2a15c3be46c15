#define _GNU_SOURCE
#include "async.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fetch.h"

enum { KEY_SMALL = 64, DEPTH_MAX = 4096 };

struct request {
    struct request *next; /* in a list of struct fkv_async */
    void *tag;
    void *buffer;
    size_t buffer_bytes;
    struct hash128 hash;
    uint8_t *key;
    size_t key_bytes;
    uint8_t key_small[KEY_SMALL];
    uint64_t entry, sequence; /* of the record being read */
    uint8_t *room;            /* what it is read into; kept */
    size_t room_bytes;
    uint8_t *record; /* where in it the record will be */
    size_t read_bytes;
    bool direct; /* it is read past the page cache */
    bool queued; /* it was given to the queue, and has not come back */
    enum fkv_error error;
    size_t value_bytes;
};

struct request_list {
    struct request *head, *tail;
};

struct fkv_async {
    struct fkv *db;                    /* NULL once the store is closed */
    struct fkv_async *next, *previous; /* among the store's */
    struct os_queue *queue;            /* NULL: there is none */
    int event_fd;
    bool inner;   /* it is a public call's own: that fails with a read, not with the queue */
    bool signals; /* the caller has asked for event_fd */
    bool more;    /* reads may be over that were not taken */
    /*
     * Reads are begun, and taken, at most a quarter of `depth` at a time. A device that is given
     * all that it may have at once tends to answer all at once, and then waits while the answers
     * are looked at: it and the processor would take turns.
     */
    uint32_t lot, added; /* added to `queue` and not begun yet */
    uint64_t reads;
    uint32_t depth, reading; /* requests that may be open; reads in `queue` */
    struct request *requests;
    uint64_t bytes;                          /* of memory, in db->opened_bytes */
    struct request_list free, waiting, done; /* waiting: to be read without a queue */
};

static void push(struct request_list *list, struct request *request)
{
    request->next = NULL;
    if (list->tail)
        list->tail->next = request;
    else
        list->head = request;
    list->tail = request;
}

static struct request *pop(struct request_list *list)
{
    struct request *request = list->head;
    if (request && !(list->head = request->next))
        list->tail = NULL;
    return request;
}

static void took(struct fkv_async *async, uint64_t bytes)
{
    if (async->db)
        store_took(async->db, &async->bytes, bytes);
}

static void notify(const struct fkv_async *async)
{
    const uint64_t one = 1;
    if (async->signals && write(async->event_fd, &one, sizeof one) < 0)
        return; /* it is readable already */
}

/* The detail of an error is the store's. */
static enum fkv_error say_of(const struct fkv *db, enum fkv_error error)
{
    if (error)
        error_claim(db ? db->id : 0);
    return error;
}

static enum fkv_error say(const struct fkv_async *async, enum fkv_error error)
{
    return async && async->inner ? error : say_of(async ? async->db : NULL, error);
}

static enum fkv_error forked(void)
{
    return error_set(FKV_FORKED, "the store was opened before fork()");
}

static void finish(struct fkv_async *async, struct request *request, enum fkv_error error)
{
    request->error = error;
    request->queued = false;
    if (error != FKV_NOT_FOUND && error != FKV_CANCELLED)
        say_of(async->db, error);
    if (request->key != request->key_small) {
        took(async, -(uint64_t)request->key_bytes);
        memory_free(request->key);
    }
    push(&async->done, request);
}

/* ---------------------------------------------------------------- making and ending */

enum fkv_error async_open(struct fkv *db, unsigned depth, bool inner, struct fkv_async **opened)
{
    struct fkv_async *async = memory_new(sizeof *async);
    struct request *requests = memory_new(depth * sizeof *requests);
    int event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!async || !requests || event_fd < 0) {
        enum fkv_error error =
            event_fd < 0 ? error_os(-errno, "make an eventfd for", db->path) : FKV_NO_MEMORY;
        memory_free(async);
        memory_free(requests);
        if (event_fd >= 0)
            close(event_fd);
        return error;
    }
    *async = (struct fkv_async){.db = db,
                                .inner = inner,
                                .event_fd = event_fd,
                                .depth = depth,
                                .lot = depth < 4 ? 1 : depth / 4,
                                .requests = requests};
    took(async, sizeof *async + depth * sizeof *requests);
    for (unsigned i = 0; i < depth; i++)
        push(&async->free, &requests[i]);
    if (db->os->ops->queue_open && db->os->ops->queue_open(db->os, depth, -1, &async->queue))
        async->queue = NULL;
    pthread_mutex_lock(&db->writer);
    if (async->queue)
        fetch_open_direct(db);
    async->next = db->asyncs;
    if (async->next)
        async->next->previous = async;
    db->asyncs = async;
    pthread_mutex_unlock(&db->writer);
    *opened = async;
    return FKV_OK;
}

enum fkv_error fkv_async_open(fkv *db, unsigned depth, fkv_async **opened)
{
    if (!db || !opened || !depth || depth > DEPTH_MAX)
        return say_of(db, error_set(FKV_INVALID,
                                    "no handle, no place for the queue, or not 1 to %d requests",
                                    DEPTH_MAX));
    return say_of(db, *db->alive ? async_open(db, depth, false, opened) : forked());
}

/* Wait until the system writes into none of our buffers; the requests are over. */
static void cancel(struct fkv_async *async)
{
    const struct os_ops *ops = async->db->os->ops;
    struct request *request;
    while (async->reading) {
        void *tag; /* waiting begins what was not begun; if even that fails, nothing is under way */
        if (ops->queue_reap(async->queue, true, &tag) < 0 && !tag)
            break;
        async->reading--;
        finish(async, tag, FKV_CANCELLED);
    }
    for (uint32_t i = 0; async->reading && i < async->depth; i++)
        if (async->requests[i].queued) { /* which the queue, being broken, does not give back */
            async->reading--;
            finish(async, &async->requests[i], FKV_CANCELLED);
        }
    while ((request = pop(&async->waiting)))
        finish(async, request, FKV_CANCELLED);
}

static void end(struct fkv_async *async, bool forked)
{
    if (!forked)
        cancel(async);
    if (async->queue)
        async->db->os->ops->queue_close(async->queue);
    async->queue = NULL;
    async->db->opened_bytes -= async->bytes;
    async->db = NULL;
    if (!forked) /* the descriptor is the parent's too */
        notify(async);
}

void async_end_all(struct fkv *db, bool forked)
{
    for (struct fkv_async *async = db->asyncs, *next; async; async = next) {
        next = async->next;
        async->next = async->previous = NULL;
        end(async, forked);
    }
    db->asyncs = NULL;
}

void fkv_async_close(fkv_async *async)
{
    if (!async)
        return;
    struct fkv *db = async->db;
    if (db) {
        bool forked = !*db->alive; /* a thread that is not in this process may hold the lock */
        if (!forked)
            pthread_mutex_lock(&db->writer);
        if (async->next)
            async->next->previous = async->previous;
        if (async->previous)
            async->previous->next = async->next;
        else
            db->asyncs = async->next;
        if (!forked)
            pthread_mutex_unlock(&db->writer);
        end(async, forked);
    }
    close(async->event_fd);
    for (uint32_t i = 0; i < async->depth; i++)
        memory_free(async->requests[i].room);
    memory_free(async->requests);
    memory_free(async);
}

/* From now on the kernel says when a read is over, which costs it something each time. */
static bool begin_to_signal(struct fkv_async *async)
{
    if (async->db && async->queue &&
        async->db->os->ops->queue_signal(async->queue, async->event_fd))
        return false;
    async->signals = true;
    if (!async->db || async->done.head || async->waiting.head || async->reading)
        notify(async); /* some may be over already */
    return true;
}

int fkv_async_fd(const fkv_async *async)
{
    if (!async || (async->db && !*async->db->alive) ||
        (!async->signals && !begin_to_signal((struct fkv_async *)async)))
        return -1;
    return async->event_fd;
}

/* ---------------------------------------------------------------- requests */

static struct key key_of(const struct request *request)
{
    return (struct key){.bytes = request->key, .size = request->key_bytes, .hash = request->hash};
}

/* Inside a read section. */
static void answer(struct fkv_async *async, struct request *request)
{
    struct key key = key_of(request);
    finish(
        async, request,
        read_value(async->db, &key, request->buffer, request->buffer_bytes, &request->value_bytes));
}

/* Is this a record of one piece, in the file? */
static bool is_to_be_read(struct fkv *db, struct request *request)
{
    uint64_t sector = entry_address(request->entry) / SECTOR_CELLS;
    uint64_t end = entry_address(request->entry) % SECTOR_CELLS + entry_cells(request->entry);
    if (request->entry & ENTRY_LARGE || end > SECTOR_CELLS ||
        sector * sizeof(struct sector_view) >= db->sectors.views.backed_bytes)
        return false;
    const uint8_t *base = sector_base(&db->sectors, (uint32_t)sector);
    if (base && (!db->os->ops->cached || base != sectors_mapped(&db->sectors, (uint32_t)sector)))
        return false;
    request->sequence =
        __atomic_load_n(&sector_view(&db->sectors, (uint32_t)sector)->sequence, __ATOMIC_RELAXED);
    return request->sequence != 0;
}

/* Room for so many bytes at a multiple of `block`, a power of 2. */
static uint8_t *make_room(struct fkv_async *async, struct request *request, size_t bytes,
                          size_t block)
{
    size_t wanted = bytes + block;
    if (wanted > request->room_bytes) {
        uint8_t *room = memory_buffer(wanted);
        if (!room)
            return NULL;
        took(async, wanted - request->room_bytes);
        memory_free(request->room);
        request->room = room;
        request->room_bytes = wanted;
    }
    return (uint8_t *)round_up((uintptr_t)request->room, block);
}

/* Add a read to the queue: of the record, or of the whole blocks that it is in. */
static bool queue_read(struct fkv_async *async, struct request *request, uint64_t offset,
                       size_t bytes)
{
    struct fkv *db = async->db;
    size_t block = request->direct ? db->direct.block_bytes : 1;
    uint64_t begin = offset / block * block;
    request->read_bytes = round_up(offset + bytes, block) - begin;
    uint8_t *room = make_room(async, request, request->read_bytes, block);
    if (!room || db->os->ops->queue_read(async->queue, request->direct ? db->direct.file : db->file,
                                         room, request->read_bytes, begin, request))
        return false;
    request->record = room + (offset - begin);
    return request->queued = true;
}

static int begin_added(struct fkv_async *async)
{
    async->added = 0;
    return async->db->os->ops->queue_submit(async->queue);
}

/* Begin to read, or answer at once what is in memory or cannot be. Inside a read section. */
static void begin_read(struct fkv_async *async, struct request *request)
{
    struct fkv *db = async->db;
    size_t bytes = (size_t)entry_cells(request->entry) * CELL_BYTES;
    uint64_t offset = entry_address(request->entry) * CELL_BYTES;
    enum fetch_way way = fetch_way(db, offset, bytes, async->reads++);
    request->direct = way == FETCH_DIRECT;
    bool now = way == FETCH_NOW;
    if (!now && !async->queue) {
        db->os->ops->read_ahead(db->file, offset, bytes);
        push(&async->waiting, request);
    } else if (!now && queue_read(async, request, offset, bytes)) {
        async->reading++;
        if (++async->added >= async->lot)
            (void)begin_added(async); /* who waits for reads tries again, and says what is wrong */
    } else {
        answer(async, request);
    }
}

static bool keep_key(struct fkv_async *async, struct request *request, const struct key *key)
{
    request->key = request->key_small;
    if (key->size > KEY_SMALL) {
        if (!(request->key = memory_new(key->size)))
            return false;
        took(async, key->size);
    }
    request->key_bytes = key->size;
    request->hash = key->hash;
    if (key->size)
        memcpy(request->key, key->bytes, key->size);
    return true;
}

static enum fkv_error check_async(const fkv_async *async)
{
    if (!async)
        return error_set(FKV_INVALID, "the queue is NULL");
    if (!async->db)
        return error_set(FKV_CANCELLED, "the store was closed");
    return check_handle(async->db);
}

enum fkv_error fkv_async_get(fkv_async *async, const void *key, size_t key_bytes, void *buffer,
                             size_t buffer_bytes, void *tag)
{
    struct key made;
    enum fkv_error error = check_async(async);
    if (!error && !buffer && buffer_bytes)
        error = error_set(FKV_INVALID, "the buffer is NULL");
    if (error || (error = key_make(async->db, key, key_bytes, &made)))
        return say(async, error);
    struct request *request = pop(&async->free);
    if (!request)
        return say(async, error_set(FKV_BUSY, "%u requests are open already", async->depth));
    if (!keep_key(async, request, &made)) {
        push(&async->free, request);
        return say(async, FKV_NO_MEMORY);
    }
    request->tag = tag;
    request->buffer = buffer;
    request->buffer_bytes = buffer_bytes;
    request->value_bytes = 0;
    bool idle = !async->done.head && !async->waiting.head;
    rcu_read_lock();
    error = read_entry(async->db, request->hash, &request->entry);
    if (error)
        finish(async, request, error);
    else if (is_to_be_read(async->db, request))
        begin_read(async, request);
    else
        answer(async, request);
    rcu_read_unlock();
    if (idle && (async->done.head || async->waiting.head))
        notify(async);
    return FKV_OK;
}

/* The record was read, or could not be: is it still the key's? Inside a read section. */
static void complete(struct fkv_async *async, struct request *request, int64_t result)
{
    struct fkv *db = async->db;
    struct key key = key_of(request);
    uint64_t now;
    uint32_t sector = (uint32_t)(entry_address(request->entry) / SECTOR_CELLS);
    bool same = read_entry(db, request->hash, &now) == FKV_OK && now == request->entry &&
                __atomic_load_n(&sector_view(&db->sectors, sector)->sequence, __ATOMIC_RELAXED) ==
                    request->sequence;
    bool whole = result >= 0 && (size_t)result == request->read_bytes;
    if (!same || (result >= 0 && !whole) || (!whole && request->direct)) {
        answer(async, request);
        return;
    }
    /* The device's error, or of the queue only: reads of a thread that has ended fail. A call says
     * which; not the mapping, where an error of the device ends the process. */
    int status = result < 0 ? db->os->ops->read(db->file, request->record, request->read_bytes,
                                                entry_address(request->entry) * CELL_BYTES)
                            : 0;
    if (status) {
        finish(async, request, error_os(status, "read a record of", db->path));
        return;
    }
    bool again;
    enum fkv_error error =
        read_check(db, request->entry, request->sequence, request->record, key.bytes, key.size);
    if (error == FKV_NOT_FOUND || /* another key's: as in read.c */
        (error && request->direct)) {
        answer(async, request);
        return;
    }
    if (!error)
        error = read_copy(db, &key, request->entry, request->record, request->buffer,
                          request->buffer_bytes, &request->value_bytes, &again);
    finish(async, request, error);
}

static enum fkv_error submit(struct fkv_async *async)
{
    int status = async->queue && async->reading ? begin_added(async) : 0;
    return status ? error_os(status, "begin to read", async->db->path) : FKV_OK;
}

enum fkv_error fkv_async_submit(fkv_async *async)
{
    enum fkv_error error = check_async(async);
    return say(async, error ? error : submit(async));
}

/* Take up to so many that the system has read; wait for one if nothing else is there. */
static enum fkv_error reap_queue(struct fkv_async *async, bool wait, size_t most)
{
    const struct os_ops *ops = async->db->os->ops;
    enum fkv_error error = FKV_OK;
    bool begun = false; /* what was added to the queue */
    async->more = true;
    async->added = 0;
    for (size_t taken = 0; !error && async->reading && taken < most; taken++) {
        void *tag;
        int result = ops->queue_reap(async->queue, false, &tag);
        if (!begun && (tag || !wait || async->done.head))
            error = submit(async);
        else if (!tag && wait && !async->done.head)
            result = ops->queue_reap(async->queue, true, &tag); /* begins them too */
        begun = true;
        if (!tag) {
            async->more = false;
            if (result)
                error = error_os(result, "wait for reads of", async->db->path);
            break;
        }
        async->reading--;
        rcu_read_lock();
        complete(async, tag, result);
        rcu_read_unlock();
    }
    return error;
}

static enum fkv_error reap(struct fkv_async *async, bool wait, size_t most)
{
    struct request *request;
    if (async->queue)
        return reap_queue(async, wait, most < async->lot ? most : async->lot);
    while ((request = pop(&async->waiting))) {
        rcu_read_lock();
        answer(async, request);
        rcu_read_unlock();
    }
    return FKV_OK;
}

enum fkv_error fkv_async_wait(fkv_async *async, int wait, fkv_completion *completions, size_t room,
                              size_t *count)
{
    uint64_t drained;
    if (!async || !completions || !room || !count)
        return say(async, error_set(FKV_INVALID, "no queue, or no place for completions"));
    /* First: a child of fork() has the same descriptor, and must not take what is its parent's. */
    enum fkv_error error = async->db ? check_async(async) : FKV_OK;
    if (!error && async->signals && read(async->event_fd, &drained, sizeof drained) < 0 &&
        errno != EAGAIN && errno != EINTR)
        error = error_os(-errno, "read", "an eventfd");
    if (!error && async->db)
        error = reap(async, wait != 0, room);
    if (error)
        return say(async, error);
    size_t given = 0;
    struct request *request;
    while (given < room && (request = pop(&async->done))) {
        completions[given++] = (fkv_completion){
            .tag = request->tag, .error = request->error, .value_bytes = request->value_bytes};
        push(&async->free, request);
    }
    if (async->done.head || (async->more && async->reading))
        notify(async);
    *count = given;
    return FKV_OK;
}
