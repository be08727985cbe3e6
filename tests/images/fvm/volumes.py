"""Volumes to test with, in memory."""

import hashlib
import io
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO

from hypothesis import strategies as st

from pipeline.images import fvm
from pipeline.images.fvm import Extent, FvmHeader, Metadata

SLICE = 32 * 1024
COPY_B = 81920
"""Where copy B is in a small volume."""
FIRST_SLICE = 2 * COPY_B
GIB = 1 << 30


@contextmanager
def memory(image: bytes = b"") -> Iterator[BinaryIO]:
    """A file in memory. Unlike BytesIO, it has a descriptor and holes."""
    with open(os.memfd_create("image"), "w+b") as stream:
        stream.write(image)
        stream.flush()
        yield stream


def contents(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read()


def make(partitions: Mapping[str, bytes], slice_size: int = SLICE, **options: int) -> bytes:
    with memory() as stream:
        fvm.create(stream, slice_size, partitions, **options)
        return contents(stream)


def extended(image: bytes, length: int, *, to_fit: bool = False) -> bytes:
    with memory(image) as source, memory() as output:
        fvm.extend(source, output, length, to_fit=to_fit)
        return contents(output)


def extended_in_place(image: bytes, length: int, *, to_fit: bool = False) -> bytes | None:
    """The file after it, or None if it has been refused; then it is as before."""
    with memory(image) as stream:
        done = fvm.extend_in_place(stream, length, to_fit=to_fit)
        found = contents(stream)
    assert done or found == image
    return found if done else None


def read(image: bytes) -> Metadata:
    return fvm.read(io.BytesIO(image))


def slices(image: bytes) -> dict[tuple[int, int, int], bytes]:
    """The contents of each allocated slice, by its pslice, partition and vslice."""
    metadata = read(image)
    found = {}
    for extent in metadata.extents:
        for moved in range(extent.slices):
            start = metadata.header.slice_offset(extent.pslice + moved)
            content = image[start : start + metadata.header.slice_size]
            found[extent.pslice + moved, extent.partition, extent.vslice + moved] = content
    return found


def copies(image: bytes) -> tuple[bytes, bytes]:
    size = read(image).header.metadata_size
    return image[:size], image[size : 2 * size]


def encoded(metadata: Metadata) -> bytes:
    return b"".join(metadata.encode())


def with_copies(image: bytes, first: Metadata, second: Metadata | None = None) -> bytes:
    """The same image with other tables of the same size, and right hashes."""
    pair = encoded(first) + encoded(second or first)
    return pair + image[len(pair) :]


def with_entries(image: bytes, entries: Mapping[int, int]) -> bytes:
    """The same image with these entries of the allocation table in both copies."""
    metadata = read(image)
    table = bytearray(metadata.allocation_table)
    for number, entry in entries.items():
        struct.pack_into("<Q", table, 8 * number, entry)
    return with_copies(image, replace(metadata, allocation_table=bytes(table)))


def of_generation(metadata: Metadata, generation: int, mark: bytes = b"") -> Metadata:
    """The same tables with another generation, and something in the partition table to know them by."""
    table = metadata.partition_table[: -len(mark)] + mark if mark else metadata.partition_table
    return replace(metadata, header=replace(metadata.header, generation=generation), partition_table=table)


def flipped(image: bytes, *places: int) -> bytes:
    damaged = bytearray(image)
    for place in places:
        damaged[place] ^= 0xFF
    return bytes(damaged)


def put(image: bytes, place: int, value: bytes) -> bytes:
    return image[:place] + value + image[place + len(value) :]


def of_2019(contents: bytes, disk: int, slice_size: int = SLICE) -> bytes:
    """A volume with one partition as tools before 2021 made it: other table size, other hash, the size of the disk."""
    table = -(-8 * (disk // slice_size) // 8192) * 8192
    slice_count = (disk - 2 * (73728 + table)) // slice_size
    header = replace(FvmHeader(slice_count, slice_size, disk, table), oldest_minor_version=0)
    new = make({"data": contents}, slice_size)
    count = -(-len(contents) // slice_size)
    entries = Extent(1, 1, 0, count).encode().rjust(8 * count + 8, b"\0").ljust(table, b"\0")
    tables = read(new).partition_table + entries
    covered = 73728 + -(-8 * (disk // slice_size) // 8192) * 8192
    digest = hashlib.sha256((header.encode() + tables)[:covered]).digest()
    copy = header.encode(digest) + tables
    return (copy + copy + contents).ljust(disk, b"\0")


SLICE_SIZES = st.integers(1, 8).map(lambda count: 8192 * count)
PARTITIONS = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=24),
    st.builds(lambda unit, count, end: unit * count + end, st.binary(max_size=9), st.integers(0, 9000), st.binary()),
    min_size=1,
    max_size=4,
)
