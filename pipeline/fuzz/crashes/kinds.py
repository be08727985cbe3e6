"""The line with which the report of a crash begins, and the kind of crash that it tells.

A sanitizer is known by the end of its name: UndefinedBehaviorSanitizer, HWAddressSanitizer, and those to come. The
lines are those of LLVM's compiler-rt (libFuzzer, the sanitizers, Scudo, GWP-ASan), of Centipede, of Go's runtime, and
of OSS-Fuzz's detectors of injections. A kind is in their words, or a short name for them.
"""

import re
from collections import deque
from dataclasses import dataclass

from pipeline.fuzz.crashes import stack
from pipeline.fuzz.crashes.stack import Frame

_SANITIZER = r"[A-Za-z]{1,64}Sanitizer"
_MARK = re.compile(
    rf"ERROR: (?:libFuzzer|{_SANITIZER}): (?P<text>.{{1,400}})"
    r"|WARNING: (?:Memory|Thread)Sanitizer: (?P<warning>.{1,400})"
    rf"|ERROR: {_SANITIZER} (?P<allocation>failed to allocate) .{{0,400}}"
    r"|Sanitizer:? (?P<check>CHECK failed): .{1,400}"
    r"|Scudo ERROR: (?P<scudo>.{1,400})"
    r"|\*\*\* GWP-ASan detected a memory error \*\*\*\n(?P<gwp>.{1,400})"
    r"|^========= (?P<limit>[A-Z][\w -]{1,40} (?:limit|timeout)) exceeded: .{0,400}"
    r"|^========= (?P<timeout>Timeout) of \d{1,9} seconds exceeded.{0,400}",
    re.MULTILINE,
)
DYING = re.compile(
    r"(?:(?:(?:HW)?Address|Leak|Memory|Thread|UndefinedBehavior|DataFlow|Realtime|Type)Sanitizer|ASAN):DEADLYSIGNAL"
)
"""What a sanitizer writes first when a signal kills the target; it may stand in the middle of a line."""
_UNDEFINED = re.compile(r"^(?P<place>.{1,4200}?): runtime error: (?P<text>.{1,400})", re.MULTILINE)
_UNDEFINED_SUMMARY = re.compile(
    r"^SUMMARY: UndefinedBehaviorSanitizer: (?P<kind>[a-z][a-z-]{1,60}) (?P<place>\S{1,4200})", re.MULTILINE
)
_GO = re.compile(r"^(?P<go>panic: |fatal error: )(?P<told>.{1,400})", re.MULTILINE)
_GOROUTINE = re.compile(r"\n\ngoroutine \d{1,18} \[")
_BEFORE_GOROUTINE = 4096  # characters, in which Go says why it shows its goroutines
_FUCHSIA = re.compile(r"<== (?P<text>[a-z][a-z -]{1,60}?), PC at 0x")
_INJECTION = re.compile(r"^===BUG DETECTED: (?P<text>[A-Z][A-Za-z ]{1,60})===", re.MULTILINE)
WENT_ON = re.compile(r"^(?:#\d{1,18}\t[A-Za-z]|Done \d|Executed )", re.MULTILINE)
"""What libFuzzer writes when its target has gone on: what came before did not end it."""

_KIND = re.compile(r"[A-Za-z][A-Za-z_-]{0,40}(?: [a-z][a-z_-]{0,40}){0,4}")
_WHERE = re.compile(r" (?:on|at|when|occurred) | \(pid=")
_KINDS = {
    "attempting double-free": "double-free",
    "attempting free on address which was not malloc": "bad-free",
    "requested allocation size": "allocation-size-too-big",
    "allocator is out of memory": "out-of-memory",
    "out of memory": "out-of-memory",
    "failed to allocate": "out-of-memory",
    "calloc parameters overflow": "calloc-overflow",
    "detected memory leaks": "memory leak",
    "timeout after": "timeout",
    "fuzz target overwrites its const input": "overwrites const input",
}
_LIMITS = {"RSS limit": "out-of-memory", "Stack limit": "stack-overflow"}
# ClusterFuzz's classes (UBSAN_CRASH_TYPES_MAP in src/clusterfuzz/stacktraces/constants.py), by words in the report
_UNDEFINED_KINDS = {
    "division by zero": "divide-by-zero",
    "outside the range of representable values": "float-cast-overflow",
    "implicit conversion": "implicit-conversion",
    "through pointer to incorrect function type": "incorrect-function-pointer-type",
    "out of bounds for type": "index-out-of-bounds",
    "not a valid value for type 'bool'": "invalid-bool-value",
    "not a valid value for type '_Bool'": "invalid-bool-value",
    "not a valid value for type": "invalid-enum-value",
    "not a valid argument": "invalid-builtin-use",
    "misaligned address": "misaligned-address",
    "end of a value-returning function": "no-return-value",
    "declared to never be null": "invalid-null-argument",
    "declared to never return null": "invalid-null-return",
    "null pointer of type": "null-dereference",
    "insufficient space for an object": "object-size",
    "unsigned integer overflow": "unsigned-integer-overflow",
    "integer overflow": "integer-overflow",
    "shift": "undefined-shift",
    "cannot be represented in type": "integer-overflow",
    "byte alignment": "alignment-assumption",
    "pointer index expression": "pointer-overflow",
    "offset": "pointer-overflow",
    "unreachable program point": "unreachable-code",
    "variable length array bound": "non-positive-vla-bound",
    "which does not point to an object of type": "bad-cast",
    "control flow integrity check": "control-flow-integrity",
    "assumption is violated": "assumption-violation",
}
_OTHER_UNDEFINED = "undefined-behavior"
_DEADLY_SIGNAL = "deadly signal"


