/*
 * Snapshots beside writers: money that is moved between accounts, whose sum never changes, read
 * through snapshots while accounts and other keys come and go, segments split, the collector moves
 * records and checkpoints run. For ThreadSanitizer too.
 */
#include "api_support.h"

#include <pthread.h>
#include <stdatomic.h>

#include "support.h"

enum { ACCOUNTS = 2000, AMOUNT = 1000, WRITERS = 2, READERS = 2 };

struct bank {
    fkv *db;
    _Atomic bool stop;
    _Atomic uint64_t transfers, sums;
    _Atomic uint32_t seeds;
};

/* An account's value: what is on it, and some bytes that make records of many lengths. */
static size_t balance_value(uint64_t *random, int64_t balance, uint8_t *to)
{
    size_t bytes = sizeof balance + random_below(random, 600);
    memset(to, (int)(balance & 255), bytes);
    memcpy(to, &balance, sizeof balance);
    return bytes;
}

static bool transfer(struct bank *bank, uint64_t *random)
{
    uint32_t from = (uint32_t)random_below(random, ACCOUNTS);
    uint32_t to = (uint32_t)random_below(random, ACCOUNTS);
    uint8_t value[1024];
    int64_t balance[2] = {0};
    const uint32_t account[2] = {from, to};
    fkv_txn *txn;
    if (from == to)
        return false;
    insist_ok(fkv_txn_begin(bank->db, &txn));
    int64_t amount = (int64_t)random_below(random, 100);
    enum fkv_error error = FKV_OK;
    for (int i = 0; i < 2 && !error; i++) {
        error = fkv_txn_get(txn, &account[i], sizeof account[i], value, sizeof value, NULL);
        memcpy(&balance[i], value, sizeof balance[i]);
    }
    if (!error) {
        size_t bytes = balance_value(random, balance[0] - amount, value);
        insist_ok(fkv_txn_put(txn, &from, sizeof from, value, bytes));
        bytes = balance_value(random, balance[1] + amount, value);
        insist_ok(fkv_txn_put(txn, &to, sizeof to, value, bytes));
        error = fkv_txn_commit(txn, 0);
    }
    insist(error == FKV_OK || error == FKV_CONFLICT);
    fkv_txn_free(txn);
    return error == FKV_OK;
}

static void *write_transfers(void *context)
{
    struct bank *bank = context;
    uint64_t random = ++bank->seeds;
    uint8_t filler[2000] = {0};
    while (!bank->stop) {
        if (transfer(bank, &random))
            bank->transfers++;
        /* Other keys, so that the index grows and shrinks and there is something to collect. */
        uint64_t key = 1000000 + random_below(&random, 30000);
        if (random_below(&random, 3))
            insist_ok(fkv_put(bank->db, &key, sizeof key, filler, random_below(&random, 2000)));
        else
            (void)fkv_delete(bank->db, &key, sizeof key);
    }
    return NULL;
}

static int64_t sum_of(struct bank *bank, fkv_snapshot *snapshot)
{
    int64_t sum = 0;
    uint8_t value[1024];
    for (uint32_t account = 0; account < ACCOUNTS; account++) {
        int64_t balance;
        const void *borrowed;
        size_t bytes;
        if (account % 2) {
            insist_ok(
                fkv_snapshot_get(snapshot, &account, sizeof account, value, sizeof value, NULL));
            memcpy(&balance, value, sizeof balance);
        } else {
            fkv_read_begin(bank->db);
            insist_ok(fkv_snapshot_borrow(snapshot, &account, sizeof account, &borrowed, &bytes));
            memcpy(&balance, borrowed, sizeof balance);
            fkv_read_end(bank->db);
        }
        sum += balance;
    }
    return sum;
}

static int64_t sum_of_scan(fkv_snapshot *snapshot)
{
    int64_t sum = 0;
    uint64_t pairs = 0, accounts = 0;
    for (uint32_t part = 0; part < 2; part++) {
        fkv_scan_options options;
        fkv_scan_options_init(&options);
        options.part = part;
        options.parts = 2;
        fkv_scan *scan;
        const void *key, *value;
        size_t key_bytes, value_bytes;
        enum fkv_error error;
        insist_ok(fkv_scan_open(snapshot, &options, &scan));
        while (!(error = fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes))) {
            int64_t balance;
            pairs++;
            if (key_bytes != sizeof(uint32_t))
                continue;
            accounts++;
            memcpy(&balance, value, sizeof balance);
            sum += balance;
        }
        insist(error == FKV_NOT_FOUND);
        fkv_scan_close(scan);
    }
    if (pairs != fkv_snapshot_keys(snapshot) || accounts != ACCOUNTS)
        fprintf(stderr, "%llu pairs, %llu accounts in a scan of %llu keys\n",
                (unsigned long long)pairs, (unsigned long long)accounts,
                (unsigned long long)fkv_snapshot_keys(snapshot));
    insist(pairs == fkv_snapshot_keys(snapshot) && accounts == ACCOUNTS);
    return sum;
}

