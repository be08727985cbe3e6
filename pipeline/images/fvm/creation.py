"""Creation of new volumes."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ImageError, UsageError
from pipeline.images.fvm import slices
from pipeline.images.fvm.header import TABLES, FvmHeader, check_slice_size, smallest_disk, table_size
from pipeline.images.fvm.metadata import Metadata
from pipeline.images.fvm.tables import DATA_TYPE, MOST_PARTITIONS, Extent, Partition, check_name, encode_partitions
from pipeline.images.reader import opened


def create(
    output: BinaryIO,
    slice_size: int,
    partitions: Mapping[str, bytes | Path],
    *,
    length: int | None = None,
    max_disk_size: int | None = None,
) -> None:
    """Write a new FVM to the empty file `output`, with a data partition for each name, filled from its first slice on.

    A content is either bytes or the path of a file, whose holes stay holes. `length` is the size of the volume in
    bytes; without it, the volume is just large enough. `max_disk_size` makes the tables large enough for a disk of so
    many bytes, so that the volume can grow to that in place. Raises UsageError for names or a number of partitions that
    the format does not allow, ImageError for a slice size or length that it does not allow, and OSError if a file
    cannot be read.
    """
    check_slice_size(slice_size)
    sizes = [len(data) if isinstance(data, bytes) else data.stat().st_size for data in partitions.values()]
    counts = [max(1, -(-size // slice_size)) for size in sizes]
    header = _geometry(max(1, sum(counts)), slice_size, length, max_disk_size)
    metadata = Metadata(header, _partition_table(partitions, counts), _allocation_table(header, counts)).encode()
    output.writelines(metadata * 2)
    output.flush()
    first = 1
    for data, size, count in zip(partitions.values(), sizes, counts, strict=True):
        _fill(output.fileno(), header.slice_offset(first), data, size)
        first += count
    output.truncate(length or header.partition_size)


def _geometry(count: int, slice_size: int, length: int | None, max_disk_size: int | None) -> FvmHeader:
    table = table_size(max_disk_size, slice_size) if max_disk_size else None
    size = length or (2 * (TABLES + table) + count * slice_size if table else smallest_disk(count, slice_size))
    if max_disk_size and max_disk_size < size:
        raise ImageError(
            f"a volume of {size} bytes on a disk of at most {max_disk_size}", hint=f"ask for at least {size}"
        )
    header = FvmHeader.for_disk(size, slice_size, table)
    if header.slices < count:
        raise ImageError(
            f"{count} slices of {slice_size} do not fit in {size} bytes",
            hint=f"ask for at least {smallest_disk(count, slice_size, header.allocation_table_size)}",
        )
    return header


def _partition_table(names: Mapping[str, object], counts: list[int]) -> bytes:
    if len(counts) > MOST_PARTITIONS:
        raise UsageError(f"{len(counts)} partitions", hint=f"an FVM holds at most {MOST_PARTITIONS}")
    for name in names:
        check_name(name)
    instances = [uuid.uuid5(DATA_TYPE, name) for name in names]
    entries = enumerate(zip(names, instances, counts, strict=True), start=1)
    return encode_partitions(
        tuple(Partition(index, name, DATA_TYPE, instance, count) for index, (name, instance, count) in entries)
    )


def _allocation_table(header: FvmHeader, counts: list[int]) -> bytes:
    table = bytearray(8)  # entry 0 is unused
    for index, count in enumerate(counts, start=1):
        table += Extent(len(table) // 8, index, 0, count).encode()
    return bytes(table).ljust(header.allocation_table_size, b"\0")


def _fill(output: int, start: int, data: bytes | Path, size: int) -> None:
    if isinstance(data, bytes):
        slices.write(output, start, data)
        return
    with opened(data) as source:
        slices.copy(source.stream.fileno(), 0, output, start, size)
