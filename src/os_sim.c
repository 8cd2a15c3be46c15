/*
 * os_sim.c: the simulated disk: names, handles, mappings, plans (os_sim.h says how it behaves).
 *
 * The bytes of the files and the lottery over them are os_sim_file.c's. Here each operation is
 *
 *     begin     take the lock; refuse if the power is off; count; does a planned fault strike?
 *     ...       make the change, unsynced
 *     under_way call the hook; does a planned crash strike? Then -EIO, and so for ever after.
 *     end       release the lock
 *
 * where a sync does its work after under_way: a crash in a sync finds everything unsynced.
 *
 * A name has versions, oldest first: the file it leads to on the medium, and what each creation
 * or removal since then has made of it (NULL: nothing). The last is what the process sees. A crash
 * picks one.
 */
#include "os_sim.h"

#include "bytes.h"
#include "os_sim_file.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX_DEFAULT GIB
#define KINDS 14

struct os_file {
    struct os_sim *sim;
    struct sim_file *file; /* NULL: dead */
    char *path;
    bool read_only;
    enum { UNLOCKED, SHARED, EXCLUSIVE } lock;
    struct os_file *next;
};

struct mapping {
    struct sim_image *image;
    struct sim_file *file; /* NULL: dead */
    uint64_t offset;
    void *address;
    size_t bytes;
    bool writable;
    struct mapping *next;
};

struct name {
    char *path;
    struct sim_file **versions;
    size_t count; /* at least 1 */
    struct name *next;
};

/* The write that is under way, and what had been there. */
struct in_flight {
    struct sim_file *file;
    struct sim_range range;
    uint8_t *before; /* the part of it below size_before */
    uint64_t size_before;
};

struct os_sim {
    struct os os; /* first: the library's handle is ours */
    pthread_mutex_t mutex;
    struct os_sim_options options;
    struct name *names;
    struct os_file *handles;
    struct mapping *mappings;
    uint64_t files_made;
    uint64_t hole_stores; /* of files that are gone */

    uint64_t calls[KINDS];
    uint64_t bytes[KINDS];
    uint64_t rolls; /* what happens by chance differs from call to call */

    unsigned crash_kinds;
    uint64_t crash_after; /* UINT64_MAX: never */
    bool crashed;
    struct in_flight in_flight;

    struct os_sim_fault fault;
    uint64_t failed;
    unsigned failed_kinds;

    unsigned hook_kinds;
    os_sim_hook *hook;
    void *hook_context;
    bool in_hook;
};

static struct os_sim *sim_of(struct os *os)
{
    return (struct os_sim *)os;
}

static char *copy_string(const char *string)
{
    size_t bytes = strlen(string) + 1;
    return memcpy(sim_new(bytes), string, bytes);
}

static bool ends_with(const char *string, const char *end)
{
    size_t string_bytes = strlen(string);
    size_t end_bytes = strlen(end);
    return string_bytes >= end_bytes && strcmp(string + string_bytes - end_bytes, end) == 0;
}

static void lock(struct os_sim *sim)
{
    pthread_mutex_lock(&sim->mutex);
}

static void unlock(struct os_sim *sim)
{
    pthread_mutex_unlock(&sim->mutex);
}

static uint64_t next_roll(struct os_sim *sim)
{
    return sim_roll(sim->options.seed, ++sim->rolls, 0);
}

/* ---------------------------------------------------------------- names */

static struct name *find_name(struct os_sim *sim, const char *path)
{
    for (struct name *name = sim->names; name != NULL; name = name->next)
        if (strcmp(name->path, path) == 0)
            return name;
    return NULL;
}

static struct sim_file *current_file(const struct name *name)
{
    return name != NULL ? name->versions[name->count - 1] : NULL;
}

static struct sim_file *find_file(struct os_sim *sim, const char *path)
{
    return current_file(find_name(sim, path));
}

static struct name *need_name(struct os_sim *sim, const char *path)
{
    struct name *name = find_name(sim, path);
    if (name != NULL)
        return name;
    name = sim_new(sizeof *name);
    name->path = copy_string(path);
    name->versions = sim_new(sizeof *name->versions);
    name->count = 1;
    name->next = sim->names;
    sim->names = name;
    return name;
}

static void release_file(struct os_sim *sim, struct sim_file *file)
{
    if (file == NULL)
        return;
    if (file->references == 1)
        sim->hole_stores += file->hole_stores;
    sim_file_release(file);
}

/* From now on the name leads to `file`, whose reference it takes; NULL: to nothing. */
static void add_version(struct name *name, struct sim_file *file)
{
    name->versions = sim_grow(name->versions, (name->count + 1) * sizeof *name->versions);
    name->versions[name->count++] = file;
}

/* The version `kept` is the only one from now on. */
static void settle_name(struct os_sim *sim, struct name *name, size_t kept)
{
    struct sim_file *file = name->versions[kept];
    for (size_t i = 0; i < name->count; i++)
        if (i != kept)
            release_file(sim, name->versions[i]);
    name->versions[0] = file;
    name->count = 1;
}

/* Forget names that lead nowhere. */
static void drop_empty_names(struct os_sim *sim)
{
    for (struct name **at = &sim->names; *at != NULL;) {
        struct name *name = *at;
        if (name->count > 1 || name->versions[0] != NULL) {
            at = &name->next;
            continue;
        }
        *at = name->next;
        free(name->path);
        free(name->versions);
        free(name);
    }
}

