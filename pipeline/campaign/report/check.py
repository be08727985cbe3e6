"""What a new build of a fuzzer has brought and what it has fixed, compared with an older one: its base.

Old crashes are no reason to refuse a build, new ones are. A bucket was there with the base if that is what was last
known of it then: that nobody has tried it with the base itself does not make it new. One that had been fixed by then,
and is there now, is back, which is as bad as new.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.campaign.report.matrix import Cell, FuzzerMatrix, Row, label
from pipeline.errors import UsageError
from pipeline.fuzz.crashes.bucket import Bucket
from pipeline.fuzz.crashes.builds import KnownBuild
from pipeline.text.printable import one_line

CheckedState = Literal["new", "back", "still", "fixed", "not known", "first"]
"""How a bucket stands with the newest build, compared with the base.

not known: it was there before, and it is not known whether it is there now. first: it is there with the only build that
is known, so that there is nothing to compare it with.
"""

FAILING: tuple[CheckedState, ...] = ("new", "back")
"""The states for which a build is refused."""

STATES: tuple[CheckedState, ...] = ("new", "back", "still", "fixed", "not known", "first")
"""All states, in the order in which they are told."""

_SHORTEST = 4  # digits of a digest that mean it
_MOST_TOLD = 5


@dataclass(frozen=True)
class CheckedBucket:
    """How a bucket stands."""

    bucket: Bucket
    state: CheckedState
    now: Cell
    """What is known of it with the newest build."""


@dataclass(frozen=True)
class FuzzerCheck:
    """How the buckets of a fuzzer stand with its newest build, compared with the base."""

    fuzzer: str
    newest: KnownBuild
    base: KnownBuild | None
    """None if there was no build before the newest one: then nothing is new, and nothing fixed."""
    buckets: tuple[CheckedBucket, ...]
    """Those that were there with the base, or are there now."""

    def encode(self) -> dict[str, Any]:
        """The result as values for JSON."""
        return {
            "fuzzer": self.fuzzer,
            "newest": self.newest.digest,
            "base": self.base.digest if self.base else None,
            "buckets": [
                {"slug": one.bucket.slug, "title": one.bucket.title, "state": one.state, "now": one.now.encode()}
                for one in self.buckets
            ],
        }


def passes(checks: Sequence[FuzzerCheck]) -> bool:
    """Whether nothing is there that was not there with the base."""
    return not any(one.state in FAILING for check in checks for one in check.buckets)


def compare(matrices: Sequence[FuzzerMatrix], against: str = "") -> list[FuzzerCheck]:
    """Compare the newest build of each fuzzer with the one that is meant by `against`.

    That is a label, or how a digest begins. Without it, or for a fuzzer that has no such build, the newest build is
    compared with the one before it.

    Raises UsageError if `against` means no build of any of these fuzzers, or several of one.
    """
    places = [_meant(matrix, against) if against else None for matrix in matrices]
    if against and all(place is None for place in places):
        known = [f"{label(at)} ({one.digest})" for matrix in matrices[:1] for at, one in enumerate(matrix.builds)]
        raise UsageError(
            f"--against {one_line(against)} is no build with which a crash was seen or tried",
            hint=f"there is {', '.join(known[-_MOST_TOLD:])}; see all: topcoat crash matrix"
            if known
            else "none is known",
        )
    return [_compared(matrix, place) for matrix, place in zip(matrices, places, strict=True) if matrix.builds]


def _compared(matrix: FuzzerMatrix, base: int | None) -> FuzzerCheck:
    newest = len(matrix.builds) - 1
    base = newest - 1 if base is None else base
    rows = ((row, _state(row, newest, base)) for row in matrix.rows)
    found = tuple(CheckedBucket(row.bucket, state, row.cells[newest]) for row, state in rows if state)
    return FuzzerCheck(matrix.fuzzer, matrix.builds[newest], matrix.builds[base] if base >= 0 else None, found)


def _state(row: Row, newest: int, base: int) -> CheckedState | None:
    """How a bucket stands; None if it was not there with the base, and is not known to be there now."""
    if base < 0:
        return "first" if row.cells[newest].bad else None
    now, before = row.cells[newest], row.known_at(base)
    if now.bad:
        return "new" if before is None else "still" if before.bad else "back"
    if now.good:
        return "fixed" if before and before.bad else None
    last = row.known_at(newest)
    return "not known" if last and last.bad else None


def _meant(matrix: FuzzerMatrix, word: str) -> int | None:
    """The place of the build that is meant."""
    digests = [one.digest for one in matrix.builds]
    if re.fullmatch(r"[Bb][1-9][0-9]{0,3}", word) and int(word[1:]) <= len(digests):
        return int(word[1:]) - 1
    if word in digests:
        return digests.index(word)
    short = word.rpartition(":")[2].rstrip("…")
    found = [at for at, one in enumerate(digests) if len(short) >= _SHORTEST and _bare(one).startswith(short)]
    if len(found) > 1:
        raise UsageError(
            f"--against {one_line(word)} means {len(found)} builds of {matrix.fuzzer}",
            hint=f"give more of its digest, or one of {', '.join(map(label, found))}",
        )
    return found[0] if found else None


def _bare(digest: str) -> str:
    return digest.rpartition(":")[2]
