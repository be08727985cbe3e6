"""The real QEMU, the real Linux guest, and all that is done to them: nothing is left, and the next boot works."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.host.process import Process
from tests.conftest import Workspace, processes_with, qemus_of
from tests.tasks.runs import KILLING, in_a_namespace
from tests.waiting import SOON, eventually

KILL = f"""
{KILLING}
from pipeline.builds import prepare
from pipeline.vm.instance import Instance
from pipeline.vm.qemu import disk, launcher, machine
if step == "making a key": prepare.ssh_keys = None; __import__("tasks.prepare").prepare.SSHKeyPair.make = dead
if step == "adding the key": prepare.require_output = dead
if step == "extending the disk": prepare.free_bytes = dead
if step == "trying sockets": launcher.require_sockets = dead
if step == "making the overlay": disk.publish = dead
if step == "starting QEMU": machine._detach = then_dead(machine._detach)
if step == "starting the keeper": launcher.boot.__globals__["keeper"].start = dead
if step == "writing the handle": Instance.publish_handle = dead
if step == "after the handle": Instance.publish_handle = then_dead(Instance.publish_handle)
"""

IN_PREPARE = ["making a key", "adding the key", "extending the disk"]
IN_BOOT = [
    "trying sockets", "making the overlay", "starting QEMU", "starting the keeper", "spawn", "port", "first byte",
    "marker", "tcp", "banner", "auth", "echo", "writing the handle",
]  # fmt: skip
IN_CLONE = [
    "making the overlay", "starting QEMU", "starting the keeper", "spawn", "port", "restored", "renewed", "marker",
    "writing the handle",
]  # fmt: skip
IN_RUN = ["after the handle", "ready"]


def assert_nothing_is_left(workspace: Workspace) -> None:
    """Neither processes, nor sockets, nor files of instances but logs, nor half-made files."""
    eventually(lambda: not processes_with(bytes(workspace.store.root)))  # a keeper ends after its QEMU
    logs = ("serial.log", "qemu.log", "timeline.jsonl")
    files = [Path(name) for name in workspace.files()]
    assert [str(file) for file in files if ".tmp" in str(file)] == []
    assert [str(file) for file in files if file.parts[0] == "instances" and not file.name.startswith(logs)] == []


def garbage(workspace: Workspace, *options: str) -> list[dict[str, Any]]:
    """What `topcoat gc` says."""
    told = workspace.topcoat("gc", "--json", *options)
    assert told.status == 0, told.text
    rows: list[dict[str, Any]] = json.loads(told.stdout)["items"]
    return rows


def kill_at(workspace: Workspace, step: str, warm: str = "auto") -> None:
    workspace.module("kill", KILL)
    words = ("luigi", "--module", "kill", "BootInstance", "--warm", warm)
    killed = workspace.run(*words, environment={"KILL_AT": step})
    assert killed.status == -signal.SIGKILL, f"{step}: {killed.text}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("steps", "warm"),
    [(IN_PREPARE, "never"), (IN_BOOT[:7], "never"), (IN_BOOT[7:], "never"), (IN_CLONE, "auto")],
    ids=["preparing", "booting", "logging in", "cloning"],
)
def test_luigi_killed_at_one_step_after_the_other(demo: Workspace, steps: list[str], warm: str) -> None:
    """Nothing of a killed run is in the way of the next: each gets further than the one before, and the last boots."""
    for step in steps:
        if step in IN_PREPARE:
            for name in ("keys/sshid", "images/demo/extended-fvm.blk"):
                (demo.store.root / name).unlink(missing_ok=True)
        kill_at(demo, step, warm)
        assert all(row["reclaimed"] or row["spared"] for row in garbage(demo, "--yes")), step
        assert_nothing_is_left(demo)
        assert garbage(demo) == [], step
    again = demo.luigi("BootInstance", "--ready", "marker")
    assert again.status == 0, again.text
    assert demo.instance().live_handle()


@pytest.mark.parametrize("step", IN_RUN)
def test_luigi_killed_when_the_guest_runs(demo: Workspace, step: str) -> None:
    kill_at(demo, step)
    left = [row["kind"] for row in garbage(demo)]
    assert left == [], "the guest runs, and its handle says so; only luigi has ended"
    assert demo.topcoat("ssh", "i0", "--", "true").status == 0
    assert demo.luigi("BootInstance").status == 0


def test_a_second_kill_in_the_next_boot_and_no_gc_at_all(demo: Workspace) -> None:
    kill_at(demo, "port")
    kill_at(demo, "marker")
    assert demo.luigi("BootInstance", "--ready", "marker").status == 0
    assert len(qemus_of(demo.directory)) == 1
    assert demo.topcoat("stop", "i0").status == 0
    assert_nothing_is_left(demo)


@pytest.fixture
def running(demo: Workspace) -> Iterator[tuple[Workspace, Process]]:
    assert demo.luigi("BootInstance").status == 0
    handle = demo.instance().live_handle()
    assert handle
    yield demo, handle.process
    handle.process.send(signal.SIGKILL)


def test_qemu_killed(running: tuple[Workspace, Process]) -> None:
    demo, process = running
    process.send(signal.SIGKILL)
    assert process.wait(SOON)
    refused = demo.topcoat("ssh", "i0", "--", "true")
    assert (refused.status, refused.stderr.startswith(b"error: i0 is not running (stopped)")) == (2, True)
    assert demo.topcoat("stop", "i0").stdout == b"i0: was not running\n"
    assert_nothing_is_left(demo)
    assert demo.luigi("BootInstance", "--ready", "marker").status == 0


def test_qemu_killed_and_gc(running: tuple[Workspace, Process]) -> None:
    demo, process = running
    process.send(signal.SIGKILL)
    assert process.wait(SOON)
    assert [row["kind"] for row in garbage(demo, "--yes")] == ["disk"]
    assert_nothing_is_left(demo)
    assert b"{{{reset}}}" in demo.topcoat("logs", "i0").stdout, "its logs stay"
    assert demo.topcoat("gc", "--yes", "--keep", "0").status == 0
    assert not demo.instance().directory.exists()


def test_qemu_stopped_by_a_signal(running: tuple[Workspace, Process]) -> None:
    demo, process = running
    process.send(signal.SIGSTOP)
    refused = demo.topcoat("ssh", "i0", "--", "true")
    assert refused.status == 30
    assert "it has been stopped by a signal" in refused.text
    stopped = demo.topcoat("stop", "i0")
    assert stopped.stdout == b"i0: stopped by SIGKILL; it took neither QEMU's quit command nor SIGTERM\n"
    assert_nothing_is_left(demo)


def test_qemu_killed_while_it_boots(demo: Workspace) -> None:
    with subprocess.Popen(
        demo.command("luigi", "--module", "tasks", "BootInstance", "--warm", "never"),
        cwd=demo.directory,
        env=demo.environment,
        stderr=subprocess.PIPE,
    ) as boot:
        timeline = demo.instance().timeline
        eventually(lambda: timeline.exists() and "port" in timeline.read_text())
        (qemu,) = qemus_of(demo.directory)
        qemu.send(signal.SIGKILL)
        _, said = boot.communicate(timeout=60)
    assert boot.returncode == 30
    assert "i0: QEMU died while the guest booted (waiting for the marker)" in said.decode()
    assert_nothing_is_left(demo)


def test_a_guest_that_fills_the_disk(demo: Workspace) -> None:
    """QEMU pauses it; who wants to talk to it is told why, and it can be stopped."""
    demo.store.instances.mkdir()
    status, said = in_a_namespace(
        demo,
        'mount -t tmpfs -o size=24m none "$ROOT/instances"',
        "luigi --module tasks BootInstance || exit 1",
        "timeout 20 topcoat ssh i0 -- 'dd if=/dev/urandom of=/dev/vda bs=1M count=40 && sync'",
        "topcoat ssh i0 -- true && exit 2",
        "topcoat stop i0 || exit 3",
        "luigi --module tasks BootInstance --name i1 --ready marker || exit 4",
        "topcoat stop i1",
    )
    assert status == 0, said
    assert "QEMU has paused the guest: its disk is full" in said
    assert "i0: stopped" in said
    assert_nothing_is_left(demo)


def test_a_disk_that_is_too_full_for_a_boot(demo: Workspace) -> None:
    demo.store.instances.mkdir()
    status, said = in_a_namespace(
        demo, 'mount -t tmpfs -o size=8m none "$ROOT/instances"', "luigi --module tasks BootInstance"
    )
    assert status == 30
    assert "is full: 8 MiB are free, 16 MiB are wanted\n  hint: free some space" in said
    assert "Traceback" not in said
    assert_nothing_is_left(demo)


def test_a_store_that_becomes_read_only_while_a_guest_runs(demo: Workspace) -> None:
    """The guest is stopped all the same, and what could not be removed is told."""
    assert demo.luigi("BootInstance").status == 0
    status, said = in_a_namespace(
        demo,
        'mount --bind "$ROOT" "$ROOT" && mount -o remount,bind,ro "$ROOT"',
        "topcoat ssh i0 -- true || exit 2",
        "topcoat stop i0; echo stopped with $?",
        "luigi --module tasks BootInstance; echo booted with $?",
        "topcoat gc; echo collected with $?",
    )
    assert status == 0, said
    assert "stopped with 30" in said
    assert "booted with 20" in said
    assert "collected with 0" in said
    assert "Read-only file system" in said
    assert "Traceback" not in said
    assert qemus_of(demo.directory) == []
    assert demo.topcoat("gc", "--yes").status == 0
    assert_nothing_is_left(demo)


@pytest.mark.timeout(600)
def test_twenty_boots_at_once_by_twenty_processes(demo: Workspace) -> None:
    """Some with arguments that QEMU refuses: no verdict is another one's, and no port is given twice."""
    (demo.directory / "refused.cfg").write_text("[qemu]\narguments = -no-such-option\n")
    names = [f"n{number}" for number in range(20)]
    refused = names[::5]
    running = {
        name: subprocess.Popen(
            demo.command("luigi", "--module", "tasks", "BootInstance", "--name", name),
            cwd=demo.directory,
            env={**demo.environment, **({"LUIGI_CONFIG_PATH": "refused.cfg"} if name in refused else {})},
            stderr=subprocess.PIPE,
        )
        for name in names
    }
    said = {name: process.communicate(timeout=500)[1].decode() for name, process in running.items()}
    for name, process in running.items():
        assert process.returncode == (30 if name in refused else 0), said[name]
        assert ("QEMU refuses its arguments: " in said[name]) == (name in refused)
    rows = json.loads(demo.topcoat("instances", "--json").stdout)["instances"]
    assert {row["name"] for row in rows if row["state"] == "running"} == set(names) - set(refused)
    ports = [row["port"] for row in rows if row["port"]]
    assert len(set(ports)) == len(ports) == 16
    for name in ("n1", "n19"):
        assert demo.topcoat("ssh", name, "--", "hostname").stdout.decode().strip() == name
    assert demo.topcoat("stop", "--all").status == 0
    assert_nothing_is_left(demo)


def test_a_guest_that_floods_its_serial_port_does_not_fill_the_disk(demo: Workspace) -> None:
    demo.configure("[boot]\nlog_size = 64K\n")
    assert demo.luigi("BootInstance").status == 0
    log = demo.instance().serial_log
    older = log.with_name("serial.log.1")
    flood = "i=0; while [ $i -lt 6000 ]; do i=$((i+1)); echo line $i of the flood; done >/dev/ttyS0"
    assert demo.topcoat("ssh", "i0", "--", flood).status == 0
    eventually(older.exists)
    assert log.stat().st_size < 256 << 10
    kept = demo.topcoat("logs", "i0").stdout
    assert kept.count(b"of the flood") > 1000
    assert b"\0" not in kept, "QEMU writes on at the end of the shortened file"
    assert demo.topcoat("ssh", "i0", "--", "echo after the flood >/dev/ttyS0").status == 0
    eventually(lambda: b"after the flood" in demo.topcoat("logs", "i0").stdout)
    assert demo.topcoat("stop", "i0").status == 0
    assert_nothing_is_left(demo)
