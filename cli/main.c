/*
 * fkv: the command line of the library. One command a call; `fkv --help` has them all.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loader.h"
#include "store.h" /* is it of digests? how long is a slot? */

enum exit_status {
    EXIT_DONE = 0,
    EXIT_NO_KEY = 1,  /* get, delete: there is no such key */
    EXIT_USAGE = 2,   /* the arguments make no sense */
    EXIT_DAMAGED = 3, /* the store is damaged; check: has problems; repair: something is lost */
    EXIT_FAILED = 4,  /* everything else */
};

static const char help[] =
    "usage: fkv COMMAND [OPTION]... FILE [ARGUMENT]...\n"
    "\n"
    "  check FILE              verify everything in a store; prints each problem\n"
    "  repair FILE NEW         make the new store NEW of all that is whole in a damaged one\n"
    "  backup FILE NEW         write the pairs of a store to the new store NEW, without garbage.\n"
    "                          No process has it open for writing: one that has calls fkv_backup\n"
    "  stat FILE               print what a store holds\n"
    "  get FILE KEY            print the value of a key, as it is\n"
    "  put FILE KEY [VALUE]    set the value of a key; it is read from standard input if VALUE\n"
    "                          is not given, or is \"-\". Creates the store if there is none\n"
    "  delete FILE KEY         delete a key\n"
    "  dump FILE               print all keys and values as lines of text\n"
    "  load FILE               put what dump printed, from standard input, into a store. Creates\n"
    "                          it if there is none; keys that are there already are set. What\n"
    "                          comes before a line that is none of a dump is put all the same\n"
    "\n"
    "  -e, --escaped    get, put, delete: KEY and VALUE, and the value that get prints, are\n"
    "                   written as in dumps (a value from standard input is not):\n"
    "                   \"\\\\\" is a backslash, \"\\xHH\" the byte of this hexadecimal number\n"
    "  -q, --quiet      backup, check, repair: print no problems and no sums; the exit status\n"
    "                   tells\n"
    "  -a, --all        check, repair: print all problems; without it, the first 100\n"
    "  -p, --progress   backup, check, repair: show on standard error how much is done\n"
    "      --rate=BYTES backup: write no more than so many bytes a second; K, M and G stand for\n"
    "                   powers of 1024\n"
    "      --digest     put, load: a store that is created keeps digests, not keys\n"
    "  -h, --help       print this\n"
    "  -V, --version    print the version\n"
    "      --           what follows are no options: fkv get FILE -- -KEY\n"
    "\n"
    "A dump begins with the line \"# fkv-dump 1\". Then comes a line a pair: the key, a tab, the\n"
    "value, with the escapes above for all bytes but those from space to tilde, and for a \"#\"\n"
    "that begins a key. It ends with the line \"# end N\", N being the number of pairs. Of a\n"
    "store of digests it begins with \"# fkv-dump 1 digest\", and cannot be loaded.\n"
    "\n"
    "Exit status: 0 if all is well; 1 if there is no such key; 2 if the arguments make no sense;\n"
    "3 if the store is damaged (check: if there are problems, repair: if something is lost or\n"
    "uncertain); 4 if anything else failed: no such file, the store is in use, the disk is full.\n";

struct command_line {
    const char *command;
    bool escaped, quiet, all, progress, digest;
    uint64_t rate; /* 0: no limit */
    int count;     /* of the arguments after the command */
    char **arguments;
};

/* ---------------------------------------------------------------- what commands share */

static int status_of(enum fkv_error error)
{
    switch (error) {
    case FKV_OK:
        return EXIT_DONE;
    case FKV_NOT_FOUND:
        return EXIT_NO_KEY;
    case FKV_INVALID: /* an empty path */
        return EXIT_USAGE;
    case FKV_DAMAGED:
    case FKV_TRUNCATED:
    case FKV_LOG_MISSING:
    case FKV_LOG_MISMATCH:
        return EXIT_DAMAGED;
    default:
        return EXIT_FAILED;
    }
}

/* Say what went wrong on this handle (NULL: at opening), and return the exit status for it. */
static int complain(const fkv *db, enum fkv_error error)
{
    const char *detail = fkv_error_detail(db);
    if (error == FKV_NOT_FOUND)
        fprintf(stderr, "fkv: no such key\n");
    else if (error)
        fprintf(stderr, "fkv: %s%s%s\n", fkv_error_text(error), *detail ? ": " : "", detail);
    return status_of(error);
}

