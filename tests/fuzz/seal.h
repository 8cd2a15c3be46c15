/*
 * seal: checksums are made right again, after the bytes under them were changed.
 *
 * What is behind a checksum is out of the reach of chance: with these, inputs get there.
 */
#ifndef FKV_TESTS_FUZZ_SEAL_H
#define FKV_TESTS_FUZZ_SEAL_H

#include "os_sim.h"

#include <stdbool.h>

/* Both copies of the header, and all nodes and pages that they lead to. */
void seal_trees(struct os_sim *sim);
/* The headers of sectors, and their records. */
void seal_sectors(struct os_sim *sim);

struct seal_log {
    bool records; /* those in the frames too */
    bool numbers; /* and number the commits */
};
/* The log's header, and the chain of frames, as far as their lengths make sense. */
void seal_log(struct os_sim *sim, const struct seal_log *options);

#endif