static bool same_directory(const char *a, const char *b)
{
    const char *slash_a = strrchr(a, '/');
    const char *slash_b = strrchr(b, '/');
    size_t bytes_a = slash_a != NULL ? (size_t)(slash_a - a) + 1 : 0;
    size_t bytes_b = slash_b != NULL ? (size_t)(slash_b - b) + 1 : 0;
    return bytes_a == bytes_b && memcmp(a, b, bytes_a) == 0;
}

static uint64_t hash_path(const char *path)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (; *path != '\0'; path++)
        hash = (hash ^ (uint8_t)*path) * 0x100000001b3;
    return hash;
}

/* ---------------------------------------------------------------- space */

/* Is this the first handle on a file that was removed and is open still? */
static bool is_open_without_name(struct os_sim *sim, const struct os_file *handle)
{
    if (handle->file == NULL)
        return false;
    for (struct name *name = sim->names; name != NULL; name = name->next)
        if (current_file(name) == handle->file)
            return false;
    for (struct os_file *other = sim->handles; other != handle; other = other->next)
        if (other->file == handle->file)
            return false;
    return true;
}

static uint64_t used_pages(struct os_sim *sim)
{
    uint64_t pages = 0;
    for (struct name *name = sim->names; name != NULL; name = name->next)
        if (current_file(name) != NULL)
            pages += current_file(name)->allocated_pages;
    for (struct os_file *handle = sim->handles; handle != NULL; handle = handle->next)
        if (is_open_without_name(sim, handle))
            pages += handle->file->allocated_pages;
    return pages;
}

static uint64_t free_pages(struct os_sim *sim)
{
    if (sim->options.capacity_bytes == 0)
        return UINT64_MAX;
    uint64_t capacity = sim->options.capacity_bytes / SIM_PAGE_BYTES;
    uint64_t used = used_pages(sim);
    return used < capacity ? capacity - used : 0;
}

/* ---------------------------------------------------------------- the course of a call */

static unsigned kind_index(unsigned kind)
{
    return (unsigned)__builtin_ctz(kind);
}

static void clear_in_flight(struct os_sim *sim)
{
    free(sim->in_flight.before);
    sim->in_flight = (struct in_flight){0};
}

/* Does the planned fault strike this call? */
static bool fault_strikes(struct os_sim *sim, unsigned kind, const char *path)
{
    struct os_sim_fault *fault = &sim->fault;
    if (fault->nth == 0 || (fault->kinds & kind) == 0)
        return false;
    if (fault->name_end != NULL && !ends_with(path, fault->name_end))
        return false;
    if (fault->nth > 1) {
        fault->nth--;
        return false;
    }
    if (!fault->forever)
        fault->nth = 0;
    sim->failed++;
    sim->failed_kinds |= kind;
    return true;
}

/* With the lock taken. `injected` tells a planned fault from a machine that is off. */
static int begin_locked(struct os_sim *sim, unsigned kind, const char *path, bool *injected)
{
    *injected = false;
    if (sim->crashed)
        return -EIO;
    sim->calls[kind_index(kind)]++;
    *injected = fault_strikes(sim, kind, path);
    return *injected ? sim->fault.error : 0;
}

static int begin(struct os_sim *sim, unsigned kind, const char *path, bool *injected)
{
    lock(sim);
    return begin_locked(sim, kind, path, injected);
}

/* The same for calls on a handle, which may be dead. */
static int begin_file(struct os_file *file, unsigned kind, bool *injected)
{
    lock(file->sim);
    *injected = false;
    return file->file == NULL ? -EIO : begin_locked(file->sim, kind, file->path, injected);
}

/* Nothing changes from now on, whatever the program stores into its mappings. */
static void power_off(struct os_sim *sim)
{
    sim->crashed = true;
    sim->crash_after = UINT64_MAX;
    for (struct name *name = sim->names; name != NULL; name = name->next)
        for (size_t i = 0; i < name->count; i++)
            if (name->versions[i] != NULL)
                sim_file_freeze(name->versions[i]);
}

static int under_way(struct os_sim *sim, unsigned kind)
{
    if (sim->hook != NULL && (sim->hook_kinds & kind) != 0 && !sim->in_hook) {
        sim->in_hook = true;
        sim->hook(sim->hook_context, sim, (enum os_sim_kind)kind);
        sim->in_hook = false;
    }
    if ((sim->crash_kinds & kind) == 0 || sim->crash_after == UINT64_MAX)
        return 0;
    if (sim->crash_after-- > 0)
        return 0;
    power_off(sim);
    return -EIO;
}

static int end(struct os_sim *sim, int error)
{
    /* What a crash interrupts is told to os_sim_crash; what has returned is under way no more. */
    if (!sim->crashed && !sim->in_hook)
        clear_in_flight(sim);
    unlock(sim);
    return error;
}

/* ---------------------------------------------------------------- open, close, lock */

static struct sim_file *make_file(struct os_sim *sim)
{
    return sim_file_new(++sim->files_made, sim->options.file_bytes_max);
}

static void make_handle(struct os_sim *sim, struct sim_file *file, const char *path, bool read_only,
                        struct os_file **handle)
{
    struct os_file *made = sim_new(sizeof *made);
    made->sim = sim;
    made->file = sim_file_share(file);
    made->path = copy_string(path);
    made->read_only = read_only;
    made->next = sim->handles;
    sim->handles = made;
    *handle = made;
}

