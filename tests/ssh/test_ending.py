"""Ending a command that has only just been started, and does not carry its mark yet."""

import os
import subprocess
from pathlib import Path

from pipeline.ssh import ending
from tests.conftest import processes_with
from tests.waiting import eventually


def test_one_that_comes_after_the_first_look_is_ended_too(tmp_path: Path) -> None:
    """It comes in the pause between the two: in the place of sleep, there is what starts it."""
    mark, sleep = ending.new_mark(), tmp_path / "sleep"
    sleep.write_text(f"#!/bin/sh\n[ -e {tmp_path}/once ] && exec /bin/sleep $1\ntouch {tmp_path}/once\n")
    with sleep.open("a") as stream:
        stream.write(f"{ending.MARK}={mark} setsid /bin/sleep 1009{os.getpid()} >&- 2>&- &\n/bin/sleep 0.3\n")
    sleep.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", ending.killing(mark)],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == ending.GONE
    assert (tmp_path / "once").exists()
    eventually(lambda: processes_with(f"sleep\x001009{os.getpid()}".encode()) == [])


def test_if_there_is_none_it_says_so() -> None:
    done = subprocess.run(["sh", "-c", ending.killing(ending.new_mark())], capture_output=True, timeout=60, check=True)
    assert done.stdout == ending.GONE
