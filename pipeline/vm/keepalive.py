"""A file that ties guests to their users: each process that may use the guests holds a shared lock on it.

Once nobody has held such a lock for a while, the guests' keepers (pipeline/vm/qemu/keeper.py) end the guests: after a
SIGKILL of their users nobody else would. The locks are those of open files (F_OFD_SETLK, fcntl(2)): one can ask about
them, as each keeper does once a second, without taking one, and so is in nobody's way.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InstanceBusy
from pipeline.host.deadline import Deadline
from pipeline.host.faults import host_faults
from pipeline.host.locks import acquire, record_lock, take_record_lock
from pipeline.host.trust import make_private

GRACE = 60.0
"""Seconds for which guests outlive their last user, so that a killed run can be started again and finds them."""

_PATIENCE = 10.0  # seconds; a keeper takes two to end a QEMU that does not react, and there may be several


@dataclass(frozen=True)
class KeepAlive:
    """A file that ties guests to their users, and for how long a guest outlives the last of them."""

    file: Path
    grace: float = GRACE
    """Seconds that a guest outlives its last user; the keeper counts whole seconds, and one more."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be one of the users during the body. A process that forks inside the body shares that with its child.

        It first waits for keepers that are ending their guests at this moment, so that guests found afterwards stay.
        Raises StoreError if the file cannot be made, InstanceBusy if the keepers do not finish.
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
        try:
            acquire(lambda: take_record_lock(descriptor, fcntl.F_RDLCK), deadline)
        except BlockingIOError:
            raise InstanceBusy(
                f"guests that nobody has used are being ended, and still were after {deadline.seconds:.0f} s",
                hint=f"see who ends them: fuser -v '{self.file}'; or who cannot be ended: topcoat instances",
            ) from None

    def in_use(self) -> bool:
        """Whether any process is inside `held` at this moment. Raises StoreError if that cannot be told."""
        with host_faults(f"looking at {self.file.name}"):
            try:
                descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return False
            try:
                return record_lock(descriptor, fcntl.F_WRLCK) == fcntl.F_RDLCK
            finally:
                os.close(descriptor)
