/*
 * sanitized: is this a build under a sanitizer, in which everything takes several times as long?
 */
#ifndef FKV_TESTS_SANITIZED_H
#define FKV_TESTS_SANITIZED_H

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#endif
