"""The environment in which a fuzzer runs, so that whatever a sanitizer finds ends the run and is told with its stack.

By default some sanitizers report what they find and go on, so that libFuzzer keeps no input and the run counts as
good. Checks that ClusterFuzz does not count as findings are turned off, as in its
src/clusterfuzz/_internal/system/environment.py at commit 003ea047f1b5. Signals are left to libFuzzer, which reports
each of them. Reports are written without names of functions, which the host's symbolizer adds.
"""

from collections.abc import Mapping

_ALL = {"symbolize": "0", "exitcode": "1", "print_summary": "1"}
"""Options for every sanitizer. By default each has another exit code; 1, AddressSanitizer's, is known to callers."""

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
"""The options for each sanitizer, by the variable that it reads. Unknown options are silently ignored."""

LASTING: Mapping[str, Mapping[str, str]] = {
    "ASAN_OPTIONS": {
        **dict.fromkeys(("handle_abort", "handle_sigill", "handle_sigtrap"), "1"),
        "sleep_before_dying": str(100 * 24 * 3600),
    },
}
"""Further options, with which a process stays, asleep, after the sanitizer has reported why it must end.

Signals by which a target ends itself must be AddressSanitizer's then, not libFuzzer's, which would end at once. No
other sanitizer can sleep.
"""


def environment(own: Mapping[str, str], *, lasting: bool = False) -> dict[str, str]:
    """Return all variables for a fuzzer that has these of its own.

    Its own options for a sanitizer are appended to OPTIONS, and to LASTING if what crashes is to stay: of what is set
    twice, sanitizers take the last.
    """
    options = {name: {**OPTIONS[name], **(LASTING.get(name, {}) if lasting else {})} for name in OPTIONS}
    ours = {name: ":".join(f"{key}={value}" for key, value in sorted(options[name].items())) for name in options}
    return ours | {name: f"{ours[name]}:{value}" if name in ours else value for name, value in own.items()}
