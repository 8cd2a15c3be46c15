/*
 * fuzz: what the harnesses of coverage-guided fuzzing share.
 *
 * A harness is one file, fuzz_NAME.c, with the entry point of libFuzzer. It is linked twice: with
 * libFuzzer (the preset `fuzz`), and in every preset with replay.c, which gives it the inputs of
 * the corpus, as a test.
 *
 * Inputs are small, and what they mean is a store that the harness makes itself (bases.h): so they
 * stay good when the format changes. Checksums would hide everything behind them from chance; a bit
 * of an input has them made right after everything else was done to the files (seal.h).
 */
#ifndef FKV_TESTS_FUZZ_H
#define FKV_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Something that must never be: says it and ends the program, by abort(). */
_Noreturn void fuzz_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What getrandom() gives, from now on, is drawn from this number. */
void fuzz_random(uint64_t seed);

#endif
