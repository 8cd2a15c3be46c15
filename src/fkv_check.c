#include <limits.h>

#include "call.h"
#include "check.h"
#include "repair.h"

/* The public calls of checks: arguments, locks and errors. */

const char *fkv_part_name(enum fkv_part part)
{
    switch (part) {
    case FKV_PART_HEADER:
        return "header";
    case FKV_PART_PAGES:
        return "pages";
    case FKV_PART_INDEX:
        return "index";
    case FKV_PART_TABLE:
        return "sector table";
    case FKV_PART_MAPS:
        return "deletion maps";
    case FKV_PART_VALUES:
        return "values";
    case FKV_PART_LARGE:
        return "large values";
    case FKV_PART_SPACE:
        return "space";
    case FKV_PART_COUNTERS:
        return "counters";
    case FKV_PART_LOG:
        return "log";
    case FKV_PART_MEMORY:
        return "memory";
    }
    return "unknown part";
}

void fkv_check_options_init(fkv_check_options *options)
{
    if (options)
        *options = (fkv_check_options){.size = sizeof *options};
}

static enum fkv_error take_options(const fkv_check_options *given, struct check_options *options)
{
    fkv_check_options all;
    fkv_check_options_init(&all);
    enum fkv_error error = call_options(
        &all, sizeof all, given, offsetof(fkv_check_options, problem), "fkv_check_options_init");
    if (error)
        return error;
    if (all.flags)
        return error_set(FKV_INVALID, "unknown flags %#x", all.flags);
    *options = (struct check_options){
        .problem = all.problem, .progress = all.progress, .context = all.context};
    return FKV_OK;
}

enum fkv_error fkv_check(fkv *db, const fkv_check_options *given, fkv_check_result *result,
                         size_t result_bytes)
{
    struct check_options options;
    fkv_check_result found = {0};
    enum fkv_error error = check_alive(db);
    if (error)
        return error;
    if ((error = take_options(given, &options)))
        return said(db, error);
    pthread_mutex_lock(&db->writer);
    check_wait(db);
    error = store_check(db, &options, &found);
    pthread_mutex_unlock(&db->writer);
    call_give(result, result_bytes, &found, sizeof found);
    return said(db, error);
}

enum fkv_error fkv_check_file(const char *path, const fkv_check_options *given,
                              fkv_check_result *result, size_t result_bytes)
{
    struct check_options options;
    fkv_check_result found = {0};
    if (!path || !*path)
        return say(NULL, FKV_INVALID, path ? "the path is empty" : "the path is NULL");
    enum fkv_error error = take_options(given, &options);
    if (error)
        return said(NULL, error);
    char followed[PATH_MAX];
    if (!(error = call_path(path, followed)))
        error = check_file(os_posix(), followed, &options, &found);
    call_give(result, result_bytes, &found, sizeof found);
    return said(NULL, error);
}

/* ---------------------------------------------------------------- repair */

void fkv_repair_options_init(fkv_repair_options *options)
{
    if (options)
        *options = (fkv_repair_options){.size = sizeof *options};
}

static enum fkv_error take_repair_options(const fkv_repair_options *given,
                                          struct repair_options *options)
{
    fkv_repair_options all;
    fkv_repair_options_init(&all);
    enum fkv_error error = call_options(
        &all, sizeof all, given, offsetof(fkv_repair_options, problem), "fkv_repair_options_init");
    if (error)
        return error;
    if (all.flags)
        return error_set(FKV_INVALID, "unknown flags %#x", all.flags);
    *options = (struct repair_options){
        .problem = all.problem, .progress = all.progress, .context = all.context};
    return FKV_OK;
}

enum fkv_error fkv_repair(const char *path, const char *new_path, const fkv_repair_options *given,
                          fkv_repair_result *result, size_t result_bytes)
{
    struct repair_options options;
    fkv_repair_result found = {0};
    if (!path || !*path || !new_path || !*new_path)
        return say(NULL, FKV_INVALID, "a path is NULL or empty");
    enum fkv_error error = take_repair_options(given, &options);
    if (error)
        return said(NULL, error);
    char followed[PATH_MAX];
    if (!(error = call_path(path, followed)))
        error = repair(os_posix(), followed, new_path, &options, &found);
    call_give(result, result_bytes, &found, sizeof found);
    return said(NULL, error);
}
