/*
 * What the benchmark asks of a storage engine.
 *
 * To add an engine, write one file engine_NAME.c: the functions below, a `struct engine`, and
 * ENGINE_REGISTER of it. CMakeLists.txt picks the file up; it is left out where the libraries that
 * it needs are not there. One file may register several engines: the same code with other options.
 *
 * The rules that make a comparison fair:
 *  - put and delete are commits of their own: when they return, the change survives the death of
 *    the process (for engines that have files). They need not survive the loss of power: the
 *    engine's log is written, not synced. Where an engine cannot do just that, `about` says so.
 *  - get copies the value into the caller's buffer.
 *  - `open` is the engine as its name says: "default" means that nothing was tuned, a tuned variant
 *    follows the engine's own documentation and has a name of its own.
 *  - put_sync is put, and survives the loss of power too.
 *  - All functions may be called from any thread; put, put_sync, get and exists from several at the
 *    same time, but for an engine that is `single`: the workload threads leaves it out. Keep
 *    per-thread state in thread-local variables or in none.
 */
#ifndef BENCH_ENGINE_H
#define BENCH_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum engine_result {
    ENGINE_OK = 0,
    ENGINE_NOT_FOUND = 1,
    ENGINE_ERROR = 2, /* said on stderr already, with complain() */
};

/* An open store; each engine's file has its own definition. */
struct store;

/* One of several gets. */
struct engine_get {
    const void *key;
    size_t key_bytes;
    void *buffer;
    size_t buffer_bytes;
    size_t value_bytes;
    enum engine_result result;
};

struct engine {
    const char *name;
    const char *about;            /* one line for people: settings, peculiarities */
    const char *(*version)(void); /* may be NULL */

    /* Open the store in `directory`, which exists and is the engine's alone; create it if it is
     * empty. NULL on failure, said on stderr. */
    struct store *(*open)(const char *directory);
    enum engine_result (*close)(struct store *store);

    enum engine_result (*put)(struct store *store, const void *key, size_t key_bytes,
                              const void *value, size_t value_bytes);
    enum engine_result (*get)(struct store *store, const void *key, size_t key_bytes, void *buffer,
                              size_t buffer_bytes, size_t *value_bytes);
    /* Whether the key has a value, exactly, by the cheapest way that the engine has. */
    enum engine_result (*exists)(struct store *store, const void *key, size_t key_bytes);
    /* ENGINE_NOT_FOUND only from an engine that looks. */
    enum engine_result (*delete)(struct store *store, const void *key, size_t key_bytes);

    /* Each of the following may be NULL: nothing to be done, or not known. */

    /* All these gets, `depth` of them under way at a time, by the engine's own means for that. */
    enum engine_result (*get_deep)(struct store *store, struct engine_get *gets, size_t count,
                                   unsigned depth);
    /* At most 256 gets at once; with `exists`, buffers are not to be filled. */
    enum engine_result (*get_many)(struct store *store, struct engine_get *reads, unsigned count,
                                   bool exists);
    enum engine_result (*put_sync)(struct store *store, const void *key, size_t key_bytes,
                                   const void *value, size_t value_bytes);
    /* Put into the batch that is open, or begin one; and commit it, durably. Not `ordinary`: by
     * whatever is fastest to fill a store, and atomic or not as the engine has it. */
    enum engine_result (*batch_put)(struct store *store, const void *key, size_t key_bytes,
                                    const void *value, size_t value_bytes, bool ordinary);
    enum engine_result (*batch_commit)(struct store *store);
    /* Open for put_sync, where that needs other options than `open` gives. */
    struct store *(*open_synced)(const char *directory);
    /* Wait until the engine's background work has come to rest; force nothing. */
    enum engine_result (*rest)(struct store *store);
    /* Write what only the log (or memory) holds to the data files. */
    enum engine_result (*flush)(struct store *store);
    /* What the documentation advises to do after a load and before much reading. */
    enum engine_result (*prepare_reads)(struct store *store);
    /* What the engine counts that it has written since it was opened, logs included. */
    uint64_t (*written_bytes)(struct store *store);
    /* Memory of the index, in bytes. */
    uint64_t (*index_bytes)(struct store *store);
    /* Bytes of the log that a recovery would have to read now. */
    uint64_t (*log_bytes_live)(struct store *store);
    /* A view of what the store holds now, held until snapshot_end. */
    void *(*snapshot)(struct store *store);
    void (*snapshot_end)(struct store *store, void *snapshot);
    /* Read every pair, and say how many there are; what that is for the engine's own iteration. */
    uint64_t (*scan)(struct store *store);
    /* Another store, of what this one holds at some moment during the call, into this directory,
     * which is empty; durable, and without garbage. Beside all other calls. */
    enum engine_result (*backup)(struct store *store, const char *directory);
    /* Give back the space of what is overwritten, as far as it is worth while; and wait for it. */
    enum engine_result (*compact)(struct store *store);
    /* Whether a file of this name (no directory) is a write-ahead log. NULL: the engine has none.
     */
    bool (*is_log)(const char *file_name);
    /* The engine has no files: sizes on disk and reopening make no sense. */
    bool memory_only;
    bool single; /* one thread at a time may call */

    struct engine *next; /* the registry's */
};

/* Engines that can limit the memory of an index, of its pages, open with this limit; 0: none. */
extern uint64_t engine_index_memory_max;

/* The registered engines, by name; the one of this name, or NULL. */
extern struct engine *engine_first;
const struct engine *engine_find(const char *name);
void engine_add(struct engine *engine);

/* ENGINE_REGISTER(variable): before main, add `static struct engine variable` to the registry. */
#define ENGINE_REGISTER(variable)                                      \
    __attribute__((constructor)) static void register_##variable(void) \
    {                                                                  \
        engine_add(&(variable));                                       \
    }

#endif
