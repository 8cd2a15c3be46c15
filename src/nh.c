#include "nh.h"

#include "checksum.h"

uint8_t nh_key[NH_BYTES_MAX] __attribute__((aligned(64)));

CONSTRUCTOR static void nh_key_make(void)
{
    for (size_t i = 0; i < NH_BYTES_MAX / 8; i++)
        store_u64(nh_key + 8 * i, checksum_mix((i + 1) * 0x9e3779b97f4a7c15ull));
}
