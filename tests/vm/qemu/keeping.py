"""A keeper with real files and real processes; sleepers play QEMU and the process that boots it."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.host.process import Process
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.qemu import keeper
from tests.children import child, found
from tests.waiting import SOON, eventually

CAP = 1 << 20
BOOT_ID = "7a11cf0b63964ac7a0f4d41b3fbb7b5e"


class Scene:
    """The files of an instance, a process that plays its QEMU, and the keepers that were started for it."""

    def __init__(self, directory: Path, qemu: "subprocess.Popen[bytes]") -> None:
        self.handle_file = directory / "handle.json"
        self.log = directory / "serial.log"
        self.old = directory / "serial.log.1"
        self.qemu_log = directory / "qemu.log"
        self.popen, self.qemu = qemu, found(qemu)

    def start(self, owner: Process, cap: int = CAP, keepalive: KeepAlive | None = None) -> Process:
        """Start a keeper, and return when it watches both processes."""
        logs = (self.log, self.qemu_log)
        keeper.start(self.qemu, owner, BOOT_ID, self.handle_file, logs, cap, self.qemu_log, keepalive)
        eventually(self.keepers)
        (made,) = self.keepers()
        eventually(lambda: len(pidfds(made)) == 2)
        return made

    def keepers(self) -> list[Process]:
        made = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            # Before the fork, setsid has the same words
            if b"setsid" not in words and keeper.__file__.encode() in words and bytes(self.handle_file) in words:
                process = Process.find(int(entry.name))
                made += [process] if process else []
        return made

    def said(self) -> str:
        return self.qemu_log.read_text()

    def lives(self) -> bool:
        """Whether QEMU still lives a while after the keeper has noticed that the owner has ended."""
        (ours,) = self.keepers()
        eventually(lambda: len(pidfds(ours)) == 1)
        return not self.qemu.wait(0.5)


def pidfds(process: Process) -> list[str]:
    links = []
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(entry.readlink()))
    return [link for link in links if "pidfd" in link]


@contextmanager
def playing(directory: Path, *qemu: str) -> Iterator[Scene]:
    with child(*qemu) as popen:
        scene = Scene(directory, popen)
        try:
            yield scene
        finally:
            popen.kill()
            for process in scene.keepers():
                if not process.wait(SOON):
                    process.send(signal.SIGKILL)
                    pytest.fail("a keeper outlives its QEMU")
