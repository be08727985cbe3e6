"""The unfinished work of killed processes: directories that are named as `publish` names them."""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from pipeline.host.faults import unless_gone
from pipeline.host.locks import is_locked
from pipeline.settings import Store
from pipeline.store.publish import put_back, target_of_remains
from pipeline.upkeep.leftover import Leftover, Spared, alone, delete, used
from pipeline.vm.capsule import NAME as CAPSULE
from pipeline.vm.instance import Instance

_UNLOCKED_AGE = 3600.0  # seconds; some of the cache is made without a lock, in far less time


def items(store: Store, instances: Sequence[Instance]) -> Iterator[Leftover]:
    """Remains beside artifacts, crashes, and in the directories of `instances`, whose makers hold no lock any more."""
    for place in (store.keys, store.all_images, store.all_templates, store.demo, store.targets, store.cache):
        for path in _find(place):
            yield from _items(store, path, _locks(place, path))
    for path in _find(store.crashes):
        yield from _items(store, path, _locks(store.crashes, path))
    for crashes in sorted(store.campaigns.glob("*/crashes")):  # of older versions of Topcoat
        for path in _find(crashes):
            yield from _items(store, path, [crashes, crashes / CAPSULE])
    for instance in instances:
        for path in _find(instance.directory):
            yield from _items(store, path, [instance.directory])


def _find(place: Path) -> Iterator[Path]:
    for parent, directories, _ in os.walk(place, onerror=unless_gone):
        if Path(parent).name == "targets" and "files" in directories:  # what is below it has names of the user's
            directories.remove("files")
        found = sorted(name for name in directories if target_of_remains(name))
        directories[:] = [name for name in directories if name not in found]
        yield from (Path(parent, name) for name in found if not Path(parent, name).is_symlink())


def _items(store: Store, path: Path, locks: Sequence[Path]) -> Iterator[Leftover]:
    if not any(map(is_locked, locks)) and _is_old_enough(store, path):
        why = f"whoever was making {target_of_remains(path.name)} was killed"
        yield Leftover("remains", str(path), used(path), why, partial(_remove, path, locks))


def _locks(place: Path, path: Path) -> list[Path]:
    """All paths that the maker may have locked: one lock is for all files of a task, and for their record."""
    above = [parent for parent in path.parents if parent.is_relative_to(place)]
    return sorted(lock.with_suffix("") for parent in above for lock in parent.glob("*.lock"))


def _is_old_enough(store: Store, path: Path) -> bool:
    return not path.is_relative_to(store.cache) or time.time() - path.lstat().st_mtime >= _UNLOCKED_AGE


def _remove(path: Path, locks: Sequence[Path]) -> None:
    """Delete the unfinished work at `path`, under the locks that its maker may have held.

    Nobody makes anything under this name again, so that the locks of that time are enough.
    """
    with alone(*locks):
        if not os.path.lexists(path):
            raise Spared("it is gone already")
        put_back(path)
        delete(path)
