"""Text from outside, made fit to print. What guests and tools write is never sent to a terminal as it came."""

import re

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[PX^_][^\x1b]*(?:\x1b\\)?|\x1b.?"
)
# Newline and tab stay. C1 controls count: some terminals obey them.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(data: bytes | str) -> str:
    """Decode (UTF-8, bad bytes become U+FFFD) and remove terminal escapes, carriage returns and control characters."""
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def tail(data: bytes | str, lines: int = 20, width: int = 200) -> str:
    """The last non-empty `lines` lines of `data`, printable, each cut to `width` characters."""
    kept = [line.rstrip() for line in printable(data).split("\n") if line.strip()]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in kept[-lines:])
