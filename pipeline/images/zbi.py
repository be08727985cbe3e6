"""ZBI, Fuchsia's boot image: read far enough to find a file in its BOOTFS.

Format: Fuchsia, sdk/lib/zbi-format. A container of items, each with a 32-byte header, padded to 8 bytes; the item
BOOTFS holds files, raw or as one LZ4 or zstd frame.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import ImageError

CONTAINER = 0x544F4F42
BOOTFS = 0x42534642
_CONTAINER_EXTRA = 0x868CF7E6
_MAGIC = 0xB5781729
_COMPRESSED = 0x1
_HEADER = struct.Struct("<IIIIIIII")
_BOOTFS_MAGIC = 0xA56D3FF9
_PAGE = 4096
_LONGEST_NAME = 256
_LARGEST = 1 << 32


@dataclass(frozen=True)
class Item:
    """One item: its type, flags, type-specific number, and payload as stored."""

    type: int
    extra: int
    flags: int
    payload: memoryview


def is_zbi(data: bytes) -> bool:
    """Whether these bytes begin like a ZBI."""
    return len(data) >= _HEADER.size and _HEADER.unpack_from(data)[::6] == (CONTAINER, _MAGIC)


def items(data: bytes) -> Iterator[Item]:
    """All items, in order. Raises ImageError for a container or an item that is not sound.

    CRCs are not compared: no guest does, and Fuchsia's own tool has written wrong ones.
    """
    if not is_zbi(data) or _HEADER.unpack_from(data)[2] != _CONTAINER_EXTRA:
        raise _bad("no ZBI container")
    length = _HEADER.unpack_from(data)[1]
    if length % 8 or length + _HEADER.size != len(data):
        raise _bad(f"the header says {length + _HEADER.size} bytes, the file has {len(data)}")
    view, position = memoryview(data), _HEADER.size
    while position < len(data):
        if len(data) - position < _HEADER.size:
            raise _bad("an item's header is cut off")
        item, size = _item_at(view, position)
        yield item
        position += _HEADER.size + size + -size % 8


def _item_at(view: memoryview, position: int) -> tuple[Item, int]:
    kind, size, extra, flags, _, _, magic, _ = _HEADER.unpack_from(view, position)
    payload = view[position + _HEADER.size :][:size]
    if magic != _MAGIC:
        raise _bad(f"no item at byte {position}")
    if len(payload) < size:
        raise _bad(f"the item at byte {position} is cut off")
    return Item(kind, extra, flags, payload), size


def file_in_bootfs(data: bytes, path: str) -> bytes | None:
    """The content of a file in the first BOOTFS, the only one that counts; None if it is not there."""
    for item in items(data):
        if item.type == BOOTFS:
            return _files(_unpacked(item)).get(path)
    raise _bad("there is no BOOTFS in it")


def _unpacked(item: Item) -> bytes:
    if not item.flags & _COMPRESSED:
        return bytes(item.payload)
    if item.extra >= _LARGEST:
        raise _bad("its BOOTFS is too large")
    if bytes(item.payload[:4]) == b"\x28\xb5\x2f\xfd":
        unpacked = _unpack_zstd(item.payload, item.extra)
    elif bytes(item.payload[:4]) == b"\x04\x22\x4d\x18":
        unpacked = _unpack_lz4(item.payload, item.extra)
    else:
        raise _bad("its BOOTFS is compressed in an unknown way")
    if len(unpacked) != item.extra:
        raise _bad("its BOOTFS has not the size that it claims")
    return unpacked


def _unpack_zstd(payload: memoryview, size: int) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(payload) as stream:
            return stream.read(size + 1)
    except zstandard.ZstdError as error:
        raise _bad(f"its BOOTFS cannot be unpacked: {error}") from error


def _unpack_lz4(payload: memoryview, size: int) -> bytes:
    import lz4.frame

    try:
        unpacked: bytes = lz4.frame.LZ4FrameDecompressor().decompress(payload, max_length=size + 1)
    except (RuntimeError, EOFError) as error:
        raise _bad(f"its BOOTFS cannot be unpacked: {error}") from error
    return unpacked


def _files(bootfs: bytes) -> dict[str, bytes]:
    if len(bootfs) < 16 or struct.unpack_from("<I", bootfs)[0] != _BOOTFS_MAGIC:
        raise _bad("its BOOTFS has no directory")
    end = 16 + struct.unpack_from("<I", bootfs, 4)[0]
    found, position = {}, 16
    while position < end:
        if end > len(bootfs) or position + 12 > end:
            raise _bad("the directory of its BOOTFS is cut off")
        name_size, size, offset = struct.unpack_from("<III", bootfs, position)
        name = bootfs[position + 12 : position + 12 + name_size]
        if not 1 < name_size <= _LONGEST_NAME or len(name) < name_size or name[-1] != 0:
            raise _bad("a name in its BOOTFS is damaged")
        if offset % _PAGE or offset + size > len(bootfs):
            raise _bad("a file in its BOOTFS is cut off")
        found[name[:-1].decode(errors="surrogateescape")] = bootfs[offset : offset + size]
        position += (12 + name_size + 3) & ~3
    return found


def _bad(problem: str) -> ImageError:
    return ImageError(f"no sound ZBI: {problem}", hint="make the image anew")
