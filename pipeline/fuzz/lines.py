"""Stages for a byte stream that comes in pieces of any length. What comes out does not depend on how it was cut."""

import re
from collections.abc import Iterator
from typing import Protocol

_LITERALS = (b"[klog] INFO: ", b"[klog] WARNING: ", b"[klog] ERROR: ")
_KLOG = re.compile(b"|".join(re.escape(literal) for literal in _LITERALS))
_BEFORE_KLOG = b"0123456789[]."
_LONGEST = max(map(len, _LITERALS))


class Stage(Protocol):
    """One stage through which a stream passes. It may change the stream, and hold some of it back."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next piece of the stream. Yields what can go on."""

    def end(self) -> Iterator[bytes]:
        """Take the end of the stream. Yields what was held back."""


def through(stage: Stage, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pass a stream through the stage. Yields what comes out."""
    for piece in pieces:
        yield from stage.feed(piece)
    yield from stage.end()


class LineEnds:
    """A stage that drops one carriage return before each newline and at the end, and adds a last newline if needed."""

    def __init__(self) -> None:
        self._held = b""
        self._in_line = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """See Stage. A carriage return at the end of a piece is held back."""
        text = self._held + data
        self._held = b"\r" if text.endswith(b"\r") else b""
        if text := text.removesuffix(b"\r").replace(b"\r\n", b"\n"):
            self._in_line = not text.endswith(b"\n")
            yield text

    def end(self) -> Iterator[bytes]:
        """See Stage. Yields the newline that the last line lacks."""
        if self._in_line or self._held:
            yield b"\n"


class LogPrefixes:
    """A stage that removes what Fuchsia's log puts before a message, `[1234.5][klog] INFO: ` and its like, anywhere.

    Of the digits, dots and brackets before `[klog]` it removes at most MOST bytes, so as not to hold back more.
    """

    MOST = 65536

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """See Stage. What may be the beginning of a prefix is held back."""
        *before, rest = _KLOG.split(self._held + data)
        kept = len(rest) - self._doubtful(rest)
        self._held = rest[kept:]
        if text := b"".join(part[: len(part) - self._run(part)] for part in before) + rest[:kept]:
            yield text

    def end(self) -> Iterator[bytes]:
        """See Stage."""
        if self._held:
            yield self._held

    def _run(self, text: bytes) -> int:
        """How many bytes at the end of `text` would be part of a prefix if `[klog]` followed."""
        window = text[-self.MOST :]
        return len(window) - len(window.rstrip(_BEFORE_KLOG))

    def _doubtful(self, text: bytes) -> int:
        """How many bytes at the end of `text` may be the beginning of a prefix."""
        begun = next((n for n in range(_LONGEST - 1, 0, -1) if self._begins(text[-n:], n)), 0)
        return begun + self._run(text[: len(text) - begun])

    def _begins(self, end: bytes, length: int) -> bool:
        return len(end) == length and any(literal.startswith(end) for literal in _LITERALS)
