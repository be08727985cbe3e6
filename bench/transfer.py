"""Many small files into the Linux guest and out of it: Topcoat against one SFTP round trip after the other.

Each round does it in turn, in a guest that the bench boots itself:

    topcoat    Connector.put and Connector.get: one tar stream
    pipelined  the same in a guest that seems to have no tar, as Fuchsia: many SFTP requests at once
    one by one paramiko's SFTPClient: each file opened, written or read, and closed before the next

and compares what has arrived with what was sent.

    python -m bench.transfer [--rounds 3] [--files 2000]
"""

import argparse
import filecmp
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import paramiko

from bench.marker_latency import prepare
from pipeline import settings
from pipeline.builds import build
from pipeline.settings import Timeouts
from pipeline.ssh.address import Address
from pipeline.ssh.connection import Connection
from pipeline.ssh.connector import Connector
from pipeline.ssh.facilities import Facilities
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.launcher import QemuLauncher

SIZE = 600  # bytes of the largest; corpora of fuzzers are like that
LIMITS = Timeouts().scaled(settings.TCG_SCALE)


def main() -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description="Compare transfers of many small files.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory))
        source = make(Path(directory) / "corpus", options.files)
        found = settings.load()
        launcher = QemuLauncher(found, build.load(found), Instance.named(found.store, "i0"), "ssh")
        try:
            compare(launcher.start().address, source, options.rounds)
        finally:
            launcher.kill()
    return 0


def make(directory: Path, count: int) -> Path:
    """A corpus."""
    chance = random.Random(1)
    directory.mkdir()
    for number in range(count):
        (directory / f"{number:040x}").write_bytes(chance.randbytes(chance.randrange(1, SIZE)))
    return directory


def compare(address: Address, source: Path, rounds: int) -> None:
    """All rounds, and what they come to."""
    seconds: dict[str, list[float]] = {}
    ways: dict[str, Callable[[str, Path, Path], None]] = {
        "topcoat": lambda how, here, back: whole(address, how, here, back),
        "pipelined": lambda how, here, back: pipelined(address, how, here, back),
        "one by one": lambda how, here, back: one_by_one(address, how, here, back),
    }
    for number in range(rounds):
        for how in ("put", "get"):
            for name, way in ways.items():
                with tempfile.TemporaryDirectory() as back:
                    began = time.monotonic()
                    way(how, source, Path(back))
                    seconds.setdefault(f"{how} {name}", []).append(time.monotonic() - began)
                    assert how == "put" or same(source, Path(back) / source.name), name
                print(f"round {number + 1}: {how} {name} {seconds[f'{how} {name}'][-1]:.2f} s", flush=True)
    for how in ("put", "get"):
        tell(how, len(list(source.iterdir())), {name: seconds[f"{how} {name}"] for name in ways})


def tell(how: str, count: int, seconds: dict[str, list[float]]) -> None:
    """One direction, with the ratios."""
    for name, all_of_it in seconds.items():
        ratios = [other / own for other, own in zip(seconds["one by one"], all_of_it, strict=True)]
        median = statistics.median(all_of_it)
        print(
            f"{how} {count} files, {name:<11} median {median:.2f} s ({min(all_of_it):.2f} to {max(all_of_it):.2f}), "
            f"{count / median:.0f} files/s, {statistics.median(ratios):.1f} times as fast as one by one"
        )


def same(one: Path, other: Path) -> bool:
    """Whether both directories hold the same files."""
    names = sorted(os.listdir(one))  # noqa: PTH208
    return names == sorted(os.listdir(other)) and filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])  # noqa: PTH208


def whole(address: Address, how: str, source: Path, back: Path) -> None:
    """As everybody gets it; to connect is part of it."""
    transfer(Connector(address, LIMITS), how, source, back, "/tmp/tar")


def pipelined(address: Address, how: str, source: Path, back: Path) -> None:
    """Without tar."""

    class Without(Connector):
        def connected(self) -> Connection:
            connection = super().connected()
            setattr(connection, "facilities", lambda _: Facilities())  # noqa: B010  mypy forbids the assignment
            return connection

    transfer(Without(address, LIMITS), how, source, back, "/tmp/sftp")


def transfer(connector: Connector, how: str, source: Path, back: Path, target: str) -> None:
    """One transfer."""
    try:
        if how == "put":
            connector.put(str(source), target)
        else:
            connector.get(f"{target}/{source.name}", back)
    finally:
        connector.close()


def one_by_one(address: Address, how: str, source: Path, back: Path) -> None:
    """The plain way."""
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect(address.host, address.port, address.user, key_filename=address.key, look_for_keys=False)
    with client, client.open_sftp() as sftp:
        target = f"/tmp/plain-{source.name}"
        if how == "put":
            if target.rpartition("/")[2] not in sftp.listdir("/tmp"):
                sftp.mkdir(target)
            for path in sorted(source.iterdir()):
                with sftp.open(f"{target}/{path.name}", "wb") as stream:
                    stream.write(path.read_bytes())
        else:
            (back / source.name).mkdir()
            for name in sorted(sftp.listdir(target)):
                with sftp.open(f"{target}/{name}", "rb") as stream:
                    (back / source.name / name).write_bytes(stream.read())


if __name__ == "__main__":
    sys.exit(main())
