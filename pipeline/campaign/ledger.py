"""The ledger of a campaign: all that was done, in the order in which it happened. Entries are only ever added.

`ledger.jsonl` has one entry on each line, as JSON with sorted keys::

    {"attempt": 1, "at": "2026-11-25T14:00:00Z", "boot_id": "6ed5…", …, "kind": "started", "schema": 1, "slice": 3}

Each entry is on the disk before the next thing is done. A process that is killed leaves at most an incomplete last
line, which does not count, and is removed when the ledger is opened again.
"""

import errno
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal

import msgspec

from pipeline.errors import StoreError
from pipeline.host.deadline import utc_now
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.host.trust import make_private
from pipeline.store import document
from pipeline.store.publish import sync_one

SCHEMA = 1
"""The version of the format, which each entry has. Tests hold a frozen sample."""

Result = Literal["done", "crash", "failed", "hang", "guest died", "host", "stopped", "interrupted"]
"""How an attempt ended.

done: its time or its runs were over. crash: the fuzzer reported something. failed: it ended by itself and reported
nothing. hang: it did not end in time and was killed. guest died: the guest does not answer any more. host: a program or
a disk of the host failed. stopped: somebody asked for it. interrupted: the process that ran it is gone.
"""

Point = tuple[float, int, int, int, int]
"""A point of a curve: seconds since the run began, executions, edges, features, units."""


@dataclass(frozen=True)
class Subject:
    """A fuzzer as it is built and planned. With another build or plan it is another subject, with its own slices."""

    fuzzer: str
    build: str
    """The digest of the fuzzer as it is built."""
    plan: str
    """The digest of its options, environment, dictionary and seeds."""


class LedgerEntry(msgspec.Struct, frozen=True, tag_field="kind"):
    """Something that happened in a campaign. Its kind, the field "kind" of its line, is the tag of its class."""


class Opened(LedgerEntry, frozen=True, tag="opened"):
    """A process began to work at the campaign, or at a piece of it."""

    host: str
    pid: int
    definition: Mapping[str, Any]
    """What is to be done, as JSON: see pipeline.campaign.plan.definition."""
    started: str = ""
    """When it began, in UTC. In older ledgers, this field and those below have their defaults."""
    process: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """The process as JSON, see pipeline.host.process.Process: its pid alone is reused."""
    workers: int = 1
    """The largest number of guests at the same time."""
    builds: Mapping[str, str] = msgspec.field(default_factory=dict)
    """The digests of the fuzzers as they are built, by full name."""
    proof: str = ""
    """The key of what the canary must have been found for: see `Proved.build`."""
    part: bool = False
    """Whether the process works at one piece only; then its definition is not that of the campaign."""


class Booted(LedgerEntry, frozen=True, tag="booted"):
    """A guest was booted for the campaign; `failure` names the cause if it did not become ready."""

    instance: str
    boot_id: str
    seconds: float
    why: str
    """Why it was booted."""
    failure: str = ""
    cloned: bool = False
    """Whether it is a clone of a template."""


class Seeded(LedgerEntry, frozen=True, tag="seeded"):
    """Seeds were imported. The same contents are not imported again, as a merge may have dropped them since."""

    fuzzer: str
    names: tuple[str, ...]
    """The names of the seeds' units, sorted.

    Those in earlier entries are left out, unless the corpus was gone since.
    """
    new: int
    """The number of these units that the corpus did not have."""


class Started(LedgerEntry, frozen=True, tag="started"):
    """An attempt at a slice began: one run of the fuzzer."""

    subject: Subject
    slice: int
    attempt: int
    instance: str
    boot_id: str
    seed: int
    arguments: tuple[str, ...]


class Harvested(LedgerEntry, frozen=True, tag="harvested"):
    """An attempt has come this far: its time and its units are safe, whatever happens."""

    subject: Subject
    slice: int
    attempt: int
    seconds: float
    executions: int
    edges: int
    features: int
    added: int
    """The number of units in this harvest that the corpus did not have."""


