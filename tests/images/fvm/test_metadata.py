"""Both copies of the tables, and what stands in them."""

import hashlib
import struct
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ImageDamaged, ImageError, ImageTooLarge
from pipeline.images import fvm
from pipeline.images.fvm import Extent, FvmHeader, Metadata, Partition, tables
from tests.images.fvm.volumes import (
    COPY_B,
    SLICE,
    extended,
    flipped,
    make,
    memory,
    of_2019,
    of_generation,
    read,
    slices,
    with_copies,
    with_entries,
)

IMAGE = make({"data": b"x" * 100_000})


def test_the_bytes_of_a_tiny_volume() -> None:
    image = make({"data": b"x"})
    body = struct.pack("<8sQQQQQQQ", b"FVM PART", 1, 1, SLICE, 2 * 81920 + SLICE, 65536, 8192, 0)
    blank = body + bytes(32) + struct.pack("<Q", 1) + image[104:81920]
    assert image[:64] == body
    assert image[64:96] == hashlib.sha256(blank).digest()
    assert image[96:8192] == struct.pack("<Q", 1).ljust(8096, b"\0")
    assert image[8192:8256] == bytes(64)
    assert image[8256:8272].hex() == "0c5f18082d898a42a789dbeec8f55e6a"
    assert image[73728:73744] == struct.pack("<QQ", 0, 1)
    assert image[163840:] == b"x".ljust(SLICE, b"\0")


@pytest.mark.parametrize(
    "place", [64, 8300, 73740, COPY_B, COPY_B + 64, COPY_B + 8300, COPY_B + 73740],
    ids=["hash A", "partitions A", "allocation A", "magic B", "hash B", "partitions B", "allocation B"],
)  # fmt: skip
def test_one_damaged_copy_is_tolerated(place: int) -> None:
    damaged = flipped(IMAGE, place)
    assert read(damaged) == read(IMAGE)
    assert extended(damaged, 1 << 20) == extended(IMAGE, 1 << 20)


def test_two_damaged_copies_are_not() -> None:
    with pytest.raises(ImageDamaged, match=r"^neither of the two copies of its tables is intact$") as caught:
        read(flipped(IMAGE, 8300, COPY_B + 73740))
    assert caught.value.detail == (
        "copy A: at byte 0x40: the hash of the tables is wrong\n"
        "copy B: at byte 0x14040: the hash of the tables is wrong"
    )


def test_tables_that_are_cut_off() -> None:
    with pytest.raises(ImageDamaged) as caught:
        read(IMAGE[: COPY_B - 1])
    assert caught.value.detail == (
        "copy A: at byte 0x13fff: the tables are cut off, expected 81920 bytes\n"
        "copy B: at byte 0x13fff: the tables are cut off, expected 163840 bytes"
    )
    assert read(IMAGE[: COPY_B + 100]) == read(IMAGE), "copy A is whole"


