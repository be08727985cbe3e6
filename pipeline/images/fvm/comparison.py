"""Comparison of the content of two volumes, wherever in the files their slices lie."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from pipeline.host.faults import host_faults, image_faults
from pipeline.images.fvm.header import ENTRY_SIZE
from pipeline.images.fvm.metadata import Metadata, check_within, read
from pipeline.images.fvm.slices import CHUNK, Extents, check_reaches, cut_off
from pipeline.images.reader import opened

_THREADS = 2
_ZEROS = bytes(CHUNK)


def first_difference(source: Path, other: Path) -> str | None:
    """Compare all allocated slices of `source` with those of `other`; None if they are equal.

    Otherwise returns a sentence about the first physical slice that belongs to another partition, or to another place
    in its partition, or holds something else: it names the slice, its partition and the byte. `other` may be larger,
    have other tables and more slices. Holes count as zeros and are not read. Raises what `read` raises for either file,
    ImageDamaged if one lacks a slice, StoreError if it cannot be read, and UsageError if it is no regular file or
    cannot be opened.
    """
    with ExitStack() as stack:
        stack.enter_context(host_faults("comparing FVMs", "file"))
        left, right = (_opened(path, stack) for path in (source, other))
        difference = _other_entry(left, right) or _other_content(left, right)
        for volume in (left, right):
            with image_faults(str(volume.path)):
                check_reaches(volume.descriptor, volume.metadata.least_size)
        return difference


@dataclass(frozen=True)
class _Volume:
    path: Path
    descriptor: int
    metadata: Metadata


def _opened(path: Path, stack: ExitStack) -> _Volume:
    with image_faults(str(path)):
        stream = stack.enter_context(opened(path)).stream
        metadata = read(stream)
        check_within(metadata, os.fstat(stream.fileno()).st_size)
        return _Volume(path, stream.fileno(), metadata)


def _other_entry(left: _Volume, right: _Volume) -> str | None:
    mine, theirs = left.metadata, right.metadata
    if mine.header.slice_size != theirs.header.slice_size:
        return f"slices of {theirs.header.slice_size} bytes, not of {mine.header.slice_size}"
    for first, count in mine.runs():
        place = slice(ENTRY_SIZE * first, ENTRY_SIZE * (first + count))
        if mine.allocation_table[place] != theirs.allocation_table[place] or first + count > theirs.header.slices + 1:
            number = _first_other_entry(mine, theirs, first, count)
            return f"{_named(mine, number)} does not belong there in {right.path.name}"
    return None


def _first_other_entry(mine: Metadata, theirs: Metadata, first: int, count: int) -> int:
    end = min(first + count, theirs.header.slices + 1)
    places = ((number, slice(ENTRY_SIZE * number, ENTRY_SIZE * (number + 1))) for number in range(first, end))
    differing = (number for number, place in places if mine.allocation_table[place] != theirs.allocation_table[place])
    return next(differing, end)


def _named(metadata: Metadata, number: int) -> str:
    """The words for a physical slice: its number, its partition, and its place in that."""
    extent = next(extent for extent in metadata.extents if extent.pslice <= number < extent.end)
    names = {partition.index: partition.name for partition in metadata.partitions}
    name = names.get(extent.partition, "")
    vslice = extent.vslice + number - extent.pslice
    return f"slice {number} (partition {extent.partition} {name!r}, virtual slice {vslice})"


class _Pair(NamedTuple):
    """Places in both files that should hold the same `size` bytes, and whether each of them is data and not a hole."""

    left: int
    right: int
    size: int
    left_data: bool
    right_data: bool


def _pairs(left: _Volume, right: _Volume) -> Iterator[_Pair]:
    """All places that have to be compared, in the order of the source. What is a hole in both files is left out."""
    mine, theirs = Extents(left.descriptor), Extents(right.descriptor)
    slice_size = left.metadata.header.slice_size
    for first, count in left.metadata.runs():
        start, target = (volume.metadata.header.slice_offset(first) for volume in (left, right))
        moved, end = target - start, start + count * slice_size
        while start < end:
            here, there = mine.at(start), theirs.at(start + moved)
            size = min(here.end - start, there.end - start - moved, end - start)
            if here.data or there.data:
                size = min(size, CHUNK)
                yield _Pair(start, start + moved, size, here.data, there.data)
            start += size


def _other_content(left: _Volume, right: _Volume) -> str | None:
    search = _Search(left, right)
    with ThreadPoolExecutor(_THREADS) as pool:
        threads = [pool.submit(search.run) for _ in range(_THREADS)]
    places = [place for thread in threads if (place := thread.result()) is not None]
    if not places:
        return None
    position, header = min(places), left.metadata.header
    number, byte = divmod(position - header.slice_offset(1), header.slice_size)
    found = right.metadata.header.slice_offset(number + 1) + byte
    return (
        f"{_named(left.metadata, number + 1)} differs at its byte {byte:#x}: "
        f"byte {position:#x} of {left.path.name}, byte {found:#x} of {right.path.name}"
    )


class _Search:
    """The search for the first difference, by several threads that take turns."""

    def __init__(self, left: _Volume, right: _Volume) -> None:
        self._files = (left, right)
        self._pairs = _pairs(left, right)
        self._lock = Lock()
        self._over = False

    def run(self) -> int | None:
        """The position in the source of the first differing byte that this thread has met, or None.

        Pairs are handed out in order, and a thread finishes the one that it works on: so the least position of all
        threads is that of the first difference.
        """
        buffers = bytearray(CHUNK), bytearray(CHUNK)
        try:
            while pair := self._next():
                byte = self._compare(pair, *buffers)
                if byte is not None:
                    return pair.left + byte
        finally:
            self._over = True  # set by the first thread that ends, in whatever way
        return None

    def _next(self) -> _Pair | None:
        with self._lock:
            return None if self._over else next(self._pairs, None)

    def _compare(self, pair: _Pair, mine: bytearray, theirs: bytearray) -> int | None:
        left, right = self._files
        one = _content(left, pair.left, pair.size, mine) if pair.left_data else _ZEROS
        two = _content(right, pair.right, pair.size, theirs) if pair.right_data else _ZEROS
        # Whole buffers are compared by memcmp, but views are not, and slices of buffers are copies
        if pair.size == CHUNK:
            return None if one == two else _first_other_byte(one, two)
        return _first_other_byte(one[: pair.size], two[: pair.size])


def _content(volume: _Volume, start: int, size: int, buffer: bytearray) -> bytearray:
    wanted = [buffer] if size == len(buffer) else [memoryview(buffer)[:size]]
    if os.preadv(volume.descriptor, wanted, start) < size:
        with image_faults(str(volume.path)):
            raise cut_off(volume.descriptor)
    return buffer


def _first_other_byte(one: bytes | bytearray, two: bytes | bytearray) -> int | None:
    if one == two:
        return None
    return next(byte for byte, (here, there) in enumerate(zip(one, two, strict=True)) if here != there)
