"""What a run's output says of a crash, and which crashes are the same.

Crashes are the same if they are of one kind and happened in the same place: the upper three frames of the stack that
are the target's own, without lines and addresses, so that the group is still the same after the target was built again.
"""

import base64
import binascii
import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from pipeline.crashes import stack
from pipeline.crashes.stack import Frame
from pipeline.text import one_line, printable

LOOKED_AT = 1 << 20
"""Bytes of an output that are looked at, at its beginning and as many at its end."""

MOST_INPUT = 4096
"""Bytes of an input that is taken from the output. libFuzzer prints those of at most 256."""

FRAMES = 3
"""That tell one crash from another: as many as ClusterFuzz takes."""

_MOST_ARTIFACTS = 16
_LONGEST_NAME = 255
_SPAN = 1000  # lines behind the first of a report among which its stack is looked for

_ERROR = re.compile(
    r"^.{0,200}?(?:ERROR: (?:libFuzzer|[A-Za-z]{0,16}Sanitizer): |WARNING: (?:Memory|Thread)Sanitizer: )"
    r"(?P<text>.{1,400})",
    re.MULTILINE,
)
_UNDEFINED = re.compile(r"^.{1,400}?: runtime error: (?P<text>.{1,400})", re.MULTILINE)
_WENT_ON = re.compile(r"^(?:#\d{1,18}\t[A-Za-z]|Done \d|Executed )", re.MULTILINE)
_KIND = re.compile(r"[A-Za-z][A-Za-z_-]{0,40}(?: [a-z][a-z_-]{0,40}){0,4}")
_KINDS = {
    "attempting double-free": "double-free",
    "attempting free on address which was not malloc": "bad-free",
    "requested allocation size": "allocation-size-too-big",
    "allocator is out of memory": "out-of-memory",
    "calloc parameters overflow": "calloc-overflow",
    "detected memory leaks": "memory leak",
    "timeout after": "timeout",
    "fuzz target overwrites its const input": "overwrites const input",
}
# The classes of ClusterFuzz (UBSAN_CRASH_TYPES_MAP in src/clusterfuzz/stacktraces/constants.py), by words of the text
_UNDEFINED_KINDS = {
    "division by zero": "divide-by-zero",
    "outside the range of representable values": "float-cast-overflow",
    "implicit conversion": "implicit-conversion",
    "through pointer to incorrect function type": "incorrect-function-pointer-type",
    "out of bounds for type": "index-out-of-bounds",
    "not a valid value for type 'bool'": "invalid-bool-value",
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
    "cannot be represented in type": "integer-overflow",
    "pointer index expression": "pointer-overflow",
    "offset": "pointer-overflow",
    "shift": "undefined-shift",
    "unreachable program point": "unreachable-code",
    "variable length array bound": "non-positive-vla-bound",
    "which does not point to an object of type": "bad-cast",
    "control flow integrity check": "control-flow-integrity",
}
_OTHER_UNDEFINED = "undefined-behavior"

_ACCESS = re.compile(r"^(READ|WRITE) of size (\d{1,9})\b|is caused by a (READ|WRITE) memory access", re.MULTILINE)
_SUMMARY = re.compile(r"^SUMMARY: (?:libFuzzer|[A-Za-z]{1,32}Sanitizer): .{1,1000}", re.MULTILINE)
_WRITTEN = re.compile(r"Test unit written to (.{1,4200})(?:\nBase64: ([A-Za-z0-9+/]{0,5464}={0,2})$)?", re.MULTILINE)

_BY_SIGNAL = ("deadly signal", "timeout")
"""The kinds that libFuzzer's own handlers of signals report."""


@dataclass(frozen=True)
class CrashReport:
    """What was told of a crash. All text is fit to print."""

    kind: str
    """Such as `heap-buffer-overflow`, `SEGV`, `deadly signal`, `timeout`, `out-of-memory`, `memory leak`, or the class
    of an undefined behaviour."""
    access: str = ""
    """`READ 4`, or only `WRITE`."""
    frames: tuple[Frame, ...] = ()
    """The stack of the crash, of a leak that of its first allocation."""
    summary: str = ""
    """One line."""
    artifacts: tuple[str, ...] = ()
    """Names of the files that the fuzzer wrote for it."""
    base64: bytes | None = None
    """The input, if it was told: the decoded `Base64:` line of the last artifact."""


