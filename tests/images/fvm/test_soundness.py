"""What is told of a volume, and what is wrong with it."""

import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from pipeline.errors import ImageDamaged, UsageError, WrongFormat
from pipeline.images import fvm
from pipeline.images.fvm import soundness
from pipeline.images.part import Part
from tests.images.fvm.volumes import (
    COPY_B,
    SLICE,
    extended,
    flipped,
    make,
    of_2019,
    of_generation,
    read,
    with_copies,
    with_entries,
)

IMAGE = make({"data": b"x" * 70_000, "more": b"y"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fvm.blk"


def test_a_volume_as_a_tree(path: Path) -> None:
    path.write_bytes(IMAGE)
    part = fvm.inspect(path)
    assert (part.kind, part.name, part.size, part.offset, part.problems) == ("FVM", "fvm.blk", len(IMAGE), 0, ())
    assert part.facts == {
        "version": 1,
        "oldest minor version": 1,
        "slice size": SLICE,
        "slices": 4,
        "allocated slices": 4,
        "generation": 0,
        "partition size": len(IMAGE),
        "allocation table size": 8192,
        "copy that counts": "A",
        "copies equal": True,
        "least size": len(IMAGE),
        "bytes short of the volume": 0,
    }
    data, more = part.parts
    assert (data.kind, data.name, data.size, data.problems) == ("partition", "data", 3 * SLICE, ())
    assert data.digest == f"b3:{blake3((b'x' * 70_000).ljust(3 * SLICE, bytes(1))).hexdigest()}"
    assert more.digest == f"b3:{blake3(b'y'.ljust(SLICE, bytes(1))).hexdigest()}"
    assert data.facts == {
        "index": 1,
        "type GUID": "08185f0c-892d-428a-a789-dbeec8f55e6a",
        "instance GUID": str(read(IMAGE).partitions[0].instance_guid),
        "slices": 3,
        "active": True,
    }
    assert part.sound


def digests(path: Path, image: bytes) -> list[str | None]:
    path.write_bytes(image)
    return [part.digest for part in fvm.inspect(path).parts]


def test_a_digest_follows_the_partition_and_not_the_disk(path: Path) -> None:
    start = 2 * COPY_B
    swapped = with_entries(IMAGE, {1: 0x10001, 2: 0x00001})
    swapped = (
        swapped[:start]
        + swapped[start + SLICE : start + 2 * SLICE]
        + swapped[start : start + SLICE]
        + swapped[start + 2 * SLICE :]
    )
    assert digests(path, swapped) == digests(path, IMAGE) == digests(path, extended(IMAGE, 64 << 20))
    assert digests(path, flipped(IMAGE, start))[0] != digests(path, IMAGE)[0]


def test_digests_can_be_left_out(path: Path) -> None:
    path.write_bytes(IMAGE)
    assert [part.digest for part in fvm.inspect(path, digests=False).parts] == [None, None]


def test_a_partition_that_nobody_could_wait_for_has_no_digest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "MOST_HASHED", 2 * SLICE)
    assert [digest is None for digest in digests(path, IMAGE)] == [True, False]


def test_holes_are_not_read_for_a_digest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / "content").touch()
    os.truncate(path.parent / "content", 1 << 28)
    with path.open("wb") as output:
        fvm.create(output, 1 << 20, {"data": path.parent / "content"})
    monkeypatch.setattr(os, "preadv", lambda *_: pytest.fail("a hole is read"))
    (partition,) = fvm.inspect(path).parts
    assert partition.digest == f"b3:{blake3(bytes(1 << 28)).hexdigest()}"


def test_a_trimmed_image_is_sound(path: Path) -> None:
    path.write_bytes(extended(IMAGE, 1 << 20, to_fit=True))
    assert fvm.check(path) == ()
    facts = fvm.inspect(path).facts
    assert facts["bytes short of the volume"] == int(facts["partition size"]) - len(IMAGE) > 0


def test_an_image_of_2019_is_sound(path: Path) -> None:
    path.write_bytes(of_2019(b"x" * 8192, 8 << 20, 8192))
    assert fvm.check(path) == ()


def partition_of(count: int) -> bytes:
    """The volume with another count of slices for its first partition."""
    metadata = read(IMAGE)
    table = metadata.partition_table
    return with_copies(IMAGE, replace(metadata, partition_table=table[:96] + struct.pack("<I", count) + table[100:]))


DATA = "partition 1 'data'"


