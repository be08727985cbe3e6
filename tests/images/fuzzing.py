"""What a fuzzer and the tests do with one input: make an image of it, and do all that Topcoat does with images.

An input is a byte that chooses how the rest becomes an image, and the rest. Most ways mend what a mutation breaks first
(lengths, hashes, frames), so that it gets through to what lies behind.
"""

import functools
import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TypeVar

from pipeline.errors import TopcoatError
from pipeline.images import fvm, kinds, zbi
from pipeline.images.difference import differences
from tests.images import zbis

LARGEST = 1 << 20
"""Bytes of an input that are looked at."""

_METADATA = 81920  # of the volume below, each copy


def plain(data: bytes) -> bytes:
    """The bytes as they are: any kind of image."""
    return data


def items(data: bytes) -> bytes:
    """The items of a ZBI, in a container of the right length."""
    return zbis.container(data + bytes(-len(data) % 8))


def item(data: bytes) -> bytes:
    """One item with this type, extra, flags and payload, behind a kernel."""
    kind, extra, flags = struct.unpack("<III", data[:12].ljust(12, b"\0"))
    return zbis.container(zbis.KERNEL, zbis.item(kind, data[12:], extra, flags))


def payload(pack: zbis.Pack) -> Callable[[bytes], bytes]:
    """The content of a BOOTFS, packed as it should be."""
    return lambda data: zbis.container(zbis.KERNEL, zbis.bootfs_item(data + bytes(-len(data) % 4096), pack))


def frame(data: bytes) -> bytes:
    """A BOOTFS that claims to be packed, in a frame of four bytes of size and the rest."""
    (size,) = struct.unpack("<I", data[:4].ljust(4, b"\0"))
    return zbis.container(zbis.KERNEL, zbis.item(zbis.BOOTFS, data[4:], size, zbis.VERSION | zbis.COMPRESSED))


def volume(data: bytes) -> bytes:
    """A small FVM in which 8 bytes at some places are others, with both hashes mended; a last byte cuts it off."""
    image = bytearray(_base_volume())
    for at in range(0, len(data) - 11, 12):
        place, value = struct.unpack_from("<IQ", data, at)
        place %= len(image) - 8
        image[place : place + 8] = struct.pack("<Q", value)
    for start in (0, _METADATA):
        metadata = bytes(image[start : start + _METADATA])
        image[start + 64 : start + 96] = hashlib.sha256(metadata[:64] + bytes(32) + metadata[96:]).digest()
    return bytes(image[: len(image) - 97 * data[-1]] if len(data) % 12 == 1 else image)


@functools.cache
def _base_volume() -> bytes:
    with open(os.memfd_create("volume"), "w+b") as stream:
        fvm.create(stream, fvm.BLOCK, {"blobfs": b"1" * 20_000, "data": b"2" * 9000})
        stream.seek(0)
        return stream.read()


WAYS: Sequence[Callable[[bytes], bytes]] = (
    plain,
    items,
    item,
    payload(zbis.PACKS["raw"]),
    payload(zbis.PACKS["lz4"]),
    payload(zbis.PACKS["zstd"]),
    frame,
    volume,
)
"""How an input becomes an image, by its first byte."""


def image(data: bytes) -> bytes:
    """The image that an input stands for."""
    return WAYS[data[0] % len(WAYS)](data[1:LARGEST]) if data else b""


def exercise(data: bytes, directory: Path) -> None:
    """Do with the image of an input all that can be done. Raises what nobody expects, and nothing else.

    `directory` is used for files, and must be the caller's own.
    """
    source, original = directory / "image", directory / "original"
    for file in (source, original):
        file.write_bytes(image(data))
    (directory / "key").write_bytes(b"ssh-ed25519 AAAA\n")
    before = _tried(lambda: kinds.inspect(source))
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        zbi.main(["-tv", str(source)])
        code = zbi.main(["-o", str(directory / "out"), str(source), "-e", f"data/key={directory / 'key'}"])
        zbi.main(["-x", "-D", str(directory / "extracted"), str(source)])
        extended = fvm.main([str(source), "extend", "--length", "1M", "--length-is-lowerbound"])
        fvm.main([str(source), "extend", "--length", "2M", "--in-place"])
        fvm.main([str(source), "check"])
    if code == 0:
        # What came through is sound in all that was rewritten
        after = kinds.inspect(directory / "out")
        bootfs = next(part for part in after.parts if part.name == "BOOTFS")
        assert not bootfs.problems
        if before is not None:
            differences(before, after)
    if extended == 0:
        assert fvm.first_difference(original, source) is None


_Outcome = TypeVar("_Outcome")


def _tried(work: Callable[[], _Outcome]) -> _Outcome | None:
    try:
        return work()
    except TopcoatError:
        return None
