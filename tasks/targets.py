"""The tasks that bring fuzz targets into the Linux guest: compiled from sources, or found as their user built them."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import luigi

from pipeline.builds import demo
from pipeline.builds.targets import places, sources
from pipeline.builds.targets.places import TargetsPlaces
from pipeline.builds.targets.sources import SourceTarget
from pipeline.store.digest_cache import DigestCache
from pipeline.store.digests import digest_of_text
from pipeline.store.freshness import Key, Reason
from tasks.demo import DemoCompiler, DemoPackages, compiler, provided
from tasks.engine.artifact import ArtifactTask, Check, Tasks
from tasks.engine.context import context, say_once
from tasks.engine.parameters import Choice

if TYPE_CHECKING:
    from pipeline.builds.targets.contents import PackageContents, TargetsSource
    from pipeline.builds.targets.facts import ElfCache


def _places() -> TargetsPlaces:
    found = context().build.targets
    assert found is not None, "only builds of the Linux guest have tasks for targets"
    return found


def _directory(package: str) -> Path:
    """The directory of a package's targets, or of their sources."""
    here = _places()
    own: Path = here.source
    return own if package == here.package else demo.TARGETS


def _sources() -> "list[TargetsSource]":
    from pipeline.builds.targets.contents import sources_of

    return sources_of(_places())


@contextmanager
def _facts() -> "Iterator[ElfCache]":
    """What is known of ELF files; what is learnt in the body is kept."""
    from pipeline.builds.targets.facts import ElfCache

    here = context()
    cache = ElfCache(here.settings.store.cache / "elf.json", here.digests.of)
    yield cache
    cache.save()


def _contents() -> "list[PackageContents]":
    """What there is of each package: that of the build, and for the canary that of Topcoat's own targets."""
    from pipeline.builds.linux.packages import Packages
    from pipeline.builds.targets.contents import of

    glibc = Packages(context().settings.store.demo / "packages").version("libc6")
    with _facts() as facts:
        return [of(source, facts.of, glibc) for source in _sources()]


def _libraries(package: "PackageContents") -> "TargetLibraries | None":
    """The task for the libraries that a package's targets load and nobody brings; None if there are none."""
    if not package.lacking:
        return None
    names, packages = " ".join(sorted(package.lacking)), " ".join(package.source.says.packages)
    return TargetLibraries(package=package.package, libraries=names, packages=packages)


class CompiledTarget(ArtifactTask):
    """One target, compiled from the sources that topcoat-targets.toml names, with debug information.

    One that does not compile is left out, with a warning at each run; it is compiled again once it has changed.
    """

    package = luigi.Parameter(description="the package of the target")
    name = luigi.Parameter(description="the name of the target")
    variant = Choice(
        choices=("fuzz", "coverage"), default="fuzz", description="what it is for: fuzz, or coverage, to count lines"
    )

    @property
    def target(self) -> SourceTarget:
        """What the target is made of. Raises SettingsError."""
        name: str = self.name
        return sources.read(_directory(self.package)).target(name)

    def requires(self) -> Tasks:
        return {"compiler": DemoCompiler()}

    def artifacts(self) -> tuple[Path, Path]:
        place = places.compiled(context().settings.store, self.package, self.variant)
        return (place / f"{self.name}.txt", place / self.name)

    @property
    def listing(self) -> Path:
        """The path of the list of headers that the target includes."""
        place = context().settings.store.targets / str(self.package)
        return place / f"headers-{self.variant}" / f"{self.name}.json"

    def inputs(self) -> Mapping[str, Path]:
        from pipeline.builds.targets import headers

        directory = _directory(self.package)
        # A source that is not there is the compiler's to tell
        own = {name: directory / name for name in self.target.sources if (directory / name).is_file()}
        more = {**self.target.linked(directory), **headers.known(directory, self.listing)}
        return {**super().inputs(), **own, **more}

    def key(self, known: DigestCache, without: Collection[str] = ()) -> Key:
        from pipeline.builds.targets import compiling

        key = super().key(known, without)
        return replace(key, parameters={**key.parameters, **compiling.parameters(self.target, self.variant)})

    def why(self, check: Check) -> Reason | None:
        from pipeline.builds.targets import compiling

        reason = super().why(check)
        if reason is None and (failure := compiling.failure(self.target, self.artifacts()[0])):
            say_once(logging.WARNING, failure.explain())
        return reason

    def discover(self) -> None:
        from pipeline.builds.targets import headers

        clang, sysroot, timeout = compiler()
        where = _directory(self.package)
        headers.find(where, self.target, clang, sysroot, self.listing, timeout=timeout, variant=self.variant)

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.targets import compiling

        said, directory = made
        clang, sysroot, timeout = compiler()
        where = _directory(self.package)
        compiling.make(where, self.target, clang, sysroot, said, directory, timeout=timeout, variant=self.variant)


