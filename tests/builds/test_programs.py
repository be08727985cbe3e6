"""Who prepares images: the build's tool if it passes a trial, else Topcoat's own."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.builds import programs
from pipeline.host.tools import Tool
from pipeline.images import fvm
from tests.conftest import FAKES, Workspace
from tests.images import zbis

ZBI = "build/out/default.zircon/tools/zbi"
FVM = "build/out/default.zircon/tools/fvm"
OWN = "Topcoat's own: "


@pytest.fixture
def real(bundle: Workspace) -> Workspace:
    """The bundle with a real ZBI and a real FVM, and no word about tools."""
    bundle.configure("[boot]\nready = marker\n[qemu]\naccel = tcg\n[ExtendedBlk]\nlength = 64M\n")
    (bundle.directory / "bundle/target/x64/fuchsia.zbi").write_bytes(zbis.image({"bin/init": b"#!"}))
    with (bundle.directory / "bundle/target/x64/fvm.blk").open("wb") as stream:
        fvm.create(stream, 32 << 10, {"data": b"content"}, length=8 << 20)
    return bundle


def made(workspace: Workspace, *tasks: str) -> str:
    texts = []
    for task in tasks or ("InitrdWithKey", "ExtendedBlk"):
        outcome = workspace.luigi(task)
        assert outcome.status == 0, outcome.text
        texts.append(outcome.text)
    return "".join(texts)


def record(workspace: Workspace, name: str) -> dict[str, object]:
    path = workspace.store.images("clusterfuzz") / f"{name}.made.json"
    found: dict[str, object] = json.loads(path.read_text())
    return found


def cache(workspace: Workspace) -> Path:
    return workspace.store.cache / "tools.json"


def test_the_build_s_tools_are_used_if_they_work_and_remembered(real: Workspace) -> None:
    assert OWN not in made(real)
    known = json.loads(cache(real).read_text())
    assert known["schema"] == programs.SCHEMA
    assert sorted(known["tools"].values()) == ["current", "current"]
    (real.directory / "bundle" / ZBI).chmod(0o644)
    assert OWN not in made(real, "InitrdWithKey"), "the same program is not tried twice"


def test_records_tell_what_was_proved(real: Workspace) -> None:
    made(real)
    assert record(real, "ssh-fuchsia.zbi")["proof"] == {"image": "ZBI", "parts": 2, "files": 2}
    proof = {"image": "FVM", "bytes": 64 << 20, "partitions": 1, "slices": 1}
    assert record(real, "extended-fvm.blk")["proof"] == proof


def test_what_was_only_believed_is_made_again_once_proofs_are_wanted(real: Workspace) -> None:
    config = (real.directory / "luigi.cfg").read_text()
    real.configure(f"{config}[tools]\nproof = off\n")
    made(real)
    assert "proof" not in record(real, "ssh-fuchsia.zbi")
    assert ": made " not in made(real)
    real.configure(config)
    text = made(real)
    assert "InitrdWithKey: not proved\n" in text
    assert "ExtendedBlk: not proved\n" in text
    real.configure(f"{config}[tools]\nproof = off\n")
    assert ": made " not in made(real), "a proof is no reason to be made again"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (None, "the build's {} is missing"),
        ("#!/bin/sh\nexit 3\n", "the build's does not work: {} failed with exit code 3"),
        ("#!/bin/sh\nexit 0\n", "the build's does not work: {} ended well"),
        ("#!/nowhere/python\n", "the build's does not work: {} cannot be run"),
        ("\x7fELF of another machine", "the build's does not work: {} "),
    ],
    ids=["missing", "failing", "lying", "without interpreter", "of another machine"],
)
def test_topcoat_s_own_tools_stand_in(real: Workspace, program: str | None, why: str) -> None:
    for name in (ZBI, FVM):
        (real.directory / "bundle" / name).unlink()
        if program is not None:
            (real.directory / "bundle" / name).write_text(program)
            (real.directory / "bundle" / name).chmod(0o755)
    text = made(real)
    for key in ("zbitool", "fvm"):
        line = next(line for line in text.splitlines() if line.startswith(f"{key}: {OWN}"))
        assert why.format(key) in line
    known = json.loads(cache(real).read_text())["tools"] if cache(real).exists() else {}
    assert all(" " in key for key in known), "what does not work may work tomorrow, but not on the same disk"
    assert ": made " not in made(real)


def test_a_tool_that_gets_better_is_used_again(real: Workspace) -> None:
    tool = real.directory / "bundle" / ZBI
    tool.write_text("#!/bin/sh\nexit 3\n")
    assert OWN in made(real, "InitrdWithKey")
    tool.write_bytes((FAKES / "zbi").read_bytes())
    text = made(real, "InitrdWithKey")
    assert OWN not in text
    assert "InitrdWithKey: tool zbitool changed: " in text


def test_a_disk_that_an_old_fvm_would_damage_is_extended_by_ours(real: Workspace) -> None:
    real.environment["FAKE_FVM"] = "old"
    assert OWN not in made(real, "ExtendedBlk"), "this one is as old tools expect it"
    assert "old" in json.loads(cache(real).read_text())["tools"].values()
    with (real.directory / "bundle/target/x64/fvm.blk").open("wb") as stream:
        fvm.create(stream, 32 << 10, {"data": b"content"}, max_disk_size=32 << 20)
    text = made(real, "ExtendedBlk")
    assert f"fvm: {OWN}the build's is too old for fvm.blk: " in text
    assert "slices" in str(record(real, "extended-fvm.blk")["proof"])


def test_an_fvm_that_checks_file_systems_is_tried_on_the_build_s_own_disk(real: Workspace) -> None:
    real.environment["FAKE_FVM"] = "fsck"
    assert OWN not in made(real, "ExtendedBlk")
    assert sorted(json.loads(cache(real).read_text())["tools"].values()) == ["current", "disk"]
    assert list(cache(real).parent.glob(".fvm-trial*")) == []
    assert "slices" in str(record(real, "extended-fvm.blk")["proof"])


def test_an_fvm_that_refuses_the_build_s_disk_too_is_told_in_its_own_words(real: Workspace) -> None:
    real.environment["FAKE_FVM"] = "fsck"
    with (real.directory / "bundle/target/x64/fvm.blk").open("wb") as stream:
        fvm.create(stream, 32 << 10, {"data": b"nothing known"}, length=8 << 20)
    text = made(real, "ExtendedBlk")
    assert f"fvm: {OWN}the build's does not work: fvm failed with exit code 255: " in text
    assert r"blobfs fsck returned an error.\nVerify failed - cancelling extension" in text


def tried(workspace: Workspace, body: str) -> Path:
    """An `fvm` that does this in a shell, where $1 is the disk. Returns the list of the disks that it was run on."""
    runs, program = workspace.directory / "runs", workspace.directory / "bundle" / FVM
    program.write_text(f"#!/bin/sh\necho \"${{1##*/}}\" >>'{runs}'\nruns='{runs}'\n{body}\n")
    program.chmod(0o755)
    return runs


def test_an_fvm_that_failed_both_trials_is_not_run_again_for_this_disk(real: Workspace) -> None:
    runs = tried(real, "echo no such luck >&2; exit 3")
    texts = [made(real, "ExtendedBlk") for _ in range(2)]
    assert all(f"{OWN}the build's does not work: fvm failed with exit code 3: no such luck" in text for text in texts)
    assert len(runs.read_text().splitlines()) == 2
    with (real.directory / "bundle/target/x64/fvm.blk").open("wb") as stream:
        fvm.create(stream, 32 << 10, {"data": b"other"}, length=8 << 20)
    made(real, "ExtendedBlk")
    assert len(runs.read_text().splitlines()) == 4


def test_an_fvm_that_passed_on_the_disk_is_not_tried_on_the_tiny_one_again(real: Workspace) -> None:
    real.environment["FAKE_FVM"] = "fsck"
    made(real, "ExtendedBlk")
    (real.directory / "bundle" / FVM).chmod(0o644)
    assert OWN not in made(real, "ExtendedBlk")


@pytest.mark.parametrize(("body", "disks"), [("kill -KILL $$", 2), ("nowhere", 1)], ids=["killed", "without a program"])
def test_a_failure_that_is_not_the_fvm_s_own_is_not_remembered(real: Workspace, body: str, disks: int) -> None:
    runs = tried(real, body)
    for count in (1, 2):
        assert f"fvm: {OWN}the build's does not work: " in made(real, "ExtendedBlk")
        assert len(runs.read_text().splitlines()) == count * disks


def test_two_at_once_copy_the_disk_once(real: Workspace) -> None:
    wait = 'n=0; until [ "$(wc -l <"$runs")" -ge 3 ] || [ $n -gt 600 ]; do n=$((n + 1)); sleep 0.1; done'
    runs = tried(real, f'[ "${{1#*fvm-trial.}}" = "$1" ] || {{ {wait}; }}; exit 3')
    with ThreadPoolExecutor() as pool:
        assert all(OWN in text for text in pool.map(lambda task: made(real, task), ("ExtendedBlk", "InitrdWithKey")))
    assert len(runs.read_text().splitlines()) == 3


def test_one_disk_s_verdict_is_no_other_s(real: Workspace) -> None:
    real.environment["FAKE_FVM"] = "fsck"
    made(real, "ExtendedBlk")
    with (real.directory / "bundle/target/x64/fvm.blk").open("wb") as stream:
        fvm.create(stream, 32 << 10, {"data": b"nothing known"}, length=8 << 20)
    assert f"fvm: {OWN}the build's does not work: fvm failed with exit code 255: " in made(real, "ExtendedBlk")


def test_an_fvm_that_refuses_the_tiny_disk_and_damages_the_build_s_is_not_used(real: Workspace) -> None:
    real.environment["FAKE_FVM"] = "fsck old"
    with (real.directory / "bundle/target/x64/fvm.blk").open("wb") as stream:
        fvm.create(stream, 32 << 10, {"data": b"content"}, max_disk_size=32 << 20)
    for _ in range(2):
        text = made(real, "ExtendedBlk")
        assert f"fvm: {OWN}the build's does not work: fvm ended well, but fvm.blk is not what it should be: " in text
    verdicts = json.loads(cache(real).read_text())["tools"].values()
    assert [verdict for verdict in verdicts if verdict.startswith(programs.REFUSED)]


def test_an_old_fvm_that_is_insisted_on_is_found_out(real: Workspace) -> None:
    real.environment["FAKE_FVM"] = "old"
    config = (real.directory / "luigi.cfg").read_text()
    real.configure(f"{config}[tools]\nfvm = build\n")
    with (real.directory / "bundle/target/x64/fvm.blk").open("wb") as stream:
        fvm.create(stream, 32 << 10, {"data": b"content"}, max_disk_size=32 << 20)
    outcome = real.luigi("ExtendedBlk")
    assert outcome.status == 30
    assert "fvm ended well, but extended-fvm.blk is not what it should be: slice 1 " in outcome.text


@pytest.mark.parametrize("choice", ["builtin", "PATH"])
def test_a_choice_is_kept_to(real: Workspace, choice: str) -> None:
    other = real.directory / "other-zbi"
    other.write_bytes((FAKES / "zbi").read_bytes() + b"# another\n")
    other.chmod(0o755)
    config = (real.directory / "luigi.cfg").read_text()
    real.configure(f"{config}[tools]\nzbi = {'builtin' if choice == 'builtin' else 'other-zbi'}\n")
    text = made(real, "InitrdWithKey")
    assert (f"zbitool: {OWN}[tools] says so" in text) == (choice == "builtin")
    tools = record(real, "ssh-fuchsia.zbi")["tools"]
    real.configure(config)
    assert "InitrdWithKey: tool zbitool changed: " in made(real, "InitrdWithKey")
    assert record(real, "ssh-fuchsia.zbi")["tools"] != tools


def test_a_chosen_program_that_is_missing_is_an_error(real: Workspace) -> None:
    config = (real.directory / "luigi.cfg").read_text()
    real.configure(f"{config}[tools]\nzbi = /nowhere/zbi\n")
    outcome = real.luigi("InitrdWithKey")
    assert outcome.status == 20
    assert "the build's zbitool is missing: /nowhere/zbi: there is no such file" in outcome.text
    assert "correct [build] zbitool in luigi.cfg, or [tools] zbi" in outcome.text


def test_a_sparse_disk_is_refused_with_the_way_out(real: Workspace) -> None:
    (real.directory / "bundle/target/x64/fvm.blk").write_bytes(b"FVM SPRS" + bytes(10_000))
    outcome = real.luigi("ExtendedBlk")
    assert outcome.status == 30
    assert "fvm.blk: at byte 0x0: this is a sparse FVM" in outcome.text
    assert "decompress --sparse" in outcome.text


def test_an_own_tool_is_all_of_its_files() -> None:
    tool = Tool.module("zbitool", programs.OWN["zbitool"])
    assert {"merge.py", "program.py", "compression.py"} <= {file.name for file in tool.files}
    assert tool.own
    assert not Tool.at("zbi", Path("/bin/true")).own


SAMPLE = """{
  "schema": 2,
  "tools": {
    "b3:11": "current",
    "b3:22": "old",
    "b3:33 b3:44": "disk",
    "b3:33 b3:55": "refused: fvm failed with exit code 255: Verify failed"
  }
}
"""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1, "tools": {}}', '{"schema": 2, "tools": 7}'])
def test_a_cache_that_cannot_be_understood_is_begun_anew(real: Workspace, text: str) -> None:
    cache(real).parent.mkdir(parents=True)
    cache(real).write_text(text)
    assert OWN not in made(real, "InitrdWithKey")
    assert len(json.loads(cache(real).read_text())["tools"]) == 2


def test_the_cache_as_it_is_frozen(real: Workspace) -> None:
    cache(real).parent.mkdir(parents=True)
    cache(real).write_text(SAMPLE)
    made(real, "InitrdWithKey")
    data = json.loads(cache(real).read_text())
    assert data["schema"] == 2
    assert json.loads(SAMPLE)["tools"].items() < data["tools"].items()
