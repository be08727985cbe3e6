"""What comes into a corpus: each piece of content is judged, and what is new is written."""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.corpus.files import content_of, is_name, name_of, write_new
from pipeline.corpus.manifest import Unit
from pipeline.deadline import utc_now
from pipeline.publish import sync_one
from pipeline.settings import Campaign
from pipeline.text import one_line

Verdict = Literal["new", "known", "quarantined", "too_large", "over_cap", "torn", "refused"]

_WRITERS = 8  # each waits for the disk; 1000 units: 1.8 s with one, 0.4 s with 4, 8 or 16
_AHEAD = 32  # units in memory, at most, that wait to be written


@dataclass(frozen=True)
class Limits:
    """What a corpus may come to."""

    unit_size: int = 1 << 20
    """Bytes; what is larger is no unit."""
    bytes: int = 1 << 30
    """Content of all units."""
    units: int = 50_000

    @classmethod
    def of(cls, chosen: Campaign) -> "Limits":
        """Those of `[campaign]`."""
        return cls(chosen.unit_size, chosen.corpus_size, chosen.corpus_units)


@dataclass(frozen=True)
class Added:
    """What has become of each piece of content, counted."""

    new: int = 0
    known: int = 0
    quarantined: int = 0
    too_large: int = 0
    over_cap: int = 0
    """They would have been new, but the corpus is full."""
    torn: int = 0
    """Their names are a SHA-1, but not that of their content: they were still being written."""
    refused: int = 0
    """No regular files, or such that cannot be read, or are gone."""

    names: frozenset[str] = field(default=frozenset(), compare=False)
    """Of what is in the corpus now: of what is new, and of what was known."""
    examples: Mapping[str, str] = field(default_factory=dict, compare=False)
    """A file of each sort, by the sort's name."""

    @property
    def left_out(self) -> int:
        """How many are not in the corpus."""
        return sum(getattr(self, sort) for sort in LEFT_OUT)

    @property
    def reasons(self) -> list["Reason"]:
        """Why any are not in the corpus."""
        return [
            Reason(count, what, self.examples.get(sort, ""), hint)
            for sort, (what, hint) in LEFT_OUT.items()
            if (count := getattr(self, sort))
        ]

    def __add__(self, other: "Added") -> "Added":
        """What has become of both."""
        counts = {sort: getattr(self, sort) + getattr(other, sort) for sort in ("new", "known", *LEFT_OUT)}
        return Added(**counts, names=self.names | other.names, examples={**other.examples, **self.examples})


@dataclass(frozen=True)
class Reason:
    """Why some content is not in a corpus."""

    count: int
    what: str
    """What it is, as in `3 larger than [campaign] unit_size`."""
    example: str
    """The path of one of them, fit to print; empty if they are no files."""
    hint: str

    def __str__(self) -> str:
        return f"{self.count:,} {self.what}" + (f", such as {self.example}" if self.example else "")


LEFT_OUT = {
    "quarantined": ("in quarantine", "they ended the fuzzer before: take them out of the seeds"),
    "too_large": ("larger than [campaign] unit_size", "raise that, or make them smaller"),
    "over_cap": ("beyond [campaign] corpus_size or corpus_units", "raise these, or leave some out"),
    "torn": (
        "not what their names say",
        "a name of 40 hex digits is the SHA-1 of a unit: get them anew, or rename them",
    ),
    "refused": ("no files that can be read", "put regular files there, or links to some"),
}
"""Of each sort of content that stays outside: what it is, and what to do about it."""


class Intake:
    """One call's worth of units for the directory `directory`.

    `units` is what the corpus consists of so far, and grows by what is taken; `stored` has the units whose files are
    in the directory already. Whoever has one holds the lock of the corpus.
    """

    def __init__(
        self,
        directory: Path,
        limits: Limits,
        *,
        units: Mapping[str, Unit],
        stored: Mapping[str, Unit],
        quarantined: AbstractSet[str],
    ) -> None:
        self.units = dict(units)
        self._directory = directory
        self._limits = limits
        self._stored = stored
        self._quarantined = quarantined
        self._bytes = sum(unit.bytes for unit in units.values())

    def take(self, contents: Iterable[Path | bytes], source: str, without: Collection[str] = ()) -> Added:
        """Take what is new, but for units with the names `without`. All files of it are on the disk in the end.

        Raises OSError.
        """
        tally, waiting = _Tally(without), deque[Future[None]]()
        with ThreadPoolExecutor(_WRITERS) as pool:
            for unit, content in self._new(contents, source, tally):
                if unit.name not in self._stored:
                    waiting.append(pool.submit(write_new, self._directory / unit.name, content))
                if len(waiting) >= _AHEAD:
                    waiting.popleft().result()
            for write in waiting:
                write.result()
        if tally.counts["new"]:
            sync_one(self._directory)
        return tally.added

    def judge(self, contents: Iterable[Path | bytes], without: Collection[str] = ()) -> Added:
        """What `take` would say, which is not to be called any more: nothing was written. Raises OSError."""
        tally = _Tally(without)
        for _ in self._new(contents, "", tally):
            pass
        return tally.added

    def _new(self, contents: Iterable[Path | bytes], source: str, tally: "_Tally") -> Iterator[tuple[Unit, bytes]]:
        """What is new, each once, with its content; it is one of the units then."""
        added, source = utc_now(), one_line(source)
        for item in contents:
            verdict, name, content = self._judge(item)
            if tally.count(item, verdict, name) and verdict == "new":
                unit = Unit(name, len(content), added, source)
                self.units[name] = self._stored.get(name, unit)
                self._bytes += unit.bytes
                yield unit, content

    def _judge(self, item: Path | bytes) -> tuple[Verdict, str, bytes]:
        """What to do with it, the name that its content has, and its content."""
        content = item if isinstance(item, bytes) else content_of(item, self._limits.unit_size + 1)
        if content is None:
            return "refused", "", b""
        if len(content) > self._limits.unit_size:
            return "too_large", "", b""
        name = name_of(content)
        if isinstance(item, Path) and is_name(item.name) and item.name != name:
            return "torn", name, content
        return self._place(name, len(content)), name, content

    def _place(self, name: str, size: int) -> Verdict:
        if name in self.units:
            return "known"
        if name in self._quarantined:
            return "quarantined"
        if len(self.units) >= self._limits.units or self._bytes + size > self._limits.bytes:
            return "over_cap"
        return "new"


class _Tally:
    """Counts what becomes of content."""

    def __init__(self, without: Collection[str]) -> None:
        self.counts: Counter[str] = Counter()
        self._without = without
        self._names: set[str] = set()
        self._examples: dict[str, str] = {}

    def count(self, item: Path | bytes, verdict: Verdict, name: str) -> bool:
        """Returns whether it counts."""
        if name in self._without:
            return False
        self.counts[verdict] += 1
        if verdict in ("new", "known"):
            self._names.add(name)
        elif isinstance(item, Path):
            self._examples.setdefault(verdict, one_line(str(item)))
        return True

    @property
    def added(self) -> Added:
        return Added(**self.counts, names=frozenset(self._names), examples=self._examples)
