"""The cache of digests, which knows when it may not be believed.

The file is a journal: a line that names the schema, then a line for each file that was hashed. Any number of
processes may share it, each appends; once most lines have been overtaken by later ones, it is written anew.
"""

import errno
import json
import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.digests import digest
from pipeline.errors import InstanceBusy, StoreError
from pipeline.faults import host_faults
from pipeline.publish import locked, publish_bytes

log = logging.getLogger("topcoat")

SCHEMA = 2
"""Of digests.jsonl. Tests hold a frozen sample."""

RACY = 2_000_000_000
"""Nanoseconds. A file that changed less than this before it was hashed may have changed since without a new time."""

_HEAD = json.dumps({"schema": SCHEMA}).encode() + b"\n"
_MOST_ENTRIES = 100_000
_SPARE_LINES = 1000
_LOCK_LIMIT = 10.0

Signature = tuple[int, int, int, int, int]
"""What tells that a file has not changed: device, inode, size, times of modification and of change in nanoseconds."""

Entries = dict[Signature, str]


def _signature(path: Path) -> Signature:
    facts = os.stat(path)  # noqa: PTH116  asked thousands of times
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


class DigestCache:
    """Digests of files, remembered in the file `path` as long as nothing tells that they have changed.

    A file that cannot be understood is begun anew, with one warning. `path` None: nothing is remembered.
    """

    def __init__(self, path: Path | None, now: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._now = now
        self._loaded: Entries | None = None
        self._added: Entries = {}
        self._lines = 0
        self._damaged = False

    def of(self, path: Path) -> str:
        """The digest of a file. Raises OSError."""
        return self.look(path)[0]

    def look(self, path: Path) -> tuple[str, int]:
        """The digest of a file and its size in bytes, of the same moment. Raises OSError."""
        signature = _signature(path)
        entries = self._entries()
        found = entries.get(signature)
        if found is None:
            found = digest(path)
            if _signature(path) == signature and self._now() - max(signature[3:]) > RACY:
                entries[signature] = self._added[signature] = found
        return found, signature[2]

    def save(self) -> None:
        """Write what was added. If that cannot be done, it is only hashed again next time."""
        if self._path is None or not (self._added or self._damaged):
            return
        # Neither a full disk nor somebody who holds the lock is worth a failure here
        with suppress(StoreError, InstanceBusy), locked(self._path, _LOCK_LIMIT), host_faults("saving digests"):
            if self._wants_rewriting(self._path):
                self._rewrite(self._path)
            else:
                with self._path.open("ab") as stream:
                    stream.write(_encode(self._added))
                self._lines += len(self._added)
            self._added, self._damaged = {}, False

    def _wants_rewriting(self, path: Path) -> bool:
        most = min(2 * len(_latest(self._entries())) + _SPARE_LINES, 2 * _MOST_ENTRIES)
        if self._damaged or self._lines > most:
            return True
        try:
            with path.open("rb") as stream:
                return stream.readline() != _HEAD
        except FileNotFoundError:
            return True

    def _rewrite(self, path: Path) -> None:
        try:
            kept = _decode(path.read_bytes())
        except (FileNotFoundError, ValueError):
            kept = {}
        latest = list(_latest({**kept, **self._added}).items())[-_MOST_ENTRIES:]
        publish_bytes(path, _HEAD + _encode(dict(latest)))
        self._lines = len(latest)

    def _entries(self) -> Entries:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Entries:
        if self._path is None:
            return {}
        try:
            entries = _decode(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            log.warning("the cache of digests is begun anew: %s: %s", self._path, error)
            self._damaged = True
            return {}
        self._lines = len(entries)
        return entries


def _latest(entries: Entries) -> Entries:
    """What is known of each inode last: it can have no other state any more."""
    latest = {signature[:2]: signature for signature in entries}
    return {signature: entries[signature] for signature in latest.values()}


def _encode(entries: Entries) -> bytes:
    rows = ([*signature, found] for signature, found in entries.items())
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def _decode(data: bytes) -> Entries:
    """The entries of the file. Raises ValueError."""
    head, _, body = data.partition(b"\n")
    if head + b"\n" != _HEAD:
        raise ValueError(f"it does not begin with {_HEAD.decode().strip()}")
    rows = json.loads(b"[" + body.rstrip(b"\n").replace(b"\n", b",") + b"]")
    try:
        entries = {tuple(signature): found for *signature, found in rows}
        sound = all(len(signature) == 5 and found.startswith("b3") for signature, found in entries.items())
    except (TypeError, AttributeError) as error:
        raise ValueError("a line is damaged") from error
    if not sound:
        raise ValueError("a line is damaged")
    return entries
