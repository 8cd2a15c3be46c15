/* As C++11, strictly: see program.h. */
#include "program.h"
