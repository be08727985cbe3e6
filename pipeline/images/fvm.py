"""FVM, the volume manager of Fuchsia's disks: raw images (`fvm.blk`), read, made and extended.

Layout, little-endian: a header block, the partition table and the allocation table; then a second copy (B) of all
three; then the slices. Either copy may be damaged, the valid one with the higher generation counts. Source of the
numbers: Fuchsia, src/storage/fvm/format.h. As a command it takes the arguments of Fuchsia's own tool::

    python -m pipeline.images.fvm FILE create --slice SIZE --partition NAME=FILE...
    python -m pipeline.images.fvm FILE extend --length N[K|M|G] [--length-is-lowerbound]
"""

import argparse
import hashlib
import struct
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ImageError, TopcoatError, UsageError, host_faults
from pipeline.publish import publish
from pipeline.size import parse_size

MAGIC = b"FVM PART"
SPARSE_MAGIC = b"FVM SPRS"
"""The first eight bytes of a sparse FVM (`fvm.sparse.blk`), a different format."""

BLOCK = 8192
MAJOR_VERSION = 1
MINOR_VERSION = 1
PARTITION_TABLE_SIZE = 65536
_PARTITION_ENTRY = struct.Struct("<16s16sII24s")
_PARTITIONS = PARTITION_TABLE_SIZE // _PARTITION_ENTRY.size
_TABLES = BLOCK + PARTITION_TABLE_SIZE  # where the allocation table starts
_MOST_SLICES = 2**31
_HEADER = struct.Struct("<8sQQQQQQQ32sQ")
_HASH = slice(64, 96)

DATA_TYPE = uuid.UUID(bytes_le=bytes.fromhex("0c5f18082d898a42a789dbeec8f55e6a"))
"""Type of a minfs data partition."""


