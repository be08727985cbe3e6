"""How slow a transfer may be: a guest that moves a byte every few seconds never stalls, and could hold us for ever."""

import time

from pipeline.errors import CommandTimeout
from pipeline.host.deadline import Clock
from pipeline.ssh.session import CONSOLE

LEAST_RATE = 4096
"""The least bytes a second, over a whole transfer; an emulated guest on a busy host sends a hundred times as many."""

REPLY = 2048
"""Bytes for which each SFTP reply counts besides its own size: the guest had something to look up."""


class Pace:
    """The pace of one transfer, which must not be slower than LEAST_RATE, nor last too long.

    `grace` is the number of seconds that are not counted into the rate, `most` the seconds for the whole transfer.
    """

    def __init__(self, grace: float, most: float, clock: Clock = time.monotonic) -> None:
        self._grace, self._most, self._clock = grace, most, clock
        self._began = clock()
        self._moved = 0

    def moved(self, size: int) -> None:
        """Count bytes that were sent or received. Raises CommandTimeout if the transfer is too slow or too long."""
        self._moved += size
        seconds = self._clock() - self._began
        if seconds > self._most:
            raise CommandTimeout(f"a transfer is not over after {self._most:g} s", hint=CONSOLE)
        if seconds > self._grace + self._moved / LEAST_RATE:
            raise CommandTimeout(
                f"the guest is too slow: in {seconds:.0f} s, it was as much as {self._moved:,} bytes", hint=CONSOLE
            )
