"""The disk with targets: a read-only file system that all guests and clones share, and what the host keeps of it.

In the guest, which mounts it at /targets::

    /targets/files/PACKAGE/…       the package's directory as its user made it; seed corpora are unpacked
    /targets/libraries/…           libraries out of Debian's packages
    /targets/home/PACKAGE/NAME/    copied to /data/fuzz at each boot: `data`, `tmp`, and `pkg`, a link to the directory
                                   of the program

Programs and libraries come without debug information, which the host keeps.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePosixPath

from pipeline.builds.elf import DamagedElfError, ElfFacts
from pipeline.builds.linux.compiler import Compiler
from pipeline.builds.targets import dictionary, options, seeds
from pipeline.builds.targets.compiling import FAULTS_OF_HOST
from pipeline.builds.targets.contents import Facts, PackageContents
from pipeline.builds.targets.directory import FoundTarget
from pipeline.builds.targets.entries import SEEDS
from pipeline.builds.targets.libraries import read
from pipeline.builds.targets.listing import ListedOmission, ListedTarget, TargetsListing
from pipeline.builds.targets.options import TargetOptions
from pipeline.builds.targets.places import IMAGE_FILES
from pipeline.builds.targets.verdict import MACHINE
from pipeline.errors import SettingsError, ToolFailed
from pipeline.host.faults import host_faults
from pipeline.store.digests import combined, digest, digest_of_text
from pipeline.store.publish import publish_json
from pipeline.text.printable import one_line

_FILES, _LIBRARIES, _HOME = "files", "libraries", "home"
_SHOWN = 3  # wrong lines of a dictionary that are told
_MOST_TOLD = 10  # lines about what is no target
_MOST = 1 << 20  # bytes of options or of a dictionary


@dataclass(frozen=True)
class MadeFrom:
    """A package of targets, and the directory with libraries for it out of Debian's packages."""

    contents: PackageContents
    libraries: Path | None


def with_libraries(contents: PackageContents, libraries: tuple[Path, Path] | None) -> MadeFrom:
    """A package with what was found of its libraries: the list, and the directory. Targets that lack one are left out.

    Raises OSError or ValueError if the list cannot be read.
    """
    if libraries is None:
        return MadeFrom(contents, None)
    listing, directory = libraries
    found = read(listing)
    return MadeFrom(contents.without([name for name in contents.lacking if name not in found.found]), directory)


def make(
    packages: Sequence[MadeFrom], compiler: Compiler, facts: Facts, image: Path, made: Path, timeout: float
) -> None:
    """Make the file system `image`, and the directory `made` with what the host keeps.

    The build's own package is the first. `timeout` is in seconds, for each run of a program. Raises StoreError,
    ToolError, and SettingsError if the build's own package has no target at all.
    """
    stage = image.parent / "stage"
    with host_faults("making the disk with targets"):
        for directory in (stage / _FILES, stage / _LIBRARIES, stage / _HOME, made / _FILES, made / ".build-id"):
            directory.mkdir(parents=True)
        maker = _Maker(stage, made, compiler, facts, timeout)
        targets = sorted((one for package in packages for one in maker.package(package)), key=attrgetter("full_name"))
        omissions = [omission for package in packages for omission in _omissions(package.contents)]
        if not any(target.package == packages[0].contents.package for target in targets):
            raise _nothing(packages[0].contents, omissions)
        compiler.squash(stage, image, timeout=timeout)
        shutil.rmtree(stage)
        publish_json(made / "targets.json", TargetsListing(tuple(targets), tuple(omissions)).encode())


