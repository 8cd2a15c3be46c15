/*
 * RocksDB, through its C API, with four sets of options:
 *
 *  rocksdb         default options, create_if_missing apart: what an embedder gets who tunes
 * nothing rocksdb-near    the settings of the NEAR node, which are also those of the seed's
 * benchmark rocksdb-point   tuned for point lookups by its documentation: OptimizeForPointLookup
 * (Bloom filters, hash index in data blocks, whole-key filter on the memtable) with a block cache
 * that holds everything, no compression, IncreaseParallelism, and wholly compacted before reading
 *  rocksdb-plain   its fastest documented way to look up keys that are in memory: the PlainTable
 *                  format, hash-indexed, read from a mapping. It buys that with the features of the
 *                  usual format: no checksums are verified by reads, no compression, no block
 *                  cache, files of at most 2 GiB, no ordered iteration in this mode. Not one of the
 *                  experiment's engines; here so that nobody thinks that RocksDB ends at -point.
 *
 * Writes use default write options: the log is written and not synced. Default read options verify
 * checksums, once for each block that comes into the block cache.
 *
 * There is no exact exists: KeyMayExist may answer yes wrongly, and its documentation says to call
 * Get then. So exists is a Get of the pinned value that is not copied out.
 */
#include "cgroup.h"
#include "engine.h"
#include "util.h"

#include <rocksdb/c.h>
#include <string.h>
#include <unistd.h>

struct store {
    rocksdb_t *db;
    rocksdb_column_family_handle_t *family; /* the only one; MultiGet wants it */
    rocksdb_options_t *options;
    rocksdb_readoptions_t *reading;
    rocksdb_writeoptions_t *writing, *syncing;
    rocksdb_writebatch_t *batch; /* that is open, or NULL */
    bool ordinary;
};

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

static enum engine_result failed(const char *call, char *error)
{
    complain("rocksdb: %s: %s", call, error);
    rocksdb_free(error);
    return ENGINE_ERROR;
}

static struct store *open_with(const char *directory, rocksdb_options_t *options)
{
    char *error = NULL;
    rocksdb_options_set_create_if_missing(options, 1);
    const char *name = "default";
    const rocksdb_options_t *same = options;
    rocksdb_column_family_handle_t *family;
    rocksdb_t *db =
        rocksdb_open_column_families(options, directory, 1, &name, &same, &family, &error);
    if (error != NULL) {
        failed("open", error);
        rocksdb_options_destroy(options);
        return NULL;
    }
    struct store *store = need_memory(1, sizeof *store);
    store->db = db;
    store->family = family;
    store->options = options;
    store->reading = rocksdb_readoptions_create();
    store->writing = rocksdb_writeoptions_create();
    store->syncing = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(store->syncing, 1);
    return store;
}

static struct store *open_default(const char *directory)
{
    return open_with(directory, rocksdb_options_create());
}

static struct store *open_near(const char *directory)
{
    enum { DICTIONARY_BYTES = 32 << 10, DEFAULT_LEVEL = 32767, UNUSED_WINDOW = -14 };
    rocksdb_options_t *options = rocksdb_options_create();
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);

    rocksdb_options_set_compression(options, rocksdb_lz4_compression);
    rocksdb_options_set_bottommost_compression(options, rocksdb_zstd_compression);
    rocksdb_options_set_bottommost_compression_options(options, UNUSED_WINDOW, DEFAULT_LEVEL, 0,
                                                       DICTIONARY_BYTES, 1);
    rocksdb_options_set_bottommost_compression_options_zstd_max_train_bytes(
        options, 100 * DICTIONARY_BYTES, 1);
    rocksdb_options_set_use_fsync(options, 0);
    rocksdb_options_set_max_open_files(options, -1);
    rocksdb_options_set_keep_log_file_num(options, 1);
    rocksdb_options_set_bytes_per_sync(options, MIB);
    rocksdb_options_set_write_buffer_size(options, 256 * MIB);
    rocksdb_options_set_max_bytes_for_level_base(options, 256 * MIB);
    rocksdb_options_increase_parallelism(options, cores / 2 > 1 ? cores / 2 : 1);
    rocksdb_options_set_max_total_wal_size(options, GIB);
    return open_with(directory, options);
}

