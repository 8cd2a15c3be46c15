/* As C11, strictly: see program.h. */
#include "program.h"
