/*
 * Scans of snapshots where a model is no help: damage, arguments, lives. (Scans against the model
 * are in test_snapshot.c, beside writers in test_threads_snapshot.c.)
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "planted.h"
#include "record.h"
#include "support.h"

enum { PAIRS = 30000, VALUE_BYTES = 100 };

static void put_all(fkv *db)
{
    char value[VALUE_BYTES];
    for (uint32_t k = 0; k < PAIRS; k++) {
        memset(value, (int)(k & 255), sizeof value);
        assert_ok(fkv_put(db, &k, sizeof k, value, sizeof value));
    }
}

struct found {
    uint64_t pairs, damaged;
};

/* Every pair that a scan gives is right, and is given once, whatever is damaged. */
static struct found scan_all(fkv *db)
{
    static uint8_t seen[PAIRS];
    struct found found = {0};
    fkv_snapshot *snapshot;
    fkv_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    memset(seen, 0, sizeof seen);
    assert_ok(fkv_snapshot_open(db, &snapshot));
    assert_ok(fkv_scan_open(snapshot, NULL, &scan));
    fkv_snapshot_close(snapshot); /* the scan keeps it */
    for (;;) {
        enum fkv_error error = fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes);
        if (error == FKV_NOT_FOUND)
            break;
        if (error) {
            assert_error(error, FKV_DAMAGED);
            assert_true(strlen(fkv_error_detail(db)) > 0);
            found.damaged++;
            continue;
        }
        uint32_t k;
        assert_int_equal(key_bytes, sizeof k);
        memcpy(&k, key, sizeof k);
        assert_true(k < PAIRS && !seen[k]++);
        assert_int_equal(value_bytes, VALUE_BYTES);
        assert_int_equal(((const uint8_t *)value)[VALUE_BYTES - 1], k & 255);
        found.pairs++;
    }
    fkv_scan_close(scan);
    return found;
}

static const char *make_store(const char *name)
{
    const char *path = support_path(name);
    fkv *db;
    assert_ok(fkv_open(path, NULL, &db));
    put_all(db);
    assert_int_equal(scan_all(db).pairs, PAIRS);
    assert_ok(fkv_close(db));
    return path;
}

/* The first values sector of the file. */
static off_t values_offset(int fd)
{
    uint64_t magic = 0;
    off_t at = SECTOR_BYTES;
    while (pread(fd, &magic, sizeof magic, at) == sizeof magic && magic != SECTOR_MAGIC)
        at += SECTOR_BYTES;
    assert_true(magic == SECTOR_MAGIC);
    return at;
}

static void flip(int fd, off_t at)
{
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 0x40;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
}

/* One byte anywhere in a sector: at most the pairs that it touches are lost. */
static void damage_is_reported_and_passed_over(void **state)
{
    (void)state;
    const char *path = make_store("damaged.fkv");
    struct rng rng = rng_make(7);
    for (int round = 0; round < 100; round++) {
        int fd = open(path, O_RDWR);
        off_t at = values_offset(fd) + 64 + (off_t)rng_below(&rng, SECTOR_BYTES - 140000);
        flip(fd, at);
        fkv_options options;
        fkv_options_init(&options);
        options.flags = FKV_OPEN_READ_ONLY;
        fkv *db;
        assert_ok(fkv_open(path, &options, &db));
        struct found found = scan_all(db);
        assert_ok(fkv_close(db));
        /* The last bytes of a record's last cell are nobody's. */
        assert_true((found.damaged == 1 && found.pairs == PAIRS - 1) ||
                    (found.damaged == 0 && found.pairs == PAIRS));
        flip(fd, at);
        close(fd);
    }
}

static void a_damaged_sector_header_is_reported(void **state)
{
    (void)state;
    const char *path = make_store("header.fkv");
    int fd = open(path, O_RDWR);
    flip(fd, values_offset(fd) + 5);
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_OPEN_READ_ONLY;
    fkv *db;
    assert_ok(fkv_open(path, &options, &db));
    struct found found = scan_all(db);
    assert_int_equal(found.damaged, 1);
    assert_int_equal(found.pairs, PAIRS); /* their own checksums are right */
    assert_ok(fkv_close(db));
    close(fd);
}

