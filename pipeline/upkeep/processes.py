"""QEMUs that are of no use to anybody any more.

If a boot was killed before it wrote the handle, its QEMU can only be found by its command line. Guests of the pool that
a killed process has left are ended by their keepers too, but those wait a while, and may be killed themselves.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.host.locks import is_locked, locked_by_someone
from pipeline.host.pidfile import has_moved
from pipeline.host.process import Process
from pipeline.settings import Store
from pipeline.upkeep.leftover import Leftover, Spared, alone, delete, used
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance, check_name
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.qemu.stopping import stop, stop_qemu
from pipeline.vm.slot import Slot, users_file

_LIMIT = 3.0


@dataclass(frozen=True)
class RunningQemu:
    """A living process of this user with an instance's pidfile on its command line, whether it has written that or not.

    The directory of `instance` is spelled as on that command line.
    """

    process: Process
    instance: Instance


def find(store: Store) -> list[RunningQemu]:
    """The QEMUs of the store's instances, however the store was spelled when they were booted.

    QEMU's command line stays the same when a store is moved, and another store may stand in its place by now. So a
    process whose pidfile is elsewhere is not of this store, and neither is any other with the same pidfile on its
    command line. In a container, another store may have the same path: its processes do not count either.
    """
    found = list(_named(store))
    moved = {qemu.instance for qemu in found if has_moved(qemu.process, qemu.instance.pidfile)}
    return [qemu for qemu in found if qemu.instance not in moved]


def is_dead(instance: Instance, qemus: Sequence[RunningQemu]) -> bool:
    """Whether no QEMU of the instance lives, with or without a handle; `qemus` are all those of the store."""
    here = os.path.realpath(instance.directory)
    named = any(os.path.realpath(qemu.instance.directory) == here for qemu in qemus)
    return not named and not locked_by_someone(instance.pidfile)


def items(store: Store, qemus: Sequence[RunningQemu]) -> Iterator[Leftover]:
    """The QEMUs that killed boots have left, and the guests of the pool if no process uses it.

    A QEMU is left by a killed boot if it has no handle, and nobody works on its instance.
    """
    for instance, group in itertools.groupby(sorted(qemus, key=_order), lambda qemu: qemu.instance):
        if not is_locked(instance.directory) and not os.path.lexists(instance.handle_file):
            pids = ", ".join(str(qemu.process.pid) for qemu in group)
            why = f"the boot of {instance.name} was killed, and its QEMU runs on"
            yield Leftover("process", pids, used(*transient(instance)), why, partial(_end, store, instance))
    if not KeepAlive(users_file(store)).in_use():
        yield from _of_pool(store)


def _of_pool(store: Store) -> Iterator[Leftover]:
    for slot in Slot.noted(store):
        handle, use = slot.instance.live_handle(), slot.use()
        if handle and use and handle.boot_id == use.boot_id:  # else somebody has booted it for another purpose
            why = f"{handle.name} is of the pool, which no process uses"
            freed = used(*transient(slot.instance))
            yield Leftover("process", str(handle.process.pid), freed, why, partial(_end_of_pool, slot, handle))


def _end_of_pool(slot: Slot, handle: Handle) -> None:
    with alone(slot.path):
        if KeepAlive(users_file(slot.store)).in_use():
            raise Spared("a process uses the pool by now")
        stop(slot.instance, _LIMIT, handle)
        slot.forget()


def transient(instance: Instance) -> list[Path]:
    """What an instance needs only while it runs, as far as it is there."""
    return [path for path in instance.transient if os.path.lexists(path)]


def _order(qemu: RunningQemu) -> tuple[str, int]:
    return str(qemu.instance.directory), qemu.process.pid


def _end(store: Store, instance: Instance) -> None:
    """End the QEMUs of a killed boot, and delete what it has left of its instance but the logs.

    `stop` would wait for a boot that has begun meanwhile, and then end that one.
    """
    with alone(instance.directory):
        if os.path.lexists(instance.handle_file):
            raise Spared(f"{instance.name} was booted meanwhile")
        if any(qemu.instance == instance and has_moved(qemu.process, qemu.instance.pidfile) for qemu in _named(store)):
            raise Spared("its store has been moved")
        stop_qemu(instance.pidfile, instance.qmp_socket, _LIMIT)
        delete(*transient(instance))


def _named(store: Store) -> Iterator[RunningQemu]:
    homes = {str(store.instances), os.path.realpath(store.instances)}
    for pid in _own_pids():
        instance = _instance(pid)
        if instance is None:
            continue
        home, process = instance.directory.parent, Process.find(pid)
        if homes & {str(home), os.path.realpath(home)} and process and process.shares(instance.directory):
            yield RunningQemu(process, instance)


def _own_pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if entry.name.isdigit() and int(entry.name) != os.getpid() and entry.stat().st_uid == os.getuid():
                yield int(entry.name)


def _instance(pid: int) -> Instance | None:
    """The instance whose pidfile is on the command line of the process; None if there is none."""
    with suppress(OSError, UsageError):  # it has ended meanwhile; or no instance can have that name
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        for word, value in itertools.pairwise(words):
            path = Path(os.fsdecode(value))
            if word == b"-pidfile" and path.is_absolute():
                instance = Instance(check_name(path.parent.name), path.parent)
                return instance if instance.pidfile == path else None
    return None
