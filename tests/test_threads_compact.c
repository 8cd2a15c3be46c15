/*
 * Compaction in the background beside threads that write, read and scan, and one that starts, stops
 * and asks. For ThreadSanitizer too.
 */
#include "api_support.h"

#include <pthread.h>
#include <stdatomic.h>

#include "support.h"

enum { KEYS = 4000, ROUNDS = 8, COMMITS_A_ROUND = 2000 };

struct shared {
    fkv *db;
    _Atomic bool stop;
    _Atomic uint64_t commits;
};

/* A value is its key, again and again; so that it is known at any time. */
static size_t make_value(uint64_t *random, uint32_t key, uint8_t *to)
{
    size_t bytes = 4 * (1 + random_below(random, 200));
    for (size_t at = 0; at < bytes; at += sizeof key)
        memcpy(to + at, &key, sizeof key);
    return bytes;
}

static bool value_is_of(const uint8_t *value, size_t bytes, uint32_t key)
{
    bool same = bytes > 0;
    for (size_t at = 0; same && at < bytes; at += sizeof key)
        same = memcmp(value + at, &key, sizeof key) == 0;
    return same;
}

static void *write_all(void *context)
{
    struct shared *shared = context;
    uint64_t random = 1;
    uint8_t value[1000];
    while (!shared->stop) {
        uint32_t key = (uint32_t)random_below(&random, KEYS);
        size_t bytes = make_value(&random, key, value);
        insist_ok(fkv_put(shared->db, &key, sizeof key, value, bytes));
        shared->commits++;
    }
    return NULL;
}

static void *read_all(void *context)
{
    struct shared *shared = context;
    uint64_t random = 2;
    uint8_t value[1000];
    while (!shared->stop) {
        uint32_t key = (uint32_t)random_below(&random, KEYS);
        size_t bytes;
        insist_ok(fkv_get(shared->db, &key, sizeof key, value, sizeof value, &bytes));
        insist(value_is_of(value, bytes, key));
    }
    return NULL;
}

static void *scan_all(void *context)
{
    struct shared *shared = context;
    while (!shared->stop) {
        fkv_snapshot *snapshot;
        fkv_scan *scan;
        const void *key, *value;
        size_t key_bytes, value_bytes;
        uint64_t pairs = 0;
        insist_ok(fkv_snapshot_open(shared->db, &snapshot));
        insist_ok(fkv_scan_open(snapshot, NULL, &scan));
        while (fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes) == FKV_OK) {
            uint32_t number;
            memcpy(&number, key, sizeof number);
            insist(value_is_of(value, value_bytes, number));
            pairs++;
        }
        insist(pairs == KEYS);
        fkv_scan_close(scan);
        fkv_snapshot_close(snapshot);
    }
    return NULL;
}

static void run(unsigned flags, const char *name)
{
    enum { THREADS = 4 };
    static void *(*const work[THREADS])(void *) = {write_all, write_all, read_all, scan_all};
    struct shared shared = {.db = NULL};
    pthread_t threads[THREADS];
    uint64_t random = 3, ended = 0;
    uint8_t value[1000];
    insist(try_open_small_log(support_path(name), flags, &shared.db) == FKV_OK);
    for (uint32_t key = 0; key < KEYS; key++)
        insist_ok(fkv_put(shared.db, &key, sizeof key, value, make_value(&random, key, value)));
    for (int i = 0; i < THREADS; i++)
        insist(pthread_create(&threads[i], NULL, work[i], &shared) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t until = shared.commits + COMMITS_A_ROUND;
        insist_ok(fkv_compact_start(shared.db, (uint32_t)(round % 3) * 5));
        while (shared.commits < until)
            usleep(100);
        if (round % 4 == 3)
            insist_ok(fkv_compact_stop(shared.db));
        else
            while (stats_of(shared.db).compacting)
                usleep(100);
        insist(stats_of(shared.db).compactions >= ended);
        ended = stats_of(shared.db).compactions;
    }
    insist(ended == ROUNDS);
    insist_ok(fkv_compact_start(shared.db, 0));
    shared.stop = true;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    insist_ok(fkv_check(shared.db, NULL, NULL, 0));
    insist_ok(fkv_close(shared.db)); /* which ends it */
}

static void with_threads(void **state)
{
    (void)state;
    run(0, "compact.fkv");
}

static void without_library_threads(void **state)
{
    (void)state;
    run(FKV_NO_THREAD, "compact_alone.fkv");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_threads),
        cmocka_unit_test(without_library_threads),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
