"""Guests by `undercoat`: started, looked at, stopped, whoever has written their handle."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.host.process import Process
from pipeline.settings import Store
from pipeline.store.digests import digest
from pipeline.undercoat import guest
from pipeline.undercoat.handle import ConnectorPart, HandleFile, LauncherPart, UndercoatHandle
from pipeline.vm.instance import Instance
from tests.cleaning import CLEANERS, Cleaner, age
from tests.conftest import Outcome, Workspace, qemus_of
from tests.fakes import sshd
from tests.waiting import SOON


@pytest.fixture
def caller(bundle: Workspace) -> Workspace:
    """Somebody who knows only undercoat: a bundle, a TMPDIR, and no store."""
    return with_tmpdir(bundle)


def with_tmpdir(workspace: Workspace) -> Workspace:
    temporary = workspace.directory / "tmp"
    temporary.mkdir()
    workspace.environment["TMPDIR"] = str(temporary)
    return workspace


def temporary(workspace: Workspace) -> Path:
    return Path(workspace.environment["TMPDIR"])


@contextmanager
def started(workspace: Workspace) -> Iterator[Path]:
    outcome = workspace.run("undercoat", "start_instance")
    assert outcome.status == 0, outcome.text
    assert re.fullmatch(rb"\S+\n", outcome.stdout), "one word, whatever the tools have printed"
    path = Path(outcome.stdout.decode().strip())
    try:
        yield path
    finally:
        workspace.run("undercoat", "stop_instance", "-handle", str(path))
        assert qemus_of(workspace.directory) == []


def call(workspace: Workspace, name: str, handle: Path, *words: str) -> Outcome:
    return workspace.run("undercoat", name, "-handle", str(handle), *words)


def process_of(path: Path) -> Process:
    found = HandleFile(path).read().process
    assert found
    return found


def test_l8_a_life(caller: Workspace) -> None:
    with started(caller) as path:
        assert path.parent == temporary(caller)
        handle = HandleFile(path).read()
        handle.require_whole()
        assert process_of(path).alive
        assert handle.launcher.directory.startswith(str(temporary(caller)))
        logs = call(caller, "get_logs", path)
        assert (logs.status, b"{{{reset}}}" in logs.stdout) == (0, True)
        stopped = call(caller, "stop_instance", path)
        assert (stopped.status, stopped.stdout) == (0, b"")
        assert not process_of_dead(handle).alive
        assert list(Path(handle.launcher.directory).parent.iterdir()) == []
        assert not path.exists()
        again = call(caller, "stop_instance", path)
        assert (again.status, b"Bad handle: " in again.stdout) == (1, True)
    left = [entry.name for entry in temporary(caller).iterdir()]
    assert all(name.startswith(("topcoat-", "undercoat-store-")) for name in left), left


@pytest.mark.parametrize("clean", CLEANERS)
def test_nothing_that_a_running_guest_needs_is_cleaned_up(caller: Workspace, clean: Cleaner) -> None:
    """In TMPDIR, which may be a /tmp where what is ten days old is deleted every day."""
    with started(caller) as path:
        age(temporary(caller))
        before = {entry for entry in temporary(caller).rglob("*") if entry.suffix != ".lock"}
        (temporary(caller) / "of-another-program").touch()
        age(temporary(caller))
        clean(temporary(caller))
        assert before <= set(temporary(caller).rglob("*"))
        assert not (temporary(caller) / "of-another-program").exists()
        assert call(caller, "get_logs", path).status == 0
        assert call(caller, "stop_instance", path).status == 0
    age(temporary(caller))
    clean(temporary(caller))
    assert list(temporary(caller).iterdir()) == [], "once no guest runs it is nobody's any more"


def process_of_dead(handle: UndercoatHandle) -> Process:
    assert handle.process
    return handle.process


def nobody_was_told(caller: Workspace, process: "subprocess.Popen[bytes]") -> str:
    """What `start_instance` has said, once it is over and nothing runs."""
    said = process.communicate(timeout=100)[1].decode()
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert qemus_of(caller.directory) == []
    assert [path.name for path in temporary(caller).rglob("*handle*")] == []
    return said


def start_instance(caller: Workspace, stdout: int) -> "subprocess.Popen[bytes]":
    words = caller.command("undercoat", "start_instance")
    return subprocess.Popen(words, cwd=caller.directory, env=caller.environment, stdout=stdout, stderr=subprocess.PIPE)


def test_a_guest_whose_handle_cannot_be_written_is_stopped_again(caller: Workspace) -> None:
    with open("/dev/full", "wb") as full:
        said = nobody_was_told(caller, start_instance(caller, full.fileno()))
    assert "InitrdWithKey: made" in said
    assert "so the guest was stopped again: No space left on device" in said


def test_a_guest_whose_reader_goes_while_it_boots_is_stopped_again(caller: Workspace) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as read:
        process = start_instance(caller, writer)
        os.close(writer)
        assert process.stderr
        process.stderr.readline()  # it has begun
        read.close()
    assert "so the guest was stopped again: Broken pipe" in nobody_was_told(caller, process)


def test_without_anybody_to_be_told_nothing_is_booted(caller: Workspace) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone:
        said = nobody_was_told(caller, start_instance(caller, gone.fileno()))
    assert "the handle of a guest is told on standard output, and its reader has gone" in said
    assert "made" not in said
    words = ["sh", "-c", 'exec "$@" >&-', "sh", *caller.command("undercoat", "start_instance")]
    process = subprocess.Popen(words, cwd=caller.directory, env=caller.environment, stderr=subprocess.PIPE)
    said = nobody_was_told(caller, process)
    assert "the handle of a guest is told on standard output, and it is closed" in said
    assert "made" not in said


def test_a_second_guest_finds_the_images_prepared(caller: Workspace) -> None:
    with started(caller):
        outcome = caller.run("undercoat", "start_instance")
        assert ": made " not in outcome.text
        handle = outcome.stdout.decode().strip()
        assert caller.run("undercoat", "stop_instance", "-handle", handle).status == 0


def images(workspace: Workspace) -> dict[str, str]:
    (store,) = temporary(workspace).glob("undercoat-store-*")
    kept = [path for name in ("keys", "images") for path in (store / name).rglob("*") if path.is_file()]
    return {path.name: digest(path) for path in kept if path.suffix not in (".json", ".lock")}


def test_l6_what_is_prepared_stays_as_it_is(caller: Workspace) -> None:
    with started(caller):
        before = images(caller)
    assert sorted(before) == ["extended-fvm.blk", "ssh-fuchsia.zbi", "sshid", "sshid.pub"]
    with started(caller):
        assert images(caller) == before


def test_l7_a_lost_key_makes_a_new_pair_and_a_new_zbi(caller: Workspace) -> None:
    with started(caller):
        before = images(caller)
    (key,) = temporary(caller).glob("undercoat-store-*/keys/sshid")
    key.unlink()
    with started(caller):
        after = images(caller)
    assert {name for name in before if before[name] != after[name]} == {"sshid", "sshid.pub", "ssh-fuchsia.zbi"}


def test_i1_a_handle_is_the_same_until_the_guest_is_stopped(caller: Workspace) -> None:
    with started(caller) as path:
        whole = path.read_bytes()
        assert call(caller, "get_logs", path).status == 0
        assert path.read_bytes() == whole
        assert call(caller, "stop_instance", path).status == 0
        gone = call(caller, "get_logs", path)
        assert (gone.status, b"Bad handle: " in gone.stdout) == (1, True)


def test_i3_a_guest_that_runs_is_not_started_again(caller: Workspace) -> None:
    with started(caller) as path:
        name = Path(HandleFile(path).read().launcher.directory).name
        caller.environment["TOPCOAT_ROOT"] = str(Path(HandleFile(path).read().launcher.directory).parents[1])
        process = process_of(path)
        assert caller.luigi("BootInstance", "--name", name).status == 0, "what is there is what is wanted"
        assert process.alive


def hasty(caller: Workspace) -> None:
    """Wait less long for a guest that never comes up."""
    config = caller.directory / "luigi.cfg"
    config.write_text(config.read_text().replace("timeout = 60\n[qemu]", "timeout = 8\n[qemu]"))


@pytest.fixture
def server(caller: Workspace) -> Iterator[sshd.Server]:
    """Where the guest's SSH server seems to be; ready means SSH."""
    caller.configure("[boot]\ntimeout = 60\n[qemu]\naccel = tcg\n[tools]\nproof = off\nzbi = build\nfvm = build\n")
    store = temporary(caller) / f"undercoat-store-{os.getuid()}"
    store.mkdir(mode=0o700)
    assert caller.luigi("SSHKeyPair", TOPCOAT_ROOT=str(store)).status == 0
    with sshd.running((store / "keys/sshid.pub").read_text().strip()) as running:
        caller.environment["QEMU_FAKE_PORT"] = str(running.port)
        yield running


