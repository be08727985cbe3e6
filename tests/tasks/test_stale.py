"""What makes what stale, which tasks then run, and which reason is given: a matrix, with scripted tools."""

import itertools
import json
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Workspace, qemus_of
from tests.tasks.edits import (
    BLK,
    DISK,
    EVERYTHING,
    FVM_TOOL,
    HANDLE,
    INITRD,
    KERNEL,
    KEY,
    QEMU,
    RECORDS,
    ZBI,
    ZBI_TOOL,
    Edit,
    append,
    bump,
    configure,
    in_turn,
    move_store,
    replace_in,
    rewrite,
    same_size,
    touch,
    unlink,
    write,
)
from tests.tasks.runs import REFUSED, ran, reasons
from tests.waiting import SOON

EDITS = (
    "source edited",
    "source touched only",
    "same bytes rewritten",
    "tool binary replaced",
    "parameter changed",
    "task version bumped",
    "output edited",
    "output deleted",
    "record deleted",
    "record corrupt",
    "record from a newer schema",
    "store moved",
    "mtime set back",
    "clock set back",
)

NO_SOURCE = "a key is made of nothing"
NO_TOOL = "a key is made by this process"
NO_PARAMETER = "the initrd has no parameter"


@dataclass(frozen=True)
class Cell:
    """What happens, and what must follow: which tasks run, and how their reasons begin."""

    edit: Edit
    runs: Mapping[str, str]


def cells_of(
    task: str, artifact: str, also: Mapping[str, str], source: tuple[str, str], tool: tuple[str, str], parameter: Edit
) -> dict[str, Cell]:
    """The column of one prepare task. `also` runs whenever the task has made something else."""
    record, name = f"{artifact}.made.json", Path(artifact).name

    def stale(edit: Edit, reason: str) -> Cell:
        return Cell(edit, {task: reason, **also})

    return {
        "source edited": stale(append(source[1]), f"input {source[0]} changed: b3:"),
        "source touched only": Cell(touch(source[1], seconds=0), {}),
        "same bytes rewritten": Cell(rewrite(source[1]), {}),
        "tool binary replaced": stale(append(tool[1]), f"tool {tool[0]} changed: b3:"),
        "parameter changed": stale(parameter, "parameter "),
        "task version bumped": stale(bump(task), "version 1 -> 2"),
        "output edited": stale(same_size(artifact), f"output {name} changed"),
        "output deleted": stale(unlink(artifact), f"output {name} missing"),
        "record deleted": stale(unlink(record), "no record"),
        "record corrupt": stale(append(record), "record damaged"),
        "record from a newer schema": stale(replace_in(record, '"schema": 1', '"schema": 2'), "record of schema 2"),
        "store moved": Cell(move_store, {}),
        "mtime set back": Cell(touch(*EVERYTHING, seconds=-1e8), {}),
        "clock set back": Cell(touch(*EVERYTHING, seconds=1e7), {}),
    }


def without(cells: Mapping[str, Cell], reasons: Mapping[str, str]) -> dict[str, Cell | str]:
    """The same column, where some cells make no sense."""
    return {**cells, **reasons}


_NOTHING = (("", ""), ("", ""))
PREPARE: dict[str, dict[str, Cell | str]] = {
    "SSHKeyPair": without(
        cells_of(
            "SSHKeyPair",
            KEY,
            {"InitrdWithKey": "input key/sshid changed: b3:"},
            *_NOTHING,
            configure("SSHKeyPair", "type = rsa"),
        ),
        {
            "source edited": NO_SOURCE,
            "source touched only": NO_SOURCE,
            "same bytes rewritten": NO_SOURCE,
            "tool binary replaced": NO_TOOL,
        },
    ),
    "InitrdWithKey": without(
        cells_of("InitrdWithKey", INITRD, {}, ("zbi", ZBI), ("zbitool", ZBI_TOOL), append(ZBI)),
        {"parameter changed": NO_PARAMETER},
    ),
    "ExtendedBlk": without(
        cells_of("ExtendedBlk", DISK, {}, ("blk", BLK), ("fvm", FVM_TOOL), configure("ExtendedBlk", "length = 4G")),
        {},
    ),
}

