/*
 * unload LIBRARY STORE: libfkv.so is loaded, used and unloaded while the process goes on, as a
 * plugin that is linked with it would be. Threads that have used it end afterwards.
 */
#include <dlfcn.h>
#include <fkv.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { ROUNDS = 2 };

static void *library;
static pthread_barrier_t used, unloaded;

static void *symbol(const char *name)
{
    void *found = dlsym(library, name);
    if (!found)
        fprintf(stderr, "there is no %s\n", name);
    return found;
}

/* ISO C has no conversion of what dlsym returns to a function. */
#define LOOK_UP(function) memcpy(&(function), &(void *){symbol("fkv_" #function)}, sizeof(void *))

static int use(const char *path)
{
    enum fkv_error (*open)(const char *, const fkv_options *, fkv **);
    enum fkv_error (*put)(fkv *, const void *, size_t, const void *, size_t);
    enum fkv_error (*exists)(fkv *, const void *, size_t);
    enum fkv_error (*close)(fkv *);
    fkv *db;
    LOOK_UP(open);
    LOOK_UP(put);
    LOOK_UP(exists);
    LOOK_UP(close);
    return open && put && exists && close && !open(path, NULL, &db) &&
           !put(db, "alice", 5, "100", 3) && !exists(db, "alice", 5) && !close(db);
}

static void *thread(void *path)
{
    void *ok = use(path) ? path : NULL;
    pthread_barrier_wait(&used);
    pthread_barrier_wait(&unloaded);
    return ok; /* what the thread has of the library ends with it */
}

static int round_of(const char *path, char *store)
{
    pthread_t running;
    void *ok = NULL;
    if (!(library = dlopen(path, RTLD_NOW | RTLD_LOCAL))) {
        fprintf(stderr, "%s\n", dlerror());
        return 0;
    }
    if (pthread_create(&running, NULL, thread, store))
        return 0;
    pthread_barrier_wait(&used);
    int closed = dlclose(library);
    pthread_barrier_wait(&unloaded);
    pthread_join(running, &ok);
    return !closed && ok;
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    pthread_barrier_init(&used, NULL, 2);
    pthread_barrier_init(&unloaded, NULL, 2);
    for (int i = 0; i < ROUNDS; i++)
        if (!round_of(arguments[1], arguments[2]))
            return 1;
    return 0;
}
