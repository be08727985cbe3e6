import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.builds.build import Arch, Build, Kind
from pipeline.builds.targets.places import TargetsPlaces
from pipeline.settings import Accelerator, QemuSettings, Store, TcgThreads
from pipeline.vm.qemu.command_line import (
    Files,
    MemoryFile,
    command,
    machine_of,
    opened,
    option,
    targets_of,
    without_sandbox,
)
from pipeline.vm.qemu.profile import GuestProfile, guest_of

FILES = Files(
    qemu=Path("/q/qemu"),
    kernel=Path("/b/kernel"),
    initrd=Path("/s/ssh-initrd"),
    disk=Path("/i/overlay.qcow2"),
    pidfile=Path("/i/qemu.pid"),
    serial_log=Path("/i/serial.log"),
)
LINUX = replace(FILES, targets=Path("/s/a,b/targets.squashfs"))
PLACES = TargetsPlaces("p", Path("/p"), Store(Path("/s")), build="demo")
START = ["/q/qemu", "-kernel", "/b/kernel", "-initrd", "/s/ssh-initrd"]
NETDEV = (
    "user,id=net0,net=192.168.3.0/24,dhcpstart=192.168.3.9,host=192.168.3.2,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"
)
DEVICES = [
    "-object", "iothread,id=iothread-d0",
    "-drive", "id=d0,file=/i/overlay.qcow2,format=qcow2,if=none,cache=unsafe,aio=threads",
    "-device", "virtio-blk-pci,drive=d0,iothread=iothread-d0",
    "-netdev", NETDEV,
    "-device", "virtio-net-pci,mac=52:54:00:63:5e:7b,netdev=net0",
    "-nodefaults",
    "-display", "none",
    "-monitor", "none",
    "-chardev", "socket,id=serial0,path=serial,server=on,wait=off,logfile=/i/serial.log,logappend=on",
    "-serial", "chardev:serial0",
    "-qmp", "unix:qmp,server=on,wait=off",
    "-pidfile", "/i/qemu.pid",
    "-uuid", "6ed5b97c-4d0d-497a-bbc5-0ccdd8f53e66",
    "-no-reboot",
    "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
]  # fmt: skip
FUCHSIA = (
    "kernel.serial=legacy kernel.halt-on-panic=true TERM=dumb "
    "kernel.lockup-detector.critical-section-threshold-ms=0 "
    "kernel.lockup-detector.critical-section-fatal-threshold-ms=0 "
    "kernel.lockup-detector.heartbeat-period-ms=0 "
    "kernel.lockup-detector.heartbeat-age-threshold-ms=0 "
    "kernel.lockup-detector.heartbeat-age-fatal-threshold-ms=0 "
    "kernel.bypass-debuglog=true kernel.entropy-mixin=ENTROPY"
)
DEMO = (
    "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check tsc=reliable cryptomgr.notests "
    "topcoat.name=i7 topcoat.boot=b00t"
)
WITH_TARGETS = [
    *DEVICES[:6],
    "-drive", "id=targets0,file=/s/a,,b/targets.squashfs,format=raw,if=none,readonly=on,aio=threads",
    "-device", "virtio-blk-pci,drive=targets0",
    *DEVICES[6:],
]  # fmt: skip
Q35 = ["-machine", "q35,sata=off,smbus=off,vmport=off", "-fw_cfg", "name=etc/sercon-port,string=0"]
BOOT_ID = "6ed5b97c4d0d497abbc50ccdd8f53e66"
LARGE = ["-smp", "4", "-m", "3072"]


def guest(kind: Kind = "local", arch: Arch = "x64") -> GuestProfile:
    targets = PLACES if kind == "demo" else None
    return guest_of(Build(kind, arch, "name", "why", {}, targets=targets), "i7", "b00t")


def words(
    guest: GuestProfile,
    accel: Accelerator = "kvm",
    qemu: QemuSettings | None = None,
    files: Files = FILES,
    memory: MemoryFile | None = None,
) -> list[str]:
    """The command line, with a fixed text in place of the entropy."""
    argv = command(guest, accel, qemu or QemuSettings(), files, BOOT_ID, memory)
    return [re.sub(r"(?<=entropy-mixin=)[0-9a-f]{64}(?= |$)", "ENTROPY", word) for word in argv]


def value(argv: list[str], name: str) -> str:
    assert argv.count(name) == 1
    return argv[argv.index(name) + 1]


