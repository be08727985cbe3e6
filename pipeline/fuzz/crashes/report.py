"""What the output of a run says of a crash. Which crashes are the same, pipeline/fuzz/crashes/rules.py decides."""

import base64
import binascii
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.fuzz.crashes import functions, kinds, messages, stack
from pipeline.fuzz.crashes.functions import ENTRY
from pipeline.fuzz.crashes.kinds import Mark
from pipeline.fuzz.crashes.messages import Message
from pipeline.fuzz.crashes.stack import Frame
from pipeline.text.printable import one_line, printable

LOOKED_AT = 1 << 20
"""How many bytes of an output are looked at, at its beginning and again at its end."""

MOST_INPUT = 4096
"""The most bytes of an input that is taken from the output. libFuzzer prints inputs of at most 256 bytes."""

_MOST_ARTIFACTS = 16
_LONGEST_NAME = 255
_SPAN = 1000  # lines behind the beginning of a report in which its stack is looked for
_FEW = 3  # so many frames of the target's own tell a crash; to fewer, others are added where the stack was cut off
_DETAILS = 1000  # characters behind the line of a report in which it tells the access, among others

_ACCESS = re.compile(
    r"^ {0,4}(READ|WRITE|Read|Write) of size (\d{1,9})\b|is caused by a (READ|WRITE) memory access"
    r"|: (load of|store to) null pointer of type ",
    re.MULTILINE,
)
_ACCESSES = {"Read": "READ", "Write": "WRITE", "load of": "READ", "store to": "WRITE"}
_SUMMARY = re.compile(r"^SUMMARY: (?:libFuzzer|[A-Za-z]{1,64}Sanitizer): .{1,1000}", re.MULTILINE)
_WRITTEN = re.compile(r"Test unit written to (.{1,4200})(?:\nBase64: ([A-Za-z0-9+/]{0,5464}={0,2})$)?", re.MULTILINE)

_ENDED_ITSELF = ("deadly signal", "ABRT", "ILL", "TRAP", "breakpoint")
"""The kinds of report that a target gets when it ends itself, as by a failed assertion."""

_ADDRESS = re.compile(r"(?:\b(?:address|(?<!PC )at|on)|malloc\(\)-ed:) (0x[0-9a-fA-F]{1,16})\b")
_PC = re.compile(r"\b(?:pc|PC at) (0x[0-9a-fA-F]{1,16})\b")
# Before LLVM 13 the address told is then 0: the processor does not tell which one it was
_HIGH_VALUE = "caused by a dereference of a high value address"

_TOKEN = re.compile(r"^DEDUP_TOKEN: (.{1,16000})$", re.MULTILINE)
_BETWEEN_NAMES = re.compile(r"(?<!\boperator)(?<!\boperator-)--")  # C++ can decrement by a function of its own
_MOST_NAMES, _LONGEST_FUNCTION = 32, 1000

_OUT_OF_MEMORY_IN_RUST = ("rust_oom", "__rust_alloc_error_handler", "alloc::alloc::handle_alloc_error")

_DIRECT_LEAK = re.compile(r"^Direct leak of ", re.MULTILINE)
_FREED = re.compile(r"^freed by thread ", re.MULTILINE)
_BAD_CAST = re.compile(
    r"which does not point to an object of type (?P<object>.{1,400})"
    r"|integrity check for type (?P<cast>.{1,400}?) failed during "
)
BAD_CAST_TO = "Bad-cast to "
"""With this begins the message of a bad cast."""
_CAST_FROM = re.compile(
    r"note: (?:(?:object|vtable) is of type (?P<type>.{1,400})|(?:object has )?(?P<invalid>invalid) v(?:ptr|table)"
    r"|object is (?P<base>base class subobject at offset \d{1,9}) )"
)
_FATAL_IN_LOG = re.compile(r"^\[\d{1,9}\.\d{3,6}\](?:\[[^\[\]\n]{0,128}\]){1,6} FATAL: .{1,1000}", re.MULTILINE)


