"""What the guest has written to its serial port, read from the serial log."""

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.text.printable import printable, tail

MARKER = b"{{{reset}}}"
"""Fuchsia's first line of symbolizer context, printed when the first user process starts: early boot is over."""

_CHUNK = 1 << 20
_CHUNKS_AT_ONCE = 64
_KEPT = 1 << 16
_OVERLAP = 256  # bytes; longer than any text that is looked for


class Scanner:
    """A counter of the markers in a stream that comes in pieces, wherever it is cut."""

    def __init__(self) -> None:
        self.count = 0
        self._end = b""

    @property
    def found(self) -> bool:
        """Whether there was a marker."""
        return self.count > 0

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the stream."""
        window = self._end + chunk
        self.count += window.count(MARKER)
        # A marker that was counted must not be counted again in the next window
        rest = window[window.rfind(MARKER) + len(MARKER) :] if MARKER in window else window
        self._end = rest[-(len(MARKER) - 1) :]


class Console:
    """What has been read of a serial log so far: its end, and the number of markers in it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._position = 0
        self._kept = b""
        self._scanner = Scanner()
        self._news = 0
        self.silent = True
        """Whether the guest has written nothing at all so far."""

    @property
    def markers(self) -> int:
        """How many markers were in what has been read."""
        return self._scanner.count

    def update(self) -> None:
        """Read what is new in the log; at most 64 MiB, so that a guest that floods it does not hold up the caller.

        A log that has become shorter has been rotated: then as much of the older part is read too (see keeper.py).
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
        """What has been read since the last call, with a little before it, printable; "" if nothing is new."""
        length, self._news = self._news, 0
        return printable(self._kept[-(length + _OVERLAP) :]) if length else ""

    def tail(self, lines: int = 20) -> str:
        """The last non-empty lines of what has been read, printable."""
        return tail(self._kept, lines)

    def text(self) -> str:
        """The end of what has been read, at most 64 KiB, printable."""
        return printable(self._kept)
