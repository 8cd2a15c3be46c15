/* The smallest whole program: open a store, put a value, get it back. */
#include <fkv.h>
#include <stdio.h>

int main(void)
{
    fkv *db;
    if (fkv_open("hello.fkv", NULL, &db) != FKV_OK) {
        fprintf(stderr, "hello.fkv: %s\n", fkv_error_detail(NULL));
        return 1;
    }

    char value[64];
    size_t value_bytes = 0;
    enum fkv_error error = fkv_put(db, "alice", 5, "100", 3);
    if (error == FKV_OK)
        error = fkv_get(db, "alice", 5, value, sizeof value, &value_bytes);
    if (error == FKV_OK)
        printf("alice has %.*s\n", (int)value_bytes, value);
    else
        fprintf(stderr, "hello.fkv: %s\n", fkv_error_text(error));

    enum fkv_error close_error = fkv_close(db);
    return error != FKV_OK || close_error != FKV_OK;
}
