"""What is in an image, and what is wrong with it."""

import os
import tempfile
import threading
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageDamaged, ImageError, UsageError, WrongFormat
from pipeline.images import zbi
from pipeline.images.part import Part
from pipeline.images.zbi import bootfs, compression
from tests.images import zbis

FILES = {"bin/init": b"#!" * 3000, "data/empty": b"", "lib/libc.so": b"\0elf"}
WORDS = zbis.item(zbis.CMDLINE, b"TERM=dumb a\xff\0")


def b3(data: bytes) -> str:
    return f"b3:{blake3(data).hexdigest()}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.zbi"


def inspected(path: Path, image: bytes) -> Part:
    path.write_bytes(image)
    return zbi.inspect(path)


@pytest.mark.parametrize("pack", zbis.PACKS)
def test_all_is_told(path: Path, pack: str) -> None:
    payload = zbis.payload(FILES)
    item = zbis.bootfs_item(payload, zbis.PACKS[pack])
    image = zbis.container(zbis.KERNEL, WORDS, zbis.checked(0x12345678, b"something", 7), item)
    found = inspected(path, image)
    assert found.sound
    assert (found.kind, found.size, found.offset, dict(found.facts)) == ("ZBI", len(image), 0, {"bootable": True})
    kernel, words, unknown, files = found.parts
    assert kernel == Part("item", "KERNEL_X64", 6, 32, b3(b"kernel"), {"type": "0x4c4e524b", "CRC": "none"})
    assert [word.name for word in words.parts] == ["TERM=dumb", "a\ufffd"]
    assert (words.digest, words.size) == (None, 13)
    assert unknown == Part(
        "item", "UNKNOWN (type=12345678)", 9, 120, b3(b"something"), {"type": "0x12345678", "extra": 7}
    )
    assert (files.name, files.size, files.digest) == ("BOOTFS", len(payload), None)
    stored = {"compression": {"lz4": "lz4f"}.get(pack, pack), "stored": len(zbis.PACKS[pack](payload))}
    assert dict(files.facts) == {"type": "0x42534642", **({} if pack == "raw" else stored), "CRC": "none"}
    assert [(file.kind, file.name, file.size, file.digest) for file in files.parts] == [
        ("file", name, len(data), b3(data)) for name, data in FILES.items()
    ]
    assert [file.offset for file in files.parts] == [4096, 12288, 12288]


def test_digests_can_be_left_out(path: Path) -> None:
    whole = inspected(path, zbis.image(FILES, zbis.PACKS["zstd"], before=zbis.bootfs_item(b"damaged")))
    quick = zbi.inspect(path, digests=False)
    assert {part.digest for part in quick.walk()} == {None}
    assert [part.problems for part in quick.walk()] == [part.problems for part in whole.walk()]


def test_a_compressed_ramdisk_is_unpacked(path: Path) -> None:
    packed = zbis.PACKS["zstd"](b"disk" * 999)
    ramdisk = zbis.checked(zbis.RAMDISK, packed, 3996, zbis.VERSION | zbis.COMPRESSED)
    (part,) = inspected(path, zbis.container(ramdisk)).parts
    assert (part.digest, part.size, part.problems) == (b3(b"disk" * 999), 3996, ())


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([], "empty ZBI"),
        ([WORDS], "no kernel item found"),
        ([WORDS, zbis.KERNEL], "kernel item out of order: must be first"),
    ],
)
def test_why_it_cannot_be_booted(path: Path, items: list[bytes], why: str) -> None:
    found = inspected(path, zbis.container(*items))
    assert dict(found.facts) == {"bootable": False, "why not": why}
    assert found.sound


