"""The same command at the same time, and what an attacker could do to the lock for it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import luigi.lock
import pytest

from pipeline.settings import Store
from tasks.engine.repetition import refuse_repetitions
from tests.conftest import Workspace
from tests.waiting import SOON, eventually

OUTLIVING = """
import os, signal, time, luigi, tasks

class Outliving(luigi.Task):
    def run(self):
        with open("outliving", "a") as stream:
            print(os.getpid(), file=stream)
        os.kill(os.getppid(), signal.SIGKILL)
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        time.sleep(1000)
"""
"""A task whose process goes on, when luigi itself is gone."""


@contextmanager
def hanging(workspace: Workspace) -> Iterator["subprocess.Popen[bytes]"]:
    """luigi, while its zbi hangs."""
    workspace.configure("[tools]\ntimeout = 90\nproof = off\n")
    command = workspace.command("luigi", "--module", "tasks", "InitrdWithKey")
    environment = {**workspace.environment, "FAKE_ZBI": "hang"}
    with subprocess.Popen(
        command, cwd=workspace.directory, env=environment, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            eventually(lambda: any(workspace.store.images("clusterfuzz").glob(".ssh*.tmp")))
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def locks(workspace: Workspace) -> list[Path]:
    return list((workspace.store.cache / "running").iterdir())


def test_what_a_killed_one_leaves_is_in_nobody_s_way_and_goes(bundle: Workspace) -> None:
    with hanging(bundle):
        (lock,) = locks(bundle)
    eventually(lambda: bundle.luigi("SSHKeyPair").status == 0)
    assert lock.exists() is False


def test_a_process_that_outlives_a_killed_one_does_not_hold_its_lock(bundle: Workspace) -> None:
    bundle.module("outliving", OUTLIVING)
    words = ("luigi", "--module", "outliving", "Outliving", "--workers", "2")
    killed = bundle.run(*words)
    assert killed.status == -signal.SIGKILL, killed.text
    assert bundle.run(*words).status == -signal.SIGKILL, "and not 10"
    for pid in (bundle.directory / "outliving").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


def test_another_command_runs(bundle: Workspace) -> None:
    with hanging(bundle):
        assert bundle.luigi("SSHKeyPair").status == 0


def test_several_may_be_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By --lock-size."""
    monkeypatch.setattr(luigi.lock, "acquire_for", None)
    refuse_repetitions(Store(tmp_path))
    assert luigi.lock.acquire_for("", 2)
    assert not Store(tmp_path).cache.exists()


HOLDER = """
import signal, sys
from pathlib import Path
import luigi.lock
from pipeline.settings import Store
from tasks.engine.repetition import refuse_repetitions
root = Path(sys.argv.pop())
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
refuse_repetitions(Store(root))
assert luigi.lock.acquire_for("")
print("ready", flush=True)
signal.pause()
"""


def test_the_lock_can_be_taken_from_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--take-lock, which asks it by a signal to begin nothing new."""
    monkeypatch.setattr(luigi.lock, "acquire_for", None)
    monkeypatch.setattr(sys, "argv", ["luigi"])
    refuse_repetitions(Store(tmp_path))
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"ready\n"
        assert luigi.lock.acquire_for("", 1, signal.SIGUSR1)
        assert holder.wait(SOON) == 7
    assert not list((tmp_path / "cache/running").iterdir())


def test_a_store_in_which_nothing_can_be_locked_says_so_itself(bundle: Workspace) -> None:
    bundle.store.cache.parent.mkdir(parents=True, exist_ok=True)
    bundle.store.cache.write_text("in the way")
    outcome = bundle.luigi("SSHKeyPair")
    assert "Traceback" not in outcome.text
    assert (outcome.status, (bundle.store.keys / "sshid").exists()) == (0, True)


def test_nothing_is_at_a_place_that_others_can_foresee(bundle: Workspace, tmp_path: Path) -> None:
    """What lies in the directory for temporary files is its maker's alone, and has a name that nobody knows."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    bundle.environment["TMPDIR"] = str(temporary)
    with hanging(bundle):
        assert not [path for path in temporary.rglob("*") if str(os.getuid()) in path.name]
        everything = [path for place in (temporary, bundle.store.root) for path in place.rglob("*")]
        assert len(everything) > 5
        open_to_others = [path for path in everything if path.lstat().st_mode & 0o022 and not path.is_symlink()]
        assert open_to_others == []
