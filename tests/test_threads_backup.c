/*
 * Backups beside threads that write: each is the state of one commit. One thread counts: its n-th
 * commit sets the key n mod COUNTED and the counter, so the counter of a backup says what every
 * other key must be. Others move money, whose sum never changes. Two threads make backups, while
 * segments split, the collector moves records and checkpoints run. For ThreadSanitizer too.
 */
#include "api_support.h"

#include <pthread.h>
#include <stdatomic.h>

#include "support.h"

enum { COUNTED = 3000, ACCOUNTS = 1000, AMOUNT = 1000, BACKUPS = 4, TEMPORARY = 20000 };

struct bank {
    fkv *db;
    const char *backup; /* a name that others begin with */
    _Atomic int threads;
    _Atomic bool stop;
    _Atomic uint64_t commits;
};

/* Keys are a letter and a number. */
struct key {
    char kind;
    char number[4];
};

static struct key key_of(char kind, uint32_t number)
{
    struct key key = {.kind = kind};
    memcpy(key.number, &number, sizeof number);
    return key;
}

static void put(fkv_txn *txn, char kind, uint32_t number, int64_t amount, size_t bytes)
{
    uint8_t value[1000];
    struct key key = key_of(kind, number);
    memset(value, (int)(amount & 255), sizeof value);
    memcpy(value, &amount, sizeof amount);
    insist_ok(fkv_txn_put(txn, &key, sizeof key, value, bytes));
}

static int64_t amount_of(fkv *db, char kind, uint32_t number)
{
    uint8_t value[1000];
    struct key key = key_of(kind, number);
    int64_t amount;
    size_t bytes;
    insist_ok(fkv_get(db, &key, sizeof key, value, sizeof value, &bytes));
    memcpy(&amount, value, sizeof amount);
    insist(value[bytes - 1] == (bytes > sizeof amount ? (amount & 255) : value[bytes - 1]));
    return amount;
}

static void *count(void *context)
{
    struct bank *bank = context;
    uint64_t random = 3;
    for (int64_t n = 1; !bank->stop; n++) {
        fkv_txn *txn;
        insist_ok(fkv_txn_begin(bank->db, &txn));
        put(txn, 'k', (uint32_t)(n % COUNTED), n, 8 + random_below(&random, 900));
        put(txn, 'n', 0, n, 8);
        insist_ok(fkv_txn_commit(txn, 0));
        fkv_txn_free(txn);
        bank->commits++;
    }
    return NULL;
}

static void *transfer(void *context)
{
    struct bank *bank = context;
    uint64_t random = 4;
    while (!bank->stop) {
        uint32_t from = (uint32_t)random_below(&random, ACCOUNTS);
        uint32_t to = (from + 1 + (uint32_t)random_below(&random, ACCOUNTS - 1)) % ACCOUNTS;
        int64_t amount = (int64_t)random_below(&random, 50);
        fkv_txn *txn;
        insist_ok(fkv_txn_begin(bank->db, &txn));
        put(txn, 'a', from, amount_of(bank->db, 'a', from) - amount,
            8 + random_below(&random, 300));
        put(txn, 'a', to, amount_of(bank->db, 'a', to) + amount, 8 + random_below(&random, 300));
        insist_ok(fkv_txn_commit(txn, 0));
        fkv_txn_free(txn);
        /* Keys that come and go, so that segments split and merge. */
        struct key key = key_of('t', (uint32_t)random_below(&random, TEMPORARY));
        enum fkv_error error = random_below(&random, 3) ? fkv_put(bank->db, &key, sizeof key, "", 0)
                                                        : fkv_delete(bank->db, &key, sizeof key);
        insist(error == FKV_OK || error == FKV_NOT_FOUND);
    }
    return NULL;
}

static void check_backup(const char *path)
{
    fkv *db = open_with(path, FKV_OPEN_READ_ONLY);
    insist_ok(fkv_check(db, NULL, NULL, 0));
    int64_t last = amount_of(db, 'n', 0), sum = 0;
    for (uint32_t k = 0; k < COUNTED; k++) {
        int64_t n = last - (last - (int64_t)k % COUNTED) % COUNTED;
        while (n > last)
            n -= COUNTED;
        insist(amount_of(db, 'k', k) == (n > 0 ? n : 0));
    }
    for (uint32_t a = 0; a < ACCOUNTS; a++)
        sum += amount_of(db, 'a', a);
    insist(sum == (int64_t)ACCOUNTS * AMOUNT);
    insist_ok(fkv_close(db));
}

static void *back_up(void *context)
{
    struct bank *bank = context;
    char path[128];
    snprintf(path, sizeof path, "%s%d", bank->backup, (int)bank->threads++);
    for (int i = 0; i < BACKUPS; i++) {
        uint64_t before = bank->commits;
        insist_ok(fkv_backup(bank->db, path, NULL));
        check_backup(path);
        insist(unlink(path) == 0);
        while (bank->commits < before + 2 * COUNTED) /* the next is another state */
            usleep(100);
    }
    return NULL;
}

static void run(unsigned flags, const char *name)
{
    enum { THREADS = 4 };
    static void *(*const work[THREADS])(void *) = {count, transfer, back_up, back_up};
    struct bank bank = {.backup = support_path("bank.backup")};
    pthread_t threads[THREADS];
    insist(try_open_small_log(support_path(name), flags, &bank.db) == FKV_OK);
    fkv_txn *txn;
    insist_ok(fkv_txn_begin(bank.db, &txn));
    for (uint32_t a = 0; a < ACCOUNTS; a++)
        put(txn, 'a', a, AMOUNT, 8);
    for (uint32_t k = 0; k < COUNTED; k++)
        put(txn, 'k', k, 0, 8);
    put(txn, 'n', 0, 0, 8);
    insist_ok(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    for (int i = 0; i < THREADS; i++)
        insist(pthread_create(&threads[i], NULL, work[i], &bank) == 0);
    pthread_join(threads[2], NULL);
    pthread_join(threads[3], NULL);
    bank.stop = true;
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    insist_ok(fkv_check(bank.db, NULL, NULL, 0));
    insist(stats_of(bank.db).snapshots == 0);
    insist_ok(fkv_close(bank.db));
}

static void with_threads(void **state)
{
    (void)state;
    run(0, "bank.fkv");
}

static void without_library_threads(void **state)
{
    (void)state;
    run(FKV_NO_THREAD, "bank_alone.fkv");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_threads),
        cmocka_unit_test(without_library_threads),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
