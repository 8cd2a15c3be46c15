#define _GNU_SOURCE
#include "machine.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "random.h"
#include "serve.h"

enum { LOOP_MAJOR = 7 };

static bool failed(const char *what)
{
    fprintf(stderr, "power: %s: %s\n", what, strerror(errno));
    return false;
}

/* ---------------------------------------------------------------- what there is */

static bool kernel_knows(const char *kind)
{
    char line[128], name[32];
    bool found = false;
    FILE *file = fopen("/proc/filesystems", "r");
    while (file && !found && fgets(line, sizeof line, file)) {
        snprintf(name, sizeof name, "\t%s\n", kind);
        const char *tab = strchr(line, '\t');
        found = tab && strcmp(tab, name) == 0;
    }
    if (file)
        fclose(file);
    return found;
}

static bool has_program(const char *name)
{
    char command[128];
    snprintf(command, sizeof command, "PATH=$PATH:/sbin:/usr/sbin command -v %s >/dev/null", name);
    return system(command) == 0;
}

const char *machine_lacks(const char *kind)
{
    static char text[96];
    char program[32];
    if (geteuid() != 0)
        return "it needs root, to mount file systems";
    if (access("/dev/fuse", R_OK | W_OK) != 0)
        return "there is no /dev/fuse";
    if (access("/dev/loop-control", R_OK | W_OK) != 0)
        return "there is no /dev/loop-control";
    snprintf(program, sizeof program, "mkfs.%s", kind);
    snprintf(text, sizeof text, "there is no %s", program);
    if (!has_program(program))
        return text;
    snprintf(text, sizeof text, "this kernel has no %s", kind);
    return kernel_knows(kind) ? NULL : text;
}

/* ---------------------------------------------------------------- making it */

static bool make_places(struct machine *machine)
{
    snprintf(machine->root, sizeof machine->root, "%s", "/tmp/fkv-power-XXXXXX");
    if (!mkdtemp(machine->root))
        return failed(machine->root);
    snprintf(machine->disk_path, sizeof machine->disk_path, "%s/disk", machine->root);
    snprintf(machine->directory, sizeof machine->directory, "%s/mounted", machine->root);
    int file = open(machine->disk_path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (file < 0)
        return failed(machine->disk_path);
    close(file);
    return mkdir(machine->directory, 0700) == 0 || failed(machine->directory);
}

bool machine_make(struct machine *machine, uint64_t bytes)
{
    int device;
    machine->disk = disk_make(bytes);
    if (!machine->disk)
        return failed("memory for the disk");
    if (!serve_start(machine->disk, &device))
        return failed("a server for FUSE");
    /* What is mounted is seen by this process and its children only, and is gone with them. */
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return failed("a mount namespace");
    if (!make_places(machine))
        return false;
    return serve_mount(device, machine->disk_path) || failed("mounting with FUSE");
}

void machine_drop(struct machine *machine)
{
    umount2(machine->directory, MNT_DETACH);
    umount2(machine->disk_path, MNT_DETACH);
    rmdir(machine->directory);
    unlink(machine->disk_path);
    rmdir(machine->root);
}

/* ---------------------------------------------------------------- the loop device */

static int open_loop(int number, char path[static 32])
{
    snprintf(path, 32, "/dev/loop%d", number);
    if (access(path, F_OK) != 0)
        mknod(path, S_IFBLK | 0600, makedev(LOOP_MAJOR, number));
    return open(path, O_RDWR | O_CLOEXEC);
}

/* A device on the disk, that is gone when nobody has it open or mounted any more; its descriptor.
 */
static int attach(struct machine *machine, char path[static 32])
{
    int disk = open(machine->disk_path, O_RDWR | O_CLOEXEC);
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int loop = -1;
    struct stat status;
    struct loop_config config = {.fd = (unsigned)disk, .block_size = DISK_BLOCK_BYTES};
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (disk >= 0 && control >= 0)
        fstat(disk, &status); /* the kernel learns the size */
    for (int tries = 0; disk >= 0 && control >= 0 && tries < 100; tries++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        loop = number < 0 ? -1 : open_loop(number, path);
        if (loop < 0 || ioctl(loop, LOOP_CONFIGURE, &config) == 0 || errno != EBUSY)
            break;
        close(loop); /* somebody else was faster */
        loop = -1;
    }
    if (loop < 0)
        failed("a loop device");
    if (disk >= 0)
        close(disk);
    if (control >= 0)
        close(control);
    return loop;
}

static bool run(const char *command)
{
    int status = system(command);
    if (status != 0)
        fprintf(stderr, "power: failed (status %d): %s\n", status, command);
    return status == 0;
}

bool machine_format(struct machine *machine)
{
    const char *options = strcmp(machine->kind, "ext4") == 0
                              ? "-F -E lazy_itable_init=0,lazy_journal_init=0,nodiscard"
                              : "-f -K";
    char path[32], command[192];
    int loop = attach(machine, path);
    if (loop < 0)
        return false;
    snprintf(command, sizeof command, "PATH=$PATH:/sbin:/usr/sbin mkfs.%s -q %s %s", machine->kind,
             options, path);
    bool done = run(command) && fsync(loop) == 0;
    close(loop);
    return done;
}

bool machine_mount(struct machine *machine)
{
    char path[32];
    int loop = attach(machine, path);
    if (loop < 0)
        return false;
    bool done = mount(path, machine->directory, machine->kind, MS_NOATIME, NULL) == 0;
    if (!done)
        failed("mounting");
    close(loop);
    return done;
}

bool machine_unmount(struct machine *machine)
{
    for (int tries = 0; tries < 10000; tries++) {
        if (umount(machine->directory) == 0)
            return true;
        if (errno != EBUSY)
            break;
        usleep(10000);
    }
    return failed("unmounting");
}

/* ---------------------------------------------------------------- writing back */

static void write_back_some(int file, uint64_t *random)
{
    struct stat status;
    if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size == 0)
        return;
    uint64_t end = (uint64_t)status.st_size;
    uint64_t from = random_below(random, end);
    sync_file_range(file, (off_t)from, (off_t)(1 + random_below(random, end - from)),
                    SYNC_FILE_RANGE_WRITE);
}

void machine_write_back(struct machine *machine, uint64_t *random)
{
    DIR *directory = opendir(machine->directory);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        if (random_below(random, 3) == 0)
            continue;
        int file = openat(dirfd(directory), entry->d_name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (file < 0)
            continue;
        write_back_some(file, random);
        close(file);
    }
    if (directory)
        closedir(directory);
}
