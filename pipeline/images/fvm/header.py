"""The header block of an FVM, and the geometry that follows from it. All numbers are little-endian."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from pipeline.errors import ImageDamaged, ImageError, ImageTooLarge, WrongFormat

MAGIC = b"FVM PART"
"""The first eight bytes of a raw FVM (`fvm.blk`)."""

SPARSE_MAGIC = b"FVM SPRS"
"""The first eight bytes of a sparse FVM (`fvm.sparse.blk`), a different format."""

BLOCK = 8192
"""Bytes of a block: the sizes of the tables and of a slice are multiples of this."""

MAJOR_VERSION = 1
MINOR_VERSION = 1
PARTITION_TABLE_SIZE = 65536
TABLES = BLOCK + PARTITION_TABLE_SIZE
"""Where the allocation table starts in a metadata copy, in bytes."""

ENTRY_SIZE = 8
"""Bytes of an entry of the allocation table."""

MOST_SLICES = 2**31
MOST_TABLE = 128 << 20
"""The most bytes of an allocation table that are read: enough for 512 GiB in slices of 32 KiB."""

MOST_BYTES = 2**63 - 1
"""The largest size of a file in bytes."""

HASH = slice(64, 96)
"""Where the SHA-256 stands in the header block."""

_HEADER = struct.Struct("<8sQQQQQQQ32sQ")


def round_up(value: int, block: int) -> int:
    """The smallest multiple of `block` that is not below `value`."""
    return -(-value // block) * block


def check_slice_size(size: int) -> None:
    """Raise ImageError unless a slice can have this size in bytes."""
    if size <= 0 or size % BLOCK:
        raise ImageError(f"slices of {size} bytes", expected=f"a multiple of {BLOCK}", hint="choose another slice size")


def table_size(disk: int, slice_size: int) -> int:
    """Bytes of the allocation table for a disk of `disk` bytes, by today's rule. Before 2021 it had one entry less."""
    return round_up(ENTRY_SIZE * (disk // slice_size + 1), BLOCK)


def smallest_disk(slices: int, slice_size: int, table: int = BLOCK) -> int:
    """Bytes of the smallest disk that holds so many slices and has an allocation table of at least `table` bytes."""
    while True:
        size = max(2 * (TABLES + table) + slices * slice_size, (table - BLOCK) // ENTRY_SIZE * slice_size)
        wanted = table_size(size, slice_size)
        if wanted <= table:
            return size
        table = wanted


@dataclass(frozen=True)
class FvmHeader:
    """The fields of the header block, without the hash. Sizes are in bytes; `slices` counts the usable slices."""

    slices: int
    slice_size: int
    partition_size: int
    """Bytes of both metadata copies and all slices. Tools before 2021 wrote the size of the disk here."""
    allocation_table_size: int
    generation: int = 0
    major_version: int = MAJOR_VERSION
    oldest_minor_version: int = MINOR_VERSION

    @classmethod
    def for_disk(cls, size: int, slice_size: int, table: int | None = None) -> Self:
        """The geometry of a new disk of `size` bytes: as many slices as fit.

        `table` is the size of the allocation table in bytes, if it is to be larger than this disk needs, so that the
        volume can grow in place. Raises ImageError if not even one slice fits or their size is no multiple of BLOCK,
        ImageTooLarge for more slices than the format allows or Topcoat reads.
        """
        check_slice_size(slice_size)
        table = table or table_size(size, slice_size)
        if size > MOST_BYTES or size // slice_size > MOST_SLICES or table > MOST_TABLE:
            raise ImageTooLarge(
                f"{size} bytes are too many for an FVM with slices of {slice_size}",
                hint=f"ask for less, or for larger slices: its table may have {MOST_TABLE} bytes, 8 for each slice",
            )
        slices = (size - 2 * (TABLES + table)) // slice_size
        if slices < 1:
            raise ImageError(
                f"{size} bytes are too few for an FVM with slices of {slice_size}",
                hint=f"ask for at least {smallest_disk(1, slice_size, table)}",
            )
        return cls(slices, slice_size, 2 * (TABLES + table) + slices * slice_size, table)

    @property
    def metadata_size(self) -> int:
        """Bytes of one metadata copy. Copy B starts at this position."""
        return TABLES + self.allocation_table_size

    def slice_offset(self, number: int) -> int:
        """Where the physical slice `number` (from 1) starts, in bytes from the start of the file."""
        return 2 * self.metadata_size + (number - 1) * self.slice_size

    @property
    def hashed_sizes(self) -> tuple[int, ...]:
        """How many bytes of metadata the hash may cover: by today's rule, and by that of tools before 2021."""
        counts = (self.slices, self.partition_size // self.slice_size)
        return tuple(min(TABLES + round_up(ENTRY_SIZE * count, BLOCK), self.metadata_size) for count in counts)

    def encode(self, digest: bytes = bytes(32)) -> bytes:
        """The encoded header block, with this hash."""
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
    def decode(cls, block: bytes, offset: int = 0) -> Self:
        """Read a header block, which lies at `offset` of the file, and check its fields as far as they alone allow.

        Raises WrongFormat if it is no header block or one of a later version, ImageDamaged if a field cannot be true,
        and ImageTooLarge if the tables are larger than Topcoat reads.
        """
        _check_magic(block, offset)
        _, major, slices, slice_size, size, partition_table, table, generation, _, minor = _HEADER.unpack_from(block)
        if major > MAJOR_VERSION:
            raise WrongFormat(
                f"FVM version {major}",
                offset=offset + 8,
                expected=f"at most {MAJOR_VERSION}",
                hint="it needs a later Topcoat, or an older tool to make it",
            )
        header = cls(slices, slice_size, size, table, generation, major, minor)
        for error in _impossible(header, partition_table, offset):
            raise error
        return header


def _check_magic(block: bytes, offset: int) -> None:
    if block.startswith(SPARSE_MAGIC):
        raise WrongFormat(
            "this is a sparse FVM",
            offset=offset,
            expected="a raw one",
            hint="turn it into a raw one by the build's own tool: fvm OUT.blk decompress --sparse FILE",
        )
    if not block.startswith(MAGIC):
        raise WrongFormat(
            f"FVM magic mismatch: {block[: len(MAGIC)].hex(' ') or 'the file ends here'}",
            offset=offset,
            expected=MAGIC.hex(" "),
            hint="give a raw FVM image (fvm.blk)",
        )
    if len(block) < BLOCK:
        raise ImageDamaged(
            "the header is cut off", offset=offset + len(block), expected=f"{BLOCK} bytes of it", hint=REMEDY
        )


REMEDY = "make or copy the image anew"
"""The hint for an image that cannot be used as it is."""


def _impossible(header: FvmHeader, partition_table: int, offset: int) -> Iterator[ImageError]:
    slices, slice_size, table = header.slices, header.slice_size, header.allocation_table_size
    needed = ENTRY_SIZE * (slices + 1)
    if not 0 < slices <= MOST_SLICES:
        yield _damaged(f"{slices} slices", offset + 16, f"1 to {MOST_SLICES}")
    if slice_size == 0 or slice_size % BLOCK:
        yield _damaged(f"slices of {slice_size} bytes", offset + 24, f"a multiple of {BLOCK}")
    if partition_table != PARTITION_TABLE_SIZE:
        yield _damaged(f"a partition table of {partition_table} bytes", offset + 40, f"{PARTITION_TABLE_SIZE}")
    if table % BLOCK or table < needed:
        problem = f"an allocation table of {table} bytes"
        yield _damaged(problem, offset + 48, f"a multiple of {BLOCK}, at least {needed} for {slices} slices")
    if table > MOST_TABLE:
        yield ImageTooLarge(
            f"an allocation table of {table} bytes",
            offset=offset + 48,
            expected=f"at most {MOST_TABLE}",
            hint="make the image with larger slices, or for a smaller disk",
        )
    end = header.slice_offset(slices + 1)
    if end > header.partition_size:
        problem = f"the slices do not fit in the volume: it has {header.partition_size} bytes"
        yield _damaged(problem, offset + 32, f"at least {end}")
    if header.partition_size > MOST_BYTES:
        yield _damaged(f"a volume of {header.partition_size} bytes", offset + 32, f"at most {MOST_BYTES}")


def _damaged(problem: str, offset: int, expected: str) -> ImageDamaged:
    return ImageDamaged(problem, offset=offset, expected=expected, hint=REMEDY)
