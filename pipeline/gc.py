"""`topcoat gc`: reclaims what no living owner holds: what killed processes and ended guests have left behind.

Only what belongs to the given store, or to stores of this user that are gone. What lives is never touched, nor what
somebody works on. What can be made again, such as images, is the business of `topcoat clean`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from pipeline.errors import TopcoatError
from pipeline.faults import host_faults
from pipeline.garbage import directories, processes, remains, sockets
from pipeline.garbage.item import Item, Kind, Spared
from pipeline.instance import Instance
from pipeline.publish import is_locked
from pipeline.settings import KEEP_LOGS, Store

__all__ = ["Item", "Kind", "Outcome", "items", "reclaim"]

log = logging.getLogger("topcoat")


@dataclass(frozen=True)
class Outcome:
    """What became of an item. It was reclaimed if neither of the two says otherwise."""

    item: Item
    spared: str = ""
    """Why it was left, in one clause: somebody has taken it meanwhile, or it is gone already."""
    error: TopcoatError | None = None
    """Why it, or a part of it, could not be removed."""


def items(store: Store, keep_logs: float = KEEP_LOGS) -> list[Item]:
    """All that is nobody's, in the order in which it should be reclaimed. Changes nothing.

    `keep_logs`: seconds since the youngest file of an instance that has ended was written, after which its directory
    goes. What cannot be looked at is logged as an error, and hides nothing else. Raises StoreError if that happens with
    the instances themselves.
    """
    with host_faults("looking at the instances"):
        instances, qemus = Instance.all(store), processes.find(store)
        idle = [instance for instance in instances if not is_locked(instance.directory)]
        dead = [instance for instance in idle if processes.is_dead(instance, qemus)]
    others = [instance for instance in instances if instance not in dead]
    looks: dict[str, Callable[[], Iterable[Item]]] = {
        "processes": partial(processes.items, store, qemus),
        "sockets": partial(sockets.items, store, dead, others),
        "instances": partial(directories.items, store, dead, keep_logs),
        "remains": partial(remains.items, store, idle),
    }
    found = [item for what, look in looks.items() for item in _seen(what, look)]
    whole = {item.what for item in found if item.kind == "logs"}
    return [item for item in found if item.kind != "remains" or not _is_below(item, whole)]


def _seen(what: str, look: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    try:
        with host_faults(f"looking for {what} that are nobody's"):
            yield from look()
    except TopcoatError as error:
        log.error("%s", error.explain())


def _is_below(item: Item, directories: Iterable[str]) -> bool:
    return any(item.what.startswith(f"{directory}/") for directory in directories)


def reclaim(item: Item) -> Outcome:
    """Remove the item, under the locks of what it touches, if it is still nobody's.

    Takes some milliseconds; a second more if somebody has a lock, three if a QEMU does not end. Raises nothing that
    the outcome can tell.
    """
    try:
        with host_faults(f"removing {item.what}"):
            item.remove()
    except Spared as reason:
        return Outcome(item, spared=str(reason))
    except TopcoatError as error:
        return Outcome(item, error=error)
    return Outcome(item)
