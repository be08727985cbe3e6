"""Files that deserve no trust, read and decompressed within bounds: in small pieces, and not for ever.

Python's own zipfile and tarfile are not used for them. zipfile decompresses all of what it has read of a member packed
with bzip2 or LZMA at once, which makes gigabytes of 4 KiB; tarfile keeps all headers in memory, and reads those of PAX
and GNU however long they say they are.
"""

import bz2
import errno
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, Self, TypeVar

from pipeline.text.quantity import readable_size

PIECE = 1 << 14
"""The most bytes that are read, or decompressed, at once. So many are lost before damaged data."""

MEMORY = 128 << 20
"""The most bytes that a decompressor for xz or LZMA may use. `xz -9` asks for 65 MiB."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# bz2 raises OSError for bad data; none of these comes from reading a file, as no file is read by a decompressor
_BAD_DATA = (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError)
_Made = TypeVar("_Made")


class Damaged(Exception):
    """An archive, or a file in it, is not what it should be; the message says what is wrong."""


class NoMore(Exception):
    """A limit is reached, so nothing more is taken; the message says which, to go behind "as"."""


class Allowance:
    """How much work may still be done: files that are looked at, and bytes that are read or come of decompressing."""

    def __init__(self, entries: int, size: int) -> None:
        self.entries = self._entries = entries
        self.bytes = self._bytes = size

    def look(self) -> None:
        """Count one file that is looked at. Raises NoMore if it is one too many."""
        if self.entries == 0:
            raise NoMore(f"they lie among more than {self._entries:,} files")
        self.entries -= 1

    def spend(self, size: int) -> None:
        """Count bytes that were read or made. Raises NoMore if they are too many."""
        self.bytes -= size
        if self.bytes < 0:
            raise NoMore(f"more than {readable_size(self._bytes)} would have to be read")


class SourceFile:
    """A regular file that is read; to be used as a context manager.

    Raises OSError if it cannot be opened, is a link, or is no regular file. Reading raises NoMore, and OSError.
    """

    def __init__(self, path: Path, allowance: Allowance) -> None:
        self._allowance = allowance
        self._descriptor = os.open(path, _READ)
        facts = os.fstat(self._descriptor)
        if not stat.S_ISREG(facts.st_mode):
            os.close(self._descriptor)
            raise OSError(errno.ENXIO, "it is no regular file", str(path))
        self.size = facts.st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def at(self, position: int, size: int) -> bytes:
        """The bytes at this place, as many as there are; none if the place is not in the file."""
        if not 0 <= position < self.size:
            return b""
        found = os.pread(self._descriptor, size, position)
        self._allowance.spend(len(found))
        return found

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to `end`, in pieces; fewer if the file ends before."""
        while start < end and (piece := self.at(start, min(PIECE, end - start))):
            start += len(piece)
            yield piece

    def unpacked(self, packed: Iterator[bytes], decompressor: "Callable[[], Decompressor]") -> Iterator[bytes]:
        """Decompress streams that follow each other, in pieces that count as read. Raises Damaged, also at a cut."""
        rest = next(packed, b"")
        while rest:
            stream = _sound(decompressor)
            while not stream.eof:
                if stream.needs_input and not rest and not (rest := next(packed, b"")):
                    raise Damaged("it is cut off")
                piece, rest = _decompress(stream, rest), b""
                if piece:
                    self._allowance.spend(len(piece))
                    yield piece
            rest = stream.unused_data.lstrip(b"\0")  # there may be padding between streams, and after the last
            while not rest and (piece := next(packed, b"")):
                rest = piece.lstrip(b"\0")


def _decompress(stream: "Decompressor", packed: bytes) -> bytes:
    return _sound(lambda: stream.decompress(packed, PIECE))


def _sound(work: Callable[[], _Made]) -> _Made:
    try:
        return work()
    except _BAD_DATA as error:
        raise Damaged(f"the compressed data are not sound: {error}") from error


class Decompressor(Protocol):
    """What bz2.BZ2Decompressor and lzma.LZMADecompressor have in common."""

    @property
    def eof(self) -> bool:
        """Whether the stream is at its end."""

    @property
    def needs_input(self) -> bool:
        """Whether it can give no more before it is given more."""

    @property
    def unused_data(self) -> bytes:
        """What was given to it beyond the end of the stream."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take more data, and give at most `max_length` bytes."""


class Inflate:
    """A Decompressor for deflate; `window` tells what is around it, see zlib.decompressobj."""

    def __init__(self, window: int) -> None:
        self._stream = zlib.decompressobj(window)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        """See Decompressor."""
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        """See Decompressor."""
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """See Decompressor."""
        made = self._stream.decompress(self._stream.unconsumed_tail + data, max_length)
        # What fits may be all, or there may be more in zlib's own memory
        self.needs_input = not self._stream.unconsumed_tail and len(made) < max_length
        return made


def gzip() -> Decompressor:
    """A decompressor for gzip, RFC 1952."""
    return Inflate(zlib.MAX_WBITS | 16)


def deflate() -> Decompressor:
    """A decompressor for bare deflate, RFC 1951."""
    return Inflate(-zlib.MAX_WBITS)


def bzip2() -> Decompressor:
    """A decompressor for bzip2."""
    return bz2.BZ2Decompressor()


def xz() -> Decompressor:
    """A decompressor for xz that uses at most MEMORY."""
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY)


def lzma_alone() -> Decompressor:
    """A decompressor for the format before xz, .lzma, that uses at most MEMORY."""
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, MEMORY)


class PieceReader:
    """Reads bytes that come in pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece, self._at = b"", 0

    def read(self, size: int) -> bytes:
        """The next bytes; fewer only at the end."""
        return b"".join(self._parts(size))

    def skip(self, size: int) -> bool:
        """Read these bytes and forget them. Returns whether there were so many."""
        return sum(map(len, self._parts(size))) == size

    def end(self) -> None:
        """Read all that is left, which shows whether it is sound."""
        for _ in self._pieces:
            pass

    def _parts(self, size: int) -> Iterator[bytes]:
        while size > 0:
            if self._at == len(self._piece):
                self._piece, self._at = next(self._pieces, b""), 0
                if not self._piece:
                    return
            part = self._piece[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            yield part
