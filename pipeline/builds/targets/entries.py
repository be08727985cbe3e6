"""What lies in a directory, at whatever depth: listed within bounds, and without opening anything."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NoReturn

from pipeline.builds.targets.verdict import Objection
from pipeline.errors import SettingsError
from pipeline.text.printable import one_line

MOST_ENTRIES = 100_000
"""How much a directory of targets may hold at most: files and directories, without those in directories of seeds."""

DEEPEST = 32
"""How many directories may lie in each other at most."""

SEEDS = "_seed_corpus"
"""How the name of a directory of seeds ends; and that of an archive of them, before its suffix."""

_THAT_DIRECTORY = "name the directory that holds the targets, such as $OUT of a build of OSS-Fuzz"


@dataclass(frozen=True)
class Entry:
    """A file that may be read, a directory of seeds, or what cannot be used: then `objection` says why."""

    path: PurePosixPath
    """Relative to the directory."""
    size: int = 0
    executable: bool = False
    seeds: bool = False
    objection: Objection | None = None


def walk(directory: Path, without: Path | None = None) -> Iterator[Entry]:
    """List the directory, in no particular order.

    Links to files in it are listed as files; links to directories are not followed, nor is a directory of seeds looked
    into, nor into `without`. What vanishes meanwhile is passed over. Raises SettingsError if the directory is not
    there, cannot be read, or holds too much.
    """
    root = root_of(directory)
    passed_over = Path(os.path.realpath(without)) if without else None
    waiting, left = [PurePosixPath()], MOST_ENTRIES
    while waiting:
        place = waiting.pop()
        try:
            found = _listed(root / place)
        except OSError as error:
            yield from _unreadable(place, error)
            continue
        left -= len(found)
        if left < 0:
            _refuse(directory, f"more than {MOST_ENTRIES} files")
        if found and len(place.parts) > DEEPEST:
            _refuse(directory, f"more than {DEEPEST} directories in each other")
        for one in found:
            if one.is_dir(follow_symlinks=False) and not one.name.endswith(SEEDS):
                waiting += [place / one.name] if root / place / one.name != passed_over else []
            else:
                yield from _entry(root, place / one.name, one)


def root_of(directory: Path) -> Path:
    """The directory of targets itself, without links. Raises SettingsError if it cannot be listed."""
    try:
        root = directory.resolve(strict=True)
        os.scandir(root).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: Python 3.11 and 3.12 say so of links that lead in circles
        raise SettingsError(
            f"the directory of targets cannot be read: {one_line(str(directory))}: {_reason(error)}",
            hint=_THAT_DIRECTORY,
        ) from error
    return root


def _listed(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return list(islice(entries, MOST_ENTRIES + 1))


def _entry(root: Path, path: PurePosixPath, found: os.DirEntry[str]) -> Iterator[Entry]:
    """The entry; none if it is not there any more."""
    try:
        if found.is_symlink():
            yield _link(root, path)
        elif found.is_dir():
            yield Entry(path, seeds=True)
        else:
            yield _file(path, found.stat(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return


def _file(path: PurePosixPath, facts: os.stat_result) -> Entry:
    if not stat.S_ISREG(facts.st_mode):
        return Entry(path, objection=Objection("it is neither a file nor a directory", broken=False))
    return Entry(path, facts.st_size, executable=bool(facts.st_mode & 0o111))


def _unreadable(path: PurePosixPath, error: OSError) -> Iterator[Entry]:
    """The entry for a directory that cannot be listed; none if it is not there any more."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        yield Entry(path, objection=Objection(f"it cannot be read: {_reason(error)}", "see to its permissions"))


def _link(root: Path, path: PurePosixPath) -> Entry:
    (root / path).lstat()
    try:
        target = (root / path).resolve(strict=True)
        facts = target.stat()
    except (OSError, RuntimeError) as error:
        return Entry(path, objection=Objection(f"it is a link that cannot be followed: {_reason(error)}", broken=False))
    if not target.is_relative_to(root):
        program = stat.S_ISREG(facts.st_mode) and bool(facts.st_mode & 0o111)
        objection = Objection(
            "it is a link that leads out of the directory", "put the file itself there", broken=program
        )
        return Entry(path, objection=objection)
    if stat.S_ISDIR(facts.st_mode):
        return Entry(path, objection=Objection("it is a link to a directory", broken=False))
    return _file(path, facts)


def _reason(error: OSError | RuntimeError) -> str:
    return (isinstance(error, OSError) and error.strerror) or "its links lead in circles"


def _refuse(directory: Path, much: str) -> NoReturn:
    shown = one_line(str(directory))
    raise SettingsError(f"{shown} holds {much}", hint=f"is it the directory of targets? {_THAT_DIRECTORY}")
