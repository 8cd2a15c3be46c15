/*
 * packages: fkv on real data. Loads the description of every package that apt knows of into a
 * store, under the package's name, then prints those of the names given:
 *
 *     packages [-d STORE] NAME...
 *
 * The descriptions ("stanzas") come from apt's lists, compressed or not, or, where there are none,
 * from dpkg's list of what is installed. They are loaded in transactions of a few hundred, none of
 * them synced, with one fkv_sync at the end. If a package is in several lists, or there several
 * times, the last stanza wins. The store is packages.fkv, or STORE; one that exists is loaded
 * again.
 */
#include <errno.h>
#include <fkv.h>
#include <glob.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define APT_LISTS "/var/lib/apt/lists/*_Packages"
#define APT_LISTS_COMPRESSED "/var/lib/apt/lists/*_Packages.*"
#define APT_HELPER "/usr/lib/apt/apt-helper" /* decompresses whatever apt has compressed */
#define DPKG_STATUS "/var/lib/dpkg/status"

enum { STANZAS_IN_A_TRANSACTION = 500 };

struct loader {
    fkv *db;
    fkv_txn *txn;    /* NULL: none is open */
    unsigned in_txn; /* stanzas in it */
    uint64_t files, stanzas, bytes, transactions;
};

/* Bytes that grow. */
struct text {
    char *bytes;
    size_t length, room;
};

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Say what went wrong with the store; returns false, so that callers can return it. */
static bool failed(const fkv *db, const char *doing, enum fkv_error error)
{
    const char *text = fkv_error_text(error);
    const char *detail = fkv_error_detail(db); /* last: it is valid until the next call */
    fprintf(stderr, "packages: %s: %s%s%s\n", doing, text, *detail ? ": " : "", detail);
    return false;
}

static bool text_reserve(struct text *text, size_t room)
{
    if (room <= text->room)
        return true;
    if (room < 2 * text->room)
        room = 2 * text->room;
    char *bytes = realloc(text->bytes, room);
    if (!bytes) {
        fprintf(stderr, "packages: no memory\n");
        return false;
    }
    text->bytes = bytes;
    text->room = room;
    return true;
}

static bool text_append(struct text *text, const char *bytes, size_t count)
{
    if (!text_reserve(text, text->length + count))
        return false;
    memcpy(text->bytes + text->length, bytes, count);
    text->length += count;
    return true;
}

/* ---------------------------------------------------------------- loading */

static bool commit(struct loader *loader)
{
    if (!loader->txn)
        return true;
    enum fkv_error error = fkv_txn_commit(loader->txn, 0);
    if (error != FKV_OK)
        failed(loader->db, "commit", error);
    else
        loader->transactions++;
    fkv_txn_free(loader->txn);
    loader->txn = NULL;
    loader->in_txn = 0;
    return error == FKV_OK;
}

static bool put(struct loader *loader, const struct text *name, const struct text *stanza)
{
    enum fkv_error error;
    if (!loader->txn) {
        error = fkv_txn_begin(loader->db, &loader->txn);
        if (error != FKV_OK)
            return failed(loader->db, "begin a transaction", error);
    }
    error = fkv_txn_put(loader->txn, name->bytes, name->length, stanza->bytes, stanza->length);
    if (error != FKV_OK)
        return failed(loader->db, "put", error);
    loader->stanzas++;
    loader->bytes += name->length + stanza->length;
    return ++loader->in_txn < STANZAS_IN_A_TRANSACTION || commit(loader);
}

/* Put the stanza, if it has a name, and begin the next. */
static bool end_stanza(struct loader *loader, struct text *name, struct text *stanza)
{
    bool ok = name->length == 0 || put(loader, name, stanza);
    name->length = stanza->length = 0;
    return ok;
}

/* A stanza is lines up to an empty one; its name is in the line "Package: NAME". */
static bool load_stream(struct loader *loader, FILE *file, const char *path)
{
    static const char name_field[] = "Package:";
    const size_t field_bytes = sizeof name_field - 1;
    struct text name = {0};
    struct text stanza = {0};
    char *line = NULL;
    size_t line_room = 0;
    ssize_t line_bytes;
    bool ok = true;

    while (ok && (line_bytes = getline(&line, &line_room, file)) > 0) {
        size_t length = (size_t)line_bytes;
        if (line[0] == '\n') {
            ok = end_stanza(loader, &name, &stanza);
            continue;
        }
        if (length > field_bytes && memcmp(line, name_field, field_bytes) == 0) {
            char *from = line + field_bytes + strspn(line + field_bytes, " \t");
            name.length = 0;
            ok = text_append(&name, from, strcspn(from, " \t\r\n"));
        }
        ok = ok && text_append(&stanza, line, length);
    }
    if (ok && ferror(file)) {
        fprintf(stderr, "packages: %s: %s\n", path, strerror(errno));
        ok = false;
    }
    ok = ok && end_stanza(loader, &name, &stanza);
    free(name.bytes);
    free(stanza.bytes);
    free(line);
    return ok;
}

static bool load_plain(struct loader *loader, const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file) {
        fprintf(stderr, "packages: %s: %s\n", path, strerror(errno));
        return false;
    }
    bool ok = load_stream(loader, file, path);
    fclose(file);
    loader->files++;
    return ok;
}

