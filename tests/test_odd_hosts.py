"""Mistakes of users and odd environments: each is explained with a hint, none ends in a traceback."""

import argparse
import errno
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli.main import parser
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.host.deadline import Deadline
from tests.conftest import Outcome, Workspace
from tests.fuzz.crashes.made_up import CRASH, SLUG
from tests.tasks.runs import in_a_namespace, with_module

_VALUES = {
    "name": "i0", "words": "true", "task": "SSHKeyPair", "files": "out/demo/vmlinux", "file": "out/campaigns/i0.toml",
    "fuzzer": "a/b", "crash": "segv-f-00", "directories": "seeds", "directory": "out/exported", "patterns": "a/b",
    "bucket": SLUG, "rule": "default", "output": "given-away.tar",
}  # fmt: skip
"""For each argument that the commands need one that leads into the store, or does no harm."""


def commands(whole: argparse.ArgumentParser, *before: str) -> Iterator[list[str]]:
    """A command line for each command that the parser knows."""
    given = []
    for action in whole._actions:  # noqa: SLF001  argparse tells of its parsers in no other way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for word, inner in action.choices.items():
                yield from commands(inner, *before, word)
            return
        if not action.option_strings:
            given.append(_VALUES[action.dest])
        elif action.required:
            given += [action.option_strings[-1], _VALUES[action.dest]]
    yield [*before, *given]


def all_commands() -> list[list[str]]:
    """Of `topcoat`, but for those that need nothing of the store: the tools, and what looks at a user's targets."""
    return [words for words in commands(parser()) if words[0] not in ("zbi", "fvm", "targets")]


def unexplained(outcomes: dict[str, Outcome], reason: str) -> list[str]:
    """The commands that have not said why they could not do all of their work; or have done so by a traceback."""
    return [words for words, outcome in outcomes.items() if "Traceback" in outcome.text or reason not in outcome.text]


@pytest.fixture
def seeded(bundle: Workspace) -> Workspace:
    """A workspace with a directory to be imported."""
    (bundle.directory / "seeds").mkdir()
    (bundle.directory / "seeds/unit").write_text("unit")
    return bundle


@pytest.fixture
def filled(seeded: Workspace) -> Workspace:
    """A store with something of each kind in it."""
    assert seeded.luigi("BootInstance").status == 0
    assert seeded.topcoat("corpus", "import", "a/b", "seeds").status == 0
    campaign = seeded.store.campaigns / "i0"
    campaign.mkdir(parents=True)
    (campaign / "ledger.jsonl").write_text("")
    assert CrashStore(seeded.store.root).add(replace(CRASH, fuzzer="a/b")).bucket == SLUG
    for capsule in (seeded.store.crashes / "a/b/segv-f-00/1/capsule", campaign / "crashes/segv-f-01/1/capsule"):
        capsule.mkdir(parents=True)
        (capsule / "capsule.json").write_text("{}")
    (seeded.directory / "out/campaigns/i0.toml").write_text("")
    (seeded.directory / "out/demo").mkdir()
    (seeded.directory / "out/demo/vmlinux").write_text("")
    return seeded


def unprivileged(workspace: Workspace, *words: str) -> Outcome:
    """Run a command to which file permissions apply: root may read everything, unless that right is taken away."""
    rights = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*rights, *workspace.command(*words)],
        cwd=workspace.directory,
        env=workspace.environment,
        capture_output=True,
        timeout=100,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@contextmanager
def forbidden(*paths: Path) -> Iterator[None]:
    """Nobody may do anything with these during the body."""
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


DENIED = os.strerror(errno.EACCES)


