/*
 * test_limited: what is read from the device where memory is scarce. A store of 4 times the memory
 * that a control group allows: a get that hits reads its record once; a get of an absent key, an
 * exists, a put and a delete read nothing, but for collection and checkpoints.
 *
 * Counted is what the kernel says of this process alone (/proc/self/io), so other work does no
 * harm: bytes that were fetched from the device, and system calls that read. (The block layer's
 * counters are everybody's.) No record is collected meanwhile. Skipped, which is exit code 77,
 * where a group cannot be made, and where files have no device.
 */
#include "api_support.h"

#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/vfs.h>

#include "cgroup.h"

enum { SKIPPED = 77 };

/* The library's own share, index, copies of its pages and buffers, is half of it at most. */
#define MEMORY (96 * MIB)

enum {
    KEYS = 720000,
    VALUE_BYTES = 500,
    GETS = 5000,
    WRITES = 20000, /* more than the log holds: its pages are used again */
    DELETES = 10000,
};

/* A page now and then, and reads of checkpoints. (It was 0.04 when pages of the log were read
 * before they were written to.) */
static const double reads_of_writes_most = 0.01;

struct io {
    uint64_t bytes, calls;
};

static uint64_t field(const char *text, const char *name)
{
    const char *at = strstr(text, name);
    insist(at);
    return strtoull(at + strlen(name), NULL, 10);
}

static struct io io_now(void)
{
    char text[1024] = {0};
    FILE *file = fopen("/proc/self/io", "re");
    insist(file);
    insist(fread(text, 1, sizeof text - 1, file) > 0);
    fclose(file);
    return (struct io){field(text, "read_bytes:"), field(text, "syscr:")};
}

/* Does the kernel count what is fetched for files here? Not all kernels do, nor all file systems:
 * one that another machine or process serves has no device. */
static bool is_counted(const struct place *place)
{
    enum { PAGES = 64, PAGE = 4096 };
    static uint8_t pages[PAGES * PAGE];
    if (access("/proc/self/io", R_OK) != 0)
        return false;
    file_write(place->other, pages, sizeof pages);
    int fd = open(place->other, O_RDONLY | O_CLOEXEC);
    insist(fd >= 0 && fsync(fd) == 0);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    uint64_t before = io_now().bytes;
    insist(pread(fd, pages, sizeof pages, 0) == sizeof pages);
    close(fd);
    unlink(place->other);
    return io_now().bytes - before == sizeof pages;
}

struct counted {
    double pages, calls; /* per operation */
};

static struct counted count_since(struct io before, uint64_t operations, const char *what)
{
    struct io now = io_now();
    struct counted counted = {(double)(now.bytes - before.bytes) / 4096.0 / (double)operations,
                              (double)(now.calls - before.calls) / (double)operations};
    printf("%-8s %.5f pages read, %.5f calls to read, each\n", what, counted.pages, counted.calls);
    return counted;
}

static void put(fkv *db, uint64_t key, uint64_t seed)
{
    uint8_t value[VALUE_BYTES];
    value_fill(value, sizeof value, seed);
    insist_ok(fkv_put(db, &key, sizeof key, value, sizeof value));
}

static void read_all_kinds(fkv *db, uint64_t *random)
{
    uint8_t value[VALUE_BYTES];
    size_t bytes;
    struct io before = io_now();
    for (int i = 0; i < GETS; i++) {
        uint64_t key = random_below(random, KEYS);
        insist_ok(fkv_get(db, &key, sizeof key, value, sizeof value, &bytes));
    }
    /* Of records of 528 bytes one in eight crosses into a second page, in the same read. */
    struct counted hit = count_since(before, GETS, "hit");
    insist(hit.calls <= 1.02 && hit.pages <= 1.02 * (1 + 528.0 / 4096) && hit.pages > 0.5);
    before = io_now();
    for (int i = 0; i < GETS; i++) {
        uint64_t key = KEYS + random_below(random, KEYS);
        insist(fkv_get(db, &key, sizeof key, value, sizeof value, &bytes) == FKV_NOT_FOUND);
    }
    struct counted miss = count_since(before, GETS, "miss");
    before = io_now();
    for (int i = 0; i < GETS; i++) {
        uint64_t key = random_below(random, KEYS);
        insist_ok(fkv_exists(db, &key, sizeof key));
    }
    struct counted exists = count_since(before, GETS, "exists");
    insist(miss.pages <= 0.001 && exists.pages <= 0.001);
}