def test_tables_that_a_file_cannot_hold_are_not_read() -> None:
    """A header of 8 KiB cannot make Topcoat take 128 MiB."""
    header = replace(read(IMAGE).header, allocation_table_size=128 << 20, partition_size=1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(ImageDamaged, match="neither of the two copies"):
            read(header.encode() + IMAGE[8192:])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_copy_b_of_another_size_does_not_count() -> None:
    metadata = read(IMAGE)
    other = replace(metadata.header, allocation_table_size=16384, partition_size=1 << 20)
    image = IMAGE[:64] + bytes(32) + IMAGE[96:COPY_B] + other.encode() + bytes(1 << 20)
    with pytest.raises(ImageDamaged) as caught:
        read(image)
    assert "copy B: at byte 0x14030: an allocation table of 16384 bytes, expected 8192 as in copy A" in (
        caught.value.detail
    )


@pytest.mark.parametrize(
    ("generations", "counts"),
    [((2, 1), "A"), ((1, 2), "B"), ((5, 5), "A"), ((2**64 - 1, 0), "B"), ((0, 2**64 - 1), "A"), ((0, 2**63), "A")],
)
def test_the_newer_of_two_valid_copies_counts(generations: tuple[int, int], counts: str) -> None:
    metadata = read(IMAGE)
    first, second = (of_generation(metadata, *pair) for pair in zip(generations, (b"A", b"B"), strict=True))
    image = with_copies(IMAGE, first, second)
    assert read(image).partition_table[-1:] == counts.encode()
    with memory(image) as stream:
        assert fvm.read_copies(stream).second_counts is (counts == "B")
    assert read(extended(image, 1 << 20)).header.generation == generations["AB".index(counts)]


def test_the_hash_of_2019_may_cover_another_block() -> None:
    image = of_2019(b"x" * 8192, 1030 * 8192, 8192)
    assert read(image).header.hashed_sizes == (73728 + 8192, 73728 + 16384)
    assert slices(image) == {(1, 1, 0): b"x" * 8192}


def test_an_image_of_2019() -> None:
    contents = bytes(range(256)) * 128 * 3
    image = of_2019(contents, 8 << 20, 8192)
    header = read(image).header
    assert (header.allocation_table_size, header.partition_size, header.oldest_minor_version) == (8192, 8 << 20, 0)
    assert b"".join(slices(image).values()) == contents
    assert FvmHeader.for_disk(8 << 20, 8192).allocation_table_size == 16384, "other than today"


def test_the_partitions_of_a_volume() -> None:
    metadata = read(make({"data": b"", "n" * 24: b"x" * SLICE * 2}))
    assert [(each.index, each.name, each.slices, each.active) for each in metadata.partitions] == [
        (1, "data", 1, True),
        (2, "n" * 24, 2, True),
    ]
    assert metadata.partitions[0].type_guid == fvm.DATA_TYPE
    assert metadata.partitions[0].instance_guid != metadata.partitions[1].instance_guid


def test_the_type_of_a_blob_partition_is_written_as_people_know_it() -> None:
    stored = bytes.fromhex("0e3867294c13bb4cb6da17e7ce1ca45d")
    table = bytes(64) + struct.pack("<16s16sII24s", stored, bytes(16), 3, 1, b"blob\0rest") + bytes(65536 - 128)
    (partition,) = Metadata(FvmHeader.for_disk(1 << 20, SLICE), table, bytes(8192)).partitions
    assert partition == Partition(1, "blob", UUID("2967380e-134c-4cbb-b6da-17e7ce1ca45d"), UUID(int=0), 3, 1)
    assert not partition.active


def test_a_name_that_is_no_text_is_escaped() -> None:
    table = bytes(64) + struct.pack("<16s16sII24s", bytes(16), bytes(16), 1, 0, b"a\xff\x1b[2J") + bytes(65536 - 128)
    (partition,) = Metadata(FvmHeader.for_disk(1 << 20, SLICE), table, bytes(8192)).partitions
    assert partition.name == "a\\xff\x1b[2J"


_ENTRIES = st.builds(
    lambda partition, vslice, reserved: reserved << 48 | vslice << 16 | partition,
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([0, 0, 0, 1]),
)


_RUNS = st.builds(
    lambda entry, count: [entry + (place << 16) for place in range(count)], _ENTRIES, st.integers(1, 2500)
)
_HOLES = st.integers(1, 2500).map(lambda count: [0] * count)


@given(st.lists(_RUNS | _HOLES | _ENTRIES.map(lambda entry: [entry]), max_size=8))
def test_extents_say_the_same_as_the_entries(pieces: list[list[int]]) -> None:
    table = [entry for piece in pieces for entry in piece]
    packed = struct.pack(f"<{len(table)}Q", *table)
    packed = packed.ljust(-(-len(packed) // 8192) * 8192, b"\0")
    found = list(tables.decode_extents(packed))
    again = bytearray(len(packed))
    for extent in found:
        again[8 * extent.pslice : 8 * extent.end] = extent.encode()
    assert again == packed
    for first, second in pairwise(found):
        joined = second.encode()[:8] == struct.pack("<Q", struct.unpack("<Q", first.encode()[-8:])[0] + 0x10000)
        assert first.end < second.pslice or not joined, "the longest ones"


def test_a_table_of_too_many_extents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_EXTENTS", 2)
    image = with_entries(make({"data": b"x" * SLICE * 8}), {3: 0x900001, 5: 0x700001})
    with pytest.raises(
        ImageTooLarge, match=r"^at byte 0x12020: the partitions are in too many pieces, expected at most 2$"
    ):
        extended(image, 1 << 20)


def test_only_usable_slices_of_a_partition_are_extents_of_the_volume() -> None:
    image = with_entries(make({"data": b"x" * SLICE * 3}), {0: 1, 2: 0x50000, 4: 0x30001, 5: 0x40001})
    metadata = read(image)
    assert [extent.pslice for extent in metadata.entries] == [0, 1, 2, 3]
    assert metadata.extents == (Extent(1, 1, 0, 1), Extent(3, 1, 2, 1))
    assert list(metadata.runs()) == [(1, 1), (3, 1)]
    assert metadata.least_size == metadata.header.slice_offset(4)


def test_a_volume_without_a_partition_needs_its_tables_only() -> None:
    image = make({})
    assert read(image).extents == ()
    assert read(image).least_size == 2 * COPY_B


def extended_or_error(image: bytes) -> bytes | ImageError:
    try:
        return extended(image, 1 << 20)
    except ImageError as error:
        return error


@given(st.data())
def test_damaged_input_raises_nothing_but_image_errors(data: st.DataObject) -> None:
    image = make({"data": b"x"})
    damaged = image[: data.draw(st.integers(0, len(image)), "length")]
    places = st.integers(0, 103) | st.integers(0, 2 * COPY_B)
    for place in data.draw(st.lists(places, max_size=4), "places"):
        damaged = flipped(damaged, place) if place < len(damaged) else damaged
    found = extended_or_error(damaged)
    if isinstance(found, ImageError):
        assert found.hint
    else:
        assert slices(found) == slices(damaged)


@given(st.dictionaries(st.integers(0, 1023), st.integers(0, 2**64 - 1) | _ENTRIES, max_size=8))
def test_whatever_stands_in_the_tables_nothing_but_image_errors(entries: dict[int, int]) -> None:
    """Here the hashes are right."""
    image = with_entries(make({"data": b"x" * SLICE * 3}), entries)
    before, found = read(image), extended_or_error(image)
    if isinstance(found, ImageError):
        assert "in use" in str(found)
    else:
        after = read(found)
        assert (after.entries, after.extents) == (before.entries, before.extents)
        assert after.partition_table == before.partition_table