FRESH = "fresh"
BROKEN = "error: the handle of i0 cannot be understood: "
BOOTED = "booted"


@dataclass(frozen=True)
class BootCell:
    """What happens to a running instance or what it was booted from, and what a run then says or does."""

    edit: Edit
    says: str


def kill_qemu(workspace: Workspace) -> None:
    handle = workspace.instance().live_handle()
    assert handle
    handle.process.send(signal.SIGKILL)
    assert handle.process.wait(SOON)


BOOT = {
    "source edited": BootCell(append(KERNEL), REFUSED + "input kernel changed: b3:"),
    "source touched only": BootCell(touch(KERNEL, seconds=0), FRESH),
    "same bytes rewritten": BootCell(rewrite(KERNEL), FRESH),
    "tool binary replaced": BootCell(append(QEMU), REFUSED + "tool qemu changed: b3:"),
    "parameter changed": BootCell(configure("qemu", "memory = 1024"), REFUSED + "parameter memory default -> 1024"),
    "task version bumped": BootCell(bump("BootInstance"), REFUSED + "version 1 -> 2"),
    "output edited": BootCell(append(INITRD), REFUSED + "initrd is stale: output ssh-fuchsia.zbi changed"),
    "output deleted": BootCell(kill_qemu, BOOTED),
    "record deleted": BootCell(unlink(HANDLE), BOOTED),
    "record corrupt": BootCell(write(HANDLE, "{"), BROKEN),
    "record from a newer schema": BootCell(
        replace_in(HANDLE, '"schema": 3', '"schema": 4'), BROKEN + "its schema is 4"
    ),
    "store moved": BootCell(move_store, FRESH),
    "mtime set back": BootCell(touch(*EVERYTHING, seconds=-1e8), FRESH),
    "clock set back": BootCell(touch(*EVERYTHING, seconds=1e7), FRESH),
}


def test_the_matrix_is_complete() -> None:
    assert list(BOOT) == list(EDITS)
    assert all(list(column) == list(EDITS) for column in PREPARE.values())
    left_out = [cell for column in PREPARE.values() for cell in column.values() if isinstance(cell, str)]
    assert sorted(left_out) == sorted([NO_SOURCE] * 3 + [NO_TOOL, NO_PARAMETER])


@pytest.mark.parametrize(
    ("edit", "task"),
    [
        pytest.param(edit, task, id=f"{edit}-{task}")
        for edit, task in itertools.product(EDITS, PREPARE)
        if isinstance(PREPARE[task][edit], Cell)
    ],
)
def test_prepare(prepared: Workspace, edit: str, task: str) -> None:
    cell = PREPARE[task][edit]
    assert isinstance(cell, Cell)
    cell.edit(prepared)
    found = ran(prepared)
    assert set(found) == set(cell.runs)
    for name, reason in cell.runs.items():
        assert found[name].startswith(reason)
    assert ran(prepared) == {}, "and then it is fresh"


@pytest.mark.parametrize("edit", EDITS)
def test_boot(running: Workspace, edit: str) -> None:
    cell = BOOT[edit]
    before = running.instance().live_handle()
    assert before
    cell.edit(running)
    outcome = running.run("luigi", "--module", "both", "BootInstance")
    assert reasons(outcome.text) == {}, "what it was booted from stays as it is"
    if cell.says in (FRESH, BOOTED):
        assert outcome.status == 0, outcome.text
        assert "i0 is running: topcoat ssh i0" in outcome.text
    else:
        assert outcome.status == 30, outcome.text
        assert cell.says in outcome.text
    assert before.process.alive == (cell.says != BOOTED)
    assert len(qemus_of(running.directory)) == 1
    if cell.says.startswith(REFUSED):
        hint = "hint: to stop it and boot anew: luigi --module tasks BootInstance --name i0 --replace"
        assert hint in outcome.text
        replaced = running.run("luigi", "--module", "both", "BootInstance", "--replace")
        assert replaced.status == 0, replaced.text
        assert running.run("luigi", "--module", "both", "BootInstance").status == 0


