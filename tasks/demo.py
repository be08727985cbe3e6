"""The demo guest: what takes the place of a Fuchsia build, so that everything runs without a checkout."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import settings
from pipeline.demo import INIT, host_key_file
from pipeline.publish import publish_bytes, publish_json
from tasks.base import ArtifactTask, Tasks

if TYPE_CHECKING:
    from pipeline.demo.packages import Packages


class DemoPackages(ArtifactTask):
    """The Debian packages: downloaded by apt, or copied from `[demo] packages`; and their list."""

    def artifacts(self) -> tuple[Path, ...]:
        demo = settings.load().store.demo
        return (demo / "packages.json", *sorted((demo / "packages").glob("*.deb")))

    def inputs(self) -> Mapping[str, Path]:
        provided = settings.load().demo_packages
        return {path.name: path for path in sorted(provided.glob("*.deb"))} if provided else {}

    def make(self) -> None:
        from pipeline.demo import packages

        chosen = settings.load()
        demo, provided = chosen.store.demo, chosen.demo_packages
        found = packages.collect(demo, provided, timeout=chosen.tools.timeout)
        publish_json(demo / "packages.json", found.listing())


class _DemoPart(ArtifactTask):
    def requires(self) -> Tasks:
        return {"packages": DemoPackages()}

    @property
    def packages(self) -> "Packages":
        from pipeline.demo.packages import collected_in

        return collected_in(settings.load().store.demo)


class DemoKernel(_DemoPart):
    """Debian's cloud kernel, unpacked."""

    def artifacts(self) -> tuple[Path]:
        return (settings.load().store.demo / "vmlinux",)

    def make(self) -> None:
        from pipeline.demo import kernel

        publish_bytes(*self.artifacts(), kernel.unpack(self.packages.kernel()))


class DemoInitramfs(_DemoPart):
    """busybox, an SSH server and the virtio modules; beside it the host key that is in it."""

    version = 2

    def artifacts(self) -> tuple[Path, Path]:
        demo = settings.load().store.demo
        return (demo / "initramfs.cpio", host_key_file(demo))

    def inputs(self) -> Mapping[str, Path]:
        return {**super().inputs(), "init": INIT}

    def make(self) -> None:
        from pipeline.demo import initramfs
        from pipeline.ssh_keys import dropbear_host_key

        image, public = self.artifacts()
        host_key, line = dropbear_host_key()
        publish_bytes(image, initramfs.build(self.packages, host_key), mode=0o600)
        publish_bytes(public, f"{line}\n".encode())


class DemoDisk(ArtifactTask):
    """A small FVM image with one data partition."""

    def artifacts(self) -> tuple[Path]:
        return (settings.load().store.demo / "fvm.blk",)

    def make(self) -> None:
        from pipeline.demo import disk

        disk.make(*self.artifacts())
