"""Locks: who holds one keeps all others out, until it ends."""

import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import InstanceBusy
from pipeline.host.locks import is_locked, lock_of, locked
from tests.children import helper

HOLD = "with locked(target):\n    ready()\n"


def test_a_lock_excludes_another_process_until_it_is_given_back(tmp_path: Path) -> None:
    target = tmp_path / "dir/file"
    assert not is_locked(target)
    with helper(HOLD, target) as process:
        assert is_locked(target)
        message = r"^another process has been working on file for more than 0 s$"
        with pytest.raises(InstanceBusy, match=message) as caught, locked(target, 0.1):
            pytest.fail("two processes hold the lock")
        assert caught.value.hint.startswith(f"wait for process {process.pid} (")
        assert caught.value.hint.endswith(f"or end it: kill {process.pid}")
        process.communicate()  # it ends well
        assert not is_locked(target)
        with locked(target, 0):
            assert is_locked(target)
    assert not is_locked(target)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with helper(HOLD, tmp_path / "file") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(tmp_path / "file", 0):
            assert is_locked(tmp_path / "file")


def test_a_waiting_process_gets_the_lock_of_a_killed_one(tmp_path: Path) -> None:
    wait = "print('ready', flush=True)\nwith locked(target, 30):\n    print('got it', flush=True)\n"
    with helper(HOLD, tmp_path / "file") as holder, helper(wait, tmp_path / "file") as waiter:
        holder.send_signal(signal.SIGKILL)
        assert waiter.communicate()[0] == b"got it\n"
        assert waiter.returncode == 0


@pytest.mark.slow
def test_a_lock_file_that_is_deleted_under_a_waiting_process_misleads_nobody(tmp_path: Path) -> None:
    """It would wake with the lock of a file that is gone, while another process holds that of the new one."""
    target = tmp_path / "file"
    wait = "import pipeline.host.locks\npipeline.host.locks.log.info = lambda *_: print('ready', flush=True)\n"
    wait += "with locked(target, 30):\n    print('got it', flush=True)\n"
    with helper(HOLD, target) as holder, helper(wait, target) as waiter:
        lock_of(target).unlink()
        with helper(HOLD, target) as second:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with pytest.raises(subprocess.TimeoutExpired):
                waiter.wait(0.5)
            second.communicate()
        assert waiter.communicate()[0].endswith(b"got it\n")


def test_locks_of_different_targets_do_not_meet(tmp_path: Path) -> None:
    with locked(tmp_path / "one"), locked(tmp_path / "two", 0):
        assert is_locked(tmp_path / "one")
        assert not is_locked(tmp_path / "three")


def test_the_lock_is_given_back_when_the_body_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), locked(tmp_path / "file"):
        raise ValueError("x")
    assert not is_locked(tmp_path / "file")
