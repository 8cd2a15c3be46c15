#include "reclaim.h"
#include "planted.h"
#include "thread.h"

#include <stdlib.h>
#include <time.h>

#ifdef __SANITIZE_THREAD__
char rcu_order;
#endif

enum { WORTH_A_GRACE_PERIOD = 256 };

/* ---------------------------------------------------------------- fork, exit */

static pthread_once_t handlers_once = PTHREAD_ONCE_INIT;
static _Thread_local bool forking_in_section;
static bool forked_in_section; /* liburcu may be locked for ever in this process */

static void before_fork(void)
{
    forking_in_section = rcu_read_ongoing();
    if (forking_in_section)
        return;
    call_rcu_before_fork();
    urcu_bp_before_fork();
}

static void after_fork_parent(void)
{
    if (forking_in_section)
        return;
    urcu_bp_after_fork_parent();
    call_rcu_after_fork_parent();
}

static void after_fork_child(void)
{
    if (forking_in_section) {
        forked_in_section = true;
        return;
    }
    sigset_t before;
    urcu_bp_after_fork_child(); /* puts back the signals that it had blocked */
    thread_block_signals(&before);
    call_rcu_after_fork_child(); /* may start a thread */
    thread_restore_signals(&before);
}

/* Who calls exit inside a read section: liburcu ends its thread then (from version 0.14 on), and
 * waits for readers before, with all signals blocked. */
static void leave_sections(void)
{
    while (rcu_read_ongoing())
        rcu_read_unlock();
}

static void register_handlers(void)
{
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
    atexit(leave_sections);
}

/* ---------------------------------------------------------------- liburcu's thread */

static void *nothing(void *context)
{
    return context;
}

/*
 * It makes the calls of call_rcu, for all stores of the process, and takes none of the program's
 * signals. Liburcu starts it when it is first needed, and ends the process if it cannot: so it is
 * needed here, where it can still be said that there is no room for threads.
 */
static bool start_thread_of_liburcu(void)
{
    static _Atomic bool started;
    pthread_t thread;
    sigset_t before;
    if (started)
        return true;
    if (!thread_start(&thread, nothing, NULL, "fkv-try"))
        return false;
    pthread_join(thread, NULL);
    thread_block_signals(&before);
    get_default_call_rcu_data();
    thread_restore_signals(&before);
    started = true;
    return true;
}

/* ---------------------------------------------------------------- grace periods */

enum fkv_error reclaim_make(struct reclaim *reclaim, bool threads,
                            void (*release)(void *context, struct retired *retired), void *context)
{
    *reclaim =
        (struct reclaim){.threads = threads, .alone = true, .release = release, .context = context};
    pthread_once(&handlers_once, register_handlers);
    if (forked_in_section)
        return error_set(FKV_FORKED, "this process was forked inside a read section");
    if (threads && !start_thread_of_liburcu())
        return error_set(FKV_NO_MEMORY, "a thread could not be started");
    reclaim->grace = memory_new(sizeof *reclaim->grace);
    return reclaim->grace ? FKV_OK : FKV_NO_MEMORY;
}

static int state_of(const struct reclaim *reclaim)
{
    return reclaim->grace ? atomic_load_explicit(&reclaim->grace->state, memory_order_acquire)
                          : RECLAIM_IDLE;
}

bool reclaim_is_idle(const struct reclaim *reclaim)
{
    return state_of(reclaim) == RECLAIM_IDLE;
}

static void grace_over(struct rcu_head *head)
{
    struct grace *grace = (struct grace *)((char *)head - offsetof(struct grace, rcu));
    rcu_grace_seen();
    if (atomic_exchange(&grace->state, RECLAIM_OVER) == RECLAIM_ABANDONED)
        memory_free(grace);
}

static void release_waiting(struct reclaim *reclaim)
{
    struct retired retired = reclaim->waiting;
    reclaim->waiting = (struct retired){0};
    reclaim->released++;
    if (reclaim->grace)
        atomic_store_explicit(&reclaim->grace->state, RECLAIM_IDLE, memory_order_relaxed);
    reclaim->release(reclaim->context, &retired);
}

void reclaim_poll(struct reclaim *reclaim, bool now)
{
    int state = state_of(reclaim);
    if (state == RECLAIM_OVER)
        release_waiting(reclaim);
    else if (state != RECLAIM_IDLE)
        return;
    if (!reclaim->filling.count || (!now && reclaim->filling.count < WORTH_A_GRACE_PERIOD))
        return;
    reclaim->waiting = reclaim->filling;
    reclaim->filling = (struct retired){0};
    if (reclaim->alone || PLANTED(NO_GRACE)) {
        release_waiting(reclaim);
    } else if (reclaim->threads) {
        atomic_store_explicit(&reclaim->grace->state, RECLAIM_WAITING, memory_order_relaxed);
        call_rcu(&reclaim->grace->rcu, grace_over);
    } else {
        atomic_store_explicit(&reclaim->grace->state, RECLAIM_WANTED, memory_order_release);
    }
}

void reclaim_wait_wanted(struct reclaim *reclaim)
{
    int wanted = RECLAIM_WANTED;
    if (rcu_read_ongoing() ||
        !atomic_compare_exchange_strong(&reclaim->grace->state, &wanted, RECLAIM_WAITING))
        return; /* in a section it would be for ever: others will, or this thread later */
    synchronize_rcu();
    rcu_grace_seen();
    atomic_store_explicit(&reclaim->grace->state, RECLAIM_OVER, memory_order_release);
}

void reclaim_pause(struct reclaim *reclaim)
{
    if (!reclaim->threads)
        reclaim_wait(reclaim);
    else if (state_of(reclaim) == RECLAIM_WAITING && !rcu_read_ongoing())
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

void reclaim_wait_all(struct reclaim *reclaim)
{
    if (reclaim->threads) {
        rcu_barrier();
        return;
    }
    reclaim_wait_wanted(reclaim);
    if (state_of(reclaim) == RECLAIM_WAITING) /* another thread waits, not for much longer */
        synchronize_rcu();
}

void reclaim_wait_a_while(struct reclaim *reclaim)
{
    enum { WAITS = 50 };
    if (!reclaim->threads)
        reclaim_wait_all(reclaim);
    for (int i = 0; i < WAITS && state_of(reclaim) == RECLAIM_WAITING; i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

void reclaim_finish(struct reclaim *reclaim, bool forked)
{
    int state = state_of(reclaim);
    if (state == RECLAIM_WAITING || state == RECLAIM_WANTED) {
        if (!forked && !rcu_read_ongoing())
            reclaim_wait_all(reclaim);
        else if (atomic_exchange(&reclaim->grace->state, RECLAIM_ABANDONED) == RECLAIM_WAITING)
            reclaim->grace = NULL; /* grace_over will free it */
    }
    if (forked) { /* the lists may be half changed: by a thread that is not in this process */
        reclaim->waiting = reclaim->filling = (struct retired){0};
        reclaim->release = NULL;
        return;
    }
    release_waiting(reclaim);
    struct retired retired = reclaim->filling;
    reclaim->filling = (struct retired){0};
    if (retired.count)
        reclaim->release(reclaim->context, &retired);
}

void reclaim_drop(struct reclaim *reclaim)
{
    memory_free(reclaim->grace);
    reclaim->grace = NULL;
}