/* The last record of a full sector says that it is the head of a large value, with a right checksum
 * and without room for what a head has: its length is not looked for behind the sector. */
static void a_head_that_is_none_is_reported(void **state)
{
    enum { ONE_CELL_EACH = SECTOR_CELLS - SECTOR_HEADER_CELLS };
    (void)state;
    const char *path = support_path("head.fkv");
    fkv *db;
    assert_ok(fkv_open(path, NULL, &db));
    for (uint32_t k = 0; k < ONE_CELL_EACH; k++)
        assert_ok(fkv_put(db, &k, sizeof k, NULL, 0));
    assert_ok(fkv_close(db));
    int fd = open(path, O_RDWR);
    off_t sector = values_offset(fd), at = sector + (SECTOR_CELLS - 1) * (off_t)CELL_BYTES;
    struct format_header store;
    struct format_sector_header header;
    uint8_t bytes[CELL_BYTES];
    assert_int_equal(pread(fd, &store, sizeof store, 0), sizeof store);
    assert_int_equal(pread(fd, &header, sizeof header, sector), sizeof header);
    assert_int_equal(pread(fd, bytes, sizeof bytes, at), sizeof bytes);
    struct format_record record = record_header(bytes);
    assert_int_equal(record.kind, RECORD_PLAIN);
    record = (struct format_record){.key_bytes = record.key_bytes, .kind = RECORD_LARGE};
    memcpy(bytes, &record, sizeof record);
    record_seal(bytes, load_u64(store.store_id + 8),
                record_place(header.sequence, SECTOR_CELLS - 1));
    assert_int_equal(pwrite(fd, bytes, sizeof bytes, at), sizeof bytes);
    close(fd);
    const unsigned flags[] = {0, FKV_READ_WITHOUT_MAPPING, FKV_NO_VERIFY};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        fkv_options options;
        fkv_options_init(&options);
        options.flags = FKV_OPEN_READ_ONLY | flags[i];
        assert_ok(fkv_open(path, &options, &db));
        fkv_snapshot *snapshot;
        fkv_scan *scan;
        const void *key, *value;
        size_t key_bytes, value_bytes;
        uint64_t pairs = 0, damaged = 0;
        assert_ok(fkv_snapshot_open(db, &snapshot));
        assert_ok(fkv_scan_open(snapshot, NULL, &scan));
        enum fkv_error error;
        while ((error = fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes)) !=
               FKV_NOT_FOUND) {
            if (error)
                assert_error(error, FKV_DAMAGED);
            *(error ? &damaged : &pairs) += 1;
        }
        assert_int_equal(pairs, ONE_CELL_EACH - 1);
        assert_int_equal(damaged, 1);
        fkv_scan_close(scan);
        fkv_snapshot_close(snapshot);
        assert_ok(fkv_close(db));
    }
}

static void bad_arguments(void **state)
{
    (void)state;
    fkv *db;
    fkv_snapshot *snapshot;
    fkv_scan *scan;
    fkv_scan_options options;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    assert_ok(fkv_open(support_path("arguments.fkv"), NULL, &db));
    put_all(db);
    assert_ok(fkv_snapshot_open(db, &snapshot));
    assert_error(fkv_scan_open(NULL, NULL, &scan), FKV_INVALID);
    assert_error(fkv_scan_open(snapshot, NULL, NULL), FKV_INVALID);
    options = (fkv_scan_options){0};
    assert_error(fkv_scan_open(snapshot, &options, &scan), FKV_INVALID);
    fkv_scan_options_init(&options);
    options.flags = 1;
    assert_error(fkv_scan_open(snapshot, &options, &scan), FKV_INVALID);
    options.flags = 0;
    options.part = options.parts = 2;
    assert_error(fkv_scan_open(snapshot, &options, &scan), FKV_INVALID);
    options.part = options.parts = 0;
    options.position = UINT64_MAX;
    assert_error(fkv_scan_open(snapshot, &options, &scan), FKV_INVALID);
    assert_ok(fkv_scan_open(snapshot, NULL, &scan));
    assert_error(fkv_scan_next(NULL, &key, &key_bytes, &value, &value_bytes), FKV_INVALID);
    assert_error(fkv_scan_next(scan, NULL, &key_bytes, &value, &value_bytes), FKV_INVALID);
    uint8_t buffer[VALUE_BYTES];
    assert_error(fkv_scan_value(scan, buffer, sizeof buffer), FKV_INVALID); /* no pair yet */
    assert_ok(fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes));
    assert_error(fkv_scan_value(scan, buffer, sizeof buffer - 1), FKV_BUFFER_TOO_SMALL);
    assert_ok(fkv_scan_value(scan, buffer, sizeof buffer));
    assert_memory_equal(buffer, value, sizeof buffer);
    /* Scans end with the store. */
    assert_ok(fkv_close(db));
    assert_error(fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes), FKV_SNAPSHOT_ENDED);
    fkv_scan_close(scan);
    fkv_scan_close(NULL);
    fkv_snapshot_close(snapshot);
}