/* Two snapshots at a time, closed in any order. */
static void *read_sums(void *context)
{
    struct bank *bank = context;
    uint64_t random = ++bank->seeds;
    while (!bank->stop) {
        fkv_snapshot *snapshots[2];
        insist_ok(fkv_snapshot_open(bank->db, &snapshots[0]));
        insist(sum_of(bank, snapshots[0]) == (int64_t)ACCOUNTS * AMOUNT);
        insist_ok(fkv_snapshot_open(bank->db, &snapshots[1]));
        uint64_t first = random_below(&random, 2);
        insist(sum_of(bank, snapshots[first]) == (int64_t)ACCOUNTS * AMOUNT);
        fkv_snapshot_close(snapshots[first]);
        insist(sum_of(bank, snapshots[!first]) == (int64_t)ACCOUNTS * AMOUNT);
        insist(sum_of_scan(snapshots[!first]) == (int64_t)ACCOUNTS * AMOUNT);
        fkv_snapshot_close(snapshots[!first]);
        bank->sums += 4;
    }
    return NULL;
}

/* Has everything gone on beside? */
static bool is_enough(struct bank *bank)
{
    fkv_stats stats;
    insist_ok(fkv_get_stats(bank->db, &stats, sizeof stats));
    return bank->transfers > 0 && bank->sums > 0 && stats.index_splits > 0 &&
           stats.bytes_written_collector > 0;
}

static void run_bank(unsigned flags, const char *name)
{
    struct bank bank = {0};
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = 2 << 20;
    options.garbage_percent_max = 20;
    assert_ok(fkv_open(support_path(name), &options, &bank.db));
    uint64_t random = 1;
    uint8_t value[1024];
    for (uint32_t account = 0; account < ACCOUNTS; account++) {
        size_t bytes = balance_value(&random, AMOUNT, value);
        assert_ok(fkv_put(bank.db, &account, sizeof account, value, bytes));
    }
    pthread_t threads[WRITERS + READERS];
    for (int t = 0; t < WRITERS + READERS; t++)
        assert_int_equal(
            pthread_create(&threads[t], NULL, t < WRITERS ? write_transfers : read_sums, &bank), 0);
    usleep(support_is_long() ? 60000000 : 2500000);
    while (!is_enough(&bank)) /* where much else runs */
        usleep(10000);
    bank.stop = true;
    for (int t = 0; t < WRITERS + READERS; t++)
        pthread_join(threads[t], NULL);
    fkv_stats stats;
    assert_ok(fkv_get_stats(bank.db, &stats, sizeof stats));
    printf("%s: %llu transfers, %llu sums, %llu splits, %llu checkpoints, %llu bytes moved\n", name,
           (unsigned long long)bank.transfers, (unsigned long long)bank.sums,
           (unsigned long long)stats.index_splits, (unsigned long long)stats.checkpoints,
           (unsigned long long)stats.bytes_written_collector);
    assert_int_equal(stats.snapshots, 0);
    assert_int_equal(stats.snapshot_bytes, 0);
    assert_int_equal(stats.snapshot_sectors, 0);
    fkv_check_result result;
    assert_ok(fkv_check(bank.db, NULL, &result, sizeof result));
    assert_ok(fkv_close(bank.db));
}

static void sums_in_snapshots(void **state)
{
    (void)state;
    run_bank(0, "threads");
}

static void sums_in_snapshots_without_threads(void **state)
{
    (void)state;
    run_bank(FKV_NO_THREAD, "no_thread");
}

/* Two threads close snapshots, one of them inside read sections: neither waits for the other for
 * ever. The handle is closed with a snapshot open, while the library's threads work. */
enum { CLOSES = 3000 };

struct closer {
    fkv *db;
    bool in_section;
};

static void *close_snapshots(void *context)
{
    const struct closer *closer = context;
    for (uint32_t i = 0; i < CLOSES; i++) {
        fkv_snapshot *snapshot;
        insist_ok(fkv_snapshot_open(closer->db, &snapshot));
        insist_ok(fkv_put(closer->db, &(uint32_t){i % 10}, sizeof(uint32_t), &i, sizeof i));
        if (closer->in_section)
            fkv_read_begin(closer->db);
        fkv_snapshot_close(snapshot);
        if (closer->in_section)
            fkv_read_end(closer->db);
    }
    return NULL;
}

static void closes_inside_and_outside(void **state)
{
    (void)state;
    fkv *db;
    pthread_t thread[2];
    insist_ok(fkv_open(support_path("closes"), NULL, &db));
    struct closer closers[2] = {{db, false}, {db, true}};
    for (int i = 0; i < 2; i++)
        insist(pthread_create(&thread[i], NULL, close_snapshots, &closers[i]) == 0);
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    fkv_snapshot *left;
    insist_ok(fkv_snapshot_open(db, &left));
    for (uint32_t i = 0; i < CLOSES; i++)
        insist_ok(fkv_put(db, &i, sizeof i, &i, sizeof i));
    insist_ok(fkv_close(db));
    fkv_snapshot_close(left);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_in_snapshots),
        cmocka_unit_test(sums_in_snapshots_without_threads),
        cmocka_unit_test(closes_inside_and_outside),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
