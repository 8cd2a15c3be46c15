/*
 * test_async.c: asynchronous gets: over the system's files, where io_uring reads them, through the
 * page cache and past it, and over the simulated disk, which has no queue, so that they are read
 * while the caller waits; and over a queue that breaks.
 */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fetch.h"
#include "fkv.h"
#include "os_sim.h"
#include "store.h"

enum { KEYS = 4000, DEPTH = 32, ROOM = 300000 };

struct world {
    struct os_sim *sim; /* NULL: the system's files */
    struct os *os;
    struct fkv *db;
    unsigned flags;
    uint32_t version[KEYS]; /* 0: no key */
    uint8_t *buffers, *value;
};

static uint32_t bytes_of(uint32_t key, uint32_t version)
{
    return key % 500 == 1 ? 200000 : (uint32_t)(rng_mix(1, key, version) % 3000);
}

static uint32_t make_value(uint8_t *to, uint32_t key, uint32_t version)
{
    struct rng rng = rng_make(rng_mix(2, key, version));
    rng_fill(&rng, to, bytes_of(key, version));
    return bytes_of(key, version);
}

static void put(struct world *world, uint32_t key, uint32_t version)
{
    uint32_t bytes = make_value(world->value, key, version);
    assert_ok(fkv_put(world->db, &key, sizeof key, world->value, bytes));
    world->version[key] = version;
}

static void world_open(struct world *world)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = world->flags | FKV_NO_THREAD;
    const char *path = world->sim ? "store" : support_path("async.fkv");
    assert_ok(store_open(world->os, path, &options, &world->db));
}

/* All keys but every fifth, in the file. */
static struct world *world_new_with(bool simulated, unsigned flags)
{
    struct world *world = test_calloc(1, sizeof *world);
    world->flags = flags;
    world->sim = simulated ? os_sim_new(NULL) : NULL;
    world->os = simulated ? os_sim_os(world->sim) : os_posix();
    world->buffers = test_malloc((size_t)DEPTH * ROOM);
    world->value = test_malloc(ROOM);
    world_open(world);
    for (uint32_t key = 0; key < KEYS; key++)
        if (key % 5)
            put(world, key, 1);
    return world;
}

static struct world *world_new(bool simulated)
{
    return world_new_with(simulated, FKV_READ_WITHOUT_MAPPING);
}

static void world_end(struct world *world)
{
    if (world->db)
        assert_ok(store_close(world->db));
    if (world->sim)
        os_sim_free(world->sim);
    else
        assert_int_equal(remove(support_path("async.fkv")) + remove(support_path("async.fkv-wal")),
                         0);
    test_free(world->buffers);
    test_free(world->value);
    test_free(world);
}

/* One get that is open. */
struct open_get {
    uint32_t key, version_before;
    bool open;
};

static void check(struct world *world, struct open_get *get, const fkv_completion *done,
                  const uint8_t *buffer)
{
    assert_true(get->open);
    get->open = false;
    if (done->error == FKV_NOT_FOUND) {
        assert_true(!get->version_before || !world->version[get->key]);
        return;
    }
    assert_ok(done->error);
    uint32_t versions[] = {world->version[get->key], get->version_before};
    for (int i = 0; i < 2; i++)
        if (versions[i] && done->value_bytes == bytes_of(get->key, versions[i])) {
            make_value(world->value, get->key, versions[i]);
            if (memcmp(world->value, buffer, done->value_bytes) == 0)
                return;
        }
    fail_msg("key %u has a wrong value of %zu bytes", get->key, done->value_bytes);
}

