"""The Linux guest's kernel: that of Debian, unpacked from its self-extracting form.

QEMU boots the bare ELF file through its PVH entry. Under emulation that saves the time that the kernel would need to
unpack itself: 0.3 s for LZ4, 2.9 s for XZ. Format: Linux, Documentation/arch/x86/boot.rst.
"""

import lzma
import struct
import zlib
from pathlib import Path, PurePosixPath

from pipeline.builds.linux.packages import opened
from pipeline.errors import ImageError

_LZ4_BLOCK = 8 << 20
_LARGEST = 256 << 20  # bytes; no unpacked kernel is larger


def unpack(package: Path) -> bytes:
    """The kernel in a linux-image package, as an ELF file. Raises PackageError or ImageError."""
    with opened(package) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content and PurePosixPath(member.name).match("boot/vmlinuz-*"):
                return vmlinux(content.read())
    raise _unreadable(f"there is no /boot/vmlinuz in {package.name}")


def vmlinux(image: bytes) -> bytes:
    """The ELF file that is packed in a bzImage. Raises ImageError."""
    if image[0x202:0x206] != b"HdrS" or len(image) < 0x250:
        raise _unreadable("it is no bzImage")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if len(payload) < length or length < 8:
        raise _unreadable("it is cut off")
    # The last four bytes are the unpacked size, appended by the kernel's build
    size = int.from_bytes(payload[-4:], "little")
    if not 0 < size <= _LARGEST:
        raise _unreadable(f"it claims {size} bytes")
    unpacked = _decompress(payload, size)
    if len(unpacked) != size or not unpacked.startswith(b"\x7fELF"):
        raise _unreadable("what was packed in it is no ELF file of the size it claims")
    return unpacked


def _decompress(payload: bytes, size: int) -> bytes:
    """The unpacked payload, cut off one byte after `size`, so that the caller sees when it is too much."""
    for magic, unpack_payload in _UNPACKERS.items():
        if payload.startswith(magic):
            return unpack_payload(payload, size + 1)
    raise _unreadable(f"it is compressed in an unknown way ({payload[:4].hex()})")


def _xz(payload: bytes, most: int) -> bytes:
    try:
        return lzma.LZMADecompressor().decompress(payload, max_length=most)
    except lzma.LZMAError as error:
        raise _unreadable(str(error)) from error


def _gzip(payload: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(payload, most)
    except zlib.error as error:
        raise _unreadable(str(error)) from error


def _zstd(payload: bytes, most: int) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(payload) as stream:
            return stream.read(most)
    except zstandard.ZstdError as error:
        raise _unreadable(str(error)) from error


def _lz4(payload: bytes, most: int) -> bytes:
    import lz4.block

    unpacked, position, end = bytearray(), 4, len(payload) - 4
    try:
        while position + 4 <= end and len(unpacked) < most:
            length = int.from_bytes(payload[position : position + 4], "little")
            block = payload[position + 4 : position + 4 + length]
            unpacked += lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)
            position += 4 + length
    except lz4.block.LZ4BlockError as error:
        raise _unreadable(str(error)) from error
    return bytes(unpacked[:most])


_UNPACKERS = {b"\x02\x21\x4c\x18": _lz4, b"\xfd7zXZ": _xz, b"\x1f\x8b": _gzip, b"\x28\xb5\x2f\xfd": _zstd}


def _unreadable(why: str) -> ImageError:
    return ImageError(
        f"the kernel cannot be unpacked: {why}", hint="use another linux-image package, see [demo] packages"
    )
