/*
 * test_threads.c: threads that read and write one store at the same time, under a small log, so
 * that collection, checkpoints, growth and splits go on all the while. To be run under
 * ThreadSanitizer too.
 *
 * Every value says which key it is of and which version, and is filled from both; so a torn or
 * mixed value is seen. What a reader may see at all is bounded from both sides: it is a version
 * that had been committed when the read began, or a later one that had been begun when it ended.
 */
#include "api_support.h"

#include <pthread.h>
#include <stdatomic.h>

enum { THREADS_MAX = 16 };

/* ThreadSanitizer makes everything about ten times slower. */
static double seconds(double plain)
{
    return long_mode() ? seconds_to_run(0) / 10 : plain;
}

/* As insist_ok, with what the handle has to say. */
#define insist_done(db, call)                                                             \
    do {                                                                                  \
        enum fkv_error done_ = (call);                                                    \
        if (done_ != FKV_OK) {                                                            \
            fprintf(stderr, "%s:%d: %s; %s\n", __FILE__, __LINE__, fkv_error_text(done_), \
                    fkv_error_detail(db));                                                \
            _exit(99);                                                                    \
        }                                                                                 \
    } while (0)

/* ---------------------------------------------------------------- threads */

struct crew {
    pthread_t threads[THREADS_MAX];
    unsigned count;
    _Atomic bool stop;
    double end;
};

static void crew_begin(struct crew *crew, double length)
{
    *crew = (struct crew){.end = seconds_now() + length};
}

static void crew_add(struct crew *crew, void *(*work)(void *context), void *context)
{
    assert_true(crew->count < THREADS_MAX);
    assert_int_equal(pthread_create(&crew->threads[crew->count++], NULL, work, context), 0);
}

static bool crew_goes_on(struct crew *crew)
{
    return !atomic_load_explicit(&crew->stop, memory_order_relaxed);
}

/* When the time is over, and there was enough of everything: where much else runs, later. */
static void crew_end(struct crew *crew, bool (*enough)(void *context), void *context)
{
    while (seconds_now() < crew->end || !enough(context))
        usleep(10000);
    crew->stop = true;
    for (unsigned i = 0; i < crew->count; i++)
        pthread_join(crew->threads[i], NULL);
}

/* ---------------------------------------------------------------- readers beside writers */

enum { KEYS = 20000, BIG_KEYS = 40 };

struct versions {
    fkv *db;
    struct crew crew;
    unsigned writers;
    bool limited; /* the memory of the index */
    uint64_t seed;
    _Atomic uint32_t writer_number, reader_number;
    _Atomic uint64_t writes, reads, found;
    /* Of each key, by the one thread that writes it. */
    _Atomic uint32_t begun[KEYS], committed[KEYS];
};

struct value_head {
    uint32_t key, version;
};

/* Some versions are deletes. */
static bool is_delete(uint32_t key, uint32_t version)
{
    return version == 0 || checksum_mix(key * 7919ull + version) % 5 == 0;
}

static size_t version_bytes(uint32_t key, uint32_t version)
{
    uint64_t random = checksum_mix((uint64_t)key << 32 | version);
    if (key < BIG_KEYS) /* up to some that are stored in sectors of their own */
        return sizeof(struct value_head) + random_below(&random, key % 4 ? 60000 : 1300000);
    return sizeof(struct value_head) + random_below(&random, 400);
}

static void version_fill(uint8_t *to, size_t bytes, uint32_t key, uint32_t version)
{
    struct value_head head = {key, version};
    memcpy(to, &head, sizeof head);
    value_fill(to + sizeof head, bytes - sizeof head, (uint64_t)key << 32 | version);
}

/* The version that a value is of; it must be whole. */
static uint32_t version_check(const uint8_t *value, size_t bytes, uint32_t key)
{
    struct value_head head;
    insist(bytes >= sizeof head);
    memcpy(&head, value, sizeof head);
    insist(head.key == key);
    insist(bytes == version_bytes(key, head.version));
    insist(value_is(value + sizeof head, bytes - sizeof head, (uint64_t)key << 32 | head.version));
    return head.version;
}