class _Maker:
    def __init__(self, stage: Path, made: Path, compiler: Compiler, facts: Facts, timeout: float) -> None:
        self.stage, self.made, self.compiler, self.facts, self.timeout = stage, made, compiler, facts, timeout

    def package(self, source: MadeFrom) -> Iterator[ListedTarget]:
        """Put a package's files and homes into the stage. Yields its targets."""
        contents = source.contents
        digests = {path: self._put(contents.package, path, file) for path, file in sorted(contents.files.items())}
        libraries: dict[str, str] = {}
        for path in sorted(source.libraries.iterdir()) if source.libraries else ():
            libraries[path.name] = digest(path)
            shutil.copyfile(path, self.stage / _LIBRARIES / path.name)
            (self.stage / _LIBRARIES / path.name).chmod(0o644)
        for target in contents.targets:
            self._home(contents.package, target)
            shared = _shared(contents, target, digests) | _loaded(contents, target, libraries)
            yield self._listed(contents, target, digests, shared)

    def _put(self, package: str, path: PurePosixPath, file: Path) -> str:
        """Put a file into the stage, and a program or library into what the host keeps too. Returns its digest."""
        place = self.stage / _FILES / package / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        place.chmod(0o755 if file.stat().st_mode & 0o111 else 0o644)
        content = digest(place)
        if found := self._facts(place):
            self._keep(PurePosixPath(package) / path, place, found)
        return content

    def _facts(self, staged: Path) -> ElfFacts | None:
        try:
            return self.facts(staged)
        except DamagedElfError:
            return None  # a target is none of these; targets that read ELF files have such data

    def _keep(self, path: PurePosixPath, staged: Path, found: ElfFacts) -> None:
        kept = self.made / _FILES / path
        kept.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(kept)
        if not (found.debug and _is_run(path, kept, found) and self._stripped(kept, staged)):
            os.link(kept, staged)
        if len(found.build_id) > 2:
            link = self.made / ".build-id" / found.build_id[:2] / f"{found.build_id[2:]}.debug"
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(kept, link.parent))

    def _stripped(self, kept: Path, staged: Path) -> bool:
        """Make `staged` of `kept`, without debug information. Returns whether that was possible."""
        try:
            self.compiler.strip_debug(kept, staged, timeout=self.timeout)
        except ToolFailed as error:  # a file that the loader may take all the same; the guest gets it whole
            if error.code < 0 or any(fault in error.detail for fault in FAULTS_OF_HOST):
                raise
            staged.unlink(missing_ok=True)
            return False
        shutil.copymode(kept, staged)
        return True

    def _home(self, package: str, target: FoundTarget) -> None:
        home = self.stage / _HOME / package / target.name
        for name in ("data", "tmp"):
            (home / name).mkdir(parents=True)
        (home / "pkg").symlink_to(_in_guest(package, target.program.parent))

    def _listed(
        self,
        contents: PackageContents,
        target: FoundTarget,
        digests: Mapping[PurePosixPath, str],
        shared: Mapping[str, str],
    ) -> ListedTarget:
        chosen, said = _options(contents, target)
        words, wrong = dictionary_of(contents, target, chosen)
        unpacked, left_out, seeded = self._seeds(contents, target)
        parts = {"program": digests[target.program], "options": said, "seeds": seeded, **shared}
        if words is not None:
            parts["dictionary"] = digests[words]
        return ListedTarget(
            package=contents.package,
            name=target.name,
            digest=combined([f"{name} {parts[name]}" for name in sorted(parts)]),
            program=_in_guest(contents.package, target.program),
            dictionary=_in_guest(contents.package, words) if words is not None else None,
            seeds=_in_guest(contents.package, unpacked) if unpacked is not None else None,
            flags=chosen.flags,
            environment=chosen.environment,
            sanitizers=target.elf.sanitizers,
            problems=(*_about_options(target, chosen), *wrong, *left_out),
        )

    def _seeds(
        self, contents: PackageContents, target: FoundTarget
    ) -> tuple[PurePosixPath | None, tuple[str, ...], str]:
        """Unpack a target's seeds. Returns where they are, what was left out, and a digest of all of them."""
        if not target.seeds:
            return None, (), ""
        place = target.program.with_name(f"{target.name}{SEEDS}")
        unpacked = self.stage / _FILES / contents.package / place
        found = seeds.gather([contents.source.directory / path for path in target.seeds], unpacked)
        names = sorted(path.name for path in unpacked.iterdir()) if found.count else []
        return place if names else None, found.left_out, combined([" ".join(names), ""])


