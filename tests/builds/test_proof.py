from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.builds.proof import prove_disk, prove_initrd
from pipeline.errors import ImageError, ToolLied
from pipeline.host.tools import Tool
from pipeline.images import cpio, fvm, zbi
from tests.conftest import Outcome, Workspace
from tests.images import zbis

PATH = "data/ssh/authorized_keys"
KEY = b"ssh-ed25519 AAAA\n"
TOOL = Tool.at("zbi", Path("/bin/true"))
FILES = {"bin/init": b"#!" * 5000, "lib/libc.so": b"\0elf" * 3000}
EXTRA = zbis.item(0x12345678, b"something", 7) + zbis.item(zbis.CMDLINE, b"TERM=dumb quiet\0")
SOURCE = zbis.image(FILES, before=EXTRA)
GOOD = zbis.image({**FILES, PATH: KEY}, before=EXTRA)


def prove(directory: Path, after: bytes, before: bytes = SOURCE, arch: str = "x64") -> dict[str, object]:
    (directory / "source").write_bytes(before)
    (directory / "image").write_bytes(after)
    return dict(prove_initrd(TOOL, directory / "image", directory / "source", arch, PATH, KEY))


@pytest.mark.parametrize("source_pack", zbis.PACKS.values(), ids=zbis.PACKS)
@pytest.mark.parametrize("pack", zbis.PACKS.values(), ids=zbis.PACKS)
def test_an_image_with_our_key_is_proved(tmp_path: Path, pack: zbis.Pack, source_pack: zbis.Pack) -> None:
    found = prove(
        tmp_path, zbis.image({**FILES, PATH: KEY}, pack, before=EXTRA), zbis.image(FILES, source_pack, before=EXTRA)
    )
    assert found == {"image": "ZBI", "parts": 4, "files": 3}


