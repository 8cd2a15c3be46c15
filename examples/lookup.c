/*
 * lookup: asynchronous gets in an event loop. Looks up the keys that it is given, one a line, and
 * prints each with its value as soon as it has been read, which is not the order of the keys:
 *
 *     lookup STORE <keys
 *
 * One thread, which sleeps in poll() only. Up to 64 gets are under way at a time, so the disk has
 * that many to work on; when the input is a pipe or a terminal, keys are looked up as they come.
 */
#include <errno.h>
#include <fkv.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GETS = 64, KEY_ROOM = 4096, VALUE_ROOM = 65536 };

struct get {
    struct get *next; /* among those that are free */
    size_t key_bytes;
    char key[KEY_ROOM];
    char value[VALUE_ROOM];
};

struct loop {
    fkv *db;
    fkv_async *async;
    struct get *free;
    unsigned open; /* gets */
    char input[KEY_ROOM];
    size_t input_bytes;
    bool input_ended;
};

static bool failed(const fkv *db, enum fkv_error error)
{
    fprintf(stderr, "lookup: %s: %s\n", fkv_error_text(error), fkv_error_detail(db));
    return false;
}

static void print(const struct get *get, const char *value, size_t value_bytes)
{
    printf("%.*s: %.*s\n", (int)get->key_bytes, get->key, (int)value_bytes, value);
}

/* The value is longer than the room that each get has. */
static bool print_long(fkv *db, const struct get *get, size_t value_bytes)
{
    char *value = malloc(value_bytes);
    enum fkv_error error =
        value ? fkv_get(db, get->key, get->key_bytes, value, value_bytes, &value_bytes)
              : FKV_NO_MEMORY;
    if (!error)
        print(get, value, value_bytes);
    free(value);
    return !error || failed(db, error);
}

static bool finish(struct loop *loop, const fkv_completion *completion)
{
    struct get *get = completion->tag;
    bool ok = true;
    if (completion->error == FKV_OK)
        print(get, get->value, completion->value_bytes);
    else if (completion->error == FKV_NOT_FOUND)
        printf("%.*s: not found\n", (int)get->key_bytes, get->key);
    else if (completion->error == FKV_BUFFER_TOO_SMALL)
        ok = print_long(loop->db, get, completion->value_bytes);
    else
        ok = failed(loop->db, completion->error);
    get->next = loop->free;
    loop->free = get;
    loop->open--;
    return ok;
}

static bool finish_all(struct loop *loop)
{
    fkv_completion completions[GETS];
    size_t count;
    enum fkv_error error = fkv_async_wait(loop->async, 0, completions, GETS, &count);
    if (error)
        return failed(loop->db, error);
    bool ok = true;
    for (size_t i = 0; i < count; i++)
        ok &= finish(loop, &completions[i]);
    return ok && fflush(stdout) == 0;
}

static bool begin(struct loop *loop, const char *key, size_t key_bytes)
{
    struct get *get = loop->free;
    loop->free = get->next;
    loop->open++;
    memcpy(get->key, key, key_bytes);
    get->key_bytes = key_bytes;
    enum fkv_error error =
        fkv_async_get(loop->async, get->key, key_bytes, get->value, sizeof get->value, get);
    return !error || failed(loop->db, error);
}

/* Begin gets of the lines that are there, as many as are free; the last line may have no end. */
static bool begin_lines(struct loop *loop)
{
    size_t at = 0;
    while (loop->free && at < loop->input_bytes) {
        const char *line = loop->input + at;
        const char *end = memchr(line, '\n', loop->input_bytes - at);
        if (!end && !loop->input_ended)
            break;
        size_t bytes = end ? (size_t)(end - line) : loop->input_bytes - at;
        if (!begin(loop, line, bytes))
            return false;
        at += bytes + (end != NULL);
    }
    loop->input_bytes -= at;
    memmove(loop->input, loop->input + at, loop->input_bytes);
    if (loop->input_bytes == sizeof loop->input && loop->free) {
        fprintf(stderr, "lookup: a key has more than %zu bytes\n", sizeof loop->input - 1);
        return false;
    }
    enum fkv_error error = fkv_async_submit(loop->async);
    return !error || failed(loop->db, error);
}

static bool read_input(struct loop *loop)
{
    ssize_t got =
        read(STDIN_FILENO, loop->input + loop->input_bytes, sizeof loop->input - loop->input_bytes);
    if (got < 0 && errno != EINTR) {
        perror("lookup: read");
        return false;
    }
    loop->input_ended = got == 0;
    loop->input_bytes += got > 0 ? (size_t)got : 0;
    return true;
}

static bool run(struct loop *loop)
{
    while (!loop->input_ended || loop->input_bytes || loop->open) {
        bool wants_input = !loop->input_ended && loop->input_bytes < sizeof loop->input;
        struct pollfd events[] = {
            {.fd = fkv_async_fd(loop->async), .events = POLLIN},
            {.fd = wants_input && loop->free ? STDIN_FILENO : -1, .events = POLLIN},
        };
        if (poll(events, 2, -1) < 0 && errno != EINTR) {
            perror("lookup: poll");
            return false;
        }
        if (events[0].revents && !finish_all(loop))
            return false;
        if (events[1].revents && !read_input(loop))
            return false;
        if (!begin_lines(loop))
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    static struct get gets[GETS];
    static struct loop loop;
    fkv_options options;
    if (argc != 2) {
        fprintf(stderr, "usage: lookup STORE <keys\n");
        return 2;
    }
    fkv_options_init(&options);
    /* Without the mapping, so that records which are not in memory are read through io_uring. */
    options.flags = FKV_OPEN_READ_ONLY | FKV_READ_WITHOUT_MAPPING;
    enum fkv_error error = fkv_open(argv[1], &options, &loop.db);
    if (!error)
        error = fkv_async_open(loop.db, GETS, &loop.async);
    if (error) {
        failed(loop.db, error);
        fkv_close(loop.db);
        return 1;
    }
    for (int i = 0; i < GETS; i++) {
        gets[i].next = loop.free;
        loop.free = &gets[i];
    }
    bool ok = run(&loop);
    fkv_async_close(loop.async);
    fkv_close(loop.db);
    return !ok;
}
