"""A tool that ends well but has made nothing of use is found out."""

import struct
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ImageError, ToolLied
from pipeline.images import cpio, fvm, zbi
from pipeline.proof import prove_disk, prove_initrd
from pipeline.tools import Tool
from tests.conftest import Workspace

TOOL = Tool.at("zbi", Path("/bin/true"))
KEY = b"ssh-ed25519 AAAA\n"
PATH = "data/ssh/authorized_keys"
Pack = Callable[[bytes], bytes]
PACKS: dict[str, Pack] = {"raw": bytes, "zstd": zstandard.compress, "lz4": lz4.frame.compress}


def item(kind: int, payload: bytes, extra: int = 0, flags: int = 0x00010000) -> bytes:
    header = struct.pack("<IIIIIIII", kind, len(payload), extra, flags, 0, 0, 0xB5781729, 0x4A87E8D6)
    return header + payload + bytes(-len(payload) % 8)


def image(files: dict[str, bytes], pack: Pack = bytes) -> bytes:
    """A ZBI with a kernel and these files in its BOOTFS."""
    names = {name.encode() + b"\0": data for name, data in files.items()}
    directory, content = b"", b""
    start = 4096
    for name, data in names.items():
        directory += struct.pack("<III", len(name), len(data), start + len(content)) + name
        directory += bytes(-len(directory) % 4)
        content += data + bytes(-len(data) % 4096)
    raw = (struct.pack("<IIII", 0xA56D3FF9, len(directory), 0, 0) + directory).ljust(start, b"\0") + content
    packed = pack(raw)
    flags = 0x00010000 | (packed is not raw and packed != raw)
    body = item(0x4C4E524B, b"kernel") + item(zbi.BOOTFS, packed, len(raw), flags)
    return item(zbi.CONTAINER, body, 0x868CF7E6)


GOOD = image({"bin/init": b"#!" * 5000, PATH: KEY})


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_a_key_is_found_however_the_files_are_packed(tmp_path: Path, pack: Pack) -> None:
    (tmp_path / "image").write_bytes(image({"bin/init": b"#!" * 5000, PATH: KEY}, pack))
    prove_initrd(TOOL, tmp_path / "image", PATH, KEY)