def test_i6_a_guest_that_refuses_at_first_is_waited_for(caller: Workspace, server: sshd.Server) -> None:
    server.refusals = 4
    with started(caller) as path:
        assert process_of(path).alive
        assert server.accepted > 4


@pytest.mark.parametrize("fault", ["close", "no exec"])
def test_i7_a_guest_that_cannot_be_entered_is_no_guest(
    caller: Workspace, server: sshd.Server, fault: sshd.Fault
) -> None:
    server.fault = fault
    hasty(caller)
    outcome = caller.run("undercoat", "start_instance")
    assert outcome.status == 1
    assert outcome.stdout.startswith(b"Error executing command: undercoat-")
    assert qemus_of(caller.directory) == []
    assert list(temporary(caller).glob("undercoat-store-*/instances/*")) == []


def test_i5_a_guest_that_dies_after_its_marker_is_told(caller: Workspace, server: sshd.Server) -> None:
    server.fault = "close"
    caller.environment["QEMU_FAKE"] = "marker-die"
    outcome = caller.run("undercoat", "start_instance")
    assert outcome.status == 1
    assert b"Error executing command: " in outcome.stdout
    assert qemus_of(caller.directory) == []


@pytest.mark.parametrize("part", ["refuse", "die", "silent"])
def test_i4_l4_l5_a_guest_that_does_not_come_up(caller: Workspace, part: str) -> None:
    caller.environment["QEMU_FAKE"] = part
    hasty(caller)
    outcome = caller.run("undercoat", "start_instance")
    assert outcome.status == 1
    assert outcome.stdout.startswith(b"Error executing command: ")
    assert qemus_of(caller.directory) == []
    assert [name for name in temporary(caller).iterdir() if name.suffix == ".handle"] == []
    assert list(temporary(caller).glob("undercoat-store-*/instances/*")) == []


