"""A running instance that is stale: told, spared, and replaced when that is asked for."""

import subprocess
import sys

import pytest

from tests.conftest import Workspace, qemus_of
from tests.tasks.edits import BLK, INITRD, KERNEL, KEY, ZBI, Edit, append, configure, rewrite, unlink
from tests.tasks.runs import REFUSED, reasons


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
    bundle.module(
        "edit",
        "import tasks\nfrom pipeline.vm.qemu import boot\nreal = boot._Boot._until_ready\n"
        "def wait(self, process):\n"
        f"    open('{bundle.directory / KERNEL}', 'ab').write(b'more')\n"
        "    return real(self, process)\n"
        "boot._Boot._until_ready = wait\n",
    )
    outcome = bundle.run("luigi", "--module", "edit", "BootInstance")
    assert outcome.status == 30
    assert "error: i0 was booted, but meanwhile something has changed: input kernel changed: b3:" in outcome.text
    assert "--name i0 --replace" in outcome.text
    assert "Traceback" not in outcome.text


def test_a_guest_that_ends_as_soon_as_it_is_ready_is_told(bundle: Workspace) -> None:
    """Played by a module that ends it then."""
    bundle.module(
        "end",
        "import tasks\nfrom pipeline.vm.qemu import launcher\nreal = launcher.boot\n"
        "def boot_and_end(plan, *rest):\n"
        "    handle = real(plan, *rest)\n"
        "    handle.process.send(9)\n    handle.process.wait(60)\n"
        "    return handle\n"
        "launcher.boot = boot_and_end\n",
    )
    outcome = bundle.run("luigi", "--module", "end", "BootInstance")
    assert outcome.status == 30
    assert "error: i0 was ready, and ended at once\n  hint: see its last words: topcoat logs i0" in outcome.text
    assert "Traceback" not in outcome.text


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
    assert not {"pipeline.ssh.session", "pipeline.vm.qemu.boot", "pipeline.images.fvm", "pipeline.builds.proof"} & set(
        modules
    )
