/*
 * Many keys at once beside writers. Every key always has a value, which says whose it is and counts
 * its versions: a reader finds all keys, and no key ever goes back. For ThreadSanitizer too.
 */
#include "api_support.h"

#include <pthread.h>
#include <stdatomic.h>

#include "support.h"

enum { KEYS = 5000, BATCH = 48, ROOM = 1200, BATCHES = 1500, READERS = 2 };

struct stage {
    fkv *db;
    _Atomic bool stop;
    bool can_borrow;
};

struct content {
    uint32_t key;
    uint32_t version;
};

static size_t content_make(uint8_t *to, uint32_t key, uint32_t version)
{
    const struct content content = {key, version};
    size_t bytes = sizeof content + checksum_mix((uint64_t)key << 32 | version) % 1000;
    memset(to, (int)(key + version), bytes);
    memcpy(to, &content, sizeof content);
    return bytes;
}

static void check(uint32_t key, const uint8_t *value, size_t bytes, uint32_t *version)
{
    uint8_t wanted[ROOM];
    struct content content;
    insist(bytes >= sizeof content);
    memcpy(&content, value, sizeof content);
    insist(content.key == key && content.version >= *version);
    insist(bytes == content_make(wanted, key, content.version) &&
           memcmp(value, wanted, bytes) == 0);
    *version = content.version;
}

/* Overwrites, some of them of several keys at once; and other keys that come and go. */
static void *write_all(void *context)
{
    struct stage *stage = context;
    uint64_t random = 1;
    uint32_t *version = calloc(KEYS, sizeof *version);
    uint8_t value[ROOM];
    while (!stage->stop) {
        fkv_txn *txn;
        insist_ok(fkv_txn_begin(stage->db, &txn));
        for (uint64_t i = random_below(&random, 5); i < 5; i++) {
            uint32_t key = (uint32_t)random_below(&random, KEYS);
            size_t bytes = content_make(value, key, ++version[key]);
            insist_ok(fkv_txn_put(txn, &key, sizeof key, value, bytes));
        }
        uint32_t other = KEYS + (uint32_t)random_below(&random, 3 * KEYS);
        if (random_below(&random, 2))
            insist_ok(fkv_txn_put(txn, &other, sizeof other, value, 100));
        else
            insist(fkv_txn_delete(txn, &other, sizeof other) <= FKV_NOT_FOUND);
        insist_ok(fkv_txn_commit(txn, 0));
        fkv_txn_free(txn);
    }
    free(version);
    return NULL;
}

static void *read_all(void *context)
{
    struct stage *stage = context;
    uint32_t *version = calloc(KEYS, sizeof *version);
    uint8_t(*room)[ROOM] = malloc(BATCH * sizeof *room);
    uint64_t random = (uintptr_t)&room;
    uint32_t keys[BATCH];
    fkv_read reads[BATCH];
    for (int n = 0; n < BATCHES; n++) {
        uint32_t count = 1 + (uint32_t)random_below(&random, BATCH);
        for (uint32_t i = 0; i < count; i++) {
            keys[i] = (uint32_t)random_below(&random, KEYS);
            reads[i] = (fkv_read){
                .key = &keys[i], .key_bytes = 4, .buffer = room[i], .buffer_bytes = ROOM};
        }
        insist_ok(fkv_get_many(stage->db, reads, count));
        for (uint32_t i = 0; i < count; i++) {
            insist_ok(reads[i].error);
            check(keys[i], room[i], reads[i].value_bytes, &version[keys[i]]);
        }
        insist_ok(fkv_exists_many(stage->db, reads, count));
        for (uint32_t i = 0; i < count; i++)
            insist_ok(reads[i].error);
        if (!stage->can_borrow)
            continue;
        fkv_read_begin(stage->db);
        insist_ok(fkv_borrow_many(stage->db, reads, count));
        for (uint32_t i = 0; i < count; i++) {
            insist_ok(reads[i].error);
            check(keys[i], reads[i].value, reads[i].value_bytes, &version[keys[i]]);
        }
        fkv_read_end(stage->db);
    }
    free(room);
    free(version);
    return NULL;
}

static void run(const struct place *place, unsigned flags)
{
    struct stage stage = {.can_borrow = !(flags & FKV_READ_WITHOUT_MAPPING)};
    pthread_t writer, readers[READERS];
    uint8_t value[ROOM];
    must(try_open_small_log(place->path, flags, &stage.db));
    for (uint32_t key = 0; key < KEYS; key++)
        must(fkv_put(stage.db, &key, sizeof key, value, content_make(value, key, 0)));
    assert_int_equal(pthread_create(&writer, NULL, write_all, &stage), 0);
    for (int i = 0; i < READERS; i++)
        assert_int_equal(pthread_create(&readers[i], NULL, read_all, &stage), 0);
    for (int i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    stage.stop = true;
    pthread_join(writer, NULL);
    must(fkv_check(stage.db, NULL, NULL, 0));
    must(fkv_close(stage.db));
    remove_store(place);
}

static void test_mapped(void **state)
{
    run(*state, 0);
}

static void test_by_calls(void **state)
{
    run(*state, FKV_READ_WITHOUT_MAPPING);
}

static void test_without_threads(void **state)
{
    run(*state, FKV_NO_THREAD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_place(test_mapped),
        in_place(test_by_calls),
        in_place(test_without_threads),
    };
    return run_all(tests);
}