/* Random gets, DEPTH at a time, with puts and deletes between them, if `changes`. */
static void gets(struct world *world, uint32_t count, bool changes, bool by_poll)
{
    struct rng rng = rng_make(5);
    struct open_get open[DEPTH] = {0};
    fkv_completion done[DEPTH];
    fkv_async *async;
    uint32_t taken = 0, over = 0;
    assert_ok(fkv_async_open(world->db, DEPTH, &async));
    while (over < count) {
        for (uint32_t i = 0; i < DEPTH && taken < count; i++) {
            if (open[i].open)
                continue;
            uint32_t key = (uint32_t)rng_below(&rng, KEYS);
            open[i] = (struct open_get){key, world->version[key], true};
            assert_ok(fkv_async_get(async, &key, sizeof key, world->buffers + (size_t)i * ROOM,
                                    ROOM, &open[i]));
            taken++;
        }
        if (rng_percent(&rng, 50))
            assert_ok(fkv_async_submit(async));
        for (int i = 0; changes && i < 8; i++) {
            uint32_t key = (uint32_t)rng_below(&rng, KEYS);
            bool open_already = false; /* then two versions would not be all it may have */
            for (int o = 0; o < DEPTH; o++)
                open_already |= open[o].open && open[o].key == key &&
                                open[o].version_before != world->version[key];
            if (!open_already)
                put(world, key, world->version[key] + 1);
        }
        if (by_poll) {
            struct pollfd wanted = {.fd = fkv_async_fd(async), .events = POLLIN};
            assert_ok(fkv_async_submit(async));
            assert_int_equal(poll(&wanted, 1, -1), 1);
        }
        size_t given = 0;
        assert_ok(fkv_async_wait(async, !by_poll, done, 1 + rng_below(&rng, DEPTH), &given));
        assert_true(given > 0 || by_poll);
        for (size_t i = 0; i < given; i++) {
            struct open_get *get = done[i].tag;
            check(world, get, &done[i], world->buffers + (size_t)(get - open) * ROOM);
        }
        over += (uint32_t)given;
    }
    size_t given = 1;
    assert_ok(fkv_async_wait(async, 1, done, DEPTH, &given)); /* nothing is open */
    assert_int_equal(given, 0);
    fkv_async_close(async);
}

static void everything(bool simulated, unsigned flags)
{
    struct world *world = world_new_with(simulated, flags);
    gets(world, 3 * KEYS, false, false);
    gets(world, KEYS, false, true);
    gets(world, 4 * KEYS, true, false);
    gets(world, KEYS, true, true);
    world_end(world);
}

/* As the library finds best; all through the queue; all through it and past the page cache. */
static void test_system(void **state)
{
    (void)state;
    for (int way = FETCH_NOW; way <= FETCH_DIRECT; way++) {
        fetch_test_way = (enum fetch_way)way;
        everything(false, FKV_READ_WITHOUT_MAPPING);
        everything(false, 0);
    }
    fetch_test_way = FETCH_NOW;
}

static void test_simulated(void **state)
{
    (void)state;
    everything(true, FKV_READ_WITHOUT_MAPPING);
}

/* Records that are not in the page cache are read by the queue, those of a store with a mapping
 * too; what a queue reads past the cache does not come into it. */
static void test_way(void **state)
{
    (void)state;
    struct world *world = world_new_with(false, 0);
    const struct os_ops *ops = world->db->os->ops;
    assert_ok(fkv_checkpoint(world->db));
    fkv_async *async;
    assert_ok(fkv_async_open(world->db, DEPTH, &async));
    if (ops->cached(world->db->file, 0, 1) < 0) {
        print_message("skipped: the system does not say what is in the page cache\n");
    } else {
        uint8_t page[PAGE_BYTES];
        bool now = false; /* the system may take any page back at any time */
        for (int i = 0; !now && i < 1000; i++) {
            assert_int_equal(ops->read(world->db->file, page, sizeof page, 0), 0);
            now = fetch_way(world->db, 0, sizeof page, 1) == FETCH_NOW;
        }
        assert_true(now);
        assert_int_equal(ops->cached(world->db->file, UINT64_C(1) << 40, 1 << 20), 0);
        assert_int_equal(fetch_way(world->db, UINT64_C(1) << 40, 1, 1), FETCH_CACHED);
        world->db->beyond_memory = true;
        uint32_t direct = 0;
        for (uint64_t nth = 0; nth < 80; nth++)
            direct += fetch_way(world->db, UINT64_C(1) << 40, 1, nth) == FETCH_DIRECT;
        if (world->db->direct.file)
            assert_int_equal(direct, 75);
        else
            print_message("skipped: the file system has no direct reads\n");
    }
    fkv_async_close(async);
    world_end(world);
}

