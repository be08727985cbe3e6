"""Looking at the lines of a fuzzer's output as they pass."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

LIMIT = 65536
"""Bytes of a line that are looked at. What is longer passes, but nobody looks at the rest."""


class LineScanner(ABC):
    """A stage that looks at lines, may change them, and may put something behind them.

    Lines go on once they are complete, or longer than LIMIT.
    """

    def __init__(self, marks: tuple[bytes, ...]) -> None:
        self._marks = marks
        self._begun = bytearray()
        """The line that is not complete, as long as it is short enough to be held back."""
        self._in_rest = False
        """Whether the line that is not complete has been looked at."""

    @abstractmethod
    def look(self, line: bytes) -> bytes:
        """What a line becomes that has one of the marks. It comes without newline, and cut off at LIMIT."""

    def behind(self) -> Iterator[bytes]:
        """What is put behind the line that has just passed."""
        yield from ()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next piece."""
        if self._in_rest:
            rest, newline, data = data.partition(b"\n")
            yield rest + newline
            if not newline:
                return
            self._in_rest = False
            yield from self.behind()
        lines, newline, begun = data.rpartition(b"\n")
        if newline:
            yield from self._complete(bytes(self._begun) + lines + newline)
            self._begun.clear()
        self._begun += begun
        if len(self._begun) > LIMIT:
            yield self._looked_at(bytes(self._begun))
            self._begun.clear()
            self._in_rest = True

    def end(self) -> Iterator[bytes]:
        """Take the end."""
        if self._begun:
            yield self._looked_at(bytes(self._begun))
        if self._begun or self._in_rest:
            self._begun.clear()
            yield from self.behind()

    def _complete(self, lines: bytes) -> Iterator[bytes]:
        if not any(mark in lines for mark in self._marks):
            yield lines
            return
        done = bytearray()
        for line in lines[:-1].split(b"\n"):
            done += self._looked_at(line) + b"\n"
            for more in self.behind():
                if done:
                    yield bytes(done)
                    done.clear()
                yield more
        yield bytes(done)

    def _looked_at(self, line: bytes) -> bytes:
        head = line[:LIMIT]
        return self.look(head) + line[LIMIT:] if any(mark in head for mark in self._marks) else line
