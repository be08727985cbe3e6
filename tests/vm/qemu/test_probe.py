"""Logging in again and again: what is to blame when time is up."""

import time
from pathlib import Path

import pytest

from pipeline.builds import ssh_keys
from pipeline.errors import HostFault, KeyGone
from pipeline.host.deadline import Deadline
from pipeline.settings import Timeouts
from pipeline.ssh.address import Address
from pipeline.vm.qemu.probe import LoginProbe
from tests.fakes import sshd
from tests.waiting import NEVER, SOON, eventually

QUICK = Timeouts(connect=1.0, banner=1.0, auth=2.0, command=0.5, retry=0.01)


@pytest.fixture
def key(tmp_path: Path) -> tuple[Path, str]:
    private, public = ssh_keys.generate("ed25519")
    (tmp_path / "key").write_bytes(private)
    return tmp_path / "key", public.decode().strip()


def probe(server: sshd.Server, key: Path, command: str = "echo 1234") -> LoginProbe:
    address = Address("127.0.0.1", server.port, "x", str(key), None)
    return LoginProbe(address, command, "1234", QUICK, Deadline(SOON), lambda _: None)


def test_it_waits_until_it_is_told_and_then_gets_in(key: tuple[Path, str]) -> None:
    with sshd.running(key[1]) as server, probe(server, key[0]) as trying:
        time.sleep(0.2)
        assert server.users == []
        trying.begin()
        eventually(lambda: trying.over)
        assert trying.address
        assert trying.address.host_key == server.host_key_line


def test_the_stage_that_was_reached_last_is_to_blame(key: tuple[Path, str]) -> None:
    """First the server closes every connection; then it lets us in, and the command hangs."""
    with sshd.running(key[1]) as server, probe(server, key[0], f"sleep {NEVER}") as trying:
        server.fault = "close"
        trying.begin()
        eventually(lambda: trying.blame[0] == "banner")
        server.fault = "none"
        eventually(lambda: trying.blame[0] == "echo")
        assert "within" in trying.blame[1]


def test_a_key_that_goes_away_ends_it(key: tuple[Path, str]) -> None:
    with sshd.running(key[1]) as server, probe(server, key[0]) as trying:
        server.fault = "close"
        trying.begin()
        eventually(lambda: trying.failure)
        key[0].unlink()
        with pytest.raises(KeyGone):
            eventually(lambda: trying.over)


def test_a_host_without_threads_is_the_hosts_fault(key: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with sshd.running(key[1]) as server:
        trying = probe(server, key[0])
        monkeypatch.setattr("threading.Thread.start", start)
        with pytest.raises(HostFault) as caught:
            trying.__enter__()
    assert (caught.value.cause, caught.value.transient) == ("host limits", True)
