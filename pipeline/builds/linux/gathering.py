"""Gathering the packages of a selection, and those that hold the libraries of its programs."""

import glob
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from pipeline.builds.linux.apt import Apt
from pipeline.builds.linux.libraries import Libraries, Selection, likely
from pipeline.builds.linux.packages import Packages, file_for, name_of
from pipeline.errors import PackageError


class PackageSource(Protocol):
    """A source of packages."""

    def named(self, pattern: str) -> str | None:
        """The name of the package with this name, or a name that fits this pattern; None if the source has none."""

    def exists(self, name: str) -> bool:
        """Whether the source has a package of exactly this name, whatever the selection wants."""

    def bring(self, names: Iterable[str], directory: Path) -> list[Path]:
        """Put these packages, all of which the source has, into the directory, and return their files."""


class Provided:
    """The source of packages that `[demo] packages` names: a directory."""

    def __init__(self, directory: Path) -> None:
        self._packages = Packages(directory)

    def named(self, pattern: str) -> str | None:
        """See PackageSource."""
        found = self._packages.newest(pattern)
        return name_of(found) if found else None

    def exists(self, name: str) -> bool:
        """See PackageSource."""
        return self._packages.newest(glob.escape(name)) is not None

    def bring(self, names: Iterable[str], directory: Path) -> list[Path]:
        """See PackageSource."""
        return [Path(shutil.copyfile(path, directory / path.name)) for path in map(self._packages.find, names)]


def gather(
    directory: Path, selection: Selection, provided: Path | None, state: Path, *, timeout: float
) -> tuple[Packages, Libraries]:
    """Make `directory` with all packages of the selection, copied from the directory `provided`, or fetched by apt.

    apt keeps its lists in `state`; `timeout` is in seconds, for one run of it. The programs and libraries that were
    found are unpacked beside `directory`. Raises ToolMissing or PackageError, which name all that is missing.
    """
    if provided:
        return _gather(directory, selection, Provided(provided), f"in {provided}")
    with Apt.of(state, directory.parent / "apt", selection, timeout=timeout) as apt:
        return apt.with_fresh_lists(lambda: _gather(directory, selection, apt, "in Debian's archive"))


def _gather(directory: Path, selection: Selection, source: PackageSource, where: str) -> tuple[Packages, Libraries]:
    unpacked = directory.parent / "unpacked"
    for remains in (directory, unpacked):
        shutil.rmtree(remains, ignore_errors=True)
    directory.mkdir()
    libraries = Libraries(unpacked, selection)
    had = {wanted: source.named(wanted) for wanted in selection.all_packages}
    names = {name for name in had.values() if name}
    while names:
        libraries.add(source.bring(sorted(names), directory))
        possible = {library: filter(source.named, packages) for library, packages in libraries.lacking().items()}
        names = {name for library, packages in possible.items() for name in likely(library, packages)}
    _refuse_lack([wanted for wanted, name in had.items() if name is None], libraries, where)
    return Packages(directory), libraries


def _refuse_lack(wanted: list[str], libraries: Libraries, where: str) -> None:
    for_libraries: dict[str, list[str]] = {}
    for library, packages in libraries.lacking().items():
        files = " or ".join(map(file_for, likely(library, packages))) or "the package that has it"
        for_libraries.setdefault(files, []).append(library)
    missing = [f"put {file_for(name)} of Debian there" for name in wanted]
    missing += [f"put {files} there, for {', '.join(names)}" for files, names in sorted(for_libraries.items())]
    if missing:
        raise PackageError(
            f"{len(missing)} packages of the Linux guest are missing {where}",
            hint="provide the files above; [demo] packages names the directory",
            detail="\n".join(missing),
        )