static bool load_compressed(struct loader *loader, const char *path)
{
    char command[4096];
    int length = snprintf(command, sizeof command, APT_HELPER " cat-file '%s'", path);
    if (length < 0 || (size_t)length >= sizeof command || strchr(path, '\'')) {
        fprintf(stderr, "packages: %s: such a name cannot be given to the shell\n", path);
        return false;
    }
    FILE *file = popen(command, "r");
    if (!file) {
        fprintf(stderr, "packages: %s: %s\n", command, strerror(errno));
        return false;
    }
    bool ok = load_stream(loader, file, path);
    int status = pclose(file);
    if (ok && status != 0) { /* if not ok, the helper may have had nowhere to write to */
        fprintf(stderr, "packages: %s: failed\n", command);
        ok = false;
    }
    loader->files++;
    return ok;
}

static bool load_everything(struct loader *loader)
{
    glob_t lists;
    int result = glob(APT_LISTS, 0, NULL, &lists);
    if (result == 0 || result == GLOB_NOMATCH)
        result = glob(APT_LISTS_COMPRESSED, GLOB_APPEND, NULL, &lists);
    if (result != 0 && result != GLOB_NOMATCH) {
        fprintf(stderr, "packages: /var/lib/apt/lists: %s\n",
                result == GLOB_NOSPACE ? "no memory" : "cannot be read");
        globfree(&lists);
        return false;
    }
    bool ok = true;
    for (size_t i = 0; ok && i < lists.gl_pathc; i++) {
        const char *path = lists.gl_pathv[i];
        const char *end = strrchr(path, '_');
        ok = strcmp(end, "_Packages") == 0 ? load_plain(loader, path)
                                           : load_compressed(loader, path);
    }
    globfree(&lists);
    if (ok && loader->stanzas == 0)
        ok = load_plain(loader, DPKG_STATUS);
    ok = ok && commit(loader);
    fkv_txn_free(loader->txn); /* aborts it, if something failed */
    loader->txn = NULL;
    return ok;
}

static bool load(fkv *db)
{
    struct loader loader = {.db = db};
    double start = seconds();
    if (!load_everything(&loader))
        return false;
    double loaded = seconds();
    enum fkv_error error = fkv_sync(db);
    if (error != FKV_OK)
        return failed(db, "sync", error);
    double synced = seconds();

    fkv_stats stats;
    error = fkv_get_stats(db, &stats, sizeof stats);
    if (error != FKV_OK)
        return failed(db, "statistics", error);
    fprintf(stderr,
            "loaded %llu stanzas, %.1f MB, of %llu files in %llu transactions: %.2f s, reading and "
            "parsing included; sync %.0f ms\n",
            (unsigned long long)loader.stanzas, (double)loader.bytes / 1e6,
            (unsigned long long)loader.files, (unsigned long long)loader.transactions,
            loaded - start, (synced - loaded) * 1e3);
    fprintf(stderr, "the store has %llu packages; file %.1f MB, log %.1f MB\n",
            (unsigned long long)stats.keys, (double)stats.file_bytes / 1e6,
            (double)stats.log_bytes / 1e6);
    return true;
}

/* ---------------------------------------------------------------- looking up */

/* The value may be of any length: if the buffer is too small, fkv_get says how long it has to be.
 * Another thread could put a longer one meanwhile; hence the loop. */
static enum fkv_error get(fkv *db, const char *name, struct text *value)
{
    enum fkv_error error;
    value->length = 0;
    while ((error = fkv_get(db, name, strlen(name), value->bytes, value->room, &value->length)) ==
           FKV_BUFFER_TOO_SMALL)
        if (!text_reserve(value, value->length))
            return FKV_NO_MEMORY;
    return error;
}

static bool look_up(fkv *db, char **names, int count)
{
    struct text stanza = {0};
    double spent = 0;
    int found = 0;
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        double start = seconds();
        enum fkv_error error = get(db, names[i], &stanza);
        spent += seconds() - start;
        if (error == FKV_OK) {
            printf("%s%.*s", found++ ? "\n" : "", (int)stanza.length, stanza.bytes);
        } else if (error == FKV_NOT_FOUND) {
            fprintf(stderr, "%s: no such package\n", names[i]);
        } else {
            ok = failed(db, names[i], error);
        }
    }
    free(stanza.bytes);
    if (fflush(stdout) != 0) {
        fprintf(stderr, "packages: standard output: %s\n", strerror(errno));
        return false;
    }
    fprintf(stderr, "looked up %d names, found %d: %.1f us\n", count, found, spent * 1e6);
    return ok && found == count;
}

int main(int argc, char **argv)
{
    const char *path = "packages.fkv";
    int option;
    while ((option = getopt(argc, argv, "d:")) != -1) {
        if (option != 'd') {
            fprintf(stderr, "usage: packages [-d STORE] NAME...\n");
            return 2;
        }
        path = optarg;
    }
    if (optind == argc) {
        fprintf(stderr, "usage: packages [-d STORE] NAME...\n");
        return 2;
    }

    fkv *db;
    enum fkv_error error = fkv_open(path, NULL, &db);
    if (error != FKV_OK) {
        failed(NULL, path, error);
        return 1;
    }
    bool ok = load(db) && look_up(db, argv + optind, argc - optind);
    error = fkv_close(db);
    if (error != FKV_OK) { /* the handle is gone, and with it any detail */
        fprintf(stderr, "packages: close: %s\n", fkv_error_text(error));
        ok = false;
    }
    return ok ? 0 : 1;
}