static void limits(struct world *world)
{
    fkv_async *async = NULL;
    fkv_completion done[4];
    size_t count;
    uint32_t key = 2, large = 501;
    uint8_t *buffer = world->buffers;
    assert_error(fkv_async_open(world->db, 0, &async), FKV_INVALID);
    assert_error(fkv_async_open(world->db, 5000, &async), FKV_INVALID);
    assert_error(fkv_async_open(NULL, 1, &async), FKV_INVALID);
    assert_ok(fkv_async_open(world->db, 2, &async));
    assert_error(fkv_async_get(async, NULL, 1, buffer, ROOM, NULL), FKV_INVALID);
    assert_error(fkv_async_get(async, &key, sizeof key, NULL, 1, NULL), FKV_INVALID);
    assert_error(fkv_async_get(async, &key, 70000, buffer, ROOM, NULL), FKV_KEY_TOO_LARGE);
    assert_error(fkv_async_get(NULL, &key, sizeof key, buffer, ROOM, NULL), FKV_INVALID);
    assert_ok(fkv_async_get(async, &key, sizeof key, buffer, 0, &key));
    assert_ok(fkv_async_get(async, &large, sizeof large, buffer, 100, &large));
    assert_error(fkv_async_get(async, &key, sizeof key, buffer, ROOM, NULL), FKV_BUSY);
    for (size_t over = 0; over < 2; over += count) {
        assert_ok(fkv_async_wait(async, 1, done, 4, &count));
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(done[i].error, FKV_BUFFER_TOO_SMALL);
            assert_int_equal(done[i].value_bytes, bytes_of(*(uint32_t *)done[i].tag, 1));
        }
    }
    assert_error(fkv_async_wait(async, 1, done, 0, &count), FKV_INVALID);
    fkv_async_close(async);
    fkv_async_close(NULL);
}

static void test_limits(void **state)
{
    (void)state;
    for (int simulated = 0; simulated < 2; simulated++) {
        struct world *world = world_new(simulated);
        limits(world);
        world_end(world);
    }
}

/* The store, or the queue, is closed while gets are open. */
static void test_close(void **state)
{
    (void)state;
    fetch_test_way = FETCH_CACHED; /* so that gets stay open */
    for (int way = 0; way < 4; way++) {
        struct world *world = world_new(way & 1);
        fkv_async *async;
        assert_ok(fkv_async_open(world->db, DEPTH, &async));
        for (uint32_t i = 0; i < DEPTH; i++) {
            uint32_t key = i + 1;
            assert_ok(fkv_async_get(async, &key, sizeof key, world->buffers + (size_t)i * ROOM,
                                    ROOM, NULL));
        }
        if (way & 2)
            assert_ok(fkv_async_submit(async));
        if (way == 3) {
            fkv_async_close(async);
            world_end(world);
            continue;
        }
        assert_ok(store_close(world->db));
        world->db = NULL;
        fkv_completion done[DEPTH];
        size_t count, cancelled = 0;
        uint32_t key = 1;
        assert_ok(fkv_async_wait(async, 1, done, DEPTH, &count));
        assert_int_equal(count, DEPTH);
        for (size_t i = 0; i < count; i++) {
            if (done[i].error == FKV_CANCELLED)
                cancelled++;
            else
                assert_true(done[i].error == FKV_OK || done[i].error == FKV_NOT_FOUND);
        }
        assert_true(cancelled > 0);
        assert_error(fkv_async_get(async, &key, sizeof key, NULL, 0, NULL), FKV_CANCELLED);
        fkv_async_close(async);
        world_end(world);
    }
    fetch_test_way = FETCH_NOW;
}