@pytest.mark.parametrize(
    ("kind", "arch", "accel", "expected"),
    [
        ("demo", "x64", "tcg", [*START, *Q35, "-cpu", "max,erms=off,fsrm=off", "-accel", "tcg", "-smp", "1",
                                "-m", "512", *WITH_TARGETS, "-append", DEMO]),
        ("local", "x64", "kvm", [*START, *Q35, "-cpu", "host,migratable=no,+invtsc", "-enable-kvm", *LARGE, *DEVICES,
                                 "-append", FUCHSIA]),
        ("clusterfuzz", "x64", "tcg", [*START, *Q35, "-cpu", "Skylake-Client,-check,-erms", "-accel",
                                       "tcg,thread=single", *LARGE, *DEVICES, "-append", FUCHSIA]),
        ("local", "arm64", "kvm", [*START, "-machine", "virt,gic-version=host", "-cpu", "host", "-enable-kvm", *LARGE,
                                   *DEVICES, "-append", FUCHSIA]),
        ("local", "arm64", "tcg", [*START, "-machine", "virt,gic-version=3,virtualization=true", "-cpu", "max",
                                   "-accel", "tcg,thread=single", *LARGE, *DEVICES, "-append", FUCHSIA]),
    ],
    ids=["demo x64 tcg", "Fuchsia x64 kvm", "Fuchsia x64 tcg", "Fuchsia arm64 kvm", "Fuchsia arm64 tcg"],
)  # fmt: skip
def test_the_whole_command_line(kind: Kind, arch: Arch, accel: Accelerator, expected: list[str]) -> None:
    assert words(guest(kind, arch), accel, files=LINUX if kind == "demo" else FILES) == expected


PLAIN_Q35 = "q35,sata=off,smbus=off,vmport=off"
SAVED = ["-device", "vmgenid,guid=auto"]
GATE = ["-chardev", "socket,id=gate0,path=gate,server=on,wait=off", "-serial", "chardev:gate0"]
WAITS = ["-incoming", "defer"]
TEMPLATE = MemoryFile(Path("/t/a,b"), shared=True, restored=False, gate=True)
CLONE = MemoryFile(Path("/t/ram"), shared=False, restored=True, gate=True)


@pytest.mark.parametrize(
    ("arch", "accel", "memory", "machine", "cpu", "backend", "more"),
    [
        ("x64", "tcg", TEMPLATE, PLAIN_Q35, "Skylake-Client,-check,-erms",
         "id=pc.ram,size=3072M,mem-path=/t/a,,b,share=on", [*SAVED, *GATE]),
        ("x64", "kvm", CLONE, PLAIN_Q35, "host",
         "id=pc.ram,size=3072M,mem-path=/t/ram,share=off", [*SAVED, *GATE, *WAITS]),
        ("arm64", "kvm", replace(CLONE, gate=False), "virt,gic-version=host", "host",
         "id=mach-virt.ram,size=3072M,mem-path=/t/ram,share=off", WAITS),
    ],
    ids=["template", "clone", "clone arm64"],
)  # fmt: skip
def test_what_a_guest_has_more_that_is_saved_or_restored(
    arch: Arch, accel: Accelerator, memory: MemoryFile, machine: str, cpu: str, backend: str, more: list[str]
) -> None:
    plain, argv = words(guest("local", arch), accel), words(guest("local", arch), accel, memory=memory)
    name = backend.partition(",")[0].removeprefix("id=")
    plain[plain.index("-machine") + 1] = f"{machine},memory-backend={name}"
    plain[plain.index("-cpu") + 1] = cpu
    at = plain.index("-qmp")
    assert argv == [*plain[:at], "-object", f"memory-backend-file,{backend}", *more, *plain[at:]]


UNDERCOAT = [
    "-kernel /b/kernel", "-initrd /s/ssh-initrd", "-machine q35", "-fw_cfg name=etc/sercon-port,string=0",
    "-cpu host,migratable=no,+invtsc", "-enable-kvm", "-smp 4", "-m 3072", "-object iothread,id=iothread-d0",
    "-drive id=d0,file=DISK,format=raw,if=none,cache=unsafe,aio=threads",
    "-device virtio-blk-pci,drive=d0,iothread=iothread-d0",
    "-netdev user,id=net0,net=192.168.3.0/24,dhcpstart=192.168.3.9,host=192.168.3.2,hostfwd=tcp::PORT-:22",
    "-device virtio-net-pci,mac=52:54:00:63:5e:7b,netdev=net0", "-nographic", "-monitor none", "-serial file:LOG",
]  # fmt: skip
DIFFERENT = ["-machine", "-drive", "-netdev", "-nographic", "-serial"]
OURS_ONLY = ["-nodefaults", "-display", "-chardev", "-qmp", "-pidfile", "-uuid", "-no-reboot", "-sandbox"]