@dataclass(frozen=True)
class CrashReport:
    """What the output of a run told of a crash. All text is fit to print."""

    kind: str
    """The kind of crash, such as `heap-buffer-overflow`, `SEGV`, `deadly signal`, `timeout` or `out-of-memory`.

    It can also be `memory leak`, the class of an undefined behaviour, `assertion failure`, `check failure`, `panic`,
    `uncaught exception`.
    """
    access: str = ""
    """The bad access to memory, such as `READ 4` (bytes), or only `WRITE`; empty if it was not told."""
    frames: tuple[Frame, ...] = ()
    """The stack of the crash; of a leak, the stack of its allocation.

    If it has no frame of the target's own, the place in the source that was told instead is appended, without function.
    If the stack of a use after free is cut off, the stack that freed the memory is appended.
    """
    summary: str = ""
    """One line: the sanitizer's or libFuzzer's `SUMMARY: `, or else the line with which the report begins."""
    artifacts: tuple[str, ...] = ()
    """The names of the files that the fuzzer wrote for the crash."""
    base64: bytes | None = None
    """The input, decoded from the `Base64:` line of the last artifact; None if it was not told."""
    message: str = ""
    """What an assertion, a CHECK or a panic said, the type of an uncaught exception, or the types of a bad cast.

    What differs from run to run is left out.
    """
    address: str = ""
    """The address that the report is about, such as `0x000000000010`; empty if none was told, or it is not known.

    Of a bad access it is what was accessed, of an instruction that failed (FPE, ILL) its own; of ABRT it means nothing.
    """
    pc: str = ""
    """The program counter, as the line with which the report begins tells it; else empty."""
    dedup_token: tuple[str, ...] = ()
    """The functions in the sanitizer's `DEDUP_TOKEN: `, those of interceptors too; empty if it printed none."""


UNKNOWN = CrashReport("unknown")
"""What counts as the report of a crash of which the output tells nothing."""


def parse(output: bytes) -> CrashReport | None:
    """Read what the output of one run says of a crash. None if it tells of none.

    The first report counts. But of undefined behaviour, after which a target may go on, the last report counts, and
    only if the target did not go on, and if no other report follows but that of UndefinedBehaviorSanitizer ending the
    target. The middle of a long output is not looked at.
    """
    text = printable(_ends(output))
    mark = kinds.first(text)
    went_on = deque(kinds.WENT_ON.finditer(text, 0, mark.start if mark else len(text)), 1)
    begin = went_on[0].end() if went_on else 0
    if mark is None:
        undefined = kinds.undefined(text, begin)
        return _report(text, undefined, _frames(text, undefined)) if undefined else None
    frames = _frames(text, mark)
    by_undefined = any(frame.function.startswith("__ubsan_") for frame in frames)
    if by_undefined and (undefined := kinds.undefined(text, 0, mark.start)):
        return _report(text, undefined, frames)
    return _report(text, mark, frames, _explained(text, mark, begin, frames))


def _ends(output: bytes) -> bytes:
    return output if len(output) <= 2 * LOOKED_AT else output[:LOOKED_AT] + b"\n" + output[-LOOKED_AT:]


def _explained(text: str, mark: Mark, begin: int, frames: tuple[Frame, ...]) -> Message:
    """Return the kind and the message of a report, explained by what the target itself has said since `begin`."""
    if mark.told:
        return Message(mark.kind, messages.stable(mark.told, any_number=True))
    if mark.kind not in _ENDED_ITSELF:
        return Message(mark.kind, "")
    if any(functions.name(frame) in _OUT_OF_MEMORY_IN_RUST for frame in frames):
        return Message("out-of-memory", "")
    if injection := kinds.injection(text, begin, mark.start):
        return Message(injection, "")
    said = messages.last(text, begin, mark.start)
    if said is None and (logged := _FATAL_IN_LOG.search(text, mark.end)):  # Fuchsia's system log comes behind it
        said = messages.last(text, *logged.span())
    return said or _trapped(frames) or Message(mark.kind, "")


