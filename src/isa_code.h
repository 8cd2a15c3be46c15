/*
 * isa_code: the functions of an instruction set (isa.h). The file that includes this has said which
 * one before, and has ISA defined as the name of the table; and ISA_AES where the processor has AES
 * and not every compiler says so.
 *
 * How many gets a processor has under way at a time, each waiting for memory, is how often their
 * instructions fit into what it looks ahead: some hundreds. So a get is one function, with what
 * nearly all gets need and no more; it decides by what is known early, the arguments and the slot
 * of the index, never by what is in the record; and whatever is out of the ordinary begins anew in
 * get_any.
 */
#include "call.h"
#include "hash_aes.h"
#include "isa.h"
#include "nh.h"
#include "read.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

static uint64_t xxh3(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

/* ---------------------------------------------------------------- records */

/* What is summed up so far, and the sum of the next block. */
static inline uint64_t fold(uint64_t sum, uint64_t block)
{
    return (sum ^ block) * 0x9e3779b97f4a7c15ull;
}

static uint32_t record_sum(const uint8_t *record, uint32_t cells, size_t bytes)
{
    if (__builtin_expect(cells <= NH_CELLS_MAX, 1))
        return (uint32_t)(fold(0, nh(record, cells, bytes, true)) >> 32);
    uint64_t sum = fold(0, nh(record, NH_CELLS_MAX, NH_BYTES_MAX, true));
    for (;;) {
        record += NH_BYTES_MAX;
        bytes -= NH_BYTES_MAX;
        cells -= NH_CELLS_MAX;
        if (cells <= NH_CELLS_MAX)
            return (uint32_t)(fold(sum, nh(record, cells, bytes, false)) >> 32);
        sum = fold(sum, nh(record, NH_CELLS_MAX, NH_BYTES_MAX, false));
    }
}

/* ---------------------------------------------------------------- gets */

static inline __attribute__((always_inline)) struct hash128 hash_of(const fkv *db, const void *key,
                                                                    size_t key_bytes)
{
#if defined(__AES__) || defined(ISA_AES)
    return hash_key_aes(&db->hash_seeds.keys, key, key_bytes);
#else
    return hash_key(&db->hash_seeds.keys, key, key_bytes);
#endif
}

/* Of a key: at most so many bytes that it ends in the first 64 of its record. */
#define GET_KEY_BYTES_MAX (64 - RECORD_HEADER_BYTES)

static inline bool same_key(const uint8_t *a, const uint8_t *b, size_t bytes)
{
#if defined(__AVX512BW__) && defined(__BMI2__)
    __mmask64 mask = _bzhi_u64(~0ull, (unsigned)bytes);
    return !_mm512_mask_cmpneq_epi8_mask(mask, _mm512_maskz_loadu_epi8(mask, a),
                                         _mm512_maskz_loadu_epi8(mask, b));
#else
    if (bytes > 16 || bytes < 4)
        return memcmp(a, b, bytes) == 0;
    if (bytes < 8) /* two words that overlap */
        return ((load_u32_wide(a) ^ load_u32_wide(b)) |
                (load_u32_wide(a + bytes - 4) ^ load_u32_wide(b + bytes - 4))) == 0;
    return ((load_u64(a) ^ load_u64(b)) | (load_u64(a + bytes - 8) ^ load_u64(b + bytes - 8))) == 0;
#endif
}

static inline bool is_usual(const fkv *db, const void *key)
{
    return __builtin_expect(db && __atomic_load_n(db->alive, __ATOMIC_RELAXED) == HANDLE_ALIVE &&
                                key && !db->digest,
                            1);
}

/* Is the entry of a record of plain kind, whose cells tell the length to a cell? */
static inline bool is_exact(uint64_t entry)
{
    return !(entry & ENTRY_LARGE) && entry_length_code(entry) - 1 < CELLS_EXACT;
}

/* The value of a record with such an entry into the buffer; false if it is not the key's, or not
 * whole, or too long. */
static inline __attribute__((always_inline)) bool
take(fkv *db, uint64_t entry, const struct place *place, const uint8_t *key, size_t key_bytes,
     void *buffer, size_t buffer_bytes, size_t *value_bytes)
{
    uint32_t cells = entry_length_code(entry); /* the same, up to CELLS_EXACT */
    /* Not as one structure, which would go through memory. */
    const struct format_record *header = (const struct format_record *)(const void *)place->record;
    size_t skip = RECORD_HEADER_BYTES + key_bytes;
    size_t bytes = skip + header->value_bytes;
    if (__builtin_expect(header->key_bytes != key_bytes || header->value_bytes > buffer_bytes ||
                             divide_up(bytes, CELL_BYTES) != cells ||
                             !same_key(record_key(place->record), key, key_bytes),
                         0))
        return false;
    *value_bytes = bytes - skip;
    if (__builtin_expect(!db->verify || PLANTED(NO_RECORD_CHECKSUM), 0)) {
        prefetch_record(place->record, cells);
        memcpy(buffer, place->record + skip, bytes - skip);
        return true;
    }
    uint32_t cell = entry_address(entry) % SECTOR_CELLS;
    uint64_t sum = nh_copy(place->record, cells, bytes, buffer, skip);
    return __builtin_expect(
        (uint32_t)(fold(0, sum) >> 32) ==
            (header->checksum ^ (uint32_t)db->seed ^ record_place(place->sequence, cell)),
        1);
}

static enum fkv_error get(fkv *db, const void *key, size_t key_bytes, void *buffer,
                          size_t buffer_bytes, size_t *value_bytes)
{
    if (__builtin_expect(!is_usual(db, key) || key_bytes > GET_KEY_BYTES_MAX || !buffer, 0))
        return get_any(db, key, key_bytes, buffer, buffer_bytes, value_bytes);
    struct hash128 hash = hash_of(db, key, key_bytes);
    size_t bytes;
    rcu_read_lock();
    if (__builtin_expect(atomic_load_explicit(&db->overlay, memory_order_acquire) != NULL, 0))
        goto any; /* a commit of several keys is under way: see read_find */
    SCHEDULE_POINT();
    struct near near = index_near(&db->index, hash);
    uint64_t entry = index_find_near(&near);
    SCHEDULE_POINT();
    if (__builtin_expect(atomic_load_explicit(&db->overlay, memory_order_acquire) != NULL, 0))
        goto any;
    SCHEDULE_POINT();
    if (entry == INDEX_ABSENT) {
        rcu_read_unlock();
        return FKV_NOT_FOUND;
    }
    struct place place;
    if (__builtin_expect(!is_exact(entry), 0) ||
        read_locate(db, entry, entry_cells(entry), &place) ||
        !take(db, entry, &place, key, key_bytes, buffer, buffer_bytes, &bytes))
        goto any;
    rcu_read_unlock();
    if (value_bytes)
        *value_bytes = bytes;
    return FKV_OK;
any:
    rcu_read_unlock();
    return get_any(db, key, key_bytes, buffer, buffer_bytes, value_bytes);
}

static enum fkv_error exists(fkv *db, const void *key, size_t key_bytes)
{
    if (__builtin_expect(!is_usual(db, key) || key_bytes > FKV_KEY_BYTES_MAX, 0))
        return exists_any(db, key, key_bytes);
    struct hash128 hash = hash_of(db, key, key_bytes);
    rcu_read_lock();
    if (__builtin_expect(atomic_load_explicit(&db->overlay, memory_order_acquire) != NULL, 0))
        goto any;
    SCHEDULE_POINT();
    uint64_t entry;
    enum fkv_error error = index_find(&db->index, hash, &entry);
    SCHEDULE_POINT();
    if (__builtin_expect(
            error > FKV_NOT_FOUND || atomic_load_explicit(&db->overlay, memory_order_acquire), 0))
        goto any;
    rcu_read_unlock();
    return error;
any:
    rcu_read_unlock();
    return exists_any(db, key, key_bytes);
}

/* ---------------------------------------------------------------- many gets */

/*
 * A single get waits for memory twice, one after the other: for its bucket of the index, then for
 * its record. Here a group of keys goes through each stage together, so that all buckets are being
 * fetched at the same time, and then some records ahead of the one that is being copied (after
 * "Improving hash join performance through prefetching", Chen, Ailamaki, Gibbons and Mowry, 2004).
 */
enum { READ_AHEAD = 12 }; /* records that are being fetched, beyond the one that is copied */

struct lookup {
    struct key key;
    struct near near;
    uint64_t entry;
    struct place place; /* record: NULL if out of the ordinary */
};

/* Keys, hashes, and the buckets on their way. */
static inline void group_begin(fkv *db, fkv_read *reads, size_t count, struct lookup *lookups)
{
    for (size_t i = 0; i < count; i++) {
        struct key *key = &lookups[i].key;
        reads[i].error = FKV_OK;
        if (__builtin_expect(reads[i].key && reads[i].key_bytes <= FKV_KEY_BYTES_MAX && !db->digest,
                             1)) {
            key->bytes = reads[i].key;
            key->size = reads[i].key_bytes;
            key->hash = hash_of(db, key->bytes, key->size);
        } else if ((reads[i].error = call_key(db, reads[i].key, reads[i].key_bytes, key))) {
            continue;
        }
        lookups[i].near = index_near(&db->index, key->hash);
        prefetch_near(&lookups[i].near);
    }
}

/* What the usual way does not find, or what the writer changes at this moment. */
static __attribute__((noinline)) void group_find_again(fkv *db, fkv_read *reads, size_t count,
                                                       struct lookup *lookups, bool all)
{
    for (size_t i = 0; i < count; i++) {
        if (reads[i].error || (!all && lookups[i].entry != INDEX_UNSURE))
            continue;
        reads[i].error = read_find(db, lookups[i].key.hash, &lookups[i].entry);
        if (reads[i].error == FKV_NOT_FOUND) {
            reads[i].error = FKV_OK;
            lookups[i].entry = INDEX_ABSENT;
        }
    }
}

/*
 * The entries; INDEX_ABSENT where there is none. One look for all of a commit of several keys that
 * is under way: see read_find. What has changed since group_begin, a segment or a page in memory,
 * has left what it was then as it was, for this read section.
 */
static inline void group_find(fkv *db, fkv_read *reads, size_t count, struct lookup *lookups)
{
    bool calm = !atomic_load_explicit(&db->overlay, memory_order_acquire), unsure = false;
    for (size_t i = 0; i < count && calm; i++)
        if (__builtin_expect(!reads[i].error, 1)) {
            lookups[i].entry = index_find_near(&lookups[i].near);
            unsure |= lookups[i].entry == INDEX_UNSURE;
        }
    calm = calm && !atomic_load_explicit(&db->overlay, memory_order_acquire);
    if (__builtin_expect(!calm || unsure, 0))
        group_find_again(db, reads, count, lookups, !calm);
}

/* Where the record is, and its lines on their way. */
static inline __attribute__((always_inline)) void group_locate(fkv *db, fkv_read *read,
                                                               struct lookup *lookup)
{
    uint64_t entry = lookup->entry;
    lookup->place.record = NULL;
    if (__builtin_expect(read->error, 0))
        return;
    if (entry == INDEX_ABSENT) {
        read->error = FKV_NOT_FOUND;
        return;
    }
    if (__builtin_expect((entry & ENTRY_LARGE) != 0, 0))
        return;
    enum fkv_error error = read_locate(db, entry, entry_cells(entry), &lookup->place);
    if (__builtin_expect(!error, 1)) {
        prefetch_record(lookup->place.record, entry_cells(entry));
        return;
    }
    lookup->place.record = NULL;
    if (error == READ_BY_CALL)
        read->error = READ_BY_CALL;
}

static inline void group_copy(fkv *db, fkv_read *read, const struct lookup *lookup)
{
    const struct key *key = &lookup->key;
    if (__builtin_expect(!lookup->place.record || !is_exact(lookup->entry) ||
                             key->size > GET_KEY_BYTES_MAX || !read->buffer ||
                             !take(db, lookup->entry, &lookup->place, key->bytes, key->size,
                                   read->buffer, read->buffer_bytes, &read->value_bytes),
                         0))
        read->error = read_value(db, key, read->buffer, read->buffer_bytes, &read->value_bytes);
}

static inline void group_lend(fkv *db, fkv_read *read, const struct lookup *lookup)
{
    const uint8_t *record = lookup->place.record;
    if (__builtin_expect(!record || check_record(db, lookup->entry, lookup->place.sequence, record,
                                                 lookup->key.bytes, lookup->key.size),
                         0)) {
        read->error = read_borrow(db, &lookup->key, &read->value, &read->value_bytes);
        return;
    }
    struct format_record header = record_header(record);
    read->value = record_key(record) + header.key_bytes;
    read->value_bytes = header.value_bytes;
}

static unsigned read_group(fkv *db, fkv_read *reads, size_t count, enum read_what what)
{
    struct lookup lookups[READ_GROUP];
    unsigned errors = 0;
    group_begin(db, reads, count, lookups);
    if (what == READ_LOOK) {
        for (size_t i = 0; i < count; i++) {
            if (__builtin_expect(!reads[i].error, 1))
                reads[i].error = read_find(db, lookups[i].key.hash, &lookups[i].entry);
            errors |= reads[i].error;
        }
        return errors;
    }
    group_find(db, reads, count, lookups);
    SCHEDULE_POINT();
    for (size_t i = 0; i < count && i < READ_AHEAD; i++)
        group_locate(db, &reads[i], &lookups[i]);
    for (size_t i = 0; i < count; i++) {
        if (i + READ_AHEAD < count)
            group_locate(db, &reads[i + READ_AHEAD], &lookups[i + READ_AHEAD]);
        if (what == READ_LEND && (!reads[i].error || reads[i].error == READ_BY_CALL)) {
            reads[i].error = FKV_OK;
            group_lend(db, &reads[i], &lookups[i]);
        } else if (what == READ_COPY && !reads[i].error) {
            group_copy(db, &reads[i], &lookups[i]);
        }
        errors |= reads[i].error;
    }
    return errors;
}

const struct isa ISA = {ISA_NAME, get, exists, read_group, xxh3, record_sum};
