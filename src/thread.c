#define _GNU_SOURCE
#include "thread.h"

#include <sched.h>
#include <signal.h>

bool thread_start(pthread_t *thread, void *(*body)(void *), void *context, const char *name)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    bool started = pthread_create(thread, NULL, body, context) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
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
