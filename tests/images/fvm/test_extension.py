"""Volumes written anew, longer."""

import fcntl
import os
import re
import stat
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageDamaged, ImageError, InstanceBusy, UsageError, WrongFormat
from pipeline.images import fvm
from pipeline.images.fvm import FvmHeader
from tests.images.fvm.volumes import (
    FIRST_SLICE,
    GIB,
    PARTITIONS,
    SLICE,
    SLICE_SIZES,
    copies,
    encoded,
    extended,
    make,
    memory,
    of_2019,
    put,
    read,
    slices,
    with_copies,
    with_entries,
)


@pytest.mark.slow
@given(SLICE_SIZES, PARTITIONS, st.integers(0, 1 << 25))
def test_an_extended_volume_is_the_same_but_longer(slice_size: int, partitions: dict[str, bytes], more: int) -> None:
    image = make(partitions, slice_size)
    old, length = read(image), len(image) + more
    longer = extended(image, length)
    new = read(longer)
    assert len(longer) == length
    assert copies(longer)[0] == copies(longer)[1] == encoded(new)
    assert new.header == FvmHeader.for_disk(length, slice_size)
    assert new.partition_table == old.partition_table
    assert new.allocation_table.rstrip(b"\0") == old.allocation_table.rstrip(b"\0")
    assert slices(longer) == slices(image)


@pytest.mark.slow
@settings(max_examples=50)
@given(st.lists(st.integers(1, 30), unique=True), st.randoms(use_true_random=False), st.integers(0, 1 << 25))
def test_slices_in_any_order_keep_their_numbers(numbers: list[int], random: object, more: int) -> None:
    image = make({"one": b"x" * 8192 * 30}, 8192)
    entries = dict.fromkeys(range(1, 31), 0)
    entries |= {number: (place * 7 % 64) << 16 | 1 + place % 3 for place, number in enumerate(numbers)}
    image = with_entries(image, entries)
    for number in range(1, 31):
        image = put(image, read(image).header.slice_offset(number), struct.pack("<I", number))
    longer = extended(image, len(image) + more)
    assert slices(longer) == slices(image)
    assert {number for number, _, _ in slices(longer)} == set(numbers)
    header = read(longer).header
    for number in set(range(1, 31)) - set(numbers):
        start = header.slice_offset(number)
        assert not any(longer[start : start + 8192]), "contents of free slices are left behind"


def test_one_usable_slice_keeps_its_allocation() -> None:
    """Fuchsia's own tool loses it."""
    image = make({"data": b"x"})
    assert read(image).header.slices == 1
    assert slices(extended(image, 1 << 20)) == {(1, 1, 0): b"x".ljust(SLICE, b"\0")}


@pytest.mark.parametrize("length", [(8 << 20) + (1 << 15), 256 << 20])
def test_an_image_of_2019_gets_the_geometry_of_today(length: int) -> None:
    contents = bytes(range(256)) * 128
    image = of_2019(contents, 8 << 20, 8192)
    with memory(image) as source, memory() as output:
        fvm.extend(source, output, length)
        new = fvm.read(output)
        assert replace(new.header, oldest_minor_version=1) == FvmHeader.for_disk(length, 8192)
        assert new.header.oldest_minor_version == 0
        output.seek(new.header.slice_offset(1))
        assert output.read(len(contents)) == contents


@pytest.mark.parametrize("length", [FIRST_SLICE + 4 * SLICE, 64 << 20], ids=["same tables", "larger tables"])
def test_a_file_that_fits_ends_with_the_last_allocated_slice(length: int) -> None:
    image = with_entries(make({"data": b"x" * SLICE * 4}), {3: 0, 4: 0})
    fitting = extended(image, length, to_fit=True)
    assert len(fitting) == read(fitting).header.slice_offset(3)
    assert read(fitting).header == FvmHeader.for_disk(length, SLICE)
    assert slices(fitting) == slices(image)


def test_the_generation_stays() -> None:
    image = make({"data": b"x"})
    metadata = read(image)
    image = with_copies(image, replace(metadata, header=replace(metadata.header, generation=2**64 - 1)))
    assert read(extended(image, 1 << 20)).header.generation == 2**64 - 1


@pytest.mark.parametrize(("cut", "number"), [(1, 2), (SLICE, 2), (SLICE + 1, 1), (2 * SLICE, 1)])
def test_a_cut_off_slice_is_refused(cut: int, number: int) -> None:
    image = make({"one": b"x", "two": b"y"})
    with pytest.raises(
        ImageDamaged, match=f"^at byte {len(image) - cut:#x}: slice {number} is cut off: the file ends, "
        f"expected at least {len(image)} bytes$",
    ):  # fmt: skip
        extended(image[:-cut], 1 << 20)


def test_a_trimmed_image_is_extended() -> None:
    image = with_entries(make({"data": b"x" * SLICE * 3}), {3: 0})
    assert slices(extended(image[:-SLICE], 1 << 20)) == slices(image)


@pytest.mark.parametrize("number", [4, 1023])
def test_a_slice_beyond_the_last_one_is_not_lost_in_silence(number: int) -> None:
    image = with_entries(make({"data": b"x" * SLICE * 3}), {number: 0x70001})
    with pytest.raises(
        ImageDamaged,
        match=f"^at byte {73728 + 8 * number:#x}: slice {number} is in use, but the volume has 3 slices, expected 0$",
    ):
        extended(image, 1 << 20)


