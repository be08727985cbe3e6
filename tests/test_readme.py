"""README and the manuals are true: their commands run, in their order, in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from pipeline.builds.targets import sources
from pipeline.builds.targets.options import ENVIRONMENT, FLAGS, SANITIZERS, parse
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


TARGETS = (PROJECT / "docs/targets.md").read_text()
OWN_LIBRARY = "## Fuzz your own library in a VM in five minutes\n"


def blocks(text: str, language: str = "sh") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def of_targets() -> list[str]:
    """The blocks that are about a target of the reader's, which the first of them makes."""
    _, _, section = TEXT.partition(OWN_LIBRARY)
    return [*blocks(section.partition("\n## ")[0]), *blocks(TARGETS)]


def commands() -> list[str]:
    lines = [line for block in blocks(TEXT) if block not in of_targets() for line in block.splitlines()]
    lines = [line.split("  #")[0].strip() for line in lines]
    return [line for line in lines if line and line not in ELSEWHERE]


@pytest.fixture
def clone(workspace: Workspace) -> Workspace:
    """A workspace that is as a clone of the project after `make setup`."""
    copy = workspace.directory
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "luigi.cfg"):
        shutil.copy(PROJECT / name, copy)
    (copy / "pipeline").symlink_to(PROJECT / "pipeline")
    (copy / ".venv").mkdir()
    (copy / ".venv/bin").symlink_to(BIN)
    (copy / ".venv/.complete").touch()
    workspace.environment["PATH"] = f"{copy}/.venv/bin:{os.environ['PATH']}"
    return workspace


@pytest.mark.timeout(900)
def test_every_command_runs(clone: Workspace, demo_parts: Path) -> None:
    workspace, copy = clone, clone.directory
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
    (crash,) = (text for command, text in said.items() if command.startswith("pipeline/builds/linux/symbolizer.py"))
    assert " in greet crash_fuzzer.c:" in crash
    assert " * #" in said["topcoat crash show deadly-signal-greet"]
    promised = re.findall(r"^(\w+): made ", TEXT, re.MULTILINE)
    assert promised
    assert all(f"{task}: made" in said["make boot"] for task in promised)
    assert "i0 is running: topcoat ssh i0" in said["make boot"]


def test_the_list_of_commands_is_not_empty_by_mistake() -> None:
    assert "make boot" in commands()
    assert len(commands()) > 40
    assert [block for block in of_targets() if "FuzzCampaign" in block] == of_targets()[:2]


def run_block(clone: Workspace, block: str) -> str:
    """Run all commands of a block, in less time than it says. Returns what they say."""
    done = subprocess.run(
        ["bash", "-e", "-c", block.replace("--budget 1m", "--budget 10s")],
        cwd=clone.directory, env=clone.environment, capture_output=True, timeout=400, check=False,
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, f"{block}\n{said}"
    return said


def proved_executions(clone: Workspace, campaign: str) -> dict[str, int]:
    """How often each fuzzer of a campaign has run, which must have been proved."""
    done = clone.topcoat("campaign", "status", campaign, "--json")
    status = json.loads(done.stdout)
    assert (done.status, status["state"], status["proved"], status["unproved"]) == (0, "done", True, ""), done.text
    return {fuzzer["fuzzer"]: fuzzer["executions"] for fuzzer in status["fuzzers"]}


@pytest.mark.timeout(900)
def test_a_library_of_ones_own_is_fuzzed(clone: Workspace, demo: Workspace) -> None:
    first, *others = of_targets()
    said = run_block(clone, first)
    assert "build: linux-lz4 (TOPCOAT_TARGETS names targets)" in said
    assert "lz4/lz4_fuzzer  libFuzzer  address" in said
    assert proved_executions(clone, "campaign")["lz4/lz4_fuzzer"] > 1000
    # What OSS-Fuzz would have built
    built = clone.directory / "oss-fuzz/build/out/lz4"
    shutil.copytree(clone.store.targets / "lz4/compiled/lz4_fuzzer", built)
    said = "".join(run_block(clone, block) for block in others)
    assert proved_executions(clone, "built")["lz4/lz4_fuzzer"] > 1000
    assert "Done 1000 runs" in said


def test_the_example_of_a_file_of_targets_has_all_keys(tmp_path: Path) -> None:
    (example,) = blocks(TARGETS, "toml")
    (tmp_path / sources.NAME).write_text(example)
    found = sources.read(tmp_path)
    assert (found.package, [target.name for target in found.targets]) == ("lz4", ["lz4_fuzzer", "frame_fuzzer"])
    assert found.target("lz4_fuzzer").sources == ("lz4_fuzzer.c", "lz4libs/lz4.c")
    told = set(re.findall(r"^\| `(\w+)` \| (?:all|target|both)\b", TARGETS, re.MULTILINE))
    known = {*sources._SourcesFile.__struct_fields__, *sources._Target.__struct_fields__} - {"target"}  # noqa: SLF001
    table = tomllib.loads(example)
    used = {*table, *(key for target in table["target"] for key in target)} - {"target"}
    assert told == known == used


def test_the_example_of_options_is_sound() -> None:
    (example,) = blocks(TARGETS, "ini")
    found = parse(example.encode())
    assert (found.problems, found.dictionary, found.flags) == ((), "shared.dict", {"max_len": "4096"})
    assert found.environment == {"ASAN_OPTIONS": "detect_leaks=0", "LANG": "C"}
    assert all(f"`{section}`" in TARGETS for section in (FLAGS, ENVIRONMENT, *SANITIZERS))


@pytest.mark.parametrize("name", sorted({*re.findall(r"`((?:pipeline|tasks|tests|bench)/[\w./]*)`", TEXT)}))
def test_files_that_are_named_exist(name: str) -> None:
    assert (PROJECT / name).exists()


@pytest.mark.parametrize("manual", MANUALS, ids=lambda path: path.name)
def test_links_lead_somewhere(manual: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", manual.read_text())
    assert [link for link in links if not (manual.parent / link).exists()] == []
