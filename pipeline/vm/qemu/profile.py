"""What differs between the kinds of guests that Topcoat knows: memory, CPUs, kernel arguments."""

import os
import shlex
from dataclasses import asdict, dataclass

from pipeline.builds.build import Arch, Build
from pipeline.settings import QemuSettings

USER = "clusterfuchsia"
"""The user as whom Topcoat logs in to every guest, as `undercoat` does."""


ENTROPY = "kernel.entropy-mixin="
"""The kernel argument by which Fuchsia gets random numbers, others in each boot."""


@dataclass(frozen=True)
class GuestProfile:
    """The defaults of one kind of guest; `[qemu]` overrides memory, smp and cpu."""

    arch: Arch
    memory: int
    """The guest's memory in MiB."""
    smp: int
    """The number of the guest's CPUs."""
    emulated_cpu: str
    """QEMU's name of the CPU model without KVM."""
    kernel_arguments: tuple[str, ...]


# `undercoat` says kernel.serial=legacy twice and, until 2023, virtcon.disable=true; both are dropped
_FUCHSIA_ARGUMENTS = (
    "kernel.serial=legacy",
    "kernel.halt-on-panic=true",
    "TERM=dumb",
    "kernel.lockup-detector.critical-section-threshold-ms=0",
    "kernel.lockup-detector.critical-section-fatal-threshold-ms=0",
    "kernel.lockup-detector.heartbeat-period-ms=0",
    "kernel.lockup-detector.heartbeat-age-threshold-ms=0",
    "kernel.lockup-detector.heartbeat-age-fatal-threshold-ms=0",
    "kernel.bypass-debuglog=true",
)

# Each was measured under emulation: together they save a quarter of the boot. panic=-1 with -no-reboot ends QEMU.
_LINUX_ARGUMENTS = (
    "console=ttyS0",
    "panic=-1",
    "quiet",
    "mitigations=off",
    "no_timer_check",
    "tsc=reliable",
    "cryptomgr.notests",
)


# These flags tell kernel and libc that `rep movsb` and `rep stosb` are fast, so that they copy and clear with them.
# Emulated, they go byte by byte: a fast target in the Linux guest does about twice as much without the flags.
_NO_FAST_STRINGS = "erms=off,fsrm=off"


def guest_of(build: Build, name: str, boot_id: str) -> GuestProfile:
    """The profile of a build's guest, with the kernel arguments for the boot `boot_id` of the instance `name`."""
    if build.targets:
        # max has RDRAND; without it the first SSH login waits a second for entropy
        ours = (f"topcoat.name={name}", f"topcoat.boot={boot_id}")
        return GuestProfile("x64", 512, 1, f"max,{_NO_FAST_STRINGS}", (*_LINUX_ARGUMENTS, *ours))
    entropy = f"{ENTROPY}{os.urandom(32).hex()}"
    cpu = "Skylake-Client,-check,-erms" if build.arch == "x64" else "max"
    return GuestProfile(build.arch, 3072, 4, cpu, (*_FUCHSIA_ARGUMENTS, entropy))


def settings_of(qemu: QemuSettings, build: Build) -> dict[str, str]:
    """The settings by which one guest differs from another, as texts by name: the build's name and all of `[qemu]`."""
    chosen = {name: "default" if value is None else str(value) for name, value in asdict(qemu).items()}
    return {"build": build.name, **chosen, "arguments": shlex.join(qemu.arguments)}
