"""The contents of a file by its data and its holes: walked through, copied, hashed, without reading holes."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pipeline.digests import threads
from pipeline.errors import ImageDamaged

CHUNK = 256 << 10
"""Bytes that are read at once: they stay in the processor's cache."""

_HASHED = 1 << 20  # BLAKE3 shares this much among threads
_REFUSED = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
_AT_ONCE = 1 << 30  # what copy_file_range takes for sure


_Mover = Callable[[int, int, int, int, int], int]
"""Copies at most so many bytes from a place of one file to one of another, and says how many."""


class Stretch(NamedTuple):
    """Bytes of a file from `start` to `end`: all data, or a hole."""

    start: int
    end: int
    data: bool


class Extents:
    """Where in a file the data is, and where holes. One user at a time: it moves the descriptor's position."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = Stretch(0, 0, data=False)

    def at(self, position: int) -> Stretch:
        """The stretch around a position, at least from there on. Behind the last data, the hole has no end."""
        if not self._last.start <= position < self._last.end:
            self._last = self._find(position)
        return self._last

    def _find(self, position: int) -> Stretch:
        try:
            data = os.lseek(self._descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return Stretch(position, 2**63, data=False)
        if data > position:
            return Stretch(position, data, data=False)
        return Stretch(position, max(os.lseek(self._descriptor, position, os.SEEK_HOLE), position + 1), data=True)

    def within(self, start: int, end: int) -> Iterator[Stretch]:
        """The stretches from `start` to `end`, in order."""
        while start < end:
            stretch = self.at(start)
            yield Stretch(start, min(stretch.end, end), stretch.data)
            start = stretch.end


def copy(source: int, start: int, output: int, target: int, size: int) -> None:
    """Copy `size` bytes of a file to a place of another one that is a hole. Holes stay holes.

    Raises ImageDamaged if the source ends before, OSError.
    """
    move: _Mover = _in_kernel
    for stretch in Extents(source).within(start, start + size):
        if stretch.data:
            move = _move(move, source, stretch.start, output, target + stretch.start - start, stretch)
    check_reaches(source, start + size)


def _move(move: _Mover, source: int, start: int, output: int, target: int, stretch: Stretch) -> _Mover:
    """Copy a stretch of data. Returns the way that works between these two files."""
    while start < stretch.end:
        try:
            done = move(source, start, output, target, stretch.end - start)
        except OSError as error:
            if move is _by_hand or error.errno not in _REFUSED:
                raise
            move = _by_hand
            continue
        if not done:
            raise cut_off(source)
        start, target = start + done, target + done
    return move


def _in_kernel(source: int, start: int, output: int, target: int, size: int) -> int:
    return os.copy_file_range(source, output, min(size, _AT_ONCE), start, target)


def _by_hand(source: int, start: int, output: int, target: int, size: int) -> int:
    content = os.pread(source, min(size, CHUNK), start)
    write(output, target, content)
    return len(content)


def write(descriptor: int, start: int, content: bytes) -> None:
    """Write all of `content` at a place of a file. Raises OSError."""
    left = memoryview(content)
    while left:
        done = os.pwrite(descriptor, left, start)
        left, start = left[done:], start + done


def digest(descriptor: int, ranges: Iterable[tuple[int, int]]) -> str:
    """The BLAKE3 of ranges of a file, each a start and a size, one after the other, as "b3:HEX".

    Holes are hashed as zeros without being read. Raises ImageDamaged if the file ends before, OSError.
    """
    from blake3 import blake3

    hasher = blake3(max_threads=threads())
    buffer, zeros = memoryview(bytearray(_HASHED)), memoryview(bytes(_HASHED))
    extents = Extents(descriptor)
    for start, size in ranges:
        for piece in pieces(extents.within(start, start + size), _HASHED):
            content = buffer[: piece.end - piece.start] if piece.data else zeros[: piece.end - piece.start]
            if piece.data and os.preadv(descriptor, [content], piece.start) < len(content):
                raise cut_off(descriptor)
            hasher.update(content)
        check_reaches(descriptor, start + size)
    return f"b3:{hasher.hexdigest()}"


def pieces(stretches: Iterable[Stretch], size: int) -> Iterator[Stretch]:
    """The same, cut into pieces of at most `size` bytes."""
    for start, end, data in stretches:
        for position in range(start, end, size):
            yield Stretch(position, min(position + size, end), data)


def check_reaches(descriptor: int, end: int) -> None:
    """Raise ImageDamaged if a file ends before `end`: then there are no zeros, though it looks like a hole."""
    if os.fstat(descriptor).st_size < end:
        raise cut_off(descriptor)


def cut_off(descriptor: int) -> ImageDamaged:
    """The error for a file that has become shorter while it was read."""
    return ImageDamaged(
        "the file is cut off: another program has shortened it",
        offset=os.fstat(descriptor).st_size,
        hint="wait until nobody writes to it, then try again",
    )
