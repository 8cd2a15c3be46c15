/*
 * dump: keys and values as lines of text.
 *
 *     # fkv-dump 1
 *     KEY<tab>VALUE
 *     ...
 *     # end COUNT
 *
 * A line a pair, in no order. Bytes from 0x20 to 0x7e stand for themselves; a backslash is "\\",
 * and every other byte, and a # at the beginning of a key, is "\x" and two hexadecimal digits. The
 * last line has the number of pairs, so a dump that was cut off is not taken for a whole one.
 * A store in digest mode has "# fkv-dump 1 digest" first; its keys are digests, which cannot be
 * loaded.
 */
#ifndef FKV_CLI_DUMP_H
#define FKV_CLI_DUMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Bytes that grow. */
struct text {
    char *bytes;
    size_t count, room;
};
void text_drop(struct text *text);
/* False without memory. */
bool text_make_room(struct text *text, size_t more);
bool text_add(struct text *text, const void *bytes, size_t count);

/* Append bytes in their written form; `key`: at the beginning of a line. */
bool dump_escape(struct text *to, const void *bytes, size_t count, bool key);
/* Append the bytes that a written form stands for. False if it is none, or there is no memory. */
bool dump_unescape(struct text *to, const char *written, size_t count);

void dump_begin(FILE *to, bool digest);
/* A value, and the end of its line. False without memory, or, as ferror says, if `to` fails. */
bool dump_value(FILE *to, struct text *scratch, const void *value, size_t value_bytes);
bool dump_pair(FILE *to, struct text *scratch, const void *key, size_t key_bytes, const void *value,
               size_t value_bytes);
void dump_end(FILE *to, uint64_t pairs);

/* Is this the first line of a dump, or the last one? *digest: of a store in digest mode. */
bool dump_is_begin(const char *line, size_t count, bool *digest);
bool dump_is_end(const char *line, size_t count, uint64_t *pairs);
enum { DUMP_LINE_MAX = 32 }; /* neither is as long */

/* What a field ends with: a tab; a newline; the end of the input, or an error of it; what is none
 * of a dump, or is longer than it may be. */
enum dump_field { DUMP_TAB, DUMP_LINE, DUMP_CUT, DUMP_BAD, DUMP_NO_MEMORY };

/* Read the key or the value of a pair, of no more bytes than `most`. */
enum dump_field dump_read_field(FILE *from, struct text *field, size_t most);

#endif
