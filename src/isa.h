/*
 * isa: what is compiled once for each instruction set, and the best for this processor.
 *
 * isa_code.h has the code. It is all that a get does, so that it is one function without calls, and
 * the checksums.
 */
#ifndef FKV_ISA_H
#define FKV_ISA_H

#include <fkv.h>
#include <stdbool.h>
#include <stdint.h>

/* What is to be done with each of many keys. */
enum read_what { READ_COPY, READ_LEND, READ_LOOK };
enum { READ_GROUP = 32 }; /* keys at a time: their buckets stay in the nearest cache meanwhile */

struct isa {
    const char *name;
    /* The public calls. */
    enum fkv_error (*get)(fkv *db, const void *key, size_t key_bytes, void *buffer,
                          size_t buffer_bytes, size_t *value_bytes);
    enum fkv_error (*exists)(fkv *db, const void *key, size_t key_bytes);
    /* Up to READ_GROUP reads, inside a read section. An error of READ_BY_CALL is left for the end.
     * All errors, or-ed: at most FKV_NOT_FOUND if there is nothing worse. */
    unsigned (*read_group)(fkv *db, fkv_read *reads, size_t count, enum read_what what);
    uint64_t (*checksum64)(const void *data, size_t bytes);
    /* See record_checksum in record.h. */
    uint32_t (*record_checksum)(const uint8_t *record, uint32_t cells, size_t bytes);
};

extern const struct isa isa_plain;
#if defined(__x86_64__) && defined(__GNUC__)
#define ISA_X86
extern const struct isa isa_avx2, isa_avx512;
#elif defined(__aarch64__) && defined(__GNUC__)
#define ISA_ARM
extern const struct isa isa_arm;
#endif

/* The best one: a copy, to save its readers a step. */
extern struct isa isa;

/* Can this processor run it? */
bool isa_runs(const struct isa *one);

#endif
