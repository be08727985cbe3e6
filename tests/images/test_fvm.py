import hashlib
import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageError
from pipeline.images import fvm
from pipeline.images.fvm import Header, Metadata

GIB = 1 << 30
SLICE = 32 * 1024


@contextmanager
def memory(image: bytes = b"") -> Iterator[BinaryIO]:
    """A file in memory. Unlike BytesIO, it grows by truncate."""
    with open(os.memfd_create("image"), "w+b") as stream:
        stream.write(image)
        yield stream


def contents(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read()


def make(partitions: dict[str, bytes], slice_size: int = SLICE) -> bytes:
    with memory() as stream:
        fvm.create(stream, slice_size, partitions)
        return contents(stream)


def extended(image: bytes, length: int) -> bytes:
    with memory(image) as source, memory() as output:
        fvm.extend(source, output, length)
        return contents(output)


def read(image: bytes) -> Metadata:
    return fvm.read(io.BytesIO(image))


def slices(image: bytes) -> dict[int, bytes]:
    """The contents of each allocated slice."""
    metadata = read(image)
    starts = {number: metadata.header.slice_offset(number) for number in metadata.allocated()}
    return {number: image[start : start + metadata.header.slice_size] for number, start in starts.items()}


def copies(image: bytes) -> tuple[bytes, bytes]:
    size = read(image).header.metadata_size
    return image[:size], image[size : 2 * size]


def flipped(image: bytes, *places: int) -> bytes:
    damaged = bytearray(image)
    for place in places:
        damaged[place] ^= 0xFF
    return bytes(damaged)


_SLICES = st.integers(1, 8).map(lambda count: 8192 * count)
_PARTITIONS = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=24),
    st.builds(lambda unit, count, end: unit * count + end, st.binary(max_size=9), st.integers(0, 9000), st.binary()),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(_SLICES, _PARTITIONS)