def test_what_our_own_tool_makes_is_proved(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(SOURCE)
    (tmp_path / "key").write_bytes(KEY)
    arguments = ["-o", str(tmp_path / "image"), str(tmp_path / "source"), "-e", f"{PATH}={tmp_path / 'key'}"]
    assert zbi.main(arguments) == 0
    assert prove_initrd(TOOL, tmp_path / "image", tmp_path / "source", "x64", PATH, KEY)["files"] == 3


def test_two_bootfs_and_two_command_lines_may_have_become_one(tmp_path: Path) -> None:
    cmdlines = zbis.item(zbis.CMDLINE, b"  TERM=dumb ") + zbis.item(zbis.CMDLINE, b"quiet\0\0")
    before = zbis.container(
        zbis.KERNEL,
        *(zbis.bootfs_item(zbis.payload({name: data})) for name, data in FILES.items()),
        cmdlines,
        zbis.item(0x12345678, b"something", 7),
    )
    with pytest.raises(ToolLied, match="it has 2 BOOTFS items"):
        prove(tmp_path, before, before)
    assert prove(tmp_path, GOOD, before)["files"] == 3


INITRAMFS = cpio.encode([cpio.directory("data"), cpio.file("init", b"#!", 0o755)])


def test_a_key_in_an_initramfs_is_proved(tmp_path: Path) -> None:
    found = prove(tmp_path, cpio.inject(INITRAMFS, [(PATH, KEY)]), INITRAMFS)
    assert found == {"image": "cpio", "parts": 4, "files": 2}


def test_what_is_odd_in_the_source_is_not_the_tool_s_fault(tmp_path: Path) -> None:
    odd = bytearray(INITRAMFS)
    at = INITRAMFS.index(b"000081ED")
    odd[at : at + 8] = b"000051A4"  # a mode of no kind of file
    found = prove(tmp_path, cpio.inject(bytes(odd), [(PATH, KEY)]), bytes(odd))
    assert found["image"] == "cpio"


def changed(**files: bytes) -> bytes:
    return zbis.image(
        {**FILES, **{name.replace("_", "/"): data for name, data in files.items()}, PATH: KEY}, before=EXTRA
    )


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (SOURCE, f"{PATH} is not in it"),
        (zbis.image({**FILES, PATH: b"ssh-rsa OLD\n"}, before=EXTRA), f"{PATH} in it is not our key"),
        (zbis.image({**FILES, PATH: KEY[:-1]}, before=EXTRA), f"{PATH} in it is not our key"),
        (zbis.image({"bin/init": FILES["bin/init"], PATH: KEY}, before=EXTRA), "lib/libc.so is missing in it"),
        (changed(bin_init=b"##" * 5000), "bin/init is missing in it, or is not what it was"),
        (changed(bin_more=b"x"), "bin/more has come into it"),
        (zbis.image({**FILES, PATH: KEY}), "other items than the BOOTFS are not what they were"),
        (
            zbis.image({**FILES, PATH: KEY}, before=EXTRA.replace(b"quiet", b"QUIET")),
            "the command line in it is not what it was",
        ),
        (
            zbis.image({**FILES, PATH: KEY}, before=EXTRA, after=zbis.bootfs_item(zbis.payload({"a": b"b"}))),
            "it has 2 BOOTFS items",
        ),
        (zbis.container(EXTRA), "it does not start with a KERNEL_X64, but with UNKNOWN"),
        (zbis.container(), "it does not start with a KERNEL_X64, but with nothing"),
        (GOOD[:-8], "header size doesn't match file size"),
        (GOOD + bytes(8), "header size doesn't match file size"),
        (GOOD[: len(GOOD) // 2], "header size doesn't match file size"),
        (zbis.container(zbis.KERNEL, EXTRA), "it has 0 BOOTFS items"),
        (b"junk" * 1000, "not an image that Topcoat knows"),
        (b"", "the file is empty"),
        (INITRAMFS, "it is no ZBI, but cpio"),
        (zbis.image({PATH: KEY}, lambda raw: zstandard.compress(raw)[:-9]), "BOOTFS: "),
        (zbis.image({PATH: KEY}, lambda raw: zbis.PACKS["lz4"](raw)[:-9]), "BOOTFS: "),
        (zbis.image({PATH: KEY}, lambda raw: zstandard.compress(raw + b"more")), "more comes out of its frame"),
        (zbis.image({PATH: KEY}, lambda raw: b"junk" + raw), "compressed in an unknown way"),
    ],
)
def test_an_image_that_is_not_what_it_should_be_is_no_result(tmp_path: Path, after: bytes, problem: str) -> None:
    with pytest.raises(ToolLied) as lie:
        prove(tmp_path, after)
    assert lie.value.message.startswith("zbi ended well, but image is not what it should be: ")
    assert problem in lie.value.message
    assert "[tools] proof = off" in lie.value.hint


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (INITRAMFS, f"{PATH} is not in it"),
        (cpio.inject(INITRAMFS, [(PATH, b"another")]), f"{PATH} in it is not our key"),
        (cpio.inject(INITRAMFS, [(PATH, KEY)])[:-700], "cut off"),
        (cpio.inject(cpio.encode([cpio.directory("data")]), [(PATH, KEY)]), "what was in it is not what it was"),
        (cpio.inject(INITRAMFS, [(PATH, KEY), ("etc/x", b"")]), "etc has come into it"),
    ],
)
def test_an_initramfs_that_is_not_what_it_should_be_is_no_result(tmp_path: Path, after: bytes, problem: str) -> None:
    with pytest.raises(ToolLied) as lie:
        prove(tmp_path, after, INITRAMFS)
    assert problem in lie.value.message


def test_the_kernel_must_be_of_the_architecture(tmp_path: Path) -> None:
    with pytest.raises(ToolLied, match="does not start with a KERNEL_ARM64, but with KERNEL_X64"):
        prove(tmp_path, GOOD, arch="arm64")


def with_crc(kind: int, payload: bytes, crc: int) -> bytes:
    made = bytearray(zbis.item(kind, payload, flags=zbis.VERSION | 0x00020000))
    made[28:32] = crc.to_bytes(4, "little")
    return bytes(made)


