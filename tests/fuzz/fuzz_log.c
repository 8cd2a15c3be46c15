/*
 * fuzz_log: any bytes are the log of a store, which is replayed and used.
 *
 * An input is the number of a base, a byte of modes, and what the log has behind its header.
 */
#include "checksum.h"
#include "fuzz.h"
#include "places.h"
#include "seal.h"
#include "use.h"

#include <stdlib.h>

enum modes {
    SEAL = 1 << 0,         /* the frames, and their chain */
    SEAL_RECORDS = 1 << 1, /* with SEAL, those in frames too */
    SEAL_NUMBERS = 1 << 2, /* with SEAL: number the commits */
    READ_ONLY = 1 << 3,
    FULL_SIZE = 1 << 4, /* the file is as long as a new log, zeros at its end */
    NO_MAPPING = 1 << 5,
    LOOK = 1 << 6, /* check and repair the files first */
};

static void make_log(struct os_sim *sim, const uint8_t *frames, size_t bytes, bool full_size)
{
    size_t size = LOG_FRAMES_OFFSET + (full_size ? MIB - LOG_FRAMES_OFFSET : bytes);
    uint8_t *log = calloc(1, size);
    struct format_header store = places_header(sim);
    struct format_log_header header = {.magic = LOG_MAGIC, .version = FORMAT_VERSION};
    memcpy(header.store_id, store.store_id, sizeof header.store_id);
    header.checksum = checksum64(&header, offsetof(struct format_log_header, checksum));
    memcpy(log, &header, sizeof header);
    memcpy(log + LOG_FRAMES_OFFSET, frames, bytes);
    os_sim_put_file(sim, BASE_LOG_PATH, log, size);
    free(log);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { BYTES_MOST = 32 << 10 };
    if (size < 2 || size > BYTES_MOST)
        return -1;
    const struct base *base = base_get(data[0]);
    const unsigned modes = data[1];
    struct os_sim *sim = os_sim_copy(base->sim);
    make_log(sim, data + 2, size - 2, modes & FULL_SIZE);
    const struct seal_log log = {.records = modes & SEAL_RECORDS, .numbers = modes & SEAL_NUMBERS};
    if (modes & SEAL)
        seal_log(sim, &log);
    const struct use use = {.flags = (modes & READ_ONLY ? FKV_OPEN_READ_ONLY : 0) |
                                     (modes & NO_MAPPING ? FKV_READ_WITHOUT_MAPPING : 0),
                            .strict = !(modes & SEAL),
                            .any_value = (modes & SEAL) && (modes & SEAL_RECORDS),
                            .frames = modes & SEAL,
                            .image = modes & LOOK};
    use_store(sim, base, &use);
    os_sim_free(sim);
    return 0;
}
