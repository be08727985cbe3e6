"""Compressed payloads: one LZ4 or zstd frame, told apart by its first four bytes.

Old kernels know only LZ4, new ones only zstd, so whoever rewrites a BOOTFS keeps its method. Levels and options are
those of Fuchsia's `zbi`. Decompression streams through one buffer, so that the memory it needs does not depend on what
a frame claims. It fails as soon as more comes out than the item claims, or if less has come out at the end.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

from pipeline.errors import ImageDamaged, ImageTooLarge, UsageError
from pipeline.images.zbi import item_types
from pipeline.images.zbi.container import CHUNK, COMPRESSED_FLAG, CRC_FLAG, HEADER, VERSION_FLAG, Item, Payload, chunks

Algorithm = Literal["none", "lz4f", "zstd"]

MOST_UNPACKED = 2 << 30
"""The most bytes that a compressed item, or a BOOTFS that is written, may hold; real images have a tenth of that."""

_BUFFER = 1 << 18
_MOST_BLOCKS = 1 << 20  # usually of 128 KiB; to walk over a frame of empty ones would take minutes
_RUN = 1  # the type of a block that holds one byte and how often it is repeated
_LEVEL = 4
_HIGHEST = {"lz4f": 12, "zstd": 22}
_MAX = {"lz4f": 12, "zstd": 19}
_ANEW = "it is damaged: copy the image once more from where it came from, or build it anew"


@dataclass(frozen=True)
class Method:
    """A compression algorithm with its level."""

    algorithm: Algorithm
    level: int = _LEVEL

    @classmethod
    def parse(cls, text: str) -> "Method":
        """Read HOW of `zbi --compressed=HOW`: none, lz4f, zstd, LEVEL, ALGORITHM.LEVEL or max. Raises UsageError."""
        match = re.fullmatch(r"(none)|(?:(lz4f|zstd)(?:\.|$))?(\d{1,3}|max|overclock)?", text.lower())
        if match is None:
            raise UsageError(
                f"unrecognized compression algorithm syntax: {text}",
                hint="use none, lz4f or zstd, with a level such as zstd.19 or lz4f.max",
            )
        if match[1]:
            return NONE
        algorithm: Algorithm = "lz4f" if match[2] == "lz4f" else "zstd"
        return cls(algorithm, cls._level(algorithm, match[3]))

    @staticmethod
    def _level(algorithm: Algorithm, text: str | None) -> int:
        words = {None: _LEVEL, "max": _MAX[algorithm], "overclock": _HIGHEST[algorithm]}
        level = words[text] if text in words else int(text or 0)
        if level > _HIGHEST[algorithm]:
            raise UsageError(f"{algorithm} has no level {level}", hint=f"use at most {_HIGHEST[algorithm]}")
        return level


NONE = Method("none")
ZSTD = Method("zstd")
LZ4 = Method("lz4f")

_METHODS = {b"\x04\x22\x4d\x18": LZ4, b"\x28\xb5\x2f\xfd": ZSTD}


def method_of(item: Item) -> Method:
    """How the payload of an item is compressed. Raises ImageDamaged if its flags say that it is and it is not."""
    if not item.compressed:
        return NONE
    with item.faults():
        magic = item.payload.read(0, 4)
        if magic in _METHODS:
            return _METHODS[magic]
        raise ImageDamaged(
            f"item {item_types.name_of(item.type)} is compressed in an unknown way",
            offset=None if item.offset is None else item.offset + HEADER.size,
            expected="the start of an LZ4 or zstd frame",
            hint=_ANEW,
        )


def unpacked(item: Item) -> Iterator[memoryview]:
    """The decompressed content of an item, in pieces; each is valid until the next one is asked for.

    Together they have exactly `item.content_size` bytes. Raises ImageDamaged if the frame does not yield these, and
    ImageTooLarge if it claims more than MOST_UNPACKED.
    """
    with item.faults():
        method = method_of(item)
        if method.algorithm == "none":
            yield from (memoryview(chunk) for chunk in chunks(item.payload))
            return
        _check_claim(item)
        yield from _measured(_unpack_zstd(item) if method.algorithm == "zstd" else _unpack_lz4(item), item)


def _check_claim(item: Item) -> None:
    if item.extra > MOST_UNPACKED:
        raise ImageTooLarge(
            f"item {item_types.name_of(item.type)} claims to hold {item.extra} bytes",
            offset=item.offset,
            expected=f"at most {MOST_UNPACKED}",
            hint="Topcoat unpacks no more than that: is it a decompression bomb?",
        )


def _measured(pieces: Iterator[memoryview], item: Item) -> Iterator[memoryview]:
    left = item.extra
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise _unfit(item, "more comes out of its frame than it claims", f"{item.extra} bytes")
        yield piece
    if left:
        raise _unfit(item, f"only {item.extra - left} bytes come out of its frame", f"{item.extra} bytes")


def _unfit(item: Item, problem: str, expected: str = "") -> ImageDamaged:
    named = f"item {item_types.name_of(item.type)}: {problem}"
    return ImageDamaged(named, offset=item.offset, expected=expected, hint=_ANEW)


class _Payload:
    """A payload as a file object, with the one method that zstandard calls."""

    def __init__(self, payload: Payload) -> None:
        self._chunks = chunks(payload)

    def read(self, size: int) -> bytes:
        """The next piece of the payload, whatever `size` is; no bytes at the end."""
        return next(self._chunks, b"")


def _unpack_zstd(item: Item) -> Iterator[memoryview]:
    import zstandard

    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    try:
        _check_zstd_frame(item)
        reader = zstandard.ZstdDecompressor().stream_reader(cast(BinaryIO, _Payload(item.payload)), read_size=CHUNK)
        while size := reader.readinto(buffer):
            yield view[:size]
    except zstandard.ZstdError as error:
        raise _unfit(item, f"its zstd frame cannot be unpacked: {error}") from error


def _check_zstd_frame(item: Item) -> None:
    """Walk over the blocks of the frame (RFC 8878, 3.1.1), as the library does not tell where a frame has ended.

    Otherwise a frame that is cut off after its last content, or followed by other bytes, would pass; a device that
    unpacks all at once refuses both.
    """
    import zstandard

    payload = item.payload
    head = payload.read(0, 18)
    position, last, count = zstandard.frame_header_size(head), False, 0
    while not last and position + 3 <= payload.size:
        count += 1
        if count > _MOST_BLOCKS:
            raise _unfit(item, "its zstd frame has too many blocks", f"at most {_MOST_BLOCKS}")
        block = int.from_bytes(payload.read(position, 3), "little")
        last, kind = bool(block & 1), block >> 1 & 3
        position += 3 + (1 if kind == _RUN else block >> 3)
    position += 4 * zstandard.get_frame_parameters(head).has_checksum
    if not last:
        raise _unfit(item, f"its zstd frame is cut off: {payload.size} bytes", "more")
    if position != payload.size:
        raise _unfit(item, f"it has {payload.size} bytes", f"{position}: those of one zstd frame")


def _unpack_lz4(item: Item) -> Iterator[memoryview]:
    import lz4.frame

    frame = lz4.frame.LZ4FrameDecompressor()
    try:
        for chunk in chunks(item.payload):
            if frame.eof:
                raise _unfit(item, "something follows its LZ4 frame", "nothing")
            yield memoryview(frame.decompress(chunk, max_length=_BUFFER))
            while not frame.eof and not frame.needs_input:
                yield memoryview(frame.decompress(b"", max_length=_BUFFER))
    except (RuntimeError, EOFError) as error:
        raise _unfit(item, f"its LZ4 frame cannot be unpacked: {error}") from error
    if not frame.eof or frame.unused_data:
        raise _unfit(item, f"it has {item.payload.size} bytes", "those of one LZ4 frame, no more and no less")


@dataclass(frozen=True)
class Packed:
    """An item whose payload is compressed while it is written: an ItemDraft of `size` bytes of content."""

    type: int
    content: Iterable[bytes | memoryview]
    size: int
    method: Method

    @property
    def extra(self) -> int:
        """See Item: the size of the content in bytes."""
        return self.size

    @property
    def flags(self) -> int:
        """See Item."""
        return VERSION_FLAG | CRC_FLAG | (0 if self.method.algorithm == "none" else COMPRESSED_FLAG)

    def pieces(self) -> Iterator[bytes]:
        """See ItemDraft."""
        if self.method.algorithm == "none":
            return map(bytes, self.content)
        return self._zstd() if self.method.algorithm == "zstd" else self._lz4()

    def _zstd(self) -> Iterator[bytes]:
        import zstandard

        parameters = zstandard.ZstdCompressionParameters.from_level(
            self.method.level, source_size=self.size, enable_ldm=True, threads=os.cpu_count() or 1
        )
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=self.size)
        for piece in self.content:
            yield packer.compress(piece)
        yield packer.flush()

    def _lz4(self) -> Iterator[bytes]:
        import lz4.frame

        packer = lz4.frame.LZ4FrameCompressor(
            block_size=lz4.frame.BLOCKSIZE_MAX64KB, block_linked=False, compression_level=self.method.level
        )
        yield packer.begin(self.size)
        for piece in self.content:
            yield packer.compress(piece)
        yield packer.flush()
