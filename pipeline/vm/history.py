"""How long past boots have taken on this host, from which the limit for the next one is derived.

The file is cache/boots.jsonl: one JSON object a line, {"schema": 1, "kind", "seconds", "ended"}, appended in one write,
so that processes share it without a lock. It may be lost at any time; then the first limits apply again.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InstanceBusy, StoreError
from pipeline.host.deadline import utc_now
from pipeline.host.locks import locked
from pipeline.host.trust import make_private
from pipeline.store import document
from pipeline.store.publish import publish_bytes

SCHEMA = 1
"""The version of the format of boots.jsonl; a sample of it is frozen in the tests."""

KEPT = 200
"""How many boots of each kind count: the newest ones."""

ENOUGH = 5
"""How many boots of a kind must be known before a limit is derived from them."""

_LONGEST = 1 << 20  # bytes; a longer file is replaced by its lines that count


class History:
    """The boots of one kind on this host: same build, accelerator, memory, CPUs, and proof of being ready."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._kind = kind

    def seconds(self) -> list[float]:
        """How many seconds each of the last KEPT boots took, oldest first. Lines without sense are skipped."""
        boots = (_past_boot(line) for line in self._lines())
        return [boot.seconds for boot in boots if boot and boot.kind == self._kind][-KEPT:]

    def slowest(self) -> float | None:
        """The 99th percentile of the boots' seconds; None while fewer than ENOUGH boots are known."""
        past = self.seconds()
        return percentile(past, 0.99) if len(past) >= ENOUGH else None

    def add(self, seconds: float) -> None:
        """Note that a boot became ready after `seconds`. If the store cannot be written, nothing happens."""
        line = {"schema": SCHEMA, "kind": self._kind, "seconds": round(seconds, 3), "ended": utc_now()}
        with suppress(OSError, StoreError, InstanceBusy):
            make_private(self._path.parent)
            self._shorten()
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, json.dumps(line, sort_keys=True).encode() + b"\n")
            finally:
                os.close(descriptor)

    def _lines(self) -> list[bytes]:
        try:
            return self._path.read_bytes().splitlines()
        except OSError:
            return []

    def _shorten(self) -> None:
        if self._path.exists() and self._path.stat().st_size > _LONGEST:
            with locked(self._path, 0):
                publish_bytes(self._path, b"".join(line + b"\n" for line in _newest_of_each(self._lines())))


def _newest_of_each(lines: Sequence[bytes]) -> list[bytes]:
    """The lines that count: the last KEPT of each kind, in their order."""
    count: Counter[str] = Counter()
    kept = []
    for line in reversed(lines):
        boot = _past_boot(line)
        if boot and count[boot.kind] < KEPT:
            count[boot.kind] += 1
            kept.append(line)
    return kept[::-1]


@dataclass(frozen=True)
class _PastBoot:
    kind: str
    seconds: float


def _past_boot(line: bytes) -> _PastBoot | None:
    with suppress(ValueError):
        boot = document.decode(line, _PastBoot, SCHEMA)
        if 0 < boot.seconds < math.inf:
            return boot
    return None


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that at least a `share` (0 to 1) of all values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
