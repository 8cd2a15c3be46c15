/* For ARM processors with instructions for AES. */
#if defined(__aarch64__) && defined(__GNUC__)

#define ISA isa_arm
#define ISA_NAME "arm"
#define ISA_AES
#include "isa_code.h"

#endif