def parse(output: bytes) -> CrashReport | None:
    """What the output of one run says of a crash. None if it says nothing of one.

    The first report counts. One of UndefinedBehaviorSanitizer, after which a target may go on, does so only if it did
    not, and no other report came of it. Of a long output the middle is not looked at.
    """
    text = printable(_ends(output))
    error = _ERROR.search(text)
    if error is None:
        went_on = deque(_WENT_ON.finditer(text), 1)
        undefined = _UNDEFINED.search(text, went_on[0].end() if went_on else 0)
        return undefined and _report(text, undefined, _undefined_kind(undefined), _frames(text, undefined))
    frames = _frames(text, error)
    if any(frame.function.startswith("__ubsan_") for frame in frames):
        for undefined in deque(_UNDEFINED.finditer(text, 0, error.start()), 1):
            return _report(text, undefined, _undefined_kind(undefined), frames)
    return _report(text, error, _kind(error["text"]), frames)


def _ends(output: bytes) -> bytes:
    return output if len(output) <= 2 * LOOKED_AT else output[:LOOKED_AT] + b"\n" + output[-LOOKED_AT:]


def _report(text: str, mark: re.Match[str], kind: str, frames: tuple[Frame, ...]) -> CrashReport:
    access = _ACCESS.search(text, mark.end(), mark.end() + 1000)
    summary = _SUMMARY.search(text, mark.start())
    artifacts, content = _artifacts(text)
    return CrashReport(
        kind,
        " ".join(filter(None, access.groups())) if access else "",
        frames,
        one_line(summary[0] if summary else mark[0]),
        artifacts,
        content,
    )


def _frames(text: str, mark: re.Match[str]) -> tuple[Frame, ...]:
    return stack.read(_lines(text, mark.end()))


def _lines(text: str, start: int) -> Iterator[str]:
    """The next lines."""
    for _ in range(_SPAN):
        end = text.find("\n", start)
        yield text[start : len(text) if end < 0 else end]
        if end < 0:
            return
        start = end + 1


def _kind(text: str) -> str:
    for beginning, kind in _KINDS.items():
        if text.startswith(beginning):
            return kind
    match = _KIND.match(text.partition(" on ")[0])
    return match[0] if match else "unknown"


def _undefined_kind(mark: re.Match[str]) -> str:
    return next((kind for words, kind in _UNDEFINED_KINDS.items() if words in mark["text"]), _OTHER_UNDEFINED)


def _artifacts(text: str) -> tuple[tuple[str, ...], bytes | None]:
    """The names of the artifacts, and the content of the last one. Slow units are none: the fuzzer goes on."""
    names: dict[str, bytes | None] = {}
    for match in _WRITTEN.finditer(text):
        name = match[1].rstrip().rpartition("/")[2][:_LONGEST_NAME]
        if name and not name.startswith("slow-unit-") and len(names) < _MOST_ARTIFACTS:
            names[one_line(name)] = _decoded(match[2])
    return tuple(names), next(reversed(names.values()), None)


def _decoded(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return content if len(content) <= MOST_INPUT else None


def key_frames(report: CrashReport, frames: int = FRAMES) -> tuple[str, ...]:
    """The names of the frames that tell the crash from others: the upper ones of the target's own.

    Of a timeout the lower ones, because what is on top of a loop is by chance; of a stack overflow those that recur,
    in the order of their names, because the call that was one too many is by chance too.
    """
    mine = stack.own(report.frames, report.kind in _BY_SIGNAL)
    names = [stack.name(frame) for frame in mine]
    if names == [stack.ENTRY] and mine[0].file:
        return (f"{stack.ENTRY} {mine[0].file.rpartition('/')[2]}",)
    if report.kind == "timeout":
        inner = [name for name in names if name != stack.ENTRY]
        names = inner if len(inner) >= frames else names
        return tuple(names[-frames:])
    if report.kind == "stack-overflow":
        names = sorted(name for name, count in Counter(names).items() if count > 2) or names
    return tuple(names[:frames])


def key(report: CrashReport, frames: int = FRAMES, fuzzer: str = "") -> str:
    """What is equal for crashes that are the same. `fuzzer` stands in where no frame is known."""
    return " | ".join((report.kind, *(key_frames(report, frames) or (fuzzer,))))


def identity(key: str) -> str:
    """Twelve hexadecimal digits for a key."""
    return sha256(key.encode(errors="replace")).hexdigest()[:12]


def slug(report: CrashReport, fuzzer: str = "") -> str:
    """A name for the group's directory, such as `heap-buffer-overflow-parse_record-3f2a91c04d1e`.

    It has only [a-z0-9_-], and at most 80 of them.
    """
    place = next(iter(key_frames(report)), fuzzer)
    words = [_plain(report.kind)[:30], _plain(place)[:36].strip("-"), identity(key(report, fuzzer=fuzzer))]
    return "-".join(filter(None, words))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")
