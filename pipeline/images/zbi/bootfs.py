"""BOOTFS: a directory of names, then the content of each file, which starts at a multiple of 4096 bytes.

Source: Fuchsia, sdk/lib/zbi-format/include/lib/zbi-format/internal/bootfs.h, and the device's reader (zbitl
BootfsView). One bad entry makes that reader refuse the whole directory, so what it refuses is refused here too.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.errors import ImageDamaged, ImageTooLarge, UsageError
from pipeline.images.zbi import compression
from pipeline.images.zbi.container import Item

MAGIC = 0xA56D3FF9
PAGE = 4096
LONGEST_NAME = 255
"""The most bytes that a name can have, without the NUL at its end."""

MOST_FILES = 1 << 18
"""The most files that are read or written. Real images have a few thousand; each takes some hundred bytes of memory."""

MOST_DIRECTORIES = 1 << 16
"""The most directories. Real images have some hundred; one name of 255 bytes can make 127 of them."""

_HEADER = struct.Struct("<IIII")
_ENTRY = struct.Struct("<III")
_ANEW = "the image is damaged: copy it once more from where it came from, or build it anew"


@dataclass(frozen=True)
class File:
    """One entry of the directory: `size` bytes of content, which start at `offset` of the decompressed payload."""

    name: str
    """The name; bytes that are not UTF-8 are surrogates in it."""
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The offset at which the content ends."""
        return self.offset + self.size


def order(name: str) -> list[bytes]:
    """The key by which names are sorted: component by component, so that the files of a directory lie together."""
    return encoded(name).split(b"/")


def encoded(name: str) -> bytes:
    """The bytes of a name, with surrogates turned back into the bytes that they stand for."""
    return name.encode(errors="surrogateescape")


def check_name(name: str) -> None:
    """Raise UsageError for a name that a device refuses, or that would lead out of the image."""
    problem = _problem_of(name)
    if problem:
        raise UsageError(
            f"a file in a BOOTFS cannot be named {name[:80]!r}: {problem}",
            hint="give a relative path such as data/ssh/authorized_keys",
        )


def _problem_of(name: str) -> str:
    components = name.split("/")
    if name.startswith("/"):
        return "it starts with '/', and a device refuses a directory with such a name"
    if len(encoded(name)) > LONGEST_NAME:
        return f"it has more than {LONGEST_NAME} bytes, and a device refuses a directory with such a name"
    if "\0" in name:
        return "there is a NUL in it"
    if "." in components or ".." in components:
        return "no . or .. allowed"
    return "a component of it is empty" if "" in components else ""


class Census:
    """A count of the files and directories in all BOOTFS that are read for one purpose, which keeps them bounded."""

    def __init__(self) -> None:
        self._files = 0
        self._directories: set[str] = set()

    def add(self, name: str) -> None:
        """Count a file and the directories that lead to it. Raises ImageTooLarge if there are too many of either."""
        self._files += 1
        parent = name.rpartition("/")[0]
        while parent and parent not in self._directories:
            self._directories.add(parent)
            parent = parent.rpartition("/")[0]
        _check_count(self._files, MOST_FILES, "files")
        _check_count(len(self._directories), MOST_DIRECTORIES, "directories")


def _check_count(count: int, most: int, what: str) -> None:
    if count > most:
        raise ImageTooLarge(f"too many {what} in the BOOTFS", expected=f"at most {most}", hint="is that a boot image?")


def layout(sizes: Sequence[tuple[str, int, object]]) -> tuple[bytes, list[int], int]:
    """Lay out a BOOTFS that holds these files, in this order: name, size in bytes, and what identifies the content.

    Contents with equal identities are stored once. Returns the directory, padded to where the first content starts, the
    offset of each file, and the size of the whole, all in bytes. Raises ImageTooLarge if the BOOTFS would be too large
    to be read again.
    """
    census = Census()
    for name, _, _ in sizes:
        census.add(name)
    position = _padded(_HEADER.size + sum(_entry_size(name) for name, _, _ in sizes))
    known: dict[object, int] = {}
    offsets = []
    for _, size, content in sizes:
        if content not in known:
            known[content] = position
            position = _padded(position + size)
        offsets.append(known[content])
    # Fuchsia's tool refuses to read again what it writes itself: an empty file that starts where the payload ends
    total = position + PAGE if position in offsets else position
    if total > compression.MOST_UNPACKED:
        raise ImageTooLarge(
            f"the BOOTFS would have {total} bytes",
            expected=f"at most {compression.MOST_UNPACKED}",
            hint="leave out some files",
        )
    entries = [_entry(name, size, at) for (name, size, _), at in zip(sizes, offsets, strict=True)]
    directory = b"".join(entries)
    head = _HEADER.pack(MAGIC, len(directory), 0, 0) + directory
    return head + bytes(-len(head) % PAGE), offsets, total


def _padded(size: int) -> int:
    return size + -size % PAGE


def _entry_size(name: str) -> int:
    return (_ENTRY.size + len(encoded(name)) + 1 + 3) & ~3


