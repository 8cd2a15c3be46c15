/*
 * seeds: writes the inputs that fuzzing begins with, into the directories store/, log/ and dump/ of
 * the one that is named. They are in the corpus of the repository already: this is for when the
 * format has changed, so that the logs among them are logs again.
 */
#include "bases.h"
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static const char *directory;

static void write_seed(const char *harness, const char *name, const void *bytes, size_t count)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, harness);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/seed-%s", directory, harness, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, count, file) != count || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

/* The log of each store, as it is, and with all that is sealed. */
static void write_logs(size_t number)
{
    enum { BYTES_MAX = 30 << 10 };
    static uint8_t bytes[2 + BYTES_MAX];
    const struct base *base = base_get(number);
    size_t end = LOG_FRAMES_OFFSET;
    for (size_t n = 0; n < base->place_count; n++)
        if (base->places[n].kind == PLACE_FRAME)
            end = (size_t)(base->places[n].offset + base->places[n].bytes);
    size_t count = end - LOG_FRAMES_OFFSET;
    if (count > BYTES_MAX)
        count = BYTES_MAX;
    os_sim_peek(base->sim, BASE_LOG_PATH, LOG_FRAMES_OFFSET, bytes + 2, count);
    for (unsigned modes = 0; modes < 128; modes += 17) {
        char name[64];
        snprintf(name, sizeof name, "%s-%u", base->name, modes);
        bytes[0] = (uint8_t)number;
        bytes[1] = (uint8_t)modes;
        if (modes == 0 || modes == 17 || (modes == 119 && count < 4096))
            write_seed("log", name, bytes, 2 + count);
    }
}

/* One edit in each kind of place, sealed and not. */
static void write_edits(size_t number)
{
    const struct base *base = base_get(number);
    for (unsigned kind = 0; kind < PLACE_KINDS; kind++)
        for (unsigned sealed = 0; sealed < 2; sealed++) {
            const uint8_t modes = sealed ? 0x4b : 0;
            uint8_t input[14] = {(uint8_t)number, modes, (uint8_t)(kind << 3 | 5), 0, 8, 0, 1};
            char name[64];
            snprintf(name, sizeof name, "%s-%u-%u", base->name, kind, sealed);
            if (base_place(base, (enum place_kind)kind, 0) && (sealed || kind < 2))
                write_seed("store", name, input, sizeof input);
        }
}

static void write_dumps(void)
{
    static const char *const dumps[] = {
        "# fkv-dump 1\n# end 0\n",
        "# fkv-dump 1\nkey\tvalue\nkey\tanother\n\\x23a\\\\b\t\\x00\\xff\n\t\n# end 4\n",
        "# fkv-dump 1\nkey\tvalue\n# end 2\n",
        "# fkv-dump 1 digest\n# end 0\n",
        "# fkv-dump 1\nkey\tcut o",
    };
    for (size_t i = 0; i < sizeof dumps / sizeof *dumps; i++) {
        char name[16];
        snprintf(name, sizeof name, "%zu", i);
        write_seed("dump", name, dumps[i], strlen(dumps[i]));
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: fuzz-seeds DIRECTORY\n");
        return 2;
    }
    directory = argv[1];
    for (size_t number = 0; number < base_count(); number++) {
        write_logs(number);
        write_edits(number);
    }
    write_dumps();
    return 0;
}