def test_the_rows_of_undercoat_come_in_its_order_but_for_the_known_differences() -> None:
    argv = words(guest("local", "x64"), "kvm")
    ours: list[str] = []
    for word in argv[1:-2]:
        if word.startswith("-"):
            ours.append(word)
        else:
            ours[-1] += f" {word}"
    changed = [*DIFFERENT, *OURS_ONLY]
    assert [row for row in ours if row.split()[0] not in changed] == [
        row for row in UNDERCOAT if row.split()[0] not in changed
    ]
    assert [row.split()[0] for row in ours if row.split()[0] in changed] == [
        "-machine", "-drive", "-netdev", "-nodefaults", "-display", "-chardev", "-serial", "-qmp", "-pidfile", "-uuid",
        "-no-reboot", "-sandbox",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("qemu", "name", "expected"),
    [
        (QemuSettings(memory=1024), "-m", "1024"),
        (QemuSettings(smp=8), "-smp", "8"),
        (QemuSettings(cpu="EPYC,-x2apic"), "-cpu", "EPYC,-x2apic"),
    ],
    ids=["memory", "smp", "cpu"],
)
@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_a_setting_replaces_one_value(accel: Accelerator, qemu: QemuSettings, name: str, expected: str) -> None:
    plain, changed = words(guest(), accel), words(guest(), accel, qemu)
    assert value(changed, name) == expected
    assert [word for word in plain if word != value(plain, name)] == [word for word in changed if word != expected]


@pytest.mark.parametrize(
    ("smp", "qemu", "expected"),
    [
        (1, QemuSettings(), "tcg"),
        (4, QemuSettings(), "tcg,thread=single"),
        (1, QemuSettings(smp=2), "tcg,thread=single"),
        (4, QemuSettings(smp=1), "tcg"),
        (1, QemuSettings(arguments=("-smp", "cpus=2")), "tcg,thread=single"),
        (1, QemuSettings(arguments=("--smp", "2")), "tcg,thread=single"),
        (4, QemuSettings(tcg_threads="multi"), "tcg,thread=multi"),
        (1, QemuSettings(tcg_threads="single"), "tcg,thread=single"),
    ],
)
def test_several_cpus_that_are_emulated_share_a_thread(smp: int, qemu: QemuSettings, expected: str) -> None:
    several = replace(guest(), smp=smp)
    assert value(words(several, "tcg", qemu), "-accel") == expected
    assert "-accel" not in words(several, "kvm", qemu)


