"""One boot, decided in all details before anything runs."""

import shlex
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from uuid import UUID, uuid4

from pipeline.builds.build import Build
from pipeline.builds.linux import BOOT_ID, host_key_file
from pipeline.builds.prepare import disk_path, initrd_path
from pipeline.settings import Accelerator, Ready, Settings, Store, Timeouts
from pipeline.store.freshness import Key
from pipeline.vm.capsule import Capsule
from pipeline.vm.history import History
from pipeline.vm.instance import Instance
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.qemu import accel, disk
from pipeline.vm.qemu.command_line import Files, MemoryFile, command, emulation, opened
from pipeline.vm.qemu.profile import ENTROPY, GuestProfile, guest_of
from pipeline.vm.qemu.user import require_user
from pipeline.vm.template import OpenTemplate
from pipeline.vm.timeline import How

UNKNOWN = Key("", 0, {}, {}, {})
"""The key of what an instance is made of, for a plan that is not carried out."""


@dataclass(frozen=True)
class Images:
    """What the prepare tasks make of a build, and the keys that belong to it."""

    initrd: Path
    disk: Path
    key: Path
    """The private SSH key whose public half is in the initrd."""
    host_key: str | None
    """The guest's host key, if it is known before the boot."""
    targets: Path | None = None
    """The read-only disk with the targets of a Linux guest."""


def images_of(store: Store, build: Build) -> Images:
    """The images that the prepare tasks make of this build in this store."""
    host_key = None
    if build.renews:
        with suppress(FileNotFoundError):  # not made yet
            host_key = host_key_file(store.demo).read_text().strip()
    targets = build.targets.image if build.targets else None
    return Images(initrd_path(store, build), disk_path(store, build), store.keys / "sshid", host_key, targets)


@dataclass(frozen=True)
class Plan:
    """One boot in all details: nothing is looked up later."""

    instance: Instance
    build: Build
    images: Images
    files: Files
    boot_id: str
    """The id of this boot: 32 random hex digits."""
    argv: tuple[str, ...]
    """QEMU's command line."""
    accelerator: Accelerator
    made_of: Key
    timeouts: Timeouts
    history: History
    """The past boots of this kind on this host."""
    usual: float | None
    """How many seconds the slowest boots of this kind have taken on this host; None while too few are known."""
    ready: Ready
    """What proves the guest ready."""
    log_size: int
    """Bytes after which a log is rotated."""
    slow: str
    """Why the guest is emulated although KVM was allowed; "" if it is not, or emulation was chosen."""
    keepalive: KeepAlive | None
    """What ties the guest to its users; None: it runs until it is stopped."""
    saved: OpenTemplate | Capsule | None
    """The saved guest that is restored: as a clone of a template, or from a capsule. None for a boot."""

    @property
    def template(self) -> OpenTemplate | None:
        """The template of which the guest is a clone; None if it is none."""
        return self.saved if isinstance(self.saved, OpenTemplate) else None

    @property
    def disk_form(self) -> disk.Form:
        """The format of the image below the instance's own disk."""
        return "qcow2" if isinstance(self.saved, Capsule) else "raw"

    @property
    def how(self) -> How:
        """In what way the guest comes to be, in a word of the timeline."""
        return "boot" if self.saved is None else "clone" if self.template else "capsule"

    @property
    def proof(self) -> str:
        """A command that the guest, and no other, answers with `answer`."""
        # Without cat: emulated, a process more takes twenty milliseconds in a guest that was just restored
        return f"read -r id <{BOOT_ID} && echo $id" if self.build.renews else f"echo {self.answer}"

    @property
    def answer(self) -> str:
        """The id of the boot, as the guest knows it: one from a capsule still has that of the boot that was saved."""
        return self.saved.facts.boot_id if isinstance(self.saved, Capsule) else self.boot_id


