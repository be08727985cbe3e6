"""`topcoat gc`: reclaims what belongs to nobody, which killed processes and ended guests have left behind.

It also removes what was kept for its time: logs, units that merges took out of corpora, and files of targets that no
crash needs any more. Only what belongs to the
given store counts. What lives, or is worked on, is never touched. What can be made again, such as images, is for
`topcoat clean`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from pipeline.errors import TopcoatError
from pipeline.fuzz.corpus import CorpusLimits
from pipeline.host.faults import host_faults
from pipeline.host.locks import is_locked
from pipeline.settings import KEEP_LOGS, Store
from pipeline.upkeep import corpora, crashes, directories, processes, remains
from pipeline.upkeep.leftover import Kind, Leftover, Spared
from pipeline.vm.instance import Instance

__all__ = ["Kind", "Leftover", "Outcome", "items", "reclaim"]

log = logging.getLogger("topcoat")


@dataclass(frozen=True)
class Outcome:
    """What became of a leftover. It was reclaimed if `spared` is empty and `error` is None."""

    item: Leftover
    spared: str = ""
    """Why it was left, in one clause: somebody has taken it meanwhile, or it was gone already."""
    error: TopcoatError | None = None
    """Why it, or a part of it, could not be removed."""


def items(store: Store, keep_logs: float = KEEP_LOGS, limits: CorpusLimits | None = None) -> list[Leftover]:
    """All leftovers, in the order in which they should be reclaimed. Changes nothing.

    The directory of an instance that has ended is one if nothing in it was written for `keep_logs` seconds. `limits`
    say how long units are kept that merges took out of corpora. What cannot be looked at is logged as an error, and
    hides nothing else. Raises StoreError if that happens with the instances themselves.
    """
    with host_faults("looking at the instances"):
        instances, qemus = Instance.all(store), processes.find(store)
        idle = [instance for instance in instances if not is_locked(instance.directory)]
        dead = [instance for instance in idle if processes.is_dead(instance, qemus)]
    looks: dict[str, Callable[[], Iterable[Leftover]]] = {
        "processes": partial(processes.items, store, qemus),
        "instances": partial(directories.items, store, dead, keep_logs),
        "remains": partial(remains.items, store, idle),
        "units": partial(corpora.items, store, limits or CorpusLimits()),
        "files of targets": partial(crashes.items, store),
    }
    found = [item for what, look in looks.items() for item in _seen(what, look)]
    whole = {item.what for item in found if item.kind == "logs"}
    below = tuple(f"{directory}/" for directory in whole)
    return [item for item in found if item.kind != "remains" or not item.what.startswith(below)]


def _seen(what: str, look: Callable[[], Iterable[Leftover]]) -> Iterator[Leftover]:
    try:
        with host_faults(f"looking for {what} that are nobody's"):
            yield from look()
    except TopcoatError as error:
        log.error("%s", error.explain())


def reclaim(item: Leftover) -> Outcome:
    """Remove a leftover, under the locks of what it touches, if it still belongs to nobody.

    Takes some milliseconds; a second more if somebody has a lock, three if a QEMU does not end. What goes wrong is told
    by the outcome, and not raised.
    """
    try:
        with host_faults(f"removing {item.what}"):
            item.remove()
    except Spared as reason:
        return Outcome(item, spared=str(reason))
    except TopcoatError as error:
        return Outcome(item, error=error)
    return Outcome(item)
