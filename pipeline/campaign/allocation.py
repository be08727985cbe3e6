"""Who gets the next slice.

`even`: whoever has had the smallest part of its budget. `gain`: whoever has never run, first; then by turns of four,
three of which go to the fuzzer that brought most new features a second in its last three attempts, and the fourth, the
floor, to the one that has had the smallest part of its budget: so that none starves, and one that was slow to begin
with is seen again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.settings import Allocation

FLOOR = 4
"""Each slice of this number goes to whoever has had least."""


@dataclass(frozen=True)
class Candidate:
    """A fuzzer that may run: it has budget left, is not benched, and nobody works at it now."""

    name: str
    part: float
    """Of its budget that is used, 0 to 1."""
    gain: float
    """Features a second, of late."""
    attempts: int


def choose(candidates: Sequence[Candidate], turn: int, allocation: Allocation) -> Candidate:
    """The next one of them, in turn number `turn`; where nothing else decides, by name.

    All of it depends on nothing else, so that a campaign that goes on decides as one that was never stopped.
    """
    least = min(candidates, key=lambda one: (one.part, one.name))
    if allocation == "even":
        return least
    fresh = [one for one in candidates if not one.attempts]
    if fresh:
        return min(fresh, key=lambda one: one.name)
    best = min(candidates, key=lambda one: (-one.gain, one.part, one.name))
    return best if turn % FLOOR and best.gain else least
