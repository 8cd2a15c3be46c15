#include "pairs.h"

#include "call.h"

/* The public calls of scans: arguments, parts, errors. */

static enum fkv_error check_snapshot(const fkv_snapshot *snapshot)
{
    if (snapshot->ended)
        return say_of(snapshot->owner, FKV_SNAPSHOT_ENDED, "the store was closed");
    return check_handle(snapshot->db);
}

static enum fkv_error check_scan(const fkv_scan *scan)
{
    return scan ? check_snapshot(scan->snapshot) : say_of(0, FKV_INVALID, "the scan is NULL");
}

void fkv_scan_options_init(fkv_scan_options *options)
{
    if (options)
        *options = (fkv_scan_options){.size = sizeof *options};
}

/* The first sector of a part: sector 0 holds no pairs. */
static uint32_t part_begin(const fkv_snapshot *snapshot, uint64_t part, uint32_t parts)
{
    return (uint32_t)(1 + (snapshot->layer->sector_count - 1) * part / parts);
}

enum fkv_error fkv_scan_open(fkv_snapshot *snapshot, const fkv_scan_options *given, fkv_scan **scan)
{
    fkv_scan_options options;
    fkv_scan_options_init(&options);
    if (!snapshot || !scan)
        return say_of(snapshot ? snapshot->owner : 0, FKV_INVALID,
                      snapshot ? "no place for the scan" : "the snapshot is NULL");
    enum fkv_error error = check_snapshot(snapshot);
    if (error)
        return error;
    if ((error = call_options(&options, sizeof options, given, offsetof(fkv_scan_options, part),
                              "fkv_scan_options_init")))
        return said_of(snapshot->owner, error);
    uint32_t parts = options.parts ? options.parts : 1;
    if (options.flags || options.part >= parts)
        return say_of(snapshot->owner, FKV_INVALID,
                      options.flags ? "unknown flags" : "there is no such part");
    uint32_t begin = part_begin(snapshot, options.part, parts);
    uint32_t end = part_begin(snapshot, options.part + UINT64_C(1), parts);
    uint64_t position = options.position ? options.position : (uint64_t)begin * SECTOR_CELLS;
    if (position / SECTOR_CELLS < begin || position / SECTOR_CELLS > end)
        return say_of(snapshot->owner, FKV_INVALID, "the position is not one in this part");
    return said_of(snapshot->owner, pairs_open(snapshot, position, end, scan));
}

enum fkv_error fkv_scan_next(fkv_scan *scan, const void **key, size_t *key_bytes,
                             const void **value, size_t *value_bytes)
{
    enum fkv_error error = check_scan(scan);
    if (error)
        return error;
    if (!key || !key_bytes || !value || !value_bytes)
        return say_of(scan->owner, FKV_INVALID, "no place for key or value");
    if ((error = pairs_next(scan)))
        return said_of(scan->owner, error);
    *key = record_key(scan->record);
    *key_bytes = record_header(scan->record).key_bytes;
    *value = pairs_is_large(scan) ? NULL : record_key(scan->record) + *key_bytes;
    *value_bytes = pairs_value_bytes(scan);
    return FKV_OK;
}

enum fkv_error fkv_scan_value(fkv_scan *scan, void *buffer, size_t buffer_bytes)
{
    enum fkv_error error = check_scan(scan);
    if (error)
        return error;
    if (!scan->record || (!buffer && buffer_bytes))
        return say_of(scan->owner, FKV_INVALID,
                      scan->record ? "the buffer is NULL" : "there is no pair at the scan's place");
    if (pairs_value_bytes(scan) > buffer_bytes)
        return say_of(scan->owner, FKV_BUFFER_TOO_SMALL, "the value is longer than the buffer");
    return said_of(scan->owner, pairs_value(scan, buffer));
}

uint64_t fkv_scan_position(const fkv_scan *scan)
{
    return scan ? pairs_position(scan) : 0;
}

void fkv_scan_close(fkv_scan *scan)
{
    if (scan)
        pairs_close(scan);
}
