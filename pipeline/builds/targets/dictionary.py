"""Dictionaries of libFuzzer, checked by its own rules: with a wrong one, no fuzzer starts.

A line is empty, a comment that begins with #, or an entry: a text in double quotes, whatever stands before it, such as
`name="value"`. In the quotes are printable ASCII, `\\\\`, `\\"`, and bytes as `\\xAB`.

Source: ParseDictionaryFile and ParseOneDictionaryEntry of llvm-project, compiler-rt/lib/fuzzer/FuzzerUtil.cpp at
commit a2b677e81537.
"""

import re
from collections.abc import Iterator

_SPACES = b" \t\n\v\f\r"
_ENTRY = re.compile(rb'[^"]*"(?:\\\\|\\"|\\x[0-9A-Fa-f]{2}|[\t-\r -\[\]-~])+"', re.DOTALL)
_QUOTED = re.compile(rb'[^"]*"(.*)"', re.DOTALL)
_ESCAPE = re.compile(rb"\\(?:\\|\"|x[0-9A-Fa-f]{2})")


def wrong_lines(content: bytes) -> Iterator[tuple[int, str, str]]:
    """The lines that libFuzzer refuses: the number of each, from 1, what is wrong, and what to do about it.

    An empty file counts as a wrong first line, as libFuzzer refuses that too.
    """
    if not content:
        yield 1, "the dictionary is empty", "leave the dictionary out"
    for number, line in enumerate(content.split(b"\n"), 1):
        entry = line.strip(_SPACES)
        if entry and not entry.startswith(b"#") and _ENTRY.fullmatch(entry) is None:
            yield number, *_reason(entry)


def _reason(entry: bytes) -> tuple[str, str]:
    quoted = _QUOTED.fullmatch(entry)
    if quoted is None:
        return (
            "an entry of a dictionary is a text in double quotes",
            'write "value" or name="value"; # begins a comment',
        )
    if not quoted[1]:
        return "an entry of a dictionary holds something", "delete the line"
    if b"\\" in _ESCAPE.sub(b"", quoted[1]):
        return "there is a backslash that begins nothing", r"write \\, \" or \xAB, with two hexadecimal digits"
    return "there are bytes that are not printable ASCII", r"write each such byte as \xAB"
