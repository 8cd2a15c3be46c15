/*
 * Readers cost nothing and leave nothing: a reader beside a writer at full speed makes no system
 * call, while segments split, the collector moves records, checkpoints run and the file grows; and
 * threads that come and go by thousands, or end inside a read section, hold nothing up; nor does
 * one that waits for a writer inside of one. And the threads that the library starts take no
 * signals.
 *
 * System calls are counted by the kernel: a filter that only this thread has turns each of its
 * calls into a signal (seccomp). Only a scan makes some, one a sector, to have it read ahead. The
 * filter cannot be taken off again, so the reader lives in a child process and ends with it.
 */
#include "api_support.h"

#include <dirent.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "store.h"
#include "support.h"

/* ---------------------------------------------------------------- no system calls */

enum { KEYS = 20000, VALUE_MAX = 1500, WARM_UP = 50000, READS = 1500000, SYSTEM_CALLS_KEPT = 16 };

enum phase { WARMING, COUNTING, DONE };

struct scene {
    fkv *db;
    fkv_snapshot *snapshot;
    fkv_scan *scan;
    _Atomic enum phase phase;
    _Atomic bool enough; /* has gone on beside the reader */
    bool refused;        /* no filter may be set here */
    uint64_t found, scanned;
};

static _Atomic unsigned system_calls, reads_ahead;
static _Atomic int system_calls_made[SYSTEM_CALLS_KEPT];

static void note_system_call(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    if (info->si_syscall == SYS_fadvise64) {
        reads_ahead++;
        return;
    }
    unsigned n = atomic_fetch_add(&system_calls, 1);
    if (n < SYSTEM_CALLS_KEPT)
        system_calls_made[n] = info->si_syscall;
}

/* From now on no system call of this thread is done: each is noted instead, but for the return from
 * the signal that says so. */
static bool forbid_system_calls(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof filter[0], .filter = filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
}

/* Every value of a key begins with the key. */
static void put_random(struct scene *scene, uint64_t *random, uint64_t key)
{
    uint8_t value[VALUE_MAX] = {0};
    memcpy(value, &key, sizeof key);
    insist_ok(fkv_put(scene->db, &key, sizeof key, value,
                      sizeof key + random_below(random, VALUE_MAX - sizeof key)));
}

static void check_value(const void *value, size_t bytes, uint64_t key)
{
    insist(bytes >= sizeof key && memcmp(value, &key, sizeof key) == 0);
}

static void scan_a_step(struct scene *scene)
{
    const void *key, *value;
    size_t key_bytes, value_bytes;
    uint64_t number;
    enum fkv_error error = fkv_scan_next(scene->scan, &key, &key_bytes, &value, &value_bytes);
    if (error == FKV_NOT_FOUND)
        return;
    insist_ok(error);
    memcpy(&number, key, sizeof number);
    check_value(value, value_bytes, number);
    scene->scanned++;
}

static void read_a_key(struct scene *scene, uint64_t key, uint64_t how)
{
    uint8_t value[VALUE_MAX];
    const void *borrowed;
    size_t bytes;
    switch (how) {
    case 0:
        insist_ok(fkv_get(scene->db, &key, sizeof key, value, sizeof value, &bytes));
        check_value(value, bytes, key);
        break;
    case 1:
        insist_ok(fkv_exists(scene->db, &key, sizeof key));
        break;
    case 2:
        fkv_read_begin(scene->db);
        insist_ok(fkv_borrow(scene->db, &key, sizeof key, &borrowed, &bytes));
        check_value(borrowed, bytes, key);
        fkv_read_end(scene->db);
        break;
    case 3: /* one that is not there */
        key += UINT64_C(1) << 40;
        insist(fkv_get(scene->db, &key, sizeof key, value, sizeof value, &bytes) == FKV_NOT_FOUND);
        return;
    default:
        insist_ok(fkv_snapshot_get(scene->snapshot, &key, sizeof key, value, sizeof value, &bytes));
        check_value(value, bytes, key);
    }
    scene->found++;
}

