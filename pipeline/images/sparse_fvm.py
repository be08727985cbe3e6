"""Sparse FVM (`fvm.sparse.blk`): the partitions of a volume without their empty slices, to be sent, not to be booted.

Format: Fuchsia, src/storage/fvm/fvm_sparse.h. A header, the partitions, each followed by its extents, then the content
of all extents, maybe as one LZ4 frame. The content is not unpacked, only hashed with the rest of the file.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ImageDamaged
from pipeline.images.part import Fact, Part
from pipeline.images.reader import ImageReader, opened
from pipeline.store.digests import digest

MAGIC = b"FVM SPRS"
_HEADER = struct.Struct("<8sQQQQ")
_FLAGS = {2: struct.Struct("<I"), 3: struct.Struct("<QI")}
"""The end of the header, by its version: since version 3, the largest size of the disk stands before the flags."""
_PARTITION = struct.Struct("<Q16s24sII")
_EXTENT = struct.Struct("<QQQQ")
_PARTITION_MAGIC = 0x0BDE4DF7CF5C4C5D
_EXTENT_MAGIC = 0xA5B8742906E8382E
_LZ4 = 1
_PARTITIONS_MOST = 1024
_EXTENTS_MOST = 1 << 20
_RAW = "make a raw one: fvm OUT.blk decompress --sparse FILE"


@dataclass(frozen=True)
class _Header:
    version: int
    length: int
    """The size of the header, the partitions and their extents together, in bytes."""
    slice_size: int
    partitions: int
    flags: int
    end: int
    """Where the first partition starts, in bytes from the start of the file."""

    @classmethod
    def read(cls, source: ImageReader) -> "_Header":
        _, version, length, slice_size, count = _HEADER.unpack(source.at(0, _HEADER.size))
        if version not in _FLAGS:
            raise _damaged(f"version {version}", 8, " or ".join(map(str, _FLAGS)))
        form = _FLAGS[version]
        flags = form.unpack(source.at(_HEADER.size, form.size))[-1]
        return cls(version, length, slice_size, count, flags, _HEADER.size + form.size)


def inspect(path: Path, *, digests: bool = True) -> Part:
    """A sparse FVM as a tree: its partitions, each with the `size` of its content, without empty slices.

    The only digest is that of the whole file ("b3s:HEX" if it has blocks of zeros, see pipeline/store/digests.py).
    Raises ImageDamaged if the header is cut off or of another version; what is wrong after it is a problem of the
    whole. Raises UsageError if the file cannot be opened, and StoreError if it cannot be read.
    """
    with opened(path) as source:
        header = _Header.read(source)
        parts: list[Part] = []
        problems: list[str] = []
        try:
            parts.extend(_partitions(source, header))
            _check_content(source, header, parts)
        except ImageDamaged as error:
            problems.append(error.message)
        whole = digest(path) if digests else None
        return Part("sparse FVM", "", source.size, 0, whole, _facts(header), tuple(problems), tuple(parts))


def _facts(header: _Header) -> dict[str, Fact]:
    compressed = bool(header.flags & _LZ4)
    return {"version": header.version, "slice_size": header.slice_size, "lz4": compressed, "to_boot": _RAW}


def _check_content(source: ImageReader, header: _Header, parts: list[Part]) -> None:
    end = header.length + sum(part.size for part in parts)
    if not header.flags & _LZ4 and end > source.size:
        raise _damaged(f"the content ends at byte {end:#x}", source.size, "it all in the file")


def _partitions(source: ImageReader, header: _Header) -> Iterator[Part]:
    if header.partitions > _PARTITIONS_MOST:
        raise _damaged(f"{header.partitions} partitions", 32, f"at most {_PARTITIONS_MOST}")
    position, left = header.end, _EXTENTS_MOST
    for _ in range(header.partitions):
        magic, _, name, flags, extents = _PARTITION.unpack(source.at(position, _PARTITION.size))
        if magic != _PARTITION_MAGIC:
            raise _damaged("no partition", position, f"{_PARTITION_MAGIC:#x}")
        left -= extents
        if left < 0:
            raise _damaged(f"{extents} extents", position, f"at most {_EXTENTS_MOST} in all")
        size, slices = _extent_sums(source, position + _PARTITION.size, extents, header.slice_size)
        facts = {"slices": slices, "extents": extents, "flags": flags}
        yield Part("partition", name.rstrip(b"\0").decode(errors="replace"), size, position, facts=facts)
        position += _PARTITION.size + extents * _EXTENT.size
    if position != header.length:
        raise _damaged(f"a header of {header.length} bytes", 16, f"{position}")


def _extent_sums(source: ImageReader, start: int, count: int, slice_size: int) -> tuple[int, int]:
    size = slices = 0
    for position in range(start, start + count * _EXTENT.size, _EXTENT.size):
        magic, _, slice_count, length = _EXTENT.unpack(source.at(position, _EXTENT.size))
        if magic != _EXTENT_MAGIC or length > slice_count * slice_size:
            raise _damaged("no extent that fits in its slices", position, f"{_EXTENT_MAGIC:#x}")
        size, slices = size + length, slices + slice_count
    return size, slices


def _damaged(problem: str, offset: int, expected: str) -> ImageDamaged:
    return ImageDamaged(problem, offset=offset, expected=expected, hint="make or fetch it anew")
