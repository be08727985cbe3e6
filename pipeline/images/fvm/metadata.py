"""The metadata of an FVM: a header and two tables, kept in two copies, of which the newer valid one counts."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import BinaryIO

from pipeline.errors import ImageDamaged, ImageError
from pipeline.images.fvm.header import BLOCK, ENTRY_SIZE, HASH, REMEDY, TABLES, FvmHeader
from pipeline.images.fvm.tables import Extent, Partition, decode_extents, decode_partitions

_GENERATIONS = 2**64


@dataclass(frozen=True)
class Metadata:
    """One metadata copy: its header, and its two tables as bytes."""

    header: FvmHeader
    partition_table: bytes
    allocation_table: bytes

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        """The partitions, in the order of their index."""
        return decode_partitions(self.partition_table)

    @cached_property
    def entries(self) -> tuple[Extent, ...]:
        """All used entries of the allocation table, sound or not; see `decode_extents`. Raises ImageTooLarge."""
        return tuple(decode_extents(self.allocation_table))

    @cached_property
    def extents(self) -> tuple[Extent, ...]:
        """The usable slices that belong to a partition, in the order of the disk. Raises ImageTooLarge."""
        inside = (extent.within(1, self.header.slices + 1) for extent in self.entries if extent.partition)
        return tuple(extent for extent in inside if extent.slices > 0)

    def runs(self) -> Iterator[tuple[int, int]]:
        """The slices of `extents`, whatever their partition, as runs: the number of the first slice, and the count."""
        first, count = 1, 0
        for extent in self.extents:
            if count and extent.pslice == first + count:
                count += extent.slices
                continue
            if count:
                yield first, count
            first, count = extent.pslice, extent.slices
        if count:
            yield first, count

    @property
    def least_size(self) -> int:
        """Bytes up to the end of the last allocated slice: a shorter file lacks contents."""
        return self.header.slice_offset(max((first + count for first, count in self.runs()), default=1))

    def grown(self, header: FvmHeader) -> "Metadata":
        """The same content under another header, whose tables are as large or larger."""
        return replace(
            self, header=header, allocation_table=self.allocation_table.ljust(header.allocation_table_size, b"\0")
        )

    def encode(self) -> tuple[bytes, bytes, bytes]:
        """What a copy consists of, to be written one after the other: the header with a new hash, and both tables."""
        size = self.header.hashed_sizes[0]
        digest = _hash(self.header.encode(), self.partition_table, self.allocation_table, size)
        return self.header.encode(digest), self.partition_table, self.allocation_table


def _hash(block: bytes, partition_table: bytes, allocation_table: bytes, size: int) -> bytes:
    """The SHA-256 of the first `size` bytes of a copy, with zeros in the place of the hash."""
    digest = hashlib.sha256(block[: HASH.start] + bytes(32) + block[HASH.stop :])
    digest.update(partition_table)
    digest.update(memoryview(allocation_table)[: size - TABLES])
    return digest.digest()


@dataclass(frozen=True)
class Copies:
    """Copy A (`first`) and copy B (`second`), or the error that says what is wrong with it. At least one is valid."""

    first: Metadata | ImageError
    second: Metadata | ImageError

    @property
    def second_counts(self) -> bool:
        """Whether copy B counts: it alone is valid, or it is newer. Generations wrap, so the largest is before 0."""
        if isinstance(self.first, ImageError) or isinstance(self.second, ImageError):
            return isinstance(self.first, ImageError)
        newer = (self.second.header.generation - self.first.header.generation) % _GENERATIONS
        return 0 < newer < _GENERATIONS // 2

    @property
    def current(self) -> Metadata:
        """The copy that counts."""
        chosen = self.second if self.second_counts else self.first
        assert isinstance(chosen, Metadata)
        return chosen


def read(stream: BinaryIO) -> Metadata:
    """The metadata that counts: the valid copy, the newer one if both are valid, A if they are equally new.

    Raises WrongFormat if the file is no raw FVM, ImageDamaged if neither copy is valid, ImageTooLarge if the tables are
    larger than Topcoat reads.
    """
    return read_copies(stream).current


def read_copies(stream: BinaryIO) -> Copies:
    """Both copies of the metadata. Raises what `read` raises."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    first = FvmHeader.decode(stream.read(BLOCK))  # where copy B is, only A's header can tell
    copies = Copies(*(_copy_at(stream, start, first, size) for start in (0, first.metadata_size)))
    if isinstance(copies.first, ImageError) and isinstance(copies.second, ImageError):
        raise ImageDamaged(
            "neither of the two copies of its tables is intact",
            hint=REMEDY,
            detail=f"copy A: {copies.first}\ncopy B: {copies.second}",
        )
    return copies


def _copy_at(stream: BinaryIO, start: int, first: FvmHeader, size: int) -> Metadata | ImageError:
    try:
        return _valid_copy(stream, start, first, size)
    except ImageError as error:
        return error


def _valid_copy(stream: BinaryIO, start: int, first: FvmHeader, size: int) -> Metadata:
    end = start + first.metadata_size
    if size < end:
        raise ImageDamaged("the tables are cut off", offset=size, expected=f"{end} bytes", hint=REMEDY)
    stream.seek(start)
    block = stream.read(BLOCK)
    header = FvmHeader.decode(block, start)
    if header.metadata_size != first.metadata_size:
        raise _unequal_tables(header, first, start)
    tables = (stream.read(TABLES - BLOCK), stream.read(header.allocation_table_size))
    if len(tables[1]) < header.allocation_table_size:
        raise ImageDamaged("the tables are cut off", offset=stream.tell(), expected=f"{end} bytes", hint=REMEDY)
    if block[HASH] not in {_hash(block, *tables, size) for size in sorted(set(header.hashed_sizes))}:
        raise ImageDamaged("the hash of the tables is wrong", offset=start + HASH.start, hint=REMEDY)
    return Metadata(header, *tables)


def _unequal_tables(header: FvmHeader, first: FvmHeader, start: int) -> ImageDamaged:
    return ImageDamaged(
        f"an allocation table of {header.allocation_table_size} bytes",
        offset=start + 48,
        expected=f"{first.allocation_table_size} as in copy A",
        hint=REMEDY,
    )


def check_within(metadata: Metadata, size: int) -> None:
    """Raise ImageDamaged if a file of `size` bytes lacks a part of an allocated slice."""
    header = metadata.header
    if metadata.least_size <= size:
        return
    first = max(1, (size - 2 * header.metadata_size) // header.slice_size + 1)
    number = next(max(first, start) for start, count in metadata.runs() if start + count > first)
    raise ImageDamaged(
        f"slice {number} is cut off: the file ends",
        offset=size,
        expected=f"at least {metadata.least_size} bytes",
        hint="copy the image anew; it must have been cut off on its way",
    )


def check_nothing_hidden(metadata: Metadata) -> None:
    """Raise ImageDamaged if entries beyond the usable slices are in use: a larger volume would bring them to life."""
    for extent in metadata.entries:
        if extent.partition and extent.end > metadata.header.slices + 1:
            number = max(extent.pslice, metadata.header.slices + 1)
            raise ImageDamaged(
                f"slice {number} is in use, but the volume has {metadata.header.slices} slices",
                offset=TABLES + number * ENTRY_SIZE,
                expected="0",
                hint=REMEDY,
            )
