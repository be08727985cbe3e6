"""Handles, liveness and states of instances."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreError, UnknownInstance, UsageError
from pipeline.instance import SSH, Handle, Instance, check_name
from pipeline.process import Process
from pipeline.publish import locked
from pipeline.settings import Store
from tests.waiting import SOON

SAMPLE = {
    "schema": 2,
    "seal": "f7185fdd135394e2238ad79c5894783bdbb9be19af962d616987b029b2f7abed",
    "name": "i0",
    "boot_id": "6ed5b97c4d0d497abbc50ccdd8f53e66",
    "build": "demo",
    "started": "2026-11-23T17:53:35Z",
    "argv": ["/usr/bin/qemu-system-x86_64", "-append", "a b"],
    "process": {"pid": 5068, "start_ticks": 252982, "host_boot_id": "3823c65e-360a-4355-8ba9-527abce0a6ac"},
    "sockets": "/tmp/topcoat-0/4e63a45be8f8",
    "ssh": {
        "host": "127.0.0.1",
        "port": 40103,
        "user": "clusterfuchsia",
        "key": "/the store/日本語/sshid",
        "host_key": "ssh-ed25519 AAAA",
    },
    "made_of": {
        "task": "BootInstance",
        "version": 1,
        "parameters": {"memory": "default"},
        "inputs": {"disk": "b3s:00ff"},
        "tools": {"qemu": "b3:1234"},
    },
}
"""Frozen: what earlier versions have written must be understood. A change of the format is a new schema."""


FIRST_SAMPLE = {key: value for key, value in {**SAMPLE, "schema": 1}.items() if key != "seal"}
"""Frozen: the same, as the first version has written it."""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    found = Instance.named(Store(tmp_path / "out"), "i0")
    found.directory.mkdir(parents=True)
    yield found
    found.remove_sockets()


@pytest.fixture
def qemu(instance: Instance) -> Iterator[Process]:
    """A process that holds the pidfile of the instance as QEMU does."""
    program = (
        "import fcntl, os, sys, time; f = open(sys.argv[1], 'w+'); fcntl.lockf(f, fcntl.LOCK_EX);"
        "f.write(str(os.getpid())); f.flush(); print('up', flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", program, instance.pidfile], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"up\n"
        process = Process.find(holder.pid)
        assert process
        yield process
        holder.kill()


def handle_for(process: Process) -> Handle:
    return replace(Handle.decode(SAMPLE), process=process)


def test_the_frozen_sample_is_understood_and_written_again_unchanged(instance: Instance) -> None:
    handle = Handle.decode(SAMPLE)
    assert handle.ssh == SSH("127.0.0.1", 40103, "clusterfuchsia", "/the store/日本語/sshid", "ssh-ed25519 AAAA")
    instance.publish_handle(handle)
    assert json.loads(instance.handle_file.read_text()) == SAMPLE
    assert instance.handle_file.stat().st_mode & 0o777 == 0o600
    assert instance.handle() == handle


def test_the_first_frozen_sample_is_understood(instance: Instance) -> None:
    assert Handle.decode(FIRST_SAMPLE) == Handle.decode(SAMPLE)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        json.dumps({**SAMPLE, "schema": 3}),
        json.dumps({**SAMPLE, "boot_id": "another"}),
        json.dumps({key: value for key, value in SAMPLE.items() if key != "seal"}),
        json.dumps({**SAMPLE, "process": {}}),
        json.dumps({**SAMPLE, "ssh": None}),
        json.dumps({**FIRST_SAMPLE, "surplus": 1}),
        json.dumps({key: value for key, value in SAMPLE.items() if key != "argv"}),
    ],
)
def test_a_handle_that_cannot_be_understood_makes_the_instance_broken(instance: Instance, damage: str) -> None:
    instance.handle_file.write_text(damage)
    with pytest.raises(ValueError, match=r"."):
        instance.handle()
    assert instance.state() == "broken"
    assert instance.live_handle() is None


def test_an_instance_lives_while_the_very_process_holds_its_pidfile(instance: Instance, qemu: Process) -> None:
    instance.publish_handle(handle_for(qemu))
    assert instance.state() == "running"
    assert instance.live_handle() == handle_for(qemu)
    os.kill(qemu.pid, 9)
    assert qemu.wait(SOON)
    assert instance.state() == "stopped"
    assert instance.live_handle() is None


def test_a_handle_for_another_process_does_not_live(instance: Instance, qemu: Process) -> None:
    for forged in (
        replace(qemu, pid=os.getpid()),
        replace(qemu, start_ticks=qemu.start_ticks + 1),
        replace(qemu, host_boot_id="another boot"),
    ):
        instance.publish_handle(handle_for(forged))
        assert instance.state() == "broken"


def test_a_process_with_the_pid_but_without_the_lock_does_not_live(instance: Instance) -> None:
    myself = Process.find(os.getpid())
    assert myself
    instance.pidfile.write_text(str(os.getpid()))
    instance.publish_handle(handle_for(myself))
    assert instance.state() == "stopped"


def test_stop_never_signals_a_stranger(instance: Instance) -> None:
    """The pidfile of a QEMU that was killed stays, and its pid may be anybody's: here our own."""
    instance.pidfile.write_text(str(os.getpid()))
    assert instance.stop(3) == "not running"