@pytest.mark.parametrize(
    ("edit", "runs"),
    [
        (lambda _: None, {}),
        (same_size(ZBI), {"InitrdWithKey": "input zbi changed: b3:"}),
        (append(f"{KEY}.pub"), {"SSHKeyPair": "output sshid.pub changed", "InitrdWithKey": "input key/sshid changed"}),
        (unlink(f"{KEY}.pub"), {"SSHKeyPair": "output sshid.pub missing", "InitrdWithKey": "input key/sshid changed"}),
        (unlink(DISK, f"{DISK}.made.json"), {"ExtendedBlk": "missing"}),
        (write(f"{INITRD}.made.json", ""), {"InitrdWithKey": "record damaged"}),
        (write(f"{INITRD}.made.json", "{}"), {"InitrdWithKey": "record damaged"}),
        (in_turn(append(ZBI), append(ZBI_TOOL)), {"InitrdWithKey": "tool zbitool changed"}),
        (in_turn(write("out/cache/digests.jsonl", ""), unlink("out/cache/digests.jsonl")), {}),
        (write("out/cache/digests.jsonl", "{"), {}),
    ],
    ids=[
        "nothing",
        "other bytes, size and time as before",
        "public key edited",
        "public key deleted",
        "artifact and record deleted",
        "record empty",
        "record without fields",
        "two reasons, the first one is told",
        "cache lost",
        "cache damaged",
    ],
)
def test_further_edits(prepared: Workspace, edit: Edit, runs: dict[str, str]) -> None:
    edit(prepared)
    found = ran(prepared)
    assert set(found) == set(runs)
    assert all(found[task].startswith(reason) for task, reason in runs.items())


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (append(ZBI), "InitrdWithKey was being made when what it is made of changed: input zbi changed: b3:"),
        (append(ZBI_TOOL), "InitrdWithKey was being made when what it is made of changed: tool zbitool changed: b3:"),
    ],
)
def test_a_source_that_changes_while_it_is_used_is_told(bundle: Workspace, edit: Edit, words: str) -> None:
    """Else the record would tell of a source that the artifact was not made of."""
    path = ZBI if edit.__closure__ and ZBI in [cell.cell_contents for cell in edit.__closure__] else ZBI_TOOL
    bundle.module(
        "edit",
        "import tasks\nfrom pipeline.builds import prepare\nreal = prepare.require_output\n"
        "def require(*arguments):\n"
        f"    open('{bundle.directory / path}', 'ab').write(b'#more\\n')\n"
        "    return real(*arguments)\n"
        "prepare.require_output = require\n",
    )
    outcome = bundle.run("luigi", "--module", "edit", "InitrdWithKey")
    assert outcome.status == 30
    assert f"error: {words}" in outcome.text
    assert "hint: when nobody works on it any more, the same command again makes it" in outcome.text
    assert "Traceback" not in outcome.text
    assert not (bundle.directory / f"{INITRD}.made.json").exists()
    assert bundle.luigi("InitrdWithKey").status == 0


def test_a_rebuild_that_yields_the_same_makes_nothing_downstream_stale(prepared: Workspace) -> None:
    """A key pair that comes out equal: played by a module that makes it of copies."""
    bump("SSHKeyPair")(prepared)
    prepared.module(
        "equal",
        "import tasks, both\nfrom pipeline.store.publish import write_new\n"
        "def make(self, made):\n"
        "    for path in made:\n"
        f"        write_new(path, open('{prepared.directory}/' + path.name, 'rb').read(), 0o600)\n"
        "tasks.SSHKeyPair.make = make\n",
    )
    for name in ("sshid", "sshid.pub"):
        shutil.copy(prepared.store.keys / name, prepared.directory)
    outcome = prepared.run("luigi", "--module", "equal", "InitrdWithKey")
    assert outcome.status == 0, outcome.text
    assert reasons(outcome.text) == {"SSHKeyPair": "version 1 -> 2"}


def test_no_path_of_the_machine_is_in_a_record(prepared: Workspace) -> None:
    for record in RECORDS:
        text = (prepared.directory / record).read_text()
        assert "/" not in text.replace("key/sshid", "")
        assert json.loads(text)["schema"] == 1
