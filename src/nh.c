#include "nh.h"

uint8_t nh_key[NH_BYTES_MAX] __attribute__((aligned(64)));

CONSTRUCTOR static void nh_key_make(void)
{
    for (size_t i = 0; i < NH_BYTES_MAX / 8; i++) {
        uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ x >> 27) * 0x94d049bb133111ebull;
        store_u64(nh_key + 8 * i, x ^ x >> 31);
    }
}
