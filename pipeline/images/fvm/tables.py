"""The two tables of an FVM: which partitions there are, and which of them each physical slice belongs to."""

import struct
import sys
import uuid
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from pipeline.errors import ImageTooLarge, UsageError
from pipeline.images.fvm.header import BLOCK, ENTRY_SIZE, PARTITION_TABLE_SIZE, REMEDY, TABLES

NAME_SIZE = 24
"""The most bytes that the name of a partition can have."""

MOST_EXTENTS = 1 << 20
"""The most extents that are kept in memory. The images of a build have a few."""

DATA_TYPE = uuid.UUID(bytes_le=bytes.fromhex("0c5f18082d898a42a789dbeec8f55e6a"))
"""The type GUID of a minfs data partition."""

_PARTITION = struct.Struct("<16s16sII24s")
MOST_PARTITIONS = PARTITION_TABLE_SIZE // _PARTITION.size - 1
"""The most partitions that the table holds: its entry 0 is unused."""

_INACTIVE = 1
_PER_BLOCK = BLOCK // ENTRY_SIZE
_ENTRIES = struct.Struct(f"<{_PER_BLOCK}Q")
_FREE_BLOCK = bytes(BLOCK)
_PARTITION_BITS = 0xFFFF
_NEXT_SLICE = 1 << 16


@dataclass(frozen=True)
class Partition:
    """An entry of the partition table. `slices` is the number of slices that it claims to have."""

    index: int
    name: str
    """The name as the image has it, up to the first NUL; bytes that are not UTF-8 are escaped. It may be hostile."""
    type_guid: uuid.UUID
    instance_guid: uuid.UUID
    slices: int
    flags: int = 0

    @property
    def active(self) -> bool:
        """Whether a driver would offer the partition: an update that has not ended leaves inactive ones."""
        return not self.flags & _INACTIVE

    def encode(self) -> bytes:
        """The encoded entry of the table."""
        name, (kind, instance) = self.name.encode(), (self.type_guid.bytes_le, self.instance_guid.bytes_le)
        return _PARTITION.pack(kind, instance, self.slices, self.flags, name)


def check_name(name: str) -> None:
    """Raise UsageError unless a partition can be given this name."""
    if not name.isprintable() or not 0 < len(name.encode()) <= NAME_SIZE:
        raise UsageError(f"{name!r} cannot name a partition", hint=f"use a printable name of 1 to {NAME_SIZE} bytes")


def decode_partitions(table: bytes) -> tuple[Partition, ...]:
    """The partitions in a partition table, in the order of their index. Entries without slices are free."""
    entries = enumerate(_PARTITION.iter_unpack(table))
    return tuple(
        Partition(index, _name(name), uuid.UUID(bytes_le=kind), uuid.UUID(bytes_le=instance), slices, flags)
        for index, (kind, instance, slices, flags, name) in entries
        if index and slices
    )


def _name(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="backslashreplace")


def encode_partitions(partitions: tuple[Partition, ...]) -> bytes:
    """The encoded partition table."""
    table = bytearray(PARTITION_TABLE_SIZE)
    for partition in partitions:
        start = partition.index * _PARTITION.size
        table[start : start + _PARTITION.size] = partition.encode()
    return bytes(table)


class Extent(NamedTuple):
    """Slices that follow each other both in their partition and on the disk.

    `pslice` and `vslice` are the physical and the virtual number of the first one, `slices` is their count, `partition`
    an index in the partition table, and `reserved` the upper bits of the entries, which should be 0.
    """

    pslice: int
    partition: int
    vslice: int
    slices: int
    reserved: int = 0

    @property
    def end(self) -> int:
        """The number of the first physical slice after the extent."""
        return self.pslice + self.slices

    def within(self, first: int, end: int) -> Self:
        """The part from physical slice `first` up to `end`. If there is none, its `slices` are not above 0."""
        start = max(self.pslice, first)
        moved = start - self.pslice
        return self._replace(pslice=start, vslice=self.vslice + moved, slices=min(self.end, end) - start)

    def encode(self) -> bytes:
        """The encoded entries in the allocation table."""
        first = self.reserved << 48 | self.vslice << 16 | self.partition
        entries = array("Q", range(first, first + self.slices * _NEXT_SLICE, _NEXT_SLICE))
        if sys.byteorder == "big":
            entries.byteswap()
        return entries.tobytes()


def decode_extents(table: bytes) -> Iterator[Extent]:
    """The allocated slices in an allocation table, in the order of the disk, in extents as long as possible.

    Every entry with a bit set counts, also entry 0 and those beyond the usable slices. Raises ImageTooLarge beyond
    MOST_EXTENTS. Free parts of the table take next to no time.
    """
    for number, (start, first, count) in enumerate(_sequences(table)):
        if number == MOST_EXTENTS:
            raise ImageTooLarge(
                "the partitions are in too many pieces",
                offset=TABLES + start * ENTRY_SIZE,
                expected=f"at most {MOST_EXTENTS}",
                hint=REMEDY,
            )
        yield Extent(start, first & _PARTITION_BITS, first >> 16 & 0xFFFFFFFF, count, first >> 48)


def _sequences(table: bytes) -> Iterator[tuple[int, int, int]]:
    """Runs of entries for virtual slices in order: the number of the first entry, its value, and their count."""
    start = first = count = 0
    for number, entry, following in _used_entries(table):
        if entry == first + count * _NEXT_SLICE and number == start + count:
            count += following
            continue
        if count:
            yield start, first, count
        start, first, count = number, entry, following
    if count:
        yield start, first, count


def _used_entries(table: bytes) -> Iterator[tuple[int, int, int]]:
    """The entries that are not zero: number, value, and 1.

    Of a block of the table that is one run, only the first entry comes, with the count of all.
    """
    for start in range(0, len(table), BLOCK):
        if table[start : start + BLOCK] == _FREE_BLOCK:
            continue
        number, entries = start // ENTRY_SIZE, _ENTRIES.unpack_from(table, start)
        if entries[0] and entries == tuple(range(entries[0], entries[0] + _PER_BLOCK * _NEXT_SLICE, _NEXT_SLICE)):
            yield number, entries[0], _PER_BLOCK
        else:
            yield from ((place, entry, 1) for place, entry in enumerate(entries, number) if entry)
