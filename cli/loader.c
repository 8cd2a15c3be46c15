#include "loader.h"

static const char unreadable[] = "it cannot be read";

/* The first line, or one that begins with "#". Its length without the newline, DUMP_LINE_MAX if it
 * has as much or more; -1 at the end. */
static int read_line(struct loader *loader, char line[DUMP_LINE_MAX])
{
    int length = 0, c;
    while ((c = getc(loader->from)) != EOF && c != '\n' && length < DUMP_LINE_MAX)
        line[length++] = (char)c;
    bool ended = c == EOF && (!length || ferror(loader->from));
    loader->lines += !ended;
    return ended ? -1 : length;
}

bool loader_begin(struct loader *loader)
{
    bool digest;
    char line[DUMP_LINE_MAX];
    int length = read_line(loader, line);
    if (length < 0 && ferror(loader->from))
        loader->what = unreadable;
    else if (length < 0 || !dump_is_begin(line, (size_t)length, &digest))
        loader->what = "this is not a dump of fkv";
    else if (digest)
        loader->what = "this is a dump of digests; the keys are not in it";
    return !loader->what;
}

static const char *read_end(struct loader *loader)
{
    char line[DUMP_LINE_MAX];
    uint64_t pairs;
    int length = read_line(loader, line);
    if (length < 0 || !dump_is_end(line, (size_t)length, &pairs))
        return "this is no line of a dump";
    if (pairs != loader->pairs)
        return "the dump has another number of pairs than it says";
    if (getc(loader->from) == EOF)
        return ferror(loader->from) ? unreadable : NULL;
    loader->lines++;
    return "there is more after the dump's end";
}

static enum dump_field read_pair(struct loader *loader)
{
    loader->lines++;
    enum dump_field end = dump_read_field(loader->from, &loader->key, FKV_KEY_BYTES_MAX);
    if (end == DUMP_TAB)
        end = dump_read_field(loader->from, &loader->value, FKV_VALUE_BYTES_MAX);
    else if (end == DUMP_LINE)
        return DUMP_BAD;
    return end == DUMP_TAB ? DUMP_BAD : end;
}

enum fkv_error loader_run(struct loader *loader, fkv *db)
{
    int c;
    while ((c = getc(loader->from)) != EOF) {
        ungetc(c, loader->from);
        if (c == '#') {
            loader->what = read_end(loader);
            return FKV_OK;
        }
        enum dump_field end = read_pair(loader);
        if (end == DUMP_NO_MEMORY)
            return FKV_NO_MEMORY;
        if (end == DUMP_CUT)
            break;
        if (end == DUMP_BAD) {
            loader->what = "this is no line of a dump, or it is too long for one";
            return FKV_OK;
        }
        enum fkv_error error = fkv_put(db, loader->key.bytes, loader->key.count,
                                       loader->value.bytes, loader->value.count);
        if (error)
            return error;
        loader->pairs++;
    }
    loader->what = ferror(loader->from) ? unreadable : "the dump is cut off";
    return FKV_OK;
}

void loader_drop(struct loader *loader)
{
    text_drop(&loader->key);
    text_drop(&loader->value);
    *loader = (struct loader){0};
}
