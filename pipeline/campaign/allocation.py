"""The choice of the fuzzer that gets the next slice, by one of two rules.

`even` chooses the fuzzer that has used the smallest part of its budget. `gain` first chooses fuzzers that have never
run. After that, three of every four turns go to the fuzzer that gained most new features a second in its last three
slices. The fourth turn, the floor, goes to the one that has used the smallest part of its budget, so that no fuzzer
starves, and one that was slow at first is tried again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.settings import Allocation

FLOOR = 4
"""Of so many turns, the rule `gain` gives one to the fuzzer that has used the smallest part of its budget."""


@dataclass(frozen=True)
class Candidate:
    """A fuzzer that may run now: it has budget left, is not benched, and no worker is busy with it."""

    name: str
    part: float
    """The part of its budget that is used, from 0 to 1."""
    gain: float
    """New features a second over its last slices."""
    slices: int
    """The number of slices at which it has run."""


def choose(candidates: Sequence[Candidate], turn: int, allocation: Allocation) -> Candidate:
    """Choose the candidate for turn number `turn`; among equals, the first by name.

    The choice depends on nothing but the arguments.
    """
    least = min(candidates, key=lambda one: (one.part, one.name))
    if allocation == "even":
        return least
    fresh = [one for one in candidates if not one.slices]
    if fresh:
        return min(fresh, key=lambda one: one.name)
    best = min(candidates, key=lambda one: (-one.gain, one.part, one.name))
    return best if turn % FLOOR and best.gain else least
