/*
 * fkv-power: loss of power on the real kernel.
 *
 * A file system of the kernel's lies on a loop device, and that on a disk with a volatile write
 * cache which this program serves through FUSE (disk.h, serve.h). A child commits numbered batches
 * to a store there and notes each that was synced; meanwhile the kernel is made to write back some
 * of what is dirty. At a random request to the disk the power fails: of the writes that were not
 * flushed some land, whole or in part. The child is killed, the file system is mounted again as the
 * medium has it, and the next child opens the store and finds every batch that had been synced,
 * each batch whole, none without those before it; checks the store, and goes on from there. Power
 * also fails while the journal is replayed and while the store recovers.
 *
 * The stores whose names end in -nosync say that they have synced and have not: if nothing of
 * theirs is lost, the harness is at fault.
 *
 *     fkv-power --cuts 200 --seed 1 --stores fkv,lmdb --file-systems ext4,xfs
 *
 * The moments are those of a running system: a seed gives the same batches and lotteries again, not
 * the same cuts. Exit status: 0; 1, something was lost, or nothing of a store that lies; 2, usage;
 * 77, this machine does not allow it.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "life.h"
#include "machine.h"
#include "random.h"

enum {
    SKIPPED = 77,
    HANG_SECONDS = 200,
    LIFE_SECONDS = 3,
    CUT_BITS_MAX = 12,
    JOURNAL_BITS_MAX = 5,
};
#define DISK_BYTES ((uint64_t)512 << 20)

static const struct store_kind *const kinds[] = {
    &store_fkv,
#ifdef POWER_LMDB
    &store_lmdb,
#endif
#ifdef POWER_ROCKSDB
    &store_rocksdb,
#endif
    &store_fkv_lies,
#ifdef POWER_LMDB
    &store_lmdb_lies,
#endif
#ifdef POWER_ROCKSDB
    &store_rocksdb_lies,
#endif
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static const char *const file_systems[] = {"ext4", "xfs", "btrfs"};
enum { FILE_SYSTEMS = sizeof file_systems / sizeof file_systems[0] };

static struct {
    uint64_t cuts, seed;
    const char *stores, *file_systems;
} options = {200, 1, NULL, "ext4,xfs"};

struct result {
    uint64_t cuts, in_recovery; /* before the store was open and verified */
    uint64_t batches;           /* that were synced */
    uint64_t unflushed, lost_blocks;
    uint64_t lost, damaged, unmountable;
};

