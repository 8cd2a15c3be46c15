#include "backup.h"

#include <errno.h>

#include "clock.h"
#include "compose.h"
#include "fetch.h"
#include "image.h"
#include "pairs.h"

struct backup {
    struct fkv *db;
    const struct backup_options *options;
    struct fkv_snapshot *snapshot;
    struct fkv_scan *pairs;
    struct compose compose;
    struct pace pace;
    uint64_t pieces_wanted, pieces; /* of large values, in the queue */
    uint8_t *head;                  /* room for one */
};

/* ---------------------------------------------------------------- pace and progress */

uint64_t pace_wait_ns(struct pace *pace, uint64_t now_ns, uint64_t bytes)
{
    const uint64_t second_ns = 1000000000, late_ns_max = second_ns / 10;
    if (!pace->bytes_per_second)
        return 0;
    uint64_t earliest = now_ns - min_u64(now_ns, late_ns_max);
    pace->free_ns = max_u64(pace->free_ns, earliest) + bytes * second_ns / pace->bytes_per_second;
    return pace->free_ns > now_ns ? pace->free_ns - now_ns : 0;
}

static enum fkv_error tell(const struct backup *backup, uint64_t done, uint64_t total)
{
    const struct backup_options *options = backup->options;
    if (options->progress && options->progress(options->context, done, total))
        return error_set(FKV_CANCELLED, "the backup of %s was cancelled by its progress function",
                         backup->db->path);
    return FKV_OK;
}

static uint64_t work_total(const struct backup *backup)
{
    return (uint64_t)backup->snapshot->layer->sector_count * SECTOR_BYTES;
}

/* All is done only once the file is whole. */
static enum fkv_error tell_position(const struct backup *backup)
{
    uint64_t total = work_total(backup);
    return tell(backup, min_u64(pairs_position(backup->pairs) * CELL_BYTES, total - 1), total);
}

/* A sector of the new file was written. Who cancels need not wait for long. */
static enum fkv_error wrote(void *context, uint64_t bytes)
{
    const uint64_t nap_ns_max = 100000000;
    struct backup *backup = context;
    uint64_t wait = pace_wait_ns(&backup->pace, clock_ns(), bytes);
    enum fkv_error error;
    while (!(error = tell_position(backup)) && wait) {
        nanosleep(&(struct timespec){.tv_nsec = (long)min_u64(wait, nap_ns_max)}, NULL);
        wait = pace_wait_ns(&backup->pace, clock_ns(), 0);
    }
    return error;
}

/* ---------------------------------------------------------------- records */

static enum fkv_error copy_sector(struct backup *backup, const uint8_t *head, uint32_t number,
                                  uint32_t *sector)
{
    struct fkv *db = backup->db;
    struct fetched fetched;
    uint64_t sequence;
    enum fkv_error error = large_fetch_sector(db, head, number, true, &fetched, &sequence);
    if (!error)
        error =
            compose_large(&backup->compose, fetched.record,
                          (uint32_t)db->seed ^ record_place(sequence, SECTOR_HEADER_CELLS), sector);
    fetch_done(&fetched);
    return error;
}

/* The head of a large value, with the sectors that it has in the new file. */
static enum fkv_error copy_head(struct backup *backup, const uint8_t *record, uint32_t cells)
{
    if (!large_head_is_sound(record) || cells > RECORD_CELLS_MAX)
        return error_set(FKV_DAMAGED, "%s: the head of a large value is damaged", backup->db->path);
    if (!backup->head && !(backup->head = memory_buffer(RECORD_BYTES_MAX)))
        return FKV_NO_MEMORY;
    memcpy(backup->head, record, cells * CELL_BYTES);
    struct format_large large = large_head(record);
    uint8_t *list = backup->head + RECORD_HEADER_BYTES + record_header(record).key_bytes +
                    sizeof(struct format_large);
    for (uint32_t i = 0; i < large.sectors; i++) {
        uint32_t sector;
        enum fkv_error error = copy_sector(backup, record, i, &sector);
        if (error)
            return error;
        memcpy(list + i * sizeof sector, &sector, sizeof sector);
    }
    backup->pieces_wanted += large.pieces;
    record_seal(backup->head, 0, 0);
    return compose_record(&backup->compose, backup->head, cells, 0);
}

