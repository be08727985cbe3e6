"""Whether two volumes hold the same."""

import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageDamaged, UsageError, WrongFormat
from pipeline.images import fvm
from pipeline.images.fvm import comparison
from pipeline.images.fvm.slices import CHUNK
from tests.images.fvm.volumes import extended, flipped, make, put, read, with_copies, with_entries

DATA = struct.pack("<300000I", *range(300_000))
SLICE = 8192
IMAGE = make({"data": DATA, "more": b"y"}, SLICE)
LONGER = extended(IMAGE, 9 << 20)
LAST = 148
"""The only slice of the second partition."""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "old").write_bytes(IMAGE)
    (tmp_path / "new").write_bytes(LONGER)
    return tmp_path / "old", tmp_path / "new"


def test_an_extended_volume_is_no_other(files: tuple[Path, Path]) -> None:
    assert fvm.first_difference(*files) is None
    assert fvm.first_difference(*reversed(files)) is None


@pytest.mark.parametrize("byte", [0, 1, SLICE - 1, SLICE, 10 * SLICE + 77, CHUNK - 1, CHUNK, len(DATA) - 1])
def test_each_byte_counts_and_the_first_one_is_named(files: tuple[Path, Path], byte: int) -> None:
    start = read(LONGER).header.slice_offset(1)
    files[1].write_bytes(flipped(LONGER, start + byte, start + len(DATA)))
    number, inside = divmod(byte, SLICE)
    assert fvm.first_difference(*files) == (
        f"slice {number + 1} (partition 1 'data', virtual slice {number}) differs at its byte {inside:#x}: "
        f"byte {read(IMAGE).header.slice_offset(1) + byte:#x} of old, byte {start + byte:#x} of new"
    )


@settings(max_examples=30)
@given(st.lists(st.integers(0, len(DATA) - 1), min_size=1, max_size=3))
def test_the_first_of_several(tmp_path_factory: pytest.TempPathFactory, places: list[int]) -> None:
    directory = tmp_path_factory.mktemp("pair")
    start = read(IMAGE).header.slice_offset(1)
    damaged = bytearray(IMAGE)
    for place in places:
        damaged[start + place] = IMAGE[start + place] ^ 0xFF
    (directory / "old").write_bytes(IMAGE)
    (directory / "new").write_bytes(damaged)
    said = fvm.first_difference(directory / "old", directory / "new")
    assert said is not None
    assert f"byte {start + min(places):#x} of old" in said


def sparse(path: Path, image: bytes, block: int = 4096) -> Path:
    """Write an image with holes for zeros."""
    with path.open("wb") as stream:
        for start in range(0, len(image), block):
            content = image[start : start + block]
            if any(content):
                stream.seek(start)
                stream.write(content)
        stream.truncate(len(image))
    return path


def test_a_hole_is_zeros(tmp_path: Path) -> None:
    image = make({"data": b"x" + bytes(1 << 20) + b"y"}, SLICE)
    (tmp_path / "dense").write_bytes(image)
    pair = sparse(tmp_path / "sparse", image), tmp_path / "dense"
    assert pair[0].stat().st_blocks < pair[1].stat().st_blocks
    assert fvm.first_difference(*pair) is None
    assert fvm.first_difference(*reversed(pair)) is None
    with pair[1].open("r+b") as stream:
        stream.seek(read(image).header.slice_offset(9) + 5)
        stream.write(b"z")
    for one, two in (pair, pair[::-1]):
        assert (fvm.first_difference(one, two) or "").startswith(
            "slice 9 (partition 1 'data', virtual slice 8) differs at its byte 0x5: "
        )


_PAGES = st.lists(
    st.tuples(st.sampled_from([None, b"\0", b"x", b"y"]), st.sampled_from([None, b"\0", b"x"])), min_size=1, max_size=40
)


