"""Preparing images: what is made, when it is made again, and by how many."""

import socket
import subprocess

from pipeline.images import cpio
from tests.conftest import Workspace


def made(workspace: Workspace, *words: str) -> list[str]:
    outcome = workspace.luigi(*words)
    assert outcome.status == 0, outcome.text
    return sorted(line.split(":")[0] for line in outcome.text.splitlines() if ": made " in line)


def test_each_image_is_made_once(bundle: Workspace) -> None:
    assert made(bundle, "InitrdWithKey") == ["InitrdWithKey", "SSHKeyPair"]
    assert made(bundle, "ExtendedBlk") == ["ExtendedBlk"]
    assert made(bundle, "InitrdWithKey") == []
    assert made(bundle, "ExtendedBlk") == []


def test_the_tools_are_called_as_fuchsia_s_own_launcher_calls_them(bundle: Workspace) -> None:
    made(bundle, "InitrdWithKey")
    made(bundle, "ExtendedBlk", "--length", "5M")
    public = (bundle.store.keys / "sshid.pub").read_bytes()
    images = bundle.store.images("clusterfuzz")
    entries = list(cpio.decode((images / "ssh-fuchsia.zbi").read_bytes()))
    assert [(entry.name, entry.data) for entry in entries] == [("data", b""), ("data/ssh/authorized_keys", public)]
    assert (images / "extended-fvm.blk").stat().st_size == 5 << 20
    assert (images / "extended-fvm.blk").read_bytes().startswith(b"the disk")


def test_the_length_can_be_set_for_good(bundle: Workspace) -> None:
    config = bundle.directory / "luigi.cfg"
    config.write_text(config.read_text() + "[ExtendedBlk]\nlength = 7M\n")
    made(bundle, "ExtendedBlk")
    assert (bundle.store.images("clusterfuzz") / "extended-fvm.blk").stat().st_size == 7 << 20


def test_a_newer_source_makes_its_image_stale_and_no_other(bundle: Workspace) -> None:
    made(bundle, "InitrdWithKey")
    made(bundle, "ExtendedBlk")
    (bundle.directory / "bundle/target/x64/fuchsia.zbi").write_bytes(cpio.encode([cpio.directory("etc")]))
    assert made(bundle, "InitrdWithKey") == ["InitrdWithKey"]
    assert made(bundle, "ExtendedBlk") == []


def test_two_at_once_make_everything_once(bundle: Workspace) -> None:
    """Different names, so that luigi does not take them for the same command."""
    commands = [bundle.command("luigi", "--module", "tasks", "BootInstance", "--name", name) for name in "ab"]
    running = [
        subprocess.Popen(command, cwd=bundle.directory, env=bundle.environment, stderr=subprocess.PIPE)
        for command in commands
    ]
    texts = [process.communicate(timeout=60)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], texts
    for task in ("SSHKeyPair", "InitrdWithKey", "ExtendedBlk"):
        assert sum(text.count(f"{task}: made") for text in texts) == 1


def test_workers_in_processes_of_their_own_do_the_same(bundle: Workspace) -> None:
    assert made(bundle, "BootInstance", "--workers", "2") == ["ExtendedBlk", "InitrdWithKey", "SSHKeyPair"]
    handle = bundle.instance().live_handle()
    assert handle, "QEMU outlives the worker that booted it"
    assert made(bundle, "BootInstance", "--workers", "2") == []


def test_a_line_is_written_at_once_for_two_workers_share_the_stream(bundle: Workspace) -> None:
    """A socket of packets keeps apart what is written apart."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = bundle.command("luigi", "--module", "tasks", "SSHKeyPair")
        environment = {**bundle.environment, "PYTHONUNBUFFERED": "1"}
        subprocess.run(command, cwd=bundle.directory, env=environment, stderr=theirs.fileno(), check=True, timeout=60)
        theirs.close()
        written = [packet.decode() for packet in iter(lambda: ours.recv(1 << 16), b"")]
    assert any("SSHKeyPair: made" in text for text in written)
    assert [text for text in written if not text.endswith("\n")] == []
