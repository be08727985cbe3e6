"""What ended instances have left: files that they needed while they ran and, after some time, their logs."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.settings import Store
from pipeline.upkeep import processes
from pipeline.upkeep.leftover import Leftover, Spared, alone, delete, is_directory, used
from pipeline.upkeep.processes import transient
from pipeline.vm.instance import Instance


def items(store: Store, dead: Sequence[Instance], keep_logs: float) -> Iterator[Leftover]:
    """For each dead instance, its directory if that was not written to for `keep_logs` seconds, else its disk.

    The disk stands for all files that it needed only while it ran. Lock files stay: deleting one would let two
    processes hold it.
    """
    for instance in dead:
        if _age(instance.directory) >= keep_logs:
            why = f"{instance.name} has ended, and its logs are old"
            remove = partial(_remove_all, store, instance, keep_logs)
            yield Leftover("logs", str(instance.directory), used(instance.directory), why, remove)
        elif left := transient(instance):
            what = instance.overlay if instance.overlay in left else left[0]
            remove = partial(_remove_transient, store, instance)
            yield Leftover("disk", str(what), used(*left), f"{instance.name} has ended", remove)


def _age(directory: Path) -> float:
    """Seconds since anything in the directory was written; for an empty one, since it became empty."""
    return time.time() - max(_written(directory), default=0.0)


def _written(path: Path) -> Iterator[float]:
    with suppress(FileNotFoundError):  # it has been deleted meanwhile
        entries = list(path.iterdir()) if is_directory(path) else []
        if not entries:
            yield path.lstat().st_mtime
        for entry in entries:
            yield from _written(entry)


def _remove_transient(store: Store, instance: Instance) -> None:
    with alone(instance.directory):
        _require_dead(store, instance)
        delete(*transient(instance))


def _remove_all(store: Store, instance: Instance, keep_logs: float) -> None:
    with alone(instance.directory):
        _require_dead(store, instance)
        if _age(instance.directory) < keep_logs:
            raise Spared(f"{instance.name} was used meanwhile")
        delete(instance.directory)


def _require_dead(store: Store, instance: Instance) -> None:
    if not os.path.lexists(instance.directory):
        raise Spared("it is gone already")
    if not processes.is_dead(instance, processes.find(store)):
        raise Spared(f"{instance.name} was booted meanwhile")