static enum fkv_error copy_record(struct backup *backup)
{
    const struct scan *records = &backup->pairs->records;
    const uint8_t *record = backup->pairs->record;
    uint32_t cell = (uint32_t)((size_t)(record - records->base) / CELL_BYTES);
    uint32_t cells = records->cell - cell;
    if (pairs_is_large(backup->pairs))
        return copy_head(backup, record, cells);
    backup->pieces += record_header(record).kind == RECORD_PIECE;
    return compose_record(&backup->compose, record, cells,
                          (uint32_t)records->seed ^ record_place(records->sequence, cell));
}

static enum fkv_error check_counts(const struct backup *backup)
{
    uint64_t keys = backup->compose.header.keys;
    if (keys != backup->snapshot->keys || backup->pieces != backup->pieces_wanted)
        return error_set(
            FKV_DAMAGED, "%s: %llu keys and %llu pieces of values found, of %llu and %llu",
            backup->db->path, (unsigned long long)keys, (unsigned long long)backup->pieces,
            (unsigned long long)backup->snapshot->keys, (unsigned long long)backup->pieces_wanted);
    return FKV_OK;
}

static enum fkv_error copy_all(struct backup *backup)
{
    enum fkv_error error;
    while (!(error = pairs_next(backup->pairs)))
        if ((error = copy_record(backup)))
            return error;
    return error == FKV_NOT_FOUND ? check_counts(backup) : error;
}

/* ---------------------------------------------------------------- the new file */

/* In digest mode keys hang on salt and id. Otherwise the backup has an id of its own, so that no
 * log is taken for that of the other. */
static enum fkv_error draw_header(const struct backup *backup, struct format_header *header)
{
    const struct fkv *db = backup->db;
    *header = (struct format_header){.features = db->digest ? FEATURE_DIGEST : 0,
                                     .commit = backup->snapshot->commit};
    memcpy(header->salt, db->digest_key, sizeof header->salt);
    memcpy(header->store_id, db->digest_key + sizeof header->salt, sizeof header->store_id);
    enum fkv_error error = random_bytes(&header->log_chain, sizeof header->log_chain);
    if (!error && !db->digest)
        error = random_bytes(header->store_id, sizeof header->store_id);
    return error;
}

static enum fkv_error write_file(struct backup *backup, const struct os_ops *ops,
                                 struct os_file *file, const char *path)
{
    struct format_header like;
    enum fkv_error error = draw_header(backup, &like);
    if (error)
        return error;
    /* What the header counts may be wrong: no key takes less than a cell. */
    uint64_t keys = min_u64(backup->snapshot->keys,
                            (uint64_t)backup->snapshot->layer->sector_count * SECTOR_CELLS);
    error = compose_begin(&backup->compose, ops, file, path, &like, keys);
    backup->compose.wrote = wrote;
    backup->compose.context = backup;
    if (!error)
        error = copy_all(backup);
    if (!error)
        error = compose_end(&backup->compose);
    compose_drop(&backup->compose);
    if (!error)
        error = tell(backup, work_total(backup), work_total(backup));
    return error;
}

static enum fkv_error run(struct fkv *db, const struct os_ops *ops, struct os_file *file,
                          const char *path, const struct backup_options *options)
{
    struct backup backup = {
        .db = db, .options = options, .pace = {.bytes_per_second = options->bytes_per_second}};
    enum fkv_error error = snapshot_open(db, &backup.snapshot);
    if (error)
        return error;
    error = pairs_open(backup.snapshot, 0, backup.snapshot->layer->sector_count, &backup.pairs);
    if (!error) {
        backup.pairs->verify = backup.pairs->pieces = true;
        error = write_file(&backup, ops, file, path);
        pairs_close(backup.pairs);
    }
    memory_free(backup.head);
    snapshot_give(backup.snapshot);
    return error;
}

