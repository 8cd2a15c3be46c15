/*
 * rcu: liburcu's read sections, inline, and what the sanitizers must know of them.
 *
 * liburcu allows inlining to code of any licence that is compatible with the GPL. The sanitizers
 * get the library's functions instead: liburcu gives its readers less alignment than it declares,
 * and its own loads and stores, which are not atomic ones to ThreadSanitizer, stay out of sight.
 * ThreadSanitizer is told what a grace period means: all that readers did in sections that they
 * have left comes before what is done after it. clang-tidy gets the functions too: it would suppose
 * that liburcu could not register the thread.
 */
#ifndef FKV_RCU_H
#define FKV_RCU_H

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang_analyzer__)
#define _LGPL_SOURCE
#endif
#include <urcu-bp.h>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>

extern char rcu_order; /* stands for that order */

static inline void rcu_leave(void)
{
    __tsan_release(&rcu_order);
    rcu_read_unlock();
}
#undef rcu_read_unlock
#define rcu_read_unlock rcu_leave

/* A grace period is over. */
static inline void rcu_grace_seen(void)
{
    __tsan_acquire(&rcu_order);
}
#else
static inline void rcu_grace_seen(void)
{
}
#endif

#endif