DAMAGED = zbis.item(zbis.BOOTFS, zbis.PACKS["zstd"](zbis.payload(FILES)) + b"\0", 16384, zbis.VERSION | zbis.COMPRESSED)
BOMB = zbis.item(zbis.RAMDISK, zbis.PACKS["lz4"](b""), 0xFFFFFFFF, zbis.VERSION | zbis.COMPRESSED)
PROBLEMS: dict[str, tuple[bytes, str]] = {
    "CRC": (zbis.item(1, b"x", 0, zbis.VERSION | zbis.CRC, crc=7), "does not match header 00000007"),
    "VERSION": (zbis.item(1, b"x", flags=0), "the VERSION flag is not set"),
    "reserved": (zbis.item(1, b"x", reserved=(1, 2)), "reserved fields are not 0"),
    "CRC without its flag": (zbis.item(1, b"x", crc=7), "the CRC flag is not set, but the CRC is not 4a87e8d6"),
    "frame": (DAMAGED, "item BOOTFS: it has "),
    "no frame": (zbis.item(zbis.RAMDISK, b"x", 1, zbis.VERSION | zbis.COMPRESSED), "compressed in an unknown way"),
    "no BOOTFS": (zbis.bootfs_item(bytes(4096)), "the magic 0x0"),
    "bomb": (
        zbis.item(zbis.RAMDISK, zbis.PACKS["lz4"](b""), 0xFFFFFFFF, zbis.VERSION | zbis.COMPRESSED),
        "to hold 4294967295",
    ),
    "words": (zbis.item(zbis.CMDLINE, bytes((1 << 20) + 1)), "a CMDLINE of 1048577 bytes"),
}


@pytest.mark.parametrize(("item", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_wrong_with_an_item_is_a_problem_of_it(path: Path, item: bytes, problem: str) -> None:
    found = inspected(path, zbis.container(zbis.KERNEL, item, WORDS))
    assert not found.sound
    assert [bool(part.problems) for part in found.parts] == [False, True, False]
    (told,) = found.parts[1].problems
    assert problem in told
    assert str(path) not in told  # else the same fault of two copies would seem to be two faults


def test_two_problems_of_one_item(path: Path) -> None:
    item = zbis.item(zbis.BOOTFS, bytes(4096), 0, zbis.CRC, crc=7)
    problems = inspected(path, zbis.container(item)).parts[0].problems
    assert [told.split()[0] for told in problems] == ["the", "CRC", "at"]


@pytest.mark.parametrize(
    ("flags", "reserved", "crc", "problems"),
    [
        (zbis.VERSION, (0, 0), zbis.NO_CRC, ()),
        (0, (0, 0), zbis.NO_CRC, ("the VERSION flag is not set",)),
        (zbis.VERSION, (0, 9), zbis.NO_CRC, ("reserved fields are not 0",)),
        (zbis.VERSION, (0, 0), 5, ("the CRC flag is not set, but the CRC is not 4a87e8d6",)),
    ],
)
def test_what_is_wrong_with_the_container(
    path: Path, flags: int, reserved: tuple[int, int], crc: int, problems: tuple[str, ...]
) -> None:
    image = zbis.item(zbis.CONTAINER, zbis.KERNEL, 0x868CF7E6, flags, reserved=reserved, crc=crc)
    assert inspected(path, image).problems == problems


def test_a_second_bootfs_is_a_problem_of_the_image(path: Path) -> None:
    found = inspected(path, zbis.image(FILES, after=zbis.bootfs_item(zbis.payload({"a": b""}))))
    assert found.problems == ("it has 2 BOOTFS items, and a device reads only the first",)
    assert [len(part.parts) for part in found.parts] == [0, 3, 1]


def test_all_bootfs_are_bounded_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootfs, "MOST_FILES", 5)
    found = inspected(path, zbis.container(*[zbis.bootfs_item(zbis.payload(FILES))] * 3))
    assert [len(part.parts) for part in found.parts] == [3, 0, 0]
    assert "too many files in the BOOTFS, expected at most 5" in found.parts[1].problems[0]


def test_a_shared_range_is_read_once(path: Path) -> None:
    raw = zbis.bootfs([zbis.entry(b"n%d\0" % number, 9, 8192) for number in range(200)], bytes(8192))
    (part,) = inspected(path, zbis.container(zbis.bootfs_item(raw))).parts
    assert {(file.digest, file.offset) for file in part.parts} == {(b3(bytes(9)), 8192)}
    assert len(part.parts) == 200


def test_what_is_no_image(path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        zbi.inspect(path)
    with pytest.raises(WrongFormat, match=f"^{path}: at byte 0x0: this is no ZBI"):
        inspected(path, b"no image")
    with pytest.raises(ImageDamaged, match=f"^{path}: at byte 0x4: header size"):
        inspected(path, zbis.image(FILES)[:-1])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="is a named pipe"):
        zbi.inspect(path)


def test_no_thread_and_no_descriptor_is_left(path: Path) -> None:
    before, threads = os.listdir("/proc/self/fd"), threading.active_count()  # noqa: PTH208
    inspected(path, zbis.image(FILES, zbis.PACKS["lz4"], after=DAMAGED))
    assert set(os.listdir("/proc/self/fd")) <= set(before)  # noqa: PTH208
    assert threading.active_count() <= threads


def test_thousands_of_items_take_no_time(path: Path) -> None:
    assert len(inspected(path, zbis.container(zbis.KERNEL, zbis.item(7, b"x") * 3000)).parts) == 3001


IMAGES = {
    pack: zbis.container(
        zbis.checked(zbis.KERNEL_X64, b"kernel"), WORDS,
        zbis.checked(zbis.BOOTFS, zbis.PACKS[pack](zbis.payload(FILES)), 16384,
                     zbis.VERSION | (0 if pack == "raw" else zbis.COMPRESSED)),
    )
    for pack in zbis.PACKS
}  # fmt: skip
DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)