static int no_memory(void)
{
    fprintf(stderr, "fkv: out of memory\n");
    return EXIT_FAILED;
}

static const char try_help[] = "Try \"fkv --help\".\n";

static int usage(const char *why)
{
    fprintf(stderr, "fkv: %s\n%s", why, try_help);
    return EXIT_USAGE;
}

static enum fkv_error open_store(const struct command_line *line, uint32_t flags, fkv **db)
{
    fkv_options options;
    fkv_options_init(&options);
    options.flags = flags;
    return fkv_open(line->arguments[0], &options, db);
}

/* The bytes that an argument stands for. */
static int argument_bytes(const struct command_line *line, int at, struct text *bytes)
{
    const char *argument = line->arguments[at];
    size_t length = strlen(argument);
    if (!line->escaped)
        return text_add(bytes, argument, length) ? EXIT_DONE : no_memory();
    return dump_unescape(bytes, argument, length)
               ? EXIT_DONE
               : usage("a backslash is followed by \"\\\" or xHH");
}

/* No more than a value may have, and a byte, by which it is seen that there are too many. */
static int read_input(FILE *from, struct text *bytes)
{
    char part[65536];
    size_t count, most = (size_t)FKV_VALUE_BYTES_MAX + 1;
    do {
        size_t want = most - bytes->count < sizeof part ? most - bytes->count : sizeof part;
        count = fread(part, 1, want, from);
        if (!text_add(bytes, part, count))
            return no_memory();
    } while (count > 0 && bytes->count < most);
    if (ferror(from)) {
        fprintf(stderr, "fkv: standard input cannot be read\n");
        return EXIT_FAILED;
    }
    if (bytes->count == most) {
        fprintf(stderr, "fkv: standard input has more than the %u bytes of the longest value\n",
                FKV_VALUE_BYTES_MAX);
        return EXIT_FAILED;
    }
    return EXIT_DONE;
}

/* All output has gone where it should. */
static int finish_output(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return EXIT_DONE;
    fprintf(stderr, "fkv: standard output cannot be written\n");
    return EXIT_FAILED;
}

static int close_store(fkv *db, int status)
{
    enum fkv_error error = fkv_close(db);
    return error && status == EXIT_DONE ? complain(NULL, error) : status;
}

/* ---------------------------------------------------------------- check, repair */

struct reporting {
    const struct command_line *line;
    uint64_t said;
    int percent;
};

static void say_problem(void *context, const fkv_problem *problem)
{
    enum { SAID_MOST = 100 };
    struct reporting *reporting = context;
    if (reporting->line->quiet)
        return;
    if (reporting->said++ < SAID_MOST || reporting->line->all)
        printf("%s: %s\n", fkv_part_name(problem->part), problem->text);
    else if (reporting->said == SAID_MOST + 1)
        printf("... (--all prints all)\n");
}

static int show_progress(void *context, uint64_t done, uint64_t total)
{
    struct reporting *reporting = context;
    int percent = total ? (int)(done * 100 / total) : 100;
    if (reporting->line->progress && percent != reporting->percent) {
        fprintf(stderr, "\r%3d%%%s", percent, percent == 100 ? "\n" : "");
        reporting->percent = percent;
    }
    return 0;
}

static int command_check(const struct command_line *line)
{
    struct reporting reporting = {.line = line};
    fkv_check_options options;
    fkv_check_result result;
    fkv_check_options_init(&options);
    options.problem = say_problem;
    options.progress = show_progress;
    options.context = &reporting;
    enum fkv_error error = fkv_check_file(line->arguments[0], &options, &result, sizeof result);
    if (error && error != FKV_DAMAGED)
        return complain(NULL, error);
    if (!line->quiet && error)
        printf("%" PRIu64 " problems%s; %" PRIu64 " keys are whole, %" PRIu64 " are not\n",
               result.problems, result.opened ? "" : ", and the store cannot be opened",
               result.keys, result.keys_unreadable);
    else if (!line->quiet)
        printf("%" PRIu64 " keys, no problem\n", result.keys);
    int status = finish_output();
    return status ? status : status_of(error);
}

