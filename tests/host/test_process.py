import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.host.process import Process
from tests.children import child, found
from tests.needs import with_mounts
from tests.waiting import SOON, eventually


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


def test_a_path_of_another_root_is_another(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    script = """mount -t tmpfs none "$1" && exec sh -c 'echo up; read _' """
    with child() as usual, child(*with_mounts(script, "sh", str(tmp_path / "here"))) as contained:
        assert contained.stdout is not None
        assert contained.stdout.readline() == b"up\n"
        for path in (tmp_path, tmp_path / "nowhere", Path("/")):
            assert found(usual).shares(path)
        assert found(usual).shares(tmp_path / "here")
        assert not found(contained).shares(tmp_path / "here")
        process = found(usual)
    assert not process.shares(Path("/")), "it has ended"


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
