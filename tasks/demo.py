"""The demo guest: what takes the place of a Fuchsia build, so that everything runs without a checkout."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import settings
from pipeline.demo import INIT, fuzzers, host_key_file
from pipeline.publish import publish_bytes, publish_json
from tasks.base import ArtifactTask, Tasks

if TYPE_CHECKING:
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
        return (demo / "packages.json", *sorted((demo / "packages").glob("*.deb")))

    def inputs(self) -> Mapping[str, Path]:
        return _provided()

    def make(self) -> None:
        from pipeline.demo import initramfs

        chosen = settings.load()
        demo, timeout = chosen.store.demo, chosen.tools.timeout
        found = initramfs.collect(demo / "packages", chosen.demo_packages, demo / "apt", timeout=timeout)
        publish_json(demo / "packages.json", found.listing())


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

    def make(self) -> None:
        from pipeline.demo import kernel

        publish_bytes(*self.artifacts(), kernel.unpack(self.packages.kernel()))


class DemoSystem(_DemoPart):
    """busybox, an SSH server and the virtio modules; beside it the host key that is in it."""

    version = 2

    def artifacts(self) -> tuple[Path, Path]:
        demo = settings.load().store.demo
        return (demo / "system.cpio", host_key_file(demo))

    def inputs(self) -> Mapping[str, Path]:
        return {**super().inputs(), "init": INIT}

    def make(self) -> None:
        from pipeline.demo import initramfs
        from pipeline.ssh_keys import dropbear_host_key

        image, public = self.artifacts()
        host_key, line = dropbear_host_key()
        publish_bytes(image, initramfs.build(self.packages, host_key), mode=0o600)
        publish_bytes(public, f"{line}\n".encode())


class DemoCompiler(ArtifactTask):
    """Debian's clang and llvm-symbolizer, and what fuzzers are compiled against; of packages that do not stay."""

    version = 2

    def artifacts(self) -> tuple[Path, ...]:
        demo = settings.load().store.demo
        return (demo / "sysroot.tar", *sorted((demo / "llvm").glob("*")))

    def inputs(self) -> Mapping[str, Path]:
        return _provided()

    def make(self) -> None:
        from pipeline.demo import compiler

        chosen = settings.load()
        demo, timeout = chosen.store.demo, chosen.tools.timeout
        compiler.install(demo / "llvm", demo / "sysroot.tar", chosen.demo_packages, demo / "apt", timeout=timeout)


class DemoFuzzers(ArtifactTask):
    """The fuzzers, compiled: for the guest without debug information, for symbolizers with it, and their lists."""

    def requires(self) -> Tasks:
        return {"compiler": DemoCompiler()}

    def artifacts(self) -> tuple[Path, ...]:
        demo = settings.load().store.demo
        made = (path for path in (demo / "fuzzers").rglob("*") if path.is_file())
        return (demo / "fuzzers.cpio", *sorted(made))

    def inputs(self) -> Mapping[str, Path]:
        return {**super().inputs(), **fuzzers.inputs(fuzzers.SOURCES)}

    def make(self) -> None:
        from pipeline.demo.compiler import Compiler
        from pipeline.demo.fuzzers import making

        chosen = settings.load()
        demo, timeout = chosen.store.demo, chosen.tools.timeout
        compiler, sysroot = Compiler(demo / "llvm"), demo / "sysroot.tar"
        making.make(fuzzers.SOURCES, compiler, sysroot, demo / "fuzzers.cpio", demo / "fuzzers", timeout=timeout)


class DemoInitramfs(ArtifactTask):
    """What the guest boots: its system, and its fuzzers as a second archive."""

    version = 3

    def requires(self) -> Tasks:
        return {"system": DemoSystem(), "fuzzers": DemoFuzzers()}

    def artifacts(self) -> tuple[Path]:
        return (settings.load().store.demo / "initramfs.cpio",)

    def inputs(self) -> Mapping[str, Path]:
        return {"system": DemoSystem().artifacts()[0], "fuzzers": DemoFuzzers().artifacts()[0]}

    def make(self) -> None:
        archives = self.inputs().values()
        publish_bytes(*self.artifacts(), b"".join(path.read_bytes() for path in archives), mode=0o600)


class DemoDisk(ArtifactTask):
    """A small FVM image with one data partition."""

    def artifacts(self) -> tuple[Path]:
        return (settings.load().store.demo / "fvm.blk",)

    def make(self) -> None:
        from pipeline.demo import disk

        disk.make(*self.artifacts())
