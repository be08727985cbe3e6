"""What the host can give to a process: CPU time when it wants it, memory, and room on the disk."""

import os
import platform
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.host.process import Process

_STEAL = 8  # the field of the line "cpu" in /proc/stat, counted from 1; see proc(5)


def waited_for_cpu(process: Process) -> float:
    """Seconds that a thread of the process was ready to run but had no CPU; of the thread that waited longest.

    0.0 if the kernel does not tell (/proc/PID/task/TID/schedstat, kernel: Documentation/scheduler/sched-stats).
    """
    waited = 0.0
    with suppress(OSError):  # the process has ended meanwhile
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(OSError, ValueError, IndexError):  # the thread has
                waited = max(waited, int((thread / "schedstat").read_text().split()[1]) / 1e9)
    return waited


def stolen() -> float:
    """Steal time in seconds, summed over all CPUs since the host booted: a hypervisor ran something else instead."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/stat").read_text().split(maxsplit=_STEAL + 1)[_STEAL]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def is_frozen(process: Process) -> bool:
    """Whether the process has been stopped by a signal or a debugger."""
    with suppress(OSError, IndexError):
        stat = Path(f"/proc/{process.pid}/stat").read_bytes()
        return stat[stat.rindex(b")") + 2 :].split()[0] in (b"T", b"t") and process.alive
    return False


def cpu_model() -> str:
    """The name of the host's CPU, as its maker gives it; only the architecture where the kernel does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()


def free_bytes(path: Path) -> int:
    """How many bytes can still be written to the disk of `path`. Raises OSError."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def is_noexec(path: Path) -> bool:
    """Whether the file system of `path` is mounted noexec, so that no program can be run from there."""
    with suppress(OSError):
        return bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
    return False


NOEXEC_HINT = "mount it with exec, or have the file elsewhere; what lies in the store: [store] root or TOPCOAT_ROOT"
"""The hint for a person: what to do about a program on a file system that is mounted noexec."""


def available_memory() -> int:
    """Bytes that new processes can use before the host swaps, as the kernel estimates (MemAvailable, proc(5)).

    sys.maxsize if the kernel does not tell.
    """
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return sys.maxsize


def resident(process: Process) -> int:
    """Bytes of memory that are resident for the process now; 0 if it has ended."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") if process.alive else 0
    return 0


@dataclass
class Starvation:
    """A measurement of how long a process has lacked a CPU since the object was made."""

    process: Process

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._stolen = stolen()

    def seconds(self) -> float:
        """Seconds without a CPU, at most the time that has passed; stolen time counts as well."""
        passed = time.monotonic() - self._started
        stolen_of_each = (stolen() - self._stolen) / (os.cpu_count() or 1)
        return min(passed, waited_for_cpu(self.process) + stolen_of_each)

    def share(self) -> float:
        """The time without a CPU as a share of the time that has passed, 0 to 1."""
        passed = time.monotonic() - self._started
        return self.seconds() / passed if passed > 0 else 0.0
