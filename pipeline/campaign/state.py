"""How far a campaign has come: what its ledger says of each fuzzer, added up."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from pipeline.campaign.ledger import (
    Benched,
    Booted,
    Closed,
    Crashed,
    Ended,
    Harvested,
    LedgerEntry,
    Merged,
    Opened,
    Point,
    Proved,
    Result,
    Seeded,
    Started,
    Subject,
)
from pipeline.fuzz.crashes import crash as stored

FAILURES: tuple[Result, ...] = ("failed", "hang", "guest died")
"""The results that count as strikes. What the host or its user did is no fault of the fuzzer."""

_OfFuzzer = Started | Harvested | Ended | Closed | Crashed | Merged | Benched

_RECENT = 3
"""The number of last slices by which the gain is measured."""

MOST_POINTS = 2000
"""The most points of a fuzzer's curve; of more, every second one is left out, but for the latest."""


@dataclass
class Slice:
    """One slice: all attempts at it, added up."""

    attempts: int = 0
    seconds: float = 0.0
    executions: int = 0
    open: Started | None = None
    """The attempt that has begun and not ended, if there is one."""
    checkpoint: Harvested | None = None
    """How far the open attempt is known to have come; its `added` is that of all harvests of the attempt."""
    closed: bool = False


@dataclass(frozen=True)
class Gain:
    """What one slice brought so far."""

    slice: int
    seconds: float
    features: int
    """By how many features it covered more than any attempt before."""


@dataclass
class FuzzerState:
    """How one fuzzer stands."""

    slices: dict[int, Slice] = field(default_factory=dict)
    edges: int = 0
    features: int = 0
    units: int = 0
    unmerged: int = 0
    """The number of units that came since the last merge."""
    peak_rss: int = 0
    crashes: dict[str, int] = field(default_factory=dict)
    """The number of crashes in each bucket, by its slug."""
    told: dict[str, stored.State] = field(default_factory=dict)
    """What the crashes have told of each bucket, by its slug: new or back, if any of them has."""
    passed_over: set[str] = field(default_factory=set)
    """Names of units that the fuzzer is not given, because they hit a limit of this campaign only."""
    results: dict[Result, int] = field(default_factory=dict)
    strikes: int = 0
    """The number of failures in a row since the present process began."""
    benched: str = ""
    """Why it gets no more slices from the present process; empty if it does."""
    failure: str = ""
    """The reason of the last failure."""
    curve: list[Point] = field(default_factory=list)
    """The points of all attempts, joined: seconds and executions count on from attempt to attempt. See MOST_POINTS."""
    gains: list[Gain] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The seconds for which it ran in all attempts that have ended."""
        return sum(one.seconds for one in self.slices.values())

    @property
    def executions(self) -> int:
        """The executions of all attempts that have ended."""
        return sum(one.executions for one in self.slices.values())

    @property
    def attempts(self) -> int:
        """The number of attempts at all slices."""
        return sum(one.attempts for one in self.slices.values())

    def is_open(self, number: int, attempt: int) -> bool:
        """Whether this attempt at this slice has not ended, so that the sums here do not include it."""
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
        """The features a second that the last slices gained."""
        recent = self.gains[-_RECENT:]
        seconds = sum(gain.seconds for gain in recent)
        return sum(gain.features for gain in recent) / seconds if seconds else 0.0


@dataclass
class State:
    """How a whole campaign stands. It must be given every entry of the ledger, in order."""

    fuzzer_states: dict[Subject, FuzzerState] = field(default_factory=dict)
    boots: list[Booted] = field(default_factory=list)
    proofs: dict[tuple[str, str], Proved] = field(default_factory=dict)
    """The last search for the canary by host and key: see `Proved`."""
    seeded: dict[str, set[str]] = field(default_factory=dict)
    """The names of the units that a fuzzer's seeds have brought, by fuzzer."""
    opened: Opened | None = None
    """The last process that has worked at the campaign, or at a piece of it."""
    whole: Opened | None = None
    """The last process that has worked at the whole campaign."""
    builds: dict[str, str] = field(default_factory=dict)
    """The digest of each fuzzer as it was last built, by full name."""
    processes: int = 0
    """The number of processes that have worked at the campaign."""
    merging: float = 0.0
    """Seconds that all merges took."""
    besides: float = 0.0
    """Seconds that attempts took besides running their fuzzers."""

    @classmethod
    def of(cls, entries: Iterable[LedgerEntry]) -> "State":
        """The state after these entries."""
        state = cls()
        for entry in entries:
            state.add(entry)
        return state

    def fuzzer_state(self, subject: Subject) -> FuzzerState:
        """How one fuzzer stands; for one that never ran, an empty state."""
        return self.fuzzer_states.setdefault(subject, FuzzerState())

    def interrupted(self) -> list[Started]:
        """The attempts that have begun and not ended. Before a new one begins, no process works at them any more."""
        return [
            one.open for fuzzer_state in self.fuzzer_states.values() for one in fuzzer_state.slices.values() if one.open
        ]

    def add(self, entry: LedgerEntry) -> None:
        """Add one more entry."""
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
                _add(self.fuzzer_state(entry.subject), entry)
                self.merging += entry.seconds if isinstance(entry, Merged) else 0.0
                self.besides += entry.besides if isinstance(entry, Ended) else 0.0

    def proof(self, host: str, key: str) -> tuple[bool | None, str]:
        """Whether the canary was found on this host under this key, and the reason if not; None if never looked for."""
        proved = self.proofs.get((host, key))
        return (proved.proved, proved.reason) if proved else (None, "")

    def _opened(self, entry: Opened) -> None:
        self.opened = entry
        self.whole = self.whole if entry.part else entry
        self.builds.update(entry.builds)
        self.processes += 1
        for fuzzer_state in self.fuzzer_states.values():  # whoever starts it again wants to see whether it works now
            fuzzer_state.strikes, fuzzer_state.benched = 0, ""


