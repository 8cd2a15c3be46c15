/*
 * use: a store whose files were changed is opened, read, checked, worked on, and opened again.
 *
 * Whatever its files are: every call ends, none crashes, errors have a sentence, nothing is left
 * behind, and no key has a value that it never had.
 */
#ifndef FKV_TESTS_FUZZ_USE_H
#define FKV_TESTS_FUZZ_USE_H

#include "bases.h"

struct use {
    uint32_t flags; /* of fkv_options, besides those of the base */
    bool strict;    /* no checksum was made right: what is not an error is what the store held */
    bool any_value; /* records were changed under their checksums: values can be anything */
    bool frames; /* frames of the log were: a repair, which may not know what place a record in one
                  * is bound to, believes the frame's checksum */
    bool image;  /* before all else, check and repair the files without opening the store */
};

void use_store(struct os_sim *sim, const struct base *base, const struct use *use);

#endif
