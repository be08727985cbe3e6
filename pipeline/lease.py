"""Who owns the directory of an instance's sockets: a file named `lease` in it, JSON, with a flock.

::

    {"schema": 1, "instance": "/abs/path/of/instances/i0", "boot_id": "6ed5…"}

The booting process takes the lock, and QEMU inherits the descriptor. So the lease is held exactly as long as one of
them lives, however either ends, and wherever the store has been moved to meanwhile. Who takes it for gc holds it only
while the directory is being removed.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.deadline import Deadline
from pipeline.errors import InstanceBusy
from pipeline.faults import host_faults
from pipeline.publish import has_flock

SCHEMA = 1
"""Tests hold a frozen sample."""

_PATIENCE = 1.0  # gc holds a lease for milliseconds; whoever holds it for longer lives
_POLL = 0.01  # flock(2) knows no time limit
_LONGEST = 1 << 16  # bytes of a lease that are read


@contextmanager
def held(directory: Path, instance: Path, boot_id: str) -> Iterator[int]:
    """Hold the lease of `directory`, which exists, for a boot of the instance whose directory is `instance`.

    Yields the descriptor. It is closed at the end, but the lease stays held while a process lives that has inherited
    it; the file stays. Waits at most a second for another holder. Raises InstanceBusy if there is one, StoreError if
    the file cannot be written.
    """
    descriptor = _take(directory)
    try:
        with host_faults("writing the lease of the sockets"):
            content = {"schema": SCHEMA, "instance": os.path.abspath(instance), "boot_id": boot_id}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(content).encode() + b"\n", 0)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def seized(directory: Path) -> Iterator[None]:
    """Hold the lease of `directory` for nobody, so that nobody takes the directory during the body.

    What the lease says stays. Raises InstanceBusy if somebody holds it, StoreError if the directory is gone.
    """
    descriptor = _take(directory)
    try:
        yield
    finally:
        os.close(descriptor)


def is_held(directory: Path) -> bool:
    """Whether somebody holds the lease of `directory` at this moment. Raises StoreError if that cannot be told."""
    with host_faults("looking at the lease of the sockets"):
        return has_flock(_file(directory))


def instance_of(directory: Path) -> Path | None:
    """The directory of the instance that took the lease last, whether it still holds it or not.

    None if there is no lease, or what it says cannot be understood.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError), _file(directory).open("rb") as stream:
        content: Any = json.loads(stream.read(_LONGEST))
        path = Path(content["instance"])
        can_be = path.is_absolute() and b"\0" not in os.fsencode(path)
        return path if content["schema"] == SCHEMA and can_be else None
    return None


def _file(directory: Path) -> Path:
    return directory / "lease"


def _take(directory: Path) -> int:
    """A descriptor that holds the lease."""
    deadline, path = Deadline(_PATIENCE), _file(directory)
    with host_faults("taking the lease of the sockets"):
        while True:
            descriptor = _try(path)
            if descriptor is not None:
                return descriptor
            if deadline.expired:
                raise InstanceBusy(
                    f"the sockets in {directory} belong to a guest that still runs ({instance_of(directory)})",
                    hint=f"was its store moved, or its handle deleted? see who holds them: fuser -v '{path}'",
                )
            time.sleep(_POLL)


def _try(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):  # held; or gc has deleted it between the two steps
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