static void write_version(struct versions *all, uint32_t key, uint8_t *scratch, bool in_txn)
{
    uint32_t version = all->begun[key] + 1;
    size_t bytes = version_bytes(key, version);
    enum fkv_error error;
    fkv_txn *txn;
    all->begun[key] = version;
    if (in_txn)
        insist_ok(fkv_txn_begin(all->db, &txn));
    if (is_delete(key, version)) {
        error =
            in_txn ? fkv_txn_delete(txn, &key, sizeof key) : fkv_delete(all->db, &key, sizeof key);
        insist(error == FKV_OK || (error == FKV_NOT_FOUND && !in_txn));
    } else {
        version_fill(scratch, bytes, key, version);
        insist_done(all->db, in_txn ? fkv_txn_put(txn, &key, sizeof key, scratch, bytes)
                                    : fkv_put(all->db, &key, sizeof key, scratch, bytes));
    }
    if (in_txn) {
        insist_done(all->db, fkv_txn_commit(txn, 0));
        fkv_txn_free(txn);
    }
    all->committed[key] = version;
    all->writes++;
}

static void *writer(void *context)
{
    struct versions *all = context;
    uint32_t mine = all->writer_number++;
    uint64_t random = all->seed + mine;
    uint8_t *scratch = malloc(2 << 20);
    while (crew_goes_on(&all->crew)) {
        uint32_t key = (uint32_t)random_below(
            &random, random_below(&random, 50) ? KEYS : BIG_KEYS); /* keys that are mine alone */
        key -= key % all->writers;
        key += mine;
        if (key < KEYS)
            write_version(all, key, scratch, random_below(&random, 10) == 0);
    }
    free(scratch);
    return NULL;
}

/* One read in one of several ways: UINT32_MAX if there is no value, 0 if there is one of a version
 * that was not asked for. */
static uint32_t read_version(struct versions *all, uint32_t key, unsigned way, uint8_t *scratch)
{
    size_t bytes = 0;
    uint32_t version = 0;
    enum fkv_error error;
    if (way == 0) {
        error = fkv_exists(all->db, &key, sizeof key);
    } else if (way == 1) {
        error = fkv_value_size(all->db, &key, sizeof key, &bytes);
        insist(error || bytes >= sizeof(struct value_head));
    } else if (way < 5) {
        const void *value;
        fkv_read_begin(all->db);
        error = fkv_borrow(all->db, &key, sizeof key, &value, &bytes);
        if (!error)
            version = version_check(value, bytes, key);
        fkv_read_end(all->db);
        if (error == FKV_VALUE_TOO_LARGE)
            return 0;
    } else {
        error = fkv_get(all->db, &key, sizeof key, scratch, 2 << 20, &bytes);
        if (!error)
            version = version_check(scratch, bytes, key);
    }
    if (error && error != FKV_NOT_FOUND) {
        fprintf(stderr, "reading: %s; %s\n", fkv_error_text(error), fkv_error_detail(all->db));
        _exit(99);
    }
    return error ? UINT32_MAX : version;
}

/* Was there a version like this between the two? */
static bool is_possible(uint32_t key, uint32_t got, uint32_t from, uint32_t to)
{
    if (got != 0 && got != UINT32_MAX)
        return from <= got && got <= to && !is_delete(key, got);
    for (uint32_t version = from; version <= to; version++)
        if (is_delete(key, version) == (got == UINT32_MAX))
            return true;
    return false;
}

static void read_some(struct versions *all, uint64_t *random, uint32_t *seen, uint8_t *scratch)
{
    uint32_t key = (uint32_t)random_below(random, random_below(random, 20) ? KEYS : BIG_KEYS);
    unsigned way = (unsigned)random_below(random, 10);
    uint32_t from = all->committed[key];
    uint32_t got = read_version(all, key, way, scratch);
    uint32_t to = all->begun[key];
    if (!is_possible(key, got, from, to)) {
        fprintf(stderr, "key %u, way %u: version %u, and not one of %u to %u\n", key, way, got,
                from, to);
        _exit(99);
    }
    if (got != 0 && got != UINT32_MAX) {
        insist(got >= seen[key]);
        seen[key] = got;
        all->found++;
    }
    all->reads++;
}

