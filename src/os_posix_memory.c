/*
 * How much memory this process may use: that of the machine, or less if one of the control groups
 * that it is in, of version 1 or 2, allows less.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os_posix.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A small file as a string; false if it cannot be read. */
static bool read_text(const char *path, char *text, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t bytes = pread(fd, text, room - 1, 0);
    close(fd);
    text[bytes > 0 ? bytes : 0] = '\0';
    return bytes > 0;
}

/* The least limit of a group and those it is in; "max", or none, is no limit. */
static uint64_t limit_of(const char *root, char *group, const char *file)
{
    uint64_t least = UINT64_MAX;
    for (;;) {
        char path[PATH_MAX], text[64];
        int length = snprintf(path, sizeof path, "%s%s/%s", root, group, file);
        if (length > 0 && (size_t)length < sizeof path && read_text(path, text, sizeof text) &&
            text[0] >= '0' && text[0] <= '9') {
            uint64_t limit = strtoull(text, NULL, 10);
            least = limit < least ? limit : least;
        }
        char *slash = strrchr(group, '/');
        if (!slash)
            return least;
        *slash = '\0';
    }
}

/* A line of /proc/self/cgroup is ID:CONTROLLERS:GROUP; version 2 has no controllers there. */
static uint64_t limit_of_line(char *line)
{
    char *controllers = strchr(line, ':');
    char *group = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!group)
        return UINT64_MAX;
    *group++ = '\0';
    if (strcmp(group, "/") == 0)
        *group = '\0';
    if (strcmp(controllers + 1, "memory") == 0)
        return limit_of("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
    return controllers[1] ? UINT64_MAX : limit_of("/sys/fs/cgroup", group, "memory.max");
}

uint64_t os_posix_memory(struct os *os)
{
    (void)os;
    long pages = sysconf(_SC_PHYS_PAGES);
    uint64_t least = pages > 0 ? (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE) : UINT64_MAX;
    char text[8192];
    if (!read_text("/proc/self/cgroup", text, sizeof text))
        return least;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        uint64_t limit = limit_of_line(line);
        least = limit < least ? limit : least;
    }
    return least;
}