static void say_repaired(const fkv_repair_result *result)
{
    printf("%" PRIu64 " keys are in the new store\n", result->keys);
    if (result->damaged)
        printf("%" PRIu64 " stretches, of %" PRIu64 " bytes together, hold no whole records\n",
               result->damaged, result->damaged_cells * 16);
    if (result->values_incomplete)
        printf("%" PRIu64 " values in several pieces are lost\n", result->values_incomplete);
    if (result->sectors_unreadable)
        printf("%" PRIu64 " sectors of 1 MiB cannot be read in full\n", result->sectors_unreadable);
    if (result->header_lost)
        printf("the header is lost; if the store was in digest mode, no key can be found\n");
    if (result->log_incomplete)
        printf("the last commits may be missing, or be there in part\n");
    if (result->deleted_may_be_back)
        printf("keys that were deleted may be back, and values may be old ones\n");
}

static int command_repair(const struct command_line *line)
{
    struct reporting reporting = {.line = line};
    fkv_repair_options options;
    fkv_repair_result result;
    fkv_repair_options_init(&options);
    options.problem = say_problem;
    options.progress = show_progress;
    options.context = &reporting;
    enum fkv_error error =
        fkv_repair(line->arguments[0], line->arguments[1], &options, &result, sizeof result);
    if (error && (error != FKV_DAMAGED || !result.complete))
        return complain(NULL, error);
    if (!line->quiet)
        say_repaired(&result);
    int status = finish_output();
    return status ? status : status_of(error);
}

/* ---------------------------------------------------------------- backup */

/* A number of bytes, perhaps in K, M or G; 0 if it is none. */
static uint64_t parse_rate(const char *text)
{
    static const char units[] = "KMG";
    char *end;
    if (*text < '0' || *text > '9')
        return 0;
    errno = 0;
    uint64_t rate = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;
    unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    if ((*end && !unit) || (unit && end[1]) || errno || rate > UINT64_MAX >> shift)
        return 0;
    return rate << shift;
}

static int command_backup(const struct command_line *line)
{
    struct reporting reporting = {.line = line};
    fkv_backup_options options;
    fkv_backup_options_init(&options);
    options.bytes_per_second = line->rate;
    options.progress = show_progress;
    options.context = &reporting;
    fkv *db;
    fkv_stats stats;
    enum fkv_error error = open_store(line, FKV_OPEN_READ_ONLY, &db);
    if (error)
        return complain(NULL, error);
    error = fkv_backup(db, line->arguments[1], &options);
    if (!error)
        error = fkv_get_stats(db, &stats, sizeof stats);
    if (error)
        return close_store(db, complain(db, error));
    if (!line->quiet)
        printf("%" PRIu64 " keys are in the backup\n", stats.keys);
    return close_store(db, finish_output());
}

/* ---------------------------------------------------------------- stat */

static void print_bytes(const char *name, uint64_t bytes, const char *more)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double amount = (double)bytes;
    int unit = 0;
    for (; amount >= 1024 && unit < 4; unit++)
        amount /= 1024;
    printf("%-14s %14" PRIu64, name, bytes);
    if (unit)
        printf("  %.1f %s", amount, units[unit]);
    printf("%s%s\n", *more ? "  " : "", more);
}

static void print_count(const char *name, uint64_t count, const char *more)
{
    printf("%-14s %14" PRIu64 "%s%s\n", name, count, *more ? "  " : "", more);
}

static int command_stat(const struct command_line *line)
{
    enum { SLOT_BYTES = PAGE_BYTES / SLOTS_PER_PAGE };
    fkv *db;
    fkv_stats stats;
    enum fkv_error error = open_store(line, FKV_OPEN_READ_ONLY, &db);
    if (error)
        return complain(NULL, error);
    if ((error = fkv_get_stats(db, &stats, sizeof stats)))
        return close_store(db, complain(db, error));
    char text[64] = "";
    uint64_t index = stats.index_slots * SLOT_BYTES; /* hardly any of it is in memory now */
    print_count("keys", stats.keys, "");
    print_bytes("live bytes", stats.live_cells * stats.cell_bytes, "");
    if (stats.live_cells)
        snprintf(text, sizeof text, "%.0f%% of live",
                 100.0 * (double)stats.dead_cells / (double)stats.live_cells);
    print_bytes("dead bytes", stats.dead_cells * stats.cell_bytes, text);
    print_bytes("file bytes", stats.file_bytes, "");
    print_bytes("log bytes", stats.log_bytes, "");
    print_bytes("log to replay", stats.log_bytes_live, "");
    text[0] = 0;
    if (stats.keys)
        snprintf(text, sizeof text, "%.1f a key", (double)index / (double)stats.keys);
    print_bytes("index bytes", index, text);
    print_count("sectors", stats.file_bytes >> 20, "of 1 MiB, the header's included");
    print_count("  values", stats.sectors_values, "");
    print_count("  large", stats.sectors_large, "pieces of values of more than 1 MiB");
    print_count("  pages", stats.sectors_pages, "index, maps and tables");
    print_count("  free", stats.sectors_free + stats.sectors_quarantined, "");
    return close_store(db, finish_output());
}

