#include "check_parts.h"
#include "frame.h"
#include "tree.h"

/* ---------------------------------------------------------------- the header */

static bool same_but_for_sequence(struct format_header a, const struct format_header *b)
{
    a.sequence = b->sequence;
    a.checksum = b->checksum;
    return memcmp(&a, b, sizeof a) == 0;
}

/* One copy was written right after the other and they say the same, unless a crash came between:
 * then the next opening for writing makes it so. */
static void check_copies(struct check *check)
{
    const struct image *image = &check->image;
    for (int i = 0; i < 2; i++)
        if (!image->whole[i])
            report(&check->report, FKV_PART_HEADER, (uint64_t)i * PAGE_BYTES,
                   "copy %d of the header is damaged, or a crash interrupted its writing", i);
    if (!image->whole[0] || !image->whole[1])
        return;
    const struct format_header *a = &image->copies[0], *b = &image->copies[1];
    uint64_t apart =
        a->sequence > b->sequence ? a->sequence - b->sequence : b->sequence - a->sequence;
    bool writable = check->db && !check->db->read_only;
    if (memcmp(a->store_id, b->store_id, sizeof a->store_id) != 0 ||
        memcmp(a->salt, b->salt, sizeof a->salt) != 0 || a->features != b->features)
        report(&check->report, FKV_PART_HEADER, 0,
               "the copies of the header are of different stores");
    else if (apart != 1 || (writable && !same_but_for_sequence(*a, b)))
        report(&check->report, FKV_PART_HEADER, 0,
               "the copies of the header, with sequences %llu and %llu, are not of the same time",
               (unsigned long long)a->sequence, (unsigned long long)b->sequence);
}

void check_headers(struct check *check)
{
    const struct image *image = &check->image;
    if (check->options.flags & CHECK_NO_FILE)
        return;
    if (check->db && atomic_load(&check->db->failed))
        return; /* perhaps by failing to write a header */
    check_copies(check);
    const struct format_header *header = check->db ? &check->db->header : image->header;
    if (!header)
        return;
    if (check->db && (!image->header || memcmp(image->header, header, sizeof *header) != 0))
        report(&check->report, FKV_PART_HEADER, 0,
               "the header in the file is not the one that was written last");
    if (image->file_bytes / SECTOR_BYTES < header->sector_count)
        report(&check->report, FKV_PART_HEADER, image->file_bytes,
               "the file has %llu bytes and should have at least %llu",
               (unsigned long long)image->file_bytes,
               (unsigned long long)header->sector_count * SECTOR_BYTES);
}

/* ---------------------------------------------------------------- trees and pages */

void check_trees(struct check *check)
{
    if (check->options.flags & CHECK_NO_FILE)
        return;
    const struct format_header *header = check->db ? &check->db->header : check->image.header;
    uint64_t before = check->result.problems;
    if (image_load(&check->image, header, &check->report))
        check_no_memory(check);
    check->pages_lost |= check->result.problems != before;
    check->result.pages = check->image.pages_stored;
    if (check->db)
        return;
    for (int s = 0; s < SPACE_COUNT; s++) /* what the header claims may be impossible */
        check->page_count[s] = check->image.space[s].page_count;
}

void check_stored_pages(struct check *check)
{
    enum { PAGES_A_STEP = 256 };
    const struct image *image = &check->image;
    uint32_t done = 0;
    if (check->options.flags & CHECK_NO_FILE)
        return;
    for (int s = 0; s < SPACE_COUNT; s++) {
        for (uint32_t n = 0; n < image->space[s].page_count; n++) {
            uint8_t bytes[PAGE_BYTES];
            struct format_reference from = image->space[s].pages[n];
            if (!from.location || from.location == IMAGE_UNKNOWN)
                continue;
            enum fkv_error error = image_reference(image, from, page_seed(s, 0, n), bytes);
            if (error) {
                check->pages_lost = true;
                report(&check->report, FKV_PART_PAGES, from.location * PAGE_BYTES,
                       "the %s page %u at page %llu of the file %s", image_space_name(s), n,
                       (unsigned long long)from.location,
                       error == FKV_IO ? "cannot be read" : "fails its checksum");
            }
            if (++done % PAGES_A_STEP == 0 && !check_advance(check, PAGES_A_STEP * PAGE_BYTES))
                return;
        }
    }
}

/* ---------------------------------------------------------------- the log */

static const char *bad_operation(const struct check *check,
                                 const struct format_operation *operation)
{
    static const struct {
        uint32_t least, most;
    } bytes[] = {[OPERATION_OPEN] = {8, 8},
                 [OPERATION_PUT] = {RECORD_HEADER_BYTES, RECORD_BYTES_MAX},
                 [OPERATION_REFER] = {4, 4},
                 [OPERATION_DELETE] = {16, 16},
                 [OPERATION_MOVE] = {8, 8},
                 [OPERATION_LARGE] = {OPERATION_LARGE_BYTES, OPERATION_LARGE_BYTES}};
    if (operation->kind < OPERATION_OPEN || operation->kind > OPERATION_LARGE)
        return "of an unknown kind";
    if (operation->bytes < bytes[operation->kind].least ||
        operation->bytes > bytes[operation->kind].most)
        return "of an impossible length";
    bool placed = operation->kind != OPERATION_DELETE;
    uint64_t sector = operation->address / SECTOR_CELLS;
    if (placed && (sector == 0 || sector >= (check->db ? check->sector_count : SECTORS_MAX)))
        return "at a place outside the file";
    return NULL;
}