def _add(fuzzer_state: FuzzerState, entry: _OfFuzzer) -> None:
    match entry:
        case Crashed():
            fuzzer_state.crashes[entry.group] = fuzzer_state.crashes.get(entry.group, 0) + 1
            if entry.new or entry.back or entry.group not in fuzzer_state.told:
                fuzzer_state.told[entry.group] = "new" if entry.new else "back" if entry.back else "known"
            fuzzer_state.passed_over |= {entry.passed_over} - {""}
        case Merged():
            _add_merged(fuzzer_state, entry)
        case Benched():
            fuzzer_state.benched = entry.reason
        case _:
            _add_to_slice(fuzzer_state.slices.setdefault(entry.slice, Slice()), entry)
            if isinstance(entry, Ended):
                _add_ended(fuzzer_state, entry)


def _add_to_slice(one: Slice, entry: Started | Harvested | Ended | Closed) -> None:
    match entry:
        case Started():
            one.attempts += 1
            one.open, one.checkpoint = entry, None
        case Harvested():
            before = one.checkpoint.added if one.checkpoint else 0
            one.checkpoint = msgspec.structs.replace(entry, added=before + entry.added)
        case Ended():
            one.seconds += entry.seconds
            one.executions += entry.executions
            one.open = one.checkpoint = None
        case Closed():
            one.closed = True


def _add_ended(fuzzer_state: FuzzerState, entry: Ended) -> None:
    fuzzer_state.results[entry.result] = fuzzer_state.results.get(entry.result, 0) + 1
    if entry.result in FAILURES:
        fuzzer_state.strikes += 1
        fuzzer_state.failure = entry.reason
    elif entry.result in ("done", "crash"):
        fuzzer_state.strikes = 0
    seconds, executions = fuzzer_state.seconds - entry.seconds, fuzzer_state.executions - entry.executions
    fuzzer_state.curve += [
        (seconds + point[0], executions + point[1], point[2], point[3], point[4]) for point in entry.curve
    ]
    if len(fuzzer_state.curve) > MOST_POINTS:
        del fuzzer_state.curve[-2::-2]
    _gain(fuzzer_state, entry)
    fuzzer_state.edges, fuzzer_state.features = (
        max(fuzzer_state.edges, entry.edges),
        max(fuzzer_state.features, entry.features),
    )
    fuzzer_state.units = entry.units
    fuzzer_state.unmerged += entry.added
    fuzzer_state.peak_rss = max(fuzzer_state.peak_rss, entry.peak_rss)


def _gain(fuzzer_state: FuzzerState, entry: Ended) -> None:
    """Add what an attempt brought to what its slice did: a fuzzer that crashes each second has many attempts in one."""
    seconds, features = entry.seconds, max(0, entry.features - fuzzer_state.features)
    if fuzzer_state.gains and (last := fuzzer_state.gains[-1]).slice == entry.slice:
        fuzzer_state.gains[-1] = Gain(entry.slice, last.seconds + seconds, last.features + features)
    else:
        fuzzer_state.gains = [*fuzzer_state.gains[1 - _RECENT :], Gain(entry.slice, seconds, features)]


def _add_merged(fuzzer_state: FuzzerState, entry: Merged) -> None:
    fuzzer_state.unmerged = 0
    if entry.accepted:
        fuzzer_state.units = entry.after