static void *reader(void *context)
{
    struct versions *all = context;
    uint64_t random = all->seed + 1000 + all->reader_number++;
    uint8_t *scratch = malloc(2 << 20);
    uint32_t *seen = calloc(KEYS, sizeof *seen);
    while (crew_goes_on(&all->crew))
        read_some(all, &random, seen, scratch);
    free(seen);
    free(scratch);
    return NULL;
}

/* A thread that is gone after some reads, some of them in a section that it never ends. */
static void *short_reader(void *context)
{
    struct versions *all = context;
    uint64_t random = all->seed + 1000 + all->reader_number++;
    uint8_t *scratch = malloc(2 << 20);
    uint32_t *seen = calloc(KEYS, sizeof *seen);
    for (int i = 0; i < 20; i++)
        read_some(all, &random, seen, scratch);
    free(seen);
    free(scratch);
    if (random_below(&random, 2))
        fkv_read_begin(all->db);
    return NULL;
}

static void *short_readers(void *context)
{
    struct versions *all = context;
    while (crew_goes_on(&all->crew)) {
        pthread_t threads[4];
        for (int i = 0; i < 4; i++)
            insist(pthread_create(&threads[i], NULL, short_reader, all) == 0);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
    }
    return NULL;
}

/* What else a program calls beside. */
static void *busybody(void *context)
{
    struct versions *all = context;
    uint64_t random = all->seed + 5000;
    while (crew_goes_on(&all->crew)) {
        fkv_stats stats;
        insist_ok(fkv_get_stats(all->db, &stats, sizeof stats));
        insist(stats.keys <= KEYS);
        uint64_t choice = random_below(&random, 20);
        if (choice == 0)
            insist_ok(fkv_checkpoint(all->db));
        else if (choice == 19)
            insist_ok(fkv_check(all->db, NULL, NULL, 0));
        else if (choice < 4)
            insist_ok(fkv_sync(all->db));
        usleep((useconds_t)random_below(&random, 3000));
    }
    return NULL;
}

static void verify_versions(struct versions *all)
{
    uint8_t *scratch = malloc(2 << 20);
    uint64_t count = 0;
    for (uint32_t key = 0; key < KEYS; key++) {
        uint32_t version = all->committed[key];
        insist(version == all->begun[key]);
        uint32_t got = read_version(all, key, 9, scratch);
        insist(is_possible(key, got, version, version));
        count += !is_delete(key, version);
    }
    assert_int_equal(stats_of(all->db).keys, count);
    free(scratch);
}

static bool enough_versions(void *context)
{
    struct versions *all = context;
    fkv_stats stats;
    insist_ok(fkv_get_stats(all->db, &stats, sizeof stats));
    bool came_and_went = stats.index_loads > 100 && stats.index_evictions > 100;
    return all->writes > 1000 && all->found > 1000 && stats.checkpoints > 0 &&
           stats.index_splits > 0 && (came_and_went || !all->limited);
}

