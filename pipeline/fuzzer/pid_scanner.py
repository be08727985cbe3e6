"""Finding the fuzzer's process in its output, and putting what the system log has of it behind its last input."""

import logging
import re
from collections.abc import Callable, Iterator

from pipeline.errors import TopcoatError
from pipeline.fuzzer.line_scanner import LineScanner
from pipeline.lines import LineEnds
from pipeline.text import one_line

log = logging.getLogger("topcoat")

NO_LOG = "WARNING: failed to fetch syslog"
"""What the output has instead of the system log where there is none."""

_PID = re.compile(rb"==([0-9]{1,20})==")
_INPUT = b"MS: "


class PidScanner(LineScanner):
    """Puts the system log behind the first line `MS: …`, with which a crash begins, or else at the end.

    `syslog` gets it. When it fails, the output has a warning instead.
    """

    def __init__(self, syslog: Callable[[int], bytes]) -> None:
        super().__init__((), (b"==", _INPUT))
        self._syslog = syslog
        self._pid: int | None = None
        self._warned = False
        self._done = False

    def look(self, line: bytes) -> bytes:
        """Nothing changes."""
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
        """The system log, if this is its place."""
        if self.due:
            self.due, self._done = False, True
            yield from self._fetched()

    def end(self) -> Iterator[bytes]:
        """The system log, if it had no place yet."""
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
