"""Files of units: how they are named, read from where nobody is trusted, and written for good."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

_DEEPEST = 64  # as of what comes from a guest
_NAME = re.compile(r"[0-9a-f]{40}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# A link, a socket; what has vanished, cannot be read, or has a name that no file can have
_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG, errno.ENOTDIR)


def is_name(text: str) -> bool:
    """Whether libFuzzer could have given a unit this name: the SHA-1 of some content, in lowercase."""
    return _NAME.fullmatch(text) is not None


def name_of(content: bytes) -> str:
    """The name of the unit that has this content."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def content_of(path: Path, most: int) -> bytes | None:
    """The first `most` bytes of a regular file; None if something else is there, or nothing. Raises OSError."""
    try:
        with _opened(path) as stream:
            return None if stream is None else stream.read(most)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise


def files_below(directory: Path) -> Iterator[Path]:
    """All that lies in a directory and below it but directories, sorted; as libFuzzer, without hidden directories.

    Links are there too, to whatever they lead: no directory is entered by a link. Raises OSError.
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
    """What a link to a regular file leads to; any other path as it is. For files of a user who is trusted."""
    return path.resolve() if path.is_symlink() and path.is_file() else path


def has_own_name(path: Path) -> bool:
    """Whether it is a regular file named by its content. Raises OSError."""
    with _opened(path) as stream:
        return stream is not None and hashlib.file_digest(stream, _sha1).hexdigest() == path.name


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader | None]:
    """None if it is no regular file."""
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
    """Write a file that was not there; it is on the disk once `sync_one` is done too. Raises OSError."""
    with open(os.open(path, _NEW, 0o644), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sizes_in(directory: Path) -> dict[str, int | None]:
    """What has the name of a unit there, but for directories: bytes of regular files, else None. Raises OSError."""
    with os.scandir(directory) as entries:
        named = (entry for entry in entries if is_name(entry.name) and not entry.is_dir(follow_symlinks=False))
        return {entry.name: _size(entry) for entry in named}


def _size(entry: "os.DirEntry[str]") -> int | None:
    facts = entry.stat(follow_symlinks=False)
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None
