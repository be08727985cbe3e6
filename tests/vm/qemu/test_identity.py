"""An instance is spoken to only if it is the one that was started: each way not to be it has an error of its own."""

import json
import os
import signal
from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import BrokenInstance, HandleEdited, PidReused, TopcoatError, UnknownInstance
from pipeline.host.process import Process
from pipeline.vm.handle import Handle
from pipeline.vm.qemu import identity
from tests.conftest import Workspace
from tests.fakes import sshd
from tests.waiting import SOON


@pytest.fixture
def running(bundle: Workspace) -> Workspace:
    assert bundle.luigi("BootInstance").status == 0
    return bundle


def handle_of(workspace: Workspace) -> Handle:
    handle = workspace.instance().live_handle()
    assert handle
    return handle


def verify(workspace: Workspace) -> Handle:
    handle = workspace.instance().require_live()
    identity.verify(workspace.instance(), handle)
    return handle


def test_the_one_that_was_started_is_the_one(running: Workspace) -> None:
    assert verify(running) == handle_of(running)


@pytest.mark.parametrize(
    "edit",
    [
        {"boot_id": ""},
        {"name": "i1"},
        {"sockets": "/tmp"},
        {"ssh": {"host": "127.0.0.1", "port": 22, "user": "root", "key": "/root/.ssh/id", "host_key": None}},
        {"seal": "0" * 64},
    ],
    ids=lambda edit: next(iter(edit)),
)
def test_an_edited_handle_is_refused(running: Workspace, edit: dict[str, Any]) -> None:
    path = running.instance().handle_file
    whole = json.loads(path.read_text())
    if "boot_id" in edit:  # the right one is in it: the keeper, which may look only now, would end QEMU as an orphan
        edit = {"boot_id": f"{whole['boot_id']}0"}
    path.write_text(json.dumps({**whole, **edit}))
    with pytest.raises(HandleEdited, match="was changed by somebody else"):
        verify(running)
    for words in (("ssh", "i0", "--", "true"), ("console", "i0")):
        refused = running.topcoat(*words)
        assert refused.status == 30
        assert "the handle of i0 was changed by somebody else than Topcoat" in refused.text
        assert "topcoat stop i0" in refused.text
    again = running.luigi("BootInstance")
    assert again.status == 30
    assert "was changed by somebody else" in again.text, "it is not booted a second time"
    assert running.topcoat("stop", "i0").stdout == b"i0: stopped\n", "which needs no handle"


@pytest.mark.parametrize(
    ("what", "forge"),
    [
        ("boot id", lambda handle: replace(handle, boot_id="0" * 32)),
        ("port", lambda handle: replace(handle, ssh=replace(handle.ssh, port=handle.ssh.port + 1))),
    ],
)
def test_a_handle_with_a_right_seal_is_compared_with_qemu(running: Workspace, what: str, forge: Any) -> None:
    running.instance().publish_handle(forge(handle_of(running)))
    with pytest.raises(HandleEdited, match=f"its {what} is .*, QEMU's is "):
        verify(running)


def test_the_sockets_of_another_guest_are_noticed(running: Workspace) -> None:
    assert running.luigi("BootInstance", "--name", "other").status == 0
    other = running.instance("other").live_handle()
    assert other
    ours, theirs = running.instance().qmp_socket, running.instance("other").qmp_socket
    ours.unlink()
    ours.symlink_to(theirs)
    with pytest.raises(HandleEdited, match="its pid is "):
        verify(running)


def test_a_handle_for_another_process_than_the_one_that_runs(running: Workspace) -> None:
    ours = Process.find(os.getpid())
    assert ours
    running.instance().publish_handle(replace(handle_of(running), process=ours))
    with pytest.raises(BrokenInstance, match="for another process than the one that runs"):
        verify(running)


def test_a_pid_that_belongs_to_another_process_now(running: Workspace) -> None:
    handle = handle_of(running)
    handle.process.send(signal.SIGKILL)
    assert handle.process.wait(SOON)
    with pytest.raises(UnknownInstance):
        verify(running)
    ours = Process.find(os.getpid())
    assert ours
    reused = replace(handle.process, pid=ours.pid)
    running.instance().publish_handle(replace(handle, process=reused))
    with pytest.raises(PidReused, match=f"its pid {ours.pid} belongs to another process now"):
        verify(running)
    assert running.topcoat("stop", "i0").stdout == b"i0: was not running\n"
    assert ours.alive


def test_a_qemu_that_is_stopped_by_a_signal_says_so(running: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = handle_of(running)
    handle.process.send(signal.SIGSTOP)
    with monkeypatch.context() as hasty:
        hasty.setattr(identity, "LIMIT", 0.3)
        with pytest.raises(BrokenInstance, match="it has been stopped by a signal") as caught:
            verify(running)
    assert f"kill -CONT {handle.process.pid}" in caught.value.hint
    handle.process.send(signal.SIGCONT)
    verify(running)


def test_one_that_is_stopped_just_before_is_not_called_broken(running: Workspace) -> None:
    handle = running.instance().require_live()
    assert running.topcoat("stop", "i0").status == 0
    with pytest.raises(UnknownInstance, match="it has just been stopped"):
        identity.verify(running.instance(), handle)


def test_each_has_an_error_of_its_own() -> None:
    kinds: list[type[TopcoatError]] = [HandleEdited, PidReused, BrokenInstance, UnknownInstance]
    assert len({kind.__name__ for kind in kinds}) == len(kinds)


def test_a_server_that_was_swapped_behind_the_port(bundle: Workspace) -> None:
    bundle.configure("[boot]\ntimeout = 60\n[qemu]\naccel = tcg\n[tools]\nproof = off\n")
    assert bundle.luigi("SSHKeyPair").status == 0
    with sshd.running((bundle.store.keys / "sshid.pub").read_text().strip()) as server:
        assert bundle.luigi("BootInstance", QEMU_FAKE_PORT=str(server.port)).status == 0
        server.host_key = server.host_key.generate()
        outcome = bundle.topcoat("ssh", "i0", "--", "true")
    assert outcome.status == 255
    assert "is not the guest that was booted: its host key is another one" in outcome.text
    assert server.users == ["clusterfuchsia"], "no second login was tried"
