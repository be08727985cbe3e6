"""Locks between processes. The kernel releases each one when its holder ends, however it ends.

There are two kinds, which do not see each other. A flock(2) covers a whole file and is shared with children: `locked`
takes one. A record lock (fcntl(2)), here always one that belongs to an open file (F_OFD_SETLK), is what QEMU holds on
its pidfile; one can ask about it without taking it.
"""

import errno
import fcntl
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import InstanceBusy
from pipeline.host.deadline import Deadline
from pipeline.host.faults import host_faults
from pipeline.host.process import Process
from pipeline.host.trust import make_private
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

LOCK_LIMIT = 3600.0
"""Seconds to wait for another process that makes the same artifact: enough for the largest image on a slow disk."""

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux on 64-bit machines
_PATIENCE = 1.0  # seconds; a shorter wait is not worth a message
_POLL = 0.05


def acquire(attempt: Callable[[], object], deadline: Deadline, tell: Callable[[], object] = lambda: None) -> None:
    """Call `attempt`, which takes a lock or raises BlockingIOError, until it succeeds.

    It polls, as neither kind of lock has a time limit of its own. `tell` is called once, after a second of waiting.
    Raises the BlockingIOError once the deadline has expired.
    """
    untold: Deadline | None = Deadline(_PATIENCE)
    while True:
        try:
            attempt()
            return
        except BlockingIOError:
            if deadline.expired:
                raise
        if untold and untold.expired:
            tell()
            untold = None
        time.sleep(_POLL)


@contextmanager
def locked(path: Path, limit: float = LOCK_LIMIT) -> Iterator[None]:
    """Hold the lock of `path` during the body: the flock of the file `<path>.lock`, which stays there.

    The kernel releases the lock when its holder ends, however it ends. Waits at most `limit` seconds for another
    holder, then raises InstanceBusy; raises StoreError if the file cannot be made. A process that forks inside the body
    shares the lock with its child.
    """
    descriptor = _take(path, Deadline(limit))
    try:
        yield
    finally:
        os.close(descriptor)


def _take(path: Path, deadline: Deadline) -> int:
    """Take the lock of `path` and return a descriptor that holds it."""
    while True:
        descriptor = _open_lock(path)
        try:
            _acquire(descriptor, path, deadline)
            if _is_current(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the file was deleted meanwhile, and another process may hold the lock of its successor


def lock_of(path: Path) -> Path:
    """The lock file of `path`: whoever works on `path` holds the flock of this file."""
    return Path(f"{path}.lock")


def _open_lock(path: Path) -> int:
    with host_faults(f"locking {path.name}"):
        try:
            make_private(path.parent)
            descriptor = os.open(lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            _keep_others_out(descriptor)
            return descriptor
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # So that a guest can be stopped although the disk has become read-only
            with suppress(FileNotFoundError):
                return os.open(lock_of(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            raise


def _keep_others_out(descriptor: int) -> None:
    """Take other users' rights to a lock file of ours, for whoever can open it can lock it; older stores have such."""
    facts = os.fstat(descriptor)
    if facts.st_uid == os.geteuid() and facts.st_mode & 0o077:
        os.fchmod(descriptor, 0o600)


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), lock_of(path).stat())
    except FileNotFoundError:
        return False


def _acquire(descriptor: int, path: Path, deadline: Deadline) -> None:
    def tell() -> None:
        log.info("waiting for another process that works on %s", path.name)

    try:
        acquire(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), deadline, tell)
    except BlockingIOError:
        raise InstanceBusy(
            f"another process has been working on {path.name} for more than {deadline.seconds:.0f} s",
            hint=_who(lock_of(path)),
        ) from None


def _who(lock: Path) -> str:
    holder = holder_of_flock(lock)
    if holder is None:
        return f"see who holds it: fuser -v '{lock}'"
    return f"wait for process {holder.pid} ({one_line(holder.command, 100)}), or end it: kill {holder.pid}"


def is_locked(path: Path) -> bool:
    """Whether some process is inside `locked(path)` at this moment. Raises OSError if that cannot be told."""
    return has_flock(lock_of(path))


def has_flock(file: Path) -> bool:
    """Whether some process holds an exclusive flock of the file. Raises OSError if that cannot be told."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder_of_flock(file: Path) -> Process | None:
    """The process, other than this one, that holds a flock of the file; None if none can be seen.

    If several share the lock, it is the oldest of them.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # it has ended, or is somebody else's
                if _has_flock(entry, os.path.realpath(file)) and (process := Process.find(int(entry.name))):
                    found.append(process)
    return min(found, key=lambda process: process.start_ticks, default=None)


def _has_flock(process: Path, file: str) -> bool:
    descriptors = [entry.name for entry in (process / "fd").iterdir() if os.path.realpath(entry) == file]
    return any("FLOCK" in (process / "fdinfo" / name).read_text() for name in descriptors)


def take_record_lock(descriptor: int, kind: int) -> None:
    """Take a record lock on the whole of an open file: F_RDLCK is shared, F_WRLCK exclusive.

    Raises BlockingIOError if somebody else's lock is in the way.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))


def record_lock(descriptor: int, kind: int) -> int | None:
    """The kind of the record lock that is in the way of one of this `kind`; None if nothing is. Takes no lock.

    Both are F_RDLCK (shared) or F_WRLCK (exclusive), on the whole of an open file.
    """
    found: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)))[0]
    return None if found == fcntl.F_UNLCK else found


def locked_by_someone(path: Path) -> bool:
    """Whether some process holds an exclusive record lock on the file, as QEMU does on its pidfile while it lives."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return record_lock(descriptor, fcntl.F_RDLCK) is not None
    finally:
        os.close(descriptor)
