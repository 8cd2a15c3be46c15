/*
 * test_exit: a process that ends without closing its stores.
 */
#include "api_support.h"

#include <sys/wait.h>

#include "rcu.h"

static bool looks;

/* After what is registered with atexit, and before what liburcu does last: it waits for readers,
 * from version 0.14 on, with all signals blocked. */
__attribute__((destructor)) static void at_the_end(void)
{
    if (looks && rcu_read_ongoing())
        _exit(1);
}

/* Inside of a read section, as in the face of an error. */
static void test_exit_inside_a_read_section(void **state)
{
    struct place *place = *state;
    fflush(stdout);
    pid_t child = fork(); /* no store has been opened in this process, so what fkv registers, the
                           * child does */
    int status = 0;
    if (!child) {
        static fkv *db;
        looks = true;
        if (fkv_open(place->path, NULL, &db) || fkv_put(db, "a", 1, "b", 1))
            _exit(2);
        fkv_read_begin(db);
        fkv_read_begin(db);
        exit(0); /* not _exit: what is registered is called */
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    fkv *db;
    must(fkv_open(place->path, NULL, &db));
    must(fkv_exists(db, "a", 1));
    must(fkv_close(db));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_exit_inside_a_read_section, place_make, place_drop),
    };
    return run_all(tests);
}
