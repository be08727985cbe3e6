"""Images made by hand, byte by byte, so that neither side of a test is what is tested."""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence

import lz4.frame
import zstandard

CONTAINER = 0x544F4F42
KERNEL_X64 = 0x4C4E524B
KERNEL_ARM64 = 0x384E524B
BOOTFS = 0x42534642
CMDLINE = 0x4C444D43
RAMDISK = 0x4B534452
VERSION, CRC, COMPRESSED = 0x00010000, 0x00020000, 1

Pack = Callable[[bytes], bytes]
PACKS: Mapping[str, Pack] = {
    "raw": lambda raw: raw,
    "zstd": lambda raw: zstandard.ZstdCompressor().compress(raw),
    "lz4": lambda raw: bytes(lz4.frame.compress(raw)),
}


MAGIC = 0xB5781729
NO_CRC = 0x4A87E8D6


def item(
    kind: int,
    payload: bytes,
    extra: int = 0,
    flags: int = VERSION,
    *,
    length: int | None = None,
    reserved: tuple[int, int] = (0, 0),
    magic: int = MAGIC,
    crc: int = NO_CRC,
) -> bytes:
    """One item, or a container, without a CRC unless one is given."""
    size = len(payload) if length is None else length
    header = struct.pack("<IIIIIIII", kind, size, extra, flags, *reserved, magic, crc)
    return header + payload + bytes(-len(payload) % 8)


def checked(kind: int, payload: bytes, extra: int = 0, flags: int = VERSION) -> bytes:
    """One item with its CRC."""
    bare = item(kind, payload, extra, flags | CRC, crc=0)
    return item(kind, payload, extra, flags | CRC, crc=zlib.crc32(bare[: 32 + len(payload)]))


def container(*items: bytes) -> bytes:
    """A whole image."""
    return item(CONTAINER, b"".join(items), 0x868CF7E6)


def entry(name: bytes, size: int, offset: int) -> bytes:
    """One entry of a directory; `name` with its NUL."""
    raw = struct.pack("<III", len(name), size, offset) + name
    return raw + bytes(-len(raw) % 4)


def bootfs(entries: Sequence[bytes], content: bytes = b"", size: int | None = None) -> bytes:
    """A payload: the directory, padded to a page, and what follows."""
    directory = b"".join(entries)
    head = struct.pack("<IIII", 0xA56D3FF9, len(directory) if size is None else size, 0, 0) + directory
    return head + bytes(-len(head) % 4096) + content


def payload(files: Mapping[str, bytes]) -> bytes:
    """The BOOTFS of these files, in their order."""
    names = {name.encode(errors="surrogateescape") + b"\0": data for name, data in files.items()}
    start = len(bootfs([entry(name, 0, 0) for name in names]))
    entries, content = [], b""
    for name, data in names.items():
        entries.append(entry(name, len(data), start + len(content)))
        content += data + bytes(-len(data) % 4096)
    return bootfs(entries, content)


def bootfs_item(raw: bytes, pack: Pack = PACKS["raw"]) -> bytes:
    """The item of a payload."""
    packed = pack(raw)
    return item(BOOTFS, packed, len(raw), VERSION | (COMPRESSED if packed != raw else 0))


KERNEL = item(KERNEL_X64, b"kernel")


def image(files: Mapping[str, bytes], pack: Pack = PACKS["raw"], *, before: bytes = b"", after: bytes = b"") -> bytes:
    """A kernel, and these files in a BOOTFS; other items before and after that."""
    return container(KERNEL, before, bootfs_item(payload(files), pack), after)
