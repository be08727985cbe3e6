"""BOOTFS: what is refused, and what is laid out."""

import struct
import time
from collections.abc import Callable, Sequence

import pytest

from pipeline.errors import ImageDamaged, ImageTooLarge, UsageError
from pipeline.images.zbi import bootfs, compression
from pipeline.images.zbi.bootfs import BootfsReader, Census, File
from pipeline.images.zbi.container import Item, Memory
from tests.images import zbis
from tests.images.zbi import device

FILES = {"bin/init": b"#!" * 3000, "data/empty": b"", "lib/libc.so": b"\0elf", "zz": b"z" * 4096}
PAYLOAD = zbis.payload(FILES)
PAGE = 4096


def item(payload: bytes, pack: str = "raw") -> Item:
    packed = zbis.PACKS[pack](payload)
    flags = zbis.VERSION | (0 if pack == "raw" else zbis.COMPRESSED)
    return Item(zbis.BOOTFS, Memory(packed), len(payload), flags, offset=0x60, file="x.zbi")


def read(payload: bytes, pack: str = "raw") -> dict[str, bytes]:
    reader = BootfsReader(item(payload, pack))
    contents: dict[tuple[int, int], bytes] = {}
    for file in sorted(reader.files, key=place):
        if file.size and place(file) not in contents:
            contents[place(file)] = b"".join(map(bytes, reader.content(file)))
    reader.rest()
    return {file.name: contents.get(place(file), b"") for file in reader.files}


def place(file: File) -> tuple[int, int]:
    return file.offset, file.size


@pytest.mark.parametrize("pack", zbis.PACKS)
def test_files_are_read(pack: str) -> None:
    assert read(PAYLOAD, pack) == FILES


def one(name: bytes, size: int = 1, offset: int = PAGE, content: bytes = bytes(PAGE)) -> bytes:
    return zbis.bootfs([zbis.entry(name, size, offset)], content)


def two(first: tuple[int, int], second: tuple[int, int], pages: int = 3) -> bytes:
    return zbis.bootfs([zbis.entry(b"a\0", *first), zbis.entry(b"b\0", *second)], bytes(pages * PAGE))


GOOD: dict[str, tuple[bytes, dict[str, int]]] = {
    "no files": (zbis.bootfs([]), {}),
    "no files and nothing else": (struct.pack("<IIII", bootfs.MAGIC, 0, 0, 0), {}),
    "one byte of a name": (one(b"x\0"), {"x": 1}),
    "255 bytes of a name": (one(b"n" * 255 + b"\0"), {"n" * 255: 1}),
    "a name that is not UTF-8": (one(b"a\xff\0"), {"a\udcff": 1}),
    "a name of blanks and controls": (one(b" \n\x1b\0"), {" \n\x1b": 1}),
    "three dots": (one(b"...\0"), {"...": 1}),
    "an empty file at the end": (one(b"x\0", 0, 2 * PAGE), {"x": 0}),
    "an empty file in the directory": (one(b"x\0", 0, 0), {"x": 0}),
    "a shared range": (two((9, PAGE), (9, PAGE)), {"a": 9, "b": 9}),
    "not in the order of names": (two((9, 2 * PAGE), (9, PAGE)), {"a": 9, "b": 9}),
    "an empty file inside another": (two((2 * PAGE, PAGE), (0, 2 * PAGE)), {"a": 2 * PAGE, "b": 0}),
    "a directory of a whole page": (
        zbis.bootfs([zbis.entry(b"n" * 239 + b"\0", 0, 0)] * 16 + [zbis.entry(b"m" * 35 + b"\0", 0, 0)]),
        {"n" * 239: 0, "m" * 35: 0},
    ),
}


@pytest.mark.parametrize(("payload", "sizes"), GOOD.values(), ids=GOOD)
def test_what_a_device_takes(payload: bytes, sizes: dict[str, int]) -> None:
    assert {name: len(content) for name, content in read(payload).items()} == sizes


BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "byte 0x0 of the content: it has 0 bytes, expected a whole header"),
    "half a header": (PAYLOAD[:15], "byte 0x0 of the content: it has 15 bytes, expected a whole header"),
    "magic": (b"\0" + PAYLOAD[1:], "byte 0x0 of the content: the magic 0xa56d3f00, expected 0xa56d3ff9"),
    "directory past the end": (zbis.bootfs([], size=PAGE), "byte 0x4 of the content: a directory of 4096 bytes"),
    "directory of 4 GiB": (zbis.bootfs([], size=0xFFFFFFFF), "a directory of 4294967295 bytes, expected at most 4080"),
    "half an entry": (zbis.bootfs([zbis.entry(b"a\0", 0, 0), b"1234"]), "byte 0x20 of the content: the directory is"),
    "half a name": (zbis.bootfs([zbis.entry(b"a" * 19 + b"\0", 0, 0)], size=28), "cut off in a name of 20 bytes"),
    "missing padding": (zbis.bootfs([zbis.entry(b"a\0", 0, 0)], size=15), "cut off in an entry, expected 12 bytes"),
    "name of 0 bytes": (one(b""), "byte 0x10 of the content: a name of 0 bytes, expected 2 to 256, with the NUL"),
    "name of 1 byte": (one(b"\0"), "a name of 1 bytes, expected 2 to 256, with the NUL"),
    "name of 257 bytes": (one(b"n" * 256 + b"\0"), "a name of 257 bytes, expected 2 to 256, with the NUL"),
    "name of 4 GiB": (zbis.bootfs([struct.pack("<III", 0xFFFFFFFF, 0, 0) + b"a\0\0\0"]), "a name of 4294967295 bytes"),
    "no NUL": (one(b"ab"), "byte 0x1c of the content: a name does not end in NUL"),
    "NUL inside": (one(b"a\0b\0"), "byte 0x1c of the content: the name 'a\\x00b': there is a NUL in it"),
    "leading slash": (one(b"/a\0"), "the name '/a': it starts with '/'"),
    "trailing slash": (one(b"a/\0"), "the name 'a/': a component of it is empty"),
    "empty component": (one(b"a//b\0"), "the name 'a//b': a component of it is empty"),
    "dot": (one(b".\0"), "no . or .. allowed"),
    "dot inside": (one(b"a/./b\0"), "no . or .. allowed"),
    "dots": (one(b"..\0"), "no . or .. allowed"),
    "dots first": (one(b"../../etc/passwd\0"), "no . or .. allowed"),
    "dots inside": (one(b"a/../../b\0"), "no . or .. allowed"),
    "dots last": (one(b"a/..\0"), "no . or .. allowed"),
    "misaligned": (one(b"a\0", 1, PAGE + 8), "byte 0x1008 of the content: 'a' starts there, expected a multiple of"),
    "offset past the end": (one(b"a\0", 0, 3 * PAGE), "offset+size too large: 'a' has 0 bytes, expected an end at"),
    "size past the end": (one(b"a\0", PAGE + 1), "offset+size too large: 'a' has 4097 bytes"),
    "end inside the last page": (one(b"a\0", 9, content=bytes(9)), "offset+size too large: 'a' has 9 bytes"),
    "sum overflows": (one(b"a\0", 0xFFFFFFFF, 0xFFFFF000), "offset+size too large"),
    "page overflows": (one(b"a\0", 0xFFFFFFFF, PAGE), "offset+size too large"),
    "in the directory": (one(b"a\0", 1, 0), "byte 0x0 of the content: the contents of two files, or of one and the"),
    "overlap": (two((PAGE + 1, PAGE), (9, 2 * PAGE)), "byte 0x2000 of the content: the contents of two files"),
    "same start": (two((9, PAGE), (10, PAGE)), "byte 0x1000 of the content: the contents of two files"),
}  # fmt: skip


@pytest.mark.parametrize("pack", zbis.PACKS)
@pytest.mark.parametrize(("payload", "problem"), BAD.values(), ids=BAD)
def test_what_a_device_refuses(payload: bytes, problem: str, pack: str) -> None:
    with pytest.raises(ImageDamaged) as caught:
        read(payload, pack)
    error = caught.value
    assert error.message.startswith("x.zbi: at byte 0x60: in its BOOTFS, at byte 0x")
    assert problem in error.message
    assert (error.offset, error.file) == (0x60, "x.zbi")
    assert "build it anew" in error.hint


@pytest.mark.parametrize("pack", ["zstd", "lz4"])
def test_damage_behind_the_last_file_is_found(pack: str) -> None:
    packed = zbis.PACKS[pack](PAYLOAD)
    damaged = Item(zbis.BOOTFS, Memory(packed + b"\0"), len(PAYLOAD), zbis.VERSION | zbis.COMPRESSED, offset=0)
    with pytest.raises(ImageDamaged):
        BootfsReader(damaged).rest()


def test_a_directory_of_megabytes_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootfs, "MOST_FILES", 2)
    assert len(read(zbis.payload({"a": b"", "b": b""}))) == 2
    with pytest.raises(ImageTooLarge, match="a directory of 1072 bytes"):
        read(zbis.bootfs([zbis.entry(b"n" * 255 + b"\0", 0, 0)] * 4))


@pytest.mark.slow
def test_long_directories_take_no_time() -> None:
    payload = zbis.bootfs([zbis.entry(b"d/" * 120 + b"%06d\0" % number, 0, 0) for number in range(40_000)])
    before = time.process_time()
    assert len(read(payload)) == 40_000
    assert time.process_time() - before < 5  # some tenths; it would be half a minute if each name copied the rest


