"""What of a store can be deleted because it can be made again: images, the demo guest's parts, caches.

Keys, corpora, campaigns, instances and their logs are never touched, nor anything that a guest runs on or that somebody
is making. Lock files stay: deleting one would let two processes hold it. What is nobody's is for pipeline.gc.
"""

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import InstanceBusy
from pipeline.faults import entries, host_faults, unless_gone
from pipeline.instance import Instance
from pipeline.process import locked_by_someone
from pipeline.publish import locked, remove
from pipeline.settings import Store


@dataclass(frozen=True)
class Item:
    """A directory with all that is in it but lock files."""

    path: Path
    bytes: int
    """On the disk."""
    kept: str
    """Why it is not to be deleted; empty if it is."""


def items(store: Store) -> list[Item]:
    """All that can be deleted, and what cannot although it is of that kind. Changes nothing."""
    users = _users(store)
    places = [*entries(store.all_images), store.demo, store.cache]
    with host_faults("looking at what can be made again"):
        return [_item(path, users.get(path.name) or users.get("")) for path in places if _files(path)]


def delete(item: Item) -> Item:
    """Delete it; kept if somebody works on it at this moment. Raises StoreError."""
    try:
        with ExitStack() as held, host_faults(f"deleting {item.path.name}"):
            for lock in sorted(item.path.rglob("*.lock")):
                held.enter_context(locked(lock.with_suffix(""), 0))
            _delete_contents(item.path)
    except InstanceBusy:
        return replace(item, kept="another process works on it")
    return item


def _users(store: Store) -> dict[str, str]:
    """For each build whose images are in use: by whom. The build "" stands for all: nobody knows which it is."""
    users = {}
    for instance in Instance.all(store):
        handle, state = instance.live_handle(), instance.state()
        if handle:
            users[handle.build] = f"{instance.name} runs on it"
        elif state == "booting":
            users[""] = f"{instance.name} is being booted"
        elif locked_by_someone(instance.pidfile):
            users[""] = f"{instance.name} runs without a handle; to end it: topcoat stop {instance.name}"
    return users


def _item(path: Path, user: str | None) -> Item:
    return Item(path, sum(map(_blocks, _files(path))), user or "")


def _files(directory: Path) -> list[Path]:
    """All files at and below a path but lock files."""
    found = (Path(parent) / name for parent, _, names in os.walk(directory, onerror=unless_gone) for name in names)
    return [path for path in found if path.suffix != ".lock"]


def _blocks(path: Path) -> int:
    with suppress(FileNotFoundError):  # it is gone meanwhile
        return path.lstat().st_blocks * 512
    return 0


def _delete_contents(path: Path) -> None:
    remove(*path.rglob("*.made.json"))  # first: no record, no artifact
    remove(*_files(path))
    for directory, _, _ in os.walk(path, topdown=False):
        if Path(directory) != path and not any(Path(directory).iterdir()):
            Path(directory).rmdir()
