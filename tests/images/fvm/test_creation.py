"""New volumes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ImageError, UsageError
from pipeline.images import fvm
from pipeline.images.fvm import FvmHeader
from tests.images.fvm.volumes import (
    GIB,
    PARTITIONS,
    SLICE,
    SLICE_SIZES,
    contents,
    copies,
    encoded,
    extended_in_place,
    make,
    memory,
    read,
    slices,
)


@given(SLICE_SIZES, PARTITIONS)
def test_a_made_volume_holds_its_partitions(slice_size: int, partitions: dict[str, bytes]) -> None:
    image = make(partitions, slice_size)
    metadata = read(image)
    header = metadata.header
    assert copies(image)[0] == copies(image)[1] == encoded(metadata)
    assert len(image) == header.partition_size == header.slice_offset(header.slices + 1)
    found = slices(image)
    for partition, (name, data) in zip(metadata.partitions, partitions.items(), strict=True):
        assert (partition.type_guid, partition.flags, partition.name) == (fvm.DATA_TYPE, 0, name)
        assert partition.slices == max(1, -(-len(data) // slice_size))
        mine = {vslice: content for (_, owner, vslice), content in found.items() if owner == partition.index}
        assert list(mine) == list(range(partition.slices))
        assert b"".join(mine.values()) == data.ljust(partition.slices * slice_size, b"\0")
    assert len(found) == sum(partition.slices for partition in metadata.partitions)


def test_files_are_copied_with_their_holes(tmp_path: Path) -> None:
    with (tmp_path / "content").open("wb") as stream:
        stream.write(b"x")
        stream.truncate(GIB)
    with (tmp_path / "fvm.blk").open("wb") as output:
        fvm.create(output, 1 << 20, {"data": tmp_path / "content", "more": b"y"})
    assert (tmp_path / "fvm.blk").stat().st_blocks * 512 < 1 << 20
    with (tmp_path / "fvm.blk").open("rb") as made:
        header = fvm.read(made).header
        for number, byte in ((1, b"x"), (2, b"\0"), (1025, b"y")):
            made.seek(header.slice_offset(number))
            assert made.read(1) == byte


@given(SLICE_SIZES, st.integers(0, 1 << 28))
def test_a_volume_of_a_length(slice_size: int, more: int) -> None:
    least = len(make({"data": b"x" * 100_000}, slice_size))
    with memory() as stream:
        fvm.create(stream, slice_size, {"data": b"x" * 100_000}, length=least + more)
        assert stream.seek(0, 2) == least + more
        assert fvm.read(stream).header == FvmHeader.for_disk(least + more, slice_size)


def test_preallocated_tables_let_a_volume_grow_in_place() -> None:
    image = make({"data": b"x" * 100_000}, max_disk_size=GIB)
    header = read(image).header
    assert (header.slices, header.allocation_table_size) == (4, FvmHeader.for_disk(GIB, SLICE).allocation_table_size)
    assert len(image) == header.slice_offset(5)
    with memory(image) as stream:
        assert fvm.extend_in_place(stream, GIB)
        assert fvm.read(stream).header == FvmHeader.for_disk(GIB, SLICE)
    assert extended_in_place(make({"data": b"x" * 100_000}), 64 << 20) is None


def test_preallocated_tables_and_a_length() -> None:
    header = read(make({}, length=1 << 22, max_disk_size=GIB)).header
    table = FvmHeader.for_disk(GIB, SLICE).allocation_table_size
    assert header == FvmHeader.for_disk(1 << 22, SLICE, table)
    assert header.allocation_table_size == table


@pytest.mark.parametrize(
    ("slice_size", "options", "problem", "hint"),
    [
        (1000, {}, "^slices of 1000 bytes, expected a multiple of 8192$", "another slice size"),
        (0, {}, "^slices of 0 bytes", "another slice size"),
        (SLICE, {"length": 294911}, "^4 slices of 32768 do not fit in 294911 bytes$", "at least 294912"),
        (SLICE, {"length": 1000}, "^1000 bytes are too few", "at least 196608"),
        (SLICE, {"max_disk_size": 100_000}, "^a volume of 294912 bytes on a disk of at most 100000$", "294912"),
        (SLICE, {"length": 1 << 60}, "^1152921504606846976 bytes are too many", "larger slices"),
    ],
)
def test_what_cannot_be_made(slice_size: int, options: dict[str, int], problem: str, hint: str) -> None:
    with memory() as stream:
        with pytest.raises(ImageError, match=problem) as caught:
            fvm.create(stream, slice_size, {"data": b"x" * 100_000}, **options)
        assert contents(stream) == b""
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["", "n" * 25, "ü" * 13, "a\0b", "a\x1b[2J", "\udcff"])
def test_names_that_no_partition_can_have(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a partition"):
        make({name: b"x"})


def test_more_partitions_than_the_table_holds() -> None:
    assert len(read(make({f"{number}": b"" for number in range(1023)}, 8192)).partitions) == 1023
    with pytest.raises(UsageError, match=r"^1024 partitions$"):
        make({f"{number}": b"" for number in range(1024)}, 8192)
