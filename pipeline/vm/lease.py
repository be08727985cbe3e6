"""A lease of a guest of the pool, and what the pool notes of each boot that its leases took."""

from dataclasses import dataclass, field

from pipeline.text.printable import one_line
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.slot import Slot


@dataclass(frozen=True)
class Boot:
    """A boot that the pool has tried, and its outcome."""

    instance: str
    """The name of the instance."""
    why: str
    """Why the boot was needed, in one clause."""
    seconds: float
    """How long the boot took, whether it failed or not."""
    boot_id: str = ""
    """The id of the boot; "" if it failed."""
    failure: str = ""
    """The cause of the failure (see BootError), or else the class of the error; "" if the guest became ready."""
    cloned: bool = False
    """Whether the guest is a clone of a template."""


@dataclass
class Lease:
    """A guest that is lent for one piece of work."""

    slot: Slot
    handle: Handle
    """The guest's handle as it was when the guest was handed out; the guest may die at any moment."""
    new: bool
    """Whether the guest was booted for this lease."""
    problem: str = field(default="", init=False)
    """The first problem that was reported by `spoil` or `died`; "" if there was none."""
    dead: bool = field(default=False, init=False)
    """Whether `died` was called."""
    retired: str = field(default="", init=False)
    """Why nobody else gets the guest although nothing went wrong; "" if `retire` was not called."""

    @property
    def instance(self) -> Instance:
        """The guest's instance."""
        return self.slot.instance

    def spoil(self, reason: str) -> None:
        """Report that the guest may be damaged: nobody else gets it, unless `[pool] fresh` is never."""
        self.problem = self.problem or one_line(reason)

    def retire(self, reason: str) -> None:
        """Have nobody else get the guest, whatever `[pool] fresh` says, although nothing went wrong."""
        self.retired = one_line(reason)

    def died(self, reason: str) -> None:
        """Report that the guest is of no use any more, whether its QEMU runs or not: nobody else gets it."""
        self.spoil(reason)
        self.dead = True
