"""Requests to an SFTP server, version 3, and transfers made of them.

A transfer is a generator, called Job: it yields requests, is sent their replies, and so on; pipeline.ssh.sftp runs many
at once. Source of the format: draft-ietf-secsh-filexfer-02, which OpenSSH's server implements, on Linux and Fuchsia.
"""

import stat
import struct
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from paramiko import Message, SFTPAttributes
from paramiko.sftp import (
    CMD_ATTRS,
    CMD_CLOSE,
    CMD_DATA,
    CMD_HANDLE,
    CMD_LSTAT,
    CMD_MKDIR,
    CMD_NAME,
    CMD_OPEN,
    CMD_OPENDIR,
    CMD_READ,
    CMD_READDIR,
    CMD_STAT,
    CMD_STATUS,
    CMD_WRITE,
    SFTP_EOF,
    SFTP_FLAG_CREATE,
    SFTP_FLAG_READ,
    SFTP_FLAG_TRUNC,
    SFTP_FLAG_WRITE,
    SFTP_NO_SUCH_FILE,
    SFTP_OK,
)

from pipeline.errors import CommandError, TransferRefused
from pipeline.ssh.session import CONSOLE
from pipeline.text.printable import one_line

BLOCK = 32768
"""The bytes of one read or write: the most that every server takes."""

LARGEST_REPLY = 1 << 18
"""The bytes of the largest packet that an SFTP server may send."""

_AHEAD = 8  # blocks of one file that are under way at most
_SMALLEST_NAME = 12
_MOST_NAMES = 200_000  # in one directory; below, the bytes of all of them
_MOST_BYTES = 16 << 20
_HINT = "see what the guest says: topcoat logs NAME; is its disk full, or the path wrong?"


@dataclass(frozen=True)
class SftpRequest:
    """A request: its SFTP type, the bytes behind its number, and the path that it is about, for errors."""

    kind: int
    body: bytes
    about: bytes = b""


