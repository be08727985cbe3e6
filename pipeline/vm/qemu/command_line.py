"""QEMU's command line.

It follows `undercoat`'s row by row. The README lists each difference with its reason. The main ones: QEMU chooses the
SSH port and listens on loopback only, the guest cannot reach out, the disk is an overlay, QEMU has a locked pidfile, a
QMP socket and a sandbox, the serial port is a socket with a log, there are no unneeded devices, and KVM is optional.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from pipeline.settings import Accelerator, QemuSettings, TcgThreads
from pipeline.vm.capsule import SavedMachine
from pipeline.vm.qemu.accel import KVM_CPU
from pipeline.vm.qemu.profile import GuestProfile

SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
"""The arguments for QEMU's sandbox. Not every QEMU was built with it: a start that fails for it is repeated without."""

RUNAS = "-runas"
"""The option that changes QEMU's user, deprecated since 9.1: a start that fails for it is repeated with -run-with."""

# Devices that q35 has even with -nodefaults, and that every QEMU since 5.0 can leave out: AHCI, SMBus, VMware's back
# door. i8042 stays: QEMU before 7.0 cannot leave it out, and Zircon resets the machine by it if ACPI does not
_NO_MORE = "sata=off,smbus=off,vmport=off"

_TARGETS = "targets0"

_UNSAFE = (" ", "\t", "\n", ",")


@dataclass(frozen=True)
class Files:
    """The absolute paths on QEMU's command line; its sockets and links have bare names instead.

    QEMU works in the instance's directory, where the sockets `qmp` and `serial` and the links lie.
    """

    qemu: Path
    kernel: Path
    initrd: Path
    disk: Path
    """The instance's own disk, a qcow2 overlay."""
    pidfile: Path
    serial_log: Path
    targets: Path | None = None
    """The read-only disk with targets; None if the guest has none."""

    def links(self) -> dict[str, Path]:
        """The links, name to target, that the instance's directory must have: to files whose paths QEMU would split.

        QEMU splits -initrd at commas and, for a multiboot kernel, at blanks, and has no escape for them; the kernel's
        path becomes a word of the guest's command line.
        """
        return {key: path for key, path in self._boot_files().items() if self.plain(key) == key}

    def plain(self, key: str) -> str:
        """The word to give QEMU for "kernel" or "initrd": the file's path, or the name of a link to it."""
        path = str(self._boot_files()[key])
        return key if any(char in path for char in _UNSAFE) else path

    def _boot_files(self) -> dict[str, Path]:
        return {"kernel": self.kernel, "initrd": self.initrd}


@dataclass(frozen=True)
class MemoryFile:
    """Where the memory of a guest lies that is to be saved, or was: a file to which a template writes, and no clone."""

    file: Path | None
    """None: in no file."""
    shared: bool
    """Whether what the guest writes goes to the file."""
    restored: bool
    """Whether QEMU waits for the state of a saved guest."""
    gate: bool
    """Whether the guest has a second serial port, for its renewal (see pipeline/vm/qemu/renewal.py)."""
    generation: bool = True
    """Whether the guest has a generation id, if its machine can have one."""


def option(path: Path) -> str:
    """A path as the value of a QEMU option such as file=, where commas must be doubled."""
    return str(path).replace(",", ",,")


