"""Guests that send little by little: each byte comes in time, and all of it never does."""

import time
from pathlib import Path
from typing import Any

import paramiko
import pytest

from pipeline.errors import CommandTimeout
from pipeline.ssh.connector import Connector
from pipeline.ssh.landing import TransferLimits
from pipeline.ssh.pace import LEAST_RATE, Pace
from tests.fakes import sshd
from tests.ssh.conftest import PATIENT, address, program
from tests.waiting import SOON


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestPace:
    def test_dripping(self) -> None:
        clock = Clock()
        pace = Pace(60, 3600, clock)
        for _ in range(30):
            clock.now += 2
            pace.moved(1)
        clock.now += 2
        with pytest.raises(CommandTimeout, match=r"is too slow: in 62 s, it was as much as 31 bytes"):
            pace.moved(1)

    def test_as_slow_as_can_be(self) -> None:
        clock = Clock()
        pace = Pace(60, 3600, clock)
        for _ in range(3600):
            clock.now += 1
            pace.moved(LEAST_RATE)
        clock.now += 1
        with pytest.raises(CommandTimeout, match="not over after 3600 s"):
            pace.moved(1 << 30)

    def test_a_pause_after_much_has_come(self) -> None:
        clock = Clock()
        pace = Pace(1, 3600, clock)
        pace.moved(100 * LEAST_RATE)
        clock.now += 100
        pace.moved(1)


def hasty(server: sshd.Server, key: Path) -> Connector:
    return Connector(address(server, key), PATIENT, limits=TransferLimits(stall=1.0))


DRIP = "while :; do printf '\\0'; sleep 0.1; done"


@pytest.mark.slow
def test_a_tar_that_drips(server: sshd.Server, key: Path, root: Path, here: Path, tmp_path: Path) -> None:
    (root / "d").mkdir()
    (root / "d/file").touch()
    program(server, tmp_path, "tar", f'[ "$1" = -c ] || exec /bin/tar "$@"; {DRIP}')
    connector = hasty(server, key)
    with pytest.raises(CommandTimeout, match="is too slow"):
        connector.get("d", here)
    connector.close()


@pytest.mark.slow
def test_a_guest_that_takes_little_by_little(server: sshd.Server, key: Path, here: Path, tmp_path: Path) -> None:
    """However large the pieces are that it takes in time."""
    (here / "large").mkdir()
    for number in range(8):
        (here / "large" / str(number)).write_bytes(bytes(4_000_000))
    program(server, tmp_path, "tar", '[ "$1" = -x ] || exec /bin/tar "$@"; while head -c 100000; do sleep 0.1; done')
    connector = Connector(address(server, key), PATIENT, limits=TransferLimits(stall=SOON, seconds=1.0))
    with pytest.raises(CommandTimeout, match="a transfer is not over after 1 s"):
        connector.put(str(here / "large"), ".")
    connector.close()


def test_an_sftp_server_that_drips(
    server: sshd.Server, key: Path, root: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(one: Any, data: bytes) -> None:
        for at in range(len(data)):
            one.sock.sendall(data[at : at + 1])
            time.sleep(0.1)

    (root / "file").touch()
    monkeypatch.setattr(paramiko.SFTPServer, "_write_all", drip)
    connector = hasty(server, key)
    with pytest.raises(CommandTimeout, match="is too slow"):
        connector.get("file", here)
    connector.close()
