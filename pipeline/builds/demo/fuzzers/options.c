// Linked into every fuzzer. Stacks are written as module and offset: nothing in the guest could tell more, and the
// host's symbolizer adds the names.
const char *__asan_default_options(void) { return "symbolize=0"; }
