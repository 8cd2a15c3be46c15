#include "index_parts.h"

enum fkv_error index_limit(struct index *index, uint64_t bytes_max)
{
    index->limit.frames_max = (uint32_t)min_u64(bytes_max / PAGE_BYTES, UINT32_MAX);
    index->limit.trim_at = index->limit.frames_max;
    if (!index->limit.frames_max)
        return FKV_OK;
    size_t bytes = ((size_t)1 << INDEX_DEPTH_MAX) * sizeof(struct moves);
    return reservation_make(&index->limit.moves, bytes, false) == 0
               ? pages_allow_parking(index->pages)
               : FKV_NO_MEMORY;
}

void index_limit_drop(struct index *index)
{
    for (uint32_t id = 1; index->limit.moves.base && id < index->segment_count; id++)
        moves_free(moves_of(index, id));
    reservation_drop(&index->limit.moves);
}

/* ---------------------------------------------------------------- taking pages out */

/* Pages that could be in memory instead of what is kept of those that are parked. */
static uint32_t frames_for_parked(const struct index *index)
{
    return (uint32_t)divide_up(index->pages->parked_bytes, PAGE_BYTES);
}

/* Pages that may be in memory beside them. */
static uint32_t frames_allowed(const struct index *index)
{
    return index->limit.frames_max -
           (uint32_t)min_u64(frames_for_parked(index), index->limit.frames_max / 4 * 3);
}

/* May a segment have pages in memory? Those of a large index mostly have none: to see that takes
 * one cache line, of many that lie one after the other. */
static bool segment_is_here(const struct segment *segment)
{
    uint32_t any = 0;
    for (uint32_t i = 0; i < SEGMENT_PAGES_MAX; i++)
        any |= segment->frame[i];
    return any != 0;
}

/* Take up to `most` pages of a segment out of memory that are clean or can be parked. Returns how
 * many; *kept counts those that have to stay. */
static uint32_t segment_evict(struct index *index, uint32_t id, uint32_t most, uint32_t *kept)
{
    struct pages *pages = index->pages;
    struct segment *segment = segment_of(index, id);
    const struct format_segment *entry = directory_read(index, id);
    uint32_t count = 0;
    for (uint32_t i = 0; i < entry->pages && count < most; i++) {
        if (!segment->frame[i]) /* nor has the page one, but while it is brought in */
            continue;
        const struct page *page = pages_find(pages, SPACE_INDEX, entry->page[i]);
        uint32_t frame = 0;
        if (pages_is_clean(pages, page))
            frame = pages_evict(pages, SPACE_INDEX, entry->page[i]);
        else if (pages_can_park(pages, page))
            frame = pages_park(pages, SPACE_INDEX, entry->page[i]);
        if (!frame) {
            ++*kept;
            continue;
        }
        __atomic_store_n(&segment->frame[i], 0, __ATOMIC_RELEASE);
        pages->environment.retire_frame(pages->environment.context, frame);
        count++;
    }
    return count;
}

/* So many pages may have left that wait for a grace period to begin. While a reader keeps those
 * before them, more would only take more memory. */
static uint32_t leaving_max(const struct index *index)
{
    enum { LEAST = 1024 };
    return (uint32_t)max_u64(LEAST, index->limit.frames_max / 8);
}

static bool is_held_up(const struct index *index)
{
    return index->reclaim->filling.count > leaving_max(index);
}

bool index_is_overrun(const struct index *index)
{
    return is_held_up(index) && index->pages->space[SPACE_INDEX].frame_count >
                                    index->limit.frames_max + leaving_max(index);
}

/*
 * Round by round, whoever used what: readers leave no trace of it, for that would cost them
 * something, and where keys are asked for at random there is nothing to be known from it.
 */
