"""Compressed payloads."""

import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from pipeline.errors import ImageDamaged, ImageTooLarge, UsageError
from pipeline.images.zbi import compression, container
from pipeline.images.zbi.compression import LZ4, NONE, ZSTD, Method, Packed
from pipeline.images.zbi.container import COMPRESSED_FLAG, CRC_FLAG, VERSION_FLAG, Item, Memory
from tests.images import zbis
from tests.images.zbi import device

CONTENT = random.Random(1).randbytes(3000) + bytes(5000) + b"the end"
FLAGS = VERSION_FLAG | COMPRESSED_FLAG


def zstd(content: bytes, *, size: bool = True, checksum: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=size, write_checksum=checksum).compress(content)


def lz4f(content: bytes, *, size: bool = True, checksum: bool = True, blocks: bool = False) -> bytes:
    packed = lz4.frame.compress(content, store_size=size, content_checksum=checksum, block_checksum=blocks)
    return bytes(packed)


def raw_blocks(*blocks: bytes, kind: int = 0, header: bytes = b"\x00\x38") -> bytes:
    """A zstd frame by hand; blocks of kind 1 are a byte that comes 128 Ki times. The window has 128 KiB."""
    frame = b"\x28\xb5\x2f\xfd" + header
    for number, block in enumerate(blocks):
        size = 1 << 17 if kind == 1 else len(block)
        frame += struct.pack("<I", (number == len(blocks) - 1) | kind << 1 | size << 3)[:3] + block
    return frame


SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"


def item(payload: bytes, size: int = len(CONTENT)) -> Item:
    return Item(zbis.RAMDISK, Memory(payload), size, FLAGS, offset=64, file="x.zbi")


def unpacked(item: Item) -> bytes:
    return b"".join(map(bytes, compression.unpacked(item)))


@pytest.mark.parametrize(
    "payload",
    [zstd(CONTENT), zstd(CONTENT, checksum=False), zstd(CONTENT, size=False), zstd(CONTENT, size=False, checksum=False),
     lz4f(CONTENT), lz4f(CONTENT, checksum=False), lz4f(CONTENT, size=False), lz4f(CONTENT, blocks=True),
     raw_blocks(CONTENT[:3000], b"", CONTENT[3000:])],
    ids=["zstd", "zstd, no checksum", "zstd, no size", "zstd, neither", "lz4", "lz4, no checksum", "lz4, no size",
         "lz4, block checksums", "zstd by hand"],
)  # fmt: skip
def test_what_can_be_unpacked(payload: bytes) -> None:
    assert unpacked(item(payload)) == CONTENT


@pytest.mark.parametrize("pack", [zstd, lz4f])
@pytest.mark.parametrize("content", [b"", b"x", bytes(1 << 18), CONTENT * 200], ids=["none", "one", "zeros", "much"])
def test_sizes(pack: Callable[[bytes], bytes], content: bytes) -> None:
    assert unpacked(item(pack(content), len(content))) == content


SMALL = {"zstd": zstd(CONTENT[-300:]), "lz4": lz4f(CONTENT[-300:])}


@pytest.mark.parametrize("name", SMALL)
def test_a_frame_that_is_cut_off_anywhere(name: str) -> None:
    frame = SMALL[name]
    assert unpacked(item(frame, 300)) == CONTENT[-300:]
    for size in range(len(frame)):
        with pytest.raises(ImageDamaged, match=r"^x\.zbi: at byte 0x\w+: item RAMDISK"):
            unpacked(item(frame[:size], 300))