@pytest.mark.parametrize(
    ("image", "problems"),
    [
        (flipped(IMAGE, 64), ["copy A of the tables is not valid: at byte 0x40: the hash of the tables is wrong"]),
        (
            flipped(IMAGE, COPY_B),
            [("copy B of the tables is not valid: at byte 0x14000: FVM magic mismatch: b9 56 4d 20 50 41 52 54, "
             "expected 46 56 4d 20 50 41 52 54")],
        ),
        (
            with_copies(IMAGE, read(IMAGE), of_generation(read(IMAGE), 1)),
            ["the two copies of the tables differ"],
        ),
        (IMAGE[:-1], [(f"allocated slices are cut off: the file has {len(IMAGE) - 1} bytes, "
                      f"and they end at {len(IMAGE)}")]),
        (
            with_entries(IMAGE, {4: 9}),
            ["slice 4: there is no partition 9",
             ("partition 2 'more': its slice count is 1, but 0 entries of the allocation table belong to it")],
        ),
        (
            with_entries(IMAGE, {3: 0x10001}),
            [f"{DATA}: virtual slice 1 is both in slices 1 to 2 and in slice 3"],
        ),
        (partition_of(5), [f"{DATA}: its slice count is 5, but 3 entries of the allocation table belong to it"]),
        (
            partition_of(0),
            ["slices 1 to 3: there is no partition 1"],
        ),
        (with_entries(IMAGE, {4: 0x1_0000_0000_0002}), ["slice 4: reserved bits are set: 0x1"]),
        (with_entries(IMAGE, {4: 0x8000_0000_0002}),
         ["slice 4: virtual slice 2147483648, the last possible one is 2147483647"]),
        (with_entries(IMAGE, {5: 0x10002}), ["slices 4 to 5: in use up to slice 5, but the last usable one is 4"]),
        (with_entries(IMAGE, {0: 0x10002}), ["slice 0: entry 0 of the allocation table is in use"]),
        (with_entries(IMAGE, {7: 0x70000}),
         ["slice 7: in use up to slice 7, but the last usable one is 4", "slice 7: a free entry that is not zero"]),
    ],
    ids=["copy A", "copy B", "copies differ", "cut off", "no partition", "twice", "too few", "freed", "reserved",
         "far", "beyond", "entry 0", "free but not zero"],
)  # fmt: skip
def test_what_is_wrong_is_told(path: Path, image: bytes, problems: list[str]) -> None:
    path.write_bytes(image)
    assert list(fvm.check(path)) == problems
    assert not fvm.inspect(path).sound


def test_a_partition_of_which_slices_are_cut_off_has_no_digest(path: Path) -> None:
    assert [digest is None for digest in digests(path, IMAGE[:-1])] == [False, True]


def test_one_part_has_only_so_many_problems(path: Path) -> None:
    path.write_bytes(with_entries(IMAGE, {number: number % 7 << 16 | 9 for number in range(10, 900)}))
    problems = fvm.check(path)
    assert len(problems) == soundness.MOST_PROBLEMS + 1
    assert problems[-1] == "and more of that kind"


def test_a_hostile_name_is_only_a_name(path: Path) -> None:
    metadata = read(IMAGE)
    table = metadata.partition_table
    named = replace(metadata, partition_table=table[:104] + b"\x1b[2J\xff".ljust(24, b"\0") + table[128:])
    path.write_bytes(with_entries(with_copies(IMAGE, named), {3: 0}))
    part = fvm.inspect(path)
    assert part.parts[0].name == "\x1b[2J\\xff"
    assert isinstance(part, Part)
    assert "\x1b" not in fvm.check(path)[0]


@pytest.mark.parametrize(
    ("image", "error", "problem"),
    [
        (b"FVM SPRS" + bytes(8192), WrongFormat, "this is a sparse FVM"),
        (b"ELF" * 9000, WrongFormat, "FVM magic mismatch"),
        (flipped(IMAGE, 8300, COPY_B + 8300), ImageDamaged, "neither of the two copies"),
    ],
    ids=["sparse", "magic", "both copies"],
)
def test_what_cannot_be_told_of(path: Path, image: bytes, error: type[Exception], problem: str) -> None:
    path.write_bytes(image)
    for work in (fvm.check, fvm.inspect):
        with pytest.raises(error, match=f"^{path}: .*{problem}"):
            work(path)


def test_what_is_no_file(path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        fvm.check(path)
    os.mkfifo(path)
    with pytest.raises(UsageError, match="is a named pipe, not a file"):
        fvm.inspect(path)
