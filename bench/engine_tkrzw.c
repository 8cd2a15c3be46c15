/*
 * Tkrzw's HashDBM: the other hash table in a file, and the nearest relative.
 *
 * Records are changed where they lie, in a mapping: what a call has written survives the death of
 * the process, if that is not in the midst of a call. There is no log and no transaction: a file
 * that was not closed is "broken", and all of it is read to restore what can be at the next
 * opening. Records have no checksum by default.
 *
 * The number of its buckets is given when the file is made and does not grow by itself; its
 * documentation asks for more buckets than records (the default is 1,048,583) or for rebuilding
 * when it says so, which is done before reading.
 */
#include "engine.h"
#include "util.h"

#include <string.h>
#include <tkrzw_langc.h>

struct store {
    TkrzwDBM *dbm;
};

static enum engine_result failed(const char *call)
{
    complain("tkrzw: %s: %s", call, tkrzw_get_last_status_message());
    return ENGINE_ERROR;
}

static enum engine_result absent_or_failed(const char *call)
{
    return tkrzw_get_last_status_code() == TKRZW_STATUS_NOT_FOUND_ERROR ? ENGINE_NOT_FOUND
                                                                        : failed(call);
}

static struct store *engine_open(const char *directory)
{
    struct store *store = need_memory(1, sizeof *store);
    char *path = path_join(directory, "store.tkh");
    store->dbm = tkrzw_dbm_open(path, true, "dbm=HashDBM");
    free(path);
    if (store->dbm != NULL)
        return store;
    failed("open");
    free(store);
    return NULL;
}

static enum engine_result engine_close(struct store *store)
{
    bool closed = tkrzw_dbm_close(store->dbm);
    free(store);
    return closed ? ENGINE_OK : failed("close");
}

static enum engine_result engine_put(struct store *store, const void *key, size_t key_bytes,
                                     const void *value, size_t value_bytes)
{
    bool set =
        tkrzw_dbm_set(store->dbm, key, (int32_t)key_bytes, value, (int32_t)value_bytes, true);
    return set ? ENGINE_OK : failed("set");
}

/* Where a value is to be copied to; `bytes` -1: there is none. */
struct copy {
    char *to;
    size_t room;
    int32_t bytes;
};

static const char *copy_value(void *context, const char *key, int32_t key_bytes, const char *value,
                              int32_t value_bytes, int32_t *new_bytes)
{
    struct copy *copy = context;
    (void)key, (void)key_bytes, (void)new_bytes;
    copy->bytes = value != NULL ? value_bytes : -1;
    if (value != NULL && copy->to != NULL && (size_t)value_bytes <= copy->room)
        memcpy(copy->to, value, (size_t)value_bytes);
    return TKRZW_REC_PROC_NOOP;
}

/* Its get returns memory of its own; this copies once. */
static enum engine_result engine_get(struct store *store, const void *key, size_t key_bytes,
                                     void *buffer, size_t buffer_bytes, size_t *value_bytes)
{
    struct copy copy = {.to = buffer, .room = buffer_bytes};
    if (!tkrzw_dbm_process(store->dbm, key, (int32_t)key_bytes, copy_value, &copy, false))
        return failed("process");
    if (copy.bytes < 0)
        return ENGINE_NOT_FOUND;
    if ((size_t)copy.bytes > buffer_bytes) {
        complain("tkrzw: a value of %d bytes", (int)copy.bytes);
        return ENGINE_ERROR;
    }
    *value_bytes = (size_t)copy.bytes;
    return ENGINE_OK;
}

static enum engine_result engine_exists(struct store *store, const void *key, size_t key_bytes)
{
    if (tkrzw_dbm_check(store->dbm, key, (int32_t)key_bytes))
        return ENGINE_OK;
    return absent_or_failed("check");
}

static enum engine_result engine_delete(struct store *store, const void *key, size_t key_bytes)
{
    if (tkrzw_dbm_remove(store->dbm, key, (int32_t)key_bytes))
        return ENGINE_OK;
    return absent_or_failed("remove");
}

static enum engine_result engine_flush(struct store *store)
{
    return tkrzw_dbm_synchronize(store->dbm, true, NULL, NULL, "") ? ENGINE_OK
                                                                   : failed("synchronize");
}

static enum engine_result engine_prepare_reads(struct store *store)
{
    if (!tkrzw_dbm_should_be_rebuilt(store->dbm))
        return ENGINE_OK;
    return tkrzw_dbm_rebuild(store->dbm, "") ? ENGINE_OK : failed("rebuild");
}

static uint64_t engine_scan(struct store *store)
{
    uint64_t pairs = 0;
    TkrzwDBMIter *iterator = tkrzw_dbm_make_iterator(store->dbm);
    char *key, *value;
    int32_t key_bytes, value_bytes;
    tkrzw_dbm_iter_first(iterator);
    while (tkrzw_dbm_iter_step(iterator, &key, &key_bytes, &value, &value_bytes)) {
        free(key);
        free(value);
        pairs++;
    }
    tkrzw_dbm_iter_free(iterator);
    return pairs;
}

static const char *engine_version(void)
{
    return TKRZW_PACKAGE_VERSION;
}

static struct engine engine_tkrzw = {
    .name = "tkrzw",
    .about = "HashDBM, default options, rebuilt before reading if it asks for it (no log)",
    .version = engine_version,
    .open = engine_open,
    .close = engine_close,
    .put = engine_put,
    .get = engine_get,
    .exists = engine_exists,
    .delete = engine_delete,
    .flush = engine_flush,
    .prepare_reads = engine_prepare_reads,
    .scan = engine_scan,
};
ENGINE_REGISTER(engine_tkrzw)