BAD = {
    "no frame": b"\x1f\x8b\x08\x00" + bytes(50),
    "empty": b"",
    "zstd garbage": b"\x28\xb5\x2f\xfd" + b"\xff" * 50,
    "lz4 garbage": b"\x04\x22\x4d\x18" + b"\xff" * 50,
    "lz4 legacy": b"\x02\x21\x4c\x18" + bytes(50),
    "cut before a block": raw_blocks(CONTENT, b"")[:-3],
    "cut in a block": raw_blocks(CONTENT)[:-3],
    "zstd and a byte": zstd(CONTENT) + b"\0",
    "lz4 and a byte": lz4f(CONTENT) + b"\0",
    "two zstd frames": zstd(CONTENT) + zstd(CONTENT),
    "two lz4 frames": lz4f(CONTENT) + lz4f(CONTENT),
    "zstd and an empty frame": zstd(CONTENT) + zstd(b""),
    "skippable before zstd": SKIPPABLE + zstd(CONTENT),
    "skippable behind zstd": zstd(CONTENT) + SKIPPABLE,
    "skippable behind lz4": lz4f(CONTENT) + SKIPPABLE,
    "zstd checksum": zstd(CONTENT)[:-1] + bytes([zstd(CONTENT)[-1] ^ 1]),
    "lz4 checksum": lz4f(CONTENT)[:-1] + bytes([lz4f(CONTENT)[-1] ^ 1]),
    "dictionary": raw_blocks(CONTENT, header=b"\x01\x38\x07"),
    "window of 1 GiB": raw_blocks(CONTENT, header=b"\x00\xa0"),
    "window of 2 TiB": raw_blocks(CONTENT, header=b"\x00\xf8"),
    "reserved kind of block": raw_blocks(CONTENT, kind=3),
    "reserved bit of the header": raw_blocks(CONTENT, header=b"\x08\x38"),
    "too little in zstd": zstd(CONTENT[1:]),
    "too little in lz4": lz4f(CONTENT[1:]),
    "too much in zstd": zstd(CONTENT + b"x"),
    "too much in lz4": lz4f(CONTENT + b"x"),
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
def test_what_cannot_be_unpacked(payload: bytes) -> None:
    with pytest.raises(ImageDamaged) as caught:
        unpacked(item(payload))
    error = caught.value
    assert error.file == "x.zbi"
    assert error.offset == (96 if "unknown way" in error.message else 64)
    assert error.message.startswith(f"x.zbi: at byte {error.offset:#x}: item RAMDISK")
    assert "copy the image once more" in error.hint


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no frame", "is compressed in an unknown way, expected the start of an LZ4 or zstd frame"),
        ("zstd and a byte", f"it has {len(BAD['zstd and a byte'])} bytes, expected {len(zstd(CONTENT))}"),
        ("cut before a block", f"its zstd frame is cut off: {len(CONTENT) + 9} bytes, expected more"),
        ("cut in a block", f"it has {len(CONTENT) + 6} bytes, expected {len(CONTENT) + 9}: those of one zstd frame"),
        ("lz4 and a byte", "expected those of one LZ4 frame, no more and no less"),
        ("zstd checksum", "its zstd frame cannot be unpacked: zstd decompress error: Restored data doesn't match"),
        ("lz4 checksum", "its LZ4 frame cannot be unpacked: LZ4F_decompress failed"),
        ("window of 1 GiB", "requires too much memory"),
        ("too little in zstd", f"only {len(CONTENT) - 1} bytes come out of its frame, expected {len(CONTENT)} bytes"),
        ("too much in zstd", f"more comes out of its frame than it claims, expected {len(CONTENT)} bytes"),
    ],
)
def test_the_reason_is_told(name: str, problem: str) -> None:
    with pytest.raises(ImageDamaged) as caught:
        unpacked(item(BAD[name]))
    assert problem in caught.value.message


@pytest.mark.parametrize("pack", [zstd, lz4f])
def test_any_flipped_bit_is_noticed(pack: Callable[[bytes], bytes]) -> None:
    frame = pack(CONTENT[-300:])
    for position in range(4, len(frame)):
        damaged = bytearray(frame)
        damaged[position] ^= 1 << position % 8
        try:
            content = unpacked(item(bytes(damaged), 300))
        except ImageDamaged:
            continue
        assert content == CONTENT[-300:]  # such as the window's size, of which there are many good ones


def test_what_is_behind_a_frame_of_megabytes_is_found() -> None:
    content = random.Random(2).randbytes(3 << 20)
    for frame in (zstd(content), lz4f(content)):
        assert unpacked(item(frame, len(content))) == content
        with pytest.raises(ImageDamaged):
            unpacked(item(frame + bytes(3 << 20), len(content)))


@pytest.mark.parametrize("pack", [zstd, lz4f])
def test_a_second_frame_that_starts_a_chunk(monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]) -> None:
    first, second = pack(CONTENT[:500]), pack(CONTENT[500:])
    monkeypatch.setattr(container, "CHUNK", len(first))
    assert unpacked(item(first, 500)) == CONTENT[:500]
    with pytest.raises(ImageDamaged, match=r"item RAMDISK: (something follows its LZ4 frame|it has)"):
        unpacked(item(first + second))


BOMB = raw_blocks(*[b"\0"] * 1024, kind=1)  # 128 MiB from 4 KiB


