"""What killed processes were making: directories named as `publish` names them."""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from pipeline.faults import unless_gone
from pipeline.garbage.item import Item, Spared, alone, delete, used
from pipeline.instance import Instance
from pipeline.publish import is_locked, put_back, target_of_remains
from pipeline.settings import Store

_UNLOCKED_AGE = 3600.0  # in the cache some is made without a lock, in far less time


def items(store: Store, instances: Sequence[Instance]) -> Iterator[Item]:
    """Remains beside artifacts, and in the directories of `instances`, whose makers have let their locks go."""
    for place in (store.keys, store.all_images, store.demo, store.cache):
        for path in _find(place):
            yield from _items(store, path, _locks(place, path))
    for instance in instances:
        for path in _find(instance.directory):
            yield from _items(store, path, [instance.directory])


def _find(place: Path) -> Iterator[Path]:
    for parent, directories, _ in os.walk(place, onerror=unless_gone):
        found = sorted(name for name in directories if target_of_remains(name))
        directories[:] = [name for name in directories if name not in found]
        yield from (Path(parent, name) for name in found if not Path(parent, name).is_symlink())


def _items(store: Store, path: Path, locks: Sequence[Path]) -> Iterator[Item]:
    if not any(map(is_locked, locks)) and _is_old_enough(store, path):
        why = f"whoever was making {target_of_remains(path.name)} was killed"
        yield Item("remains", str(path), used(path), why, partial(_remove, path, locks))


def _locks(place: Path, path: Path) -> list[Path]:
    """All that its maker may have locked: one lock is for all files of a task, and for their record."""
    above = [parent for parent in path.parents if parent.is_relative_to(place)]
    return sorted(lock.with_suffix("") for parent in above for lock in parent.glob("*.lock"))


def _is_old_enough(store: Store, path: Path) -> bool:
    return not path.is_relative_to(store.cache) or time.time() - path.lstat().st_mtime >= _UNLOCKED_AGE


def _remove(path: Path, locks: Sequence[Path]) -> None:
    """Nobody makes anything under this name again, so that the locks of its maker's time are enough."""
    with alone(*locks):
        if not os.path.lexists(path):
            raise Spared("it is gone already")
        put_back(path)
        delete(path)