def test_a_made_volume_holds_its_partitions(slice_size: int, partitions: dict[str, bytes]) -> None:
    image = make(partitions, slice_size)
    metadata = read(image)
    header = metadata.header
    assert copies(image)[0] == copies(image)[1] == metadata.encode()
    assert len(image) == header.partition_size == header.slice_offset(header.slices + 1)
    found = list(slices(image).values())
    for number, (name, data) in enumerate(partitions.items(), start=1):
        entry = struct.unpack_from("<16s16sII24s", metadata.partitions, 64 * number)
        assert (entry[0], entry[3], entry[4].rstrip(b"\0")) == (fvm.DATA_TYPE.bytes_le, 0, name.encode())
        count = max(1, -(-len(data) // slice_size))
        assert entry[2] == count
        assert b"".join(found[:count]) == data.ljust(count * slice_size, b"\0")
        del found[:count]
    assert found == []


@settings(deadline=None, max_examples=60)
@given(_SLICES, _PARTITIONS, st.integers(0, 1 << 25))
def test_an_extended_volume_is_the_same_but_longer(slice_size: int, partitions: dict[str, bytes], more: int) -> None:
    image = make(partitions, slice_size)
    old, length = read(image), len(image) + more
    longer = extended(image, length)
    new = read(longer)
    assert len(longer) == length
    assert copies(longer)[0] == copies(longer)[1] == new.encode()
    assert new.header == Header.for_disk(length, slice_size)
    assert new.partitions == old.partitions
    assert new.allocation.rstrip(b"\0") == old.allocation.rstrip(b"\0")
    assert slices(longer) == slices(image)


def test_the_header_of_a_tiny_volume() -> None:
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
    ("size", "slice_size", "slices", "table", "partition_size"),
    [
        (8 << 20, 32 << 10, 251, 8192, 8388608),
        (64 << 20, 32 << 10, 2042, 24576, 67108864),
        (3 * GIB, 32 << 10, 98251, 794624, 3221225472),
        (3 * GIB, 1 << 20, 3071, 32768, 3220389888),
    ],
    ids=["8M of 32K", "64M of 32K", "3G of 32K", "3G of 1M"],
)
def test_geometry_of_a_disk(size: int, slice_size: int, slices: int, table: int, partition_size: int) -> None:
    header = Header.for_disk(size, slice_size)
    assert (header.slices, header.allocation_table_size, header.partition_size) == (slices, table, partition_size)


def test_a_disk_too_small_for_one_slice_is_refused() -> None:
    with pytest.raises(ImageError, match="100000 bytes are too few"):
        Header.for_disk(100000, SLICE)


def test_a_disk_of_too_many_slices_is_refused() -> None:
    with pytest.raises(ImageError):
        Header.for_disk(SLICE * 2**33, SLICE)


COPY_B = 81920


@pytest.mark.parametrize(
    "place", [64, 8300, 73740, COPY_B, COPY_B + 64, COPY_B + 8300, COPY_B + 73740],
    ids=["hash A", "partitions A", "allocation A", "magic B", "hash B", "partitions B", "allocation B"],
)  # fmt: skip
def test_one_damaged_copy_is_tolerated(place: int) -> None:
    image = make({"data": b"x" * 100_000})
    damaged = flipped(image, place)
    assert read(damaged) == read(image)
    assert extended(damaged, 1 << 20) == extended(image, 1 << 20)


def test_two_damaged_copies_are_not() -> None:
    with pytest.raises(ImageError, match="neither of the two copies of its tables is intact"):
        read(flipped(make({"data": b"x"}), 8300, COPY_B + 73740))


@pytest.mark.parametrize("newer", ["A", "B"])
def test_the_newer_of_two_valid_copies_counts(newer: str) -> None:
    image = make({"data": b"x"})
    metadata = read(image)
    generations = (2, 1) if newer == "A" else (1, 2)
    both = b"".join(
        Metadata(
            Header(**{**vars(metadata.header), "generation": generation}),
            metadata.partitions[:64] + bytes([generation]) * 64 + metadata.partitions[128:],
            metadata.allocation,
        ).encode()
        for generation in generations
    )
    assert read(both).partitions[64] == 2
    assert read(extended(both + image[2 * COPY_B :], 1 << 20)).header.generation == 2


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (0, b"FVM SPRS", "this is a sparse FVM"),
        (0, b"EFI PART", "FVM magic mismatch"),
        (8, struct.pack("<Q", 2), "version 2 is too new"),
        (16, struct.pack("<Q", 0), "0 slices"),
        (16, struct.pack("<Q", 2**31 + 1), "2147483649 slices"),
        (16, struct.pack("<Q", 1024), "an allocation table of 8192 bytes"),
        (24, struct.pack("<Q", 0), "slices of 0 bytes"),
        (24, struct.pack("<Q", 8193), "slices of 8193 bytes"),
        (32, struct.pack("<Q", 196607), "the slices do not fit in the volume"),
        (40, struct.pack("<Q", 65535), "a partition table of 65535 bytes"),
        (48, struct.pack("<Q", 8191), "an allocation table of 8191 bytes"),
        (48, struct.pack("<Q", 2**63), f"an allocation table of {2**63} bytes"),
    ],
    ids=["sparse", "magic", "version", "no slices", "many slices", "short table", "slice 0", "odd slice", "small",
         "partition table", "odd table", "huge table"],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_refused(place: int, value: bytes, problem: str) -> None:
    image = make({"data": b"x"})
    with pytest.raises(ImageError, match=f"^no valid FVM image: {problem}"):
        read(image[:place] + value + image[place + 8 :])