static void *read_on(void *context)
{
    struct scene *scene = context;
    uint64_t random = 77;
    for (uint64_t i = 0; i < WARM_UP + READS || !scene->enough; i++) {
        if (i == WARM_UP) {
            scene->refused = !forbid_system_calls();
            scene->phase = COUNTING;
        }
        read_a_key(scene, random_below(&random, KEYS), random_below(&random, 5));
        if (i % 100 == 0)
            scan_a_step(scene);
    }
    scene->phase = DONE;
    while (scene->phase ==
           DONE) /* the process ends with it: to end alone would take system calls */
        ;
    return NULL;
}

/* What the child says with its end. */
enum { GOOD = 0, REFUSED = 3 };

/* Did the index split, checkpoints run, the collector move records and the file grow? */
static bool all_has_happened(const fkv_stats *before, const fkv_stats *now)
{
    return now->index_splits > before->index_splits && now->checkpoints > before->checkpoints &&
           now->bytes_written_collector > before->bytes_written_collector &&
           now->file_bytes > before->file_bytes;
}

/* The writer: until the reader is done, which waits until it has had everything happen beside it.
 */
static int write_beside_reader(uint32_t flags)
{
    struct scene scene = {0};
    fkv_options options;
    fkv_stats before, now;
    uint64_t random = 1, next_key = KEYS;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = 8 << 20;
    options.garbage_percent_max = 30;
    const char *path = support_path(flags ? "alone" : "threads");
    insist_ok(fkv_open(path, &options, &scene.db));
    for (uint64_t key = 0; key < KEYS; key++)
        put_random(&scene, &random, key);
    insist_ok(fkv_snapshot_open(scene.db, &scene.snapshot));
    insist_ok(fkv_scan_open(scene.snapshot, NULL, &scene.scan));
    struct sigaction action = {.sa_sigaction = note_system_call, .sa_flags = SA_SIGINFO};
    insist(sigaction(SIGSYS, &action, NULL) == 0);
    pthread_t reader;
    insist(pthread_create(&reader, NULL, read_on, &scene) == 0);
    while (scene.phase == WARMING)
        put_random(&scene, &random, random_below(&random, KEYS));
    insist_ok(fkv_get_stats(scene.db, &before, sizeof before));
    while (scene.phase != DONE) {
        put_random(&scene, &random, random_below(&random, KEYS));
        put_random(&scene, &random,
                   random_below(&random, 2) ? next_key++ : random_below(&random, KEYS));
        if (next_key % 512 == 0 && !scene.enough) {
            insist_ok(fkv_get_stats(scene.db, &now, sizeof now));
            scene.enough = all_has_happened(&before, &now);
        }
    }
    insist_ok(fkv_get_stats(scene.db, &now, sizeof now));
    if (scene.refused)
        return REFUSED;
    printf("%" PRIu64 " values read and %" PRIu64 " steps of a scan, beside %" PRIu64
           " commits, %" PRIu64 " splits, %" PRIu64 " checkpoints, %" PRIu64 " MiB moved, %" PRIu64
           " MiB more of file: %u system calls, %u for the scan to read ahead\n",
           scene.found, scene.scanned, now.commits - before.commits,
           now.index_splits - before.index_splits, now.checkpoints - before.checkpoints,
           (now.bytes_written_collector - before.bytes_written_collector) >> 20,
           (now.file_bytes - before.file_bytes) >> 20, system_calls, reads_ahead);
    for (unsigned i = 0; i < system_calls && i < SYSTEM_CALLS_KEPT; i++)
        printf("system call %d\n", system_calls_made[i]);
    fflush(stdout);
    insist(scene.scanned > 1000 && system_calls == 0);
    insist(reads_ahead <= before.sectors_values + before.snapshot_sectors);
    return GOOD;
}

