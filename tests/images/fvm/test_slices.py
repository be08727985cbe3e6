"""Contents of files by data and holes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageDamaged
from pipeline.images.fvm import slices
from pipeline.images.fvm.slices import Extents, Stretch
from tests.images.fvm.volumes import contents, memory

PAGE = 4096
MIB = 1 << 20


def sparse(path: Path, size: int, parts: dict[int, bytes]) -> Path:
    with path.open("wb") as stream:
        for start, data in parts.items():
            stream.seek(start)
            stream.write(data)
        stream.truncate(size)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return sparse(tmp_path / "source", 8 * MIB, {MIB: b"a" * 70_000, 5 * MIB: b"b" * 4096})


def copied(source: Path, target: Path, start: int, size: int, at: int) -> None:
    with source.open("rb") as one, target.open("wb") as two:
        slices.copy(one.fileno(), start, two.fileno(), at, size)
        two.truncate(at + size)


def test_data_and_holes_of_a_file(source: Path) -> None:
    with source.open("rb") as stream:
        found = list(Extents(stream.fileno()).within(100, 8 * MIB))
    assert found == [
        Stretch(100, MIB, data=False),
        Stretch(MIB, MIB + 73728, data=True),
        Stretch(MIB + 73728, 5 * MIB, data=False),
        Stretch(5 * MIB, 5 * MIB + PAGE, data=True),
        Stretch(5 * MIB + PAGE, 8 * MIB, data=False),
    ]


def test_a_stretch_is_found_again_when_one_goes_back(source: Path) -> None:
    with source.open("rb") as stream:
        extents = Extents(stream.fileno())
        assert extents.at(6 * MIB).end == 2**63
        assert extents.at(MIB + 1).data
        assert not extents.at(0).data


def test_holes_stay_holes_and_data_moves(source: Path, tmp_path: Path) -> None:
    copied(source, tmp_path / "copy", MIB // 2, 7 * MIB, 3 * MIB)
    assert (tmp_path / "copy").read_bytes() == bytes(3 * MIB) + source.read_bytes()[MIB // 2 :][: 7 * MIB]
    assert (tmp_path / "copy").stat().st_blocks <= source.stat().st_blocks


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_what_the_kernel_refuses_to_copy_is_copied_by_hand(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = []

    def refuse(*_: object) -> int:
        calls.append(number)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    copied(source, tmp_path / "copy", 0, 8 * MIB, 0)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert len(calls) == 1, "not asked again"


def test_other_errors_are_not_hidden(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left"):
        copied(source, tmp_path / "copy", 0, 8 * MIB, 0)


def test_the_kernel_may_copy_less_at_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.copy_file_range

    def part(source: int, target: int, count: int, here: int, there: int) -> int:
        return whole(source, target, min(count, 1000), here, there)

    monkeypatch.setattr(os, "copy_file_range", part)
    copied(source, tmp_path / "copy", MIB, 2 * MIB, 0)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()[MIB : 3 * MIB]


def test_a_write_may_take_less_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, start: whole(descriptor, data[:7], start))
    with memory() as stream:
        slices.write(stream.fileno(), 3, b"a longer text than that")
        assert contents(stream) == bytes(3) + b"a longer text than that"


@pytest.mark.parametrize("work", [
    lambda source, target: slices.copy(source, 7 << 20, target, 0, MIB + 1),
    lambda source, _: slices.digest(source, [(5 << 20, PAGE + (3 << 20))]),
], ids=["copy of a hole", "digest of a hole"])  # fmt: skip
def test_behind_the_end_there_are_no_zeros(source: Path, tmp_path: Path, work: Callable[[int, int], object]) -> None:
    said = pytest.raises(ImageDamaged, match=r"^at byte 0x800000: the file is cut off: another program")
    with source.open("rb") as one, (tmp_path / "target").open("wb") as two, said:
        work(one.fileno(), two.fileno())


def test_a_file_that_is_cut_off_while_it_is_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    with pytest.raises(ImageDamaged, match="the file is cut off"):
        copied(source, tmp_path / "copy", 0, 8 * MIB, 0)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3 * MIB), st.integers(0, MIB)), max_size=4))
def test_a_digest_is_that_of_the_bytes(tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]]) -> None:
    path = sparse(tmp_path_factory.mktemp("digest") / "file", 4 * MIB, {MIB: b"data" * 1000, 2 * MIB: b"x" * 9000})
    content = path.read_bytes()
    wanted = b"".join(content[start : start + size] for start, size in ranges)
    with path.open("rb") as stream:
        assert slices.digest(stream.fileno(), ranges) == f"b3:{blake3(wanted).hexdigest()}"
