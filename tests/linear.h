/*
 * linear: is a history of concurrent operations linearizable?
 *
 * A history is what threads recorded: of each operation when it was called, when it returned, and
 * what it read and wrote. It is linearizable if there is an order of all operations in which each
 * one comes between its call and its return, and in which each reads what the ones before it wrote.
 *
 * The search is Wing and Gong's with Lowe's improvements ("Testing for linearizability", 2017): the
 * calls and returns in one list by time; an operation is tried as the next one if no return comes
 * before its call, and taken out of the list; at a return that is still there, the last choice is
 * taken back. What was reached once, the set of operations that are done and the state they lead
 * to, is never gone into again.
 *
 * Keys that no operation touches together are checked apart (linearizability is local: Herlihy and
 * Wing, 1990). Operations of several keys, transactions, tie their keys together.
 */
#ifndef FKV_TESTS_LINEAR_H
#define FKV_TESTS_LINEAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LINEAR_KEYS = 8, LINEAR_ACCESSES = 8, LINEAR_OPERATIONS = 256 };

enum linear_kind {
    LINEAR_READ,   /* the value was this one; 0: there was none */
    LINEAR_EXISTS, /* there was a value, or (0) none */
    LINEAR_WRITE,  /* the value is this one from now on; 0: there is none */
    LINEAR_DELETE, /* there was a value, or (0) none, and from now on there is none */
};

struct linear_access {
    uint8_t key;
    uint8_t kind; /* enum linear_kind */
    uint32_t value;
};

/* One operation: all of its accesses at one moment, one after another. */
struct linear_operation {
    uint64_t call, end; /* of a clock that all threads share */
    uint32_t count;
    struct linear_access accesses[LINEAR_ACCESSES];
};

enum linear_verdict { LINEAR_YES, LINEAR_NO, LINEAR_TOO_LARGE };

/* Is the history linearizable, if key k has the value state[k] before it? */
enum linear_verdict linear_check(const struct linear_operation *history, size_t count,
                                 const uint32_t state[LINEAR_KEYS]);

/* Put one operation into effect; false if it could not have read what it did. */
bool linear_apply(const struct linear_operation *operation, uint32_t state[LINEAR_KEYS]);

/* For people, to stderr. */
void linear_print(const struct linear_operation *history, size_t count,
                  const uint32_t state[LINEAR_KEYS]);

#endif