static int open_locked(struct os_sim *sim, const char *path, unsigned flags, struct os_file **file)
{
    size_t bytes = strlen(path);
    if (bytes == 0)
        return -ENOENT;
    if (path[bytes - 1] == '/')
        return -EISDIR;
    struct sim_file *found = find_file(sim, path);
    if (found == NULL && (flags & OS_CREATE) == 0)
        return -ENOENT;
    if (found != NULL && (flags & OS_CREATE) && (flags & OS_EXCLUSIVE))
        return -EEXIST;
    if (found == NULL) {
        found = make_file(sim);
        add_version(need_name(sim, path), found);
    }
    int error = under_way(sim, OS_SIM_OPEN);
    if (error == 0)
        make_handle(sim, found, path, flags & OS_READ_ONLY, file);
    return error;
}

static int sim_open(struct os *os, const char *path, unsigned flags, struct os_file **file)
{
    struct os_sim *sim = sim_of(os);
    bool injected;
    int error = begin(sim, OS_SIM_OPEN, path, &injected);
    if (error == 0)
        error = open_locked(sim, path, flags, file);
    return end(sim, error);
}

static void sim_close(struct os_file *file)
{
    if (file == NULL)
        return;
    struct os_sim *sim = file->sim;
    lock(sim);
    struct os_file **at = &sim->handles;
    while (*at != file)
        at = &(*at)->next;
    *at = file->next;
    release_file(sim, file->file);
    unlock(sim);
    free(file->path);
    free(file);
}

static int sim_lock(struct os_file *file, bool shared)
{
    struct os_sim *sim = file->sim;
    bool injected;
    int error = begin_file(file, OS_SIM_LOCK, &injected);
    if (error != 0)
        return end(sim, error);
    for (struct os_file *other = sim->handles; other != NULL; other = other->next)
        if (other != file && other->file == file->file && other->lock != UNLOCKED &&
            (!shared || other->lock == EXCLUSIVE))
            return end(sim, -EWOULDBLOCK);
    file->lock = shared ? SHARED : EXCLUSIVE;
    return end(sim, under_way(sim, OS_SIM_LOCK));
}

/* ---------------------------------------------------------------- read, write, sync */

static int sim_read(struct os_file *file, void *buffer, size_t bytes, uint64_t offset)
{
    struct os_sim *sim = file->sim;
    bool injected;
    int error = begin_file(file, OS_SIM_READ, &injected);
    if (error == 0) {
        const struct sim_file *from = file->file;
        size_t there = offset < from->size ? min_u64(bytes, from->size - offset) : 0;
        if (there > 0)
            memcpy(buffer, from->image->base + offset, there);
        error = there < bytes ? -ENODATA : 0;
        sim->bytes[kind_index(OS_SIM_READ)] += bytes;
    }
    if (error == 0)
        error = under_way(sim, OS_SIM_READ);
    return end(sim, error);
}

/* Remember what a write will replace, for the case that the process is killed in it. */
static void remember_in_flight(struct os_sim *sim, struct sim_file *file, uint64_t offset,
                               size_t bytes)
{
    if (sim->in_hook)
        return; /* the write that the hook was called in is what is under way */
    uint64_t there = offset < file->size ? min_u64(bytes, file->size - offset) : 0;
    sim->in_flight = (struct in_flight){
        .file = file,
        .range = {offset, offset + bytes},
        .size_before = file->size,
    };
    bool hooked = sim->hook != NULL && (sim->hook_kinds & OS_SIM_WRITE) != 0;
    bool last = sim->crash_after == 0 && (sim->crash_kinds & OS_SIM_WRITE) != 0;
    if (there > 0 && (hooked || last)) {
        sim->in_flight.before = sim_new(there);
        memcpy(sim->in_flight.before, file->image->base + offset, there);
    }
}

static int write_locked(struct os_sim *sim, struct sim_file *file, const void *buffer, size_t bytes,
                        uint64_t offset)
{
    if (offset > sim->options.file_bytes_max || bytes > sim->options.file_bytes_max - offset)
        return -EFBIG;
    size_t fitting = bytes;
    if (sim->options.capacity_bytes != 0)
        fitting = sim_file_bytes_fitting(file, offset, bytes, free_pages(sim));
    remember_in_flight(sim, file, offset, fitting);
    sim_file_write(file, offset, buffer, fitting, next_roll(sim));
    int error = under_way(sim, OS_SIM_WRITE);
    return error == 0 && fitting < bytes ? -ENOSPC : error;
}

/* Up to the last byte that a write changes: whoever wrote these would have written all. */
static size_t bytes_changed(const struct sim_file *file, const uint8_t *buffer, size_t bytes,
                            uint64_t offset)
{
    while (bytes > 0) {
        uint64_t at = offset + bytes - 1;
        if (at >= file->size || file->image->base[at] != buffer[bytes - 1])
            break;
        bytes--;
    }
    return bytes;
}

static int sim_write(struct os_file *file, const void *buffer, size_t bytes, uint64_t offset)
{
    struct os_sim *sim = file->sim;
    bool injected;
    int error = begin_file(file, OS_SIM_WRITE, &injected);
    if (error == 0 && file->read_only)
        error = -EBADF;
    if (error == 0) {
        sim->bytes[kind_index(OS_SIM_WRITE)] += bytes;
        error = write_locked(sim, file->file, buffer, bytes, offset);
    } else if (injected && (bytes = bytes_changed(file->file, buffer, bytes, offset)) > 0) {
        /* A part has been written. The fault stands, whatever becomes of the part. */
        write_locked(sim, file->file, buffer, next_roll(sim) % bytes, offset);
    }
    return end(sim, error);
}

static int sim_sync(struct os_file *file)
{
    struct os_sim *sim = file->sim;
    bool injected;
    int error = begin_file(file, OS_SIM_SYNC, &injected);
    if (injected)
        sim_file_sync_failed(file->file, next_roll(sim));
    if (error == 0)
        error = under_way(sim, OS_SIM_SYNC);
    if (error == 0)
        sim_file_sync(file->file);
    return end(sim, error);
}

