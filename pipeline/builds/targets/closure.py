"""Which shared libraries targets load: those that their directory has, and those that somebody else must have.

They are looked for as glibc's loader does it, see ld.so(8), where LD_LIBRARY_PATH is the directory of the program and
`lib` in it, and then those at the top: whoever runs the targets sets it so. The top is also the current directory. Only
what lies in it is looked at, so a path such as /out/lib, which it had where it was built, leads nowhere.
"""

import posixpath
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.builds.elf import DamagedElfError, ElfFacts, release
from pipeline.builds.targets.directory import FoundTarget, TargetsDirectory

LIBRARY_PATH = (".", "lib")
"""What LD_LIBRARY_PATH names when a target is run: these, first in the directory of the program, then at the top."""

_ORIGIN = re.compile(r"\$(?:ORIGIN\b|\{ORIGIN\})")
_LOADED_ALREADY = frozenset({"ld-linux-x86-64.so.2", "linux-vdso.so.1"})
"""The loader itself, and what the kernel loads."""

Facts = Callable[[Path], ElfFacts | None]


@dataclass(frozen=True)
class Closure:
    """The shared libraries that targets load, directly or not."""

    own: tuple[PurePosixPath, ...]
    """Those in the directory, sorted; a link to one, if it is found under the link's name."""
    lacking: Mapping[str, tuple[str, ...]]
    """The others, by soname, with the names of the targets that load them."""
    by_target: Mapping[str, tuple[str, ...]]
    """For each target the sonames of all that it loads, sorted. What libraries load that the directory does not have
    is not known here."""
    glibc: Mapping[str, str]
    """For each target the oldest glibc with which it can run, together with its libraries that the directory has: a
    library may need a newer one than the target itself. "" if none of them needs any."""


def find(found: TargetsDirectory, facts: Facts) -> Closure:
    """Find the libraries that the targets of a directory load; `facts` reads an ELF file as for `scan`.

    A library that is damaged, that cannot be read, or that is for another machine does not count.
    """
    libraries = _Libraries(found, facts)
    loaded = {target.name: dict(_loaded(target, libraries)) for target in found.targets}
    lacking: dict[str, list[str]] = {}
    for target, names in loaded.items():
        for name in (name for name, library in names.items() if library is None):
            lacking.setdefault(name, []).append(target)
    return Closure(
        tuple(sorted({library.path for names in loaded.values() for library in names.values() if library})),
        {name: tuple(lacking[name]) for name in sorted(lacking)},
        {target: tuple(sorted(names)) for target, names in loaded.items()},
        {target.name: _glibc(target, loaded[target.name].values()) for target in found.targets},
    )


def _glibc(target: FoundTarget, libraries: Iterable["_Library | None"]) -> str:
    needed = [target.elf.glibc, *(library.elf.glibc for library in libraries if library)]
    return max(needed, key=release)


@dataclass(frozen=True)
class _Library:
    path: PurePosixPath
    elf: ElfFacts


class _Libraries:
    """The files of a directory of targets, as libraries."""

    def __init__(self, found: TargetsDirectory, facts: Facts) -> None:
        self._directory = found.directory
        self._files = frozenset(found.others)
        self._names = frozenset(path.name for path in found.others)
        self._facts = facts
        self._read: dict[PurePosixPath, ElfFacts | None] = {}

    def first_of(self, places: Iterable[PurePosixPath], name: str, user: ElfFacts) -> _Library | None:
        """The first library with this name in these directories that fits its user."""
        if PurePosixPath(name).name not in self._names:
            return None  # as most are, those of the system; to put paths together takes its time
        for place in places:
            path = PurePosixPath(posixpath.normpath(place / name))
            if path in self._files:
                elf = self._elf(path)
                if elf and (elf.machine, elf.bits) == (user.machine, user.bits):
                    return _Library(path, elf)
        return None

    def _elf(self, path: PurePosixPath) -> ElfFacts | None:
        if path not in self._read:
            try:
                self._read[path] = self._facts(self._directory / path)
            except (DamagedElfError, OSError):
                self._read[path] = None
        return self._read[path]

    def origin(self, program: PurePosixPath) -> PurePosixPath:
        """What $ORIGIN means for a program: the directory of what a link leads to, as the kernel tells the loader."""
        root = self._directory.resolve()
        target = (self._directory / program).resolve()
        return PurePosixPath(target.relative_to(root) if target.is_relative_to(root) else program).parent


class _User:
    """A program or library that is loaded, and where the loader looks for its libraries."""

    def __init__(
        self,
        elf: ElfFacts,
        origin: PurePosixPath,
        library_path: tuple[PurePosixPath, ...],
        inherited: tuple[PurePosixPath, ...] = (),
    ) -> None:
        self.elf = elf
        own = tuple(_places(elf.search, origin))
        self.inherited = (*own, *inherited) if elf.inherited else inherited
        """By DT_RPATH: its own, then those of whatever has it loaded. All that it loads gets them, too."""
        # A DT_RUNPATH, even one that leads nowhere, takes the effect from all DT_RPATH
        before, after = ((), own) if elf.search and not elf.inherited else (self.inherited, ())
        self.places = (*before, *library_path, *after)


def _loaded(target: FoundTarget, libraries: _Libraries) -> Iterator[tuple[str, _Library | None]]:
    """The names of all that a target loads, with the libraries in the directory; breadth first, as the loader does it.

    A name is looked for once: who needs it later gets what was loaded, wherever it would be looked for otherwise.
    """
    # Links are followed only for a program that has a use for it
    origin = libraries.origin(target.program) if target.elf.search else PurePosixPath()
    tops = dict.fromkeys((target.program.parent, PurePosixPath()))
    library_path = tuple(top / each for top in tops for each in LIBRARY_PATH)
    waiting = deque([_User(target.elf, origin, library_path)])
    known = set(_LOADED_ALREADY)
    while waiting:
        user = waiting.popleft()
        for name in user.elf.needed:
            if name not in known:
                # With a slash it is a path, which for us begins in the current directory
                places = (PurePosixPath(),) if "/" in name else user.places
                found = libraries.first_of(places, name, user.elf)
                yield name, found
                known.add(name)
                if found:
                    known.add(found.elf.soname)
                    waiting.append(_User(found.elf, found.path.parent, library_path, user.inherited))


def _places(search: Iterable[str], origin: PurePosixPath) -> Iterator[PurePosixPath]:
    """The directories of a search path. One that is not written relative to $ORIGIN, or to nothing, is not here."""
    for text in search:
        yield PurePosixPath(_ORIGIN.sub(lambda _: str(origin), text))