def _round_up(value: int, block: int) -> int:
    return -(-value // block) * block


@dataclass(frozen=True)
class Header:
    """The fields of the header block, without the hash. Sizes are in bytes, `slices` counts the usable slices."""

    slices: int
    slice_size: int
    partition_size: int
    """Both metadata copies and all slices. Older tools wrote the size of the disk here."""
    allocation_table_size: int
    generation: int = 0
    major_version: int = MAJOR_VERSION
    oldest_minor_version: int = MINOR_VERSION

    @classmethod
    def for_disk(cls, size: int, slice_size: int) -> "Header":
        """The geometry of a new disk: as many slices as fit. Raises ImageError if not even one does."""
        if slice_size <= 0 or slice_size % BLOCK:
            raise ImageError(f"slices of {slice_size} bytes", hint=f"use a multiple of {BLOCK}")
        if size // slice_size > _MOST_SLICES:
            raise ImageError(f"{size} bytes need more than {_MOST_SLICES} slices of {slice_size}", hint="ask for less")
        table = _round_up(8 * (size // slice_size + 1), BLOCK)
        slices = (size - 2 * (_TABLES + table)) // slice_size
        if slices < 1:
            raise ImageError(f"{size} bytes are too few for an FVM with slices of {slice_size}", hint="ask for more")
        return cls(slices, slice_size, 2 * (_TABLES + table) + slices * slice_size, table)

    @property
    def metadata_size(self) -> int:
        """Size of one metadata copy; copy B starts here."""
        return _TABLES + self.allocation_table_size

    def slice_offset(self, number: int) -> int:
        """Where physical slice `number` (from 1) starts."""
        return 2 * self.metadata_size + (number - 1) * self.slice_size

    @property
    def hashed_sizes(self) -> tuple[int, ...]:
        """How many bytes of metadata the hash may cover: by today's rule, and by that of tools before 2021."""
        old_slices = self.partition_size // self.slice_size
        return (_TABLES + _round_up(8 * self.slices, BLOCK), _TABLES + _round_up(8 * old_slices, BLOCK))

    def encode(self, digest: bytes = bytes(32)) -> bytes:
        """The header block with this hash."""
        packed = _HEADER.pack(
            MAGIC,
            self.major_version,
            self.slices,
            self.slice_size,
            self.partition_size,
            PARTITION_TABLE_SIZE,
            self.allocation_table_size,
            self.generation,
            digest,
            self.oldest_minor_version,
        )
        return packed.ljust(BLOCK, b"\0")

    @classmethod
    def decode(cls, block: bytes) -> "Header":
        """Read a header block and check what can be checked of it alone. Raises ImageError."""
        if block.startswith(SPARSE_MAGIC):
            raise _bad("this is a sparse FVM", "turn it into a raw one first: fvm OUT.blk decompress --sparse FILE")
        if len(block) < BLOCK or not block.startswith(MAGIC):
            raise _bad("FVM magic mismatch", "give a raw FVM image (fvm.blk)")
        _, major, slices, slice_size, size, partition_table, table, generation, _, minor = _HEADER.unpack_from(block)
        problems = {
            f"version {major} is too new": major > MAJOR_VERSION,
            f"{slices} slices": not 0 < slices <= _MOST_SLICES,
            f"slices of {slice_size} bytes": slice_size == 0 or slice_size % BLOCK != 0,
            f"a partition table of {partition_table} bytes": partition_table != PARTITION_TABLE_SIZE,
            f"an allocation table of {table} bytes": table % BLOCK != 0
            or not 8 * (slices + 1) <= table <= 8 * (_MOST_SLICES + BLOCK),
        }
        for problem, found in problems.items():
            if found:
                raise _bad(problem)
        header = cls(slices, slice_size, size, table, generation, major, minor)
        if header.slice_offset(slices + 1) > size:
            raise _bad("the slices do not fit in the volume")
        return header


def _bad(problem: str, hint: str = "make the image anew") -> ImageError:
    return ImageError(f"no valid FVM image: {problem}", hint=hint)


@dataclass(frozen=True)
class Metadata:
    """One valid metadata copy: its header and its two tables, as bytes."""

    header: Header
    partitions: bytes
    allocation: bytes

    def encode(self) -> bytes:
        """Header, tables, and a fresh hash over them."""
        blank = self.header.encode() + self.partitions + self.allocation
        digest = hashlib.sha256(blank[: self.header.hashed_sizes[0]]).digest()
        return self.header.encode(digest) + blank[BLOCK:]

    def allocated(self) -> list[int]:
        """The numbers of the physical slices that belong to a partition, ascending."""
        count = min(self.header.slices, len(self.allocation) // 8 - 1)
        entries = struct.unpack_from(f"<{count + 1}Q", self.allocation)
        return [number for number, entry in enumerate(entries) if number and entry & 0xFFFF]


def read(stream: BinaryIO) -> Metadata:
    """The metadata that counts: the valid copy, the newer one if both are valid. Raises ImageError if none is."""
    stream.seek(0)
    first = Header.decode(stream.read(BLOCK))  # where copy B is, only A's header can tell
    copies = [copy for start in (0, first.metadata_size) if (copy := _copy_at(stream, start, first))]
    if not copies:
        raise _bad("neither of the two copies of its tables is intact")
    # Generations wrap: the largest is older than 0
    newer = len(copies) == 2 and 0 < (copies[1].header.generation - copies[0].header.generation) % 2**64 < 2**63
    return copies[newer]


def _copy_at(stream: BinaryIO, start: int, first: Header) -> Metadata | None:
    stream.seek(start)
    raw = stream.read(first.metadata_size)
    try:
        header = Header.decode(raw[:BLOCK])
    except ImageError:
        return None
    if len(raw) < first.metadata_size or header.metadata_size != first.metadata_size:
        return None
    blank = raw[: _HASH.start] + bytes(32) + raw[_HASH.stop :]
    if raw[_HASH] not in {hashlib.sha256(blank[:size]).digest() for size in header.hashed_sizes}:
        return None
    return Metadata(header, raw[BLOCK:_TABLES], raw[_TABLES:])


def create(stream: BinaryIO, slice_size: int, partitions: dict[str, bytes]) -> None:
    """Write a new FVM, just large enough, with one data partition for each name, filled from its first slice on."""
    counts = [max(1, -(-len(data) // slice_size)) for data in partitions.values()]
    header = Header.for_disk(_smallest_disk(sum(counts), slice_size), slice_size)
    table = bytearray(_PARTITION_ENTRY.size)
    slots = [0]
    for number, (name, count) in enumerate(zip(partitions, counts, strict=True), start=1):
        instance = uuid.uuid5(DATA_TYPE, name)
        table += _PARTITION_ENTRY.pack(DATA_TYPE.bytes_le, instance.bytes_le, count, 0, name.encode())
        slots += [number | virtual << 16 for virtual in range(count)]
    allocation = struct.pack(f"<{len(slots)}Q", *slots).ljust(header.allocation_table_size, b"\0")
    metadata = Metadata(header, bytes(table).ljust(PARTITION_TABLE_SIZE, b"\0"), allocation).encode()
    stream.write(metadata + metadata)
    first = 1
    for data, count in zip(partitions.values(), counts, strict=True):
        stream.seek(header.slice_offset(first))
        stream.write(data)
        first += count
    stream.truncate(header.partition_size)


def _smallest_disk(slices: int, slice_size: int) -> int:
    size = slices * slice_size
    while Header.for_disk(size + 2 * _TABLES + 2 * BLOCK, slice_size).slices < slices:
        size += BLOCK
    return size + 2 * _TABLES + 2 * BLOCK


def extend(source: BinaryIO, output: BinaryIO, length: int) -> None:
    """Write to the empty file `output` the volume of `source`, grown to `length` bytes.

    The geometry is that of a new disk of this length; tables may grow, and slices then move. Partitions, slice numbers
    and generation stay. Only allocated slices are copied; all else is a hole. Raises ImageError if it cannot be done.
    """
    old = read(source)
    if length < old.header.partition_size:
        raise ImageError(
            f"cannot extend to {length} bytes: the volume has {old.header.partition_size}", hint="ask for more"
        )
    header = replace(
        Header.for_disk(length, old.header.slice_size),
        generation=old.header.generation,
        major_version=old.header.major_version,
        oldest_minor_version=old.header.oldest_minor_version,
    )
    if header.slices < old.header.slices or header.allocation_table_size < old.header.allocation_table_size:
        raise ImageError(
            f"cannot extend to {length} bytes: the tables were made for a larger disk than that", hint="ask for more"
        )
    metadata = Metadata(header, old.partitions, old.allocation.ljust(header.allocation_table_size, b"\0")).encode()
    output.write(metadata + metadata)
    for number in old.allocated():
        source.seek(old.header.slice_offset(number))
        content = source.read(header.slice_size)
        if len(content) < header.slice_size:
            raise _bad(f"slice {number} is cut off")
        if content.count(0) < len(content):
            output.seek(header.slice_offset(number))
            output.write(content)
    output.truncate(length)


def _extend_file(path: Path, length: int, *, lower_bound: bool) -> None:
    present = path.stat().st_size
    if length < present and lower_bound:
        return
    if length < present:
        raise ImageError(
            f"|length|({length}) must be greater or equal than |disk_size|({present} bytes)",
            hint="ask for more, or add --length-is-lowerbound",
        )
    with path.open("rb") as source, publish(path.absolute()) as made, made.open("wb") as output:
        least = read(source).header.partition_size if lower_bound else 0
        extend(source, output, max(length, least))


def _create_file(path: Path, slice_size: int, partitions: Sequence[str]) -> None:
    contents = {}
    for partition in partitions:
        name, equals, source = partition.partition("=")
        if not equals or not 0 < len(name.encode()) <= 24:
            raise UsageError(
                f"{partition!r} is no partition", hint="write --partition NAME=FILE, NAME of 1 to 24 bytes"
            )
        contents[name] = Path(source).read_bytes()
    with publish(path.absolute()) as made, made.open("wb") as output:
        create(output, slice_size, contents)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fvm", description="Make and extend FVM images.")
    parser.add_argument("file", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    extender = commands.add_parser("extend", help="grow the volume")
    extender.add_argument("--length", required=True)
    extender.add_argument("--length-is-lowerbound", action="store_true", help="a larger file is left as it is")
    creator = commands.add_parser("create", help="make a volume, just large enough")
    creator.add_argument("--slice", default="32K", metavar="SIZE")
    creator.add_argument("--partition", action="append", default=[], metavar="NAME=FILE")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command. 0, or 1 with one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        with host_faults(f"working on {options.file.name}"):
            if options.command == "extend":
                _extend_file(options.file, parse_size(options.length), lower_bound=options.length_is_lowerbound)
            else:
                _create_file(options.file, parse_size(options.slice), options.partition)
    except TopcoatError as error:
        print(f"fvm: {error.explain()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
