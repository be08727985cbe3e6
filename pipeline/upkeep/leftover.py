"""Leftovers, which are things that belong to nobody any more, and what all kinds of them need."""

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import InstanceBusy
from pipeline.host.locks import locked

Kind = Literal["process", "disk", "logs", "remains", "units", "files"]
"""What a leftover is.

process  a QEMU that a killed boot, or a killed user of the pool, has left behind, and the disk, sockets and
         small files of its instance
disk     what an instance that has ended needed while it ran: its overlay, handle, pidfile, sockets
logs     the whole directory of an instance that has ended long ago
remains  the unfinished work of a killed process
units    units that a merge took out of a corpus, and that are not kept any longer
files    files of targets that were kept for crashes which are gone
"""

_PATIENCE = 1.0  # seconds; whoever only asks whether a lock is held, such as another gc, holds it for a moment


class Spared(Exception):
    """A leftover must not be removed: it belongs to somebody, or is gone. `str` says why, in one clause."""


@dataclass(frozen=True)
class Leftover:
    """One thing that belongs to nobody, and can be reclaimed."""

    kind: Kind
    what: str
    """Its path, or the pids of processes."""
    bytes: int
    """Bytes that it takes on the disk."""
    why: str
    """Why it belongs to nobody, in one clause for people."""
    remove: Callable[[], None] = field(repr=False, compare=False)
    """Takes the locks, looks again, and removes the leftover. Raises Spared, TopcoatError or OSError."""


@contextmanager
def alone(*paths: Path) -> Iterator[None]:
    """Hold `locked(path)` of all paths in the body. Raises Spared if a process holds one, or its directory is gone."""
    with ExitStack() as held:
        for path in paths:
            if not path.parent.is_dir():
                raise Spared("it is gone already")  # taking the lock would make the directory again
            try:
                held.enter_context(locked(path, _PATIENCE))
            except InstanceBusy:
                raise Spared("another process works on it") from None
        yield


def used(*paths: Path) -> int:
    """Bytes that files, and directories with all in them, take on the disk. Links are not followed."""
    return sum(map(_used, paths))


def _used(path: Path) -> int:
    with suppress(FileNotFoundError):  # it has been deleted meanwhile
        size = path.lstat().st_blocks * 512
        return size + used(*path.iterdir()) if is_directory(path) else size
    return 0


def delete(*paths: Path) -> None:
    """Delete files, links, and directories with all in them. What vanishes meanwhile is no error.

    Raises OSError, or Spared if somebody puts something into a directory meanwhile.
    """
    for path in paths:
        with suppress(FileNotFoundError):
            if is_directory(path):
                delete(*path.iterdir())
                delete_empty(path)
            else:
                path.unlink()


def delete_empty(directory: Path) -> None:
    """Delete a directory that should be empty, under the terms of `delete`."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise Spared("somebody uses it by now") from None
        raise


def is_directory(path: Path) -> bool:
    """Whether the path is a directory itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()
