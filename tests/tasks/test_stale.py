"""What makes what stale, and which reason is given: a table, with scripted tools."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Workspace, qemus_of

BOTH = """
import luigi, tasks
class Both(luigi.WrapperTask):
    def requires(self): return [tasks.InitrdWithKey(), tasks.ExtendedBlk()]
"""

Edit = Callable[[Workspace], object]
ZBI = "bundle/target/x64/fuchsia.zbi"
BLK = "bundle/target/x64/fvm.blk"
ZBI_TOOL = "bundle/build/out/default.zircon/tools/zbi"
FVM_TOOL = "bundle/build/out/default.zircon/tools/fvm"
KEY = "out/keys/sshid"
INITRD = "out/images/clusterfuzz/ssh-fuchsia.zbi"
DISK = "out/images/clusterfuzz/extended-fvm.blk"


@pytest.fixture
def prepared(bundle: Workspace) -> Workspace:
    """A bundle whose images have been made; nothing runs."""
    (bundle.directory / "both.py").write_text(BOTH)
    bundle.environment["PYTHONPATH"] = str(bundle.directory)
    assert set(reasons(bundle).values()) == {"missing"}
    return bundle


def reasons(workspace: Workspace, *words: str) -> dict[str, str]:
    """Run both prepare tasks; which ran, and why."""
    outcome = workspace.run("luigi", "--module", "both", "Both", *words)
    assert outcome.status == 0, outcome.text
    lines = [line.partition(": ") for line in outcome.text.splitlines()]
    ran = [(name, rest) for name, _, rest in lines if name in ("SSHKeyPair", "InitrdWithKey", "ExtendedBlk")]
    said = {name: rest for name, rest in ran if not rest.startswith("made ")}
    assert set(said) == {name for name, rest in ran if rest.startswith("made ")}, "what is made has a reason"
    return said


def append(path: str) -> Edit:
    def edit(workspace: Workspace) -> None:
        with (workspace.directory / path).open("ab") as stream:
            stream.write(b"#more\n")

    return edit


def damage(path: str, text: str) -> Edit:
    return lambda workspace: (workspace.directory / f"{path}.made.json").write_text(text)


def unlink(*paths: str) -> Edit:
    def edit(workspace: Workspace) -> None:
        for path in paths:
            (workspace.directory / path).unlink(missing_ok=True)

    return edit


def rewrite(path: str) -> Edit:
    def edit(workspace: Workspace) -> None:
        target = workspace.directory / path
        data, mode = target.read_bytes(), target.stat().st_mode
        target.unlink()
        target.write_bytes(data)
        target.chmod(mode)

    return edit


def touch(*paths: str, seconds: float) -> Edit:
    moment = time.time() + seconds

    def edit(workspace: Workspace) -> None:
        for path in paths:
            os.utime(workspace.directory / path, (moment, moment))

    return edit


def replace_in(path: str, old: str, new: str) -> Edit:
    def edit(workspace: Workspace) -> None:
        target = workspace.directory / path
        text = target.read_text()
        assert old in text
        target.write_text(text.replace(old, new))

    return edit


def same_size(path: str) -> Edit:
    """Other bytes, the same size, and the time of modification put back."""

    def edit(workspace: Workspace) -> None:
        target = workspace.directory / path
        facts = target.stat()
        with target.open("r+b") as stream:
            first = stream.read(1)[0]
            stream.seek(0)
            stream.write(bytes([first ^ 1]))
        os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    return edit


def moved(workspace: Workspace) -> None:
    workspace.store.root.rename(workspace.directory / "elsewhere")
    workspace.environment["TOPCOAT_ROOT"] = str(workspace.directory / "elsewhere")


RECORDS = tuple(f"{path}.made.json" for path in (KEY, INITRD, DISK))
EVERYTHING = (ZBI, BLK, ZBI_TOOL, FVM_TOOL, KEY, f"{KEY}.pub", INITRD, DISK, *RECORDS)
REMADE_KEY = {"InitrdWithKey": "input key/sshid changed: "}

TABLE: dict[str, tuple[Edit, dict[str, str]]] = {
    "nothing": (lambda _: None, {}),
    "source zbi edited": (append(ZBI), {"InitrdWithKey": "input zbi changed: b3:"}),
    "source blk edited": (append(BLK), {"ExtendedBlk": "input blk changed: b3:"}),
    "source edited, time and size as before": (same_size(ZBI), {"InitrdWithKey": "input zbi changed: b3:"}),
    "sources touched": (touch(ZBI, BLK, seconds=0), {}),
    "source rewritten with the same bytes": (rewrite(ZBI), {}),
    "everything touched": (touch(*EVERYTHING, seconds=1), {}),
    "times set back": (touch(*EVERYTHING, seconds=-1e8), {}),
    "clock was ahead when all was made": (touch(*EVERYTHING, seconds=1e7), {}),
    "zbi replaced": (append(ZBI_TOOL), {"InitrdWithKey": "tool zbitool changed: b3:"}),
    "fvm replaced": (append(FVM_TOOL), {"ExtendedBlk": "tool fvm changed: b3:"}),
    "key edited": (append(KEY), {"SSHKeyPair": "output sshid changed", **REMADE_KEY}),
    "public key edited": (same_size(f"{KEY}.pub"), {"SSHKeyPair": "output sshid.pub changed", **REMADE_KEY}),
    "initrd edited": (append(INITRD), {"InitrdWithKey": "output ssh-fuchsia.zbi changed"}),
    "disk edited, time and size as before": (same_size(DISK), {"ExtendedBlk": "output extended-fvm.blk changed"}),
    "key deleted": (unlink(KEY), {"SSHKeyPair": "output sshid missing", **REMADE_KEY}),
    "public key deleted": (unlink(f"{KEY}.pub"), {"SSHKeyPair": "output sshid.pub missing", **REMADE_KEY}),
    "initrd deleted": (unlink(INITRD), {"InitrdWithKey": "output ssh-fuchsia.zbi missing"}),
    "disk and record deleted": (unlink(DISK, f"{DISK}.made.json"), {"ExtendedBlk": "missing"}),
    "record of the key deleted": (unlink(f"{KEY}.made.json"), {"SSHKeyPair": "no record", **REMADE_KEY}),
    "record of the initrd deleted": (unlink(f"{INITRD}.made.json"), {"InitrdWithKey": "no record"}),
    "record of the disk corrupt": (append(f"{DISK}.made.json"), {"ExtendedBlk": "record damaged"}),
    "record empty": (
        damage(INITRD, ""),
        {"InitrdWithKey": "record damaged"},
    ),
    "record half": (
        damage(INITRD, "{}"),
        {"InitrdWithKey": "record damaged"},
    ),
    "record newer": (
        replace_in(f"{DISK}.made.json", '"schema": 1', '"schema": 2'),
        {"ExtendedBlk": "record of schema 2"},
    ),
    "made by an older version of the task": (
        replace_in(f"{INITRD}.made.json", '"version": 1', '"version": 0'),
        {"InitrdWithKey": "version 0 -> 1"},
    ),
    "store moved": (moved, {}),
    "cache of digests lost": (unlink("out/cache/digests.json"), {}),
}


@pytest.mark.parametrize("name", TABLE)
def test_edit(prepared: Workspace, name: str) -> None:
    edit, expected = TABLE[name]
    edit(prepared)
    ran = reasons(prepared)
    assert set(ran) == set(expected)
    for task, reason in expected.items():
        assert ran[task].startswith(reason)
    assert reasons(prepared) == {}, "and then it is fresh"


def test_a_parameter_makes_its_artifact_stale(prepared: Workspace) -> None:
    outcome = prepared.luigi("ExtendedBlk", "--length", "4M")
    assert "ExtendedBlk: parameter length 3G -> 4M" in outcome.text
    prepared.configure((prepared.directory / "luigi.cfg").read_text() + "[SSHKeyPair]\ntype = rsa\n")
    ran = reasons(prepared)
    assert ran["SSHKeyPair"] == "parameter type ed25519 -> rsa"
    assert ran["ExtendedBlk"] == "parameter length 4M -> 3G"


def test_a_rebuild_that_yields_the_same_makes_nothing_downstream_stale(prepared: Workspace) -> None:
    """A key pair that comes out equal: played by giving it its old record back."""
    record = prepared.directory / f"{KEY}.made.json"
    kept = record.read_text()
    record.write_text(kept.replace('"version": 1', '"version": 0'))
    (prepared.directory / "equal.py").write_text(
        "import tasks\nfrom pipeline.publish import publish_bytes\n"
        "def make(self):\n"
        "    for path in self.artifacts():\n"
        f"        publish_bytes(path, open('{prepared.directory}/' + path.name, 'rb').read(), 0o600)\n"
        "tasks.SSHKeyPair.make = make\n"
    )
    for name in ("sshid", "sshid.pub"):
        shutil.copy(prepared.store.keys / name, prepared.directory)
    prepared.environment["PYTHONPATH"] = str(prepared.directory)
    outcome = prepared.run("luigi", "--module", "equal", "InitrdWithKey")
    assert outcome.status == 0, outcome.text
    assert "SSHKeyPair: version 0 -> 1" in outcome.text
    assert "InitrdWithKey" not in outcome.text


@pytest.mark.parametrize("count", [2, 4])
def test_several_at_once_make_it_once(bundle: Workspace, count: int) -> None:
    """Luigi itself would refuse the same command a second time, so it is told not to look."""
    command = bundle.command("luigi", "--module", "tasks", "InitrdWithKey", "--no-lock")
    running = [
        subprocess.Popen(command, cwd=bundle.directory, env=bundle.environment, stderr=subprocess.PIPE)
        for _ in range(count)
    ]
    texts = [process.communicate(timeout=60)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * count, texts
    for task in ("SSHKeyPair", "InitrdWithKey"):
        assert sum(text.count(f"{task}: made") for text in texts) == 1


KILL = """
import os, signal, tasks
from pipeline import freshness, publish, prepare
step = os.environ["KILL_AT"]
def dead(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if step == "before temp": prepare.publish = dead
if step == "after tool": prepare.require_output = dead
if step == "after rename": freshness.write = dead
if step == "before record": freshness.publish_json = dead
"""


@pytest.mark.parametrize("step", ["before temp", "after tool", "after rename", "before record"])
@pytest.mark.parametrize("again", [False, True], ids=["first time", "remaking"])
def test_killed_while_making(prepared: Workspace, step: str, again: bool) -> None:
    if again:
        append(ZBI)(prepared)
    else:
        unlink(INITRD, f"{INITRD}.made.json")(prepared)
    (prepared.directory / "kill.py").write_text(KILL)
    killed = prepared.run("luigi", "--module", "kill", "InitrdWithKey", environment={"KILL_AT": step})
    assert killed.status == -signal.SIGKILL
    assert not (prepared.directory / f"{INITRD}.made.json").exists()
    assert set(reasons(prepared)) == {"InitrdWithKey"}
    assert [name for name in prepared.files() if ".tmp" in name] == []
    assert reasons(prepared) == {}


class TestInstance:
    """A running instance is compared with what a boot would make now."""

    @pytest.fixture
    def running(self, bundle: Workspace) -> Workspace:
        assert bundle.luigi("BootInstance").status == 0
        return bundle

    @pytest.mark.parametrize(
        ("edit", "reason"),
        [
            (append(ZBI), "initrd is stale: input zbi changed: b3:"),
            (append(BLK), "disk is stale: input blk changed: b3:"),
            (append("bundle/target/x64/multiboot.bin"), "input kernel changed: b3:"),
            (append("bundle/qemu-for-fuchsia/bin/qemu-system-x86_64"), "tool qemu changed: b3:"),
            (replace_in("luigi.cfg", "[qemu]\n", "[qemu]\nmemory = 1024\n"), "parameter memory default -> 1024"),
            (replace_in("luigi.cfg", "[qemu]\n", "[qemu]\nrestrict = off\n"), "parameter restrict True -> False"),
            (unlink(INITRD), "initrd is stale: output ssh-fuchsia.zbi missing"),
            (unlink(ZBI), "zbi is missing"),
        ],
    )
    def test_stale(self, running: Workspace, edit: Edit, reason: str) -> None:
        before = running.instance().live_handle()
        edit(running)
        outcome = running.luigi("BootInstance")
        assert outcome.status == 30, outcome.text
        assert f"error: i0 is running, but it is not what a boot would make now: {reason}" in outcome.text
        assert "hint: to stop it and boot anew: luigi --module tasks BootInstance --name i0 --replace" in outcome.text
        assert "made" not in outcome.text
        assert running.instance().live_handle() == before, "it is not touched"

    @pytest.mark.parametrize("edit", [touch(ZBI, BLK, seconds=0), rewrite(ZBI), unlink("out/cache/digests.json")])
    def test_fresh(self, running: Workspace, edit: Edit) -> None:
        edit(running)
        outcome = running.luigi("BootInstance", "--replace")
        assert outcome.status == 0
        assert "made" not in outcome.text
        assert "stopping" not in outcome.text

    def test_replace_stops_it_and_boots_the_new_one(self, running: Workspace) -> None:
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

    def test_replace_boots_what_is_not_running(self, bundle: Workspace) -> None:
        assert bundle.luigi("BootInstance", "--replace").status == 0
        assert bundle.instance().live_handle()


def test_with_everything_fresh_nothing_heavy_is_imported(bundle: Workspace) -> None:
    assert bundle.luigi("BootInstance").status == 0
    words = ["luigi", "--module", "tasks", "BootInstance"]
    program = f"import sys; sys.argv = {words}\nfrom luigi.cmdline import luigi_run\n"
    program += "try: luigi_run()\nexcept SystemExit as end: print(end.code, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=bundle.directory, env=bundle.environment, capture_output=True, check=True
    )
    code, *modules = done.stdout.decode().split()
    assert code == "0"
    assert not {"paramiko", "sh", "rich", "matplotlib", "cryptography", "lz4", "zstandard"} & set(modules)


def test_no_path_of_the_machine_is_in_a_record(prepared: Workspace) -> None:
    for record in RECORDS:
        text = (prepared.directory / record).read_text()
        assert "/" not in text.replace("key/sshid", "")
        assert json.loads(text)["schema"] == 1


def test_source_of_every_make_is_known_with_its_version() -> None:
    """When this fails: does the task make something else of the same inputs now? Then raise its version."""
    import inspect
    from hashlib import sha256

    import tasks
    from pipeline import prepare
    from tasks.base import ArtifactTask

    parts = {"InitrdWithKey": prepare.make_initrd, "ExtendedBlk": prepare.make_disk}
    found = {}
    for name in tasks.__all__:
        task = getattr(tasks, name)
        if issubclass(task, ArtifactTask):
            sources = [inspect.getsource(part) for part in (task.make, *filter(None, [parts.get(name)]))]
            found[name] = (task.version, sha256("".join(sources).encode()).hexdigest()[:8])
    frozen = Path(__file__).with_name("versions.json")
    assert {name: list(facts) for name, facts in found.items()} == json.loads(frozen.read_text())
