"""What a guest is tied to: a file that all who may use it hold a lock on, each for itself, as long as they live.

Once nobody has held one for a while, the guest's keeper ends it (see pipeline/qemu/keeper.py): after a SIGKILL nobody
else would. The locks are those of open files (F_OFD_SETLK, fcntl(2)): who asks about them, as each keeper does once a
second, takes none, and so is in nobody's way.
"""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.deadline import Deadline
from pipeline.errors import InstanceBusy
from pipeline.faults import host_faults
from pipeline.publish import make_private

GRACE = 60.0
"""Seconds, in which a killed run can be started again and finds its guests."""

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux on 64-bit machines
_READ_LOCK, _WRITE_LOCK = (_FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0) for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK))
_PATIENCE = 10.0  # a keeper takes two seconds for a QEMU that is deaf, and there may be several
_POLL = 0.05  # the lock knows no time limit


@dataclass(frozen=True)
class Tie:
    """The file, and for how long a guest outlives the last of its users."""

    file: Path
    grace: float = GRACE
    """Seconds. The keeper counts whole ones, and one more."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be one of the users during the body. A process that forks inside the body shares that with its child.

        Waits for a keeper that is ending its guest at this moment, so that a guest found afterwards stays. Raises
        StoreError if the file cannot be made, InstanceBusy if the keepers do not come to an end.
        """
        with host_faults(f"making {self.file.name}"):
            make_private(self.file.parent)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with host_faults(f"locking {self.file.name}"):
                self._acquire(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int) -> None:
        deadline = Deadline(_PATIENCE)
        while True:
            try:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _READ_LOCK)
                return
            except BlockingIOError:
                if deadline.expired:
                    raise InstanceBusy(
                        f"guests that nobody has used are being ended, and still were after {deadline.seconds:.0f} s",
                        hint=f"see who ends them: fuser -v '{self.file}'; or who cannot be ended: topcoat instances",
                    ) from None
            time.sleep(_POLL)

    def in_use(self) -> bool:
        """Whether there is a user at this moment. Raises StoreError if that cannot be told."""
        with host_faults(f"looking at {self.file.name}"):
            try:
                descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return False
            try:
                answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WRITE_LOCK)
            finally:
                os.close(descriptor)
        return bool(_FLOCK.unpack(answer)[0] == fcntl.F_RDLCK)