def too_large(files: Sequence[str]) -> str:
    with pytest.raises(ImageTooLarge) as caught:
        read(zbis.payload(dict.fromkeys(files, b"")))
    assert caught.value.file == "x.zbi"
    return caught.value.message


def test_files_and_directories_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootfs, "MOST_FILES", 3)
    monkeypatch.setattr(bootfs, "MOST_DIRECTORIES", 4)
    assert len(read(zbis.payload(dict.fromkeys(["a/b/c/d", "a/b/c/e", "a/x/f"], b"")))) == 3
    assert "too many files in the BOOTFS, expected at most 3" in too_large(["a", "b", "c", "d"])
    assert "too many directories in the BOOTFS, expected at most 4" in too_large(["a/b/c/d", "a/x/y/z"])
    assert "too many directories" in too_large(["a/b/c/d/e/f"])


def test_what_is_read_together_is_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootfs, "MOST_FILES", 7)
    census = Census()
    BootfsReader(item(PAYLOAD), census)
    with pytest.raises(ImageTooLarge, match="too many files"):
        BootfsReader(item(PAYLOAD), census)
    assert len(BootfsReader(item(PAYLOAD)).files) == 4


def laid_out(files: dict[str, bytes]) -> bytes:
    """A payload that is made by `layout`."""
    directory, offsets, total = bootfs.layout([(name, len(data), data) for name, data in files.items()])
    payload = bytearray(total)
    payload[: len(directory)] = directory
    for data, offset in zip(files.values(), offsets, strict=True):
        payload[offset : offset + len(data)] = data
    return bytes(payload)


LAYOUTS: dict[str, dict[str, bytes]] = {
    "none": {},
    "one": {"a": b"1"},
    "only an empty one": {"a": b""},
    "empty ones everywhere": {"a": b"", "b": b"1", "c": b"", "d": b"2", "e": b""},
    "whole pages": {"a": bytes(PAGE), "b": b"x" * 2 * PAGE},
    "equal ones": {"a": b"1", "b": b"2", "c": b"1"},
    "a directory of a whole page": {"n" * 239 + str(number): b"" for number in range(9)} | {"x": b"1"},
    "a directory of two pages": {"n" * 239 + str(number): b"%d" % number for number in range(10, 30)},
    "longest name": {"n" * 255: b"1"},
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_as_a_device_wants_it(files: dict[str, bytes]) -> None:
    payload = laid_out(files)
    found = {name.decode(): payload[offset : offset + size] for name, size, offset in device.entries(payload)}
    assert found == read(payload) == files
    assert len({offset for _, size, offset in device.entries(payload) if size}) == len(
        set(filter(None, files.values()))
    )


def test_the_layout_is_that_of_fuchsias_tool() -> None:
    assert laid_out({"a/b": b"1", "c": b"2" * 5000}) == zbis.payload({"a/b": b"1", "c": b"2" * 5000})


def test_what_is_too_large_to_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MOST_UNPACKED", 3 * PAGE)
    assert bootfs.layout([("a", PAGE, 1), ("b", 5, 2)])[2] == 3 * PAGE
    for files in ([("a", PAGE, 1), ("b", PAGE + 1, 2)], [("a", 1 << 33, 1)]):
        with pytest.raises(ImageTooLarge, match=f"expected at most {3 * PAGE}"):
            bootfs.layout(files)


def test_names_are_sorted_by_component() -> None:
    names = ["0", "A", "a/a/z", "a/a-c", "a/b", "a b", "a-b", "a.txt", "ab", "a\udcff", "é"]
    assert sorted(set(names), key=bootfs.order) == names


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "n" * 256, "é" * 128, "a\0b"], ids=lambda name: repr(name)[:9]
)
def test_names_that_are_not_written(name: str) -> None:
    with pytest.raises(UsageError, match="a file in a BOOTFS cannot be named") as caught:
        bootfs.check_name(name)
    assert "data/ssh/authorized_keys" in caught.value.hint


@pytest.mark.parametrize("name", ["a", "a/b", "...", "n" * 255, "é" * 127, "a\udcff", "-"])
def test_names_that_are_written(name: str) -> None:
    bootfs.check_name(name)


def test_a_content_may_be_left_out() -> None:
    reader = BootfsReader(item(PAYLOAD, "zstd"))
    last = reader.files[-1]
    assert b"".join(map(bytes, reader.content(last))) == FILES["zz"]


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\0"], ids=["shorter", "longer"])
def test_a_claim_that_does_not_fit(change: Callable[[bytes], bytes]) -> None:
    packed = zbis.PACKS["zstd"](change(PAYLOAD))
    wrong = Item(zbis.BOOTFS, Memory(packed), len(PAYLOAD), zbis.VERSION | zbis.COMPRESSED, offset=0)
    with pytest.raises(ImageDamaged, match="out of its frame"):
        BootfsReader(wrong).rest()
