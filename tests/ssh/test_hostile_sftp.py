"""An SFTP server that lies about names, sizes and content."""

import itertools
import tracemalloc
from pathlib import Path

import paramiko
import pytest
from paramiko.message import Message
from paramiko.sftp import CMD_HANDLE, CMD_NAME, CMD_READDIR
from paramiko.sftp_attr import SFTPAttributes

from pipeline.errors import CommandError, NoMatch, TransferRefused
from pipeline.ssh import jobs
from pipeline.ssh.connector import Connector
from pipeline.ssh.landing import TransferLimits
from tests.fakes import sshd
from tests.ssh.conftest import PATIENT, PROMPT, address, make, program, tree


class Liar(sshd.Files):
    """Names that are none."""

    names = ("../escaped", "/escaped", "a/b", "", "x\0y")
    name = ""

    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes] | int:
        found = paramiko.SFTPAttributes()
        found.filename, found.st_mode = self.name, 0o100644
        return [found]


@pytest.mark.parametrize("name", Liar.names)
@pytest.mark.parametrize("pattern", ["d", "d/*", "d/[^x]*"])
def test_hostile_names_by_sftp(
    server: sshd.Server, connector: Connector, root: Path, here: Path, tmp_path: Path, name: str, pattern: str
) -> None:
    program(server, tmp_path, "tar", "exit 127")
    (root / "d").mkdir()
    server.sftp = type("Named", (Liar,), {"name": name})
    with pytest.raises((TransferRefused, NoMatch)):
        connector.get(pattern, here)
    assert set(tree(here)) <= {"d"}
    assert not (tmp_path / "escaped").exists()


class Wrong(paramiko.SFTPHandle):
    """Answers reads with what nobody asked for."""

    how = ""

    def read(self, offset: int, length: int) -> bytes | int:
        if self.how == "more":
            return bytes(length + 1)
        if self.how == "endless":
            return bytes(length)
        return paramiko.SFTPServer.convert_errno(5)


class Sizes(sshd.Files):
    how = ""

    def stat(self, path: str) -> paramiko.SFTPAttributes | int:
        found = super().stat(path)
        if isinstance(found, paramiko.SFTPAttributes):
            found.st_size = 1 << 50
        return found

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> paramiko.SFTPHandle | int:
        if self.how == "true":
            return super().open(path, flags, attr)
        handle: paramiko.SFTPHandle = type("How", (Wrong,), {"how": self.how})(flags)
        return handle


@pytest.mark.parametrize("how", ["more", "endless", "error"])
def test_lies_about_content_by_sftp(server: sshd.Server, key: Path, root: Path, here: Path, how: str) -> None:
    make(root, {"f": b"f"})
    server.sftp = type("How", (Sizes,), {"how": how})
    strict = Connector(address(server, key), PATIENT, PROMPT, TransferLimits(bytes=1_000_000))
    with pytest.raises(CommandError):
        strict.get("f", here)
    strict.close()
    assert tree(here) == {}


def test_what_a_server_says_of_sizes_does_not_matter(
    server: sshd.Server, connector: Connector, root: Path, here: Path
) -> None:
    make(root, {"f": b"f" * 100_000, "g": b"f" * 32768, "h": b"f" * 65536, "i": b"f" * 32769})
    server.sftp = type("How", (Sizes,), {"how": "true"})
    connector.get("[fghi]", here)
    assert tree(here) == tree(root)


ASKED = jobs.SftpRequest(CMD_READDIR, b"", b"d")


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 40, 255, 100_000])
def test_a_directory_without_an_end(length: int) -> None:
    """A million names, or longer ones than any file has: what is kept of them is bounded."""
    listed = jobs.listing(b"d")
    next(listed)
    tracemalloc.start()
    try:
        listed.send([jobs.Reply(ASKED, CMD_HANDLE, Message(b"\0\0\0\1x"), None, b"")])
        with pytest.raises(TransferRefused, match=r"'d' in the guest has more than 200,000 names, or 16 MiB of them"):
            feed(listed, length)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def feed(listed: jobs.Job[list[tuple[bytes, jobs.Attributes]]], length: int) -> None:
    for first in itertools.count(0, 1000):
        listed.send([jobs.Reply(ASKED, CMD_NAME, names(first, length), None, b"")])


def names(first: int, length: int) -> Message:
    """A reply with as many names of this length as it can hold, but at most a thousand."""
    count = min(1000, jobs.LARGEST_REPLY // (length + 24))
    message = Message()
    message.add_int(count)
    for number in range(first, first + count):
        message.add_string(f"{number}".zfill(length))
        message.add_string("")
        message.add_int(SFTPAttributes.FLAG_SIZE | SFTPAttributes.FLAG_PERMISSIONS)
        message.add_int64((1 << 60) + number)
        message.add_int(0o100644)
    message.rewind()
    return message