def test_a_length_below_the_volume_is_refused() -> None:
    image = make({"data": b"x"})
    with pytest.raises(ImageError, match=r"^cannot extend to 196607 bytes: the volume has 196608$") as caught:
        extended(image, len(image) - 1)
    assert "at least 196608" in caught.value.hint


def test_tables_for_a_larger_disk_are_refused_with_what_would_do() -> None:
    image = make({"data": b"x" * 100_000}, max_disk_size=GIB)
    with pytest.raises(
        ImageError, match=r"^cannot extend to 1048576 bytes: the tables were made for a larger"
    ) as caught:
        extended(image, 1 << 20)
    least = int(caught.value.hint.split()[-1])
    for length, possible in ((least, True), (least - 1, False)):
        with memory(image) as source, memory() as output:
            try:
                fvm.extend(source, output, length)
                done = True
            except ImageError:
                done = False
        assert done is possible


@pytest.mark.parametrize("length", [1 << 45, 1 << 70])
def test_a_length_beyond_reason_is_refused(length: int) -> None:
    with pytest.raises(ImageError, match=f"^{length} bytes are too many"):
        extended(make({"data": b"x"}), length)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "fvm.blk"
    path.write_bytes(make({"data": b"x" * 100_000}))
    return path


def test_the_file_is_replaced_with_its_rights_and_leaves_holes(volume: Path) -> None:
    volume.chmod(0o640)
    before = volume.stat()
    image = volume.read_bytes()
    fvm.extend_file(volume, 3 * GIB)
    after = volume.stat()
    assert (after.st_size, stat.S_IMODE(after.st_mode)) == (3 * GIB, 0o640)
    assert after.st_ino != before.st_ino
    assert after.st_blocks * 512 < 4 << 20
    with volume.open("rb") as stream:
        metadata = fvm.read(stream)
        stream.seek(metadata.header.slice_offset(1))
        assert stream.read(100_000) == b"x" * 100_000
    assert metadata.partition_table == read(image).partition_table
    assert [path.name for path in volume.parent.iterdir()] == ["fvm.blk"]


def test_holes_in_slices_stay_holes(tmp_path: Path) -> None:
    with (tmp_path / "content").open("wb") as stream:
        stream.write(b"x")
        stream.truncate(256 << 20)
    path = tmp_path / "fvm.blk"
    with path.open("wb") as output:
        fvm.create(output, SLICE, {"data": tmp_path / "content"})
    fvm.extend_file(path, GIB)
    assert path.stat().st_size == GIB
    assert path.stat().st_blocks * 512 < 2 << 20


def test_a_link_stays_one(volume: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    link = tmp_path / "deep/link"
    link.symlink_to(volume)
    fvm.extend_file(link, 1 << 20)
    assert link.is_symlink()
    assert volume.stat().st_size == 1 << 20
    assert [path.name for path in link.parent.iterdir()] == ["link"]


def test_extending_twice_changes_nothing_more(volume: Path) -> None:
    results = []
    for _ in range(2):
        fvm.extend_file(volume, 4 << 20)
        results.append(volume.read_bytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("error", "change", "problem"),
    [
        (WrongFormat, lambda image: b"EFI PART" + image[8:], "{path}: at byte 0x0: FVM magic mismatch"),
        (ImageDamaged, lambda image: image[:-5], "{path}: at byte 0x47ffb: slice 4 is cut off"),
        (ImageDamaged, lambda image: with_entries(image, {9: 0x90001}), "{path}: at byte 0x12048: slice 9 is in use"),
    ],
    ids=["magic", "cut off", "hidden"],
)
def test_a_refusal_names_the_file_and_leaves_it_as_it_is(
    volume: Path, error: type[ImageError], change: object, problem: str, in_place: bool
) -> None:
    assert callable(change)
    volume.write_bytes(change(volume.read_bytes()))
    before = volume.read_bytes()
    with pytest.raises(error, match="^" + re.escape(problem.format(path=volume))) as caught:
        fvm.extend_file(volume, 1 << 20, in_place=in_place)
    assert caught.value.file == str(volume)
    assert volume.read_bytes() == before
    assert [path.name for path in volume.parent.iterdir()] == ["fvm.blk"]


def test_a_file_that_somebody_works_on_is_left_alone(volume: Path) -> None:
    with volume.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(InstanceBusy, match="another process works on"):
            fvm.extend_file(volume, 1 << 20)
    fvm.extend_file(volume, 1 << 20)
    assert volume.stat().st_size == 1 << 20


def test_a_file_that_was_replaced_meanwhile_is_opened_again(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = volume.with_name("other")
    other.write_bytes(make({"other": b"y"}))
    lock = fcntl.flock

    def late(stream: int, how: int) -> None:
        lock(stream, how)
        if other.exists():
            other.replace(volume)

    monkeypatch.setattr(fcntl, "flock", late)
    fvm.extend_file(volume, 1 << 20, in_place=True)
    assert read(volume.read_bytes()).partitions[0].name == "other"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe is a named pipe, not a file"):
        fvm.extend_file(tmp_path / "pipe", 1 << 20)


@pytest.mark.parametrize("in_place", [False, True])
def test_what_cannot_be_opened_is_told(tmp_path: Path, in_place: bool) -> None:
    with pytest.raises(UsageError, match=r"/none: No such file or directory$"):
        fvm.extend_file(tmp_path / "none", 1 << 20, in_place=in_place)
