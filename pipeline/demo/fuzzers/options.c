// Linked into every fuzzer. Stacks are written as module and offset: in the guest is nothing that could tell more,
// the host's symbolizer does it.
const char *__asan_default_options(void) { return "symbolize=0"; }
