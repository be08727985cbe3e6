"""The content of an FVM as a tree, and whether it can be relied upon."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ImageError
from pipeline.host.faults import host_faults, image_faults
from pipeline.images.fvm import slices
from pipeline.images.fvm.metadata import Copies, Metadata, read_copies
from pipeline.images.fvm.tables import Extent, Partition
from pipeline.images.part import Fact, Part
from pipeline.images.reader import opened

MOST_PROBLEMS = 20
"""The most problems that are told of one part; beyond that a last sentence says that there are more."""

MOST_HASHED = 128 << 30
"""The most bytes of a partition that are hashed; one that claims more, as a file with holes can, has no digest."""

MOST_VSLICES = 2**31
"""The most slices that a partition can have, allocated or not."""


def check(path: Path) -> tuple[str, ...]:
    """What is wrong with an FVM, as sentences; none if it is sound. The contents of slices are not looked at.

    It is sound that a file ends before its volume does, as long as all allocated slices are in it. Raises what
    `inspect` raises.
    """
    part = inspect(path, digests=False)
    return tuple(problem for each in part.walk() for problem in each.problems)


def inspect(path: Path, *, digests: bool = True) -> Part:
    """An FVM as a tree of its partitions. Damage that leaves the tables readable is told as problems of the parts.

    The digest of a partition is that of its allocated slices, in the order of their place in the partition. It takes
    all of their data to be read, which `digests=False` spares. Raises WrongFormat, ImageDamaged and ImageTooLarge as
    `read` does, StoreError if the file cannot be read, and UsageError if it is no regular one.
    """
    with host_faults("reading an FVM", "file"), image_faults(str(path)), opened(path) as file:
        stream = file.stream
        copies = read_copies(stream)
        present = file.size
        return Part(
            "FVM",
            path.name,
            present,
            offset=0,
            facts=_facts(copies, present),
            problems=_few([*_copy_problems(copies), *_table_problems(copies.current, present)]),
            parts=tuple(_partitions(stream, copies.current, digests=digests)),
        )


def _facts(copies: Copies, present: int) -> dict[str, Fact]:
    metadata = copies.current
    header = metadata.header
    return {
        "version": header.major_version,
        "oldest minor version": header.oldest_minor_version,
        "slice size": header.slice_size,
        "slices": header.slices,
        "allocated slices": sum(extent.slices for extent in metadata.extents),
        "generation": header.generation,
        "partition size": header.partition_size,
        "allocation table size": header.allocation_table_size,
        "copy that counts": "B" if copies.second_counts else "A",
        "copies equal": copies.first == copies.second,
        "least size": metadata.least_size,
        "bytes short of the volume": max(0, header.partition_size - present),
    }


def _few(problems: Iterable[str]) -> tuple[str, ...]:
    kept = list(islice(problems, MOST_PROBLEMS + 1))
    return (*kept[:MOST_PROBLEMS], "and more of that kind") if len(kept) > MOST_PROBLEMS else tuple(kept)


def _copy_problems(copies: Copies) -> Iterator[str]:
    for name, copy in (("A", copies.first), ("B", copies.second)):
        if isinstance(copy, ImageError):
            yield f"copy {name} of the tables is not valid: {copy.message}"
    if isinstance(copies.first, Metadata) and isinstance(copies.second, Metadata) and copies.first != copies.second:
        yield "the two copies of the tables differ"


def _table_problems(metadata: Metadata, present: int) -> Iterator[str]:
    """The problems of the allocation table as a whole, and of entries that belong to no partition."""
    header = metadata.header
    known = {partition.index for partition in metadata.partitions}
    if metadata.least_size > present:
        yield f"allocated slices are cut off: the file has {present} bytes, and they end at {metadata.least_size}"
    for extent in metadata.entries:
        for problem in _entry_problems(extent, header.slices, known):
            yield f"{_named(extent)}: {problem}"


def _entry_problems(extent: Extent, last: int, known: set[int]) -> Iterator[str]:
    if extent.pslice == 0:
        yield "entry 0 of the allocation table is in use"
    if extent.end > last + 1:
        yield f"in use up to slice {extent.end - 1}, but the last usable one is {last}"
    if extent.reserved:
        yield f"reserved bits are set: {extent.reserved:#x}"
    if not extent.partition:
        yield "a free entry that is not zero"
    elif extent.partition not in known:
        yield f"there is no partition {extent.partition}"
    if extent.vslice + extent.slices > MOST_VSLICES:
        yield f"virtual slice {extent.vslice + extent.slices - 1}, the last possible one is {MOST_VSLICES - 1}"


def _named(extent: Extent) -> str:
    return f"slices {extent.pslice} to {extent.end - 1}" if extent.slices > 1 else f"slice {extent.pslice}"


def _partitions(stream: BinaryIO, metadata: Metadata, *, digests: bool) -> Iterator[Part]:
    owned = defaultdict(list)
    for extent in metadata.extents:
        owned[extent.partition].append(extent)
    for partition in metadata.partitions:
        extents = sorted(owned[partition.index], key=lambda extent: extent.vslice)
        yield _partition(stream, metadata, partition, extents, digests=digests)


def _partition(
    stream: BinaryIO, metadata: Metadata, partition: Partition, extents: list[Extent], *, digests: bool
) -> Part:
    header = metadata.header
    facts: dict[str, Fact] = {
        "index": partition.index,
        "type GUID": str(partition.type_guid),
        "instance GUID": str(partition.instance_guid),
        "slices": partition.slices,
        "active": partition.active,
    }
    ranges = [(header.slice_offset(extent.pslice), extent.slices * header.slice_size) for extent in extents]
    present = os.fstat(stream.fileno()).st_size
    readable = all(start + size <= present for start, size in ranges) and sum(size for _, size in ranges) <= MOST_HASHED
    return Part(
        "partition",
        partition.name,
        partition.slices * header.slice_size,
        digest=slices.digest(stream.fileno(), ranges) if digests and readable else None,
        facts=facts,
        problems=_few(_partition_problems(partition, extents)),
    )


def _partition_problems(partition: Partition, extents: list[Extent]) -> Iterator[str]:
    name = f"partition {partition.index} {partition.name!r}"
    count = sum(extent.slices for extent in extents)
    if count != partition.slices:
        yield f"{name}: its slice count is {partition.slices}, but {count} entries of the allocation table belong to it"
    for before, after in pairwise(extents):
        if before.vslice + before.slices > after.vslice:
            yield f"{name}: virtual slice {after.vslice} is both in {_named(before)} and in {_named(after)}"
