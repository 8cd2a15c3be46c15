/*
 * fetch: records and sectors that have no address in memory, read from the file by a call.
 *
 * A store that is opened with FKV_READ_WITHOUT_MAPPING reads all that the tail has written this
 * way: an error of the medium then comes back as FKV_IO, where a mapping would end the process. So
 * does any store whose file is larger than the memory that it may use (sectors.by_call): a fault in
 * the mapping reads one page, so that a record which crosses into another page costs two reads of
 * the device; a call reads exactly its pages, in one. (And pages that are not mapped are cheaper
 * for the kernel to take back.)
 *
 * Which way is seen where the address of a sector's bytes is looked up: it is NULL. So readers of
 * what is in memory pay nothing; read_record tells them with READ_BY_CALL to come here.
 */
#ifndef FKV_FETCH_H
#define FKV_FETCH_H

#include "store.h"

/* A record, and the memory it was read into, if it is not where it can be seen. */
struct fetched {
    const uint8_t *record;
    uint8_t *block; /* to be freed */
    uint8_t small[4096];
};

/* As read_record, by a call if need be. fetch_done follows, whatever is returned. */
enum fkv_error fetch_record(struct fkv *db, uint64_t entry, const void *key, size_t key_bytes,
                            struct fetched *fetched);
/*
 * Find the record of a key, wherever it is: as the snapshot has it, or, if that is NULL, as it is
 * now. fetch_done follows, whatever is returned; or, if `fetched` is NULL, *record lasts as long as
 * the read section (read_lend).
 */
enum fkv_error fetch_find(struct fkv *db, const struct fkv_snapshot *snapshot,
                          const struct key *key, uint64_t *entry, struct fetched *fetched,
                          const uint8_t **record);
/* These cells, as they are in the file, into `fetched`. */
enum fkv_error fetch_cells(struct fkv *db, uint64_t address, uint32_t cells,
                           struct fetched *fetched);
static inline void fetch_done(struct fetched *fetched)
{
    memory_free(fetched->block);
    fetched->block = NULL;
}

/* large.c: the record of a sector that the head of a large value lists, verified or not. In a read
 * section, or while a snapshot that sees it is open; fetch_done follows, whatever is returned. */
enum fkv_error large_fetch_sector(struct fkv *db, const uint8_t *head, uint32_t number, bool verify,
                                  struct fetched *fetched, uint64_t *sequence);

/* What read_value and read_size do, for a record that is to be read by a call. */
enum fkv_error fetch_value(struct fkv *db, const struct key *key, void *buffer, size_t buffer_bytes,
                           size_t *value_bytes);
enum fkv_error fetch_size(struct fkv *db, const struct key *key, size_t *value_bytes);

/*
 * The bytes of a values sector: where they are in memory, or read into `room`, which is kept for
 * the next call. Writer lock.
 */
enum fkv_error fetch_sector(struct fkv *db, uint32_t sector, struct sector_room *room,
                            const uint8_t **bytes);
static inline void sector_room_drop(struct sector_room *room)
{
    memory_free(room->bytes);
    room->bytes = NULL;
}

/* Decide whether records are read by calls or in the mapping: where the file and the library's own
 * memory are more than this process may use, by calls. The log and the tail are told, too. Writer
 * lock, or nobody else has the store. */
void fetch_decide(struct fkv *db);

/*
 * How to read a record that is to be read while others are, from the queue of async.c. What is in
 * the page cache is copied from there at once. Of what is not, reads past the cache cost the
 * processor half as much, and leave the cache alone; but what is asked for often has to come into
 * it. So with a file that fits memory all reads fill the cache, and with a larger one every
 * sixteenth: what is asked for again and again is there before long.
 */
enum fetch_way { FETCH_NOW, FETCH_CACHED, FETCH_DIRECT };
enum fetch_way fetch_way(const struct fkv *db, uint64_t offset, uint64_t bytes, uint64_t nth);
/* Be ready for FETCH_DIRECT, if the system and the file system can. Writer lock. */
void fetch_open_direct(struct fkv *db);

#ifdef FKV_TESTING
/* Records that are in the page cache count as if they were not, and all are read this way. */
extern enum fetch_way fetch_test_way;
/* Stores that have a mapping read by calls all the same. FKV_TEST_BY_CALL=1 sets it. */
extern bool fetch_test_by_call;
#endif

#endif
