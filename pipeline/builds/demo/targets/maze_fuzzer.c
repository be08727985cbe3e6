// Each letter N, E, S or W of the input is a step through a maze. Behind five of its doors is a bug, the deeper the
// harder to find; planted.py lists them with the way to each.
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

static volatile int sink;

// Depth 2.
static void trap_door(void) {
    volatile int *floor = NULL;
    sink = *floor;
}

// Depth 3.
static void ghost_room(void) {
    volatile char *ghost = malloc(16);
    ghost[0] = 'b';
    free((void *)ghost);
    sink = ghost[0];
}

// Depth 4. The index is one that the compiler does not know.
static void narrow_stairs(size_t step) {
    volatile char stairs[8];
    for (size_t at = 0; at < 8 + step; ++at)
        stairs[at] = 's';
    sink = stairs[0];
}

// Depth 5. Not inlined: wherever in it the time runs out, the stack must name it.
__attribute__((noinline)) static void endless_corridor(void) {
    while (sink >= 0)
        sink = 1;
}

// Depth 6.
static void sealed_gate(int keys) { assert(keys > 0 && "the gate is sealed"); }

static int leads(const uint8_t *way, size_t steps, const char *door) {
    for (size_t at = 0; door[at]; ++at)
        if (at >= steps || way[at] != (uint8_t)door[at])
            return 0;
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (leads(data, size, "NE"))
        trap_door();
    if (leads(data, size, "NWS"))
        ghost_room();
    if (leads(data, size, "SSSS"))
        narrow_stairs(size);
    if (leads(data, size, "WEWEW"))
        endless_corridor();
    if (leads(data, size, "EEENNN"))
        sealed_gate(sink);
    return 0;
}