def plan(
    settings: Settings,
    build: Build,
    instance: Instance,
    ready: Ready,
    made_of: Key = UNKNOWN,
    keepalive: KeepAlive | None = None,
    *,
    template: OpenTemplate | None = None,
    memory: Path | None = None,
) -> Plan:
    """Decide everything about a boot, or about a clone of `template`, which must stay open until QEMU has started.

    A guest that is to be saved has its memory in the new file `memory`. Makes nothing, except that it caches whether
    KVM works. Raises MissingResource or SettingsError.
    """
    qemu, kernel = build.paths("qemu", "kernel")
    images = images_of(settings.store, build)
    require_user(settings.qemu.user)
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
        targets=images.targets,
    )
    argv = command(guest, chosen, settings.qemu, files, boot_id, _memory(build, template, memory))
    kind = _kind(settings, build, guest, chosen, ready)
    history = _history(settings, f"{kind}, cloned" if template else kind)
    usual = history.slowest()
    timeouts = settings.boot.timeouts(chosen, usual)
    if template:
        timeouts = replace(timeouts, boot=min(timeouts.boot, timeouts.start + 2 * template.facts.seconds))
        images = replace(images, host_key=template.facts.host_key)
    return Plan(
        instance=instance,
        build=build,
        images=images,
        files=files,
        boot_id=boot_id,
        argv=argv,
        accelerator=chosen,
        made_of=made_of,
        timeouts=timeouts,
        history=history,
        usual=usual,
        ready=ready,
        log_size=settings.boot.log_size,
        slow=slow,
        keepalive=keepalive,
        saved=template,
    )


def plan_of_capsule(settings: Settings, build: Build, instance: Instance, capsule: Capsule, made_of: Key) -> Plan:
    """Decide everything about opening a capsule as this instance. Makes nothing. Raises MissingResource."""
    facts = capsule.facts
    boot_id = uuid4().hex
    files = Files(
        qemu=build.path("qemu"),
        kernel=Path("kernel"),
        initrd=Path("initrd"),
        disk=instance.overlay,
        pidfile=instance.pidfile,
        serial_log=instance.serial_log,
        targets=capsule.targets if facts.machine.targets else None,
    )
    accelerator = facts.machine.accelerator
    history = _history(settings, f"{facts.build} capsule {accelerator}")
    usual = history.slowest()
    return Plan(
        instance=instance,
        build=build,
        images=Images(Path("initrd"), capsule.disk, capsule.key, facts.host_key),
        files=files,
        boot_id=boot_id,
        argv=opened(facts.machine, files, boot_id),
        accelerator=accelerator,
        made_of=made_of,
        timeouts=settings.boot.timeouts(accelerator, usual),
        history=history,
        usual=usual,
        ready="ssh",
        log_size=settings.boot.log_size,
        slow="",
        keepalive=None,
        saved=capsule,
    )


def _history(settings: Settings, kind: str) -> History:
    return History(settings.store.cache / "boots.jsonl", kind)


def _memory(build: Build, template: OpenTemplate | None, file: Path | None) -> MemoryFile | None:
    if template:
        # By the descriptor, which QEMU inherits: the path may be that of another template by now
        place = Path(f"/proc/self/fd/{template.ram}")
        return MemoryFile(place, shared=False, restored=True, gate=template.facts.renews)
    return _new_memory(build, file) if file else None


def _new_memory(build: Build, file: Path) -> MemoryFile:
    return MemoryFile(file, shared=True, restored=False, gate=build.renews)


def command_of(settings: Settings, build: Build) -> str:
    """The command line of a guest that is to be saved, as one text, without what is different in each boot.

    Raises SettingsError.
    """
    chosen, _ = accel.choose(settings.qemu.accel, build.arch, build.path("qemu"), settings.store.cache / "kvm.json")
    guest = guest_of(build, "", "")
    steady = tuple(word for word in guest.kernel_arguments if not word.startswith(ENTROPY))
    files = Files(**{field.name: Path(field.name) for field in fields(Files)})
    if build.targets is None:
        files = replace(files, targets=None)
    qemu, whole = settings.qemu, replace(guest, kernel_arguments=steady)
    return shlex.join(command(whole, chosen, qemu, files, UUID(int=0).hex, _new_memory(build, Path("ram"))))


def _kind(settings: Settings, build: Build, guest: GuestProfile, chosen: Accelerator, ready: Ready) -> str:
    """The kind of a boot: a text with all that must agree for two boots to be comparable."""
    memory, smp = settings.qemu.memory or guest.memory, settings.qemu.smp or guest.smp
    accelerator = "kvm" if chosen == "kvm" else emulation(guest, settings.qemu)
    return f"{build.name} {build.arch} {accelerator} {memory} MiB {smp} CPU {ready}"
