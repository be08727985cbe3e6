"""What guests are tied to. What keepers make of it: tests/vm/qemu/test_keeper.py."""

import fcntl
import os
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import InstanceBusy, StoreError
from pipeline.vm import keepalive as module
from pipeline.vm.keepalive import KeepAlive


@pytest.fixture
def keepalive(tmp_path: Path) -> KeepAlive:
    return KeepAlive(tmp_path / "pool" / "users.lock")


def seize(keepalive: KeepAlive) -> int:
    """What a keeper does while it ends a guest."""
    keepalive.file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(keepalive.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return descriptor


def test_it_is_in_use_while_one_user_is_left(keepalive: KeepAlive) -> None:
    assert not keepalive.in_use()
    with keepalive.held():
        with keepalive.held():
            assert keepalive.in_use()
        assert keepalive.in_use()
    assert not keepalive.in_use()


def test_a_child_does_not_inherit_it(keepalive: KeepAlive) -> None:
    with keepalive.held():
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    with child:
        assert not keepalive.in_use()


def test_a_keeper_that_ends_its_guest_is_waited_for(keepalive: KeepAlive) -> None:
    descriptor = seize(keepalive)
    assert not keepalive.in_use(), "a keeper is no user"
    ended = threading.Event()

    def end() -> None:
        time.sleep(0.2)
        ended.set()
        os.close(descriptor)

    thread = threading.Thread(target=end)
    thread.start()
    with keepalive.held():
        assert ended.is_set()
    thread.join()


def test_a_keeper_that_comes_to_no_end_is_given_up(keepalive: KeepAlive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    descriptor = seize(keepalive)
    with pytest.raises(InstanceBusy, match="are being ended") as busy, keepalive.held():
        pass
    os.close(descriptor)
    assert "fuser" in busy.value.hint


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    keepalive = KeepAlive(tmp_path / "file" / "users.lock")
    assert not keepalive.in_use()
    with pytest.raises(StoreError, match=r"making users\.lock"), keepalive.held():
        pass
    (tmp_path / "users.lock").mkdir()
    with pytest.raises(StoreError), KeepAlive(tmp_path / "users.lock").held():
        pass