static void check_frame(struct check *check, uint64_t offset, const struct format_frame *frame,
                        const uint8_t *operations)
{
    struct format_operation operation;
    const uint8_t *payload;
    const uint8_t *end = operations + frame->bytes - sizeof *frame;
    check->result.log_frames++;
    if (frame->flags & (FRAME_RESTART | FRAME_WRAP))
        return;
    while (operation_next(&operations, end, &operation, &payload)) {
        const char *bad = bad_operation(check, &operation);
        if (bad)
            report(&check->report, FKV_PART_LOG, offset,
                   "the frame of commit %llu at offset %llu of the log has an operation %s",
                   (unsigned long long)frame->commit, (unsigned long long)offset, bad);
    }
    if (operations != end)
        report(&check->report, FKV_PART_LOG, offset,
               "the frame of commit %llu at offset %llu of the log ends within an operation",
               (unsigned long long)frame->commit, (unsigned long long)offset);
}

/* Follow the chain from the header on. Returns the last commit. */
static uint64_t check_chain(struct check *check, struct image_log *log,
                            const struct format_header *header)
{
    struct log_position at = {header->log_offset, header->log_chain};
    const struct log_position *head = check->db ? &check->db->log.head : NULL;
    uint64_t commit = header->commit;
    uint64_t bytes = 0;
    while (check_goes_on(check)) {
        struct format_frame frame;
        const uint8_t *operations;
        if (head && at.offset == head->offset && at.chain == head->chain)
            break;
        if (!image_log_frame(log, at.offset, &frame, &operations, &check->error) ||
            frame.previous != at.chain) {
            if (head)
                report(&check->report, FKV_PART_LOG, at.offset,
                       "the log breaks off at offset %llu, before its end at %llu",
                       (unsigned long long)at.offset, (unsigned long long)head->offset);
            break;
        }
        check_frame(check, at.offset, &frame, operations);
        if (frame_is_commit(&frame) && frame.commit != ++commit) {
            report(&check->report, FKV_PART_LOG, at.offset,
                   "the log has commit %llu at offset %llu in place of %llu",
                   (unsigned long long)frame.commit, (unsigned long long)at.offset,
                   (unsigned long long)commit);
            commit = frame.commit;
        }
        bytes += frame.bytes;
        if (bytes > log->size) {
            report(&check->report, FKV_PART_LOG, at.offset, "the log runs in a circle");
            break;
        }
        at = (struct log_position){image_log_after(at.offset, &frame), frame.checksum};
    }
    return commit;
}

/* Frames that follow on a synced one beyond the end of the chain show that frames are lost. */
static void check_end(struct check *check, struct image_log *log, uint64_t last)
{
    struct format_frame frame;
    for (uint64_t offset = LOG_FRAMES_OFFSET;
         (offset = image_log_find(log, offset, &frame, &check->error)) != UINT64_MAX;
         offset += frame.bytes)
        if (frame.durable_commit > last && frame.commit >= frame.durable_commit) {
            report(&check->report, FKV_PART_LOG, offset,
                   "the log ends at commit %llu, but commit %llu had been synced",
                   (unsigned long long)last, (unsigned long long)frame.durable_commit);
            return;
        }
}

void check_log(struct check *check)
{
    if (check->options.flags & CHECK_NO_FILE)
        return;
    const struct format_header *header = check->db ? &check->db->header : check->image.header;
    if (!check->log_file && !header->clean)
        report(&check->report, FKV_PART_LOG, NOWHERE, "%s is missing, and %s was not closed",
               check->log_path, check->path);
    bool in_use = check->db ? check->db->log.map != NULL : check->log_file != NULL;
    if (!in_use)
        return;
    struct image_log log;
    check->error =
        image_log_open(&log, check->image.ops, check->log_file, check->log_path, check->store_id);
    if (!check->error && image_log_header(&log, check->store_id, &check->report)) {
        uint64_t last = check_chain(check, &log, header);
        if (check->db && check_goes_on(check) && last != check->db->commit)
            report(&check->report, FKV_PART_LOG, NOWHERE,
                   "the log ends at commit %llu, the last one is %llu", (unsigned long long)last,
                   (unsigned long long)check->db->commit);
        if (!check->db && check_goes_on(check))
            check_end(check, &log, last);
    }
    if (log.unreadable && check_goes_on(check))
        report(&check->report, FKV_PART_LOG, NOWHERE, "parts of the log cannot be read");
    image_log_drop(&log);
}
