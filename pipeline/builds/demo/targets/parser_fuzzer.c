// Parses a small binary format: the magic "TC", then records of a letter, a length and so many bytes. Five of the
// records are handled wrongly; planted.py lists them with an input for each.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const int squares[8] = {0, 1, 4, 9, 16, 25, 36, 49};
static volatile int sink;

struct parser {
    const uint8_t *at, *end;
    char *name;
};

// 'N': a name. The second one frees the first, a third one frees it again.
static void set_name(struct parser *parser, int *names) {
    if (++*names == 1)
        parser->name = malloc(4);
    else
        free(parser->name);
}

// 'T': a text, for which there is room for 15 characters only.
static void copy_text(const uint8_t *bytes, size_t length) {
    char *text = malloc(16);
    memcpy(text, bytes, length);
    text[15] = 0;
    sink = text[0];
    free(text);
}

// 'S': the square of a number, from a table that the number may exceed.
static void look_up_square(const uint8_t *bytes, size_t length) {
    if (length == 1)
        sink = squares[bytes[0]];
}

// 'A': an average. The first byte is the count, which may be 0.
static void average(const uint8_t *bytes, size_t length) {
    int sum = 0;
    for (size_t at = 1; at < length; ++at)
        sum += bytes[at];
    if (length > 1)
        sink = sum / bytes[0];
}

// '(': a list in a list, to any depth. Each level takes 64 KiB of the stack.
static void nested_list(struct parser *parser) {
    volatile char level[1 << 16];
    size_t left = (size_t)(parser->end - parser->at) % sizeof level; // unknown, or only one byte would be kept
    level[left] = 'l';
    while (parser->at < parser->end && *parser->at == '(') {
        ++parser->at;
        nested_list(parser);
    }
    sink = level[left];
}

static void record(struct parser *parser, int *names) {
    uint8_t kind = *parser->at++;
    size_t length = parser->at < parser->end ? *parser->at++ : 0;
    if (length > (size_t)(parser->end - parser->at))
        length = (size_t)(parser->end - parser->at);
    const uint8_t *bytes = parser->at;
    parser->at += length;
    switch (kind) {
        case 'N': set_name(parser, names); break;
        case 'T': copy_text(bytes, length); break;
        case 'S': look_up_square(bytes, length); break;
        case 'A': average(bytes, length); break;
        case '(': nested_list(parser); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || memcmp(data, "TC", 2) != 0)
        return 0;
    struct parser parser = {data + 2, data + size, NULL};
    int names = 0;
    while (parser.at < parser.end)
        record(&parser, &names);
    if (names == 1)
        free(parser.name);
    return 0;
}