def test_a_key_is_found_in_an_initramfs(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(cpio.inject(cpio.encode([cpio.directory("data")]), [(PATH, KEY)]))
    prove_initrd(TOOL, tmp_path / "image", PATH, KEY)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (image({"bin/init": b"x"}), f"{PATH} is not in it"),
        (image({PATH: b"ssh-rsa OLD\n"}), f"{PATH} in it is not our key"),
        (image({PATH: KEY[:-1]}), f"{PATH} in it is not our key"),
        (GOOD[:-8], "the header says"),
        (GOOD + bytes(8), "the header says"),
        (GOOD[: len(GOOD) // 2], "the header says"),
        (b"junk" * 1000, "no ZBI container"),
        (b"", "no ZBI container"),
        (item(zbi.CONTAINER, item(0x4C4E524B, b"kernel"), 0x868CF7E6), "there is no BOOTFS in it"),
        (image({PATH: KEY}, lambda raw: zstandard.compress(raw)[:-9]), "BOOTFS"),
        (image({PATH: KEY}, lambda raw: lz4.frame.compress(raw)[:-9]), "BOOTFS"),
        (image({PATH: KEY}, lambda raw: zstandard.compress(raw + b"more")), "has not the size that it claims"),
        (image({PATH: KEY}, lambda raw: b"junk" + raw), "compressed in an unknown way"),
        (cpio.encode([cpio.directory("data")]), f"{PATH} is not in it"),
        (cpio.encode([cpio.directory("data")])[:50], "cut off"),
    ],
)
def test_an_image_without_our_key_is_no_result(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(ToolLied) as lie:
        prove_initrd(TOOL, tmp_path / "image", PATH, KEY)
    assert lie.value.message.startswith("zbi ended well, but image is not what it should be: ")
    assert problem in lie.value.message
    assert "[tools] proof = off" in lie.value.hint


@given(st.data())
def test_damage_is_never_anything_but_damage(data: st.DataObject) -> None:
    damaged = bytearray(GOOD[: data.draw(st.integers(0, len(GOOD)))])
    for _ in range(data.draw(st.integers(0, 4)) if damaged else 0):
        damaged[data.draw(st.integers(0, min(len(damaged), 4500) - 1))] = data.draw(st.integers(0, 255))
    try:
        zbi.file_in_bootfs(bytes(damaged), PATH)
    except ImageError:
        return


def test_a_bomb_does_not_go_off(tmp_path: Path) -> None:
    bomb = image({PATH: KEY}, lambda raw: zstandard.compress(bytes(1 << 28)))
    with pytest.raises(ImageError, match="has not the size that it claims"):
        zbi.file_in_bootfs(bomb, PATH)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    with (tmp_path / "fvm.blk").open("wb") as stream:
        fvm.create(stream, 32768, {"data": b"content"})
    return tmp_path / "fvm.blk"


def extended(disk: Path, length: int) -> Path:
    with disk.open("rb") as source, disk.with_name("extended").open("wb") as output:
        fvm.extend(source, output, length)
    return disk.with_name("extended")


def test_an_extended_disk_is_proved(disk: Path) -> None:
    prove_disk(TOOL, extended(disk, 3 << 30), disk, 3 << 30)


@pytest.mark.parametrize("length", [(8 << 20) + 1, 3 << 30])
def test_a_disk_that_is_too_short_is_no_result(disk: Path, length: int) -> None:
    with pytest.raises(ToolLied, match=f"it has 8388608 bytes, not {length}"):
        prove_disk(TOOL, extended(disk, 8 << 20), disk, length)


def test_a_disk_that_only_grew_is_no_result(disk: Path) -> None:
    """As by truncate: the file is longer, the volume is not."""
    image = extended(disk, 8 << 20)
    with image.open("r+b") as stream:
        stream.truncate(64 << 20)
    with pytest.raises(ToolLied, match="its volume has"):
        prove_disk(TOOL, image, disk, 64 << 20)


def test_a_damaged_disk_is_no_result(disk: Path) -> None:
    image = extended(disk, 8 << 20)
    with image.open("r+b") as stream:
        stream.write(b"junk")
    with pytest.raises(ToolLied, match="FVM magic mismatch"):
        prove_disk(TOOL, image, disk, 8 << 20)


def test_a_disk_that_is_no_fvm_is_only_measured(tmp_path: Path) -> None:
    for name, size in (("fxfs.blk", 100), ("extended", 1 << 20)):
        (tmp_path / name).write_bytes(b"x" * size)
    prove_disk(TOOL, tmp_path / "extended", tmp_path / "fxfs.blk", 1 << 20)


def test_a_lying_tool_fails_its_task_and_leaves_no_image(bundle: Workspace) -> None:
    config = bundle.directory / "luigi.cfg"
    config.write_text(config.read_text().replace("proof = off", "proof = on"))
    (bundle.directory / "bundle/target/x64/fuchsia.zbi").write_bytes(b"junk")
    outcome = bundle.luigi("InitrdWithKey")
    assert outcome.status == 30
    assert "zbitool ended well, but ssh-fuchsia.zbi is not what it should be: no sound ZBI" in outcome.text
    (bundle.directory / "bundle/target/x64/fuchsia.zbi").write_bytes(GOOD)
    assert "the header says" in bundle.luigi("InitrdWithKey").text, "the scripted tool only appends"
    with (bundle.directory / "bundle/target/x64/fvm.blk").open("wb") as stream:
        fvm.create(stream, 32768, {"data": b"content"})
    assert "its volume has" in bundle.luigi("ExtendedBlk").text, "the scripted tool only makes it longer"
    assert [name for name in bundle.files() if name.startswith("images")] == []
