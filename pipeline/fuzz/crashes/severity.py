"""How bad a crash can be, by a stated rule and in words. There is no score: whoever reads it can check each fact."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.fuzz.crashes import functions
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.text.printable import one_line

NEAR_NULL = 4096
"""Addresses below this are near null: no program has memory there, and AddressSanitizer calls it the zero page."""

EXECUTION = "control of execution"
CORRUPTION = "corruption of memory"
DISCLOSURE = "disclosure of memory"
DEPENDS = "depends on what is done with the value"
AVAILABILITY = "availability only"
UNKNOWN = "not known"

EFFECTS = (EXECUTION, CORRUPTION, DISCLOSURE, DEPENDS, AVAILABILITY, UNKNOWN)
"""All effects, the worst first; what is not known comes last, and may be any of them."""

_FAULTS = ("SEGV", "BUS", "access-violation", "unknown-crash", "page fault", "general protection fault")
_OUTSIDE = re.compile(
    r"(?:(heap|stack|global|dynamic-stack)-)?buffer[- ](?:over|under)flow|(container|intra-object)-overflow"
    r"|index-out-of-bounds|object-size|tag-mismatch"
)
_NO_LONGER = re.compile(r"(?:(heap|stack)-)?use[- ]after[- ](?:free|return|scope|poison)")
_PLACES = {
    "heap": " of the heap",
    "stack": " of the stack",
    "dynamic-stack": " of the stack",
    "global": " of global memory",
    "container": " of a container",
    "intra-object": " of an object",
}
_ACCESS = re.compile(r"(READ|WRITE)(?: (\d+))?")

_UNDEFINED = (
    r"(?:unsigned-)?integer-overflow|(?:float-cast|pointer)-overflow|undefined-(?:shift|behavior)|implicit-conversion"
    r"|invalid-(?:bool|enum)-value|invalid-builtin-use|misaligned-address|(?:alignment|assumption)-\w+"
    r"|non-positive-vla-bound|no-return-value"
)
_STOPPED = "the target stopped itself"
_ENDED = ("abort", "__zx_panic", "raise", "gsignal", "__pthread_kill_implementation")
_REASONS: Mapping[str, tuple[tuple[str, str], ...]] = {
    EXECUTION: (
        ("shell injection|arbitrary file open|.* injection", "the input decides what the system is told to do"),
    ),
    CORRUPTION: (
        ("double[- ]free|bad-free|invalid (?:wild )?free", "it frees memory that is not there to be freed"),
        ("alloc-dealloc-mismatch|new-delete-type-mismatch", "it frees memory in another way than it was allocated"),
        ("corrupted chunk header|invalid chunk state|allocation-tail-overwritten", "memory was overwritten earlier"),
        ("bad-cast|control-flow-integrity|incorrect-function-pointer-type", "it takes something for another type"),
        ("negative-size-param|memcpy-param-overlap|str\\w+-param-overlap", "it copies memory by wrong sizes or places"),
        ("overwrites const input", "it writes to memory that it was given to read"),
    ),
    DISCLOSURE: (("use-of-uninitialized-value", "it uses memory that nobody has written, so what was there before"),),
    DEPENDS: (
        (_UNDEFINED, "its behaviour is undefined, and the report does not tell what comes of it"),
        ("data race", "two threads use the same memory, and the report does not tell what comes of it"),
    ),
    AVAILABILITY: (
        ("timeout", "it took too long"),
        ("out-of-memory|allocation-size-too-big|calloc-overflow", "it asked for too much memory"),
        ("memory leak", "it does not free memory that it no longer uses"),
        ("stack-overflow", "it called itself too deeply"),
        ("assertion failure|check failure|panic|uncaught exception|fuzz target exited|ABRT", _STOPPED),
        ("ILL|TRAP|breakpoint|undefined instruction|unreachable-code", "it ran into a trap"),
        ("FPE|divide-by-zero", "it divided by zero, or with a result that is too large"),
        ("null-dereference|invalid-null-(?:argument|return)", "it uses a null pointer"),
    ),
}
_KINDS = [(re.compile(kinds), effect, reason) for effect, reasons in _REASONS.items() for kinds, reason in reasons]


@dataclass(frozen=True)
class Severity:
    """What a crash can lead to, by the rule of `severity`."""

    effect: str
    """One of EFFECTS."""
    reason: str
    """Why, in words."""
    facts: tuple[str, ...]
    """What decided, as the report tells it: the kind first."""

    @property
    def sentence(self) -> str:
        """All of it on one line, which is fit to print."""
        return one_line(f"{self.effect}: {self.reason} ({', '.join(self.facts)})")


def severity(report: CrashReport) -> Severity:
    """Say how bad a crash can be.

    The first of these that holds decides:

    1. A bad access where the address is that of the program counter: the target jumped there. If it is near null
       (below NEAR_NULL), `availability only`, else `control of execution`.
    2. A bad access near null: `availability only`.
    3. An access outside a buffer, to memory that is no longer the target's own, or to any other bad address:
       `disclosure of memory` if it reads, `corruption of memory` if it writes, or if neither is told. If of a bad
       access neither the address nor the way is told: `not known`.
    4. The kind: memory that is freed twice or wrongly, was overwritten, or is taken for another type, is `corruption of
       memory`; use of memory that was never written is `disclosure of memory`; an injection into a command is `control
       of execution`; undefined arithmetic `depends on what is done with the value`; a failed assertion, a panic, a
       trap, a division by zero, a null pointer, a timeout, a leak, too much memory or too deep calls are `availability
       only`.
    5. A deadly signal under `abort` and its like: `availability only`, because the target stopped itself.
    6. Anything else: `not known`.

    It is the report that is judged: the same bug may show itself in a worse way with another input.
    """
    return _by_access(report) or _by_kind(report)


def _by_access(report: CrashReport) -> Severity | None:
    facts = (report.kind, *filter(None, [report.access]))
    outside, no_longer = _OUTSIDE.fullmatch(report.kind), _NO_LONGER.fullmatch(report.kind)
    if match := outside or no_longer:
        whose = _PLACES.get(next(filter(None, match.groups()), ""), "")
        what = f"outside a buffer{whose}" if outside else f"in memory{whose} that is no longer its own"
        return _accessed(report, what, facts)
    return _of_fault(report, facts) if report.kind in _FAULTS else None


def _of_fault(report: CrashReport, facts: tuple[str, ...]) -> Severity:
    if not report.address:
        what = "at an address that is not told"
        return _accessed(report, what, facts) if report.access else Severity(UNKNOWN, f"an access {what}", facts)
    facts += (f"address {report.address}",)
    near = int(report.address, 16) < NEAR_NULL
    if report.pc and int(report.pc, 16) == int(report.address, 16):
        facts += (f"pc {report.pc}",)
        where = "near null" if near else "where no code is"
        return Severity(AVAILABILITY if near else EXECUTION, f"it jumped to an address {where}", facts)
    if near:
        return Severity(AVAILABILITY, f"it {_does(report)[0]} near null", facts)
    return _accessed(report, "at an address that is not near null", facts)


def _accessed(report: CrashReport, what: str, facts: tuple[str, ...]) -> Severity:
    does, effect = _does(report)
    return Severity(effect, f"it {does} {what}", facts)


def _does(report: CrashReport) -> tuple[str, str]:
    """Say in words how memory was accessed, and what comes of that where it is not the target's own."""
    match = _ACCESS.fullmatch(report.access)
    if match is None:
        return "reads or writes", CORRUPTION
    does, effect = ("reads", DISCLOSURE) if match[1] == "READ" else ("writes", CORRUPTION)
    return (f"{does} {match[2]} byte{'s' * (match[2] != '1')}" if match[2] else does), effect


def _by_kind(report: CrashReport) -> Severity:
    for kinds, effect, reason in _KINDS:
        if kinds.fullmatch(report.kind):
            return Severity(effect, reason, (report.kind,))
    called = set(map(functions.name, report.frames))
    ended = next((function for function in _ENDED if function in called), "")
    if report.kind == "deadly signal" and ended:
        return Severity(AVAILABILITY, _STOPPED, (report.kind, f"{ended} in its stack"))
    return Severity(UNKNOWN, "the report does not tell enough", (report.kind,))
