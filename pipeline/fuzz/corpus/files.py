"""Files of units: how they are named, read from places that are not trusted, and written for good."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

_DEEPEST = 64  # nested directories, as in what comes from a guest
_NAME = re.compile(r"[0-9a-f]{40}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Errors for a link or a socket, and for what has vanished, cannot be read, or has a name that no file can have
_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG, errno.ENOTDIR)
# Errors of a file system without hard links, or with too many links to one file
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def is_name(text: str) -> bool:
    """Whether libFuzzer could have given a unit this name: the SHA-1 of some content, in lowercase."""
    return _NAME.fullmatch(text) is not None


def name_of(content: bytes) -> str:
    """Return the name of the unit that has this content: its SHA-1 in hexadecimal digits."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def content_of(path: Path, most: int) -> bytes | None:
    """Read the first `most` bytes of a regular file; None if something else is there, or nothing that can be read.

    Links are not followed. Raises OSError.
    """
    try:
        with _opened(path) as stream:
            return None if stream is None else stream.read(most)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise


def files_below(directory: Path) -> Iterator[Path]:
    """Yield all paths in a directory and below it that are no directories, directory by directory, sorted in each.

    As with libFuzzer, hidden directories are left out. All links are among the paths, also those to directories, which
    are not entered. Raises OSError.
    """
    above = len(directory.parts) + _DEEPEST
    for parent, directories, names in os.walk(directory, onerror=_fail):
        if directories and len(Path(parent).parts) > above:  # os.walk calls itself for each level
            raise OSError(0, f"directories lie in each other over {_DEEPEST} deep", parent)
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        links = [name for name in directories if Path(parent, name).is_symlink()]
        yield from (Path(parent, name) for name in sorted([*names, *links]))


def _fail(error: OSError) -> None:
    raise error


def followed(path: Path) -> Path:
    """Return what a link to a regular file leads to; any other path as it is. For files of a trusted user only."""
    return path.resolve() if path.is_symlink() and path.is_file() else path


def own_name(path: Path) -> str:
    """Return the name for the content of a regular file, however large it is; empty for others. Raises OSError."""
    with _opened(path) as stream:
        return "" if stream is None else hashlib.file_digest(stream, _sha1).hexdigest()


def has_own_name(path: Path) -> bool:
    """Whether a path is a regular file whose name is that of its content. Raises OSError."""
    return own_name(path) == path.name


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader | None]:
    """Open a file for reading, without following a link; None if it is no regular file. Raises OSError."""
    descriptor = os.open(path, _READ)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        with open(descriptor, "rb") as stream:
            yield stream
    else:
        os.close(descriptor)
        yield None


def _sha1() -> "hashlib._Hash":
    return hashlib.sha1(usedforsecurity=False)


def write_new(path: Path, content: bytes) -> None:
    """Write a new file, safe on the disk after `sync_one` of its directory. Raises OSError, also if it is there."""
    with open(os.open(path, _NEW, 0o644), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def link(path: Path, target: Path) -> None:
    """Make a hard link `target` to a unit's file; a copy if there can be no link. Raises OSError, also if it exists."""
    try:
        target.hardlink_to(path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        write_new(target, path.read_bytes())


def names_in(directory: Path) -> list[str]:
    """Return all names in a directory; none if it is not there. Raises OSError."""
    try:
        return os.listdir(directory)  # noqa: PTH208  making a Path for each takes time
    except FileNotFoundError:
        return []


def directories_in(directory: Path) -> list[str]:
    """Return the names of the directories in a directory, without links; none if it is not there. Raises OSError."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def sizes_in(directory: Path) -> dict[str, int | None]:
    """Return the bytes of each file in a directory that has the name of a unit; None for what is no regular file.

    Directories are left out. Raises OSError.
    """
    with os.scandir(directory) as entries:
        named = (entry for entry in entries if is_name(entry.name) and not entry.is_dir(follow_symlinks=False))
        return {entry.name: _size(entry) for entry in named}


def _size(entry: "os.DirEntry[str]") -> int | None:
    facts = entry.stat(follow_symlinks=False)
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None
