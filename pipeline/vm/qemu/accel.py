"""Which accelerator QEMU can use on this host, found out by trying it.

Opening /dev/kvm and making a virtual machine is not proof enough: there are cloud hosts on which both work, but QEMU
aborts on the first virtual CPU, or the host interprets each instruction of a kernel (PVM does so without nested
virtualisation), some hundred times slower than QEMU emulates it. So QEMU itself is run once with KVM and a trial
kernel. The answer is kept until the host is booted again or QEMU changes, unless it may hold only for the moment.
"""

import errno
import fcntl
import os
import platform
import re
import resource
import select
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.builds.build import Arch
from pipeline.errors import SettingsError, StoreError
from pipeline.host.deadline import Deadline
from pipeline.host.process import die_with_parent, host_boot_id
from pipeline.settings import Accel, Accelerator
from pipeline.store import document
from pipeline.store.publish import publish_json
from pipeline.text.printable import tail
from pipeline.vm.qemu import environment
from pipeline.vm.qemu.causes import CAUSES

KVM_CPU: dict[Arch, str] = {"x64": "host,migratable=no,+invtsc", "arm64": "host"}
"""The value of QEMU's -cpu with KVM, for each architecture."""

_KVM_CREATE_VM = 0xAE01  # linux/kvm.h: _IO(0xAE, 0x01)
_MACHINES: dict[Arch, tuple[str, ...]] = {"x64": ("x86_64",), "arm64": ("aarch64", "arm64")}
_SCHEMA = 2
_LIMIT = 20.0  # seconds; a trial takes 0.2, but the host may be busy
_CPU_LIMIT = 1  # seconds of CPU time; KVM needs 0.1, and QEMU's own emulation 0.2
_DONE = b"run to the end\n"
_LAST = re.compile(_DONE + b"|KVM internal error.*\n")  # after the latter QEMU pauses the guest and does not end

TRIAL_KERNEL = bytes.fromhex(
    "02b0ad1b00000100fe4f51e40000100000001000000000000000000020001000c7050010200003202000c70500202000"
    "03302000c7050030200083000000c7050830200083002000b8001020000f22d80f20e083c8200f22e0b9800000c00f32"
    "0d000100000f300f20c00d000000800f22c00f011590001000ea960010000800000000000000000000000000009a2000"
    "0f0080001000bc00402000b900093d0051e81800000059ffc975f566bae900bec6001000b910000000f36ef4ebfdff04"
    "2500402000c30a72756e20746f2074686520656e640a"
)
"""A kernel that runs some ten million instructions in 64-bit mode and then says so: trial_kernel.S, assembled."""


@dataclass(frozen=True)
class KvmProbe:
    """Whether KVM works; if not, `problem` says why, and `hint` what to do. Both are empty if it does."""

    problem: str = ""
    hint: str = ""
    passing: bool = False
    """Whether the problem may pass, so that the next trial may well have another outcome."""

    @property
    def works(self) -> bool:
        """Whether guests can run with KVM."""
        return not self.problem


