"""Buckets by builds: what is known of each bucket with each build of its fuzzer, from the oldest build to the newest.

A build is *bad* for a bucket if a campaign has seen the bucket with it, or its inputs have crashed there again. It is
*good* if a verdict says that it fixes the bucket. Of every other build nothing is known: the inputs were not run with
it, or another crash came first, or it may be chance that this one did not come.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pipeline.fuzz.crashes import verdicts
from pipeline.fuzz.crashes.bucket import Bucket
from pipeline.fuzz.crashes.builds import KnownBuild, KnownBuilds
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.crashes.verdicts import FIXED, CrashVerdict
from pipeline.text.printable import one_line


@dataclass(frozen=True)
class Cell:
    """What is known of a bucket with one build."""

    build: str
    """The digest of the build."""
    seen: int = 0
    """How often campaigns have seen the bucket with it."""
    verdict: CrashVerdict | None = None
    """What became of the inputs of the bucket with it; None if they were not run."""
    word: str = ""
    """What the verdict says, with what is known of other builds: see pipeline.fuzz.crashes.verdicts.word."""

    @property
    def bad(self) -> bool:
        """Whether the bucket is there with this build."""
        return bool(self.seen or (self.verdict and self.verdict.same))

    @property
    def good(self) -> bool:
        """Whether the build is proved to be without the bucket."""
        return self.word == FIXED and not self.bad

    @property
    def masked_by(self) -> str:
        """The bucket that always comes first; empty if none does."""
        return next(iter(self.verdict.others), "") if self.verdict and self.verdict.outcome == "other bucket" else ""

    @property
    def text(self) -> str:
        """All of it in a word or two, such as `still 10/10`; `-` if nothing is known."""
        seen = "seen" if self.seen and not (self.verdict and self.verdict.same) else ""
        return ", ".join(filter(None, [seen, self._told])) or "-"

    @property
    def _told(self) -> str:
        if self.verdict is None:
            return ""
        rate = f"{self.verdict.same}/{self.verdict.tries}"
        told = {"same bucket": f"still {rate}", "other bucket": "masked", "none": rate}
        return FIXED if self.word == FIXED else told.get(self.verdict.outcome, "not run")

    def encode(self) -> dict[str, Any]:
        """The cell as values for JSON."""
        verdict = self.verdict
        return {
            "build": self.build,
            "text": self.text,
            "seen": self.seen,
            "word": self.word or None,
            "same": verdict.same if verdict else None,
            "tries": verdict.tries if verdict else None,
            "masked_by": self.masked_by or None,
        }


@dataclass(frozen=True)
class Row:
    """A bucket with all builds of its fuzzer."""

    bucket: Bucket
    cells: tuple[Cell, ...]
    """One for each build of the fuzzer, the oldest first."""

    @property
    def first_bad(self) -> int | None:
        """The place of the first bad build in `cells`; None if there is none."""
        return next((at for at, cell in enumerate(self.cells) if cell.bad), None)

    @property
    def first_good(self) -> int | None:
        """The place of the first good build after the last bad one; None if there is none, so that it is not fixed."""
        last_bad = max((at for at, cell in enumerate(self.cells) if cell.bad), default=-1)
        return next((at for at, cell in enumerate(self.cells) if at > last_bad >= 0 and cell.good), None)

    def known_at(self, at: int) -> Cell | None:
        """The last cell up to this place that is bad or good; None if there is none."""
        return next((cell for cell in reversed(self.cells[: at + 1]) if cell.bad or cell.good), None)


@dataclass(frozen=True)
class FuzzerMatrix:
    """The buckets of one fuzzer with all its builds."""

    fuzzer: str
    builds: tuple[KnownBuild, ...]
    """The oldest first."""
    rows: tuple[Row, ...]
    """In the order in which the buckets were first seen."""

    def encode(self) -> dict[str, Any]:
        """The matrix as values for JSON."""
        return {
            "fuzzer": self.fuzzer,
            "builds": [
                {"label": label(at), "digest": one.digest, "first_seen": one.first_seen}
                for at, one in enumerate(self.builds)
            ],
            "buckets": [
                {
                    "slug": row.bucket.slug,
                    "title": row.bucket.title,
                    "cells": [cell.encode() for cell in row.cells],
                    "first_bad": self._digest(row.first_bad),
                    "first_good": self._digest(row.first_good),
                }
                for row in self.rows
            ],
        }

    def _digest(self, at: int | None) -> str | None:
        return None if at is None else self.builds[at].digest


def label(at: int) -> str:
    """The short name of the build at this place: B1 is the oldest."""
    return f"B{at + 1}"


def read(store: CrashStore, patterns: Sequence[str] = ()) -> list[FuzzerMatrix]:
    """Read the matrices of all buckets that match a pattern, or of all, by fuzzer.

    Raises StoreError, and UsageError for a malformed pattern.
    """
    found = sorted(store.buckets(patterns), key=lambda bucket: bucket.fuzzer)  # stable: each fuzzer's stay in order
    return [of_fuzzer(store, fuzzer, buckets) for fuzzer, buckets in groupby(found, lambda bucket: bucket.fuzzer)]


def of_fuzzer(store: CrashStore, fuzzer: str, buckets: Iterable[Bucket]) -> FuzzerMatrix:
    """Read the matrix of these buckets of a fuzzer. Raises StoreError."""
    known = list(buckets)
    builds = _with_lost(store.builds(fuzzer), known)
    order = [one.digest for one in builds]
    rows = (row(one, order, verdicts.read_all(store.directory(fuzzer, one.slug), order)) for one in known)
    return FuzzerMatrix(fuzzer, builds, tuple(rows))


def row(bucket: Bucket, builds: Sequence[str], told: Sequence[CrashVerdict]) -> Row:
    """The row of a bucket: its cells for these builds, by the verdicts, which are in the order of the builds."""
    seen = {build: one.count for build, one in bucket.builds.items()}
    words, by_build = verdicts.words(told, seen), {one.build: one for one in told}
    return Row(
        bucket,
        tuple(
            Cell(build, seen.get(build, 0), by_build.get(build), one_line(words.get(build, ""), 200))
            for build in builds
        ),
    )


def _with_lost(known: KnownBuilds, buckets: Sequence[Bucket]) -> tuple[KnownBuild, ...]:
    """The builds of a fuzzer, with those that only buckets name, as builds.json was lost or has only the last ones."""
    first_seen: dict[str, str] = {}
    for bucket in buckets:
        for build, seen in bucket.builds.items():
            if known.find(build) is None:
                first_seen[build] = min(first_seen.get(build, seen.first_seen), seen.first_seen)
    lost = sorted((seen, build) for build, seen in first_seen.items())
    return (*(KnownBuild(build, seen) for seen, build in lost), *known.builds)