static void write_all_kinds(fkv *db, uint64_t *random)
{
    for (int i = 0; i < WRITES; i++) /* all maps of sectors come into memory, the log goes round */
        put(db, random_below(random, KEYS), (uint64_t)i);
    struct io before = io_now();
    for (int i = 0; i < WRITES; i++)
        put(db, random_below(random, KEYS), (uint64_t)i);
    struct counted puts = count_since(before, WRITES, "put");
    before = io_now();
    for (uint64_t key = 0; key < DELETES; key++)
        insist_ok(fkv_delete(db, &key, sizeof key));
    struct counted deletes = count_since(before, DELETES, "delete");
    fkv_stats stats;
    insist_ok(fkv_get_stats(db, &stats, sizeof stats));
    insist(stats.bytes_written_collector == 0); /* it reads, too */
    insist(puts.pages <= reads_of_writes_most && deletes.pages <= reads_of_writes_most);
}

/* In the group. */
static void measure(const char *path, unsigned flags)
{
    uint64_t random = 1;
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = 8 * MIB;
    options.garbage_percent_max = 100;
    fkv *db;
    insist_ok(fkv_open(path, &options, &db));
    for (uint64_t key = 0; key < KEYS; key++)
        put(db, key, key);
    insist_ok(fkv_close(db));
    insist_ok(fkv_open(path, &options, &db));
    for (uint64_t key = 0; key < KEYS; key++) /* all of the index comes into memory */
        insist_ok(fkv_exists(db, &key, sizeof key));
    read_all_kinds(db, &random);
    write_all_kinds(db, &random);
    insist_ok(fkv_close(db));
}

static int measure_in_group(const char *path, unsigned flags)
{
    struct cgroup group;
    char why[1200];
    int status = 0;
    if (!cgroup_make(&group, MEMORY, why, sizeof why)) {
        printf("skipped: %s\n", why);
        return SKIPPED;
    }
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (!cgroup_enter(&group)) {
            printf("skipped: the group cannot be entered: %s\n", strerror(errno));
            exit(SKIPPED);
        }
        (void)mlockall(MCL_CURRENT); /* the program: where memory is scarce it is read again too */
        measure(path, flags);
        exit(0);
    }
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    cgroup_remove(&group);
    if (child > 0 && WIFEXITED(status))
        return WEXITSTATUS(status);
    printf("killed: for want of memory most likely\n");
    return 1;
}

/* Files in memory would not be read from a device, and be counted as memory. */
static int choose_place(struct place **place)
{
    struct statfs system;
    void *state;
    const char *tmp = getenv("TMPDIR");
    tmp = tmp ? tmp : "/tmp";
    if (statfs(tmp, &system) == 0 && system.f_type == TMPFS_MAGIC)
        tmp = ".";
    if (statfs(tmp, &system) != 0 || system.f_type == TMPFS_MAGIC) {
        printf("skipped: %s is in memory\n", tmp);
        return SKIPPED;
    }
    insist(place_make_below(&state, tmp) == 0);
    *place = state;
    if (is_counted(*place))
        return 0;
    printf("skipped: nobody counts what is read in %s\n", tmp);
    place_drop(&state);
    return SKIPPED;
}

int main(void)
{
    struct place *place;
    int result;
    if (SANITIZED) {
        printf("skipped: a sanitizer takes more memory than is allowed here\n");
        return SKIPPED;
    }
    if ((result = choose_place(&place)))
        return result;
    const unsigned flags[] = {0, FKV_NO_THREAD};
    for (int i = 0; i < 2 && !result; i++) {
        printf("%s\n", flags[i] & FKV_NO_THREAD ? "without threads" : "with threads");
        result = measure_in_group(place->path, flags[i]);
        remove_store(place);
    }
    void *state = place;
    place_drop(&state);
    return result;
}
