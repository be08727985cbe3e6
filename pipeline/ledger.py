"""The ledger of a campaign: all that was tried, in the order in which it happened. Entries are added, never changed.

`ledger.jsonl` has one entry a line, JSON with sorted keys::

    {"attempt": 1, "at": "2026-11-25T14:00:00Z", "boot_id": "6ed5…", …, "kind": "started", "schema": 1, "slice": 3}

Each is on the disk before the next thing is done. A process that is killed leaves at most a last line that is cut off,
which counts as not written and is removed when the ledger is opened again.
"""

import errno
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.deadline import utc_now
from pipeline.errors import StoreError
from pipeline.faults import host_faults
from pipeline.publish import locked, make_private, sync_one

SCHEMA = 1
"""Tests hold a frozen sample."""

Result = Literal["done", "crash", "failed", "hang", "guest died", "host", "stopped", "interrupted"]
"""How an attempt ended.

done: its time or its runs were over. crash: the fuzzer reported something. failed: it ended by itself and reported
nothing. hang: it did not end in time and was killed. guest died: nothing answers any more. host: a program or a disk
of the host failed. stopped: somebody asked for it. interrupted: the process that ran it is gone.
"""

Point = tuple[float, int, int, int, int]
"""Of a curve: seconds since the attempt began, executions, edges, features, units."""


@dataclass(frozen=True)
class Subject:
    """What is fuzzed. Slices of another build, or with other options, are those of another subject."""

    fuzzer: str
    build: str
    """Digest of the fuzzer as it was built."""
    plan: str
    """Digest of its options, dictionary and seeds."""


