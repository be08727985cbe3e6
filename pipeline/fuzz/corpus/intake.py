"""The way of units into a corpus: each piece of content is judged, and what is new is written."""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.fuzz.corpus.files import content_of, is_name, name_of, write_new
from pipeline.fuzz.corpus.manifest import Unit
from pipeline.host.deadline import utc_now
from pipeline.settings import KEEP_REPLACED, CampaignSettings
from pipeline.store.publish import sync_one
from pipeline.text.printable import one_line

Verdict = Literal["new", "known", "quarantined", "too_large", "over_cap", "torn", "refused"]

_WRITERS = 8  # threads that wait for the disk; 1000 units take 1.8 s with one, 0.4 s with 4, 8 or 16
_AHEAD = 32  # units in memory that wait to be written, at most


@dataclass(frozen=True)
class CorpusLimits:
    """The limits of a corpus."""

    unit_size: int = 1 << 20
    """The most bytes of one unit; larger content is left out."""
    bytes: int = 1 << 30
    """The most bytes of content of all units together."""
    units: int = 50_000
    """The most units."""
    kept: float = KEEP_REPLACED
    """Seconds for which units that a merge took out are kept."""

    @classmethod
    def of(cls, chosen: CampaignSettings) -> "CorpusLimits":
        """Return the limits that `[campaign]` in luigi.cfg sets."""
        return cls(chosen.unit_size, chosen.corpus_size, chosen.corpus_units, chosen.keep_replaced)


@dataclass(frozen=True)
class Added:
    """How many pieces of content became what, when they were added to a corpus."""

    new: int = 0
    """They are in the corpus now, and were not before."""
    known: int = 0
    """They were in the corpus already."""
    quarantined: int = 0
    """They are in quarantine."""
    too_large: int = 0
    """They are larger than CorpusLimits.unit_size."""
    over_cap: int = 0
    """They would have been new, but the corpus is full."""
    torn: int = 0
    """The name of the file is a SHA-1, but not that of its content: it was still being written."""
    refused: int = 0
    """They are no regular files, cannot be read, or are gone."""

    names: frozenset[str] = field(default=frozenset(), compare=False)
    """The names of the units that are in the corpus now: those that are new, and those that were known."""
    examples: Mapping[str, str] = field(default_factory=dict, compare=False)
    """For each sort of content that was left out, by the name of its field, the path of one file, fit to print."""

    @property
    def left_out(self) -> int:
        """How many pieces of content are not in the corpus."""
        return sum(getattr(self, sort) for sort in LEFT_OUT)

    @property
    def reasons(self) -> list["LeftOut"]:
        """Why pieces of content are not in the corpus: an entry for each sort that there is."""
        return [
            LeftOut(count, what, self.examples.get(sort, ""), hint)
            for sort, (what, hint) in LEFT_OUT.items()
            if (count := getattr(self, sort))
        ]

    def __add__(self, other: "Added") -> "Added":
        """Add up what has become of both."""
        counts = {sort: getattr(self, sort) + getattr(other, sort) for sort in ("new", "known", *LEFT_OUT)}
        return Added(**counts, names=self.names | other.names, examples={**other.examples, **self.examples})


@dataclass(frozen=True)
class LeftOut:
    """Why some content was left out of a corpus: all content of one sort."""

    count: int
    what: str
    """What sort of content it is, such as `larger than [campaign] unit_size`; it is printed behind the count."""
    example: str
    """The path of one file, fit to print; empty if the content did not come from files."""
    hint: str
    """What to do about it."""

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
"""For each sort of content that is left out, by the name of its field in Added: what it is, and what to do about it."""


class Intake:
    """Judges content for a corpus, and writes new units into its directory. It is used for one call of `add`.

    `units` are those of the corpus so far; the attribute of that name grows by what is taken. `stored` are the units
    whose files are in the directory already. Whoever calls `take` holds the lock of the corpus.
    """

    def __init__(
        self,
        directory: Path,
        limits: CorpusLimits,
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
        """Take new content as units, and write their files, all of which are on the disk in the end. Raises OSError.

        Units with the names `without` are passed over, and not counted.
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
        """Return what `take` would return, and write nothing. Raises OSError.

        `units` grows all the same, so `take` must not be called afterwards.
        """
        tally = _Tally(without)
        for _ in self._new(contents, "", tally):
            pass
        return tally.added

    def _new(self, contents: Iterable[Path | bytes], source: str, tally: "_Tally") -> Iterator[tuple[Unit, bytes]]:
        """Yield what is new, each unit once, with its content; `units` has it then."""
        added, source = utc_now(), one_line(source)
        for item in contents:
            verdict, name, content = self._judge(item)
            if tally.count(item, verdict, name) and verdict == "new":
                unit = Unit(name, len(content), added, source)
                self.units[name] = self._stored.get(name, unit)
                self._bytes += unit.bytes
                yield unit, content

    def _judge(self, item: Path | bytes) -> tuple[Verdict, str, bytes]:
        """Return what becomes of a piece of content, the name of the unit, and the content."""
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
    """Counts what becomes of content, except that of units with the names `without`."""

    def __init__(self, without: Collection[str]) -> None:
        self.counts: Counter[str] = Counter()
        self._without = without
        self._names: set[str] = set()
        self._examples: dict[str, str] = {}

    def count(self, item: Path | bytes, verdict: Verdict, name: str) -> bool:
        """Count a piece of content, unless it is passed over. Returns whether it was counted."""
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
