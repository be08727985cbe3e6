"""Libraries for targets out of Debian's packages of the guest's release: what targets load, and no directory has.

A package of a library is named after it, as Debian's policy has it (8.1): libfoo.so.2 is in libfoo2, or in libfoo2t64,
since times have 64 bits everywhere. The packages with such names are looked into; the user can name others.
"""

import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.builds.linux.apt import Apt
from pipeline.builds.linux.gathering import PackageSource, Provided
from pipeline.builds.linux.libraries import Libraries, Selection, needed
from pipeline.builds.linux.packages import depends
from pipeline.host.faults import host_faults
from pipeline.store import document
from pipeline.store.publish import publish_json

SCHEMA = 1
"""The schema of the list of libraries. Tests hold a frozen sample."""

_ODD = {
    r"libz\.so\.1": "zlib1g",
    r"libcrypto\.so\.([0-9.]+)": r"libssl\1",
    r"libicu[a-z0-9]+\.so\.([0-9]+)": r"libicu\1",
    r"lib(?:gio|gmodule|gobject|gthread)-2\.0\.so\.0": "libglib2.0-0",
    r"libjpeg\.so\.62": "libjpeg62-turbo",
}
"""Libraries, as patterns, whose packages are not named after them: those that many targets load."""

_SONAME = re.compile(r"(?P<stem>[A-Za-z0-9_.+-]+?)(?:-(?P<minor>[0-9.]+))?\.so(?:\.(?P<version>[0-9A-Za-z.]+))?")
_LONGEST = 100  # characters of a name that can be a library of Debian
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+]")


@dataclass(frozen=True)
class FoundLibraries:
    """What was found: the packages of the libraries, by the names that are looked for, and the names without any."""

    found: Mapping[str, str]
    missing: tuple[str, ...]

    def encode(self) -> dict[str, object]:
        """The value as data for JSON, with the schema."""
        return {"schema": SCHEMA, "found": dict(self.found), "missing": list(self.missing)}


def read(listing: Path) -> FoundLibraries:
    """What `gather` has written to the list. Raises OSError or ValueError."""
    return document.decode(listing.read_bytes(), FoundLibraries, SCHEMA)


def candidates(library: str) -> list[str]:
    """The packages that may hold a library, by Debian's rules for their names, the likeliest first."""
    match = _SONAME.fullmatch(library) if len(library) <= _LONGEST else None
    if match is None:
        return []
    stem = match["stem"].lower().replace("_", "-")
    version, minor = (match["version"] or "").lower(), (match["minor"] or "").lower()
    odd = ((re.fullmatch(pattern, library), package) for pattern, package in _ODD.items())
    named = [found.expand(package) for found, package in odd if found]
    if minor:  # libpcre2-8-0, but libglib2.0-0
        named += [f"{stem}-{minor}-{version}", f"{stem}{minor}-{version}", f"{stem}-{minor}", f"{stem}{minor}"]
    for each in dict.fromkeys((version, version.partition(".")[0])):
        named += [f"{stem}-{each}"] if stem[-1:].isdigit() else [f"{stem}{each}", f"{stem}-{each}"]
    likely = (f"{name}{suffix}" for name in (*named, stem) for suffix in ("", "t64") if _PACKAGE.fullmatch(name))
    return list(dict.fromkeys(likely))


def gather(
    names: Sequence[str],
    packages: Sequence[str],
    provided: Path | None,
    state: Path,
    listing: Path,
    directory: Path,
    *,
    without: Collection[str],
    timeout: float,
) -> None:
    """Make `directory` with the libraries of these names, and those that they load in turn, and the list of them.

    `packages` are the first in which they are looked for. `provided` is a directory with packages; without it apt
    fetches them, and keeps its lists in `state`. Libraries in `without` are there anyway. `timeout` is in seconds, for
    one run of apt. What is in no package is in the list as missing. Raises StoreError, ToolMissing or PackageError.
    """
    work = listing.parent
    with host_faults("collecting the libraries of targets"):
        directory.mkdir()
        if not names:
            found = FoundLibraries({}, ())
        elif provided:
            found = _LibrarySearch(Provided(provided), work, without).run(names, packages, directory)
        else:
            wanted = Selection(packages=(), programs={}, libraries=(*packages, *_first(names)))
            with Apt.of(state, work / "apt", wanted, timeout=timeout) as apt:
                found = apt.with_fresh_lists(lambda: _LibrarySearch(apt, work, without).run(names, packages, directory))
        publish_json(listing, found.encode())


def _first(names: Sequence[str]) -> Iterator[str]:
    """For a message that tells which packages are wanted: the likeliest for each library."""
    for name in names:
        yield from candidates(name)[:1]


class _LibrarySearch:
    """A search through packages, each of which is fetched once, for all libraries that are in it."""

    def __init__(self, source: PackageSource, work: Path, without: Collection[str]) -> None:
        self._source, self._work, self._without = source, work, without
        self._opened: dict[str, Mapping[str, Path]] = {}
        """The libraries of each package that was fetched."""
        self._depends: dict[str, list[str]] = {}
        """The packages that each of these depends on."""

    def run(self, names: Sequence[str], packages: Sequence[str], directory: Path) -> FoundLibraries:
        """Find the libraries, and those that they load, and put them into the directory."""
        found: dict[str, str] = {}
        missing: set[str] = set()
        waiting = [(name, tuple(packages)) for name in sorted(names, reverse=True)]
        while waiting:
            name, likely = waiting.pop()
            if name in found or name in self._without:
                continue
            if package := self._package_of(name, likely):
                path = self._opened[package][name]
                shutil.copyfile(path, directory / name)
                found[name] = package
                waiting += [(each, (*packages, *self._depends[package])) for each in needed(package, path)]
            else:
                missing.add(name)
            if not waiting:  # what was opened meanwhile may have what was missing
                waiting = [(each, ()) for each in sorted(missing - found.keys()) if self._holder_of(each)]
        return FoundLibraries(dict(sorted(found.items())), tuple(sorted(missing - found.keys())))

    def _package_of(self, name: str, likely: Sequence[str]) -> str | None:
        """The package that has a library: one that is open, else one of those by their names, else any of `likely`."""
        if package := self._holder_of(name):
            return package
        by_name = candidates(name)
        first = [each for each in by_name if each in likely]
        return next((each for each in (*first, *likely, *by_name) if name in self._libraries_of(each)), None)

    def _holder_of(self, name: str) -> str | None:
        return next((package for package, libraries in self._opened.items() if name in libraries), None)

    def _libraries_of(self, package: str) -> Mapping[str, Path]:
        if package not in self._opened:
            self._opened[package] = self._fetched(package) if self._source.exists(package) else {}
        return self._opened[package]

    def _fetched(self, package: str) -> Mapping[str, Path]:
        place = self._work / "fetched" / package
        shutil.rmtree(place, ignore_errors=True)  # with new lists of apt, all is fetched anew
        place.mkdir(parents=True)
        unpacked = Libraries(place / "unpacked", Selection((), {}, (package,)))
        (fetched,) = self._source.bring([package], place)
        unpacked.add([fetched])
        self._depends[package] = depends(fetched)
        return unpacked.of(package)
