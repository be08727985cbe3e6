"""An image read as a device reads it, by code of its own: the independent check of what our tool writes."""

import struct
import zlib
from dataclasses import dataclass

import lz4.frame
import zstandard

from tests.images import zbis


@dataclass(frozen=True)
class Item:
    """An item as it is stored."""

    type: int
    stored: bytes
    extra: int
    flags: int
    crc: int
    raw: bytes
    """With its header and padding."""

    @property
    def compression(self) -> str:
        if not self.flags & zbis.COMPRESSED:
            return "raw"
        return {b"\x04\x22\x4d\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd"}[self.stored[:4]]

    @property
    def content(self) -> bytes:
        """Unpacked at once."""
        if self.compression == "raw":
            return self.stored
        if self.compression == "lz4":
            content = bytes(lz4.frame.decompress(self.stored))
        else:
            assert zstandard.get_frame_parameters(self.stored).content_size == self.extra
            content = zstandard.ZstdDecompressor().decompress(self.stored)
        assert len(content) == self.extra
        return content

    @property
    def has_right_crc(self) -> bool:
        if not self.flags & zbis.CRC:
            return self.crc == zbis.NO_CRC
        return self.crc == zlib.crc32(self.raw[:28] + bytes(4) + self.stored)


def items(image: bytes) -> list[Item]:
    """All items of an image, whose container must be without fault."""
    head = struct.unpack_from("<IIIIIIII", image)
    assert head == (zbis.CONTAINER, len(image) - 32, 0x868CF7E6, zbis.VERSION, 0, 0, zbis.MAGIC, zbis.NO_CRC)
    assert len(image) % 8 == 0
    found, position = [], 32
    while position < len(image):
        kind, length, extra, flags, _, _, magic, crc = struct.unpack_from("<IIIIIIII", image, position)
        end = position + 32 + length + -length % 8
        assert magic == zbis.MAGIC
        assert end <= len(image)
        raw = image[position:end]
        assert not any(raw[32 + length :])
        found.append(Item(kind, raw[32 : 32 + length], extra, flags, crc, raw))
        position = end
    return found


def entries(payload: bytes) -> list[tuple[bytes, int, int]]:
    """Name, size and offset of all files of a BOOTFS, none of which a device may refuse."""
    magic, size, *reserved = struct.unpack_from("<IIII", payload)
    assert (magic, reserved) == (0xA56D3FF9, [0, 0])
    assert size <= len(payload) - 16
    assert len(payload) % 4096 == 0
    found, position = [], 16
    while position < 16 + size:
        name_size, length, offset = struct.unpack_from("<III", payload, position)
        name = payload[position + 12 : position + 12 + name_size]
        assert 1 < name_size <= 256
        assert len(name) == name_size
        assert name.endswith(b"\0")
        assert not name.startswith(b"/")
        assert offset % 4096 == 0
        assert offset + length + -length % 4096 <= len(payload)
        found.append((name[:-1], length, offset))
        position += (12 + name_size + 3) & ~3
    assert position == 16 + size
    names = [name.split(b"/") for name, _, _ in found]
    assert names == sorted(names)
    # As strict as Fuchsia's own tool, which does not read an empty file at the very end
    assert all(offset < len(payload) for _, _, offset in found)
    return found


def files(image: bytes) -> dict[str, bytes]:
    """The files of the first, and only, BOOTFS of an image."""
    (item,) = [item for item in items(image) if item.type == zbis.BOOTFS]
    assert item.has_right_crc
    content = item.content
    return {
        name.decode(errors="surrogateescape"): content[offset : offset + size]
        for name, size, offset in entries(content)
    }
