"""What `zbi --list` prints."""

import pytest

from pipeline.images.zbi import container, item_types, listing
from pipeline.images.zbi.container import Item, Memory
from tests.images import zbis
from tests.images.zbi.conftest import Desk

X64, ARM64 = zbis.KERNEL, zbis.item(zbis.KERNEL_ARM64, b"kernel")
WORDS = zbis.item(zbis.CMDLINE, b"TERM=dumb \x1b[31m a\xff\0")
FILES = {"bin/init": b"#!" * 3000, "data/\x1b[2Jempty": b"", "data/\udcff": b"1"}


def listed(desk: Desk, image: bytes, *words: str) -> list[str]:
    desk.put("in", image)
    code, out, err = desk.run("--list", *words, "in")
    assert (code, err) == (0, "")
    return out.splitlines()


def test_items_are_listed_with_their_places(desk: Desk) -> None:
    image = zbis.container(X64, zbis.checked(1, b"123456789"), zbis.item(zbis.RAMDISK, b"abc", 3), WORDS)
    crc = image[32 + 40 + 28 : 32 + 40 + 32][::-1].hex()
    assert listed(desk, image) == [
        "BOOTABLE: bootable image",
        "00000020: 00000006 KERNEL_X64",
        "        :          MAGIC=b5781729 NO CRC",
        "00000048: 00000009 UNKNOWN (type=00000001)",
        f"        :          MAGIC=b5781729 CRC={crc}",
        "00000078: 00000003 RAMDISK (size=00000003)",
        "        :          MAGIC=b5781729 NO CRC",
        "000000a0: 00000013 CMDLINE",
        "        :          MAGIC=b5781729 NO CRC",
    ]


@pytest.mark.parametrize("pack", zbis.PACKS)
def test_contents_are_listed_if_asked_for(desk: Desk, pack: str) -> None:
    lines = listed(desk, zbis.container(X64, WORDS, zbis.bootfs_item(zbis.payload(FILES), zbis.PACKS[pack])), "-v")
    inside = [line.removeprefix("        : ") for line in lines if line.startswith("        : ")]
    assert [line for line in inside if "MAGIC" not in line] == [
        "TERM=dumb",
        "",
        "a\ufffd",
        "00001000 00001770 bin/init",
        "00003000 00000000 data/empty",
        "00003000 00000001 data/",
    ]


@pytest.mark.parametrize(
    ("items", "headline"),
    [
        ([], "UNBOOTABLE: empty ZBI"),
        ([WORDS], "UNBOOTABLE: no kernel item found"),
        ([WORDS, X64], "UNBOOTABLE: kernel item out of order: must be first"),
        ([X64, ARM64], "BOOTABLE: bootable image"),
        ([ARM64], "BOOTABLE: bootable image"),
    ],
)
def test_the_headline(desk: Desk, items: list[bytes], headline: str) -> None:
    assert listed(desk, zbis.container(*items))[0] == headline


@pytest.mark.parametrize(
    ("kernel", "why"),
    [(None, ""), (zbis.KERNEL_X64, ""), (zbis.KERNEL_ARM64, "kernel arch mismatch: it has KERNEL_X64")],
)
def test_the_kernel_that_is_wanted(kernel: int | None, why: str) -> None:
    assert listing.unbootable([container.made(item_types.KERNEL_X64, b"")], kernel) == why


def test_a_wrong_crc_is_told_and_no_error(desk: Desk) -> None:
    desk.put("in", zbis.container(zbis.item(1, b"payload", 0, zbis.VERSION | zbis.CRC, crc=0x1234)))
    real = zbis.checked(1, b"payload")[28:32][::-1].hex()
    code, out, err = desk.run("-t", "in")
    assert code == 0
    assert "CRC=00001234" in out
    assert err == f"error: CRC {real} does not match header 00001234\n"


def test_several_images_are_listed_as_one(desk: Desk) -> None:
    desk.put("one", zbis.container(X64))
    desk.put("two", zbis.container(WORDS))
    assert desk.run("-t", "one", "two")[1].splitlines()[1::2] == ["00000020: 00000006 KERNEL_X64",
                                                                   "00000048: 00000013 CMDLINE"]  # fmt: skip


def test_a_damaged_bootfs_is_told_only_if_looked_into(desk: Desk) -> None:
    desk.put("in", zbis.container(zbis.bootfs_item(bytes(4096))))
    assert desk.run("-t", "in")[0] == 0
    code, out, err = desk.run("-t", "-v", "in")
    assert code == 1
    assert out.startswith("UNBOOTABLE: ")
    assert err.startswith("zbi: in: at byte 0x20: in its BOOTFS, at byte 0x0 of the content: the magic 0x0")


def test_a_command_line_of_megabytes(desk: Desk) -> None:
    desk.put("in", zbis.container(zbis.item(zbis.CMDLINE, b"x" * (listing.LONGEST_CMDLINE + 1))))
    code, _, err = desk.run("-tv", "in")
    assert code == 1
    assert err.startswith("zbi: in: at byte 0x20: a CMDLINE of 1048577 bytes, expected at most 1048576\n")


def test_words() -> None:
    item = Item(zbis.CMDLINE, Memory(b" a=1 \t b\n\0\0"))
    assert listing.words(item) == [b"a=1", b"b"]
    assert listing.words(Item(zbis.CMDLINE, Memory(b"\0"))) == []
