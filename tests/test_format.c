/*
 * test_format: the arithmetic of format.h, over all numbers there are, and the sizes and places of
 * what lies on disk, which docs/file-format.md gives as bytes.
 */
#include "support.h"

#include "index.h"
#include "record.h"

static void test_length_codes(void **state)
{
    (void)state;
    uint32_t last = length_code(RECORD_CELLS_MAX);
    assert_true(last < 512); /* 9 bits */
    for (uint32_t code = 0; code <= last; code++) {
        assert_int_equal(length_code(length_of_code(code)), code);
        if (code)
            assert_true(length_of_code(code) > length_of_code(code - 1));
    }
    assert_int_equal(length_of_code(last), RECORD_CELLS_MAX);
}

static void test_lengths_round_up_little(void **state)
{
    (void)state;
    uint32_t before = 0;
    for (uint32_t cells = 1; cells <= RECORD_CELLS_MAX; cells++) {
        uint32_t code = length_code(cells);
        uint32_t rounded = length_of_code(code);
        assert_true(rounded >= cells);
        assert_true((rounded - cells) * 32 <= cells);
        assert_true(code == before || code == before + 1); /* no code is skipped */
        if (cells <= 64)
            assert_int_equal(rounded, cells);
        if (code != before && before)
            assert_int_equal(length_of_code(before), cells - 1); /* and none rounds too far */
        before = code;
    }
}

static void test_record_cells(void **state)
{
    (void)state;
    for (uint32_t bytes = 1; bytes <= RECORD_BYTES_MAX; bytes++) {
        uint32_t cells = record_cells(bytes);
        assert_true(cells * CELL_BYTES >= bytes);
        assert_true(cells <= RECORD_CELLS_MAX);
        assert_true(cells * CELL_BYTES < bytes + CELL_BYTES + bytes / 32 + CELL_BYTES);
        /* What the index keeps of a length is exact. */
        assert_int_equal(length_of_code(length_code(cells)), cells);
    }
}

static void test_entries(void **state)
{
    (void)state;
    struct rng rng = rng_make(1);
    for (int i = 0; i < 100000; i++) {
        uint64_t address = rng_below(&rng, 1ull << CELL_ADDRESS_BITS);
        uint32_t cells = record_cells(rng_between(&rng, 1, RECORD_BYTES_MAX));
        bool large = rng_percent(&rng, 50);
        uint64_t value = entry_value(address, cells, large);
        assert_int_equal(value & ~ENTRY_VALUE_MASK, 0);
        assert_int_equal(entry_address(value), address);
        assert_int_equal(entry_cells(value), cells);
        assert_int_equal(!!(value & ENTRY_LARGE), large);
        uint64_t slot = value | rng_next(&rng) << 51; /* with hash bits above */
        assert_int_equal(entry_address(slot), address);
        assert_int_equal(entry_cells(slot), cells);
    }
    assert_int_equal((uint64_t)SECTORS_MAX * SECTOR_CELLS, 1ull << CELL_ADDRESS_BITS);
}

static void test_struct_sizes(void **state)
{
    (void)state;
    assert_int_equal(sizeof(struct format_header), 368);
    assert_int_equal(offsetof(struct format_header, store_id), 24);
    assert_int_equal(offsetof(struct format_header, salt), 40);
    assert_int_equal(offsetof(struct format_header, sector_count), 56);
    assert_int_equal(offsetof(struct format_header, spaces), 152);
    assert_int_equal(offsetof(struct format_header, checksum), 360);
    assert_int_equal(sizeof(struct format_space), 24);
    assert_int_equal(sizeof(struct format_reference), 16);
    assert_int_equal(sizeof(struct format_sector), 16);
    assert_int_equal(sizeof(struct format_segment), 64);
    assert_int_equal(sizeof(struct format_sector_header), 64);
    assert_int_equal(sizeof(struct format_record), 12);
    assert_int_equal(sizeof(struct format_large), 24);
    assert_int_equal(sizeof(struct format_piece_key), 16);
    assert_int_equal(sizeof(struct format_log_header), 40);
    assert_int_equal(sizeof(struct format_frame), 40);
    assert_int_equal(sizeof(struct format_operation), 16);
    assert_int_equal(sizeof(struct slot) * SLOTS_PER_PAGE, PAGE_BYTES);
    assert_int_equal(SECTOR_PAGES * PAGE_BYTES, SECTOR_BYTES);
    assert_int_equal(SECTOR_CELLS * CELL_BYTES, SECTOR_BYTES);
    assert_int_equal(2 * MAP_PAGE_CELLS / 8, 2 * PAGE_BYTES); /* a bit a cell, two pages */
    assert_true(LARGE_SECTOR_PAYLOAD < SECTOR_BYTES);
    assert_true(record_bytes(sizeof(struct format_piece_key), LARGE_PIECE_PAYLOAD) <=
                RECORD_BYTES_MAX);
    /* The longest key has a place in a record, with the list of the sectors of the longest value.
     */
    uint64_t sectors = FKV_VALUE_BYTES_MAX / LARGE_SECTOR_PAYLOAD;
    assert_true(record_bytes(FKV_KEY_BYTES_MAX, sizeof(struct format_large) + sectors * 4) <=
                RECORD_BYTES_MAX);
}