void index_trim(struct index *index)
{
    /* Some more than there must go, so that it is worth looking for them: in so many segments that
     * have pages in memory, and past those that have none. The more there are of these, the more
     * have to be passed for each page that is found; else pages come sooner than they are found. */
    enum { BATCH = 32, VISITS = 4 * BATCH, PASSED = 8192 };
    if (!index_is_crowded(index) || is_held_up(index))
        return;
    uint32_t frames = index->pages->space[SPACE_INDEX].frame_count;
    uint32_t least = frames_allowed(index) - (uint32_t)min_u64(BATCH, index->limit.frames_max / 8);
    uint32_t wanted = frames > least ? frames - least : 0;
    uint32_t done = 0, kept = 0, visits = 0;
    uint32_t most = (uint32_t)min_u64(PASSED, index->segment_count);
    pthread_mutex_lock(&index->pages->load_lock);
    for (uint32_t p = 0; p < most && visits < VISITS && done < wanted; p++) {
        if (++index->limit.trim_hand >= index->segment_count)
            index->limit.trim_hand = 1;
        if (!segment_is_here(segment_of(index, index->limit.trim_hand)))
            continue;
        visits++;
        done += segment_evict(index, index->limit.trim_hand, wanted - done, &kept);
    }
    pthread_mutex_unlock(&index->pages->load_lock);
    index->limit.evictions += done;
    index->limit.crowded_by = kept > done ? kept - done : 0;
    /* Where nearly all has to be written first, it is not looked for all the time. */
    index->limit.trim_at = done < wanted ? frames - done + BATCH : frames_allowed(index);
}

void index_trim_again(struct index *index)
{
    index->limit.trim_at = frames_allowed(index);
    index_trim(index);
}

/* ---------------------------------------------------------------- spilling */

void index_moves_end(struct index *index, uint32_t id)
{
    if (!index->limit.moves.base || !moves_of(index, id)->room)
        return;
    index->pages->parked_bytes -= moves_bytes(moves_of(index, id));
    moves_free(moves_of(index, id));
}

/* Is more parked than should be? With less of it, more pages are in memory and each is written more
 * often. */
static bool is_parked_full(const struct index *index)
{
    return frames_for_parked(index) > index->limit.frames_max / 4;
}

/* Spill a parked page; or give it up, if it is damaged. */
static enum fkv_error spill_parked(struct index *index, uint32_t number, bool *unread)
{
    enum fkv_error error = pages_spill_parked(index->pages, SPACE_INDEX, number, unread);
    if (!*unread || error != FKV_DAMAGED)
        return error;
    pages_give_up(index->pages, SPACE_INDEX, number);
    *unread = false;
    return FKV_OK;
}

/* Spill up to `most` pages of a segment: those that are parked, if `parked`, and those that have to
 * stay in memory before. Returns how many. */
static uint32_t segment_spill(struct index *index, uint32_t id, uint32_t most, bool parked,
                              enum fkv_error *error, bool *unread)
{
    struct pages *pages = index->pages;
    const struct format_segment *entry = directory_read(index, id);
    uint32_t count = 0, i;
    *error = FKV_OK;
    *unread = false;
    for (i = 0; i < entry->pages && count < most && !*error; i++) {
        uint32_t number = entry->page[i];
        const struct page *page = pages_find(pages, SPACE_INDEX, number);
        if (parked && pages_is_parked(pages, SPACE_INDEX, number))
            *error = spill_parked(index, number, unread);
        else if (pages_is_changed(pages, page) && !pages_can_park(pages, page))
            *error = pages_spill(pages, SPACE_INDEX, number);
        else
            continue;
        count += !*error;
    }
    if (parked && i == entry->pages && !*error) {
        pthread_mutex_lock(&pages->load_lock);
        index_moves_end(index, id);
        pthread_mutex_unlock(&pages->load_lock);
    }
    return count;
}

void index_spill(struct index *index, uint64_t operations)
{
    enum { LEAST = 64, AN_OPERATION = 4 };
    bool parked;
    if (!index->limit.frames_max || !pages_can_spill(index->pages) ||
        !((parked = is_parked_full(index)) || index->limit.crowded_by))
        return;
    uint64_t most = min_u64(LEAST + AN_OPERATION * operations, UINT32_MAX);
    uint64_t done = 0;
    for (uint64_t v = 0; v < 4 * most && v < index->segment_count && done < most; v++) {
        if (++index->limit.spill_hand >= index->segment_count)
            index->limit.spill_hand = 1;
        /* What cannot be written stays as it is, and the next checkpoint will say why. */
        enum fkv_error error;
        bool unread;
        done += segment_spill(index, index->limit.spill_hand, (uint32_t)(most - done), parked,
                              &error, &unread);
        parked = parked && is_parked_full(index);
        if (!parked && done >= index->limit.crowded_by)
            break;
    }
    index->limit.crowded_by = 0;
    if (done)
        index->limit.trim_at = frames_allowed(index);
}

