"""Warm boots with the real QEMU and the real Linux guest: clones are guests of their own, and nothing wrong is used."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko.kex_curve25519 import KexCurve25519

from pipeline.settings import Timeouts
from pipeline.ssh.connection import connect
from pipeline.store.digests import digest
from pipeline.vm import sockets
from pipeline.vm.template import Template
from tests.conftest import Workspace, qemus_of
from tests.tasks.runs import KILLING, in_a_namespace
from tests.tasks.test_faults_real import assert_nothing_is_left
from tests.waiting import eventually

LOOK = "hostname; cat /etc/boot_id; date +%s; head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid"


def template(demo: Workspace) -> Template:
    return Template(demo.store.template("demo"))


def attempts(demo: Workspace, name: str = "i0") -> list[str]:
    """How each attempt of the last boot was made."""
    lines = [json.loads(line) for line in demo.instance(name).timeline.read_text().splitlines()]
    return [line["how"] for line in lines if line.get("event") == "attempt"]


def events(demo: Workspace, name: str = "i0") -> list[dict[str, Any]]:
    return [json.loads(line) for line in demo.instance(name).timeline.read_text().splitlines()]


def boot(demo: Workspace, *words: str, name: str = "i0") -> str:
    done = demo.luigi("BootInstance", "--name", name, *words)
    assert done.status == 0, done.text
    return done.text


def own_memory(demo: Workspace) -> Path:
    """The memory of the template, which all tests share, as a file of this test's own."""
    ram = template(demo).directory / "ram"
    shared = ram.resolve()
    ram.unlink()
    subprocess.run(["cp", "--sparse=always", shared, ram], check=True)
    return ram


def unrecorded(demo: Workspace) -> None:
    """Have the template made anew."""
    Path(f"{template(demo).file}.made.json").unlink()