static void count_system_calls(uint32_t flags)
{
    if (SANITIZED) {
        print_message("sanitizers make system calls of their own: not counted\n");
        skip();
    }
    fflush(stdout);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(write_beside_reader(flags));
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == REFUSED) {
        print_message("this system allows no filter of system calls: not counted\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), GOOD);
}

static void test_no_system_calls(void **state)
{
    (void)state;
    count_system_calls(0);
}

static void test_no_system_calls_without_threads(void **state)
{
    (void)state;
    count_system_calls(FKV_NO_THREAD);
}

/* ---------------------------------------------------------------- threads that come and go */

enum { FEW_KEYS = 500, AT_A_TIME = 50, GENERATIONS = SANITIZED ? 10 : 200 };

/* How a thread ends: it leaves its section, or is in one or two. */
static void *come_and_go(void *context)
{
    fkv *db = context;
    static _Atomic uint64_t turn;
    uint64_t mine = turn++;
    uint64_t key = mine % FEW_KEYS;
    const void *value;
    size_t bytes;
    fkv_read_begin(db);
    insist_ok(fkv_borrow(db, &key, sizeof key, &value, &bytes));
    check_value(value, bytes, key);
    if (mine % 3 == 0)
        fkv_read_end(db);
    else if (mine % 3 == 1)
        fkv_read_begin(db);
    insist_ok(fkv_exists(db, &key, sizeof key));
    return NULL;
}

static size_t resident_pages(void)
{
    size_t size = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%zu %zu", &size, &resident), 2);
    fclose(file);
    return resident;
}

static void overwrite_all(struct scene *scene, uint64_t *random)
{
    for (uint64_t key = 0; key < FEW_KEYS; key++)
        put_random(scene, random, key);
}

static void generation(struct scene *scene, uint64_t *random)
{
    pthread_t threads[AT_A_TIME];
    for (int i = 0; i < AT_A_TIME; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, come_and_go, scene->db), 0);
    overwrite_all(scene, random);
    for (int i = 0; i < AT_A_TIME; i++)
        pthread_join(threads[i], NULL);
}

/* Ten thousand threads, two of three of which end inside read sections; afterwards all that was
 * freed can be used again, and memory is what it was. */
static void come_and_go_by_thousands(uint32_t flags)
{
    struct scene scene = {0};
    fkv_options options;
    fkv_stats early, late;
    uint64_t random = 1;
    fkv_options_init(&options);
    options.flags = flags;
    options.log_bytes_max = 4 << 20;
    assert_ok(fkv_open(support_path(flags ? "go-alone" : "go"), &options, &scene.db));
    overwrite_all(&scene, &random);
    size_t resident = 0;
    for (int i = 0; i < GENERATIONS; i++) {
        if (i == GENERATIONS / 4) {
            assert_ok(fkv_checkpoint(scene.db));
            assert_ok(fkv_get_stats(scene.db, &early, sizeof early));
            resident = resident_pages();
        }
        generation(&scene, &random);
        if (i % 8 == 0) /* else buffers pile up where the thread that writes them has to wait */
            assert_ok(fkv_checkpoint(scene.db));
    }
    alarm(HANG_SECONDS);
    do { /* sectors wait for liburcu's thread, which others may hold up; for no reader for ever */
        assert_ok(fkv_checkpoint(scene.db));
        assert_ok(fkv_get_stats(scene.db, &late, sizeof late));
    } while (late.sectors_quarantined);
    alarm(0);
    size_t pages_more = resident_pages() > resident ? resident_pages() - resident : 0;
    print_message("%d threads: %" PRIu64 " and then %" PRIu64 " bytes, %zu pages more resident\n",
                  GENERATIONS * AT_A_TIME, early.memory_bytes, late.memory_bytes, pages_more);
    assert_true(late.memory_bytes <= early.memory_bytes + (16 << 20));
    if (!SANITIZED)
        assert_true(pages_more < 4096);
    assert_ok(fkv_close(scene.db));
}

static void test_threads_come_and_go(void **state)
{
    (void)state;
    come_and_go_by_thousands(0);
}

static void test_threads_come_and_go_without_threads(void **state)
{
    (void)state;
    come_and_go_by_thousands(FKV_NO_THREAD);
}

/* ---------------------------------------------------------------- waiting for a writer */

enum { PARTS = 200, PART_BYTES = 130000, BUFFERS = 8 };

struct waiting {
    fkv *db;
    _Atomic bool inside; /* the reader is in its section */
};

/* Inside a read section, calls that take the writer's lock, while the commit has it. */
static void *wait_in_section(void *context)
{
    struct waiting *waiting = context;
    fkv *db = waiting->db;
    char value[8];
    fkv_read read = {.key = "a", .key_bytes = 1, .buffer = value, .buffer_bytes = sizeof value};
    fkv_stats stats;
    fkv_snapshot *snapshot;
    fkv_async *async;
    fkv_read_begin(db);
    waiting->inside = true;
    while (pthread_mutex_trylock(&db->writer) == 0) {
        pthread_mutex_unlock(&db->writer);
        sched_yield();
    }
    insist_ok(fkv_get_stats(db, &stats, sizeof stats));
    insist_ok(fkv_snapshot_open(db, &snapshot));
    fkv_snapshot_close(snapshot);
    insist_ok(fkv_async_open(db, 1, &async));
    fkv_async_close(async);
    insist_ok(fkv_get_many(db, &read, 1));
    insist_ok(fkv_put(db, "b", 1, "b", 1));
    fkv_read_end(db);
    return NULL;
}

