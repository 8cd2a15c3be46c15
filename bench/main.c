/* Arguments, the plan, and the children that carry it out. bench.h says how things fit together. */
#include "bench.h"
#include "cgroup.h"
#include "disk.h"
#include "report.h"
#include "util.h"

#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIST_MAX 32

/* Ends with NULL. */
static const struct workload *const workloads[] = {
    &workload_seed,    &workload_sizes,         &workload_scale,   &workload_many,
    &workload_limited, &workload_limited_index, &workload_threads, &workload_cold,
    &workload_bulk,    &workload_beside,        &workload_check,   NULL,
};

struct plan {
    struct settings settings;
    const char *engines;   /* NULL: each workload's own */
    const char *workloads; /* names with commas between */
    const char *sizes;
    const char *out;
    unsigned repeat;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    interrupted = number;
}

/* ---------------------------------------------------------------- the child's side */

static void send_message(const struct bench *bench, const struct message *message)
{
    /* Shorter than PIPE_BUF: written whole or not at all. */
    if (write(bench->pipe, message, sizeof *message) != (ssize_t)sizeof *message)
        _exit(1);
}

void bench_metric(const struct bench *bench, const char *name, double value, const char *unit)
{
    struct message message = {.type = MESSAGE_METRIC, .value = value};
    snprintf(message.name, sizeof message.name, "%s", name);
    snprintf(message.unit, sizeof message.unit, "%s", unit);
    send_message(bench, &message);
}

void bench_progress(const struct bench *bench, const char *what, uint64_t done, uint64_t total)
{
    struct message message = {.type = MESSAGE_PROGRESS};
    message.value = total == 0 ? 1 : (double)done / (double)total;
    snprintf(message.name, sizeof message.name, "%s", what);
    send_message(bench, &message);
}

int bench_in_group(const struct bench *bench, uint64_t memory, int (*measure)(const struct bench *))
{
    struct cgroup group;
    char why[1200];
    int status = 0;
    if (!cgroup_make(&group, memory, why, sizeof why)) {
        complain("skipped: %s", why);
        return 0;
    }
    bench_metric(bench, "memory_allowed", (double)memory, "bytes");
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (!cgroup_enter(&group))
            die("cannot enter %s: %s", group.path, strerror(errno));
        exit(measure(bench));
    }
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    bench_metric(bench, "memory_peak", (double)cgroup_peak_bytes(&group), "bytes");
    cgroup_remove(&group);
    if (child < 0 || !WIFEXITED(status)) {
        complain("%s: killed, for want of memory most likely", bench->engine->name);
        return 1;
    }
    return WEXITSTATUS(status);
}

/* ---------------------------------------------------------------- the parent's side */

/* Start the child; its messages come out of the returned descriptor. */
static int start_child(const struct workload *workload, struct bench bench, pid_t *child)
{
    int ends[2];
    if (pipe(ends) != 0)
        die("pipe: %s", strerror(errno));
    fflush(NULL);
    *child = fork();
    if (*child < 0)
        die("fork: %s", strerror(errno));
    if (*child == 0) {
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ends[0]);
        bench.pipe = ends[1];
        exit(workload->run(&bench));
    }
    close(ends[1]);
    return ends[0];
}

static void collect(int from, const char *label, const char *engine, struct report *report)
{
    struct message message;
    ssize_t bytes;
    while ((bytes = read(from, &message, sizeof message)) == (ssize_t)sizeof message ||
           (bytes < 0 && errno == EINTR && !interrupted)) {
        if (bytes < 0)
            continue;
        if (message.type == MESSAGE_METRIC)
            report_add(report, engine, &message);
        else
            progress_show(label, engine, &message);
    }
    close(from);
}

/*
 * The host of a virtual machine provides memory when it is first touched, at several microseconds a
 * page, and takes it back when it lies free for some seconds. So that no engine pays for what the
 * next one then has, each begins with memory that was in use a moment before.
 */
static void warm_memory(void)
{
    enum { PAGE = 4096 };
    size_t bytes = (size_t)2 << 30;
    size_t available = (size_t)sysconf(_SC_AVPHYS_PAGES) * PAGE;
    if (bytes > available / 2)
        bytes = available / 2 / PAGE * PAGE;
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return;
    for (size_t at = 0; at < bytes && !interrupted; at += PAGE)
        ((volatile uint8_t *)memory)[at] = 1;
    munmap(memory, bytes);
}

/* Run one engine under one workload in a child; true if all went well. */
static bool run_engine(const struct plan *plan, const struct workload *workload, const char *label,
                       const struct engine *engine, uint64_t keys, struct report *report)
{
    char name[64];
    pid_t child;
    int status = 0;
    snprintf(name, sizeof name, "fkv-bench-%ld", (long)getpid());
    char *directory = path_join(plan->settings.directory, name);
    struct bench bench = {&plan->settings, engine, directory, keys, -1};
    bool ok = disk_make_directory(directory);
    if (ok) {
        sync(); /* nothing of the last engine is left to be written while the next is measured */
        progress_begin(label, engine->name);
        if (workload != &workload_check)
            warm_memory();
        collect(start_child(workload, bench, &child), label, engine->name, report);
        if (interrupted)
            kill(child, SIGKILL);
        while (waitpid(child, &status, 0) < 0 && errno == EINTR)
            kill(child, SIGKILL);
        ok = !interrupted && WIFEXITED(status) && WEXITSTATUS(status) == 0;
        progress_end(label, engine->name, !ok);
        if (WIFSIGNALED(status) && !interrupted)
            complain("%s: killed by signal %d (%s)", engine->name, WTERMSIG(status),
                     strsignal(WTERMSIG(status)));
    }
    disk_remove_directory(directory);
    free(directory);
    return ok;
}

