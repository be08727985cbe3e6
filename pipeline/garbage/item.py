"""One thing that is nobody's, and what all kinds of them need."""

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import InstanceBusy
from pipeline.publish import locked

Kind = Literal["process", "sockets", "disk", "logs", "remains"]
"""
process  a QEMU that a killed boot, or a killed user of the pool, has left behind, and the disk, sockets and
         small files of its instance
sockets  a directory of sockets on which nobody listens
disk     what an instance that has ended needed while it ran: its overlay, handle, pidfile
logs     the whole directory of an instance that has ended long ago
remains  what a killed process was making
"""

_PATIENCE = 1.0  # whoever only asks whether a lock is held, such as another gc, holds it for a moment


class Spared(Exception):
    """It is not, or no longer, nobody's. `str` says why, in one clause."""


@dataclass(frozen=True)
class Item:
    """One thing to be reclaimed."""

    kind: Kind
    what: str
    """Its path, or the pids of processes."""
    bytes: int
    """On the disk."""
    why: str
    """Why it is nobody's: one clause for people."""
    remove: Callable[[], None] = field(repr=False, compare=False)
    """Takes the locks, looks again, and removes it. Raises Spared, TopcoatError or OSError."""


@contextmanager
def alone(*paths: Path) -> Iterator[None]:
    """Hold `locked(path)` of all paths during the body. Raises Spared if somebody has one of them."""
    with ExitStack() as held:
        for path in paths:
            if not path.parent.is_dir():
                raise Spared("it is gone already")  # a lock would make the directory anew
            try:
                held.enter_context(locked(path, _PATIENCE))
            except InstanceBusy:
                raise Spared("another process works on it") from None
        yield


def used(*paths: Path) -> int:
    """Bytes that files, and directories with all in them, take on the disk. Links are not followed."""
    return sum(map(_used, paths))


def _used(path: Path) -> int:
    with suppress(FileNotFoundError):  # it is gone meanwhile
        size = path.lstat().st_blocks * 512
        return size + used(*path.iterdir()) if is_directory(path) else size
    return 0


def delete(*paths: Path) -> None:
    """Delete files, links, and directories with all in them; what vanishes meanwhile is no error.

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
    """The same for a directory in which there should be nothing any more."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise Spared("somebody uses it by now") from None
        raise


def is_directory(path: Path) -> bool:
    """Whether it is a directory itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()
