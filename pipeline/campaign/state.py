"""How far a campaign has come: what its ledger says of each fuzzer, added up."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.ledger import (
    Benched,
    Booted,
    Closed,
    Crashed,
    Ended,
    Entry,
    Harvested,
    Merged,
    Opened,
    Point,
    Proved,
    Result,
    Seeded,
    Started,
    Subject,
)

FAILURES: tuple[Result, ...] = ("failed", "hang", "guest died")
"""The results that count as strikes. What the host or its user did is no fault of the fuzzer."""

_OfFuzzer = Started | Harvested | Ended | Closed | Crashed | Merged | Benched

_RECENT = 3
"""Attempts by which the gain is measured."""


@dataclass
class Slice:
    """One slice: all attempts at it together."""

    attempts: int = 0
    seconds: float = 0.0
    executions: int = 0
    open: Started | None = None
    """The attempt that has not ended."""
    checkpoint: Harvested | None = None
    """How far that one is known to have come."""
    closed: bool = False


@dataclass(frozen=True)
class Gain:
    """What one attempt brought."""

    seconds: float
    features: int
    """By which the corpus covers more than ever before."""


@dataclass
class Standing:
    """How one fuzzer stands."""

    slices: dict[int, Slice] = field(default_factory=dict)
    edges: int = 0
    features: int = 0
    units: int = 0
    unmerged: int = 0
    """Units that came since the last merge."""
    peak_rss: int = 0
    crashes: dict[str, int] = field(default_factory=dict)
    """How often a crash of each group was taken."""
    passed_over: set[str] = field(default_factory=set)
    """Names of the units that hit a limit of this campaign only."""
    results: dict[Result, int] = field(default_factory=dict)
    strikes: int = 0
    """Failures in a row, by the present process."""
    benched: str = ""
    """Why it gets no more slices from the present process."""
    failure: str = ""
    """The reason of the last failure."""
    curve: list[Point] = field(default_factory=list)
    """Over all attempts: seconds that the fuzzer ran in all, executions in all, edges, features, units."""
    gains: list[Gain] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """For which it ran."""
        return sum(one.seconds for one in self.slices.values())

    @property
    def executions(self) -> int:
        """Of all attempts."""
        return sum(one.executions for one in self.slices.values())

    @property
    def attempts(self) -> int:
        """At all slices."""
        return sum(one.attempts for one in self.slices.values())

    def is_open(self, number: int, attempt: int) -> bool:
        """Whether this attempt at this slice is not over, so that nothing above has what it did."""
        opened = self.slices[number].open if number in self.slices else None
        return opened is not None and opened.attempt == attempt

    @property
    def current(self) -> int:
        """The number of the slice that is to be worked at; they are counted from 1."""
        number = 1
        while number in self.slices and self.slices[number].closed:
            number += 1
        return number

    @property
    def recent_gain(self) -> float:
        """Features a second that the last attempts brought."""
        recent = self.gains[-_RECENT:]
        seconds = sum(gain.seconds for gain in recent)
        return sum(gain.features for gain in recent) / seconds if seconds else 0.0


@dataclass
class State:
    """How all stand. To be given every entry of the ledger, in its order."""

    standings: dict[Subject, Standing] = field(default_factory=dict)
    boots: list[Booted] = field(default_factory=list)
    proofs: dict[tuple[str, str], Proved] = field(default_factory=dict)
    """The last one for each host, and what it was looked for with."""
    seeded: dict[str, set[str]] = field(default_factory=dict)
    """By fuzzer, the names of the units that its seeds have brought."""
    opened: Opened | None = None
    """The last process that has worked at it."""
    whole: Opened | None = None
    """The last one that has worked at all of it, not at a piece."""
    builds: dict[str, str] = field(default_factory=dict)
    """The digest of each fuzzer as it was built last."""
    processes: int = 0
    """That have worked at it."""
    merging: float = 0.0
    """Seconds that all merges took."""
    besides: float = 0.0
    """Seconds that attempts took besides running their fuzzers."""

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "State":
        """What these entries say."""
        state = cls()
        for entry in entries:
            state.add(entry)
        return state

    def standing(self, subject: Subject) -> Standing:
        """How one fuzzer stands; one that never ran too."""
        return self.standings.setdefault(subject, Standing())

    def interrupted(self) -> list[Started]:
        """The attempts that no process works at any more, if this is asked before a new one is started."""
        return [one.open for standing in self.standings.values() for one in standing.slices.values() if one.open]

    def add(self, entry: Entry) -> None:
        """Add up one more entry."""
        match entry:
            case Opened():
                self._opened(entry)
            case Booted():
                self.boots.append(entry)
            case Seeded():
                self.seeded.setdefault(entry.fuzzer, set()).update(entry.names)
            case Proved():
                self.proofs[entry.host, entry.build] = entry
            case Started() | Harvested() | Ended() | Closed() | Crashed() | Merged() | Benched():
                self.builds[entry.subject.fuzzer] = entry.subject.build
                _add(self.standing(entry.subject), entry)
                self.merging += entry.seconds if isinstance(entry, Merged) else 0.0
                self.besides += entry.besides if isinstance(entry, Ended) else 0.0

    def proof(self, host: str, key: str) -> tuple[bool | None, str]:
        """Whether the canary was found there, with that; None if it was not looked for. And why not."""
        proved = self.proofs.get((host, key))
        return (proved.proved, proved.reason) if proved else (None, "")

    def crashes(self, subjects: Iterable[Subject]) -> Counter[str]:
        """How often a crash of each group was taken of these, and not of what they were before."""
        counts: Counter[str] = Counter()
        for subject in subjects:
            counts.update(self.standing(subject).crashes)
        return counts

    def _opened(self, entry: Opened) -> None:
        self.opened = entry
        self.whole = self.whole if entry.part else entry
        self.builds.update(entry.builds)
        self.processes += 1
        for standing in self.standings.values():  # whoever starts it again wants to see whether it works now
            standing.strikes, standing.benched = 0, ""


def _add(standing: Standing, entry: _OfFuzzer) -> None:
    match entry:
        case Crashed():
            standing.crashes[entry.group] = standing.crashes.get(entry.group, 0) + 1
            standing.passed_over |= {entry.passed_over} - {""}
        case Merged():
            _add_merged(standing, entry)
        case Benched():
            standing.benched = entry.reason
        case _:
            _add_to_slice(standing.slices.setdefault(entry.slice, Slice()), entry)
            if isinstance(entry, Ended):
                _add_ended(standing, entry)


def _add_to_slice(one: Slice, entry: Started | Harvested | Ended | Closed) -> None:
    match entry:
        case Started():
            one.attempts += 1
            one.open, one.checkpoint = entry, None
        case Harvested():
            one.checkpoint = entry
        case Ended():
            one.seconds += entry.seconds
            one.executions += entry.executions
            one.open = one.checkpoint = None
        case Closed():
            one.closed = True


def _add_ended(standing: Standing, entry: Ended) -> None:
    standing.results[entry.result] = standing.results.get(entry.result, 0) + 1
    if entry.result in FAILURES:
        standing.strikes += 1
        standing.failure = entry.reason
    elif entry.result in ("done", "crash"):
        standing.strikes = 0
    seconds, executions = standing.seconds - entry.seconds, standing.executions - entry.executions
    standing.curve += [
        (seconds + point[0], executions + point[1], point[2], point[3], point[4]) for point in entry.curve
    ]
    gained = max(0, entry.features - standing.features)
    standing.gains = [*standing.gains[1 - _RECENT :], Gain(entry.seconds, gained)]
    standing.edges, standing.features = max(standing.edges, entry.edges), max(standing.features, entry.features)
    standing.units = entry.units
    standing.unmerged += entry.added
    standing.peak_rss = max(standing.peak_rss, entry.peak_rss)


def _add_merged(standing: Standing, entry: Merged) -> None:
    standing.unmerged = 0
    if entry.accepted:
        standing.units = entry.after
