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
"""Bytes that the name of a partition can have."""

MOST_EXTENTS = 1 << 20
"""Extents that are kept in memory. Images of a build have a few."""

DATA_TYPE = uuid.UUID(bytes_le=bytes.fromhex("0c5f18082d898a42a789dbeec8f55e6a"))
"""Type of a minfs data partition."""

_PARTITION = struct.Struct("<16s16sII24s")
MOST_PARTITIONS = PARTITION_TABLE_SIZE // _PARTITION.size - 1
"""Entry 0 of the partition table is unused."""

_INACTIVE = 1
_PER_BLOCK = BLOCK // ENTRY_SIZE
_ENTRIES = struct.Struct(f"<{_PER_BLOCK}Q")
_FREE_BLOCK = bytes(BLOCK)
_PARTITION_BITS = 0xFFFF
_NEXT_SLICE = 1 << 16


@dataclass(frozen=True)
class Partition:
    """An entry of the partition table. `slices` is how many slices it claims to have."""

    index: int
    name: str
    """As the image has it, up to the first zero byte; what is no UTF-8 is escaped. It may be hostile."""
    type_guid: uuid.UUID
    instance_guid: uuid.UUID
    slices: int
    flags: int = 0

    @property
    def active(self) -> bool:
        """Whether a driver would offer it: an update that has not ended leaves inactive ones."""
        return not self.flags & _INACTIVE

    def encode(self) -> bytes:
        """The entry."""
        name, (kind, instance) = self.name.encode(), (self.type_guid.bytes_le, self.instance_guid.bytes_le)
        return _PARTITION.pack(kind, instance, self.slices, self.flags, name)


def check_name(name: str) -> None:
    """Raise UsageError unless a partition can be given this name."""
    if not name.isprintable() or not 0 < len(name.encode()) <= NAME_SIZE:
        raise UsageError(f"{name!r} cannot name a partition", hint=f"use a printable name of 1 to {NAME_SIZE} bytes")


def decode_partitions(table: bytes) -> tuple[Partition, ...]:
    """The partitions of a partition table, by their index. Entries without slices are free."""
    entries = enumerate(_PARTITION.iter_unpack(table))
    return tuple(
        Partition(index, _name(name), uuid.UUID(bytes_le=kind), uuid.UUID(bytes_le=instance), slices, flags)
        for index, (kind, instance, slices, flags, name) in entries
        if index and slices
    )


def _name(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="backslashreplace")


def encode_partitions(partitions: tuple[Partition, ...]) -> bytes:
    """The partition table."""
    table = bytearray(PARTITION_TABLE_SIZE)
    for partition in partitions:
        start = partition.index * _PARTITION.size
        table[start : start + _PARTITION.size] = partition.encode()
    return bytes(table)


class Extent(NamedTuple):
    """Slices that follow each other in the partition as on the disk: a first physical and virtual slice, and a count.

    `partition` is an index of the partition table, `reserved` the upper bits of the entries, which should be 0.
    """

    pslice: int
    partition: int
    vslice: int
    slices: int
    reserved: int = 0

    @property
    def end(self) -> int:
        """The first physical slice after it."""
        return self.pslice + self.slices

    def within(self, first: int, end: int) -> Self:
        """The part of it from physical slice `first` on and before `end`; without slices if there is none."""
        start = max(self.pslice, first)
        moved = start - self.pslice
        return self._replace(pslice=start, vslice=self.vslice + moved, slices=min(self.end, end) - start)

    def encode(self) -> bytes:
        """Its entries in the allocation table."""
        first = self.reserved << 48 | self.vslice << 16 | self.partition
        entries = array("Q", range(first, first + self.slices * _NEXT_SLICE, _NEXT_SLICE))
        if sys.byteorder == "big":
            entries.byteswap()
        return entries.tobytes()


def decode_extents(table: bytes) -> Iterator[Extent]:
    """The allocated slices of an allocation table, in the order of the disk, as the longest extents.

    Whatever has a bit set counts, also in entry 0 and in those beyond the usable slices. Raises ImageTooLarge beyond
    MOST_EXTENTS. Free parts of the table cost next to nothing.
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
    """Runs of entries each of which is the next virtual slice: number of the first one, its value, and their count."""
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
    """The entries that are not zero: number, value, 1. Of a block that is one run only the first, with their count."""
    for start in range(0, len(table), BLOCK):
        if table[start : start + BLOCK] == _FREE_BLOCK:
            continue
        number, entries = start // ENTRY_SIZE, _ENTRIES.unpack_from(table, start)
        if entries[0] and entries == tuple(range(entries[0], entries[0] + _PER_BLOCK * _NEXT_SLICE, _NEXT_SLICE)):
            yield number, entries[0], _PER_BLOCK
        else:
            yield from ((place, entry, 1) for place, entry in enumerate(entries, number) if entry)
