"""A QEMU that root starts, and that becomes somebody else: who it is then, and what it has."""

import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.settings import QemuSettings
from pipeline.vm.handle import Handle
from pipeline.vm.qemu.command_line import SANDBOX, Files, command, with_run_with, without_sandbox
from pipeline.vm.qemu.user import require_user
from tests.conftest import Workspace, new_workspace, prepare_demo
from tests.vm.qemu.playing import PATIENT, Played
from tests.vm.qemu.test_command_line import BOOT_ID, FILES
from tests.vm.qemu.test_command_line import guest as linux
from tests.waiting import eventually

USER = "nobody"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a QEMU that becomes another user")


def words(files: Files = FILES, **settings: str) -> tuple[str, ...]:
    guest = linux("demo")
    return command(guest, "tcg", QemuSettings(**settings), files, BOOT_ID)  # type: ignore[arg-type]


def test_the_command_line() -> None:
    allowed = SANDBOX[1].replace("elevateprivileges=deny", "elevateprivileges=allow")
    assert allowed != SANDBOX[1]
    plain, argv = words(), words(user=USER)
    at = argv.index("-runas")
    assert argv[at : at + 4] == ("-runas", USER, "-sandbox", allowed)
    assert (*argv[:at], *SANDBOX, *argv[at + 4 :]) == plain
    assert without_sandbox(argv) == (*argv[: at + 2], *argv[at + 4 :])
    assert with_run_with(argv) == (*argv[:at], "-run-with", f"user={USER}", *argv[at + 2 :])


@pytest.mark.parametrize(
    ("name", "uid", "message", "hint"),
    [
        ("no-such-user", 0, "this host has no user of that name", "useradd --system"),
        ("0:0", 0, "this host has no user of that name", "useradd --system"),
        ("root", 0, "that is root itself", "nothing else uses"),
        (USER, 1000, "only root can start", "leave [qemu] user out"),
    ],
)
def test_refusals(monkeypatch: pytest.MonkeyPatch, name: str, uid: int, message: str, hint: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(SettingsError) as caught:
        require_user(name)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_refused_user_is_told_before_anything_is_made(bundle: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(bundle, monkeypatch, PATIENT.replace("[qemu]", "[qemu]\nuser = no-such-user"))
    with pytest.raises(SettingsError):
        played.launcher().start()
    assert played.remains() == []


def test_a_qemu_that_knows_no_runas_any_more(bundle: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    played = Played(bundle, monkeypatch, PATIENT.replace("[qemu]", f"[qemu]\nuser = {USER}"))
    played.play("no-runas")
    played.launcher().start().close()
    process = bundle.instance().require_live().process
    assert f"-run-with user={USER} -sandbox on," in process.command
    assert "-runas" not in process.command


def test_the_instance_s_directory_which_qemu_has_open_is_no_other_user_s(
    bundle: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        Played(bundle, monkeypatch).launcher().start().close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(bundle.instance().directory.stat().st_mode) == stat.S_IRWXU


@pytest.fixture(scope="module")
def given_away(tmp_path_factory: pytest.TempPathFactory, demo_parts: Path) -> Iterator[Workspace]:
    """A workspace with the real guest i0, in a directory that the user of its QEMU cannot enter."""
    directory = tmp_path_factory.mktemp("given")
    directory.chmod(0o700)
    with new_workspace(directory / "work") as made:
        prepare_demo(made, demo_parts)
        made.configure(f"[qemu]\nuser = {USER}\n")
        done = made.luigi("BootInstance")
        assert done.status == 0, done.text
        yield made


@pytest.fixture
def handle(given_away: Workspace) -> Handle:
    return given_away.instance().require_live()


@as_root
@pytest.mark.timeout(400)
class TestReal:
    def test_all_its_threads_are_that_user_without_any_capability(self, handle: Handle) -> None:
        uid = str(pwd.getpwnam(USER).pw_uid)
        for thread in Path(f"/proc/{handle.process.pid}/task").iterdir():
            facts = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
            assert facts["Uid"].split() == [uid] * 4
            assert "0" not in facts["Gid"].split() + facts["Groups"].split()
            assert {int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
            assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")

    def test_nobody_of_that_user_gets_at_keys_disk_sockets_or_the_process(
        self, given_away: Workspace, handle: Handle
    ) -> None:
        process, instance = Path(f"/proc/{handle.process.pid}"), given_away.instance()
        wanted = [
            *(given_away.store.keys / "sshid", instance.key, instance.overlay, instance.pidfile, instance.serial_log),
            *(instance.qmp_socket, process / "environ", process / "mem", process / "fd"),
        ]
        assert all(path.exists() for path in wanted)
        script = "".join(f"! test -r '{path}' && ! test -w '{path}' && " for path in wanted)
        subprocess.run(
            ["sh", "-c", f"{script} true"], user=USER, group=pwd.getpwnam(USER).pw_gid, extra_groups=[], check=True
        )

    def test_its_guest_works_and_ends_as_every_other(self, given_away: Workspace) -> None:
        written = given_away.topcoat("ssh", "i0", "--", "echo mine | dd of=/dev/vda bs=1M seek=100 conv=fsync && sync")
        assert written.status == 0, written.text
        assert given_away.instance().overlay.stat().st_size > 1 << 18
        assert given_away.topcoat("stop", "i0").stdout == b"i0: stopped\n"
        again = given_away.luigi("BootInstance")
        assert again.status == 0, again.text
        given_away.topcoat("ssh", "i0", "--", "poweroff -f")
        eventually(lambda: given_away.instance().state() == "stopped")
        assert "i0" in given_away.topcoat("gc", "--yes").text
        assert not given_away.instance().has_remains
