"""The environment in which a fuzzer runs, so that whatever a sanitizer finds ends the run and is told with its stack.

By default some sanitizers report what they find and go on, so that libFuzzer keeps no input and the run counts as
good. The other options are those of ClusterFuzz, which turn off checks whose findings it does not count, as in its
src/clusterfuzz/_internal/system/environment.py at commit 775849763295. Reports are written without names of functions,
which the host's symbolizer adds.

Three things of ClusterFuzz are left out. `handle_abort` and its like would make sanitizers report the signals by which
a target ends itself. They are left to libFuzzer, which calls each of them `deadly signal`: by that the groups of
crashes are named, and the canary is one. `fast_unwind_on_fatal` would cost the stacks of these signals, as libc has no
frame pointers. And redzones of random size would make the same input behave differently from run to run.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.text import sanitizer_options
from pipeline.text.printable import one_line

_ALL = {"symbolize": "0", "exitcode": "1", "print_summary": "1", "use_sigaltstack": "1"}
"""Options for every sanitizer. By default each has another exit code; 1, AddressSanitizer's, is known to callers."""

_HALT = {**_ALL, "halt_on_error": "1"}
_ALLOCATIONS = {"alloc_dealloc_mismatch": "0", "allocator_may_return_null": "1", "strict_memcmp": "0"}
_CHECKS = {"check_malloc_usable_size": "0", "detect_odr_violation": "0", "detect_stack_use_after_return": "1"}
_ASAN = {"allow_user_segv_handler": "0", "print_scariness": "1", "print_suppressions": "0"}

OPTIONS: Mapping[str, Mapping[str, str]] = {
    "ASAN_OPTIONS": _HALT | _ALLOCATIONS | _CHECKS | _ASAN,
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

_LATER = ("LSAN_OPTIONS", "UBSAN_OPTIONS")
"""The variables that a sanitizer with others built into it reads after its own, in this order.

Of options that all sanitizers have, the last counts, wherever it was said: see asan_flags.cpp in compiler-rt.
"""

_READ = re.compile(r"(?:\w*SAN|CFI|SCUDO)_OPTIONS")
_INCLUDES = frozenset(("include", "include_if_exists"))
"""Options that stand for those of a file, which count there where the option stands: it cannot be moved."""


def reads(name: str) -> bool:
    """Whether a sanitizer may read a variable of this name: one such as ASAN_OPTIONS, also of one that is not known."""
    return _READ.fullmatch(name) is not None


def environment(*own: Mapping[str, str], lasting: bool = False) -> dict[str, str]:
    """Return all variables for a fuzzer that has these of its own; of several with the same name, the last counts.

    Options for sanitizers are merged, one by one, with OPTIONS, and with LASTING if what crashes is to stay: its own
    count wherever both say something, and the outcome is sorted. What it says of an option that all sanitizers have
    holds for those too that are built into another, unless it says something else for them. A text that a sanitizer
    does not understand, or that includes a file, follows as it is behind all others.
    """
    ours = _ours(own, lasting)
    names = dict.fromkeys((*ours, *(name for layer in own for name in layer)))
    return {name: _value(name, ours.get(name, {}), [one[name] for one in own if name in one]) for name in names}


def _ours(own: Iterable[Mapping[str, str]], lasting: bool) -> dict[str, dict[str, str]]:
    ours = {name: {**OPTIONS[name], **(LASTING.get(name, {}) if lasting else {})} for name in OPTIONS}
    said = _for_all(own, set(OPTIONS).difference(_LATER))
    for name in _LATER:
        ours[name] |= said
        said |= _for_all(own, {name})
    return ours


def _for_all(own: Iterable[Mapping[str, str]], names: set[str]) -> dict[str, str]:
    """What variables of these names say of the options that all sanitizers have."""
    texts = (layer[name] for layer in own for name in sorted(names & layer.keys()))
    return {key: value for text in texts for key, value in sanitizer_options.parse(text).values.items() if key in _ALL}


def _value(name: str, ours: Mapping[str, str], texts: list[str]) -> str:
    if not reads(name):
        return texts[-1]
    values, apart = dict(ours), list[str]()
    for text in texts:
        said = sanitizer_options.parse(text)
        if apart or said.rest or _INCLUDES & said.values.keys():
            apart.append(text)
        else:
            values |= said.values
    return ":".join(filter(None, (sanitizer_options.joined(values), *apart)))


@dataclass(frozen=True)
class _Loss:
    """What happens if an option has certain values, or any but these."""

    values: tuple[str, ...]
    happens: str
    unless: bool = False
    of: str = ""
    """The only variable in which the option means something; empty if it means the same in all."""

    def occurs(self, name: str, value: str) -> bool:
        return self.of in ("", name) and (value in self.values) != self.unless


_OFF, _ON = ("0", "no", "false"), ("1", "yes", "true")
_GOES_ON = "what is found is told, and its input lost: the target goes on"
_OVERFLOW = "a stack overflow ends the target without a report, and its input is lost"
_NO_STACK = "stacks are written in a way that is not understood, so that crashes are not told apart"

# Each of them was tried out with clang 19 but keep_going, for which see msan.cpp in compiler-rt
_LOSSES = {
    "halt_on_error": _Loss(_OFF, _GOES_ON),
    "keep_going": _Loss(_ON, _GOES_ON, of="MSAN_OPTIONS"),
    "exitcode": _Loss(("0",), "a merge takes a run that was ended by a finding for a whole one, and drops units"),
    "log_path": _Loss(("stderr",), "reports do not come to the output, where Topcoat reads them", unless=True),
    "handle_segv": _Loss(_OFF, _OVERFLOW),
    "use_sigaltstack": _Loss(_OFF, _OVERFLOW),
    "fast_unwind_on_fatal": _Loss(_ON, "the stacks of failed assertions and of other signals are cut off in libc"),
    "print_stacktrace": _Loss(_OFF, "all undefined behaviour of a kind is one crash", of="UBSAN_OPTIONS"),
    "stack_trace_format": _Loss(("DEFAULT",), _NO_STACK, unless=True),
    "enable_symbolizer_markup": _Loss(_ON, _NO_STACK),
}


def loses(environment: Mapping[str, str]) -> tuple[str, ...]:
    """One clause for each setting in these variables by which findings are lost, or cannot be told from each other.

    It names the setting, its variable, and what happens. What turns off a check is no such setting: it is a choice, as
    suppressions are.
    """
    return tuple(clause for name, text in environment.items() if reads(name) for clause in _losses(name, text))


def _losses(name: str, text: str) -> Iterable[str]:
    said = sanitizer_options.parse(text)
    for key, value in said.values.items():
        if key in _LOSSES and _LOSSES[key].occurs(name, value):
            yield f"{key}={one_line(value, _SHOWN)} in {name}: {_LOSSES[key].happens}"
    if said.rest:
        yield f"{one_line(said.rest, _SHOWN)!r} in {name}: no sanitizer understands it, and so ends the target at once"


_SHOWN = 80
"""How many characters of a value are told."""
