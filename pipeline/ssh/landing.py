"""A directory on the host that takes a guest's files. Nothing that the guest says makes them land elsewhere."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from pipeline.errors import TransferRefused, UsageError
from pipeline.host.beneath import Beneath
from pipeline.host.faults import host_faults
from pipeline.text.printable import one_line

PathInside = tuple[bytes, ...]
"""The names that lead from the directory to something below it; () is the directory itself."""

LEFT_OUT = b".live_corpus"
"""The name of files that mark a corpus as in use; they are not fetched."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST = 255
_HINT = "the guest does not behave; do not trust what came from it"


@dataclass(frozen=True)
class TransferLimits:
    """The limits of one transfer."""

    bytes: int = 4 << 30
    """The most bytes of content, of all files together, that a guest may send."""
    entries: int = 200_000
    """The most files and directories that a guest may send."""
    depth: int = 64
    """How deep the directories that a guest sends may be nested."""
    stall: float = 60.0
    """Seconds for which a transfer, in either direction, may stand still."""
    seconds: float = 3600.0
    """Seconds that a whole transfer, in either direction, may take."""


class Landing:
    """A directory that takes a guest's files. As a context manager; `limits` hold for all that lands in its body.

    Raises UsageError if there is no such directory.
    """

    def __init__(self, directory: Path, limits: TransferLimits) -> None:
        try:
            self._below = Beneath(directory)
        except OSError as error:
            raise UsageError(
                f"there is no directory {one_line(str(directory))} to put files into: {error.strerror}",
                hint="make it first, or give another one",
            ) from error
        self._limits = limits
        self._bytes = self._entries = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._below.close()

    def admit(self, path: PathInside) -> None:
        """Check the path of a file or directory that the guest has named, and count it. Raises TransferRefused."""
        self._check(path)
        self._entries += 1
        if self._entries > self._limits.entries:
            raise TransferRefused(f"the guest sends more than {self._limits.entries} files", hint=_TOO_MUCH)

    def count(self, size: int) -> None:
        """Count so many bytes of content that have come. Raises TransferRefused if there are too many."""
        self._bytes += size
        if self._bytes > self._limits.bytes:
            raise TransferRefused(f"the guest sends more than {self._limits.bytes} bytes", hint=_TOO_MUCH)

    def _check(self, path: PathInside) -> None:
        for name in path:
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > _LONGEST:
                raise TransferRefused(f"the guest sends a name that is none: {one_line(name)!r}", hint=_HINT)
        if len(path) > self._limits.depth:
            raise TransferRefused(f"the guest sends more than {self._limits.depth} nested directories", hint=_HINT)

    def directory(self, path: PathInside) -> None:
        """Make a directory, unless it is there. Raises UsageError if something else is there, and StoreError.

        Raises TransferRefused for a path that is too deep, or has a name that no file can have.
        """
        self._check(path)
        with _host_faults(path), self._below.entered(path):
            pass

    @contextmanager
    def file(self, path: PathInside) -> Iterator["Incoming"]:
        """Write a file in the body. After the body it is there, complete; if the body raises, it is not.

        What the path led to before is replaced only at the end. Raises TransferRefused, UsageError if a directory is in
        the way, and StoreError.
        """
        self._check(path)
        with _host_faults(path), self._below.entered(path[:-1]) as parent:
            yield from self._replaced(parent, path)

    def _replaced(self, parent: int, path: PathInside) -> Iterator["Incoming"]:
        temporary = f".topcoat-{secrets.token_hex(8)}.part"
        try:  # begins before the file is made: Ctrl-C may come at once
            with open(os.open(temporary, _NEW, 0o644, dir_fd=parent), "wb", buffering=0) as stream:
                yield Incoming(self, stream)
            os.rename(temporary, path[-1], src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException as error:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
            if isinstance(error, IsADirectoryError):
                raise _in_the_way(path, "a directory is there") from error
            raise


class Incoming:
    """A file that is being received."""

    def __init__(self, landing: Landing, stream: BinaryIO) -> None:
        self._landing = landing
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Append the data. Raises TransferRefused if it is too much, and OSError if the host cannot store it."""
        self._landing.count(len(data))
        view = memoryview(data)
        while view:
            view = view[self._stream.write(view) :]


_TOO_MUCH = "is that what you want? then raise the limit; if not, the guest does not behave"


@contextmanager
def _host_faults(path: PathInside) -> Iterator[None]:
    with host_faults(f"storing {one_line(b'/'.join(path))!r} from the guest"):
        try:
            yield
        except NotADirectoryError as error:
            raise _in_the_way(path, f"{one_line(error.filename)!r} is there and is no directory") from error


def _in_the_way(path: PathInside, what: str) -> UsageError:
    return UsageError(
        f"{one_line(b'/'.join(path))!r} cannot be stored: {what}", hint="move it away, or give another directory"
    )
