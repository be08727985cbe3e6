"""Findings about the host's resources, by pure functions of what the host says of itself."""

import re
import resource
from dataclasses import dataclass
from typing import Literal

from pipeline.text.quantity import readable_size

Level = Literal["ok", "warning", "error"]

LEAST_SPACE = 1 << 30
"""Bytes of free space, without which nothing worth having can be made."""
FEWEST_FILES = 1024
"""The number of files that one process should be able to open, at least."""
SPARE_THREADS = 64
"""The processes and threads that a guest's QEMU and its boot may need, with some to spare."""
MOST_LOAD = 2.0
"""Runnable processes for each core, averaged over a minute, above which the host is overloaded."""

_UNKNOWN = "the kernel does not tell"


@dataclass(frozen=True)
class Finding:
    """What was found about one thing that was looked at."""

    name: str
    level: Level
    text: str
    """What was found, in one line."""
    hint: str = ""
    """What to do about it; empty if there is nothing to do."""


def space(free: int, images: int, growth: int) -> Finding:
    """Judge the `free` bytes on the store's disk, when the images of one build take `images` bytes.

    The running guests could write `growth` bytes more.
    """
    text = f"{readable_size(free)} are free for the store"
    takes = f"{text}; the images of this build take {readable_size(images)}"
    takes += f", and the guests that run could write {readable_size(growth)} more" if growth else ""
    hint = "free some space, see topcoat gc and topcoat clean; or move the store: [store] root or TOPCOAT_ROOT"
    if growth > free:
        hint = f"end guests that are not needed: topcoat stop NAME; or {hint}"
    if free < LEAST_SPACE:
        return Finding(
            "space", "error", f"{text}, and {readable_size(LEAST_SPACE)} is the least with which to begin", hint
        )
    return Finding("space", "warning", takes, hint) if free < max(2 * images, growth) else Finding("space", "ok", takes)


def memory(meminfo: str, need: int) -> Finding:
    """Judge the content of /proc/meminfo, for a guest with `need` MiB."""
    available, swap = (_kilobytes(meminfo, name) for name in ("MemAvailable", "SwapFree"))
    if available is None:
        return Finding("memory", "ok", _UNKNOWN)
    text = f"{readable_size(available)} of memory are available; a guest takes {readable_size(need << 20)}"
    hint = "end what takes the memory, or give guests less: [qemu] memory"
    if available >= need << 20:
        return Finding("memory", "ok", text)
    if available + (swap or 0) >= need << 20:
        return Finding("memory", "warning", f"{text}: the host would swap", hint)
    return Finding("memory", "error", text, hint)


def _kilobytes(meminfo: str, name: str) -> int | None:
    match = re.search(rf"^{name}:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(match[1]) << 10 if match else None


def open_files(soft: int) -> Finding:
    """Judge the soft limit of open files (RLIMIT_NOFILE)."""
    if soft == resource.RLIM_INFINITY or soft >= FEWEST_FILES:
        return Finding("open files", "ok", f"a process may open {_number(soft)} files")
    text = f"a process may open {soft} files only"
    return Finding("open files", "warning", text, "raise the limit in this shell: ulimit -n 4096")


def processes(soft: int, threads: int) -> Finding:
    """Judge the soft limit of processes (RLIMIT_NPROC), when this user has `threads` processes and threads."""
    text = f"this user may have {_number(soft)} processes and threads, and has {threads}"
    if soft == resource.RLIM_INFINITY or soft - threads >= SPARE_THREADS:
        return Finding("processes", "ok", text)
    return Finding("processes", "warning", text, "end what is not needed, or raise the limit in this shell: ulimit -u")


def user(uid: int, becomes: str | None) -> Finding:
    """Judge the user that Topcoat and QEMU run as, and the one that QEMU becomes, if any."""
    if uid or becomes:
        return Finding("user", "ok", f"QEMU runs as user {becomes or uid}, not as root")
    text = "QEMU runs as root, with all that root may do: who breaks out of a guest owns this host"
    hint = "run Topcoat as a user of its own, in the group kvm where there is KVM; or set [qemu] user"
    return Finding("user", "warning", text, hint)


def _number(limit: int) -> str:
    return "any number of" if limit == resource.RLIM_INFINITY else str(limit)


def load(loadavg: str, pressure: str, cores: int) -> Finding:
    """Judge the content of /proc/loadavg and /proc/pressure/cpu, which may be empty, for a host with `cores`."""
    numbers = re.match(r"\d+\.\d+", loadavg)
    if numbers is None:
        return Finding("load", "ok", _UNKNOWN)
    each = float(numbers[0]) / cores
    waiting = re.search(r"^some .*\bavg60=(\d+\.\d+)", pressure, re.MULTILINE)
    text = f"{each:.1f} processes want to run for each of {cores} cores"
    text += f"; some wait {float(waiting[1]):.0f} % of the time" if waiting else ""
    if each <= MOST_LOAD:
        return Finding("load", "ok", text)
    return Finding("load", "warning", text, "wait, or boot fewer guests at once; [boot] scale gives boots more time")