/* Cut `list` at its commas into at most LIST_MAX names; they live in one piece of memory, names[0].
 */
static size_t split(const char *list, char **names)
{
    size_t count = 0;
    char *rest = strdup(list);
    for (char *name; (name = strsep(&rest, ",")) != NULL;) {
        if (count == LIST_MAX)
            die("too many names in %s", list);
        names[count++] = name;
    }
    return count;
}

static size_t choose_engines(const char *list, const struct engine **chosen)
{
    char *names[LIST_MAX] = {NULL};
    size_t count = split(list, names);
    for (size_t i = 0; i < count; i++) {
        chosen[i] = engine_find(names[i]);
        if (chosen[i] == NULL)
            die("there is no engine '%s' in this program: see --list; some need "
                "scripts/install-deps "
                "bench peers before it is built",
                names[i]);
    }
    free(names[0]);
    return count;
}

/* Run a workload at one size on its engines, print the table, write the lines. */
static bool run_workload(const struct plan *plan, const struct workload *workload,
                         const char *label, uint64_t keys, FILE *out)
{
    const struct engine *engines[LIST_MAX];
    size_t count =
        choose_engines(plan->engines != NULL ? plan->engines : workload->engines, engines);
    char headline[320];
    bool failed[LIST_MAX] = {false};
    bool ok = true;
    snprintf(headline, sizeof headline, "%s\n%llu keys, %llu operations a phase, %u rounds of %s",
             workload->about, (unsigned long long)keys,
             (unsigned long long)plan->settings.operations, plan->settings.rounds * plan->repeat,
             "get, miss and exists: medians");
    struct report *report = report_new(label, headline);
    for (unsigned i = 0; i < plan->repeat && !interrupted; i++)
        for (size_t e = 0; e < count && !interrupted; e++)
            failed[e] |= !run_engine(plan, workload, label, engines[e], keys, report);
    if (workload != &workload_check) {
        report_print_table(report, stdout);
        puts("");
        report_print_engines(stdout, engines, count);
        if (out != NULL)
            report_write_json(report, out);
    }
    for (size_t e = 0; e < count; e++) {
        if (failed[e])
            printf("FAILED: %s. Its figures mean nothing.\n", engines[e]->name);
        ok = ok && !failed[e];
    }
    fflush(stdout);
    report_free(report);
    return ok;
}

static uint64_t parse_count(const char *text);

/* A workload that has a run for each number of keys, and names in the report that tell which. */
static bool run_sizes(const struct plan *plan, const struct workload *workload, const char *prefix,
                      FILE *out)
{
    char *sizes[LIST_MAX] = {NULL};
    size_t count = split(plan->sizes, sizes);
    bool ok = true;
    for (size_t i = 0; i < count && !interrupted; i++) {
        char label[32];
        uint64_t keys = parse_count(sizes[i]);
        if (keys % 1000000 == 0)
            snprintf(label, sizeof label, "%s-%lluM", prefix, (unsigned long long)keys / 1000000);
        else if (keys % 1000 == 0)
            snprintf(label, sizeof label, "%s-%lluk", prefix, (unsigned long long)keys / 1000);
        else
            snprintf(label, sizeof label, "%s-%llu", prefix, (unsigned long long)keys);
        ok = run_workload(plan, workload, label, keys, out) && ok;
    }
    free(sizes[0]);
    return ok;
}

static const struct workload *find_workload(const char *name)
{
    for (size_t i = 0; workloads[i] != NULL; i++)
        if (strcmp(workloads[i]->name, name) == 0)
            return workloads[i];
    die("there is no workload '%s'; see --list", name);
}

static bool run_plan(const struct plan *plan)
{
    char *names[LIST_MAX] = {NULL};
    size_t count = split(plan->workloads, names);
    FILE *out = NULL;
    bool ok = true;
    for (size_t i = 0; i < count; i++) { /* before hours of work */
        const struct engine *engines[LIST_MAX];
        const struct workload *workload = find_workload(names[i]);
        choose_engines(plan->engines != NULL ? plan->engines : workload->engines, engines);
    }
    if (plan->out != NULL && (out = fopen(plan->out, "we")) == NULL)
        die("cannot write %s: %s", plan->out, strerror(errno));
    report_print_machine(stdout);
    for (size_t i = 0; i < count && !interrupted; i++) {
        const struct workload *workload = find_workload(names[i]);
        bool went_well;
        if (workload == &workload_sizes)
            went_well = run_sizes(plan, workload, "small", out);
        else if (workload == &workload_scale)
            went_well = run_sizes(plan, workload, "scale", out);
        else
            went_well = run_workload(plan, workload, workload->name, plan->settings.keys, out);
        ok = went_well && ok;
    }
    if (out != NULL && fclose(out) != 0) {
        complain("cannot write %s: %s", plan->out, strerror(errno));
        ok = false;
    }
    free(names[0]);
    return ok;
}

