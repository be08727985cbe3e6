"""Signals that come at the worst moment, or from a terminal that is closed."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.conftest import Workspace, qemus_of
from tests.waiting import SOON, eventually

ALL = """
import os, signal, tasks
all = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, all)
for number in all:
    os.kill(os.getpid(), number)
try:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, all)
finally:
    os.kill(os.getpid(), signal.SIGINT)
    print("cleaned up", flush=True)
"""

IN_FINALIZERS = """
import os, signal, threading, tasks
class Finalized:
    def __init__(self, number):
        self.number = number
    def __del__(self):
        os.kill(os.getpid(), self.number)
        threading.Event().wait(0.5)  # and what comes again meanwhile is thrown away too
Finalized(signal.SIGTERM)
print(threading.Event().wait(60))
"""

NOHUP = """
import os, signal, tasks
from pipeline.host.tools import Tool, run
os.kill(os.getpid(), signal.SIGHUP)
print(run(Tool("sh", ("/bin/sh",), ()), "-c", "kill -HUP $$; echo the tool goes on", timeout=60))
"""


def test_all_at_once_end_it_cleanly_and_once(tmp_path: Path) -> None:
    """As when Ctrl-C reaches a worker together with the word of luigi's own process that it is to end."""
    done = subprocess.run([sys.executable, "-c", ALL], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, b"cleaned up\n")
    first, *rest = done.stderr.decode().splitlines()
    assert first == "error: interrupted by SIGHUP; what was begun is cleaned up"
    assert rest == ["  hint: the same command again goes on"]


def test_one_that_comes_in_a_finalizer_is_not_lost(tmp_path: Path) -> None:
    """Python throws away what is raised there."""
    command = [sys.executable, "-c", IN_FINALIZERS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[0] == "error: interrupted by SIGTERM; what was begun is cleaned up"
    assert "Exception ignored" not in done.stderr


@pytest.fixture
def booting(bundle: Workspace) -> Workspace:
    """Whose guest does not come up."""
    bundle.configure("[boot]\nready = marker\n[qemu]\naccel = tcg\n[tools]\nproof = off\n")
    bundle.environment["QEMU_FAKE"] = "no-marker"
    return bundle


def test_a_terminal_that_is_closed_ends_a_boot_and_its_qemu(booting: Workspace) -> None:
    ours, theirs = os.openpty()
    with subprocess.Popen(
        booting.command("luigi", "--module", "tasks", "BootInstance"),
        cwd=booting.directory,
        env=booting.environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY),
    ) as process:
        os.close(theirs)
        eventually(lambda: qemus_of(booting.directory))
        os.close(ours)
        assert process.wait(SOON) == 130
    assert qemus_of(booting.directory) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("words", "told"),
    [(("topcoat", "boot"), "error: "), (("undercoat", "start_instance"), "Error executing command: ")],
)
def test_whoever_boots_says_why_it_ends(
    booting: Workspace, words: tuple[str, ...], told: str, number: signal.Signals
) -> None:
    booting.environment["TOPCOAT_ROOT"] = str(booting.store.root)
    with subprocess.Popen(
        booting.command(*words), cwd=booting.directory, env=booting.environment, stderr=subprocess.PIPE
    ) as process:
        eventually(lambda: qemus_of(booting.directory))
        process.send_signal(number)
        _, said = process.communicate(timeout=SOON)
    assert process.returncode == 130
    assert f"{told}interrupted by {number.name}; what was begun is cleaned up" in said.decode()
    assert qemus_of(booting.directory) == []


def test_who_stops_what_is_being_booted_is_told_how_to_end_that(booting: Workspace) -> None:
    with subprocess.Popen(
        booting.command("luigi", "--module", "tasks", "BootInstance"), cwd=booting.directory, env=booting.environment
    ) as process:
        try:
            eventually(lambda: qemus_of(booting.directory))
            done = booting.topcoat("stop", "i0")
            assert done.status == 10, done.text
            assert f"hint: wait for process {process.pid} (" in done.text
            assert "luigi --module tasks BootInstance" in done.text
            *_, hint = done.text.rpartition("or end it: ")
            subprocess.run(hint, shell=True, check=True)  # "kill" is part of the shell, and no program everywhere
            assert process.wait(SOON) == 130
        finally:
            process.kill()
    assert booting.topcoat("stop", "i0").stdout == b"i0: was not running\n"


def test_nohup_is_heeded_by_it_and_by_its_tools(tmp_path: Path) -> None:
    command = ["nohup", sys.executable, "-c", NOHUP]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.stdout == b"the tool goes on\n\n", done.stderr.decode()
