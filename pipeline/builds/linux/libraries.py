"""The libraries that programs load, found among Debian packages by what the files say, without a list for each release.

A program names the libraries that it loads (DT_NEEDED of its ELF file), and its package depends on the packages that
hold them: Debian Policy, 8.6.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from pipeline.builds import elf
from pipeline.builds.linux.packages import content, depends, members, name_of, opened
from pipeline.errors import PackageError

TARGET = "x86_64-linux-gnu"
DIRECTORY = f"usr/lib/{TARGET}"
"""The directory in which packages have their libraries."""


@dataclass(frozen=True)
class Selection:
    """A choice of Debian packages, and of the programs and libraries in them."""

    packages: tuple[str, ...]
    """Wanted packages that hold none of the programs, by name, or by a pattern where the name contains a version."""
    programs: Mapping[str, Mapping[str, str]]
    """The wanted programs: for each package, from their path in it to the name that they get here."""
    libraries: tuple[str, ...] = ()
    """Wanted packages that may hold libraries which the programs load."""
    through: tuple[str, ...] = ()
    """Packages that are not wanted themselves, but depend on those that the patterns mean."""
    without: frozenset[str] = frozenset()
    """Libraries that the programs load, but that need not be found."""

    @property
    def all_packages(self) -> tuple[str, ...]:
        """All packages that are wanted whatever the programs load, by name or pattern."""
        return tuple(dict.fromkeys((*self.programs, *self.packages, *self.libraries)))

    def holds_nothing(self, package: str) -> bool:
        """Whether neither programs nor libraries of this package are wanted, so that it need not be unpacked."""
        wanted = package in self.programs or package in self.libraries
        return not wanted and any(fnmatch(package, pattern) for pattern in self.packages)


@dataclass(frozen=True)
class _File:
    package: str
    path: Path
    needs: tuple[str, ...]


@dataclass
class _Content:
    """The programs and libraries of a package, its dependencies, and the links to its libraries."""

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
        """Unpack the programs and libraries of these packages. Raises PackageError if one is damaged or incomplete."""
        new = list(packages)
        # Threads: decompression releases the interpreter's lock
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            contents = list(workers.map(self._unpack, new))
        self._packages |= {name_of(path): found for path, found in zip(new, contents, strict=True)}

    def programs(self) -> dict[str, Path]:
        """The paths of the unpacked programs, by the names that they get here."""
        return {name: file.path for found in self._packages.values() for name, file in found.programs.items()}

    def loaded(self) -> dict[str, Path]:
        """The paths of all libraries that the programs load, directly or not, by the names that are looked for."""
        return {name: file.path for name, _, file in self._loads() if file}

    def of(self, package: str) -> dict[str, Path]:
        """The paths of all libraries of a package that has been added, by name."""
        found = self._packages[package]
        named = {name: found.libraries.get(target) for name, target in found.links.items()}
        return {name: file.path for name, file in {**named, **found.libraries}.items() if file}

    def lacking(self) -> dict[str, tuple[str, ...]]:
        """Each library that is loaded and not found, with the packages, not added yet, of which one should hold it."""
        lacking: dict[str, tuple[str, ...]] = {}
        for name, package, file in self._loads():
            if file is None:
                depends = (each for each in self._packages[package].depends if each not in self._packages)
                possible = (each for each in depends if not each.endswith("-dev"))
                lacking[name] = tuple(dict.fromkeys((*lacking.get(name, ()), *possible)))
        return lacking

    def _loads(self) -> Iterator[tuple[str, str, _File | None]]:
        """Each library that is loaded, with each package that loads it, and the file of the library if it was found."""
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
    return _File(package, path, needed(package, path))


def needed(package: str, path: Path) -> tuple[str, ...]:
    """The names of the libraries that the loader loads for this program or library of a package, in their order.

    There are none for a file that is no ELF file, such as a script. Raises PackageError for a damaged one.
    """
    try:
        facts = elf.read(path)
    except elf.DamagedElfError as error:
        raise PackageError(f"{path.name} of {package} is damaged: {error}", hint="fetch that package anew") from error
    return facts.needed if facts else ()


def likely(library: str, packages: Iterable[str]) -> list[str]:
    """The packages whose names say that they hold the library; all of them if none does.

    libz3.so.4 is in libz3-4, but libz.so.1 in zlib1g.
    """
    stem = library.partition(".so")[0].lower().replace("_", "-")
    possible = list(packages)
    return [each for each in possible if each.startswith(stem)] or possible