static void test_media_error(void **state)
{
    (void)state;
    struct world *world = world_new(true);
    struct os_sim_fault fault = {.kinds = OS_SIM_READ, .nth = 1, .error = -EIO};
    fkv_completion done[1];
    fkv_async *async;
    size_t count;
    assert_ok(fkv_async_open(world->db, DEPTH, &async));
    for (uint32_t key = 2; key < 100; key += 5) {
        assert_ok(fkv_async_get(async, &key, sizeof key, world->buffers, ROOM, NULL));
        os_sim_fail(world->sim, &fault);
        assert_ok(fkv_async_wait(async, 1, done, 1, &count));
        assert_int_equal(count, 1);
        assert_int_equal(done[0].error, FKV_IO);
        assert_non_null(strstr(fkv_error_detail(world->db), "store"));
    }
    os_sim_fail(world->sim, NULL);
    fkv_async_close(async);
    gets(world, KEYS, true, false);
    world_end(world);
}

/* The system's files with a queue that breaks after so many reads were taken from it. */
static int reads_until_broken, reads_under_way;

static int breaking_read(struct os_queue *queue, struct os_file *file, void *buffer, size_t bytes,
                         uint64_t offset, void *tag)
{
    int status = os_posix()->ops->queue_read(queue, file, buffer, bytes, offset, tag);
    reads_under_way += status == 0;
    return status;
}

static int breaking_reap(struct os_queue *queue, bool wait, void **tag)
{
    *tag = NULL;
    if (reads_until_broken <= 0)
        return -EIO;
    int result = os_posix()->ops->queue_reap(queue, wait, tag);
    reads_until_broken -= *tag != NULL;
    reads_under_way -= *tag != NULL;
    return result;
}

/* The system, which does not know that the queue is broken, may still be reading into memory. */
static void breaking_close(struct os_queue *queue)
{
    for (void *tag; reads_under_way; reads_under_way -= tag != NULL)
        (void)os_posix()->ops->queue_reap(queue, true, &tag);
    os_posix()->ops->queue_close(queue);
}

/* fkv_get_many reads what the queue did not, one by one; whoever has a queue of his own is told. */
static void broken_queue(struct world *world, int after)
{
    fkv_read reads[3 * DEPTH] = {0};
    uint32_t keys[3 * DEPTH];
    for (uint32_t i = 0; i < 3 * DEPTH; i++) {
        keys[i] = i + 2;
        reads[i] = (fkv_read){.key = &keys[i], .key_bytes = sizeof keys[i]};
        reads[i].buffer = world->buffers + (size_t)i * (ROOM / 3);
        reads[i].buffer_bytes = ROOM / 3;
    }
    reads_until_broken = after;
    assert_ok(fkv_get_many(world->db, reads, 3 * DEPTH));
    for (uint32_t i = 0; i < 3 * DEPTH; i++) {
        assert_error(reads[i].error, keys[i] % 5 ? FKV_OK : FKV_NOT_FOUND);
        if (reads[i].error)
            continue;
        assert_int_equal(reads[i].value_bytes, make_value(world->value, keys[i], 1));
        assert_memory_equal(reads[i].buffer, world->value, reads[i].value_bytes);
    }

    fkv_async *async;
    fkv_completion done[DEPTH];
    size_t count;
    enum fkv_error error = FKV_OK;
    reads_until_broken = after;
    assert_ok(fkv_async_open(world->db, DEPTH, &async));
    for (int over = 0; !error && over <= 2 * after; over += (int)count) {
        for (uint32_t i = 0; i < DEPTH; i++) /* FKV_BUSY: that many are open */
            (void)fkv_async_get(async, &keys[i], sizeof keys[i], reads[i].buffer, ROOM / 3, NULL);
        count = 0;
        error = fkv_async_wait(async, 1, done, DEPTH, &count);
        assert_true(error || count);
    }
    assert_error(error, FKV_IO);
    assert_non_null(strstr(fkv_error_detail(world->db), "wait for reads"));
    fkv_async_close(async);
}

