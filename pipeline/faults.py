"""What the parts raise and meet, turned into errors of Topcoat that say what was being done."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import ImageError, StoreError


@contextmanager
def image_faults(file: str) -> Iterator[None]:
    """Name the file in every ImageError of the body."""
    try:
        yield
    except ImageError as error:
        error.about(file)
        raise


_STORE_HINTS = {
    errno.ENOSPC: "free some space on that disk, or move the store: [store] root or TOPCOAT_ROOT",
    errno.EDQUOT: "free some of your quota on that disk, or move the store: [store] root or TOPCOAT_ROOT",
    errno.EROFS: "the file system is mounted read-only; move the store: [store] root or TOPCOAT_ROOT",
    errno.EACCES: "give your user the right to that path, or move the store: [store] root or TOPCOAT_ROOT",
    errno.EPERM: "give your user the right to that path, or move the store: [store] root or TOPCOAT_ROOT",
    errno.ENOENT: "is the path right? a directory on it is not there: [store] root or TOPCOAT_ROOT",
    errno.EEXIST: "a file stands where a directory is wanted; move it away, or set [store] root or TOPCOAT_ROOT",
    errno.ENOTDIR: "a file stands where a directory is wanted; move it away, or set [store] root or TOPCOAT_ROOT",
}


def hint_for(number: int | None) -> str:
    """What to do about a store that answers with this errno."""
    return _STORE_HINTS.get(number or 0, "see the reason above; the same command again goes on from here")


@contextmanager
def host_faults(doing: str) -> Iterator[None]:
    """Turn an OSError of the body into a StoreError that says what was being done and what to do about it."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise StoreError(f"{doing}: {error.strerror or error}{where}", hint=hint_for(error.errno)) from error
