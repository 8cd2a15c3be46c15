/* What people and programs see: the progress bar, the table, the JSON lines. */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include "bench.h"

#include <stdio.h>

/* The results of one workload: a figure for each repetition, metric and engine. */
struct report;

struct report *report_new(const char *workload, const char *headline);
void report_free(struct report *report);
void report_add(struct report *report, const char *engine, const struct message *message);

/* Medians over the repetitions. Engines are columns, ratios are against fkv if it took part. */
void report_print_table(const struct report *report, FILE *out);
void report_write_json(const struct report *report, FILE *out);

/* Which machine this is, in a line or two; and what the engines are. */
void report_print_machine(FILE *out);
void report_print_engines(FILE *out, const struct engine *const *engines, size_t count);

/* On a terminal, draw and redraw one line; elsewhere print a line when an engine begins and ends.
 */
void progress_begin(const char *workload, const char *engine);
void progress_show(const char *workload, const char *engine, const struct message *message);
void progress_end(const char *workload, const char *engine, bool failed);

#endif
