"""What is told of a boot that waits in vain, long before its time is up."""

import pytest

from pipeline.errors import BootError
from tests.conftest import Workspace
from tests.fakes import sshd
from tests.vm.qemu.playing import Played

SLOWLY = "[qemu]\naccel = tcg\n[boot]\ntimeout = 6\nscale = 1\n"
NO_SERVER = "no SSH server has answered since: does this image have one? If not: --ready marker"
NO_SERIAL = "nothing has come from its serial port for "


@pytest.fixture
def played(bundle: Workspace, monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(bundle, monkeypatch, SLOWLY)


@pytest.mark.parametrize("fault", ["no banner", "gone"])
def test_no_ssh_server(played: Played, caplog: pytest.LogCaptureFixture, fault: sshd.Fault) -> None:
    with sshd.running(played.public_key.decode().strip()) as server:
        server.fault = fault
        port = server.port
        if fault == "gone":
            server.stop()
        played.play("ready", port)
        with pytest.raises(BootError):
            played.launcher("ssh").start()
    told = [record for record in caplog.records if NO_SERVER in record.message]
    assert len(told) == 1, "once"
    assert told[0].message.startswith("i0: the marker came ")
    failed = played.timeline()[-1]
    assert failed["event"] == "failed"
    assert NO_SERIAL not in caplog.text


def test_no_serial_output(played: Played, caplog: pytest.LogCaptureFixture) -> None:
    played.play("silent")
    with pytest.raises(BootError):
        played.launcher().start()
    assert caplog.text.count(f"i0: {NO_SERIAL}") == 1
    assert "kernel.serial=legacy" in caplog.text


@pytest.mark.parametrize("part", ["ready", "no-marker"])
def test_a_guest_that_is_at_it(played: Played, caplog: pytest.LogCaptureFixture, part: str) -> None:
    """One whose SSH server answers, but never lets anybody in; and one that prints, but no marker."""
    with sshd.running(played.public_key.decode().strip()) as server:
        server.fault = "no exec"
        played.play(part, server.port)
        with pytest.raises(BootError):
            played.launcher("ssh").start()
    assert NO_SERVER not in caplog.text
    assert NO_SERIAL not in caplog.text
