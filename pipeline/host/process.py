"""Processes that are identified for certain: a bare pid may belong to another one by the time it is used."""

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)
_THREADS, _START_TIME = 20, 22  # fields of /proc/PID/stat, counted from 1; see proc(5)


def host_boot_id() -> str:
    """An id of this boot of the host, which the kernel makes: see random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Process:
    """One process on one boot of this host: the pid alone is reused, the three together are not."""

    pid: int
    start_ticks: int
    """When the process started, in clock ticks since the host booted."""
    host_boot_id: str

    @classmethod
    def find(cls, pid: int) -> "Process | None":
        """The living process that has this pid now, or None. A zombie counts only if threads of it still live."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The second field is the name in brackets, which may hold anything
        state, *fields = stat[stat.rindex(b")") + 2 :].split()
        # When a process is killed, its first thread may be a zombie while others still hold its files and locks
        threads = int(fields[_THREADS - 4])
        dead = state == b"X" or (state == b"Z" and threads <= 1)
        return None if dead else cls(pid, int(fields[_START_TIME - 4]), host_boot_id())

    @property
    def alive(self) -> bool:
        """Whether this very process still lives."""
        return Process.find(self.pid) == self

    @contextmanager
    def descriptor(self) -> Iterator[int | None]:
        """Yield a pidfd, which is readable once the process has ended, or None if it has ended already."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # Compared only after opening: from here on the descriptor means this process or a dead one
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
        """The command line of the process, its words joined by blanks; "" if it cannot be read."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return ""

    def has_open(self, path: Path) -> bool:
        """Whether the process has this very file open, by whatever name. Raises OSError if that cannot be told."""
        there = path.stat()
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it has closed it meanwhile
                if os.path.samestat(entry.stat(), there):
                    return True
        return False

    def shares(self, path: Path) -> bool:
        """Whether this absolute path means the same to that process as to this one: in a container it may not.

        Whatever exists for neither of them is the same if both have the same root. False if we may not look.
        """
        root = Path(f"/proc/{self.pid}/root")
        with suppress(OSError):
            try:
                return Path(f"{root}{os.path.realpath(path)}").samefile(path)
            except FileNotFoundError:
                return not os.path.lexists(path) and root.samefile("/")
        return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this very process, never to a later one with its pid; nothing happens if it has ended."""
        with self.descriptor() as pidfd, suppress(ProcessLookupError):
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, number)


def die_with_parent(parent: int | None = None, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A function that a child calls so that the kernel sends it a signal once its parent has ended, however it ends.

    It suits `preexec_fn`. `parent` is the parent's pid, by default this process's. If the parent has ended already, the
    function ends the child.
    """
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    expected = os.getpid() if parent is None else parent

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != expected:
            os._exit(1)

    return in_child
