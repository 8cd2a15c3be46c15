#include "ahead.h"

/*
 * Each operation of a replay is some cache misses after another: directory, segment, bucket, table
 * of pages, map of the record that dies. Keys of different frames have nothing to do with each
 * other, so the frames that come next are looked at, unverified, and what they will need is
 * fetched.
 */
enum {
    /* Operations between the look at one and its replay. */
    DISTANCE = 24,
    /* To read the whole index at once is worth it from one operation for so many pages on: each
     * page read alone costs about what four cost together. */
    PAGES_AN_OPERATION = 4,
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
            header.bytes > log->size - ahead->offset || header.bytes > ahead->left)
            return NULL;
        ahead->left -= header.bytes;
        ahead->offset += header.bytes;
        *end = at + header.bytes;
        if (!(header.flags & FRAME_WRAP))
            return at + sizeof header;
        ahead->offset = LOG_FRAMES_OFFSET;
    }
}

/* Fetch what one operation will need. */
static void fetch(const struct fkv *db, const struct format_operation *operation,
                  const uint8_t *payload)
{
    struct hash128 hash;
    if (operation->kind == OPERATION_DELETE && operation->bytes == sizeof hash) {
        memcpy(&hash, payload, sizeof hash);
    } else if (operation->kind == OPERATION_PUT && operation->bytes >= RECORD_HEADER_BYTES) {
        if (RECORD_HEADER_BYTES + record_header(payload).key_bytes > operation->bytes)
            return;
        hash = record_hash(&db->hash_seeds, payload);
    } else {
        return;
    }
    index_prefetch_write(&db->index, hash);
}

void ahead_begin(struct ahead *ahead, const struct fkv *db)
{
    *ahead = (struct ahead){.offset = db->log.head.offset, .left = db->log.size};
}

void ahead_look(struct ahead *ahead, const struct fkv *db, uint32_t operations_done)
{
    ahead->lead -= operations_done < ahead->lead ? operations_done : ahead->lead;
    while (ahead->lead < DISTANCE && !ahead->over) {
        const uint8_t *end, *at = peek(ahead, &db->log, &end);
        ahead->over = !at;
        while (at && (size_t)(end - at) >= sizeof(struct format_operation)) {
            struct format_operation operation;
            memcpy(&operation, at, sizeof operation);
            at += sizeof operation;
            if (round_up(operation.bytes, 8) > (uint64_t)(end - at))
                break;
            fetch(db, &operation, at);
            at += round_up(operation.bytes, 8);
            ahead->lead++;
        }
    }
}

void ahead_load_index(struct fkv *db)
{
    if (db->index.frames_max && db->index.page_count > db->index.frames_max)
        return;
    struct ahead ahead;
    ahead_begin(&ahead, db);
    uint64_t enough = db->index.page_count / PAGES_AN_OPERATION;
    const uint8_t *end;
    for (uint64_t frames = 0; frames <= enough; frames++)
        if (!peek(&ahead, &db->log, &end))
            return;
    index_load_all(&db->index);
}
