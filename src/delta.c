#include "delta.h"

#include "memory.h"

struct delta *delta_new(const struct units *changed, const void *page)
{
    struct delta *delta = memory_buffer(delta_bytes(units_count(changed)));
    if (!delta)
        return NULL;
    delta->changed = *changed;
    delta->moves = NULL;
    uint32_t count = 0;
    for (uint32_t w = 0; w < PAGE_UNITS / 64; w++)
        for (uint64_t bits = changed->bits[w]; bits; bits &= bits - 1) {
            uint32_t unit = w * 64 + (uint32_t)__builtin_ctzll(bits);
            memcpy(delta->unit[count++], (const uint8_t *)page + unit * UNIT_BYTES, UNIT_BYTES);
        }
    return delta;
}

void delta_apply(const struct delta *delta, void *page)
{
    uint32_t count = 0;
    for (uint32_t w = 0; w < PAGE_UNITS / 64; w++)
        for (uint64_t bits = delta->changed.bits[w]; bits; bits &= bits - 1) {
            uint32_t unit = w * 64 + (uint32_t)__builtin_ctzll(bits);
            memcpy((uint8_t *)page + unit * UNIT_BYTES, delta->unit[count++], UNIT_BYTES);
        }
}
