"""How little of the host a real QEMU has, and of the machine its guest sees."""

import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.builds.build import Build
from pipeline.settings import QemuSettings
from pipeline.vm.handle import Handle
from pipeline.vm.qemu import accel, disk, environment, keeper
from pipeline.vm.qemu.command_line import Files, command
from pipeline.vm.qemu.profile import guest_of
from pipeline.vm.qemu.qmp import Monitor
from tests.conftest import Workspace, new_workspace, prepare_demo
from tests.waiting import SOON, eventually

SECRET = "hunter2"
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def workspace_with_secret(tmp_path_factory: pytest.TempPathFactory, demo_parts: Path) -> Iterator[Workspace]:
    """A workspace with a real guest i0 that was booted, and a clone, by somebody with a secret in the environment."""
    with new_workspace(tmp_path_factory.mktemp("confined") / "work") as made:
        prepare_demo(made, demo_parts)
        for words in (("--warm", "never"), ("--name", "clone")):
            places = {"LD_LIBRARY_PATH": "/nothing", "QEMU_MODULE_DIR": "/nothing"}
            done = made.luigi("BootInstance", *words, API_TOKEN=SECRET, **places)
            assert done.status == 0, done.text
        yield made


@pytest.fixture
def handle(workspace_with_secret: Workspace) -> Handle:
    return workspace_with_secret.instance().require_live()


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def keepers_of(handle: Handle) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if os.fsencode(keeper.__file__) in words and handle.boot_id.encode() in words:
            found.append(int(entry.name))
    return found


def test_neither_qemu_nor_its_keeper_has_what_is_secret_in_the_environment(handle: Handle) -> None:
    keepers = keepers_of(handle)
    assert len(keepers) == 1
    for pid in (handle.process.pid, *keepers):
        given = environment_of(pid)
        assert SECRET not in str(given)
        assert given.keys() <= {"PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "QEMU_MODULE_DIR"}
        assert given["LD_LIBRARY_PATH"] == given["QEMU_MODULE_DIR"] == "/nothing"


def test_the_programs_that_prepare_for_it_have_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu-img, and the trial of KVM: by a script that writes down what it has."""
    monkeypatch.setenv("API_TOKEN", SECRET)
    program, told, image = tmp_path / "program", tmp_path / "told", tmp_path / "image"
    image.touch()
    program.write_text(f"#!/bin/sh\nenv >>'{told}'\n[ $1 != create ] || : >\"${{10}}\"\n")
    program.chmod(stat.S_IRWXU)
    disk.make_overlay(program, image, tmp_path / "overlay")
    accel.probe_kernel(program)
    said = told.read_text()
    assert len(re.findall("^PATH=", said, re.MULTILINE)) == 2
    assert SECRET not in said


def test_what_is_not_set_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    assert environment.of_qemu() == {}
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    assert environment.of_qemu() == {"TZ": "UTC"}


def test_the_guest_reaches_nothing_of_the_host(workspace_with_secret: Workspace) -> None:
    """Neither by the address that QEMU's network has for the host, nor by any other."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        for address in ("192.168.3.2", "127.0.0.1", "192.168.3.3", "8.8.8.8"):
            done = workspace_with_secret.topcoat("ssh", "i0", "--", f"nc -w 3 {address} {port} </dev/null; echo $?")
            assert done.stdout.strip() == b"1", done.text
        own = workspace_with_secret.topcoat("ssh", "i0", "--", "nc -w 3 127.0.0.1 22 </dev/null >/dev/null; echo $?")
        assert own.stdout.strip() == b"0", "its own SSH server it does reach"
        with pytest.raises(BlockingIOError):
            listener.accept()


PCI = {
    "8086:29c0": "q35's host bridge",
    "8086:2918": "ICH9-LPC, to which the rest of the board is tied",
    "1af4:1001": "virtio-blk: two, one of which is for targets",
    "1af4:1000": "virtio-net",
}
UNWANTED = {
    *("VGA", "ich9-ahci", "ICH9-SMB", "smbus-eeprom", "vmport", "vmmouse"),
    *("isa-parallel", "isa-fdc", "floppy", "ide-cd", "ide-hd", "e1000e", "usb-tablet"),
}


@pytest.mark.parametrize(("name", "gates"), [("i0", 0), ("clone", 1)])
def test_the_guest_sees_no_device_but_those_that_are_meant_for_it(
    workspace_with_secret: Workspace, name: str, gates: int
) -> None:
    with Monitor(workspace_with_secret.instance(name).qmp_socket, SOON) as monitor:
        (bus,) = monitor.execute("query-pci")
        tree = monitor.execute("human-monitor-command", {"command-line": "info qtree"})
    assert sorted(f"{one['id']['vendor']:04x}:{one['id']['device']:04x}" for one in bus["devices"]) == sorted(
        [*PCI, "1af4:1001"]
    )
    devices = re.findall(r"dev: ([\w-]+),", tree)
    assert {"virtio-blk-pci", "virtio-net-pci", "isa-serial"} <= set(devices)
    assert UNWANTED & set(devices) == set()
    assert devices.count("isa-serial") == 1 + gates
    script = "for d in /sys/bus/pci/devices/*; do echo $(cat $d/vendor):$(cat $d/device); done"
    seen = workspace_with_secret.topcoat("ssh", name, "--", script).stdout.decode().replace("0x", "").split()
    assert sorted(seen) == sorted([*PCI, "1af4:1001"]), "and the guest itself finds these"


@pytest.mark.parametrize("more", ["", "-vga std -machine sata=on -drive file=/dev/null,if=ide,media=cdrom,format=raw"])
def test_a_multiboot_kernel_runs_on_what_fuchsia_gets(tmp_path: Path, more: str) -> None:
    """Also if the user brings back what is left out."""
    kernel, image, said = tmp_path / "kernel", tmp_path / "image", tmp_path / "said"
    kernel.write_bytes(accel.TRIAL_KERNEL)
    image.write_bytes(bytes(512))
    files = Files(
        qemu=Path("qemu-system-x86_64"),
        kernel=kernel,
        initrd=image,
        disk=tmp_path / "overlay",
        pidfile=tmp_path / "pid",
        serial_log=tmp_path / "log",
    )
    disk.make_overlay(Path("qemu-img"), image, files.disk)
    debug = f"-chardev file,id=said,path={said} -device isa-debugcon,iobase=0xe9,chardev=said"
    guest = guest_of(Build("local", "x64", "name", "why", {}), "i0", "b00t")
    argv = command(guest, "tcg", QemuSettings(arguments=tuple(f"{debug} {more}".split())), files, "0" * 32)
    with subprocess.Popen(argv, cwd=tmp_path, stdin=subprocess.DEVNULL) as process:
        try:
            done = b"run to the end\n"
            eventually(lambda: process.poll() is not None or (said.exists() and done in said.read_bytes()))
            assert done in said.read_bytes()
        finally:
            process.kill()
