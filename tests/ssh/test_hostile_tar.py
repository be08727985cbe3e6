"""A tar in the guest that lies, never ends, stops, or fails."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import CommandExited, CommandTimeout, TransferRefused
from pipeline.ssh.connector import Connector
from pipeline.ssh.landing import TransferLimits
from tests.fakes import sshd
from tests.ssh.conftest import FILES, PATIENT, PROMPT, address, make, program, tree


def archive(*members: tuple[str, bytes, bytes]) -> bytes:
    """A tar stream with members (name, type, content)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as written:
        for name, kind, data in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(data), "/etc/passwd"
            written.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def sending(server: sshd.Server, tmp_path: Path, stream: bytes, more: str = "") -> None:
    """The guest's tar sends this."""
    (tmp_path / "stream").write_bytes(stream)
    script = f'[ "$1" = --version ] && echo "tar (GNU tar)" && exit\ncat {tmp_path}/stream\n{more}'
    program(server, tmp_path, "tar", script)


FILE, DIRECTORY = tarfile.REGTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "stream",
    [
        archive(("../escaped", FILE, b"x")),
        archive(("d/../../escaped", FILE, b"x")),
        archive(("/escaped", FILE, b"x"), ("d/..", FILE, b"x")),
        archive(("other", FILE, b"x")),
        archive(("d/" + "x" * 256, FILE, b"x")),
        archive(("d/" + "x/" * 100 + "y", FILE, b"x")),
        archive(("d//../x", DIRECTORY, b"")),
        archive(("d", FILE, b"x" * 2000))[:1000],
        archive(("d/" + "y" * 300_000, FILE, b"x")),
        b"no archive at all" * 1000,
        b"",
        archive(("d/x", FILE, b"x"))[:124] + b"-1\0        " + archive(("d/x", FILE, b"x"))[135:],
    ],
)
def test_hostile_streams_change_nothing_outside(
    server: sshd.Server, connector: Connector, root: Path, here: Path, tmp_path: Path, stream: bytes
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, stream)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(TransferRefused) as failure:
        connector.get("d", here)
    assert failure.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not Path("/escaped").exists()
    assert [name for name in tree(here) if name != "d"] == []


def test_an_absolute_name_in_a_stream_lands_inside_or_not_at_all(
    server: sshd.Server, connector: Connector, root: Path, here: Path, tmp_path: Path
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, archive((f"{tmp_path}/escaped", FILE, b"x")))
    with pytest.raises(TransferRefused):
        connector.get("d", here)
    assert not (tmp_path / "escaped").exists()


def test_a_link_in_a_stream_and_then_a_file_through_it(
    server: sshd.Server, connector: Connector, root: Path, here: Path, tmp_path: Path
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, archive(("d/l", tarfile.SYMTYPE, b""), ("d/l/passwd", FILE, b"x"), ("d/n", FILE, b"n")))
    connector.get("d", here)
    assert tree(here) == {"d": None, "d/l": None, "d/l/passwd": b"x", "d/n": b"n"}


@pytest.mark.slow
def test_an_endless_stream_ends_at_the_limit(
    server: sshd.Server, key: Path, root: Path, here: Path, tmp_path: Path
) -> None:
    (root / "d").mkdir()
    member = tarfile.TarInfo("d/x")
    member.size = 1 << 32
    sending(server, tmp_path, member.tobuf(tarfile.GNU_FORMAT), "exec cat /dev/zero")
    strict = Connector(address(server, key), PATIENT, PROMPT, TransferLimits(bytes=1_000_000))
    with pytest.raises(TransferRefused, match="more than 1000000 bytes"):
        strict.get("d", here)
    strict.close()
    assert tree(here) == {"d": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        archive(("d/" + "y" * 120, FILE, b""))[:1024],  # the name of a name of a name
        archive(("d/x", FILE, b"x"))[:2048] + bytes(10240),  # something behind the end
        archive(("d/x", FILE, b"x"))[:1024] * 3,
        archive(("d/x", DIRECTORY, b""))[:512],
    ],
)
def test_a_stream_that_goes_on_for_ever_does_not(
    server: sshd.Server, key: Path, root: Path, here: Path, tmp_path: Path, start: bytes
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, start, f"while cat {tmp_path}/stream; do :; done")
    strict = Connector(address(server, key), PATIENT, PROMPT, TransferLimits(entries=100))
    with pytest.raises(TransferRefused):
        strict.get("d", here)
    strict.close()


@pytest.mark.slow
def test_a_marker_of_endless_size(server: sshd.Server, key: Path, root: Path, here: Path, tmp_path: Path) -> None:
    (root / "d").mkdir()
    member = tarfile.TarInfo("d/.live_corpus")
    member.size = 1 << 32
    sending(server, tmp_path, member.tobuf(tarfile.GNU_FORMAT), "exec cat /dev/zero")
    strict = Connector(address(server, key), PATIENT, PROMPT, TransferLimits(bytes=1_000_000))
    with pytest.raises(TransferRefused, match="more than 1000000 bytes"):
        strict.get("d", here)
    strict.close()


def test_a_stream_that_stops_is_given_up(
    server: sshd.Server, key: Path, root: Path, here: Path, tmp_path: Path
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, archive(("d/x", FILE, b"x" * 2000))[:1000], "exec sleep 1020")
    hasty = Connector(address(server, key), PATIENT, PROMPT, TransferLimits(stall=0.5))
    with pytest.raises(CommandTimeout) as failure:
        hasty.get("d", here)
    hasty.close()
    assert failure.value.ended
    assert tree(here) == {"d": None}


def test_tar_that_fails_at_the_end_is_told(
    server: sshd.Server, connector: Connector, root: Path, here: Path, tmp_path: Path
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, archive(("d/x", FILE, b"x")), "echo d/y: vanished >&2; exit 1")
    with pytest.raises(CommandExited, match="vanished"):
        connector.get("d", here)
    assert tree(here) == {"d": None, "d/x": b"x"}


def test_a_tar_that_cannot_store_is_told_with_its_words(
    server: sshd.Server, connector: Connector, here: Path, tmp_path: Path
) -> None:
    make(here, FILES | {"d/large": os.urandom(9_000_000)})
    sending(server, tmp_path, b"", "echo no space left >&2; exit 1")
    with pytest.raises(CommandExited, match="no space left"):
        connector.put(str(here / "d"), "to")
