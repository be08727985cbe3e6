"""Sparse FVM: a file of Fuchsia's own tool of 2019 was like the second of these."""

import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import ImageDamaged, ImageError
from pipeline.images import sparse_fvm
from pipeline.images.part import Part
from pipeline.store.digests import digest

SLICE = 32768
RAW = "make a raw one: fvm OUT.blk decompress --sparse FILE"


def partition(name: bytes, *extents: tuple[int, int]) -> bytes:
    packed = struct.pack("<Q16s24sII", 0x0BDE4DF7CF5C4C5D, bytes(16), name, 2, len(extents))
    return packed + b"".join(struct.pack("<QQQQ", 0xA5B8742906E8382E, 0, *extent) for extent in extents)


def sparse(*partitions: bytes, version: int = 3, flags: int = 0, content: int = 0) -> bytes:
    rest = struct.pack("<QI", 0, flags) if version == 3 else struct.pack("<I", flags)
    body = b"".join(partitions)
    head = struct.pack("<8sQQQQ", b"FVM SPRS", version, 40 + len(rest) + len(body), SLICE, len(partitions))
    return head + rest + body + bytes(content)


BLOB = partition(b"blob", (1, 8192), (2, 40000))
DATA = partition(b"data", (1, 100))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fvm.sparse.blk"


def told(path: Path, data: bytes) -> Part:
    path.write_bytes(data)
    return sparse_fvm.inspect(path)


@pytest.mark.parametrize(("version", "start"), [(2, 44), (3, 52)])
def test_its_partitions(path: Path, version: int, start: int) -> None:
    image = told(path, sparse(BLOB, DATA, version=version, content=48292))
    assert image.sound
    assert image.facts == {"version": version, "slice_size": SLICE, "lz4": False, "to_boot": RAW}
    assert image.digest == digest(path)
    assert image.parts == (
        Part("partition", "blob", 48192, start, None, {"slices": 3, "extents": 2, "flags": 2}),
        Part("partition", "data", 100, start + 56 + 64, None, {"slices": 1, "extents": 1, "flags": 2}),
    )


def test_compressed(path: Path) -> None:
    image = told(path, sparse(BLOB, flags=1, content=10))
    assert (image.sound, image.facts["lz4"]) == (True, True)


@pytest.mark.parametrize(
    ("data", "problem", "parts"),
    [
        (sparse(BLOB, DATA, content=48291), "the content ends at byte 0xbd", 2),
        (sparse(BLOB, DATA)[:200], "at byte 0xac: the file is cut off: 28 bytes, expected 56", 1),
        (sparse(BLOB, b"\0" + DATA[1:]), "at byte 0xac: no partition, expected 0xbde4df7cf5c4c5d", 1),
        (sparse(partition(b"x", (1, SLICE + 1))), "at byte 0x6c: no extent that fits in its slices", 0),
        (sparse(DATA + bytes(8), content=200), "at byte 0x10: a header of 148 bytes, expected 140", 1),
        (sparse(*[b""] * 1025), "at byte 0x20: 1025 partitions, expected at most 1024", 0),
        (sparse(DATA[:52] + b"\xff" * 4), "4294967295 extents, expected at most 1048576 in all", 0),
    ],
)
def test_damage_is_a_problem(path: Path, data: bytes, problem: str, parts: int) -> None:
    image = told(path, data)
    assert len(image.problems) == 1
    assert problem in image.problems[0]
    assert len(image.parts) == parts


@pytest.mark.parametrize("data", [sparse(DATA)[:39], sparse(DATA)[:51], b"FVM SPRS\x04" + sparse(DATA)[9:]])
def test_no_header(path: Path, data: bytes) -> None:
    with pytest.raises(ImageDamaged):
        told(path, data)


@example(changes=[(48, 1)], size=260)
@given(st.lists(st.tuples(st.integers(8, 150), st.integers(0, 255)), max_size=9), st.integers(0, 300))
def test_no_damage_is_too_much(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], size: int
) -> None:
    data = bytearray(sparse(BLOB, DATA, content=300))
    for offset, value in changes:
        data[offset] = value
    try:
        image = told(tmp_path_factory.getbasetemp() / "damaged", bytes(data[:size]))
    except ImageError:
        return
    assert image.problems or image.facts["lz4"], "its content is not there, or compressed to an unknown size"
