"""The container of a ZBI: a header, then items, each with a header of its own and padded to 8 bytes."""

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import ImageDamaged, ImageTooLarge, WrongFormat
from pipeline.host.faults import image_faults
from pipeline.images import reader
from pipeline.images.zbi import item_types
from pipeline.images.zbi.crc import combined
from pipeline.text.printable import printable

HEADER = struct.Struct("<IIIIIIII")
EXTRA = 0x868CF7E6
MAGIC = 0xB5781729
NO_CRC = 0x4A87E8D6
"""The value of the CRC field of an item without a CRC."""

VERSION_FLAG = 0x00010000
WRONG_CRC = "CRC "
"""The text with which the problem of a wrong CRC begins. No guest checks CRCs."""

OF_HEADERS = (WRONG_CRC, "the VERSION flag ", "reserved fields ", "the CRC flag ")
"""The texts with which the problems of an item's header begin; the content of the item may be intact."""

CRC_FLAG = 0x00020000
COMPRESSED_FLAG = 0x00000001

MOST_BYTES = (1 << 32) - 1 - HEADER.size
"""The most bytes of items in a container: lengths have 32 bits."""

CHUNK = 1 << 20
"""The most bytes that are read at once."""

MOST_CLAIMED = 1 << 32
"""The most bytes that all compressed items of an image may claim together: one of a megabyte could take hours."""

_MOST_ITEMS = 1 << 12  # real images have a dozen; a container of 4 GiB could claim 134 million


class Payload(Protocol):
    """The payload of an item, as it is stored."""

    @property
    def size(self) -> int:
        """The number of bytes."""

    def read(self, position: int, size: int) -> bytes:
        """`size` bytes from `position` on, or fewer if the payload ends before."""


@dataclass(frozen=True)
class Memory:
    """A payload in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """See Payload."""
        return len(self.data)

    def read(self, position: int, size: int) -> bytes:
        """See Payload."""
        return self.data[position : position + size]


@dataclass(frozen=True)
class FilePayload:
    """A payload in an open file: `size` bytes from `offset` on."""

    descriptor: int
    offset: int
    size: int

    def read(self, position: int, size: int) -> bytes:
        """See Payload. Raises ImageDamaged if the file has become shorter."""
        wanted = max(0, min(size, self.size - position))
        data = os.pread(self.descriptor, wanted, self.offset + position)
        if len(data) < wanted:
            raise ImageDamaged(
                "the file has become shorter while it was read",
                offset=self.offset + position + len(data),
                expected=f"{wanted - len(data)} more bytes",
                hint="try again when nobody writes to it any more",
            )
        return data


def chunks(payload: Payload) -> Iterator[bytes]:
    """The whole payload, in pieces of at most 1 MiB."""
    for position in range(0, payload.size, CHUNK):
        yield payload.read(position, CHUNK)


@dataclass(frozen=True)
class Item:
    """One item of a ZBI. `offset` is where its header starts in the file, None for an item that is new."""

    type: int
    payload: Payload
    extra: int = 0
    flags: int = VERSION_FLAG | CRC_FLAG
    crc: int | None = None
    """The CRC as it stands in the header, right or wrong; None if it is to be computed when the item is written."""
    reserved: tuple[int, int] = (0, 0)
    offset: int | None = None
    file: str = ""
    """The file that the item was read from, which errors name; "" if whoever reads the item names the file."""

    @property
    def compressed(self) -> bool:
        """Whether the payload is one LZ4 or zstd frame."""
        return self.type in item_types.STORAGE and bool(self.flags & COMPRESSED_FLAG)

    def faults(self) -> AbstractContextManager[None]:
        """A context manager that names the item's file in every ImageError of its body."""
        return image_faults(self.file) if self.file else nullcontext()

    @property
    def content_size(self) -> int:
        """The size of the decompressed content in bytes, as the item claims."""
        return self.extra if self.compressed else self.payload.size

    def header(self, crc: int) -> bytes:
        """The encoded header of 32 bytes, with this CRC."""
        return HEADER.pack(self.type, self.payload.size, self.extra, self.flags, *self.reserved, MAGIC, crc)

    def real_crc(self) -> int:
        """The right value of the CRC field: over the header, with 0 in that field, and the payload as stored."""
        if not self.flags & CRC_FLAG:
            return NO_CRC
        crc = zlib.crc32(self.header(0))
        with self.faults():
            for chunk in chunks(self.payload):
                crc = zlib.crc32(chunk, crc)
        return crc


