"""Time limits as objects on the monotonic clock, and the time of day in the form that our files have."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], float]
"""A function that returns the seconds on a clock that never goes back."""


class Deadline:
    """The moment `seconds` after the object was made, on the monotonic clock; nested waits can share it."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self.started = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the deadline was made."""
        return self._clock() - self.started

    @property
    def remaining(self) -> float:
        """Seconds left; 0.0 when it has passed, never negative."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def expired(self) -> bool:
        """Whether the moment has passed."""
        return self.remaining == 0.0

    def within(self, seconds: float) -> float:
        """The shorter of `seconds` and what remains: the limit for one step of a longer wait."""
        return min(seconds, self.remaining)

    def renew(self) -> None:
        """Begin anew: let it be the moment `seconds` from now."""
        self.started = self._clock()


class Patience(Deadline):
    """A deadline of `seconds` that is extended by excused time, but to `most` seconds in all.

    `excused` returns how many seconds so far were not the fault of what is waited for. It is called only once the plain
    limit has passed.
    """

    def __init__(
        self, seconds: float, most: float, excused: Callable[[], float], clock: Clock = time.monotonic
    ) -> None:
        super().__init__(seconds, clock)
        self._most = most
        self._excused = excused

    @property
    def remaining(self) -> float:
        """Seconds left; 0.0 when it has passed, never negative."""
        elapsed = self.elapsed
        if elapsed < self.seconds:
            return self.seconds - elapsed
        return max(0.0, min(self.seconds + self._excused(), self._most) - elapsed)


def utc_now() -> str:
    """The time of day as ISO 8601 in UTC, for people who read our files; nothing is ever decided by it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