enum fkv_error index_spill_parked(struct index *index, uint32_t most, bool *none, bool *unread)
{
    struct pages *pages = index->pages;
    enum { VISITS_A_PAGE = 16 };
    enum fkv_error error = FKV_OK;
    uint32_t done = 0;
    *unread = false;
    for (uint32_t v = 0; !error && pages->parked_pages && v < VISITS_A_PAGE * most && done < most;
         v++) {
        if (++index->limit.unpark_hand >= index->segment_count)
            index->limit.unpark_hand = 1;
        done += segment_spill(index, index->limit.unpark_hand, most - done, true, &error, unread);
    }
    if (*unread)
        index->limit.unpark_hand--;
    *none = !pages_any_parked(pages);
    return error;
}

/* ---------------------------------------------------------------- moves that wait */

/* May a move wait for pages of this segment? What it takes is there then. */
static bool await(struct index *index, uint32_t id, uint32_t moves)
{
    struct pages *pages = index->pages;
    const struct format_segment *entry = directory_read(index, id);
    struct moves *waiting = moves_of(index, id);
    pthread_mutex_lock(&pages->load_lock);
    pages->parked_bytes -= moves_bytes(waiting);
    bool ready = moves_reserve(waiting, moves);
    pages->parked_bytes += moves_bytes(waiting);
    ready = ready && pages_await(pages, entry->page, entry->pages, waiting);
    pthread_mutex_unlock(&pages->load_lock);
    return ready;
}

enum fkv_error index_prepare_limited_move(struct index *index, struct hash128 hash, uint32_t others,
                                          uint64_t *entry, bool *waits)
{
    uint32_t id = segment_id(index, hash);
    const struct segment *segment = segment_of(index, id);
    struct probe probe = probe_of(fragment_of(hash, segment->depth).tag, segment->pages);
    /* Each page that is parked for it takes memory too: in an index that is many times as large as
     * its memory they would all be spilled again, for a move or two each. */
    enum { TIMES_MAX = 8 };
    *waits = pages_can_await(index->pages) &&
             index->page_count <= (uint64_t)TIMES_MAX * index->limit.frames_max &&
             !__atomic_load_n(&segment->frame[probe.page], __ATOMIC_ACQUIRE) &&
             await(index, id, others + 1);
    return *waits ? FKV_OK : index_prepare(index, hash, INDEX_LOOK, entry);
}

/* The slot of the record at `address`, in pages that are in memory; *absent: or it may be in one
 * that is not. load_lock. */
static struct slot *find_present(struct index *index, struct fragment key, uint64_t address,
                                 struct found *found, bool *absent)
{
    const struct format_segment *entry = directory_read(index, found->id);
    struct probe probe = probe_of(key.tag, entry->pages);
    *absent = false;
    for (uint32_t i = 0; i < probes_max(entry->pages); i++) {
        uint32_t at = probe_at(&probe, entry->pages, i, &found->page);
        uint32_t frame = pages_find(index->pages, SPACE_INDEX, entry->page[found->page])->frame;
        if (!frame) {
            *absent = true;
            continue;
        }
        struct bucket *bucket = (struct bucket *)frame_bytes(index->pages, frame) + at;
        uint64_t value;
        found->slot = bucket_find(bucket, key, &value);
        if (found->slot && entry_address(value) == address)
            return found->slot;
        if (!is_marked(bucket, probe.class))
            break;
    }
    return NULL;
}

bool index_make_limited_move(struct index *index, struct hash128 hash, uint64_t from, uint64_t to)
{
    struct found found = {.id = segment_id(index, hash)};
    struct fragment key = fragment_of(hash, segment_of(index, found.id)->depth);
    struct moves *waiting = moves_of(index, found.id);
    bool absent;
    pthread_mutex_lock(&index->pages->load_lock);
    struct slot *slot = find_present(index, key, from, &found, &absent);
    bool waits = !slot && absent && waiting->count < waiting->room;
    if (waits)
        moves_add(waiting, key.tag, from, to);
    pthread_mutex_unlock(&index->pages->load_lock);
    if (!slot)
        return waits;
    slot_move(index, &found, to);
    return true;
}