def made(kind: int, payload: bytes, file: str = "") -> Item:
    """A new, uncompressed item of the type `kind`; errors name `file`, from which its bytes come."""
    return Item(kind, Memory(payload), len(payload) if kind in item_types.STORAGE else 0, file=file)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Item, ...]]:
    """Open a ZBI and give its items, in order; their payloads can be read during the body.

    Raises WrongFormat if it is no ZBI, ImageDamaged if the container is not sound, ImageTooLarge if it has too many
    items or they claim too much, and UsageError if it is no regular file that can be read. CRCs are not compared: no
    guest does, and Fuchsia's own tool has written wrong ones.
    """
    with opened_whole(path) as (_, items):
        yield items


@contextmanager
def opened_whole(path: Path) -> Iterator[tuple[Item, tuple[Item, ...]]]:
    """Do as `opened`, but give the container, whose header is like that of an item, and then its items."""
    with image_faults(printable(str(path))), reader.opened(path) as file:
        descriptor = file.stream.fileno()
        yield _whole(descriptor, file.size), _items(descriptor, file.size)


def is_container(head: bytes) -> bool:
    """Whether a file that begins with these bytes claims to be a ZBI."""
    if len(head) < HEADER.size:
        return False
    kind, _, extra, _, _, _, magic, _ = HEADER.unpack_from(head)
    return (kind, extra, magic) == (item_types.CONTAINER, EXTRA, MAGIC)


def _whole(descriptor: int, size: int) -> Item:
    head = os.pread(descriptor, HEADER.size, 0)
    if not is_container(head):
        raise WrongFormat(
            "this is no ZBI",
            offset=0,
            expected="the header of a container",
            hint="give the build's .zbi file; `topcoat image FILE` tells what a file is",
        )
    kind, length, extra, flags, first, second, _, crc = HEADER.unpack(head)
    _check_length(length, size)
    return Item(kind, FilePayload(descriptor, HEADER.size, length), extra, flags, crc, (first, second), 0)


def _items(descriptor: int, size: int) -> tuple[Item, ...]:
    found: list[Item] = []
    position = HEADER.size
    claimed = 0
    while position < size:
        item = _item_at(descriptor, position, size)
        found.append(item)
        claimed += item.extra if item.compressed else 0
        if len(found) > _MOST_ITEMS:
            raise ImageTooLarge("it has too many items", offset=position, expected=f"at most {_MOST_ITEMS}", hint=_ANEW)
        if claimed > MOST_CLAIMED:
            raise ImageTooLarge(
                f"its compressed items claim to hold {claimed} bytes up to here",
                offset=position,
                expected=f"at most {MOST_CLAIMED} in all",
                hint="Topcoat unpacks no more than that: is it a decompression bomb?",
            )
        position += HEADER.size + _padded(item.payload.size)
    return tuple(found)


_ANEW = "it is damaged: copy it once more from where it came from, or build it anew"


def _check_length(length: int, size: int) -> None:
    if length + HEADER.size != size:
        raise ImageDamaged(
            f"header size doesn't match file size: the container ends at {length + HEADER.size}, the file at {size}",
            offset=4,
            expected=f"a length of {size - HEADER.size}",
            hint="is the file cut off, or has something been appended to it? " + _ANEW,
        )
    if length % 8:
        raise ImageDamaged(
            f"ZBI item misaligned: the container has {length} bytes",
            offset=4,
            expected="a multiple of 8",
            hint=_ANEW,
        )


def _padded(size: int) -> int:
    return size + -size % 8


