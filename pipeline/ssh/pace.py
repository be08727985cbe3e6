"""How slowly a guest may send: who drips a byte every few seconds never stalls, and would hold us for ever."""

import time

from pipeline.deadline import Clock
from pipeline.errors import CommandTimeout
from pipeline.ssh.session import CONSOLE

LEAST_RATE = 4096
"""Bytes a second, over all of a transfer; an emulated guest on a busy host sends a hundred times as much."""

REPLY = 2048
"""Bytes as which each reply counts besides its own: the guest had something to look up."""


class Pace:
    """Of one transfer: told of all that comes, it raises CommandTimeout once that comes too slowly, or takes too long.

    `grace`: seconds that do not count; `most`: seconds in which all must have come.
    """

    def __init__(self, grace: float, most: float, clock: Clock = time.monotonic) -> None:
        self._grace, self._most, self._clock = grace, most, clock
        self._began = clock()
        self._came = 0

    def came(self, size: int) -> None:
        """So many bytes have come."""
        self._came += size
        seconds = self._clock() - self._began
        if seconds > self._most:
            raise CommandTimeout(f"a transfer is not over after {self._most:g} s", hint=CONSOLE)
        if seconds > self._grace + self._came / LEAST_RATE:
            raise CommandTimeout(
                f"the guest sends too slowly: in {seconds:.0f} s, it was as much as {self._came:,} bytes", hint=CONSOLE
            )
