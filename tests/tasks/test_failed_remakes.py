"""What cannot be made anew takes nothing away: the old files stay, and count as stale."""

from pathlib import Path

import pytest

from pipeline.store.digests import digest
from tests.conftest import Workspace
from tests.tasks.edits import BLK, DISK, INITRD, KEY, ZBI, append
from tests.tasks.runs import ran

FAULTS = """
import os, tasks
from pipeline.builds import prepare
fault = os.environ["FAULT"]
def full(*_, **__): raise OSError(28, "No space left on device")
def changed(*_, **__): open(os.environ["SOURCE"], "ab").write(b"#more")
if fault == "nothing can be written": tasks.prepare.write_new = full
if fault == "input changes": prepare.require_output = changed
"""


def remade(workspace: Workspace, task: str, fault: str, **environment: str) -> int:
    workspace.module("faults", FAULTS)
    return workspace.run("luigi", "--module", "faults", task, environment={"FAULT": fault, **environment}).status


@pytest.mark.parametrize(
    ("task", "artifact", "edited", "environment"),
    [
        ("InitrdWithKey", INITRD, ZBI, {"FAKE_ZBI": "fail"}),
        ("InitrdWithKey", INITRD, ZBI, {"FAKE_ZBI": "nothing"}),
        ("InitrdWithKey", INITRD, ZBI, {"FAKE_ZBI": "empty"}),
        ("InitrdWithKey", INITRD, ZBI, {"FAKE_ZBI": "hang"}),
        ("ExtendedBlk", DISK, BLK, {"FAKE_FVM": "fail"}),
    ],
)
def test_a_tool_that_fails(
    prepared: Workspace, task: str, artifact: str, edited: str, environment: dict[str, str]
) -> None:
    path, before = prepared.directory / artifact, digest(prepared.directory / artifact)  # one has 3 GiB
    append(edited)(prepared)
    patient = (prepared.directory / "luigi.cfg").read_text()
    if "hang" in environment.values():
        prepared.configure(patient.replace("[tools]\ntimeout = 60\n", "[tools]\ntimeout = 1\n"))
    for _ in range(2):
        assert prepared.luigi(task, **environment).status == 30
        assert digest(path) == before
        assert not Path(f"{path}.made.json").exists(), "it is stale"
    prepared.configure(patient)
    assert ran(prepared) == {task: "no record"}
    assert digest(path) != before


def test_an_input_that_changes_meanwhile(prepared: Workspace) -> None:
    """What was made of both states of it may be of no use."""
    path, before = prepared.directory / INITRD, (prepared.directory / INITRD).read_bytes()
    append(ZBI)(prepared)
    assert remade(prepared, "InitrdWithKey", "input changes", SOURCE=str(prepared.directory / ZBI)) == 30
    assert path.read_bytes() == before
    assert ran(prepared) == {"InitrdWithKey": "no record"}


def test_a_key_pair_stays_a_pair(prepared: Workspace) -> None:
    pair = [prepared.directory / KEY, prepared.directory / f"{KEY}.pub"]
    before = [path.read_bytes() for path in pair]
    (prepared.directory / f"{KEY}.made.json").unlink()
    assert remade(prepared, "SSHKeyPair", "nothing can be written") == 30
    assert [path.read_bytes() for path in pair] == before
    assert set(ran(prepared)) == {"SSHKeyPair", "InitrdWithKey"}
    assert [path.read_bytes() == old for path, old in zip(pair, before, strict=True)] == [False, False]
