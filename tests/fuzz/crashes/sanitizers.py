"""The names that sanitizers have in reports: SanitizerToolName in LLVM's compiler-rt."""

SANITIZERS = (
    "AddressSanitizer",
    "HWAddressSanitizer",
    "LeakSanitizer",
    "MemorySanitizer",
    "ThreadSanitizer",
    "UndefinedBehaviorSanitizer",
    "DataFlowSanitizer",
    "RealtimeSanitizer",
    "TypeSanitizer",
    "NumericalStabilitySanitizer",
    "KernelAddressSanitizer",
)
