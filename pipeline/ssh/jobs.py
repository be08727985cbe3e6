"""Requests to an SFTP server, version 3, and transfers made of them.

A transfer is a generator, a Job: it yields requests, is sent their replies, and so on; pipeline.ssh.sftp runs many at
once. Source of the format: draft-ietf-secsh-filexfer-02, which OpenSSH's server, on Linux as on Fuchsia, implements.
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
from pipeline.text import one_line

BLOCK = 32768
"""Bytes in one read or write: the most that every server takes."""

LARGEST_REPLY = 1 << 18
"""Bytes of the largest packet that a server may send."""

_AHEAD = 8  # blocks of one file under way
_SMALLEST_NAME = 12
_MOST_NAMES = 1_000_000
_HINT = "see what the guest says: topcoat logs NAME; is its disk full, or the path wrong?"


@dataclass(frozen=True)
class Request:
    """A request: its type, what follows its number, and the path or so that it is about."""

    kind: int
    body: bytes
    about: bytes = b""


@dataclass(frozen=True)
class Reply:
    """The reply to a request."""

    request: Request
    kind: int
    message: Message
    """Its content, but for a status."""
    code: int | None
    """The status, if that is what it is."""
    words: bytes
    """What the server says of the status."""

    def expect(self, kind: int) -> Message:
        """The content, if it is of this kind. Raises CommandError: the server's words, or that it makes no sense."""
        if self.kind == kind:
            return self.message
        if self.kind == CMD_STATUS:
            raise self.refused()
        raise TransferRefused(f"the guest's SFTP server answers {self.kind} to {self.request.kind}", hint=CONSOLE)

    def done(self) -> None:
        """Raises CommandError unless it says that all is well."""
        if self.code != SFTP_OK:
            raise self.refused()

    def refused(self) -> CommandError:
        """The error for a request that was refused."""
        why = one_line(self.words) or f"the SFTP server answers {self.kind} ({self.code})"
        return CommandError(f"{one_line(self.request.about)!r} in the guest: {why}", hint=_HINT)


@dataclass(frozen=True)
class Attributes:
    """What is at a path."""

    mode: int | None
    """None if the server does not tell it."""
    size: int = 0
    """Bytes, as the guest says."""

    @property
    def directory(self) -> bool:
        """It is a directory."""
        return self.mode is not None and stat.S_ISDIR(self.mode)

    @property
    def file(self) -> bool:
        """It is a regular file."""
        return self.mode is not None and stat.S_ISREG(self.mode)

    @property
    def link(self) -> bool:
        """It is a symbolic link."""
        return self.mode is not None and stat.S_ISLNK(self.mode)


T = TypeVar("T")
Job = Generator[Sequence[Request], Sequence[Reply], T]
"""A transfer. What it yields is sent at once; it goes on with the replies, in the order of the requests."""


def text(data: bytes) -> bytes:
    """A string on the wire."""
    return struct.pack(">I", len(data)) + data


def _about(kind: int, path: bytes, more: bytes = b"") -> Request:
    return Request(kind, text(path) + more, path)


def opening(path: bytes, *, write: bool) -> Request:
    """Open a file. For writing it is made or emptied."""
    flags = SFTP_FLAG_WRITE | SFTP_FLAG_CREATE | SFTP_FLAG_TRUNC if write else SFTP_FLAG_READ
    attributes = struct.pack(">II", SFTPAttributes.FLAG_PERMISSIONS, 0o644) if write else struct.pack(">I", 0)
    return _about(CMD_OPEN, path, struct.pack(">I", flags) + attributes)


def reading(handle: bytes, path: bytes, offset: int) -> Request:
    """Read a block."""
    return Request(CMD_READ, text(handle) + struct.pack(">QI", offset, BLOCK), path)


def writing(handle: bytes, path: bytes, offset: int, data: bytes) -> Request:
    """Write a block."""
    return Request(CMD_WRITE, text(handle) + struct.pack(">Q", offset) + text(data), path)


def closing(handle: bytes, path: bytes) -> Request:
    """Close a file or directory."""
    return Request(CMD_CLOSE, text(handle), path)


def making(path: bytes) -> Request:
    """Make a directory."""
    return _about(CMD_MKDIR, path, struct.pack(">II", SFTPAttributes.FLAG_PERMISSIONS, 0o755))


def statting(path: bytes, *, follow: bool) -> Request:
    """Ask what is at a path."""
    return _about(CMD_STAT if follow else CMD_LSTAT, path)


def attributes_of(reply: Reply) -> Attributes | None:
    """What was asked for by `statting`; None if nothing is there."""
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
    """Whether the request was refused because nothing is there."""
    return reply.code == SFTP_NO_SUCH_FILE


def fetch(opened: Reply, path: bytes, write: Callable[[bytes], object]) -> Job[None]:
    """Read a file, which was opened by `opening`, to its end, whatever its size is said to be."""
    handle = opened.expect(CMD_HANDLE).get_string()
    offset, ahead = 0, 2  # a small file and its end come at once
    while True:
        replies = yield [reading(handle, path, offset + number * BLOCK) for number in range(ahead)]
        for reply in replies:
            data = _block(reply)
            write(data)
            offset += len(data)
            if len(data) < BLOCK:  # the following blocks start too late, unless this is the end
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
    """Write a file; `read` gives its content, piece by piece."""
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
    """Make a directory, unless there is one. Raises CommandError if there is something else, or it is refused."""
    (made,) = yield [making(path)]
    if made.code != SFTP_OK:
        (found,) = yield [statting(path, follow=True)]
        there = attributes_of(found)
        if there is None or not there.directory:
            raise made.refused()


def listing(path: bytes) -> Job[list[tuple[bytes, Attributes]]]:
    """The names in a directory but "." and "..", and what they are; links are not followed."""
    (opened,) = yield [_about(CMD_OPENDIR, path)]
    handle = opened.expect(CMD_HANDLE).get_string()
    found: list[tuple[bytes, Attributes]] = []
    while True:
        (reply,) = yield [Request(CMD_READDIR, text(handle), path)]
        if reply.code == SFTP_EOF:
            break
        found += _names(reply.expect(CMD_NAME))
        if len(found) > _MOST_NAMES:
            raise TransferRefused(f"{one_line(path)!r} in the guest has over {_MOST_NAMES} names", hint=CONSOLE)
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
