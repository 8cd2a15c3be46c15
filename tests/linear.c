#include "linear.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "checksum.h"

enum { WORDS = LINEAR_OPERATIONS / 64 };

/* ---------------------------------------------------------------- operations */

static bool access_apply(const struct linear_access *access, uint32_t *value)
{
    uint32_t before = *value;
    switch ((enum linear_kind)access->kind) {
    case LINEAR_READ:
        return before == access->value;
    case LINEAR_EXISTS:
        return (before != 0) == (access->value != 0);
    case LINEAR_WRITE:
        *value = access->value;
        return true;
    case LINEAR_DELETE:
        *value = 0;
        return (before != 0) == (access->value != 0);
    }
    return false;
}

bool linear_apply(const struct linear_operation *operation, uint32_t state[LINEAR_KEYS])
{
    for (uint32_t i = 0; i < operation->count; i++)
        if (!access_apply(&operation->accesses[i], &state[operation->accesses[i].key]))
            return false;
    return true;
}

/* ---------------------------------------------------------------- what was reached before */

struct configuration {
    uint64_t done[WORDS]; /* the operations */
    uint32_t state[LINEAR_KEYS];
};

enum { REACHED_MAX = 1 << 22 };

struct reached {
    struct configuration *slots;
    uint8_t *used;
    size_t mask, count;
};

static void reached_make(struct reached *reached, size_t size)
{
    *reached = (struct reached){
        .slots = malloc(size * sizeof *reached->slots), .used = calloc(size, 1), .mask = size - 1};
    if (!reached->slots || !reached->used)
        abort();
}

static void reached_drop(struct reached *reached)
{
    free(reached->slots);
    free(reached->used);
}

static bool reached_add(struct reached *reached, const struct configuration *configuration);

static void reached_grow(struct reached *reached)
{
    struct reached larger;
    reached_make(&larger, (reached->mask + 1) * 2);
    for (size_t i = 0; i <= reached->mask; i++)
        if (reached->used[i])
            reached_add(&larger, &reached->slots[i]);
    reached_drop(reached);
    *reached = larger;
}

/* False if it was there. */
static bool reached_add(struct reached *reached, const struct configuration *configuration)
{
    if (reached->count * 2 > reached->mask)
        reached_grow(reached);
    size_t i = checksum64(configuration, sizeof *configuration) & reached->mask;
    for (; reached->used[i]; i = (i + 1) & reached->mask)
        if (memcmp(&reached->slots[i], configuration, sizeof *configuration) == 0)
            return false;
    reached->slots[i] = *configuration;
    reached->used[i] = 1;
    reached->count++;
    return true;
}

/* ---------------------------------------------------------------- the search */

/* A call or a return, in a list by time. */
struct event {
    struct event *next, *previous;
    struct event *end; /* of a call: its return. NULL: this is a return */
    uint32_t operation;
    uint64_t time;
};

struct choice {
    struct event *call;
    uint32_t state[LINEAR_KEYS]; /* before it */
};

struct search {
    const struct linear_operation *history;
    struct event events[2 * LINEAR_OPERATIONS];
    struct event head;
    struct configuration now;
    struct choice choices[LINEAR_OPERATIONS];
    size_t depth;
    struct reached reached;
};

/* At the same time, calls come first: then the two overlap, which excludes less. */
static int compare_events(const void *a, const void *b)
{
    const struct event *x = *(struct event *const *)a, *y = *(struct event *const *)b;
    if (x->time != y->time)
        return x->time < y->time ? -1 : 1;
    return (x->end == NULL) - (y->end == NULL);
}

static void take_out(struct event *event)
{
    event->previous->next = event->next;
    if (event->next)
        event->next->previous = event->previous;
}

static void put_back(struct event *event)
{
    event->previous->next = event;
    if (event->next)
        event->next->previous = event;
}

static void list_events(struct search *search, const uint32_t *chosen, size_t count)
{
    struct event *order[2 * LINEAR_OPERATIONS];
    for (size_t i = 0; i < count; i++) {
        struct event *call = &search->events[2 * i], *end = call + 1;
        const struct linear_operation *operation = &search->history[chosen[i]];
        *call = (struct event){.end = end, .operation = chosen[i], .time = operation->call};
        *end = (struct event){.operation = chosen[i], .time = operation->end};
        order[2 * i] = call;
        order[2 * i + 1] = end;
    }
    qsort(order, 2 * count, sizeof *order, compare_events);
    struct event *last = &search->head;
    *last = (struct event){0};
    for (size_t i = 0; i < 2 * count; i++) {
        last->next = order[i];
        order[i]->previous = last;
        last = order[i];
    }
}

