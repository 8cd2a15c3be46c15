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

static int digit_of(int c)
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

bool dump_is_end(const char *line, size_t count, uint64_t *pairs)
{
    size_t skip = sizeof end_line - 1;
    if (count <= skip || count > skip + 19 || memcmp(line, end_line, skip) != 0)
        return false;
    *pairs = 0;
    for (size_t i = skip; i < count; i++) {
        if (line[i] < '0' || line[i] > '9')
            return false;
        *pairs = *pairs * 10 + (uint64_t)(line[i] - '0');
    }
    return true;
}

/* The byte that is written so, behind a backslash; -1 if that is none. */
static int read_escape(FILE *from)
{
    int c = getc_unlocked(from);
    if (c != 'x')
        return c == '\\' ? c : -1;
    int high = digit_of(getc_unlocked(from));
    int low = high < 0 ? -1 : digit_of(getc_unlocked(from));
    return low < 0 ? -1 : high << 4 | low;
}

enum dump_field dump_read_field(FILE *from, struct text *field, size_t most)
{
    field->count = 0;
    if (!text_make_room(field, 0))
        return DUMP_NO_MEMORY;
    for (;;) {
        int c = getc_unlocked(from);
        if (c == '\t')
            return DUMP_TAB;
        if (c == '\n' || c == EOF)
            return c == EOF ? DUMP_CUT : DUMP_LINE;
        if ((c == '\\' && (c = read_escape(from)) < 0) || field->count == most)
            return DUMP_BAD;
        if (field->count == field->room && !text_make_room(field, 1))
            return DUMP_NO_MEMORY;
        field->bytes[field->count++] = (char)c;
    }
}