static void sim_start_read(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    (void)file;
    (void)offset;
    (void)bytes;
}

static void sim_start_writeback(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    struct os_sim *sim = file->sim;
    bool injected;
    int error = begin_file(file, OS_SIM_START_WRITEBACK, &injected);
    if (error == 0)
        error = under_way(sim, OS_SIM_START_WRITEBACK);
    if (error == 0)
        sim_file_writeback(file->file, offset, offset + bytes, next_roll(sim));
    end(sim, error);
}

/* ---------------------------------------------------------------- size and space */

static int sim_size(struct os_file *file, uint64_t *bytes)
{
    struct os_sim *sim = file->sim;
    bool injected;
    int error = begin_file(file, OS_SIM_SIZE, &injected);
    if (error == 0)
        error = under_way(sim, OS_SIM_SIZE);
    if (error == 0)
        *bytes = file->file->size;
    return end(sim, error);
}

static int sim_truncate(struct os_file *file, uint64_t bytes)
{
    struct os_sim *sim = file->sim;
    bool injected;
    int error = begin_file(file, OS_SIM_TRUNCATE, &injected);
    if (error == 0 && file->read_only)
        error = -EINVAL;
    if (error == 0 && bytes > sim->options.file_bytes_max)
        error = -EFBIG;
    if (error == 0) {
        sim_file_set_size(file->file, bytes);
        error = under_way(sim, OS_SIM_TRUNCATE);
    }
    return end(sim, error);
}

/* As much of it as there is space for. */
static void allocate_some(struct os_sim *sim, struct sim_file *file, uint64_t offset,
                          uint64_t bytes)
{
    uint64_t fitting = sim_file_bytes_fitting(file, offset, bytes, free_pages(sim));
    if (fitting > 0)
        sim_file_allocate(file, offset, fitting);
}

static int allocate_range(struct os_sim *sim, struct sim_file *file, uint64_t offset,
                          uint64_t bytes)
{
    if (sim_file_pages_missing(file, offset, bytes) > free_pages(sim)) {
        if (next_roll(sim) % 2 == 0)
            allocate_some(sim, file, offset, bytes);
        return -ENOSPC;
    }
    if (bytes > 0)
        sim_file_allocate(file, offset, bytes);
    return 0;
}

enum { EMULATED_PAGES = 64 }; /* at most, between two moments at which others have their turn */

/* The last byte of page p that belongs to a range with this end. */
static uint64_t last_byte(uint64_t p, uint64_t end)
{
    return min_u64((p + 1) * SIM_PAGE_BYTES, end) - 1;
}

/* Which of some pages the C library writes into, a bit each. It looks at them, and then it writes.
 */
static uint64_t pages_to_write(const struct sim_file *file, uint64_t size, uint64_t first,
                               uint64_t count, uint64_t end)
{
    uint64_t pages = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = last_byte(first + i, end);
        if (at >= size || at >= file->size || file->image->base[at] == 0)
            pages |= UINT64_C(1) << i;
    }
    return pages;
}

static int write_zeros(struct os_sim *sim, struct sim_file *file, uint64_t pages, uint64_t first,
                       uint64_t count, uint64_t end)
{
    uint64_t file_end = file->size;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = last_byte(first + i, end);
        if (at >= file_end) /* all the rest at once: a size is a change to be remembered */
            return allocate_range(sim, file, at / SIM_PAGE_BYTES * SIM_PAGE_BYTES,
                                  last_byte(first + count - 1, end) + 1 -
                                      at / SIM_PAGE_BYTES * SIM_PAGE_BYTES);
        if ((pages >> i & 1) == 0)
            continue;
        if (sim_file_pages_missing(file, at, 1) > free_pages(sim))
            return -ENOSPC;
        sim_file_write(file, at, "", 1, next_roll(sim));
    }
    return 0;
}

/* Point 8 of os_sim.h. */
static int allocate_emulated(struct os_file *handle, uint64_t offset, uint64_t bytes)
{
    struct os_sim *sim = handle->sim;
    const uint64_t size = handle->file->size, end = offset + bytes;
    const uint64_t pages_end = divide_up(end, SIM_PAGE_BYTES);
    int error = 0;
    for (uint64_t p = offset / SIM_PAGE_BYTES, count; error == 0 && p < pages_end; p += count) {
        count = min_u64(1 + next_roll(sim) % EMULATED_PAGES, pages_end - p);
        uint64_t pages = pages_to_write(handle->file, size, p, count, end);
        if (!sim->in_hook) {
            unlock(sim);
            sched_yield();
            lock(sim);
        }
        if (sim->crashed || handle->file == NULL)
            return -EIO;
        error = write_zeros(sim, handle->file, pages, p, count, end);
    }
    return error;
}

static int allocate_locked(struct os_file *handle, uint64_t offset, uint64_t bytes)
{
    struct os_sim *sim = handle->sim;
    if (offset > sim->options.file_bytes_max || bytes > sim->options.file_bytes_max - offset)
        return -EFBIG;
    int error = sim->options.emulates ? allocate_emulated(handle, offset, bytes)
                                      : allocate_range(sim, handle->file, offset, bytes);
    int cut_off = under_way(sim, OS_SIM_ALLOCATE);
    return cut_off != 0 ? cut_off : error;
}

static int sim_allocate(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    struct os_sim *sim = file->sim;
    bool injected;
    int error = begin_file(file, OS_SIM_ALLOCATE, &injected);
    if (error == 0 && file->read_only)
        error = -EBADF;
    if (error == 0)
        error = allocate_locked(file, offset, bytes);
    return end(sim, error);
}

