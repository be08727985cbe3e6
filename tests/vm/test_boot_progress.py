"""What people see of a long wait: lines now and then, or one live line on a terminal."""

import os
import re
import select
import subprocess
import time

import pytest

from pipeline.vm.boot_progress import LiveLine, Plain
from tests.conftest import Workspace
from tests.needs import openpty


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged."""
    found: list[str] = []
    monkeypatch.setattr("pipeline.vm.boot_progress.log.info", lambda text, *values: found.append(text % values))
    return found


def test_a_plain_line_each_ten_seconds(lines: list[str]) -> None:
    plain = Plain()
    for tick in range(70):
        plain.waiting("i0", "marker", tick / 2, 60.0, "welcome to Zircon")
    assert lines == [f"i0: waiting for the marker, {seconds} s of 60 s: welcome to Zircon" for seconds in (10, 20, 30)]


def test_a_wait_that_is_asked_for_seldom_still_tells_at_most_one_line_at_a_time(lines: list[str]) -> None:
    plain = Plain()
    for seconds in (9.9, 35.0, 36.0, 39.9, 40.1):
        plain.waiting("i0", "marker", seconds, 60.0, "")
    assert [message.split(",")[1] for message in lines] == [" 35 s of 60 s: -", " 40 s of 60 s: -"]


def test_what_is_over_soon_is_not_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveLine(clock=iter([0.0, 0.5, 0.9]).__next__)
    live.waiting("i0", "marker", 0.5, 60.0, "")
    live.waiting("i0", "marker", 0.9, 60.0, "")
    live.close()
    assert capsys.readouterr().err == ""


def on_a_terminal(workspace: Workspace, *words: str, **environment: str) -> tuple[int, str]:
    """Run a command with its stderr on a terminal of 80 columns. Returns its exit code and what came there."""
    ours, theirs = openpty()
    command = subprocess.Popen(
        workspace.command(*words),
        cwd=workspace.directory,
        env={**workspace.environment, "TERM": "xterm", "COLUMNS": "80", **environment},
        stdin=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    said, limit = b"", time.monotonic() + 60
    with command:
        while time.monotonic() < limit and select.select([ours], [], [], 60)[0]:
            try:
                said += os.read(ours, 65536)
            except OSError:  # EIO: the other side is closed
                break
        os.close(ours)
    return command.returncode, said.decode()


def test_a_live_line_on_a_terminal(bundle: Workspace) -> None:
    bundle.configure("[boot]\nready = marker\ntimeout = 8\n[qemu]\naccel = tcg\n[tools]\nproof = off\n")
    part = r"serial [bold]\x1b]0;evil\x07 welcome to Zircon\r\n"
    status, said = on_a_terminal(bundle, "luigi", "--module", "tasks", "BootInstance", QEMU_FAKE=part)
    assert status == 30
    live = re.search(r"i0: marker, [1-7] s of 8 s  \[bold\] welcome to Zircon", said)
    assert live, "the guest's words are not markup"
    assert "evil" not in said
    assert "error: i0: the guest's kernel started, but within " in said
    assert said.rstrip().endswith("topcoat image FILE"), "the error is the last that is seen"
    assert "waiting for" not in said.replace("waiting for another", "")
