"""Units that crash their fuzzer or take too long. They are kept for people, and never become units again.

::

    {"at": "2026-11-25T14:00:00Z", "bytes": 3, "reason": "timeout", "schema": 1, "source": "seed"}

is the note beside each unit, `<SHA-1>.json`. It is written last and removed first: a unit without a note was left
behind by a killed process. Whoever writes holds the lock of the corpus.
"""

import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.fuzz.corpus.files import is_name, names_in, sizes_in, write_new
from pipeline.fuzz.corpus.intake import CorpusLimits
from pipeline.host.deadline import utc_now
from pipeline.store import document
from pipeline.store.publish import publish_json, remove, sync_one, target_of_remains
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

SCHEMA = 1
"""The version of a note's format. Tests hold a frozen sample of it."""

_TIMES = 2  # it may hold so many times as much as the corpus
_ROOM = 0.1  # the part that is freed at once by deleting inputs that never were units: it takes reading every note
_NOTE = ".json"
_LONGEST = 1 << 16  # bytes of a note that are read


@dataclass(frozen=True)
class _Note:
    reason: str = ""
    source: str = ""


class Quarantine:
    """The directory of a corpus's quarantine. Its methods raise OSError and StoreError.

    It holds twice as much as the corpus may. When it is full, first the oldest inputs of crashes that never were units
    of the corpus are deleted, and then the oldest units, with a warning: crashes are a guest's claims, and must not
    cost a corpus.
    """

    def __init__(self, directory: Path, limits: CorpusLimits) -> None:
        self._directory = directory
        self._limits = limits

    def names(self) -> set[str]:
        """Return the names of all units in it."""
        return {name[: -len(_NOTE)] for name in names_in(self._directory) if _is_note(name)}

    def reasons(self) -> Mapping[str, str]:
        """Return why each unit is in it, by its name. The reason is empty if the note cannot be understood."""
        return {name: self._read(name).reason for name in sorted(self.names())}

    def put(self, name: str, content: bytes, reason: str, source: str) -> None:
        """Keep a unit that is not in it yet; `source` is empty for an input that was no unit of the corpus."""
        self._make_room(len(content))
        write_new(self._directory / name, content)
        sync_one(self._directory)
        facts = {"bytes": len(content), "reason": one_line(reason), "source": source}
        publish_json(self._note(name), {"schema": SCHEMA, "at": utc_now(), **facts})

    def sweep(self) -> None:
        """Remove what killed processes have left behind."""
        names = self.names()
        for name in names_in(self._directory):
            if is_name(name) and name not in names:
                remove(self._directory / name)
            elif target_of_remains(name) is not None:
                shutil.rmtree(self._directory / name, ignore_errors=True)

    def _make_room(self, size: int) -> None:
        sizes = {name: size or 0 for name, size in sizes_in(self._directory).items()}
        units, total = len(sizes) + 1, sum(sizes.values()) + size

        def is_over(part: float) -> bool:
            return units > _TIMES * part * self._limits.units or total > _TIMES * part * self._limits.bytes

        if not is_over(1.0):
            return
        gone = 0
        for name in sorted(sizes, key=lambda name: (self._was_unit(name), self._age(name), name)):
            was_unit = self._was_unit(name)
            if not is_over(1.0 if was_unit else 1.0 - _ROOM):
                break
            remove(self._note(name), self._directory / name)
            units, total, gone = units - 1, total - sizes[name], gone + was_unit
        if gone:
            log.warning("the quarantine %s is full: units that were in the corpus are gone: %d", self._directory, gone)

    def _was_unit(self, name: str) -> bool:
        return bool(self._read(name).source)

    def _age(self, name: str) -> int:
        with suppress(FileNotFoundError):
            return self._note(name).lstat().st_mtime_ns
        return 0

    def _note(self, name: str) -> Path:
        return self._directory / f"{name}{_NOTE}"

    def _read(self, name: str) -> _Note:
        """Return what the unit's note says; an empty one if it cannot be understood."""
        with suppress(OSError, ValueError), self._note(name).open("rb") as stream:
            return document.decode(stream.read(_LONGEST), _Note, SCHEMA)
        return _Note()


def _is_note(name: str) -> bool:
    return name.endswith(_NOTE) and is_name(name[: -len(_NOTE)])