struct trial {
    struct machine *machine;
    struct life *life;
    const struct store_kind *kind;
    uint64_t random;
    enum disk_lottery lottery_before; /* of the cut that this life began with */
    struct result result;
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* ---------------------------------------------------------------- one life */

static pid_t begin_life(struct trial *trial)
{
    uint64_t random = random_next(&trial->random);
    struct life *life = trial->life;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        life_run(life, trial->machine->disk, trial->kind, trial->machine->directory, random);
    return pid;
}

static void note_death(struct life *life, int status)
{
    if (!life->has_failed && WIFSIGNALED(status))
        snprintf(life->failure, sizeof life->failure, "the process died of signal %d",
                 WTERMSIG(status));
    life->has_failed = true;
}

/* Within the next so many requests, few or many. */
static void ask_for_cut(struct trial *trial, unsigned bits_max)
{
    uint64_t span = (uint64_t)1 << random_below(&trial->random, bits_max + 1);
    trial->machine->disk->cut_at =
        trial->machine->disk->requests + random_below(&trial->random, span);
}

/* Until the power is off. True: the child is dead already. */
static bool wait_for_cut(struct trial *trial, pid_t pid)
{
    struct disk *disk = trial->machine->disk;
    struct life *life = trial->life;
    double began = now();
    int status;
    bool is_dead = false;
    while (!disk->is_off) {
        if (life->verified && disk->cut_at == UINT64_MAX)
            ask_for_cut(trial, CUT_BITS_MAX);
        usleep((useconds_t)random_below(&trial->random, 4000));
        if (random_below(&trial->random, 4) == 0)
            machine_write_back(trial->machine, &trial->random);
        if (!is_dead && waitpid(pid, &status, WNOHANG) == pid) {
            is_dead = true;
            note_death(life, status);
        }
        double seconds = now() - began;
        if (!life->verified && !is_dead && seconds > HANG_SECONDS) {
            snprintf(life->failure, sizeof life->failure, "not open after %d s", HANG_SECONDS);
            life->has_failed = true;
        }
        if (life->has_failed || (life->verified && seconds > LIFE_SECONDS))
            disk->cut_now = true;
    }
    return is_dead;
}

/* False: the file system could not be mounted. */
static bool live(struct trial *trial)
{
    struct disk *disk = trial->machine->disk;
    uint64_t moment = random_below(&trial->random, 10);
    disk->lottery = (enum disk_lottery)random_below(&trial->random, DISK_LOTTERIES);
    disk->cut_seed = random_next(&trial->random);
    trial->life->number++;
    trial->life->verified = trial->life->has_failed = trial->life->has_lost = false;
    if (moment == 0) /* while the journal is replayed, if there is something to replay */
        ask_for_cut(trial, JOURNAL_BITS_MAX);
    if (!machine_mount(trial->machine))
        return false;
    if (moment == 1 || moment == 2) /* while the store recovers, or later; else later */
        ask_for_cut(trial, CUT_BITS_MAX);
    pid_t pid = begin_life(trial);
    if (!wait_for_cut(trial, pid)) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    return machine_unmount(trial->machine);
}

/* ---------------------------------------------------------------- many */

static bool begin_anew(struct trial *trial)
{
    trial->machine->disk->promised = 0;
    trial->life->begun = 0;
    return machine_format(trial->machine);
}

static void account(struct trial *trial, bool mounted, uint64_t promised_before)
{
    struct disk *disk = trial->machine->disk;
    struct result *result = &trial->result;
    if (!mounted)
        result->unmountable++;
    else if (trial->life->has_failed && trial->life->has_lost)
        result->lost++;
    else if (trial->life->has_failed)
        result->damaged++;
    if (!mounted)
        return;
    result->cuts++;
    result->in_recovery += !trial->life->verified && !trial->life->has_failed;
    result->batches += disk->promised_at_cut - promised_before;
    result->unflushed += disk->unflushed_blocks;
    result->lost_blocks += disk->lost_blocks;
}

static void report_failure(struct trial *trial, bool mounted)
{
    if (mounted && !trial->life->has_failed)
        return;
    fprintf(stderr, "power: %s on %s, seed %" PRIu64 ", life %u, after lottery %d: %s\n",
            trial->kind->name, trial->machine->kind, options.seed, trial->life->number,
            trial->lottery_before,
            mounted ? trial->life->failure : "the file system cannot be mounted");
}

/* How often one that lies loses something depends on how fast the machine is: with none so far, it
 * is tried more often. */
static bool is_enough(const struct trial *trial)
{
    enum { TIMES_MORE = 8 };
    const struct result *result = &trial->result;
    bool owes_a_loss = trial->kind->lies && result->lost + result->damaged == 0;
    return result->cuts >= (owes_a_loss ? TIMES_MORE : 1) * options.cuts;
}

static bool try_store(struct trial *trial)
{
    struct disk *disk = trial->machine->disk;
    trial->random = random_mix(options.seed);
    if (!begin_anew(trial))
        return false;
    while (!is_enough(trial)) {
        uint64_t promised_before = disk->promised;
        bool mounted = live(trial);
        bool has_failed = !mounted || trial->life->has_failed;
        account(trial, mounted, promised_before);
        if (!trial->kind->lies || !trial->life->has_lost)
            report_failure(trial, mounted);
        disk_power_on(disk);
        trial->lottery_before = disk->lottery;
        disk->promised = disk->promised_at_cut;
        if (has_failed && !begin_anew(trial))
            return false;
    }
    return true;
}

static void print_head(void)
{
    printf("| store | file system | cuts | of these before it was open again | synced commits | "
           "unflushed sectors a cut | of these lost | lost acknowledged commits | damaged, or not "
           "opened | file system not mounted |\n|---|---|---|---|---|---|---|---|---|---|\n");
}

static void print_result(const struct trial *trial)
{
    const struct result *result = &trial->result;
    uint64_t cuts = result->cuts ? result->cuts : 1;
    printf("| %s: %s | %s | %" PRIu64 " | %" PRIu64 " | %" PRIu64 " | %" PRIu64 " | %" PRIu64
           " %% | %" PRIu64 " | %" PRIu64 " | %" PRIu64 " |\n",
           trial->kind->name, trial->kind->about, trial->machine->kind, result->cuts,
           result->in_recovery, result->batches, result->unflushed / cuts,
           result->unflushed ? 100 * result->lost_blocks / result->unflushed : 0, result->lost,
           result->damaged, result->unmountable);
    fflush(stdout);
}

/* Peers may lose what they lose; fkv may not, and a store that lies has to. */
static bool is_as_it_should(const struct trial *trial)
{
    const struct result *result = &trial->result;
    bool is_fkv = strncmp(trial->kind->name, "fkv", 3) == 0;
    if (is_fkv && result->damaged > 0)
        return false; /* what is not synced is a prefix all the same */
    if (!trial->kind->lies)
        return !is_fkv || result->lost == 0;
    if (result->lost + result->damaged == 0)
        fprintf(stderr, "power: nothing of %s was lost: the harness does not work\n",
                trial->kind->name);
    return result->lost + result->damaged > 0;
}

/* Whether a list with commas has a name. */
static bool list_has(const char *list, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == 0))
            return true;
    }
    return false;
}

