"""What makes what stale, which tasks then run, and which reason is given: a matrix, with scripted tools."""

import inspect
import itertools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pytest

import tasks
from pipeline import prepare, ssh_keys
from pipeline.demo import disk, initramfs, kernel, packages
from pipeline.images import cpio, fvm
from tasks.base import ArtifactTask
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

MODULE = """
import os, tasks
from tasks.base import WrapperTask
if "BUMP" in os.environ:
    getattr(tasks, os.environ["BUMP"]).version += 1
class Both(WrapperTask):
    def requires(self): return {"initrd": tasks.InitrdWithKey(), "disk": tasks.ExtendedBlk()}
"""


def with_module(workspace: Workspace) -> Workspace:
    (workspace.directory / "both.py").write_text(MODULE)
    workspace.environment["PYTHONPATH"] = str(workspace.directory)
    return workspace


@pytest.fixture
def prepared(bundle: Workspace) -> Workspace:
    """A bundle whose images have been made; nothing runs."""
    assert set(ran(with_module(bundle)).values()) == {"missing"}
    return bundle


@pytest.fixture
def running(bundle: Workspace) -> Workspace:
    """A bundle from which i0 has been booted."""
    assert with_module(bundle).luigi("BootInstance").status == 0
    return bundle


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


def bump(task: str) -> Edit:
    return lambda workspace: workspace.environment.update(BUMP=task)


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
REFUSED = "error: i0 is running, but it is not what a boot would make now: "
BROKEN = "error: i0 is running, but its handle cannot be understood: "
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
    assert handle.process.wait(5)


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
        replace_in(HANDLE, '"schema": 1', '"schema": 2'), BROKEN + "its schema is 2"
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
    ("edit", "reason"),
    [
        (append(ZBI), "initrd is stale: input zbi changed: b3:"),
        (append(BLK), "disk is stale: input blk changed: b3:"),
        (configure("qemu", "restrict = off"), "parameter restrict True -> False"),
        (unlink(INITRD), "initrd is stale: output ssh-fuchsia.zbi missing"),
        (append(KEY), "key is stale: output sshid changed"),
        (unlink(ZBI), "zbi is missing"),
    ],
)
def test_a_running_instance_is_told_stale_and_not_touched(running: Workspace, edit: Edit, reason: str) -> None:
    before = running.instance().live_handle()
    edit(running)
    outcome = running.luigi("BootInstance")
    assert outcome.status == 30, outcome.text
    assert REFUSED + reason in outcome.text
    assert reasons(outcome.text) == {}
    assert running.instance().live_handle() == before


def test_replace_stops_it_and_boots_the_new_one(running: Workspace) -> None:
    before = running.instance().live_handle()
    append(ZBI)(running)
    outcome = running.luigi("BootInstance", "--replace")
    assert outcome.status == 0, outcome.text
    assert "InitrdWithKey: input zbi changed" in outcome.text
    assert "BootInstance: stopping i0, which is stale: input initrd changed" in outcome.text
    after = running.instance().live_handle()
    assert before
    assert after
    assert before.boot_id != after.boot_id
    assert qemus_of(running.directory) == [after.process]


@pytest.mark.parametrize("edit", [lambda _: None, rewrite(ZBI), unlink(f"{INITRD}.made.json")])
def test_replace_spares_what_is_as_a_boot_would_make_it(running: Workspace, edit: Edit) -> None:
    """Also when the initrd is made again, and comes out as it was."""
    before = running.instance().live_handle()
    edit(running)
    assert running.luigi("BootInstance", "--replace").status == 0
    assert running.instance().live_handle() == before


def test_replace_boots_what_is_not_running(bundle: Workspace) -> None:
    assert bundle.luigi("BootInstance", "--replace").status == 0
    assert bundle.instance().live_handle()