def _trapped(frames: tuple[Frame, ...]) -> Message | None:
    """What a target was compiled to tell where it traps, as an assertion of libc++ that is checked."""
    reasons = (match[1] for frame in frames if (match := functions.TRAP.match(frame.function)))
    return next((messages.last(reason, 0, len(reason)) for reason in reasons), None)


def _report(text: str, mark: Mark, frames: tuple[Frame, ...], said: Message | None = None) -> CrashReport:
    said = said or Message(mark.kind, "", mark.place)
    placed = (said.place,) if said.place and not functions.own(frames) else ()
    access = _ACCESS.search(text, mark.start, mark.end + _DETAILS)
    summary = _SUMMARY.search(text, mark.start)
    artifacts, content = _artifacts(text)
    return CrashReport(
        said.kind,
        " ".join(_ACCESSES.get(word, word) for word in access.groups() if word) if access else "",
        (*frames, *placed),
        one_line(summary[0] if summary else _whole_line(text, mark)).rstrip(),
        artifacts,
        content,
        said.text or _bad_cast(text, mark),
        "" if _HIGH_VALUE in text[mark.end : mark.end + _DETAILS] else _first(_ADDRESS, text, mark),
        _first(_PC, text, mark),
        _dedup_token(text, _stack_begins(text, mark)),
    )


def _first(pattern: re.Pattern[str], text: str, mark: Mark) -> str:
    """Return what the pattern finds in the line with which the report begins; empty if it finds nothing."""
    end = text.find("\n", mark.end, mark.end + _DETAILS)
    match = pattern.search(text, mark.start, end if end >= 0 else mark.end + _DETAILS)
    return match[1] if match else ""


def _dedup_token(text: str, start: int) -> tuple[str, ...]:
    """Return the functions in the first token behind `start`; those without a name are left out."""
    match = _TOKEN.search(text, start)
    names = _BETWEEN_NAMES.split(match[1], _MOST_NAMES) if match else []
    return tuple(filter(None, (name.strip()[:_LONGEST_FUNCTION] for name in names[:_MOST_NAMES])))


def _whole_line(text: str, mark: Mark) -> str:
    return text[max(text.rfind("\n", 0, mark.start) + 1, mark.start - 200) : mark.end]


def _bad_cast(text: str, mark: Mark) -> str:
    """Name the types of a bad cast, which tell more than its place does; empty if the report is of something else."""
    cast = _BAD_CAST.search(text, mark.start, mark.end)
    if cast is None:
        return ""
    source = _CAST_FROM.search(text, mark.end, mark.end + _DETAILS)
    known = source and (source["type"] or source["base"] or "invalid vptr")
    words = (word.strip("' ") for word in filter(None, (cast["object"] or cast["cast"], known)))
    return messages.stable(BAD_CAST_TO + " from ".join(words))


def _frames(text: str, mark: Mark) -> tuple[Frame, ...]:
    """Read the stack of the report; if there are several leaks, that of the first direct one.

    If the stack of a use after free is cut off before the target's entry, the stack that freed the memory is appended.
    """
    frames = stack.read(_lines(text, _stack_begins(text, mark)))
    freed = _FREED.search(text, mark.end) if mark.kind == "heap-use-after-free" else None
    if freed and len(functions.own(frames)) < _FEW and not any(functions.name(frame) == ENTRY for frame in frames):
        frames += stack.read(_lines(text, freed.end()))
    return frames


def _stack_begins(text: str, mark: Mark) -> int:
    leak = _DIRECT_LEAK.search(text, mark.end) if mark.kind == "memory leak" else None
    return leak.end() if leak else mark.end


def _lines(text: str, start: int) -> Iterator[str]:
    """Yield the lines of the text from `start` on, _SPAN of them at most."""
    for _ in range(_SPAN):
        end = text.find("\n", start)
        yield text[start : len(text) if end < 0 else end]
        if end < 0:
            return
        start = end + 1


def _artifacts(text: str) -> tuple[tuple[str, ...], bytes | None]:
    """Return the names of the artifacts, and the content of the last one, if it is told.

    Slow units do not count: the fuzzer goes on after them.
    """
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
