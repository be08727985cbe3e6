"""Which buckets of a fuzzer are probably the same bug, though the rule keeps them apart: told, not joined.

Two buckets are linked if one of these holds:

- their stacks are alike: they share two of the first three parts that decide, in order. The entry does not count,
  because all stacks of a fuzzer have it. Where the first three parts are the same to the last, fewer are enough.
  A timeout is only compared with timeouts: its parts are where the loop was begun, which says nothing of a crash. Two
  timeouts are also alike if all parts of one are the last ones of the other: one was stopped in the loop itself, the
  other in what the loop calls.
- their inputs showed each other's stack when they were run again, or those of one showed both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

from pipeline.fuzz.crashes.functions import ENTRY
from pipeline.text.printable import one_line

_COMPARED, _ALIKE = 3, 2  # as ClusterFuzz does (_internal/crash_analysis/crash_comparer.py)


class Compared(Protocol):
    """What is asked of a bucket."""

    @property
    def slug(self) -> str:
        """The name of the bucket."""

    @property
    def kind(self) -> str:
        """The kind of its crashes."""

    @property
    def frames(self) -> Sequence[str]:
        """What decides that a crash is in it: the parts of a Decision."""


@dataclass(frozen=True)
class Link:
    """Two buckets of a fuzzer that are probably the same bug."""

    buckets: tuple[str, str]
    """Their slugs, sorted."""
    why: tuple[str, ...]
    """The reasons in words, at least one."""

    def line(self) -> str:
        """Return it as a line for people, which is fit to print."""
        return one_line(f"{' and '.join(self.buckets)} are probably the same: {'; '.join(self.why)}", 2000)


def links(buckets: Iterable[Compared], shown: Mapping[str, Mapping[str, int]]) -> tuple[Link, ...]:
    """Find the links among the buckets of one fuzzer, sorted by slugs.

    `shown` has for a bucket which buckets its inputs showed when they were run again, itself too, and how often.
    """
    found = []
    for one, other in combinations(sorted(buckets, key=lambda bucket: bucket.slug), 2):
        if why := tuple(filter(None, [_alike(one, other), _showed(one.slug, other.slug, shown)])):
            found.append(Link((one.slug, other.slug), why))
    return tuple(found)


def _alike(one: Compared, other: Compared) -> str:
    """Say what the stacks of the two share; nothing if they are not alike."""
    if (one.kind == "timeout") != (other.kind == "timeout"):
        return ""
    theirs = [[part for part in bucket.frames[:_COMPARED] if not _is_entry(part)] for bucket in (one, other)]
    shared = _in_order(*theirs)
    if theirs[0] == theirs[1] and shared and one.kind != other.kind:
        return f"the same place, {', then '.join(shared)}, in reports of {one.kind} and {other.kind}"
    if len(shared) >= _ALIKE:
        return f"both have {', then '.join(shared)}"
    shorter, longer = sorted(theirs, key=len)
    if one.kind == "timeout" and shorter and shorter == longer[-len(shorter) :]:
        return f"both were stopped in {shared[0]} or in what it calls"
    return ""


def _is_entry(part: str) -> bool:
    return part == ENTRY or part.startswith(f"{ENTRY} ")


def _in_order(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return the longest list of parts that both have in the same order."""
    for number in range(min(len(one), len(other)), 0, -1):
        theirs = set(combinations(other, number))
        if both := next((parts for parts in combinations(one, number) if parts in theirs), None):
            return list(both)
    return []


def _showed(one: str, other: str, shown: Mapping[str, Mapping[str, int]]) -> str:
    """Say what the inputs of the two showed; nothing if that links them not."""
    times = {(a, b): shown.get(a, {}).get(b, 0) for a in (one, other) for b in (one, other)}
    if times[one, other] and times[other, one]:
        return f"their inputs showed each other's stack, {times[one, other]} and {times[other, one]} times"
    for a, b in ((one, other), (other, one)):
        if times[a, a] and times[a, b]:
            return f"the inputs of {a} showed both, {times[a, a]} times its own and {times[a, b]} times the other"
    return ""
