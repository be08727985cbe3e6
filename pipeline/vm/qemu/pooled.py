"""The guests of a pool, in QEMU."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.builds.build import Build
from pipeline.host.faults import host_faults
from pipeline.settings import Ready, Settings
from pipeline.store import freshness
from pipeline.store.freshness import Key
from pipeline.vm.boot_progress import plainly
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.launcher import KILL_LIMIT, Launcher
from pipeline.vm.qemu.launcher import QemuLauncher
from pipeline.vm.qemu.profile import guest_of
from pipeline.vm.qemu.stopping import stop, stop_qemu
from pipeline.vm.template import Templates


@dataclass(frozen=True)
class QemuGuests:
    """A pipeline.vm.pool.GuestFactory for guests in QEMU, of a build whose images have been made."""

    settings: Settings
    build: Build
    ready: Ready
    """What proves a guest ready."""
    made_of: Callable[[], Key]
    """A function that returns what a boot would be made of at this moment. It may raise OSError."""
    templates: Templates | None = None
    """Where the template comes from of which guests are clones; None: they are booted."""

    @property
    def memory(self) -> int:
        """See GuestFactory."""
        return (self.settings.qemu.memory or guest_of(self.build, "", "").memory) << 20

    def cloned(self) -> bool:
        """See GuestFactory."""
        return self.templates is not None and self.templates.has_one()

    def launcher(self, instance: Instance, keepalive: KeepAlive) -> Launcher:
        """See GuestFactory."""
        what = (self.settings, self.build, instance, self.ready, self._key(), keepalive, plainly)
        return QemuLauncher(*what, templates=self.templates)

    def abandon(self, instance: Instance) -> None:
        """See GuestFactory."""
        stop_qemu(instance.pidfile, instance.qmp_socket, KILL_LIMIT)

    def end(self, instance: Instance) -> None:
        """See GuestFactory."""
        stop(instance, KILL_LIMIT)

    def fits(self, handle: Handle) -> str | None:
        """See GuestFactory."""
        return freshness.changed(handle.made_of, self._key())

    def _key(self) -> Key:
        with host_faults("looking at what a guest is made of"):
            return self.made_of()
