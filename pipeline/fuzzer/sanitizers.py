"""The environment in which a fuzzer runs: whatever a sanitizer finds ends the run, and is told with its stack.

By themselves some sanitizers tell what they find and go on, so that libFuzzer keeps no input and the run counts as
good. Which of what they look for is no finding is ClusterFuzz's judgement, in its
src/clusterfuzz/_internal/system/environment.py at commit 003ea047f1b5. Signals are left to libFuzzer, which reports
each of them, and reports are written without names: those come from the host's symbolizer.
"""

from collections.abc import Mapping

_ALL = {"symbolize": "0", "exitcode": "1", "print_summary": "1"}
"""Each sanitizer has an exit code of its own; that of AddressSanitizer is the one that libFuzzer's callers know."""

_HALT = {**_ALL, "halt_on_error": "1"}
_ALLOCATIONS = {"alloc_dealloc_mismatch": "0", "allocator_may_return_null": "1", "strict_memcmp": "0"}

OPTIONS: Mapping[str, Mapping[str, str]] = {
    "ASAN_OPTIONS": _HALT | _ALLOCATIONS | {"detect_odr_violation": "0", "detect_stack_use_after_return": "1"},
    "HWASAN_OPTIONS": _HALT | {"allocator_may_return_null": "1"},
    "LSAN_OPTIONS": _ALL | {"print_suppressions": "0"},
    "MSAN_OPTIONS": _HALT | {"allocator_may_return_null": "1"},
    "TSAN_OPTIONS": _HALT | {"print_suppressions": "0"},
    # Overflows of unsigned numbers are no errors: some builds watch for them to guide the fuzzer
    "UBSAN_OPTIONS": _HALT | {"print_stacktrace": "1", "print_suppressions": "0", "silence_unsigned_overflow": "1"},
}
"""By the variable that each sanitizer reads. It takes what it does not know without a word."""


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """The variables for a fuzzer that has these of its own.

    To the options of a sanitizer its own ones are added: of what is set twice, sanitizers take the last.
    """
    ours = {name: ":".join(f"{key}={value}" for key, value in sorted(OPTIONS[name].items())) for name in OPTIONS}
    return ours | {name: f"{ours[name]}:{value}" if name in ours else value for name, value in own.items()}