static int sim_punch(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    struct os_sim *sim = file->sim;
    bool injected;
    int error = begin_file(file, OS_SIM_PUNCH, &injected);
    if (error == 0 && file->read_only)
        error = -EBADF;
    if (error == 0 && sim->options.emulates)
        error = -EOPNOTSUPP;
    if (error == 0) {
        if (offset < file->file->size)
            sim_file_punch(file->file, offset, min_u64(bytes, file->file->size - offset));
        error = under_way(sim, OS_SIM_PUNCH);
    }
    return end(sim, error);
}

/* ---------------------------------------------------------------- mappings */

static int map_locked(struct os_file *file, uint64_t offset, size_t bytes, bool writable,
                      void **address)
{
    struct os_sim *sim = file->sim;
    if (offset % MIB != 0)
        sim_die("mapped at an offset that is not a multiple of 1 MiB");
    if (bytes == 0)
        return -EINVAL;
    if (file->read_only && writable)
        return -EACCES;
    if (offset > sim->options.file_bytes_max || bytes > sim->options.file_bytes_max - offset)
        return -ENOMEM;
    int error = under_way(sim, OS_SIM_MAP);
    if (error != 0)
        return error;
    struct mapping *mapping = sim_new(sizeof *mapping);
    *mapping = (struct mapping){
        .image = sim_image_share(file->file->image),
        .file = sim_file_share(file->file),
        .offset = offset,
        .address = file->file->image->base + offset,
        .bytes = bytes,
        .writable = writable,
        .next = sim->mappings,
    };
    sim->mappings = mapping;
    if (writable)
        sim_file_mapped(file->file, offset, bytes);
    *address = mapping->address;
    return 0;
}

static int sim_map(struct os_file *file, uint64_t offset, size_t bytes, bool writable,
                   void **address)
{
    bool injected;
    int error = begin_file(file, OS_SIM_MAP, &injected);
    if (error == 0)
        error = map_locked(file, offset, bytes, writable, address);
    return end(file->sim, error);
}

/* The mapping stops being the file's, which it keeps no longer. */
static void detach_mapping(struct os_sim *sim, struct mapping *mapping)
{
    if (mapping->file != NULL && mapping->writable)
        sim_file_unmapped(mapping->file, mapping->offset, mapping->bytes);
    release_file(sim, mapping->file);
    mapping->file = NULL;
}

static void drop_mapping(struct os_sim *sim, struct mapping **at)
{
    struct mapping *mapping = *at;
    *at = mapping->next;
    detach_mapping(sim, mapping);
    sim_image_release(mapping->image);
    free(mapping);
}

/* The mapping that is to be unmapped. Several of one range have one address: then a read-only one
 * first, so that stores go on being noticed while any of them may store. */
static struct mapping **find_mapping(struct os_sim *sim, const void *address, size_t bytes)
{
    struct mapping **found = NULL;
    for (struct mapping **at = &sim->mappings; *at != NULL; at = &(*at)->next)
        if ((*at)->address == address && (*at)->bytes == bytes &&
            (found == NULL || (*found)->writable))
            found = at;
    return found;
}

static void sim_unmap(struct os_file *file, void *address, size_t bytes)
{
    struct os_sim *sim = file->sim;
    if (address == NULL)
        return;
    lock(sim);
    struct mapping **found = find_mapping(sim, address, bytes);
    if (found == NULL)
        sim_die("unmapped what is not mapped");
    drop_mapping(sim, found);
    unlock(sim);
}

static void sim_populate(struct os_file *file, void *address, size_t bytes, bool writable)
{
    (void)file;
    (void)address;
    (void)bytes;
    (void)writable;
}

/* ---------------------------------------------------------------- removal, directories */

static int remove_locked(struct os_sim *sim, const char *path)
{
    struct name *name = find_name(sim, path);
    if (current_file(name) == NULL)
        return -ENOENT;
    add_version(name, NULL);
    return under_way(sim, OS_SIM_REMOVE);
}

static void sim_read_ahead(struct os_file *file, uint64_t offset, uint64_t bytes)
{
    (void)file;
    (void)offset;
    (void)bytes;
}

static uint64_t sim_memory(struct os *os)
{
    uint64_t bytes = sim_of(os)->options.memory_bytes;
    return bytes ? bytes : UINT64_MAX;
}

static int sim_remove(struct os *os, const char *path)
{
    struct os_sim *sim = sim_of(os);
    bool injected;
    int error = begin(sim, OS_SIM_REMOVE, path, &injected);
    if (error == 0)
        error = remove_locked(sim, path);
    return end(sim, error);
}

static bool sim_in_place(struct os_file *file)
{
    return !file->sim->options.emulates;
}

static bool sim_is_named(struct os_file *file, const char *path)
{
    struct os_sim *sim = file->sim;
    pthread_mutex_lock(&sim->mutex);
    bool named = find_file(sim, path) == file->file;
    pthread_mutex_unlock(&sim->mutex);
    return named;
}

static int rename_locked(struct os_sim *sim, const char *from, const char *to)
{
    struct sim_file *file = find_file(sim, from);
    if (file == NULL)
        return -ENOENT;
    if (find_file(sim, to) != NULL)
        return -EEXIST;
    add_version(need_name(sim, to), sim_file_share(file));
    add_version(find_name(sim, from), NULL);
    return under_way(sim, OS_SIM_RENAME);
}