def shown_keys(demo: Workspace, name: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The key that the guest's SSH server has made for this one session."""
    seen: list[bytes] = []
    real = KexCurve25519._parse_kexecdh_reply  # type: ignore[attr-defined]  # noqa: SLF001

    def parse(kex: KexCurve25519, message: paramiko.Message) -> None:
        reply = paramiko.Message(message.asbytes())
        reply.get_string()
        seen.append(reply.get_string())
        real(kex, message)

    monkeypatch.setattr(KexCurve25519, "_parse_kexecdh_reply", parse)
    # Newer servers, such as Debian 13's, know others that would be chosen
    monkeypatch.setattr(paramiko.Transport, "_preferred_kex", ("curve25519-sha256@libssh.org",))
    handle = demo.instance(name).require_running()
    with connect(handle.ssh, Timeouts().scaled(5), 60):
        pass
    monkeypatch.undo()
    assert len(seen[0]) == 32
    return seen[0]


def test_clones_are_guests_of_their_own(demo: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a", "b", "c")
    for name in names:
        boot(demo, name=name)
        assert attempts(demo, name) == ["clone"]
        assert {"restored", "renewed", "marker", "banner", "echo", "ready"} <= {
            line.get("event") for line in events(demo, name)
        }
    keys = {shown_keys(demo, name, monkeypatch) for name in names}
    assert len(keys) == 3, "the SSH servers of clones choose their own keys"
    said = [demo.topcoat("ssh", name, "--", LOOK).stdout.decode().split() for name in names]
    hosts, boot_ids, dates, randoms, _, uuids = zip(*said, strict=True)
    assert hosts == names
    assert boot_ids == tuple(demo.instance(name).require_running().boot_id for name in names)
    assert all(abs(time.time() - int(date)) < 60 for date in dates), "the proof of the template is stricter"
    assert len({*randoms, *uuids}) == 6
    facts = template(demo).facts()
    for name in names:
        log = demo.instance(name).serial_log.read_bytes()
        assert log.startswith((template(demo).directory / "serial.log").read_bytes())
        assert f"the template that was saved at {facts.saved} ---".encode() in log
        assert demo.instance(name).overlay.stat().st_blocks * 512 < 2 << 20
    assert demo.topcoat("stop", "--all").status == 0
    assert_nothing_is_left(demo)


def asked(gate: Path, line: bytes) -> bytes:
    """What a program that waits at the gate answers."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        sockets.connect(client, gate)
        client.sendall(line)
        answer = b""
        while not answer.endswith(b"\n"):
            answer += client.recv(4096)
        return answer.strip()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"77cd new 1700000000000000000 %s\n" % (b"0f" * 32), b"renewed 77cd"),
        (b"77cd new 1700000000000000000 %s\n" % (b"0f" * 31), b"failed: the seed"),
        (b"77cd new 1700000000000000000 %s\n" % (b"0F" * 32), b"failed: the seed"),
        (b"77cd new yesterday %s\n" % (b"0f" * 32), b"failed: the time"),
        (b"77cd new\n", b"failed: the line"),
        (b"\n", b"failed: the line"),
        (b"x" * 300 + b" new 1 2\n", b"failed: the line"),
    ],
)
def test_a_guest_renews_by_a_whole_line_only(booted: Workspace, line: bytes, answer: bytes) -> None:
    shell = ("ssh", "i0", "--")
    assert booted.topcoat(*shell, "renew /dev/ttyS1 /tmp/renewed").status == 0
    assert asked(booted.instance("i0").gate, line) == answer
    done = booted.topcoat(*shell, "hostname; cat /tmp/renewed; date +%s")
    said = done.stdout.decode().split()
    renewed = answer.startswith(b"renewed")
    assert (said[:2] == ["new", "77cd"]) == renewed
    assert (renewed and 0 <= int(said[2]) - 1700000000 < 60) or not renewed
    assert booted.topcoat(*shell, "rm -f /tmp/renewed; hostname i0").status == 0


def test_a_dry_run_tells_whether_it_would_be_a_clone(demo: Workspace) -> None:
    said = "it is made as a clone of the template; if that fails, it is booted:\n"
    assert said in demo.topcoat("boot", "--dry-run").text
    assert said not in demo.topcoat("boot", "--dry-run", "--warm", "never").text
    assert json.loads(demo.topcoat("boot", "--dry-run", "--json").stdout)["how"] == "clone"
    unrecorded(demo)
    assert json.loads(demo.topcoat("boot", "--dry-run", "--json").stdout)["how"] == "boot"
    assert said in demo.topcoat("boot", "--dry-run", "--warm", "always").text


def test_a_template_is_never_written_to(demo: Workspace) -> None:
    own_memory(demo)
    before = {path: digest(path) for path in template(demo).files}
    for name in ("a", "b"):
        boot(demo, name=name)
    dirty = "dd if=/dev/urandom of=/tmp/dirty bs=1M count=40; dd if=/dev/urandom of=/dev/vda bs=1M count=20 seek=500"
    assert demo.topcoat("ssh", "a", "--", f"{dirty}; sync").status == 0
    count = r"ls /tmp; dd if=/dev/vda bs=1M count=20 skip=500 2>/dev/null | tr -d '\0' | wc -c"
    kept = demo.topcoat("ssh", "b", "--", count)
    assert kept.stdout == b"0\n", "nor does another clone see any of it"
    assert {path: digest(path) for path in template(demo).files} == before
    unrecorded(demo)
    boot(demo, name="c")
    assert attempts(demo, "c") == ["boot"]
    assert demo.topcoat("ssh", "a", "--", "md5sum /tmp/dirty").status == 0, "it lives without its template too"


def edit(ram: Path) -> None:
    with ram.open("r+b") as stream:
        stream.write(b"edited")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed": edit,
    "truncated": lambda ram: os.truncate(ram, 1000),
    "missing": lambda ram: ram.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_memory_no_clone_is_made(demo: Workspace, damage: str) -> None:
    DAMAGES[damage](own_memory(demo))
    said = boot(demo)
    what = "missing" if damage == "missing" else "changed"
    assert f"i0: it is booted, not cloned: its template is stale: output ram {what}" in said
    assert attempts(demo) == ["boot"]


def test_a_changed_image_makes_it_stale_and_never_is_obeyed(demo: Workspace) -> None:
    boot(demo, "--warm", "never", name="cold")
    assert attempts(demo, "cold") == ["boot"]
    demo.configure("[qemu]\nmemory = 400\n")
    said = boot(demo)
    assert "its template is stale: parameter memory default -> 400" in said
    assert attempts(demo) == ["boot"]
    why = demo.topcoat("why", "BootTemplate").text
    assert "parameter memory default -> 400" in why


def test_always_makes_the_template_first(demo: Workspace) -> None:
    unrecorded(demo)
    said = boot(demo, "--warm", "always")
    assert "BootTemplate: no record" in said
    assert attempts(demo) == ["clone"]
    refused = demo.luigi("BootInstance", "--name", "x", "--warm", "always", "--ready", "marker")
    assert (refused.status, "no clone can be made: nothing can prove" in refused.text) == (2, True), refused.text
    assert "Traceback" not in refused.text


QEMU = """\
#!/bin/sh
case "$*" in *-incoming*) . ./../../../how ;; esac
exec qemu-system-x86_64 "$@"
"""
HOW = {
    "refuses": ('set -- "$@" -smp 2', "not restored", True),
    "ends": ("exit 1", "QEMU ended", False),
}


@pytest.mark.parametrize("how", HOW)
def test_a_clone_that_fails_is_booted_instead(demo: Workspace, how: str) -> None:
    """And no more clones are tried, unless the host was at fault."""
    script, cause, doubted = HOW[how]
    qemu = demo.directory / "qemu"
    qemu.write_text(QEMU)
    qemu.chmod(0o755)
    (demo.directory / "how").write_text("")
    demo.configure(f"[build]\nqemu = {qemu}\n")
    made = demo.luigi("BootTemplate")
    assert made.status == 0, made.text
    (demo.directory / "how").write_text(f"{script}\n")
    said = boot(demo)
    assert "i0: it is booted instead, for its clone failed: " in said
    assert attempts(demo) == ["clone", "boot"]
    (failed,) = (line for line in events(demo) if line.get("event") == "failed")
    assert str(failed["cause"]).startswith(cause)
    assert len(qemus_of(demo.directory)) == 1
    (demo.directory / "how").write_text("")
    boot(demo, name="next")
    assert attempts(demo, "next") == (["boot"] if doubted else ["clone"])
    if doubted:
        assert "a clone of it failed at" in demo.topcoat("why", "BootTemplate").text
        again = demo.luigi("BootTemplate")
        assert again.status == 0, again.text
        boot(demo, name="last")
        assert attempts(demo, "last") == ["clone"]


def test_an_instance_of_its_maker_s_name_is_left_alone(demo: Workspace) -> None:
    boot(demo, name="template-demo")
    unrecorded(demo)
    refused = demo.luigi("BootTemplate")
    assert refused.status == 30, refused.text
    assert "template-demo is running, and has the name that the maker of a template needs" in refused.text
    assert demo.topcoat("ssh", "template-demo", "--", "true").status == 0


KILLED = """
import os, signal, tasks
from pipeline.vm.qemu.qmp import Monitor
real = Monitor.wait_for
def wait_for(monitor, *events, limit):
    if "MIGRATION completed" in events: os.kill(monitor.peer, signal.SIGKILL)
    real(monitor, *events, limit=limit)
Monitor.wait_for = wait_for
"""


def test_a_qemu_that_is_killed_while_it_restores(demo: Workspace) -> None:
    demo.module("killed", KILLED)
    done = demo.run("luigi", "--module", "killed", "BootInstance")
    assert done.status == 0, done.text
    assert "i0: it is booted instead, for its clone failed: " in done.text
    assert attempts(demo) == ["clone", "boot"]
    boot(demo, name="next")
    assert attempts(demo, "next") == ["clone"], "the template is not at fault"


KILL = f"""
{KILLING}
from pipeline.store import freshness
from pipeline.vm.qemu import migration, proving, saving
if step == "saving": migration.save = dead
if step == "saved": migration.save = then_dead(migration.save)
if step == "ending": saving.stop_qemu = dead
if step == "describing": saving.publish_json = dead
if step == "proving": proving.prove = dead
if step == "publishing": freshness.write = dead
"""
STEPS = ("marker", "saving", "saved", "ending", "describing", "restored", "renewed", "proving", "publishing")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("steps", [STEPS[:5], STEPS[5:]], ids=["saving", "proving"])
def test_the_maker_killed_at_one_step_after_the_other(demo: Workspace, steps: tuple[str, ...]) -> None:
    unrecorded(demo)
    demo.module("kill", KILL)
    for step in steps:
        killed = demo.run("luigi", "--module", "kill", "BootTemplate", environment={"KILL_AT": step})
        assert killed.status == -signal.SIGKILL, f"{step}: {killed.text}"
        eventually(lambda: qemus_of(demo.directory) == [])
        assert demo.topcoat("gc", "--yes").status == 0
        assert_nothing_is_left(demo)
        boot(demo)
        assert attempts(demo) == ["boot"], step
        assert demo.topcoat("stop", "i0").status == 0
    made = demo.luigi("BootTemplate")
    assert made.status == 0, made.text
    boot(demo)
    assert attempts(demo) == ["clone"]
    assert not any(path.name.startswith("template") for path in demo.store.instances.iterdir() if path.is_dir())


def test_without_room_for_the_memory_it_says_so_and_guests_are_booted(demo: Workspace) -> None:
    unrecorded(demo)
    status, said = in_a_namespace(
        demo,
        'mount -t tmpfs -o size=300m none "$ROOT/templates"',
        "luigi --module tasks BootTemplate",
        'echo "status $?"',
        "luigi --module tasks BootInstance && topcoat stop i0",
    )
    assert status == 0, said
    assert "a template needs room for the guest's memory" in said
    assert "status 30" in said
    assert "there is no template yet" in said
    assert "Traceback" not in said


def test_a_disk_that_becomes_full_while_it_is_saved(demo: Workspace) -> None:
    """QEMU dies by SIGBUS, without a word."""
    unrecorded(demo)
    fill = "while ! ls $ROOT/templates/demo/.*/ram; do sleep 0.02; done; head -c 1G /dev/zero >$ROOT/templates/fill"
    status, said = in_a_namespace(
        demo,
        'mount -t tmpfs -o size=600m none "$ROOT/templates"',
        f"({fill}) >/dev/null 2>&1 &",
        "luigi --module tasks BootTemplate",
    )
    assert status == 30, said
    assert "Traceback" not in said
    assert "hint: " in said
    assert qemus_of(demo.directory) == []


@pytest.mark.timeout(900)
def test_clones_are_made_while_their_template_is_made_again(demo: Workspace) -> None:
    """Each is a clone of the one or of the other, or booted; none is a mixture of both."""
    own_memory(demo)
    making = demo.command("luigi", "--module", "tasks", "BootTemplate")
    unrecorded(demo)
    with subprocess.Popen(making, cwd=demo.directory, env=demo.environment, stderr=subprocess.PIPE) as process:
        count = 0
        while process.poll() is None or count < 4:
            boot(demo, name=f"i{count}")
            count += 1
            assert count < 100
        assert process.stderr
        said = process.stderr.read().decode()
    assert process.returncode == 0, said
    hows = [attempts(demo, f"i{number}") for number in range(count)]
    assert all(how in (["boot"], ["clone"]) for how in hows), hows
    assert hows[-1] == ["clone"]
    shutil.rmtree(template(demo).directory)
    for number in range(count):
        assert demo.topcoat("ssh", f"i{number}", "--", "cat /etc/boot_id").status == 0


@pytest.mark.timeout(900)
def test_sixteen_at_once_whose_template_is_made_again_meanwhile(demo: Workspace) -> None:
    """Some have the old one open, others find none, and boot: all become guests of their own."""
    own_memory(demo)
    names = [f"i{number}" for number in range(16)]
    commands = [demo.command("luigi", "--module", "tasks", "BootInstance", "--name", name) for name in names]
    with ExitStack() as held:
        processes = [
            held.enter_context(
                subprocess.Popen(command, cwd=demo.directory, env=demo.environment, stderr=subprocess.PIPE)
            )
            for command in commands
        ]
        eventually(lambda: any(demo.instance(name).timeline.exists() for name in names))
        unrecorded(demo)
        made = demo.luigi("BootTemplate")
        said = [process.communicate(timeout=600)[1].decode() for process in processes]
    assert made.status == 0, made.text
    assert [process.returncode for process in processes] == [0] * 16, said
    hows = [attempts(demo, name) for name in names]
    assert all(how in (["boot"], ["clone"], ["clone", "boot"]) for how in hows), hows
    assert ["clone"] in hows
    shutil.rmtree(template(demo).directory)
    boot_ids = {demo.topcoat("ssh", name, "--", "cat /etc/boot_id").stdout.decode().strip() for name in names}
    assert boot_ids == {demo.instance(name).require_running().boot_id for name in names}
    assert len(boot_ids) == 16
