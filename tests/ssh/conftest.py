"""A real SSH server on loopback, its key, and connectors to it."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from pipeline.builds import ssh_keys
from pipeline.settings import Timeouts
from pipeline.ssh.address import Address
from pipeline.ssh.connector import Connector, Retries
from pipeline.ssh.landing import TransferLimits
from tests.fakes import sshd
from tests.waiting import SOON

PATIENT = Timeouts(connect=SOON, banner=SOON, auth=SOON)
HASTY = replace(PATIENT, banner=0.5)
PROMPT = Retries(attempts=6, pause=0.01, limit=SOON)

FILES: dict[str, bytes | None] = {
    "d/a": b"first",
    "d/b": b"",
    "d/.hidden": b"dot",
    "d/with blank": b"blank",
    "d/new\nline": b"newline",
    "d/'quotes\"$(x)`": b"quotes",
    "d/-dash": b"dash",
    "d/*": b"star",
    "d/umläut": b"\xc3",
    "d/inner/deep/file": bytes(range(256)) * 1000,
    "d/inner/other": b"other",
    "d/empty": None,
    "d/" + "l" * 200: b"long name",
    "d/inner/" + "m" * 120 + "/" + "n" * 120: b"long path",
    "outside": b"outside",
}


def written(directory: Path, kind: ssh_keys.KeyType) -> Path:
    """A key pair in the directory; returns the private one's path."""
    private, public = ssh_keys.generate(kind)
    (directory / "sshid").write_bytes(private)
    (directory / "sshid.pub").write_bytes(public)
    return directory / "sshid"


def address(server: sshd.Server, key: Path) -> Address:
    return Address("127.0.0.1", server.port, "clusterfuchsia", str(key), server.host_key_line)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return written(tmp_path, "ed25519")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory that the server serves."""
    made = tmp_path / "guest"
    made.mkdir()
    return made


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory of the host's."""
    made = tmp_path / "host"
    made.mkdir()
    return made


@pytest.fixture
def server(key: Path, root: Path) -> Iterator[sshd.Server]:
    with sshd.running(key.with_suffix(".pub").read_text().strip(), root) as running:
        yield running


@pytest.fixture
def connector(server: sshd.Server, key: Path) -> Iterator[Connector]:
    """A connector to the server. It leaves no thread."""
    before = set(threading.enumerate())
    made = Connector(address(server, key), PATIENT, PROMPT, TransferLimits(stall=SOON))
    yield made
    made.close()
    left = set(threading.enumerate()) - before - set(server.transports)
    assert [thread for thread in left if isinstance(thread, paramiko.Transport)] == []


@pytest.fixture(params=["tar", "sftp"])
def way(request: pytest.FixtureRequest, server: sshd.Server, tmp_path: Path) -> str:
    """Transfers by both ways: a server with tar, and one without."""
    if request.param == "sftp":
        program(server, tmp_path, "tar", "exit 127")
    return str(request.param)


def program(server: sshd.Server, tmp_path: Path, name: str, script: str) -> None:
    """Give the server a program."""
    server.programs = tmp_path / "programs"
    server.programs.mkdir(exist_ok=True)
    (server.programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (server.programs / name).chmod(0o755)


def tree(directory: Path) -> dict[str, bytes | None]:
    """All that is in the directory: content by relative name, None for directories."""
    found = sorted(directory.rglob("*"))
    return {str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes() for path in found}


def make(directory: Path, files: dict[str, bytes | None]) -> Path:
    """Files by relative name; None is a directory."""
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(data)
    return directory


def below(prefix: str, files: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """What `tree` finds in a directory with these files, as far as they begin so, without the prefix."""
    found: dict[str, bytes | None] = {}
    for name, data in files.items():
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            found |= {str(parent): None for parent in Path(rest).parents if str(parent) != "."}
            found[rest] = data
    return dict(sorted(found.items()))
