import gzip
import lzma
import struct
import tracemalloc
from pathlib import Path

import pytest

from pipeline.builds.linux.kernel import unpack, vmlinux
from pipeline.errors import ImageError
from tests.builds.linux.debs import KERNEL_NAME, VMLINUX, bzimage, lz4_blocks, payload, sized, write, zstd

WAYS = ["lz4", "xz", "gzip", "zstd"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("setup_sectors", [0, 1, 30])
def test_each_compression_is_unpacked(how: str, setup_sectors: int) -> None:
    assert vmlinux(bzimage(payload(VMLINUX, how), setup_sectors)) == VMLINUX


def test_a_kernel_of_several_lz4_blocks() -> None:
    large = b"\x7fELF" + bytes(9 << 20) + b"end"
    assert vmlinux(bzimage(payload(large, "lz4"))) == large


@pytest.mark.parametrize("how", ["lz4", "xz", "gzip", "zstd"])
def test_a_kernel_that_claims_less_than_it_holds(how: str) -> None:
    packed = payload(VMLINUX, how)[:-4] + struct.pack("<I", len(VMLINUX) - 1)
    with pytest.raises(ImageError, match="the kernel cannot be unpacked: "):
        vmlinux(bzimage(packed))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    ("content", "claim", "why"),
    [
        (VMLINUX, len(VMLINUX) + 1, "no ELF file of the size it claims|incorrect length check"),
        (VMLINUX, 0, "it claims 0 bytes"),
        (b"MZ" + b"x" * 998, 1000, "no ELF file of the size it claims"),
        (VMLINUX, (256 << 20) + 1, "it claims 268435457 bytes"),
    ],
    ids=["claims more", "claims nothing", "no ELF", "claims too much"],
)
def test_contents_that_are_not_as_claimed(how: str, content: bytes, claim: int, why: str) -> None:
    packed = payload(content, how)[:-4] + struct.pack("<I", claim)
    with pytest.raises(ImageError, match=f"the kernel cannot be unpacked: .*({why})"):
        vmlinux(bzimage(packed))


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"", "it is no bzImage"),
        (b"\x7fELF" + bytes(2000), "it is no bzImage"),
        (bzimage(payload(VMLINUX, "xz"))[:1200], "it is cut off"),
        (bzimage(payload(VMLINUX, "xz"))[:1040], "it is cut off"),
        (bzimage(b"\x1f\x8b"), "it is cut off"),
        (bzimage(sized(b"BZh9" + bytes(100), 1000)), "it is compressed in an unknown way (425a6839)"),
        (bzimage(sized(lzma.compress(VMLINUX)[:-200], len(VMLINUX))), "no ELF file of the size it claims"),
        (bzimage(sized(b"\xfd7zXZ" + b"\xff" * 100, 1000)), "not supported by decoder"),
        (bzimage(sized(b"\x1f\x8b" + b"\xff" * 100, 1000)), "Error -3"),
    ],
    ids=["empty", "ELF", "cut in payload", "no payload", "tiny payload", "bzip2", "cut xz", "broken xz", "broken gzip"],
)
def test_an_image_that_cannot_be_unpacked(image: bytes, why: str) -> None:
    with pytest.raises(ImageError) as caught:
        vmlinux(image)
    assert str(caught.value).startswith("the kernel cannot be unpacked: ")
    assert why in str(caught.value)
    assert "[demo] packages" in caught.value.hint


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(
            bzimage(payload(VMLINUX, "lz4"))[:0x24C],
            id="cut header",
        ),
        pytest.param(
            bzimage(sized(b"\x02\x21\x4c\x18" + struct.pack("<I", 50) + b"\xff" * 50, 1000)),
            id="broken lz4",
        ),
        pytest.param(
            bzimage(sized(b"\x28\xb5\x2f\xfd" + b"\xff" * 50, 1000)),
            id="broken zstd",
        ),
    ],
)
def test_damage_that_is_not_caught_yet(image: bytes) -> None:
    with pytest.raises(ImageError):
        vmlinux(image)


ZEROS = bytes(64 << 20)


def bomb(how: str, claim: int) -> bytes:
    packers = {"xz": lzma.compress, "zstd": zstd, "lz4": lz4_blocks}
    if how == "gzip":
        return bzimage(gzip.compress(ZEROS, 1)[:-4] + struct.pack("<I", claim))
    return bzimage(sized(packers[how](ZEROS), claim))


def not_bounded(how: str, claim: int, reason: str) -> object:
    return pytest.param(how, claim, id=f"{how} claims {claim}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "claim"),
    [
        pytest.param("xz", 1000, id="xz claims 1000"),
        pytest.param("xz", 0, id="xz claims 0"),
        pytest.param("gzip", 1000, id="gzip claims 1000"),
        not_bounded("gzip", 0, "max_length 0 means no limit to zlib"),
        not_bounded("zstd", 1000, "zstd is unpacked without a limit"),
        not_bounded("lz4", 1000, "all blocks are unpacked, whatever the claimed size"),
    ],
)
def test_a_bomb_does_not_go_off(how: str, claim: int) -> None:
    image = bomb(how, claim)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            vmlinux(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20


def test_the_kernel_is_found_in_its_package(tmp_path: Path) -> None:
    files = {"boot/config-6.1": b"x", "usr/boot-vmlinuz-x": b"y", "boot/vmlinuz-6.1": bzimage(payload(VMLINUX, "xz"))}
    assert unpack(write(tmp_path, KERNEL_NAME, files)) == VMLINUX


def test_a_package_without_kernel_is_refused(tmp_path: Path) -> None:
    package = write(tmp_path, KERNEL_NAME, {"boot/config-6.1": b"x"})
    with pytest.raises(ImageError, match=f"there is no /boot/vmlinuz in {KERNEL_NAME}_1_amd64.deb"):
        unpack(package)
