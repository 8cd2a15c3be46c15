/*
 * fuzz_dump: any bytes are a dump, which is loaded into a store.
 *
 * Lines that are understood are what their pairs are written as and read from again. A dump that
 * loads is the same store after it was written and loaded once more.
 */
#include "bases.h"
#include "fuzz.h"
#include "loader.h"

#include <stdlib.h>

enum { NEW_BYTES_MAX = 1 << 20 };

static struct fkv *open_empty(struct os_sim *sim)
{
    fkv_options options;
    struct fkv *db;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    options.log_bytes_max = MIB;
    if (store_open(os_sim_os(sim), BASE_PATH, &options, &db))
        fuzz_fail("a store for the pairs: %s", error_last());
    return db;
}

/* A disk with an empty store on it: making one takes longer than all else. */
static struct os_sim *new_disk(void)
{
    static struct os_sim *empty;
    if (!empty) {
        empty = os_sim_new(NULL);
        fuzz_random(7);
        store_close(open_empty(empty));
        os_sim_settle(empty);
    }
    return os_sim_copy(empty);
}

/* False: it is no dump, and who loads it is told so. */
static bool load(const void *bytes, size_t count, struct fkv *db, uint64_t *pairs)
{
    struct loader loader = {.from = fmemopen((void *)bytes, count, "r")};
    bool loaded = loader_begin(&loader);
    if (loaded) {
        enum fkv_error error = loader_run(&loader, db);
        if (error)
            fuzz_fail("loading: %s; %s", fkv_error_text(error), fkv_error_detail(db));
        loaded = !error && !loader.what;
    }
    *pairs = loader.pairs;
    fclose(loader.from);
    loader_drop(&loader);
    return loaded;
}

/* Write all pairs of a store as a dump; how many there are. */
static uint64_t dump(struct fkv *db, FILE *to)
{
    static uint8_t value[NEW_BYTES_MAX];
    struct text scratch = {0};
    fkv_snapshot *snapshot;
    fkv_scan *scan;
    const void *key, *lent;
    size_t key_bytes, value_bytes;
    uint64_t pairs = 0;
    if (fkv_snapshot_open(db, &snapshot) || fkv_scan_open(snapshot, NULL, &scan))
        fuzz_fail("a scan of what was loaded: %s", fkv_error_detail(db));
    dump_begin(to, false);
    while (!fkv_scan_next(scan, &key, &key_bytes, &lent, &value_bytes)) {
        if (!lent && fkv_scan_value(scan, value, sizeof value))
            fuzz_fail("a value that was loaded cannot be read");
        dump_pair(to, &scratch, key, key_bytes, lent ? lent : value, value_bytes);
        pairs++;
    }
    dump_end(to, pairs);
    fkv_scan_close(scan);
    fkv_snapshot_close(snapshot);
    text_drop(&scratch);
    return pairs;
}

/* Every pair of the one is in the other. */
static void must_be_within(struct fkv *one, struct fkv *other)
{
    static uint8_t values[2][NEW_BYTES_MAX];
    fkv_snapshot *snapshot;
    fkv_scan *scan;
    const void *key, *lent;
    size_t key_bytes, value_bytes, other_bytes = 0;
    if (fkv_snapshot_open(one, &snapshot) || fkv_scan_open(snapshot, NULL, &scan))
        fuzz_fail("a scan of what was loaded: %s", fkv_error_detail(one));
    while (!fkv_scan_next(scan, &key, &key_bytes, &lent, &value_bytes)) {
        if (!lent && fkv_scan_value(scan, values[0], sizeof values[0]))
            fuzz_fail("a value that was loaded cannot be read");
        if (fkv_get(other, key, key_bytes, values[1], sizeof values[1], &other_bytes) ||
            other_bytes != value_bytes ||
            memcmp(values[1], lent ? lent : values[0], value_bytes) != 0)
            fuzz_fail("a pair is not what it was before it was written and loaded");
    }
    fkv_scan_close(scan);
    fkv_snapshot_close(snapshot);
}

static void load_again(struct fkv *db, uint64_t pairs)
{
    struct os_sim *sim = new_disk();
    struct fkv *again = open_empty(sim);
    char *bytes = NULL;
    size_t count = 0;
    uint64_t pairs_again = 0;
    FILE *to = open_memstream(&bytes, &count);
    uint64_t keys = dump(db, to);
    fclose(to);
    if (keys > pairs)
        fuzz_fail("%llu keys out of %llu pairs", (unsigned long long)keys,
                  (unsigned long long)pairs);
    if (!load(bytes, count, again, &pairs_again) || pairs_again != keys)
        fuzz_fail("what was dumped does not load");
    must_be_within(db, again);
    must_be_within(again, db);
    free(bytes);
    store_close(again);
    os_sim_free(sim);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t pairs;
    if (!size || size > NEW_BYTES_MAX)
        return -1;
    struct os_sim *sim = new_disk();
    fuzz_random(8);
    struct fkv *db = open_empty(sim);
    if (load(data, size, db, &pairs))
        load_again(db, pairs);
    store_close(db);
    os_sim_free(sim);
    return 0;
}
