"""README and the manuals are true: their commands run, in their order, in a copy of the project."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.settings import Store
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.stopping import stop
from tests.conftest import BIN, Workspace

PROJECT = Path(__file__).parents[1]
MANUALS = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "bench/README.md")]
MANUALS += [PROJECT / f"docs/{name}.md" for name in ("demo", "undercoat", "campaign", "images", "freshness")]
MANUALS += sorted({*(PROJECT / "docs").glob("*.md")} - {*MANUALS})
TEXT = "\n".join(path.read_text() for path in MANUALS)
ELSEWHERE = ("make check", "make test", "make test-quick")
"""What .ci/run runs; this is a part of it."""


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and line not in ELSEWHERE]


@pytest.mark.timeout(900)
def test_every_command_runs(workspace: Workspace, demo_parts: Path) -> None:
    copy = workspace.directory
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "luigi.cfg"):
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
            stop(instance, 10)
    assert said[".venv/bin/topcoat ssh i0 -- uname -a"].startswith("Linux i0 ")
    (crash,) = (text for command, text in said.items() if command.startswith("pipeline/builds/demo/symbolizer.py"))
    assert " in greet pipeline/builds/demo/fuzzers/crash_fuzzer.c:" in crash
    promised = re.findall(r"^(\w+): made ", TEXT, re.MULTILINE)
    assert promised
    assert all(f"{task}: made" in said["make boot"] for task in promised)
    assert "i0 is running: topcoat ssh i0" in said["make boot"]


def test_the_list_of_commands_is_not_empty_by_mistake() -> None:
    assert "make boot" in commands()
    assert len(commands()) > 40


@pytest.mark.parametrize("name", sorted({*re.findall(r"`((?:pipeline|tasks|tests|bench)/[\w./]*)`", TEXT)}))
def test_files_that_are_named_exist(name: str) -> None:
    assert (PROJECT / name).exists()


@pytest.mark.parametrize("manual", MANUALS, ids=lambda path: path.name)
def test_links_lead_somewhere(manual: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", manual.read_text())
    assert [link for link in links if not (manual.parent / link).exists()] == []
