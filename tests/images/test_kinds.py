"""What a file is, by its first bytes."""

import gzip
import struct
from contextlib import suppress
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ImageError, UsageError, WrongFormat
from pipeline.images import cpio, kinds
from pipeline.images.kinds import Kind

CPIO = cpio.encode([cpio.file("a", b"b")])
HEADS = {
    "zbi": (b"BOOT" + bytes(4) + struct.pack("<I", 0x868CF7E6), Kind.ZBI),
    "zbi with a wrong type": (bytes(24) + struct.pack("<I", 0xB5781729), Kind.ZBI),
    "fvm": (b"FVM PART", Kind.FVM),
    "sparse fvm": (b"FVM SPRS", Kind.SPARSE_FVM),
    "cpio": (CPIO, Kind.CPIO),
}
REFUSED = {
    "elf": (b"\x7fELF", Kind.ELF, "readelf --all"),
    "qcow2": (b"QFI\xfb", Kind.QCOW2, "qemu-img info"),
    "cpio with checksums": (b"070702" + CPIO[6:], Kind.OTHER_CPIO, "cpio -o -H newc"),
    "old cpio": (b"070707", Kind.OTHER_CPIO, "cpio -o -H newc"),
    "binary cpio": (b"\xc7\x71\0\0", Kind.OTHER_CPIO, "cpio -o -H newc"),
    "android": (struct.pack("<I", 0xED26FF3A), Kind.ANDROID_SPARSE, "simg2img"),
    "gzip": (gzip.compress(CPIO), Kind.GZIP, "gzip -dc"),
    "xz": (b"\xfd7zXZ\0", Kind.XZ, "xz -dc"),
    "zstd": (zstandard.compress(CPIO), Kind.ZSTD, "zstd -dc"),
    "lz4": (lz4.frame.compress(CPIO), Kind.LZ4, "lz4 -dc"),
    "lz4 of kernels": (b"\x02\x21\x4c\x18", Kind.LZ4, "lz4 -dc"),
    "bzImage": (b"MZ".ljust(0x202, b"\0") + b"HdrS", Kind.BZIMAGE, "-kernel"),
    "arm64": (b"MZ".ljust(0x38, b"\0") + b"ARM\x64", Kind.ARM64_IMAGE, "-kernel"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", Kind.GIT_LFS, "git lfs pull"),
    "nothing": (b"", Kind.EMPTY, "copied as a whole"),
    "zeros": (bytes(5000), Kind.UNKNOWN, "Topcoat knows"),
    "text": (b"hello\n", Kind.UNKNOWN, "Topcoat knows"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.mark.parametrize("name", [*HEADS, *REFUSED])
def test_what_it_is(path: Path, name: str) -> None:
    head, kind = HEADS.get(name) or REFUSED[name][:2]
    path.write_bytes(head)
    assert kinds.identify(path) is kind


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_reader_is_refused_with_what_to_do(path: Path, name: str) -> None:
    head, kind, hint = REFUSED[name]
    path.write_bytes(head)
    with pytest.raises(WrongFormat) as caught:
        kinds.inspect(path)
    assert hint in caught.value.hint
    assert caught.value.file == str(path)
    assert str(caught.value).startswith(f"{path}: ")
    if kind not in (Kind.EMPTY, Kind.UNKNOWN):
        assert kind in str(caught.value)


def test_the_first_bytes_of_what_nobody_knows_are_shown(path: Path) -> None:
    path.write_bytes(b"\x1b[2Jhello\n\xff\xfe")
    with pytest.raises(WrongFormat) as caught:
        kinds.inspect(path)
    assert "not an image that Topcoat knows; it begins with 1b 5b 32 4a 68" in str(caught.value)
    assert "(.[2Jhello...)" in str(caught.value)


def test_the_reader_gets_the_file(path: Path) -> None:
    path.write_bytes(CPIO)
    assert kinds.inspect(path).parts[0].digest
    assert kinds.inspect(path, digests=False).parts[0].digest is None


def test_every_kind_is_read_or_refused() -> None:
    with_reader = {kind for _, kind in HEADS.values()}
    refused = {kind for _, kind, _ in REFUSED.values()}
    assert with_reader | refused == set(Kind)
    assert not with_reader & refused


@pytest.mark.parametrize("name", ["missing", ".", "/dev/null"])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    for look in (kinds.identify, kinds.inspect):
        with pytest.raises(UsageError):
            look(tmp_path / name)


@pytest.mark.parametrize("name", HEADS)
@given(rest=st.binary(max_size=400), kept=st.integers(0, 128))
def test_whatever_follows_a_magic_is_no_bug(
    tmp_path_factory: pytest.TempPathFactory, name: str, rest: bytes, kept: int
) -> None:
    head = HEADS[name][0]
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(head[: max(8, len(head) - kept)] + rest)
    with suppress(ImageError):
        assert kinds.inspect(path).kind == HEADS[name][1]


@given(st.binary(max_size=600))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(data)
    with suppress(ImageError):
        kinds.inspect(path)
