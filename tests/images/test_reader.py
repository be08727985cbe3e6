"""Opening a file to look into it: nothing blocks, nothing is read beyond the end."""

import os
import socket
from io import BytesIO
from pathlib import Path

import pytest

from pipeline.errors import ImageDamaged, StoreError, UsageError
from pipeline.images.reader import ImageReader, opened
from pipeline.store.digests import digest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(1, 101)) * 30_000)
    return path


def test_exactly_what_was_asked_for(file: Path) -> None:
    with opened(file) as source:
        assert source.size == 3_000_000
        assert source.at(98, 4) == b"\x63\x64\x01\x02"
        assert source.at(3_000_000, 0) == b""
        assert source.digest(0, source.size) == digest(file)


def test_holes_are_found_and_reading_goes_on_where_it_was(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(1 << 30)
        stream.seek((1 << 30) - 1)
        stream.write(b"x")
        stream.truncate(2 << 30)
    with opened(file) as source:
        assert source.at(0, 2) == b"\1\2"
        assert source.after_hole(2) == 2
        assert 3_000_000 < source.after_hole(1 << 29) < 1 << 30
        assert source.after_hole(1 << 30) == 2 << 30
        assert source.at(2, 200_000) == (bytes(range(1, 101)) * 3000)[2:200_002]


@pytest.mark.parametrize(("offset", "length", "there"), [(2_999_999, 2, 1), (2**63, 1, 0), (0, 2**63, 3_000_000)])
def test_beyond_the_end(file: Path, offset: int, length: int, there: int) -> None:
    with opened(file) as source:
        assert not source.holds(offset, length)
        with pytest.raises(ImageDamaged, match=f"cut off: {there} bytes, expected {length}") as caught:
            source.at(offset, length)
        assert caught.value.offset == offset
        with pytest.raises(ImageDamaged):
            source.digest(offset, length)


def test_a_file_that_shrinks_while_it_is_read(file: Path) -> None:
    with opened(file) as source:
        os.truncate(file, 1_500_000)
        with pytest.raises(ImageDamaged, match="cut off: 0 bytes, expected 4"):
            source.at(2_000_000, 4)
        with pytest.raises(ImageDamaged, match="cut off"):
            source.digest(0, source.size)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        sorts = {pipe: "named pipe", tmp_path: "directory", Path("/dev/zero"): "character device"}
        for path, sort in {**sorts, tmp_path / "socket": "socket"}.items():
            with pytest.raises(UsageError, match=f"is a {sort}, not a file"), opened(path):
                pass


@pytest.mark.parametrize("name", ["missing", "x" * 300, "image/below", "loop"])
def test_what_cannot_be_opened(file: Path, name: str) -> None:
    (file.parent / "loop").symlink_to("loop")
    with pytest.raises(UsageError) as caught, opened(file.parent / name):
        pass
    assert "is the path right" in caught.value.hint


def test_a_hostile_name_does_not_reach_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught, opened(tmp_path / "\x1b]0;x\x07name"):
        pass
    assert "\x1b" not in str(caught.value)


def test_a_disk_that_cannot_be_read_is_the_host_s_fault(file: Path) -> None:
    with opened(file) as source:
        source.stream.close()
        broken = ImageReader(_Broken(source.stream.name), source.size)
    with pytest.raises(StoreError, match=r"reading .*image: Input/output error"):
        broken.at(0, 1)


class _Broken(BytesIO):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(5, "Input/output error")