def command(
    guest: GuestProfile,
    accel: Accelerator,
    qemu: QemuSettings,
    files: Files,
    boot_id: str,
    memory: MemoryFile | None = None,
) -> tuple[str, ...]:
    """The command line that starts QEMU for this guest, as words.

    `boot_id`, 32 hex digits, becomes the machine's UUID, so that QEMU itself can be asked for it. Only a guest that is
    to be saved, or was, has `memory` in a file.
    """
    network = "net=192.168.3.0/24,dhcpstart=192.168.3.9,host=192.168.3.2"
    restrict = "restrict=on," if qemu.restrict else ""
    return (
        str(files.qemu),
        *("-kernel", files.plain("kernel")),
        *("-initrd", files.plain("initrd")),
        *_machine(guest, accel, qemu, memory),
        *("-smp", str(qemu.smp or guest.smp)),
        *("-m", str(qemu.memory or guest.memory)),
        *("-object", "iothread,id=iothread-d0"),
        *("-drive", _drive(files)),
        *("-device", "virtio-blk-pci,drive=d0,iothread=iothread-d0"),
        *(_targets(files.targets) if files.targets else ()),
        *("-netdev", f"user,id=net0,{network},{restrict}hostfwd=tcp:127.0.0.1:0-:22"),
        *("-device", "virtio-net-pci,mac=52:54:00:63:5e:7b,netdev=net0"),
        "-nodefaults",
        *("-display", "none"),
        *("-monitor", "none"),
        *("-chardev", _serial(files)),
        *("-serial", "chardev:serial0"),
        *(_saved(guest, memory, qemu) if memory else ()),
        *("-qmp", "unix:qmp,server=on,wait=off"),
        *("-pidfile", str(files.pidfile)),
        *("-uuid", str(UUID(boot_id))),
        "-no-reboot",
        *_rights(qemu.user),
        *("-append", " ".join(guest.kernel_arguments)),
        *qemu.arguments,
    )


def _drive(files: Files) -> str:
    return f"id=d0,file={option(files.disk)},format=qcow2,if=none,cache=unsafe,aio=threads"


def _targets(image: Path) -> tuple[str, ...]:
    """The second disk: one image for all guests, to which nobody writes."""
    drive = f"id={_TARGETS},file={option(image)},format=raw,if=none,readonly=on,aio=threads"
    return ("-drive", drive, "-device", f"virtio-blk-pci,drive={_TARGETS}")


def _serial(files: Files) -> str:
    # The log is opened to append, so that QEMU writes on at the end after a rotation
    logged = f"logfile={option(files.serial_log)},logappend=on"
    return f"socket,id=serial0,path=serial,server=on,wait=off,{logged}"


# QEMU's own name of each machine's memory: only with that can a saved guest also be restored without a file
_MEMORY_ID = {"x64": "pc.ram", "arm64": "mach-virt.ram"}


_GATE = ("-chardev", "socket,id=gate0,path=gate,server=on,wait=off", "-serial", "chardev:gate0")


def _saved(guest: GuestProfile, memory: MemoryFile, qemu: QemuSettings) -> tuple[str, ...]:
    """What only a guest has that is saved, or was: its memory in a file, a generation id, perhaps a gate."""
    return (
        *(("-object", _backend(guest, memory.file, memory, qemu)) if memory.file else ()),
        # Kernels that know it, such as Debian 13's, seed their random numbers anew when it changes
        *(("-device", "vmgenid,guid=auto") if guest.arch == "x64" and memory.generation else ()),
        *(_GATE if memory.gate else ()),
        *(("-incoming", "defer") if memory.restored else ()),
    )


def _backend(guest: GuestProfile, file: Path, memory: MemoryFile, qemu: QemuSettings) -> str:
    size, share = qemu.memory or guest.memory, "on" if memory.shared else "off"
    return f"memory-backend-file,id={_MEMORY_ID[guest.arch]},size={size}M,mem-path={option(file)},share={share}"


def _machine(guest: GuestProfile, accel: Accelerator, qemu: QemuSettings, memory: MemoryFile | None) -> tuple[str, ...]:
    kvm = accel == "kvm"
    backed = f",memory-backend={_MEMORY_ID[guest.arch]}" if memory and memory.file else ""
    # QEMU saves no guest whose CPU has a TSC that must not change its rate
    host = "host" if memory else KVM_CPU[guest.arch]
    cpu = qemu.cpu or (host if kvm else guest.emulated_cpu)
    if guest.arch == "x64":
        # fw_cfg keeps SeaBIOS from writing to the serial port
        machine: tuple[str, ...] = ("-machine", f"q35,{_NO_MORE}{backed}", "-fw_cfg", "name=etc/sercon-port,string=0")
    else:
        kind = "virt,gic-version=host" if kvm else "virt,gic-version=3,virtualization=true"
        machine = ("-machine", f"{kind}{backed}")
    return (*machine, "-cpu", cpu, *(("-enable-kvm",) if kvm else ("-accel", emulation(guest, qemu))))


