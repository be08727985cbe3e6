"""Targets' own files that are kept for crashes which nobody has any more. See pipeline.fuzz.crashes.target_files."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.naming import fuzzers_below
from pipeline.settings import Store
from pipeline.upkeep.leftover import Leftover, Spared, alone, delete, used

_WHY = "no crash is of a build that has it"


def items(store: Store) -> Iterator[Leftover]:
    """One leftover for each file that belongs to no build with which a bucket was seen."""
    crashes = CrashStore(store.root)
    for file in crashes.files.unused(crashes.needed()):
        yield Leftover("files", str(file), used(file), _WHY, partial(_remove, crashes, file))


def _remove(crashes: CrashStore, file: Path) -> None:
    """Delete a file, while nobody stores a crash of a build that has it, and nobody keeps files at all."""
    having = _having(crashes, file)
    with alone(*map(crashes.lock, having), crashes.files.directory):
        if _having(crashes, file) != having or file not in crashes.files.unused(crashes.needed()):
            raise Spared("it is gone already, or needed by now")
        delete(file)


def _having(crashes: CrashStore, file: Path) -> list[str]:
    """The fuzzers of which some build has the file."""
    fuzzers = fuzzers_below(crashes.root)
    digest = file.name.replace("-", ":")
    return [one for one in fuzzers if any(digest in build.files.values() for build in crashes.builds(one).builds)]
