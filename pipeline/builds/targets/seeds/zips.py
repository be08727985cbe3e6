"""Zip archives, read within bounds: file by file, as the list at the end of the archive has them.

Format: PKWARE, APPNOTE.TXT 6.3.10; the sections are named below. Nothing but that list says which files there are, so
of an archive that has lost its end nothing counts.
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from pipeline.builds.targets.seeds.omissions import (
    DAMAGED_FILE,
    ENCRYPTED,
    LINK,
    METHOD,
    SPECIAL,
    FoundFile,
    Omission,
    too_large,
)
from pipeline.builds.targets.seeds.packed import (
    Allowance,
    Damaged,
    PieceReader,
    SourceFile,
    bzip2,
    deflate,
    lzma_alone,
)

_END = struct.Struct("<4s4H2LH")  # 4.3.16, end of central directory record
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14, zip64 end of central directory record
_LOCATOR64 = 20  # 4.3.15, the bytes of the locator between both
_LONGEST_COMMENT = 0xFFFF
_LISTED = struct.Struct("<4s6H3L5H2L")  # 4.3.12, central directory header
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7, local file header

_IS_ENCRYPTED, _HAS_END_MARK = 1 << 0, 1 << 1  # 4.4.4, general purpose bit flag
_STORED, _DEFLATED, _BZIP2, _LZMA = 0, 8, 12, 14  # 4.4.5, compression method
_DECOMPRESSORS = {_DEFLATED: deflate, _BZIP2: bzip2}
_ZIP64 = 1  # 4.5.3, the number of the extra field with 64-bit values
_MORE = 0xFFFFFFFF  # stands for a value in that field
_PROPERTIES = 5  # 5.8.8, the bytes of LZMA's properties


@dataclass(frozen=True)
class ZipEntry:
    """What the list of an archive says about one file. `start` is where its local header is in the archive."""

    name: bytes
    flags: int
    method: int
    mode: int
    crc: int
    packed: int
    size: int
    start: int

    def omission(self, unit: int) -> Omission | None:
        """Why it is left out, if that is known without reading it."""
        kind = stat.S_IFMT(self.mode)
        if kind == stat.S_IFLNK:
            return LINK
        if kind not in (0, stat.S_IFREG):
            return SPECIAL
        if self.size > unit:
            return too_large(unit)
        if self.flags & _IS_ENCRYPTED:
            return ENCRYPTED
        return None if self.method in (_STORED, _DEFLATED, _BZIP2, _LZMA) else METHOD

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory: its name ends with a slash."""
        return self.name.endswith(b"/") or stat.S_ISDIR(self.mode)


def files(archive: SourceFile, unit: int, allowance: Allowance) -> Iterator[FoundFile]:
    """All files of a zip archive, of at most `unit` bytes each. Raises Damaged at what is not sound, and NoMore."""
    for entry in _entries(archive, allowance):
        if entry.is_directory:
            continue
        if omission := entry.omission(unit):
            yield FoundFile(entry.name, omission=omission)
            continue
        try:
            found = FoundFile(entry.name, _content(archive, entry))
        except Damaged as error:
            found = FoundFile(entry.name, omission=DAMAGED_FILE, why=str(error))
        yield found


def _entries(archive: SourceFile, allowance: Allowance) -> Iterator[ZipEntry]:
    position, end, shift = _list(archive)
    while position < end:
        allowance.look()
        fixed = archive.at(position, _LISTED.size)
        if len(fixed) < _LISTED.size or not fixed.startswith(b"PK\1\2"):
            raise Damaged(f"its list of files is not sound at byte {position}")
        fields = _LISTED.unpack(fixed)
        lengths = fields[10:13]
        names = archive.at(position + _LISTED.size, lengths[0] + lengths[1])
        name, extra = names[: lengths[0]], names[lengths[0] :]
        size, packed, start = _wide([fields[9], fields[8], fields[16]], extra)
        yield ZipEntry(name, fields[3], fields[4], fields[15] >> 16, fields[7], packed, size, start + shift)
        position += _LISTED.size + sum(lengths)


def _list(archive: SourceFile) -> tuple[int, int, int]:
    """Where the list of files starts and ends, and the bytes before the archive, which no position in it counts."""
    tail = max(0, archive.size - _END.size - _LONGEST_COMMENT)
    last = archive.at(tail, archive.size - tail)
    found = last.rfind(b"PK\5\6", 0, max(0, len(last) - _END.size + 4))
    if found < 0:
        raise Damaged("it is no zip archive, or has lost its end")
    end = tail + found
    _, _, _, _, _, size, start, _ = _END.unpack_from(last, found)
    wide = archive.at(end - _LOCATOR64 - _END64.size, _END64.size)
    if wide.startswith(b"PK\6\6") and archive.at(end - _LOCATOR64, 4) == b"PK\6\7":
        end -= _LOCATOR64 + _END64.size
        *_, size, start = _END64.unpack(wide)
    if size + start > end:
        raise Damaged("its list of files cannot be where it says")
    return end - size, end, end - size - start


def _wide(values: list[int], extra: bytes) -> list[int]:
    """The size, the packed size and the start of a file; the zip64 field has those of them that are too large."""
    at = 0
    while at + 4 <= len(extra):
        number, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if number == _ZIP64:
            for which in (which for which, value in enumerate(values) if value == _MORE):
                values[which], at = int.from_bytes(extra[at : at + 8], "little"), at + 8
            break
        at += length
    return values


def _content(archive: SourceFile, entry: ZipEntry) -> bytes:
    """The content of a file; as many bytes as the list says, and not more, are ever made."""
    local = archive.at(entry.start, _LOCAL.size)
    if len(local) < _LOCAL.size or not local.startswith(b"PK\3\4"):
        raise Damaged("it is not where the list says")
    start = entry.start + _LOCAL.size + sum(_LOCAL.unpack(local)[-2:])
    content = PieceReader(_unpacked(archive, entry, start)).read(entry.size + 1)
    if len(content) != entry.size or zlib.crc32(content) != entry.crc:
        raise Damaged("its content is not what the list says")
    return content


def _unpacked(archive: SourceFile, entry: ZipEntry, start: int) -> Iterator[bytes]:
    end = start + entry.packed
    if entry.method == _LZMA:
        return _lzma(archive, entry, start)
    packed = archive.pieces(start, end)
    return packed if entry.method == _STORED else archive.unpacked(packed, _DECOMPRESSORS[entry.method])


def _lzma(archive: SourceFile, entry: ZipEntry, start: int) -> Iterator[bytes]:
    """The content of a file packed with LZMA, whose header is made into that of a .lzma file: it has the size too."""
    head = archive.at(start, 4 + _PROPERTIES)
    if len(head) < 4 + _PROPERTIES or int.from_bytes(head[2:4], "little") != _PROPERTIES:
        raise Damaged("its LZMA header is not sound")
    size = b"\xff" * 8 if entry.flags & _HAS_END_MARK else entry.size.to_bytes(8, "little")
    packed = archive.pieces(start + len(head), start + entry.packed)
    return archive.unpacked(chain([head[4:] + size], packed), lzma_alone)
