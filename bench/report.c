#include "report.h"

#include "util.h"

#include <math.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#define ENGINES_MAX 32
#define METRICS_MAX 64
#define REPEATS_MAX 64

struct metric {
    char name[sizeof((struct message *)NULL)->name];
    char unit[sizeof((struct message *)NULL)->unit];
};

struct figures {
    size_t count;
    double values[REPEATS_MAX];
};

struct report {
    char *workload;
    char *headline;
    size_t engine_count;
    char *engines[ENGINES_MAX];
    size_t metric_count;
    struct metric metrics[METRICS_MAX]; /* in the order in which they came first */
    struct figures figures[METRICS_MAX][ENGINES_MAX];
};

struct report *report_new(const char *workload, const char *headline)
{
    struct report *report = need_memory(1, sizeof *report);
    report->workload = strdup(workload);
    report->headline = strdup(headline);
    return report;
}

void report_free(struct report *report)
{
    for (size_t i = 0; i < report->engine_count; i++)
        free(report->engines[i]);
    free(report->workload);
    free(report->headline);
    free(report);
}

static size_t engine_column(struct report *report, const char *engine)
{
    size_t i = 0;
    while (i < report->engine_count && strcmp(report->engines[i], engine) != 0)
        i++;
    if (i == ENGINES_MAX)
        die("too many engines");
    if (i == report->engine_count)
        report->engines[report->engine_count++] = strdup(engine);
    return i;
}

static size_t metric_row(struct report *report, const struct message *message)
{
    size_t i = 0;
    while (i < report->metric_count && strcmp(report->metrics[i].name, message->name) != 0)
        i++;
    if (i == METRICS_MAX)
        die("too many metrics");
    if (i == report->metric_count) {
        memcpy(report->metrics[i].name, message->name, sizeof message->name);
        memcpy(report->metrics[i].unit, message->unit, sizeof message->unit);
        report->metric_count++;
    }
    return i;
}

void report_add(struct report *report, const char *engine, const struct message *message)
{
    size_t column = engine_column(report, engine);
    struct figures *figures = &report->figures[metric_row(report, message)][column];
    if (figures->count < REPEATS_MAX)
        figures->values[figures->count++] = message->value;
}

/* The median of a cell; false if the engine has no such figure. */
static bool cell(const struct report *report, size_t row, size_t column, double *value)
{
    struct figures figures = report->figures[row][column];
    *value = median(figures.values, figures.count);
    return figures.count != 0;
}

/* ---------------------------------------------------------------- the table */

/* Metrics in words. What is not here is shown by its own name. */
static const struct {
    const char *name;
    const char *words;
} metric_words[] = {
    {"first_write_ns", "first 10,000 puts"},
    {"load_ns", "load"},
    {"bulk_ns", "bulk load, a pair"},
    {"bulk_over_disk", "over the disk's own time"},
    {"bulk_write_amp", "written / live"},
    {"bulk_write_amp_own", "written / live, own count"},
    {"batch_ns", "in synced batches, a pair"},
    {"batch_over_disk", "over the disk's own time"},
    {"batch_write_amp", "written / live"},
    {"batch_write_amp_own", "written / live, own count"},
    {"get_ns", "get"},
    {"miss_ns", "get, key not there"},
    {"exists_ns", "exists"},
    {"index_bytes_per_key", "index memory per key"},
    {"space_amp_loaded", "disk / live, loaded"},
    {"overwrite_ns", "overwrite, mean"},
    {"overwrite_p50_us", "overwrite, p50"},
    {"overwrite_p99_us", "overwrite, p99"},
    {"overwrite_p999_us", "overwrite, p99.9"},
    {"overwrite_p9999_us", "overwrite, p99.99"},
    {"overwrite_max_us", "overwrite, max"},
    {"overwrite_later_ns", "overwrite, later ones"},
    {"space_amp_overwritten", "disk / live, overwritten"},
    {"space_amp_peak", "disk / live, highest"},
    {"log_bytes", "log"},
    {"log_bytes_peak", "log, highest"},
    {"close_ms", "close"},
    {"reopen_ms", "reopen, to first get"},
    {"get_p50_us_alone", "get, p50, alone"},
    {"get_p999_us_alone", "get, p99.9, alone"},
    {"get_p50_us_busy", "get, p50, other core busy"},
    {"get_p999_us_busy", "get, p99.9, other core busy"},
    {"get_p50_us_beside", "get, p50, beside a writer"},
    {"get_p999_us_beside", "get, p99.9, beside one"},
    {"snapshot_never_get_ns", "get, never a snapshot"},
    {"snapshot_after_get_ns", "get, snapshots before"},
    {"snapshot_held_get_ns", "get, one is held"},
    {"snapshot_never_put_ns", "put, never a snapshot"},
    {"snapshot_after_put_ns", "put, snapshots before"},
    {"snapshot_held_put_ns", "put, one is held"},
    {"plain_ms", "write and sync as many bytes"},
    {"scan_ms", "scan"},
    {"backup_ms", "backup"},
    {"space_amp_store", "disk / live"},
    {"space_amp_backup", "disk / live, of the backup"},
    {"compact_ms", "compact, after all that"},
    {"space_amp_compacted", "disk / live, compacted"},
};

