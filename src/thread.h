/*
 * thread: threads of the library's own.
 */
#ifndef FKV_THREAD_H
#define FKV_THREAD_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

/* Start one that takes none of the program's signals, and does not interrupt those that work. */
bool thread_start(pthread_t *thread, void *(*body)(void *), void *context, const char *name);

/* For threads that others start: they take over what the calling thread has blocked meanwhile. */
void thread_block_signals(sigset_t *before);
static inline void thread_restore_signals(const sigset_t *before)
{
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* How many cores this process may use, at least 1. */
uint32_t thread_cores(void);

#endif
