/*
 * thread: threads of the library's own.
 */
#ifndef FKV_THREAD_H
#define FKV_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Start one that takes none of the program's signals, and does not interrupt those that work. */
bool thread_start(pthread_t *thread, void *(*body)(void *), void *context, const char *name);

/* How many cores this process may use, at least 1. */
uint32_t thread_cores(void);

#endif
