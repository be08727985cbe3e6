"""Runs of luigi on a bundle, and what they said."""

import subprocess

from tests.conftest import Workspace
from tests.needs import with_mounts

REFUSED = "error: i0 is running, but it is not what a boot would make now: "
"""How a run begins to say that it does not touch a running instance."""

MODULE = """
import os, tasks
from tasks.engine.artifact import WrapperTask
if "BUMP" in os.environ:
    getattr(tasks, os.environ["BUMP"]).version += 1
class Both(WrapperTask):
    def requires(self): return {"initrd": tasks.InitrdWithKey(), "disk": tasks.ExtendedBlk()}
"""


KILLING = """
import os, signal, tasks
from pipeline.vm import timeline
step = os.environ["KILL_AT"]
def dead(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
def then_dead(real):
    def call(*words, **named):
        real(*words, **named)
        dead()
    return call
def dead_at(real):
    def reached(self, event, **facts):
        real(self, event, **facts)
        if event == step: dead()
    return reached
timeline.Timeline.reached = dead_at(timeline.Timeline.reached)
"""
"""How a module begins that kills luigi at the step KILL_AT: an event of a timeline, or where the module puts `dead`."""


def with_module(workspace: Workspace) -> Workspace:
    workspace.module("both", MODULE)
    return workspace


def ran(workspace: Workspace) -> dict[str, str]:
    """Run both prepare tasks; which of them and of those before them ran, and why."""
    outcome = workspace.run("luigi", "--module", "both", "Both")
    assert outcome.status == 0, outcome.text
    return reasons(outcome.text)


def reasons(text: str) -> dict[str, str]:
    """By task, from what luigi has printed."""
    lines = [line.partition(": ") for line in text.splitlines()]
    said = [(name, rest) for name, _, rest in lines if name in ("SSHKeyPair", "InitrdWithKey", "ExtendedBlk")]
    found = {name: rest for name, rest in said if not rest.startswith("made ")}
    assert set(found) == {name for name, rest in said if rest.startswith("made ")}, "what is made has a reason"
    return found


def in_a_namespace(workspace: Workspace, mount: str, *script: str) -> tuple[int, str]:
    """Run the lines of a shell script after a mount that nobody else sees. Returns its exit code and output."""
    path = f"{workspace.command('topcoat')[0].rpartition('/')[0]}:{workspace.environment['PATH']}"
    done = subprocess.run(
        with_mounts("\n".join([f"{mount} || exit 99", *script])),
        cwd=workspace.directory,
        env={**workspace.environment, "PATH": path, "ROOT": str(workspace.store.root)},
        capture_output=True,
        timeout=200,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode()
