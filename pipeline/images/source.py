"""An image file, opened to be looked into: bounded reads, and an error where the file ends before it should."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ImageDamaged, UsageError
from pipeline.faults import host_faults
from pipeline.text import printable

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """The bytes of an open file. `size` is what it had when it was opened; if it shrinks, reading is an error."""

    stream: BinaryIO
    size: int

    def holds(self, offset: int, length: int) -> bool:
        """Whether these bytes lie in the file."""
        return 0 <= offset <= offset + length <= self.size

    def at(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises ImageDamaged if the file has fewer, before anything is read; StoreError."""
        if not self.holds(offset, length):
            raise _cut_off(offset, length, max(0, self.size - offset))
        with host_faults(f"reading {self.stream.name}", "file"):
            self.stream.seek(offset)
            content = self.stream.read(length)
        if len(content) < length:
            raise _cut_off(offset, length, len(content))
        return content

    def after_hole(self, offset: int) -> int:
        """Where, from `offset` on, the file next has anything stored, or its end: before it there are only zeros."""
        descriptor = self.stream.fileno()
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            return os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return self.size
        finally:
            os.lseek(descriptor, before, os.SEEK_SET)  # the stream believes that it is there

    def digest(self, offset: int, length: int) -> str:
        """Of these bytes, as "b3:HEX" (BLAKE3). Raises ImageDamaged if the file has fewer."""
        from blake3 import blake3

        hasher = blake3()
        for position in range(offset, offset + length, _CHUNK):
            hasher.update(self.at(position, min(_CHUNK, offset + length - position)))
        return f"b3:{hasher.hexdigest()}"


def _cut_off(offset: int, length: int, there: int) -> ImageDamaged:
    return ImageDamaged(
        f"the file is cut off: {there} bytes",
        offset=offset,
        expected=f"{length}",
        hint="was it copied as a whole? make or fetch it anew",
    )


@contextmanager
def opened(path: Path, *, writable: bool = False) -> Iterator[Source]:
    """Open a regular file to read it, or to change it too. All else is left alone: a pipe could block for ever, a
    device could act.

    Raises UsageError if it is no regular file or cannot be opened. Reading the Source raises StoreError.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{_shown(path)} is {_sort(path)}, not a file", hint="name the image file itself")
        access = os.O_RDWR if writable else os.O_RDONLY
        descriptor = os.open(path, access | os.O_NONBLOCK | os.O_CLOEXEC)
        stream = open(path, "r+b" if writable else "rb", opener=lambda *_: descriptor)  # noqa: SIM115  below
    except OSError as error:
        raise UsageError(
            f"{_shown(path)}: {error.strerror}", hint="is the path right, and does your user have the right to read it?"
        ) from error
    with stream:
        yield Source(stream, os.fstat(stream.fileno()).st_size)


def _shown(path: Path) -> str:
    return printable(str(path))


def _sort(path: Path) -> str:
    sorts = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFBLK: "a block device",
        stat.S_IFCHR: "a character device",
    }
    return sorts.get(stat.S_IFMT(path.stat().st_mode), "something else")
