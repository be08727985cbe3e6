"""Which accelerator QEMU can use on this host, found out by trying it.

Opening /dev/kvm and making a virtual machine is not proof enough: there are cloud hosts on which both work, and then
QEMU aborts on the first virtual CPU. So QEMU itself is run once with KVM until its firmware has finished; the answer
is kept until the host is booted again or QEMU changes.
"""

import errno
import fcntl
import json
import os
import platform
import select
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.build import Arch
from pipeline.deadline import Deadline
from pipeline.errors import SettingsError, StoreError
from pipeline.publish import publish_json
from pipeline.settings import Accel
from pipeline.text import tail

Accelerator = Literal["kvm", "tcg"]

KVM_CPU: dict[Arch, str] = {"x64": "host,migratable=no,+invtsc", "arm64": "host"}

_KVM_CREATE_VM = 0xAE01  # linux/kvm.h: _IO(0xAE, 0x01)
_MACHINES: dict[Arch, tuple[str, ...]] = {"x64": ("x86_64",), "arm64": ("aarch64", "arm64")}
_FIRMWARE_LIMIT = 3.0  # it takes 0.1 s
_FIRMWARE_DONE = b"All threads complete"  # SeaBIOS, after it has found all devices


@dataclass(frozen=True)
class Probe:
    """Whether KVM works: if not, `problem` says why and `hint` what to do. Both are empty if it does."""

    problem: str = ""
    hint: str = ""

    @property
    def works(self) -> bool:
        """Whether guests can run with KVM."""
        return not self.problem


def choose(wanted: Accel, arch: Arch, qemu: Path, cache: Path) -> tuple[Accelerator, str]:
    """The accelerator for a guest of this architecture, and why KVM is not used (empty if it is, or was not wanted).

    `cache` is a file that keeps the answer of this host. Raises SettingsError if KVM is demanded and does not work.
    """
    if wanted == "tcg":
        return "tcg", ""
    probe = probe_device(arch)
    if probe.works and arch == "x64":
        probe = _remembered(qemu, cache)
    if probe.works:
        return "kvm", ""
    if wanted == "kvm":
        raise SettingsError(f"[qemu] accel = kvm, but {probe.problem}", hint=f"{probe.hint}, or set accel = auto")
    return "tcg", f"{probe.problem} ({probe.hint})"


def probe_device(arch: Arch, device: str = "/dev/kvm") -> Probe:
    """Make a virtual machine and throw it away."""
    if platform.machine() not in _MACHINES[arch]:
        return Probe(f"this {platform.machine()} host cannot run {arch} guests with KVM", "use another host")
    try:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return _cannot_open(device, error)
    try:
        os.close(fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
    except OSError as error:
        return Probe(f"{device} makes no virtual machine: {error.strerror}", "allow nested virtualisation")
    finally:
        os.close(kvm)
    return Probe()


def _cannot_open(device: str, error: OSError) -> Probe:
    if error.errno == errno.ENOENT:
        return Probe(f"there is no {device}", "load kvm_intel or kvm_amd; is virtualisation on in the firmware?")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Probe(f"your user may not open {device}", "add your user to the group kvm and log in again")
    return Probe(f"{device} cannot be opened: {error.strerror}", "allow nested virtualisation for this host")


def _remembered(qemu: Path, cache: Path) -> Probe:
    try:
        facts = qemu.stat()
    except OSError:
        return Probe()  # a missing QEMU is reported by whoever starts it
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = f"{boot} {qemu} {facts.st_size} {facts.st_mtime_ns}"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(cache.read_bytes())
        if known["schema"] == 1 and known["key"] == key:
            return Probe(str(known["problem"]), str(known["hint"]))
    probe = probe_firmware(qemu)
    with suppress(StoreError):  # asked again next time
        publish_json(cache, {"schema": 1, "key": key, "problem": probe.problem, "hint": probe.hint})
    return probe


def probe_firmware(qemu: Path) -> Probe:
    """Run QEMU's firmware with KVM, and the CPU that guests get, on an empty machine."""
    machine = f"-machine q35 -enable-kvm -cpu {KVM_CPU['x64']} -m 64 -nodefaults -nic none -display none"
    output = "-chardev stdio,id=log -device isa-debugcon,iobase=0x402,chardev=log"
    try:
        process = subprocess.Popen(
            [str(qemu), *machine.split(), *output.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError:
        return Probe()
    with process:
        said = _read_until(process, _FIRMWARE_DONE, Deadline(_FIRMWARE_LIMIT))
        process.kill()
    if _FIRMWARE_DONE in said:
        return Probe()
    first = tail(said).partition("\n")[0].removeprefix(f"{qemu.name}: ").removeprefix("error: ") or "it hangs"
    return Probe(f"/dev/kvm is there, but QEMU cannot run even its firmware with it: {first}", "use another host")


def _read_until(process: "subprocess.Popen[bytes]", end: bytes, deadline: Deadline) -> bytes:
    assert process.stdout is not None
    said = b""
    while end not in said and select.select([process.stdout], [], [], deadline.remaining)[0]:
        if not (chunk := os.read(process.stdout.fileno(), 65536)):
            break
        said = (said + chunk)[-65536:]
    return said
