"""Units that merges took out of a corpus. They are kept for some time, and can be brought back.

::

    replaced/<number>/<SHA-1>          a unit that this merge took out: a hard link to the same file, if possible
    replaced/<number>/manifest.json    the units, in the form of pipeline.fuzz.corpus.manifest; its `last` is the merge

The directory of a merge is complete before the corpus loses the units, and a unit leaves it only when the corpus or its
quarantine has it, or its time is over. So, whenever a process is killed, each unit is in one of them. Whoever writes
holds the lock of the corpus.
"""

import shutil
import tempfile
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Final

from pipeline.fuzz.corpus.files import directories_in, link, names_in, sizes_in
from pipeline.fuzz.corpus.intake import CorpusLimits
from pipeline.fuzz.corpus.manifest import Manifest, Unit
from pipeline.host.deadline import utc_now
from pipeline.store.publish import publish_json, remove, sync_one, target_of_remains

LATE: Final = "they were kept for their time"
"""The reason why units go whose time is over."""
EARLY: Final = "later merges took so many that there is no room for them"
"""The reason why units go before their time."""

_NOTE = "manifest.json"


class Replaced:
    """The directory of the units that merges took out of a corpus. Its methods raise OSError and StoreError."""

    def __init__(self, directory: Path, limits: CorpusLimits) -> None:
        self._directory = directory
        self._limits = limits

    def units(self) -> Mapping[Path, Unit]:
        """Return each unit once, by its path; those that the last merge took come first."""
        found: dict[str, tuple[Path, Unit]] = {}
        for merge in reversed(self._merges()):
            facts = _facts(merge)
            for name, size in sorted(_sizes(merge).items()):
                unit = facts.get(name) or Unit(name, size, utc_now(), "restored")
                found.setdefault(name, (merge / name, unit._replace(bytes=size)))
        return dict(found.values())

    def keep(self, taken: Manifest, units: Path) -> None:
        """Keep the units that a merge takes out of the directory `units`.

        `taken` lists exactly these units, and has the merge as its last.
        """
        self._directory.mkdir(exist_ok=True)
        sync_one(self._directory.parent)
        number = max([taken.merges, *(int(name) + 1 for name in names_in(self._directory) if _is_number(name))])
        work = Path(tempfile.mkdtemp(prefix=f".{number}.", suffix=".tmp", dir=self._directory))
        for name in taken.units:
            link(units / name, work / name)
        publish_json(work / _NOTE, taken.encode())
        work.rename(self._directory / str(number))
        sync_one(self._directory)

    def sweep(self) -> None:
        """Remove what killed processes have left behind."""
        for name in names_in(self._directory):
            if target_of_remains(name) is not None:
                shutil.rmtree(self._directory / name, ignore_errors=True)

    def let_go(self, elsewhere: AbstractSet[str]) -> None:
        """Delete the units that the corpus or its quarantine has: those with names in `elsewhere`.

        A directory that has no others is deleted too. All directories are read.
        """
        for merge in self._merges():
            names = {name for name in names_in(merge) if name != _NOTE}
            remove(*(merge / name for name in names & elsewhere))
            if not names - elsewhere:
                self.drop(merge)

    def outdated(self) -> Mapping[Path, str]:
        """Return the directories of merges whose units are to go, oldest first, and for each why: LATE or EARLY.

        LATE means that they were kept for their time. EARLY means that with those of later merges, without the last
        merge, they are more than a corpus may be.
        """
        merges, found, units, size = self._merges(), dict[Path, str](), 0, 0
        for merge in reversed(merges):
            if merge != merges[-1]:
                sizes = _sizes(merge)
                units, size = units + len(sizes), size + sum(sizes.values())
            if _age(merge) >= self._limits.kept:
                found[merge] = LATE
            elif units > self._limits.units or size > self._limits.bytes:
                found[merge] = EARLY
        return dict(sorted(found.items(), key=lambda item: int(item[0].name)))

    def drop(self, merge: Path) -> None:
        """Delete the units of a merge, and its directory. If this is killed, the next call can go on with it."""
        remove(*(merge / name for name in _sizes(merge)))
        remove(merge / _NOTE)
        with suppress(OSError):  # what somebody else has put there stays
            merge.rmdir()

    def _merges(self) -> list[Path]:
        """Return the directories of the merges, oldest first."""
        numbers = sorted(int(name) for name in directories_in(self._directory) if _is_number(name))
        return [self._directory / str(number) for number in numbers]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _sizes(merge: Path) -> dict[str, int]:
    """Return the bytes of the units in a merge's directory, by name."""
    with suppress(FileNotFoundError):  # it is gone meanwhile
        return {name: size for name, size in sizes_in(merge).items() if size is not None}
    return {}


def _facts(merge: Path) -> Mapping[str, Unit]:
    """Return what the merge's manifest says of the units; {} if it cannot be understood. Only people need it."""
    with suppress(FileNotFoundError, ValueError):
        return Manifest.decode((merge / _NOTE).read_bytes()).units
    return {}


def _age(merge: Path) -> float:
    """Return the seconds since the merge; 0.0 if its directory is gone."""
    with suppress(FileNotFoundError):
        return time.time() - (merge / _NOTE).stat().st_mtime
    with suppress(FileNotFoundError):
        return time.time() - merge.stat().st_mtime
    return 0.0