static struct store *open_point(const char *directory)
{
    rocksdb_options_t *options = rocksdb_options_create();
    /* A third of the memory that may be used, as its documentation advises; 8 GiB at most:
     * everything fits at the sizes of the experiments. */
    uint64_t memory_bytes = cgroup_memory_bytes();
    uint64_t cache_bytes = memory_bytes / 3;
    if (cache_bytes > 8 * GIB)
        cache_bytes = 8 * GIB;
    if (memory_bytes < GIB) /* else its memtables of 64 MiB each are too much, and it is killed */
        rocksdb_options_set_db_write_buffer_size(options, memory_bytes / 8);

    rocksdb_options_optimize_for_point_lookup(options, cache_bytes / MIB);
    rocksdb_options_set_compression(options, rocksdb_no_compression);
    rocksdb_options_increase_parallelism(options, (int)sysconf(_SC_NPROCESSORS_ONLN));
    return open_with(directory, options);
}

static struct store *open_plain(const char *directory)
{
    enum { KEYS_VARY = 0, BLOOM_BITS = 10, INDEX_SPARSENESS = 1 };
    rocksdb_options_t *options = rocksdb_options_create();

    /* The whole key is the prefix, and each prefix has its own slot in the hash index. */
    rocksdb_options_set_prefix_extractor(options, rocksdb_slicetransform_create_noop());
    rocksdb_options_set_plain_table_factory(options, KEYS_VARY, BLOOM_BITS, 0.75, INDEX_SPARSENESS);
    rocksdb_options_set_allow_mmap_reads(options, 1);
    rocksdb_options_set_compression(options, rocksdb_no_compression);
    rocksdb_options_increase_parallelism(options, (int)sysconf(_SC_NPROCESSORS_ONLN));
    return open_with(directory, options);
}

static enum engine_result engine_close(struct store *store)
{
    rocksdb_column_family_handle_destroy(store->family);
    rocksdb_close(store->db);
    rocksdb_readoptions_destroy(store->reading);
    rocksdb_writeoptions_destroy(store->writing);
    rocksdb_writeoptions_destroy(store->syncing);
    rocksdb_options_destroy(store->options);
    free(store);
    return ENGINE_OK;
}

static enum engine_result engine_put(struct store *store, const void *key, size_t key_bytes,
                                     const void *value, size_t value_bytes)
{
    char *error = NULL;
    rocksdb_put(store->db, store->writing, key, key_bytes, value, value_bytes, &error);
    return error == NULL ? ENGINE_OK : failed("put", error);
}

static void *engine_snapshot(struct store *store)
{
    return (void *)(uintptr_t)rocksdb_create_snapshot(store->db);
}

static void engine_snapshot_end(struct store *store, void *snapshot)
{
    rocksdb_release_snapshot(store->db, snapshot);
}

static enum engine_result engine_put_sync(struct store *store, const void *key, size_t key_bytes,
                                          const void *value, size_t value_bytes)
{
    char *error = NULL;
    rocksdb_put(store->db, store->syncing, key, key_bytes, value, value_bytes, &error);
    return error == NULL ? ENGINE_OK : failed("put", error);
}

/* Without a log, what was written is in memory until the flush of engine_batch_commit. */
static enum engine_result write_batch(struct store *store, bool synced)
{
    char *error = NULL;
    rocksdb_writeoptions_t *how = rocksdb_writeoptions_create();
    rocksdb_writeoptions_disable_WAL(how, !store->ordinary);
    rocksdb_writeoptions_set_sync(how, synced);
    rocksdb_write(store->db, how, store->batch, &error);
    rocksdb_writeoptions_destroy(how);
    rocksdb_writebatch_clear(store->batch);
    return error == NULL ? ENGINE_OK : failed("write", error);
}