@pytest.mark.parametrize("key", ["zbi", "blk", "kernel", "qemu", "zbitool", "fvm"])
def test_l3_a_missing_file_is_told_on_stdout(caller: Workspace, key: str) -> None:
    config = caller.directory / "luigi.cfg"
    config.write_text(config.read_text() + f"[build]\n{key} = /nowhere/{key}\n")
    outcome = caller.run("undercoat", "start_instance")
    assert outcome.status == 1
    assert f"Error executing command: the build's {key} is missing: /nowhere/{key}".encode() in outcome.stdout
    assert qemus_of(caller.directory) == []


def test_a_build_that_is_broken_by_now_does_not_keep_a_guest_from_being_stopped(caller: Workspace) -> None:
    with started(caller) as path:
        caller.environment["FUCHSIA_RESOURCES_DIR"] = "/nowhere"
        assert call(caller, "get_logs", path).status == 0
        assert call(caller, "stop_instance", path).status == 0


def test_e11_logs_of_a_guest_that_has_died(caller: Workspace) -> None:
    with started(caller) as path:
        process_of(path).send(signal.SIGKILL)
        assert process_of(path).wait(SOON)
        logs = call(caller, "get_logs", path)
        assert (logs.status, b"{{{reset}}}" in logs.stdout) == (0, True)


