"""Stacks as sanitizers, the symbolizers of LLVM and Fuchsia, and Go's runtime write them.

What each can print, according to its source (`[…]` may be missing, MODULE may be empty)::

    #N 0xADDRESS in FUNCTION FILE:LINE[:COLUMN]             compiler-rt sanitizer_stacktrace_printer.cpp ("%L", "%M")
    #N 0xADDRESS in FUNCTION (MODULE+0xOFFSET) [(BuildId: ID)]
    #N 0xADDRESS  (MODULE+0xOFFSET) [(BuildId: ID)]
    #N 0xADDRESS  (<unknown module>)
    #N FUNCTION FILE:LINE[:COLUMN] (MODULE+0xOFFSET)        compiler-rt tsan_report.cpp: it has no address
    #N MODULE(FUNCTION+0xOFFSET) [0xADDRESS]                GWP-ASan, with glibc's backtrace_symbols
    #N 0xADDRESS FUNCTION                                   Chromium's base/debug/stack_trace_posix.cc

    #N[.M] 0xADDRESS in [FUNCTION] [FILE:LINE] <MODULE>+0xOFFSET [MESSAGE]
    #N 0xADDRESS is not covered by any module [MESSAGE]     Fuchsia's tools/symbolizer/symbolizer_impl.cc, Backtrace()
    #N[.M] 0xADDRESS in <???> [MESSAGE]                     the same of 2020
    #N[.M] 0xADDRESS [in FUNCTION] [FILE:LINE] <MODULE>+0xOFFSET [MESSAGE]
                                                            before 2021: printBacktrace() of its Go program

    FUNCTION(ARGUMENTS)                                     Go's runtime/traceback.go, on two lines
    \tFILE:LINE [+0xOFFSET]

Fuchsia's MODULE and MESSAGE come from the markup `{{{module:N:MODULE:elf:ID}}}` and `{{{bt:N:ADDRESS:ra:MESSAGE}}}`
(tools/symbolizer/log_parser.cc), which is split at colons, so neither has one. MODULE is what the process calls it:
`<>` for the program, which has no name, in Rust and in the dynamic linker; `<<application>>` in the sanitizers'
runtime; `<<VMO#1=NAME>>` in crash logs. MESSAGE is `sp 0x…` or how the unwinder got there, such as `from CFI`
(zircon/system/ulib/inspector). M counts inlined functions, of which the outermost has none; behind `#100.1` there is no
blank. Before all of it stands whatever the log has put before the markup. (-prettify-backtrace, which is for people,
makes other lines.)
"""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

MOST_FRAMES = 128
"""The most frames that are read of a stack."""

_LONGEST_LINE = 16384
_LONGEST_NAME = 200
_LONGEST_FUNCTION = 1000
_GAP = 20  # other lines, such as a log's, that may stand between two frames

# What klog and syslog of Fuchsia put before a line, with or without tags and severity
_LOG = r"(?:\[[0-9.]{1,32}\](?: \d{1,8}[.:]\d{1,8}>|(?:\[[^\[\]]{0,128}\]){1,6}(?: [A-Z]{1,8}:)?) ?)?"
_FRAME = re.compile(_LOG + r"[ \t]{0,16}#(\d{1,5})(?:\.(\d{1,4}))? {0,16}0x[0-9a-fA-F]{1,16}(?: (.*))?")
_HEX = r"0x[0-9a-fA-F]{1,16}"
_BUILD_ID = re.compile(r" ?\(BuildId: [0-9a-fA-F]{1,128}\)$")
_WITHOUT_ADDRESS = re.compile(r" {2,16}#(\d{1,5}) ([^\s#].*)")
_OF_BACKTRACE = re.compile(rf"([^()\s]+)\(([^()\s]*)(\+{_HEX})\) \[{_HEX}\]")
_GO_FUNCTION = re.compile(r"([^\s()].*)\([^()]*\)")
_GO_PLACE = re.compile(rf"\t(\S.*\.(?:go|s)):(\d{{1,9}})(?: \+{_HEX})?")

_MODULE_END = re.compile(rf">(\+{_HEX})(?= |$)")
_AFTER_LINE = re.compile(r":\d{1,9} <")
_VMO = re.compile(r"<(?:VMO#\d{1,20}=)?(.*)>")  # the number differs from run to run
_UNCOVERED = ("is not covered by any module", "in <???>")

_SOURCE = re.compile(r"(.+?):(\d{1,9})(?::\d{1,9})?")
_UNKNOWN_SOURCE = re.compile(r"\?\?(?::[\d?]{1,9}){0,2}|<null>")
_DISCRIMINATOR = re.compile(r" \(discriminator \d{1,9}\)$")  # written by addr2line
_NO_FUNCTION = ("??", "<null>", "<unknown>")


@dataclass(frozen=True)
class Frame:
    """One frame of a stack: a call. What is not known is empty, or 0."""

    function: str
    file: str = ""
    line: int = 0
    place: str = ""
    """The module and the offset in it, such as `libc.so.6+0x3c04f`; the module may have no name."""


