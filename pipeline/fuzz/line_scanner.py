"""A stage that looks at the lines of a fuzzer's output as they pass."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

LIMIT = 65536
"""How many bytes of a line are looked at. The rest of a longer line passes as it is."""


class LineScanner(ABC):
    """A stage that looks at lines, may change them, and may insert something behind them.

    It implements pipeline.fuzz.lines.Stage. A line goes on once it is complete, or longer than LIMIT.
    """

    def __init__(self, anywhere: tuple[bytes, ...], at_start: tuple[bytes, ...]) -> None:
        """Choose the lines to look at: those that contain one of `anywhere`, or begin with one of `at_start`."""
        self._at_start = at_start
        self._within = (*anywhere, *(b"\n" + mark for mark in at_start))
        starts, others = (b"|".join(map(re.escape, marks)) for marks in (at_start, anywhere))
        self._marks = re.compile(b"^(?:" + starts + b")" + (b"|" + others if others else b""), re.MULTILINE)
        self.due = False
        """Whether `behind` has something to insert behind the line that was looked at last. Subclasses set it."""
        self._begun = bytearray()
        """The beginning of the last line, which is not complete, as long as it is short enough to be held back."""
        self._in_rest = False
        """Whether the last line, which is not complete, is longer than LIMIT and has been looked at already."""

    @abstractmethod
    def look(self, line: bytes) -> bytes:
        """Look at a line that was chosen, and return what it becomes. It has no newline, and is cut off at LIMIT."""

    def behind(self) -> Iterator[bytes]:
        """Yield what is inserted behind the line that was looked at last, if it is `due`. The line has gone on then."""
        yield from ()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """See Stage."""
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
        """See Stage."""
        if self._begun:
            yield self._looked_at(bytes(self._begun))
        if self._begun or self._in_rest:
            self._begun.clear()
            yield from self.behind()

    def _complete(self, lines: bytes) -> Iterator[bytes]:
        # This is some five times faster than the expression, and the answer is mostly no
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