@pytest.mark.parametrize(
    ("payload", "size"), [(BOMB, 128 << 20), (lz4f(bytes(64 << 20)), 64 << 20)], ids=["zstd", "lz4"]
)
def test_a_bomb_takes_no_memory(payload: bytes, size: int) -> None:
    tracemalloc.start()
    try:
        assert sum(len(piece) for piece in compression.unpacked(item(payload, size))) == size
        with pytest.raises(ImageDamaged, match="more comes out of its frame than it claims"):
            unpacked(item(payload, 1000))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_claim_above_the_limit_is_not_even_tried() -> None:
    too_much = compression.MOST_UNPACKED + 1
    with pytest.raises(ImageTooLarge, match=f"item RAMDISK claims to hold {too_much} bytes") as caught:
        unpacked(item(BOMB, too_much))
    assert (caught.value.offset, caught.value.expected) == (64, f"at most {compression.MOST_UNPACKED}")


def test_a_raw_payload_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MOST_UNPACKED", 10)
    raw = Item(zbis.RAMDISK, Memory(CONTENT), 5, VERSION_FLAG)
    assert unpacked(raw) == CONTENT
    with pytest.raises(ImageTooLarge):
        unpacked(item(zstd(CONTENT)))
    monkeypatch.setattr(compression, "MOST_UNPACKED", len(CONTENT))
    assert unpacked(item(zstd(CONTENT))) == CONTENT


def test_a_frame_of_endless_empty_blocks_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_MOST_BLOCKS", 10)
    assert unpacked(item(raw_blocks(*[b""] * 9, b"x"), 1)) == b"x"
    with pytest.raises(ImageDamaged, match="too many blocks, expected at most 10"):
        unpacked(item(raw_blocks(*[b""] * 10, b"x"), 1))


@pytest.mark.parametrize(
    ("text", "method"),
    [("none", NONE), ("NONE", NONE), ("lz4f", Method("lz4f", 4)), ("zstd", Method("zstd", 4)), ("7", Method("zstd", 7)),
     ("zstd.19", Method("zstd", 19)), ("zstd.22", Method("zstd", 22)), ("zstd.0", Method("zstd", 0)),
     ("zstd.max", Method("zstd", 19)), ("zstd.overclock", Method("zstd", 22)), ("lz4f.12", Method("lz4f", 12)),
     ("lz4f.max", Method("lz4f", 12)), ("max", Method("zstd", 19)), ("overclock", Method("zstd", 22))],
)  # fmt: skip
def test_methods(text: str, method: Method) -> None:
    assert Method.parse(text) == method


@pytest.mark.parametrize(
    "text", ["lz4", "brotli", "zstd.23", "lz4f.13", "zstd.-1", "zstd19", "none.1", "zstd.999", "zstd.1000", "zstd,4"]
)
def test_what_is_no_method(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Method.parse(text)
    assert "use" in caught.value.hint


@pytest.mark.parametrize("method", [NONE, *(Method("lz4f", level) for level in (0, 1, 4, 12)),
                                    *(Method("zstd", level) for level in (0, 1, 4, 19, 22))], ids=str)  # fmt: skip
@pytest.mark.parametrize("size", [0, 1, 70_000, 1 << 20])
def test_what_is_packed_is_as_a_device_wants_it(tmp_path: Path, method: Method, size: int) -> None:
    content = (CONTENT * 140)[:size]
    pieces: list[bytes | memoryview] = [content[: size // 2], memoryview(content)[size // 2 :]]
    images = []
    for name in ("one", "two"):
        packed = Packed(zbis.RAMDISK, iter(pieces), size, method)
        with (tmp_path / name).open("w+b", buffering=0) as stream:
            container.write(stream, [packed])
        images.append((tmp_path / name).read_bytes())
    assert images[0] == images[1]
    (item,) = device.items(images[0])
    assert item.content == content
    assert item.extra == size
    assert item.has_right_crc
    assert item.flags == VERSION_FLAG | CRC_FLAG | (0 if method == NONE else COMPRESSED_FLAG)
    with container.opened(tmp_path / "one") as (ours,):
        assert unpacked(ours) == content
        found = compression.method_of(ours)
    assert found == {"none": NONE, "lz4f": LZ4, "zstd": ZSTD}[method.algorithm]


def test_an_lz4_frame_is_made_as_fuchsias_tool_makes_it(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w+b", buffering=0) as stream:
        container.write(stream, [Packed(zbis.RAMDISK, [CONTENT], len(CONTENT), LZ4)])
    (item,) = device.items((tmp_path / "x").read_bytes())
    facts = lz4.frame.get_frame_info(item.stored)
    assert facts["content_size"] == len(CONTENT)
    assert facts["block_size"] == 65536
    assert not facts["block_linked"]


def test_what_only_claims_to_be_compressed_for_another_type() -> None:
    odd = replace(item(CONTENT), type=0x46534642)
    assert unpacked(odd) == CONTENT
