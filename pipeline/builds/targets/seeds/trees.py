"""Directories of seeds, read within bounds: only regular files in them are ever opened."""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pipeline.builds.targets.seeds.omissions import (
    HIDDEN,
    SPECIAL,
    STRAY_LINK,
    FoundFile,
    Omission,
    too_large,
    unreadable,
)
from pipeline.builds.targets.seeds.packed import Allowance, SourceFile


def files(root: Path, unit: int, allowance: Allowance) -> Iterator[FoundFile]:
    """All files in a directory and below it, of at most `unit` bytes each, in the order of their names.

    As with libFuzzer, hidden directories are left out, and hidden files are not. A link counts as the regular file in
    the directory that it leads to. Raises NoMore, and OSError for faults of the host.
    """
    waiting = [root]
    while waiting:
        directory, inner = waiting.pop(), list[Path]()
        try:
            with os.scandir(directory) as found:
                entries = sorted(islice(found, allowance.entries + 1), key=lambda entry: entry.name)
        except OSError as error:
            yield unreadable(_name(directory, root), error)
            continue
        for entry in entries:
            allowance.look()
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                inner.append(Path(entry))
            else:
                yield _found(Path(entry), root, unit, allowance)
        waiting += reversed(inner)


def _found(path: Path, root: Path, unit: int, allowance: Allowance) -> FoundFile:
    name = _name(path, root)
    try:
        file = _file_at(path, root)
        if isinstance(file, Omission):
            return FoundFile(name, omission=file)
        with SourceFile(file, allowance) as source:
            if source.size > unit:
                return FoundFile(name, omission=too_large(unit))
            return FoundFile(name, source.at(0, unit))
    except OSError as error:
        return unreadable(name, error)


def _file_at(path: Path, root: Path) -> Path | Omission:
    """The regular file at a path, or that a link there leads to, or why there is none. Raises OSError."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        target = Path(os.path.realpath(path))
        return target if target.is_relative_to(os.path.realpath(root)) and target.is_file() else STRAY_LINK
    if stat.S_ISREG(mode):
        return path
    return HIDDEN if stat.S_ISDIR(mode) else SPECIAL


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root.parent))
