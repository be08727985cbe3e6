"""The guests of a pool, booted one by one."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pipeline import freshness
from pipeline.build import Build
from pipeline.faults import host_faults
from pipeline.freshness import Key
from pipeline.instance import Handle, Instance
from pipeline.launcher import Launcher
from pipeline.progress import Plain
from pipeline.qemu.guest import guest_of
from pipeline.qemu.launcher import QemuLauncher
from pipeline.settings import Ready, Settings
from pipeline.tie import Tie


@dataclass(frozen=True)
class QemuGuests:
    """Guests of a build whose images have been made. See pipeline.pool.Guests."""

    settings: Settings
    build: Build
    ready: Ready
    made_of: Callable[[], Key]
    """What a boot is made of at this moment. May raise OSError."""

    @property
    def memory(self) -> int:
        """See Guests."""
        return (self.settings.qemu.memory or guest_of(self.build, "", "").memory) << 20

    def launcher(self, instance: Instance, tie: Tie) -> Launcher:
        """See Guests."""
        return QemuLauncher(self.settings, self.build, instance, self.ready, self._key(), tie, _plainly)

    def fits(self, handle: Handle) -> str | None:
        """See Guests."""
        return freshness.changed(handle.made_of, self._key())

    def _key(self) -> Key:
        with host_faults("looking at what a guest is made of"):
            return self.made_of()


def _plainly() -> AbstractContextManager[Plain]:
    """Several boot at the same time, and their user may draw a table: there is no place for a live line of each."""
    return nullcontext(Plain())
