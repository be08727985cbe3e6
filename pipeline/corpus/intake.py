"""What comes into a corpus: each piece of content is judged, and what is new is written."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.corpus.files import content_of, is_name, name_of, write_new
from pipeline.corpus.manifest import Unit
from pipeline.deadline import utc_now
from pipeline.publish import sync_one
from pipeline.settings import Campaign
from pipeline.text import one_line

Verdict = Literal["new", "known", "quarantined", "too_large", "over_cap", "torn", "refused"]

_WRITERS = 8  # each waits for the disk; 1000 units: 1.8 s with one, 0.4 s with 4, 8 or 16
_AHEAD = 32  # units in memory, at most, that wait to be written


@dataclass(frozen=True)
class Limits:
    """What a corpus may come to."""

    unit_size: int = 1 << 20
    """Bytes; what is larger is no unit."""
    bytes: int = 1 << 30
    """Content of all units."""
    units: int = 50_000

    @classmethod
    def of(cls, chosen: Campaign) -> "Limits":
        """Those of `[campaign]`."""
        return cls(chosen.unit_size, chosen.corpus_size, chosen.corpus_units)


@dataclass(frozen=True)
class Added:
    """What has become of each piece of content, counted."""

    new: int = 0
    known: int = 0
    quarantined: int = 0
    too_large: int = 0
    over_cap: int = 0
    """They would have been new, but the corpus is full."""
    torn: int = 0
    """Their names are a SHA-1, but not that of their content: they were still being written."""
    refused: int = 0
    """No regular files, or such that cannot be read, or are gone."""

    @property
    def left_out(self) -> int:
        """How many are not in the corpus."""
        return self.quarantined + self.too_large + self.over_cap + self.torn + self.refused


class Intake:
    """One call's worth of units for the directory `directory`.

    `units` is what the corpus consists of so far, and grows by what is taken; `stored` has the units whose files are
    in the directory already. Whoever has one holds the lock of the corpus.
    """

    def __init__(
        self,
        directory: Path,
        limits: Limits,
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

    def take(self, contents: Iterable[Path | bytes], source: str) -> Added:
        """Take what is new. All files of it are on the disk in the end. Raises OSError."""
        counts: Counter[str] = Counter()
        added, source = utc_now(), one_line(source)
        waiting: deque[Future[None]] = deque()
        with ThreadPoolExecutor(_WRITERS) as pool:
            for item in contents:
                verdict, name, content = self._judge(item)
                counts[verdict] += 1
                if verdict == "new" and self._note(Unit(name, len(content), added, source)):
                    waiting.append(pool.submit(write_new, self._directory / name, content))
                if len(waiting) >= _AHEAD:
                    waiting.popleft().result()
            for write in waiting:
                write.result()
        if counts["new"]:
            sync_one(self._directory)
        return Added(**counts)

    def _judge(self, item: Path | bytes) -> tuple[Verdict, str, bytes]:
        """What to do with it, the name that its content has, and its content."""
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

    def _note(self, unit: Unit) -> bool:
        """Count it in. Returns whether its file is yet to be written."""
        self.units[unit.name] = self._stored.get(unit.name, unit)
        self._bytes += unit.bytes
        return unit.name not in self._stored