/* All that are open can be taken once the store is closed, though the queue gives nothing back. */
static void broken_and_closed(struct world *world)
{
    fkv_async *async;
    fkv_completion done[DEPTH];
    size_t count, taken = 0, cancelled = 0;
    reads_until_broken = 0;
    assert_ok(fkv_async_open(world->db, DEPTH, &async));
    for (uint32_t key = 2; key < 2 + DEPTH; key++)
        assert_ok(fkv_async_get(async, &key, sizeof key, world->buffers, ROOM, NULL));
    assert_ok(store_close(world->db));
    world->db = NULL;
    while (taken < DEPTH) {
        assert_ok(fkv_async_wait(async, 1, done, DEPTH, &count));
        assert_int_not_equal(count, 0);
        taken += count;
        for (size_t i = 0; i < count; i++)
            cancelled += done[i].error == FKV_CANCELLED;
    }
    assert_int_not_equal(cancelled, 0);
    assert_ok(fkv_async_wait(async, 1, done, DEPTH, &count));
    assert_int_equal(count, 0);
    fkv_async_close(async);
}

static void test_broken_queue(void **state)
{
    (void)state;
    static struct os_ops ops;
    ops = *os_posix()->ops;
    ops.queue_read = breaking_read;
    ops.queue_reap = breaking_reap;
    ops.queue_close = breaking_close;
    struct os os = {&ops};
    struct world *world = world_new(false);
    struct os_queue *queue = NULL;
    assert_ok(store_close(world->db));
    world->os = &os;
    world_open(world);
    if (ops.queue_open(&os, DEPTH, -1, &queue)) {
        print_message("skipped: the system has no queue\n");
    } else {
        os_posix()->ops->queue_close(queue);
        fetch_test_way = FETCH_CACHED;
        for (int after = 0; after < 3 * DEPTH; after += 7)
            broken_queue(world, after);
        broken_and_closed(world);
        fetch_test_way = FETCH_NOW;
    }
    world_end(world);
}

static uint32_t reads_queued;

static int counting_read(struct os_queue *queue, struct os_file *file, void *buffer, size_t bytes,
                         uint64_t offset, void *tag)
{
    reads_queued++;
    return os_posix()->ops->queue_read(queue, file, buffer, bytes, offset, tag);
}

static int cached_unknown(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    (void)file;
    (void)offset;
    (void)bytes;
    return -ENOSYS;
}

/* Where the system does not say what is in its page cache, what is read in a mapping counts as in
 * memory, and only what is not is given to the queue. */
static void test_cached_unknown(void **state)
{
    (void)state;
    static struct os_ops ops;
    ops = *os_posix()->ops;
    ops.queue_read = counting_read;
    ops.cached = cached_unknown;
    struct os os = {&ops};
    struct os_queue *queue;
    if (ops.queue_open(&os, DEPTH, -1, &queue)) {
        print_message("skipped: the system has no queue\n");
        return;
    }
    ops.queue_close(queue);
    for (int mapped = 0; mapped < 2; mapped++) {
        struct world *world = world_new_with(false, mapped ? 0 : FKV_READ_WITHOUT_MAPPING);
        assert_ok(store_close(world->db));
        world->os = &os;
        world_open(world);
        reads_queued = 0;
        gets(world, KEYS, false, false);
        if (mapped)
            assert_int_equal(reads_queued, 0);
        else
            assert_int_not_equal(reads_queued, 0);
        world_end(world);
    }
}