def emulation(guest: GuestProfile, qemu: QemuSettings) -> str:
    """The value of -accel for a guest without KVM: several CPUs share one thread, unless `[qemu] tcg_threads` is multi.

    With a thread for each of several CPUs, QEMU 7.2 itself crashed in 5 of 12 boots of a Zircon, which moves its PCI
    BARs while it boots; with one thread for all, in none.
    """
    threads = qemu.tcg_threads
    if threads == "auto":
        several = (qemu.smp or guest.smp) > 1 or not {"-smp", "--smp"}.isdisjoint(qemu.arguments)
        threads = "single" if several else "auto"
    return "tcg" if threads == "auto" else f"tcg,thread={threads}"


def _rights(user: str | None) -> tuple[str, ...]:
    # The sandbox is set up first, and would kill a QEMU that changes its user. Having changed, it cannot go back
    name, value = SANDBOX
    return (RUNAS, user, name, value.replace("elevateprivileges=deny", "elevateprivileges=allow")) if user else SANDBOX


_BOOTED = ("-kernel", "-initrd", "-append")  # what a guest is booted with, and then has in its memory
_THREADS: dict[str, TcgThreads] = {"tcg": "auto", "tcg,thread=single": "single", "tcg,thread=multi": "multi"}


def machine_of(argv: Sequence[str], kind: str) -> SavedMachine:
    """The machine of a QEMU that runs with this command line of Topcoat's; `kind` is QEMU's own name of it."""
    words = list(argv)
    kvm = "-enable-kvm" in words
    return SavedMachine(
        kind=kind,
        cpu=_value(words, "-cpu"),
        smp=int(_value(words, "-smp")),
        memory=int(_value(words, "-m")),
        accelerator="kvm" if kvm else "tcg",
        threads="auto" if kvm else _THREADS[_value(words, "-accel")],
        restrict="restrict=on" in _value(words, "-netdev").split(","),
        generation="vmgenid,guid=auto" in words,
        gate="chardev:gate0" in words,
        targets=targets_of(argv) is not None,
        arguments=tuple(words[words.index("-append") + 2 :]) if "-append" in words else (),
    )


def targets_of(argv: Sequence[str]) -> Path | None:
    """The file of the disk with targets on a command line of Topcoat's; None if the guest has none."""
    begin, end = f"id={_TARGETS},file=", ",format=raw"
    drives = (word for word in argv if word.startswith(begin))
    return next((Path(drive[len(begin) : drive.rindex(end)].replace(",,", ",")) for drive in drives), None)


def opened(machine: SavedMachine, files: Files, boot_id: str) -> tuple[str, ...]:
    """The command line that restores a guest which was saved, with its memory, while it ran in this machine.

    Nothing is left of what it was booted with, as all of that is in its memory.
    """
    guest = GuestProfile("x64", machine.memory, machine.smp, machine.cpu, ())
    qemu = QemuSettings(
        cpu=machine.cpu, tcg_threads=machine.threads, restrict=machine.restrict, arguments=machine.arguments
    )
    restored = MemoryFile(None, shared=False, restored=True, gate=machine.gate, generation=machine.generation)
    words = list(command(guest, machine.accelerator, qemu, files, boot_id, restored))
    for option in _BOOTED:
        at = words.index(option)
        del words[at : at + 2]
    at = words.index("-machine") + 1
    words[at] = ",".join([machine.kind, *words[at].split(",")[1:]])
    return tuple(words)


def _value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def with_run_with(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The same command line with -run-with, for a QEMU that does not know -runas any more."""
    at = argv.index(RUNAS)
    return (*argv[:at], "-run-with", f"user={argv[at + 1]}", *argv[at + 2 :])


def without_sandbox(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The same command line without the sandbox, for a QEMU that was built without seccomp."""
    at = argv.index(SANDBOX[0])
    return argv[:at] + argv[at + len(SANDBOX) :]
