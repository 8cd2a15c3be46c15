#include "isa.h"

#include "bytes.h"
#include "hash_aes.h"

bool isa_runs(const struct isa *one)
{
#ifdef ISA_X86
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("aes") && __builtin_cpu_supports("avx2") &&
                __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (one == &isa_avx2)
        return avx2;
    if (one == &isa_avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif defined(ISA_ARM)
    if (one == &isa_arm)
        return hash_aes_runs();
#endif
    return one == &isa_plain;
}

struct isa isa;

CONSTRUCTOR static void isa_choose(void)
{
    isa = isa_plain;
#ifdef ISA_X86
    if (isa_runs(&isa_avx512))
        isa = isa_avx512;
    else if (isa_runs(&isa_avx2))
        isa = isa_avx2;
#elif defined(ISA_ARM)
    if (isa_runs(&isa_arm))
        isa = isa_arm;
#endif
}
