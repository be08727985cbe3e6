"""Making a template: a guest is booted with its memory in a file, saved when it is ready, and proved by two clones."""

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.builds.build import Build
from pipeline.errors import AlreadyRunning, BootError, CloneUnsound, HostFault, StoreError, TopcoatError
from pipeline.host.deadline import Deadline, utc_now
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.host.resources import free_bytes
from pipeline.settings import Settings
from pipeline.store.freshness import Key, Proof
from pipeline.store.publish import publish_json, remove
from pipeline.text.printable import printable
from pipeline.text.quantity import readable_size
from pipeline.vm.instance import Instance
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.launcher import ATTEMPTS_OF_HOST, KILL_LIMIT, GuestShell
from pipeline.vm.qemu import migration, proving, renewal
from pipeline.vm.qemu.keeper import parts
from pipeline.vm.qemu.launcher import QemuLauncher
from pipeline.vm.qemu.profile import guest_of
from pipeline.vm.qemu.qmp import Monitor, MonitorError
from pipeline.vm.qemu.stopping import stop, stop_qemu
from pipeline.vm.template import DISK, RAM, SERIAL, STATE, OpenTemplate, Template, TemplateFacts, saved_files

log = logging.getLogger("topcoat")

MAKER = "BootTemplate"
"""The task of the key in the handles of guests that are there only while a template is made."""

_GRACE = 1.0  # seconds that the guests outlive a maker that was killed
_LIMIT = 30.0  # seconds for one command in the guest
_SAVING = 60.0  # seconds; as a rule it takes 15 ms
_MOST_SERIAL = 1 << 20  # bytes of the serial log that clones begin with


@dataclass(frozen=True)
class _Unproved:
    """The template that is being made, as pipeline.vm.template.Templates: if a clone fails, it fails too."""

    template: Template

    def has_one(self) -> bool:
        return True

    def open(self) -> OpenTemplate:
        return OpenTemplate(self.template)

    def failed(self, template: OpenTemplate, error: BootError) -> None:
        raise error


def make(settings: Settings, build: Build, made_of: Key, directory: Path) -> Proof:
    """Make a template in the existing `directory`, with the files of pipeline.vm.template, and prove it.

    Until it is proved, its guest and two clones run as the instances template-BUILD, template-BUILD-a and -b. `made_of`
    is what a boot would be made of now. Raises TopcoatError: BootError if the guest or a clone does not become ready,
    CloneUnsound if a clone is not what it should be in ATTEMPTS_OF_HOST attempts, StoreError if there is no room.
    """
    attempt = 1
    while True:
        try:
            return _made_once(settings, build, made_of, directory)
        except CloneUnsound as error:  # most likely the host was so busy that the guest mistook the speed of its clock
            if attempt == ATTEMPTS_OF_HOST:
                raise
            log.warning("attempt %d to make a template failed, trying again: %s", attempt, error)
        remove(*Template(directory).files)
        attempt += 1


def _made_once(settings: Settings, build: Build, made_of: Key, directory: Path) -> Proof:
    template = Template(directory)
    _require_room(directory, (settings.qemu.memory or guest_of(build, "", "").memory) << 20)
    with ExitStack() as held:
        names = _names(build.name)
        instances = [held.enter_context(_passing(Instance.named(settings.store, name))) for name in names]
        keepalive = KeepAlive(directory / "makers.lock", _GRACE)
        held.enter_context(keepalive.held())
        key, memory = replace(made_of, task=MAKER), directory / RAM
        donor = QemuLauncher(settings, build, instances[0], "ssh", key, keepalive, memory=memory)
        _save(donor, instances[0], build, template)
        clones = [
            QemuLauncher(settings, build, one, "ssh", key, keepalive, templates=_Unproved(template))
            for one in instances[1:]
        ]
        return _proved(clones, instances[1:], renewed=build.renews)


def _names(build: str) -> tuple[str, str, str]:
    name = f"template-{re.sub(r'[^A-Za-z0-9._-]', '-', build)[:40]}"
    return name, f"{name}-a", f"{name}-b"