@settings(deadline=None)
@given(st.data())
def test_damaged_input_never_raises_anything_else(data: st.DataObject) -> None:
    image = make({"data": b"x"})
    damaged = image[: data.draw(st.integers(0, len(image)), "length")]
    places = st.integers(0, 103) | st.integers(0, 2 * COPY_B)
    for place in data.draw(st.lists(places, max_size=4), "places"):
        damaged = flipped(damaged, place) if place < len(damaged) else damaged
    try:
        extended(damaged, 1 << 20)
    except ImageError:
        return
    assert read(damaged).header.partition_size <= len(image)


@pytest.mark.parametrize("cut", [1, SLICE, SLICE + 1])
def test_a_cut_off_slice_is_refused(cut: int) -> None:
    image = make({"one": b"x", "two": b"y"})
    with pytest.raises(ImageError, match=r"slice [12] is cut off"):
        extended(image[:-cut], 1 << 20)


def test_a_length_below_the_volume_is_refused() -> None:
    image = make({"data": b"x"})
    with pytest.raises(ImageError, match="cannot extend to 196607 bytes: the volume has 196608"):
        extended(image, len(image) - 1)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "fvm.blk"
    (tmp_path / "content").write_bytes(b"x" * 100_000)
    assert fvm.main([str(path), "create", "--slice", "32K", "--partition", f"data={tmp_path / 'content'}"]) == 0
    return path


def test_the_command_extends_in_place_and_leaves_holes(volume: Path) -> None:
    image = volume.read_bytes()
    volume.chmod(0o600)
    assert fvm.main([str(volume), "extend", "--length", "3G"]) == 0
    facts = volume.stat()
    assert facts.st_size == 3 * GIB
    assert facts.st_blocks * 512 < 16 << 20
    with volume.open("rb") as stream:
        metadata = fvm.read(stream)
        stream.seek(metadata.header.slice_offset(1))
        assert stream.read(100_000) == b"x" * 100_000
    assert metadata.partitions == read(image).partitions
    assert sorted(path.name for path in volume.parent.iterdir()) == ["content", "fvm.blk"]


def test_slices_of_zeros_become_holes(tmp_path: Path) -> None:
    path = tmp_path / "fvm.blk"
    path.write_bytes(make({"data": b"x" + bytes(8 << 20)}))
    assert fvm.main([str(path), "extend", "--length", "16M"]) == 0
    assert path.stat().st_blocks * 512 < 1 << 20
    assert slices(path.read_bytes())[1].rstrip(b"\0") == b"x"


def test_extending_twice_changes_nothing_more(volume: Path) -> None:
    results = []
    for _ in range(2):
        assert fvm.main([str(volume), "extend", "--length", "4M"]) == 0
        results.append(volume.read_bytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("words", "code", "size"),
    [
        (("--length", "100k"), 1, None),
        (("--length", "100k", "--length-is-lowerbound"), 0, None),
        (("--length", "1M", "--length-is-lowerbound"), 0, 1 << 20),
        (("--length", "3T"), 1, None),
    ],
    ids=["too small", "lower bound below", "lower bound above", "no size"],
)
def test_the_command_and_lengths(
    volume: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, size: int | None
) -> None:
    before = volume.read_bytes()
    assert fvm.main([str(volume), "extend", *words]) == code
    assert capsys.readouterr().err.startswith("fvm: " if code else "")
    assert (volume.stat().st_size == size) if size else (volume.read_bytes() == before)


@pytest.mark.parametrize("partition", ["data", "=content", f"{'n' * 25}=content", "data=no-such-file"])
def test_the_command_refuses_a_partition_that_makes_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], partition: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "content").touch()
    assert fvm.main(["new.blk", "create", "--partition", partition]) == 1
    assert capsys.readouterr().err.startswith("fvm: ")
    assert not (tmp_path / "new.blk").exists()


def test_the_command_refuses_a_slice_size_that_the_format_forbids(tmp_path: Path) -> None:
    (tmp_path / "content").touch()
    words = [str(tmp_path / "new.blk"), "create", "--slice", "1000", "--partition", f"data={tmp_path / 'content'}"]
    assert fvm.main(words) == 1
