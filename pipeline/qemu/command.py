"""QEMU's command line.

It follows `undercoat`'s row by row. README lists each difference with its reason; the main ones: QEMU chooses the
SSH port and listens on loopback only, the guest cannot reach out, the disk is an overlay, QEMU has a locked
pidfile, a QMP socket and a sandbox, the serial port is a socket with a log, and there is a way without KVM.
"""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from pipeline.qemu.accel import KVM_CPU, Accelerator
from pipeline.qemu.guest import Guest
from pipeline.settings import Qemu

SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
"""Not every QEMU was built with it: a start that fails for its sake is tried again without."""

_UNSAFE = (" ", "\t", "\n", ",")


@dataclass(frozen=True)
class Files:
    """Every path on the command line, absolute. `sockets` is a short directory without blanks or commas."""

    qemu: Path
    kernel: Path
    initrd: Path
    disk: Path
    """The instance's own overlay, qcow2."""
    pidfile: Path
    serial_log: Path
    sockets: Path

    @property
    def qmp(self) -> Path:
        """QEMU's monitor."""
        return self.sockets / "qmp"

    @property
    def serial(self) -> Path:
        """The guest's serial port, for one client at a time."""
        return self.sockets / "serial"

    def links(self) -> dict[Path, Path]:
        """Links that must exist in `sockets` before the start: for a kernel or initrd whose path QEMU would split.

        QEMU cuts -initrd at commas and, for a multiboot kernel, at blanks, for which it knows no escape; the kernel's
        path becomes a word of the guest's command line.
        """
        return {self.plain(key): path for key, path in self._boot_files().items() if self.plain(key) != path}

    def plain(self, key: str) -> Path:
        """The path to give for "kernel" or "initrd": its own, or the link to it."""
        path = self._boot_files()[key]
        return self.sockets / key if any(char in str(path) for char in _UNSAFE) else path

    def _boot_files(self) -> dict[str, Path]:
        return {"kernel": self.kernel, "initrd": self.initrd}


def option(path: Path) -> str:
    """A path as the value of a QEMU option such as file=, where a comma must be doubled."""
    return str(path).replace(",", ",,")


def command(guest: Guest, accel: Accelerator, qemu: Qemu, files: Files, boot_id: str) -> tuple[str, ...]:
    """The words that start QEMU for this guest.

    `boot_id`, 32 hex digits, becomes the machine's UUID, so that QEMU itself can tell it.
    """
    network = "net=192.168.3.0/24,dhcpstart=192.168.3.9,host=192.168.3.2"
    restrict = "restrict=on," if qemu.restrict else ""
    return (
        str(files.qemu),
        *("-kernel", str(files.plain("kernel"))),
        *("-initrd", str(files.plain("initrd"))),
        *_machine(guest, accel, qemu),
        *("-smp", str(qemu.smp or guest.smp)),
        *("-m", str(qemu.memory or guest.memory)),
        *("-object", "iothread,id=iothread-d0"),
        *("-drive", f"id=d0,file={option(files.disk)},format=qcow2,if=none,cache=unsafe,aio=threads"),
        *("-device", "virtio-blk-pci,drive=d0,iothread=iothread-d0"),
        *("-netdev", f"user,id=net0,{network},{restrict}hostfwd=tcp:127.0.0.1:0-:22"),
        *("-device", "virtio-net-pci,mac=52:54:00:63:5e:7b,netdev=net0"),
        *("-display", "none"),
        *("-monitor", "none"),
        *("-chardev", f"socket,id=serial0,path={files.serial},server=on,wait=off,{_logged(files)}"),
        *("-serial", "chardev:serial0"),
        *("-qmp", f"unix:{files.qmp},server=on,wait=off"),
        *("-pidfile", str(files.pidfile)),
        *("-uuid", str(UUID(boot_id))),
        "-no-reboot",
        *SANDBOX,
        *("-append", " ".join(guest.kernel_arguments)),
        *qemu.arguments,
    )


def _logged(files: Files) -> str:
    # To append: after a rotation QEMU must write on at the end
    return f"logfile={option(files.serial_log)},logappend=on"


def _machine(guest: Guest, accel: Accelerator, qemu: Qemu) -> tuple[str, ...]:
    kvm = accel == "kvm"
    cpu = qemu.cpu or (KVM_CPU[guest.arch] if kvm else guest.emulated_cpu)
    if guest.arch == "x64":
        # fw_cfg keeps SeaBIOS from writing to the serial port
        machine: tuple[str, ...] = ("-machine", "q35", "-fw_cfg", "name=etc/sercon-port,string=0")
    else:
        machine = ("-machine", "virt,gic-version=host" if kvm else "virt,gic-version=3,virtualization=true")
    return (*machine, "-cpu", cpu, *(("-enable-kvm",) if kvm else ("-accel", emulation(guest, qemu))))


def emulation(guest: Guest, qemu: Qemu) -> str:
    """The value of -accel for a guest without KVM.

    With a thread for each of several CPUs, QEMU 7.2 itself crashed in 5 of 12 boots of a Zircon, which moves its PCI
    BARs while it boots; with one thread for all in none.
    """
    threads = qemu.tcg_threads
    if threads == "auto":
        several = (qemu.smp or guest.smp) > 1 or not {"-smp", "--smp"}.isdisjoint(qemu.arguments)
        threads = "single" if several else "auto"
    return "tcg" if threads == "auto" else f"tcg,thread={threads}"


def without_sandbox(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The same command line for a QEMU that was built without seccomp."""
    at = argv.index(SANDBOX[0])
    return argv[:at] + argv[at + len(SANDBOX) :]
