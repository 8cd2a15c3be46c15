#define _GNU_SOURCE
#include "thread.h"

#include <sched.h>

void thread_block_signals(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, before);
}

bool thread_start(pthread_t *thread, void *(*body)(void *), void *context, const char *name)
{
    sigset_t before;
    thread_block_signals(&before);
    bool started = pthread_create(thread, NULL, body, context) == 0;
    thread_restore_signals(&before);
    if (started) {
        struct sched_param none = {0};
        pthread_setschedparam(*thread, SCHED_BATCH, &none);
        pthread_setname_np(*thread, name);
    }
    return started;
}

uint32_t thread_cores(void)
{
    cpu_set_t cores;
    int count = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
    return count > 0 ? (uint32_t)count : 1;
}
