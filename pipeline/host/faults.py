"""Context managers that turn low-level errors into errors of Topcoat that say what was being done."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pipeline.errors import ImageError, StoreError
from pipeline.text.printable import one_line


@contextmanager
def image_faults(file: str) -> Iterator[None]:
    """Put the name of the file into every ImageError that the body raises."""
    try:
        yield
    except ImageError as error:
        error.about(file)
        raise


Place = Literal["store", "temporary", "file"]
"""What a path belongs to: the store, the host's place for temporary files, or the user's own files."""

_ELSEWHERE: dict[Place, str] = {
    "store": ", or move the store: [store] root or TOPCOAT_ROOT",
    "temporary": ", or have temporary files elsewhere: set TMPDIR",
    "file": "",
}
_NO_RIGHT = "does it belong to another user? work as that one, give your user the right to that path"
_A_FILE = "a file stands where a directory is wanted: move it away"
_HINTS = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some of your quota on that disk",
    errno.EROFS: "the file system is mounted read-only: have it mounted to be written to",
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.ENOENT: "is the path right? something on it is not there: correct or make it",
    errno.EEXIST: _A_FILE,
    errno.ENOTDIR: _A_FILE,
    errno.ELOOP: "a link on that path leads to itself: remove it",
    errno.ENAMETOOLONG: "a name on that path is too long: make it shorter",
}


def hint_for(number: int | None, place: Place = "store") -> str:
    """The hint for a person: what to do about a path whose use failed with the errno `number`."""
    hint = _HINTS.get(number or 0)
    return hint + _ELSEWHERE[place] if hint else "see the reason above; the same command again goes on from here"


def explained(doing: str, error: OSError, place: Place = "store") -> StoreError:
    """The StoreError for an OSError: it says what was being done (`doing`) and what to do about it."""
    where = f": {one_line(os.fsdecode(error.filename))}" if error.filename else ""
    return StoreError(f"{doing}: {error.strerror or error}{where}", hint=hint_for(error.errno, place))


@contextmanager
def host_faults(doing: str, place: Place = "store") -> Iterator[None]:
    """Turn an OSError of the body into a StoreError that says what was being done (`doing`) and what to do about it."""
    try:
        yield
    except OSError as error:
        raise explained(doing, error, place) from error


@contextmanager
def paths_explained(doing: str) -> Iterator[None]:
    """Do as `host_faults`, but only for an OSError that names a path, which a user can mend: others are bugs.

    It is meant for the whole of a program.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise explained(doing, error) from error


def entries(directory: Path) -> list[Path]:
    """The paths in a directory, sorted; [] if there is no such directory. Raises StoreError if it cannot be read.

    Path.glob would take a directory that cannot be read for an empty one.
    """
    with host_faults(f"looking into {directory.name}"):
        try:
            return sorted(directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def unless_gone(error: OSError) -> None:
    """Raise the error, unless its file is gone: for the `onerror` of os.walk, which else hides what it cannot read."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
