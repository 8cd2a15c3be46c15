#include "engine.h"

#include <string.h>

struct engine *engine_first;
uint64_t engine_index_memory_max;

void engine_add(struct engine *engine)
{
    struct engine **place = &engine_first;
    while (*place != NULL && strcmp((*place)->name, engine->name) < 0)
        place = &(*place)->next;
    engine->next = *place;
    *place = engine;
}

const struct engine *engine_find(const char *name)
{
    for (const struct engine *engine = engine_first; engine != NULL; engine = engine->next)
        if (strcmp(engine->name, name) == 0)
            return engine;
    return NULL;
}
