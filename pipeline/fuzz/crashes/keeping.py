"""Which crashes of a bucket are kept, and how much room all of them may take.

Small inputs are those that people can read, and the newest ones show the builds of today. So half of what is kept are
the newest crashes, and of the others those with the smallest inputs; the very first one always stays.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.fuzz.crashes.bucket import KeptInput
from pipeline.fuzz.crashes.crash import FILES
from pipeline.text.quantity import readable_size

log = logging.getLogger("topcoat")

_MEASURED_FOR = 600.0  # seconds; others add crashes, and people delete them


def chosen(crashes: Mapping[int, KeptInput], most: int) -> set[int]:
    """The numbers of the crashes that are to be kept: the first, the newest, and those with the smallest inputs."""
    numbers = sorted(crashes)
    kept = {*numbers[:1], *numbers[max(1, len(numbers) - most // 2) :]}
    smallest = sorted(set(numbers) - kept, key=lambda number: (crashes[number].size, number))
    return {*kept, *smallest[: max(0, most - len(kept))]}


class Room:
    """The room that all crashes take below a directory, and may take, in bytes: about, as others add crashes too."""

    def __init__(self, directory: Path, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._size, self._clock = directory, size, clock
        self._used, self._measured = 0, float("-inf")
        self._told = False

    def fits(self, size: int) -> bool:
        """Whether there is room for that much. The first time that there is none, a warning is logged.

        Raises OSError.
        """
        if self._clock() - self._measured > _MEASURED_FOR:
            self._used, self._measured = size_of(self._directory), self._clock()
        if self._used + size <= self._size:
            return True
        if not self._told:
            self._told = True
            log.warning(
                "%s has %s, and no room for more crashes ([campaign] crash_size): further ones are only counted",
                *(self._directory, readable_size(self._used)),
            )
        return False

    def take(self, size: int) -> None:
        """Note that so many bytes were added; removed, if it is a negative number."""
        self._used += size


def size_of(directory: Path) -> int:
    """The bytes of the files of all crashes below a directory; what else lies there has its own limits.

    Raises OSError.
    """
    total, places = 0, [os.fspath(directory)]
    while places:
        with suppress(FileNotFoundError), os.scandir(places.pop()) as entries:  # others remove crashes
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    places.append(entry.path)
                elif entry.name in FILES:
                    total += entry.stat(follow_symlinks=False).st_size
    return total
