"""What a target itself said before it ended: failed assertions, failed CHECKs, panics, and uncaught exceptions."""

import re
from collections import deque
from dataclasses import dataclass

from pipeline.fuzz.crashes import stack
from pipeline.fuzz.crashes.kinds import DYING
from pipeline.fuzz.crashes.stack import Frame

LONGEST = 80
"""How many characters of a message tell one failure from another: as many as ClusterFuzz takes."""

ASSERTION, CHECK, PANIC = "assertion failure", "check failure", "panic"
EXCEPTION = "uncaught exception"

_LINE = 1024  # characters of a line that are looked at, before the sign and behind it
_SIGNS = 32  # how many signs of a message are looked at, the last ones

_SIGN = re.compile(
    r"[Aa]ssertion |(?:ssert|SSERT|SSERTION|heck|CHECK) (?:fail|FAIL)|(?:^|\] )panic: |panicked at "
    r"|terminate called after throwing |: terminating (?:due to|with) uncaught ",
    re.MULTILINE,
)
_RUST = r"' (?:\(\d{1,9}\) )?panicked at "
_SOURCE = r"[^\s\[\](){}:]{1,500}"

# The order counts: a later form may also read what an earlier one reads, but less well
_FORMS = (
    # Chromium and its descendants, such as V8 and Fuchsia's FX_CHECK; absl
    (CHECK, re.compile(r"(?:[Cc]heck|D?CHECK) failed: (.*)")),
    # glibc and bionic; below, libc++, which says more than the expression
    (ASSERTION, re.compile(r"[Aa]ssertion [`'\"]?(.{1,1000}?)[`'\"]? failed\.?$")),
    (ASSERTION, re.compile(r":\d{1,9}: [Aa]ssertion .{1,1000}? failed: {0,4}(\S.*)")),
    # musl, which is Fuchsia's libc, and macOS: the place is left out, because its line number changes
    (ASSERTION, re.compile(rf"[Aa]ssertion failed: (.{{1,1000}}?) \({_SOURCE}: [^:]{{0,500}}: \d{{1,9}}\)$")),
    (ASSERTION, re.compile(r"[Aa]ssertion failed: \((.{1,1000}?)\), function .{1,500}, line \d{1,9}\.$")),
    # Zircon's ZX_ASSERT and its kin; GLib, Chromium, Envoy
    (ASSERTION, re.compile(rf"ASSERT FAILED at \({_SOURCE}:\d{{1,9}}\): (.*)")),
    (ASSERTION, re.compile(r"(?:[Aa]ssert(?:ion)?|ASSERT(?:ION)?) (?:failed|failure|FAILED|FAILURE): {0,4}(\S.*)")),
    # Rust before 1.73, and Envoy
    (PANIC, re.compile(rf"{_RUST}'(.{{1,1000}}?)(?:', \S{{1,500}}:\d{{1,9}}(?::\d{{1,9}})?$|$)")),
    (PANIC, re.compile(r"(?:^|\] )panic: (\S.*)")),
    # libstdc++; libc++abi, before and since LLVM 16. What the exception says is left out: it may quote the input
    (EXCEPTION, re.compile(r"terminate called after throwing an instance of '(.{1,1000})'$")),
    (EXCEPTION, re.compile(r": terminating (?:due to|with) uncaught exception of type ((?:::|[^:]){1,1000})(?:$|: )")),
)
_OF_RUST = re.compile(rf"{_RUST}\S.{{0,500}}:\d{{1,9}}:\d{{1,9}}:$")  # since 1.73: the next line has the message
# Where in the source: Rust since 1.73 and before; glibc and bionic
_PLACE = re.compile(
    r" panicked at (?:'.*', )?(\S{1,500}:\d{1,9}:\d{1,9}):?$|(?:^|: )([^\s:]{1,500}:\d{1,9}): .*[Aa]ssertion "
)

# Where a CHECK failed: FILE(LINE)] or FILE:LINE] in a log; in V8 the line before tells it
_LOGGED_AT = re.compile(rf"({_SOURCE})(?:\(\d{{1,9}}\)|:\d{{1,9}})\] {{0,4}}(?:Security |Debug )?$")
_FATAL_IN = re.compile(rf"# ?Fatal error in ({_SOURCE}), line \d{{1,9}}$")

_VALUES = re.compile(r" \(.{0,1000}\svs\.\s.*|\s{0,4}[:=] {0,4}(['\"]).*\1$")  # they differ from input to input
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{4,}U?")
_NUMBER = re.compile(r"(?<![:0-9.])\d[0-9.]{3,}(?![A-Za-z0-9.])")
_ANY_NUMBER = re.compile(r"\b\d+\b")


@dataclass(frozen=True)
class Message:
    """What the target said."""

    kind: str
    """ASSERTION, CHECK, PANIC or EXCEPTION."""
    text: str
    """The message on one line, at most LONGEST characters, without what differs from run to run, such as addresses."""
    place: Frame | None = None
    """Where in the source it was said, if the line tells that."""


def last(text: str, start: int, end: int) -> Message | None:
    """Find the last message between `start` and `end` of the text, which must be printable. None if there is none."""
    for sign in reversed(deque(_SIGN.finditer(text, start, end), _SIGNS)):
        if message := _read(text[:end], sign.start()):
            return message
    return None


def stable(text: str, any_number: bool = False) -> str:
    """Return a text with its addresses and large numbers masked as ClusterFuzz does, cut off at LONGEST characters.

    With `any_number`, small numbers are masked too.
    """
    text = _NUMBER.sub("NUMBER", _ADDRESS.sub("ADDRESS", " ".join(text.split())))
    return (_ANY_NUMBER.sub("NUMBER", text) if any_number else text)[:LONGEST].strip()


def _read(text: str, sign: int) -> Message | None:
    """Read the message in the line that has a sign at this place. None if it has none."""
    start, line = _line(text, sign)
    before = _line(text, start - 1)[1] if start else ""
    place = _source(before if _OF_RUST.search(before) else line)
    if _OF_RUST.search(line):
        return _message(PANIC, _line(text, start + len(line) + 1)[1], "", "", _source(line))
    line = DYING.split(line, maxsplit=1)[0]
    for kind, form in _FORMS:
        if match := form.search(line):
            return _message(kind, match[1], line[: match.start()], before, place)
    return None


def _source(line: str) -> Frame | None:
    match = _PLACE.search(line)
    return match and stack.of_source(match[1] or match[2])


def _line(text: str, at: int) -> tuple[int, str]:
    """Return the line around the place `at`, and where it begins. Of a long line only the part around it counts."""
    start = max(text.rfind("\n", 0, at) + 1, at - _LINE, 0)
    end = text.find("\n", at)
    return start, text[start : min(len(text) if end < 0 else end, at + _LINE)].rstrip()


def _message(kind: str, said: str, head: str, before: str, place: Frame | None) -> Message | None:
    said = said.strip()
    if kind == CHECK:
        said = _VALUES.sub("", said).strip(" .'\"[]")
        logged = _LOGGED_AT.search(head) or _FATAL_IN.search(before)
        said += f" in {logged[1].rpartition('/')[2]}" if said and logged else ""
    said = stable(said, any_number=kind == PANIC)
    return Message(kind, said, place) if said else None