@pytest.mark.parametrize("keep", ["pid", "pid and directory", "without identity"])
def test_e12_i2_a_minimal_handle_stops_its_guest(caller: Workspace, keep: str) -> None:
    with started(caller) as path:
        data = json.loads(path.read_text())
        process = process_of(path)
        if keep != "without identity":
            data = {"LauncherType": "QemuLauncher", "Launcher": data["Launcher"]}
        if keep == "pid":
            del data["Launcher"]["TmpDir"]
        data.pop("Topcoat", None)
        path.write_text(json.dumps(data))
        if keep != "without identity":
            refused = call(caller, "get_logs", path)
            assert (refused.status, b"not found in handle" in refused.stdout) == (1, True)
        assert call(caller, "stop_instance", path).status == 0
        assert not process.alive
        assert not path.exists()


def test_a_stranger_with_the_pid_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as stranger:
        try:
            for directory in ("", str(tmp_path / "clusterfuchsia-qemu-1")):
                file = HandleFile.create(UndercoatHandle(ConnectorPart(), LauncherPart(stranger.pid, directory)))
                guest.stop(file)
                assert not file.path.exists()
                assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_guest_of_the_original_is_ended_and_its_directory_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = tmp_path / "clusterfuchsia-qemu-42"
    directory.mkdir()
    (directory / "qemu.log").write_text("x")
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(0o755)
    with subprocess.Popen([program, "-serial", f"file:{directory}/qemu.log"], stdin=subprocess.PIPE) as qemu:
        file = HandleFile.create(UndercoatHandle(ConnectorPart(), LauncherPart(qemu.pid, str(directory))))
        guest.stop(file)
        assert qemu.wait(SOON) == -signal.SIGKILL
    assert not directory.exists()


def test_another_boot_of_the_name_is_left_alone(caller: Workspace) -> None:
    with started(caller) as path:
        handle = HandleFile(path).read()
        other = path.with_name("undercoat_other.handle")
        other.write_text(json.dumps({**handle.encode(), "Topcoat": {"BootId": "another", "HostBootId": "h"}}))
        assert call(caller, "stop_instance", other).status == 0
        assert process_of(path).alive
        assert not other.exists()


def test_tmpdir_must_be_there(caller: Workspace) -> None:
    caller.environment["TMPDIR"] = "/nowhere/tmp"
    outcome = caller.run("undercoat", "start_instance")
    assert (outcome.status, b"TMPDIR=/nowhere/tmp is no directory" in outcome.stdout) == (1, True)


def test_a_store_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store = tmp_path / f"undercoat-store-{os.getuid()}"
    store.mkdir()
    store.chmod(0o777)
    with pytest.raises(StoreError, match="others may write to it"):
        guest.settle_store({})
    store.chmod(0o700)
    environment: dict[str, str] = {}
    guest.settle_store(environment)
    assert environment == {"TOPCOAT_ROOT": str(store)}
    guest.settle_store(environment := {"TOPCOAT_ROOT": "/x"})
    assert environment == {"TOPCOAT_ROOT": "/x"}


def test_e1_the_real_guest(demo: Workspace) -> None:
    demo.environment["TOPCOAT_ROOT"] = str(demo.store.root)
    with started(with_tmpdir(demo)) as path:
        assert path.parent == temporary(demo)
        before = call(demo, "get_logs", path).stdout
        assert b"{{{reset}}}" in before
        (instance,) = [one for one in Instance.all(Store(demo.store.root)) if one.name.startswith("undercoat-")]
        assert demo.topcoat("ssh", instance.name, "--", "echo ok").stdout == b"ok\n"


@pytest.mark.parametrize("way", ["the original's", "a link", "an instance", "up"])
def test_nothing_is_deleted_that_is_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Whatever a handle says: only in the store and in TMPDIR."""
    monkeypatch.setenv("TOPCOAT_ROOT", str(tmp_path / "store"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    precious = tmp_path / ("instances/i0" if way == "an instance" else "undercoat-precious")
    precious.mkdir(parents=True)
    (precious / "file").touch()
    said = precious
    if way == "a link":
        said = temporary / "undercoat-link"
        said.symlink_to(precious)
    if way == "up":
        said = temporary / ".." / "undercoat-precious"
    guest.stop(HandleFile.create(UndercoatHandle(ConnectorPart(directory=str(said)), LauncherPart(0, str(said)))))
    assert (precious / "file").exists()