static const char *words_of(const char *metric)
{
    for (size_t i = 0; i < sizeof metric_words / sizeof *metric_words; i++)
        if (strcmp(metric_words[i].name, metric) == 0)
            return metric_words[i].words;
    return metric;
}

/* 1234567.8 as "1,234,568", 12.34 as "12.3", 1.234 as "1.23". */
static void format_number(char *text, size_t text_bytes, double value)
{
    char digits[32];
    if (fabs(value) < 100) {
        snprintf(text, text_bytes, "%.*f", fabs(value) < 10 ? 2 : 1, value);
        return;
    }
    int length = snprintf(digits, sizeof digits, "%.0f", value);
    size_t at = 0;
    for (int i = 0; i < length && at + 2 < text_bytes; i++) {
        text[at++] = digits[i];
        if ((length - i) % 3 == 1 && i + 1 < length)
            text[at++] = ',';
    }
    text[at] = '\0';
}

/* The column to compare with: fkv's, or the first. */
static size_t baseline(const struct report *report)
{
    for (size_t i = 0; i < report->engine_count; i++)
        if (strcmp(report->engines[i], "fkv") == 0)
            return i;
    return 0;
}

static void print_rule(const struct report *report, FILE *out)
{
    for (size_t i = 0; i < 34 + 19 * report->engine_count; i++)
        fputc('-', out);
    fputc('\n', out);
}

static void print_row(const struct report *report, size_t row, FILE *out)
{
    size_t base = baseline(report);
    const char *unit = report->metrics[row].unit;
    bool in_mib =
        strcmp(unit, "bytes") == 0 && strcmp(report->metrics[row].name, "index_bytes_per_key") != 0;
    double base_value;
    bool has_base = cell(report, row, base, &base_value) && base_value > 0;
    if (in_mib)
        unit = "MiB";
    fprintf(out, "%-27s%-7s", words_of(report->metrics[row].name),
            strcmp(unit, "ratio") == 0 ? "" : unit);
    for (size_t column = 0; column < report->engine_count; column++) {
        char number[32];
        char ratio[40] = "";
        double value;
        if (!cell(report, row, column, &value)) {
            fprintf(out, "%10s%9s", "-", "");
            continue;
        }
        format_number(number, sizeof number, in_mib ? value / (1 << 20) : value);
        if (has_base && column != base) {
            char times[32];
            format_number(times, sizeof times, value / base_value);
            snprintf(ratio, sizeof ratio, "%sx", times);
        }
        fprintf(out, "%10s %-8s", number, ratio);
    }
    fputc('\n', out);
}

