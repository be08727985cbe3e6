"""What people see while a boot takes long: a live line on a terminal, elsewhere a plain line now and then."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from pipeline.host.deadline import Clock

if TYPE_CHECKING:
    from rich.status import Status

log = logging.getLogger("topcoat")

EVERY = 10.0
"""Seconds between two plain lines."""

_PATIENCE = 1.0  # seconds; a shorter wait needs no line, and is not worth loading what draws it


class BootProgress(Protocol):
    """Whatever shows how a boot goes: it is called often, and shows what is worth showing."""

    def waiting(self, name: str, stage: str, seconds: float, limit: float, last_line: str) -> None:
        """Show that the instance `name` has waited `seconds` for `stage`, and may wait for `limit` seconds.

        `last_line` is the last line of its console, printable.
        """


class Plain:
    """Progress as a line in the log every ten seconds."""

    def __init__(self) -> None:
        self._told = 0.0

    def waiting(self, name: str, stage: str, seconds: float, limit: float, last_line: str) -> None:
        """See BootProgress."""
        if seconds - self._told >= EVERY:
            self._told += EVERY * ((seconds - self._told) // EVERY)
            log.info("%s: waiting for the %s, %.0f s of %.0f s: %s", name, stage, seconds, limit, last_line or "-")


class LiveLine:
    """Progress as one line on the terminal, which is redrawn, and gone at the end."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._status: Status | None = None

    def waiting(self, name: str, stage: str, seconds: float, limit: float, last_line: str) -> None:
        """See BootProgress."""
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
        """Remove the line from the terminal."""
        if self._status is not None:
            self._status.stop()


def plainly() -> AbstractContextManager[Plain]:
    """Progress as plain lines even on a terminal: for guests that are booted at once, or beside a table."""
    return nullcontext(Plain())


@contextmanager
def shown() -> Iterator[BootProgress]:
    """Yield the progress that suits stderr: LiveLine on a terminal, else Plain."""
    if not sys.stderr.isatty():
        yield Plain()
        return
    live = LiveLine()
    try:
        yield live
    finally:
        live.close()
