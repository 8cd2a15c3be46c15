#include "disk.h"

#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct disk_usage disk_measure(const struct engine *engine, const char *directory)
{
    struct disk_usage usage = {0, 0};
    DIR *entries = opendir(directory);
    if (entries == NULL)
        return usage;
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        struct stat status;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            fstatat(dirfd(entries), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0)
            continue; /* a file may go while we look */
        uint64_t bytes = (uint64_t)status.st_blocks * 512;
        if (S_ISDIR(status.st_mode)) {
            char *inner = path_join(directory, entry->d_name);
            struct disk_usage more = disk_measure(engine, inner);
            usage.data_bytes += more.data_bytes;
            usage.log_bytes += more.log_bytes;
            free(inner);
        } else if (engine->is_log != NULL && engine->is_log(entry->d_name)) {
            usage.log_bytes += bytes;
        } else {
            usage.data_bytes += bytes;
        }
    }
    closedir(entries);
    return usage;
}

bool disk_make_directory(const char *directory)
{
    char *path = strdup(directory);
    bool made = path != NULL;
    for (char *end = path; made && end != NULL;) {
        end = strchr(end + 1, '/');
        if (end != NULL)
            *end = '\0';
        made = mkdir(path, 0755) == 0 || errno == EEXIST;
        if (!made)
            complain("cannot make the directory %s: %s", path, strerror(errno));
        if (end != NULL)
            *end = '/';
    }
    free(path);
    return made;
}

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *place)
{
    (void)status;
    (void)type;
    (void)place;
    return remove(path);
}

bool disk_remove_directory(const char *directory)
{
    if (nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT)
        return true;
    complain("cannot remove %s: %s", directory, strerror(errno));
    return false;
}

uint64_t disk_write(const char *path, uint64_t bytes)
{
    enum { PIECE_BYTES = 1 << 20 };
    uint8_t *piece = need_memory(1, PIECE_BYTES);
    for (size_t i = 0; i < PIECE_BYTES; i++)
        piece[i] = (uint8_t)(i * 2654435761u >> 13);
    uint64_t begin = now_ns();
    int file = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
    bool ok = file >= 0;
    for (uint64_t done = 0; ok && done < bytes; done += PIECE_BYTES)
        ok = write(file, piece, PIECE_BYTES) == PIECE_BYTES;
    if (!ok || fdatasync(file) != 0)
        die("%s: %s", path, strerror(errno));
    close(file);
    uint64_t spent = now_ns() - begin;
    free(piece);
    return spent;
}