static int sim_rename(struct os *os, const char *from, const char *to)
{
    struct os_sim *sim = sim_of(os);
    bool injected;
    int error = begin(sim, OS_SIM_RENAME, from, &injected);
    if (error == 0)
        error = rename_locked(sim, from, to);
    return end(sim, error);
}

static int sim_sync_directory(struct os *os, const char *path)
{
    struct os_sim *sim = sim_of(os);
    bool injected;
    int error = begin(sim, OS_SIM_SYNC_DIRECTORY, path, &injected);
    if (error == 0)
        error = under_way(sim, OS_SIM_SYNC_DIRECTORY);
    if (error == 0) {
        for (struct name *name = sim->names; name != NULL; name = name->next)
            if (same_directory(name->path, path))
                settle_name(sim, name, name->count - 1);
        drop_empty_names(sim);
    }
    return end(sim, error);
}

static const struct os_ops sim_ops = {
    .open = sim_open,
    .close = sim_close,
    .lock = sim_lock,
    .read = sim_read,
    .write = sim_write,
    .sync = sim_sync,
    .start_writeback = sim_start_writeback,
    .start_read = sim_start_read,
    .size = sim_size,
    .truncate = sim_truncate,
    .allocate = sim_allocate,
    .punch = sim_punch,
    .map = sim_map,
    .unmap = sim_unmap,
    .populate = sim_populate,
    .memory = sim_memory,
    .read_ahead = sim_read_ahead,
    .remove = sim_remove,
    .is_named = sim_is_named,
    .in_place = sim_in_place,
    .rename = sim_rename,
    .sync_directory = sim_sync_directory,
};

/* ---------------------------------------------------------------- a disk */

