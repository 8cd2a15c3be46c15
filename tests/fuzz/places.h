/*
 * places: where in the files of a whole store the parts of the format lie.
 */
#ifndef FKV_TESTS_FUZZ_PLACES_H
#define FKV_TESTS_FUZZ_PLACES_H

#include "bases.h"

/* Into `places`, of which there is room for so many; returns how many there are. */
size_t places_find(struct os_sim *sim, struct place *places, size_t room);

/* The copy of the header that counts. */
struct format_header places_header(struct os_sim *sim);

#endif
