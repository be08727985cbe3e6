"""Processes that are known for certain: a bare pid may be anybody's by the time it is used."""

import fcntl
import os
import select
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux on 64-bit machines
_THREADS, _START_TIME = 20, 22  # fields of /proc/PID/stat, counted from 1; see proc(5)


def _host_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Process:
    """One process on one boot of this host: the pid alone is reused, the three together are not."""

    pid: int
    start_ticks: int
    """When it started, in clock ticks since the host booted."""
    host_boot_id: str

    @classmethod
    def find(cls, pid: int) -> "Process | None":
        """The living process that has this pid now. A zombie does not live, unless threads of it still do."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The second field is the name in brackets, which may hold anything
        state, *fields = stat[stat.rindex(b")") + 2 :].split()
        # When a process is killed, its first thread may be a zombie while others still hold its files and locks
        threads = int(fields[_THREADS - 4])
        dead = state == b"X" or (state == b"Z" and threads <= 1)
        return None if dead else cls(pid, int(fields[_START_TIME - 4]), _host_boot_id())

    @property
    def alive(self) -> bool:
        """Whether this very process still lives."""
        return Process.find(self.pid) == self

    @contextmanager
    def descriptor(self) -> Iterator[int | None]:
        """A pidfd: readable once the process has ended. None if it has ended already."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # Opened first, compared then: from here on the descriptor means this process or a dead one
            yield pidfd if self.alive else None
        finally:
            os.close(pidfd)

    def wait(self, seconds: float) -> bool:
        """Wait until the process has ended, at most `seconds`. Returns whether it has."""
        with self.descriptor() as pidfd:
            if pidfd is None:
                return True
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(max(0.0, seconds) * 1000))

    @property
    def command(self) -> str:
        """Its command line; empty if it cannot be read."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this very process, never to a later one with its pid."""
        with self.descriptor() as pidfd, suppress(ProcessLookupError):
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, number)


def locked_by_someone(path: Path) -> bool:
    """Whether some process holds a write lock on the file, as QEMU does on its pidfile while it lives."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def owner_of_pidfile(pidfile: Path) -> Process | None:
    """The living process that wrote `pidfile` and still holds the lock on it."""
    if not locked_by_someone(pidfile):
        return None
    try:
        return Process.find(int(pidfile.read_text()))
    except (OSError, ValueError):
        return None


def has_moved(process: Process, pidfile: Path) -> bool:
    """Whether the process has a pidfile open that is another file than `pidfile`: the store was moved while it ran.

    A deleted pidfile does not count. True if it cannot be told, because the process is not ours to look into.
    """
    if owner_of_pidfile(pidfile) == process:
        return False
    try:
        opened = [path for path in _open_files(process.pid) if path.name == pidfile.name]
    except PermissionError:
        return True
    return any(str(path) != os.path.realpath(pidfile) for path in opened)


def _open_files(pid: int) -> Iterator[Path]:
    """What the process has open. After the name of a deleted file Linux puts " (deleted)"; see proc(5)."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # or has closed it
                yield entry.readlink()


def holder_of_flock(file: Path) -> Process | None:
    """The other process that holds a flock of the file, the oldest if several share it; None if none can be seen."""
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


def die_with_parent(parent: int | None = None, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """What a child calls to get a signal when its parent has ended, however that ends: nobody else would wait for it.

    `parent` is that process's pid, by default the one that makes this, before it forks.
    """
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    expected = os.getpid() if parent is None else parent

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != expected:
            os._exit(1)

    return in_child
