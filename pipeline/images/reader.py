"""Reading of image files: reads of a known length, and an error where the file ends before it should."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ImageDamaged, UsageError
from pipeline.host.faults import host_faults
from pipeline.text.printable import printable

_CHUNK = 1 << 20


@dataclass(frozen=True)
class ImageReader:
    """The bytes of an open file. `size` is what it had when it was opened, in bytes: a read beyond that fails."""

    stream: BinaryIO
    size: int

    def holds(self, offset: int, length: int) -> bool:
        """Whether the `length` bytes from `offset` on lie within the file."""
        return 0 <= offset <= offset + length <= self.size

    def at(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on.

        Raises ImageDamaged if the file ends before, without reading it if its size tells that; StoreError if it cannot
        be read.
        """
        if not self.holds(offset, length):
            raise _cut_off(offset, length, max(0, self.size - offset))
        with host_faults(f"reading {self.stream.name}", "file"):
            self.stream.seek(offset)
            content = self.stream.read(length)
        if len(content) < length:
            raise _cut_off(offset, length, len(content))
        return content

    def after_hole(self, offset: int) -> int:
        """The position of the first data at or after `offset`, or the end of the file: up to there lies only a hole."""
        descriptor = self.stream.fileno()
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            return os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return self.size
        finally:
            os.lseek(descriptor, before, os.SEEK_SET)  # the stream relies on its position

    def digest(self, offset: int, length: int) -> str:
        """The BLAKE3 of the `length` bytes from `offset` on, as "b3:HEX". Raises what `at` raises."""
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
def opened(path: Path, *, writable: bool = False) -> Iterator[ImageReader]:
    """Open a regular file for reading, or, with `writable`, for changing it too.

    Nothing else is opened: a pipe could block for ever, a device could act. Raises UsageError if it is no regular file
    or cannot be opened.
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
        yield ImageReader(stream, os.fstat(stream.fileno()).st_size)


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
