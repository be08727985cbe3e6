"""What guests can still write to the host's disk, and who is told."""

import subprocess
from pathlib import Path

import pytest

from pipeline.settings import BootSettings, Store
from pipeline.vm.instance import Instance
from pipeline.vm.qemu import disk, growth
from pipeline.vm.qemu.stopping import stop
from tests.conftest import Workspace
from tests.fakes.guests import fake_qemu
from tests.vm.qemu.playing import Played

GIB, MIB = 1 << 30, 1 << 20
LOGS = 4 * MIB  # of serial.log and qemu.log two parts each
TOLD = "guests could fill the disk of "


def living(store: Store, name: str, length: int) -> Instance:
    """An instance whose QEMU lives, with an overlay over a disk of that length."""
    instance = Instance.named(store, name)
    instance.directory.mkdir(parents=True)
    image = store.root / "image"
    image.touch()
    with image.open("r+b") as stream:
        stream.truncate(length)
    disk.make_overlay(Path("qemu-img"), image, instance.overlay)
    fake_qemu(instance.pidfile)
    return instance


def write(overlay: Path, length: int) -> None:
    command = ["qemu-io", "-c", f"write -P 7 0 {length}", str(overlay)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def test_what_is_not_written_yet_can_still_be(workspace: Workspace) -> None:
    store = workspace.store
    assert growth.of_running(store, MIB) == 0
    one, two = (living(store, name, GIB) for name in ("i0", "i1"))
    assert 0 <= 2 * (GIB + LOGS) - growth.of_running(store, MIB) < 2 * MIB
    write(one.overlay, 100 * MIB)
    two.serial_log.write_bytes(b"x" * MIB)
    assert 0 <= 2 * (GIB + LOGS) - 101 * MIB - growth.of_running(store, MIB) < 3 * MIB
    stop(two, 10)
    assert growth.of_running(store, MIB) < GIB + LOGS - 99 * MIB


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"no qcow2" * 10, b"QFI\xfb" + bytes(100)])
def test_an_overlay_that_makes_no_sense_counts_by_its_logs_alone(workspace: Workspace, content: bytes) -> None:
    instance = living(workspace.store, "i0", GIB)
    instance.overlay.write_bytes(content)
    assert growth.of_running(workspace.store, MIB) == LOGS
    instance.overlay.unlink()
    assert growth.of_running(workspace.store, MIB) == LOGS


def test_a_boot_that_could_fill_the_disk_tells_so_once(
    bundle: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    played = Played(bundle, monkeypatch)
    enough = MIB + 4 * BootSettings.log_size  # the image of a scripted bundle has 1 MiB
    for name, free in (("i0", enough), ("i1", enough - 1), ("i2", enough - 1), ("i3", enough)):
        monkeypatch.setattr(growth, "free_bytes", lambda _, free=free: free)
        launcher = played.launcher(name=name)
        launcher.start().close()
        launcher.kill()
        assert caplog.text.count(TOLD) == (name != "i0")


def test_a_guest_that_cannot_be_looked_at_keeps_no_other_from_being_booted(
    bundle: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that root has booted in a user's store, whose pidfile that user may not read."""
    other = living(bundle.store, "i9", GIB)
    other.overlay.unlink()
    other.overlay.mkdir()
    played = Played(bundle, monkeypatch)
    for name in ("i0", "i1"):
        launcher = played.launcher(name=name)
        launcher.start().close()
        launcher.kill()
    other.overlay.rmdir()
    assert caplog.text.count("cannot be told: looking at what guests could write: Is a directory: ") == 1