def damaged(data: bytes, damage: list[tuple[int, bytes]], most: int) -> bytes:
    broken = bytearray(data)
    for place, piece in damage:
        at = place % min(most, len(broken))
        broken[at : at + len(piece)] = piece[: len(broken) - at]
    return bytes(broken)


def handled(image: bytes) -> None:
    """Do everything that can be done with an image, and see that nothing but refusals comes of it."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.zbi"
        path.write_bytes(image)
        try:
            sound = zbi.inspect(path).sound
        except ImageError:
            sound = False
        codes = [
            zbi.main(["-t", "-v", str(path)]),
            zbi.main(["-x", str(path), "-D", f"{name}/out"]),
            zbi.main(["-o", f"{name}/new", str(path), "-r", "-e", f"key={path}"]),
        ]
        assert codes == [0, 0, 0] or (not sound and set(codes) <= {0, 1})
        if codes[2] == 0:
            bad = [part for part in zbi.inspect(Path(name) / "new").parts if part.name == "BOOTFS" and not part.sound]
            assert bad == []
        assert not list(Path(name).glob(".*"))


@given(st.sampled_from(list(IMAGES)), DAMAGE)
@settings(max_examples=60)
def test_any_damage_of_an_image_is_only_refused(pack: str, damage: list[tuple[int, bytes]]) -> None:
    handled(damaged(IMAGES[pack], damage, 1 << 16))


@given(st.sampled_from(list(zbis.PACKS)), DAMAGE)
@settings(max_examples=60)
def test_any_damage_of_a_bootfs_is_only_refused(pack: str, damage: list[tuple[int, bytes]]) -> None:
    payload = damaged(zbis.payload(FILES), damage, 100)  # where the directory is
    handled(zbis.container(zbis.KERNEL, zbis.bootfs_item(payload, zbis.PACKS[pack])))


@given(st.sampled_from(list(IMAGES)), st.integers(0, 1 << 16))
@settings(max_examples=60)
def test_a_cut_image_is_only_refused(pack: str, size: int) -> None:
    handled(IMAGES[pack][: size % len(IMAGES[pack])])


def test_the_limit_of_what_is_unpacked_is_below_that_of_the_format() -> None:
    assert compression.MOST_UNPACKED < 1 << 32