static enum engine_result engine_batch_put(struct store *store, const void *key, size_t key_bytes,
                                           const void *value, size_t value_bytes, bool ordinary)
{
    enum { WITHOUT_LOG = 1000 };
    if (!store->batch)
        store->batch = rocksdb_writebatch_create();
    store->ordinary = ordinary;
    rocksdb_writebatch_put(store->batch, key, key_bytes, value, value_bytes);
    if (!ordinary && rocksdb_writebatch_count(store->batch) >= WITHOUT_LOG)
        return write_batch(store, false);
    return ENGINE_OK;
}

static enum engine_result engine_flush(struct store *store);

static enum engine_result engine_batch_commit(struct store *store)
{
    enum engine_result result = write_batch(store, store->ordinary);
    if (result == ENGINE_OK && !store->ordinary)
        result = engine_flush(store);
    rocksdb_writebatch_destroy(store->batch);
    store->batch = NULL;
    return result;
}

static enum engine_result engine_get(struct store *store, const void *key, size_t key_bytes,
                                     void *buffer, size_t buffer_bytes, size_t *value_bytes)
{
    char *error = NULL;
    rocksdb_pinnableslice_t *pinned =
        rocksdb_get_pinned(store->db, store->reading, key, key_bytes, &error);
    if (error != NULL)
        return failed("get", error);
    if (pinned == NULL)
        return ENGINE_NOT_FOUND;
    size_t bytes;
    const char *value = rocksdb_pinnableslice_value(pinned, &bytes);
    enum engine_result result = ENGINE_ERROR;
    if (bytes <= buffer_bytes) {
        memcpy(buffer, value, bytes);
        *value_bytes = bytes;
        result = ENGINE_OK;
    }
    rocksdb_pinnableslice_destroy(pinned);
    return result;
}

/* MultiGet in its newer form, which reads in parallel what it can. */
static enum engine_result engine_get_many(struct store *store, struct engine_get *reads,
                                          unsigned count, bool exists)
{
    const char *keys[256] = {NULL};
    size_t key_bytes[256] = {0};
    rocksdb_pinnableslice_t *values[256] = {NULL};
    char *errors[256] = {NULL};
    enum engine_result result = ENGINE_OK;
    for (unsigned i = 0; i < count; i++) {
        keys[i] = reads[i].key;
        key_bytes[i] = reads[i].key_bytes;
    }
    rocksdb_batched_multi_get_cf(store->db, store->reading, store->family, count, keys, key_bytes,
                                 values, errors, false);
    for (unsigned i = 0; i < count; i++) {
        if (errors[i] != NULL) {
            result = failed("multi_get", errors[i]);
            continue;
        }
        reads[i].result = values[i] != NULL ? ENGINE_OK : ENGINE_NOT_FOUND;
        if (values[i] == NULL)
            continue;
        const char *value = rocksdb_pinnableslice_value(values[i], &reads[i].value_bytes);
        if (!exists && reads[i].value_bytes <= reads[i].buffer_bytes)
            memcpy(reads[i].buffer, value, reads[i].value_bytes);
        rocksdb_pinnableslice_destroy(values[i]);
    }
    return result;
}

/* `depth` keys a call. */
static enum engine_result engine_get_deep(struct store *store, struct engine_get *gets,
                                          size_t count, unsigned depth)
{
    enum engine_result result = ENGINE_OK;
    for (size_t at = 0; result == ENGINE_OK && at < count; at += depth)
        result = engine_get_many(store, gets + at,
                                 count - at < depth ? (unsigned)(count - at) : depth, false);
    return result;
}

static enum engine_result engine_exists(struct store *store, const void *key, size_t key_bytes)
{
    char *error = NULL;
    rocksdb_pinnableslice_t *pinned =
        rocksdb_get_pinned(store->db, store->reading, key, key_bytes, &error);
    if (error != NULL)
        return failed("get", error);
    if (pinned == NULL)
        return ENGINE_NOT_FOUND;
    rocksdb_pinnableslice_destroy(pinned);
    return ENGINE_OK;
}

static enum engine_result engine_delete(struct store *store, const void *key, size_t key_bytes)
{
    char *error = NULL;
    rocksdb_delete(store->db, store->writing, key, key_bytes, &error);
    return error == NULL ? ENGINE_OK : failed("delete", error);
}