@pytest.mark.slow
@given(_PAGES)
def test_data_zeros_and_holes_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, pages: list[tuple[bytes | None, bytes | None]]
) -> None:
    directory = tmp_path_factory.mktemp("pages")
    image = make({"data": bytes(4096 * len(pages))}, SLICE)
    start = read(image).header.slice_offset(1)
    for name, contents in zip(("old", "new"), zip(*pages, strict=True), strict=True):
        with sparse(directory / name, image).open("r+b") as stream:
            for number, content in enumerate(contents):
                if content:
                    stream.seek(start + 4096 * number)
                    stream.write(content * 4096)
    said = fvm.first_difference(directory / "old", directory / "new")
    differing = [number for number, (one, two) in enumerate(pages) if (one or b"\0") != (two or b"\0")]
    assert (said is None) == (not differing)
    assert said is None or f"byte {start + 4096 * differing[0]:#x} of old" in said


def test_holes_in_both_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "content").touch()
    os.truncate(tmp_path / "content", 1 << 30)
    for name in ("old", "new"):
        with (tmp_path / name).open("wb") as output:
            fvm.create(output, 1 << 20, {"data": tmp_path / "content"})
    monkeypatch.setattr(os, "preadv", lambda *_: pytest.fail("a hole is read"))
    assert fvm.first_difference(tmp_path / "old", tmp_path / "new") is None


@pytest.mark.parametrize(
    ("entries", "number", "where"),
    [
        ({3: 0}, 3, "partition 1 'data', virtual slice 2"),
        ({3: 0x20002}, 3, "partition 1 'data', virtual slice 2"),
        ({1: 0x30001, 4: 1}, 1, "partition 1 'data', virtual slice 0"),
        ({LAST: 0}, LAST, "partition 2 'more', virtual slice 0"),
    ],
    ids=["free", "another partition", "another place", "last"],
)
def test_slices_that_have_another_owner(
    files: tuple[Path, Path], entries: dict[int, int], number: int, where: str
) -> None:
    files[1].write_bytes(with_entries(LONGER, entries))
    assert fvm.first_difference(*files) == f"slice {number} ({where}) does not belong there in new"


def test_slices_that_the_other_does_not_have(files: tuple[Path, Path]) -> None:
    metadata = read(IMAGE)
    files[1].write_bytes(with_copies(IMAGE, replace(metadata, header=replace(metadata.header, slices=20))))
    assert (fvm.first_difference(*files) or "").startswith("slice 21 (partition 1 'data', virtual slice 20)")


def test_more_slices_in_the_other_do_not_matter(files: tuple[Path, Path]) -> None:
    files[1].write_bytes(with_entries(LONGER, {1000: 0x1000002}))
    assert fvm.first_difference(*files) is None


def test_slices_of_another_size(files: tuple[Path, Path]) -> None:
    files[1].write_bytes(make({"data": DATA}, 65536))
    assert fvm.first_difference(*files) == "slices of 65536 bytes, not of 8192"


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_volume_is_named(files: tuple[Path, Path], which: int) -> None:
    files[which].write_bytes(put(IMAGE, 0, b"FVM SPRS"))
    with pytest.raises(WrongFormat, match=f"^{files[which]}: at byte 0x0: this is a sparse FVM"):
        fvm.first_difference(*files)
    files[which].write_bytes(IMAGE[:-1])
    with pytest.raises(ImageDamaged, match=f"^{files[which]}: .*slice {LAST} is cut off"):
        fvm.first_difference(*files)
    files[which].unlink()
    with pytest.raises(UsageError, match=f"^{files[which]}: No such file or directory"):
        fvm.first_difference(*files)


def test_a_file_that_is_cut_off_meanwhile(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(ImageDamaged, match=r"^.*/old: .*another program has shortened it"):
        fvm.first_difference(*files)


def test_a_hole_at_the_end_that_is_cut_off_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make({"data": b"x" + bytes(1 << 20)}, SLICE)
    pair = sparse(tmp_path / "old", image), sparse(tmp_path / "new", image)
    entries = comparison._other_entry  # noqa: SLF001  the moment between both looks at the files

    def cut(*volumes: comparison._Volume) -> str | None:
        os.truncate(pair[1], len(image) - SLICE)
        return entries(*volumes)

    monkeypatch.setattr(comparison, "_other_entry", cut)
    with pytest.raises(ImageDamaged, match=r"^.*/new: .*another program has shortened it"):
        fvm.first_difference(*pair)