def _is_run(path: PurePosixPath, file: Path, found: ElfFacts) -> bool:
    """Whether an ELF file is a program or a library, and not data, which targets get unchanged."""
    loaded = bool(file.stat().st_mode & 0o111) or ".so" in path.name
    return loaded and found.kind != "object" and (found.machine, found.bits) == MACHINE


def _shared(contents: PackageContents, target: FoundTarget, digests: Mapping[PurePosixPath, str]) -> dict[str, str]:
    """The digests of all other files of the package that the target may open: none that belongs to another target.

    A library that only others load belongs to them; one that no target loads may be opened by any. A target that loads
    libraries out of packages may, through these, load any in the directory.
    """
    others = {path for each in contents.targets for path in (each.program, each.dictionary) if path is not None}
    loaded = {one.name: {PurePosixPath(name).name for name in contents.loads[one.name]} for one in contents.targets}
    through = any(target.name in users for users in contents.lacking.values())
    of_others = set() if through else set().union(*loaded.values()) - loaded[target.name]
    return {
        f"file {path}": found for path, found in digests.items() if path not in others and path.name not in of_others
    }


def _loaded(contents: PackageContents, target: FoundTarget, libraries: Mapping[str, str]) -> dict[str, str]:
    """The digests of the libraries out of packages, if the target loads any of them."""
    wanted = any(target.name in users for name, users in contents.lacking.items() if name in libraries)
    return {f"library {name}": found for name, found in libraries.items()} if wanted else {}


def _options(contents: PackageContents, target: FoundTarget) -> tuple[TargetOptions, str]:
    """What NAME.options says, and a digest of that; nothing and an empty text if there is none."""
    if target.options is None:
        return TargetOptions(), ""
    chosen = options.read(contents.source.directory / target.options)
    return chosen, digest_of_text(repr(chosen))


def _about_options(target: FoundTarget, chosen: TargetOptions) -> Iterator[str]:
    for problem in chosen.problems:
        yield f"{target.options.name if target.options else ''}: {problem}"


def dictionary_of(
    contents: PackageContents, target: FoundTarget, chosen: TargetOptions
) -> tuple[PurePosixPath | None, tuple[str, ...]]:
    """The dictionary of a target with these options, and why it is passed over if libFuzzer would not start with it.

    Raises OSError.
    """
    path = target.dictionary
    if chosen.dictionary is not None:
        path = target.program.parent / chosen.dictionary
        if path not in contents.files:
            return None, (f"its options name the dictionary {one_line(chosen.dictionary)}, which is not there",)
    if path is None:
        return None, ()
    with contents.files[path].open("rb") as stream:
        content = stream.read(_MOST + 1)
    if len(content) > _MOST:
        return None, (f"its dictionary {one_line(path.name)} is larger than 1 MiB, and passed over",)
    if wrong := list(dictionary.wrong_lines(content)):
        said = "; ".join(f"line {line}: {problem}" for line, problem, _ in wrong[:_SHOWN])
        return None, (f"its dictionary {one_line(path.name)} is passed over, as libFuzzer would not start: {said}",)
    return path, ()


def _in_guest(package: str, path: PurePosixPath) -> str:
    return str(IMAGE_FILES / package / path)


def _omissions(contents: PackageContents) -> Iterator[ListedOmission]:
    for one in contents.left_out:
        if one.broken:
            yield ListedOmission(contents.package, one.shown, one.name, one.reason, one.hint)


def _nothing(package: PackageContents, omissions: Sequence[ListedOmission]) -> SettingsError:
    shown = [f"{one.path}: {one.reason}; {one.hint}" for one in omissions]
    more = len(shown) - _MOST_TOLD
    return SettingsError(
        f"there are no targets in {one_line(str(package.source.directory))}",
        hint="what is looked for, and what was found, tells: topcoat targets",
        detail="\n".join([*shown[:_MOST_TOLD], *([f"and {more} more"] if more > 0 else [])]),
    )