def test_a_wrong_crc_is_a_lie_unless_it_came_with_the_source(tmp_path: Path) -> None:
    wrong = with_crc(0x4D4F4F42, b"x", 1)
    before, after = (zbis.image(files, before=wrong) for files in (FILES, {**FILES, PATH: KEY}))
    assert prove(tmp_path, after, before)["files"] == 3
    other = with_crc(0x4D4F4F42, b"x", 2)
    with pytest.raises(ToolLied, match=r"CRC .* does not match header 00000002"):
        prove(tmp_path, zbis.image({**FILES, PATH: KEY}, before=other), before)


def test_a_source_that_is_not_sound_is_not_the_tool_s_fault(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"source: .*header size"):
        prove(tmp_path, GOOD, SOURCE[:-8])


def test_files_of_a_source_that_cannot_be_told_are_not_the_tool_s_fault(tmp_path: Path) -> None:
    broken = zbis.image(FILES, lambda raw: zbis.PACKS["zstd"](raw)[:-9], before=EXTRA)
    with pytest.raises(ImageError, match=r"source: .*BOOTFS: "):
        prove(tmp_path, GOOD, broken)


@settings(deadline=None)
@given(st.data())
def test_damage_is_never_anything_but_a_lie(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        prove(tmp_path_factory.getbasetemp(), bytes(damaged))
    except ToolLied:
        return
    # Padding may hold anything, and so may what is only a number of the type's own
    assert bytes(damaged)[32:40] == GOOD[32:40]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    with (tmp_path / "fvm.blk").open("wb") as stream:
        fvm.create(stream, 32768, {"data": b"content", "blobfs": b"x" * 100_000})
    return tmp_path / "fvm.blk"


def extended(disk: Path, length: int) -> Path:
    with disk.open("rb") as source, disk.with_name("extended").open("wb") as output:
        fvm.extend(source, output, length)
    return disk.with_name("extended")


def patched(image: Path, at: int, data: bytes) -> Path:
    with image.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)
    return image


def test_an_extended_disk_is_proved(disk: Path) -> None:
    found = prove_disk(TOOL, extended(disk, 3 << 30), disk, 3 << 30)
    assert dict(found) == {"image": "FVM", "bytes": 3 << 30, "partitions": 2, "slices": 5}


@pytest.mark.parametrize("length", [(8 << 20) + 1, 3 << 30, 4 << 20])
def test_a_disk_of_another_size_is_no_result(disk: Path, length: int) -> None:
    with pytest.raises(ToolLied, match=f"it has 8388608 bytes, not {length}"):
        prove_disk(TOOL, extended(disk, 8 << 20), disk, length)


def test_a_disk_that_only_grew_is_no_result(disk: Path) -> None:
    """As by truncate: the file is longer, the volume is not."""
    image = extended(disk, 8 << 20)
    with image.open("r+b") as stream:
        stream.truncate(64 << 20)
    with pytest.raises(ToolLied, match="its volume has"):
        prove_disk(TOOL, image, disk, 64 << 20)


@pytest.mark.parametrize(
    ("at", "problem"),
    [(0, "magic"), (8300, "copy A"), (81920 + 8300, "copy B"), (163840, "slice 1"), (163840 + 3 * 32768, "slice 4")],
)
def test_a_damaged_disk_is_no_result(disk: Path, at: int, problem: str) -> None:
    with pytest.raises(ToolLied, match=problem):
        prove_disk(TOOL, patched(extended(disk, 8 << 20), at, b"junk"), disk, 8 << 20)


def test_a_source_whose_slices_are_cut_off_is_not_the_tool_s_fault(disk: Path) -> None:
    image = extended(disk, 8 << 20)
    with disk.open("r+b") as stream:
        stream.truncate(disk.stat().st_size - 40_000)
    with pytest.raises(ImageError, match=r"fvm.blk: .*slice \d is cut off"):
        prove_disk(TOOL, image, disk, 8 << 20)


