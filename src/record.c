#include "record.h"

void hash_seeds_make(struct hash_seeds *seeds, const uint8_t salt[HASH_SALT_BYTES])
{
    uint8_t piece_salt[HASH_SALT_BYTES];
    for (int i = 0; i < HASH_SALT_BYTES; i++)
        piece_salt[i] = salt[i] ^ PIECE_SALT;
    hash_seed_make(&seeds->keys, salt);
    hash_seed_make(&seeds->pieces, piece_salt);
}

size_t record_write(uint8_t *to, uint64_t seed, uint32_t place, enum record_kind kind,
                    const void *key, size_t key_bytes, const void *value, size_t value_bytes)
{
    struct format_record header = {.value_bytes = (uint32_t)value_bytes,
                                   .key_bytes = (uint16_t)key_bytes,
                                   .kind = (uint8_t)kind};
    size_t bytes = record_bytes(key_bytes, value_bytes);
    memcpy(to, &header, sizeof header);
    if (key_bytes)
        memcpy(to + RECORD_HEADER_BYTES, key, key_bytes);
    if (value_bytes)
        memcpy(to + RECORD_HEADER_BYTES + key_bytes, value, value_bytes);
    record_seal(to, seed, place);
    return bytes;
}

void record_seal(uint8_t *record, uint64_t seed, uint32_t place)
{
    struct format_record header = record_header(record);
    size_t bytes = record_bytes(header.key_bytes, header.value_bytes);
    uint32_t checksum = record_checksum(record, bytes, seed) ^ place;
    memcpy(record, &checksum, sizeof checksum);
}

void record_write_pad(uint8_t *to, uint64_t seed, uint32_t place, uint32_t cells)
{
    struct format_record header = {.value_bytes = cells, .kind = RECORD_PAD};
    memset(to, 0, (size_t)cells * CELL_BYTES);
    memcpy(to, &header, sizeof header);
    header.checksum = record_checksum(to, sizeof header, seed) ^ place;
    memcpy(to, &header.checksum, sizeof header.checksum);
}

uint32_t record_walk(const uint8_t *record, uint32_t cells_left)
{
    struct format_record header = record_header(record);
    if (header.kind < RECORD_PLAIN || header.kind > RECORD_PAD || header.value_bytes > SECTOR_BYTES)
        return 0;
    uint32_t cells = header.kind == RECORD_PAD
                         ? header.value_bytes
                         : record_cells(record_bytes(header.key_bytes, header.value_bytes));
    return cells <= cells_left ? cells : 0;
}

bool record_is_piece(const uint8_t *record, uint64_t id, uint32_t number, uint32_t bytes)
{
    struct format_record header = record_header(record);
    struct format_piece_key key;
    if (header.kind != RECORD_PIECE || header.key_bytes != sizeof key ||
        header.value_bytes != bytes)
        return false;
    memcpy(&key, record_key(record), sizeof key);
    return key.id == id && key.number == number;
}
