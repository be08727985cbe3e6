"""The container and its items."""

import os
import socket
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ImageDamaged, ImageError, ImageTooLarge, UsageError, WrongFormat
from pipeline.images.zbi import container, item_types
from pipeline.images.zbi.container import Item, Memory
from tests.images import zbis
from tests.images.zbi import device

KERNEL = zbis.item(zbis.KERNEL_X64, b"k" * 12)  # 48 bytes
NAMELESS = zbis.checked(0x12345678, b"seven77", 7)
BODY = KERNEL + NAMELESS
IMAGE = zbis.container(KERNEL, NAMELESS)


def of_body(body: bytes, **fields: int) -> bytes:
    return zbis.item(fields.pop("kind", zbis.CONTAINER), body, fields.pop("extra", 0x868CF7E6), **fields)  # type: ignore[arg-type]


def opened(path: Path, image: bytes) -> tuple[Item, ...]:
    path.write_bytes(image)
    with container.opened(path) as items:
        return items


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.zbi"


def refusal(path: Path, image: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        opened(path, image)
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.file == str(path)
    assert caught.value.hint
    return caught.value


def test_items_are_found_in_their_order(path: Path) -> None:
    path.write_bytes(IMAGE)
    with container.opened(path) as items:
        assert [(item.type, item.extra, item.flags, item.offset) for item in items] == [
            (zbis.KERNEL_X64, 0, zbis.VERSION, 32),
            (0x12345678, 7, zbis.VERSION | zbis.CRC, 80),
        ]
        assert [item.payload.read(0, 99) for item in items] == [b"k" * 12, b"seven77"]
        assert items[1].payload.read(2, 3) == b"ven"
        assert items[1].payload.read(7, 3) == b""
        assert items[1].payload.read(99, 3) == b""
        assert [list(container.problems(item)) for item in items] == [[], []]


def test_an_empty_container_has_no_items(path: Path) -> None:
    assert opened(path, zbis.container()) == ()


@pytest.mark.parametrize("size", range(len(IMAGE)))
def test_a_file_that_is_cut_off_anywhere(path: Path, size: int) -> None:
    error = refusal(path, IMAGE[:size])
    if size < 32:
        assert (type(error), error.offset, error.expected) == (WrongFormat, 0, "the header of a container")
    else:
        assert isinstance(error, ImageDamaged)
        assert (error.offset, error.expected) == (4, f"a length of {size - 32}")
        assert f"the container ends at {len(IMAGE)}, the file at {size}" in error.message


@pytest.mark.parametrize("size", [size for size in range(0, len(BODY), 8) if size != len(KERNEL)][1:])
def test_a_container_that_ends_inside_an_item(path: Path, size: int) -> None:
    error = refusal(path, of_body(BODY[:size]))
    assert isinstance(error, ImageDamaged)
    start = len(KERNEL) if size > len(KERNEL) else 0
    if size - start < 32:
        assert error.offset == 32 + start
        assert "too short for next header" in error.message
        assert error.expected == f"32 bytes, of which {size - start} are there"
    else:
        assert error.offset == 64 + start
        assert "too short for payload of" in error.message
        assert error.expected == f"at most {size - start - 32} bytes"


@pytest.mark.parametrize(
    ("image", "kind", "offset", "problem", "expected"),
    [
        (b"", WrongFormat, 0, "this is no ZBI", "the header of a container"),
        (of_body(BODY, magic=zbis.MAGIC + 1), WrongFormat, 0, "this is no ZBI", "the header of a container"),
        (of_body(BODY, kind=zbis.BOOTFS), WrongFormat, 0, "this is no ZBI", "the header of a container"),
        (of_body(BODY, extra=0), WrongFormat, 0, "this is no ZBI", "the header of a container"),
        (IMAGE + b"\0", ImageDamaged, 4, "header size doesn't match file size", "a length of 89"),
        (IMAGE + bytes(8), ImageDamaged, 4, "header size doesn't match file size", "a length of 96"),
        (of_body(BODY, length=80), ImageDamaged, 4, "header size doesn't match file size", "a length of 88"),
        (of_body(BODY, length=0xFFFFFFF8), ImageDamaged, 4, "header size doesn't match", "a length of 88"),
        (of_body(KERNEL + zbis.item(1, b"x" * 8, magic=7)), ImageDamaged, 104, "no item starts here",
         "the magic 0xb5781729"),
        (of_body(KERNEL + zbis.item(1, b"x" * 8, length=17)), ImageDamaged, 112,
         "too short for payload of 17 bytes", "at most 8 bytes"),
        (of_body(zbis.item(1, b"x" * 8, length=0xFFFFFFFF)), ImageDamaged, 64,
         "too short for payload of 4294967295 bytes", "at most 8 bytes"),
    ],
    ids=["empty file", "container magic", "container type", "container extra", "one byte more", "eight bytes more",
         "length short", "length huge", "item magic", "item past the end", "item huge"],
)  # fmt: skip
def test_what_is_no_sound_container(
    path: Path, image: bytes, kind: type[ImageError], offset: int, problem: str, expected: str
) -> None:
    error = refusal(path, image)
    assert type(error) is kind
    assert problem in error.message
    assert (error.offset, error.expected) == (offset, expected)


def test_a_length_that_is_no_multiple_of_8(path: Path) -> None:
    image = of_body(BODY)[:-4]
    error = refusal(path, image[:4] + struct.pack("<I", len(image) - 32) + image[8:])
    assert isinstance(error, ImageDamaged)
    assert "ZBI item misaligned" in error.message
    assert (error.offset, error.expected) == (4, "a multiple of 8")


def test_too_many_items(path: Path) -> None:
    error = refusal(path, zbis.container(zbis.item(1, b"") * 4097))
    assert isinstance(error, ImageTooLarge)
    assert (error.offset, error.expected) == (32 + 32 * 4096, "at most 4096")


def test_what_compressed_items_claim_is_added_up(path: Path) -> None:
    bomb = zbis.item(zbis.RAMDISK, b"", 0xC0000000, zbis.VERSION | zbis.COMPRESSED)
    assert len(opened(path, zbis.container(bomb))) == 1
    raw = zbis.item(zbis.RAMDISK, b"", 0xC0000000)
    assert len(opened(path, zbis.container(bomb, raw, raw))) == 3
    error = refusal(path, zbis.container(bomb, bomb))
    assert isinstance(error, ImageTooLarge)
    assert (error.offset, error.expected) == (64, f"at most {1 << 32} in all")


def test_what_is_no_file(path: Path) -> None:
    def problem() -> str:
        with pytest.raises(UsageError) as caught, container.opened(path):
            pytest.fail("it is opened")
        return caught.value.message

    assert problem() == f"{path}: No such file or directory"
    os.mkfifo(path)
    assert problem() == f"{path} is a named pipe, not a file"
    path.unlink()
    path.mkdir()
    assert problem() == f"{path} is a directory, not a file"
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert problem() == f"{path} is a character device, not a file"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))
        assert problem() == f"{path} is a socket, not a file"
    path.unlink()
    path.symlink_to(path)
    assert problem() == f"{path}: Too many levels of symbolic links"