@dataclass(frozen=True)
class Reply:
    """The reply to a request; `kind` is its SFTP type."""

    request: SftpRequest
    kind: int
    message: Message
    """The content of the reply. If the reply is a status, it has been read already, into `code` and `words`."""
    code: int | None
    """The status code of SFTP; None if the reply is not a status."""
    words: bytes
    """What the server says about the status; empty if the reply is not a status."""

    def expect(self, kind: int) -> Message:
        """Return the content of a reply of this kind. Raises CommandError for a status, TransferRefused for others."""
        if self.kind == kind:
            return self.message
        if self.kind == CMD_STATUS:
            raise self.refused()
        raise TransferRefused(f"the guest's SFTP server answers {self.kind} to {self.request.kind}", hint=CONSOLE)

    def done(self) -> None:
        """Raise CommandError unless the reply is the status that all is well."""
        if self.code != SFTP_OK:
            raise self.refused()

    def refused(self) -> CommandError:
        """Make the error for a request that was refused, in the server's words if it has any."""
        why = one_line(self.words) or f"the SFTP server answers {self.kind} ({self.code})"
        return CommandError(f"{one_line(self.request.about)!r} in the guest: {why}", hint=_HINT)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is at a path in the guest, as far as its server tells."""

    mode: int | None
    """Type and permissions, as in stat(2); None if the server does not tell them."""
    size: int = 0
    """The size in bytes that the guest claims; 0 if it claims none."""

    @property
    def directory(self) -> bool:
        """Whether it is a directory."""
        return self.mode is not None and stat.S_ISDIR(self.mode)

    @property
    def file(self) -> bool:
        """Whether it is a regular file."""
        return self.mode is not None and stat.S_ISREG(self.mode)

    @property
    def link(self) -> bool:
        """Whether it is a symbolic link."""
        return self.mode is not None and stat.S_ISLNK(self.mode)


T = TypeVar("T")
Job = Generator[Sequence[SftpRequest], Sequence[Reply], T]
"""A transfer. All requests of one yield are sent together; it goes on with their replies, in the same order."""


def text(data: bytes) -> bytes:
    """Encode a string as SFTP does: four bytes for its length, then its bytes."""
    return struct.pack(">I", len(data)) + data


def _about(kind: int, path: bytes, more: bytes = b"") -> SftpRequest:
    return SftpRequest(kind, text(path) + more, path)


def opening(path: bytes, *, write: bool) -> SftpRequest:
    """Make the request to open a file. A file that is opened for writing is made, or emptied."""
    flags = SFTP_FLAG_WRITE | SFTP_FLAG_CREATE | SFTP_FLAG_TRUNC if write else SFTP_FLAG_READ
    attributes = struct.pack(">II", SFTPAttributes.FLAG_PERMISSIONS, 0o644) if write else struct.pack(">I", 0)
    return _about(CMD_OPEN, path, struct.pack(">I", flags) + attributes)


def reading(handle: bytes, path: bytes, offset: int) -> SftpRequest:
    """Make the request to read BLOCK bytes of an open file, from the byte `offset` on."""
    return SftpRequest(CMD_READ, text(handle) + struct.pack(">QI", offset, BLOCK), path)


def writing(handle: bytes, path: bytes, offset: int, data: bytes) -> SftpRequest:
    """Make the request to write data to an open file, from the byte `offset` on; at most BLOCK bytes."""
    return SftpRequest(CMD_WRITE, text(handle) + struct.pack(">Q", offset) + text(data), path)


def closing(handle: bytes, path: bytes) -> SftpRequest:
    """Make the request to close a file or directory."""
    return SftpRequest(CMD_CLOSE, text(handle), path)


def making(path: bytes) -> SftpRequest:
    """Make the request to make a directory."""
    return _about(CMD_MKDIR, path, struct.pack(">II", SFTPAttributes.FLAG_PERMISSIONS, 0o755))


def statting(path: bytes, *, follow: bool) -> SftpRequest:
    """Make the request to tell what is at a path; `follow` says whether a link counts as what it leads to."""
    return _about(CMD_STAT if follow else CMD_LSTAT, path)


def attributes_of(reply: Reply) -> Attributes | None:
    """Read the reply to `statting`; None if nothing is there. Raises CommandError."""
    return None if is_gone(reply) else _attributes(reply.expect(CMD_ATTRS))


def _attributes(message: Message) -> Attributes:
    flags = message.get_int()
    size = message.get_int64() if flags & SFTPAttributes.FLAG_SIZE else 0
    if flags & SFTPAttributes.FLAG_UIDGID:
        message.get_bytes(8)
    mode = message.get_int() if flags & SFTPAttributes.FLAG_PERMISSIONS else None
    if flags & SFTPAttributes.FLAG_AMTIME:
        message.get_bytes(8)
    if flags & SFTPAttributes.FLAG_EXTENDED:
        raise TransferRefused("the guest's SFTP server tells attributes that nobody asked for", hint=CONSOLE)
    return Attributes(mode, size)


def is_gone(reply: Reply) -> bool:
    """Whether a request was refused because nothing is at its path."""
    return reply.code == SFTP_NO_SUCH_FILE


def fetch(opened: Reply, path: bytes, write: Callable[[bytes], object]) -> Job[None]:
    """Read a file to its end, whatever size it claims to have; `opened` is the reply to `opening`.

    `write` gets the content, piece by piece.
    """
    handle = opened.expect(CMD_HANDLE).get_string()
    offset, ahead = 0, 2  # a small file and its end come at once
    while True:
        replies = yield [reading(handle, path, offset + number * BLOCK) for number in range(ahead)]
        for reply in replies:
            data = _block(reply)
            write(data)
            offset += len(data)
            if len(data) < BLOCK:  # after a short block the offsets of the next ones are wrong, unless it is the end
                break
        if not data:
            break
        ahead = 1 if len(data) < BLOCK else min(2 * ahead, _AHEAD)
    yield [closing(handle, path)]


def _block(reply: Reply) -> bytes:
    if reply.code == SFTP_EOF:
        return b""
    data = reply.expect(CMD_DATA).get_string()
    if not 0 < len(data) <= BLOCK:
        raise TransferRefused(f"the guest sends {len(data)} bytes where 1 to {BLOCK} were asked for", hint=CONSOLE)
    return data


def store(path: bytes, read: Callable[[int], bytes]) -> Job[None]:
    """Write a file; `read` gives its content, at most as many bytes as it is asked for, and nothing at the end."""
    (opened,) = yield [opening(path, write=True)]
    handle = opened.expect(CMD_HANDLE).get_string()
    offset = 0
    while data := read(BLOCK * _AHEAD):
        pieces = range(0, len(data), BLOCK)
        replies = yield [writing(handle, path, offset + at, data[at : at + BLOCK]) for at in pieces]
        for reply in replies:
            reply.done()
        offset += len(data)
    (closed,) = yield [closing(handle, path)]
    closed.done()


def make(path: bytes) -> Job[None]:
    """Make a directory, unless there is one. Raises CommandError if that is refused, or something else is there."""
    (made,) = yield [making(path)]
    if made.code != SFTP_OK:
        (found,) = yield [statting(path, follow=True)]
        there = attributes_of(found)
        if there is None or not there.directory:
            raise made.refused()


def listing(path: bytes) -> Job[list[tuple[bytes, Attributes]]]:
    """List the names in a directory, without "." and "..", and what each is; links are not followed."""
    (opened,) = yield [_about(CMD_OPENDIR, path)]
    handle = opened.expect(CMD_HANDLE).get_string()
    found: list[tuple[bytes, Attributes]] = []
    size = 0
    while True:
        (reply,) = yield [SftpRequest(CMD_READDIR, text(handle), path)]
        if reply.code == SFTP_EOF:
            break
        names = _names(reply.expect(CMD_NAME))
        found += names
        size += sum(len(name) for name, _ in names)
        if len(found) > _MOST_NAMES or size > _MOST_BYTES:
            most = f"{_MOST_NAMES:,} names, or {_MOST_BYTES >> 20} MiB of them"
            raise TransferRefused(f"{one_line(path)!r} in the guest has more than {most}", hint=CONSOLE)
    yield [closing(handle, path)]
    return [(name, attributes) for name, attributes in found if name not in (b".", b"..")]


def _names(message: Message) -> list[tuple[bytes, Attributes]]:
    count = message.get_int()
    if not 0 < count <= LARGEST_REPLY // _SMALLEST_NAME:
        raise TransferRefused(f"the guest's SFTP server announces {count} names", hint=CONSOLE)
    found = []
    for _ in range(count):
        name, _ = message.get_string(), message.get_string()
        if not name or b"/" in name or b"\0" in name:
            raise TransferRefused(f"the guest sends a name that is none: {one_line(name)!r}", hint=CONSOLE)
        found.append((name, _attributes(message)))
    return found
