import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.host.process import Process
from pipeline.host.resources import (
    Starvation,
    available_memory,
    free_bytes,
    is_frozen,
    resident,
    stolen,
    waited_for_cpu,
)
from tests.waiting import eventually

SPIN = "while True: pass"


def test_a_process_that_shares_its_cpu_has_waited_for_it() -> None:
    """Two that spin on one CPU: each waits about half of the time."""
    words = ["taskset", "-c", "0", sys.executable, "-S", "-c", SPIN]
    with subprocess.Popen(words) as one, subprocess.Popen(words) as other:
        try:
            process = Process.find(one.pid)
            assert process
            starvation = Starvation(process)
            time.sleep(1.0)
            assert 0.2 < starvation.share() <= 1.0
            assert waited_for_cpu(process) > 0.2
        finally:
            one.kill()
            other.kill()


def test_a_process_that_sleeps_has_not() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            process = Process.find(sleeper.pid)
            assert process
            assert waited_for_cpu(process) < 0.2
            assert not is_frozen(process)
            sleeper.send_signal(signal.SIGSTOP)
            eventually(lambda: is_frozen(process))
        finally:
            sleeper.kill()
    assert waited_for_cpu(process) == 0.0, "it has ended"
    assert not is_frozen(process)


def test_what_was_stolen_never_becomes_less() -> None:
    first = stolen()
    assert 0.0 <= first <= stolen()


def test_the_room_on_a_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0
    with pytest.raises(FileNotFoundError):
        free_bytes(tmp_path / "missing")


def test_the_memory_of_the_host_and_of_a_process() -> None:
    code = "kept = b'x' * (50 << 20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"\n"
        process = Process.find(child.pid)
        assert process
        assert 50 << 20 < resident(process) < available_memory() < 1 << 50
        child.kill()
    assert resident(process) == 0
