"""What the guest gets of one package of targets: those that were found in its directory, and those compiled for it."""

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pipeline.builds import demo
from pipeline.builds.elf import ElfFacts, release
from pipeline.builds.linux import initramfs
from pipeline.builds.targets import closure, compiling, directory, options, sources, verdict
from pipeline.builds.targets.directory import ARCHIVES, FoundTarget, LeftOutFile, TargetsDirectory
from pipeline.builds.targets.entries import SEEDS, root_of
from pipeline.builds.targets.patterns import takes
from pipeline.builds.targets.places import OWN_PACKAGE, TargetsPlaces, compiled
from pipeline.builds.targets.sources import NAME, SourceTarget, TargetSources
from pipeline.text.printable import one_line

CANARY = ("crash_fuzzer", "noop_fuzzer")
"""Topcoat's own targets that every Linux guest has: they prove that a campaign would find what there is."""

_MOST_SEEDS = 200_000  # files below a directory of seeds; no more are looked at when they are taken either

Facts = Callable[[Path], ElfFacts | None]
"""What an ELF file says of itself; None for any other file."""


@dataclass(frozen=True)
class LeftOutTarget:
    """Something in a package that is no target, or a target that the guest cannot get."""

    name: str
    """The name that the target would have."""
    path: str
    """The path in the package's directory, fit to print."""
    reason: str
    hint: str
    broken: bool = True
    """Whether somebody may take it for a target; else it is an ordinary file."""

    @property
    def shown(self) -> str:
        """What it is called for people: a target that is compiled has another name than its source."""
        name = one_line(self.name)
        return self.path if PurePosixPath(self.path).name == name else f"{name} ({self.path})"


@dataclass(frozen=True)
class TargetsSource:
    """Where a package of targets comes from."""

    package: str
    directory: Path
    """The directory of the targets, or of their sources."""
    says: TargetSources
    """What its topcoat-targets.toml says."""
    store: Path
    """The store, which may lie in that directory, and is none of it."""
    compiled: Path
    """The directory of what was compiled: for each target the directory NAME, and NAME.txt."""

    def only(self, names: Sequence[str]) -> "TargetsSource":
        """The same package with only these of the targets that are compiled."""
        return replace(self, says=replace(self.says, targets=tuple(t for t in self.says.targets if t.name in names)))


def sources_of(here: TargetsPlaces) -> list[TargetsSource]:
    """Where the targets of a build come from: its own package first, then Topcoat's for the canary.

    Raises SettingsError.
    """
    root_of(here.source)  # a wrong name is told before anything is made
    root = here.store.root
    found = [TargetsSource(here.package, here.source, sources.read(here.source), root, here.compiled)]
    if here.package != OWN_PACKAGE:
        made = compiled(here.store, OWN_PACKAGE)
        ours = TargetsSource(OWN_PACKAGE, demo.TARGETS, sources.read(demo.TARGETS), root, made)
        found.append(ours.only(CANARY))
    return found


@dataclass(frozen=True)
class PackageContents:
    """All that is known of a package. Paths of the guest are relative to the package's directory there."""

    source: TargetsSource
    targets: tuple[FoundTarget, ...]
    files: Mapping[PurePosixPath, Path]
    """The files that the guest gets besides seeds: by their paths there, those of the host."""
    left_out: tuple[LeftOutTarget, ...]
    lacking: Mapping[str, tuple[str, ...]]
    """Libraries that neither the directory nor the guest itself has, with the targets that load them."""
    loads: Mapping[str, tuple[str, ...]]
    """For each target, the names of all libraries that it loads, as far as the directory tells."""

    @property
    def package(self) -> str:
        """The package's name."""
        return self.source.package

    def inputs(self) -> dict[str, dict[str, Path]]:
        """All files of the host that count but what was compiled: those of each target, and of nobody, by names."""
        root, compiled = self.source.directory, {target.name for target in self.source.says.targets}
        found: dict[str, dict[str, Path]] = {}
        owners: dict[PurePosixPath, str] = {}
        for target in self.targets:
            mine = [path for path in (target.dictionary, target.options) if path is not None]
            mine += [] if target.name in compiled else [target.program]
            seeds = [file for path in target.seeds for file in _below(root, path)]
            owners |= dict.fromkeys((target.program, *mine), target.name)
            found[f"files of {target.name}"] = {str(path): root / path for path in (*mine, *seeds)}
        others = {str(path): file for path, file in self.files.items() if path not in owners}
        return {**found, "all other files": others}

    def without(self, missing: Sequence[str]) -> "PackageContents":
        """The same without the targets that load one of these libraries, which nobody has."""
        bad = {name: library for library in missing for name in self.lacking.get(library, ())}
        programs = {target.program for target in self.targets if target.name in bad}
        out = [
            LeftOutTarget(
                target.name,
                one_line(str(target.program)),
                f"it loads {one_line(bad[target.name])}, which neither the directory nor a package of Debian has",
                f"put the library beside it or into lib/, or name its package: packages = [...] in {NAME}",
            )
            for target in self.targets
            if target.name in bad
        ]
        kept = tuple(target for target in self.targets if target.name not in bad)
        files = {path: file for path, file in self.files.items() if path not in programs}
        return replace(self, targets=kept, files=files, left_out=(*self.left_out, *out))


