"""What a run leaves behind that should not be there."""

import os
import time
from pathlib import Path

LOGS = ("serial.log", "qemu.log", "timeline.jsonl")
"""How the names of files begin that stay when an instance has ended."""

_SOON = 10.0  # seconds; a keeper ends after its QEMU


def processes(root: Path) -> list[str]:
    """All living processes with the directory on their command line, once there has been time for them to end."""
    end = time.monotonic() + _SOON
    while (found := _processes(root)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def _processes(root: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(root) in words:
                found.append(f"pid {entry.name}: {words[:80]!r}")
    return found