@dataclass(frozen=True)
class Mark:
    """The text with which a report begins: the kind of crash that it tells, and where it stands."""

    kind: str
    start: int
    end: int
    """Where the text that tells the kind ends; characters from the beginning of the output, like `start`."""
    told: str = ""
    """What a panic of Go said, unless the kind says it already; else empty."""
    place: Frame | None = None
    """Where in the source it happened, if the text tells that."""


def first(text: str) -> Mark | None:
    """Find the first report in the text, apart from undefined behaviour. None if there is none.

    If there is no other, a sanitizer's beginning of one (DYING) counts; if there is not even that, what Fuchsia's
    system log says about an exception.
    """
    go, match = _first_of_go(text), _MARK.search(text)
    if go and not (match and match.start() < go.start):
        return go
    if match:
        return _mark(match)
    if match := DYING.search(text):
        return Mark(_DEADLY_SIGNAL, *match.span())
    if match := _FUCHSIA.search(text):
        kind = "page fault" if match["text"].endswith("page fault") else match["text"].removeprefix("fatal ")
        return Mark(kind, *match.span())
    return None


def undefined(text: str, start: int, end: int | None = None) -> Mark | None:
    """Find the last report of undefined behaviour between `start` and `end`; what came before, the target survived.

    If only its summary is there, that counts. None if there is none.
    """
    end = len(text) if end is None else end
    for match in deque(_UNDEFINED.finditer(text, start, end), 1):
        return Mark(_undefined_kind(match["text"]), *match.span(), place=stack.of_source(match["place"]))
    for match in deque(_UNDEFINED_SUMMARY.finditer(text, start, end), 1):
        return Mark(match["kind"], *match.span(), place=stack.of_source(match["place"]))
    return None


def injection(text: str, start: int, end: int) -> str:
    """Return the kind of injection that was detected between `start` and `end`, such as `shell injection`, or ""."""
    match = _INJECTION.search(text, start, end)
    return match["text"].lower() if match else ""


def _mark(match: re.Match[str]) -> Mark:
    if match["limit"] or match["timeout"]:
        return Mark(_LIMITS.get(match["limit"], "timeout"), *match.span())
    if match["check"]:
        return Mark("sanitizer check failure", *match.span())
    text = match["text"] or match["warning"] or match["allocation"] or match["scudo"]
    return Mark(_kind(text or match["gwp"].lower().translate({40: None, 41: None})), *match.span())


def _first_of_go(text: str) -> Mark | None:
    heading = _GOROUTINE.search(text)
    start = heading.start() if heading else 0
    match = _GO.search(text, max(0, start - _BEFORE_GOROUTINE), start)
    if match is None:
        return None
    told = match["told"]
    if match["go"] == "fatal error: " or told.startswith("runtime error: "):
        # The numbers in it, such as those of `index out of range [5] with length 3`, differ from input to input
        kind = re.split(r" \[|[:,]", told.removeprefix("runtime error: "), maxsplit=1)[0]
        kind = {"stack overflow": "stack-overflow", "out of memory": "out-of-memory"}.get(kind, kind)
        return Mark(_kind(kind), *match.span())
    return Mark("panic", *match.span(), told)


def _kind(text: str) -> str:
    for beginning, kind in _KINDS.items():
        if text.startswith(beginning):
            return kind
    match = _KIND.match(_WHERE.split(text, maxsplit=1)[0])
    return match[0] if match else "unknown"


def _undefined_kind(text: str) -> str:
    return next((kind for words, kind in _UNDEFINED_KINDS.items() if words in text), _OTHER_UNDEFINED)
