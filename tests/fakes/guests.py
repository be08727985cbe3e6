"""Guests for a pool: shells that look like a QEMU from outside, quick, and as faulty as they are told."""

import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from pipeline.errors import BootError
from pipeline.host.pidfile import owner_of_pidfile
from pipeline.host.process import Process
from pipeline.ssh.address import Address
from pipeline.store.freshness import Key
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.launcher import KILL_LIMIT, GuestShell
from pipeline.vm.qemu.stopping import stop
from tests.fakes.launcher import ShellConnector
from tests.waiting import SOON, eventually

MEMORY = 256 << 20

SHELL = 'echo $$ > "$2"; read forever'


def fake_qemu(pidfile: Path) -> Process:
    """A process with QEMU's argument that holds its pidfile as QEMU does, and is nobody's child."""
    reader, writer = os.pipe()  # it holds both ends, so that it reads for ever
    with os.fdopen(reader), os.fdopen(writer), pidfile.open("w") as stream:
        fcntl.fcntl(stream, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        words = ["setsid", "--fork", "sh", "-c", SHELL, "qemu", "-pidfile", str(pidfile)]
        subprocess.run(
            words,
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writer, stream.fileno()],
            check=True,
        )
    return eventually(lambda: owner_of_pidfile(pidfile))


@dataclass
class FakeLauncher:
    """One guest."""

    instance: Instance
    guests: "FakeGuests"

    def prepare(self) -> None:
        pass

    def start(self) -> GuestShell:
        self.guests.starts.append(self.instance.name)
        if self.guests.failures:
            raise self.guests.failures.pop(0)
        self.guests.while_booting(self.instance)
        self.instance.directory.mkdir(parents=True, exist_ok=True)
        process = fake_qemu(self.instance.pidfile)
        self.instance.publish_handle(self.guests.handle(self.instance, process))
        self.guests.after_boot(process)
        return ShellConnector(self.instance.directory)

    def is_running(self) -> bool:
        return self.instance.live_handle() is not None

    def kill(self) -> None:
        stop(self.instance, KILL_LIMIT)

    def get_logs(self, into: BinaryIO) -> None:
        into.write(b"")


@dataclass
class FakeGuests:
    """What a boot is made of is `version`. `failures` are raised, one by each start."""

    version: str = "1"
    memory: int = MEMORY
    clones: bool = False
    failures: list[BootError] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    keepalives: list[KeepAlive] = field(default_factory=list)
    while_booting: Callable[[Instance], object] = lambda _: None
    after_boot: Callable[[Process], object] = lambda _: None

    def cloned(self) -> bool:
        return self.clones

    def launcher(self, instance: Instance, keepalive: KeepAlive) -> FakeLauncher:
        self.keepalives.append(keepalive)
        return FakeLauncher(instance, self)

    def abandon(self, instance: Instance) -> None:
        self.abandoned.append(instance.name)

    def end(self, instance: Instance) -> None:
        stop(instance, KILL_LIMIT)

    def fits(self, handle: Handle) -> str | None:
        found = handle.made_of.task
        return None if found == self.version else f"version {found} -> {self.version}"

    def handle(self, instance: Instance, process: Process) -> Handle:
        return Handle(
            name=instance.name,
            boot_id=uuid4().hex,
            build="fake",
            started="2026-11-23T17:53:35Z",
            argv=("qemu",),
            process=process,
            accelerator="tcg",
            ssh=Address("127.0.0.1", 1, "user", "/key", None),
            made_of=Key(self.version, 0, {}, {}, {}),
        )


def kill(process: Process) -> None:
    process.send(signal.SIGKILL)
    assert process.wait(SOON)