/* ---------------------------------------------------------------- get, put, delete */

static int print_value(const struct command_line *line, const void *value, size_t bytes)
{
    struct text written = {0};
    int status = EXIT_DONE;
    if (!line->escaped)
        fwrite(value, 1, bytes, stdout);
    else if (!dump_value(stdout, &written, value, bytes) && !ferror(stdout))
        status = no_memory();
    text_drop(&written);
    return status ? status : finish_output();
}

static int get_value(const struct command_line *line, fkv *db, const struct text *key)
{
    size_t bytes = 0;
    enum fkv_error error = fkv_value_size(db, key->bytes, key->count, &bytes);
    if (error)
        return complain(db, error);
    void *value = malloc(bytes ? bytes : 1);
    if (!value)
        return no_memory();
    error = fkv_get(db, key->bytes, key->count, value, bytes, &bytes);
    int status = error ? complain(db, error) : print_value(line, value, bytes);
    free(value);
    return status;
}

static int command_get(const struct command_line *line)
{
    struct text key = {0};
    fkv *db = NULL;
    int status = argument_bytes(line, 1, &key);
    if (!status)
        status = complain(NULL, open_store(line, FKV_OPEN_READ_ONLY, &db));
    if (!status)
        status = get_value(line, db, &key);
    text_drop(&key);
    return close_store(db, status);
}

static int command_put(const struct command_line *line)
{
    struct text key = {0}, value = {0};
    fkv *db = NULL;
    bool standard_input = line->count < 3 || strcmp(line->arguments[2], "-") == 0;
    int status = argument_bytes(line, 1, &key);
    if (!status)
        status = standard_input ? read_input(stdin, &value) : argument_bytes(line, 2, &value);
    if (!status)
        status = complain(NULL, open_store(line, line->digest ? FKV_DIGEST : 0, &db));
    if (!status)
        status = complain(db, fkv_put(db, key.bytes, key.count, value.bytes, value.count));
    text_drop(&key);
    text_drop(&value);
    return close_store(db, status);
}

static int command_delete(const struct command_line *line)
{
    struct text key = {0};
    fkv *db = NULL;
    int status = argument_bytes(line, 1, &key);
    if (!status)
        status = complain(NULL, open_store(line, FKV_NO_CREATE, &db));
    if (!status)
        status = complain(db, fkv_delete(db, key.bytes, key.count));
    text_drop(&key);
    return close_store(db, status);
}

/* ---------------------------------------------------------------- dump, load */

struct dumping {
    struct text scratch, value;
    uint64_t pairs;
};

static enum fkv_error dump_one(struct dumping *dumping, fkv_scan *scan)
{
    const void *key, *value;
    size_t key_bytes, value_bytes;
    enum fkv_error error = fkv_scan_next(scan, &key, &key_bytes, &value, &value_bytes);
    if (error)
        return error;
    if (!value) {
        dumping->value.count = 0;
        if (!text_make_room(&dumping->value, value_bytes))
            return FKV_NO_MEMORY;
        if ((error = fkv_scan_value(scan, dumping->value.bytes, value_bytes)))
            return error;
        value = dumping->value.bytes;
    }
    dumping->pairs++;
    if (dump_pair(stdout, &dumping->scratch, key, key_bytes, value, value_bytes))
        return FKV_OK;
    return ferror(stdout) ? FKV_IO : error_set(FKV_NO_MEMORY, "a pair has no room in memory");
}

static enum fkv_error dump_all(struct dumping *dumping, fkv *db)
{
    fkv_snapshot *snapshot;
    fkv_scan *scan;
    enum fkv_error error = fkv_snapshot_open(db, &snapshot);
    if (error)
        return error;
    error = fkv_scan_open(snapshot, NULL, &scan);
    fkv_snapshot_close(snapshot);
    if (error)
        return error;
    dump_begin(stdout, db->digest);
    while (!error)
        error = dump_one(dumping, scan);
    if (error == FKV_NOT_FOUND)
        dump_end(stdout, dumping->pairs);
    fkv_scan_close(scan);
    return error == FKV_NOT_FOUND ? FKV_OK : error;
}

