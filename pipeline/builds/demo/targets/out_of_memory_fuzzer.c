// Keeps 1 MiB of each input, whatever is in it, until -rss_limit_mb is exceeded. Slowly: libFuzzer looks once a second,
// and without the pauses the guest would have no memory left by then.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, PAUSE = 10000 };

struct kept {
    struct kept *before;
    uint8_t bytes[BLOCK];
};

static struct kept *last;

static void keep(uint8_t value) {
    struct kept *block = malloc(sizeof *block);
    memset(block->bytes, value, sizeof block->bytes);
    block->before = last;
    last = block;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    keep(size > 0 ? data[0] : 1);
    usleep(PAUSE);
    return 0;
}