/* Records end where record_walk says, so a walk over them meets each. */
static void test_records_can_be_walked(void **state)
{
    (void)state;
    struct rng rng = rng_make(2);
    static uint8_t sector[SECTOR_BYTES];
    static uint8_t value[RECORD_BYTES_MAX];
    rng_fill(&rng, value, sizeof value);
    for (int round = 0; round < 20; round++) {
        uint32_t starts[SECTOR_CELLS / 2], cells[SECTOR_CELLS / 2];
        uint32_t count = 0, at = SECTOR_HEADER_CELLS;
        for (;;) {
            size_t most = rng_percent(&rng, 10) ? RECORD_BYTES_MAX : 1500;
            size_t key_bytes = rng_below(&rng, 30);
            size_t bytes = rng_below(&rng, most - RECORD_HEADER_BYTES - key_bytes + 1);
            bool pad = rng_percent(&rng, 5);
            uint32_t need = pad ? (uint32_t)rng_between(&rng, 1, 300)
                                : record_cells(record_bytes(key_bytes, bytes));
            if (at + need > SECTOR_CELLS)
                break;
            if (pad)
                record_write_pad(sector + at * CELL_BYTES, 9, record_place(5, at), need);
            else
                assert_int_equal(record_write(sector + at * CELL_BYTES, 9, record_place(5, at),
                                              RECORD_PLAIN, value, key_bytes, value, bytes),
                                 record_bytes(key_bytes, bytes));
            starts[count] = at;
            cells[count++] = need;
            at += need;
        }
        uint32_t cell = SECTOR_HEADER_CELLS;
        for (uint32_t i = 0; i < count; cell += cells[i++]) {
            const uint8_t *record = sector + cell * CELL_BYTES;
            size_t room = SECTOR_BYTES - cell * CELL_BYTES;
            assert_int_equal(cell, starts[i]);
            assert_int_equal(record_walk(record, SECTOR_CELLS - cell), cells[i]);
            assert_int_equal(record_walk(record, cells[i] - 1), 0);
            assert_true(record_verify(record, room, 9, record_place(5, cell)));
            assert_false(record_verify(record, room, 9, record_place(5, cell + 1)));
            assert_false(record_verify(record, room, 9, record_place(6, cell)));
            assert_false(record_verify(record, room, 10, record_place(5, cell)));
        }
    }
}

/* No byte of a record can change without its checksum failing. */
static void test_records_verify_every_byte(void **state)
{
    (void)state;
    struct rng rng = rng_make(3);
    uint8_t record[400], key[16], value[300];
    rng_fill(&rng, key, sizeof key);
    rng_fill(&rng, value, sizeof value);
    const size_t lengths[] = {0, 1, 4, 16, 31, 100, 300};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        memset(record, 0, sizeof record);
        size_t bytes =
            record_write(record, 77, 88, RECORD_PLAIN, key, sizeof key, value, lengths[i]);
        for (size_t b = 0; b < bytes * 8; b++) {
            record[b / 8] ^= (uint8_t)(1 << b % 8);
            assert_false(record_verify(record, sizeof record, 77, 88));
            record[b / 8] ^= (uint8_t)(1 << b % 8);
        }
        assert_true(record_verify(record, sizeof record, 77, 88));
        assert_true(record_verify(record, bytes, 77, 88));
        assert_false(record_verify(record, bytes - 1, 77, 88));
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_length_codes),
        cmocka_unit_test(test_lengths_round_up_little),
        cmocka_unit_test(test_record_cells),
        cmocka_unit_test(test_entries),
        cmocka_unit_test(test_struct_sizes),
        cmocka_unit_test(test_records_can_be_walked),
        cmocka_unit_test(test_records_verify_every_byte),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
