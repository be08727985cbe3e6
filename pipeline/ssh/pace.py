"""How slow a guest may be: who sends or takes a byte every few seconds never stalls, and would hold us for ever."""

import time

from pipeline.deadline import Clock
from pipeline.errors import CommandTimeout
from pipeline.ssh.session import CONSOLE

LEAST_RATE = 4096
"""Bytes a second, over all of a transfer; an emulated guest on a busy host sends a hundred times as much."""

REPLY = 2048
"""Bytes as which each reply counts besides its own: the guest had something to look up."""


class Pace:
    """Of one transfer: told of all that comes or goes, it raises CommandTimeout if that is too slow, or takes too long.

    `grace`: seconds that do not count; `most`: seconds for all of it.
    """

    def __init__(self, grace: float, most: float, clock: Clock = time.monotonic) -> None:
        self._grace, self._most, self._clock = grace, most, clock
        self._began = clock()
        self._moved = 0

    def moved(self, size: int) -> None:
        """So many bytes have come or gone."""
        self._moved += size
        seconds = self._clock() - self._began
        if seconds > self._most:
            raise CommandTimeout(f"a transfer is not over after {self._most:g} s", hint=CONSOLE)
        if seconds > self._grace + self._moved / LEAST_RATE:
            raise CommandTimeout(
                f"the guest is too slow: in {seconds:.0f} s, it was as much as {self._moved:,} bytes", hint=CONSOLE
            )
