"""The files and directories of the host that are to be put into a guest."""

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import NoMatch
from pipeline.host.faults import host_faults
from pipeline.text import goglob
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

_DEEPEST = 64  # nested directories, as in what comes from a guest


@dataclass(frozen=True)
class Upload:
    """A file or directory of the host, and where it arrives in the guest."""

    path: Path
    arrives: bytes
    """The path below the target directory, without ".", ".." or double slashes; empty for that directory itself."""
    directory: bool
    empty: bool = False
    """Whether it is a directory with nothing in it."""

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open the file for reading. Raises OSError, also if it is no regular file any more."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file", str(self.path))
            yield stream


def find(pattern: str) -> list[Upload]:
    """Find all that the pattern asks for on the host, directories before what is in them. See Connector.put.

    Raises NoMatch, UsageError for a bad pattern, and StoreError if something cannot be read.
    """
    matches = goglob.expand(pattern, os.path.lexists, _names)
    if not matches:
        raise NoMatch(f"no files matching glob: {one_line(pattern)!r}", hint="see what is there: ls -a")
    with host_faults("reading what is to be put into the guest", "file"):
        return [source for match in matches for source in _tree(match)]


def _names(directory: str) -> list[str]:
    try:
        return [path.name for path in Path(directory).iterdir()]
    except OSError:  # as Go: what cannot be listed has no matches
        return []


def _tree(match: str) -> Iterator[Upload]:
    path = Path(match)
    if match.endswith("/") or path.name == "":
        return _walk(path, b"", path.stat().st_mode)
    arrives = os.fsencode(os.path.abspath(path)).rpartition(b"/")[2]
    return _link(path, arrives) if path.is_symlink() else _walk(path, arrives, path.stat().st_mode)


def _link(path: Path, arrives: bytes) -> Iterator[Upload]:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno != errno.ELOOP:
            raise
        where = "itself" if error.errno == errno.ELOOP else "nothing"
        log.warning("%s is left out: it is a link to %s", one_line(str(path)), where)
        return
    if stat.S_ISDIR(mode):
        log.warning("%s is left out: it is a link to a directory", one_line(str(path)))
    else:
        yield from _walk(path, arrives, mode)


def _walk(path: Path, arrives: bytes, mode: int) -> Iterator[Upload]:
    if stat.S_ISDIR(mode):
        if arrives.count(b"/") > _DEEPEST:  # this function calls itself for each level
            raise OSError(0, f"directories lie in each other over {_DEEPEST} deep", str(path))
        with os.scandir(path) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        yield Upload(path, arrives, directory=True, empty=not entries)
        for entry in entries:
            name = os.fsencode(entry.name)
            yield from _inside(entry, arrives + b"/" + name if arrives else name)
    elif stat.S_ISREG(mode):
        yield Upload(path, arrives, directory=False)
    else:
        log.warning("%s is left out: it is neither a file nor a directory", one_line(str(path)))


def _inside(entry: "os.DirEntry[str]", arrives: bytes) -> Iterator[Upload]:
    path = Path(entry.path)
    return _link(path, arrives) if entry.is_symlink() else _walk(path, arrives, _mode(entry))


def _mode(entry: "os.DirEntry[str]") -> int:
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else 0