static void readers_beside_writers(struct place *place, const char *name, unsigned flags,
                                   uint64_t index_memory_max, unsigned writers, double length)
{
    struct versions *all = calloc(1, sizeof *all);
    uint8_t scratch[1024]; /* small values only */
    all->seed = test_seed(name);
    all->writers = writers;
    all->limited = index_memory_max;
    must(try_open_limited(place->path, flags, index_memory_max, &all->db));
    if (index_memory_max) /* more keys than fit, however slow it all is */
        for (uint32_t key = KEYS - 5000; key < KEYS; key++)
            write_version(all, key, scratch, false);
    crew_begin(&all->crew, length);
    for (unsigned i = 0; i < writers; i++)
        crew_add(&all->crew, writer, all);
    for (unsigned i = 0; i < 2; i++)
        crew_add(&all->crew, reader, all);
    crew_add(&all->crew, short_readers, all);
    crew_add(&all->crew, busybody, all);
    crew_end(&all->crew, enough_versions, all);
    verify_versions(all);
    fkv_stats stats = stats_of(all->db);
    print_message("%s: %" PRIu64 " writes, %" PRIu64 " reads (%" PRIu64 " of values), %u readers, "
                  "%" PRIu64 " checkpoints, %" PRIu64 " segments built, %" PRIu64 " MiB moved\n",
                  name, all->writes, all->reads, all->found, all->reader_number, stats.checkpoints,
                  stats.index_splits, stats.bytes_written_collector / MIB);
    if (index_memory_max) {
        print_message("%" PRIu64 " index pages read, %" PRIu64 " evicted\n", stats.index_loads,
                      stats.index_evictions);
        must(fkv_check(all->db, NULL, NULL, 0));
    }
    must(fkv_close(all->db));
    must(try_open_limited(place->path, flags, index_memory_max, &all->db));
    verify_versions(all);
    must(fkv_close(all->db));
    free(all);
}

static void test_readers_beside_one_writer(void **state)
{
    readers_beside_writers(*state, "one writer", 0, 0, 1, seconds(2));
}

static void test_readers_beside_writers(void **state)
{
    readers_beside_writers(*state, "three writers", 0, 0, 3, seconds(2));
}

static void test_readers_without_background_threads(void **state)
{
    readers_beside_writers(*state, "two writers, FKV_NO_THREAD", FKV_NO_THREAD, 0, 2, seconds(2));
}

/* Nine pages in ten are not in memory. */
static void test_readers_beside_writers_and_little_memory(void **state)
{
    readers_beside_writers(*state, "little memory", 0, 32768, 2, seconds(2));
}

static void test_readers_and_little_memory_without_threads(void **state)
{
    readers_beside_writers(*state, "little memory, FKV_NO_THREAD", FKV_NO_THREAD, 32768, 2,
                           seconds(2));
}

/* ---------------------------------------------------------------- counters */

enum { COUNTERS = 5 };

struct counting {
    fkv *db;
    struct crew crew;
    _Atomic uint64_t increments[COUNTERS];
    _Atomic uint64_t conflicts, number;
};

/* In a transaction, again until it does not conflict. */
static void increment(struct counting *all, uint32_t counter, bool *committed)
{
    fkv_txn *txn;
    uint64_t value = 0;
    insist_ok(fkv_txn_begin(all->db, &txn));
    enum fkv_error error = fkv_txn_get(txn, &counter, sizeof counter, &value, sizeof value, NULL);
    insist(error == FKV_OK || error == FKV_NOT_FOUND || error == FKV_CONFLICT);
    if (error != FKV_CONFLICT) {
        value++;
        insist_ok(fkv_txn_put(txn, &counter, sizeof counter, &value, sizeof value));
        error = fkv_txn_commit(txn, 0);
        insist(error == FKV_OK || error == FKV_CONFLICT);
    }
    fkv_txn_free(txn);
    *committed = error == FKV_OK;
}

static void *incrementer(void *context)
{
    struct counting *all = context;
    uint64_t random = ++all->number;
    while (crew_goes_on(&all->crew)) {
        uint32_t counter = (uint32_t)random_below(&random, COUNTERS);
        bool committed = false;
        while (!committed) {
            increment(all, counter, &committed);
            all->conflicts += !committed;
        }
        all->increments[counter]++;
    }
    return NULL;
}

