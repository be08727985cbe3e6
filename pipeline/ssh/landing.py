"""A directory on the host into which a guest's files go. Nothing that the guest says makes them land elsewhere."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from pipeline.beneath import Beneath
from pipeline.errors import TransferRefused, UsageError
from pipeline.faults import host_faults
from pipeline.text import one_line

PathInside = tuple[bytes, ...]
"""The names from the directory to a file in it; () is the directory itself."""

LEFT_OUT = b".live_corpus"
"""Files of this name mark a corpus that is in use, and are not fetched."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST = 255
_HINT = "the guest does not behave; do not trust what came from it"


@dataclass(frozen=True)
class Limits:
    """What one transfer may come to."""

    bytes: int = 4 << 30
    """Content of all files that a guest sends."""
    entries: int = 200_000
    """Files and directories that a guest sends."""
    depth: int = 64
    """Directories in directories that a guest sends."""
    stall: float = 60.0
    """Seconds for which nothing may come or go."""
    seconds: float = 3600.0
    """For all of it, in either direction."""


class Landing:
    """The directory. As a context manager, with `Limits` for all that lands before the end of the body.

    Raises UsageError if there is no such directory.
    """

    def __init__(self, directory: Path, limits: Limits) -> None:
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
        """Check and count a file or directory of which the guest has told. Raises TransferRefused."""
        self._check(path)
        self._entries += 1
        if self._entries > self._limits.entries:
            raise TransferRefused(f"the guest sends more than {self._limits.entries} files", hint=_TOO_MUCH)

    def count(self, size: int) -> None:
        """Count content that has come, and raise TransferRefused if that is too much."""
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
        """Make the directory, unless it is there. Raises UsageError if something else is, and StoreError."""
        self._check(path)
        with _host_faults(path), self._below.entered(path):
            pass

    @contextmanager
    def file(self, path: PathInside) -> Iterator["Incoming"]:
        """Write a file in the body. It is there, complete, after the body; if that raises, nothing is.

        Raises TransferRefused, UsageError if a directory is in the way, and StoreError.
        """
        self._check(path)
        with _host_faults(path), self._below.entered(path[:-1]) as parent:
            yield from self._replaced(parent, path)

    def _replaced(self, parent: int, path: PathInside) -> Iterator["Incoming"]:
        temporary = f".topcoat-{secrets.token_hex(8)}.part"
        try:  # before it is made: Ctrl-C may come at once
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
    """A file on its way."""

    def __init__(self, landing: Landing, stream: BinaryIO) -> None:
        self._landing = landing
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Add this. Raises TransferRefused, and OSError if the host cannot store it."""
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
