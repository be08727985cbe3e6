"""tar streams: written for a guest, and read from one that is not to be trusted.

Source of the format: POSIX ustar, with GNU's long names ("L"), as busybox and GNU tar write it. tarfile's own reader is
not used, because it takes as much memory for a name as the stream says.
"""

import errno
import os
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.errors import TransferRefused
from pipeline.host.faults import host_faults
from pipeline.ssh.sources import Upload
from pipeline.text.goglob import decoded, encoded

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1 << 16
_LONGEST_NAME = 1 << 14
_LONGEST_RECORD = 1 << 20
_END = bytes(_BLOCK)
_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


def write(sources: Iterable[Upload], send: Callable[[bytes], object]) -> None:
    """Write a stream of the files and the empty directories; other directories are made by what is in them.

    `send` gets the stream in pieces. Raises StoreError if a file cannot be read, or becomes shorter meanwhile.
    """
    pieces = bytearray()

    def gathered(data: bytes) -> None:
        nonlocal pieces
        pieces += data
        if len(pieces) >= _PIECE:
            send(bytes(pieces))
            pieces = bytearray()

    for source in sources:
        if source.directory:
            if source.empty and source.arrives:
                gathered(_header(source, 0, 0))
        else:
            with host_faults("reading what is to be put into the guest", "file"):
                _write_file(source, gathered)
    send(bytes(pieces) + _END * 2)


def _write_file(source: Upload, send: Callable[[bytes], object]) -> None:
    with source.opened() as stream:
        about = os.fstat(stream.fileno())
        send(_header(source, about.st_size, int(about.st_mtime)))
        left = about.st_size
        while left:
            data = stream.read(min(left, _PIECE))
            if not data:
                raise OSError(errno.EIO, "it became shorter while it was read", str(source.path))
            send(data)
            left -= len(data)
    send(bytes(-about.st_size % _BLOCK))


def _header(source: Upload, size: int, modified: int) -> bytes:
    member = tarfile.TarInfo(decoded(source.arrives))
    member.size, member.mtime = size, max(0, modified)
    member.type = tarfile.DIRTYPE if source.directory else tarfile.REGTYPE
    member.mode = 0o755 if source.directory else 0o644
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


@dataclass(frozen=True)
class Member:
    """An entry of a tar stream."""

    name: bytes
    size: int
    """The bytes of content that follow it."""
    file: bool
    directory: bool


class TarReader:
    """Reads the entries of a tar stream, one after the other; content must be taken before the next entry, or is lost.

    `read` returns the next bytes of the stream, and nothing at its end. All methods raise TransferRefused for what is
    no tar stream.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._buffer = bytearray()
        self._left = self._padding = 0

    def next(self) -> Member | None:
        """Return the next entry; None at the end of the archive."""
        self.content(lambda _: None)
        names: dict[bytes, bytes] = {}
        while True:
            header = self._exactly(_BLOCK)
            if header == _END:
                return None
            member = _parsed(header)
            self._left, self._padding = member.size, -member.size % _BLOCK
            if member.type not in _NAMES:
                return self._member(member, names.get(tarfile.GNUTYPE_LONGNAME))
            if member.type in names:  # it could go on like that for ever
                raise TransferRefused("the guest sends a name for a name", hint=_HINT)
            names[member.type] = self._name()

    def _member(self, member: tarfile.TarInfo, long_name: bytes | None) -> Member:
        name = encoded(member.name) if long_name is None else long_name
        file, directory = member.type in _PLAIN, member.type == tarfile.DIRTYPE
        if not file:
            self._left = self._padding = 0  # whatever it says, nothing follows
        return Member(name.rstrip(b"/"), self._left, file, directory)

    def _name(self) -> bytes:
        if self._left > _LONGEST_NAME:
            raise TransferRefused(f"the guest sends a name of {self._left} bytes", hint=_HINT)
        name = bytearray()
        self.content(name.extend)
        return bytes(name).partition(b"\0")[0]

    def rest(self) -> None:
        """Read what follows the end of the archive and fills up its last record."""
        most = _LONGEST_RECORD
        while most > 0 and (data := self._read()):
            most -= len(data)
        if most <= 0:
            raise TransferRefused("the guest's files do not end where they end", hint=_HINT)

    def content(self, write: Callable[[bytes], object]) -> None:
        """Pass the content of the current entry to `write`, piece by piece."""
        while self._left:
            data = self._some(self._left)
            self._left -= len(data)
            write(data)
        self._exactly(self._padding)
        self._padding = 0

    def _some(self, most: int) -> bytes:
        if not self._buffer:
            self._buffer += self._more()
        taken = bytes(self._buffer[:most])
        del self._buffer[:most]
        return taken

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += self._more()
        return self._some(size) if size else b""

    def _more(self) -> bytes:
        data = self._read()
        if not data:
            raise TransferRefused("the guest's files end too early", hint=_HINT)
        return data


def _parsed(header: bytes) -> tarfile.TarInfo:
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise TransferRefused(f"the guest sends no tar stream: {error}", hint=_HINT) from error
    if member.size < 0:
        raise TransferRefused(f"the guest sends a file of {member.size} bytes", hint=_HINT)
    return member


_HINT = "see what the guest says: topcoat logs NAME; do not trust what came from it"