def choose(wanted: Accel, arch: Arch, qemu: Path, cache: Path) -> tuple[Accelerator, str]:
    """The accelerator for a guest of this architecture, and why it is not KVM ("" if it is, or tcg was wanted).

    `cache` is the file that keeps this host's answer. Raises SettingsError if KVM is demanded but does not work.
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


def probe_device(arch: Arch, device: str = "/dev/kvm") -> KvmProbe:
    """Probe the KVM device: whether the host's CPU fits, and whether a virtual machine can be made; it is discarded."""
    if platform.machine() not in _MACHINES[arch]:
        return KvmProbe(f"this {platform.machine()} host cannot run {arch} guests with KVM", "use another host")
    try:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return _cannot_open(device, error)
    try:
        os.close(fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
    except OSError as error:
        return KvmProbe(f"{device} makes no virtual machine: {error.strerror}", "allow nested virtualisation")
    finally:
        os.close(kvm)
    return KvmProbe()


def _cannot_open(device: str, error: OSError) -> KvmProbe:
    if error.errno == errno.ENOENT:
        return KvmProbe(f"there is no {device}", "load kvm_intel or kvm_amd; is virtualisation on in the firmware?")
    if error.errno in (errno.EACCES, errno.EPERM):
        return KvmProbe(f"your user may not open {device}", "add your user to the group kvm and log in again")
    return KvmProbe(f"{device} cannot be opened: {error.strerror}", "allow nested virtualisation for this host")


@dataclass(frozen=True)
class _Cached:
    key: str
    problem: str
    hint: str


def _remembered(qemu: Path, cache: Path) -> KvmProbe:
    try:
        facts = qemu.stat()
    except OSError:
        return KvmProbe()  # a missing QEMU is reported by whoever starts it
    key = f"{host_boot_id()} {qemu} {facts.st_size} {facts.st_mtime_ns}"
    with suppress(OSError, ValueError):
        known = document.decode(cache.read_bytes(), _Cached, _SCHEMA)
        if known.key == key:
            return KvmProbe(known.problem, known.hint)
    probe = probe_kernel(qemu)
    if not probe.passing:
        with suppress(StoreError):  # then KVM is tried again next time
            publish_json(cache, {"schema": _SCHEMA, "key": key, "problem": probe.problem, "hint": probe.hint})
    return probe


def probe_kernel(qemu: Path) -> KvmProbe:
    """Probe KVM by running the trial kernel in QEMU, with the CPU that guests get, on a machine without devices."""
    machine = f"-machine q35 -enable-kvm -cpu {KVM_CPU['x64']} -m 64 -nodefaults -nic none -display none"
    output = "-chardev stdio,id=log -device isa-debugcon,iobase=0xe9,chardev=log"
    kernel = os.memfd_create("trial_kernel", 0)
    try:
        os.write(kernel, TRIAL_KERNEL)
        process = subprocess.Popen(
            [str(qemu), *machine.split(), *output.split(), "-kernel", f"/proc/self/fd/{kernel}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[kernel],
            env=environment.of_qemu(),
            preexec_fn=die_with_parent(),  # an interrupt may come before `process` is assigned
        )
    except OSError:
        return KvmProbe(passing=True)  # a QEMU that cannot be started is reported by whoever boots it
    finally:
        os.close(kernel)
    return _seen(process)


def _seen(process: "subprocess.Popen[bytes]") -> KvmProbe:
    deadline = Deadline(_LIMIT)
    with process:
        try:
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_CPU, (_CPU_LIMIT, _CPU_LIMIT))
            said = _read_until(process, deadline)
            ended = _has_ended(process, said, deadline)
        finally:
            os.kill(process.pid, signal.SIGKILL)  # Popen.kill may reap the process, and its CPU time would be lost
        _, status, spent = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if _DONE in said:
        return KvmProbe()
    killed = ended and process.returncode == -signal.SIGKILL
    if killed and spent.ru_utime + spent.ru_stime > _CPU_LIMIT / 2:  # the kernel's limit counts by another clock
        return _failed("a kernel runs slower than emulated")
    if killed:
        return _failed("something has killed it", passing=True)
    if not ended and not re.search(_LAST, said):
        return _failed("it hangs", passing=True)
    complaint = _complaint(said)
    return _failed(complaint or "it ended without a word", passing=not complaint or _is_passing(complaint))


def _failed(why: str, *, passing: bool = False) -> KvmProbe:
    return KvmProbe(f"/dev/kvm is there, but a trial of QEMU with it failed: {why}", "use another host", passing)


def _has_ended(process: "subprocess.Popen[bytes]", said: bytes, deadline: Deadline) -> bool:
    """Whether QEMU ends, or is killed, before the deadline; False at once if it has said the last that it will say."""
    if re.search(_LAST, said):
        return False
    end = os.pidfd_open(process.pid)
    try:
        return bool(select.select([end], [], [], deadline.remaining)[0])
    finally:
        os.close(end)


def _is_passing(complaint: str) -> bool:
    return any(cause.transient and cause.qemu and re.search(cause.qemu, complaint) for cause in CAUSES)


def _complaint(said: bytes) -> str:
    """The first line of QEMU's output that is no warning, without the program's name; "" if there is none."""
    lines = [line for line in tail(said).split("\n") if ": warning: " not in line]
    return re.sub(r"^(\S*qemu\S*: )?(error: )?", "", lines[0]) if lines else ""


def _read_until(process: "subprocess.Popen[bytes]", deadline: Deadline) -> bytes:
    assert process.stdout is not None
    said = b""
    while not re.search(_LAST, said) and select.select([process.stdout], [], [], deadline.remaining)[0]:
        if not (chunk := os.read(process.stdout.fileno(), 65536)):
            break
        said = (said + chunk)[-65536:]
    return said