/* A counter never goes back, and is never ahead of what was begun. */
static void *counter_reader(void *context)
{
    struct counting *all = context;
    uint64_t last[COUNTERS] = {0}, random = 99;
    while (crew_goes_on(&all->crew)) {
        uint32_t counter = (uint32_t)random_below(&random, COUNTERS);
        uint64_t acknowledged = all->increments[counter], value = 0;
        enum fkv_error error =
            fkv_get(all->db, &counter, sizeof counter, &value, sizeof value, NULL);
        insist(error == FKV_OK || error == FKV_NOT_FOUND);
        insist(value >= acknowledged && value >= last[counter]);
        insist(value <= all->increments[counter] + THREADS_MAX);
        last[counter] = value;
    }
    return NULL;
}

static bool enough_increments(void *context)
{
    struct counting *all = context;
    uint64_t total = 0;
    for (uint32_t counter = 0; counter < COUNTERS; counter++)
        total += all->increments[counter];
    return total > 100;
}

static void count_together(struct place *place, unsigned flags)
{
    struct counting all = {0};
    must(try_open_small_log(place->path, flags, &all.db));
    crew_begin(&all.crew, seconds(2));
    for (int i = 0; i < 4; i++)
        crew_add(&all.crew, incrementer, &all);
    crew_add(&all.crew, counter_reader, &all);
    crew_end(&all.crew, enough_increments, &all);
    uint64_t total = 0;
    for (uint32_t counter = 0; counter < COUNTERS; counter++) {
        uint64_t value = 0;
        must(fkv_get(all.db, &counter, sizeof counter, &value, sizeof value, NULL));
        assert_int_equal(value, all.increments[counter]);
        total += value;
    }
    print_message("%" PRIu64 " increments, %" PRIu64 " conflicts\n", total, all.conflicts);
    must(fkv_close(all.db));
}

static void test_no_increment_is_lost(void **state)
{
    count_together(*state, 0);
}

static void test_no_increment_is_lost_without_threads(void **state)
{
    count_together(*state, FKV_NO_THREAD);
}

/* ---------------------------------------------------------------- money */

enum { ACCOUNTS = 30, MONEY = 1000 };

struct bank {
    fkv *db;
    struct crew crew;
    _Atomic uint64_t transfers, audits, conflicts, number;
};

/* Accounts differ in size, so that some are large values and pieces are moved about. */
static size_t account_bytes(uint32_t account)
{
    return account % 10 == 9 ? 200000 : account % 3 == 2 ? 20000 : sizeof(uint64_t);
}

static enum fkv_error account_get(fkv_txn *txn, uint32_t account, uint8_t *scratch, uint64_t *money)
{
    size_t bytes = 0;
    enum fkv_error error = fkv_txn_get(txn, &account, sizeof account, scratch, 200000, &bytes);
    insist(error == FKV_OK || error == FKV_CONFLICT);
    if (error)
        return error;
    insist(bytes == account_bytes(account));
    memcpy(money, scratch, sizeof *money);
    insist(value_is(scratch + sizeof *money, bytes - sizeof *money, *money));
    return FKV_OK;
}

static void account_put(fkv_txn *txn, uint32_t account, uint8_t *scratch, uint64_t money)
{
    size_t bytes = account_bytes(account);
    memcpy(scratch, &money, sizeof money);
    value_fill(scratch + sizeof money, bytes - sizeof money, money);
    insist_ok(fkv_txn_put(txn, &account, sizeof account, scratch, bytes));
}

static enum fkv_error transfer(fkv_txn *txn, uint64_t *random, uint8_t *scratch)
{
    uint32_t from = (uint32_t)random_below(random, ACCOUNTS);
    uint32_t to = (from + 1 + (uint32_t)random_below(random, ACCOUNTS - 1)) % ACCOUNTS;
    uint64_t have, there;
    enum fkv_error error;
    if ((error = account_get(txn, from, scratch, &have)) ||
        (error = account_get(txn, to, scratch, &there)))
        return error;
    uint64_t amount = random_below(random, have + 1);
    account_put(txn, from, scratch, have - amount);
    account_put(txn, to, scratch, there + amount);
    return fkv_txn_commit(txn, 0);
}