def test_a_name_with_escapes_is_made_printable(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2Jb"
    path.write_bytes(b"no image")
    with pytest.raises(WrongFormat, match=r"^[^\x1b]*/ab: ") as caught, container.opened(path):
        pytest.fail("it is opened")
    assert caught.value.file == str(tmp_path / "ab")


def test_a_file_that_shrinks_while_it_is_read(path: Path) -> None:
    path.write_bytes(IMAGE)
    with container.opened(path) as items:
        os.truncate(path, 116)
        with pytest.raises(ImageDamaged, match="has become shorter") as caught:
            replace(items[1], file="x.zbi").real_crc()
    assert (caught.value.offset, caught.value.expected, caught.value.file) == (116, "3 more bytes", "x.zbi")


def test_no_descriptor_is_left_open(path: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    opened(path, IMAGE)
    refusal(path, IMAGE[:-1])
    assert set(os.listdir("/proc/self/fd")) <= set(before)  # noqa: PTH208


@pytest.mark.parametrize(
    ("raw", "problems"),
    [
        (zbis.checked(1, b"payload"), []),
        (zbis.item(1, b"payload"), []),
        (zbis.item(1, b"payload", flags=0), ["the VERSION flag is not set"]),
        (zbis.item(1, b"payload", reserved=(1, 0)), ["reserved fields are not 0"]),
        (zbis.item(1, b"payload", reserved=(0, 1)), ["reserved fields are not 0"]),
        (zbis.item(1, b"payload", crc=0), ["the CRC flag is not set, but the CRC is not 4a87e8d6"]),
        (zbis.checked(1, b"payload")[:-2] + b"!\0", ["CRC "]),
        (zbis.checked(1, b"payload")[:8] + b"\1" + zbis.checked(1, b"payload")[9:], ["CRC "]),
    ],
    ids=["CRC", "no CRC", "VERSION", "reserved 1", "reserved 2", "CRC without its flag", "payload", "extra"],
)
def test_what_is_wrong_with_a_header(path: Path, raw: bytes, problems: list[str]) -> None:
    path.write_bytes(zbis.container(raw))
    with container.opened(path) as (item,):
        found = list(container.problems(item))
    assert [told.startswith(wanted) for told, wanted in zip(found, problems, strict=True)] == [True] * len(problems)


def test_a_wrong_padding_is_not_looked_at(path: Path) -> None:
    path.write_bytes(zbis.container(zbis.checked(1, b"seven77")[:-1] + b"!"))
    with container.opened(path) as (item,):
        assert list(container.problems(item)) == []


def written(path: Path, *items: Item) -> bytes:
    with path.open("w+b", buffering=0) as stream:
        container.write(stream, items)
    return path.read_bytes()


def test_what_is_written_is_as_the_format_has_it(path: Path, tmp_path: Path) -> None:
    path.write_bytes(IMAGE)
    with container.opened(path) as items:
        assert written(tmp_path / "copy", *items) == IMAGE
    image = written(tmp_path / "new", container.made(5, b"five!"), container.made(zbis.RAMDISK, b"x" * 9))
    assert image == zbis.container(zbis.checked(5, b"five!"), zbis.checked(zbis.RAMDISK, b"x" * 9, 9))
    assert written(tmp_path / "none") == zbis.container()
    assert [item.has_right_crc for item in device.items(image)] == [True, True]


def test_a_wrong_crc_is_carried(path: Path, tmp_path: Path) -> None:
    wrong = zbis.container(zbis.item(9, b"12345678", 3, zbis.VERSION | zbis.CRC, crc=0x1234, reserved=(5, 6)))
    path.write_bytes(wrong)
    with container.opened(path) as items:
        assert written(tmp_path / "copy", *items) == wrong


def test_more_than_the_format_can_hold(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MOST_BYTES", 79)
    assert len(written(path, container.made(5, b"x" * 40))) == 104
    with pytest.raises(ImageTooLarge, match="output size exceeds format maximum"):
        written(path, container.made(5, b"x" * 48))


def test_a_write_that_takes_only_a_part_goes_on(tmp_path: Path) -> None:
    class Slow:
        def __init__(self) -> None:
            self.data = b""

        def write(self, data: memoryview) -> int:
            self.data += bytes(data[:3])
            return min(3, len(data))

    slow = Slow()
    container.write_all(slow, b"0123456789")  # type: ignore[arg-type]
    assert slow.data == b"0123456789"


def test_chunks_are_bounded() -> None:
    assert [len(chunk) for chunk in container.chunks(Memory(bytes((1 << 20) + 5)))] == [1 << 20, 5]
    assert list(container.chunks(Memory(b""))) == []


@pytest.mark.parametrize("kind", [zbis.RAMDISK, zbis.BOOTFS, item_types.STORAGE_KERNEL, 0x46534642, 1])
def test_only_storage_is_compressed(kind: int) -> None:
    item = Item(kind, Memory(b"abc"), 1000, zbis.VERSION | zbis.COMPRESSED)
    storage = kind not in (0x46534642, 1)
    assert (item.compressed, item.content_size) == (storage, 1000 if storage else 3)
    assert container.made(kind, b"abc").extra == (3 if storage else 0)
