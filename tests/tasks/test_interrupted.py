"""Artifacts that are made by several at once, or by one that is killed: they are made once, and whole or not at all."""

import os
import signal
import subprocess

import pytest

from pipeline.host.process import Process
from tests.conftest import Workspace
from tests.tasks.edits import INITRD, ZBI, append
from tests.waiting import SOON

RECORD = f"{INITRD}.made.json"

KILL = """
import os, signal, tasks
from pipeline.builds import prepare
from pipeline.store import digest_cache, freshness, publish
from tasks.engine import artifact
digest_cache.RACY = 0  # on a slow machine all is old enough, and digests are saved before anything is made
step = os.environ["KILL_AT"]
def dead(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if step == "before temp": artifact.replacing = dead
if step == "after tool": prepare.require_output = dead
if step == "before rename": publish._replace = dead
if step == "after rename": freshness.write = dead
if step == "before record": freshness.publish_json = dead
"""


@pytest.fixture(params=["first time", "remaking"])
def stale(request: pytest.FixtureRequest, bundle: Workspace) -> Workspace:
    """A bundle whose key has been made, but not its initrd; or not the one that is wanted now."""
    assert bundle.luigi("SSHKeyPair").status == 0
    if request.param == "remaking":
        assert bundle.luigi("InitrdWithKey").status == 0
        append(ZBI)(bundle)
    return bundle


def made(text: str) -> list[str]:
    return [line.partition(":")[0] for line in text.splitlines() if ": made " in line]


def check_that_the_next_run_makes_it(workspace: Workspace) -> None:
    assert not (workspace.directory / RECORD).exists()
    outcome = workspace.luigi("InitrdWithKey")
    assert outcome.status == 0, outcome.text
    assert made(outcome.text) == ["InitrdWithKey"]
    assert [name for name in workspace.files() if ".tmp" in name] == []
    assert made(workspace.luigi("InitrdWithKey").text) == []


@pytest.mark.parametrize("step", ["before temp", "after tool", "before rename", "after rename", "before record"])
def test_killed_at(stale: Workspace, step: str) -> None:
    stale.module("kill", KILL)
    environment, initrd = {"KILL_AT": step}, stale.directory / INITRD
    before = initrd.read_bytes() if initrd.exists() else None
    killed = stale.run("luigi", "--module", "kill", "InitrdWithKey", environment=environment)
    assert killed.status == -signal.SIGKILL
    if step in ("before temp", "after tool", "before rename"):
        assert (initrd.read_bytes() if initrd.exists() else None) == before
    else:
        assert initrd.read_bytes() != before
    check_that_the_next_run_makes_it(stale)


def test_killed_while_the_tool_writes(stale: Workspace) -> None:
    """The tool goes with its caller: nobody would ever wait for it."""
    pipe = stale.directory / "pipe"
    os.mkfifo(pipe)
    environment = {**stale.environment, "FAKE_ZBI": "half", "FAKE_ZBI_PIPE": str(pipe)}
    command = stale.command("luigi", "--module", "tasks", "InitrdWithKey")
    with subprocess.Popen(command, cwd=stale.directory, env=environment, stderr=subprocess.DEVNULL) as caller:
        tool = Process.find(int(pipe.read_text()))
        assert tool
        caller.kill()
    assert tool.wait(SOON)
    assert [name for name in stale.files() if ".tmp" in name] != [], "half a file is there"
    check_that_the_next_run_makes_it(stale)


@pytest.mark.parametrize("count", [2, 4])
def test_several_at_once_make_it_once(bundle: Workspace, count: int) -> None:
    """Luigi itself would refuse the same command a second time, so it is told not to look."""
    command = bundle.command("luigi", "--module", "tasks", "InitrdWithKey", "--no-lock")
    running = [
        subprocess.Popen(command, cwd=bundle.directory, env=bundle.environment, stderr=subprocess.PIPE)
        for _ in range(count)
    ]
    texts = [process.communicate(timeout=60)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * count, texts
    assert sorted(made("".join(texts))) == ["InitrdWithKey", "SSHKeyPair"]


def test_one_that_waits_for_one_that_is_killed_makes_it(bundle: Workspace) -> None:
    assert bundle.luigi("SSHKeyPair").status == 0
    pipe = bundle.directory / "pipe"
    os.mkfifo(pipe)
    environment = {**bundle.environment, "FAKE_ZBI": "half", "FAKE_ZBI_PIPE": str(pipe)}
    command = bundle.command("luigi", "--module", "tasks", "InitrdWithKey", "--no-lock")
    first = subprocess.Popen(command, cwd=bundle.directory, env=environment, stderr=subprocess.DEVNULL)
    pipe.read_text()
    with subprocess.Popen(command, cwd=bundle.directory, env=bundle.environment, stderr=subprocess.PIPE) as second:
        assert second.stderr
        lines = iter(second.stderr.readline, b"")
        assert any(b"waiting for another process that works on ssh-fuchsia.zbi" in line for line in lines)
        first.kill()
        first.wait()
        assert made((second.communicate(timeout=60)[1]).decode()) == ["InitrdWithKey"]
        assert second.returncode == 0
    assert [name for name in bundle.files() if ".tmp" in name] == []