def _entry(name: str, size: int, offset: int) -> bytes:
    entry = _ENTRY.pack(len(encoded(name)) + 1, size, offset) + encoded(name)
    return entry.ljust(_entry_size(name), b"\0")


class BootfsReader:
    """A reader of the BOOTFS in an item, which it unpacks from start to end, once, in bounded memory.

    Raises ImageDamaged if a device would refuse the BOOTFS, and ImageTooLarge if it holds too much, or too many files
    for the `census`.
    """

    def __init__(self, item: Item, census: Census | None = None) -> None:
        self._item = item
        self._census = census or Census()
        self._pieces = compression.unpacked(item)
        self._piece = memoryview(b"")
        self.position = 0
        with item.faults():
            self.files = self._directory()
        """All files, in the order of the directory."""

    def _directory(self) -> tuple[File, ...]:
        magic, size, _, _ = _HEADER.unpack(self._take(_HEADER.size))
        if magic != MAGIC:
            raise self._damaged(0, f"the magic {magic:#x}", f"{MAGIC:#x}")
        if size > self._item.content_size - _HEADER.size:
            raise self._damaged(4, f"a directory of {size} bytes", f"at most {self._item.content_size - _HEADER.size}")
        if size > MOST_FILES * (_ENTRY.size + LONGEST_NAME):
            raise ImageTooLarge(f"a directory of {size} bytes in the BOOTFS", offset=self._item.offset, hint=_ANEW)
        raw = self._take(size)
        files = tuple(self._entries(raw))
        self._check_ranges(files, _HEADER.size + size)
        return files

    def _entries(self, raw: bytes) -> Iterator[File]:
        position = 0
        while position != len(raw):
            file, size = self._entry(raw, position)
            self._census.add(file.name)
            yield file
            position += size

    def _entry(self, raw: bytes, position: int) -> tuple[File, int]:
        at = _HEADER.size + position
        if len(raw) - position < _ENTRY.size:
            raise self._damaged(at, "the directory is cut off in an entry", f"{_ENTRY.size} bytes")
        name_size, size, offset = _ENTRY.unpack_from(raw, position)
        name = raw[position + _ENTRY.size : position + _ENTRY.size + name_size]
        if not 1 < name_size <= LONGEST_NAME + 1:
            raise self._damaged(at, f"a name of {name_size} bytes", f"2 to {LONGEST_NAME + 1}, with the NUL")
        if len(name) < name_size:
            raise self._damaged(at, f"the directory is cut off in a name of {name_size} bytes")
        if name[-1] != 0:
            raise self._damaged(at + _ENTRY.size, "a name does not end in NUL")
        text = name[:-1].decode(errors="surrogateescape")
        if problem := _problem_of(text):
            raise self._damaged(at + _ENTRY.size, f"the name {text[:80]!r}: {problem}")
        return File(text, offset, size), (_ENTRY.size + name_size + 3) & ~3

    def _check_ranges(self, files: Sequence[File], start: int) -> None:
        for file in files:
            self._check_range(file)
        end = start
        for offset, file_end in sorted({(file.offset, file.end) for file in files if file.size}):
            if offset < end:
                raise self._damaged(offset, "the contents of two files, or of one and the directory, overlap")
            end = file_end

    def _check_range(self, file: File) -> None:
        total = self._item.content_size
        if file.offset % PAGE:
            raise self._damaged(file.offset, f"{file.name[:80]!r} starts there", f"a multiple of {PAGE}")
        if file.offset + file.size + -file.size % PAGE > total:
            raise self._damaged(
                file.offset, f"offset+size too large: {file.name[:80]!r} has {file.size} bytes", f"an end at {total}"
            )

    def _damaged(self, position: int, problem: str, expected: str = "") -> ImageDamaged:
        return ImageDamaged(
            f"in its BOOTFS, at byte {position:#x} of the content: {problem}",
            offset=self._item.offset,
            expected=expected,
            hint=_ANEW,
        )

    def content(self, file: File) -> Iterator[memoryview]:
        """The content of a file, in pieces; each is valid until the next one is asked for.

        Files must be asked for in ascending order of their offsets.
        """
        self._skip_to(file.offset)
        yield from self._next(file.size)

    def rest(self) -> None:
        """Read to the end: only then is it known that the whole payload can be unpacked."""
        self._piece = memoryview(b"")
        for _ in self._pieces:
            pass

    def _take(self, size: int) -> bytes:
        if self.position + size > self._item.content_size:
            raise self._damaged(self.position, f"it has {self._item.content_size} bytes", "a whole header")
        return b"".join(map(bytes, self._next(size)))

    def _skip_to(self, offset: int) -> None:
        assert offset >= self.position
        for _ in self._next(offset - self.position):
            pass

    def _next(self, size: int) -> Iterator[memoryview]:
        while size:
            if not self._piece:
                self._piece = next(self._pieces)
            piece = self._piece[:size]
            self._piece = self._piece[len(piece) :]
            self.position += len(piece)
            size -= len(piece)
            yield piece
