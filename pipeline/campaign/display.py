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
from pipeline.deadline import Clock
from pipeline.duration import readable_duration
from pipeline.publish import publish_json

if TYPE_CHECKING:
    from rich.live import Live

log = logging.getLogger("topcoat")

FILE_EVERY = 5.0
"""Seconds between two status.json."""

LINE_EVERY = 60.0
"""Seconds between two lines where there is no terminal."""


class Display(Protocol):
    """Told each second, shows what is worth showing."""

    def show(self, status: Status) -> None:
        """How the campaign stands."""


class Lines:
    """A line a minute."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + LINE_EVERY

    def show(self, status: Status) -> None:
        """See Display."""
        if self._clock() >= self._next:
            self._next += LINE_EVERY
            log.info("%s", headline(status))


class Table:
    """A table on the terminal that is drawn anew, and gone at the end."""

    def __init__(self, live: "Live") -> None:
        self._live = live

    def show(self, status: Status) -> None:
        """See Display."""
        from rich.text import Text

        # As much as fits: whoever wants all looks at status.json, or at topcoat campaign status
        self._live.update(Text("\n".join([headline(status), *table(status)]), no_wrap=True, overflow="ellipsis"))


def headline(status: Status) -> str:
    """All in one line."""
    left = f", {readable_duration(status.left)} left" if status.left else ""
    crashes = sum(one.crashes for one in status.fuzzers)
    groups = f"{crashes} crash group{'' if crashes == 1 else 's'}"
    return f"{status.name}: {_doing(status)}, {readable_duration(status.seconds)} fuzzed{left}, {groups}"


def _doing(status: Status) -> str:
    if status.state != "running":
        return f"{status.state}, {len(status.fuzzers)} fuzzer{'' if len(status.fuzzers) == 1 else 's'}"
    rates = [one.rate for one in status.fuzzers if one.state == "running"]
    return f"{len(rates)} of {len(status.fuzzers)} fuzzers running, {sum(rates):,.0f} executions/s"


@contextmanager
def shown() -> Iterator[Display]:
    """The display that fits stderr, for the body."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=2, transient=True) as live:
        yield Table(live)


class Reporter:
    """Tells of a campaign wherever somebody may look: on the display, in status.json, and to `tell`."""

    def __init__(
        self, display: Display, file: Path | None, tell: Callable[[Status], None], clock: Clock = time.monotonic
    ) -> None:
        """`file`: status.json; None while the process works at a piece only, of which that does not tell."""
        self._display, self._file, self._tell = display, file, tell
        self._clock = clock
        self._next = clock()

    def report(self, status: Status) -> None:
        """To be called often. Raises StoreError if the file cannot be written."""
        self._display.show(status)
        if self._clock() >= self._next or status.state != "running":
            self._next = self._clock() + FILE_EVERY
            if self._file:
                publish_json(self._file, status.encode())
            self._tell(status)
