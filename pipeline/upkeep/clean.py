"""Deleting what can be made again from a store: images, templates, the Linux guest's parts, caches.

Keys, corpora, crashes, campaigns, instances and their logs are never touched, nor anything that a guest runs on or that
somebody is making. Lock files stay: deleting one would let two processes hold it. What belongs to nobody is for
pipeline.upkeep.gc.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import InstanceBusy
from pipeline.host.faults import entries, host_faults, unless_gone
from pipeline.host.locks import locked, locked_by_someone
from pipeline.settings import Store
from pipeline.store.publish import remove
from pipeline.vm.instance import Instance


@dataclass(frozen=True)
class Removable:
    """A directory whose whole content, except lock files, can be made again."""

    path: Path
    bytes: int
    """Bytes that its files take on the disk."""
    kept: str
    """Why it must not be deleted; empty if it can be."""


def items(store: Store) -> list[Removable]:
    """All that can be made again, also what must be kept for now. Changes nothing."""
    users = _users(store)
    places = [*entries(store.all_images), *entries(store.all_templates), store.demo, store.targets, store.cache]
    with host_faults("looking at what can be made again"):
        return [_item(path, _user(store, path, users)) for path in places if _files(path)]


def delete(item: Removable) -> Removable:
    """Delete the item, and return it; with a reason in `kept` if a process works on it just now. Raises StoreError."""
    try:
        with ExitStack() as held, host_faults(f"deleting {item.path.name}"):
            for lock in sorted(item.path.rglob("*.lock")):
                held.enter_context(locked(lock.with_suffix(""), 0))
            _delete_contents(item.path)
    except InstanceBusy:
        return replace(item, kept="another process works on it")
    return item


def _user(store: Store, path: Path, users: Mapping[str, str]) -> str | None:
    """Who uses the directory: the Linux guest's parts are of several builds."""
    if path in (store.demo, store.targets):
        names = [name for name in users if name == "demo" or name.startswith("linux-")]
        return next((users[name] for name in names), None) or users.get("")
    return users.get(path.name) or users.get("")


def _users(store: Store) -> dict[str, str]:
    """What uses the images of each build, as text by build name; "" stands for all, if nobody knows which it is."""
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


def _item(path: Path, user: str | None) -> Removable:
    return Removable(path, sum(map(_blocks, _files(path))), user or "")


def _files(directory: Path) -> list[Path]:
    """All files at or below a path, except lock files."""
    found = (Path(parent) / name for parent, _, names in os.walk(directory, onerror=unless_gone) for name in names)
    return [path for path in found if path.suffix != ".lock"]


def _blocks(path: Path) -> int:
    with suppress(FileNotFoundError):  # it has been deleted meanwhile
        return path.lstat().st_blocks * 512
    return 0


def _delete_contents(path: Path) -> None:
    remove(*path.rglob("*.made.json"))  # first: without its record, no artifact counts
    remove(*_files(path))
    for directory, _, _ in os.walk(path, topdown=False):
        if Path(directory) != path and not any(Path(directory).iterdir()):
            Path(directory).rmdir()
