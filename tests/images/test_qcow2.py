"""qcow2 images made by qemu-img, and what is told of them when they are damaged."""

import shutil
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.digests import digest
from pipeline.errors import ImageDamaged, ImageError
from pipeline.images import qcow2
from pipeline.images.part import Fact, Part

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="there is no qemu-img here")


def create(path: Path, *words: str, size: str = "1G") -> Path:
    """An image made by qemu-img."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *words, path.name, *([size] if size else [])]
    subprocess.run(command, check=True, cwd=path.parent)
    return path


def damaged(path: Path, offset: int, form: str, value: int | bytes) -> Part:
    """What is told of the image with a field overwritten."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(struct.pack(form, value))
    return qcow2.inspect(path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return create(tmp_path / "disk.qcow2")


def test_an_empty_disk(image: Path) -> None:
    facts = {"version": 3, "virtual_size": 1 << 30, "cluster_size": 65536, "encrypted": False}
    assert qcow2.inspect(image) == Part("qcow2", size=image.stat().st_size, offset=0, digest=digest(image), facts=facts)
    assert qcow2.inspect(image, digests=False).digest is None


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["-o", "compat=0.10"], {"version": 2}),
        (["-o", "cluster_size=512"], {"cluster_size": 512}),
        (["-o", "data_file=raw.data"], {"external_data": True, "external_data_file": "raw.data"}),
        (["-o", "extended_l2=on"], {"extended_l2": True}),
    ],
)
def test_its_options(tmp_path: Path, words: list[str], facts: dict[str, Fact]) -> None:
    part = qcow2.inspect(create(tmp_path / "disk.qcow2", *words, size="64M"))
    assert part.sound
    assert facts.items() <= part.facts.items()


@pytest.mark.parametrize(("method", "name"), [(1, "AES"), (2, "LUKS"), (7, "unknown: 7")])
def test_encrypted(image: Path, method: int, name: str) -> None:
    facts = damaged(image, 32, ">I", method).facts
    assert (facts["encrypted"], facts["encryption"]) == (True, name)


def test_extended_entries_of_l2_tables_need_more_of_them(image: Path) -> None:
    create(image, "-o", "extended_l2=on")
    assert damaged(image, 36, ">I", 3).problems == ("its L1 table has 3 entries, but the disk needs 4",)


def test_the_name_of_a_backing_file_lies_in_the_first_cluster(image: Path) -> None:
    damaged(image, 16, ">I", 100)
    (problem,) = damaged(image, 8, ">Q", 65500).problems
    assert problem == (
        "at byte 0x8: a backing file's name of 100 bytes at byte 0xffdc, expected at most 1023, in the first cluster"
    )


def test_an_overlay_names_its_backing_file(image: Path) -> None:
    overlay = create(image.parent / "overlay.qcow2", "-b", image.name, "-F", "qcow2", size="")
    part = qcow2.inspect(overlay)
    assert (part.facts["backing_file"], part.facts["backing_format"]) == ("disk.qcow2", "qcow2")
    assert part.sound


def test_written_data_and_snapshots(image: Path) -> None:
    for number in range(3):
        subprocess.run(
            ["qemu-io", "-c", f"write -P 7 {number * 300}M 1M", image], check=True, stdout=subprocess.DEVNULL
        )
    subprocess.run(["qemu-img", "snapshot", "-c", "first", image], check=True)
    part = qcow2.inspect(image)
    assert part.sound
    assert part.facts["snapshots"] == 1
    with image.open("r+b") as stream:
        stream.truncate(0x60000)
    assert qcow2.inspect(image).problems == ("1 of its L2 tables are not in the file: it is cut off",)


@pytest.mark.parametrize(
    ("offset", "form", "value", "problem"),
    [
        (24, ">Q", 1 << 40, "its L1 table has 2 entries, but the disk needs 2048"),
        (36, ">I", 0, "its L1 table has 0 entries, but the disk needs 2"),
        (36, ">I", 2**32 - 1, "its L1 table has 4294967295 entries, more than QEMU opens"),
        (36, ">I", 4 << 20, "its L1 table, at byte 0x30000, is not in the file"),
        (40, ">Q", 2**64 - 8, "its L1 table, at byte 0xfffffffffffffff8, is not in the file"),
        (48, ">Q", 0, "its refcount table, at byte 0x0, is not in the file"),
        (56, ">I", 2**32 - 1, "its refcount table, at byte 0x10000, is not in the file"),
        (0x30000, ">Q", 1 << 50, "1 of its L2 tables are not in the file: it is cut off"),
        (72, ">Q", 1 << 60, "it has features that QEMU may not ignore, and that nobody knows: 0x1000000000000000"),
        (72, ">Q", 2, "QEMU has marked it corrupt; repair it: qemu-img check -r all FILE"),
        (8, ">Q", 1 << 40, "a backing file's name of 0 bytes at byte 0x10000000000, expected at most 1023"),
        (112 + 4, ">I", 1 << 31, "a header extension of 2147483648 bytes, expected one within the first cluster"),
    ],
)
def test_damage_is_a_problem(image: Path, offset: int, form: str, value: int, problem: str) -> None:
    part = damaged(image, offset, form, value)
    assert len(part.problems) == 1
    assert problem in part.problems[0]


@pytest.mark.parametrize(
    ("offset", "form", "value", "problem"),
    [
        (0, "4s", b"QFI\0", "the magic 51 46 49 00, expected 51 46 49 fb"),
        (4, ">I", 4, "at byte 0x4: version 4, expected 2 or 3"),
        (20, ">I", 63, "at byte 0x14: clusters of 2^63 bytes, expected 2^9 to 2^21"),
        (100, ">I", 2**32 - 8, "at byte 0x64: a header of 4294967288 bytes"),
        (100, ">I", 105, "at byte 0x64: a header of 105 bytes"),
    ],
)
def test_a_header_without_sense(image: Path, offset: int, form: str, value: int | bytes, problem: str) -> None:
    with pytest.raises(ImageDamaged) as caught:
        damaged(image, offset, form, value)
    assert problem in str(caught.value)


def test_a_hostile_backing_file_is_told_as_it_is(image: Path) -> None:
    name = b"\x1b]0;x\x07/etc/\xff\npasswd"
    overlay = create(image.parent / "overlay.qcow2", "-b", image.name, "-F", "qcow2", size="")
    header = overlay.read_bytes()[:104]
    at = struct.unpack_from(">Q", header, 8)[0]
    damaged(overlay, at, f"{len(name)}s", name)
    assert damaged(overlay, 16, ">I", len(name)).facts["backing_file"] == "\x1b]0;x\x07/etc/\ufffd\npasswd"


def test_cut_off_anywhere(image: Path) -> None:
    whole = image.read_bytes()
    for size in (4, 71, 72, 103, 104, 300, 65536, 0x30000, len(whole) - 1):
        image.write_bytes(whole[:size])
        try:
            sound = qcow2.inspect(image).sound
        except ImageDamaged:
            sound = False
        assert not sound, size


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create(tmp_path_factory.mktemp("whole") / "disk.qcow2")


@given(
    changes=st.lists(st.tuples(st.integers(0, 130) | st.integers(0x30000, 0x3000F), st.integers(0, 255)), max_size=9)
)
def test_no_damage_is_too_much(whole: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(whole.read_bytes())
    for offset, value in changes:
        data[offset] = value
    path = whole.with_name("damaged.qcow2")
    path.write_bytes(data)
    with suppress(ImageError):
        assert qcow2.inspect(path, digests=False).kind == "qcow2"