/* An empty store, and one in which all is deleted. */
static void nothing_to_scan(void **state)
{
    (void)state;
    fkv *db;
    assert_ok(fkv_open(support_path("empty.fkv"), NULL, &db));
    assert_int_equal(scan_all(db).pairs, 0);
    put_all(db);
    for (uint32_t k = 0; k < PAIRS; k++)
        assert_ok(fkv_delete(db, &k, sizeof k));
    assert_int_equal(scan_all(db).pairs, 0);
    assert_ok(fkv_close(db));
}

/* ---------------------------------------------------------------- a sector that goes meanwhile */

enum { LONG_BYTES = 130000, FILL_A_SECTOR = 7 };

static fkv *beside;
static uint32_t points;
static uint8_t long_value[LONG_BYTES];

/* Beside the scan of the only sector: it is full, written, and free, for nothing in it lives any
 * more; and then, if anybody could, others use it. */
static void write_beside(void)
{
    uint32_t puts = points == 0 ? 2 : points == 1 ? 12 * FILL_A_SECTOR : 0;
    schedule_point = NULL; /* a put has such points too */
    if (points++ == 1)
        assert_ok(fkv_checkpoint(beside));
    for (uint32_t k = 100; k < 100 + puts; k++)
        assert_ok(fkv_put(beside, &k, sizeof k, long_value, sizeof long_value));
    schedule_point = write_beside;
}

/* One pair is left in it when the snapshot is opened, or none. */
static void scan_beside_writes(const char *name, bool one_left)
{
    uint8_t value[VALUE_BYTES];
    const uint32_t first = 100;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    assert_ok(fkv_open(support_path(name), &options, &beside));
    memset(value, (int)first, sizeof value);
    assert_ok(fkv_put(beside, &first, sizeof first, value, sizeof value));
    for (uint32_t k = first + 1; k <= first + FILL_A_SECTOR; k++)
        assert_ok(fkv_put(beside, &k, sizeof k, long_value, sizeof long_value));
    for (uint32_t k = first + one_left; k <= first + FILL_A_SECTOR; k++)
        assert_ok(fkv_delete(beside, &k, sizeof k));
    points = 0;
    schedule_point = write_beside;
    struct found found = scan_all(beside);
    schedule_point = NULL;
    assert_true(one_left ? points >= 2 : points == 0); /* one without life is not looked at */
    assert_int_equal(found.pairs, one_left);
    assert_int_equal(found.damaged, 0);
    assert_ok(fkv_close(beside));
}

static void sector_that_dies_is_held(void **state)
{
    (void)state;
    scan_beside_writes("dies", true);
}

static void sector_without_life_is_passed_over(void **state)
{
    (void)state;
    scan_beside_writes("dead", false);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damage_is_reported_and_passed_over),
        cmocka_unit_test(a_damaged_sector_header_is_reported),
        cmocka_unit_test(a_head_that_is_none_is_reported),
        cmocka_unit_test(bad_arguments),
        cmocka_unit_test(nothing_to_scan),
        cmocka_unit_test(sector_that_dies_is_held),
        cmocka_unit_test(sector_without_life_is_passed_over),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
