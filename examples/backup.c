/*
 * An online backup: money moves between accounts in one thread while another writes a backup. The
 * backup is a store of its own; it has the accounts as one commit left them, so their sum is right
 * whatever was under way.
 *
 *     backup STORE COPY
 *
 * STORE is made if it is not there; COPY must not be. To restore is to open the copy, or to move it
 * to where the store was.
 */
#include <fkv.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { ACCOUNTS = 100000, BALANCE = 100 };

static fkv *db;
static atomic_bool stop;
static atomic_int failure; /* of the thread that writes: an enum fkv_error */

static enum fkv_error open_accounts(void)
{
    fkv_txn *txn;
    enum fkv_error error = fkv_txn_begin(db, &txn);
    for (uint32_t account = 0; account < ACCOUNTS && error == FKV_OK; account++) {
        int64_t balance = BALANCE;
        error = fkv_txn_put(txn, &account, sizeof account, &balance, sizeof balance);
    }
    if (error == FKV_OK)
        error = fkv_txn_commit(txn, FKV_SYNC);
    fkv_txn_free(txn);
    return error;
}

static enum fkv_error transfer(uint32_t from, uint32_t to)
{
    fkv_txn *txn;
    enum fkv_error error = fkv_txn_begin(db, &txn);
    const uint32_t accounts[2] = {from, to};
    for (int i = 0; i < 2 && error == FKV_OK; i++) {
        int64_t balance = 0;
        size_t bytes;
        error =
            fkv_txn_get(txn, &accounts[i], sizeof accounts[i], &balance, sizeof balance, &bytes);
        balance += i == 0 ? -1 : 1;
        if (error == FKV_OK)
            error = fkv_txn_put(txn, &accounts[i], sizeof accounts[i], &balance, sizeof balance);
    }
    if (error == FKV_OK)
        error = fkv_txn_commit(txn, 0);
    fkv_txn_free(txn);
    return error;
}

static void *move_money(void *unused)
{
    (void)unused;
    enum fkv_error error = FKV_OK;
    for (uint32_t i = 0; !stop && error == FKV_OK; i++)
        error = transfer(i % ACCOUNTS, (i * 7 + 1) % ACCOUNTS);
    failure = (int)error;
    return NULL;
}

/* Called by fkv_backup now and then; anything but 0 would end it. */
static int show(void *context, uint64_t done, uint64_t total)
{
    (void)context;
    fprintf(stderr, "\rbackup: %3" PRIu64 " %%", total ? done * 100 / total : 100);
    return 0;
}

/* All balances of a store that nobody writes to. */
static enum fkv_error add_up(const char *path, int64_t *sum)
{
    fkv *store;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_OPEN_READ_ONLY;
    enum fkv_error error = fkv_open(path, &options, &store);
    if (error != FKV_OK)
        return error;
    *sum = 0;
    for (uint32_t account = 0; account < ACCOUNTS && error == FKV_OK; account++) {
        int64_t balance;
        error = fkv_get(store, &account, sizeof account, &balance, sizeof balance, NULL);
        *sum += balance;
    }
    fkv_close(store);
    return error;
}

static int failed(const char *what, enum fkv_error error)
{
    fprintf(stderr, "%s: %s: %s\n", what, fkv_error_text(error), fkv_error_detail(db));
    fkv_close(db);
    return 1;
}

int main(int argc, char **argv)
{
    enum fkv_error error;
    if (argc != 3) {
        fprintf(stderr, "usage: backup STORE COPY\n");
        return 2;
    }
    if ((error = fkv_open(argv[1], NULL, &db)) || (error = open_accounts()))
        return failed(argv[1], error);

    pthread_t writer;
    if (pthread_create(&writer, NULL, move_money, NULL) != 0)
        return failed("a thread", FKV_NO_MEMORY);
    fkv_backup_options options;
    fkv_backup_options_init(&options);
    options.bytes_per_second = 512 << 20; /* leave some of the disk to others */
    options.progress = show;
    error = fkv_backup(db, argv[2], &options);
    fprintf(stderr, "\n");
    stop = true;
    pthread_join(writer, NULL);
    if (error || (error = (enum fkv_error)failure))
        return failed(argv[2], error);

    int64_t sum = 0;
    if ((error = add_up(argv[2], &sum)))
        return failed(argv[2], error);
    printf("the backup's %d accounts have %" PRId64 " together\n", ACCOUNTS, sum);
    error = fkv_close(db);
    return error == FKV_OK && sum == (int64_t)ACCOUNTS * BALANCE ? 0 : 1;
}