def _require_room(directory: Path, memory: int) -> None:
    """Raise StoreError if the whole memory has no room: on a full disk, QEMU dies by SIGBUS without a word."""
    with host_faults("looking at the disk"):
        free = free_bytes(directory)
    if free < memory:
        raise StoreError(
            f"a template needs room for the guest's memory: {readable_size(free)} are free, of {readable_size(memory)}",
            hint="free some space, see topcoat gc and topcoat clean; or [boot] warm = never",
        )


@contextmanager
def _passing(instance: Instance) -> Iterator[Instance]:
    """An instance that nobody else uses, and that leaves nothing behind; its logs stay if the body fails."""
    handle = instance.live_handle()
    if handle and handle.made_of.task != MAKER:
        raise AlreadyRunning(
            f"{instance.name} is running, and has the name that the maker of a template needs",
            hint=f"end it: topcoat stop {instance.name}",
        )
    stop(instance, KILL_LIMIT)  # of a maker that was killed
    try:
        yield instance
    except BaseException:
        try:
            stop(instance, KILL_LIMIT)
        except TopcoatError as error:  # logged, not raised: it must not hide the error that led here
            log.error("%s", error.about(instance.name).explain())
        raise
    stop(instance, KILL_LIMIT)
    with locked(instance.directory, KILL_LIMIT), host_faults(f"removing {instance.name}"):
        shutil.rmtree(instance.directory)


def _save(donor: QemuLauncher, instance: Instance, build: Build, template: Template) -> None:
    shell, renews = donor.start(), build.renews
    try:
        if renews:
            _require(shell, renewal.COMMAND)
    finally:
        shell.close()
    handle = instance.require_running()
    try:
        with Monitor(instance.qmp_socket, _LIMIT) as monitor:
            version = monitor.version()
            with host_faults("saving the guest"), (template.directory / STATE).open("xb") as state:
                migration.save(monitor, instance.migration_socket, state, Deadline(_SAVING), memory_in_file=True)
    except MonitorError as error:
        raise HostFault(
            f"the guest could not be saved: {error}",
            hint="see topcoat logs NAME; [boot] warm = never does without templates",
            stage="save",
            cause="not saved",
        ) from error
    stop_qemu(instance.pidfile, instance.qmp_socket, KILL_LIMIT)
    with host_faults("saving the guest"):
        shutil.copyfile(instance.overlay, template.directory / DISK)
        log_so_far = b"".join(part.read_bytes() for part in parts(instance.serial_log))
        (template.directory / SERIAL).write_bytes(log_so_far[-_MOST_SERIAL:])
        ram = (template.directory / RAM).stat().st_size
    facts = TemplateFacts(
        build=build.name,
        boot_id=handle.boot_id,
        host_key=handle.ssh.host_key,
        renews=renews,
        qemu=version,
        seconds=instance.boot_seconds() or 0.0,
        saved=utc_now(),
        ram=ram,
        files=saved_files(template.directory, STATE, DISK, SERIAL),
    )
    publish_json(template.file, facts.encode())


def _require(shell: GuestShell, command: str) -> None:
    result = shell.run(command, _LIMIT)
    if result.status:
        said = printable(result.stderr)
        raise proving.unsound(f"{command} failed in the guest with status {result.status}", detail=said)


def _proved(clones: list[QemuLauncher], instances: list[Instance], *, renewed: bool) -> Proof:
    with ExitStack() as held:
        shells = []
        for clone in clones:
            shell = clone.start()
            held.callback(shell.close)
            shells.append(shell)
        handles = [instance.require_running() for instance in instances]
        if not all(handle.is_clone for handle in handles):
            raise proving.unsound("no clone can be made of it: its files cannot be read as they were written")
        boot_ids = [handle.boot_id for handle in handles]
        return proving.prove(shells, boot_ids) if renewed else {"clones": len(shells)}