/* Reads fail that the thread had begun which has ended: the system's of a queue as -EFAULT. */
static int ended_reap(struct os_queue *queue, bool wait, void **tag)
{
    int result = os_posix()->ops->queue_reap(queue, wait, tag);
    return *tag && rng_mix(3, (uintptr_t)*tag, (uint64_t)result) % 2 ? -EFAULT : result;
}

/* The record can be read all the same, and so it is. */
static void test_thread_that_ended(void **state)
{
    (void)state;
    static struct os_ops ops;
    ops = *os_posix()->ops;
    ops.queue_reap = ended_reap;
    struct os os = {&ops};
    struct world *world = world_new(false);
    assert_ok(store_close(world->db));
    world->os = &os;
    world_open(world);
    fetch_test_way = FETCH_CACHED;
    gets(world, KEYS, false, false);
    gets(world, KEYS, true, false);
    fetch_test_way = FETCH_NOW;
    world_end(world);
}

/* ---------------------------------------------------------------- a queue that comes to be
 * forbidden */

enum { MANY_READS = 48, ANSWER_ALL = 0, ANSWER_NO_QUEUE = 1, ANSWER_LOST = 2, ANSWER_NO_ERROR = 3 };

/* From now on this process can begin no reads, and wait for none. */
static bool forbid_queues(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_enter, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* What the system has begun it goes on to write into memory: all of that is to be taken. */
static int read_forbidden(struct os_file *file)
{
    const struct os_ops *ops = os_posix()->ops;
    static void *rooms[MANY_READS];
    struct os_file *direct;
    struct os_queue *queue;
    uint32_t block;
    void *tag;
    if (ops->open_direct(file, &direct, &block) < 0)
        direct = file;
    if (ops->queue_open(os_posix(), MANY_READS + 1, -1, &queue))
        return ANSWER_NO_QUEUE;
    for (uint32_t i = 0; i < MANY_READS; i++) {
        rooms[i] = aligned_alloc(SECTOR_BYTES, SECTOR_BYTES);
        ops->queue_read(queue, direct, rooms[i], SECTOR_BYTES, i * SECTOR_BYTES, rooms[i]);
    }
    if (ops->queue_submit(queue) || !forbid_queues())
        return ANSWER_NO_QUEUE;
    for (uint32_t i = 0; i < MANY_READS; i++)
        if (ops->queue_reap(queue, true, &tag) < 0 || !tag)
            return ANSWER_LOST;
    ops->queue_read(queue, direct, rooms[0], SECTOR_BYTES, 0, rooms[0]);
    return ops->queue_reap(queue, true, &tag) < 0 && !tag ? ANSWER_ALL : ANSWER_NO_ERROR;
}

/* In a child, for the filter cannot be taken off again. */
static void test_forbidden_queue(void **state)
{
    (void)state;
    const struct os_ops *ops = os_posix()->ops;
    struct os_file *file;
    int status;
    uint8_t *bytes = calloc(1, SECTOR_BYTES);
    assert_int_equal(ops->open(os_posix(), support_path("forbidden"), OS_CREATE, &file), 0);
    for (uint32_t i = 0; i < MANY_READS; i++)
        assert_int_equal(ops->write(file, bytes, SECTOR_BYTES, i * SECTOR_BYTES), 0);
    assert_int_equal(ops->sync(file), 0);
    fflush(stdout);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(read_forbidden(file));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == ANSWER_NO_QUEUE)
        print_message("skipped: the system has no queue, or no filter\n");
    else
        assert_int_equal(WEXITSTATUS(status), ANSWER_ALL);
    ops->close(file);
    free(bytes);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forbidden_queue),
        cmocka_unit_test(test_system),
        cmocka_unit_test(test_simulated),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_close),
        cmocka_unit_test(test_media_error),
        cmocka_unit_test(test_way),
        cmocka_unit_test(test_broken_queue),
        cmocka_unit_test(test_thread_that_ended),
        cmocka_unit_test(test_cached_unknown),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