static uint64_t property(struct store *store, const char *name)
{
    uint64_t value = 0;
    return rocksdb_property_int(store->db, name, &value) == 0 ? value : 0;
}

static bool is_busy(struct store *store)
{
    return property(store, "rocksdb.mem-table-flush-pending") != 0 ||
           property(store, "rocksdb.num-running-flushes") != 0 ||
           property(store, "rocksdb.compaction-pending") != 0 ||
           property(store, "rocksdb.num-running-compactions") != 0;
}

static enum engine_result engine_rest(struct store *store)
{
    /* One job may schedule the next a moment later: be content with ten idle looks in a row. */
    for (int idle = 0; idle < 10; usleep(10000))
        idle = is_busy(store) ? 0 : idle + 1;
    return ENGINE_OK;
}

static enum engine_result engine_flush(struct store *store)
{
    char *error = NULL;
    rocksdb_flushoptions_t *options = rocksdb_flushoptions_create();
    rocksdb_flushoptions_set_wait(options, 1);
    rocksdb_flush(store->db, options, &error);
    rocksdb_flushoptions_destroy(options);
    return error == NULL ? ENGINE_OK : failed("flush", error);
}

static enum engine_result compact_everything(struct store *store)
{
    enum engine_result result = engine_flush(store);
    rocksdb_compactoptions_t *options = rocksdb_compactoptions_create();
    rocksdb_compactoptions_set_bottommost_level_compaction(options, 2 /* kForce */);
    rocksdb_compact_range_opt(store->db, options, NULL, 0, NULL, 0);
    rocksdb_compactoptions_destroy(options);
    return result;
}

/* The logs are 000123.log; LOG and LOG.old.* are notes for people. */
static bool engine_is_log(const char *file_name)
{
    size_t length = strlen(file_name);
    return length >= 4 && strcmp(file_name + length - 4, ".log") == 0;
}

/* Index blocks and filters that are held outside of the block cache: an estimate of RocksDB's. */
static uint64_t engine_index_bytes(struct store *store)
{
    return property(store, "rocksdb.estimate-table-readers-mem");
}

/* From pkg-config: the C API does not tell, and RocksDB's version.h is C++. */
static const char *engine_version(void)
{
    return BENCH_ROCKSDB_VERSION;
}

#define ROCKSDB_ENGINE(variable, name_, about_, open_, prepare_reads_) \
    static struct engine variable = {                                  \
        .name = (name_),                                               \
        .about = (about_),                                             \
        .version = engine_version,                                     \
        .open = (open_),                                               \
        .close = engine_close,                                         \
        .put = engine_put,                                             \
        .put_sync = engine_put_sync,                                   \
        .snapshot = engine_snapshot,                                   \
        .snapshot_end = engine_snapshot_end,                           \
        .batch_put = engine_batch_put,                                 \
        .batch_commit = engine_batch_commit,                           \
        .get = engine_get,                                             \
        .get_deep = engine_get_deep,                                   \
        .get_many = engine_get_many,                                   \
        .exists = engine_exists,                                       \
        .delete = engine_delete,                                       \
        .rest = engine_rest,                                           \
        .flush = engine_flush,                                         \
        .prepare_reads = (prepare_reads_),                             \
        .index_bytes = engine_index_bytes,                             \
        .is_log = engine_is_log,                                       \
    };                                                                 \
    ENGINE_REGISTER(variable)

ROCKSDB_ENGINE(rocksdb_default, "rocksdb", "default options; exists is a get without the copy",
               open_default, NULL)
ROCKSDB_ENGINE(rocksdb_near, "rocksdb-near",
               "NEAR's settings: LZ4, bottommost ZSTD with dictionary, 256 MiB write buffer",
               open_near, NULL)
ROCKSDB_ENGINE(rocksdb_point, "rocksdb-point",
               "OptimizeForPointLookup, everything in the block cache, no compression, compacted "
               "before reading",
               open_point, compact_everything)
ROCKSDB_ENGINE(rocksdb_plain, "rocksdb-plain",
               "PlainTable in a mapping, compacted before reading; reads verify no checksums",
               open_plain, compact_everything)