def test_stop_ends_the_process_and_keeps_the_logs(instance: Instance, qemu: Process) -> None:
    instance.publish_handle(handle_for(qemu))
    instance.serial_log.write_text("kept")
    instance.overlay.write_text("not kept")
    assert instance.stop(3) == "SIGTERM"
    assert not qemu.alive
    assert [path.name for path in instance.directory.iterdir()] == ["serial.log"]
    assert instance.state() == "stopped"


def test_an_instance_that_is_being_booted_says_so(instance: Instance) -> None:
    with locked(instance.directory):
        assert instance.state() == "booting"
    assert instance.state() == "stopped"


def test_all_instances_are_listed_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert Instance.all(store) == []
    for name in ("b", "a", ".hidden"):
        (store.instances / name).mkdir(parents=True)
    (store.instances / "file").touch()
    assert [instance.name for instance in Instance.all(store)] == ["a", "b"]


def test_an_unknown_instance_is_told_with_the_known_ones(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UnknownInstance) as nothing:
        Instance.existing(store, "c")
    assert "BootInstance" in nothing.value.hint
    (store.instances / "a").mkdir(parents=True)
    with pytest.raises(UnknownInstance) as other:
        Instance.existing(store, "c")
    assert other.value.hint == "there are: a"


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "ä", "a\n", "x" * 64])
def test_names_that_could_leave_the_store_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@given(st.text(max_size=70))
def test_whatever_name_is_accepted_stays_one_path_component(name: str) -> None:
    try:
        check_name(name)
    except UsageError:
        return
    assert Path("/store", name).parent == Path("/store")
    assert not name.startswith((".", "-"))


def test_sockets_are_short_and_plain_wherever_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Instance("i0", tmp_path / ("x, y" * 40))
    for temporary in ("", "relative", "/with blank", "/a,b", "/" + "x" * 100, "/short"):
        monkeypatch.setenv("TMPDIR", temporary)
        path = str(deep.sockets)
        assert len(path) < 100
        assert not set(path) & set(" ,")
    assert path.startswith("/short/")
    assert deep.sockets != Instance("i1", tmp_path).sockets


def test_where_no_sockets_can_be_made_the_hint_is_about_that_place(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/proc")
    with pytest.raises(StoreError, match="/proc") as caught:
        instance.make_sockets()
    assert "TMPDIR" in f"{caught.value.message} {caught.value.hint}"
    assert "[store]" not in caught.value.hint


def test_the_directory_of_sockets_must_be_ours(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's own directories are too long for sockets
    base = tempfile.TemporaryDirectory(dir="/tmp")
    monkeypatch.setenv("TMPDIR", base.name)
    made = instance.make_sockets()
    assert made.is_relative_to(base.name)
    assert made.stat().st_mode & 0o777 == 0o700
    assert (instance.directory / "run").resolve() == made
    instance.remove_sockets()
    made.parent.chmod(0o777)
    with pytest.raises(StoreError, match="belongs to somebody else"):
        instance.make_sockets()
    made.parent.rmdir()
    made.parent.symlink_to("/tmp")
    with pytest.raises(StoreError, match="belongs to somebody else"):
        instance.make_sockets()
    monkeypatch.undo()
    base.cleanup()


def test_qemu_s_lock_is_seen_by_other_processes_only(instance: Instance) -> None:
    """A lock of one's own does not count, which is why QEMU's liveness is asked from outside."""
    with instance.pidfile.open("w+") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX)
        stream.write(str(os.getpid()))
        stream.flush()
        probe = "import sys; from pathlib import Path; from pipeline.process import locked_by_someone as f;"
        probe += "sys.exit(not f(Path(sys.argv[1])))"
        assert subprocess.run([sys.executable, "-c", probe, instance.pidfile], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ('{"schema": 1}\n{"event": "spawn", "seconds": 0.1}\n', None),
        ('{"schema": 1}\n{"event": "spawn", "seconds": 0.1}\n{"event": "ready", "seconds": 2.5}\n', 2.5),
        ('{"schema": 1}\n{"event": "ready", "sec', None),
        ('{"schema": 1}\n[]\n', None),
    ],
    ids=["none", "empty", "failed", "ready", "cut off", "damaged"],
)
def test_what_the_last_boot_took(instance: Instance, text: str | None, seconds: float | None) -> None:
    instance.directory.mkdir(parents=True, exist_ok=True)
    if text is not None:
        instance.timeline.write_text(text)
    assert instance.boot_seconds() == seconds


def test_stopping_a_boot_that_is_another_by_now_does_nothing(instance: Instance) -> None:
    instance.directory.mkdir(parents=True, exist_ok=True)
    instance.overlay.touch()
    assert instance.stop(3, Handle.decode(SAMPLE)) == "not running"
    assert instance.overlay.exists()
