"""What differs between the guests that Topcoat knows: size, CPU, kernel arguments."""

import os
import shlex
from dataclasses import asdict, dataclass

from pipeline.build import Arch, Build
from pipeline.settings import Qemu

USER = "clusterfuchsia"
"""The user of `undercoat` on every guest."""


@dataclass(frozen=True)
class Guest:
    """The defaults of one kind of guest; `[qemu]` overrides memory, smp and cpu."""

    arch: Arch
    memory: int
    """MiB"""
    smp: int
    emulated_cpu: str
    """The CPU model without KVM."""
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
_DEMO_ARGUMENTS = (
    "console=ttyS0",
    "panic=-1",
    "quiet",
    "mitigations=off",
    "no_timer_check",
    "tsc=reliable",
    "cryptomgr.notests",
)


# With these a CPU says that `rep movsb` and `rep stosb` are quick. Where they are emulated, byte by byte, they are not,
# and kernel and libc copy and clear by them: a fast fuzzer of the demo guest does about twice as much without.
_NO_FAST_STRINGS = "erms=off,fsrm=off"


def guest_of(build: Build, name: str, boot_id: str) -> Guest:
    """The guest of a build, with the kernel arguments for the boot `boot_id` of the instance `name`."""
    if build.kind == "demo":
        # max has RDRAND; without it the first SSH login waits a second for entropy
        ours = (f"topcoat.name={name}", f"topcoat.boot={boot_id}")
        return Guest("x64", 512, 1, f"max,{_NO_FAST_STRINGS}", (*_DEMO_ARGUMENTS, *ours))
    entropy = f"kernel.entropy-mixin={os.urandom(32).hex()}"
    cpu = "Skylake-Client,-check,-erms" if build.arch == "x64" else "max"
    return Guest(build.arch, 3072, 4, cpu, (*_FUCHSIA_ARGUMENTS, entropy))


def settings_of(qemu: Qemu, build: Build) -> dict[str, str]:
    """What of the settings makes one guest differ from another, as texts by name."""
    chosen = {name: "default" if value is None else str(value) for name, value in asdict(qemu).items()}
    return {"build": build.name, **chosen, "arguments": shlex.join(qemu.arguments)}
