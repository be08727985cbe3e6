"""Guests whose kernel has halted while their QEMU runs on: whoever asks hears it, and nothing ends them unasked."""

import json
import time

import pytest

from pipeline.errors import KernelHalted
from tests.conftest import Workspace, qemus_of

LINE = b"platform_halt suggested_action 0 reason 9"
WORDS = LINE + b"\r\nHalting...\r\nHalted\r\nentering panic shell loop\r\n! "
CAUSE = f"its kernel has halted: {LINE.decode()}"


@pytest.fixture
def halted(bundle: Workspace) -> Workspace:
    """A scripted guest named i0 that was ready, and then printed what a halted kernel does."""
    assert bundle.luigi("BootInstance").status == 0
    with bundle.instance().serial_log.open("ab") as log:
        log.write(WORDS)
    return bundle


def test_it_is_neither_complete_nor_ended_unasked(halted: Workspace) -> None:
    (before,) = qemus_of(halted.directory)
    outcome = halted.luigi("BootInstance")
    assert outcome.status == 30
    assert f"error: i0 is running, but {CAUSE}\n" in outcome.text
    assert "to stop it and boot anew: luigi --module tasks BootInstance --name i0 --replace" in outcome.text
    assert "i0 is running: topcoat ssh" not in outcome.text
    assert qemus_of(halted.directory) == [before]

    outcome = halted.luigi("BootInstance", "--replace")
    assert outcome.status == 0, outcome.text
    assert f"stopping i0, which is stale: {CAUSE}" in outcome.text
    assert qemus_of(halted.directory) != [before]
    assert halted.instance().state() == "running"


def test_it_is_told_wherever_it_is_listed(halted: Workspace) -> None:
    outcome = halted.topcoat("instances")
    assert outcome.stdout.decode().splitlines()[1].split()[:2] == ["i0", "halted"]
    assert f"i0: {CAUSE}\n".encode() == outcome.stderr
    (row,) = json.loads(halted.topcoat("instances", "--json").stdout)["instances"]
    assert (row["state"], row["halt"]) == ("halted", LINE.decode())
    assert row["pid"] == qemus_of(halted.directory)[0].pid
    assert "i0 runs, but its kernel has halted" in halted.topcoat("doctor").text
    assert CAUSE in halted.topcoat("why").text


def test_it_cannot_be_entered_but_looked_at_and_stopped(halted: Workspace) -> None:
    outcome = halted.topcoat("ssh", "i0", "--", "true")
    assert outcome.status == 255
    assert f"error: i0 is running, but {CAUSE}\n".encode() in outcome.stderr
    assert b"topcoat logs i0" in outcome.stderr
    with pytest.raises(KernelHalted):
        halted.instance().require_running()
    assert f"i0: {CAUSE}\n".encode() in halted.topcoat("console", "i0").stderr, "its panic shell listens"
    assert halted.topcoat("logs", "i0").stdout.endswith(WORDS)
    assert halted.topcoat("stop", "i0").stdout == b"i0: stopped\n"
    assert halted.instance().state() == "stopped"


def test_a_guest_that_prints_more_is_alive(halted: Workspace) -> None:
    with halted.instance().serial_log.open("ab") as log:
        log.write(b"\r\n[00002.000] 01031.01049> it was only a fuzzer's words\r\n")
    assert halted.luigi("BootInstance").status == 0
    assert halted.instance().state() == "running"


def test_a_real_kernel_that_panics(demo: Workspace) -> None:
    assert demo.luigi("BootInstance").status == 0
    (before,) = qemus_of(demo.directory)
    crash = "echo 0 >/proc/sys/kernel/panic; (sleep 0.5; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &"
    assert demo.topcoat("ssh", "i0", "--", crash).status == 0
    limit = time.monotonic() + 60
    while demo.instance().state() != "halted":
        assert time.monotonic() < limit, demo.instance().serial_log.read_text()
        time.sleep(0.1)
    assert demo.instance().halt() == "Kernel panic - not syncing: sysrq triggered crash"
    outcome = demo.luigi("BootInstance")
    assert outcome.status == 30
    assert "i0 is running, but its kernel has halted: Kernel panic - not syncing: sysrq trigger" in outcome.text
    assert b"its kernel has halted" in demo.topcoat("ssh", "i0", "--", "true").stderr
    assert qemus_of(demo.directory) == [before]
    assert demo.luigi("BootInstance", "--replace").status == 0
    assert demo.topcoat("ssh", "i0", "--", "uname").stdout == b"Linux\n"