void report_print_table(const struct report *report, FILE *out)
{
    fprintf(out, "\n%s: %s\n", report->workload, report->headline);
    print_rule(report, out);
    fprintf(out, "%34s", "");
    for (size_t column = 0; column < report->engine_count; column++) {
        /* Over the figure and its ratio, ending where the figure ends if it is short enough. */
        int length = (int)strlen(report->engines[column]);
        int end = length <= 10 ? 10 : length <= 18 ? length : 18;
        fprintf(out, "%*.18s%*s", end, report->engines[column], 19 - end, "");
    }
    fputc('\n', out);
    print_rule(report, out);
    for (size_t row = 0; row < report->metric_count; row++)
        print_row(report, row, out);
    print_rule(report, out);
    if (report->engine_count > 1)
        fprintf(out, "1.50x: one and a half times the figure of %s. Lower is better everywhere.\n",
                report->engines[baseline(report)]);
}

void report_write_json(const struct report *report, FILE *out)
{
    /* All names are our own: plain words without anything that JSON would have escaped. */
    for (size_t column = 0; column < report->engine_count; column++) {
        for (size_t row = 0; row < report->metric_count; row++) {
            double value;
            if (cell(report, row, column, &value))
                fprintf(out,
                        "{\"workload\":\"%s\",\"engine\":\"%s\",\"metric\":\"%s\",\"value\":%.10g,"
                        "\"unit\":\"%s\"}\n",
                        report->workload, report->engines[column], report->metrics[row].name, value,
                        report->metrics[row].unit);
        }
    }
    fflush(out);
}

/* ---------------------------------------------------------------- the head of the report */

static void print_processor(FILE *out)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            line[strcspn(line, "\n")] = '\0';
            fprintf(out, "%s, ", colon + 2);
            break;
        }
    }
    if (file != NULL)
        fclose(file);
}

void report_print_machine(FILE *out)
{
    struct sysinfo memory;
    struct utsname system;
    print_processor(out);
    fprintf(out, "%ld cores", sysconf(_SC_NPROCESSORS_ONLN));
    if (sysinfo(&memory) == 0)
        fprintf(out, ", %.0f GiB", (double)memory.totalram * memory.mem_unit / (1 << 30));
    if (uname(&system) == 0)
        fprintf(out, ", %s %s", system.sysname, system.release);
    fputc('\n', out);
}

void report_print_engines(FILE *out, const struct engine *const *engines, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *version = engines[i]->version != NULL ? engines[i]->version() : "";
        fprintf(out, "  %-14s %-7s %s\n", engines[i]->name, version, engines[i]->about);
    }
}

/* ---------------------------------------------------------------- progress */

static uint64_t progress_start;

static double progress_seconds(void)
{
    return (double)(now_ns() - progress_start) / 1e9;
}

void progress_begin(const char *workload, const char *engine)
{
    progress_start = now_ns();
    if (!isatty(STDERR_FILENO))
        fprintf(stderr, "%s: %s ...\n", workload, engine);
}

void progress_show(const char *workload, const char *engine, const struct message *message)
{
    enum { WIDTH = 30 };
    char bar[WIDTH + 1];
    if (!isatty(STDERR_FILENO))
        return;
    int full = (int)(message->value * WIDTH + 0.5);
    for (int i = 0; i < WIDTH; i++)
        bar[i] = i < full ? '#' : '.';
    bar[WIDTH] = '\0';
    fprintf(stderr, "\r\033[K%s: %-14s %5.0f s  [%s] %3.0f%%  %s", workload, engine,
            progress_seconds(), bar, message->value * 100, message->name);
    fflush(stderr);
}

void progress_end(const char *workload, const char *engine, bool failed)
{
    fprintf(stderr, "%s%s: %-14s %5.0f s  %s\n", isatty(STDERR_FILENO) ? "\r\033[K" : "", workload,
            engine, progress_seconds(), failed ? "FAILED" : "done, every value verified");
}