@dataclass(frozen=True)
class Entry:
    """Something that happened."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Opened(Entry):
    """A process began, or went on with, the campaign."""

    kind: ClassVar[str] = "opened"
    host: str
    pid: int
    definition: Mapping[str, Any]
    """What is to be done, as JSON: pipeline.campaign.definition."""
    started: str = ""
    """When, UTC. This and all below is empty in ledgers of before it was written."""
    process: Mapping[str, Any] = field(default_factory=dict)
    """pipeline.process.Process, as JSON: a pid alone is reused."""
    workers: int = 1
    """Guests at the same time, at most."""
    builds: Mapping[str, str] = field(default_factory=dict)
    """Digests of the fuzzers as they were built, by full names."""
    proof: str = ""
    """What the canary must have been found for: see Proved."""
    part: bool = False
    """Whether it works at one piece only, whose definition is not that of the campaign."""


@dataclass(frozen=True)
class Booted(Entry):
    """A guest was booted for the campaign; `failure` names the cause if it did not become ready."""

    kind: ClassVar[str] = "booted"
    instance: str
    boot_id: str
    seconds: float
    why: str
    """Why it was booted."""
    failure: str = ""


@dataclass(frozen=True)
class Seeded(Entry):
    """Seeds were imported. Their contents are not imported again: a merge may have dropped some of them since."""

    kind: ClassVar[str] = "seeded"
    fuzzer: str
    names: tuple[str, ...]
    """Of the units that they are, sorted; but for those of which an earlier entry tells, if the corpus is not gone."""
    new: int
    """How many of them the corpus did not have."""


@dataclass(frozen=True)
class Started(Entry):
    """An attempt at a slice began: one run of the fuzzer."""

    kind: ClassVar[str] = "started"
    subject: Subject
    slice: int
    attempt: int
    instance: str
    boot_id: str
    seed: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Harvested(Entry):
    """An attempt goes on; until here its time and its units are safe, whatever happens."""

    kind: ClassVar[str] = "harvested"
    subject: Subject
    slice: int
    attempt: int
    seconds: float
    executions: int
    edges: int
    features: int
    added: int
    """Units that the corpus did not have."""


@dataclass(frozen=True)
class Crashed(Entry):
    """A crash was taken."""

    kind: ClassVar[str] = "crashed"
    subject: Subject
    slice: int
    attempt: int
    group: str
    new: bool
    """Whether its group is."""
    sha256: str
    """Of the input."""
    passed_over: str = ""
    """The name of the unit that it is, if it has only hit a limit that this campaign has set lower than others have.

    The corpus keeps it, and this campaign goes without. Empty if it is in quarantine, and in old ledgers.
    """


@dataclass(frozen=True)
class Ended(Entry):
    """An attempt is over."""

    kind: ClassVar[str] = "ended"
    subject: Subject
    slice: int
    attempt: int
    result: Result
    reason: str
    seconds: float
    """For which the fuzzer ran."""
    executions: int
    edges: int
    features: int
    units: int
    """Of the corpus, afterwards."""
    added: int
    peak_rss: int
    """MiB"""
    curve: tuple[Point, ...] = ()
    besides: float = 0.0
    """Seconds that the attempt took besides, to fill the guest and to take in what was found."""


@dataclass(frozen=True)
class Closed(Entry):
    """A slice is over: no further attempt will be made at it."""

    kind: ClassVar[str] = "closed"
    subject: Subject
    slice: int
    reason: str


@dataclass(frozen=True)
class Merged(Entry):
    """The corpus of a fuzzer was merged; whether the result took its place."""

    kind: ClassVar[str] = "merged"
    subject: Subject
    before: int
    """Units."""
    after: int
    features_before: int
    features_after: int
    accepted: bool
    reason: str
    seconds: float


@dataclass(frozen=True)
class Benched(Entry):
    """A fuzzer failed too often, and gets no more slices."""

    kind: ClassVar[str] = "benched"
    subject: Subject
    reason: str


@dataclass(frozen=True)
class Proved(Entry):
    """The canary was looked for on a host: `proved`, or `reason` names the link that is broken."""

    kind: ClassVar[str] = "proved"
    host: str
    build: str
    """Digest of what it was looked for with, see pipeline.campaign.proofs; in old ledgers of the build alone."""
    proved: bool
    reason: str
    seconds: float


KINDS: dict[str, type[Entry]] = {
    one.kind: one
    for one in (Opened, Booted, Seeded, Started, Harvested, Crashed, Ended, Closed, Merged, Benched, Proved)
}
"""The classes by their kinds."""


def encode(entry: Entry, at: str) -> bytes:
    """The line of an entry."""
    data = {one.name: getattr(entry, one.name) for one in fields(entry)}
    if isinstance(subject := data.get("subject"), Subject):
        data["subject"] = vars(subject)
    whole = data | {"schema": SCHEMA, "kind": entry.kind, "at": at}
    return json.dumps(whole, sort_keys=True, allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Entry:
    """The entry of a line. Raises ValueError."""
    try:
        data = json.loads(line)
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}, not {SCHEMA}")
        kind = KINDS[data["kind"]]
        values = {key: value for key, value in data.items() if key not in ("schema", "kind", "at")}
        if "subject" in values:
            values["subject"] = Subject(**values["subject"])
        for name in {"arguments", "names"} & values.keys():
            values[name] = tuple(map(str, values[name]))
        if "curve" in values:
            values["curve"] = tuple(tuple(point) for point in values["curve"])
        return kind(**values)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no entry: {error}") from error


class Ledger:
    """An open ledger, for one process; its threads may all write. Made by `opened`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """End it: a thread that comes too late must not write to whatever has the descriptor's number then."""
        with self._lock:
            self._closed = True
            os.close(self._descriptor)

    def append(self, entry: Entry) -> None:
        """Add an entry; on return it is on the disk. Raises StoreError, and nothing of the entry stays then."""
        line = encode(entry, utc_now())
        with self._lock, host_faults("writing the ledger"):
            if self._closed:
                raise OSError(errno.EBADF, "it is closed", str(self.path))
            length = os.fstat(self._descriptor).st_size
            try:
                _write(self._descriptor, line)
                os.fdatasync(self._descriptor)
            except BaseException:
                os.ftruncate(self._descriptor, length)
                raise


def _write(descriptor: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def opened(path: Path, limit: float = 1.0) -> Iterator[Ledger]:
    """The ledger at `path`, made if needed, for this process alone.

    Another one gets InstanceBusy after `limit` seconds. Raises StoreError if it cannot be written.
    """
    with locked(path, limit):
        book = Ledger(path, _open(path))
        try:
            yield book
        finally:
            book.close()


def _open(path: Path) -> int:
    with host_faults("opening the ledger"):
        make_private(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(descriptor, _whole(path))
            os.fsync(descriptor)
            sync_one(path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _whole(path: Path) -> int:
    """The length of all whole lines."""
    return path.read_bytes().rfind(b"\n") + 1


def read(path: Path) -> Iterator[Entry]:
    """The entries at `path`, of a ledger that others may be writing: all whole lines. None if there is no ledger.

    Raises StoreError for a line that is no entry.
    """
    with host_faults("reading the ledger"):
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            return
        with stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    return
                yield _entry(line, path, number)


def _entry(line: bytes, path: Path, number: int) -> Entry:
    try:
        return decode(line)
    except ValueError as error:
        raise StoreError(
            f"{path}:{number}: {error}",
            hint="it may be of another version of Topcoat; to begin anew, give the campaign another name",
        ) from error
