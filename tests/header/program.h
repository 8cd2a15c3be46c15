/*
 * program.h: a program that uses the whole of fkv.h, in the language that C11 and C++11 share. It
 * is compiled as both, strictly (c11.c, cxx11.cc), against the library that users
 * link: so the header stands alone, is valid in both, and everything it declares is there.
 */
#include <fkv.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "%s does not hold\n", what);
    exit(1);
}
#define CHECK(condition) check((condition) != 0, #condition)

static void use_values(fkv *db)
{
    char value[64];
    size_t value_bytes = 0;
    CHECK(fkv_put(db, "alice", 5, "100", 3) == FKV_OK);
    CHECK(fkv_put_with(db, "bob", 3, "7", 1, FKV_SYNC) == FKV_OK);
    CHECK(fkv_get(db, "alice", 5, value, sizeof value, &value_bytes) == FKV_OK);
    CHECK(value_bytes == 3 && memcmp(value, "100", 3) == 0);
    CHECK(fkv_exists(db, "alice", 5) == FKV_OK);
    CHECK(fkv_value_size(db, "alice", 5, &value_bytes) == FKV_OK && value_bytes == 3);
    const void *borrowed = NULL;
    fkv_read_begin(db);
    CHECK(fkv_borrow(db, "alice", 5, &borrowed, &value_bytes) == FKV_OK);
    CHECK(value_bytes == 3 && memcmp(borrowed, "100", 3) == 0);
    fkv_read_end(db);
    CHECK(fkv_delete(db, "alice", 5) == FKV_OK);
    CHECK(fkv_delete_with(db, "alice", 5, 0) == FKV_NOT_FOUND);
}

static void use_transactions(fkv *db)
{
    char value[64];
    fkv_txn *txn = NULL;
    CHECK(fkv_txn_begin(db, &txn) == FKV_OK);
    CHECK(fkv_txn_put(txn, "a", 1, "1", 1) == FKV_OK);
    CHECK(fkv_txn_delete(txn, "bob", 3) == FKV_OK);
    CHECK(fkv_txn_get(txn, "a", 1, value, sizeof value, NULL) == FKV_OK);
    CHECK(fkv_txn_exists(txn, "bob", 3) == FKV_NOT_FOUND);
    CHECK(fkv_txn_commit(txn, FKV_SYNC) == FKV_OK);
    CHECK(fkv_txn_abort(txn) == FKV_TXN_ENDED);
    CHECK(strlen(fkv_error_detail(db)) > 0);
    fkv_txn_free(txn);
}

static void remove_store(const char *path)
{
    char log[1000];
    snprintf(log, sizeof log, "%s-wal", path);
    remove(path);
    remove(log);
}

int main(int count, char **arguments)
{
    check(count == 2, "usage: PROGRAM STORE; that it is given a name for a store");
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD | FKV_EXCLUSIVE;
    options.garbage_percent_max = 50;
    options.log_bytes_max = 1u << 20;
    fkv *db = NULL;
    remove_store(arguments[1]);
    if (fkv_open(arguments[1], &options, &db) != FKV_OK) {
        fprintf(stderr, "%s\n", fkv_error_detail(NULL));
        return 1;
    }
    use_values(db);
    use_transactions(db);
    fkv_stats stats;
    CHECK(fkv_get_stats(db, &stats, sizeof stats) == FKV_OK && stats.keys == 1);
    CHECK(fkv_sync(db) == FKV_OK);
    CHECK(fkv_checkpoint(db) == FKV_OK);
    CHECK(fkv_close(db) == FKV_OK);
    CHECK(strlen(fkv_version()) > 0 && strlen(fkv_error_text(FKV_FULL)) > 0);
    remove_store(arguments[1]);
    printf("fkv %s, %u bytes of key, %u of value\n", fkv_version(), FKV_KEY_BYTES_MAX,
           FKV_VALUE_BYTES_MAX);
    return 0;
}
