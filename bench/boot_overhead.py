"""What Topcoat adds to a boot: `luigi --module tasks BootInstance` against the bare QEMU command with the same proof.

Both sides boot the Linux guest from the same prepared images, by turns, and end when `echo` has been answered over SSH.
The bare side starts QEMU with the very command line of `topcoat argv`, blocks on the serial socket until the marker,
and then logs in with a paramiko that is imported already. Topcoat's side is the whole command as a user types it:
Python's start, imports, checks, overlay, QEMU, marker, login, handle. It is measured twice: until the guest is ready,
which is when its handle is written and others can use it, and until the command has ended. What Python takes to start
and to import luigi is printed too: no luigi task can cost less.

    python bench/boot_overhead.py [--rounds N]
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import paramiko

from pipeline.settings import Store
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.boot import LOOPBACK
from pipeline.vm.qemu.profile import USER
from pipeline.vm.qemu.qmp import Monitor
from pipeline.vm.qemu.serial import MARKER

BIN = Path(sys.executable).parent
LIMIT = 120.0


def main() -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description="Compare a boot by Topcoat with the bare QEMU command.")
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        bare: list[float] = []
        ready: list[float] = []
        ours: list[float] = []
        imports: list[float] = []

        def one_bare() -> None:
            bare.append(bench.boot_bare())

        def one_of_ours() -> None:
            for seconds, found in zip((ready, ours), bench.boot_with_topcoat(), strict=True):
                seconds.append(found)

        try:
            bench.prepare()
            for number in range(rounds):
                for measure in (one_bare, one_of_ours)[:: 1 if number % 2 else -1]:
                    measure()
                imports.append(bench.import_luigi())
                print(f"round {number + 1}: bare {bare[-1]:.3f} s, topcoat {ours[-1]:.3f} s", flush=True)
        finally:
            bench.run("topcoat", "stop", "--all")
        version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True)
    print(f"\n{os.cpu_count()} cores, {platform.platform()}, {version.stdout.splitlines()[0]}")
    sides = {
        "bare QEMU + SSH probe": bare,
        "luigi BootInstance": ours,
        "  until ready": ready,
        "import luigi": imports,
    }
    for name, seconds in sides.items():
        middle = statistics.median(seconds)
        print(f"{name:<24} median {middle:.3f} s  (min {min(seconds):.3f}, max {max(seconds):.3f}, n={rounds})")
    print(f"{'ratio of the medians':<24} {statistics.median(ours) / statistics.median(bare):.3f}")
    print(f"{'  until ready':<24} {statistics.median(ready) / statistics.median(bare):.3f}")
    return 0


class Bench:
    """A store with prepared images, and the two ways to boot from it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "TOPCOAT_ROOT": str(directory / "out")}
        for name in ("FUCHSIA_DIR", "FUCHSIA_RESOURCES_DIR", "LUIGI_CONFIG_PATH"):
            self.environment.pop(name, None)
        self.bare = directory / "bare"
        """The directory of the bare side's instance."""
        self.instance = Instance.named(Store(directory / "out"), "i0")

    def prepare(self) -> None:
        """Make the images, and learn the command line, with the bare side's directory in it."""
        self.run("luigi", "--module", "tasks", "BootInstance", "--warm", "never")
        argv = json.loads(self.run("topcoat", "argv", "i0", "--json"))["argv"]
        self.argv = [word.replace(str(self.instance.directory), str(self.bare)) for word in argv]
        self.run("topcoat", "stop", "i0")

    def run(self, *words: str) -> str:
        """Run one of Topcoat's commands."""
        command = [str(BIN / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=self.directory, env=self.environment, check=True, capture_output=True)
        return done.stdout.decode()

    def boot_with_topcoat(self) -> tuple[float, float]:
        """Seconds from the command until the guest is ready, and until the command has ended."""
        at, began = time.time(), time.monotonic()
        self.run("luigi", "--module", "tasks", "BootInstance", "--warm", "never")
        seconds = time.monotonic() - began
        ready = self.instance.handle_file.stat().st_mtime - at
        self.run("topcoat", "stop", "i0")
        return ready, seconds

    def import_luigi(self) -> float:
        """Seconds for what every luigi command does before it knows a task."""
        began = time.monotonic()
        subprocess.run([BIN / "python", "-c", "import luigi.cmdline"], check=True)
        return time.monotonic() - began

    def boot_bare(self) -> float:
        """Seconds from QEMU's start to the answer over SSH."""
        shutil.rmtree(self.bare, ignore_errors=True)
        self.bare.mkdir()
        image = self.directory / "out/images/demo/extended-fvm.blk"
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image), "overlay.qcow2"]
        subprocess.run(overlay, cwd=self.bare, check=True)
        began = time.monotonic()
        with subprocess.Popen(self.argv, cwd=self.bare, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as qemu:
            try:
                wait_for_marker(self.bare / "serial", began + LIMIT)
                with Monitor(self.bare / "qmp", LIMIT) as monitor:
                    port = monitor.ssh_port()
                self.log_in(port)
                return time.monotonic() - began
            finally:
                qemu.kill()

    def log_in(self, port: int) -> None:
        """The same proof as Topcoat's, by the shortest way."""
        with paramiko.Transport((LOOPBACK, port)) as transport:
            transport.connect(username=USER, pkey=paramiko.PKey.from_path(self.directory / "out/keys/sshid"))
            channel = transport.open_session()
            channel.exec_command("echo ready")
            assert channel.makefile().read() == b"ready\n"


def wait_for_marker(path: Path, limit: float) -> None:
    """Block on the serial socket until the marker has come."""
    with socket.socket(socket.AF_UNIX) as serial:
        while serial.connect_ex(str(path)):
            assert time.monotonic() < limit
            time.sleep(0.001)
        serial.settimeout(LIMIT)
        said = b""
        while MARKER not in said:
            said += serial.recv(65536)


if __name__ == "__main__":
    sys.exit(main())
