// The first byte says how many follow, and is believed: more than eight of them overflow a buffer on the heap.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

static volatile uint8_t sink;

static uint8_t *copy_payload(const uint8_t *payload, size_t length, size_t there) {
    uint8_t *copy = malloc(8);
    for (size_t at = 0; at < length; ++at)
        copy[at] = at < there ? payload[at] : 0;
    return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 0) {
        uint8_t *copy = copy_payload(data + 1, data[0], size - 1);
        sink = copy[size % 8];
        free(copy);
    }
    return 0;
}
