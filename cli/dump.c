#include "dump.h"

#include <stdlib.h>
#include <string.h>

static const char first_line[] = "# fkv-dump 1";
static const char digest_line[] = "# fkv-dump 1 digest";
static const char end_line[] = "# end ";

/* ---------------------------------------------------------------- text */

void text_drop(struct text *text)
{
    free(text->bytes);
    *text = (struct text){0};
}

bool text_make_room(struct text *text, size_t more)
{
    if (more > SIZE_MAX / 4 || text->count > SIZE_MAX / 4)
        return false;
    size_t need = text->count + more;
    if (need <= text->room && text->bytes) /* never NULL afterwards, for nothing too */
        return true;
    size_t room = text->room ? text->room * 2 : 256;
    if (room < need)
        room = need;
    char *bytes = realloc(text->bytes, room);
    if (!bytes)
        return false;
    text->bytes = bytes;
    text->room = room;
    return true;
}

bool text_add(struct text *text, const void *bytes, size_t count)
{
    if (!text_make_room(text, count))
        return false;
    if (count)
        memcpy(text->bytes + text->count, bytes, count);
    text->count += count;
    return true;
}

/* ---------------------------------------------------------------- the written form */

bool dump_escape(struct text *to, const void *bytes, size_t count, bool key)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *from = bytes;
    if (count > SIZE_MAX / 8 || !text_make_room(to, count * 4))
        return false;
    char *at = to->bytes + to->count;
    for (size_t i = 0; i < count; i++) {
        uint8_t byte = from[i];
        if (byte == '\\') {
            *at++ = '\\';
            *at++ = '\\';
        } else if (byte < 0x20 || byte > 0x7e || (key && i == 0 && byte == '#')) {
            *at++ = '\\';
            *at++ = 'x';
            *at++ = digits[byte >> 4];
            *at++ = digits[byte & 15];
        } else {
            *at++ = (char)byte;
        }
    }
    to->count = (size_t)(at - to->bytes);
    return true;
}

static int digit_of(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool dump_unescape(struct text *to, const char *written, size_t count)
{
    if (!text_make_room(to, count))
        return false;
    char *at = to->bytes + to->count;
    for (size_t i = 0; i < count; i++) {
        if (written[i] != '\\') {
            *at++ = written[i];
        } else if (i + 1 < count && written[i + 1] == '\\') {
            *at++ = '\\';
            i++;
        } else if (i + 3 < count && written[i + 1] == 'x' && digit_of(written[i + 2]) >= 0 &&
                   digit_of(written[i + 3]) >= 0) {
            *at++ = (char)(digit_of(written[i + 2]) << 4 | digit_of(written[i + 3]));
            i += 3;
        } else {
            return false;
        }
    }
    to->count = (size_t)(at - to->bytes);
    return true;
}

/* ---------------------------------------------------------------- writing */

void dump_begin(FILE *to, bool digest)
{
    fprintf(to, "%s\n", digest ? digest_line : first_line);
}

/* In pieces: written, a value may be four times as long as it is. */
bool dump_value(FILE *to, struct text *scratch, const void *value, size_t value_bytes)
{
    enum { PIECE_BYTES = 1 << 16 };
    const char *from = value;
    for (size_t at = 0; at < value_bytes; at += PIECE_BYTES) {
        size_t left = value_bytes - at;
        scratch->count = 0;
        if (!dump_escape(scratch, from + at, left < PIECE_BYTES ? left : PIECE_BYTES, false) ||
            fwrite(scratch->bytes, 1, scratch->count, to) != scratch->count)
            return false;
    }
    return fputc('\n', to) != EOF;
}

bool dump_pair(FILE *to, struct text *scratch, const void *key, size_t key_bytes, const void *value,
               size_t value_bytes)
{
    scratch->count = 0;
    return dump_escape(scratch, key, key_bytes, true) && text_add(scratch, "\t", 1) &&
           fwrite(scratch->bytes, 1, scratch->count, to) == scratch->count &&
           dump_value(to, scratch, value, value_bytes);
}

void dump_end(FILE *to, uint64_t pairs)
{
    fprintf(to, "%s%llu\n", end_line, (unsigned long long)pairs);
}

/* ---------------------------------------------------------------- reading */

static bool is_line(const char *line, size_t count, const char *expected)
{
    return count == strlen(expected) && memcmp(line, expected, count) == 0;
}

bool dump_is_begin(const char *line, size_t count, bool *digest)
{
    *digest = is_line(line, count, digest_line);
    return *digest || is_line(line, count, first_line);
}

static enum dump_line parse_end(const char *line, size_t count, uint64_t *pairs)
{
    size_t skip = sizeof end_line - 1;
    if (count <= skip || count > skip + 19 || memcmp(line, end_line, skip) != 0)
        return DUMP_BAD;
    *pairs = 0;
    for (size_t i = skip; i < count; i++) {
        if (line[i] < '0' || line[i] > '9')
            return DUMP_BAD;
        *pairs = *pairs * 10 + (uint64_t)(line[i] - '0');
    }
    return DUMP_END;
}

enum dump_line dump_parse(const char *line, size_t count, struct text *key, struct text *value,
                          uint64_t *pairs)
{
    if (count && line[0] == '#')
        return parse_end(line, count, pairs);
    const char *tab = count ? memchr(line, '\t', count) : NULL;
    if (!tab || memchr(tab + 1, '\t', count - (size_t)(tab + 1 - line)))
        return DUMP_BAD;
    key->count = value->count = 0;
    size_t key_count = (size_t)(tab - line);
    return dump_unescape(key, line, key_count) &&
                   dump_unescape(value, tab + 1, count - key_count - 1)
               ? DUMP_PAIR
               : DUMP_BAD;
}