def read(lines: Iterable[str]) -> tuple[Frame, ...]:
    """Read the first stack in the lines, which must be printable: at most its upper MOST_FRAMES frames, or none.

    Other lines may stand between two frames. If the number of a frame behind such a line goes back, another stack
    begins there: no tool writes two stacks without a line between them.
    """
    frames: list[Frame] = []
    last, gap, before = (-1, 0), 0, ""
    for line in lines:
        position, frame = _positioned(line[:_LONGEST_LINE].rstrip(), before, last)
        if frame is None:
            gap, before = gap + 1, line
            if frames and (gap > _GAP or line.startswith("SUMMARY: ") or _ends(line, frames[-1])):
                break
            continue
        if (gap and frames and position <= last) or len(frames) == MOST_FRAMES:
            break
        frames.append(frame)
        last, gap, before = position, 0, ""
    return tuple(frames)


def of_source(text: str) -> Frame | None:
    """Read `FILE:LINE[:COLUMN]`, as tools tell a place for which they know no stack; None if it is something else."""
    match = _SOURCE.fullmatch(text[-_LONGEST_LINE:].rpartition(" ")[2])
    return match and Frame("", match[1][-_LONGEST_NAME:], int(match[2]))


def _positioned(line: str, before: str, last: tuple[int, int]) -> tuple[tuple[int, int], Frame | None]:
    """Read the frame that the line is, or ends; None if it does neither. `before` is the line before.

    Returned first is its place in the stack, by which frames can be compared: its number, and minus its number among
    the inlined ones. It means nothing without a frame.
    """
    if match := _FRAME.fullmatch(line):
        return (int(match[1]), -int(match[2] or 0)), _frame(match[3] or "")
    if match := _WITHOUT_ADDRESS.fullmatch(line):
        return (int(match[1]), 0), _of_backtrace(match[2]) or _of_thread_sanitizer(match[2])
    if place := _GO_PLACE.fullmatch(line):
        function = _GO_FUNCTION.fullmatch(before.rstrip())
        frame = function and Frame(function[1][:_LONGEST_FUNCTION], place[1][-_LONGEST_NAME:], int(place[2]))
        return (last[0] + 1, 0), frame
    return last, None


def _ends(line: str, last: Frame) -> bool:
    """Whether Go ends a stack, whose last frame so far is given, with such a line."""
    return last.file.endswith((".go", ".s")) and (not line or line.startswith("created by "))


def _of_backtrace(text: str) -> Frame | None:
    match = _OF_BACKTRACE.fullmatch(text)
    return match and Frame(match[2], place=match[1].rpartition("/")[2][-_LONGEST_NAME:] + match[3])


def _of_thread_sanitizer(text: str) -> Frame | None:
    text, place = _without_place(_BUILD_ID.sub("", text))
    return Frame(*_function_and_source(text), place) if place else None


def _frame(text: str) -> Frame:
    text = text.strip()
    if text.startswith((*_UNCOVERED, "(<")):
        return Frame("")
    text, place = _without_place(_BUILD_ID.sub("", text))
    return Frame(*_function_and_source("" if text == "in" else text.removeprefix("in ")), place)


def _without_place(text: str) -> tuple[str, str]:
    """Divide a frame's text into what stands before the module, and the module with the offset in it."""
    if text.endswith(")"):
        start = _opening(text, "()")
        if "+0x" in text[start:]:
            return text[:start].strip(), text[start + 1 : -1].rpartition("/")[2][-_LONGEST_NAME:]
    for end in deque(_MODULE_END.finditer(text), 1):
        head = text[: end.start() + 1]
        lines = deque(_AFTER_LINE.finditer(head), 1)
        start = lines[0].end() - 1 if lines else _opening(head, "<>")
        module = head[start + 1 : -1]
        inner = _VMO.fullmatch(module)
        return head[:start].strip(), (inner[1] if inner else module).rpartition("/")[2][-_LONGEST_NAME:] + end[1]
    return text.strip(), ""


def _opening(text: str, brackets: str) -> int:
    """Find where the last bracket of the text opens; if brackets are not balanced, the place behind the last blank."""
    depth = 0
    for at in range(len(text) - 1, -1, -1):
        depth += (text[at] == brackets[1]) - (text[at] == brackets[0])
        if depth == 0 and text[at] == brackets[0] and text[at - 1 : at] in ("", " "):
            return at
    return text.rfind(" ") + 1


def _function_and_source(text: str) -> tuple[str, str, int]:
    """Divide a frame's text into the function, its file, and the line; what is unknown is empty, or 0."""
    before, _, word = _DISCRIMINATOR.sub("", text.strip()).rpartition(" ")
    source = _SOURCE.fullmatch(word)
    if source is None or source[1] == "??":
        function = before if _UNKNOWN_SOURCE.fullmatch(word) else text.strip()
        return _known(function), "", 0
    return _known(before), source[1][-_LONGEST_NAME:], int(source[2])


def _known(function: str) -> str:
    function = function.strip()
    return "" if function in _NO_FUNCTION else function[:_LONGEST_FUNCTION]
