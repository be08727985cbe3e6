"""The seeds of a fuzz target, taken out of its seed corpora: archives or directories beside it, made by others.

OSS-Fuzz has them in `NAME_seed_corpus.zip`, for a target NAME; ClusterFuzz also takes tar archives, and a directory.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.builds.targets.seeds import tars, trees, zips
from pipeline.builds.targets.seeds.omissions import DAMAGED, SPECIAL, FoundFile, Omission, unreadable
from pipeline.builds.targets.seeds.packed import Allowance, Damaged, NoMore, SourceFile
from pipeline.text.printable import one_line
from pipeline.text.quantity import readable_size

SUFFIXES = (".zip", ".tar", ".tar.bz2", ".tar.gz", ".tb2", ".tbz", ".tbz2", ".tgz", ".tar.lzma", ".tar.xz")
"""What follows NAME_seed_corpus in the names of archives. Source: ClusterFuzz, archive.py, ARCHIVE_FILE_EXTENSIONS."""

WORK = 4
"""How many times as much is read, or looked at, as may be taken: what is left out costs time too."""

_LEAST_WORK = 16 << 20  # bytes: also of tiny limits


@dataclass(frozen=True)
class SeedLimits:
    """The limits of the seeds of one target, from all of its seed corpora together.

    They are the same as [campaign] unit_size, corpus_size and corpus_units, as the seeds become units of a corpus.
    """

    unit: int = 1 << 20
    """The most bytes of one seed."""
    bytes: int = 1 << 30
    """The most bytes of all seeds together."""
    units: int = 50_000
    """The most seeds."""


@dataclass(frozen=True)
class Seeds:
    """What was taken out of seed corpora."""

    count: int
    """How many seeds there are, each content counted once."""
    bytes: int
    """The bytes of all of them together."""
    left_out: tuple[str, ...]
    """What was left out: a line for each kind of thing, with a count, an example, and what to do; fit to print.

    There is a small number of kinds, and each line has at most 500 characters.
    """


def gather(sources: Sequence[Path], into: Path, limits: SeedLimits = SeedLimits()) -> Seeds:
    """Take the seeds out of these archives and directories, and put each into the new directory `into`.

    `into` is made only if there is a seed; nothing may be there before. Each seed gets the SHA-1 of its content as its
    name, as libFuzzer names units: so content that is there many times is one seed, the names in an archive are never
    used as paths, whatever they are, and the outcome does not depend on the order of an archive, unless a limit is met.
    An empty file is no seed, and not mentioned either: libFuzzer passes over it, and tries the empty input anyway.

    A source whose name ends with .zip is a zip archive, any other file a tar archive, compressed or not. An archive in
    an archive is a seed like any other. Links and devices in archives are left out. In directories, hidden directories
    and links out of the directory are left out; pipes and sockets are never opened. What is damaged, encrypted, packed
    in unknown ways or may not be read is left out, and the rest is taken; a zip archive without its end has no rest.

    Memory is bounded: by the names of the seeds, one seed, and what a decompressor may use (packed.MEMORY). So is the
    work: reading ends once there is one seed too many, or once WORK times `limits.bytes` (at least 16 MiB) have been
    read and decompressed, or WORK times `limits.units` files looked at. What comes after that is left out.

    Raises OSError if the host fails, such as by a full disk; `into` may be there then, with some of the seeds.
    """
    taken, omissions = _Taken(into, limits), _Omissions()
    allowance = Allowance(WORK * limits.units, max(_LEAST_WORK, WORK * limits.bytes))
    for source in sources:
        try:
            for found in _files(source, limits.unit, allowance):
                if found.omission:
                    omissions.count(found.omission, found)
                else:
                    taken.take(found.content)
        except NoMore as reason:
            omissions.more = (
                f"more seeds, in {one_line(source.name, 120)} and after it: {reason}; merge them into fewer"
            )
            break
    return Seeds(len(taken.names), taken.bytes, omissions.clauses)


class _Taken:
    """The seeds that have been written."""

    def __init__(self, into: Path, limits: SeedLimits) -> None:
        self.names: set[str] = set()
        self.bytes = 0
        self._into, self._limits = into, limits

    def take(self, content: bytes) -> None:
        """Write a seed that is new, and not empty. Raises NoMore if it is beyond the limits, and OSError."""
        name = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        if not content or name in self.names:
            return
        if len(self.names) == self._limits.units:
            raise NoMore(f"there are more than {self._limits.units:,}")
        if self.bytes + len(content) > self._limits.bytes:
            raise NoMore(f"all have more than {readable_size(self._limits.bytes)}")
        if not self.names:
            self._into.mkdir()
        with (self._into / name).open("xb") as stream:
            stream.write(content)
        self.names.add(name)
        self.bytes += len(content)


class _Omissions:
    """Counts what is left out, by its kind."""

    def __init__(self) -> None:
        self.more = ""
        self._counts: dict[Omission, int] = {}
        self._examples: dict[Omission, str] = {}

    def count(self, omission: Omission, found: FoundFile) -> None:
        self._counts[omission] = self._counts.get(omission, 0) + 1
        if omission not in self._examples:
            self._examples[omission] = found.example

    @property
    def clauses(self) -> tuple[str, ...]:
        kinds = [omission.clause(count, self._examples[omission]) for omission, count in self._counts.items()]
        return (*kinds, *([self.more] if self.more else []))


def _files(source: Path, unit: int, allowance: Allowance) -> Iterator[FoundFile]:
    try:
        mode = source.stat().st_mode
    except OSError as error:
        yield unreadable(source.name, error)
        return
    if stat.S_ISDIR(mode):
        yield from trees.files(source, unit, allowance)
    elif stat.S_ISREG(mode):
        yield from _archived(source, unit, allowance)
    else:
        yield FoundFile(source.name, omission=SPECIAL)


def _archived(source: Path, unit: int, allowance: Allowance) -> Iterator[FoundFile]:
    try:
        with SourceFile(Path(os.path.realpath(source)), allowance) as archive:
            if source.name.endswith(".zip"):
                found = zips.files(archive, unit, allowance)
            else:
                found = tars.files(archive, unit, allowance, is_lzma=source.name.endswith(".lzma"))
            for file in found:
                yield replace(file, archive=source.name)
    except Damaged as error:
        yield FoundFile(source.name, omission=DAMAGED, why=str(error))
    except OSError as error:
        yield unreadable(source.name, error)
