// Takes an input for a structure, as fuzzers with structured inputs do: a rectangle of four 16-bit numbers, little
// endian. Aborts when its area, which is computed with 16 bits, is not the product of its sides.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

struct rectangle {
    uint16_t left, top, width, height;
};

static uint16_t number(const uint8_t *data) { return (uint16_t)(data[0] | data[1] << 8); }

static struct rectangle arbitrary(const uint8_t *data) {
    return (struct rectangle){number(data), number(data + 2), number(data + 4), number(data + 6)};
}

static void check_area(struct rectangle rectangle) {
    uint16_t area = (uint16_t)(rectangle.width * (uint32_t)rectangle.height);
    if (area != (uint32_t)rectangle.width * rectangle.height)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size >= 8)
        check_area(arbitrary(data));
    return 0;
}
