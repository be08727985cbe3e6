"""Pidfiles: whose they are, whatever is written in them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import StopError
from pipeline.host.locks import locked_by_someone
from pipeline.host.pidfile import owner_of_pidfile
from pipeline.vm.qemu.stopping import stop_qemu
from tests import neighbours
from tests.children import child, found, holder
from tests.waiting import NEVER, eventually


@pytest.mark.parametrize(
    ("lock", "seen"), [("POSIX", True), ("OFD", True), ("flock", False), ("POSIX read", False), ("none", False)]
)
def test_a_write_lock_is_seen_until_its_holder_is_killed(tmp_path: Path, lock: str, seen: bool) -> None:
    pidfile = tmp_path / "qemu.pid"
    with holder(pidfile, lock) as popen:
        process = found(popen)
        assert locked_by_someone(pidfile) is seen
        assert owner_of_pidfile(pidfile) == (process if seen else None)
        popen.send_signal(signal.SIGKILL)
        popen.wait()
        assert int(pidfile.read_text()) == popen.pid
        assert not locked_by_someone(pidfile)
        assert owner_of_pidfile(pidfile) is None


def test_asking_for_a_lock_takes_none(tmp_path: Path) -> None:
    pidfile = tmp_path / "qemu.pid"
    with holder(pidfile, "POSIX"):
        assert [locked_by_someone(pidfile) for _ in range(3)] == [True] * 3
    with holder(pidfile, "OFD") as second:
        assert owner_of_pidfile(pidfile) == found(second)


def test_a_missing_pidfile_has_no_owner(tmp_path: Path) -> None:
    assert not locked_by_someone(tmp_path / "qemu.pid")
    assert owner_of_pidfile(tmp_path / "qemu.pid") is None


@pytest.mark.parametrize("text", ["", "no number\n", "-1\n", "0\n", "12 13\n"])
def test_a_locked_pidfile_without_a_living_pid_has_no_owner(tmp_path: Path, text: str) -> None:
    pidfile = tmp_path / "qemu.pid"
    with holder(pidfile, "POSIX"):
        pidfile.write_text(text)
        assert locked_by_someone(pidfile)
        assert owner_of_pidfile(pidfile) is None


def test_a_pidfile_without_an_end_has_no_owner(tmp_path: Path) -> None:
    """QEMU can make it as long as the disk allows, and holes take nothing of that."""
    pidfile = tmp_path / "qemu.pid"
    with holder(pidfile, "OFD"):
        os.truncate(pidfile, 1 << 40)
        assert owner_of_pidfile(pidfile) is None


def test_a_process_that_is_just_ending_still_owns_its_pidfile(tmp_path: Path) -> None:
    """It has closed all that it could be told by, and holds the lock a moment longer: who ends it waits for its end."""
    pidfile = tmp_path / "qemu.pid"
    bare = ["sh", "-c", f"exec sleep {NEVER} <&- >&- 2>&-"]
    with holder(pidfile, "OFD"), subprocess.Popen(bare) as ending:
        try:
            eventually(lambda: list(Path(f"/proc/{ending.pid}/fd").iterdir()) == [])
            pidfile.write_text(str(ending.pid))
            assert owner_of_pidfile(pidfile) == found(ending)
        finally:
            ending.kill()


def test_a_pidfile_cannot_name_a_process_that_does_not_hold_it(tmp_path: Path) -> None:
    """Whoever breaks out of a guest can write another pid into its QEMU's pidfile, for somebody else to be ended."""
    pidfile = tmp_path / "qemu.pid"
    with holder(pidfile, "OFD") as popen, child() as victim:
        pidfile.write_text(str(victim.pid))
        assert owner_of_pidfile(pidfile) is None
        with pytest.raises(StopError, match="names another process") as caught:
            stop_qemu(pidfile, tmp_path / "qmp", 1)
        assert str(pidfile) in caught.value.hint
        assert victim.poll() is None
        assert popen.poll() is None


@neighbours.needs_root
@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv (package util-linux)")
@pytest.mark.parametrize("is_qemu", [False, True])
def test_also_where_root_may_not_look_into_processes_of_others(tmp_path: Path, is_qemu: bool) -> None:
    """Root in a container has no CAP_SYS_PTRACE as a rule, but may end every process."""
    pidfile = tmp_path / "qemu.pid"
    ask = f"""
from pathlib import Path
from pipeline.host.pidfile import owner_of_pidfile
owner = owner_of_pidfile(Path({str(pidfile)!r}))
print(owner and owner.pid)"""
    words = ["setpriv", "--inh-caps=-sys_ptrace", "--bounding-set=-sys_ptrace", sys.executable, "-c", ask]
    idle = neighbours.command("sys.stdin.read()", *(["-pidfile", str(pidfile)] if is_qemu else []))
    with holder(pidfile, "OFD"), child(*idle) as victim:
        pidfile.write_text(str(victim.pid))
        eventually(lambda: Path(f"/proc/{victim.pid}").stat().st_uid == neighbours.OTHER)
        said = subprocess.run(words, capture_output=True, check=True).stdout.decode().strip()
        assert said == (str(victim.pid) if is_qemu else "None")
