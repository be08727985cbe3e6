"""The guests of a pool, in QEMU."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pipeline.builds.build import Build
from pipeline.host.faults import host_faults
from pipeline.settings import Ready, Settings
from pipeline.store import freshness
from pipeline.store.freshness import Key
from pipeline.vm.boot_progress import Plain
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.launcher import KILL_LIMIT, Launcher
from pipeline.vm.qemu.launcher import QemuLauncher
from pipeline.vm.qemu.profile import guest_of
from pipeline.vm.qemu.stopping import stop


@dataclass(frozen=True)
class QemuGuests:
    """A pipeline.vm.pool.GuestFactory for guests in QEMU, of a build whose images have been made."""

    settings: Settings
    build: Build
    ready: Ready
    """What proves a guest ready."""
    made_of: Callable[[], Key]
    """A function that returns what a boot would be made of at this moment. It may raise OSError."""

    @property
    def memory(self) -> int:
        """See GuestFactory."""
        return (self.settings.qemu.memory or guest_of(self.build, "", "").memory) << 20

    def launcher(self, instance: Instance, keepalive: KeepAlive) -> Launcher:
        """See GuestFactory."""
        return QemuLauncher(self.settings, self.build, instance, self.ready, self._key(), keepalive, _plainly)

    def end(self, instance: Instance) -> None:
        """See GuestFactory."""
        stop(instance, KILL_LIMIT)

    def fits(self, handle: Handle) -> str | None:
        """See GuestFactory."""
        return freshness.changed(handle.made_of, self._key())

    def _key(self) -> Key:
        with host_faults("looking at what a guest is made of"):
            return self.made_of()


def _plainly() -> AbstractContextManager[Plain]:
    """Show progress as plain lines: several guests may boot at once, and a campaign may draw a table of its own."""
    return nullcontext(Plain())
