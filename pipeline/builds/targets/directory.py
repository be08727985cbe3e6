"""What is in a directory of targets: which files are fuzz targets, what lies beside them, what is left out and why.

The rules are those of ClusterFuzz (is_fuzz_target in src/clusterfuzz/_internal/bot/fuzzers/utils.py) and of OSS-Fuzz
(infra/base-images/base-runner/targets_list). They differ where the guest does: a target must be an ELF program with
libFuzzer in it. A script is none, and a name that ends with _fuzzer is not believed unread.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.builds.elf import MAGIC, DamagedElfError, ElfFacts
from pipeline.builds.targets import verdict
from pipeline.builds.targets.entries import SEEDS, Entry, walk
from pipeline.builds.targets.verdict import Objection, stem
from pipeline.text.printable import one_line

ARCHIVES = ("zip", "tar", "tar.bz2", "tar.gz", "tb2", "tbz", "tbz2", "tgz", "tar.lzma", "tar.xz")
"""The suffixes of archives of seeds, as ClusterFuzz knows them."""

_LIBRARY = re.compile(r"\.so(?:\.|\Z)")
_DRIVER = re.compile(r"jazzer_driver.*|jazzerjs")
_SEEDS = re.compile(rf".*{SEEDS}(?:\.(?:{'|'.join(map(re.escape, ARCHIVES))}))?", re.DOTALL)
_NEVER_NEEDED = re.compile(
    r"(?:.*\.(?:options|owners|labels|components|issue_metadata|debug|dwo|dwp)|llvm-symbolizer|topcoat-targets\.toml)",
    re.DOTALL,
)
_OBJECTS = (".a", ".o")
_SCRIPT_READ = 1 << 16  # bytes in which a script's mark is looked for


@dataclass(frozen=True)
class FoundTarget:
    """A fuzz target, and what lies beside it; all paths are relative to the directory."""

    name: str
    program: PurePosixPath
    elf: ElfFacts
    dictionary: PurePosixPath | None
    """NAME.dict; NAME.options may name another one."""
    options: PurePosixPath | None
    """NAME.options."""
    seeds: tuple[PurePosixPath, ...]
    """Archives and a directory NAME_seed_corpus, sorted."""
    bytes: int
    """The size of the program."""


@dataclass(frozen=True)
class LeftOutFile:
    """A file, or directory, that is no target, and cannot be used as one."""

    path: PurePosixPath
    reason: str
    """One clause."""
    hint: str
    """What to do; "" if nothing is to be done."""
    broken: bool
    """Whether it looks like a target, or the user may take it for one. If not, it may be among `others`, too."""


@dataclass(frozen=True)
class TargetsDirectory:
    """The content of a directory of targets."""

    directory: Path
    targets: tuple[FoundTarget, ...]
    """Sorted by name."""
    left_out: tuple[LeftOutFile, ...]
    """Sorted by path."""
    others: tuple[PurePosixPath, ...]
    """All other files that targets may need when they run: libraries, data, other programs; links to such, too."""


def scan(
    directory: Path, facts: Callable[[Path], ElfFacts | None], *, glibc: str = "", without: Path | None = None
) -> TargetsDirectory:
    """Find out what is in a directory of targets; that it has none is no error.

    `facts` reads an ELF file, as `pipeline.builds.elf.read` does. `glibc` is the version that the guest has, such as
    "2.36"; without it, none is too new. The directory `without` in it, if any, is passed over. Only programs, and files
    that may be some, are read. Raises SettingsError if the directory is not there, cannot be read, or holds too much.
    """
    found = _DirectoryScan(directory, facts, glibc)
    entries = tuple(walk(directory, without))
    for entry in entries:
        found.take(entry)
    return found.result(entries)


class _DirectoryScan:
    def __init__(self, directory: Path, facts: Callable[[Path], ElfFacts | None], glibc: str) -> None:
        self._directory = directory
        self._facts = facts
        self._glibc = glibc
        self._targets: list[tuple[Entry, ElfFacts]] = []
        self._left_out: list[LeftOutFile] = []
        self._others: list[PurePosixPath] = []

    def take(self, entry: Entry) -> None:
        """Decide what an entry is. One that has vanished is nothing."""
        objection = _by_name(entry)
        if objection is None and _is_beside(entry):
            return
        try:
            found = objection or self._by_content(entry)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            found = Objection(f"it cannot be read: {error.strerror}", "see to its permissions", broken=entry.executable)
        if isinstance(found, ElfFacts):
            self._targets.append((entry, found))
        elif isinstance(found, Objection):
            self._leave_out(entry.path, found)
        else:
            self._others.append(entry.path)

    def _leave_out(self, path: PurePosixPath, objection: Objection) -> None:
        self._left_out.append(LeftOutFile(path, objection.reason, objection.hint, objection.broken))
        if objection.needed:
            self._others.append(path)

    def _by_content(self, entry: Entry) -> ElfFacts | Objection | None:
        if _LIBRARY.search(entry.path.name):
            return None
        beginning = _read(self._directory / entry.path, len(MAGIC))
        if beginning == MAGIC:
            return self._of_elf_file(entry)
        return self._of_another(entry, beginning) if entry.executable else None

    def _of_elf_file(self, entry: Entry) -> ElfFacts | Objection | None:
        try:
            facts = self._facts(self._directory / entry.path)
        except DamagedElfError as error:
            broken = entry.executable or verdict.named_like_target(entry.path.name)
            return Objection(f"it is damaged: {error}", "build it anew, or copy it again", broken, needed=not broken)
        if facts is None:
            return None
        objection = verdict.of_program(entry.path, facts, executable=entry.executable, glibc=self._glibc)
        if objection is verdict.PROGRAM and not (entry.executable and facts.kind == "program"):
            return None  # a library, or a program that nobody runs
        return objection or facts

    def _of_another(self, entry: Entry, beginning: bytes) -> Objection | None:
        named = verdict.named_like_target(entry.path.name)
        if beginning.startswith(b"#!"):
            marked = verdict.MARK in _read(self._directory / entry.path, _SCRIPT_READ)
            return verdict.WRAPPER if marked or named else verdict.SCRIPT
        return verdict.NO_PROGRAM if named else None

    def result(self, entries: tuple[Entry, ...]) -> TargetsDirectory:
        """What was found, once all entries were taken."""
        beside = {entry.path for entry in entries if not entry.objection}
        targets = [_target(entry, facts, beside) for entry, facts in self._only_one_of_each_name()]
        dictionaries = {target.dictionary for target in targets}
        return TargetsDirectory(
            self._directory,
            tuple(sorted(targets, key=lambda target: target.name)),
            tuple(sorted(self._left_out, key=lambda left: left.path)),
            tuple(sorted(path for path in self._others if path not in dictionaries)),
        )

    def _only_one_of_each_name(self) -> list[tuple[Entry, ElfFacts]]:
        """Those nearest to the top; the others of the same names are left out."""
        first: dict[str, tuple[Entry, ElfFacts]] = {}
        for entry, facts in sorted(self._targets, key=lambda found: (len(found[0].path.parts), found[0].path)):
            name = entry.path.name
            if name in first:
                reason = f"{one_line(str(first[name][0].path))} has the same name"
                self._leave_out(entry.path, Objection(reason, "rename one of them, or remove it"))
            else:
                first[name] = entry, facts
        return list(first.values())


def _by_name(entry: Entry) -> Objection | None:
    """Why an entry is no target, as far as that can be told without reading it."""
    name = entry.path.name
    if entry.objection or entry.seeds:
        return entry.objection
    if entry.path.parent.name == "__extra_build":
        return verdict.EXTRA
    if name.endswith(_OBJECTS):
        return verdict.OBJECT
    return verdict.DRIVER if _DRIVER.fullmatch(name) else None


def _is_beside(entry: Entry) -> bool:
    """Whether it is never loaded by a target: seeds, options, what others are told about a target."""
    name = entry.path.name
    return entry.seeds or bool(_SEEDS.fullmatch(name) or _NEVER_NEEDED.fullmatch(name))


def _target(entry: Entry, facts: ElfFacts, beside: set[PurePosixPath]) -> FoundTarget:
    name = entry.path.name
    start, _ = stem(name)
    near = {suffix: entry.path.with_name(start + suffix) for suffix in (".dict", ".options", SEEDS)}
    there = {suffix: path for suffix, path in near.items() if path in beside}
    archives = (entry.path.with_name(f"{start}{SEEDS}.{suffix}") for suffix in ARCHIVES)
    seeds = [path for path in (near[SEEDS], *archives) if path in beside]
    return FoundTarget(
        name, entry.path, facts, there.get(".dict"), there.get(".options"), tuple(sorted(seeds)), entry.size
    )


def _read(path: Path, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, length, 0)
    finally:
        os.close(descriptor)
