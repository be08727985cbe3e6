"""Handles, liveness and states of instances."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UnknownInstance, UsageError
from pipeline.host.locks import locked
from pipeline.host.process import Process
from pipeline.settings import Store
from pipeline.ssh.address import Address
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance, check_name
from pipeline.vm.qemu.stopping import stop
from tests.waiting import SOON

SAMPLE = {
    "schema": 3,
    "seal": "e66c5a359b707e1c709fd4c98aed5bb5664ee8622163e07e99d01645170ea5bb",
    "name": "i0",
    "boot_id": "6ed5b97c4d0d497abbc50ccdd8f53e66",
    "build": "demo",
    "started": "2026-11-23T17:53:35Z",
    "argv": ["/usr/bin/qemu-system-x86_64", "-append", "a b"],
    "process": {"pid": 5068, "start_ticks": 252982, "host_boot_id": "3823c65e-360a-4355-8ba9-527abce0a6ac"},
    "accelerator": "tcg",
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


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    found = Instance.named(Store(tmp_path / "out"), "i0")
    found.directory.mkdir(parents=True)
    return found


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
    return replace(Handle.decode(json.dumps(SAMPLE).encode()), process=process)


def test_the_frozen_sample_is_understood_and_written_again_unchanged(instance: Instance) -> None:
    handle = Handle.decode(json.dumps(SAMPLE).encode())
    assert handle.ssh == Address("127.0.0.1", 40103, "clusterfuchsia", "/the store/日本語/sshid", "ssh-ed25519 AAAA")
    instance.publish_handle(handle)
    assert json.loads(instance.handle_file.read_text()) == SAMPLE
    assert instance.handle_file.stat().st_mode & 0o777 == 0o600
    here = replace(handle.ssh, key=str(instance.key))
    assert instance.handle() == replace(handle, ssh=here), "its key is where it is, wherever the store was"


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        json.dumps({**SAMPLE, "schema": 2}),
        json.dumps({**SAMPLE, "boot_id": "another"}),
        json.dumps({key: value for key, value in SAMPLE.items() if key != "seal"}),
        json.dumps({**SAMPLE, "process": {}}),
        json.dumps({**SAMPLE, "ssh": None}),
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
    live = instance.live_handle()
    assert live
    assert live.process == qemu
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
    assert stop(instance, 3) == "not running"


def test_stop_ends_the_process_and_keeps_the_logs(instance: Instance, qemu: Process) -> None:
    instance.publish_handle(handle_for(qemu))
    instance.serial_log.write_text("kept")
    instance.overlay.write_text("not kept")
    assert stop(instance, 3) == "SIGTERM"
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


def test_qemu_s_lock_is_seen_by_other_processes_only(instance: Instance) -> None:
    """A lock of one's own does not count, which is why QEMU's liveness is asked from outside."""
    with instance.pidfile.open("w+") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX)
        stream.write(str(os.getpid()))
        stream.flush()
        probe = "import sys; from pathlib import Path; from pipeline.host.locks import locked_by_someone as f;"
        probe += "sys.exit(not f(Path(sys.argv[1])))"
        assert subprocess.run([sys.executable, "-c", probe, instance.pidfile], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ('{"schema": 2}\n{"event": "spawn", "seconds": 0.1}\n', None),
        ('{"schema": 2}\n{"event": "spawn", "seconds": 0.1}\n{"event": "ready", "seconds": 2.5}\n', 2.5),
        ('{"schema": 2}\n{"event": "ready", "sec', None),
        ('{"schema": 2}\n[]\n', None),
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
    assert stop(instance, 3, Handle.decode(json.dumps(SAMPLE).encode())) == "not running"
    assert instance.overlay.exists()
