/*
 * replay: the inputs that are named, files or directories of files, one after the other through a
 * harness: the main program where there is no libFuzzer.
 */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { INPUT_BYTES_MAX = 1 << 20, HANG_SECONDS = 60 };

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = malloc(INPUT_BYTES_MAX);
    if (!file || !bytes) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(1);
    }
    size_t count = fread(bytes, 1, INPUT_BYTES_MAX, file);
    fclose(file);
    fprintf(stderr, "%s\n", path);              /* the last one is the one that failed */
    uint8_t *exact = malloc(count ? count : 1); /* a read beyond it is one beyond a block */
    for (size_t i = 0; i < count; i++)
        exact[i] = bytes[i];
    alarm(HANG_SECONDS);
    LLVMFuzzerTestOneInput(exact, count);
    alarm(0);
    free(exact);
    free(bytes);
    return 1;
}

static int replay_directory(const char *path)
{
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort), inputs = 0;
    for (int i = 0; i < count; i++) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.')
            inputs += replay_file(name);
        free(entries[i]);
    }
    if (count >= 0)
        free((void *)entries);
    return inputs;
}

int main(int argc, char **argv)
{
    int inputs = 0;
    for (int i = 1; i < argc; i++) {
        struct stat status;
        if (stat(argv[i], &status) != 0) {
            fprintf(stderr, "%s: is not there\n", argv[i]);
            return 1;
        }
        inputs += S_ISDIR(status.st_mode) ? replay_directory(argv[i]) : replay_file(argv[i]);
    }
    printf("fuzz inputs replayed: %d\n", inputs);
    return inputs == 0; /* a corpus that is not there is no success */
}
