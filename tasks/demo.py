"""The tasks that make the demo guest, which replaces a Fuchsia build, so that everything runs without a checkout."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.builds.demo import INIT, fuzzers, host_key_file
from pipeline.store.freshness import Reason
from pipeline.store.publish import publish_json, write_new
from pipeline.text.printable import one_line
from tasks.engine.artifact import ArtifactTask, Check, Tasks
from tasks.engine.context import context, say_once
from tasks.engine.resources import makes

if TYPE_CHECKING:
    from pipeline.builds.demo.compiler import Compiler
    from pipeline.builds.demo.packages import Packages


def _provided() -> Mapping[str, Path]:
    """The packages in the directory `[demo] packages`, by file name; none if it is not set."""
    from pipeline.builds.demo.packages import Packages

    directory = context().settings.demo_packages
    return {path.name: path for path in Packages(directory).files()} if directory else {}


class DemoPackages(ArtifactTask):
    """The Debian packages of the guest, downloaded by apt or copied from `[demo] packages`, and their list."""

    version = 2

    def artifacts(self) -> tuple[Path, ...]:
        demo = context().settings.store.demo
        return (demo / "packages.json", demo / "packages")

    def inputs(self) -> Mapping[str, Path]:
        return _provided()

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.demo import apt, compiler, initramfs

        chosen, (listing, directory) = context().settings, made
        state, timeout = chosen.store.demo / "apt", chosen.tools.timeout
        if chosen.demo_packages is None:
            apt.required(initramfs.GUEST, compiler.COMPILER)
        publish_json(listing, initramfs.collect(directory, chosen.demo_packages, state, timeout=timeout).listing())


class _DemoPart(ArtifactTask):
    def requires(self) -> Tasks:
        return {"packages": DemoPackages()}

    @property
    def packages(self) -> "Packages":
        from pipeline.builds.demo.packages import Packages

        return Packages(context().settings.store.demo / "packages")


@makes("kernel")
class DemoKernel(_DemoPart):
    """Debian's cloud kernel, unpacked."""

    def artifacts(self) -> tuple[Path]:
        return (context().settings.store.demo / "vmlinux",)

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.demo import kernel

        write_new(made[0], kernel.unpack(self.packages.kernel()))


class DemoSystem(_DemoPart):
    """The archive with busybox, an SSH server and the virtio modules; beside it, the server's public host key."""

    version = 2

    def artifacts(self) -> tuple[Path, Path]:
        demo = context().settings.store.demo
        return (demo / "system.cpio", host_key_file(demo))

    def inputs(self) -> Mapping[str, Path]:
        return {**super().inputs(), "init": INIT}

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.demo import initramfs
        from pipeline.builds.ssh_keys import dropbear_host_key

        image, public = made
        host_key, line = dropbear_host_key()
        write_new(image, initramfs.build(self.packages, host_key), mode=0o600)
        write_new(public, f"{line}\n".encode())


@makes("llvm-symbolizer")
class DemoCompiler(ArtifactTask):
    """Debian's clang and llvm-symbolizer, and the headers and libraries for fuzzers; their packages are not kept."""

    version = 3

    def requires(self) -> Tasks:
        # Without a source of packages, DemoPackages reports that
        provided = context().settings.demo_packages
        return {} if provided or shutil.which("apt-get") else {"packages": DemoPackages()}

    def artifacts(self) -> tuple[Path, ...]:
        demo = context().settings.store.demo
        return (demo / "sysroot.tar", demo / "llvm")

    def inputs(self) -> Mapping[str, Path]:
        return _provided()

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.demo import compiler

        chosen, (sysroot, directory) = context().settings, made
        state, timeout = chosen.store.demo / "apt", chosen.tools.timeout
        compiler.install(directory, sysroot, chosen.demo_packages, state, timeout=timeout)


def _compiler() -> "tuple[Compiler, Path, float]":
    """The compiler, the sysroot, and the limit in seconds for each run."""
    from pipeline.builds.demo.compiler import Compiler

    chosen = context().settings
    demo = chosen.store.demo
    return Compiler(demo / "llvm"), demo / "sysroot.tar", chosen.tools.timeout


@makes("fuzzers.json", "tests.json")
class DemoFuzzers(ArtifactTask):
    """The compiled fuzzers, without debug information for the guest and with it for symbolizers, and their lists.

    One that does not compile is left out, with a warning at each run; it is compiled again once it has changed.
    """

    def requires(self) -> Tasks:
        return {"compiler": DemoCompiler()}

    def artifacts(self) -> tuple[Path, ...]:
        demo = context().settings.store.demo
        return (demo / "fuzzers.cpio", demo / "fuzzers")

    @property
    def listing(self) -> Path:
        """The path of the list of headers that the fuzzers include."""
        return context().settings.store.demo / "headers.json"

    def inputs(self) -> Mapping[str, Path]:
        from pipeline.builds.demo.fuzzers import headers

        sources = fuzzers.SOURCES
        return {**super().inputs(), **fuzzers.inputs(sources), **headers.known(sources, self.listing)}

    def why(self, check: Check) -> Reason | None:
        for path in fuzzers.left_out(fuzzers.SOURCES):
            say_once(logging.WARNING, f"{one_line(str(path))} is left out of the fuzzers: it is no file")
        reason = super().why(check)
        if reason is None:
            for failure in fuzzers.failures(self.artifacts()[1]):
                say_once(logging.WARNING, failure.explain())
        return reason

    def discover(self) -> None:
        from pipeline.builds.demo.fuzzers import headers

        compiler, sysroot, timeout = _compiler()
        headers.find(fuzzers.SOURCES, compiler, sysroot, self.listing, timeout=timeout)

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.demo.fuzzers import making

        image, directory = made
        compiler, sysroot, timeout = _compiler()
        making.make(fuzzers.SOURCES, compiler, sysroot, image, directory, timeout=timeout)


class DemoPrograms(ArtifactTask):
    """The archive with Topcoat's own programs in the guest."""

    version = 2

    def requires(self) -> Tasks:
        return {"compiler": DemoCompiler()}

    def artifacts(self) -> tuple[Path]:
        return (context().settings.store.demo / "programs.cpio",)

    def inputs(self) -> Mapping[str, Path]:
        from pipeline.builds.demo import programs

        return {**super().inputs(), **programs.inputs()}

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.demo import programs

        compiler, sysroot, timeout = _compiler()
        programs.make(compiler, sysroot, made[0], timeout=timeout)


@makes("zbi")
class DemoInitramfs(ArtifactTask):
    """The initramfs that the guest boots: the archives of its system, of Topcoat's programs, and of its fuzzers."""

    version = 4

    def parts(self) -> Mapping[str, ArtifactTask]:
        """The tasks that make the archives, in the order in which these follow each other."""
        return {"system": DemoSystem(), "programs": DemoPrograms(), "fuzzers": DemoFuzzers()}

    def requires(self) -> Tasks:
        return self.parts()

    def artifacts(self) -> tuple[Path]:
        return (context().settings.store.demo / "initramfs.cpio",)

    def inputs(self) -> Mapping[str, Path]:
        return {name: task.artifacts()[0] for name, task in self.parts().items()}

    def make(self, made: Sequence[Path]) -> None:
        archives = self.inputs().values()
        write_new(made[0], b"".join(path.read_bytes() for path in archives), mode=0o600)


@makes("blk")
class DemoDisk(ArtifactTask):
    """The guest's disk: a small FVM image with one data partition."""

    def artifacts(self) -> tuple[Path]:
        return (context().settings.store.demo / "fvm.blk",)

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.demo import disk

        disk.make(made[0])
