"""QEMUs that are of no use to anybody any more.

Of a boot that was killed before it wrote the handle, nobody can find the QEMU but by its command line. Guests of the
pool that were left by a killed process end by their keepers too, but those wait a while, and may be killed themselves.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline import lease
from pipeline.errors import InstanceBusy, UsageError
from pipeline.garbage.item import Item, Spared, alone, delete, used
from pipeline.instance import Handle, Instance, check_name
from pipeline.process import Process, has_moved, locked_by_someone
from pipeline.publish import is_locked
from pipeline.settings import Store
from pipeline.slot import Slot, users_file
from pipeline.tie import Tie

_LIMIT = 3.0


@dataclass(frozen=True)
class Qemu:
    """A living process of this user with an instance's pidfile on its command line, whether it has written it or not.

    The directory of `instance` is spelled as on that command line.
    """

    process: Process
    instance: Instance


def find(store: Store) -> list[Qemu]:
    """The QEMUs of the store's instances, however the store was spelled when they were booted.

    QEMU's command line stays when a store is moved, and another store may stand in its place by now: a process that
    has its pidfile elsewhere is not of this store, and neither is any with the same command line.
    """
    found = list(_named(store))
    moved = {qemu.instance for qemu in found if has_moved(qemu.process, qemu.instance.pidfile)}
    return [qemu for qemu in found if qemu.instance not in moved]


def is_dead(instance: Instance, qemus: Sequence[Qemu]) -> bool:
    """Whether no QEMU of the instance lives, with or without a handle; `qemus` are those of the store."""
    here = os.path.realpath(instance.directory)
    named = any(os.path.realpath(qemu.instance.directory) == here for qemu in qemus)
    return not named and not locked_by_someone(instance.pidfile)


def items(store: Store, qemus: Sequence[Qemu]) -> Iterator[Item]:
    """Those that a killed boot has left: there is no handle at all, and nobody works on the instance.

    And the guests of the pool, if no process uses that.
    """
    for instance, group in itertools.groupby(sorted(qemus, key=_order), lambda qemu: qemu.instance):
        if not is_locked(instance.directory) and not os.path.lexists(instance.handle_file):
            pids = ", ".join(str(qemu.process.pid) for qemu in group)
            why = f"the boot of {instance.name} was killed, and its QEMU runs on"
            yield Item("process", pids, used(*transient(instance)), why, partial(_end, store, instance))
    if not Tie(users_file(store)).in_use():
        yield from _of_pool(store)


def _of_pool(store: Store) -> Iterator[Item]:
    for slot in Slot.noted(store):
        handle, use = slot.instance.live_handle(), slot.use()
        if handle and use and handle.boot_id == use.boot_id:  # else somebody has booted it for himself
            why = f"{handle.name} is of the pool, which no process uses"
            freed = used(*transient(slot.instance))
            yield Item("process", str(handle.process.pid), freed, why, partial(_end_of_pool, slot, handle))


def _end_of_pool(slot: Slot, handle: Handle) -> None:
    with alone(slot.path):
        if Tie(users_file(slot.store)).in_use():
            raise Spared("a process uses the pool by now")
        slot.instance.stop(_LIMIT, handle)
        slot.forget()


def transient(instance: Instance) -> list[Path]:
    """What an instance needs only while it runs, as far as it is there."""
    return [path for path in (*instance.transient, instance.directory / "run") if os.path.lexists(path)]


def _order(qemu: Qemu) -> tuple[str, int]:
    return str(qemu.instance.directory), qemu.process.pid


def _end(store: Store, instance: Instance) -> None:
    """Instance.stop would wait for a boot that has begun meanwhile, and then end it."""
    from pipeline.qemu import machine

    with alone(instance.directory):
        if os.path.lexists(instance.handle_file):
            raise Spared(f"{instance.name} was booted meanwhile")
        if any(qemu.instance == instance and has_moved(qemu.process, qemu.instance.pidfile) for qemu in _named(store)):
            raise Spared("its store has been moved")
        sockets = instance.sockets_in_use
        machine.stop(instance.pidfile, sockets / "qmp", _LIMIT)
        delete(*transient(instance))
        if sockets.is_dir():
            with suppress(InstanceBusy), lease.seized(sockets):  # if it is held, then by another guest
                delete(sockets)


def _named(store: Store) -> Iterator[Qemu]:
    homes = {str(store.instances), os.path.realpath(store.instances)}
    for pid in _own_pids():
        instance = _instance(pid)
        if instance is None:
            continue
        home = instance.directory.parent
        if homes & {str(home), os.path.realpath(home)} and (process := Process.find(pid)):
            yield Qemu(process, instance)


def _own_pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if entry.name.isdigit() and int(entry.name) != os.getpid() and entry.stat().st_uid == os.getuid():
                yield int(entry.name)


def _instance(pid: int) -> Instance | None:
    """Whose pidfile stands on the command line of the process, if any instance's."""
    with suppress(OSError, UsageError):  # it has ended meanwhile; or no instance can have that name
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        for word, value in itertools.pairwise(words):
            path = Path(os.fsdecode(value))
            if word == b"-pidfile" and path.is_absolute():
                instance = Instance(check_name(path.parent.name), path.parent)
                return instance if instance.pidfile == path else None
    return None