class Crashed(LedgerEntry, frozen=True, tag="crashed"):
    """A crash was found, and stored or counted."""

    subject: Subject
    slice: int
    attempt: int
    group: str
    new: bool
    """Whether the bucket (`group`) is new."""
    sha256: str
    """The SHA-256 of the input."""
    passed_over: str = ""
    """The name of its unit, if it only hit a limit that this campaign has set lower than others have.

    The corpus keeps the unit, and this campaign goes without it. Empty if the unit is in quarantine, and in old
    ledgers.
    """
    back: bool = False
    """Whether the bucket is back: it was fixed in an earlier build. False in old ledgers."""


class Ended(LedgerEntry, frozen=True, tag="ended"):
    """An attempt is over."""

    subject: Subject
    slice: int
    attempt: int
    result: Result
    reason: str
    seconds: float
    """The seconds for which the fuzzer ran."""
    executions: int
    edges: int
    features: int
    units: int
    """The number of units in the corpus afterwards."""
    added: int
    peak_rss: int
    """The most memory that the fuzzer took, in MiB."""
    curve: tuple[Point, ...] = ()
    besides: float = 0.0
    """Seconds that the attempt took besides the run: to fill the guest, and to take in what was found."""


class Closed(LedgerEntry, frozen=True, tag="closed"):
    """A slice is over: no further attempt will be made at it."""

    subject: Subject
    slice: int
    reason: str


class Merged(LedgerEntry, frozen=True, tag="merged"):
    """The corpus of a fuzzer was merged; `accepted` tells whether the result took its place."""

    subject: Subject
    before: int
    """The number of units that were merged; `after` is how many the corpus has afterwards."""
    after: int
    features_before: int
    features_after: int
    accepted: bool
    reason: str
    seconds: float
    confirmed_by: str = ""
    """The boot id of the second guest that confirmed the result, if it took one: see pipeline.campaign.merging.

    Empty in old ledgers.
    """


class Benched(LedgerEntry, frozen=True, tag="benched"):
    """A fuzzer failed too often, and gets no more slices from the present process."""

    subject: Subject
    reason: str


class Proved(LedgerEntry, frozen=True, tag="proved"):
    """The canary was looked for on a host. If it was not found (`proved`), `reason` names the broken link."""

    host: str
    build: str
    """The key of what it was looked for with, see pipeline.campaign.proofs; in old ledgers, the build's digest."""
    proved: bool
    reason: str
    seconds: float


_KINDS: Any = reduce(or_, LedgerEntry.__subclasses__())


def encode(entry: LedgerEntry, at: str) -> bytes:
    """The line for an entry that is made at this time (UTC), with its newline."""
    whole = msgspec.to_builtins(entry) | {"schema": SCHEMA, "at": at}
    return json.dumps(whole, sort_keys=True, allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> LedgerEntry:
    """The entry on a line. Raises ValueError."""
    entry: LedgerEntry = document.decode(line, _KINDS, SCHEMA)
    return entry


class Ledger:
    """An open ledger, made by `opened`. Only one process has it, whose threads may all write."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Close it. Later calls of `append` fail, and cannot write to a file that has got the same descriptor."""
        with self._lock:
            self._closed = True
            os.close(self._descriptor)

    def append(self, entry: LedgerEntry) -> None:
        """Add an entry; on return it is on the disk. Raises StoreError, and then nothing of the entry stays."""
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
    """Open the ledger at `path`, which is made if needed, for this process alone.

    Raises InstanceBusy if another process still has it after `limit` seconds, StoreError if it cannot be written.
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
    """The length of all complete lines, in bytes."""
    return path.read_bytes().rfind(b"\n") + 1


def read(path: Path) -> Iterator[LedgerEntry]:
    """The entries of the ledger at `path`, up to the last complete line; no entries if there is no ledger.

    Others may be writing it meanwhile. Raises StoreError for a line that is no entry.
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


def _entry(line: bytes, path: Path, number: int) -> LedgerEntry:
    try:
        return decode(line)
    except ValueError as error:
        raise StoreError(
            f"{path}:{number}: {error}",
            hint="it may be of another version of Topcoat; to begin anew, give the campaign another name",
        ) from error
