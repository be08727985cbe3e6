"""Looking at the lines of a fuzzer's output as they pass."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

LIMIT = 65536
"""Bytes of a line that are looked at. What is longer passes, but nobody looks at the rest."""


class LineScanner(ABC):
    """A stage that looks at lines, may change them, and may put something behind them.

    Lines go on once they are complete, or longer than LIMIT.
    """

    def __init__(self, anywhere: tuple[bytes, ...], at_start: tuple[bytes, ...]) -> None:
        """Lines that hold one text of `anywhere`, or begin with one of `at_start`, are looked at."""
        self._at_start = at_start
        self._within = (*anywhere, *(b"\n" + mark for mark in at_start))
        starts, others = (b"|".join(map(re.escape, marks)) for marks in (at_start, anywhere))
        self._marks = re.compile(b"^(?:" + starts + b")" + (b"|" + others if others else b""), re.MULTILINE)
        self.due = False
        """Whether `behind` has something for the line that was looked at last."""
        self._begun = bytearray()
        """The line that is not complete, as long as it is short enough to be held back."""
        self._in_rest = False
        """Whether the line that is not complete has been looked at."""

    @abstractmethod
    def look(self, line: bytes) -> bytes:
        """What a line becomes that has one of the marks. It comes without newline, and cut off at LIMIT."""

    def behind(self) -> Iterator[bytes]:
        """What is put behind the line that has just passed, if it is due. The line has gone on then."""
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
        # Some five times faster than the expression, and mostly the answer is no
        if not (lines.startswith(self._at_start) or any(mark in lines for mark in self._within)):
            yield lines
            return
        done, at = bytearray(), 0
        while match := self._marks.search(lines, at):
            start, end = lines.rfind(b"\n", at, match.start()) + 1 or at, lines.index(b"\n", match.start())
            done += lines[at:start] + self._looked_at(lines[start:end]) + b"\n"
            at = end + 1
            if self.due:
                yield bytes(done)
                done.clear()
                yield from self.behind()
        yield bytes(done + lines[at:])

    def _looked_at(self, line: bytes) -> bytes:
        head = line[:LIMIT]
        return self.look(head) + line[LIMIT:] if self._marks.search(head) else line
