"""What a process or a directory takes of the host."""

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

from pipeline.host.process import Process

_TICKS = os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """The host and its QEMU, in one line."""
    version = subprocess.run(("qemu-system-x86_64", "--version"), capture_output=True, text=True, check=True).stdout
    return f"{platform.node()}: {os.cpu_count()} cores; {version.splitlines()[0]}"


def cpu(process: Process) -> float:
    """The CPU time that a process has taken so far, with all of its threads, in seconds."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory(process: Process) -> tuple[float, float]:
    """Pss and private pages of a process, in MiB."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, _ = line.split()
        found[name] = int(value)
    return found["Pss:"] / 1024, (found["Private_Clean:"] + found["Private_Dirty:"]) / 1024


def disk(directory: Path) -> float:
    """What the files of a directory take of the disk, in MiB."""
    return sum(path.lstat().st_blocks for path in directory.iterdir()) / 2048


def opened(process: Process, file: Path) -> int:
    """How many descriptors of a process are of a file."""
    count = 0
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += entry.readlink() == file
    return count
