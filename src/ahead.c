#include "ahead.h"

#include "frame.h"

/*
 * Each operation of a replay is some cache misses after another: directory, segment, bucket, table
 * of pages, map of the record that dies. Keys of different frames have nothing to do with each
 * other, so the frames that come next are looked at, unverified, and what they will need is
 * fetched, in stages: where the next thing lies is known only once the one before is here.
 */
enum {
    /* Operations between each stage and the replay. */
    AHEAD_OF_SEGMENT = AHEAD_MAX, /* the key is hashed */
    AHEAD_OF_BUCKET = AHEAD_MAX * 3 / 4,
    AHEAD_OF_SECTOR = AHEAD_MAX / 2, /* of the record that dies */
    AHEAD_OF_MAP = AHEAD_MAX / 4,
    /* With one operation of an unknown key for so many pages the whole index is read: each page
     * read alone costs about what four cost together. */
    PAGES_AN_UNKNOWN = 4,
};

/* The next frame, if these bytes can be one at all; NULL at the end. */
static const uint8_t *peek(struct ahead *ahead, const struct log *log, const uint8_t **end)
{
    for (;;) {
        struct format_frame header;
        if (ahead->offset + sizeof header > log->size)
            return NULL;
        const uint8_t *at = log->map + ahead->offset;
        memcpy(&header, at, sizeof header);
        if (header.bytes < sizeof header || header.bytes % 8 ||
            header.bytes > log->size - ahead->offset || header.bytes > ahead->left ||
            header.previous != ahead->chain)
            return NULL;
        ahead->chain = header.checksum;
        ahead->left -= header.bytes;
        ahead->offset += header.bytes;
        *end = at + header.bytes;
        if (header.flags & FRAME_WRAP)
            ahead->offset = LOG_FRAMES_OFFSET;
        else if (!(header.flags & FRAME_RESTART))
            return at + sizeof header;
    }
}

/* The next operation, of whatever frame; false at the end. */
static bool look_at_next(struct ahead *ahead, const struct fkv *db,
                         struct format_operation *operation, const uint8_t **payload)
{
    while (!operation_next(&ahead->at, ahead->end, operation, payload))
        if (ahead->at != ahead->end || !(ahead->at = peek(ahead, &db->log, &ahead->end))) {
            ahead->at = ahead->end;
            return false;
        }
    return true;
}

/* The key that an operation sets or removes; false if it names none. */
static bool key_of(const struct fkv *db, const struct format_operation *operation,
                   const uint8_t *payload, struct hash128 *hash)
{
    if (operation->kind == OPERATION_DELETE && operation->bytes == sizeof *hash) {
        memcpy(hash, payload, sizeof *hash);
        return true;
    }
    if (operation->kind != OPERATION_PUT || operation->bytes < RECORD_HEADER_BYTES ||
        RECORD_HEADER_BYTES + record_header(payload).key_bytes > operation->bytes)
        return false;
    *hash = record_hash(&db->hash_seeds, payload);
    return true;
}

/* The key of a record that is moved, if it has an address: the collector took them in the order in
 * which they lie. */
static bool key_at(const struct fkv *db, uint64_t address, struct hash128 *hash)
{
    uint32_t sector = (uint32_t)(address / SECTOR_CELLS);
    size_t at = address % SECTOR_CELLS * CELL_BYTES;
    if (sector >= db->sectors.count || sector_state(&db->sectors, sector)->type != SECTOR_VALUES)
        return false;
    const uint8_t *base = sector_base(&db->sectors, sector);
    if (!base || at + RECORD_HEADER_BYTES + record_header(base + at).key_bytes > SECTOR_BYTES)
        return false;
    *hash = record_hash(&db->hash_seeds, base + at);
    return true;
}

void ahead_begin(struct ahead *ahead, const struct fkv *db)
{
    *ahead = (struct ahead){
        .offset = db->log.head.offset, .chain = db->log.head.chain, .left = db->log.size};
}

/* What will be changed by the next operation that has not been looked at. */
static bool see(struct ahead *ahead, const struct fkv *db, struct ahead_key *key)
{
    struct format_operation operation;
    const uint8_t *payload;
    if (!look_at_next(ahead, db, &operation, &payload))
        return false;
    key->dies = 0;
    if (operation.kind == OPERATION_MOVE && operation.bytes == sizeof key->dies) {
        key->dies = load_u64(payload);
        key->known = key_at(db, key->dies, &key->hash);
    } else {
        key->known = key_of(db, &operation, payload, &key->hash);
    }
    return true;
}

void ahead_look(struct ahead *ahead, const struct fkv *db, uint32_t operations_done)
{
    struct ahead_key *key;
    ahead->done += operations_done;
    for (; ahead->seen < ahead->done + AHEAD_OF_SEGMENT; ahead->seen++) {
        key = &ahead->keys[ahead->seen % AHEAD_MAX];
        if (!see(ahead, db, key))
            break;
        if (key->known)
            index_prefetch_segment(&db->index, key->hash);
    }
    for (; ahead->fetched < min_u64(ahead->seen, ahead->done + AHEAD_OF_BUCKET); ahead->fetched++) {
        key = &ahead->keys[ahead->fetched % AHEAD_MAX];
        if (key->known)
            index_prefetch_write(&db->index, key->hash);
    }
    for (; ahead->found < min_u64(ahead->seen, ahead->done + AHEAD_OF_SECTOR); ahead->found++) {
        key = &ahead->keys[ahead->found % AHEAD_MAX];
        if (key->known && !key->dies)
            key->dies = entry_address(index_guess(&db->index, key->hash));
        if (key->dies)
            sectors_prefetch_kill(&db->sectors, key->dies, false);
    }
    for (; ahead->mapped < min_u64(ahead->seen, ahead->done + AHEAD_OF_MAP); ahead->mapped++) {
        key = &ahead->keys[ahead->mapped % AHEAD_MAX];
        if (key->dies)
            sectors_prefetch_kill(&db->sectors, key->dies, true);
    }
}

void ahead_load_index(struct fkv *db)
{
    struct index *index = &db->index;
    size_t bytes = divide_up(db->pages.space[SPACE_INDEX].page_count, 64) * sizeof(uint64_t);
    uint64_t *wanted;
    if ((index->limit.frames_max && index->page_count > index->limit.frames_max) ||
        !(wanted = memory_new(bytes)))
        return;
    struct ahead ahead;
    struct format_operation operation;
    const uint8_t *payload;
    uint64_t known = 0, unknown = 0;
    ahead_begin(&ahead, db);
    uint64_t asked = ahead.offset;
    for (;;) {
        log_read_ahead(&db->log, ahead.offset, &asked);
        if (!look_at_next(&ahead, db, &operation, &payload))
            break;
        struct hash128 hash;
        bool names_key = key_of(db, &operation, payload, &hash);
        if (names_key)
            index_want(index, hash, wanted);
        known += names_key;
        unknown += !names_key;
    }
    if (unknown > index->page_count / PAGES_AN_UNKNOWN)
        memset(wanted, 0xff, bytes);
    if (known + unknown > 0)
        index_load_wanted(index, wanted, !(db->flags & FKV_NO_THREAD));
    memory_free(wanted);
}
