#include <errno.h>

#include "backup.h"
#include "call.h"

/* The public calls of backups: arguments and errors. */

void fkv_backup_options_init(fkv_backup_options *options)
{
    if (options)
        *options = (fkv_backup_options){.size = sizeof *options};
}

static enum fkv_error take_options(const fkv_backup_options *given, struct backup_options *options)
{
    fkv_backup_options all;
    fkv_backup_options_init(&all);
    enum fkv_error error =
        call_options(&all, sizeof all, given, offsetof(fkv_backup_options, bytes_per_second),
                     "fkv_backup_options_init");
    if (error)
        return error;
    if (all.flags)
        return error_set(FKV_INVALID, "unknown flags %#x", all.flags);
    *options = (struct backup_options){
        .bytes_per_second = all.bytes_per_second, .progress = all.progress, .context = all.context};
    return FKV_OK;
}

/* What both calls begin with. */
static enum fkv_error begin(const fkv *db, const fkv_backup_options *given,
                            struct backup_options *options)
{
    enum fkv_error error = check_alive(db);
    if (error)
        return error;
    if (rcu_read_ongoing())
        return say(db, FKV_INVALID, "a backup is not to be made inside a read section");
    return said(db, take_options(given, options));
}

enum fkv_error fkv_backup(fkv *db, const char *path, const fkv_backup_options *given)
{
    struct backup_options options;
    enum fkv_error error = begin(db, given, &options);
    if (error)
        return error;
    if (!path || !*path)
        return say(db, FKV_INVALID, path ? "the path is empty" : "the path is NULL");
    return said(db, backup_to_path(db, path, &options));
}

/* The descriptor's file, if a backup can be written to it. */
static enum fkv_error adopt(int fd, struct os_file **file)
{
    uint64_t bytes;
    int status = os_posix_adopt(fd, file);
    if (status == -ENXIO || status == -EISDIR || status == -EBADF)
        return error_set(FKV_INVALID,
                         "descriptor %d is not that of a regular file, open for writing, not for "
                         "appending and not with O_DIRECT; \"fkv dump\" writes to pipes",
                         fd);
    if (status)
        return error_os(status, "use", "the descriptor");
    if (!(status = os_posix()->ops->size(*file, &bytes)) && !bytes)
        return FKV_OK;
    os_posix()->ops->close(*file);
    return status ? error_os(status, "size of", "the backup")
                  : error_set(FKV_INVALID, "the file of descriptor %d is not empty", fd);
}

enum fkv_error fkv_backup_fd(fkv *db, int fd, const fkv_backup_options *given)
{
    struct backup_options options;
    struct os_file *file;
    enum fkv_error error = begin(db, given, &options);
    if (error)
        return error;
    if ((error = adopt(fd, &file)))
        return said(db, error);
    error = backup_to_file(db, os_posix()->ops, file, &options);
    os_posix()->ops->close(file);
    return said(db, error);
}
