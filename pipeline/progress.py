"""What people see while something takes long: a live line on a terminal, elsewhere a plain line now and then."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from pipeline.deadline import Clock

if TYPE_CHECKING:
    from rich.status import Status

log = logging.getLogger("topcoat")

EVERY = 10.0
"""Seconds between two plain lines."""

_PATIENCE = 1.0  # what is over before that needs no line, and not the time to load what draws it


class Progress(Protocol):
    """Told often, shows what is worth showing."""

    def waiting(self, name: str, stage: str, seconds: float, limit: float, last_line: str) -> None:
        """`name` has been waiting for `seconds` and may wait for `limit`; `last_line` is printable."""


class Plain:
    """A line each ten seconds."""

    def __init__(self) -> None:
        self._told = 0.0

    def waiting(self, name: str, stage: str, seconds: float, limit: float, last_line: str) -> None:
        """See Progress."""
        if seconds - self._told >= EVERY:
            self._told += EVERY * ((seconds - self._told) // EVERY)
            log.info("%s: waiting for the %s, %.0f s of %.0f s: %s", name, stage, seconds, limit, last_line or "-")


class Live:
    """A line on the terminal that is drawn anew, and gone at the end."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._status: Status | None = None

    def waiting(self, name: str, stage: str, seconds: float, limit: float, last_line: str) -> None:
        """See Progress."""
        if self._clock() - self._started < _PATIENCE:
            return
        from rich.text import Text

        line = f"{name}: {stage}, {seconds:.0f} s of {limit:.0f} s  {last_line}"
        self._shown().update(Text(line, no_wrap=True, overflow="ellipsis"))

    def _shown(self) -> "Status":
        if self._status is None:
            from rich.console import Console
            from rich.status import Status

            self._status = Status("", console=Console(stderr=True), refresh_per_second=4)
            self._status.start()
        return self._status

    def close(self) -> None:
        """Take the line away."""
        if self._status is not None:
            self._status.stop()


@contextmanager
def shown() -> Iterator[Progress]:
    """The progress that fits stderr, for the body."""
    if not sys.stderr.isatty():
        yield Plain()
        return
    live = Live()
    try:
        yield live
    finally:
        live.close()
