"""README is true: its commands run, in its order, in a copy of the project."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.instance import Instance
from pipeline.settings import Store
from tests.conftest import BIN, Workspace

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.timeout(900)
def test_every_command_runs(workspace: Workspace, demo_parts: Path) -> None:
    copy = workspace.directory
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "luigi.cfg"):
        shutil.copy(PROJECT / name, copy)
    (copy / "pipeline").symlink_to(PROJECT / "pipeline")
    (copy / ".venv").mkdir()
    (copy / ".venv/bin").symlink_to(BIN)
    (copy / ".venv/.complete").touch()
    workspace.environment["PATH"] = f"{copy}/.venv/bin:{os.environ['PATH']}"
    said = {}
    try:
        for command in commands():
            done = subprocess.run(
                command, shell=True, cwd=copy, env=workspace.environment, capture_output=True, timeout=200, check=False
            )
            said[command] = (done.stdout + done.stderr).decode()
            assert done.returncode == 0, f"{command}\n{said[command]}"
    finally:
        for instance in Instance.all(Store(copy / "out")):
            instance.stop(10)
    assert said[".venv/bin/topcoat ssh i0 -- uname -a"].startswith("Linux i0 ")
    (crash,) = (text for command, text in said.items() if command.startswith("pipeline/demo/symbolizer.py"))
    assert " in greet pipeline/demo/fuzzers/crash_fuzzer.c:" in crash
    promised = re.findall(r"^(\w+): made ", README, re.MULTILINE)
    assert promised
    assert all(f"{task}: made" in said["make boot"] for task in promised)
    assert "i0 is running: topcoat ssh i0" in said["make boot"]


def test_the_list_of_commands_is_not_empty_by_mistake() -> None:
    assert "make boot" in commands()
    assert len(commands()) > 10


@pytest.mark.parametrize("name", re.findall(r"`((?:pipeline|tasks|bench)/[\w./]*)`", README))
def test_files_that_are_named_exist(name: str) -> None:
    assert (PROJECT / name).exists()
