"""One boot, decided in all details before anything runs."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pipeline.build import Build
from pipeline.demo import BOOT_ID, host_key_file
from pipeline.freshness import Key
from pipeline.history import History
from pipeline.instance import Instance
from pipeline.prepare import disk_path, initrd_path
from pipeline.qemu import accel
from pipeline.qemu.command import Files, command, emulation
from pipeline.qemu.guest import Guest, guest_of
from pipeline.settings import Ready, Settings, Store, Timeouts
from pipeline.tie import Tie

UNKNOWN = Key("", 0, {}, {}, {})
"""What an instance is made of, for a plan that is not carried out."""


@dataclass(frozen=True)
class Images:
    """What the prepare tasks make of a build."""

    initrd: Path
    disk: Path
    key: Path
    """The private key whose public half is in the initrd."""
    host_key: str | None
    """The guest's host key, where it is known beforehand."""


def images_of(store: Store, build: Build) -> Images:
    """The images that the prepare tasks make of this build in this store."""
    host_key = None
    if "zbi" in build.demo_made:
        with suppress(FileNotFoundError):  # not made yet
            host_key = host_key_file(store.demo).read_text().strip()
    return Images(initrd_path(store, build), disk_path(store, build), store.keys / "sshid", host_key)


@dataclass(frozen=True)
class Plan:
    """One boot. Nothing is looked up after this."""

    instance: Instance
    build: Build
    images: Images
    files: Files
    boot_id: str
    argv: tuple[str, ...]
    made_of: Key
    timeouts: Timeouts
    history: History
    usual: float | None
    """What the slowest boots of this kind have taken on this host, in seconds; None while too few are known."""
    ready: Ready
    log_size: int
    """Bytes after which a log is rotated."""
    slow: str
    """Why the guest is emulated although KVM was welcome; empty if it is not."""
    tie: Tie | None
    """What the guest's end depends on; None: it runs until it is stopped."""

    @property
    def proof(self) -> str:
        """A command that the guest, and no other, answers with the boot's id."""
        return f"cat {BOOT_ID}" if "zbi" in self.build.demo_made else f"echo {self.boot_id}"


def plan(
    settings: Settings,
    build: Build,
    instance: Instance,
    ready: Ready,
    made_of: Key = UNKNOWN,
    tie: Tie | None = None,
) -> Plan:
    """Decide on everything. Makes nothing but the cached answer whether KVM works.

    Raises MissingResource or SettingsError.
    """
    qemu, kernel = build.paths("qemu", "kernel")
    images = images_of(settings.store, build)
    chosen, slow = accel.choose(settings.qemu.accel, build.arch, qemu, settings.store.cache / "kvm.json")
    boot_id = uuid4().hex
    guest = guest_of(build, instance.name, boot_id)
    files = Files(
        qemu=qemu,
        kernel=kernel,
        initrd=images.initrd,
        disk=instance.overlay,
        pidfile=instance.pidfile,
        serial_log=instance.serial_log,
        sockets=instance.sockets,
    )
    argv = command(guest, chosen, settings.qemu, files, boot_id)
    history = History(settings.store.cache / "boots.jsonl", _kind(settings, build, guest, chosen, ready))
    usual = history.slowest()
    timeouts = settings.boot.timeouts(chosen, usual)
    return Plan(
        instance=instance,
        build=build,
        images=images,
        files=files,
        boot_id=boot_id,
        argv=argv,
        made_of=made_of,
        timeouts=timeouts,
        history=history,
        usual=usual,
        ready=ready,
        log_size=settings.boot.log_size,
        slow=slow,
        tie=tie,
    )


def _kind(settings: Settings, build: Build, guest: Guest, chosen: accel.Accelerator, ready: Ready) -> str:
    """What makes one boot comparable with another."""
    memory, smp = settings.qemu.memory or guest.memory, settings.qemu.smp or guest.smp
    accelerator = "kvm" if chosen == "kvm" else emulation(guest, settings.qemu)
    return f"{build.name} {build.arch} {accelerator} {memory} MiB {smp} CPU {ready}"