def of(source: TargetsSource, facts: Facts, glibc: str = "") -> PackageContents:
    """Look at a package: its directory, and what was compiled for it. `glibc` is the version that the guest has.

    Raises SettingsError, and OSError.
    """
    found = directory.scan(source.directory, facts, glibc=glibc, without=source.store)
    made, failed = _compiled(source, facts, glibc)
    names = {target.name for target in made}
    twice = [_twice(target) for target in found.targets if target.name in names]
    targets = (*made, *(target for target in found.targets if target.name not in names))
    whole = replace(found, targets=tuple(sorted(targets, key=lambda target: target.name)))
    libraries = closure.find(whole, facts)
    others = _others(source, found) | {path: source.directory / path for path in libraries.own}
    unreadable = sorted(path for path, file in others.items() if not os.access(file, os.R_OK))
    others = {path: file for path, file in others.items() if path not in unreadable}
    unpacked = {one.program.with_name(f"{one.name}{SEEDS}") for one in whole.targets if one.seeds}
    taken = {each for path in (*others, *unpacked) for each in (path, *path.parents)}
    unfit = [_unfit(target, libraries.glibc[target.name], glibc, taken) for target in whole.targets]
    names_of_unfit = {one.name for one in unfit if one}
    kept = tuple(target for target in whole.targets if target.name not in names_of_unfit)
    programs = {target.program: source.directory / target.program for target in kept}
    programs |= {target.program: source.compiled / target.name / target.name for target in kept if target in made}
    blocked = unpacked | programs.keys()
    dictionaries = [
        (path, file) for path, file in _dictionaries(source, kept) if blocked.isdisjoint((path, *path.parents))
    ]
    left_out = (*map(_omission, found.left_out), *twice, *failed, *filter(None, unfit), *map(_unreadable, unreadable))
    return PackageContents(
        source,
        kept,
        {**others, **dict(dictionaries), **programs},
        (*left_out, *_meaning_nothing(source, found)),
        {name: users for name, users in libraries.lacking.items() if name not in initramfs.PROVIDED},
        libraries.by_target,
    )


def _unfit(target: FoundTarget, needed: str, glibc: str, taken: Collection[PurePosixPath]) -> LeftOutTarget | None:
    """Why the guest cannot get a target although its program could run."""
    program = one_line(str(target.program))
    if glibc and release(needed) > release(glibc):
        reason = f"a library that it loads needs glibc {needed}, and the guest has {glibc}"
        return LeftOutTarget(
            target.name, program, reason, f"build it on a system that has glibc {glibc} or an older one"
        )
    if target.program in taken:
        reason = "the guest gets another file, or a directory, of the same name"
        return LeftOutTarget(target.name, program, reason, f"rename the target in {NAME}")
    return None


def _unreadable(path: PurePosixPath) -> LeftOutTarget:
    return LeftOutTarget(path.name, one_line(str(path)), "it cannot be read", "see to its permissions")


