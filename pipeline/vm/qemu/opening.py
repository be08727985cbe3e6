"""Opening a capsule: the guest that was saved goes on, as an instance of its own, with the process that has crashed."""

import shlex
from dataclasses import dataclass

from pipeline.builds.build import Build
from pipeline.errors import AlreadyRunning, BootError, NotSupported, UsageError
from pipeline.settings import Settings
from pipeline.store.freshness import Key
from pipeline.text.printable import one_line, printable
from pipeline.vm import launcher
from pipeline.vm.capsule import SCHEMA, STATE, Capsule
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.launcher import GuestShell
from pipeline.vm.qemu.launcher import QemuLauncher

MAKER = "open"
"""The task of the key in the handle of an instance that was opened from a capsule."""

_LIMIT = 60.0  # seconds for a small command in the guest
_BY_THE_CAPSULE = ("not restored", "arguments refused", "no KVM", "QEMU ended")
"""Causes of failed boots (pipeline/vm/qemu/causes.py) that for a capsule have another remedy than for a boot."""
_HINT = "it takes QEMU {0}{1}, in which it was saved; is that [build] qemu? else try the input of the crash, beside it"


@dataclass(frozen=True)
class ProcessLook:
    """What the guest tells of the process that has crashed. All of it is fit to print."""

    program: str
    """The path of its program in the guest; empty if there is no such process."""
    maps: tuple[str, ...]
    """What its memory is made of: the lines of /proc/PID/maps."""


def open_capsule(settings: Settings, build: Build, instance: Instance, capsule: Capsule) -> Handle:
    """Open the capsule as this instance, unless that runs and was opened from it before. Returns its handle.

    Raises AlreadyRunning if the instance is something else, UsageError if the settings choose another build, and
    BootError if the guest does not go on.
    """
    _require_fits(settings, build, capsule)
    facts = capsule.facts
    made_of = Key(MAKER, SCHEMA, {"build": build.name}, {STATE: facts.files[STATE].digest}, {})
    if _is_open(instance, made_of):
        return instance.require_running()
    try:
        launcher.start(QemuLauncher(settings, build, instance, "ssh", made_of, capsule=capsule)).close()
    except AlreadyRunning:
        if not _is_open(instance, made_of):  # else another process was quicker
            raise
    except BootError as error:
        if error.cause in _BY_THE_CAPSULE:
            cpu = ", and the same kind of CPU" if facts.machine.accelerator == "kvm" else ""
            error.hint = _HINT.format(one_line(facts.qemu), cpu)
        raise
    return instance.require_running()


def _require_fits(settings: Settings, build: Build, capsule: Capsule) -> None:
    facts = capsule.facts
    if build.name != facts.build:
        raise UsageError(
            f"the capsule is of the build {one_line(facts.build)}, and the settings choose {build.name}: {build.why}",
            hint="choose that: by TOPCOAT_TARGETS, FUCHSIA_DIR or FUCHSIA_RESOURCES_DIR, or [build] kind",
        )
    if settings.qemu.user is not None:
        raise NotSupported(
            "[qemu] user is set, and QEMU as another user cannot be given the state of a guest",
            hint="open the capsule without: unset it in luigi.cfg",
        )
    if facts.machine.arguments != settings.qemu.arguments:
        raise UsageError(
            f"the guest was saved with [qemu] arguments = {one_line(shlex.join(facts.machine.arguments))}",
            hint="set the same in luigi.cfg, if you trust who made the capsule: they go to QEMU as they are",
        )


def _is_open(instance: Instance, made_of: Key) -> bool:
    """Whether the instance runs, and was opened from this capsule. Raises AlreadyRunning if it is something else."""
    handle = instance.live_handle()
    if handle and handle.made_of != made_of:
        raise AlreadyRunning(
            f"{instance.name} is running, and was not opened from this capsule",
            hint=f"give another name: --name; or end it: topcoat stop {instance.name}",
        )
    return handle is not None


def look(shell: GuestShell, pid: int) -> ProcessLook:
    """Look at the process in the guest. Raises ConnectError or CommandError."""
    found = shell.run(f"readlink /proc/{pid}/exe && cat /proc/{pid}/maps", _LIMIT)
    if found.status:
        return ProcessLook("", ())
    program, *maps = printable(found.stdout).splitlines() or [""]
    return ProcessLook(program, tuple(maps))
