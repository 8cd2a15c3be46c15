/*
 * fuzz_store: the files of a store are edited, and the store is used.
 *
 * An input is the number of a base, a byte of modes, and edits of 12 bytes:
 *
 *     0     what is done (low 3 bits), and to what (the rest)
 *     1     to which one of these
 *     2-3   at which byte of it
 *     4-11  a number
 */
#include "fuzz.h"
#include "seal.h"
#include "use.h"

#include <stdlib.h>

enum modes {
    SEAL_TREES = 1 << 0,
    SEAL_LOG = 1 << 1,
    SEAL_SECTORS = 1 << 2, /* and records */
    SEAL_NUMBERS = 1 << 3, /* number the commits of the log */
    READ_ONLY = 1 << 4,
    NO_MAPPING = 1 << 5,
    LOOK = 1 << 6, /* check and repair the files first */
};

enum deed { SET_8, SET_16, SET_32, SET_64, FLIP_8, ADD_32, COPY_16, COPY_ALL };

enum {
    FILE_BYTES = PLACE_KINDS, /* any byte of the file, the number says which */
    LOG_BYTES,
    FILE_SIZE,
    LOG_SIZE,
    NO_LOG,
    TARGETS,
    EDIT_BYTES = 12,
};

struct edit {
    enum deed deed;
    unsigned target, which;
    uint64_t at, number;
};

static struct edit edit_of(const uint8_t *bytes)
{
    return (struct edit){.deed = bytes[0] & 7,
                         .target = (bytes[0] >> 3) % TARGETS,
                         .which = bytes[1],
                         .at = bytes[2] | (unsigned)bytes[3] << 8,
                         .number = load_u64(bytes + 4)};
}

static void change(struct os_sim *sim, const char *path, uint64_t offset, const struct edit *edit)
{
    static const size_t width_of[] = {1, 2, 4, 8, 1, 4};
    size_t width = width_of[edit->deed % 6];
    uint64_t value = 0;
    if (os_sim_peek(sim, path, offset, &value, width))
        return;
    if (edit->deed == FLIP_8)
        value ^= edit->number;
    else if (edit->deed == ADD_32)
        value += edit->number;
    else
        value = edit->number;
    os_sim_poke(sim, path, offset, &value, width);
}

/* What another place of the kind has: whole pages exchanged, slots doubled. */
static void copy(struct os_sim *sim, const struct base *base, const struct place *to,
                 const struct edit *edit)
{
    uint8_t bytes[PAGE_BYTES];
    const struct place *from = base_place(base, to->kind, (size_t)(edit->number & 255));
    const char *path = to->in_log ? BASE_LOG_PATH : BASE_PATH;
    size_t count = (size_t)min_u64(min_u64(to->bytes, from->bytes), sizeof bytes);
    uint64_t begin = edit->deed == COPY_16 ? edit->at % to->bytes : 0;
    if (edit->deed == COPY_16)
        count = 16;
    if (!os_sim_peek(sim, path,
                     from->offset +
                         (edit->number >> 8 & 4095) % from->bytes * (edit->deed == COPY_16),
                     bytes, count))
        os_sim_poke(sim, path, to->offset + begin, bytes, count);
}

static void apply(struct os_sim *sim, const struct base *base, const struct edit *edit)
{
    uint64_t size = 0;
    switch (edit->target) {
    case FILE_BYTES:
    case LOG_BYTES:
        change(sim, edit->target == LOG_BYTES ? BASE_LOG_PATH : BASE_PATH, edit->number >> 32,
               edit);
        return;
    case FILE_SIZE:
    case LOG_SIZE:
        os_sim_file_size(sim, edit->target == LOG_SIZE ? BASE_LOG_PATH : BASE_PATH, &size);
        os_sim_resize(sim, edit->target == LOG_SIZE ? BASE_LOG_PATH : BASE_PATH,
                      edit->number % (size + PAGE_BYTES));
        return;
    case NO_LOG:
        os_sim_delete_file(sim, BASE_LOG_PATH);
        return;
    default:
        break;
    }
    const struct place *place = base_place(base, (enum place_kind)edit->target, edit->which);
    if (place && (edit->deed == COPY_16 || edit->deed == COPY_ALL))
        copy(sim, base, place, edit);
    else if (place)
        change(sim, place->in_log ? BASE_LOG_PATH : BASE_PATH,
               place->offset + edit->at % place->bytes, edit);
}

static void seal(struct os_sim *sim, unsigned modes)
{
    const struct seal_log log = {.records = modes & SEAL_SECTORS, .numbers = modes & SEAL_NUMBERS};
    if (modes & SEAL_SECTORS)
        seal_sectors(sim);
    if (modes & SEAL_TREES)
        seal_trees(sim);
    if (modes & SEAL_LOG)
        seal_log(sim, &log);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { EDITS_MOST = 40 };
    if (size < 2 || size > 2 + EDITS_MOST * EDIT_BYTES)
        return -1;
    const struct base *base = base_get(data[0]);
    const unsigned modes = data[1];
    struct os_sim *sim = os_sim_copy(base->sim);
    for (size_t at = 2; size - at >= EDIT_BYTES; at += EDIT_BYTES) {
        struct edit edit = edit_of(data + at);
        apply(sim, base, &edit);
    }
    seal(sim, modes);
    const struct use use = {.flags = (modes & READ_ONLY ? FKV_OPEN_READ_ONLY : 0) |
                                     (modes & NO_MAPPING ? FKV_READ_WITHOUT_MAPPING : 0),
                            .strict = !(modes & (SEAL_TREES | SEAL_LOG | SEAL_SECTORS)),
                            .any_value = modes & SEAL_SECTORS,
                            .frames = modes & SEAL_LOG,
                            .image = modes & LOOK};
    use_store(sim, base, &use);
    os_sim_free(sim);
    return 0;
}