static void *teller(void *context)
{
    struct bank *bank = context;
    uint64_t random = ++bank->number;
    uint8_t *scratch = malloc(200000);
    while (crew_goes_on(&bank->crew)) {
        fkv_txn *txn;
        insist_ok(fkv_txn_begin(bank->db, &txn));
        enum fkv_error error = transfer(txn, &random, scratch);
        insist(error == FKV_OK || error == FKV_CONFLICT);
        bank->transfers += error == FKV_OK;
        bank->conflicts += error != FKV_OK;
        fkv_txn_free(txn);
    }
    free(scratch);
    return NULL;
}

/* All that a transaction reads is of one moment, whether it is committed or not. */
static void *auditor(void *context)
{
    struct bank *bank = context;
    uint8_t *scratch = malloc(200000);
    while (crew_goes_on(&bank->crew)) {
        fkv_txn *txn;
        insist_ok(fkv_txn_begin(bank->db, &txn));
        uint64_t sum = 0, money = 0;
        uint32_t account = 0;
        while (account < ACCOUNTS && !account_get(txn, account, scratch, &money)) {
            sum += money;
            account++;
        }
        if (account == ACCOUNTS) {
            if (sum != ACCOUNTS * MONEY) {
                fprintf(stderr, "the sum is %" PRIu64 "\n", sum);
                _exit(99);
            }
            bank->audits++;
        }
        fkv_txn_free(txn);
    }
    free(scratch);
    return NULL;
}

static void bank_open(struct bank *bank)
{
    uint8_t *scratch = malloc(200000);
    fkv_txn *txn;
    must(fkv_txn_begin(bank->db, &txn));
    for (uint32_t account = 0; account < ACCOUNTS; account++)
        account_put(txn, account, scratch, MONEY);
    must(fkv_txn_commit(txn, 0));
    fkv_txn_free(txn);
    free(scratch);
}

static bool enough_transfers(void *context)
{
    struct bank *bank = context;
    return bank->transfers > 10;
}

static bool any_audit(void *context)
{
    struct bank *bank = context;
    return bank->audits > 0;
}

static void transfer_money(struct place *place, unsigned flags)
{
    struct bank bank = {0};
    must(try_open_small_log(place->path, flags, &bank.db));
    bank_open(&bank);
    crew_begin(&bank.crew, seconds(2));
    crew_add(&bank.crew, teller, &bank);
    crew_add(&bank.crew, teller, &bank);
    crew_add(&bank.crew, auditor, &bank);
    crew_add(&bank.crew, auditor, &bank);
    crew_end(&bank.crew, enough_transfers, &bank);
    print_message("%" PRIu64 " transfers, %" PRIu64 " audits, %" PRIu64 " conflicts\n",
                  bank.transfers, bank.audits, bank.conflicts);
    bank.audits = 0;
    crew_begin(&bank.crew, 0.2); /* with nobody beside it, an audit succeeds */
    crew_add(&bank.crew, auditor, &bank);
    crew_end(&bank.crew, any_audit, &bank);
    must(fkv_close(bank.db));
}

static void test_money_is_conserved(void **state)
{
    transfer_money(*state, 0);
}

static void test_money_is_conserved_without_threads(void **state)
{
    transfer_money(*state, FKV_NO_THREAD);
}

/* ---------------------------------------------------------------- all at once */

enum { TOGETHER = 40 };

struct together {
    fkv *db;
    struct crew crew;
    _Atomic uint64_t commits, pairs, number;
};

static size_t together_bytes(uint32_t key)
{
    return key % 8 == 7 ? 150000 : key % 8 == 6 ? 30000 : 8 + key;
}