def _item_at(descriptor: int, position: int, end: int) -> Item:
    head = os.pread(descriptor, HEADER.size, position)
    if len(head) < HEADER.size or position + HEADER.size > end:
        raise ImageDamaged(
            "input file too short for next header",
            offset=position,
            expected=f"{HEADER.size} bytes, of which {max(0, end - position)} are there",
            hint=_ANEW,
        )
    kind, length, extra, flags, first, second, magic, crc = HEADER.unpack(head)
    if magic != MAGIC:
        raise ImageDamaged("no item starts here", offset=position + 24, expected=f"the magic {MAGIC:#x}", hint=_ANEW)
    start = position + HEADER.size
    if start + _padded(length) > end:
        raise ImageDamaged(
            f"input file too short for payload of {length} bytes",
            offset=start,
            expected=f"at most {end - start} bytes",
            hint=_ANEW,
        )
    return Item(kind, FilePayload(descriptor, start, length), extra, flags, crc, (first, second), position)


class ItemDraft(Protocol):
    """An item whose payload is made only while it is written."""

    @property
    def type(self) -> int:
        """See Item."""

    @property
    def extra(self) -> int:
        """See Item."""

    @property
    def flags(self) -> int:
        """See Item."""

    def pieces(self) -> Iterator[bytes]:
        """The pieces of the payload. It can be called once."""


def write(stream: io.FileIO, items: Iterable[Item | ItemDraft]) -> None:
    """Write a container with these items to an empty file, open for reading and writing.

    An item with a CRC keeps it, right or wrong. Raises ImageTooLarge ("output size exceeds format maximum").
    """
    write_all(stream, bytes(HEADER.size))
    for item in items:
        if isinstance(item, Item):
            _write_item(stream, item)
        else:
            _write_draft(stream, item)
        if stream.tell() - HEADER.size > MOST_BYTES:
            raise ImageTooLarge(
                "output size exceeds format maximum",
                expected=f"at most {MOST_BYTES} bytes of items",
                hint="leave out some files, or compress them: --compressed",
            )
    length = stream.tell() - HEADER.size
    header = HEADER.pack(item_types.CONTAINER, length, EXTRA, VERSION_FLAG, 0, 0, MAGIC, NO_CRC)
    os.pwrite(stream.fileno(), header, 0)


def write_all(stream: io.FileIO, data: bytes | memoryview) -> None:
    """Write all of `data` to an unbuffered file."""
    # A write to a file is only cut short when the disk is full, and the next one says so
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _write_item(stream: io.FileIO, item: Item) -> None:
    write_all(stream, item.header(item.real_crc() if item.crc is None else item.crc))
    with item.faults():
        for chunk in chunks(item.payload):
            write_all(stream, chunk)
    write_all(stream, bytes(-item.payload.size % 8))


def _write_draft(stream: io.FileIO, draft: ItemDraft) -> None:
    """Write the payload before the header: only then are its size and the CRC, which covers both, known."""
    start, size, crc = stream.tell(), 0, 0
    write_all(stream, bytes(HEADER.size))
    for piece in draft.pieces():
        write_all(stream, piece)
        size, crc = size + len(piece), zlib.crc32(piece, crc)
    size = min(size, MOST_BYTES)
    item = Item(draft.type, FilePayload(stream.fileno(), start + HEADER.size, size), draft.extra, draft.flags)
    whole = combined(zlib.crc32(item.header(0)), crc, size)
    os.pwrite(stream.fileno(), item.header(whole), start)
    write_all(stream, bytes(-size % 8))


def problems(item: Item) -> Iterator[str]:
    """The problems of an item's header, each of which at least a careful device would refuse."""
    if not item.flags & VERSION_FLAG:
        yield "the VERSION flag is not set"
    if any(item.reserved):
        yield "reserved fields are not 0"
    if item.flags & CRC_FLAG:
        real = item.real_crc()
        if item.crc not in (None, real):
            yield f"{WRONG_CRC}{real:08x} does not match header {item.crc:08x}"
    elif item.crc not in (None, NO_CRC):
        yield f"the CRC flag is not set, but the CRC is not {NO_CRC:08x}"