enum fkv_error backup_to_file(struct fkv *db, const struct os_ops *ops, struct os_file *file,
                              const struct backup_options *options)
{
    enum fkv_error error = run(db, ops, file, "the backup", options);
    if (error) /* it has no header, or is the caller's to give up */
        ops->truncate(file, 0);
    return error;
}

/* ---------------------------------------------------------------- names */

static enum fkv_error check_absent(struct os *os, const char *path, const char *what)
{
    struct os_file *file;
    int status = os->ops->open(os, path, OS_READ_ONLY, &file);
    if (status == -ENOENT)
        return FKV_OK;
    if (status && status != -ENXIO)
        return error_os(status, "look for", path);
    if (!status)
        os->ops->close(file);
    return error_set(FKV_EXISTS, "%s exists%s", path, what);
}

/*
 * The file of this name that is not there yet, or that nobody is writing to: a crash has left that.
 * Who has the lock of the file that has the name may remove or rename it, and nobody else. So
 * having the lock is not enough: another may have had it before, and given the name to a file of
 * its own.
 */
static int take_part(struct os *os, const char *part, struct os_file **file, bool *left)
{
    enum { TRIES = 100 }; /* each ends because another took a step meanwhile, or the name is odd */
    const struct os_ops *ops = os->ops;
    int status = 0;
    for (int i = 0; i < TRIES; i++) {
        status = ops->open(os, part, OS_CREATE | OS_EXCLUSIVE, file);
        *left = status == -EEXIST;
        if (*left && (status = ops->open(os, part, 0, file)) == -ENOENT)
            continue; /* it has gone */
        if (status)
            return status;
        status = ops->lock(*file, false);
        if (!status && ops->is_named(*file, part))
            return 0;
        if (status && status != -EWOULDBLOCK && !*left)
            ops->remove(os, part);
        ops->close(*file);
        if (status)
            return status;
    }
    return status ? status : -EWOULDBLOCK;
}

static enum fkv_error create_part(struct os *os, const char *part, struct os_file **file)
{
    bool left;
    int status;
    while (!(status = take_part(os, part, file, &left)) && left) {
        status = os->ops->remove(os, part);
        os->ops->close(*file);
        if (status)
            return error_os(status, "remove", part);
    }
    if (status == -EWOULDBLOCK)
        return error_set(FKV_IN_USE, "%s: another backup is being written to it", part);
    return status ? error_os(status, "create", part) : FKV_OK;
}

/* Durable under its name, or gone. */
static enum fkv_error give_name(struct os *os, const char *part, const char *path)
{
    int status = os->ops->rename(os, part, path);
    if (status) {
        os->ops->remove(os, part);
        return error_os(status, "give the backup the name", path);
    }
    if (!(status = os->ops->sync_directory(os, path)))
        return FKV_OK;
    os->ops->remove(os, path);
    return error_os(status, "sync the directory of", path);
}

static enum fkv_error to_part(struct fkv *db, const char *path, const char *part,
                              const struct backup_options *options)
{
    struct os_file *file;
    enum fkv_error error = create_part(db->os, part, &file);
    if (error)
        return error;
    if (db->os->ops->permit) /* before anything is in it */
        db->os->ops->permit(file, db->file);
    if ((error = run(db, db->os->ops, file, part, options)))
        db->os->ops->remove(db->os, part);
    else
        error = give_name(db->os, part, path);
    db->os->ops->close(file); /* and not before: its lock protects the name */
    return error;
}

enum fkv_error backup_to_path(struct fkv *db, const char *path,
                              const struct backup_options *options)
{
    char *part = memory_join(path, BACKUP_PART);
    char *log_path = log_name(path);
    enum fkv_error error = part && log_path ? FKV_OK : FKV_NO_MEMORY;
    if (!error)
        error = check_absent(db->os, path, "");
    if (!error)
        error = check_absent(db->os, log_path, ", the log of another store");
    if (!error)
        error = to_part(db, path, part, options);
    memory_free(log_path);
    memory_free(part);
    return error;
}
