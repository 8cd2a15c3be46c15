#include "cgroup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

static bool write_number(const struct cgroup *group, const char *name, uint64_t number)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", group->path, name);
    FILE *file = fopen(path, "r+e");
    if (file == NULL)
        return false;
    bool ok = fprintf(file, "%llu", (unsigned long long)number) > 0;
    return fclose(file) == 0 && ok;
}

/* The directory of this process's own group that limits memory: a line of /proc/self/cgroup is
 * ID:CONTROLLERS:GROUP, without controllers in version 2. */
static bool find_own(char *path, size_t room)
{
    FILE *file = fopen("/proc/self/cgroup", "re");
    char line[900];
    bool found = false;
    while (!found && file != NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *name = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (name == NULL)
            continue;
        *name++ = '\0';
        if (strcmp(controllers + 1, "memory") == 0)
            snprintf(path, room, "/sys/fs/cgroup/memory%s", name);
        else if (controllers[1] == '\0')
            snprintf(path, room, "/sys/fs/cgroup%s", name);
        else
            continue;
        char procs[1200];
        snprintf(procs, sizeof procs, "%s/cgroup.procs", path);
        found = access(procs, W_OK) == 0;
    }
    if (file != NULL)
        fclose(file);
    return found;
}

bool cgroup_make(struct cgroup *group, uint64_t bytes, char *why, size_t why_room)
{
    char own[900];
    if (!find_own(own, sizeof own)) {
        snprintf(why, why_room, "no control group of memory that can be written");
        return false;
    }
    snprintf(group->path, sizeof group->path, "%s/fkv-bench-%ld", own, (long)getpid());
    if (mkdir(group->path, 0755) != 0) {
        snprintf(why, why_room, "mkdir %s: %s", group->path, strerror(errno));
        return false;
    }
    if (write_number(group, "memory.limit_in_bytes", bytes) ||
        write_number(group, "memory.max", bytes)) {
        /* Where there is swap it would be more memory, and reads that nobody has asked for. */
        (void)(write_number(group, "memory.swappiness", 0) ||
               write_number(group, "memory.swap.max", 0));
        return true;
    }
    snprintf(why, why_room, "%s: its limit cannot be set", group->path);
    cgroup_remove(group);
    return false;
}

bool cgroup_enter(const struct cgroup *group)
{
    return write_number(group, "cgroup.procs", (uint64_t)getpid());
}

/* The first of two files of a group that has a number, one of each version; or 0. */
static uint64_t read_number(const char *group, const char *const names[2])
{
    unsigned long long number = 0;
    for (int i = 0; i < 2 && number == 0; i++) {
        char path[1200];
        snprintf(path, sizeof path, "%s/%s", group, names[i]);
        FILE *file = fopen(path, "re");
        if (file == NULL)
            continue;
        if (fscanf(file, "%llu", &number) != 1)
            number = 0;
        fclose(file);
    }
    return number;
}

uint64_t cgroup_memory_bytes(void)
{
    static const char *const names[] = {"memory.limit_in_bytes", "memory.max"};
    struct sysinfo system;
    char own[900];
    uint64_t machine =
        sysinfo(&system) == 0 ? (uint64_t)system.totalram * system.mem_unit : UINT64_MAX;
    uint64_t allowed = find_own(own, sizeof own) ? read_number(own, names) : 0;
    return allowed != 0 && allowed < machine ? allowed : machine;
}

uint64_t cgroup_peak_bytes(const struct cgroup *group)
{
    static const char *const names[] = {"memory.max_usage_in_bytes", "memory.peak"};
    return read_number(group->path, names);
}

void cgroup_remove(const struct cgroup *group)
{
    rmdir(group->path);
}
