"""Archives of which there is one form only: the same members give the same bytes, and any other bytes are refused.

The form is a subset of POSIX's ustar (pax, "ustar Interchange Format"), which every tar can list and unpack: plain
files, with mode 0644, owner 0 and time 0, and two blocks of zeros at the end. It is not zip, because a zip says twice
what is in it, can hide bytes between its members, and unpacks to more than it is; and it is not compressed, because the
bytes of a compressor differ from version to version.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.text.printable import one_line

BLOCK = 512
"""What members are padded to, in bytes."""

END = bytes(2 * BLOCK)
"""What an archive ends with."""

LONGEST_NAME = 100
LARGEST = 8**11 - 1
"""The most bytes of a member that its header can tell."""

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
_SIZE = slice(124, 136)
_KIND = slice(156, 157)
_NAME = slice(0, 100)
_FILE = b"0"


@dataclass(frozen=True)
class ArchiveMember:
    """A member of an archive: its name, its size in bytes, and the position of its content."""

    name: str
    size: int
    start: int


def header(name: str, size: int) -> bytes:
    """Return what stands before the content of a member. Raises ValueError for a name or a size that none can have."""
    if not (name and name.isascii() and name.isprintable() and len(name) <= LONGEST_NAME and 0 <= size <= LARGEST):
        raise ValueError(f"no member can be named {one_line(name)} and have {size} bytes")
    fields = (name.encode(), b"0000644", b"0000000", b"0000000", b"%011o" % size, b"%011o" % 0)
    rest = (_FILE, b"", b"ustar", b"00", b"", b"", b"", b"", b"")
    checksum = sum(_HEADER.pack(*fields, b" " * 8, *rest))
    return _HEADER.pack(*fields, b"%06o\0 " % checksum, *rest)


def padding(size: int) -> bytes:
    """Return what stands behind the content of a member."""
    return bytes(-size % BLOCK)


def members(stream: BinaryIO, length: int) -> Iterator[ArchiveMember]:
    """Yield the members of an archive of `length` bytes in their order, without reading their contents.

    A member that is yielded is whole and padded with zeros. Nothing stands between two members, or behind the last one
    but END. The caller may move the position of the stream. Raises ValueError at the first thing that is not as it must
    be: it says what, in one clause.
    """
    position = 0
    while True:
        stream.seek(position)
        block = stream.read(BLOCK)
        if 0 < len(block) < BLOCK:
            raise ValueError("it ends within the header of a member")
        if not block.strip(b"\0"):
            break
        member = _member(block, position + BLOCK)
        position = member.start + member.size + len(padding(member.size))
        if position > length:
            raise ValueError(f"it ends within its member {member.name}")
        stream.seek(member.start + member.size)
        if stream.read(position - member.start - member.size).strip(b"\0"):
            raise ValueError(f"something stands behind its member {member.name}")
        yield member
    if block + stream.read(BLOCK + 1) != END or position + len(END) != length:
        raise ValueError("it has lost its end, or something stands behind it")


def _member(block: bytes, start: int) -> ArchiveMember:
    name, size = block[_NAME].rstrip(b"\0").decode("ascii", "replace"), block[_SIZE].rstrip(b"\0")
    if block[_KIND] != _FILE:
        raise ValueError(f"its member {one_line(name)} is a link or something else that is no file")
    try:
        member = ArchiveMember(name, int(size, 8), start)
        as_written = header(name, member.size)
    except ValueError:
        raise ValueError(f"it has a member with the name {one_line(name)}, whose header makes no sense") from None
    if block != as_written:
        raise ValueError(f"the header of its member {one_line(name)} is not as it was written")
    return member
