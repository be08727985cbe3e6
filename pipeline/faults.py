"""What the parts raise and meet, turned into errors of Topcoat that say what was being done."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ImageError, StoreError
from pipeline.text import one_line


@contextmanager
def image_faults(file: str) -> Iterator[None]:
    """Name the file in every ImageError of the body."""
    try:
        yield
    except ImageError as error:
        error.about(file)
        raise


_OTHER_STORE = "[store] root or TOPCOAT_ROOT"
_NO_RIGHT = (
    f"does it belong to another user? work as that one, give your user the right to that path, or move the store: "
    f"{_OTHER_STORE}"
)
_A_FILE = f"a file stands where a directory is wanted; move it away, or set {_OTHER_STORE}"
_STORE_HINTS = {
    errno.ENOSPC: f"free some space on that disk, or move the store: {_OTHER_STORE}",
    errno.EDQUOT: f"free some of your quota on that disk, or move the store: {_OTHER_STORE}",
    errno.EROFS: f"the file system is mounted read-only; move the store: {_OTHER_STORE}",
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.ENOENT: f"is the path right? a directory on it is not there: {_OTHER_STORE}",
    errno.EEXIST: _A_FILE,
    errno.ENOTDIR: _A_FILE,
    errno.ELOOP: f"a link on that path leads to itself; remove it, or set {_OTHER_STORE}",
    errno.ENAMETOOLONG: f"a name on that path is too long; move the store to a shorter one: {_OTHER_STORE}",
}


def hint_for(number: int | None) -> str:
    """What to do about a store that answers with this errno."""
    return _STORE_HINTS.get(number or 0, "see the reason above; the same command again goes on from here")


def explained(doing: str, error: OSError) -> StoreError:
    """The error as one of the store's, that says what was being done and what to do about it."""
    where = f": {one_line(os.fsdecode(error.filename))}" if error.filename else ""
    return StoreError(f"{doing}: {error.strerror or error}{where}", hint=hint_for(error.errno))


@contextmanager
def host_faults(doing: str) -> Iterator[None]:
    """Turn an OSError of the body into a StoreError that says what was being done and what to do about it."""
    try:
        yield
    except OSError as error:
        raise explained(doing, error) from error


@contextmanager
def paths_explained(doing: str) -> Iterator[None]:
    """The same for whole programs: only an OSError about a path, which is the user's to mend. Others are bugs."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise explained(doing, error) from error


def entries(directory: Path) -> list[Path]:
    """What is in a directory, sorted; nothing if there is none. Raises StoreError if that cannot be told.

    Path.glob would take a directory that may not be read for an empty one.
    """
    with host_faults(f"looking into {directory.name}"):
        try:
            return sorted(directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def unless_gone(error: OSError) -> None:
    """For os.walk, which hides what it cannot read: raise the error, unless what it was about is not there."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
