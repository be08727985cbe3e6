"""What is left of instances that have ended: what they needed while they ran, and, one day, their logs."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.garbage import processes
from pipeline.garbage.item import Item, Spared, alone, delete, is_directory, used
from pipeline.garbage.processes import transient
from pipeline.instance import Instance
from pipeline.settings import Store


def items(store: Store, dead: Sequence[Instance], keep_logs: float) -> Iterator[Item]:
    """Of each dead instance either its whole directory, if its youngest file is `keep_logs` seconds old, or its disk.

    Lock files stay: deleting one would let two processes hold it.
    """
    for instance in dead:
        if _age(instance.directory) >= keep_logs:
            why = f"{instance.name} has ended, and its logs are old"
            remove = partial(_remove_all, store, instance, keep_logs)
            yield Item("logs", str(instance.directory), used(instance.directory), why, remove)
        elif left := transient(instance):
            what = instance.overlay if instance.overlay in left else left[0]
            remove = partial(_remove_transient, store, instance)
            yield Item("disk", str(what), used(*left), f"{instance.name} has ended", remove)


def _age(directory: Path) -> float:
    """Seconds since anything in it was written; of an empty one, since it became so."""
    return time.time() - max(_written(directory), default=0.0)


def _written(path: Path) -> Iterator[float]:
    with suppress(FileNotFoundError):  # it is gone meanwhile
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