/* Without threads nobody else writes what the commit puts into buffers, and there is memory for a
 * part of it only. */
static void test_a_section_waits_for_a_commit(void **state)
{
    (void)state;
    struct waiting waiting = {0};
    static uint8_t value[PART_BYTES];
    fkv_options options;
    fkv_txn *txn;
    pthread_t reader;
    fkv_options_init(&options);
    options.flags = FKV_NO_THREAD;
    assert_ok(fkv_open(support_path("waiting"), &options, &waiting.db));
    assert_ok(fkv_put(waiting.db, "a", 1, "a", 1));
    struct reservation *memory = &waiting.db->tail.memory;
    size_t reserved = memory->reserved_bytes;
    memory->reserved_bytes = max_u64(BUFFERS * SECTOR_BYTES, memory->backed_bytes);
    assert_ok(fkv_txn_begin(waiting.db, &txn));
    for (uint32_t part = 0; part < PARTS; part++)
        assert_ok(fkv_txn_put(txn, &part, sizeof part, value, sizeof value));
    alarm(HANG_SECONDS);
    assert_int_equal(pthread_create(&reader, NULL, wait_in_section, &waiting), 0);
    while (!waiting.inside)
        sched_yield();
    assert_ok(fkv_txn_commit(txn, 0));
    pthread_join(reader, NULL);
    alarm(0);
    fkv_txn_free(txn);
    memory->reserved_bytes = reserved;
    assert_ok(fkv_close(waiting.db));
}

/* ---------------------------------------------------------------- signals */

/* Of a thread of this process. */
static uint64_t blocked_signals(const char *thread)
{
    char path[300], line[200];
    unsigned long long blocked = 0;
    snprintf(path, sizeof path, "/proc/self/task/%s/status", thread);
    FILE *file = fopen(path, "r");
    insist(file != NULL);
    while (fgets(line, sizeof line, file) && sscanf(line, "SigBlk: %llx", &blocked) != 1)
        ;
    fclose(file);
    return blocked;
}

/* How many threads there are beside this one. None of them has SIGTERM or SIGALRM. */
static int count_threads_without_signals(void)
{
    const uint64_t both = 1u << (SIGTERM - 1) | 1u << (SIGALRM - 1);
    int count = 0;
    DIR *threads = opendir("/proc/self/task");
    insist(threads != NULL);
    for (struct dirent *thread; (thread = readdir(threads));)
        if (thread->d_name[0] != '.' && atol(thread->d_name) != syscall(SYS_gettid)) {
            insist((blocked_signals(thread->d_name) & both) == both);
            count++;
        }
    closedir(threads);
    return count;
}

/* Liburcu's is among them, whoever had the first need of it. */
static void test_signals_are_the_programs(void **state)
{
    (void)state;
    struct scene scene = {0};
    uint64_t random = 1;
    assert_ok(fkv_open(support_path("signals"), NULL, &scene.db));
    alarm(HANG_SECONDS);
    while (count_threads_without_signals() < 3)
        overwrite_all(&scene, &random);
    alarm(0);
#ifndef __SANITIZE_THREAD__ /* it allows no threads in a child */
    fflush(stdout);
    pid_t child = fork(); /* it has one of its own, at once */
    assert_true(child >= 0);
    if (child == 0) {
        count_threads_without_signals();
        _exit(GOOD);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == GOOD);
#endif
    assert_ok(fkv_close(scene.db));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signals_are_the_programs),
        cmocka_unit_test(test_no_system_calls),
        cmocka_unit_test(test_no_system_calls_without_threads),
        cmocka_unit_test(test_threads_come_and_go),
        cmocka_unit_test(test_threads_come_and_go_without_threads),
        cmocka_unit_test(test_a_section_waits_for_a_commit),
    };
    return SUPPORT_RUN(argc, argv, tests);
}