/* One transaction after the other writes its number to all keys. */
static void *together_writer(void *context)
{
    struct together *all = context;
    uint8_t *scratch = malloc(150000);
    for (uint64_t number = 1; crew_goes_on(&all->crew); number++) {
        fkv_txn *txn;
        insist_ok(fkv_txn_begin(all->db, &txn));
        for (uint32_t key = 0; key < TOGETHER; key++) {
            size_t bytes = together_bytes(key);
            memcpy(scratch, &number, sizeof number);
            value_fill(scratch + sizeof number, bytes - sizeof number, number + key);
            insist_ok(fkv_txn_put(txn, &key, sizeof key, scratch, bytes));
        }
        insist_done(all->db, fkv_txn_commit(txn, 0));
        fkv_txn_free(txn);
        all->commits++;
    }
    free(scratch);
    return NULL;
}

static uint64_t together_read(struct together *all, uint32_t key, uint8_t *scratch)
{
    size_t bytes = 0;
    uint64_t number = 0;
    enum fkv_error error = fkv_get(all->db, &key, sizeof key, scratch, 150000, &bytes);
    if (error == FKV_NOT_FOUND)
        return 0;
    insist_ok(error);
    insist(bytes == together_bytes(key));
    memcpy(&number, scratch, sizeof number);
    insist(value_is(scratch + sizeof number, bytes - sizeof number, number + key));
    return number;
}

/* What was read first is not newer than what was read after it. */
static void *together_reader(void *context)
{
    struct together *all = context;
    uint64_t random = ++all->number;
    uint8_t *scratch = malloc(150000);
    while (crew_goes_on(&all->crew)) {
        uint32_t first = (uint32_t)random_below(&random, TOGETHER);
        uint32_t second = (uint32_t)random_below(&random, TOGETHER);
        uint64_t a = together_read(all, first, scratch);
        uint64_t b = together_read(all, second, scratch);
        if (b < a) {
            fprintf(stderr, "key %u has %" PRIu64 ", and then key %u has %" PRIu64 "\n", first, a,
                    second, b);
            _exit(99);
        }
        all->pairs++;
    }
    free(scratch);
    return NULL;
}

static bool enough_together(void *context)
{
    struct together *all = context;
    return all->commits > 10 && all->pairs > 100;
}

static void write_together(struct place *place, unsigned flags)
{
    struct together all = {0};
    must(try_open_small_log(place->path, flags, &all.db));
    crew_begin(&all.crew, seconds(2));
    crew_add(&all.crew, together_writer, &all);
    for (int i = 0; i < 3; i++)
        crew_add(&all.crew, together_reader, &all);
    crew_end(&all.crew, enough_together, &all);
    print_message("%" PRIu64 " transactions, %" PRIu64 " pairs read\n", all.commits, all.pairs);
    must(fkv_close(all.db));
}

static void test_transactions_show_all_at_once(void **state)
{
    write_together(*state, 0);
}

static void test_transactions_show_all_at_once_without_threads(void **state)
{
    write_together(*state, FKV_NO_THREAD);
}

/* ---------------------------------------------------------------- writing while borrowing */

struct borrowing {
    fkv *db;
    struct crew crew;
    _Atomic uint64_t sections, number;
};

/* Borrow a value, write much, that key too, and find what was borrowed as it was. */
static void borrow_and_write(struct borrowing *all, uint64_t *random, uint8_t *scratch)
{
    uint64_t key = random_below(random, 50);
    const void *value;
    size_t bytes;
    fkv_read_begin(all->db);
    enum fkv_error error = fkv_borrow(all->db, &key, sizeof key, &value, &bytes);
    insist(error == FKV_OK || error == FKV_NOT_FOUND);
    uint64_t seed = 0;
    if (!error)
        memcpy(&seed, value, sizeof seed);
    for (int i = 0; i < 100; i++) {
        uint64_t other = i ? random_below(random, 50) : key;
        uint64_t fresh = next_random(random);
        size_t length = sizeof fresh + random_below(random, 20000);
        memcpy(scratch, &fresh, sizeof fresh);
        value_fill(scratch + sizeof fresh, length - sizeof fresh, fresh);
        insist_done(all->db, fkv_put(all->db, &other, sizeof other, scratch, length));
    }
    if (!error)
        insist(memcmp(value, &seed, sizeof seed) == 0 &&
               value_is((const uint8_t *)value + sizeof seed, bytes - sizeof seed, seed));
    fkv_read_end(all->db);
    all->sections++;
}