static int try_all(struct machine *machine, struct life *life)
{
    int status = 0;
    print_head();
    for (size_t f = 0; f < FILE_SYSTEMS; f++)
        for (size_t i = 0; i < KINDS; i++) {
            struct trial trial = {.machine = machine, .life = life, .kind = kinds[i]};
            machine->kind = file_systems[f];
            if (!list_has(options.file_systems, machine->kind) || machine_lacks(machine->kind) ||
                (options.stores && !list_has(options.stores, kinds[i]->name)))
                continue;
            if (!try_store(&trial))
                return 1;
            print_result(&trial);
            if (!is_as_it_should(&trial))
                status = 1;
        }
    return status;
}

/* ---------------------------------------------------------------- main */

static int usage(void)
{
    fprintf(stderr, "usage: fkv-power [--cuts N] [--seed N] [--stores NAME,...] "
                    "[--file-systems NAME,...]\nstores:");
    for (size_t i = 0; i < KINDS; i++)
        fprintf(stderr, " %s", kinds[i]->name);
    fprintf(stderr, "\n");
    return 2;
}

static bool read_options(int argc, char **argv)
{
    static const struct option names[] = {{"cuts", required_argument, NULL, 'c'},
                                          {"seed", required_argument, NULL, 's'},
                                          {"stores", required_argument, NULL, 't'},
                                          {"file-systems", required_argument, NULL, 'f'},
                                          {0}};
    for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1;)
        switch (name) {
        case 'c':
            options.cuts = strtoull(optarg, NULL, 10);
            break;
        case 's':
            options.seed = strtoull(optarg, NULL, 10);
            break;
        case 't':
            options.stores = optarg;
            break;
        case 'f':
            options.file_systems = optarg;
            break;
        default:
            return false;
        }
    return optind == argc && options.cuts > 0;
}

/* A file system is made, mounted and unmounted: containers let some of what that takes be seen, and
 * not be used. */
static bool rehearse(struct machine *machine)
{
    for (size_t i = 0; i < FILE_SYSTEMS; i++) {
        machine->kind = file_systems[i];
        if (list_has(options.file_systems, machine->kind) && !machine_lacks(machine->kind))
            return machine_format(machine) && machine_mount(machine) && machine_unmount(machine);
    }
    return false;
}

/* Says of each file system what is lacking. False: there is none. */
static bool any_file_system(void)
{
    bool any = false;
    for (size_t i = 0; i < FILE_SYSTEMS; i++) {
        if (!list_has(options.file_systems, file_systems[i]))
            continue;
        const char *lacking = machine_lacks(file_systems[i]);
        if (lacking)
            printf("power: not tried on %s: %s\n", file_systems[i], lacking);
        any |= !lacking;
    }
    return any;
}

int main(int argc, char **argv)
{
    struct machine machine = {0};
    if (!read_options(argc, argv))
        return usage();
    if (!any_file_system())
        return SKIPPED;
    struct life *life = life_make();
    if (!life || !machine_make(&machine, DISK_BYTES) || !rehearse(&machine)) {
        machine_drop(&machine);
        printf("power: skipped: this machine does not allow it\n");
        return SKIPPED;
    }
    int status = try_all(&machine, life);
    machine_drop(&machine);
    return status;
}
