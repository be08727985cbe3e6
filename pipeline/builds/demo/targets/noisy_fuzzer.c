// Writes 64 lines to stdout and 64 to stderr for each input, and never fails.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    (void)data;
    for (int line = 0; line < 64; ++line) {
        fprintf(stdout, "stdout: line %d about an input of %zu bytes\n", line, size);
        fprintf(stderr, "stderr: line %d about an input of %zu bytes\n", line, size);
    }
    fflush(stdout);
    return 0;
}