def test_a_disk_that_is_no_fvm_is_only_measured(tmp_path: Path) -> None:
    for name, size in (("fxfs.blk", 100), ("extended", 1 << 20)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert prove_disk(TOOL, tmp_path / "extended", tmp_path / "fxfs.blk", 1 << 20) == {
        "image": "disk",
        "bytes": 1 << 20,
    }


FLIPPED = zbis.container(
    zbis.KERNEL, EXTRA, zbis.item(zbis.BOOTFS, zbis.payload(FILES), 0, zbis.VERSION | zbis.CRC, crc=7)
)


def test_a_wrong_crc_of_the_source_is_told_and_can_be_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = prove(tmp_path, GOOD, FLIPPED)
    assert str(found["doubt"]).startswith("BOOTFS: CRC ")
    assert f"{tmp_path}/source may be damaged: BOOTFS: CRC " in caplog.text
    assert "[tools] proof = on refuses it" in caplog.text
    with pytest.raises(ImageError, match=r"source: BOOTFS: CRC .* \(\[tools\] proof = on\)$"):
        prove_initrd(TOOL, tmp_path / "image", tmp_path / "source", "x64", PATH, KEY, strict=True)
    caplog.clear()
    assert "doubt" not in prove(tmp_path, GOOD)
    assert caplog.text == ""


def prepared(workspace: Workspace, source: bytes, proof: str) -> Outcome:
    workspace.configure(f"[boot]\nready = marker\n[qemu]\naccel = tcg\n[tools]\n{proof}\n")
    (workspace.directory / "bundle/target/x64/fuchsia.zbi").write_bytes(source)
    return workspace.luigi("InitrdWithKey")


def test_a_source_with_a_wrong_crc_is_warned_of_or_refused(bundle: Workspace) -> None:
    outcome = prepared(bundle, FLIPPED, "zbi = builtin")
    assert outcome.status == 0, outcome.text
    assert "fuchsia.zbi may be damaged: BOOTFS: CRC " in outcome.text
    outcome = prepared(bundle, FLIPPED, "zbi = builtin\nproof = on")
    assert outcome.status == 30
    assert "InitrdWithKey: not proved" in outcome.text, "what was made with a warning is not enough any more"
    assert "([tools] proof = on)" in outcome.text
    assert prepared(bundle, SOURCE, "zbi = builtin\nproof = on").status == 0


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (b"\x1f\x8b" + bytes(99), "it is no ZBI, but a file compressed by gzip"),
        (b"FVM PART" + bytes(99), "it is no ZBI, but an FVM"),
        (b"\x7fELF" + bytes(99), "it is no ZBI, but an ELF"),
        (b"<html>", "it is no ZBI\n"),
    ],
)
@pytest.mark.parametrize("proof", ["proof = auto", "proof = off"])
def test_a_source_that_is_no_zbi_is_said_to_be_none(bundle: Workspace, source: bytes, what: str, proof: str) -> None:
    outcome = prepared(bundle, source, f"{proof}\nzbi = build")
    assert outcome.status == 30
    assert f"fuchsia.zbi: {what}" in outcome.text
    assert "zbitool" not in outcome.text.replace("InitrdWithKey", ""), "no tool was asked"


def test_a_lying_tool_fails_its_task_and_leaves_no_image(bundle: Workspace) -> None:
    config = bundle.directory / "luigi.cfg"
    config.write_text(config.read_text().replace("proof = off", "proof = on"))
    bundle.environment |= {"FAKE_ZBI": "lie", "FAKE_FVM": "lie"}
    (bundle.directory / "bundle/target/x64/fuchsia.zbi").write_bytes(SOURCE)
    outcome = bundle.luigi("InitrdWithKey")
    assert outcome.status == 30
    assert "zbitool ended well, but ssh-fuchsia.zbi is not what it should be: " in outcome.text
    assert "header size doesn't match" in outcome.text, "the scripted tool only appends"
    with (bundle.directory / "bundle/target/x64/fvm.blk").open("wb") as stream:
        fvm.create(stream, 32768, {"data": b"content"})
    assert "its volume has" in bundle.luigi("ExtendedBlk").text, "the scripted tool only makes it longer"
    assert [name for name in bundle.files() if name.startswith("images")] == []