static void *borrower(void *context)
{
    struct borrowing *all = context;
    uint64_t random = ++all->number;
    uint8_t *scratch = malloc(32768);
    while (crew_goes_on(&all->crew))
        borrow_and_write(all, &random, scratch);
    free(scratch);
    return NULL;
}

/* One that writes outside sections, and so may wait for those of the others. */
static void *plain_writer(void *context)
{
    struct borrowing *all = context;
    uint64_t random = ++all->number;
    uint8_t value[5000] = {0};
    while (crew_goes_on(&all->crew)) {
        uint64_t key = 1000 + random_below(&random, 500);
        insist_done(all->db, fkv_put(all->db, &key, sizeof key, value, sizeof value));
    }
    return NULL;
}

static bool any_section(void *context)
{
    struct borrowing *all = context;
    return all->sections > 0;
}

static void write_while_borrowing(struct place *place, unsigned flags)
{
    struct borrowing all = {0};
    must(try_open_small_log(place->path, flags, &all.db));
    alarm(HANG_SECONDS + (unsigned)seconds(2));
    crew_begin(&all.crew, seconds(2));
    for (int i = 0; i < 4; i++)
        crew_add(&all.crew, i < 3 ? borrower : plain_writer, &all);
    crew_end(&all.crew, any_section, &all);
    alarm(0);
    print_message("%" PRIu64 " sections\n", all.sections);
    must(fkv_close(all.db));
}

static void test_writing_while_borrowing(void **state)
{
    write_while_borrowing(*state, 0);
}

static void test_writing_while_borrowing_without_threads(void **state)
{
    write_while_borrowing(*state, FKV_NO_THREAD);
}

/* ---------------------------------------------------------------- shared syncs */

struct syncing {
    fkv *db;
    struct crew crew;
    _Atomic uint64_t commits, number;
};

static void *syncer(void *context)
{
    struct syncing *all = context;
    uint64_t mine = ++all->number;
    for (uint64_t i = 0; crew_goes_on(&all->crew); i++) {
        uint64_t key = mine << 32 | i % 100;
        insist_ok(fkv_put_with(all->db, &key, sizeof key, &i, sizeof i, FKV_SYNC));
        all->commits++;
    }
    return NULL;
}

static bool any_sync(void *context)
{
    struct syncing *all = context;
    return all->commits > 0;
}

/* Commits that ask for sync and arrive together share one. */
static void test_syncs_are_shared(void **state)
{
    struct place *place = *state;
    struct syncing all = {.db = open_with(place->path, 0)};
    crew_begin(&all.crew, seconds(1));
    for (int i = 0; i < 8; i++)
        crew_add(&all.crew, syncer, &all);
    crew_end(&all.crew, any_sync, &all);
    uint64_t syncs = stats_of(all.db).syncs;
    print_message("%" PRIu64 " synced commits, %" PRIu64 " syncs\n", all.commits, syncs);
    assert_true(syncs <= all.commits);
    must(fkv_close(all.db));
}

#define in_memory(function) \
    cmocka_unit_test_setup_teardown(function, place_make_in_memory, place_drop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_memory(test_readers_beside_one_writer),
        in_place(test_readers_beside_writers),
        in_memory(test_readers_without_background_threads),
        in_memory(test_readers_beside_writers_and_little_memory),
        in_memory(test_readers_and_little_memory_without_threads),
        in_memory(test_no_increment_is_lost),
        in_memory(test_no_increment_is_lost_without_threads),
        in_memory(test_money_is_conserved),
        in_memory(test_money_is_conserved_without_threads),
        in_memory(test_transactions_show_all_at_once),
        in_memory(test_transactions_show_all_at_once_without_threads),
        in_memory(test_writing_while_borrowing),
        in_memory(test_writing_while_borrowing_without_threads),
        in_place(test_syncs_are_shared),
    };
    return run_all(tests);
}
