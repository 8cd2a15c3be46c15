/*
 * Snapshots and scans: money moves between accounts, and their sum never changes. A snapshot that
 * was taken before the transfers still has the balances of that moment after them; each snapshot
 * is added up with one scan.
 *
 * The store is snapshot.fkv; one that exists has its accounts set back.
 */
#include <fkv.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { ACCOUNTS = 1000, TRANSFERS = 5000, BALANCE = 100 };

static enum fkv_error open_accounts(fkv *db)
{
    enum fkv_error error = FKV_OK;
    for (uint32_t account = 0; account < ACCOUNTS && error == FKV_OK; account++) {
        int64_t balance = BALANCE;
        error = fkv_put(db, &account, sizeof account, &balance, sizeof balance);
    }
    return error;
}

/* Account 0 gets one from each of the others in turn. */
static enum fkv_error transfer(fkv *db, uint32_t number)
{
    uint32_t accounts[2] = {1 + number % (ACCOUNTS - 1), 0};
    fkv_txn *txn;
    enum fkv_error error = fkv_txn_begin(db, &txn);
    if (error != FKV_OK)
        return error;
    for (int i = 0; i < 2 && error == FKV_OK; i++) {
        int64_t balance = 0;
        size_t balance_bytes;
        error = fkv_txn_get(txn, &accounts[i], sizeof accounts[i], &balance, sizeof balance,
                            &balance_bytes);
        balance += i == 0 ? -1 : 1;
        if (error == FKV_OK)
            error = fkv_txn_put(txn, &accounts[i], sizeof accounts[i], &balance, sizeof balance);
    }
    if (error == FKV_OK)
        error = fkv_txn_commit(txn, 0);
    fkv_txn_free(txn); /* what was not committed leaves nothing */
    return error;
}

/* The sum of all balances in a snapshot, and that of account 0. */
static enum fkv_error add_up(fkv_snapshot *snapshot, int64_t *sum, int64_t *first)
{
    fkv_scan *scan;
    enum fkv_error error = fkv_scan_open(snapshot, NULL, &scan);
    if (error != FKV_OK)
        return error;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    *sum = *first = 0;
    while ((error = fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes)) == FKV_OK) {
        uint32_t account;
        int64_t balance;
        memcpy(&account, key, sizeof account); /* lent bytes may lie at any address */
        memcpy(&balance, value, sizeof balance);
        *sum += balance;
        if (account == 0)
            *first = balance;
    }
    fkv_scan_close(scan);
    return error == FKV_NOT_FOUND ? FKV_OK : error; /* not found: that was the last pair */
}

/* Says what is in the snapshot; false if it is not what must be there. */
static bool show(const char *when, fkv_snapshot *snapshot, int64_t first_expected)
{
    int64_t sum, first;
    enum fkv_error error = add_up(snapshot, &sum, &first);
    if (error != FKV_OK) {
        fprintf(stderr, "snapshot.fkv: %s\n", fkv_error_text(error));
        return false;
    }
    printf("%s: account 0 has %" PRId64 ", all have %" PRId64 "\n", when, first, sum);
    return first == first_expected && sum == ACCOUNTS * BALANCE;
}

static enum fkv_error run(fkv *db, bool *right)
{
    fkv_snapshot *before = NULL, *after = NULL;
    enum fkv_error error = open_accounts(db);
    if (error == FKV_OK)
        error = fkv_snapshot_open(db, &before);
    for (uint32_t i = 0; i < TRANSFERS && error == FKV_OK; i++)
        error = transfer(db, i);
    if (error == FKV_OK)
        error = fkv_snapshot_open(db, &after);
    *right = error == FKV_OK && show("before", before, BALANCE) &&
             show("after", after, BALANCE + TRANSFERS);
    fkv_snapshot_close(after);
    fkv_snapshot_close(before);
    return error;
}

int main(void)
{
    fkv *db;
    if (fkv_open("snapshot.fkv", NULL, &db) != FKV_OK) {
        fprintf(stderr, "snapshot.fkv: %s\n", fkv_error_detail(NULL));
        return 1;
    }
    bool right;
    enum fkv_error error = run(db, &right);
    if (error != FKV_OK)
        fprintf(stderr, "snapshot.fkv: %s\n", fkv_error_text(error));
    enum fkv_error close_error = fkv_close(db);
    return !right || close_error != FKV_OK;
}
