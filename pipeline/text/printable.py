"""Text from guests and tools, made safe to print: it is never sent to a terminal as it came."""

import codecs
import re
from collections.abc import Sequence

# A CSI sequence without its last character. Its length is bounded, so that a stream holds back only so much
_CSI = r"\[[0-?]{0,256}[ -/]{0,16}"
# A short escape such as ESC ( B, which chooses a character set; again without its last character
_SHORT = r"[ -/]{1,16}"
# OSC, DCS and similar. Their text ends at a newline at the latest: an unfinished one must not hide what follows
_KINDS = "[]PX^_]"
_STRING = r"[^\x07\x1b\n]*"
_ESCAPES = re.compile(rf"\x1b{_CSI}[@-~]|\x1b{_KINDS}{_STRING}(?:\x07|\x1b\\)?|\x1b{_SHORT}[0-~]|\x1b[^\n]?")
# Tried first at each ESC: an escape that reaches the end of the text, so that what comes next could still change it
_BEGUN = rf"\x1b(?:{_CSI}|{_SHORT}|(?P<kind>{_KINDS}){_STRING}(?P<end>\x1b?))?\Z"
_BEGUN_OR_ESCAPE = re.compile(rf"(?P<begun>{_BEGUN})|{_ESCAPES.pattern}")
# Newline and tab stay. C1 controls are removed, for some terminals obey them; bidi marks could reorder a line.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_EDITING = "\r\b"


def printable(data: bytes | str) -> str:
    """Decode (UTF-8, bad bytes become U+FFFD) and remove terminal escapes, carriage returns and control characters."""
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


class Filter:
    """The function `printable` for a stream that comes in pieces: the result does not depend on where it is cut.

    Unlike `printable` it keeps carriage returns and backspaces, which line editing needs.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """Take the next piece and return what can be printed; an unfinished character or escape is held back."""
        text, self._held = self._held + self._decoder.decode(data), ""
        return _without_controls(_BEGUN_OR_ESCAPE.sub(self._hold, text))

    def _hold(self, match: re.Match[str]) -> str:
        if match["kind"]:
            self._held = f"\x1b{match['kind']}{match['end']}"  # its text can be long, and is dropped in any case
        else:
            self._held = match["begun"] or ""
        return ""

    def end(self) -> str:
        """End the stream: return what was held back, as far as it can be printed."""
        text, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return _without_controls(_ESCAPES.sub("", text))


def _without_controls(text: str) -> str:
    return _CONTROLS.sub(lambda match: match[0] if match[0] in _EDITING else "", text)


def tail(data: bytes | str, lines: int = 20, width: int = 400) -> str:
    """The last `lines` non-empty lines of `data`, printable; lines longer than `width` lose their middle."""
    kept = [line.rstrip() for line in printable(data).split("\n") if line.strip()]
    return "\n".join(_shortened(line, width) for line in kept[-lines:])


def _shortened(line: str, width: int) -> str:
    # Not only the beginning: an error message often gives its reason at the end
    half = (width - 1) // 2
    return line if len(line) <= width else f"{line[:half]}…{line[-half:]}"


def one_line(data: bytes | str, width: int = 400) -> str:
    """Make text printable on one line: newlines and tabs become \\n and \\t; beyond `width` the middle is left out."""
    return _shortened(printable(data).replace("\n", "\\n").replace("\t", "\\t"), width)


def is_plain(text: str) -> bool:
    """Whether the text is fit to print as it stands, on one line."""
    return one_line(text, len(text) + 1) == text


def columns(rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """Format rows as aligned lines: the first `texts` columns are aligned to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if at < texts else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
