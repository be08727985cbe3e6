"""Saving a running guest, with its memory, into a capsule: it stands still meanwhile, and then goes on."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ToolError, ToolFailed
from pipeline.host.deadline import Deadline, utc_now
from pipeline.host.faults import host_faults
from pipeline.host.resources import free_bytes
from pipeline.store.publish import publish, publish_json, remove
from pipeline.text.printable import one_line
from pipeline.text.quantity import readable_size
from pipeline.vm.capsule import DISK, FACTS, KEY, STATE, TARGETS, CapsuleFacts, CrashedProcess, SavedMachine
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.qemu import migration
from pipeline.vm.qemu.command_line import machine_of, targets_of
from pipeline.vm.qemu.disk import backing, flatten
from pipeline.vm.qemu.qmp import Monitor, MonitorError
from pipeline.vm.template import saved_files

SAVING = 120.0
"""Seconds that saving a guest may take; on a busy host, one with 3 GiB of memory takes ten."""

_LIMIT = 10.0  # seconds for QEMU to answer; what it is asked for then takes none
_LEVEL = 1  # of Zstandard; others take longer than the guest should stand still, and save a tenth
_MACHINE = "-machine"  # the end of the name of each of QEMU's types of machines


class NotCapturedError(Exception):
    """The guest was not saved; the text says why, in one clause."""

    lost = False
    """Whether the guest does not go on, so that nobody can use it any more."""


class GuestLostError(NotCapturedError):
    """The guest was not saved, and does not go on either."""

    lost = True


def capture(
    instance: Instance, handle: Handle, crashed: CrashedProcess, directory: Path, qemu_img: Path, *, most: int
) -> None:
    """Save the guest of `handle` into the capsule `directory`, of at most `most` bytes, which appears whole or not.

    The caller holds the lock of `directory`. Raises NotCapturedError, and StoreError if the store takes no more.
    """
    try:
        with host_faults("looking at the disk"):
            free = free_bytes(directory.parent)
        if free < most:
            wanted = f"{readable_size(most)} are wanted for it ([campaign] capsule_size)"
            raise NotCapturedError(f"the disk is full: {readable_size(free)} are free, and {wanted}")
        with publish(directory) as made:
            made.mkdir(0o700)
            version, machine = _save(instance, handle, made, qemu_img, most)
            shutil.copyfile(instance.key, made / KEY)
            (made / KEY).chmod(0o600)
            _save_targets(handle, made / TARGETS, most)
            names = (STATE, DISK, KEY, *((TARGETS,) if machine.targets else ()))
            facts = CapsuleFacts(
                crashed=crashed,
                build=handle.build,
                boot_id=handle.boot_id,
                host_key=handle.ssh.host_key,
                machine=machine,
                qemu=version,
                saved=utc_now(),
                files=saved_files(made, *names),
            )
            publish_json(made / FACTS, facts.encode())
    except ToolError as error:
        raise NotCapturedError(f"{error}: {one_line(error.detail)}" if error.detail else str(error)) from error


def _save(instance: Instance, handle: Handle, made: Path, qemu_img: Path, most: int) -> tuple[str, SavedMachine]:
    """Save the guest's state and disk. Returns QEMU's version, and the machine in which the guest runs."""
    deadline = Deadline(SAVING)
    remove(instance.migration_socket)
    try:
        with Monitor(instance.qmp_socket, _LIMIT) as monitor:
            if monitor.boot_id() != handle.boot_id:
                raise NotCapturedError("another guest has taken its place")
            version = monitor.version()
            kind = str(monitor.execute("qom-get", {"path": "/machine", "property": "type"})).removesuffix(_MACHINE)
        machine = machine_of(handle.argv, kind)
        if problem := machine.problem():  # such as one that [qemu] arguments chose: it could not be opened again
            raise NotCapturedError(f"it runs in what Topcoat makes no machine of: {problem}")
        with _standing_still(instance), host_faults("saving the guest"):
            with Monitor(instance.qmp_socket, _LIMIT) as monitor, (made / STATE).open("xb") as stream:
                sink = _Compressed(stream, most)
                migration.save(monitor, instance.migration_socket, sink, deadline, memory_in_file=False)
                sink.close()
            left = most - (made / STATE).stat().st_size
            if not _save_disk(instance, handle, made / DISK, qemu_img, max(1.0, deadline.remaining), left):
                raise _too_large(most)
    except MonitorError as error:
        lost = not handle.process.alive
        raise (GuestLostError if lost else NotCapturedError)(f"QEMU does not save it: {error}") from error
    return version, machine


def _save_disk(instance: Instance, handle: Handle, to: Path, qemu_img: Path, limit: float, most: int) -> bool:
    """Save the disk, while QEMU, which has written all of it, holds no lock of it. Returns whether it has fitted."""
    if not handle.process.has_open(instance.overlay.parent / backing(instance.overlay)):
        raise NotCapturedError("the image below its disk was made again since it was booted")
    try:
        flatten(qemu_img, instance.overlay, to, limit, most)
    except ToolFailed as error:
        if error.code != -signal.SIGXFSZ:
            raise
        return False
    return True


def _save_targets(handle: Handle, to: Path, most: int) -> None:
    """Save the disk with targets, if the guest has one: nobody writes to it, so that a link to it will do."""
    image = targets_of(handle.argv)
    if image is None:
        return
    with host_faults("saving the targets"):
        again = NotCapturedError("the disk with its targets was made again since it was booted")
        if not image.exists():
            raise again
        try:
            os.link(image, to)  # first: what is looked at then is what is kept
            is_its = handle.process.has_open(to)
        except OSError:
            if image.stat().st_size > most:
                raise _too_large(most) from None
            shutil.copyfile(image, to)
            is_its = handle.process.has_open(image)
        if not is_its:
            raise again


@contextmanager
def _standing_still(instance: Instance) -> Iterator[None]:
    """Have the guest stand still during the body, and go on then, whatever the body raises.

    QEMU is asked in connections of their own: one in the body may break off, and there can be one at a time.
    """
    problem = ""
    try:
        with Monitor(instance.qmp_socket, _LIMIT) as monitor:
            monitor.execute("cont")  # if whoever saved it before was killed, it stands still, and would not be saved
            monitor.execute("stop")
        yield
    except Exception as error:
        problem = str(error)
        raise
    finally:
        try:
            with Monitor(instance.qmp_socket, _LIMIT) as monitor:
                migration.give_up(monitor, _LIMIT)
                monitor.execute("cont")
        except MonitorError as error:
            first = f"{problem}; and " if problem else ""
            raise GuestLostError(f"{first}it does not go on: {error}") from error


@dataclass
class _Compressed:
    """A stream that takes what is compressed, at most `most` bytes of it."""

    stream: BinaryIO
    most: int

    def __post_init__(self) -> None:
        import zstandard

        self._compressor = zstandard.ZstdCompressor(_LEVEL, write_checksum=True).compressobj()
        self._written = 0

    def write(self, data: bytes) -> None:
        self._take(self._compressor.compress(data))

    def close(self) -> None:
        self._take(self._compressor.flush())

    def _take(self, compressed: bytes) -> None:
        self._written += len(compressed)
        if self._written > self.most:
            raise _too_large(self.most)
        self.stream.write(compressed)


def _too_large(most: int) -> NotCapturedError:
    return NotCapturedError(f"it would take more than {readable_size(most)}: raise [campaign] capsule_size")
