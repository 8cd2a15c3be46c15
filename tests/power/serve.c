/*
 * The protocol of FUSE (linux/fuse.h), as much of it as a single file needs that is read, written
 * and synced. The kernel is told to keep nothing of it in its cache: each write and each sync of
 * the loop device is a request here, in the order in which the device was given them.
 */
#define _GNU_SOURCE
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    WRITE_BYTES_MAX = 1 << 20,
    REQUEST_BYTES_MAX = WRITE_BYTES_MAX + 4096, /* and headers */
    ROOT = 1,
};

struct server {
    int device;
    struct disk *disk;
    uint8_t *request;
};

static void reply(struct server *server, uint64_t unique, int error, const void *data, size_t bytes)
{
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof header + bytes), .error = -error, .unique = unique};
    struct iovec parts[] = {{&header, sizeof header}, {(void *)data, bytes}};
    if (writev(server->device, parts, bytes ? 2 : 1) < 0 && errno != ENOENT)
        perror("power: /dev/fuse");
}

static void answer_init(struct server *server, uint64_t unique, const struct fuse_init_in *in)
{
    struct fuse_init_out out = {
        .major = FUSE_KERNEL_VERSION,
        .minor = FUSE_KERNEL_MINOR_VERSION,
        .max_readahead = in->max_readahead,
        .flags = in->flags & (FUSE_BIG_WRITES | FUSE_MAX_PAGES),
        .max_background = 16,
        .congestion_threshold = 12,
        .max_write = WRITE_BYTES_MAX,
        .time_gran = 1,
        .max_pages = WRITE_BYTES_MAX / 4096,
    };
    reply(server, unique, 0, &out, sizeof out);
}

static void answer_attributes(struct server *server, uint64_t unique)
{
    struct fuse_attr_out out = {.attr_valid = 3600};
    out.attr.ino = ROOT;
    out.attr.size = server->disk->bytes;
    out.attr.blocks = server->disk->bytes / 512;
    out.attr.mode = S_IFREG | 0600;
    out.attr.nlink = 1;
    out.attr.blksize = 4096;
    reply(server, unique, 0, &out, sizeof out);
}

static bool is_within(const struct disk *disk, uint64_t offset, uint64_t bytes)
{
    return offset <= disk->bytes && bytes <= disk->bytes - offset;
}

static void answer_read(struct server *server, uint64_t unique, const struct fuse_read_in *in)
{
    if (!is_within(server->disk, in->offset, in->size))
        reply(server, unique, EINVAL, NULL, 0);
    else
        reply(server, unique, 0, server->disk->seen + in->offset, in->size);
}

static void answer_write(struct server *server, uint64_t unique, const struct fuse_write_in *in)
{
    struct fuse_write_out out = {.size = in->size};
    disk_take_cut(server->disk);
    if (!is_within(server->disk, in->offset, in->size))
        reply(server, unique, EINVAL, NULL, 0);
    else if (!disk_write(server->disk, in->offset, in + 1, in->size))
        reply(server, unique, ENOMEM, NULL, 0);
    else
        reply(server, unique, 0, &out, sizeof out);
}

static void answer_sync(struct server *server, uint64_t unique)
{
    disk_take_cut(server->disk);
    disk_flush(server->disk);
    reply(server, unique, 0, NULL, 0);
}

static void answer(struct server *server)
{
    const struct fuse_in_header *header = (const void *)server->request;
    const void *in = header + 1;
    switch (header->opcode) {
    case FUSE_INIT:
        answer_init(server, header->unique, in);
        return;
    case FUSE_GETATTR:
        answer_attributes(server, header->unique);
        return;
    case FUSE_OPEN: {
        struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO};
        reply(server, header->unique, 0, &out, sizeof out);
        return;
    }
    case FUSE_READ:
        answer_read(server, header->unique, in);
        return;
    case FUSE_WRITE:
        answer_write(server, header->unique, in);
        return;
    case FUSE_FSYNC:
        answer_sync(server, header->unique);
        return;
    case FUSE_FLUSH: /* of a descriptor that is closed: not of the disk */
    case FUSE_RELEASE:
        reply(server, header->unique, 0, NULL, 0);
        return;
    case FUSE_FORGET:
    case FUSE_INTERRUPT:
        return; /* have no answer */
    default:
        reply(server, header->unique, ENOSYS, NULL, 0);
    }
}

static void serve(struct server *server)
{
    for (;;) {
        struct pollfd ready = {.fd = server->device, .events = POLLIN};
        poll(&ready, 1, 2); /* a cut may be due although nobody writes */
        disk_take_cut(server->disk);
        ssize_t bytes = read(server->device, server->request, REQUEST_BYTES_MAX);
        if (bytes > 0)
            answer(server);
        else if (errno == ENODEV) /* unmounted */
            return;
        else if (errno == EPERM) /* not mounted yet */
            usleep(1000);
        else if (errno != EAGAIN && errno != EINTR && errno != ENOENT) {
            perror("power: /dev/fuse");
            return;
        }
    }
}

static bool start(struct server *server)
{
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid != 0)
        return pid > 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGINT, SIG_IGN); /* the parent takes the file systems down first */
    if (getppid() == parent)
        serve(server);
    _exit(0);
}

bool serve_start(struct disk *disk, int *device)
{
    struct server server = {.disk = disk, .request = malloc(REQUEST_BYTES_MAX)};
    server.device = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    bool started = server.device >= 0 && server.request && start(&server);
    if (!started && server.device >= 0)
        close(server.device);
    free(server.request);
    *device = server.device;
    return started;
}

bool serve_mount(int device, const char *path)
{
    char options[128];
    snprintf(options, sizeof options, "fd=%d,rootmode=%o,user_id=0,group_id=0", device,
             S_IFREG | 0600);
    bool mounted = mount("fkv-power", path, "fuse", MS_NOSUID | MS_NODEV, options) == 0;
    close(device);
    return mounted;
}
