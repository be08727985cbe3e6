"""What another rule would make of the crashes that are kept: which buckets it would join, and which it would split.

It is told before anything is changed, and from the reports alone. A bucket keeps only some of its crashes; where the
others would be is not told.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.rules import Rule, decide
from pipeline.text.printable import one_line

SCHEMA = 1
"""The version of the JSON. A test holds a frozen sample of it."""


class BucketedCrash(NamedTuple):
    """A crash that is kept in a bucket."""

    fuzzer: str
    bucket: str
    """The slug of the bucket in which it is."""
    crash: str
    """What the crash is called in the bucket."""
    report: CrashReport


@dataclass(frozen=True)
class MovedCrashes:
    """What a join takes from a bucket, or what a split moves to one."""

    bucket: str
    crashes: tuple[str, ...]
    """The crashes that move, sorted."""
    title: str = ""
    """A line for people on the new bucket; empty of one that exists."""


@dataclass(frozen=True)
class Change:
    """A new bucket that is joined from several that exist, or one that exists and is split into several new ones."""

    fuzzer: str
    bucket: str
    """The slug of the new bucket of a join, or of the bucket that is split."""
    parts: tuple[MovedCrashes, ...]
    """Those that are joined, or into which it is split, sorted by slug: two or more."""
    title: str = ""
    """A line for people on the new bucket of a join; empty of a split."""


@dataclass(frozen=True)
class Rename:
    """A bucket that gets another slug, and keeps all its crashes to itself."""

    fuzzer: str
    bucket: str
    new: str


@dataclass(frozen=True)
class Regrouping:
    """What a rule would change. All is sorted by fuzzer and slug, in whichever order the crashes came."""

    rule: Rule
    crashes: int
    before: int
    """How many buckets there are, by fuzzer and slug."""
    after: int
    """How many there would be."""
    joins: tuple[Change, ...]
    splits: tuple[Change, ...]
    renames: tuple[Rename, ...]
    notes: Mapping[str, int]
    """Why the rule could not be used for some crashes, and for how many."""

    @property
    def same(self) -> int:
        """How many buckets stay as they are."""
        moved = {(join.fuzzer, part.bucket) for join in self.joins for part in join.parts}
        moved |= {(split.fuzzer, split.bucket) for split in self.splits}
        moved |= {(rename.fuzzer, rename.bucket) for rename in self.renames}
        return self.before - len(moved)

    def encode(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        return {
            "schema": SCHEMA,
            "rule": self.rule.versioned,
            "crashes": self.crashes,
            "before": self.before,
            "after": self.after,
            "same": self.same,
            "joins": [
                {"fuzzer": one.fuzzer, "bucket": one.bucket, "title": one.title, "of": _encoded(one.parts)}
                for one in self.joins
            ],
            "splits": [
                {"fuzzer": one.fuzzer, "bucket": one.bucket, "into": _encoded(one.parts)} for one in self.splits
            ],
            "renames": [{"fuzzer": one.fuzzer, "bucket": one.bucket, "new": one.new} for one in self.renames],
            "notes": dict(self.notes),
        }

    def lines(self, *, whole: bool = True) -> list[str]:
        """Return it as lines for people, which are fit to print; only the numbers, if it need not be the `whole`."""
        lines = [
            f"by the rule {self.rule.versioned}",
            f"crashes   {self.crashes}",
            f"buckets   {self.before} now, {self.after} then, {self.same} of them as they are",
            f"changes   {len(self.joins)} joined, {len(self.splits)} split, {len(self.renames)} renamed",
        ]
        lines += [f"note      {number} of the crashes: {note}" for note, number in self.notes.items()]
        return [one_line(line, 1000) for line in [*lines, *(self._changes() if whole else [])]]

    def _changes(self) -> Iterator[str]:
        for join in self.joins:
            yield f"{join.fuzzer}: joined in {join.bucket}: {join.title}"
            yield from map(_shown, join.parts)
        for split in self.splits:
            yield f"{split.fuzzer}: split: {split.bucket}"
            yield from map(_shown, split.parts)
        for one in self.renames:
            yield f"{one.fuzzer}: renamed: {one.bucket} to {one.new}"


def rebucket(crashes: Iterable[BucketedCrash], rule: Rule) -> Regrouping:
    """Say what becomes of the buckets if this rule decides. Buckets of different fuzzers are never joined."""
    moves: dict[tuple[str, str, str], list[str]] = {}
    titles: dict[tuple[str, str], str] = {}
    notes: Counter[str] = Counter()
    for fuzzer, old, crash, report in crashes:
        decision = decide(report, fuzzer, rule)
        moves.setdefault((fuzzer, old, decision.slug), []).append(crash)
        titles[fuzzer, decision.slug] = min(titles.get((fuzzer, decision.slug), decision.title), decision.title)
        notes.update(filter(None, [decision.note]))
    from_old: dict[tuple[str, str], list[MovedCrashes]] = {}
    to_new: dict[tuple[str, str], list[MovedCrashes]] = {}
    for (fuzzer, old, new), names in sorted(moves.items()):
        to_new.setdefault((fuzzer, new), []).append(MovedCrashes(old, tuple(sorted(names))))
        from_old.setdefault((fuzzer, old), []).append(MovedCrashes(new, tuple(sorted(names)), titles[fuzzer, new]))
    renames = [
        Rename(fuzzer, old, parts[0].bucket)
        for (fuzzer, old), parts in from_old.items()
        if len(parts) == len(to_new[fuzzer, parts[0].bucket]) == 1 and parts[0].bucket != old
    ]
    return Regrouping(
        rule,
        sum(map(len, moves.values())),
        len(from_old),
        len(to_new),
        tuple(Change(*new, tuple(parts), titles[new]) for new, parts in sorted(to_new.items()) if len(parts) > 1),
        tuple(Change(*old, tuple(parts)) for old, parts in from_old.items() if len(parts) > 1),
        tuple(renames),
        dict(sorted(notes.items())),
    )


def _encoded(parts: Iterable[MovedCrashes]) -> list[dict[str, Any]]:
    return [
        {"bucket": part.bucket, "crashes": list(part.crashes)} | ({"title": part.title} if part.title else {})
        for part in parts
    ]


def _shown(part: MovedCrashes) -> str:
    return f"    {part.bucket}  crashes {len(part.crashes)}" + f"  {part.title}" * bool(part.title)