def _compiled(source: TargetsSource, facts: Facts, glibc: str) -> tuple[list[FoundTarget], list[LeftOutTarget]]:
    made, failed = [], []
    for target in source.says.targets:
        program, place = source.compiled / target.name / target.name, PurePosixPath(target.name)
        found = facts(program) if program.exists() else None
        if found and (objection := verdict.of_program(place, found, executable=True, glibc=glibc)):
            failed.append(LeftOutTarget(target.name, one_line(target.sources[0]), objection.reason, objection.hint))
        elif found:
            beside = _lying_beside(source.directory, target.name)
            made.append(FoundTarget(target.name, place, found, *beside, program.stat().st_size))
        else:
            failed.append(_not_made(source, target))
    return made, failed


Beside = tuple[PurePosixPath | None, PurePosixPath | None, tuple[PurePosixPath, ...]]


def _lying_beside(place: Path, name: str) -> Beside:
    """The dictionary, the options and the seeds of a compiled target: files called as beside a program."""
    dictionary, options = (PurePosixPath(f"{name}{suffix}") for suffix in (".dict", ".options"))
    seeds = [PurePosixPath(f"{name}{SEEDS}"), *(PurePosixPath(f"{name}{SEEDS}.{suffix}") for suffix in ARCHIVES)]
    return (
        dictionary if (place / dictionary).is_file() else None,
        options if (place / options).is_file() else None,
        tuple(path for path in seeds if (place / path).is_file() or (place / path).is_dir()),
    )


def _omission(found: LeftOutFile) -> LeftOutTarget:
    return LeftOutTarget(found.path.name, one_line(str(found.path)), found.reason, found.hint, found.broken)


def _not_made(source: TargetsSource, target: SourceTarget) -> LeftOutTarget:
    place = one_line(target.sources[0])
    if failure := compiling.failure(target, source.compiled / f"{target.name}.txt"):
        return LeftOutTarget(target.name, place, "it does not compile", failure.hint)
    hint = "compile it: luigi --module tasks TargetsImage"
    return LeftOutTarget(target.name, place, "it has not been compiled yet", hint)


def _twice(target: FoundTarget) -> LeftOutTarget:
    reason = f"{NAME} has a target of the same name, which is compiled"
    return LeftOutTarget(target.name, one_line(str(target.program)), reason, "rename one of them")


def _others(source: TargetsSource, found: TargetsDirectory) -> dict[PurePosixPath, Path]:
    """The files that targets may open, and libraries: of a directory of sources, only those that it names."""
    named = source.says.files if source.says.compiles else (".",)
    return {path: source.directory / path for path in found.others if any(takes(each, path) for each in named)}


def _meaning_nothing(source: TargetsSource, found: TargetsDirectory) -> Iterator[LeftOutTarget]:
    for pattern in source.says.files if source.says.compiles else ():
        if not any(takes(pattern, path) for path in found.others):
            reason = f"it stands among files in {NAME}, and there is no such file"
            yield LeftOutTarget(one_line(pattern), one_line(pattern), reason, "correct it, or make that file")


def _dictionaries(source: TargetsSource, targets: Sequence[FoundTarget]) -> Iterator[tuple[PurePosixPath, Path]]:
    """The dictionaries that lie beside targets, and those that their options name, of which there may be none."""
    root = source.directory.resolve()
    for target in targets:
        if target.dictionary:
            yield target.dictionary, source.directory / target.dictionary
        if target.options:
            named = options.read(source.directory / target.options).dictionary
            path = target.program.parent / (named or "")
            if (root / path).is_file() and (root / path).resolve().is_relative_to(root):
                yield path, source.directory / path


def _below(root: Path, path: PurePosixPath) -> list[PurePosixPath]:
    """A file itself; the files below a directory, as many as seeds can be. All paths are relative to `root`.

    Links are none: what they lead to counts only if it lies in the directory, too.
    """
    if not (root / path).is_dir():
        return [path]
    found: list[PurePosixPath] = []
    for parent, _, names in os.walk(root / path):
        found += [PurePosixPath(os.path.relpath(os.path.join(parent, name), root)) for name in names]  # noqa: PTH118
        if len(found) > _MOST_SEEDS:
            break
    return sorted(one for one in found if stat.S_ISREG((root / one).lstat().st_mode))
