"""The guest's serial port as it stands in its log."""

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.text import printable, tail

MARKER = b"{{{reset}}}"
"""Fuchsia's first line of symbolizer context, printed when the first user process starts: early boot is over."""

_CHUNK = 1 << 20
_CHUNKS_AT_ONCE = 64
_KEPT = 1 << 16
_OVERLAP = 256  # longer than any text that is looked for


class Scanner:
    """Counts the markers in a stream that comes in pieces, however it is cut."""

    def __init__(self) -> None:
        self.count = 0
        self._end = b""

    @property
    def found(self) -> bool:
        """Whether there was one."""
        return self.count > 0

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the stream."""
        window = self._end + chunk
        self.count += window.count(MARKER)
        # A marker that was counted must not be part of the next window
        rest = window[window.rfind(MARKER) + len(MARKER) :] if MARKER in window else window
        self._end = rest[-(len(MARKER) - 1) :]


class Console:
    """The serial log as far as it has been read: its end, and the markers in it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._position = 0
        self._kept = b""
        self._scanner = Scanner()
        self._news = 0
        self.silent = True
        """Whether the guest has written nothing at all."""

    @property
    def markers(self) -> int:
        """How many markers were in what has been read."""
        return self._scanner.count

    def update(self) -> None:
        """Read what is new in the log, at most 64 MiB: a guest that floods it must not hold up the caller.

        A log that has become shorter has been rotated: its rest is in the older part (see pipeline/qemu/keeper.py).
        """
        with self._log.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) < self._position:
                with suppress(FileNotFoundError), self._log.with_name(f"{self._log.name}.1").open("rb") as older:
                    self._read(older)
                self._position = 0
            self._read(stream)

    def _read(self, stream: BinaryIO) -> None:
        stream.seek(self._position)
        for _ in range(_CHUNKS_AT_ONCE):
            chunk = stream.read(_CHUNK)
            self._take(chunk)
            if len(chunk) < _CHUNK:
                return

    def _take(self, chunk: bytes) -> None:
        self._position += len(chunk)
        self._scanner.feed(chunk)
        self._kept = (self._kept + chunk)[-_KEPT:]
        self._news += len(chunk)
        self.silent = self.silent and not chunk

    def news(self) -> str:
        """What has come since this was asked last, with a little before it; "" if there is nothing, printable."""
        length, self._news = self._news, 0
        return printable(self._kept[-(length + _OVERLAP) :]) if length else ""

    def tail(self, lines: int = 20) -> str:
        """The last lines, fit to print."""
        return tail(self._kept, lines)

    def text(self) -> str:
        """The end of it, at most 64 KiB, fit to print."""
        return printable(self._kept)
