"""Stores with what live and killed boots have made, and a place for temporary files that no other test knows."""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pipeline.host.process import Process
from pipeline.settings import Store
from pipeline.ssh.address import Address
from pipeline.store.freshness import Key
from pipeline.upkeep import gc
from pipeline.upkeep.gc import Outcome
from pipeline.vm import sockets
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from tests.waiting import SOON, eventually

DAY = 86400.0


class World:
    """A store, and a place for temporary files that no other test knows."""

    def __init__(self, directory: Path, temporary: Path) -> None:
        self.directory, self.temporary = directory, temporary
        self.store = Store(directory / "out")
        self.started: list[subprocess.Popen[bytes]] = []

    def instance(self, name: str = "i0", *, log: bool = True) -> Instance:
        found = Instance.named(self.store, name)
        found.directory.mkdir(parents=True, exist_ok=True)
        if log:
            found.serial_log.write_text("what the guest said")
        return found

    def qemu(self, pidfile: Path, *inherited: int, early: bool = False) -> Process:
        """A process with QEMU's argument, that holds its pidfile as QEMU does, if it is not too `early` for that.

        The lock is one of the open file, so that a shell can inherit it; it ends with the test at the latest.
        """
        with ExitStack() as opened:
            kept = list(inherited)
            if not early:
                stream = opened.enter_context(pidfile.open("w+"))
                fcntl.fcntl(stream, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
                kept.append(stream.fileno())
            words = ["sh", "-c", "read x", "qemu", "-pidfile", str(pidfile)]
            child = subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=kept)
            self.started.append(child)
            if not early:
                stream.write(str(child.pid))
        process = Process.find(child.pid)
        assert process
        eventually(Path(f"/proc/{child.pid}/cmdline").read_bytes)  # for a moment after exec(2) it is empty
        return process

    def live(self, name: str = "i0") -> Instance:
        """An instance that runs: QEMU, its sockets, its disk, its handle."""
        instance = self.killed_boot(name)
        process = self.process_of(instance)
        instance.publish_handle(handle(instance, process))
        return instance

    def killed_boot(self, name: str = "i0") -> Instance:
        """All that a boot has made before the handle, which then was killed."""
        instance = self.instance(name)
        listen(instance.serial_socket).close()
        instance.overlay.write_bytes(b"x" * 5000)
        self.qemu(instance.pidfile)
        return instance

    def process_of(self, instance: Instance) -> Process:
        process = Process.find(int(instance.pidfile.read_text()))
        assert process
        return process

    def dead(self, name: str = "i0") -> Instance:
        """An instance whose QEMU has ended by itself."""
        instance = self.live(name)
        self.kill(self.process_of(instance))
        return instance

    def kill(self, process: Process) -> None:
        process.send(signal.SIGKILL)
        assert process.wait(SOON)

    def end(self) -> None:
        for child in self.started:
            with child:
                child.kill()

    def listed(self, keep_logs: float = DAY) -> dict[str, str]:
        return {self.short(item.what): item.kind for item in gc.items(self.store, keep_logs)}

    def short(self, what: str) -> str:
        return what.replace(str(self.directory), "").replace(str(self.temporary), "TMP").removeprefix("/out/")

    def collect(self, keep_logs: float = DAY) -> list[Outcome]:
        return [gc.reclaim(item) for item in gc.items(self.store, keep_logs)]

    def collect_at_once(self, collectors: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        threads = [threading.Thread(target=lambda: outcomes.extend(self.collect())) for _ in range(collectors)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        return outcomes

    def left(self) -> list[str]:
        """All files but locks, in the store and the place for sockets."""
        places = (self.store.root, self.temporary)
        found = (Path(parent, name) for place in places for parent, _, names in os.walk(place) for name in names)
        return sorted(self.short(str(path)) for path in found if path.suffix != ".lock")


def handle(instance: Instance, process: Process) -> Handle:
    return Handle(
        name=instance.name,
        boot_id="b",
        build="demo",
        started="2026-11-23T17:53:35Z",
        argv=("qemu",),
        process=process,
        accelerator="tcg",
        ssh=Address("127.0.0.1", 1, "user", "/key", None),
        made_of=Key("", 0, {}, {}, {}),
    )


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    path.unlink(missing_ok=True)
    with sockets.address(path) as where:
        server.bind(where)
    server.listen()
    return server


def make_old(path: Path, seconds: float) -> None:
    """As if nothing had been written there for so long."""
    then = time.time() - seconds
    for parent, directories, files in os.walk(path, topdown=False):
        for name in (*directories, *files, "."):
            os.utime(Path(parent, name), (then, then), follow_symlinks=False)


@contextmanager
def new_world() -> Iterator[World]:
    # pytest's own directories are too long for sockets
    with tempfile.TemporaryDirectory(dir="/tmp") as base, pytest.MonkeyPatch.context() as patch:
        directory, temporary = Path(base, "w"), Path(base, "t")
        directory.mkdir()
        temporary.mkdir()
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", str(temporary))
        world = World(directory, temporary)
        try:
            yield world
        finally:
            world.end()


@pytest.fixture(scope="module", autouse=True)
def _place_of_pytest_s_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path_factory.getbasetemp()  # before a test changes where temporary files go


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


def spared(outcomes: list[Outcome]) -> list[str]:
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    return [outcome.spared for outcome in outcomes]