def test_two_that_replace_at_once_replace_it_once(running: Workspace) -> None:
    append(ZBI)(running)
    assert running.luigi("InitrdWithKey").status == 0
    command = running.command("luigi", "--module", "tasks", "BootInstance", "--replace", "--no-lock")
    both = [
        subprocess.Popen(command, cwd=running.directory, env=running.environment, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=60)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    handle = running.instance().live_handle()
    assert handle
    assert qemus_of(running.directory) == [handle.process]


def test_an_image_that_changes_while_it_is_booted_is_told(bundle: Workspace) -> None:
    """Played by a module that edits the kernel once QEMU runs."""
    (bundle.directory / "edit.py").write_text(
        "import tasks\nfrom pipeline.qemu import boot\nreal = boot._Boot.wait_until_ready\n"
        "def wait(self):\n"
        f"    open('{bundle.directory / KERNEL}', 'ab').write(b'more')\n"
        "    return real(self)\n"
        "boot._Boot.wait_until_ready = wait\n"
    )
    bundle.environment["PYTHONPATH"] = str(bundle.directory)
    outcome = bundle.run("luigi", "--module", "edit", "BootInstance")
    assert outcome.status == 30
    assert "error: i0 was booted, but meanwhile something has changed: input kernel changed: b3:" in outcome.text
    assert "--name i0 --replace" in outcome.text
    assert "Traceback" not in outcome.text


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
    (bundle.directory / "edit.py").write_text(
        "import tasks\nfrom pipeline import prepare\nreal = prepare.require_output\n"
        "def require(*arguments):\n"
        f"    open('{bundle.directory / path}', 'ab').write(b'#more\\n')\n"
        "    return real(*arguments)\n"
        "prepare.require_output = require\n"
    )
    bundle.environment["PYTHONPATH"] = str(bundle.directory)
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
    (prepared.directory / "equal.py").write_text(
        "import tasks, both\nfrom pipeline.publish import publish_bytes\n"
        "def make(self):\n"
        "    for path in self.artifacts():\n"
        f"        publish_bytes(path, open('{prepared.directory}/' + path.name, 'rb').read(), 0o600)\n"
        "tasks.SSHKeyPair.make = make\n"
    )
    for name in ("sshid", "sshid.pub"):
        shutil.copy(prepared.store.keys / name, prepared.directory)
    outcome = prepared.run("luigi", "--module", "equal", "InitrdWithKey")
    assert outcome.status == 0, outcome.text
    assert reasons(outcome.text) == {"SSHKeyPair": "version 1 -> 2"}


def test_with_everything_fresh_nothing_heavy_is_imported(running: Workspace) -> None:
    words = ["luigi", "--module", "tasks", "BootInstance"]
    program = f"import sys; sys.argv = {words}\nfrom luigi.cmdline import luigi_run\n"
    program += "try: luigi_run()\nexcept SystemExit as end: print(end.code, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=running.directory, env=running.environment, capture_output=True, check=True
    )
    code, *modules = done.stdout.decode().split()
    assert code == "0"
    heavy = {"paramiko", "sh", "rich", "matplotlib", "cryptography", "lz4", "zstandard"}
    assert not heavy & set(modules)
    assert not {"pipeline.ssh", "pipeline.qemu.boot", "pipeline.images.fvm", "pipeline.proof"} & set(modules)


def test_no_path_of_the_machine_is_in_a_record(prepared: Workspace) -> None:
    for record in RECORDS:
        text = (prepared.directory / record).read_text()
        assert "/" not in text.replace("key/sshid", "")
        assert json.loads(text)["schema"] == 1


PARTS: dict[str, tuple[Callable[..., object] | ModuleType, ...]] = {
    "SSHKeyPair": (ssh_keys,),
    "InitrdWithKey": (prepare.make_initrd,),
    "ExtendedBlk": (prepare.make_disk,),
    "DemoPackages": (packages.collect, packages.fetch, packages.Packages),
    "DemoKernel": (kernel,),
    "DemoInitramfs": (initramfs, cpio.encode, ssh_keys.dropbear_host_key),
    "DemoDisk": (disk, fvm.create),
}
"""What does the work of each task. Tools are in the record by their digest."""


def test_the_source_of_what_makes_an_artifact_is_known_with_the_version_of_its_task() -> None:
    """When this fails: is something else made of the same inputs now? Then raise the task's version."""
    found = {}
    for name in tasks.__all__:
        task = getattr(tasks, name)
        if issubclass(task, ArtifactTask):
            sources = [inspect.getsource(part) for part in (task.make, *PARTS[name])]
            found[name] = [task.version, sha256("".join(sources).encode()).hexdigest()[:8]]
    assert found == json.loads(Path(__file__).with_name("versions.json").read_text())
