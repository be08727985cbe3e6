import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.process import Process, locked_by_someone, owner_of_pidfile
from tests.waiting import SOON, eventually

LOCKS = {
    "POSIX": "fcntl.lockf(f, fcntl.LOCK_EX)",
    "OFD": "fcntl.fcntl(f, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))",
    "flock": "fcntl.flock(f, fcntl.LOCK_EX)",
    "POSIX read": "fcntl.lockf(f, fcntl.LOCK_SH)",
    "none": "",
}


@contextmanager
def child(*words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends when its stdin does; killed at the end."""
    with subprocess.Popen(words or ("cat",), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
        try:
            yield popen
        finally:
            popen.kill()


@contextmanager
def holder(path: Path, lock: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has written its pid to `path` and holds a lock on it."""
    code = f"import fcntl, os, struct, sys\nf = open({str(path)!r}, 'w+')\n{LOCKS[lock]}\n"
    code += "f.write(f'{os.getpid()}\\n'); f.flush(); print('ready', flush=True); sys.stdin.read()"
    with child(sys.executable, "-c", code) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline() == b"ready\n"
        yield popen


def found(popen: "subprocess.Popen[bytes]") -> Process:
    process = Process.find(popen.pid)
    assert process is not None
    return process


def test_one_finds_oneself() -> None:
    me = Process.find(os.getpid())
    assert me is not None
    assert me.alive
    assert me == Process.find(os.getpid())
    assert me.host_boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_child_is_not_its_parent() -> None:
    with child() as popen:
        assert found(popen).pid == popen.pid
        assert found(popen).start_ticks >= found_self().start_ticks
        assert found(popen) != found_self()


def found_self() -> Process:
    me = Process.find(os.getpid())
    assert me is not None
    return me


@pytest.mark.parametrize("pid", [0, -1, 2**31 - 1, 2**40])
def test_a_pid_that_is_nobodys(pid: int) -> None:
    assert Process.find(pid) is None


def test_a_name_may_hold_anything() -> None:
    with child("/bin/sh", "-c", "printf ') Z 1 (2' >/proc/$$/comm; echo ready; read line") as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline() == b"ready\n"
        assert b") Z 1 (2)" in Path(f"/proc/{popen.pid}/stat").read_bytes()
        assert found(popen).alive


def test_a_zombie_does_not_live() -> None:
    with child() as popen:
        process = found(popen)
        popen.kill()
        os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{popen.pid}").exists()
        assert Process.find(popen.pid) is None
        assert not process.alive
        assert process.wait(0)


def test_a_process_whose_first_thread_has_ended_lives_on() -> None:
    """As a QEMU that is being killed: its files and locks are still held."""
    program = (
        "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(1000,)).start();"
        "print('up', flush=True); ctypes.CDLL(None).pthread_exit(None)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as popen:
        assert popen.stdout
        assert popen.stdout.readline() == b"up\n"
        stat = Path(f"/proc/{popen.pid}/stat")
        eventually(lambda: b") Z " in stat.read_bytes())
        process = Process.find(popen.pid)
        assert process
        assert process.alive
        assert not process.wait(0)
        process.send(signal.SIGKILL)
        assert process.wait(SOON)


def test_a_dead_process_is_not_found_and_takes_no_signal() -> None:
    with child() as popen:
        process = found(popen)
        popen.communicate()
        assert Process.find(popen.pid) is None
        assert (process.alive, process.wait(0)) == (False, True)
        process.send(signal.SIGKILL)
        with process.descriptor() as pidfd:
            assert pidfd is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.02])
def test_waiting_for_a_living_process_ends_in_time(seconds: float) -> None:
    with child() as popen:
        assert not found(popen).wait(seconds)
        assert found(popen).alive


def test_waiting_ends_with_the_process() -> None:
    with child() as popen:
        process = found(popen)
        assert popen.stdin is not None
        popen.stdin.close()
        assert process.wait(SOON)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_arrives(number: signal.Signals) -> None:
    with child() as popen:
        found(popen).send(number)
        assert popen.wait() == -number


@pytest.mark.parametrize("forged", ["start_ticks", "host_boot_id"])
def test_a_later_process_with_the_same_pid_is_left_alone(forged: str) -> None:
    with child() as popen:
        real = found(popen)
        process = (
            replace(real, start_ticks=real.start_ticks - 1)
            if forged == "start_ticks"
            else replace(real, host_boot_id="another boot")
        )
        assert not process.alive
        assert process.wait(0)
        process.send(signal.SIGKILL)
        assert popen.stdin is not None
        popen.stdin.close()
        assert popen.wait() == 0


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
