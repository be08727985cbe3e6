"""A second launcher: its guest is a shell script on this host, so it is quick, and it fails when it is told to."""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import AlreadyRunning, BootError, HostFault, MissingResource, StoreError
from pipeline.ssh.result import Result
from pipeline.vm.launcher import GuestShell

READY = b"ready\n"


class ShellConnector:
    """Runs the guest's commands in a shell of this host."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, command: str, limit: float) -> Result:
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.directory, capture_output=True, timeout=limit, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def close(self) -> None:
        pass


@dataclass
class ShellLauncher:
    """`script` is the guest: it is ready when it has written "ready". `failures` are raised, one by each start."""

    base: Path
    script: str = "echo early; echo ready; exec sleep 1000"
    failures: list[BootError] = field(default_factory=list)
    guest: "subprocess.Popen[bytes] | None" = None
    directory: Path | None = None
    starts: int = 0

    def prepare(self) -> None:
        if not self.base.is_dir():
            raise MissingResource(f"there is no {self.base}", hint="make it")
        self.directory = self.directory or Path(tempfile.mkdtemp(dir=self.base))

    def start(self) -> GuestShell:
        if self.is_running():
            raise AlreadyRunning("it is running already", hint="kill it")
        self.prepare()
        assert self.directory
        self.starts += 1
        try:
            with self.log.open("wb") as log:
                self.guest = subprocess.Popen(["sh", "-c", self.script], stdout=subprocess.PIPE)
                assert self.guest.stdout
                if self.failures:
                    raise self.failures.pop(0)
                for line in self.guest.stdout:
                    log.write(line)
                    if line == READY:
                        return ShellConnector(self.directory)
            raise HostFault("it ended", hint="mend it", stage="marker")
        except BaseException:
            self.kill()
            raise

    @property
    def log(self) -> Path:
        return self.base / "log"

    def is_running(self) -> bool:
        return self.guest is not None and self.guest.poll() is None

    def kill(self) -> None:
        if self.guest:
            self.guest.kill()
            self.guest.communicate()
            self.guest = None
        if self.directory:
            shutil.rmtree(self.directory)
            self.directory = None

    def get_logs(self, into: BinaryIO) -> None:
        if not self.log.exists():
            raise StoreError("there is no log", hint="start it first")
        into.write(self.log.read_bytes())
