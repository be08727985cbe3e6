"""A cache of file digests, which does not believe an entry if the file may have changed.

The cache file is a journal: a line that names the schema, then a line for each file that was hashed. Any number of
processes may share it, each of which appends; once most lines are superseded by later ones, it is rewritten.
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

from pipeline.errors import InstanceBusy, StoreError
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.store.digests import digest
from pipeline.store.publish import publish_bytes

log = logging.getLogger("topcoat")

SCHEMA = 2
"""The version of the format of digests.jsonl; a sample of it is frozen in the tests."""

RACY = 2_000_000_000
"""Nanoseconds. A digest is not cached if the file changed less than this before: a new change might leave its times."""

_HEAD = json.dumps({"schema": SCHEMA}).encode() + b"\n"
_MOST_ENTRIES = 100_000
_SPARE_LINES = 1000
_LOCK_LIMIT = 10.0

Signature = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime (in nanoseconds) of a file: while they stay, the file has not changed."""

Entries = dict[Signature, str]
"""The digest that belongs to each signature."""


def _signature(path: Path) -> Signature:
    facts = os.stat(path)  # noqa: PTH116  asked thousands of times
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


class DigestCache:
    """Digests of files, remembered in the cache file `path` for as long as the files' signatures stay the same.

    A cache file that cannot be understood is begun anew, with one warning. With `path` None, digests are remembered in
    memory only.
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
        """The digest of a file, and its size in bytes at the same time. Raises OSError."""
        signature = _signature(path)
        entries = self._entries()
        found = entries.get(signature)
        if found is None:
            found = digest(path)
            if _signature(path) == signature and self._now() - max(signature[3:]) > RACY:
                entries[signature] = self._added[signature] = found
        return found, signature[2]

    def save(self) -> None:
        """Write the new digests to the cache file. Failure is no error: the files are hashed again next time."""
        if self._path is None or not (self._added or self._damaged):
            return
        # Neither a full disk nor a held lock is worth a failure here
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
    """The last entry of each inode: its earlier states cannot come back."""
    latest = {signature[:2]: signature for signature in entries}
    return {signature: entries[signature] for signature in latest.values()}


def _encode(entries: Entries) -> bytes:
    rows = ([*signature, found] for signature, found in entries.items())
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def _decode(data: bytes) -> Entries:
    """The entries in the content of a cache file. Raises ValueError if it is damaged or of another schema."""
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
