"""How long boots have taken on this host: what a limit for the next one is derived from.

cache/boots.jsonl: one JSON object a line, {"schema": 1, "kind", "seconds", "ended"}, appended in one write, so that
processes share it without a lock. It may be lost at any time; then the first limits apply again.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.deadline import utc_now
from pipeline.errors import InstanceBusy, StoreError
from pipeline.publish import locked, make_private, publish_bytes

SCHEMA = 1
"""Tests hold a frozen sample."""

KEPT = 200
"""Boots of each kind that count: the newest."""

ENOUGH = 5
"""With fewer, this host's own boots say too little."""

_LONGEST = 1 << 20  # then the file is begun anew with what counts of it


class History:
    """The boots of one kind: same guest, same accelerator, same size, same proof of being ready."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._kind = kind

    def seconds(self) -> list[float]:
        """What the last boots took, oldest first. Lines that make no sense are passed over."""
        found = [_seconds(line, self._kind) for line in self._lines()]
        return [seconds for seconds in found if seconds is not None][-KEPT:]

    def slowest(self) -> float | None:
        """What the slowest of them took, but for one in a hundred; None while they are too few to tell."""
        past = self.seconds()
        return percentile(past, 0.99) if len(past) >= ENOUGH else None

    def add(self, seconds: float) -> None:
        """Note a boot that became ready. A store that cannot be written is no reason to fail: the boot has not."""
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
    """The lines that count: the last ones of each kind, in their order."""
    count: Counter[str] = Counter()
    kept = []
    for line in reversed(lines):
        kind = _kind(line)
        if kind is not None and count[kind] < KEPT:
            count[kind] += 1
            kept.append(line)
    return kept[::-1]


def _kind(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["kind"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _seconds(line: bytes, kind: str) -> float | None:
    try:
        entry: Any = json.loads(line)
        seconds = float(entry["seconds"])
        usable = entry["schema"] == SCHEMA and entry["kind"] == kind and 0 < seconds < math.inf
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return seconds if usable else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
