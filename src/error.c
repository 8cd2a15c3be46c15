#define _GNU_SOURCE
#include "error.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#undef error_set /* clang-tidy has macros around them */
#undef error_os
#undef error_sync

static _Thread_local struct {
    char text[ERROR_TEXT_BYTES]; /* set last: by a call that may still come out well */
    uint64_t owner;
    char kept[ERROR_TEXT_BYTES]; /* of the owner's call, which failed */
} detail;

enum fkv_error error_set(enum fkv_error error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(detail.text, sizeof detail.text, format, arguments);
    va_end(arguments);
    return error;
}

/* Two functions have the name: the GNU library's returns the text, that of POSIX a number. */
static const char *reason_of(int errno_positive, char *to, size_t bytes)
{
#ifdef __GLIBC__
    return strerror_r(errno_positive, to, bytes);
#else
    return strerror_r(errno_positive, to, bytes) == 0 ? to : "an unknown error";
#endif
}

enum fkv_error error_os(int errno_negative, const char *what, const char *path)
{
    enum fkv_error error;
    switch (errno_negative) {
    case -ENOSPC:
    case -EDQUOT:
    case -EFBIG:
        error = FKV_FULL;
        break;
    case -ENOMEM:
        error = FKV_NO_MEMORY;
        break;
    case -EACCES:
    case -EPERM:
    case -EROFS:
        error = FKV_PERMISSION;
        break;
    case -EISDIR:
        error = FKV_IS_DIRECTORY;
        break;
    case -ENXIO:
        error = FKV_NOT_A_STORE;
        break;
    case -ENOENT:
    case -ENOTDIR:
    case -ENAMETOOLONG:
        error = FKV_NOT_EXIST;
        break;
    case -EEXIST:
        error = FKV_EXISTS;
        break;
    case -EWOULDBLOCK:
        error = FKV_IN_USE;
        break;
    case -ENODATA:
        error = FKV_TRUNCATED;
        break;
    default:
        error = FKV_IO;
        break;
    }
    enum { PATH_MOST = 200 }; /* of a long one the end, so that the reason has room */
    char reason[96];
    const char *text = reason_of(-errno_negative, reason, sizeof reason);
    size_t length = strlen(path), cut = length > PATH_MOST ? length - PATH_MOST : 0;
    return error_set(error, "%s %s%s: %s", what, cut ? "..." : "", path + cut,
                     errno_negative == -ENODATA       ? "the file ends before"
                     : errno_negative == -ENXIO       ? "a pipe, a socket or a device, not a file"
                     : errno_negative == -EWOULDBLOCK ? "open in another handle or process"
                                                      : text);
}

enum fkv_error error_sync(int errno_negative, const char *path)
{
    error_os(errno_negative, "sync", path);
    return FKV_IO;
}

const char *error_last(void)
{
    return detail.text;
}

void error_claim(uint64_t owner)
{
    detail.owner = owner;
    memcpy(detail.kept, detail.text, sizeof detail.kept);
}

const char *error_detail_of(uint64_t owner)
{
    return detail.owner == owner ? detail.kept : "";
}

const char *fkv_error_text(enum fkv_error error)
{
    switch (error) {
    case FKV_OK:
        return "success";
    case FKV_NOT_FOUND:
        return "no such key";
    case FKV_INVALID:
        return "invalid argument";
    case FKV_KEY_TOO_LARGE:
        return "key too large";
    case FKV_VALUE_TOO_LARGE:
        return "value too large";
    case FKV_BUFFER_TOO_SMALL:
        return "buffer too small for the value";
    case FKV_NO_MEMORY:
        return "out of memory";
    case FKV_FULL:
        return "no space left on the disk";
    case FKV_IO:
        return "input or output error";
    case FKV_FAILED:
        return "an earlier write or sync failed: the store is read-only until it is reopened";
    case FKV_READ_ONLY:
        return "the store is opened read-only";
    case FKV_NOT_EXIST:
        return "no such file";
    case FKV_PERMISSION:
        return "permission denied";
    case FKV_IS_DIRECTORY:
        return "the path is a directory";
    case FKV_IN_USE:
        return "the store is in use";
    case FKV_NOT_A_STORE:
        return "the file is not an fkv store";
    case FKV_UNKNOWN_FORMAT:
        return "the file has another format than this version of fkv reads";
    case FKV_TRUNCATED:
        return "the file is truncated";
    case FKV_DAMAGED:
        return "the file is damaged";
    case FKV_LOG_MISMATCH:
        return "the log belongs to another store";
    case FKV_LOG_MISSING:
        return "the log is missing and held commits";
    case FKV_TXN_ENDED:
        return "the transaction has ended";
    case FKV_CONFLICT:
        return "the transaction conflicts with another commit";
    case FKV_FORKED:
        return "the handle belongs to the parent process";
    case FKV_SNAPSHOT_ENDED:
        return "the snapshot has ended";
    case FKV_CANCELLED:
        return "cancelled";
    case FKV_BUSY:
        return "as many requests are open as there is room for";
    case FKV_EXISTS:
        return "the file exists already";
    case FKV_MODE_MISMATCH:
        return "the store was created with another key mode";
    }
    return "unknown error";
}