class TestAStoreThatCannotBeRead:
    def test_a_link_to_itself(self, seeded: Workspace) -> None:
        seeded.store.root.symlink_to(seeded.store.root)
        try:
            outcomes = {" ".join(words): seeded.topcoat(*words) for words in all_commands()}
        finally:
            seeded.store.root.unlink()
        assert unexplained(outcomes, os.strerror(errno.ELOOP)) == []

    def test_not_even_a_look_at_it(self, filled: Workspace) -> None:
        with forbidden(filled.store.root):
            outcomes = {" ".join(words): unprivileged(filled, "topcoat", *words) for words in all_commands()}
        assert unexplained(outcomes, DENIED) == []

    def test_its_directories(self, filled: Workspace) -> None:
        with forbidden(*(path for path in filled.store.root.iterdir() if path.is_dir())):
            outcomes = {" ".join(words): unprivileged(filled, "topcoat", *words) for words in all_commands()}
        assert unexplained(outcomes, DENIED) == []

    def test_its_files(self, filled: Workspace) -> None:
        """As another user's: one may look around, but not into all."""
        with forbidden(*(path for path in filled.store.root.rglob("*") if path.is_file())):
            outcomes = {" ".join(words): unprivileged(filled, "topcoat", *words) for words in all_commands()}
        assert unexplained(outcomes, DENIED) == []

    @pytest.mark.parametrize("task", ["BootInstance", "StopInstance", "SSHKeyPair", "FuzzCampaign"])
    def test_by_luigi(self, filled: Workspace, task: str) -> None:
        with forbidden(*(path for path in filled.store.root.rglob("*") if path.is_file())):
            outcome = unprivileged(filled, "luigi", "--module", "tasks", task)
        assert outcome.status in (20, 30, 35)
        assert unexplained({task: outcome}, DENIED) == []


HINTED = {
    "workers": (["SSHKeyPair", "--workers", "two"], 2, "error: --workers: invalid literal"),
    "slice": (["RunFuzzer", "--fuzzer", "a/b", "--slice", "two"], 2, "error: --slice: invalid literal"),
    "log level": (["SSHKeyPair", "--log-level", "LOUD"], 2, "error: --log-level: LOUD is not a valid choice"),
}


class TestMistakes:
    @pytest.mark.parametrize("case", HINTED)
    def test_a_wrong_value_of_luigi_s_own_options(self, workspace: Workspace, case: str) -> None:
        words, status, said = HINTED[case]
        outcome = workspace.luigi(*words)
        assert outcome.status == status
        assert outcome.text.startswith(said)
        assert "\n  hint: give another value" in outcome.text
        assert "Traceback" not in outcome.text

    @pytest.mark.parametrize("option", ["workers = two", "local_scheduler = maybe", "log_level = %(nothing)s"])
    def test_the_same_in_luigi_cfg(self, workspace: Workspace, option: str) -> None:
        workspace.configure(f"[core]\n{option}\n")
        outcome = workspace.luigi("SSHKeyPair")
        assert (outcome.status, "Traceback" in outcome.text) == (2, False)
        assert "luigi.cfg" in outcome.text

    @pytest.mark.parametrize("text", ["no section\n", "[core\n", "[core]\na = 1\na = 2\n", "\xff"])
    @pytest.mark.parametrize(
        "command", ["luigi --module tasks SSHKeyPair", "luigi --module both Both", "topcoat instances"]
    )
    def test_a_luigi_cfg_that_is_no_ini_file(self, workspace: Workspace, command: str, text: str) -> None:
        with_module(workspace)
        (workspace.directory / "luigi.cfg").write_bytes(text.encode("latin-1"))
        outcome = workspace.run(*command.split())
        assert (outcome.status, "Traceback" in outcome.text) == (2, False)
        assert "luigi.cfg cannot be read: " in outcome.text
        assert "\n  hint: correct that file" in outcome.text

    @pytest.mark.parametrize("command", ["luigi --module tasks SSHKeyPair", "topcoat why", "topcoat boot"])
    @pytest.mark.parametrize("file", ["tasks.py", "tasks/__init__.py"])
    def test_another_package_named_tasks(self, workspace: Workspace, command: str, file: str) -> None:
        (workspace.directory / file).parent.mkdir(exist_ok=True)
        workspace.module(file.removesuffix(".py"), "")
        outcome = workspace.run(*command.split())
        assert (outcome.status, "Traceback" in outcome.text) == (2, False)
        assert f"is not Topcoat's here, but {workspace.directory / file}\n  hint: take the directory" in outcome.text

    @pytest.mark.parametrize("name", ["50%", "%(x)s", "${HOME}", "a b", "ü"])
    def test_a_tmpdir_with_signs_that_mean_something_to_luigi(self, workspace: Workspace, name: str) -> None:
        (workspace.directory / name).mkdir()
        workspace.environment["TMPDIR"] = str(workspace.directory / name)
        outcome = workspace.luigi("SSHKeyPair")
        assert (outcome.status, "Traceback" in outcome.text) == (0, False)


