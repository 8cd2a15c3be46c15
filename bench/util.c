#include "util.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void say(const char *format, va_list arguments)
{
    fflush(stdout);
    fputs("\nfkv-bench: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

void complain(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}

void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    exit(1);
}

void *need_memory(size_t count, size_t bytes)
{
    size_t total;
    void *memory = NULL;
    if (__builtin_mul_overflow(count, bytes, &total) ||
        (memory = malloc(total ? total : 1)) == NULL)
        die("no memory for %zu times %zu bytes", count, bytes);
    memset(memory, 0, total); /* calloc would leave the pages to be touched under the clock */
    return memory;
}

char *path_join(const char *directory, const char *name)
{
    char *path = NULL;
    if (asprintf(&path, "%s/%s", directory, name) < 0)
        die("no memory");
    return path;
}

static int compare_doubles(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;
    return (a > b) - (a < b);
}

double median(double *values, size_t count)
{
    if (count == 0)
        return 0;
    qsort(values, count, sizeof *values, compare_doubles);
    return (values[(count - 1) / 2] + values[count / 2]) / 2;
}
