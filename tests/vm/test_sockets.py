"""Sockets in directories with long paths, and in places that cannot hold any."""

import errno
import os
import socket
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.vm import sockets
from tests import neighbours
from tests.conftest import Workspace


@pytest.mark.parametrize("name", ["short", "x" * 200, "a b, c;%:=", "日本語\n"], ids=["short", "long", "odd", "utf-8"])
def test_a_socket_is_reached_wherever_it_lies(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    path = directory / "qmp"
    before = len(list(Path("/proc/self/fd").iterdir()))
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with sockets.address(path) as where:
            server.bind(where)
        server.listen()
        sockets.connect(client, path)
        with server.accept()[0] as peer:
            client.sendall(b"hello")
            assert peer.recv(5) == b"hello"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nobody_there_is_an_os_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        for path in (tmp_path / "qmp", tmp_path / "gone/qmp"):
            with pytest.raises(FileNotFoundError):
                sockets.connect(client, path)


def test_a_place_that_can_hold_sockets_is_as_before(tmp_path: Path) -> None:
    sockets.require_sockets(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As vfat and some shared folders of virtual machines are."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(StoreError, match="cannot hold sockets: ") as caught:
        sockets.require_sockets(tmp_path)
    assert "move the store to a local disk" in caught.value.hint


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(socket.socket, "bind", full)
    with pytest.raises(StoreError, match="No space left on device"):
        sockets.require_sockets(tmp_path)


@neighbours.needs_root
def test_nobody_else_gets_at_the_sockets_of_a_guest(bundle: Workspace) -> None:
    """Not even where everybody could once enter its directory."""
    attack = "socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('connected')"
    with neighbours.commons() as shared:
        bundle.environment["TOPCOAT_ROOT"] = str(shared / "out")
        instance = bundle.instance()
        instance.directory.mkdir(parents=True)
        instance.directory.chmod(0o777)
        before = os.umask(0)  # else the sockets' own modes would keep others out
        try:
            assert bundle.luigi("BootInstance").status == 0
        finally:
            os.umask(before)
        for path in (instance.qmp_socket, instance.serial_socket):
            assert path.is_socket()
            assert neighbours.run(attack, str(path)).startswith("PermissionError")
        assert bundle.topcoat("stop", "i0").status == 0
        assert not instance.has_remains
