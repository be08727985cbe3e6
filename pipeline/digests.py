"""Digests of files: by BLAKE3, with a cache that knows when it may not be believed.

A digest is "b3:HEX", the same that `b3sum` prints, for a file without any block of zeros. For others it is "b3s:HEX"
over the blocks that are not zero and a table of where they are: so holes need not be read, and a file with holes has
the same digest as its copy without.
"""

import json
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.publish import locked, publish_bytes

log = logging.getLogger("topcoat")

SCHEMA = 1
"""Of digests.json. Tests hold a frozen sample."""

BLOCK = 65536
RACY = 2_000_000_000
"""Nanoseconds. A file that changed less than this before it was hashed may have changed since without a new time."""

_CHUNK = 8 << 20  # as fast as mapping the file (measured), and a file that is cut off meanwhile raises no SIGBUS
_LARGE = 1 << 20  # threads do not pay below
_MOST_ENTRIES = 100_000
_ZEROS = bytes(BLOCK)

Signature = tuple[int, int, int, int, int]
"""What tells a file that has not changed: device, inode, size, times of modification and of change in nanoseconds."""


def signature(path: Path) -> Signature:
    """The signature of a file now. Raises OSError."""
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def digest(path: Path) -> str:
    """Hash a file, whatever any cache says. Raises OSError."""
    from blake3 import blake3

    runs: list[int] = []
    end = 0
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        hasher = blake3(max_threads=blake3.AUTO if size >= _LARGE else 1)
        for start, content in _contents(stream.fileno(), size):
            if start != end:
                runs += [end, start]
            hasher.update(content)
            end = start + len(content)
    if end != size:
        runs += [end, size]
    if not runs:
        return f"b3:{hasher.hexdigest()}"
    # Read from its end, the stream can be taken apart in one way only
    hasher.update(struct.pack(f"<{len(runs) + 2}Q", *runs, len(runs), size))
    return f"b3s:{hasher.hexdigest()}"


def _contents(descriptor: int, size: int) -> Iterator[tuple[int, memoryview]]:
    """The parts of a file that are not zero: where each starts, and its bytes, in whole blocks but for the end."""
    buffer = memoryview(bytearray(min(_CHUNK, size + -size % BLOCK)))
    for start, end in _extents(descriptor, size):
        for position in range(start, end, _CHUNK):
            wanted = min(_CHUNK, end - position)
            got = os.preadv(descriptor, [buffer[:wanted]], position)
            for first, last in _dense(buffer.obj, got):
                yield position + first, buffer[first:last]
            if got < wanted:
                return  # cut off while it was read: the signature will differ


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes, their edges moved outwards to whole blocks."""
    position = 0
    with suppress(OSError):  # ENXIO: only a hole is left
        while position < size:
            data = os.lseek(descriptor, position, os.SEEK_DATA)
            hole = os.lseek(descriptor, data, os.SEEK_HOLE)
            start = max(position, data - data % BLOCK)
            position = min(size, hole + -hole % BLOCK)
            yield start, position


def _dense(buffer: Any, length: int) -> Iterator[tuple[int, int]]:
    """The longest runs of blocks in the first `length` bytes that are not all zero."""
    begun, number = 0, -1
    firsts = bytes(buffer[0:length:BLOCK])  # only a block whose first byte is zero can be all zero
    while (number := firsts.find(0, number + 1)) >= 0:
        block = number * BLOCK
        if _is_zero(buffer, block, length):
            if begun < block:
                yield begun, block
            begun = block + BLOCK
    if begun < length:
        yield begun, length


def _is_zero(buffer: Any, start: int, length: int) -> bool:
    end = min(start + BLOCK, length)
    return bool(buffer[start:end] == _ZEROS[: end - start])


class Digests:
    """Digests of files, remembered in the file `path` while their signatures stay the same.

    Any number of processes may share it: it is replaced as a whole, and what another one has added is kept. A file
    that cannot be understood is begun anew, with one warning. `path` None: nothing is remembered.
    """

    def __init__(self, path: Path | None, now: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._now = now
        self._known: dict[str, list[Any]] | None = None
        self._added: dict[str, list[Any]] = {}

    def of(self, path: Path) -> str:
        """The digest of a file. Raises OSError."""
        before = signature(path)
        known = self._entries().get(_key(before))
        if known and tuple(known[:3]) == before[2:]:
            return str(known[3])
        found = digest(path)
        after = signature(path)
        if before == after and self._now() - max(before[3:]) > RACY:
            self._entries()[_key(before)] = self._added[_key(before)] = [*before[2:], found]
        return found

    def save(self) -> None:
        """Write what was added. If that cannot be done, it is only hashed again next time."""
        if not self._added or self._path is None:
            return
        with suppress(StoreError), locked(self._path, 10.0):
            entries = {**self._load(warn=False), **self._added}
            for key in list(entries)[: max(0, len(entries) - _MOST_ENTRIES)]:
                del entries[key]
            text = json.dumps({"schema": SCHEMA, "entries": entries}, separators=(",", ":"))
            publish_bytes(self._path, text.encode())
            self._added = {}

    def _entries(self) -> dict[str, list[Any]]:
        if self._known is None:
            self._known = self._load()
        return self._known

    def _load(self, *, warn: bool = True) -> dict[str, list[Any]]:
        if self._path is None:
            return {}
        try:
            data = json.loads(self._path.read_bytes())
            if data["schema"] != SCHEMA:
                raise ValueError(f"its schema is {data['schema']}")
            entries: dict[str, list[Any]] = data["entries"]
            if not all(isinstance(entry, list) and len(entry) == 4 for entry in entries.values()):
                raise ValueError("an entry is damaged")
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            if warn:
                log.warning("the cache of digests is begun anew: %s: %s", self._path, error)
            return {}
        return entries


def _key(facts: Signature) -> str:
    return f"{facts[0]}:{facts[1]}"