SLOW = """
import os, signal, time, tasks
def make(self, made):
    open(os.environ["MARK"], "w").close()
    if "FATAL" in os.environ:
        os.kill(os.getpid(), int(os.environ["FATAL"]))
    signal.pause()
tasks.SSHKeyPair.make = make
"""

LOSING = """
import os, signal, tasks
def make(self, made):
    interrupted, came = signal.getsignal(signal.SIGTERM), []
    def lose(number, frame):
        came.append(number)
        if len(came) > 2:
            interrupted(number, frame)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lose)
    open(os.environ["MARK"], "w").close()
    while True:
        signal.pause()
tasks.SSHKeyPair.make = make
"""
"""A worker that loses the first two signals, as Python may: they come just before a system call that blocks."""

STUCK = """
import os, signal, tasks, tasks.engine.defaults
tasks.engine.defaults._CLEANUP_LIMIT = 1.0
def make(self, made):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    open(os.environ["MARK"], "w").close()
    while True:
        signal.pause()
tasks.SSHKeyPair.make = make
"""
"""A worker that never ends, as one that waits for a dead network file system."""

PSUTIL = """
import os
class NoSuchProcess(Exception): pass
class Process:
    def __init__(self, pid):
        self.pid = pid
    def children(self, recursive):
        return []
    def wait(self):
        os.waitpid(self.pid, 0)
"""
"""As much of psutil as luigi would use."""

INTERRUPTED = [
    "SSHKeyPair: missing",
    "error: interrupted by SIGINT; what was begun is cleaned up",
    "  hint: the same command again goes on",
]


class TestWorkers:
    """luigi's own processes, of which each works at one task."""

    def interrupt(self, workspace: Workspace, text: str) -> list[str]:
        """The lines of a luigi with two workers to which SIGINT came while one worked as the module `text` says."""
        workspace.module("slow", text)
        mark = workspace.directory / "mark"
        with subprocess.Popen(
            workspace.command("luigi", "--module", "slow", "SSHKeyPair", "--workers", "2"),
            cwd=workspace.directory,
            env={**workspace.environment, "MARK": str(mark)},
            stderr=subprocess.PIPE,
            process_group=0,
        ) as process:
            deadline = Deadline(60)
            while not mark.exists():
                assert not deadline.expired
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            try:
                _, said = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        assert process.returncode == 130
        return said.decode().splitlines()

    def test_ctrl_c_has_no_tracebacks(self, workspace: Workspace) -> None:
        assert self.interrupt(workspace, SLOW) == INTERRUPTED

    def test_one_that_loses_a_signal_is_interrupted_again(self, workspace: Workspace) -> None:
        assert self.interrupt(workspace, LOSING) == INTERRUPTED

    def test_where_psutil_is_installed_luigi_waits_for_none_without_limit(self, workspace: Workspace) -> None:
        workspace.module("psutil", PSUTIL)
        assert self.interrupt(workspace, LOSING) == INTERRUPTED

    def test_one_that_never_ends_is_killed(self, workspace: Workspace) -> None:
        _, error, hint = self.interrupt(workspace, STUCK)
        ended = r"error: interrupted by SIGINT; not cleaned up within 1 s, and killed: worker process \d+"
        assert re.fullmatch(ended, error)
        assert hint == "  hint: topcoat gc removes what that has left; then the same command again goes on"

    @pytest.mark.parametrize(("number", "hint"), [(9, "memory ran out"), (11, "run it again")])
    def test_one_that_was_killed(self, workspace: Workspace, number: int, hint: str) -> None:
        workspace.module("slow", SLOW)
        workspace.environment |= {"MARK": str(workspace.directory / "mark"), "FATAL": str(number)}
        outcome = workspace.run("luigi", "--module", "slow", "SSHKeyPair", "--workers", "2")
        assert outcome.status == 30
        assert f"error: SSHKeyPair: the process that worked at it died by signal {number} (" in outcome.text
        assert hint in outcome.text


POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


class TestFilesAndPlaces:
    @pytest.mark.parametrize("file", ["fuchsia.zbi", "fvm.blk", "multiboot.bin"])
    def test_a_pointer_of_git_lfs_as_an_image(self, bundle: Workspace, file: str) -> None:
        path = bundle.directory / "bundle/target/x64" / file
        path.write_text(POINTER)
        for words in (["luigi", "--module", "tasks", "BootInstance"], ["topcoat", "doctor"]):
            outcome = bundle.run(*words)
            assert f"{path} is only a Git LFS pointer to it" in outcome.text
            assert "git lfs pull" in outcome.text
            assert outcome.status in (20, 30)
        shown = bundle.topcoat("image", str(path))
        assert (shown.status, "a Git LFS pointer" in shown.text, "git lfs pull" in shown.text) == (30, True, True)

    def test_a_tmpdir_that_is_not_there(self, bundle: Workspace) -> None:
        bundle.environment["TMPDIR"] = "/nonexistent"
        for words in (["luigi", "--module", "tasks", "BootInstance"], ["topcoat", "stop", "i0"]):
            outcome = bundle.run(*words)
            assert outcome.status == 0, outcome.text

    def test_programs_where_none_can_be_run(self, bundle: Workspace) -> None:
        mount = "mv bundle all && mkdir bundle && mount -t tmpfs -o noexec none bundle && cp -a all/. bundle"
        status, said = in_a_namespace(bundle, mount, "luigi --module tasks InitrdWithKey", "echo $?", "topcoat doctor")
        assert f"zbitool cannot be run: the file system of {bundle.directory}/bundle/" in said, (status, said)
        assert "is mounted noexec" in said
        assert "hint: mount it with exec" in said
        assert "error    QEMU: qemu cannot be run: the file system of" in said

    @pytest.mark.parametrize("start", ["", """sh -c 'exec "$0"' """])
    def test_a_store_from_which_nothing_can_be_run(self, workspace: Workspace, start: str) -> None:
        """The Linux guest's compiler is run from there, by `sh`."""
        workspace.module("here", RUN)
        mount = 'mkdir "$ROOT" && mount -t tmpfs -o noexec none "$ROOT" && cp /bin/true "$ROOT/clang"'
        script = ("topcoat doctor", f'python3 -m here {start}"$ROOT/clang"')
        _, said = in_a_namespace(workspace, mount, *script)
        assert f"error    store: {workspace.store.root}: no program can be run from its file system (noexec)" in said
        assert f"clang cannot be run: the file system of {workspace.store.root}/clang is mounted noexec" in said


RUN = """
import sys
from pathlib import Path
from pipeline.errors import ToolMissing
from pipeline.host.tools import Tool, run
try:
    run(Tool("clang", tuple(sys.argv[1:]), (Path(sys.argv[-1]),)), timeout=60)
except ToolMissing as error:
    print(error.explain())
"""
