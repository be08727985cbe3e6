"""A stage that finds the fuzzer's pid in its output, and inserts what the system log has of that process."""

import logging
import re
from collections.abc import Callable, Iterator

from pipeline.errors import TopcoatError
from pipeline.fuzz.line_scanner import LineScanner
from pipeline.fuzz.lines import LineEnds
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

NO_LOG = "WARNING: failed to fetch syslog"
"""The beginning of the line that the output has instead of the system log if there is none."""

_PID = re.compile(rb"==([0-9]{1,20})==")
_INPUT = b"MS: "


class PidScanner(LineScanner):
    """A stage that inserts the system log behind the first line `MS: …`, which tells of a crash, or else at the end.

    `syslog` returns the log of a pid. If it fails, or no pid was found, a warning (NO_LOG) is inserted instead.
    """

    def __init__(self, syslog: Callable[[int], bytes]) -> None:
        super().__init__((), (b"==", _INPUT))
        self._syslog = syslog
        self._pid: int | None = None
        self._warned = False
        self._done = False

    def look(self, line: bytes) -> bytes:
        """See LineScanner. The line stays as it is."""
        if match := _PID.match(line):
            self._found(int(match[1]))
        self.due = not self._done and line.startswith(_INPUT)
        return line

    def _found(self, pid: int) -> None:
        if self._pid not in (None, pid) and not self._warned:
            log.warning("the fuzzer's output has several pids, such as %s and %d; the last one counts", self._pid, pid)
            self._warned = True
        self._pid = pid

    def behind(self) -> Iterator[bytes]:
        """See LineScanner. Yields the system log, if this is its place."""
        if self.due:
            self.due, self._done = False, True
            yield from self._fetched()

    def end(self) -> Iterator[bytes]:
        """See LineScanner. Yields the system log, if it was not inserted before."""
        yield from super().end()
        if not self._done:
            yield from self._fetched()

    def _fetched(self) -> Iterator[bytes]:
        ends = LineEnds()
        yield from ends.feed(self._text())
        yield from ends.end()

    def _text(self) -> bytes:
        if self._pid is None:
            return f"{NO_LOG}: missing pid".encode()
        try:
            return self._syslog(self._pid)
        except (TopcoatError, OSError) as error:
            return f"{NO_LOG}: {one_line(str(error))}".encode()
