/*
 * error: what a failing function says.
 *
 * Internal functions return an enum fkv_error. The place that detects a failure calls
 * error_set, which keeps a sentence for fkv_error_detail and returns the error, so that
 * `return error_set(FKV_DAMAGED, "...")` is the whole of it.
 *
 * The sentence is kept per thread. A function that fails may be one that its caller can do without,
 * a commit's that finds the log full and waits, say: so it counts only when the public call fails,
 * which keeps it (error_claim) with the number of the handle that it is about. Handles are told
 * apart by numbers that are never used again, for memory is: a new handle may have the address of
 * one that was closed.
 */
#ifndef FKV_ERROR_H
#define FKV_ERROR_H

#include "fkv.h"

enum fkv_error error_set(enum fkv_error error, const char *format, ...)
    __attribute__((format(printf, 2, 3), cold));

/* The error for a negative errno from the os interface, with `what` ("read sector 7 of"). */
enum fkv_error error_os(int errno_negative, const char *what, const char *path)
    __attribute__((cold));
/* A sync failed, for whatever reason: FKV_IO. What was written may be lost. */
enum fkv_error error_sync(int errno_negative, const char *path);

/* The sentence that was set last in this thread, kept or not. */
const char *error_last(void);
enum { ERROR_TEXT_BYTES = 320 };

/* clang-tidy, which does not look into other files, is told that these are errors. */
#ifdef __clang_analyzer__
#define error_set(error, ...) ((void)error_set(error, __VA_ARGS__), (error))
#define error_os(...) (error_os(__VA_ARGS__) ?: FKV_IO)
#define error_sync(...) ((void)error_sync(__VA_ARGS__), FKV_IO)
#endif

/* Keep the sentence that was set last. `owner`: the number of a handle, 0 for fkv_open. */
void error_claim(uint64_t owner);
const char *error_detail_of(uint64_t owner);

#endif