@pytest.mark.parametrize("threads", ["auto", "single", "multi"])
@pytest.mark.parametrize("kind", ["demo", "local"])
def test_the_real_qemu_takes_what_is_for_emulation(kind: Kind, threads: TcgThreads) -> None:
    argv = words(guest(kind), "tcg", QemuSettings(tcg_threads=threads))
    taken = [word for name in ("-machine", "-cpu", "-accel", "-smp") for word in (name, value(argv, name))]
    done = subprocess.run(
        ["qemu-system-x86_64", *taken, "-S", "-nodefaults", "-display", "none", "-monitor", "stdio"],
        input="info status\nquit\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "VM status: paused (prelaunch)" in done.stdout


@pytest.mark.parametrize("kind", ["demo", "local"])
def test_a_cpu_of_the_users_stays_as_it_is(kind: Kind) -> None:
    assert value(words(guest(kind), "tcg", QemuSettings(cpu="max")), "-cpu") == "max"


def test_the_guest_may_reach_out_if_it_is_not_restricted() -> None:
    netdev = value(words(guest(), qemu=QemuSettings(restrict=False)), "-netdev")
    assert netdev == NETDEV.replace("restrict=on,", "")


def test_further_arguments_come_last() -> None:
    assert words(guest(), qemu=QemuSettings(arguments=("-name", "a b"))) == [*words(guest()), "-name", "a b"]


def test_commas_in_option_values_are_doubled() -> None:
    files = replace(FILES, disk=Path("/i,1/o,,k"), serial_log=Path("/i,1/log"), pidfile=Path("/i,1/pid"))
    argv = words(guest(), files=files)
    assert "file=/i,,1/o,,,,k,format=qcow2" in value(argv, "-drive")
    assert value(argv, "-chardev").endswith(",logfile=/i,,1/log,logappend=on")
    assert value(argv, "-pidfile") == "/i,1/pid"
    assert option(Path("/plain path")) == "/plain path"


@pytest.mark.parametrize("odd", ["a b", "a,b", "a\tb", "a\nb"], ids=["blank", "comma", "tab", "newline"])
@pytest.mark.parametrize("part", ["kernel", "initrd"])
def test_paths_that_qemu_would_split_are_given_as_links(part: str, odd: str) -> None:
    path = Path(f"/b/{odd}/file")
    files = replace(FILES, kernel=path) if part == "kernel" else replace(FILES, initrd=path)
    assert files.links() == {part: path}
    argv = words(guest(), files=files)
    assert value(argv, f"-{part}") == part
    assert str(path) not in argv


def test_plain_paths_need_no_links() -> None:
    assert FILES.links() == {}


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_without_sandbox_only_the_sandbox_is_gone(accel: Accelerator) -> None:
    argv = command(guest(), accel, QemuSettings(arguments=("-s",)), FILES, BOOT_ID)
    at = argv.index("-sandbox")
    assert without_sandbox(argv) == (*argv[:at], *argv[at + 2 :])


def test_entropy_has_64_hex_digits_and_differs_each_time() -> None:
    mixed = {guest().kernel_arguments[-1] for _ in range(5)}
    assert len(mixed) == 5
    assert all(re.fullmatch(r"kernel\.entropy-mixin=[0-9a-f]{64}", argument) for argument in mixed)


OPENED = Files(
    qemu=Path("/other/qemu"),
    kernel=Path("kernel"),
    initrd=Path("initrd"),
    disk=Path("/j/a,b/overlay.qcow2"),
    pidfile=Path("/j/a,b/qemu.pid"),
    serial_log=Path("/j/a,b/serial.log"),
    targets=Path("/j/a,b/targets.squashfs"),
)
OTHER_BOOT = "77cd3c8f00000000000000000000000a"
CLONE = MemoryFile(Path("/proc/self/fd/8"), shared=False, restored=True, gate=True)
GATE = ["-chardev", "socket,id=gate0,path=gate,server=on,wait=off", "-serial", "chardev:gate0"]


@pytest.mark.parametrize("memory", [None, CLONE], ids=["booted", "cloned"])
def test_a_guest_from_a_capsule_has_the_machine_that_was_saved(memory: MemoryFile | None) -> None:
    """But for its name space on the host, and for what it was booted with; the backend of its memory is none."""
    mine = QemuSettings(memory=700, arguments=("-device", "virtio-rng-pci", "-name", "-kernel"))
    saved = command(guest("demo"), "tcg", mine, LINUX, BOOT_ID, memory)
    assert targets_of(saved) == LINUX.targets
    assert list(opened(machine_of(saved, "pc-q35-7.2"), OPENED, OTHER_BOOT)) == [
        "/other/qemu",
        *("-machine", "pc-q35-7.2,sata=off,smbus=off,vmport=off", "-fw_cfg", "name=etc/sercon-port,string=0"),
        *("-cpu", "max,erms=off,fsrm=off", "-accel", "tcg", "-smp", "1", "-m", "700"),
        *("-object", "iothread,id=iothread-d0"),
        *("-drive", "id=d0,file=/j/a,,b/overlay.qcow2,format=qcow2,if=none,cache=unsafe,aio=threads"),
        *DEVICES[4:6],
        *("-drive", "id=targets0,file=/j/a,,b/targets.squashfs,format=raw,if=none,readonly=on,aio=threads"),
        *("-device", "virtio-blk-pci,drive=targets0"),
        *DEVICES[6 : DEVICES.index("-chardev")],
        "-chardev",
        "socket,id=serial0,path=serial,server=on,wait=off,logfile=/j/a,,b/serial.log,logappend=on",
        *("-serial", "chardev:serial0"),
        *(("-device", "vmgenid,guid=auto", *GATE) if memory else ()),
        *("-incoming", "defer", "-qmp", "unix:qmp,server=on,wait=off"),
        *("-pidfile", "/j/a,b/qemu.pid", "-uuid", "77cd3c8f-0000-0000-0000-00000000000a", "-no-reboot"),
        *DEVICES[DEVICES.index("-sandbox") :],
        *("-device", "virtio-rng-pci", "-name", "-kernel"),
    ]


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
@pytest.mark.parametrize("threads", ["auto", "single", "multi"])
@pytest.mark.parametrize("restrict", [True, False])
@pytest.mark.parametrize("smp", [1, 4])
def test_the_machine_of_what_was_opened_is_the_same(
    accel: Accelerator, threads: TcgThreads, restrict: bool, smp: int
) -> None:
    chosen = QemuSettings(tcg_threads=threads, restrict=restrict, smp=smp, arguments=("-name", "x"))
    machine = machine_of(command(guest("demo"), accel, chosen, LINUX, BOOT_ID, CLONE), "pc-q35-7.2")
    words = opened(machine, OPENED, OTHER_BOOT)
    again = machine_of((*words[: -len(machine.arguments)], "-append", "", *machine.arguments), "pc-q35-7.2")
    assert again == machine
    assert (machine.accelerator, machine.smp, machine.restrict) == (accel, smp, restrict)
