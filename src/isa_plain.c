/* For any processor of the architecture. */
#define ISA isa_plain
#define ISA_NAME "plain"
#include "isa_code.h"
