"""Tar archives, plain or compressed, read within bounds: in one pass, and not a byte of a header that is not needed.

Format: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block", and GNU tar's manual, "Basic Tar Format".
How an archive is compressed is seen from its first bytes, but for .lzma, which has none of its own.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pipeline.builds.targets.seeds import packed
from pipeline.builds.targets.seeds.omissions import LINK, SPARSE, SPECIAL, FoundFile, Omission, too_large
from pipeline.builds.targets.seeds.packed import Allowance, Damaged, PieceReader, SourceFile

BLOCK = 512

_LONGEST_HEADER = 1 << 20  # bytes of a long name, or of the records of a PAX header
_COMPRESSED = {b"\x1f\x8b": packed.gzip, b"BZh": packed.bzip2, b"\xfd7zXZ\0": packed.xz}
_OCTAL = re.compile(rb"[0-7]*")
_DECIMAL = re.compile(rb"[0-9]{1,20}")
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=]+)=")
# Type flags
_FILES, _LINKS, _DIRECTORY, _NO_FILES = b"\x0007", b"12", b"5", b"5DV"
_PAX, _LONG_NAME, _OF_OTHERS = b"xX", b"L", b"gK"
_BARE = b"123456"  # no content follows, whatever the size says


@dataclass
class TarHeader:
    """What the header of a member says, and those headers that came before it to say more."""

    name: bytes
    size: int
    flag: bytes
    is_sparse: bool
    extended: bool
    """Whether blocks of GNU's map of a sparse file follow."""

    @classmethod
    def decode(cls, block: bytes) -> "TarHeader":
        """Read a header from its 512 bytes. Raises Damaged."""
        if len(block) < BLOCK:
            raise Damaged("it is cut off")
        if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            raise Damaged("a header in it is not sound, or it is no tar archive")
        name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
        if prefix and block[257:263] == b"ustar\0":
            name = prefix + b"/" + name
        flag = block[156:157]
        return cls(name, _number(block[124:136]), flag, flag == b"S", flag == b"S" and block[482] != 0)

    def omission(self, unit: int) -> Omission | None:
        """Why it is left out; None for a file of at most `unit` bytes, and for what is not meant to be one."""
        if self.flag in _NO_FILES:
            return None
        if self.flag in _LINKS:
            return LINK
        if self.is_sparse:
            return SPARSE
        if self.flag not in _FILES:
            return SPECIAL
        return too_large(unit) if self.size > unit else None

    def take(self, name: bytes, records: bytes) -> None:
        """Take what a long name and the records of a PAX header say about the member. Raises Damaged."""
        self.name = name or self.name
        self._take(records)
        if self.flag == b"\0" and self.name.endswith(b"/"):
            self.flag = _DIRECTORY  # as before POSIX

    def _take(self, records: bytes) -> None:
        start = 0
        while match := _RECORD.match(records, start):
            end = start + int(match[1])
            key, value = match[2], records[match.end() : end - 1]
            if end <= match.end() or records[end - 1 : end] != b"\n":
                break
            if key == b"path":
                self.name = value
            elif key == b"size":
                self.size = int(value) if _DECIMAL.fullmatch(value) else -1
            self.is_sparse |= key.startswith(b"GNU.sparse.")
            start = end
        if records[start:].strip(b"\0") or self.size < 0:
            raise Damaged("a PAX header in it is not sound")


def files(archive: SourceFile, unit: int, allowance: Allowance, *, is_lzma: bool = False) -> Iterator[FoundFile]:
    """All files of a tar archive, of at most `unit` bytes each. `is_lzma` says whether its name ends with .lzma.

    Raises Damaged at what is not sound, and NoMore.
    """
    reader = PieceReader(_pieces(archive, is_lzma))
    while header := _next(reader, allowance):
        omission = header.omission(unit)
        if header.flag in _NO_FILES or omission:
            _skip(reader, header)
        if omission:
            yield FoundFile(header.name, omission=omission)
        elif header.flag not in _NO_FILES:
            yield FoundFile(header.name, _content(reader, header.size))
    reader.end()


def _pieces(archive: SourceFile, is_lzma: bool) -> Iterator[bytes]:
    raw, first = archive.pieces(0, archive.size), archive.at(0, BLOCK)
    with suppress(Damaged):
        TarHeader.decode(first)
        return raw  # whatever the first bytes are: they are the name of a file
    for magic, decompressor in _COMPRESSED.items():
        if first.startswith(magic):
            return archive.unpacked(raw, decompressor)
    return archive.unpacked(raw, packed.lzma_alone) if is_lzma else raw


def _next(reader: PieceReader, allowance: Allowance) -> TarHeader | None:
    """The header of the next member, with what the headers before it say about it; None at the end of the archive."""
    name = records = b""
    while True:
        block = reader.read(BLOCK)
        if not block:
            raise Damaged("it ends without the mark of its end, so it may be cut off")
        if block == bytes(BLOCK):
            return None
        allowance.look()
        header = TarHeader.decode(block)
        if header.flag in _PAX:
            records = _content(reader, _bounded(header.size))
        elif header.flag in _LONG_NAME:
            name = _content(reader, _bounded(header.size)).partition(b"\0")[0]
        elif header.flag in _OF_OTHERS:
            _skip(reader, header)
        else:
            header.take(name, records)
            return header


def _bounded(size: int) -> int:
    if size > _LONGEST_HEADER:
        raise Damaged(f"a header in it has {size:,} bytes")
    return size


def _content(reader: PieceReader, size: int) -> bytes:
    content = reader.read(size)
    if len(content) < size:
        raise Damaged("it is cut off")
    reader.skip(-size % BLOCK)
    return content


def _skip(reader: PieceReader, header: TarHeader) -> None:
    """Pass over the content of a member."""
    extended = header.extended
    while extended:
        block = reader.read(BLOCK)
        extended = len(block) == BLOCK and block[504] != 0
    if header.flag not in _BARE and not reader.skip(header.size + -header.size % BLOCK):
        raise Damaged("it is cut off")


def _number(field: bytes) -> int:
    """The number in a field of a header: octal digits, or binary after a byte 0x80, as GNU tar writes large ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    if not _OCTAL.fullmatch(digits):
        raise Damaged("a number in a header of it is not sound, or it is no tar archive")
    return int(digits or b"0", 8)
