"""The demo guest: what takes the place of a Fuchsia build, so that everything runs without a checkout."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import settings
from pipeline.demo import INIT, fuzzers, host_key_file
from pipeline.freshness import Reason
from pipeline.publish import publish_json, write_new
from pipeline.text import one_line
from tasks.base import ArtifactTask, Check, Tasks, say_once

if TYPE_CHECKING:
    from pipeline.demo.compiler import Compiler
    from pipeline.demo.packages import Packages


def _provided() -> Mapping[str, Path]:
    """The files in `[demo] packages`."""
    from pipeline.demo.packages import Packages

    directory = settings.load().demo_packages
    return {path.name: path for path in Packages(directory).files()} if directory else {}


class DemoPackages(ArtifactTask):
    """The Debian packages: downloaded by apt, or copied from `[demo] packages`; and their list."""

    version = 2

    def artifacts(self) -> tuple[Path, ...]:
        demo = settings.load().store.demo
        return (demo / "packages.json", demo / "packages")

    def inputs(self) -> Mapping[str, Path]:
        return _provided()

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.demo import apt, compiler, initramfs

        chosen, (listing, directory) = settings.load(), made
        state, timeout = chosen.store.demo / "apt", chosen.tools.timeout
        if chosen.demo_packages is None:
            apt.required(initramfs.GUEST, compiler.COMPILER)
        publish_json(listing, initramfs.collect(directory, chosen.demo_packages, state, timeout=timeout).listing())


class _DemoPart(ArtifactTask):
    def requires(self) -> Tasks:
        return {"packages": DemoPackages()}

    @property
    def packages(self) -> "Packages":
        from pipeline.demo.packages import Packages

        return Packages(settings.load().store.demo / "packages")


class DemoKernel(_DemoPart):
    """Debian's cloud kernel, unpacked."""

    def artifacts(self) -> tuple[Path]:
        return (settings.load().store.demo / "vmlinux",)

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.demo import kernel

        write_new(made[0], kernel.unpack(self.packages.kernel()))


class DemoSystem(_DemoPart):
    """busybox, an SSH server and the virtio modules; beside it the host key that is in it."""

    version = 2

    def artifacts(self) -> tuple[Path, Path]:
        demo = settings.load().store.demo
        return (demo / "system.cpio", host_key_file(demo))

    def inputs(self) -> Mapping[str, Path]:
        return {**super().inputs(), "init": INIT}

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.demo import initramfs
        from pipeline.ssh_keys import dropbear_host_key

        image, public = made
        host_key, line = dropbear_host_key()
        write_new(image, initramfs.build(self.packages, host_key), mode=0o600)
        write_new(public, f"{line}\n".encode())


class DemoCompiler(ArtifactTask):
    """Debian's clang and llvm-symbolizer, and what fuzzers are compiled against; of packages that do not stay."""

    version = 3

    def requires(self) -> Tasks:
        # Where no packages are to be had at all, one of both tasks says so
        provided = settings.load().demo_packages
        return {} if provided or shutil.which("apt-get") else {"packages": DemoPackages()}

    def artifacts(self) -> tuple[Path, ...]:
        demo = settings.load().store.demo
        return (demo / "sysroot.tar", demo / "llvm")

    def inputs(self) -> Mapping[str, Path]:
        return _provided()

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.demo import compiler

        chosen, (sysroot, directory) = settings.load(), made
        state, timeout = chosen.store.demo / "apt", chosen.tools.timeout
        compiler.install(directory, sysroot, chosen.demo_packages, state, timeout=timeout)


class DemoFuzzers(ArtifactTask):
    """The fuzzers, compiled: for the guest without debug information, for symbolizers with it, and their lists.

    One that does not compile is left out, which is told at each run; it is compiled again once it has changed.
    """

    def requires(self) -> Tasks:
        return {"compiler": DemoCompiler()}

    def artifacts(self) -> tuple[Path, ...]:
        demo = settings.load().store.demo
        return (demo / "fuzzers.cpio", demo / "fuzzers")

    @property
    def listing(self) -> Path:
        """The list of the headers that the fuzzers include."""
        return settings.load().store.demo / "headers.json"

    def inputs(self) -> Mapping[str, Path]:
        from pipeline.demo.fuzzers import headers

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
        from pipeline.demo.fuzzers import headers

        compiler, sysroot, timeout = self._tools()
        headers.find(fuzzers.SOURCES, compiler, sysroot, self.listing, timeout=timeout)

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.demo.fuzzers import making

        image, directory = made
        compiler, sysroot, timeout = self._tools()
        making.make(fuzzers.SOURCES, compiler, sysroot, image, directory, timeout=timeout)

    def _tools(self) -> "tuple[Compiler, Path, float]":
        from pipeline.demo.compiler import Compiler

        chosen = settings.load()
        demo = chosen.store.demo
        return Compiler(demo / "llvm"), demo / "sysroot.tar", chosen.tools.timeout


class DemoInitramfs(ArtifactTask):
    """What the guest boots: its system, and its fuzzers as a second archive."""

    version = 3

    def requires(self) -> Tasks:
        return {"system": DemoSystem(), "fuzzers": DemoFuzzers()}

    def artifacts(self) -> tuple[Path]:
        return (settings.load().store.demo / "initramfs.cpio",)

    def inputs(self) -> Mapping[str, Path]:
        return {"system": DemoSystem().artifacts()[0], "fuzzers": DemoFuzzers().artifacts()[0]}

    def make(self, made: Sequence[Path]) -> None:
        archives = self.inputs().values()
        write_new(made[0], b"".join(path.read_bytes() for path in archives), mode=0o600)


class DemoDisk(ArtifactTask):
    """A small FVM image with one data partition."""

    def artifacts(self) -> tuple[Path]:
        return (settings.load().store.demo / "fvm.blk",)

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.demo import disk

        disk.make(made[0])