class TargetLibraries(ArtifactTask):
    """The libraries that targets load and nobody brings, out of Debian's packages, and the list of them."""

    package = luigi.Parameter(description="the package of the targets")
    libraries = luigi.Parameter(description="the names of the libraries, with blanks between")
    packages = luigi.Parameter(default="", description="Debian packages in which they are looked for first")

    def artifacts(self) -> tuple[Path, Path]:
        place = context().settings.store.targets / self.package
        return (place / "libraries.json", place / "libraries")

    def inputs(self) -> Mapping[str, Path]:
        return provided()

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.linux import initramfs
        from pipeline.builds.targets import libraries

        chosen, (listing, directory) = context().settings, made
        libraries.gather(
            self.libraries.split(),
            self.packages.split(),
            chosen.demo_packages,
            chosen.store.demo / "apt",
            listing,
            directory,
            without=initramfs.PROVIDED,
            timeout=chosen.tools.timeout,
        )


class TargetsImage(ArtifactTask):
    """The read-only disk with all targets, which all guests share, and what the host keeps of it.

    What seems to be a target and cannot be one is left out, with a warning at each run.
    """

    def artifacts(self) -> tuple[Path, Path]:
        here = _places()
        return (here.image, here.made)

    def requires(self) -> Tasks:
        compiled = {
            f"{source.package} {target.name}": CompiledTarget(package=source.package, name=target.name)
            for source in _sources()
            for target in source.says.targets
        }
        return {"compiler": DemoCompiler(), "packages": DemoPackages(), **compiled}

    def libraries(self) -> "Mapping[str, TargetLibraries]":
        """The tasks for libraries of targets. Which are lacking is not known before all targets are compiled."""
        return {f"libraries of {one.package}": task for one in _contents() if (task := _libraries(one))}

    def inputs(self) -> Mapping[str, Path]:
        # Of the guest's packages only the version of libc matters, which decides what is left out
        own = {name: path for name, path in super().inputs().items() if not name.startswith("packages/")}
        made = [(name, path) for name, task in self.libraries().items() for path in task.files().values()]
        return {**own, **{f"{name}/{path.name}": path for name, path in made if path.is_file()}}

    def key(self, known: DigestCache, without: Collection[str] = ()) -> Key:
        """The key, in which one input stands for all files of a target, and one for all others of a package."""
        inputs = {name: known.of(path) for name, path in self.inputs().items() if name.partition("/")[0] not in without}
        for package in _contents():
            for name, paths in package.inputs().items():
                digests = [f"{path} {_digest(known, paths[path])}" for path in sorted(paths)]
                inputs[f"{package.package} {name}"] = digest_of_text("\n".join(digests))
            inputs[f"{package.package} left out"] = digest_of_text(repr(package.left_out))
        return Key(self.task_family, self.version, {}, inputs, {})

    def why(self, check: Check) -> Reason | None:
        from pipeline.builds.targets import listing

        reason = super().why(check) or check.first_stale(self.libraries())
        if reason is None:
            for line in listing.read(_places().listing).warnings():
                say_once(logging.WARNING, line)
        return reason

    def run(self) -> None:
        """Make the disk, after the libraries that targets lack: see `libraries`."""
        for task in self.libraries().values():
            task.run()
        super().run()

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.targets import image

        clang, _, timeout = compiler()
        packages = [image.with_libraries(one, _libraries_of(one)) for one in _contents()]
        with _facts() as facts:
            image.make(packages, clang, facts.of, made[0], made[1], timeout=timeout)


def _digest(known: DigestCache, path: Path) -> str:
    """The digest of a file; of one that cannot be read, why: it is left out then."""
    try:
        return known.of(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _libraries_of(package: "PackageContents") -> tuple[Path, Path] | None:
    """The list of a package's libraries, and the directory with them; None if it needs none."""
    task = _libraries(package)
    return task.artifacts() if task else None
