"""What people see while a campaign runs: a table on a terminal, elsewhere a line a minute; and status.json."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.campaign.result import table
from pipeline.campaign.status import Status
from pipeline.host.deadline import Clock
from pipeline.store.publish import publish_json
from pipeline.text.quantity import readable_duration

if TYPE_CHECKING:
    from rich.live import Live

log = logging.getLogger("topcoat")

FILE_EVERY = 5.0
"""Seconds between two writes of status.json."""

LINE_EVERY = 60.0
"""Seconds between two lines where stderr is not a terminal."""


class Display(Protocol):
    """Shows people how a campaign stands. It is told each second, and shows what is worth showing."""

    def show(self, status: Status) -> None:
        """Show how the campaign stands, if that is due."""


class Lines:
    """A display that logs one line a minute."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + LINE_EVERY

    def show(self, status: Status) -> None:
        """See Display.show."""
        if self._clock() >= self._next:
            self._next += LINE_EVERY
            log.info("%s", headline(status))


class LiveTable:
    """A table on the terminal that is redrawn in place, and removed at the end."""

    def __init__(self, live: "Live") -> None:
        self._live = live

    def show(self, status: Status) -> None:
        """See Display.show."""
        from rich.text import Text

        # Only what fits: status.json and `topcoat campaign status` have all of it
        self._live.update(Text("\n".join([headline(status), *table(status)]), no_wrap=True, overflow="ellipsis"))


def headline(status: Status) -> str:
    """One line that tells how the whole campaign stands."""
    left = f", {readable_duration(status.left)} left" if status.left else ""
    crashes = sum(one.crashes for one in status.fuzzers)
    buckets = f"{crashes} crash bucket{'' if crashes == 1 else 's'}"
    return f"{status.name}: {_doing(status)}, {readable_duration(status.seconds)} fuzzed{left}, {buckets}"


def _doing(status: Status) -> str:
    if status.state != "running":
        return f"{status.state}, {len(status.fuzzers)} fuzzer{'' if len(status.fuzzers) == 1 else 's'}"
    rates = [one.rate for one in status.fuzzers if one.state == "running"]
    return f"{len(rates)} of {len(status.fuzzers)} fuzzers running, {sum(rates):,.0f} executions/s"


@contextmanager
def shown() -> Iterator[Display]:
    """Yield the display that suits stderr: a table on a terminal, else lines."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=2, transient=True) as live:
        yield LiveTable(live)


class Reporter:
    """Tells all who may look how a campaign stands: on the display, in status.json, and by calling `tell`."""

    def __init__(
        self, display: Display, file: Path | None, tell: Callable[[Status], None], clock: Clock = time.monotonic
    ) -> None:
        """`file` is status.json; None while the process works at one piece only, of which status.json does not tell."""
        self._display, self._file, self._tell = display, file, tell
        self._clock = clock
        self._next = clock()

    def report(self, status: Status) -> None:
        """Pass on how the campaign stands; to be called often. Raises StoreError if the file cannot be written."""
        self._display.show(status)
        if self._clock() >= self._next or status.state != "running":
            self._next = self._clock() + FILE_EVERY
            if self._file:
                publish_json(self._file, status.encode())
            self._tell(status)
