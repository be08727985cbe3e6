"""Saving a running guest, with its memory, into a capsule: it stands still meanwhile, and then goes on."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from pipeline.errors import ToolError
from pipeline.host.deadline import Deadline, utc_now
from pipeline.host.faults import host_faults
from pipeline.host.resources import free_bytes
from pipeline.store.publish import publish, publish_json, remove
from pipeline.text.printable import one_line
from pipeline.text.quantity import readable_size
from pipeline.vm.capsule import DISK, FACTS, KEY, STATE, CapsuleFacts, CrashedProcess
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.qemu import migration
from pipeline.vm.qemu.disk import flatten
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
            facts = CapsuleFacts(
                crashed=crashed,
                build=handle.build,
                boot_id=handle.boot_id,
                host_key=handle.ssh.host_key,
                argv=handle.argv,
                machine=machine,
                qemu=version,
                accelerator=handle.accelerator,
                saved=utc_now(),
                files=saved_files(made, STATE, DISK, KEY),
            )
            publish_json(made / FACTS, facts.encode())
    except ToolError as error:
        raise NotCapturedError(f"{error}: {one_line(error.detail)}" if error.detail else str(error)) from error


def _save(instance: Instance, handle: Handle, made: Path, qemu_img: Path, most: int) -> tuple[str, str]:
    """Save the guest's state and disk. Returns QEMU's version, and what it calls the machine."""
    deadline = Deadline(SAVING)
    remove(instance.migration_socket)
    with Monitor(instance.qmp_socket, _LIMIT) as monitor:
        try:
            if monitor.boot_id() != handle.boot_id:
                raise NotCapturedError("another guest has taken its place")
            version = monitor.version()
            machine = monitor.execute("qom-get", {"path": "/machine", "property": "type"})
        except MonitorError as error:
            raise NotCapturedError(f"QEMU does not answer: {error}") from error
        with _standing_still(monitor), host_faults("saving the guest"):
            with (made / STATE).open("xb") as stream:
                sink = _Compressed(stream, most)
                migration.save(monitor, instance.migration_socket, sink, deadline, memory_in_file=False)
                sink.close()
            # QEMU has written all of it, and holds no lock of it, until the guest goes on
            flatten(qemu_img, instance.overlay, made / DISK, max(1.0, deadline.remaining))
            _require_fits((made / STATE).stat().st_size + (made / DISK).stat().st_size, most)
    return version, str(machine).removesuffix(_MACHINE)


@contextmanager
def _standing_still(monitor: Monitor) -> Iterator[None]:
    """Have the guest stand still during the body, and go on then, whatever the body raises."""
    try:
        monitor.execute("cont")  # if whoever saved it before was killed, it stands still, and would not be saved
        monitor.execute("stop")
        yield
    except MonitorError as error:
        raise NotCapturedError(f"QEMU does not save it: {error}") from error
    finally:
        try:
            migration.give_up(monitor, _LIMIT)
            monitor.execute("cont")
        except MonitorError as error:
            raise GuestLostError(f"it does not go on after it was saved: {error}") from error


@dataclass
class _Compressed:
    """A stream that takes what is compressed, at most `most` bytes of it."""

    stream: BinaryIO
    most: int

    def __post_init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(_LEVEL, write_checksum=True).compressobj()
        self._written = 0

    def write(self, data: bytes) -> None:
        self._take(self._compressor.compress(data))

    def close(self) -> None:
        self._take(self._compressor.flush())

    def _take(self, compressed: bytes) -> None:
        self._written += len(compressed)
        _require_fits(self._written, self.most)
        self.stream.write(compressed)


def _require_fits(size: int, most: int) -> None:
    if size > most:
        raise NotCapturedError(f"it would take more than {readable_size(most)}: raise [campaign] capsule_size")
