#include "loader.h"

#include <stdlib.h>

static const char unreadable[] = "it cannot be read";

/* The next line, without its newline; its length, or -1 at the end. */
static ssize_t next_line(struct loader *loader)
{
    ssize_t length = getline(&loader->line, &loader->line_room, loader->from);
    loader->lines += length >= 0;
    return length > 0 && loader->line[length - 1] == '\n' ? length - 1 : length;
}

bool loader_begin(struct loader *loader)
{
    bool digest;
    ssize_t length = next_line(loader);
    if (length < 0 && !feof(loader->from))
        loader->what = unreadable;
    else if (length < 0 || !dump_is_begin(loader->line, (size_t)length, &digest))
        loader->what = "this is not a dump of fkv";
    else if (digest)
        loader->what = "this is a dump of digests; the keys are not in it";
    return !loader->what;
}

enum fkv_error loader_run(struct loader *loader, fkv *db)
{
    ssize_t length;
    while ((length = next_line(loader)) >= 0) {
        uint64_t pairs;
        switch (dump_parse(loader->line, (size_t)length, &loader->key, &loader->value, &pairs)) {
        case DUMP_BAD:
            loader->what = "this is no line of a dump";
            return FKV_OK;
        case DUMP_END:
            if (pairs != loader->pairs)
                loader->what = "the dump has another number of pairs than it says";
            else if (next_line(loader) >= 0)
                loader->what = "there is more after the dump's end";
            return FKV_OK;
        case DUMP_PAIR:
            break;
        }
        enum fkv_error error = fkv_put(db, loader->key.bytes, loader->key.count,
                                       loader->value.bytes, loader->value.count);
        if (error)
            return error;
        loader->pairs++;
    }
    loader->what = feof(loader->from) ? "the dump is cut off" : unreadable;
    return FKV_OK;
}

void loader_drop(struct loader *loader)
{
    free(loader->line);
    text_drop(&loader->key);
    text_drop(&loader->value);
    *loader = (struct loader){0};
}
