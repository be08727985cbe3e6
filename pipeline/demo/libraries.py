"""What programs load, found among Debian packages by what their files say, not by a list of one release's names.

A program names the libraries that it loads (`pipeline.images.elf.needed`), and its package depends on the packages
that hold them: Debian Policy, 8.6.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from pipeline.demo.packages import content, depends, members, name_of, opened
from pipeline.errors import ImageError, PackageError
from pipeline.images import elf

TARGET = "x86_64-linux-gnu"
DIRECTORY = f"usr/lib/{TARGET}"
"""Where packages have their libraries."""


@dataclass(frozen=True)
class Selection:
    """What is wanted of Debian's packages."""

    packages: tuple[str, ...]
    """Those without programs, by name, or by a pattern of names where they have a version in them."""
    programs: Mapping[str, Mapping[str, str]]
    """The programs that are run: by package, and by their names in it, what they are called here."""
    libraries: tuple[str, ...] = ()
    """Packages that are wanted and may hold libraries that the programs load."""
    through: tuple[str, ...] = ()
    """Packages that are not wanted themselves, but depend on those of the patterns."""
    without: frozenset[str] = frozenset()
    """Libraries that need not be found."""

    @property
    def all_packages(self) -> tuple[str, ...]:
        """All that are wanted in any case."""
        return tuple(dict.fromkeys((*self.programs, *self.packages, *self.libraries)))

    def holds_nothing(self, package: str) -> bool:
        """Whether no program or library of it counts."""
        wanted = package in self.programs or package in self.libraries
        return not wanted and any(fnmatch(package, pattern) for pattern in self.packages)


@dataclass(frozen=True)
class _File:
    package: str
    path: Path
    needs: tuple[str, ...]


@dataclass
class _Content:
    """What a package has of programs and libraries."""

    depends: list[str]
    programs: dict[str, _File] = field(default_factory=dict)
    libraries: dict[str, _File] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


class Libraries:
    """The programs of a selection and the libraries of all packages that are added, unpacked into a directory."""

    def __init__(self, directory: Path, selection: Selection) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._selection = selection
        self._packages: dict[str, _Content] = {}

    def add(self, packages: Iterable[Path]) -> None:
        """Unpack what counts of these packages. Raises PackageError for one that is damaged or lacks its programs."""
        new = list(packages)
        # Decompression does without the interpreter's lock
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            contents = list(workers.map(self._unpack, new))
        self._packages |= {name_of(path): found for path, found in zip(new, contents, strict=True)}

    def programs(self) -> dict[str, Path]:
        """The programs, by what they are called here."""
        return {name: file.path for found in self._packages.values() for name, file in found.programs.items()}

    def loaded(self) -> dict[str, Path]:
        """All libraries that the programs load, and those in turn, by the names under which they are looked for."""
        return {name: file.path for name, _, file in self._loads() if file}

    def of(self, package: str) -> dict[str, Path]:
        """All libraries of a package, by name."""
        found = self._packages[package]
        named = {name: found.libraries.get(target) for name, target in found.links.items()}
        return {name: file.path for name, file in {**named, **found.libraries}.items() if file}

    def lacking(self) -> dict[str, tuple[str, ...]]:
        """Each library that is loaded and not there, with the packages not added yet of which one should hold it."""
        lacking: dict[str, tuple[str, ...]] = {}
        for name, package, file in self._loads():
            if file is None:
                depends = (each for each in self._packages[package].depends if each not in self._packages)
                possible = (each for each in depends if not each.endswith("-dev"))
                lacking[name] = tuple(dict.fromkeys((*lacking.get(name, ()), *possible)))
        return lacking

    def _loads(self) -> Iterator[tuple[str, str, _File | None]]:
        """Each library that is loaded, with the package that it is loaded for; several times if for several."""
        waiting = [file for found in self._packages.values() for file in found.programs.values()]
        libraries = self._libraries()
        seen = set()
        while waiting:
            wanting = waiting.pop()
            for name in wanting.needs:
                if name not in self._selection.without and (name, wanting.package) not in seen:
                    seen.add((name, wanting.package))
                    yield name, wanting.package, libraries.get(name)
                    waiting += [libraries[name]] if name in libraries else []

    def _libraries(self) -> dict[str, _File]:
        found = {name: file for each in self._packages.values() for name, file in each.libraries.items()}
        links = ((name, target) for each in self._packages.values() for name, target in each.links.items())
        return {**{name: found[target] for name, target in links if target in found}, **found}

    def _unpack(self, package: Path) -> _Content:
        name = name_of(package)
        if self._selection.holds_nothing(name):
            return _Content([])
        found, wanted = _Content(depends(package)), self._selection.programs.get(name, {})
        directory = self._directory / name
        directory.mkdir(parents=True)
        with opened(package) as archive:
            for path, member in members(archive):
                called = wanted.get(path)
                place = PurePosixPath(path)
                if called and member.isfile():
                    found.programs[called] = _written(name, directory / called, content(archive, member))
                elif str(place.parent) == DIRECTORY and ".so" in place.name:
                    if member.isfile():
                        found.libraries[place.name] = _written(name, directory / place.name, content(archive, member))
                    elif member.issym():
                        found.links[place.name] = PurePosixPath(member.linkname).name
        missing = sorted({*wanted.values()} - found.programs.keys())
        if missing:
            raise PackageError(f"{name} does not hold {', '.join(missing)}", hint="use the packages of Debian 12 or 13")
        return found


def _written(package: str, path: Path, data: bytes) -> _File:
    path.write_bytes(data)
    path.chmod(0o755)
    try:
        return _File(package, path, elf.needed(path))
    except ImageError as error:
        raise PackageError(f"{path.name} of {package} is damaged: {error}", hint="fetch that package anew") from error


def likely(library: str, packages: Iterable[str]) -> list[str]:
    """Those of the packages that hold the library by their names, else all: libz3.so.4 is in libz3-4, but libz.so.1 in
    zlib1g.
    """
    stem = library.partition(".so")[0].lower().replace("_", "-")
    possible = list(packages)
    return [each for each in possible if each.startswith(stem)] or possible