/* ---------------------------------------------------------------- arguments */

enum { OPTION_ROUNDS = 256, OPTION_REPEAT, OPTION_SIZES, OPTION_MEMORY };

static const struct argp_option options[] = {
    {"keys", 'k', "N", 0, "keys in the store (1M)", 0},
    {"ops", 'n', "N", 0, "operations of each timed phase (1M)", 0},
    {"engines", 'e', "A,B", 0, "engines to run, in this order (each workload has its own)", 0},
    {"workload", 'w', "A,B", 0, "workloads to run (seed)", 0},
    {"sizes", OPTION_SIZES, "N,N", 0,
     "numbers of keys of the workloads sizes and scale (1M,5M,20M)", 0},
    {"memory", OPTION_MEMORY, "N", 0,
     "bytes that the workloads limited and cold allow, with k or M (a quarter of the pairs')", 0},
    {"out", 'o', "FILE", 0, "write the figures as JSON lines", 0},
    {"dir", 'd', "DIR", 0, "where the stores go while they are used (bench-data)", 0},
    {"seed", 's', "N", 0, "of all random choices (1)", 0},
    {"rounds", OPTION_ROUNDS, "N", 0, "of the reading phases, of which the median counts (3)", 0},
    {"repeat", OPTION_REPEAT, "N", 0, "run everything N times, in turns, and report medians (1)",
     0},
    {"list", 'l', NULL, 0, "list the workloads and the engines, and exit", 0},
    {NULL, 0, NULL, 0, NULL, 0},
};

/* A number from 1 on, with k or M for thousands and millions. */
static uint64_t parse_count(const char *text)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    unsigned long long factor = 1;
    if (*end == 'k' || *end == 'K')
        factor = 1000;
    else if (*end == 'm' || *end == 'M')
        factor = 1000000;
    if (factor != 1)
        end++;
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || number == 0 ||
        number > 10000000000u / factor)
        die("'%s' is not a number that can be used here", text);
    return number * factor;
}

static void print_list(void)
{
    const struct engine *engines[LIST_MAX];
    size_t count = 0;
    puts("workloads:");
    for (size_t i = 0; workloads[i] != NULL; i++)
        printf("  %-14s %s\n", workloads[i]->name, workloads[i]->about);
    puts("engines:");
    for (const struct engine *e = engine_first; e != NULL && count < LIST_MAX; e = e->next)
        engines[count++] = e;
    report_print_engines(stdout, engines, count);
}

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
    struct plan *plan = state->input;
    switch (key) {
    case 'k':
        plan->settings.keys = parse_count(argument);
        return 0;
    case 'n':
        plan->settings.operations = parse_count(argument);
        return 0;
    case 's':
        plan->settings.seed = parse_count(argument);
        return 0;
    case 'e':
        plan->engines = argument;
        return 0;
    case 'w':
        plan->workloads = argument;
        return 0;
    case 'o':
        plan->out = argument;
        return 0;
    case 'd':
        plan->settings.directory = argument;
        return 0;
    case OPTION_SIZES:
        plan->sizes = argument;
        return 0;
    case OPTION_MEMORY:
        plan->settings.memory = parse_count(argument);
        return 0;
    case OPTION_ROUNDS:
        plan->settings.rounds = (unsigned)parse_count(argument);
        return 0;
    case OPTION_REPEAT:
        plan->repeat = (unsigned)parse_count(argument);
        return 0;
    case 'l':
        print_list();
        exit(0);
    case ARGP_KEY_ARG:
        argp_error(state, "what is '%s'?", argument);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int main(int argc, char **argv)
{
    static const struct argp parser = {
        .options = options,
        .parser = parse_option,
        .doc = "Measure fkv beside other stores. Every put is a commit of its own, written to the "
               "log and not synced; every value is compared with what was written, outside of the "
               "timing. The exit status is 0 if all of them were right.",
    };
    struct plan plan = {
        .settings = {.keys = 1000000,
                     .operations = 1000000,
                     .seed = 1,
                     .rounds = 3,
                     .directory = "bench-data"},
        .workloads = "seed",
        .sizes = "1M,5M,20M",
        .repeat = 1,
    };
    struct sigaction action = {.sa_handler = on_signal};
    struct stat status;
    argp_parse(&parser, argc, argv, 0, NULL, &plan);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);

    bool was_there = stat(plan.settings.directory, &status) == 0;
    if (!disk_make_directory(plan.settings.directory))
        return 1;
    bool ok = run_plan(&plan);
    if (!was_there)
        rmdir(plan.settings.directory);
    if (interrupted)
        return 128 + interrupted;
    return ok ? 0 : 1;
}