static int command_dump(const struct command_line *line)
{
    struct dumping dumping = {0};
    fkv *db;
    enum fkv_error error = open_store(line, FKV_OPEN_READ_ONLY, &db);
    if (error)
        return complain(NULL, error);
    if ((error = dump_all(&dumping, db)))
        error_claim(db->id);
    text_drop(&dumping.scratch);
    text_drop(&dumping.value);
    int written = finish_output(); /* says so if that was the error */
    int status = error && !(error == FKV_IO && written) ? complain(db, error) : EXIT_DONE;
    return close_store(db, status ? status : written);
}

static int bad_dump(const struct loader *loader)
{
    fprintf(stderr, "fkv: standard input, line %" PRIu64 ": %s\n", loader->lines, loader->what);
    return EXIT_FAILED;
}

static int command_load(const struct command_line *line)
{
    struct loader loader = {.from = stdin};
    fkv *db = NULL;
    int status = loader_begin(&loader) ? EXIT_DONE : bad_dump(&loader);
    if (!status)
        status = complain(NULL, open_store(line, line->digest ? FKV_DIGEST : 0, &db));
    if (!status)
        status = complain(db, loader_run(&loader, db));
    if (!status && loader.what)
        status = bad_dump(&loader);
    loader_drop(&loader);
    return close_store(db, status);
}

/* ---------------------------------------------------------------- the command line */

static const struct command {
    const char *name;
    int (*run)(const struct command_line *line);
    int least, most;     /* arguments */
    const char *options; /* that mean something to it */
} commands[] = {
    {"check", command_check, 1, 1, "qap"},   {"repair", command_repair, 2, 2, "qap"},
    {"backup", command_backup, 2, 2, "qpr"}, {"stat", command_stat, 1, 1, ""},
    {"get", command_get, 2, 2, "e"},         {"put", command_put, 2, 3, "ed"},
    {"delete", command_delete, 2, 2, "e"},   {"dump", command_dump, 1, 1, ""},
    {"load", command_load, 1, 1, "d"},
};

static int run(const struct command_line *line, const char *options)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(commands[i].name, line->command) != 0)
            continue;
        if (line->count < commands[i].least)
            return usage("arguments are missing");
        if (line->count > commands[i].most)
            return usage("there are too many arguments");
        if (options[strspn(options, commands[i].options)])
            return usage("an option is given that this command does not have");
        return commands[i].run(line);
    }
    return usage("there is no such command");
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"escaped", no_argument, NULL, 'e'},
                                            {"quiet", no_argument, NULL, 'q'},
                                            {"all", no_argument, NULL, 'a'},
                                            {"progress", no_argument, NULL, 'p'},
                                            {"digest", no_argument, NULL, 'd'},
                                            {"rate", required_argument, NULL, 'r'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"version", no_argument, NULL, 'V'},
                                            {NULL, 0, NULL, 0}};
    struct command_line line = {0};
    char given[16] = ""; /* options, each once */
    for (int option; (option = getopt_long(argc, argv, "eqaphV", options, NULL)) != -1;) {
        if (option != '?' && !strchr(given, option))
            given[strlen(given)] = (char)option;
        switch (option) {
        case 'e':
            line.escaped = true;
            break;
        case 'q':
            line.quiet = true;
            break;
        case 'a':
            line.all = true;
            break;
        case 'p':
            line.progress = true;
            break;
        case 'd':
            line.digest = true;
            break;
        case 'r':
            if (!(line.rate = parse_rate(optarg)))
                return usage("--rate takes a number of bytes, as 5000000 or 20M");
            break;
        case 'h':
            fputs(help, stdout);
            return finish_output();
        case 'V':
            printf("fkv %s\n", fkv_version());
            return finish_output();
        default: /* getopt has said what is wrong */
            fputs(try_help, stderr);
            return EXIT_USAGE;
        }
    }
    if (optind == argc)
        return usage("there is no command");
    line.command = argv[optind];
    line.arguments = argv + optind + 1;
    line.count = argc - optind - 1;
    return run(&line, given);
}