/* Take the operation as the next one, if it can be and leads to something new. */
static bool choose(struct search *search, struct event *call)
{
    struct configuration then = search->now;
    if (!linear_apply(&search->history[call->operation], then.state))
        return false;
    then.done[call->operation / 64] |= UINT64_C(1) << call->operation % 64;
    if (!reached_add(&search->reached, &then))
        return false;
    struct choice *choice = &search->choices[search->depth++];
    choice->call = call;
    memcpy(choice->state, search->now.state, sizeof choice->state);
    search->now = then;
    take_out(call);
    take_out(call->end);
    return true;
}

/* Take the last choice back; the call that it was. */
static struct event *take_back(struct search *search)
{
    struct choice *choice = &search->choices[--search->depth];
    struct event *call = choice->call;
    put_back(call->end);
    put_back(call);
    memcpy(search->now.state, choice->state, sizeof choice->state);
    search->now.done[call->operation / 64] &= ~(UINT64_C(1) << call->operation % 64);
    return call;
}

static enum linear_verdict search_all(struct search *search)
{
    struct event *event = search->head.next;
    while (search->head.next) {
        if (search->reached.count > REACHED_MAX)
            return LINEAR_TOO_LARGE;
        if (event->end && choose(search, event))
            event = search->head.next;
        else if (event->end)
            event = event->next;
        else if (search->depth)
            event = take_back(search)->next;
        else
            return LINEAR_NO;
    }
    return LINEAR_YES;
}

/* ---------------------------------------------------------------- keys apart */

/* The keys that are tied to each: by operations of both, directly or not. */
static void tie_keys(const struct linear_operation *history, size_t count,
                     uint8_t tied[LINEAR_KEYS])
{
    for (int key = 0; key < LINEAR_KEYS; key++)
        tied[key] = (uint8_t)(1u << key);
    for (size_t i = 0; i < count; i++) {
        uint8_t all = 0;
        for (uint32_t a = 0; a < history[i].count; a++)
            all |= tied[history[i].accesses[a].key];
        for (int key = 0; key < LINEAR_KEYS; key++)
            if (tied[key] & all)
                tied[key] = all;
    }
}

enum linear_verdict linear_check(const struct linear_operation *history, size_t count,
                                 const uint32_t state[LINEAR_KEYS])
{
    uint8_t tied[LINEAR_KEYS];
    uint32_t chosen[LINEAR_OPERATIONS];
    enum linear_verdict verdict = LINEAR_YES;
    if (count > LINEAR_OPERATIONS)
        return LINEAR_TOO_LARGE;
    struct search *search = calloc(1, sizeof *search);
    if (!search)
        abort();
    search->history = history;
    tie_keys(history, count, tied);
    uint8_t checked = 0;
    for (int key = 0; key < LINEAR_KEYS && verdict == LINEAR_YES; key++) {
        if (checked & (1u << key))
            continue;
        checked |= tied[key];
        size_t number = 0;
        for (size_t i = 0; i < count; i++)
            if (history[i].count && (tied[key] & (1u << history[i].accesses[0].key)))
                chosen[number++] = (uint32_t)i;
        list_events(search, chosen, number);
        search->now = (struct configuration){{0}, {0}};
        memcpy(search->now.state, state, sizeof search->now.state);
        search->depth = 0;
        reached_make(&search->reached, 1024);
        verdict = search_all(search);
        reached_drop(&search->reached);
    }
    free(search);
    return verdict;
}

/* ---------------------------------------------------------------- for people */

void linear_print(const struct linear_operation *history, size_t count,
                  const uint32_t state[LINEAR_KEYS])
{
    static const char *const kinds[] = {"reads", "exists", "writes", "deletes"};
    fprintf(stderr, "before: ");
    for (int key = 0; key < LINEAR_KEYS; key++)
        fprintf(stderr, " %d=%" PRIu32, key, state[key]);
    fprintf(stderr, "\n");
    uint64_t first = UINT64_MAX;
    for (size_t i = 0; i < count; i++)
        first = min_u64(first, history[i].call);
    for (size_t i = 0; i < count; i++) {
        fprintf(stderr, "%9" PRIu64 " to %9" PRIu64 ":", history[i].call - first,
                history[i].end - first);
        for (uint32_t a = 0; a < history[i].count; a++) {
            const struct linear_access *access = &history[i].accesses[a];
            fprintf(stderr, " %s %u=%" PRIu32, kinds[access->kind], access->key, access->value);
        }
        fprintf(stderr, "\n");
    }
}
