"""What guests are tied to. What keepers make of it: tests/qemu/test_keeper.py."""

import fcntl
import os
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pipeline import tie as module
from pipeline.errors import InstanceBusy, StoreError
from pipeline.tie import Tie


@pytest.fixture
def tie(tmp_path: Path) -> Tie:
    return Tie(tmp_path / "pool" / "users.lock")


def seize(tie: Tie) -> int:
    """What a keeper does while it ends a guest."""
    tie.file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(tie.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return descriptor


def test_it_is_in_use_while_one_user_is_left(tie: Tie) -> None:
    assert not tie.in_use()
    with tie.held():
        with tie.held():
            assert tie.in_use()
        assert tie.in_use()
    assert not tie.in_use()


def test_a_child_does_not_inherit_it(tie: Tie) -> None:
    with tie.held():
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    with child:
        assert not tie.in_use()


def test_a_keeper_that_ends_its_guest_is_waited_for(tie: Tie) -> None:
    descriptor = seize(tie)
    assert not tie.in_use(), "a keeper is no user"
    ended = threading.Event()

    def end() -> None:
        time.sleep(0.2)
        ended.set()
        os.close(descriptor)

    thread = threading.Thread(target=end)
    thread.start()
    with tie.held():
        assert ended.is_set()
    thread.join()


def test_a_keeper_that_comes_to_no_end_is_given_up(tie: Tie, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    descriptor = seize(tie)
    with pytest.raises(InstanceBusy, match="are being ended") as busy, tie.held():
        pass
    os.close(descriptor)
    assert "fuser" in busy.value.hint


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tie = Tie(tmp_path / "file" / "users.lock")
    assert not tie.in_use()
    with pytest.raises(StoreError, match=r"making users\.lock"), tie.held():
        pass
    (tmp_path / "users.lock").mkdir()
    with pytest.raises(StoreError), Tie(tmp_path / "users.lock").held():
        pass
