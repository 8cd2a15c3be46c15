#include "frame.h"
#include "header.h"
#include "image.h"
#include "memory.h"

/* Read at least this much at once; of a log that cannot all be read, a page: else what lies before
 * a place that cannot be read would be read again for each look at it. */
#define WINDOW_BYTES (4 * MIB)

static size_t window_bytes(const struct image_log *log, uint64_t offset, size_t bytes)
{
    uint64_t least = log->unreadable ? PAGE_BYTES - offset % PAGE_BYTES : WINDOW_BYTES;
    return (size_t)min_u64(max_u64(bytes, least), log->size - offset);
}

enum fkv_error image_log_open(struct image_log *log, const struct os_ops *ops, struct os_file *file,
                              const char *path, const uint8_t store_id[16])
{
    *log = (struct image_log){.ops = ops, .file = file, .path = path, .seed = load_u64(store_id)};
    if (!file)
        return FKV_OK;
    int status = ops->size(file, &log->size);
    if (status)
        return error_os(status, "size of", path);
    log->window_room = WINDOW_BYTES;
    log->window = memory_buffer(log->window_room);
    return log->window ? FKV_OK : FKV_NO_MEMORY;
}

void image_log_drop(struct image_log *log)
{
    memory_free(log->window);
}

const uint8_t *image_log_bytes(struct image_log *log, uint64_t offset, size_t bytes,
                               enum fkv_error *error)
{
    if (offset >= log->window_offset && offset + bytes <= log->window_offset + log->window_bytes)
        return log->window + (offset - log->window_offset);
    if (bytes > log->window_room) {
        uint8_t *window = memory_resize(log->window, bytes);
        if (!window) {
            *error = FKV_NO_MEMORY;
            return NULL;
        }
        log->window = window;
        log->window_room = bytes;
    }
    size_t want = window_bytes(log, offset, bytes);
    log->window_offset = offset;
    log->window_bytes = 0;
    int status = log->ops->read(log->file, log->window, want, offset);
    if (status && !log->unreadable) {
        log->unreadable = true;
        want = window_bytes(log, offset, bytes);
        status = log->ops->read(log->file, log->window, want, offset);
    }
    if (status)
        return NULL;
    log->window_bytes = want;
    return log->window;
}

bool image_log_header(struct image_log *log, const uint8_t store_id[16], struct report *problems)
{
    struct format_log_header header;
    enum fkv_error error = FKV_OK;
    const uint8_t *bytes = NULL;
    if (log->size >= LOG_FRAMES_OFFSET + sizeof(struct format_frame))
        bytes = image_log_bytes(log, 0, sizeof header, &error);
    if (!bytes) {
        report(problems, FKV_PART_LOG, 0, "the log's header cannot be read: the log has %llu bytes",
               (unsigned long long)log->size);
        return false;
    }
    memcpy(&header, bytes, sizeof header);
    if (header.magic != LOG_MAGIC || header.version != FORMAT_VERSION ||
        header.checksum != log_header_checksum(&header)) {
        report(problems, FKV_PART_LOG, 0, "the log's header is damaged");
        return false;
    }
    if (memcmp(header.store_id, store_id, sizeof header.store_id) != 0) {
        report(problems, FKV_PART_LOG, 0, "the log belongs to another store");
        return false;
    }
    return true;
}

bool image_log_frame(struct image_log *log, uint64_t offset, struct format_frame *frame,
                     const uint8_t **operations, enum fkv_error *error)
{
    if (!log->file || offset < LOG_FRAMES_OFFSET || offset % 8 || offset > log->size ||
        log->size - offset < sizeof *frame)
        return false;
    const uint8_t *bytes = image_log_bytes(log, offset, sizeof *frame, error);
    if (!bytes)
        return false;
    memcpy(frame, bytes, sizeof *frame);
    if (!frame_header_is_plausible(frame, log->size - offset) ||
        !(bytes = image_log_bytes(log, offset, frame->bytes, error)))
        return false;
    if (!frame_is_plausible(frame, bytes) ||
        frame->checksum != frame_checksum(bytes, frame->bytes, log->seed))
        return false;
    if (operations)
        *operations = bytes + sizeof *frame;
    return true;
}

uint64_t image_log_find(struct image_log *log, uint64_t offset, struct format_frame *frame,
                        enum fkv_error *error)
{
    enum { STEP = 8, UNREADABLE = 4096 };
    while (log->file && !*error && offset + sizeof *frame <= log->size) {
        const uint8_t *bytes = image_log_bytes(log, offset, sizeof *frame, error);
        if (!bytes) {
            offset = round_up(offset + 1, UNREADABLE);
            continue;
        }
        memcpy(frame, bytes, sizeof *frame);
        if (frame_header_is_plausible(frame, log->size - offset) &&
            image_log_frame(log, offset, frame, NULL, error))
            return offset;
        offset += STEP;
    }
    return UINT64_MAX;
}