static void make_mutex(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

struct os_sim *os_sim_new(const struct os_sim_options *options)
{
    struct os_sim *sim = sim_new(sizeof *sim);
    sim->os.ops = &sim_ops;
    make_mutex(&sim->mutex);
    if (options != NULL)
        sim->options = *options;
    if (sim->options.file_bytes_max == 0)
        sim->options.file_bytes_max = FILE_BYTES_MAX_DEFAULT;
    sim->options.file_bytes_max = round_up(sim->options.file_bytes_max, SIM_PAGE_BYTES);
    sim->crash_after = UINT64_MAX;
    return sim;
}

void os_sim_free(struct os_sim *sim)
{
    if (sim == NULL)
        return;
    while (sim->mappings != NULL)
        drop_mapping(sim, &sim->mappings);
    for (struct os_file *file = sim->handles, *next; file != NULL; file = next) {
        next = file->next;
        sim_close(file);
    }
    for (struct name *name = sim->names; name != NULL; name = name->next) {
        add_version(name, NULL);
        settle_name(sim, name, name->count - 1);
    }
    drop_empty_names(sim);
    clear_in_flight(sim);
    pthread_mutex_destroy(&sim->mutex);
    free(sim);
}

struct os *os_sim_os(struct os_sim *sim)
{
    return &sim->os;
}

/* The same file may be in several versions of a name: not here, since no name gets a file back. One
 * that is being renamed becomes two, of the same bytes.
 * A file under way to be written that has lost its name is of no interest to the copy. */
static void copy_name(struct os_sim *copy, const struct os_sim *sim, const struct name *name)
{
    struct name *made = need_name(copy, name->path);
    for (size_t i = 0; i < name->count; i++) {
        struct sim_file *file = name->versions[i];
        struct sim_file *copied = file != NULL ? sim_file_copy(file) : NULL;
        if (i == 0)
            made->versions[0] = copied;
        else
            add_version(made, copied);
        if (file != NULL && file == sim->in_flight.file)
            copy->in_flight.file = copied;
    }
}

static void copy_in_flight(struct os_sim *copy, const struct os_sim *sim)
{
    if (copy->in_flight.file == NULL)
        return;
    struct sim_file *file = copy->in_flight.file;
    copy->in_flight = sim->in_flight;
    copy->in_flight.file = file;
    if (sim->in_flight.before == NULL)
        return;
    uint64_t begin = sim->in_flight.range.begin;
    uint64_t bytes = min_u64(sim->in_flight.range.end, sim->in_flight.size_before) - begin;
    copy->in_flight.before = sim_new(bytes);
    memcpy(copy->in_flight.before, sim->in_flight.before, bytes);
}

struct os_sim *os_sim_copy(struct os_sim *sim)
{
    lock(sim);
    struct os_sim *copy = os_sim_new(&sim->options);
    copy->files_made = sim->files_made;
    copy->rolls = sim->rolls;
    for (const struct name *name = sim->names; name != NULL; name = name->next)
        copy_name(copy, sim, name);
    copy_in_flight(copy, sim);
    unlock(sim);
    return copy;
}

/* ---------------------------------------------------------------- plans */

static uint64_t sum_of(struct os_sim *sim, const uint64_t *counts, unsigned kinds)
{
    uint64_t sum = 0;
    lock(sim);
    for (unsigned i = 0; i < KINDS; i++)
        if (kinds & 1u << i)
            sum += counts[i];
    unlock(sim);
    return sum;
}

uint64_t os_sim_calls(struct os_sim *sim, unsigned kinds)
{
    return sum_of(sim, sim->calls, kinds);
}

uint64_t os_sim_bytes(struct os_sim *sim, unsigned kinds)
{
    return sum_of(sim, sim->bytes, kinds);
}

void os_sim_crash_after(struct os_sim *sim, unsigned kinds, uint64_t n)
{
    lock(sim);
    sim->crash_kinds = kinds;
    sim->crash_after = n;
    unlock(sim);
}

bool os_sim_crashed(struct os_sim *sim)
{
    lock(sim);
    bool crashed = sim->crashed;
    unlock(sim);
    return crashed;
}

void os_sim_fail(struct os_sim *sim, const struct os_sim_fault *fault)
{
    lock(sim);
    sim->fault = fault != NULL ? *fault : (struct os_sim_fault){0};
    unlock(sim);
}

uint64_t os_sim_failed(struct os_sim *sim)
{
    lock(sim);
    uint64_t failed = sim->failed;
    unlock(sim);
    return failed;
}

unsigned os_sim_failed_kinds(struct os_sim *sim)
{
    lock(sim);
    unsigned kinds = sim->failed_kinds;
    unlock(sim);
    return kinds;
}

void os_sim_set_hook(struct os_sim *sim, unsigned kinds, os_sim_hook *hook, void *context)
{
    lock(sim);
    sim->hook_kinds = kinds;
    sim->hook = hook;
    sim->hook_context = context;
    unlock(sim);
}

/* ---------------------------------------------------------------- crash and kill */

static void each_file(struct os_sim *sim, void (*visit)(struct sim_file *, uint64_t), uint64_t seed)
{
    for (struct name *name = sim->names; name != NULL; name = name->next)
        for (size_t i = 0; i < name->count; i++)
            if (name->versions[i] != NULL)
                visit(name->versions[i], seed);
}

/* Handles and mappings stay, to be closed, but lead nowhere any more. */
static void kill_handles(struct os_sim *sim)
{
    for (struct os_file *handle = sim->handles; handle != NULL; handle = handle->next) {
        release_file(sim, handle->file);
        handle->file = NULL;
        handle->lock = UNLOCKED;
    }
    for (struct mapping *mapping = sim->mappings; mapping != NULL; mapping = mapping->next)
        detach_mapping(sim, mapping);
}

static void restart(struct os_sim *sim)
{
    clear_in_flight(sim);
    sim->crashed = false;
    sim->crash_after = UINT64_MAX;
    sim->fault = (struct os_sim_fault){0};
}

/* Is the file under way one that names still lead to? Otherwise it has gone with its handle. */
static struct sim_file *file_in_flight(struct os_sim *sim)
{
    for (struct name *name = sim->names; name != NULL; name = name->next)
        for (size_t i = 0; i < name->count; i++)
            if (name->versions[i] != NULL && name->versions[i] == sim->in_flight.file)
                return sim->in_flight.file;
    return NULL;
}

void os_sim_crash(struct os_sim *sim, uint64_t seed)
{
    lock(sim);
    kill_handles(sim);
    for (struct name *name = sim->names; name != NULL; name = name->next) {
        size_t kept = sim_roll(seed, hash_path(name->path), name->count) % name->count;
        settle_name(sim, name, kept);
    }
    drop_empty_names(sim);
    struct sim_file *written = file_in_flight(sim);
    for (struct name *name = sim->names; name != NULL; name = name->next) {
        struct sim_file *file = name->versions[0];
        struct sim_range torn = {0};
        if (file == written)
            torn = sim->in_flight.range;
        sim_file_crash(file, seed, torn);
    }
    restart(sim);
    unlock(sim);
}

/* How far has the write that was under way come? The system gives up between pages. */
static void cut_in_flight(struct os_sim *sim, uint64_t seed)
{
    struct in_flight *write = &sim->in_flight;
    if (file_in_flight(sim) == NULL || write->range.begin == write->range.end)
        return;
    uint64_t begin = write->range.begin;
    uint64_t cut = begin + sim_roll(seed, 0, 0) % (write->range.end - begin + SIM_PAGE_BYTES);
    cut = cut / SIM_PAGE_BYTES * SIM_PAGE_BYTES;
    cut = min_u64(max_u64(cut, begin), write->range.end);
    uint64_t there = min_u64(write->range.end, write->size_before);
    if (write->before != NULL && cut < there)
        sim_file_unwrite(write->file, cut, write->before + (cut - begin), there - cut);
    if (write->range.end > write->size_before)
        sim_file_set_size(write->file, max_u64(cut, write->size_before));
}

static void kill_file(struct sim_file *file, uint64_t seed)
{
    (void)seed;
    sim_file_kill(file);
}

void os_sim_kill(struct os_sim *sim, uint64_t seed)
{
    lock(sim);
    kill_handles(sim);
    each_file(sim, kill_file, 0);
    cut_in_flight(sim, seed);
    restart(sim);
    unlock(sim);
}

static void writeback_file(struct sim_file *file, uint64_t seed)
{
    sim_file_writeback(file, 0, UINT64_MAX, seed);
}

void os_sim_writeback(struct os_sim *sim, uint64_t seed)
{
    lock(sim);
    each_file(sim, writeback_file, seed);
    unlock(sim);
}

static void evict_file(struct sim_file *file, uint64_t seed)
{
    (void)seed;
    sim_file_evict(file);
}

void os_sim_evict(struct os_sim *sim)
{
    lock(sim);
    each_file(sim, evict_file, 0);
    unlock(sim);
}

static void settle_file(struct sim_file *file, uint64_t seed)
{
    (void)seed;
    sim_file_sync(file);
}

void os_sim_settle(struct os_sim *sim)
{
    lock(sim);
    each_file(sim, settle_file, 0);
    for (struct name *name = sim->names; name != NULL; name = name->next)
        settle_name(sim, name, name->count - 1);
    drop_empty_names(sim);
    unlock(sim);
}

/* ---------------------------------------------------------------- looking at the disk */

void os_sim_set_capacity(struct os_sim *sim, uint64_t capacity_bytes)
{
    lock(sim);
    sim->options.capacity_bytes = capacity_bytes;
    unlock(sim);
}

uint64_t os_sim_used(struct os_sim *sim)
{
    lock(sim);
    uint64_t bytes = used_pages(sim) * SIM_PAGE_BYTES;
    unlock(sim);
    return bytes;
}

uint64_t os_sim_hole_stores(struct os_sim *sim)
{
    lock(sim);
    uint64_t stores = sim->hole_stores;
    for (struct name *name = sim->names; name != NULL; name = name->next)
        for (size_t i = 0; i < name->count; i++)
            if (name->versions[i] != NULL)
                stores += name->versions[i]->hole_stores;
    unlock(sim);
    return stores;
}

size_t os_sim_open_files(struct os_sim *sim)
{
    size_t count = 0;
    lock(sim);
    for (struct os_file *handle = sim->handles; handle != NULL; handle = handle->next)
        count++;
    unlock(sim);
    return count;
}

size_t os_sim_open_mappings(struct os_sim *sim)
{
    size_t count = 0;
    lock(sim);
    for (struct mapping *mapping = sim->mappings; mapping != NULL; mapping = mapping->next)
        count++;
    unlock(sim);
    return count;
}

/* ---------------------------------------------------------------- the files, from outside */

/* Find a file and see that [offset, offset + bytes) is in it. Takes the lock. */
static int find_durable(struct os_sim *sim, const char *path, uint64_t offset, size_t bytes,
                        struct sim_file **file)
{
    lock(sim);
    *file = find_file(sim, path);
    if (*file == NULL)
        return -ENOENT;
    uint64_t size = (*file)->size_durable;
    return offset > size || bytes > size - offset ? -ENODATA : 0;
}

int os_sim_file_size(struct os_sim *sim, const char *path, uint64_t *bytes)
{
    struct sim_file *file;
    int error = find_durable(sim, path, 0, 0, &file);
    if (error == 0)
        *bytes = file->size_durable;
    return end(sim, error);
}

int os_sim_peek(struct os_sim *sim, const char *path, uint64_t offset, void *buffer, size_t bytes)
{
    struct sim_file *file;
    int error = find_durable(sim, path, offset, bytes, &file);
    if (error == 0)
        sim_file_peek(file, offset, buffer, bytes);
    return end(sim, error);
}

int os_sim_poke(struct os_sim *sim, const char *path, uint64_t offset, const void *data,
                size_t bytes)
{
    struct sim_file *file;
    int error = find_durable(sim, path, offset, bytes, &file);
    if (error == 0)
        sim_file_poke(file, offset, data, bytes);
    return end(sim, error);
}

int os_sim_flip_bit(struct os_sim *sim, const char *path, uint64_t bit)
{
    uint8_t byte = 0;
    int error = os_sim_peek(sim, path, bit / 8, &byte, 1);
    byte ^= (uint8_t)(1u << bit % 8);
    return error != 0 ? error : os_sim_poke(sim, path, bit / 8, &byte, 1);
}

int os_sim_zero(struct os_sim *sim, const char *path, uint64_t offset, size_t bytes)
{
    uint8_t *zeros = sim_new(bytes);
    int error = os_sim_poke(sim, path, offset, zeros, bytes);
    free(zeros);
    return error;
}

int os_sim_swap(struct os_sim *sim, const char *path, uint64_t a, uint64_t b, size_t bytes)
{
    uint8_t *at_a = sim_new(bytes);
    uint8_t *at_b = sim_new(bytes);
    int error = os_sim_peek(sim, path, a, at_a, bytes);
    if (error == 0)
        error = os_sim_peek(sim, path, b, at_b, bytes);
    if (error == 0)
        error = os_sim_poke(sim, path, a, at_b, bytes);
    if (error == 0)
        error = os_sim_poke(sim, path, b, at_a, bytes);
    free(at_a);
    free(at_b);
    return error;
}

int os_sim_resize(struct os_sim *sim, const char *path, uint64_t bytes)
{
    struct sim_file *file;
    int error = find_durable(sim, path, 0, 0, &file);
    if (error == 0 && bytes > sim->options.file_bytes_max)
        error = -EFBIG;
    if (error == 0)
        sim_file_resize(file, bytes);
    return end(sim, error);
}

int os_sim_put_file(struct os_sim *sim, const char *path, const void *data, size_t bytes)
{
    lock(sim);
    if (bytes > sim->options.file_bytes_max)
        return end(sim, -EFBIG);
    struct name *name = need_name(sim, path);
    struct sim_file *file = make_file(sim);
    sim_file_write(file, 0, data, bytes, 0);
    sim_file_sync(file);
    add_version(name, file);
    settle_name(sim, name, name->count - 1);
    return end(sim, 0);
}

int os_sim_delete_file(struct os_sim *sim, const char *path)
{
    struct sim_file *file;
    int error = find_durable(sim, path, 0, 0, &file);
    if (error == 0) {
        struct name *name = find_name(sim, path);
        add_version(name, NULL);
        settle_name(sim, name, name->count - 1);
        drop_empty_names(sim);
    }
    return end(sim, error);
}

int os_sim_copy_file(struct os_sim *to, const char *to_path, struct os_sim *from,
                     const char *from_path)
{
    uint64_t bytes = 0;
    int error = os_sim_file_size(from, from_path, &bytes);
    if (error != 0)
        return error;
    uint8_t *data = sim_new(bytes);
    error = os_sim_peek(from, from_path, 0, data, bytes);
    if (error == 0)
        error = os_sim_put_file(to, to_path, data, bytes);
    free(data);
    return error;
}
