"""tar streams: what is written can be read by others, and what others write can be read."""

import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreError, TransferRefused
from pipeline.ssh import sources, tar

NAMES = st.binary(min_size=1, max_size=150).filter(lambda name: not {b"/", b"\0"} & {bytes([c]) for c in name})
PATHS = st.lists(NAMES.filter(lambda name: name not in (b".", b"..")), min_size=1, max_size=3).map(b"/".join)


def in_pieces(stream: bytes, size: int) -> Callable[[], bytes]:
    """What a session reads: pieces, and nothing at the end."""
    source = io.BytesIO(stream)
    return lambda: source.read(size)


def members(reader: tar.TarReader) -> dict[bytes, bytes | None]:
    found: dict[bytes, bytes | None] = {}
    while (member := reader.next()) is not None:
        content = bytearray()
        reader.content(content.extend)
        found[member.name] = None if member.directory else bytes(content)
    return found


def plain(files: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Without files below which others lie, or that are too long."""
    return {
        name: data
        for name, data in files.items()
        if len(name) < 400 and not any(other.startswith(name + b"/") for other in files)
    }


@pytest.mark.slow
@given(st.dictionaries(PATHS, st.binary(max_size=2000), max_size=6).map(plain), st.integers(1, 5000))
def test_what_is_written_is_read_by_python_and_by_us(files: dict[bytes, bytes], size: int) -> None:
    stream = io.BytesIO()
    with tempfile.TemporaryDirectory() as directory:
        for name, data in files.items():
            path = Path(directory) / os.fsdecode(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        tar.write(sources.find(f"{directory}/"), stream.write)
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue()), encoding="utf-8", errors="surrogateescape") as archive:
        theirs = {
            member.name.encode("utf-8", "surrogateescape"): opened.read()
            for member in archive
            if (opened := archive.extractfile(member))
        }
    assert theirs == files
    assert members(tar.TarReader(in_pieces(stream.getvalue(), size))) == files


@given(st.dictionaries(PATHS, st.binary(max_size=2000), max_size=6), st.integers(1, 5000))
def test_what_python_writes_is_read(files: dict[bytes, bytes], size: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    reader = tar.TarReader(in_pieces(stream.getvalue(), size))
    assert members(reader) == files
    reader.rest()


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_nonsense_is_refused_or_read_and_nothing_else(stream: bytes, size: int) -> None:
    try:
        members(tar.TarReader(in_pieces(stream, size)))
    except TransferRefused:
        return
    assert stream[:512] == bytes(512)


@given(st.data())
def test_a_stream_with_wrong_bytes_is_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    stream = bytearray(tarfile.TarInfo("d/name" * 30).tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = members(tar.TarReader(in_pieces(bytes(stream), 600)))
    except TransferRefused:
        return
    assert len(found) <= 3


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"long enough")
    real = os.fstat

    def longer(descriptor: int) -> os.stat_result:
        fields = list(real(descriptor))
        fields[6] += 1000
        return os.stat_result(fields)

    monkeypatch.setattr("pipeline.ssh.tar.os.fstat", longer)
    with pytest.raises(StoreError, match="it became shorter while it was read"):
        tar.write(sources.find(str(tmp_path / "f")), lambda _: None)
