"""Text from outside, made fit to print. What guests and tools write is never sent to a terminal as it came."""

import re

# CSI; then OSC, DCS and their kin, whose text ends at a newline at the latest: an unfinished one must not hide the rest
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|\x1b[^\n]?")
# Newline and tab stay. C1 controls count: some terminals obey them. Bidi marks could turn a line round.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(data: bytes | str) -> str:
    """Decode (UTF-8, bad bytes become U+FFFD) and remove terminal escapes, carriage returns and control characters."""
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def tail(data: bytes | str, lines: int = 20, width: int = 400) -> str:
    """The last non-empty `lines` lines of `data`, printable. Of longer ones than `width` the middle is left out."""
    kept = [line.rstrip() for line in printable(data).split("\n") if line.strip()]
    return "\n".join(_shortened(line, width) for line in kept[-lines:])


def _shortened(line: str, width: int) -> str:
    # The end of an error message is its reason
    half = (width - 1) // 2
    return line if len(line) <= width else f"{line[:half]}…{line[-half:]}"
