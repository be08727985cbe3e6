"""The tasks that make the Linux guest, which replaces a Fuchsia build, and the compiler for what runs in it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.builds.linux import INIT, host_key_file
from pipeline.store.publish import publish_json, write_new
from tasks.engine.artifact import ArtifactTask, Tasks
from tasks.engine.context import context
from tasks.engine.resources import makes

if TYPE_CHECKING:
    from pipeline.builds.linux.compiler import Compiler
    from pipeline.builds.linux.packages import Packages


def provided() -> Mapping[str, Path]:
    """The packages in the directory `[demo] packages`, by file name; none if it is not set."""
    from pipeline.builds.linux.packages import Packages

    directory = context().settings.demo_packages
    return {path.name: path for path in Packages(directory).files()} if directory else {}


class DemoPackages(ArtifactTask):
    """The Debian packages of the guest, downloaded by apt or copied from `[demo] packages`, and their list."""

    version = 3

    def artifacts(self) -> tuple[Path, ...]:
        demo = context().settings.store.demo
        return (demo / "packages.json", demo / "packages")

    def inputs(self) -> Mapping[str, Path]:
        return provided()

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.linux import apt, compiler, initramfs

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
        from pipeline.builds.linux.packages import Packages

        return Packages(context().settings.store.demo / "packages")


@makes("kernel")
class DemoKernel(_DemoPart):
    """Debian's cloud kernel, unpacked."""

    def artifacts(self) -> tuple[Path]:
        return (context().settings.store.demo / "vmlinux",)

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.linux import kernel

        write_new(made[0], kernel.unpack(self.packages.kernel()))


class DemoSystem(_DemoPart):
    """The archive with busybox, an SSH server and the virtio modules; beside it, the server's public host key."""

    version = 3

    def artifacts(self) -> tuple[Path, Path, Path]:
        demo = context().settings.store.demo
        return (demo / "system.cpio", host_key_file(demo), demo / "libraries")

    def inputs(self) -> Mapping[str, Path]:
        return {**super().inputs(), "init": INIT}

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.linux import initramfs
        from pipeline.builds.ssh_keys import dropbear_host_key

        image, public, libraries = made
        host_key, line = dropbear_host_key()
        write_new(image, initramfs.build(self.packages, host_key, libraries), mode=0o600)
        write_new(public, f"{line}\n".encode())


@makes("llvm-symbolizer")
class DemoCompiler(ArtifactTask):
    """Debian's clang, llvm-symbolizer and mksquashfs, and headers and libraries for targets; no packages are kept."""

    version = 4

    def requires(self) -> Tasks:
        # Without a source of packages, DemoPackages reports that
        provided = context().settings.demo_packages
        return {} if provided or shutil.which("apt-get") else {"packages": DemoPackages()}

    def artifacts(self) -> tuple[Path, ...]:
        demo = context().settings.store.demo
        return (demo / "sysroot.tar", demo / "tools")

    def inputs(self) -> Mapping[str, Path]:
        return provided()

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.linux import compiler

        chosen, (sysroot, directory) = context().settings, made
        state, timeout = chosen.store.demo / "apt", chosen.tools.timeout
        compiler.install(directory, sysroot, chosen.demo_packages, state, timeout=timeout)


def compiler() -> "tuple[Compiler, Path, float]":
    """The compiler, the sysroot, and the limit in seconds for each run."""
    from pipeline.builds.linux.compiler import Compiler

    chosen = context().settings
    demo = chosen.store.demo
    return Compiler(demo / "tools"), demo / "sysroot.tar", chosen.tools.timeout


class DemoPrograms(ArtifactTask):
    """The archive with Topcoat's own programs in the guest."""

    version = 3

    def requires(self) -> Tasks:
        return {"compiler": DemoCompiler()}

    def artifacts(self) -> tuple[Path]:
        return (context().settings.store.demo / "programs.cpio",)

    def inputs(self) -> Mapping[str, Path]:
        from pipeline.builds.linux import programs

        return {**super().inputs(), **programs.inputs()}

    def make(self, made: Sequence[Path]) -> None:
        from pipeline.builds.linux import programs

        clang, sysroot, timeout = compiler()
        programs.make(clang, sysroot, made[0], timeout=timeout)


@makes("zbi")
class DemoInitramfs(ArtifactTask):
    """The initramfs that the guest boots: the archives of its system and of Topcoat's programs."""

    version = 5

    def parts(self) -> Mapping[str, ArtifactTask]:
        """The tasks that make the archives, in the order in which these follow each other."""
        return {"system": DemoSystem(), "programs": DemoPrograms()}

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
        from pipeline.builds.linux import disk

        disk.make(made[0])
