// Aborts on an input that starts with "HI!". Each character is a branch of its own, so that a corpus grows on the way.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

static void greet(const uint8_t *data, size_t size) {
    if (size > 0 && data[0] == 'H')
        if (size > 1 && data[1] == 'I')
            if (size > 2 && data[2] == '!')
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    greet(data, size);
    return 0;
}
