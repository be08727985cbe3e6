"""The contents of a file, told apart into data and holes: walked through, copied and hashed without reading holes."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pipeline.errors import ImageDamaged
from pipeline.store.digests import threads

CHUNK = 256 << 10
"""Bytes that are read at once: so many stay in the processor's cache."""

_HASHED = 1 << 20  # BLAKE3 shares this much among threads
_REFUSED = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
_AT_ONCE = 1 << 30  # bytes that copy_file_range takes for sure


_Mover = Callable[[int, int, int, int, int], int]
"""A function (source, start, output, target, size) that copies at most `size` bytes and returns how many it has."""


class Stretch(NamedTuple):
    """Bytes of a file from `start` up to `end`, which are either all data or a hole."""

    start: int
    end: int
    data: bool


class Extents:
    """The data and the holes of a file. It moves the descriptor's position, so only one may use it at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = Stretch(0, 0, data=False)

    def at(self, position: int) -> Stretch:
        """The stretch that `position` lies in, at least from there on. A hole after the last data has no end."""
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
        """The stretches from `start` up to `end`, in order."""
        while start < end:
            stretch = self.at(start)
            yield Stretch(start, min(stretch.end, end), stretch.data)
            start = stretch.end


def copy(source: int, start: int, output: int, target: int, size: int) -> None:
    """Copy `size` bytes from `start` of a file to `target` of another one, where there is a hole. Holes stay holes.

    Raises ImageDamaged if the source ends before that, and OSError.
    """
    move: _Mover = _in_kernel
    for stretch in Extents(source).within(start, start + size):
        if stretch.data:
            move = _move(move, source, stretch.start, output, target + stretch.start - start, stretch)
    check_reaches(source, start + size)


def _move(move: _Mover, source: int, start: int, output: int, target: int, stretch: Stretch) -> _Mover:
    """Copy a stretch of data. Returns the function that works between these two files."""
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
    """Write all of `content` at `start` of a file. Raises OSError."""
    left = memoryview(content)
    while left:
        done = os.pwrite(descriptor, left, start)
        left, start = left[done:], start + done


def digest(descriptor: int, ranges: Iterable[tuple[int, int]]) -> str:
    """The BLAKE3 of ranges of a file, each a start and a size, one after the other, as "b3:HEX".

    Holes are hashed as zeros without being read. Raises ImageDamaged if the file ends before the end of a range, and
    OSError.
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
    """The stretches, cut into pieces of at most `size` bytes."""
    for start, end, data in stretches:
        for position in range(start, end, size):
            yield Stretch(position, min(position + size, end), data)


def check_reaches(descriptor: int, end: int) -> None:
    """Raise ImageDamaged if a file ends before `end`: there are no zeros then, though it looks like a hole."""
    if os.fstat(descriptor).st_size < end:
        raise cut_off(descriptor)


def cut_off(descriptor: int) -> ImageDamaged:
    """The error for a file that has become shorter while it was read."""
    return ImageDamaged(
        "the file is cut off: another program has shortened it",
        offset=os.fstat(descriptor).st_size,
        hint="wait until nobody writes to it, then try again",
    )
